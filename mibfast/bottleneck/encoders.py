"""Encoders whose output is a Gaussian."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast._modules import ResettableModule


class GaussianEncoder(ResettableModule):
    """A perceptron with two heads, the mean and the log-variance of a diagonal Gaussian: DVMIB's encoder.

    Parameters
    ----------
    in_features : int
        Length of all parents together, each flattened.
    latent_features : int
        Length of the latent.
    hidden_features : int
        Width of the hidden layers.
    depth : int
        Number of hidden layers, >= 1.

    Raises
    ------
    TypeError, ValueError
        For sizes that are not positive integers.

    Examples
    --------
    >>> import torch
    >>> from mibfast.bottleneck import GaussianEncoder
    >>> mean, logvar = GaussianEncoder(8, 3)(torch.zeros(5, 6), torch.zeros(5, 2))
    >>> mean.shape, logvar.shape
    (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    def __init__(self, in_features: int, latent_features: int, hidden_features: int = 1024, depth: int = 2) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "latent_features": latent_features, "hidden_features": hidden_features}
        for argument, size in {**sizes, "depth": depth}.items():
            _check.count("GaussianEncoder", argument, size)
        self.in_features = in_features
        layers = pairwise([in_features, *[hidden_features] * depth])
        self.layers = nn.Sequential(*(layer for pair in layers for layer in (nn.Linear(*pair), nn.ReLU())))
        self.mean = nn.Linear(hidden_features, latent_features)
        self.logvar = nn.Linear(hidden_features, latent_features)

    def forward(self, *parents: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [N, latent_features] for parents [N, ...]."""
        name, features = "GaussianEncoder", self.in_features
        for k, x in enumerate(parents):
            if not isinstance(x, Tensor) or x.is_nested or x.ndim < 2 or not x.dtype.is_floating_point:
                raise TypeError(f"{name}: parents[{k}] must be floating-point [N, ...], got {_check.described(x)}")
            _check.alike(name, **{f"parents[{k}]": x, "the module's parameters": self.mean.weight})
        if sum(x[0].numel() if len(x) else 0 for x in parents) != features or len({len(x) for x in parents}) != 1:
            given = ", ".join(map(_check.described, parents)) or "none"
            raise ValueError(f"{name}: parents must have N samples of {features} features together, got {given}")
        hidden = self.layers(torch.cat([x.flatten(1) for x in parents], 1))
        return self.mean(hidden), self.logvar(hidden)


class GaussianHeads(ResettableModule):
    """Mean and log-variance of a diagonal Gaussian, each a linear layer on what any network returns.

    Parameters
    ----------
    network : Module
        Takes the latent's one parent and returns [N, features], to which ReLU is applied.
    features, latent_features : int

    Raises
    ------
    TypeError, ValueError
        For sizes that are not positive integers.

    Examples
    --------
    >>> import torch
    >>> from mibfast.bottleneck import GaussianHeads
    >>> from mibfast.nn import Conv2dEncoder
    >>> encoder = GaussianHeads(Conv2dEncoder((1, 28, 28), 64), 64, 3)
    >>> mean, logvar = encoder(torch.zeros(5, 1, 28, 28))
    >>> mean.shape, logvar.shape
    (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    def __init__(self, network: nn.Module, features: int, latent_features: int) -> None:
        super().__init__()
        for argument, size in {"features": features, "latent_features": latent_features}.items():
            _check.count("GaussianHeads", argument, size)
        self.network = network
        self.mean = nn.Linear(features, latent_features)
        self.logvar = nn.Linear(features, latent_features)

    def forward(self, parent: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [N, latent_features] for a parent [N, ...]."""
        hidden = nn.functional.relu(self.network(parent))
        return self.mean(hidden), self.logvar(hidden)
