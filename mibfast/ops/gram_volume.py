"""Gram volumes of all pairs of anchors and samples: GRAM's score."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.volume import reference
from mibfast.ops import _volume

__all__ = ["gram_volume"]

_NAME = "gram_volume"


def gram_volume(anchor: Tensor, others: Sequence[Tensor], *, backend: str | None = None) -> Tensor:
    r"""Volume of the parallelotope that each anchor spans with the other modalities of each sample.

    .. math:: V_{ij} = \sqrt{\det G(a_i, x_j^{(1)}, \dots, x_j^{(K)})}
        = \sqrt{\det G_j \, \Big( |a_i|^2 - \sum_k (a_i \cdot b_{jk})^2 \Big)}

    where G is the Gram matrix of its arguments, :math:`G_j` that of the others of sample j, and :math:`b_{jk}` an
    orthonormal basis of them, formed in float64. GRAM (arXiv 2412.11959); the released code forms a determinant
    a pair, in float32. Lower is better aligned; of unit embeddings it is in [0, 1], and with K = 1 the sine of their
    angle. The volumes of pairs (i, i), which alignment drives to zero, are formed apart, in float64. Where a volume is
    zero its gradient is zero; more than d vectors span none.

    Parameters
    ----------
    anchor : Tensor [N, d]
        float64, float32, bfloat16 or float16, any strides.
    others : sequence of K tensors [N', d]
        K >= 1, of the same dtype.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor [N, N']
        float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For no others, shapes that do not match, or unequal dtypes or devices.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.gram_volume(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), [torch.tensor([[2.0, 0.0]])])
    tensor([[8.],
            [4.]])
    """
    _check.tensor(_NAME, "anchor", anchor, "N d")
    vectors = _check.vectors_of_samples(_NAME, "others", others)
    _check.alike(_NAME, anchor=anchor, **{"others[0]": vectors[0]})
    _check.same_dimension(_NAME, anchor=anchor, **{"others[0]": vectors[0]})
    anchor, *vectors = _check.promoted([anchor, *vectors])
    chosen = _backend.choose(_NAME, anchor.device, backend, _volume.offers(anchor, len(vectors)))
    if chosen == "reference":
        return reference.volumes(_volume.GRAM, anchor, vectors)
    return _volumes(chosen, (anchor, *vectors), (_volume.GRAM,))[0]


_volumes = _volume.volumes_operation(_NAME)
