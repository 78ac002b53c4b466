"""Three views of handwritten digits: pixels, Fourier magnitudes, and profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_digits() -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Read scikit-learn's 1797 handwritten digits of 8 x 8 pixels, bundled with it, as three modalities.

    - `pixels` [64]: the image;
    - `frequencies` [40]: magnitudes of its two-dimensional Fourier transform without the half that repeats, as
      log(1 + magnitude): blind to where the digit stands;
    - `profiles` [32]: sums of the 8 rows, of the 8 columns and of the 16 zones of 2 x 2 pixels.

    Returns
    -------
    views : mapping from a modality's name to array [1797, features], float32
    labels : array [1797], int64
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    images = source.images.astype(np.float32)
    views = {
        "pixels": images.reshape(len(images), -1),
        "frequencies": _frequencies(images),
        "profiles": _profiles(images),
    }
    return views, source.target.astype(np.int64)


def _frequencies(images: NDArray[Any]) -> NDArray[Any]:
    magnitudes = np.abs(np.fft.rfft2(images))
    return np.log1p(magnitudes).reshape(len(images), -1).astype(np.float32)


def _profiles(images: NDArray[Any]) -> NDArray[Any]:
    n = len(images)
    zones = images.reshape(n, 4, 2, 4, 2).sum((2, 4)).reshape(n, -1)
    return np.concatenate([images.sum(2), images.sum(1), zones], axis=1)
