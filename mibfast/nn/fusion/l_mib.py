"""L-MIB: each modality passes a variational bottleneck, and what is left is fused late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.stochastic_encoder import StochasticEncoders
from mibfast.nn.fusion.tasks import Task


class LMIB(FusionModel):
    r"""Each representation passes a variational bottleneck before they are fused: late fusion.

    .. math:: L = w \, \ell(\hat y) + \sum_m \Big[ \ell(\hat y_m)
              + \beta \, \mathrm{KL}\big( q(z_m | x_m) \,\Vert\, N(0, I) \big) \Big]

    Mai et al. (IEEE Transactions on Multimedia, 2023), as released: the KL divergences are means over the d features
    too, so beta is d times weaker than in the usual bound. Predictions are those of the posteriors' means; the released
    code draws from them in the test too.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`; `features` is also the length of a latent and of the fused
        representation. The paper trains by the absolute error.
    beta : float
        At least 0.
    task_weight : float
        w, at least 0: 2 as released, where the fused prediction's loss is added twice, and 1 in the paper.
    hidden_features : int
        Width of the posteriors' hidden layers.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.LMIB(encoders, 4, fusion.Regression(error="absolute"))
    >>> views = {"image": torch.randn(5, 8), "text": torch.randn(5, 6)}
    >>> list(model.terms(views, torch.zeros(5)))
    ['loss', 'task', 'modality_task', 'modality_compression']
    """

    title: ClassVar[str] = "L-MIB"

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
        name, m = type(self).__name__, len(encoders)
        self.beta = _check.number(name, "beta", beta, 0.0)
        self.task_weight = _check.number(name, "task_weight", task_weight, 0.0)
        self.posteriors = StochasticEncoders(name, m, features, hidden_features, bias=task.biased)
        self.modality_predictors = nn.ModuleList(prediction_head(name, features, task) for _ in range(m))
        self.join = nn.Linear(m * features, features, bias=task.biased)
        self.predictor = prediction_head(name, features, task)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        prediction: Tensor = self.predictor(self._joined(self.posteriors.means(representations)))
        return prediction

    def _joined(self, latents: Sequence[Tensor]) -> Tensor:
        joined: Tensor = self.join(torch.cat(list(latents), dim=1))
        return joined.relu()

    def _of_modalities(self, views: Mapping[str, Tensor], target: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return what draws from all posteriors are fused to, and the losses and divergences summed over modalities."""
        latents, divergences = self.posteriors.draw(self.encode(views))
        predictions = [predict(z) for predict, z in zip(self.modality_predictors, latents, strict=True)]
        task = torch.stack([self.task.loss(x, target).mean() for x in predictions]).sum()
        compression = divergences.mean(1).sum() / latents[0].shape[1]
        return self._joined(latents), task, compression

    def _terms(self, views: Mapping[str, Tensor], target: Any, stage: str) -> dict[str, Tensor]:
        """Return the loss, of one draw from each posterior, and its terms, those of modalities summed."""
        joined, modality_task, compression = self._of_modalities(views, target)
        task = self.task.loss(self.predictor(joined), target).mean()
        return {
            "loss": self.task_weight * task + modality_task + self.beta * compression,
            "task": task,
            "modality_task": modality_task,
            "modality_compression": compression,
        }
