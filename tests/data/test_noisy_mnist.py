"""Noisy MNIST: IDX files and what damages them, the two views, and that no image is in two splits."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibfast import data
from mibfast.data import DataError
from mibfast.data.idx import read_idx
from mibfast.data.noisy_mnist import (
    noisy_views,
    partners,
    perlin_noise,
    read_framed_digits,
    read_mnist,
    rotated_and_scaled,
)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


IMAGES = np.arange(5 * 4 * 4).reshape(5, 4, 4) % 256
LABELS = np.array([3, 1, 3, 1, 3])


def mnist_folder(folder: Path, part: str = "t10k", zipped: bool = False, **changed: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        content = changed.get(name.partition("-")[0], idx(array))
        path = folder / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_hold_what_was_written(tmp_path, zipped) -> None:
    content = idx(IMAGES)
    # What it is called does not say whether it is gzipped.
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if zipped else content)
    found = read_idx(path, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, IMAGES)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    {
        "nothing": (b"", "begins with nothing, expected 00 00 08 03"),
        "text": (b"not an IDX file", "begins with 6e 6f 74 20, expected 00 00 08 03"),
        "floats": (b"\0\0\x0d\x03" + bytes(12), "begins with 00 00 0d 03"),
        "labels": (idx(LABELS), "no IDX file of unsigned bytes in 3 dimensions: it begins with 00 00 08 01"),
        "half a header": (idx(IMAGES)[:9], "ends within its header, after 9 bytes of 16"),
        "empty": (idx(IMAGES[:0]), r"of shape \[0, 4, 4\]; expected sizes of at least 1"),
        "negative": (b"\0\0\x08\x03" + b"\xff" * 12, r"of shape \[-1, -1, -1\]"),
        "short": (idx(IMAGES)[:-1], r"of shape \[5, 4, 4\], 80 bytes, and holds 79"),
        "long": (idx(IMAGES) + b"\0", r"of shape \[5, 4, 4\], 80 bytes, and holds more"),
        # A header may claim more than there is memory.
        "huge": (b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3 + b"\0", "and holds 1"),
    }.values(),
)
def test_idx_files_that_are_none(tmp_path, content, message, zipped) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), zipped=st.booleans())
def test_damage_is_an_error_or_changes_pixels_alone(tmp_path_factory, data, zipped) -> None:
    whole = gzip.compress(idx(IMAGES), mtime=0) if zipped else idx(IMAGES)
    content = bytearray(whole)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for at in data.draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=4)):
        if content:
            content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(content)
    try:
        found = read_idx(path, 3)
    except DataError:
        return
    assert found.size == IMAGES.size
    if zipped:
        # Its checksum would tell.
        assert np.array_equal(found, IMAGES)


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none: No such file"):
        read_idx(tmp_path / "none", 3)
    with pytest.raises(DataError, match="Is a directory"):
        read_idx(tmp_path, 3)


def test_both_parts_of_mnist(tmp_path) -> None:
    mnist_folder(tmp_path, "t10k", zipped=True)
    images, labels = read_mnist(tmp_path)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, IMAGES / 255, rtol=1e-6)
    assert np.array_equal(labels, LABELS)
    mnist_folder(tmp_path, "train", images=idx(IMAGES[::-1].copy()))
    images, labels = read_mnist(tmp_path)
    np.testing.assert_allclose(images[:5], IMAGES[::-1] / 255, rtol=1e-6)
    assert images.shape == (10, 4, 4)


def test_folders_without_mnist(tmp_path) -> None:
    with pytest.raises(DataError, match="has no MNIST files; expected train-images-idx3-ubyte or t10k-images"):
        data.load(f"noisy-mnist:{tmp_path}")
    (mnist_folder(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has no t10k-labels-idx1-ubyte"):
        data.load(f"noisy-mnist:{tmp_path}")
    mnist_folder(tmp_path, labels=idx(LABELS[:4]))
    with pytest.raises(DataError, match=r"holds 5 images and .* 4 labels"):
        data.load(f"noisy-mnist:{tmp_path}")
    mnist_folder(tmp_path, images=idx(IMAGES[:, :3]))
    with pytest.raises(DataError, match=r"images are \[3, 4\]; expected squares of one size"):
        data.load(f"noisy-mnist:{tmp_path}")


def test_a_partner_is_another_of_the_class() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 200)
    found = partners(labels, np.random.default_rng(1))
    assert sorted(found) == list(range(200))
    assert (found != np.arange(200)).all()
    assert np.array_equal(labels[found], labels)
    with pytest.raises(DataError, match="class 7 has a single sample among 3"):
        partners(np.array([1, 7, 1]), np.random.default_rng(0))


def test_no_image_is_in_two_splits() -> None:
    """Images that are numbered in a pixel which no noise reaches: the first, at a corner of the lattice."""
    n = 300
    labels = np.arange(n) % 3
    images = np.zeros((n, 5, 5), np.float32)
    images[:, 0, 0] = np.arange(n) / n
    parts = np.split(np.random.default_rng(0).permutation(n), [150, 220])
    y = noisy_views(images, labels, parts, seed=4)["y"]
    origin = np.rint(y[:, 0, 0, 0] * n).astype(int)
    for part in parts:
        assert set(origin[part]) == set(part)
    assert (origin != np.arange(n)).all()
    assert np.array_equal(labels[origin], labels)


def test_splits_are_made_before_pairs() -> None:
    """The corner that noise leaves alone says which image a noisy digit was, as far as the bundled ones differ."""
    found = data.load("noisy-digits", 3)
    images, labels = read_framed_digits()
    assert np.array_equal(found.labels, labels)
    assert {name: view.shape for name, view in found.views.items()} == {"x": (1797, 1, 12, 12), "y": (1797, 1, 12, 12)}
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 1079, "validation": 359, "test": 359}
    # Without noise, y is the image itself: of low frequencies there is hardly any near the lattice's corner.
    distances = torch.cdist(torch.from_numpy(found.views["y"]).flatten(1), torch.from_numpy(images).flatten(1))
    nearest = distances.argmin(1).numpy()
    sure = (distances.min(1).values < 1.0).numpy()
    assert sure.sum() > 100
    split_of = np.empty(1797, int)
    for number, part in enumerate(found.splits.values()):
        split_of[part.numpy()] = number
    assert np.array_equal(split_of[nearest[sure]], split_of[sure])
    assert np.array_equal(labels[nearest[sure]], labels[sure])


def test_views_repeat_by_seed_and_lie_between_0_and_1() -> None:
    first, again, other = (data.load("noisy-digits", seed) for seed in (1, 1, 2))
    assert first.fingerprint() == again.fingerprint()
    for view in ("x", "y"):
        assert np.array_equal(first.views[view], again.views[view])
        assert not np.array_equal(first.views[view], other.views[view])
        assert first.views[view].dtype == np.float32
        assert 0 <= first.views[view].min() < first.views[view].max() <= 1
    assert not np.array_equal(first.views["x"], first.views["y"])


def test_without_a_split_all_are_one_part() -> None:
    whole = data.load("noisy-digits", split=None)
    assert whole.splits == {}
    assert len(whole) == 1797
    assert data.load("noisy-digits", modalities=["y"], split=(0.5, 0.25, 0.25)).splits["train"].shape == (899,)
    with pytest.raises(DataError, match="three positive fractions"):
        data.load("noisy-digits", split=(0.5, 0.5, 0.5))


class Drawn:
    """A generator whose rotations, angles and scales are given."""

    def __init__(self, angle: float, scale: float) -> None:
        self.angle, self.scale = angle, scale

    def integers(self, low: int, high: int, n: int) -> np.ndarray:
        assert (low, high) == (0, 90)
        return np.full(n, 1)

    def uniform(self, low: float, high: float, n: int) -> np.ndarray:
        return np.full(n, self.angle if low == -1 else self.scale)


def test_rotation_and_scale() -> None:
    image = np.random.default_rng(0).random((1, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(rotated_and_scaled(image, Drawn(0, 1)), image, atol=1e-6)
    turned = rotated_and_scaled(image, Drawn(90, 1))[0]
    assert min(np.abs(turned - np.rot90(image[0], k)).max() for k in (1, 3)) < 1e-5
    square = np.zeros((1, 12, 12), np.float32)
    square[:, 3:9, 3:9] = 1
    # The sum grows with the area.
    for scale in (0.5, 1.5):
        assert rotated_and_scaled(square, Drawn(30, scale)).sum() == pytest.approx(36 * scale**2, rel=0.1)


def test_rotations_and_scales_are_those_of_the_construction() -> None:
    """Measured by the moments of a bar: its angle, and its area."""
    n = 4000
    bar = np.zeros((n, 41, 41), np.float32)
    bar[:, 18:23, 10:31] = 1
    found = rotated_and_scaled(bar, np.random.default_rng(0)).astype(np.float64)
    place = np.arange(41) - 20.0
    mass = found.sum((1, 2))
    xx, yy = ((found * each).sum((1, 2)) / mass for each in (place[None, :] ** 2, place[:, None] ** 2))
    xy = (found * place[None, :] * place[:, None]).sum((1, 2)) / mass
    angles = np.rad2deg(0.5 * np.arctan2(2 * xy, xx - yy))
    scales = np.sqrt(mass / 105)
    assert scales.min() == pytest.approx(0.5, abs=0.05)
    assert scales.max() == pytest.approx(1.5, abs=0.05)
    assert np.mean(scales) == pytest.approx(1.0, abs=0.02)
    assert 80 < np.abs(angles).max() < 90
    assert abs(angles.mean()) < 2
    # theta is uniform up to 89 and the angle within it: a quarter of 90 degrees in the mean, and no more.
    assert np.abs(angles).mean() == pytest.approx(22.25, abs=1.0)


def test_perlin_noise() -> None:
    noise = perlin_noise(2000, 12, np.random.default_rng(0))
    assert noise.dtype == np.float32
    assert np.array_equal(noise, perlin_noise(2000, 12, np.random.default_rng(0)))
    assert np.abs(noise).max() <= np.sqrt(0.5)
    assert noise.std() > 0.1
    # Zero at the lattice's points, of which the first pixel is always one.
    assert (noise[:, 0, 0] == 0).all()
    # Structured: neighbours are alike where the frequency is low, and it is an image's own.
    steps = np.abs(np.diff(noise, axis=2)).mean((1, 2)) / noise.std((1, 2))
    assert steps.min() < 0.3
    assert steps.max() > 1.0


def test_noise_by_the_formula() -> None:
    """One image of one frequency, point by point."""
    generator = np.random.default_rng(5)
    angles = generator.uniform(0, 2 * np.pi, (7, 7))
    frequency = generator.uniform(0, 1, 1)[0]
    expected = np.empty((6, 6))
    for j in range(6):
        for k in range(6):
            u, v = j * frequency, k * frequency
            total = 0.0
            for a in (int(u), int(u) + 1):
                for b in (int(v), int(v) + 1):
                    weight = 1.0
                    for t in (abs(u - a), abs(v - b)):
                        weight *= 1 - (6 * t**5 - 15 * t**4 + 10 * t**3)
                    total += weight * (np.cos(angles[a, b]) * (u - a) + np.sin(angles[a, b]) * (v - b))
            expected[j, k] = total
    np.testing.assert_allclose(perlin_noise(1, 6, np.random.default_rng(5))[0], expected, atol=1e-5)


def test_mnist_itself() -> None:
    root = os.environ.get("MIBFAST_DATA")
    if root is None:
        pytest.skip("MIBFAST_DATA names no folder of real data")
    found = data.load(f"noisy-mnist:{root}/mnist", split=(0.8, 0.1, 0.1))
    assert {name: view.shape for name, view in found.views.items()} == {
        "x": (10000, 1, 28, 28),
        "y": (10000, 1, 28, 28),
    }
    assert np.bincount(found.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
