"""DMIB: a bottleneck that must predict what its input predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.nn.fusion import losses
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.tasks import Classification, Task


class DMIB(FusionModel):
    r"""Concatenated representations pass a narrow layer, whose predictions must match those without it.

    .. math:: L = \ell(\hat y_z) + \ell(\hat y_v) + \alpha \, \mathrm{KL}(p_z \Vert p_v) + \gamma \sum_m \ell(\hat y_m)

    with predictions of the bottleneck z, of its input v and of each modality. The bottleneck is one of size, without
    noise; predictions are those of z. Fang et al. (WACV 2024, "Dynamic Multimodal Information Bottleneck"), as the
    diagnosis code releases it, without its dropout; that code also has gates and confidences of modalities, which its
    DMIB does not use. The divergence there is not one, see :func:`mibfast.nn.fusion.losses.self_distillation`; for
    tasks other than classification it is the task's.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`.
    sufficiency_weight, modality_weight : float
        alpha and gamma, at least 0; 500 and 1000 as released.
    latent_features : int, optional
        Width of the bottleneck; by itself two thirds of its input's, as released.
    released : bool
        Take the released sufficiency loss, of classification only.

    Raises
    ------
    ValueError
        Besides what all fusions raise: for `released` and another task.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.DMIB(encoders, 4, fusion.Classification(3))
    >>> views = {"image": torch.randn(5, 8), "text": torch.randn(5, 6)}
    >>> list(model.terms(views, torch.tensor([0, 1, 2, 0, 1])))
    ['loss', 'task', 'observation_task', 'sufficiency', 'modality_task']
    """

    title: ClassVar[str] = "DMIB"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        features: int,
        task: Task,
        sufficiency_weight: float = 500.0,
        modality_weight: float = 1000.0,
        latent_features: int | None = None,
        released: bool = False,
    ) -> None:
        super().__init__(encoders, features, task)
        self.sufficiency_weight = _check.number("DMIB", "sufficiency_weight", sufficiency_weight, 0.0)
        self.modality_weight = _check.number("DMIB", "modality_weight", modality_weight, 0.0)
        if _check.boolean("DMIB", "released", released) and not isinstance(task, Classification):
            raise ValueError(f"DMIB: released needs the task Classification, got {type(task).__name__}")
        self.released = released
        m = len(encoders)
        joint = m * features
        if latent_features is None:
            latent_features = (2 * joint + 2) // 3
        _check.count("DMIB", "latent_features", latent_features)
        self.layers = nn.ModuleList(nn.Linear(features, features, bias=task.biased) for _ in range(m))
        self.bottleneck = nn.Sequential(
            nn.Linear(joint, latent_features, bias=task.biased),
            nn.ReLU(),
            nn.Linear(latent_features, joint, bias=task.biased),
        )
        self.predictor = prediction_head("DMIB", joint, task)
        self.observation_predictor = prediction_head("DMIB", joint, task)
        self.modality_predictors = nn.ModuleList(prediction_head("DMIB", features, task) for _ in range(m))

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        prediction: Tensor = self.predictor(self.bottleneck(torch.cat(self._hidden(representations), dim=1)))
        return prediction

    def _hidden(self, representations: Sequence[Tensor]) -> list[Tensor]:
        return [layer(x).relu() for layer, x in zip(self.layers, representations, strict=True)]

    def _terms(self, views: Mapping[str, Tensor], target: Any, stage: str) -> dict[str, Tensor]:
        """Return the loss and the four terms that it weighs."""
        hidden = self._hidden(self.encode(views))
        joint = torch.cat(hidden, dim=1)
        bottleneck_output, observation_output = (
            self.predictor(self.bottleneck(joint)),
            self.observation_predictor(joint),
        )
        if self.released:
            sufficiency = losses.self_distillation(bottleneck_output, observation_output, released=True)
        else:
            sufficiency = self.task.divergence(bottleneck_output, observation_output.detach()).mean()
        modality_outputs = [predict(x) for predict, x in zip(self.modality_predictors, hidden, strict=True)]
        terms = {
            "task": self.task.loss(bottleneck_output, target).mean(),
            "observation_task": self.task.loss(observation_output, target).mean(),
            "sufficiency": sufficiency,
            "modality_task": torch.stack([self.task.loss(x, target).mean() for x in modality_outputs]).sum(),
        }
        loss = terms["task"] + terms["observation_task"] + self.sufficiency_weight * sufficiency
        return {"loss": loss + self.modality_weight * terms["modality_task"], **terms}
