"""Batches of all modalities, in an order that is a function of the seed and the epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from mibfast.data import MultimodalData
from mibfast.train.fitting.targets import TARGET


class Batches:
    """The batches of an epoch; a smaller last one is left out.

    Batches of views in files are read by a thread while the previous batch is in use.

    Parameters
    ----------
    data : MultimodalData
    indices : Tensor [n]
        Samples, in their order.
    batch_size : int
    start : int
        Number of batches to skip: those that an interrupted epoch has done.
    targets : Tensor [N, ...], optional
        Of all samples; a batch holds its own under :data:`mibfast.train.fitting.targets.TARGET`.

    Attributes
    ----------
    waited : float
        Seconds that iteration has waited for batches.
    """

    def __init__(
        self,
        data: MultimodalData,
        indices: Tensor,
        batch_size: int,
        start: int = 0,
        targets: Tensor | None = None,
    ) -> None:
        self._data, self._indices, self._batch_size, self._start = data, indices, batch_size, start
        self._targets = targets
        self.waited = 0.0

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._indices) // self._batch_size - self._start

    def _take(self, position: int) -> dict[str, Tensor]:
        first = (self._start + position) * self._batch_size
        chosen = self._indices[first : first + self._batch_size]
        views = self._data.take(chosen)
        return views if self._targets is None else {**views, TARGET: self._targets[chosen]}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield each batch, a mapping from a modality's name to its samples."""
        self.waited = 0.0
        if not self._data.on_disk:
            for position in range(len(self)):
                started = time.perf_counter()
                batch = self._take(position)
                self.waited += time.perf_counter() - started
                yield batch
            return
        with ThreadPoolExecutor(1, "mibfast-batches") as reader:
            coming = reader.submit(self._take, 0) if len(self) else None
            for position in range(len(self)):
                assert coming is not None
                started = time.perf_counter()
                batch = coming.result()
                self.waited += time.perf_counter() - started
                coming = reader.submit(self._take, position + 1) if position + 1 < len(self) else None
                yield batch


def shuffled(indices: Tensor, seed: int, epoch: int) -> Tensor:
    """Return indices in the order of an epoch, the same for the same seed."""
    return indices[torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(indices)))]
