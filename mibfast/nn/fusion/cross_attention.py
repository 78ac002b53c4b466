"""Cross-attention: every modality is a token that attends to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.tasks import Task


class CrossAttention(nn.Module):
    """One head of scaled dot-product attention over M modality tokens, flattened to one linear layer.

    OMIB's cross-attention network (Wu et al., ICML 2025, Eq. 105 and 106), in the reading that its complexity O(N M^2)
    asks for: modalities are tokens, not features of a single one.

    Parameters
    ----------
    modalities : int
        M.
    features : int
        Length of a token, and of the result.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.fusion import CrossAttention
    >>> CrossAttention(3, 4)([torch.randn(5, 4) for _ in range(3)]).shape
    torch.Size([5, 4])
    """

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__()
        _check.count("CrossAttention", "modalities", modalities)
        _check.count("CrossAttention", "features", features)
        # Queries, keys and values in one product.
        self.projection = nn.Linear(features, 3 * features, bias=False)
        self.join = nn.Linear(modalities * features, features)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return one vector [N, features] of M tokens [N, features]."""
        query, key, value = self.projection(torch.stack(list(tokens), dim=1)).chunk(3, dim=-1)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        fused: Tensor = self.join(attended.flatten(1))
        return fused


class CrossAttentionFusion(FusionModel):
    """Representations that attend to each other, and a perceptron on what they become together.

    OMIB's fusion without its bottleneck, warm-up and weights.

    Parameters
    ----------
    encoders : mapping from a modality's name to nn.Module
        From samples [N, ...] to representations [N, features].
    features : int
        Length of a representation.
    task : Task
        What is predicted.
    hidden_features : int or None
        Width of the predictor's hidden layer; None for a linear layer alone.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.CrossAttentionFusion(encoders, 4, fusion.Classification(3))
    >>> model({"image": torch.randn(5, 8), "text": torch.randn(5, 6)}).shape
    torch.Size([5, 3])
    """

    def __init__(
        self, encoders: Mapping[str, nn.Module], features: int, task: Task, hidden_features: int | None = 512
    ) -> None:
        super().__init__(encoders, features, task)
        self.fusion = CrossAttention(len(encoders), features)
        self.predictor = prediction_head("CrossAttentionFusion", features, task, hidden_features)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        prediction: Tensor = self.predictor(self.fusion(representations))
        return prediction
