"""Several views of the same samples, split for training, validation and testing."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mibfast._check import InputError
from mibfast.data.file_names import TEMPORARY, why_no_file_name
from mibfast.data.npy import NpyRows

SPLITS = ("train", "validation", "test")
FRACTIONS = (0.6, 0.2, 0.2)
# Names of arrays that are not modalities.
LABELS, SPLIT = "labels", "split"
# The suffix of arrays that say which samples have a modality; names of modalities hold no dot.
PRESENCE = ".presence"

# Bytes of rows that are read at once.
_CHUNK_BYTES = 1 << 24
# The inverse of this is still a float32.
_LEAST_DEVIATION = 1e-37

View: TypeAlias = NDArray[Any] | NpyRows
Progress: TypeAlias = Callable[[str, int, int], None]


class DataError(InputError):
    """An error in data, in one line."""


@dataclass(frozen=True, repr=False)
class MultimodalData:
    """Views of N samples, their labels, and which samples belong to which split.

    Attributes
    ----------
    name : str
    views : mapping from a modality's name to array or NpyRows [N, ...]
        As they came: any real dtype, not standardised, possibly in files larger than memory.
    labels : array [N] or [N, K], optional
        Of int64 or strings: classes. Of float64: targets of a regression.
    splits : mapping from "train", "validation" and "test" to Tensor [n]
        Indices of samples, int64; every sample is in one split.
    presence : mapping from a modality's name to array [N] of bool
        Of the modalities that some samples lack, True where a sample has it; empty where every sample has all. What an
        absent row of a view holds is never used.
    """

    name: str
    views: Mapping[str, View]
    labels: NDArray[Any] | None
    splits: Mapping[str, Tensor]
    presence: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name} {list(view.shape)}" + (f" ({self.presence[name].sum()} present)" if name in self.presence else "")
            for name, view in self.views.items()
        )
        splits = ", ".join(f"{name} {len(part)}" for name, part in self.splits.items())
        labels = "no labels" if self.labels is None else f"labels {list(self.labels.shape)} {self.labels.dtype}"
        return f"MultimodalData({self.name!r}: {shapes}; {labels}; {splits})"

    def __len__(self) -> int:
        """Return the number of samples N."""
        return len(next(iter(self.views.values())))

    @property
    def on_disk(self) -> bool:
        """Whether a view is read from a file each time."""
        return any(isinstance(view, NpyRows) for view in self.views.values())

    def indices(self, split: str) -> Tensor:
        """Return the indices of one split's samples; `"all"` is every sample."""
        if split == "all":
            return torch.arange(len(self))
        if split not in self.splits:
            raise DataError(
                f"{self.name}: unknown split {split!r}; expected one of " + ", ".join(map(repr, (*self.splits, "all")))
            )
        return self.splits[split]

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """Return the views of some samples as new tensors, float64 where they are wider than float32, else float32.

        Where samples lack modality NAME its rows are zeros, and a bool tensor [n] under `NAME.presence` says which.
        """
        chosen = indices.numpy()
        taken = {name: torch.from_numpy(_floating(self._rows(name, chosen))) for name in self.views}
        present = {f"{name}{PRESENCE}": torch.from_numpy(each[chosen]) for name, each in self.presence.items()}
        return {**taken, **present}

    def _rows(self, name: str, chosen: NDArray[Any]) -> NDArray[Any]:
        """Return rows of a view in its own dtype, zeros where they are absent."""
        rows: NDArray[Any] = self.views[name].take(chosen, axis=0)
        if name in self.presence:
            rows[~self.presence[name][chosen]] = 0
        return rows

    def has(self, indices: Tensor, modalities: Sequence[str], fewest: int | None = None) -> Tensor:
        """Return whether each of n samples has all of some modalities, or at least `fewest` of them: [n], bool.

        Examples
        --------
        >>> import numpy as np, torch, mibfast.data
        >>> views = {"image": np.zeros((3, 8)), "text": np.zeros((3, 5))}
        >>> data = mibfast.data.from_arrays(views, split=None, presence={"text": np.array([True, False, True])})
        >>> data.has(torch.tensor([2, 1, 0]), ["image", "text"])
        tensor([ True, False,  True])
        """
        needed = len(modalities) if fewest is None else fewest
        count = np.full(len(indices), len(modalities))
        for name in modalities:
            if name in self.presence:
                count -= ~self.presence[name][indices.numpy()]
        return torch.from_numpy(count >= needed)

    def split(self, name: str) -> tuple[dict[str, Tensor], NDArray[Any] | None]:
        """Return the views and labels of one split, or of `"all"` samples, in memory; see :meth:`take`."""
        chosen = self.indices(name)
        return self.take(chosen), None if self.labels is None else self.labels[chosen.numpy()]

    def only(self, modalities: Sequence[str]) -> MultimodalData:
        """Return the data with some of the modalities, in the order given.

        Raises
        ------
        DataError
            For a modality that is not there, or that is named twice.
        """
        check_modalities(self.name, modalities, self.views)
        presence = {name: self.presence[name] for name in modalities if name in self.presence}
        return replace(self, views={name: self.views[name] for name in modalities}, presence=presence)

    def fingerprint(self) -> str:
        """Return a digest of names, shapes, dtypes, all labels, the splits, and up to 64 samples spread over the data.

        Where samples lack modalities, also of which ones. It tells other data and other splits from these, not every
        change to a view.
        """
        digest = hashlib.sha256()
        chosen = np.unique(np.linspace(0, len(self) - 1, 64).astype(np.int64))
        for name, view in self.views.items():
            digest.update(f"{name} {view.shape} {view.dtype}".encode())
            digest.update(np.ascontiguousarray(self._rows(name, chosen)).tobytes())
            if name in self.presence:
                digest.update(f"{name}{PRESENCE}".encode() + self.presence[name].tobytes())
        if self.labels is not None:
            digest.update(f"{self.labels.shape} {self.labels.dtype}".encode())
            digest.update(np.ascontiguousarray(self.labels).tobytes())
        for name, part in self.splits.items():
            digest.update(f"{name} {len(part)}".encode())
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def sample(self, split: str, limit: int, modalities: Sequence[str] = ()) -> Tensor:
        """Return the indices of a split, in order, or a random choice of `limit` of them, always the same.

        Of samples that have all of the modalities alone.
        """
        indices = self.indices(split)
        indices = indices[self.has(indices, modalities)]
        if len(indices) <= limit:
            return indices
        chosen = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))[:limit]
        return indices[chosen].sort().values

    def statistics(self, progress: Progress = lambda title, done, total: None) -> dict[str, tuple[Tensor, Tensor]]:
        """Return each modality's mean and standard deviation over the training split, reading every sample once.

        Of vectors they are taken for each feature; of sequences [N, T, C] for each channel, over time too. Samples that
        lack a modality do not count for it.

        Parameters
        ----------
        progress : callable
            Called with what is done, and how many of how many rows.

        Returns
        -------
        mapping from a modality's name to (Tensor, Tensor)
            float64; a deviation of zero marks what is constant up to rounding.

        Raises
        ------
        DataError
            For NaN or infinity in any sample, saying where, for a spread that float32 cannot be scaled by, and for a
            modality that all training samples lack.
        """
        in_training = np.zeros(len(self), dtype=bool)
        in_training[self.indices("train").numpy()] = True
        for name, each in self.presence.items():
            if not each[in_training].any():
                raise DataError(f"{self.name}: no training sample has modality {name!r}")
        total = len(self) * len(self.views)
        result = {}
        for position, (name, view) in enumerate(self.views.items()):
            moments = _Moments(channel_axes(view.ndim), view.dtype)
            present = self.presence.get(name)
            for start, rows in _chunks(view):
                counted = in_training[start : start + len(rows)]
                if present is not None:
                    here = present[start : start + len(rows)]
                    counted = counted & here
                    rows = np.where(here.reshape(-1, *[1] * (rows.ndim - 1)), rows, rows.dtype.type(0))
                _refuse_what_is_not_finite(self.name, name, rows, start)
                moments.add(_floating(rows[counted]))
                progress(f"reading {name}", position * len(self) + start + len(rows), total)
            mean, deviation = moments.finish()
            if not (torch.isfinite(deviation).all() and (deviation[deviation > 0] > _LEAST_DEVIATION).all()):
                raise DataError(
                    f"{self.name}: modality {name!r} has standard deviations from {float(deviation.min()):.3g} to "
                    f"{float(deviation.max()):.3g}, which float32 cannot be scaled by; rescale it"
                )
            result[name] = mean, deviation
        return result


