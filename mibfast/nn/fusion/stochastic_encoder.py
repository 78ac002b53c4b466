"""Encoders whose output is a Gaussian, and draws from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast import functional as F
from mibfast._modules import ResettableModule


class StochasticEncoder(ResettableModule):
    r"""The mean and the log-variance of a diagonal Gaussian, :math:`\sigma = \mathrm{softplus}(h - 5)`.

    It begins with little noise, as that of Alemi et al. (ICLR 2017, arXiv 1612.00410) does.

    Parameters
    ----------
    operation : str
        Whose it is, for errors.
    in_features, latent_features : int
        Lengths of an input and of the latent.
    hidden_features : int, optional
        Width of a hidden layer with ReLU; without, both heads are linear in the input.
    bias : bool
        Whether layers have one.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.fusion.stochastic_encoder import StochasticEncoder
    >>> mean, logvar = StochasticEncoder("example", 6, 4, hidden_features=32)(torch.zeros(5, 6))
    >>> mean.shape, logvar.shape
    (torch.Size([5, 4]), torch.Size([5, 4]))
    """

    def __init__(
        self,
        operation: str,
        in_features: int,
        latent_features: int,
        hidden_features: int | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.operation, self.in_features = operation, _check.count(operation, "in_features", in_features)
        _check.count(operation, "latent_features", latent_features)
        _check.boolean(operation, "bias", bias)
        self.hidden: nn.Module = nn.Identity()
        if hidden_features is not None:
            _check.count(operation, "hidden_features", hidden_features)
            self.hidden = nn.Sequential(nn.Linear(in_features, hidden_features, bias=bias), nn.ReLU())
            in_features = hidden_features
        self.mean = nn.Linear(in_features, latent_features, bias=bias)
        self.deviation = nn.Linear(in_features, latent_features, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [N, latent_features] of inputs [N, in_features]."""
        _check.fits(self.operation, "x", x, self.in_features, self.mean.weight)
        hidden = self.hidden(x)
        h = self.deviation(hidden) - 5
        # ln softplus(h) is h to 1e-9 below -20, where the softplus would go to zero and its logarithm to -inf.
        logarithm = torch.where(h < -20, h, nn.functional.softplus(h.clamp(min=-20)).log())
        return self.mean(hidden), 2 * logarithm


def drawn(mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Return a draw [N, d] from N(mean, exp(logvar)) that gradients flow through, and its divergence [N] in nats."""
    return F.reparameterised_gaussian(mean, logvar, torch.randn_like(mean))


class StochasticEncoders(nn.ModuleList):
    """A :class:`StochasticEncoder` for each of M >= 2 modalities, from representations to latents of their length.

    Parameters
    ----------
    operation : str
        Named by errors.
    modalities, features : int
    hidden_features : int, optional
    bias : bool
    """

    def __init__(
        self, operation: str, modalities: int, features: int, hidden_features: int | None = None, *, bias: bool = True
    ) -> None:
        super().__init__(
            StochasticEncoder(operation, features, features, hidden_features, bias=bias) for _ in range(modalities)
        )

    def forward(self, representations: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return mean and log-variance [N, features] of each modality."""
        return [encode(x) for encode, x in zip(self, representations, strict=True)]

    def means(self, representations: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean [N, features] of each modality's latent."""
        return [mean for mean, _ in self(representations)]

    def draw(self, representations: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return :func:`drawn` for all modalities: M draws [N, features], divergences [M, N]."""
        means, logvars = zip(*self(representations), strict=True)
        samples, divergences = F.reparameterised_gaussian(means, logvars, [torch.randn_like(mean) for mean in means])
        return list(samples.unbind()), divergences
