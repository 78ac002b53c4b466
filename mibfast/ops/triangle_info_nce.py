"""TRIANGLE's contrastive loss."""

from __future__ import annotations

from torch import Tensor

from mibfast import _backend, _check
from mibfast.ops import _volume

__all__ = ["triangle_info_nce"]

_NAME = "triangle_info_nce"


def triangle_info_nce(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    label_smoothing: float = 0.1,
    squared: bool = True,
    backend: str | None = None,
) -> Tensor:
    r"""Two-way InfoNCE of an anchor modality and two others together, with minus their triangle's area as the score.

    .. math:: L = \tfrac12 \big( \mathrm{CE}(-S / \tau) + \mathrm{CE}(-S^\top / \tau) \big), \qquad S = 2 A^2

    or S = A, the area of the triangle of :math:`a_i, b_j, c_j` (:func:`triangle_area`), with CE the cross-entropy of
    picking i = j, smoothed, mean over samples. TRIANGLE (arXiv 2509.24734); `squared=True` is what its released code
    computes, `squared=False` what the paper writes. No N x N matrix is stored. Embeddings are taken as they are:
    normalise them, as :class:`mibfast.losses.TRIANGLELoss` does.

    Parameters
    ----------
    a, b, c : Tensor [N, d]
        The anchor and the others; float64, float32, bfloat16 or float16, any strides, of one dtype.
    temperature : float or 0-d Tensor
        :math:`\tau > 0`; a tensor may need a gradient, and is not read back: :math:`\tau \le 0` there gives NaN.
    label_smoothing : float
        In [0, 1], as in `torch.nn.functional.cross_entropy`.
    squared : bool
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor
        A scalar in nats; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not match, unequal dtypes or devices, a number for the temperature that is not positive, or a
        label smoothing outside [0, 1].

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.triangle_info_nce(torch.eye(3), torch.eye(3), -torch.eye(3), temperature=1.0, label_smoothing=0.0)
    tensor(0.2395)
    """
    for name, x in (("a", a), ("b", b), ("c", c)):
        _check.tensor(_NAME, name, x, "N d")
    _check.alike(_NAME, a=a, b=b, c=c)
    _check.same_shape(_NAME, a=a, b=b, c=c)
    temperature = _check.temperature(_NAME, temperature, a.device)
    smoothing = _check.smoothing(_NAME, label_smoothing, True)
    z = _check.promoted([a, b, c])
    chosen = _backend.choose(_NAME, a.device, backend, _volume.offers(a, 2))
    kind = _volume.SQUARED_TRIANGLE if _check.boolean(_NAME, "squared", squared) else _volume.TRIANGLE
    return _volume.info_nce(_loss, chosen, kind, z, temperature, smoothing)


_loss = _volume.loss_operation(_NAME)
