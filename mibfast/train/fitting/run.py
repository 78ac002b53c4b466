"""A trained run: its predictions, its embeddings, and the loss that chose its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibfast import _check
from mibfast.data import DataError, MultimodalData
from mibfast.train.errors import RunError
from mibfast.train.fitting.config import RunConfig
from mibfast.train.fitting.modules import AlignmentModule, FusionModule
from mibfast.train.fitting.targets import Target
from mibfast.train.methods import Alignment, Fusion, method

# Samples that pass through the encoders at once.
EMBEDDED_ROWS = 4096


@dataclass(frozen=True)
class Run:
    """A trained alignment or fusion.

    Attributes
    ----------
    module : AlignmentModule or FusionModule
        With the weights of the best epoch, in evaluation mode; see :class:`mibfast.train.fitting.recording.Recording`.
    data : MultimodalData
    config : RunConfig
    epochs : list of dict
        A row an epoch, see :class:`mibfast.train.fitting.recording.Recording`.
    best_epoch : int
        From 1.
    path : Path, optional
        The run's folder.
    target : Target, optional
        What a fusion predicts.
    beta : mapping, optional
        The estimated weight of a fusion's bottleneck, `beta`, and its estimates.
    """

    module: AlignmentModule | FusionModule
    data: MultimodalData
    config: RunConfig
    epochs: Sequence[Mapping[str, Any]]
    best_epoch: int
    path: Path | None = None
    target: Target | None = None
    beta: Mapping[str, Any] | None = None

    @property
    def method(self) -> Alignment | Fusion:
        """The method that it was trained by."""
        return method(self.config.method)

    @property
    def unit(self) -> str:
        """The unit of its losses."""
        chosen = self.method
        if isinstance(chosen, Alignment):
            return chosen.unit
        return "" if self.target is None else self.target.unit

    def predict(self, split: str = "test") -> Tensor:
        """Return a fusion's predictions for a split's samples, which must have all modalities.

        Logits [n, classes], in the order of `target.classes`; targets [n, targets]; or anomaly scores [n, 1].

        Raises
        ------
        RunError
            For an alignment, which predicts nothing.
        DataError
            Where a sample lacks a modality, or holds NaN or infinity.
        """
        return self.predict_samples(self.data.indices(split))

    def predict_samples(self, indices: Tensor) -> Tensor:
        """Return a fusion's predictions of samples; see :meth:`predict`."""
        module = self.module
        if not isinstance(module, FusionModule):
            raise RunError(f"{self.method.title} aligns modalities and predicts nothing")
        if not bool(self.data.has(indices, list(self.data.views)).all()):
            raise DataError(f"{self.data.name}: a fusion predicts samples that have all modalities, and some lack one")
        with torch.inference_mode():
            return torch.cat([module(views) for views in self._in_parts(indices)])

    def embed(self, split: str = "test", *, representations: bool = False) -> dict[str, Tensor]:
        """Return each modality's embeddings [n, features] of a split's samples (float32), not normalised.

        Where a sample lacks the modality it is zeros; `data.presence` says where.

        Parameters
        ----------
        split : {"train", "validation", "test", "all"}
        representations : bool
            What the encoders return, before the projection heads: what downstream tasks use.
        """
        _check.boolean("embed", "representations", representations)
        parts: dict[str, list[Tensor]] = {name: [] for name in self.data.views}
        for rows in self.embed_in_parts(self.data.indices(split), representations=representations):
            for name, z in rows.items():
                parts[name].append(z)
        return {name: torch.cat(each) for name, each in parts.items()}

    def embed_in_parts(self, indices: Tensor, *, representations: bool = False) -> Iterator[dict[str, Tensor]]:
        """Yield the embeddings of samples, some thousand at a time; DataError for NaN or infinity among them.

        RunError for a fusion, which has no embeddings but representations only.
        """
        module = self.module
        if not representations and not isinstance(module, AlignmentModule):
            raise RunError(f"{self.method.title} is a fusion and makes no embeddings; it has representations")
        for views in self._in_parts(indices):
            with torch.inference_mode():
                embedded: dict[str, Tensor] = module.represent(views) if representations else module(views)
            yield embedded

    def _in_parts(self, indices: Tensor) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(indices), EMBEDDED_ROWS):
            part = indices[start : start + EMBEDDED_ROWS]
            views = self.data.take(part)
            for name in self.data.views:
                x = views[name]
                if not torch.isfinite(x).all():
                    row = int(part[int((~torch.isfinite(x.flatten(1))).any(1).nonzero()[0])])
                    raise DataError(f"{self.data.name}: modality {name!r} holds NaN or infinity in sample {row}")
            yield views
