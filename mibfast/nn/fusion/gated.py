"""Gated fusion: one modality decides, feature by feature, what of the others passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.tasks import Task


class GatedFusion(FusionModel):
    r"""One modality gates the others, in the form that OGM-GE releases.

    .. math:: \hat y = W_o \big[ \sigma(W_x x) \odot W_y y \big]

    Kiela et al. (AAAI 2018), as released with OGM-GE (Peng et al., CVPR 2022): the gate goes one way only. It is made
    for two modalities; of more, the others side by side are y, which is this project's reading.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`.
    gate : str, optional
        The modality x that gates; by itself the first.
    hidden_features : int
        Width of the gate.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.GatedFusion(encoders, 4, fusion.Classification(3), gate="text")
    >>> model({"image": torch.randn(5, 8), "text": torch.randn(5, 6)}).shape
    torch.Size([5, 3])
    """

    title: ClassVar[str] = "BiGated"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        features: int,
        task: Task,
        gate: str | None = None,
        hidden_features: int = 512,
    ) -> None:
        super().__init__(encoders, features, task)
        _check.count("GatedFusion", "hidden_features", hidden_features)
        names = self.modalities
        self._gating = 0 if gate is None else names.index(_check.choice("GatedFusion", "gate", gate, names))
        self.gate = nn.Linear(features, hidden_features, bias=task.biased)
        self.gated = nn.Linear((len(encoders) - 1) * features, hidden_features, bias=task.biased)
        self.predictor = prediction_head("GatedFusion", hidden_features, task)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        others = list(representations)
        gate = self.gate(others.pop(self._gating)).sigmoid()
        prediction: Tensor = self.predictor(gate * self.gated(torch.cat(others, dim=1)))
        return prediction
