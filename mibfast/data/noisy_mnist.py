"""Noisy MNIST: two views of handwritten digits that have nothing in common but the digit (DVMIB, JMLR 26, 2025)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mibfast.data.idx import read_idx
from mibfast.data.multimodal import DataError

LARGEST_ROTATION = 90
SCALES = (0.5, 1.5)
_PARTS = ("train", "t10k")
# MNIST's digits fill 20 of 28 pixels; so framed, the bundled ones fill 8 of 12.
_FRAME = 2
# Images that are transformed at once: some tens of megabytes.
_CHUNK = 1024


def read_mnist(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read MNIST's IDX files in a folder, `train-images-idx3-ubyte` and the others, each with `.gz` or without.

    The training files, the test files (`t10k-...`) or both; training images come first.

    Returns
    -------
    images : array [N, 28, 28], float32
        Between 0 and 1.
    labels : array [N], int64

    Raises
    ------
    DataError
        Where neither part is there, images or labels alone are, one of the files is damaged, images and labels are not
        equally many, or images are no squares of one size.
    """
    images, labels = [], []
    for part in _PARTS:
        places = [_idx_file(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        if places == [None, None]:
            continue
        for place, kind in zip(places, ("images-idx3", "labels-idx1"), strict=True):
            if place is None:
                raise DataError(f"{folder} has no {part}-{kind}-ubyte, which belongs to its {part} files")
        assert places[0] is not None
        assert places[1] is not None
        images.append(read_idx(places[0], 3))
        labels.append(read_idx(places[1], 1))
        if len(images[-1]) != len(labels[-1]):
            raise DataError(f"{places[0]} holds {len(images[-1])} images and {places[1]} {len(labels[-1])} labels")
    if not images:
        expected = " or ".join(f"{part}-images-idx3-ubyte" for part in _PARTS)
        raise DataError(f"{folder} has no MNIST files; expected {expected}, with .gz or without, and the labels")
    sizes = {each.shape[1:] for each in images}
    if len(sizes) > 1 or any(height != width for height, width in sizes):
        got = " and ".join(str(list(size)) for size in sorted(sizes))
        raise DataError(f"{folder}: images are {got}; expected squares of one size")
    scaled = np.concatenate(images).astype(np.float32) / np.float32(255)
    return scaled.astype(np.float32, copy=False), np.concatenate(labels).astype(np.int64)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if os.path.lexists(path)), None)


def read_framed_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scikit-learn's bundled digits as images [1797, 12, 12] between 0 and 1, and their labels.

    They fill their 8 x 8 pixels; two pixels of background around them leave room to grow, as MNIST's have.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    images = np.pad(source.images / 16, ((0, 0), (_FRAME, _FRAME), (_FRAME, _FRAME)))
    return images.astype(np.float32), source.target.astype(np.int64)


def noisy_views(
    images: NDArray[Any], labels: NDArray[Any], parts: Sequence[NDArray[Any]], seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Make the two views: `x`, an image rotated and scaled, and `y`, another of the same class in structured noise.

    - `x`: image i, rotated by an angle that is uniform in (-theta, theta), theta one of 0, 1, ..., 89 degrees, and
      scaled by a factor that is uniform in (0.5, 1.5), both about its centre, bilinearly; background is 0.
    - `y`: another image of i's class plus Perlin noise of one octave, clamped to [0, 1]. The noise's lattice of
      gradients is the data set's, its frequency the image's: uniform in (0, 1) cells a pixel.

    The two images are of one part. Where parts are the training, validation and test samples, no image is in two of
    them, which the released construction, that splits the pairs, does not see to. It also samples the nearest pixel
    where this interpolates.

    Parameters
    ----------
    images : array [N, S, S]
        Between 0 and 1.
    labels : array [N]
    parts : sequence of arrays
        Indices, each of 0, ..., N - 1 in one part.
    seed : int

    Returns
    -------
    mapping of "x" and "y" to array [N, 1, S, S], float32

    Raises
    ------
    DataError
        For a class of which a part has a single image: it has no other to be paired with.
    """
    generator = np.random.default_rng(seed)
    others = np.empty(len(labels), np.int64)
    for part in parts:
        others[part] = part[partners(labels[part], generator)]
    x = rotated_and_scaled(images, generator)
    y = np.clip(images[others] + perlin_noise(len(images), images.shape[1], generator), 0, 1)
    return {"x": x[:, None], "y": y[:, None].astype(np.float32)}


def partners(labels: NDArray[Any], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return a random partner of the same class for each sample, [N] indices, each sample once.

    Raises
    ------
    DataError
        For a class of one sample.

    Examples
    --------
    >>> import numpy as np
    >>> partners(np.array([7, 5, 7, 5]), np.random.default_rng(0))
    array([2, 3, 0, 1])
    """
    others = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise DataError(f"class {label} has a single sample among {len(labels)}; a pair needs another of its class")
        others[members] = np.roll(members, 1)
    return others


def rotated_and_scaled(images: NDArray[Any], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return images [N, S, S], each rotated and scaled about its centre as :func:`noisy_views` says."""
    n = len(images)
    largest = generator.integers(0, LARGEST_ROTATION, n)
    angles = np.deg2rad(generator.uniform(-1, 1, n) * largest)
    scales = generator.uniform(*SCALES, n)
    # Maps from a place in the result to a place in the image.
    cosine, sine = np.cos(angles) / scales, np.sin(angles) / scales
    rows = np.stack([cosine, sine, np.zeros(n), -sine, cosine, np.zeros(n)], 1).reshape(n, 2, 3)
    maps = torch.from_numpy(rows.astype(np.float32))
    pixels = torch.from_numpy(np.asarray(images, np.float32))[:, None]
    result = torch.empty_like(pixels)
    for start in range(0, n, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        places = torch.nn.functional.affine_grid(maps[chunk], list(pixels[chunk].shape), align_corners=False)
        result[chunk] = torch.nn.functional.grid_sample(pixels[chunk], places, align_corners=False)
    # By rounding, the weights of four pixels may sum to slightly more than 1.
    array: NDArray[np.float32] = result[:, 0].clamp_(0, 1).numpy()
    return array


def perlin_noise(count: int, size: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return Perlin's gradient noise of one octave on `count` square images, [count, size, size].

    At each point of a lattice stands a unit vector; at a place in a cell its corners' vectors, each multiplied with the
    offset from that corner, are blended by 6 t^5 - 15 t^4 + 10 t^3. Pixel (j, k) of an image of frequency f is the
    place (j f, k f). The noise lies within +-sqrt(1/2).
    """
    angles = generator.uniform(0, 2 * np.pi, (size + 1, size + 1))
    lattice = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    frequencies = generator.uniform(0, 1, count)
    result = np.empty((count, size, size), np.float32)
    for start in range(0, count, _CHUNK):
        places = np.arange(size) * frequencies[start : start + _CHUNK, None]
        cells = places.astype(np.int64)
        offsets = (places - cells).astype(np.float32)
        weights = offsets**3 * (offsets * (6 * offsets - 15) + 10)
        blended = np.zeros((len(places), size, size), np.float32)
        for down in (0, 1):
            for right in (0, 1):
                vectors = lattice[cells[:, :, None] + down, cells[:, None, :] + right]
                corner = vectors[..., 0] * (offsets - down)[:, :, None] + vectors[..., 1] * (offsets - right)[:, None]
                row_weights = weights if down else 1 - weights
                column_weights = weights if right else 1 - weights
                blended += row_weights[:, :, None] * column_weights[:, None] * corner
        result[start : start + _CHUNK] = blended
    return result
