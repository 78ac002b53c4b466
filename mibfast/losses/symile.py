"""Symile: all modalities at once, by their multilinear inner product."""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast.losses._learned import ScaledLoss


class SymileLoss(ScaledLoss):
    r"""Symile's loss of M modalities: the cross-entropy of picking each sample's own combination of the others.

    .. math:: L = \frac{1}{M N} \sum_m \sum_n \Big[ \log \sum_{c} e^{s\, t(z_n^{(m)}, c)} - s\, t_n \Big],
              \qquad t = \sum_d \prod_m z_d^{(m)}

    :func:`mibfast.functional.symile_info_nce` (Saporta et al., arXiv 2411.01053), which captures dependence of all
    modalities together that no pair shows. The released loss takes embeddings as they are: its README and XOR example
    normalise them to unit length, its M3 and MIMIC models use LayerNorm alone, as `normalize=False` allows for. The one
    term is `alignment`.

    With missing modalities, the loss is over the samples that have all of them: products of fewer embeddings are scores
    on another scale, and do not belong in the same softmax.

    Parameters
    ----------
    scale : float
        Positive; the initial value where it is learned. Multilinear products of M unit vectors shrink with d and M, so
        more than CLIP's inverse temperature may be needed.
    learnable_scale : bool
        Learn it, as its logarithm, unbounded, as the released code does.
    negatives : {"all", "shuffled"}
        See :func:`mibfast.functional.symile_info_nce`; "all" takes at most four modalities.
    normalize : bool
        L2-normalise embeddings first.
    generator : torch.Generator, optional
        Draws the permutations of shuffled negatives.
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
    >>> loss = mibfast.losses.SymileLoss(scale=1.0)
    >>> loss([torch.eye(3), torch.eye(3), torch.eye(3)])
    tensor(1.3720)
    """

    takes_complete_samples = True

    def __init__(
        self,
        scale: float = 1 / 0.07,
        learnable_scale: bool = False,
        negatives: str = "all",
        *,
        normalize: bool = True,
        generator: torch.Generator | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(normalize=normalize, backend=backend)
        self._set_scale(scale, "learnable_scale", learnable_scale)
        self.negatives = _check.choice(self._name, "negatives", negatives, ("all", "shuffled"))
        if generator is not None and self.negatives == "all":
            raise ValueError(f'{self._name}: a generator is for negatives="shuffled", got negatives="all"')
        self.generator = generator
        self.reset_parameters()

    def _terms(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        alignment = F.symile_info_nce(
            z, self.scale(), negatives=self.negatives, generator=self.generator, backend=self.backend
        )
        return {"alignment": alignment}
