"""Data sets of arrays, tensors and data frames, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibfast.data.multimodal import (
    FRACTIONS,
    LABELS,
    PRESENCE,
    SPLIT,
    SPLITS,
    DataError,
    MultimodalData,
    View,
    nearest,
    split_indices,
    why_no_modality,
)
from mibfast.data.npy import NpyRows


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
    # Modalities that no sample lacks need no presence.
    incomplete = {modality: each for modality, each in present.items() if not each.all()}
    return MultimodalData(name, arrays, targets, splits, incomplete)


def _checked_presence(
    data: str, presence: Mapping[str, NDArray[Any] | Tensor], modalities: Mapping[str, View]
) -> dict[str, NDArray[np.bool_]]:
    checked = {}
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
        checked[str(modality)] = each
    return checked


def _array(data: str, name: str, given: Any) -> NDArray[Any]:
    """Return an array from an array, a tensor, or anything numpy converts, such as a data frame."""
    try:
        if not isinstance(given, Tensor):
            return np.asarray(given)
        plain = (given.float() if given.dtype == torch.bfloat16 else given).detach().cpu().resolve_conj().resolve_neg()
        array: NDArray[Any] = plain.numpy()
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
    """Return class names in numpy's other kinds of strings, or Python's, as fixed-width strings."""
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
