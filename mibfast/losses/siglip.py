"""SigLIP over all pairs of modalities."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast import functional as F
from mibfast._precision import at_least_float32
from mibfast.losses._learned import ScaledLoss
from mibfast.losses._presence import over_pairs


class SigLIPLoss(ScaledLoss):
    r"""The sum over all pairs of modalities of SigLIP's sigmoid loss.

    .. math:: L = -\sum_{i < j} \frac1N \sum_{n, n'} \log \sigma\big(y_{nn'} (t\, z_{i,n} \cdot z_{j,n'} + b)\big)

    with :math:`y_{nn'} = 1` for the embeddings of one sample and -1 for all others. With M = 2, SigLIP (Zhai et al.
    2023, arXiv 2303.15343), :func:`mibfast.functional.siglip`. There is a term for each pair, named by both modalities
    with a hyphen between them; the mean or the sum over samples does not depend on the order of the two.

    With missing modalities, each pair's loss is over the samples that have both, and pairs without any are left out of
    the sum.

    Parameters
    ----------
    scale : float
        :math:`t > 0`; the initial value where it is learned.
    bias : float
        :math:`b`, or its initial value. At -10 training starts with nearly all pairs classified as negatives, which
        nearly all of them are.
    learnable : bool
        Learn the logarithm of the scale (initially log 10) and the bias; one of each for all pairs.
    normalize : bool
        L2-normalise embeddings first.
    reduction : {"mean", "sum", "none"}
        Of each pair's loss over samples; pairs are summed in any case. "none" gives [N], the losses of the embeddings
        of the pairs' first modalities.
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

    normalizes_inside = True

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -10.0,
        learnable: bool = True,
        *,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__(normalize=normalize, reduction=reduction, backend=backend)
        self._set_scale(scale, "learnable", learnable)
        self.initial_bias = _check.number(self._name, "bias", bias)
        self.bias = nn.Parameter(torch.empty(())) if learnable else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set scale and bias to their initial values."""
        super().reset_parameters()
        if self.bias is not None:
            nn.init.constant_(self.bias, self.initial_bias)

    def _terms(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        # In float32 also where the model was cast to a shorter dtype.
        bias = self.initial_bias if self.bias is None else at_least_float32(self.bias)
        loss = partial(
            F.siglip,
            scale=self.scale(),
            bias=bias,
            normalize=self.normalize,
            reduction=self.reduction,
            backend=self.backend,
        )
        return over_pairs(self._name, loss, z, names, presence)
