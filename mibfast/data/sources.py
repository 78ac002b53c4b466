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
from numpy.typing import NDArray

from mibfast.data.arrays import from_arrays
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
)
from mibfast.data.noisy_mnist import noisy_views, read_framed_digits, read_mnist
from mibfast.data.npy import open_rows, read_npy
from mibfast.data.npz import NpzArchive
from mibfast.data.opening import read_bytes
from mibfast.data.sim import SAMPLES, SPECIFIC, read_sim

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
    # Modalities that are not wanted are not read, and need not be usable.
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


@dataclass(frozen=True)
class _Source:
    """The content of a data set: names of modalities, and functions that read a modality or who has it."""

    modalities: Sequence[str]
    read: Callable[[str], View]
    labels: NDArray[Any] | None = None
    split: NDArray[Any] | None = None
    presence: Mapping[str, Callable[[], NDArray[Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Request:
    """The data set that is asked for: its whole name, the part after the colon, and how it is drawn and split."""

    name: str
    place: str
    seed: int
    split: Sequence[float] | None

    @property
    def path(self) -> Path:
        return _expanded(self.place)


def absolute_name(name: str) -> str:
    """Return a data set's name with its path, where it has one, absolute: the same wherever it is read again.

    Examples
    --------
    >>> from mibfast.data.sources import absolute_name
    >>> absolute_name("npz:/data/../features.npz"), absolute_name("sim-i:500")
    ('npz:/features.npz', 'sim-i:500')
    """
    kind, _, place = name.partition(":")
    has_path = any(form.startswith(f"{kind}:") for form in DATA_SETS)
    return f"{kind}:{os.path.realpath(_expanded(place))}" if place and has_path else name


def _expanded(place: str) -> Path:
    # Unlike Path.expanduser, it leaves the name of an unknown home as it is.
    return Path(os.path.expanduser(place))


def _open(name: str, seed: int, split: Sequence[float] | None) -> _Source:
    kind, colon, place = name.partition(":")
    for form, data_set in DATA_SETS.items():
        known, needs_place, _ = form.partition(":")
        if kind == known and (place if needs_place else not colon or data_set.sized):
            return data_set.open(_Request(name, place, seed, split))
    raise DataError(f"unknown data set {name!r}; expected {FORMS}")


def _open_digits(request: _Request) -> _Source:
    views, labels = read_digits()
    return _Source(list(views), views.__getitem__, labels)


def _open_sim(request: _Request) -> _Source:
    kind, colon, place = request.name.partition(":")
    if colon and not place.isdecimal():
        raise DataError(f"{request.name}: expected {kind} or {kind}:SAMPLES, a number")
    views, labels, parts = read_sim(kind, int(place) if colon else SAMPLES, request.seed)
    return _Source(list(views), views.__getitem__, labels, parts)


def _open_noisy_digits(request: _Request) -> _Source:
    return _noisy(request, *read_framed_digits())


def _open_noisy_mnist(request: _Request) -> _Source:
    return _noisy(request, *read_mnist(request.path))


def _noisy(request: _Request, images: NDArray[Any], labels: NDArray[Any]) -> _Source:
    """Split images, then make pairs within each part."""
    if request.split is None:
        parts, names = [np.arange(len(labels))], None
    else:
        indices = split_indices(len(labels), labels, [float(x) for x in request.split], request.seed)
        parts = [each.numpy() for each in indices.values()]
        names = np.empty(len(labels), f"U{max(map(len, SPLITS))}")
        for part, each in indices.items():
            names[each.numpy()] = part
    try:
        views = noisy_views(images, labels, parts, request.seed)
    except DataError as error:
        raise DataError(f"{request.name}: {error}") from error
    return _Source(list(views), views.__getitem__, labels, names)


def _open_mfeat(request: _Request) -> _Source:
    name, folder = request.name, request.path

    def read(view: str) -> View:
        path = folder / f"mfeat-{view}"
        try:
            return np.loadtxt(io.BytesIO(read_bytes(path)), dtype=np.float32, ndmin=2)
        except OSError as error:
            raise DataError(f"{name}: cannot read {path}: {error.strerror or error}") from error
        except (ValueError, MemoryError) as error:
            raise DataError(f"{name}: {path} is not a table of numbers: {_first_line(error)}") from error

    return _Source(_MFEAT_VIEWS, read, np.repeat(np.arange(10), _MFEAT_SAMPLES_PER_CLASS))


def _open_npz(request: _Request) -> _Source:
    name, path = request.name, request.path
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


def _open_folder(request: _Request) -> _Source:
    name, folder = request.name, request.path
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
    """Separate `labels`, `split` and presences, which are read whole, from the modalities."""
    labels, split = (read_whole(name) if name in names else None for name in (LABELS, SPLIT))
    modalities = [name for name in names if name not in (LABELS, SPLIT) and not name.endswith(PRESENCE)]
    presence = {name.removesuffix(PRESENCE): partial(read_whole, name) for name in names if name.endswith(PRESENCE)}
    for name in presence:
        # Otherwise a misspelt name would go unnoticed, and all samples would count as having the modality.
        if name not in modalities:
            raise DataError(f"{data}: there is {name + PRESENCE!r} and no modality {name!r}{nearest(name, modalities)}")
    return _Source(modalities, read, labels, split, presence)


def _why_unusable(error: Exception) -> str:
    reason = _first_line(error)
    return reason.removeprefix("it ") if reason.startswith("it is an object array") else f"cannot be used: {reason}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True)
class DataSet:
    """A data set, or a kind of file, that :func:`load` takes by its name.

    Attributes
    ----------
    title, help : str
        Its name in full, and one line about it.
    open : callable
        Returns what is in it.
    sized : bool
        Whether `NAME:SAMPLES` asks for another number of samples.
    """

    title: str
    help: str
    open: Callable[[_Request], _Source]
    sized: bool = False


_SIM_HELP = "OMIB's synthetic data, two modalities and two classes: 10,000 samples, another number by {}:SAMPLES."
# By the form of its name, with a colon where a path follows.
DATA_SETS = {
    "digits": DataSet(
        "digits", "Scikit-learn's 1,797 handwritten digits in three views, bundled with it.", _open_digits
    ),
    "noisy-digits": DataSet(
        "noisy digits",
        "Noisy MNIST's two views made of these digits: one rotated and scaled, another of its class in noise.",
        _open_noisy_digits,
    ),
    "noisy-mnist:DIR": DataSet(
        "Noisy MNIST", "The same views of MNIST's IDX files in a folder, plain or gzipped.", _open_noisy_mnist
    ),
    **{name: DataSet(name.upper(), _SIM_HELP.format(name), _open_sim, sized=True) for name in SPECIFIC},
    "mfeat:DIR": DataSet(
        "UCI Multiple Features", "The archive as published, in a folder: 2,000 numerals in six views.", _open_mfeat
    ),
    "npz:FILE": DataSet("NumPy archive", "An array [N, ...] for each modality, under its name.", _open_npz),
    "dir:FOLDER": DataSet(
        "NumPy files", "A file NAME.npy for each modality, read as needed: it may be larger than memory.", _open_folder
    ),
}
*_FIRST, _LAST = DATA_SETS
FORMS = f"{', '.join(_FIRST)} or {_LAST}"
