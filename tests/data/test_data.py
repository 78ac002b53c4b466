"""Data sets: bundled, from the UCI archive's files, from .npz files and from folders of .npy files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mibfast import data
from mibfast.data.multimodal import channel_axes, split_indices
from mibfast.data.npy import NpyRows


def arrays(n: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "audio": generator.standard_normal((n, 12, 3)).astype(np.float32),
        "text": generator.standard_normal((n, 7)),
        "image": generator.integers(0, 255, (n, 4, 4), dtype=np.uint8),
        "labels": np.arange(n) % 3,
    }


def saved(folder: Path, **changed: np.ndarray) -> Path:
    folder.mkdir()
    for name, array in {**arrays(), **changed}.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_digits() -> None:
    digits = data.load("digits", seed=3)
    assert {name: view.shape for name, view in digits.views.items()} == {
        "pixels": (1797, 64),
        "frequencies": (1797, 40),
        "profiles": (1797, 32),
    }
    every = torch.cat(list(digits.splits.values()))
    assert sorted(every.tolist()) == list(range(1797))
    for part in digits.splits.values():
        shares = np.bincount(digits.labels[part.numpy()]) / len(part)
        assert np.abs(shares - 0.1).max() < 0.01
    again = data.load("digits", seed=3)
    assert all(torch.equal(digits.splits[s], again.splits[s]) for s in digits.splits)
    assert digits.fingerprint() == again.fingerprint()
    assert not torch.equal(digits.splits["test"], data.load("digits", seed=4).splits["test"])


def test_views_are_what_they_are_called() -> None:
    from sklearn.datasets import load_digits

    from mibfast.data.digits import _frequencies, _profiles

    images = load_digits().images[:5].astype(np.float32)
    np.testing.assert_allclose(
        _frequencies(images), _frequencies(np.roll(images, (1, 2), (1, 2))), rtol=1e-3, atol=1e-3
    )
    profiles = _profiles(images)
    assert np.array_equal(profiles[:, :8], images.sum(2))
    assert np.array_equal(profiles[:, 8:16], images.sum(1))
    assert profiles[0, 16] == images[0, :2, :2].sum()
    assert profiles[0, 17] == images[0, :2, 2:4].sum()


def test_the_uci_archive() -> None:
    root = os.environ.get("MIBFAST_DATA")
    if root is None:
        pytest.skip("MIBFAST_DATA names no folder of real data")
    found = data.load(f"mfeat:{root}/mfeat", modalities=["kar", "fou"], split=(0.5, 0.25, 0.25))
    assert [(name, view.shape) for name, view in found.views.items()] == [("kar", (2000, 64)), ("fou", (2000, 76))]
    assert np.array_equal(np.bincount(found.labels), [200] * 10)
    assert {name: len(part) for name, part in found.splits.items()} == {"train": 1000, "validation": 500, "test": 500}


@pytest.mark.parametrize("kind", ["npz", "dir"])
def test_files_hold_what_was_saved(tmp_path, kind) -> None:
    expected = arrays()
    if kind == "npz":
        np.savez(tmp_path / "x.npz", **expected)
        found = data.load(f"npz:{tmp_path / 'x.npz'}")
    else:
        found = data.load(f"dir:{saved(tmp_path / 'x')}")
        assert found.on_disk
    assert set(found.views) == {"audio", "text", "image"}
    assert np.array_equal(found.labels, expected["labels"])
    chosen = torch.tensor([5, 3, 59, 3])
    taken = found.take(chosen)
    for name, rows in taken.items():
        assert rows.dtype == (torch.float64 if name == "text" else torch.float32)
        assert np.array_equal(rows.numpy(), expected[name][chosen.numpy()])
    assert [*found.only(["text", "audio"]).views] == ["text", "audio"]


def test_rows_are_read_as_they_are_asked_for(tmp_path) -> None:
    path, expected = saved(tmp_path / "x") / "audio.npy", arrays()["audio"]
    rows = NpyRows(path)
    assert (rows.shape, rows.dtype, len(rows)) == (expected.shape, expected.dtype, 60)
    assert np.array_equal(rows[7:20], expected[7:20])
    assert np.array_equal(rows[58:90], expected[58:])
    assert rows[5:5].shape == (0, 12, 3)
    assert np.array_equal(rows.take([59, 0, 59]), expected[[59, 0, 59]])
    for bad in ([60], [-1]):
        with pytest.raises(IndexError, match=r"rows must be in \[0, 59\]"):
            rows.take(bad)
    with open(path, "rb+") as file:
        file.truncate(5000)
    with pytest.raises(ValueError, match=r"cannot read .*audio.npy: it has become shorter"):
        rows.take([59])
    with pytest.raises(ValueError, match="shorter than its header says"):
        NpyRows(path)


def test_statistics_are_those_of_the_training_split_in_any_chunks(tmp_path, monkeypatch) -> None:
    content = arrays()
    content["text"] = content["text"] * 1e-3 + 1e6
    content["text"][:, 2] = 5e6
    found = data.from_arrays({name: content[name] for name in ("audio", "text", "image")}, content["labels"])
    train = found.splits["train"].numpy()
    whole = found.statistics()
    monkeypatch.setattr("mibfast.data.multimodal._CHUNK_BYTES", 1000)
    seen = []
    chunked = found.statistics(lambda title, done, total: seen.append((done, total)))
    assert seen[-1] == (180, 180)
    for name, (mean, deviation) in chunked.items():
        rows = content[name][train].astype(np.float64)
        axes = channel_axes(rows.ndim)
        np.testing.assert_allclose(mean, rows.mean(axes), rtol=1e-12, atol=1e-12)
        expected = rows.std(axes)
        np.testing.assert_allclose(deviation, expected, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(deviation, whole[name][1], rtol=1e-6)
    assert chunked["text"][1][2] == 0
    assert (chunked["text"][1][:2] > 0).all()


def test_a_split_of_ones_own(tmp_path) -> None:
    names = np.array(["train"] * 40 + ["test"] * 12 + ["validation"] * 8)
    found = data.load(f"dir:{saved(tmp_path / 'x', split=names)}", seed=9)
    assert found.splits["train"].tolist() == list(range(40))
    assert found.splits["validation"].tolist() == list(range(52, 60))


def test_classes_are_split_alike_where_they_are_frequent_enough() -> None:
    labels = np.array(["rare"] + ["a"] * 50 + ["b"] * 49)
    for targets in (labels[1:], labels, None, np.linspace(0, 1, 100), np.arange(100)):
        n = 99 if targets is not None and len(targets) == 99 else 100
        splits = split_indices(n, targets, (0.6, 0.2, 0.2), 0)
        assert sorted(torch.cat(list(splits.values())).tolist()) == list(range(n))
    test = labels[1:][split_indices(99, labels[1:], (0.6, 0.2, 0.2), 0)["test"].numpy()]
    assert abs(int((test == "a").sum()) - 10) <= 1


def bad(folder: Path, **changed: np.ndarray | None) -> str:
    content = {name: array for name, array in {**arrays(), **changed}.items() if array is not None}
    np.savez(folder / "x.npz", **content)
    return f"npz:{folder / 'x.npz'}"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"text": np.array([{}] * 60, dtype=object)},
            "array 'text' is an object array, which would have to be unpickled",
        ),
        ({"text": np.zeros((59, 7))}, "arrays must be of one length, got audio 60, text 59, image 60, labels 60"),
        ({"labels": np.zeros(61)}, "arrays must be of one length"),
        ({"text": np.zeros((60, 7), complex)}, "modality 'text' must hold real numbers, got dtype complex128"),
        ({"text": np.array(["a"] * 60)}, "modality 'text' must hold real numbers, got dtype <U1"),
        ({"y": np.zeros(60)}, "modality 'y' must be [N, ...], got shape [60]; labels belong under the name 'labels'"),
        ({"text": np.zeros((60, 0))}, "modality 'text' is empty, of shape [60, 0]"),
        ({"text": None, "image": None, "audio": None}, "no modalities; expected an array [N, ...]"),
        ({"labels": np.array([0.5] * 59 + [np.nan])}, "labels hold NaN or infinity at [59]"),
        ({"labels": np.zeros((60, 2), int)}, "labels must be [N], or [N, K] floats; got shape [60, 2], int64"),
        ({"labels": np.zeros((60, 0))}, "labels must be [N], or [N, K] floats; got shape [60, 0], float64"),
        ({"split": np.array(["train"] * 60)}, "the validation split is empty"),
        (
            {"split": np.array(["train"] * 59 + ["dev"])},
            "split must be [N] of 'train', 'validation' or 'test', got 'dev'",
        ),
        ({"split": np.arange(60)}, "split must be [N] strings 'train', 'validation' or 'test', got shape [60], int64"),
        ({"split": np.array([["train"]] * 60)}, "got shape [60, 1], <U5"),
        ({"a.b": np.zeros((60, 2))}, "a modality cannot be called 'a.b'; give it another name"),
        ({"train": np.zeros((60, 2))}, "a modality cannot be called 'train'"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, changed, message) -> None:
    with pytest.raises(data.DataError) as caught:
        data.load(bad(tmp_path, **changed))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_what_is_not_finite_is_found_wherever_it_is(tmp_path, value, kind) -> None:
    audio = arrays()["audio"]
    audio[57, 11, 2] = value
    with pytest.raises(data.DataError, match=rf"modality 'audio' holds {kind} at \[57, 11, 2\]"):
        data.load(bad(tmp_path, audio=audio)).statistics()


def test_a_spread_that_float32_cannot_hold_is_refused(tmp_path) -> None:
    for scale in (1e200, 1e-42):
        with pytest.raises(data.DataError, match=r"modality 'text' has standard deviations .* rescale it"):
            data.load(bad(tmp_path, text=arrays()["text"] * scale)).statistics()


def test_what_is_not_asked_for_need_not_be_usable(tmp_path) -> None:
    name = bad(tmp_path, ids=np.arange(60), notes=np.array([{}] * 60, dtype=object))
    assert [*data.load(name, modalities=["text", "audio"]).views] == ["text", "audio"]
    folder = saved(tmp_path / "folder", notes=np.array([{}] * 60, dtype=object))
    assert [*data.load(f"dir:{folder}", modalities=["text", "audio"]).views] == ["text", "audio"]
    with pytest.raises(data.DataError, match=r"notes.npy is an object array"):
        data.load(f"dir:{folder}")


def test_data_without_a_split_are_whole(tmp_path) -> None:
    found = data.from_arrays({"a": np.zeros((1, 3))}, split=None)
    assert found.indices("all").tolist() == [0]
    with pytest.raises(data.DataError, match="unknown split 'test'"):
        found.indices("test")


def test_bad_places_are_refused(tmp_path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "whole.npz", **arrays())
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:4000])
    np.save(tmp_path / "one.npy", np.zeros((5, 2)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.npy").write_bytes(b"\x93NUMPY\x01\x00")
    for name, message in (
        ("mnist", f"unknown data set 'mnist'; expected {data.FORMS}"),
        ("noisy-mnist", "unknown data set 'noisy-mnist'"),
        ("digits:x", "unknown data set 'digits:x'"),
        ("npz:", "unknown data set 'npz:'"),
        (f"npz:{tmp_path}/none.npz", "No such file or directory"),
        (f"npz:{tmp_path}", "Is a directory"),
        (f"npz:{tmp_path}/text.npz", "not an .npz file"),
        (f"npz:{tmp_path}/half.npz", "not an .npz file"),
        (f"npz:{tmp_path}/one.npy", "not an .npz file"),
        (f"dir:{tmp_path}/none", "no folder"),
        (f"dir:{tmp_path}/folder", "no .npy files in"),
        (f"dir:{tmp_path}/broken", "a.npy cannot be used"),
        (f"mfeat:{tmp_path}", "mfeat-fou: No such file or directory"),
    ):
        with pytest.raises(data.DataError) as caught:
            data.load(name)
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value)


def test_bad_choices_are_refused() -> None:
    for arguments, message in (
        ({"modalities": ["pixels", "profile"]}, "no modality 'profile'; did you mean 'profiles'?"),
        ({"modalities": ["pixels", "xyz"]}, "no modality 'xyz'; expected one of 'pixels', 'frequencies', 'profiles'"),
        ({"modalities": ["pixels", "pixels"]}, "named twice in pixels,pixels"),
        ({"split": (0.5, 0.5)}, "three positive fractions with sum 1, for training, validation and test; got 0.5, 0.5"),
        ({"split": (0.5, 0.5, 0.5)}, "three positive fractions"),
        ({"split": (0.5, 0.4999, 0.0001)}, "1797 samples split by 0.5, 0.4999, 0.0001 leave the test split empty"),
    ):
        with pytest.raises(data.DataError) as caught:
            data.load("digits", **arguments)
        assert message in str(caught.value)
    with pytest.raises(
        data.DataError, match="unknown split 'dev'; expected one of 'train', 'validation', 'test', 'all'"
    ):
        data.load("digits").split("dev")
