"""Triangle areas of all pairs of anchors and samples: TRIANGLE's score."""

from __future__ import annotations

from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.volume import reference
from mibfast.ops import _volume

__all__ = ["triangle_area"]

_NAME = "triangle_area"


def triangle_area(a: Tensor, b: Tensor, c: Tensor, *, squared: bool = False, backend: str | None = None) -> Tensor:
    r"""Area of the triangle of each anchor with the other two modalities of each sample.

    .. math:: A_{ij} = \tfrac12 \sqrt{|u|^2 |v|^2 - (u \cdot v)^2}, \qquad u = a_i - b_j, \; v = a_i - c_j

    TRIANGLE (arXiv 2509.24734). Formed as half the side :math:`b_j c_j` times the distance of :math:`a_i` to its line,
    which two inner products and numbers of each sample give: no N x N' x d differences. Lower is better aligned. The
    areas of pairs (i, i), which alignment drives to zero, are formed apart, in float64. Where an area is zero its
    gradient is zero. The others' float32 counts from the origin: of embeddings ten times as far from it as from each
    other an area is right to 1e-5, of a hundred times to 1e-3. Subtract a common mean, which moves no area.

    Parameters
    ----------
    a : Tensor [N, d]
        float64, float32, bfloat16 or float16, any strides.
    b, c : Tensor [N', d]
        Of the same dtype.
    squared : bool
        Give :math:`2 A^2` instead, which the released code calls the area.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor [N, N']
        float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not match, or unequal dtypes or devices.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> a, b, c = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    >>> F.triangle_area(a, b, c), F.triangle_area(a, b, c, squared=True)
    (tensor([[6.]]), tensor([[72.]]))
    """
    for name, x, shape in (("a", a, "N d"), ("b", b, "N' d"), ("c", c, "N' d")):
        _check.tensor(_NAME, name, x, shape)
    _check.alike(_NAME, a=a, b=b, c=c)
    _check.same_dimension(_NAME, a=a, b=b, c=c)
    _check.same_shape(_NAME, b=b, c=c)
    a, b, c = _check.promoted([a, b, c])
    chosen = _backend.choose(_NAME, a.device, backend, _volume.offers(a, 2))
    kind = _volume.SQUARED_TRIANGLE if _check.boolean(_NAME, "squared", squared) else _volume.TRIANGLE
    if chosen == "reference":
        return reference.volumes(kind, a, [b, c])
    return _volumes(chosen, (a, b, c), (kind,))[0]


_volumes = _volume.volumes_operation(_NAME)
