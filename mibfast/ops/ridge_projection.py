"""Ridge projection of a target on a basis."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.projection import reference
from mibfast.ops._boundary import DifferentiableOperation, offers_up_to_largest_m

__all__ = ["ridge_projection"]

_NAME = "ridge_projection"


def ridge_projection(target: Tensor, basis: Tensor, ridge: float = 1e-8, *, backend: str | None = None) -> Tensor:
    r"""Project a target on the span of a basis, by ridge regression.

    .. math:: \bar z = A (A^\top A + \lambda I)^{-1} A^\top z

    where the K rows of `basis` are the columns of A. OVA-IB (arXiv 2605.29900), Eq. 11. The Gram matrix and its
    Cholesky factor are float64 for every input dtype, so nearly dependent bases project exactly. Where the rounding of
    the Gram matrix comes near `ridge` (duplicates at a large scale), `ridge` is raised, for each basis vector by
    itself, to 2^-40 of its squared norm.

    Parameters
    ----------
    target : Tensor [..., d]
    basis : Tensor [..., K, d]
        The same leading dimensions as `target`; float64, float32, bfloat16 or float16, as `target`.
    ridge : float
        :math:`\lambda \ge 0`.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor [..., d]
        Of the input's dtype.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not match, unequal dtypes or devices, or a negative ridge.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.ridge_projection(torch.tensor([3.0, 4.0]), torch.tensor([[2.0, 0.0]]), ridge=0.0)
    tensor([3., 0.])
    """
    _check.tensor(_NAME, "target", target, "... d")
    _check.tensor(_NAME, "basis", basis, "... K d")
    _check.alike(_NAME, target=target, basis=basis)
    if basis.ndim != target.ndim + 1 or basis.shape[:-2] != target.shape[:-1] or basis.shape[-1] != target.shape[-1]:
        raise ValueError(
            f"{_NAME}: basis must be [..., K, d] for a target [..., d] with the same leading dimensions, "
            f"got {_check.described(target)} and {_check.described(basis)}"
        )
    ridge = _check.number(_NAME, "ridge", ridge, 0.0)
    target, basis = _check.promoted([target, basis])
    chosen = _backend.choose(_NAME, target.device, backend, offers_up_to_largest_m("K", basis.shape[-2]))
    if chosen == "reference":
        return reference.ridge_projection(target, basis, ridge)
    return _projection(chosen, (target, basis), _Options(ridge))[0]


class _Options(NamedTuple):
    ridge: float


def _results(target: Tensor, basis: Tensor, ridge: float, backend: str) -> list[Tensor]:
    return [target.new_empty(target.shape)]


_projection = DifferentiableOperation(_NAME, "projection", "target basis", _results, options=_Options)
