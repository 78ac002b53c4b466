"""SigLIP over all pairs of modalities."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast import functional as F
from mibfast._check import Embeddings
from mibfast._modules import ResettableModule
from mibfast.losses.precision import at_least_float32
from mibfast.losses.presence import pairs, partnered_embeddings


class SigLIPLoss(ResettableModule):
    r"""The sum over all pairs of modalities of SigLIP's sigmoid loss.

    .. math:: L = -\sum_{i < j} \frac1N \sum_{n, n'} \log \sigma\big(y_{nn'} (t\, z_{i,n} \cdot z_{j,n'} + b)\big)

    with :math:`y_{nn'} = 1` for the embeddings of one sample and -1 for all others. With M = 2, SigLIP (Zhai et al.
    2023, arXiv 2303.15343), :func:`mibfast.functional.siglip`; the loss of a pair does not depend on its order.

    With missing modalities (`presence`), each pair is over the samples that have both, and pairs without any are left
    out of the sum. What stands in the place of an absent embedding is not used and gets a gradient of zero. The values
    of `presence` are read back, which breaks the graph of `torch.compile`: `fullgraph=True` takes none.

    Parameters
    ----------
    scale : float
        :math:`t > 0`; the initial value where it is learned.
    bias : float
        :math:`b`; likewise. At -10 nearly every pair starts as told apart, as nearly all are.
    learnable : bool
        Learn the logarithm of the scale (initially log 10) and the bias; one of each for all pairs.
    normalize : bool
        L2-normalise embeddings first.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range; in `forward`, for embeddings or a presence that do not fit together, or a presence
        that leaves nothing to take the loss of.

    Examples
    --------
    >>> import torch, mibfast
    >>> loss = mibfast.losses.SigLIPLoss(scale=2.0, bias=-1.0, learnable=False)
    >>> views = {"image": torch.eye(3), "text": torch.eye(3), "audio": torch.eye(3)}
    >>> {name: round(term.item(), 4) for name, term in loss.terms(views).items()}
    {'image-text': 0.9398, 'image-audio': 0.9398, 'text-audio': 0.9398}
    """

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -10.0,
        learnable: bool = True,
        *,
        normalize: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.initial_scale = _check.positive(name, "scale", scale)
        self.initial_bias = _check.number(name, "bias", bias)
        learned = _check.boolean(name, "learnable", learnable)
        self.log_scale = nn.Parameter(torch.empty(())) if learned else None
        self.bias = nn.Parameter(torch.empty(())) if learned else None
        self.normalize = _check.boolean(name, "normalize", normalize)
        self.backend = backend
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set scale and bias to their initial values."""
        if self.log_scale is not None and self.bias is not None:
            nn.init.constant_(self.log_scale, math.log(self.initial_scale))
            nn.init.constant_(self.bias, self.initial_bias)

    def forward(self, embeddings: Embeddings, presence: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar in nats (float64 for float64 embeddings, else float32).

        `presence` is a bool Tensor [N, M], True where sample n has modality m; None where none is missing.
        """
        first, *rest = self.terms(embeddings, presence).values()
        return sum(rest, start=first)

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return each pair's loss, under the modalities' names joined by a hyphen."""
        z, names = partnered_embeddings(type(self).__name__, embeddings, presence, self.normalize)
        # In float32 also where the model was cast to a shorter dtype.
        scale = self.initial_scale if self.log_scale is None else at_least_float32(self.log_scale).exp()
        bias = self.initial_bias if self.bias is None else at_least_float32(self.bias)
        return {
            pair: F.siglip(first, second, scale, bias, backend=self.backend)
            for pair, first, second in pairs(type(self).__name__, z, names, presence)
        }

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return (
            f"scale={self.initial_scale:g}, bias={self.initial_bias:g}, learnable={self.bias is not None}, "
            f"normalize={self.normalize}"
        )
