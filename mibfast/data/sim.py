"""SIM-I, SIM-II and SIM-III: two modalities of blocks with known information about the label.

A sample is six independent blocks of standard normal numbers: a0 and b0 are in both modalities, a1 and b1 in the first
alone, a2 and b2 in the second alone. The label is the side of a random hyperplane through the origin on which
[a0; a1; a2] lies; b0, b1 and b2 are superfluous (OMIB, appendix F). The data sets differ in the lengths of a1 and a2,
so in how much of the label each modality alone has.

The appendix gives a0, b0, a1 and a2 their lengths. Those of b1 and b2 are stated nowhere; here they are 200, as b0's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mibfast.data.multimodal import DataError, nearest

# Lengths of a1 and a2.
SPECIFIC = {"sim-i": (500, 100), "sim-ii": (100, 500), "sim-iii": (300, 300)}
# Of a0, b0, b1 and b2 each.
_LENGTH = 200
SAMPLES = 10_000
# Rows drawn at once, each chunk from its own generator, so that larger data sets begin with the same samples.
_CHUNK = 4096

Blocks = dict[str, NDArray[np.float32]]


def read_sim(
    name: str, samples: int = SAMPLES, seed: int = 0
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64], NDArray[np.str_]]:
    """Draw a data set.

    Parameters
    ----------
    name : {"sim-i", "sim-ii", "sim-iii"}
    samples : int
        At least 10. The first ones of any number are the same.
    seed : int
        Of the hyperplane and the samples.

    Returns
    -------
    views : mapping from "v1" and "v2" to array [samples, length], float32
        [a0; b0; a1; b1] and [a0; b0; a2; b2].
    labels : array [samples], int64
        0 or 1.
    split : array [samples]
        The last tenth is "test", as in the paper, the tenth before it "validation", the rest "train".
    """
    drawn = list(_drawn(name, samples, seed))
    views = {view: np.concatenate([_views(blocks)[view] for blocks, _ in drawn]) for view in ("v1", "v2")}
    return views, np.concatenate([labels for _, labels in drawn]), _split(samples)


def write_sim(folder: str | Path, name: str, samples: int = SAMPLES, seed: int = 0) -> None:
    """Write a data set as a folder that `dir:FOLDER` reads, in memory for some thousand samples.

    Parameters
    ----------
    folder : str or Path
        Must not exist, or be empty.
    name, samples, seed
        See :func:`read_sim`, of which these are the arrays.

    Raises
    ------
    DataError
        For a folder that holds something or cannot be written.
    """
    place = Path(folder)
    chunks = _drawn(name, samples, seed)
    shapes = {
        view: (samples, 2 * _LENGTH + specific + _LENGTH)
        for view, specific in zip(("v1", "v2"), SPECIFIC[name], strict=True)
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()):
            raise DataError(f"{place} is not empty; choose another folder")
        with open(place / "v1.npy", "wb") as first, open(place / "v2.npy", "wb") as second:
            files = {"v1": first, "v2": second}
            for view, file in files.items():
                header = {"descr": "<f4", "fortran_order": False, "shape": shapes[view]}
                np.lib.format.write_array_header_1_0(file, header)
            labels = []
            for blocks, each in chunks:
                labels.append(each)
                for view, rows in _views(blocks).items():
                    files[view].write(np.ascontiguousarray(rows, "<f4").data)
        np.save(place / "labels.npy", np.concatenate(labels))
        np.save(place / "split.npy", _split(samples))
    except OSError as error:
        raise DataError(f"cannot write {place}: {error.strerror or error}") from error


def authentic_features(
    name: str, samples: int = SAMPLES, seed: int = 0
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64], NDArray[np.str_]]:
    """Return what the label is predicted from in the paper's table 2, made of the true blocks of a data set.

    Parameters
    ----------
    name, samples, seed
        See :func:`read_sim`, to which labels and split belong.

    Returns
    -------
    features : mapping from a row's name to array [samples, length], float32
        "consistent": a0; "specific": [a1; a2]; "v1" and "v2": a modality as it is; "optimal": [a0; a1; a2], all that
        is relevant and nothing else; "union": all six blocks.
    labels, split : array [samples]

    Examples
    --------
    >>> from mibfast.data.sim import authentic_features
    >>> features, labels, split = authentic_features("sim-i", 10)
    >>> {name: array.shape[1] for name, array in features.items()}
    {'consistent': 200, 'specific': 600, 'v1': 1100, 'v2': 700, 'optimal': 800, 'union': 1400}
    """
    drawn = list(_drawn(name, samples, seed))
    whole = {block: np.concatenate([blocks[block] for blocks, _ in drawn]) for block in drawn[0][0]}
    a0, b0, a1, b1, a2, b2 = whole.values()
    features = {
        "consistent": a0,
        "specific": np.concatenate([a1, a2], axis=1),
        **_views(whole),
        "optimal": np.concatenate([a0, a1, a2], axis=1),
        "union": np.concatenate([a0, b0, a1, b1, a2, b2], axis=1),
    }
    return features, np.concatenate([labels for _, labels in drawn]), _split(samples)


def best_accuracies(name: str) -> dict[str, float]:
    r"""Return the accuracy that no classifier of :func:`authentic_features` exceeds, on average over hyperplanes.

    With p of the D numbers that decide the label it is 1 - arccos(sqrt(p / D)) / pi: one less the angle between the
    hyperplane's normal and the part of it in these p numbers, as a share of pi, the share p / D taken for the squared
    length of that part.

    Examples
    --------
    >>> from mibfast.data.sim import best_accuracies
    >>> {row: round(accuracy, 3) for row, accuracy in best_accuracies("sim-iii").items()}
    {'consistent': 0.667, 'specific': 0.833, 'v1': 0.79, 'v2': 0.79, 'optimal': 1.0, 'union': 1.0}
    """
    first, second = _specific(name)
    whole = _LENGTH + first + second
    relevant = {
        "consistent": _LENGTH,
        "specific": first + second,
        "v1": _LENGTH + first,
        "v2": _LENGTH + second,
        "optimal": whole,
        "union": whole,
    }
    return {row: 1 - math.acos(math.sqrt(p / whole)) / math.pi for row, p in relevant.items()}


def _specific(name: str) -> tuple[int, int]:
    if name not in SPECIFIC:
        raise DataError(f"there is no {name!r}{nearest(name, SPECIFIC)}")
    return SPECIFIC[name]


def _drawn(name: str, samples: int, seed: int) -> Iterator[tuple[Blocks, NDArray[np.int64]]]:
    """Check the request; return an iterator over the blocks and labels of some thousand samples at a time."""
    _specific(name)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 10:
        raise DataError(f"{name}: samples must be an integer of at least 10, got {samples!r}")
    return _chunks(name, samples, seed)


def _chunks(name: str, samples: int, seed: int) -> Iterator[tuple[Blocks, NDArray[np.int64]]]:
    first, second = SPECIFIC[name]
    lengths = {"a0": _LENGTH, "b0": _LENGTH, "a1": first, "b1": _LENGTH, "a2": second, "b2": _LENGTH}
    ends = np.cumsum(list(lengths.values()))
    hyperplane = np.random.default_rng([seed, 0]).standard_normal(_LENGTH + first + second)
    for position, start in enumerate(range(0, samples, _CHUNK)):
        generator = np.random.default_rng([seed, 1 + position])
        numbers = generator.standard_normal((min(_CHUNK, samples - start), ends[-1]), np.float32)
        blocks = dict(zip(lengths, np.split(numbers, ends[:-1], axis=1), strict=True))
        relevant = np.concatenate([blocks["a0"], blocks["a1"], blocks["a2"]], axis=1)
        yield blocks, (relevant @ hyperplane > 0).astype(np.int64)


def _views(blocks: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return {
        "v1": np.concatenate([blocks[block] for block in ("a0", "b0", "a1", "b1")], axis=1),
        "v2": np.concatenate([blocks[block] for block in ("a0", "b0", "a2", "b2")], axis=1),
    }


def _split(samples: int) -> NDArray[np.str_]:
    held_out = samples // 10
    return np.repeat(["train", "validation", "test"], [samples - 2 * held_out, held_out, held_out])
