"""MMIB of Zhang et al.: modalities keep what they tell of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.losses import PairwiseCLIPLoss
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.stochastic_encoder import StochasticEncoders
from mibfast.nn.fusion.tasks import Task


class MMIBZhang(FusionModel):
    r"""Latents maximise the information between modalities, and minimise that about their own modality.

    .. math:: L = \ell(\hat y) + \sum_m \beta \, \mathrm{KL}\big( q(z_m | x_m) \,\Vert\, N(0, I) \big)
              + \alpha \sum_{i < j} L_\text{InfoNCE}(z_i, z_j)

    Zhang et al. (CCEAI 2022, "Information bottleneck based representation learning for multimodal sentiment analysis")
    released no code: this is built from the text, which says what is maximised and minimised but not by which
    estimators. Here they are symmetric InfoNCE of cosines and the variational bound, in nats; both weights' defaults
    are this project's.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`; `features` is also the length of a latent.
    beta, alignment_weight : float
        beta and alpha, at least 0.
    temperature : float
        Of InfoNCE, positive.
    hidden_features : int or None
        Width of the predictor's hidden layer; None for a linear layer alone.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.MMIBZhang(encoders, 4, fusion.Classification(3))
    >>> views = {"image": torch.randn(5, 8), "text": torch.randn(5, 6)}
    >>> list(model.terms(views, torch.tensor([0, 1, 2, 0, 1])))
    ['loss', 'task', 'compression', 'alignment']
    """

    title: ClassVar[str] = "MMIB-Zhang"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        features: int,
        task: Task,
        beta: float = 1e-3,
        alignment_weight: float = 0.1,
        temperature: float = 0.1,
        hidden_features: int | None = 512,
    ) -> None:
        super().__init__(encoders, features, task)
        self.beta = _check.number("MMIBZhang", "beta", beta, 0.0)
        self.alignment_weight = _check.number("MMIBZhang", "alignment_weight", alignment_weight, 0.0)
        m = len(encoders)
        self.posteriors = StochasticEncoders("MMIBZhang", m, features, bias=task.biased)
        self.alignment = PairwiseCLIPLoss(temperature)
        self.predictor = prediction_head("MMIBZhang", m * features, task, hidden_features)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        return self._fused(self.posteriors.means(representations))

    def _fused(self, latents: list[Tensor]) -> Tensor:
        prediction: Tensor = self.predictor(torch.cat(latents, dim=1))
        return prediction

    def _terms(self, views: Mapping[str, Tensor], target: Any, stage: str) -> dict[str, Tensor]:
        """Return the loss, of one draw from each posterior, and its three terms, in nats."""
        latents, divergences = self.posteriors.draw(self.encode(views))
        terms = {
            "task": self.task.loss(self._fused(latents), target).mean(),
            "compression": divergences.mean(1).sum(),
            "alignment": self.alignment(latents),
        }
        loss = terms["task"] + self.beta * terms["compression"] + self.alignment_weight * terms["alignment"]
        return {"loss": loss, **terms}
