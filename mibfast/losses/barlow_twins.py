"""Barlow Twins: redundancy reduction between two views."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast._check import Embeddings
from mibfast.losses._loss import EmbeddingsLoss


class BarlowTwinsLoss(EmbeddingsLoss):
    r"""Barlow Twins' loss of two views: each feature alike in both, and uncorrelated with all others.

    .. math:: L = \sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2

    with C the correlation of the features of one view with those of the other
    (:func:`mibfast.functional.barlow_twins`); the terms are `invariance` and `redundancy`. Zbontar et al. (arXiv
    2103.03230). Features are standardised over the batch inside the loss, so embeddings need no normalisation. It takes
    at least two samples and no negatives, and is a statistic of the batch, not of its samples, so that there is no
    `reduction`.

    With missing views, the loss is over the samples that have both, of which it needs at least two. There can be no
    `group` then, whose processes must gather the same number of samples each.

    Parameters
    ----------
    off_diagonal_weight : float
        The weight :math:`\lambda \ge 0` of the redundancy.
    group : torch.distributed.ProcessGroup, optional
        Take the loss of the batches of all its processes together.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range; in `forward`, for anything but two tensors of one shape, fewer than two samples, a
        presence that does not fit, leaves fewer or comes with a group, or shapes that differ among its processes.

    Examples
    --------
    >>> import torch, mibfast
    >>> views = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> mibfast.losses.BarlowTwinsLoss().terms([views, views.flip(1)])
    {'invariance': tensor(2.), 'redundancy': tensor(2.0000)}
    """

    takes_complete_samples = True
    _fewest = 2

    def __init__(
        self,
        off_diagonal_weight: float = 0.0051,
        *,
        group: dist.ProcessGroup | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(backend=backend)
        self.off_diagonal_weight = _check.number(self._name, "off_diagonal_weight", off_diagonal_weight, 0.0)
        self.group = group

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return `invariance` and `redundancy`, before it is weighted."""
        if self.group is not None:
            _check.no_presence(
                self._name, presence, "with a group, whose processes gather the same number of samples each"
            )
        return super().terms(embeddings, presence)

    def _terms(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        a, b = _check.two_modalities(self._name, z)
        invariance, redundancy = F.barlow_twins_terms(a, b, group=self.group, backend=self.backend)
        return {"invariance": invariance, "redundancy": redundancy}

    def _weights(self) -> dict[str, float]:
        return {"redundancy": self.off_diagonal_weight}
