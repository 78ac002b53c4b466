"""Barlow Twins' redundancy reduction."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.cross_correlation import reference
from mibfast.ops._boundary import DifferentiableOperation, accumulation_dtype, forbid_double_backward

__all__ = ["barlow_twins", "barlow_twins_terms"]

_NAME = "barlow_twins"
_OFFERS: dict[str, str | None] = {"cpu": None, "triton": None}


def barlow_twins(
    a: Tensor,
    b: Tensor,
    off_diagonal_weight: float = 0.0051,
    *,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Barlow Twins: the cross-correlation of two views, drawn to the identity.

    .. math:: L = \sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2, \qquad C = \frac1N Z_a^\top Z_b

    with Z the embeddings, each column standardised over the batch: biased variance, 1e-5 added to it, nothing learned.
    Zbontar et al. (arXiv 2103.03230), Eq. 1-2, as released. Where N < d no d x d matrix is formed: 4 GEMMs of
    :math:`2 N^2 d` FLOPs with gradients, in place of 3 of :math:`2 N d^2`.

    Parameters
    ----------
    a, b : Tensor [N, d]
        Of one shape; float64, float32, bfloat16 or float16.
    off_diagonal_weight : float
        :math:`\lambda \ge 0`.
    group : torch.distributed.ProcessGroup, optional
        Gather the batch of all its processes (`torch.distributed.group.WORLD` for all there are), of the same N each.
        The loss is then that of the whole batch, the same on each, and gradients are such that their mean over
        processes, which DistributedDataParallel takes, is the gradient of a single process with the whole batch.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor
        A scalar; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For unequal shapes, dtypes or devices, a negative weight, a batch of one sample, over all processes of a group,
        or a group that is none; on all its processes, for unequal shapes or dtypes among them.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> views = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> F.barlow_twins(views, views.flip(1), off_diagonal_weight=0.5)
    tensor(3.0000)
    """
    weight = _check.number(_NAME, "off_diagonal_weight", off_diagonal_weight, 0.0)
    invariance, redundancy = barlow_twins_terms(a, b, group=group, backend=backend)
    return invariance + weight * redundancy


def barlow_twins_terms(
    a: Tensor, b: Tensor, *, group: dist.ProcessGroup | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return the two terms of :func:`barlow_twins`, before any weight: the invariance, and the redundancy.

    .. math:: \sum_i (C_{ii} - 1)^2, \qquad \sum_{i \ne j} C_{ij}^2

    Parameters
    ----------
    a, b, group, backend
        As in :func:`barlow_twins`.

    Returns
    -------
    tuple of Tensor
        Scalars; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        As :func:`barlow_twins`.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> views = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> F.barlow_twins_terms(views, views.flip(1))
    (tensor(2.), tensor(2.0000))
    """
    _check.tensor(_NAME, "a", a, "N d")
    _check.tensor(_NAME, "b", b, "N d")
    _check.same_shape(_NAME, a=a, b=b)
    _check.alike(_NAME, a=a, b=b)
    a, b = _check.promoted([a, b])
    if group is None:
        _check.standardised(_NAME, a.shape[0])
    else:
        _check.process_group(_NAME, group)
        _check.standardised(_NAME, _check.alike_in_group(_NAME, a, group))
        both: Tensor = _GatherRows.apply(torch.cat([a, b], 1), group)  # type: ignore[no-untyped-call]
        a, b = both[:, : a.shape[1]], both[:, a.shape[1] :]
    chosen = _backend.choose(_NAME, a.device, backend, _OFFERS)
    if chosen == "reference":
        dtype = accumulation_dtype(a.dtype)
        values = reference.barlow_twins(a.to(dtype), b.to(dtype))
    else:
        (values,) = _terms(chosen, (a, b))
    # Not by `unbind`, whose views cannot be changed in place.
    return values[0], values[1]


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, in the order of ranks; each gets back the sum of all processes' gradients of its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        gathered = rows.new_empty(dist.get_world_size(group) * rows.shape[0], rows.shape[1])
        dist.all_gather_into_tensor(gathered, rows.contiguous(), group)
        return gathered

    @staticmethod
    @forbid_double_backward(f"{_NAME} over a group")
    def backward(ctx: Any, gradient: Tensor) -> Any:
        # The sum in float32 at least: shorter dtypes would round it once a process.
        wide = gradient.to(accumulation_dtype(gradient.dtype)).contiguous()
        own = wide.new_empty(wide.shape[0] // dist.get_world_size(ctx.group), wide.shape[1])
        dist.reduce_scatter_tensor(own, wide, group=ctx.group)
        return own.to(gradient.dtype), None


def _results(a: Tensor, b: Tensor, backend: str) -> list[Tensor]:
    """The two terms, and the views standardised, what standardised them and their correlations, for the backward."""
    dtype, (n, d) = accumulation_dtype(a.dtype), a.shape
    side = min(n, d)
    # Tensor cores multiply what is kept, in the dtype of the views.
    kept = a.dtype if backend == "triton" else dtype
    return [
        a.new_empty(2, dtype=dtype),
        a.new_empty(n, d, dtype=kept),
        a.new_empty(n, d, dtype=kept),
        a.new_empty(2, d, dtype=torch.float64),
        a.new_empty(d, dtype=torch.float64),
        a.new_empty(side, side, dtype=kept),
        a.new_empty((side, side) if n < d else (0,), dtype=kept),
    ]


_terms = DifferentiableOperation(_NAME, "cross_correlation", "a b", _results, keeps_operands=False)
