"""Multilayer perceptrons: encoders of vectors, and the heads that losses see."""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import Tensor, nn

from mibfast import _check
from mibfast._modules import ResettableModule


def _layers(sizes: list[int], bias: bool, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    between = [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=bias), *copy.deepcopy(between)]
    return layers[: -len(between)]


class MLPEncoder(ResettableModule):
    """An encoder of vectors: linear layers with ReLU between them.

    Parameters
    ----------
    in_features : int
        Length of an input vector.
    out_features : int
        Length of a representation.
    hidden_features : int
        Width of the hidden layers.
    depth : int
        Number of linear layers, >= 1.
    bias : bool
        Whether the layers have biases. With them, a network trained to map samples close to a point can collapse to it.
    dropout : float
        Probability in [0, 1) of dropping a hidden unit in training, against overfitting to few samples.

    Raises
    ------
    TypeError, ValueError
        For sizes that are not positive integers, or a dropout out of range.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import MLPEncoder
    >>> MLPEncoder(64, 256)(torch.zeros(8, 64)).shape
    torch.Size([8, 256])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 256,
        hidden_features: int = 256,
        depth: int = 3,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        sizes = {"in_features": in_features, "out_features": out_features, "hidden_features": hidden_features}
        for argument, size in {**sizes, "depth": depth}.items():
            _check.count(name, argument, size)
        self.in_features, self.out_features = in_features, out_features
        sizes_of_layers = [in_features, *[hidden_features] * (depth - 1), out_features]
        share = _check.number(name, "dropout", dropout, 0.0, 1.0)
        if share == 1.0:
            raise ValueError(f"{name}: dropout must be below 1, where no unit would be left, got {dropout}")
        self.layers = nn.Sequential(*_layers(sizes_of_layers, _check.boolean(name, "bias", bias), share))

    def forward(self, x: Tensor) -> Tensor:
        """Encode vectors [..., in_features] to representations [..., out_features]."""
        result: Tensor = self.layers(x)
        return result


class ProjectionHead(MLPEncoder):
    """The head between a representation and the embedding that a loss aligns: three linear layers, as in OVA-IB.

    Downstream tasks use the representation before the head (arXiv 2605.29900, Appendix).

    Parameters
    ----------
    features : int
        Length of a representation.
    embedding_features : int
        Length of an embedding.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import ProjectionHead
    >>> ProjectionHead(256, 128)(torch.zeros(8, 256)).shape
    torch.Size([8, 128])
    """

    def __init__(self, features: int = 256, embedding_features: int = 256) -> None:
        super().__init__(features, embedding_features, features, 3)
