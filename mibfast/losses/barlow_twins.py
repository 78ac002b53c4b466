"""Barlow Twins: redundancy reduction between two views."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast._check import Embeddings
from mibfast._modules import ResettableModule
from mibfast.losses.presence import complete_embeddings


class BarlowTwinsLoss(ResettableModule):
    r"""Barlow Twins' loss of two views: each feature alike in both, and like no other.

    :func:`mibfast.functional.barlow_twins` (Zbontar et al., arXiv 2103.03230). Features are standardised over the batch
    inside the loss, so there is nothing to normalise before it. It needs no negatives, and a batch of more than one
    sample.

    With missing views (`presence`), the loss is over the samples that have both, since features are correlated over
    them. They must be two at least, and there can be no `group`, whose processes gather the same number of samples
    each. What stands in the place of any embedding of the other samples is not used and gets a gradient of zero. The
    values of `presence` are read back, which breaks the graph of `torch.compile`: `fullgraph=True` takes none.

    Parameters
    ----------
    off_diagonal_weight : float
        Weight of the redundancy, >= 0.
    group : torch.distributed.ProcessGroup, optional
        Gather the batch of all its processes.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range; in `forward`, for anything but two tensors of one shape, fewer than two samples, a
        presence that does not fit, leaves fewer, or comes with a group, or shapes that differ among its processes.

    Examples
    --------
    >>> import torch, mibfast
    >>> views = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> mibfast.losses.BarlowTwinsLoss().terms([views, views.flip(1)])
    {'invariance': tensor(2.), 'redundancy': tensor(2.0000)}
    """

    def __init__(
        self,
        off_diagonal_weight: float = 0.0051,
        *,
        group: dist.ProcessGroup | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.off_diagonal_weight = _check.number(type(self).__name__, "off_diagonal_weight", off_diagonal_weight, 0.0)
        self.group = group
        self.backend = backend

    def forward(self, embeddings: Embeddings, presence: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar (float64 for float64 embeddings, else float32).

        `presence` is a bool Tensor [N, M], True where sample n has modality m; None where none is missing.
        """
        terms = self.terms(embeddings, presence)
        return terms["invariance"] + self.off_diagonal_weight * terms["redundancy"]

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return `invariance` and `redundancy` (before it is multiplied by `off_diagonal_weight`)."""
        name = type(self).__name__
        _check.two_modalities(name, embeddings, presence)
        if self.group is not None:
            _check.no_presence(name, presence, "with a group, whose processes gather the same number of samples each")
        views, _ = complete_embeddings(name, embeddings, presence, normalize=False, fewest=2)
        invariance, redundancy = F.barlow_twins_terms(*views, group=self.group, backend=self.backend)
        return {"invariance": invariance, "redundancy": redundancy}

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"off_diagonal_weight={self.off_diagonal_weight:g}, gathered={self.group is not None}"
