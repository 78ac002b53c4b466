"""Data sets by name: bundled and drawn ones, Noisy MNIST, the UCI archive, .npz files and folders of .npy files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibfast.data.digits import read_digits
from mibfast.data.multimodal import (
    FRACTIONS,
    LABELS,
    PRESENCE,
    SPLIT,
    SPLITS,
    DataError,
    MultimodalData,
    View,
    check_modalities,
    nearest,
    split_indices,
    why_no_modality,
)
from mibfast.data.noisy_mnist import noisy_views, read_framed_digits, read_mnist
from mibfast.data.npy import NpyRows, open_rows, read_npy
from mibfast.data.npz import NpzArchive
from mibfast.data.opening import read_bytes
from mibfast.data.sim import SAMPLES, SPECIFIC, read_sim

FORMS = "digits, noisy-digits, noisy-mnist:DIR, sim-i, sim-ii, sim-iii, mfeat:DIR, npz:FILE or dir:FOLDER"
_MFEAT_VIEWS = ("fou", "fac", "kar", "pix", "zer", "mor")
_MFEAT_SAMPLES_PER_CLASS = 200


def load(
    name: str,
    seed: int = 0,
    *,
    modalities: Sequence[str] | None = None,
    split: Sequence[float] | None = FRACTIONS,
) -> MultimodalData:
    """Load a data set by its name.

    - `"digits"`: scikit-learn's 8 x 8 digits in three views, see :func:`mibfast.data.digits.read_digits`.
    - `"noisy-digits"`: Noisy MNIST's two views `x` and `y` [N, 1, 12, 12], made of the same digits; see
      :func:`mibfast.data.noisy_mnist.noisy_views`. Images are split before they are paired and distorted by the seed,
      so that none is in two splits.
    - `"noisy-mnist:DIR"`: the same of MNIST's IDX files in a folder, training images, test images or both, all of which
      are split; `x` and `y` [N, 1, 28, 28].
    - `"sim-i"`, `"sim-ii"`, `"sim-iii"`: OMIB's synthetic data, 10,000 samples of two modalities in a split of their
      own, see :func:`mibfast.data.sim.read_sim`; `"sim-i:SAMPLES"` for another number.
    - `"mfeat:DIR"`: the UCI Multiple Features archive as published, files `mfeat-fou` ... in a folder: 2,000 numerals
      in six views, `fou`, `fac`, `kar`, `pix`, `zer` and `mor`.
    - `"npz:FILE"`: an array [N, ...] for each modality under its name.
    - `"dir:FOLDER"`: a file `NAME.npy` [N, ...] for each modality, of which rows are read as needed. One in Fortran
      order, as `numpy.save` writes a transposed array or a data frame's, is read as a whole.

    What else is in an archive or a folder is passed over: other files, hidden ones, and what macOS adds (`._NAME`).

    An .npz file or a folder may also hold `labels`, [N] integers or strings (classes) or [N] or [N, K] floats (a
    regression's targets), and `split`, [N] strings "train", "validation" or "test", which is then used as it is. Where
    samples lack modality NAME, `NAME.presence`, [N] bool, says which have it; the rows of the others may hold anything.

    Parameters
    ----------
    name : str
    seed : int
        Of the split, and of all that is drawn: synthetic data, and what makes views noisy.
    modalities : sequence of str, optional
        The modalities to take, in this order; all of them without.
    split : three floats, optional
        Fractions of training, validation and test. Each class is split alike. None leaves data without a split of
        their own whole: they have `"all"` samples only.

    Returns
    -------
    MultimodalData

    Raises
    ------
    DataError
        For data that are not there or not usable: object arrays, names that cannot be files, unequal lengths, dtypes
        that are no real numbers, NaN among targets, an empty split, a presence that is not bool or of no modality. NaN
        and infinity in views are found by :meth:`MultimodalData.statistics`, which has to read all of them.

    Examples
    --------
    >>> import mibfast.data
    >>> {name: view.shape for name, view in mibfast.data.load("digits").views.items()}
    {'pixels': (1797, 64), 'frequencies': (1797, 40), 'profiles': (1797, 32)}
    """
    source = _open(name, seed, split)
    if modalities is not None:
        check_modalities(name, modalities, source.modalities)
    # What is not asked for is not read, and need not be usable.
    views = {modality: source.read(modality) for modality in modalities or source.modalities}
    presence = {modality: read() for modality, read in source.presence.items() if modality in views}
    labels, given_split = source.labels, source.split
    if given_split is not None and (given_split.dtype.kind != "U" or given_split.ndim != 1):
        raise DataError(
            f"{name}: split must be [N] strings 'train', 'validation' or 'test', "
            f"got shape {list(given_split.shape)}, {given_split.dtype}"
        )
    chosen_split = split if given_split is None else given_split
    return from_arrays(views, labels, name=name, seed=seed, split=chosen_split, presence=presence)


def from_arrays(
    views: Mapping[str, NDArray[Any] | Tensor | NpyRows],
    labels: NDArray[Any] | Tensor | None = None,
    *,
    name: str = "arrays",
    seed: int = 0,
    split: Sequence[float] | NDArray[Any] | None = FRACTIONS,
    presence: Mapping[str, NDArray[Any] | Tensor] | None = None,
) -> MultimodalData:
    """Make a data set of arrays or tensors [N, ...], a modality each.

    Parameters
    ----------
    views : mapping from a modality's name to array or Tensor [N, ...]
        Real numbers of any dtype.
    labels : array or Tensor, optional
        [N] integers or strings, or [N] or [N, K] floats.
    name : str
        For messages.
    seed : int
        Of the split.
    split : three floats, or array [N] of "train", "validation" and "test", or None
        See :func:`load`.
    presence : mapping from a modality's name to array or Tensor [N] of bool, optional
        Of modalities that some samples lack, True where a sample has it. Absent rows may hold anything, NaN too. A
        sample may lack all of them.

    Raises
    ------
    DataError
        For arrays that do not fit together or hold no real numbers, and for a presence that is not bool or of no
        modality.

    Examples
    --------
    >>> import numpy as np, mibfast.data
    >>> data = mibfast.data.from_arrays({"image": np.zeros((10, 8)), "text": np.zeros((10, 5))})
    >>> {name: len(part) for name, part in data.splits.items()}
    {'train': 6, 'validation': 2, 'test': 2}
    """
    arrays = {str(modality): _checked_view(name, str(modality), view) for modality, view in views.items()}
    if not arrays:
        raise DataError(f"{name}: no modalities; expected an array [N, ...] for each")
    lengths = {modality: len(view) for modality, view in arrays.items()}
    targets = None if labels is None else _checked_labels(name, _array(name, LABELS, labels))
    if targets is not None:
        lengths[LABELS] = len(targets)
    present = _checked_presence(name, presence or {}, arrays)
    lengths.update((f"{modality}{PRESENCE}", len(each)) for modality, each in present.items())
    named_split = np.asarray(split) if split is not None and np.asarray(split).dtype.kind == "U" else None
    if named_split is not None:
        if named_split.ndim != 1:
            raise DataError(f"{name}: split must be [N], got shape {list(named_split.shape)}")
        lengths[SPLIT] = len(named_split)
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{modality} {n}" for modality, n in lengths.items())
        raise DataError(f"{name}: arrays must be of one length, got {listed}")
    n = next(iter(lengths.values()))
    if named_split is not None:
        splits = _named_splits(name, named_split)
    else:
        splits = {} if split is None else split_indices(n, targets, [float(x) for x in split], seed)
    # What nothing is missing of is as quick as it always was.
    incomplete = {modality: each for modality, each in present.items() if not each.all()}
    return MultimodalData(name, arrays, targets, splits, incomplete)


def _checked_presence(
    data: str, presence: Mapping[str, NDArray[Any] | Tensor], modalities: Mapping[str, View]
) -> dict[str, NDArray[np.bool_]]:
    found = {}
    for modality, given in presence.items():
        if modality not in modalities:
            known = nearest(modality, modalities)
            raise DataError(f"{data}: a presence is given of modality {modality!r}, which there is not{known}")
        each = _array(data, f"{modality}{PRESENCE}", given)
        if each.dtype != np.bool_ or each.ndim != 1:
            raise DataError(
                f"{data}: the presence of modality {modality!r} must be [N] of bool, "
                f"got shape {list(each.shape)}, {each.dtype}"
            )
        found[str(modality)] = each
    return found


def _array(data: str, name: str, given: Any) -> NDArray[Any]:
    """Return an array, a tensor, or what numpy makes one of, such as a data frame, as an array."""
    try:
        if not isinstance(given, Tensor):
            return np.asarray(given)
        found = (given.float() if given.dtype == torch.bfloat16 else given).detach().cpu().resolve_conj().resolve_neg()
        array: NDArray[Any] = found.numpy()
    except (TypeError, RuntimeError, ValueError) as error:
        raise DataError(f"{data}: {name!r} is no array of plain numbers: {str(error).splitlines()[0]}") from error
    return array


def _checked_view(data: str, modality: str, given: NDArray[Any] | Tensor | NpyRows) -> View:
    why = why_no_modality(modality)
    if why is not None:
        raise DataError(f"{data}: a modality cannot be called {modality!r}; give it another name: {why}")
    view = given if isinstance(given, NpyRows) else _array(data, modality, given)
    if view.dtype.kind not in "biuf":
        raise DataError(f"{data}: modality {modality!r} must hold real numbers, got dtype {view.dtype}")
    if view.ndim < 2:
        raise DataError(
            f"{data}: modality {modality!r} must be [N, ...], got shape {list(view.shape)}"
            + ("; labels belong under the name 'labels', a single feature into [N, 1]" if view.ndim == 1 else "")
        )
    if not view.size:
        raise DataError(f"{data}: modality {modality!r} is empty, of shape {list(view.shape)}")
    return view


def _checked_labels(data: str, labels: NDArray[Any]) -> NDArray[Any]:
    if labels.dtype.kind in "OST":
        labels = _strings(data, labels)
    kind = labels.dtype.kind
    if kind not in "biufU":
        raise DataError(f"{data}: labels must be integers, strings or floats, got dtype {labels.dtype}")
    if labels.ndim != 1 and not (kind == "f" and labels.ndim == 2 and labels.shape[1]):
        raise DataError(f"{data}: labels must be [N], or [N, K] floats; got shape {list(labels.shape)}, {labels.dtype}")
    if kind == "f":
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        bad = np.argwhere(~np.isfinite(labels))
        if len(bad):
            raise DataError(f"{data}: labels hold NaN or infinity at [{', '.join(map(str, bad[0]))}]")
        return labels.astype(np.float64)
    if kind == "u" and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{data}: labels hold {labels.max()}, beyond int64; save them as strings, by .astype(str)")
    return labels if kind == "U" else labels.astype(np.int64)


def _strings(data: str, labels: NDArray[Any]) -> NDArray[np.str_]:
    """Return class names of numpy's other kinds of strings, or of Python's, as fixed-width ones."""
    if labels.dtype.kind == "S":
        try:
            return np.char.decode(labels, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{data}: labels are bytes and no UTF-8: {error}") from error
    for position, each in enumerate(labels.ravel().tolist()):
        if not isinstance(each, str):
            raise DataError(
                f"{data}: labels are {labels.dtype}s and not all strings: {position} is {type(each).__name__}; fill in "
                "what is missing, and give them as numbers or by .astype(str)"
            )
    return labels.astype(np.str_)


def _named_splits(data: str, split: NDArray[Any]) -> dict[str, Tensor]:
    unknown = sorted(set(split.tolist()) - set(SPLITS))
    if unknown:
        raise DataError(f"{data}: split must be [N] of 'train', 'validation' or 'test', got {unknown[0]!r}")
    splits = {name: torch.from_numpy(np.flatnonzero(split == name)) for name in SPLITS}
    for name, part in splits.items():
        if not len(part):
            raise DataError(f"{data}: the {name} split is empty")
    return splits


@dataclass(frozen=True)
class _Source:
    """What a data set holds: names of modalities, and functions that read one of them, or which samples have it."""

    modalities: Sequence[str]
    read: Callable[[str], View]
    labels: NDArray[Any] | None = None
    split: NDArray[Any] | None = None
    presence: Mapping[str, Callable[[], NDArray[Any]]] = field(default_factory=dict)


def absolute_name(name: str) -> str:
    """Return a data set's name with its path, where it has one, absolute: the same wherever it is read again.

    Examples
    --------
    >>> from mibfast.data.sources import absolute_name
    >>> absolute_name("npz:/data/../features.npz"), absolute_name("sim-i:500")
    ('npz:/features.npz', 'sim-i:500')
    """
    kind, _, place = name.partition(":")
    has_path = kind in _FILES or kind == "noisy-mnist"
    return f"{kind}:{os.path.realpath(_expanded(place))}" if place and has_path else name


def _expanded(place: str) -> Path:
    # Unlike Path.expanduser it leaves a home that there is not as it is.
    return Path(os.path.expanduser(place))


def _open(name: str, seed: int, split: Sequence[float] | None) -> _Source:
    kind, colon, place = name.partition(":")
    if kind == "digits" and not colon:
        views, labels = read_digits()
        return _Source(list(views), views.__getitem__, labels)
    if kind == "noisy-digits" and not colon:
        return _noisy(name, *read_framed_digits(), seed, split)
    if kind == "noisy-mnist" and place:
        return _noisy(name, *read_mnist(_expanded(place)), seed, split)
    if kind in SPECIFIC:
        if colon and not place.isdecimal():
            raise DataError(f"{name}: expected {kind} or {kind}:SAMPLES, a number")
        views, labels, parts = read_sim(kind, int(place) if colon else SAMPLES, seed)
        return _Source(list(views), views.__getitem__, labels, parts)
    if kind not in _FILES or not place:
        raise DataError(f"unknown data set {name!r}; expected {FORMS}")
    return _FILES[kind](name, _expanded(place))


def _noisy(name: str, images: NDArray[Any], labels: NDArray[Any], seed: int, split: Sequence[float] | None) -> _Source:
    """Split images, then make pairs within each part."""
    if split is None:
        parts, names = [np.arange(len(labels))], None
    else:
        indices = split_indices(len(labels), labels, [float(x) for x in split], seed)
        parts = [each.numpy() for each in indices.values()]
        names = np.empty(len(labels), f"U{max(map(len, SPLITS))}")
        for part, each in indices.items():
            names[each.numpy()] = part
    try:
        views = noisy_views(images, labels, parts, seed)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return _Source(list(views), views.__getitem__, labels, names)


def _open_mfeat(name: str, folder: Path) -> _Source:
    def read(view: str) -> View:
        path = folder / f"mfeat-{view}"
        try:
            return np.loadtxt(io.BytesIO(read_bytes(path)), dtype=np.float32, ndmin=2)
        except OSError as error:
            raise DataError(f"{name}: cannot read {path}: {error.strerror or error}") from error
        except (ValueError, MemoryError) as error:
            raise DataError(f"{name}: {path} is not a table of numbers: {_first_line(error)}") from error

    return _Source(_MFEAT_VIEWS, read, np.repeat(np.arange(10), _MFEAT_SAMPLES_PER_CLASS))


def _open_npz(name: str, path: Path) -> _Source:
    try:
        archive = NpzArchive(path)
    except OSError as error:
        raise DataError(f"{name}: cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{name}: {_first_line(error)}") from error

    def read(key: str) -> NDArray[Any]:
        try:
            return archive.read(key)
        except OSError as error:
            raise DataError(f"{name}: cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise DataError(f"{name}: array {key!r} {_why_unusable(error)}") from error

    return _source(name, archive.names, read, read)


def _open_folder(name: str, folder: Path) -> _Source:
    try:
        files = sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{name}: no folder {folder}: {why}") from error
    stems = [file.removesuffix(".npy") for file in files if file.endswith(".npy") and not file.startswith(".")]
    if not stems:
        raise DataError(f"{name}: no .npy files in {folder}; expected one for each modality")

    def reader(load_file: Callable[[Path], Any]) -> Callable[[str], Any]:
        def read(stem: str) -> Any:
            path = folder / f"{stem}.npy"
            try:
                return load_file(path)
            except OSError as error:
                raise DataError(f"{name}: cannot read {path}: {error.strerror or error}") from error
            except (ValueError, MemoryError) as error:
                raise DataError(f"{name}: {path.name} {_why_unusable(error)}") from error

        return read

    return _source(name, stems, reader(open_rows), reader(read_npy))


def _source(
    data: str, names: Sequence[str], read: Callable[[str], View], read_whole: Callable[[str], NDArray[Any]]
) -> _Source:
    """Set `labels`, `split` and presences apart from the modalities; they are read as a whole."""
    labels, split = (read_whole(name) if name in names else None for name in (LABELS, SPLIT))
    modalities = [name for name in names if name not in (LABELS, SPLIT) and not name.endswith(PRESENCE)]
    presence = {name.removesuffix(PRESENCE): partial(read_whole, name) for name in names if name.endswith(PRESENCE)}
    for name in presence:
        # Whatever is asked for: were a name misspelt, all samples would be taken to have the modality that was meant.
        if name not in modalities:
            raise DataError(f"{data}: there is {name + PRESENCE!r} and no modality {name!r}{nearest(name, modalities)}")
    return _Source(modalities, read, labels, split, presence)


def _why_unusable(error: Exception) -> str:
    reason = _first_line(error)
    return reason.removeprefix("it ") if reason.startswith("it is an object array") else f"cannot be used: {reason}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


_FILES: Mapping[str, Callable[[str, Path], _Source]] = {"mfeat": _open_mfeat, "npz": _open_npz, "dir": _open_folder}
