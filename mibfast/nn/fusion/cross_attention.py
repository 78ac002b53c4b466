"""Cross-attention: every modality is a token that attends to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast import functional as F
from mibfast._modules import ResettableModule
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.tasks import Task

FUSIONS = ("cross_attention", "concat_feature", "concatenation")


class CrossAttention(ResettableModule):
    """Fuse M latents [N, k] into one (OMIB, Eq. 7, 105 and 106).

    Equation 105 prints attention of the latents concatenated along the features, which is one token: its softmax is
    over one number and is 1. The complexity that the paper gives, O(N M^2), is that of M tokens, the default.

    Parameters
    ----------
    modalities : int
        M, at least 2.
    features : int
        k.
    fusion : {"cross_attention", "concat_feature", "concatenation"}
        "cross_attention": single-head scaled dot-product attention among M tokens of k features, their M k features
        through a linear layer to k. "concat_feature": equation 105 to the letter: one token of M k features, so a
        linear layer of the values, queries and keys being without effect and left out, and one to k.
        "concatenation": the last linear layer alone, the paper's ablation without cross-attention.
    out_features : int, optional
        Length of what comes out; k by default.
    bias : bool
        Whether the last layer has one.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.fusion import CrossAttention
    >>> CrossAttention(3, 8)([torch.randn(5, 8) for _ in range(3)]).shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        modalities: int,
        features: int,
        fusion: str = "cross_attention",
        out_features: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _check.count(name, "features", features)
        if _check.count(name, "modalities", modalities) < 2:
            raise ValueError(f"{name}: modalities must be at least 2, got {modalities}")
        self.fusion = _check.choice(name, "fusion", fusion, FUSIONS)
        _check.boolean(name, "bias", bias)
        if out_features is not None:
            _check.count(name, "out_features", out_features)
        self.modalities, self.features = modalities, features
        together = modalities * features
        if fusion == "cross_attention":
            self.query, self.key, self.value = (nn.Linear(features, features, bias=False) for _ in range(3))
        elif fusion == "concat_feature":
            self.value = nn.Linear(together, together, bias=False)
        self.out = nn.Linear(together, features if out_features is None else out_features, bias=bias)

    def forward(self, latents: Sequence[Tensor] | Tensor) -> Tensor:
        """Return the fused latent [N, out_features] of M latents [N, k], or of one tensor [M, N, k]."""
        name, weight = type(self).__name__, self.out.weight
        if isinstance(latents, Tensor):
            _check.tensor(name, "latents", latents, "M N k")
            _check.size(name, "latents", latents, 0, self.modalities)
            _check.size(name, "latents", latents, 2, self.features)
            _check.alike(name, latents=latents, **{"the module's parameters": weight})
            tokens = latents.transpose(0, 1)
        else:
            if not isinstance(latents, Sequence) or len(latents) != self.modalities:
                expected = f"{self.modalities} tensors [N, {self.features}]"
                raise ValueError(f"{name}: latents must be {expected}, got {_check.described(latents)}")
            named = {f"latents[{k}]": z for k, z in enumerate(latents)}
            for argument, z in named.items():
                _check.fits(name, argument, z, self.features, weight)
            _check.same_shape(name, **named)
            tokens = torch.stack(tuple(latents), dim=1)
        if self.fusion == "cross_attention":
            attended = F.token_attention(self.query(tokens), self.key(tokens), self.value(tokens)).flatten(1)
        else:
            attended = tokens.flatten(1)
            if self.fusion == "concat_feature":
                attended = self.value(attended)
        fused: Tensor = self.out(attended)
        return fused


class CrossAttentionFusion(FusionModel):
    """Representations that attend to each other, and a perceptron on the result.

    OMIB's fusion without its bottleneck, warm-up and weights.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`.
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

    title: ClassVar[str] = "cross-attention"

    def __init__(
        self, encoders: Mapping[str, nn.Module], features: int, task: Task, hidden_features: int | None = 512
    ) -> None:
        super().__init__(encoders, features, task)
        self.fusion = CrossAttention(len(encoders), features, bias=task.biased)
        self.predictor = prediction_head("CrossAttentionFusion", features, task, hidden_features)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        prediction: Tensor = self.predictor(self.fusion(representations))
        return prediction
