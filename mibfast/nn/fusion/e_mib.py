"""E-MIB: modalities are fused early, and what they became passes a variational bottleneck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.stochastic_encoder import StochasticEncoder, drawn
from mibfast.nn.fusion.tasks import Task


class EMIB(FusionModel):
    r"""The fused representation passes a variational bottleneck: early fusion.

    .. math:: L = w \, \ell(\hat y_z) + \beta \, \mathrm{KL}\big( q(z | x_1, \dots, x_M) \,\Vert\, N(0, I) \big)

    Mai et al. (IEEE Transactions on Multimedia, 2023), as released: the KL divergence is a mean over the d features
    too, so beta is d times weaker than in the usual bound. Predictions are those of the posterior's mean; the released
    code draws from it in the test too.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`; `features` is also the length of the fused representation and
        of the latent. The paper trains by the absolute error.
    beta : float
        At least 0.
    task_weight : float
        w, at least 0: 2 as released, where the fused prediction's loss is added twice, and 1 in the paper.
    hidden_features : int
        Width of the posterior's hidden layer.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.EMIB(encoders, 4, fusion.Regression(error="absolute"))
    >>> views = {"image": torch.randn(5, 8), "text": torch.randn(5, 6)}
    >>> list(model.terms(views, torch.zeros(5)))
    ['loss', 'task', 'compression']
    """

    title: ClassVar[str] = "E-MIB"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        features: int,
        task: Task,
        beta: float = 1e-3,
        task_weight: float = 2.0,
        hidden_features: int = 1024,
    ) -> None:
        super().__init__(encoders, features, task)
        self.beta = _check.number("EMIB", "beta", beta, 0.0)
        self.task_weight = _check.number("EMIB", "task_weight", task_weight, 0.0)
        self.join = nn.Linear(len(encoders) * features, features, bias=task.biased)
        self.posterior = StochasticEncoder("EMIB", features, features, hidden_features, bias=task.biased)
        self.predictor = prediction_head("EMIB", features, task)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        mean, _ = self._posterior(representations)
        prediction: Tensor = self.predictor(mean)
        return prediction

    def _posterior(self, representations: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        mean, logvar = self.posterior(self.join(torch.cat(list(representations), dim=1)).relu())
        return mean, logvar

    def _terms(self, views: Mapping[str, Tensor], target: Any, stage: str) -> dict[str, Tensor]:
        """Return the loss, of one draw from the posterior, and its two terms."""
        latent, divergence = drawn(*self._posterior(self.encode(views)))
        task = self.task.loss(self.predictor(latent), target).mean()
        compression = divergence.mean() / latent.shape[1]
        return {
            "loss": self.task_weight * task + self.beta * compression,
            "task": task,
            "compression": compression,
        }