class _Moments:
    """Mean and standard deviation of rows that come in chunks (Chan et al. 1983)."""

    def __init__(self, axes: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._axes = axes
        self._rounding = 0.5 * float(np.finfo(dtype if dtype.kind == "f" else np.float64).eps)
        self._count, self._mean, self._squares, self._largest = 0, 0.0, 0.0, 0.0

    def add(self, rows: NDArray[Any]) -> None:
        if not rows.size:
            return
        rows = rows.astype(np.float64, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            self._add(rows)

    def _add(self, rows: NDArray[Any]) -> None:
        mean = rows.mean(self._axes)
        squares = np.square(rows - np.expand_dims(mean, self._axes)).sum(self._axes)
        count = rows.size // mean.size
        shift, total = mean - self._mean, self._count + count
        self._squares = self._squares + squares + shift**2 * (self._count * count / total)
        self._mean = self._mean + shift * (count / total)
        self._largest = np.maximum(self._largest, np.abs(rows).max(self._axes))
        self._count = total

    def finish(self) -> tuple[Tensor, Tensor]:
        mean = np.asarray(self._mean)
        deviation = np.sqrt(np.asarray(self._squares) / self._count)
        # A deviation within rounding is that of a constant; one beyond float64's squares is NaN or infinite, not zero.
        deviation = np.where(deviation <= self._rounding * self._largest, 0.0, deviation)
        return torch.from_numpy(np.array(mean)), torch.from_numpy(np.array(deviation))


def check_modalities(data: str, modalities: Sequence[str], valid: Sequence[str] | Mapping[str, Any]) -> None:
    """Raise DataError for a modality that is not among the valid ones, or that is named twice."""
    for name in modalities:
        if name not in valid:
            raise DataError(f"{data}: no modality {name!r}{nearest(name, valid)}")
    if len(set(modalities)) < len(modalities):
        raise DataError(f"{data}: a modality is named twice in {','.join(modalities)}")


def why_no_modality(name: str) -> str | None:
    """Return why a modality cannot have this name, which arrays, files and modules take; None where it can."""
    why = why_no_file_name(name, TEMPORARY.format(f"{{}}{PRESENCE}.npy"))
    if why is None and name in (LABELS, SPLIT):
        why = "it is that of another array"
    for separator in ".,":
        if why is None and separator in name:
            why = f"it holds {separator!r}"
    if why is None and hasattr(nn.ModuleDict(), name):
        why = "it is that of a module's attribute"
    return why


def channel_axes(ndim: int) -> tuple[int, ...]:
    """Return the axes of a view [N, ...] over which samples are alike: time too where it is [N, T, C]."""
    return (0, 1) if ndim == 3 else (0,)


def nearest(name: str, valid: Sequence[str] | Mapping[str, Any]) -> str:
    """Return the end of a message about an unknown name: the nearest valid one, or all of them."""
    close = difflib.get_close_matches(name, list(valid), 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(map(repr, valid))}"


def split_indices(n: int, labels: NDArray[Any] | None, fractions: Sequence[float], seed: int) -> dict[str, Tensor]:
    """Split samples at random, each class by the same fractions where labels are classes that are frequent enough.

    Parameters
    ----------
    n : int
    labels : array, optional
    fractions : three floats
        Of training, validation and test; positive, with sum 1.
    seed : int

    Raises
    ------
    DataError
        For fractions that are none, or that leave a split empty.
    """
    from sklearn.model_selection import train_test_split

    if len(fractions) != 3 or not all(x > 0 for x in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            "the split must be three positive fractions with sum 1, for training, validation and test; "
            f"got {', '.join(f'{x:g}' for x in fractions)}"
        )
    sizes = {name: round(n * fraction) for name, fraction in zip(SPLITS[1:], fractions[1:], strict=True)}
    sizes["train"] = n - sum(sizes.values())
    for name in SPLITS:
        if sizes[name] < 1:
            raise DataError(
                f"{n} samples split by {', '.join(f'{x:g}' for x in fractions)} leave the {name} split empty"
            )
    strata = _strata(labels, min(sizes.values()))
    rest, test = train_test_split(np.arange(n), test_size=sizes["test"], random_state=seed, stratify=strata)
    if strata is not None and np.bincount(strata[rest], minlength=strata.max() + 1).min() < 2:
        strata = None
    train, validation = train_test_split(
        rest, test_size=sizes["validation"], random_state=seed, stratify=None if strata is None else strata[rest]
    )
    return {
        name: torch.from_numpy(part).sort().values for name, part in zip(SPLITS, (train, validation, test), strict=True)
    }


def _strata(labels: NDArray[Any] | None, smallest_split: int) -> NDArray[Any] | None:
    if labels is None or labels.dtype.kind == "f":
        return None
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    # scikit-learn needs two samples of each class at each of the two splits, and room for every class in each part.
    return classes if counts.min() >= 4 and len(counts) <= smallest_split else None


def _floating(rows: NDArray[Any]) -> NDArray[Any]:
    narrow = rows.dtype.kind in "biu" and rows.dtype.itemsize <= 2
    dtype = np.float32 if narrow or rows.dtype in (np.float16, np.float32) else np.float64
    return np.ascontiguousarray(rows, dtype=dtype)


def _chunks(view: View) -> Iterator[tuple[int, NDArray[Any]]]:
    row_bytes = view.dtype.itemsize * (view.size // len(view))
    rows = max(1, _CHUNK_BYTES // row_bytes)
    for start in range(0, len(view), rows):
        yield start, view[start : start + rows]


def _refuse_what_is_not_finite(data: str, modality: str, rows: NDArray[Any], start: int) -> None:
    if rows.dtype.kind != "f" or np.isfinite(rows).all():
        return
    where = np.argwhere(~np.isfinite(rows))[0]
    value = rows[tuple(where)]
    kind = "NaN" if np.isnan(value) else "infinity"
    position = ", ".join(map(str, (start + where[0], *where[1:])))
    raise DataError(f"{data}: modality {modality!r} holds {kind} at [{position}]")
