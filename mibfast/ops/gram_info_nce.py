"""GRAM's contrastive loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mibfast import _backend, _check
from mibfast.ops import _volume

__all__ = ["gram_info_nce"]

_NAME = "gram_info_nce"


def gram_info_nce(
    anchor: Tensor,
    others: Sequence[Tensor],
    temperature: float | Tensor = 0.07,
    *,
    label_smoothing: float = 0.1,
    backend: str | None = None,
) -> Tensor:
    r"""Two-way InfoNCE of an anchor modality and all others together, with minus their Gram volume as the score.

    .. math:: L = \tfrac12 \big( \mathrm{CE}(-V / \tau) + \mathrm{CE}(-V^\top / \tau) \big)

    with :math:`V_{ij}` the volume that anchor i spans with the others of sample j (:func:`gram_volume`) and CE the
    cross-entropy of picking i = j, smoothed, mean over samples. GRAM (arXiv 2412.11959), as released, but for the
    gradient at a volume of zero, which is zero here and NaN there. No N x N matrix is stored. Embeddings are taken
    as they are: normalise them, as :class:`mibfast.losses.GRAMLoss` does.

    Parameters
    ----------
    anchor : Tensor [N, d]
        float64, float32, bfloat16 or float16, any strides.
    others : sequence of K tensors [N, d]
        K >= 1, of the same dtype.
    temperature : float or 0-d Tensor
        :math:`\tau > 0`; a tensor may need a gradient, and is not read back: :math:`\tau \le 0` there gives NaN.
    label_smoothing : float
        In [0, 1], as in `torch.nn.functional.cross_entropy`.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor
        A scalar in nats; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For no others, shapes that do not match, unequal dtypes or devices, a number for the temperature that is not
        positive, or a label smoothing outside [0, 1].

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.gram_info_nce(torch.eye(3), [torch.eye(3)], temperature=1.0, label_smoothing=0.0)
    tensor(0.5514)
    """
    _check.tensor(_NAME, "anchor", anchor, "N d")
    vectors = _check.vectors_of_samples(_NAME, "others", others)
    _check.alike(_NAME, anchor=anchor, **{"others[0]": vectors[0]})
    _check.same_shape(_NAME, anchor=anchor, **{"others[0]": vectors[0]})
    temperature = _check.temperature(_NAME, temperature, anchor.device)
    smoothing = _check.smoothing(_NAME, label_smoothing, True)
    z = _check.promoted([anchor, *vectors])
    chosen = _backend.choose(_NAME, anchor.device, backend, _volume.offers(anchor, len(vectors)))
    return _volume.info_nce(_loss, chosen, _volume.GRAM, z, temperature, smoothing)


_loss = _volume.loss_operation(_NAME)
