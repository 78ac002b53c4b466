"""MISA: modality-invariant and modality-specific representations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.nn.fusion import losses
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.tasks import Task


class MISA(FusionModel):
    r"""A private part and a part in a shared space for each modality; a transformer fuses all 2 M parts.

    .. math:: L = L_\text{task} + 0.3 \, L_\text{difference} + L_\text{similarity} + L_\text{reconstruction}

    by default. The difference is summed over each modality's private and shared part and over all pairs of private
    parts, the similarity is the mean central moment discrepancy of all pairs of shared parts, the reconstruction the
    mean over modalities. Hazarika et al. (ACM MM 2020, arXiv 2005.03545), as released, for any number of modalities.
    The released dropout is left out, and so is the adversarial alternative to the similarity.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`; `features` is also the length of a part, and a multiple of
        `heads`.
    difference_weight, similarity_weight, reconstruction_weight : float
        At least 0.
    moments : int
        Of the central moment discrepancy.
    heads : int
        Of the transformer.
    feedforward_features : int
        Width inside the transformer.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.MISA(encoders, 4, fusion.Classification(3))
    >>> views = {"image": torch.randn(5, 8), "text": torch.randn(5, 6)}
    >>> list(model.terms(views, torch.tensor([0, 1, 2, 0, 1])))
    ['loss', 'task', 'difference', 'similarity', 'reconstruction']
    """

    title: ClassVar[str] = "MISA"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        features: int,
        task: Task,
        difference_weight: float = 0.3,
        similarity_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        moments: int = 5,
        heads: int = 2,
        feedforward_features: int = 2048,
    ) -> None:
        super().__init__(encoders, features, task)
        weights = {
            "difference_weight": difference_weight,
            "similarity_weight": similarity_weight,
            "reconstruction_weight": reconstruction_weight,
        }
        self.weights = [_check.number("MISA", name, weight, 0.0) for name, weight in weights.items()]
        self.moments = _check.count("MISA", "moments", moments)
        _check.count("MISA", "feedforward_features", feedforward_features)
        if features % _check.count("MISA", "heads", heads):
            raise ValueError(f"MISA: features must be a multiple of heads = {heads}, got {features}")
        m = len(encoders)
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features, features, bias=task.biased), nn.ReLU(), nn.LayerNorm(features, bias=task.biased)
            )
            for _ in range(m)
        )
        self.private = nn.ModuleList(nn.Linear(features, features, bias=task.biased) for _ in range(m))
        self.shared = nn.Linear(features, features, bias=task.biased)
        self.reconstructions = nn.ModuleList(nn.Linear(features, features) for _ in range(m))
        self.transformer = nn.TransformerEncoderLayer(
            features, heads, feedforward_features, dropout=0.0, batch_first=True, bias=task.biased
        )
        self.predictor = prediction_head("MISA", 2 * m * features, task, m * features)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        _, private, shared = self._parts(representations)
        return self._prediction(private, shared)

    def _parts(self, representations: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        projected = [project(x) for project, x in zip(self.projections, representations, strict=True)]
        private = [part(x).sigmoid() for part, x in zip(self.private, projected, strict=True)]
        return projected, private, [self.shared(x).sigmoid() for x in projected]

    def _prediction(self, private: list[Tensor], shared: list[Tensor]) -> Tensor:
        prediction: Tensor = self.predictor(self.transformer(torch.stack(private + shared, dim=1)).flatten(1))
        return prediction

    def _terms(self, views: Mapping[str, Tensor], target: Any, stage: str) -> dict[str, Tensor]:
        """Return the loss and the four terms that it weighs."""
        projected, private, shared = self._parts(self.encode(views))
        parts = list(zip(private, shared, strict=True))
        reconstructed = [reconstruct(p + s) for reconstruct, (p, s) in zip(self.reconstructions, parts, strict=True)]
        difference = [losses.difference(a, b) for a, b in (*parts, *combinations(private, 2))]
        similarity = [losses.central_moment_discrepancy(a, b, self.moments) for a, b in combinations(shared, 2)]
        reconstruction = [losses.reconstruction(x, y) for x, y in zip(projected, reconstructed, strict=True)]
        terms = {
            "task": self.task.loss(self._prediction(private, shared), target).mean(),
            "difference": torch.stack(difference).sum(),
            "similarity": torch.stack(similarity).mean(),
            "reconstruction": torch.stack(reconstruction).mean(),
        }
        weighed = [weight * term for weight, term in zip((1.0, *self.weights), terms.values(), strict=True)]
        return {"loss": torch.stack(weighed).sum(), **terms}
