"""FiLM: one modality scales and shifts the features of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.tasks import Task


class FiLM(FusionModel):
    r"""Feature-wise linear modulation: one modality conditions the others.

    .. math:: \hat y = W_o (\gamma \odot y + \beta), \qquad [\gamma; \beta] = W x

    Perez et al. (AAAI 2018), as released with OGM-GE (Peng et al., CVPR 2022). It is made for two modalities; of more,
    the others side by side are y, which is this project's reading.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`.
    condition : str, optional
        The modality x that conditions; by itself the first.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.FiLM(encoders, 4, fusion.Regression(2), condition="text")
    >>> model({"image": torch.randn(5, 8), "text": torch.randn(5, 6)}).shape
    torch.Size([5, 2])
    """

    title: ClassVar[str] = "FiLM"

    def __init__(
        self, encoders: Mapping[str, nn.Module], features: int, task: Task, condition: str | None = None
    ) -> None:
        super().__init__(encoders, features, task)
        names = self.modalities
        self._condition = 0 if condition is None else names.index(_check.choice("FiLM", "condition", condition, names))
        conditioned = (len(encoders) - 1) * features
        self.modulation = nn.Linear(features, 2 * conditioned, bias=task.biased)
        self.predictor = prediction_head("FiLM", conditioned, task)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        others = list(representations)
        scale, shift = self.modulation(others.pop(self._condition)).chunk(2, dim=1)
        prediction: Tensor = self.predictor(scale * torch.cat(others, dim=1) + shift)
        return prediction
