"""MMIB of Cui et al.: bottlenecks that a discriminator aligns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.stochastic_encoder import StochasticEncoders
from mibfast.nn.fusion.tasks import Task


class MMIBCui(FusionModel):
    r"""Each modality passes a variational bottleneck; a discriminator tells pairs of one sample from others.

    .. math:: L = \ell(\hat y) + \beta \sum_m \mathrm{KL}\big( q(z_m | x_m) \,\Vert\, N(0, I) \big)
              + \frac{\alpha}{N} \sum_n \Big[ \ln\big(1 + e^{-s(z_1^n, z_2^n)}\big)
              + \ln\big(1 + e^{s(z_1^n, z_2^{n-1})}\big) \Big]

    with a bilinear score s. Cui et al. (IEEE/ACM TASLP 2024, arXiv 2304.02328), as released: the KL divergences are
    means over the d features too, and the negatives are the batch, rolled by one; a batch of one sample has none. The
    released model is of tokens of a text and an image. With one vector a modality its attention has nothing to choose
    from: posteriors are linear layers here, and of its fusions it is the concatenation. It is made for two modalities;
    of more, the discriminator's loss is the mean over all pairs, which is this project's reading.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`; `features` is also the length of a latent and of the fused
        representation.
    beta, alignment_weight : float
        beta and alpha, at least 0.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.MMIBCui(encoders, 4, fusion.Classification(3))
    >>> views = {"image": torch.randn(5, 8), "text": torch.randn(5, 6)}
    >>> list(model.terms(views, torch.tensor([0, 1, 2, 0, 1])))
    ['loss', 'task', 'compression', 'alignment']
    """

    title: ClassVar[str] = "MMIB-Cui"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        features: int,
        task: Task,
        beta: float = 1.0,
        alignment_weight: float = 1.0,
    ) -> None:
        super().__init__(encoders, features, task)
        self.beta = _check.number("MMIBCui", "beta", beta, 0.0)
        self.alignment_weight = _check.number("MMIBCui", "alignment_weight", alignment_weight, 0.0)
        m = len(encoders)
        self.posteriors = StochasticEncoders("MMIBCui", m, features, bias=task.biased)
        self.discriminators = nn.ModuleList(nn.Bilinear(features, features, 1) for _ in range(m * (m - 1) // 2))
        self.join = nn.Linear(m * features, features, bias=task.biased)
        self.predictor = prediction_head("MMIBCui", features, task)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        return self._fused(self.posteriors.means(representations))

    def _fused(self, latents: list[Tensor]) -> Tensor:
        prediction: Tensor = self.predictor(self.join(torch.cat(latents, dim=1)))
        return prediction

    def _terms(self, views: Mapping[str, Tensor], target: Any, stage: str) -> dict[str, Tensor]:
        """Return the loss, of one draw from each posterior, and its three terms."""
        latents, divergences = self.posteriors.draw(self.encode(views))
        pairs = zip(self.discriminators, combinations(latents, 2), strict=True)
        terms = {
            "task": self.task.loss(self._fused(latents), target).mean(),
            "compression": divergences.mean(1).sum() / latents[0].shape[1],
            "alignment": torch.stack([_discrimination(score, a, b) for score, (a, b) in pairs]).mean(),
        }
        loss = terms["task"] + self.beta * terms["compression"] + self.alignment_weight * terms["alignment"]
        return {"loss": loss, **terms}


def _discrimination(score: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Return the binary cross-entropy of pairs of one sample against those with the sample before."""
    loss = nn.functional.softplus(-score(a, b)).mean()
    if len(a) > 1:
        loss = loss + nn.functional.softplus(score(a, b.roll(1, dims=0))).mean()
    return loss
