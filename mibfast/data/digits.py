"""Three views of handwritten digits: pixels, Fourier magnitudes, and profiles."""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast.data.multimodal import MultimodalData, standardised


def digits(seed: int = 0) -> MultimodalData:
    """Load scikit-learn's 1797 handwritten digits of 8 x 8 pixels, bundled with it, as three modalities.

    - `pixels` [64]: the image;
    - `frequencies` [40]: magnitudes of its two-dimensional Fourier transform without the half that repeats, as
      log(1 + magnitude): blind to where the digit stands;
    - `profiles` [32]: sums of the 8 rows, of the 8 columns and of the 16 zones of 2 x 2 pixels.

    Parameters
    ----------
    seed : int
        Of the split, 60% to 20% to 20% with each digit's share kept.

    Returns
    -------
    MultimodalData
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.from_numpy(source.images).float()
    labels = torch.from_numpy(source.target).long()
    indices = torch.arange(len(labels)).numpy()
    rest, test = train_test_split(indices, test_size=0.2, random_state=seed, stratify=source.target)
    train, validation = train_test_split(rest, test_size=0.25, random_state=seed, stratify=source.target[rest])
    splits = {
        name: torch.from_numpy(part).sort().values
        for name, part in (("train", train), ("validation", validation), ("test", test))
    }
    views = {"pixels": images.flatten(1), "frequencies": _frequencies(images), "profiles": _profiles(images)}
    return MultimodalData(
        "digits", {name: standardised(view, splits["train"]) for name, view in views.items()}, labels, splits
    )


def _frequencies(images: Tensor) -> Tensor:
    magnitudes: Tensor = torch.fft.rfft2(images).abs()
    return magnitudes.log1p().flatten(1)


def _profiles(images: Tensor) -> Tensor:
    zones = images.unfold(1, 2, 2).unfold(2, 2, 2).sum((3, 4)).flatten(1)
    return torch.cat([images.sum(2), images.sum(1), zones], dim=1)
