"""Symile: all modalities at once, by their multilinear inner product."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast import functional as F
from mibfast._check import Embeddings
from mibfast._modules import ResettableModule
from mibfast.losses.precision import at_least_float32
from mibfast.losses.presence import complete_embeddings


class SymileLoss(ResettableModule):
    r"""Symile's loss of M modalities: each sample's own combination picked out of others, every modality the anchor.

    :func:`mibfast.functional.symile_info_nce` (Saporta et al., arXiv 2411.01053), which captures dependence of all
    modalities together that no pair shows. The released loss takes embeddings as they come: its README and XOR example
    normalise them to unit length, its M3 and MIMIC models use LayerNorm alone, which `normalize=False` leaves to the
    model.

    With missing modalities (`presence`), the loss is over the samples that have all of them: the product of fewer
    embeddings is another score, of another size, and would not compete with these in one softmax. What stands in the
    place of any embedding of the other samples is not used and gets a gradient of zero. The values of `presence` are
    read back, which breaks the graph of `torch.compile`: `fullgraph=True` takes none.

    Parameters
    ----------
    scale : float
        Positive; the initial value where it is learned. Products of M unit vectors shrink with d and M, so more than
        CLIP's inverse temperature may be needed.
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
        super().__init__()
        name = type(self).__name__
        if isinstance(scale, Tensor):
            raise TypeError(
                f"{name}: scale must be a positive number, got {_check.described(scale)}; "
                "learnable_scale=True makes it a parameter"
            )
        self.initial_scale = _check.positive(name, "scale", scale)
        learned = _check.boolean(name, "learnable_scale", learnable_scale)
        self.log_scale = nn.Parameter(torch.empty(())) if learned else None
        self.negatives = _check.choice(name, "negatives", negatives, ("all", "shuffled"))
        if generator is not None and self.negatives == "all":
            raise ValueError(f'{name}: a generator is for negatives="shuffled", got negatives="all"')
        self.normalize = _check.boolean(name, "normalize", normalize)
        self.generator = generator
        self.backend = backend
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to its initial value."""
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, math.log(self.initial_scale))

    def scale(self) -> float | Tensor:
        """Return the scale: a number, or a 0-d tensor with a gradient."""
        return self.initial_scale if self.log_scale is None else at_least_float32(self.log_scale).exp()

    def forward(self, embeddings: Embeddings, presence: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar in nats (float64 for float64 embeddings, else float32).

        `presence` is a bool Tensor [N, M], True where sample n has modality m; None where none is missing.
        """
        return self.terms(embeddings, presence)["alignment"]

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return `alignment`, the loss."""
        z, _ = complete_embeddings(type(self).__name__, embeddings, presence, self.normalize)
        alignment = F.symile_info_nce(
            z, self.scale(), negatives=self.negatives, generator=self.generator, backend=self.backend
        )
        return {"alignment": alignment}

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return (
            f"scale={self.initial_scale:g}, learnable_scale={self.log_scale is not None}, "
            f"negatives={self.negatives!r}, normalize={self.normalize}"
        )
