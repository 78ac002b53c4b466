"""The terms that fusions add to a task's loss, as functions of representations and of predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast import _check
from mibfast._precision import at_least_float32, rescaled

__all__ = [
    "central_moment_discrepancy",
    "difference",
    "reconstruction",
    "self_distillation",
]


def _pair(operation: str, **given: Tensor) -> list[Tensor]:
    """Check two tensors [N, d] of one shape, and return them in float32 at least."""
    for argument, x in given.items():
        _check.tensor(operation, argument, x, "N d")
    _check.same_shape(operation, **given)
    _check.alike(operation, **given)
    return [at_least_float32(x) for x in _check.promoted(list(given.values()))]


def difference(a: Tensor, b: Tensor) -> Tensor:
    r"""How much two sets of representations of the same samples overlap: MISA's difference loss.

    .. math:: \frac{1}{d^2} \Vert A^\top B \Vert_F^2

    with the rows of A and B centred over the batch, then divided by their length plus 1e-6, through which no gradient
    flows. Hazarika et al. (ACM MM 2020, arXiv 2005.03545), as released: the paper has the sum, not the mean, of the d^2
    squares. It grows as (N / d)^2: where batches are much larger than d it outweighs a task and representations
    collapse.

    Parameters
    ----------
    a, b : Tensor [N, d]
        float64, float32, bfloat16 or float16.

    Returns
    -------
    Tensor
        A scalar, without a unit; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For unequal shapes, dtypes or devices.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.fusion import losses
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> losses.difference(x, x)
    tensor(1.0000)
    >>> y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    >>> losses.difference(y, y[[0, 2, 1, 3]]) < 1e-9  # uncorrelated
    tensor(True)
    """
    a, b = (x - x.mean(0) for x in _pair("difference", a=a, b=b))
    # With rows and constant alike scaled, squares stay in range.
    (a, power_a), (b, power_b) = rescaled(a), rescaled(b)
    a, b = (x / (x.detach().norm(dim=1, keepdim=True) + 1e-6 * power) for x, power in ((a, power_a), (b, power_b)))
    with torch.autocast(a.device.type, enabled=False):
        return (a.mT @ b).square().mean()


def central_moment_discrepancy(a: Tensor, b: Tensor, moments: int = 5) -> Tensor:
    r"""How far two distributions in [0, 1]^d are apart by their means and central moments: MISA's similarity loss.

    .. math:: \Vert m_1(a) - m_1(b) \Vert + \sum_{k=2}^{K} \Vert c_k(a) - c_k(b) \Vert

    Zellinger et al. (ICLR 2017, arXiv 1702.08811), on an interval of length one; Hazarika et al. (ACM MM 2020, arXiv
    2005.03545). Where moments are equal the gradient is zero, not NaN.

    Parameters
    ----------
    a, b : Tensor [N, d]
        Samples, behind a sigmoid; float64, float32, bfloat16 or float16.
    moments : int
        K, at least 1.

    Returns
    -------
    Tensor
        A scalar, without a unit; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For unequal shapes, dtypes or devices, or moments < 1.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.fusion import losses
    >>> losses.central_moment_discrepancy(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [0.5]]), moments=2)
    tensor(0.2500)
    """
    _check.count("central_moment_discrepancy", "moments", moments)
    a, b = _pair("central_moment_discrepancy", a=a, b=b)
    total: Tensor = (a.mean(0) - b.mean(0)).norm()
    a, b = a - a.mean(0), b - b.mean(0)
    power_a, power_b = a, b
    for _ in range(moments - 1):
        power_a, power_b = power_a * a, power_b * b
        total = total + (power_a.mean(0) - power_b.mean(0)).norm()
    return total


def reconstruction(x: Tensor, reconstructed: Tensor, *, scale_invariant: bool = False) -> Tensor:
    r"""The mean squared error of a reconstruction, without that of its mean where it is scale-invariant.

    .. math:: \frac{1}{k} \Vert x - \hat x \Vert^2 \quad \Big( - \frac{1}{k^2} \big( \sum (x - \hat x) \big)^2 \Big)

    over all k = N d numbers. Bousmalis et al. (NeurIPS 2016, arXiv 1608.06019), over the batch at once as MISA
    releases it, which minimises the first term alone.

    Parameters
    ----------
    x, reconstructed : Tensor [N, d]
        float64, float32, bfloat16 or float16.
    scale_invariant : bool
        Forgive a difference that all numbers share.

    Returns
    -------
    Tensor
        A scalar; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For unequal shapes, dtypes or devices.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.fusion import losses
    >>> x = torch.zeros(2, 3)
    >>> losses.reconstruction(x, x + 2), losses.reconstruction(x, x + 2, scale_invariant=True)
    (tensor(4.), tensor(0.))
    """
    x, reconstructed = _pair("reconstruction", x=x, reconstructed=reconstructed)
    error = reconstructed - x
    if _check.boolean("reconstruction", "scale_invariant", scale_invariant):
        return (error - error.mean()).square().mean()
    return error.square().mean()


def self_distillation(representation: Tensor, observation: Tensor, *, released: bool = False) -> Tensor:
    r"""What the predictions of a bottleneck lose against those of what it is made of: DMIB's sufficiency loss.

    .. math:: \frac1N \sum_n \mathrm{KL}\big( p(y | z_n) \,\Vert\, p(y | v_n) \big)

    Variational self-distillation (Tian et al., CVPR 2021); Fang et al. (WACV 2024). No gradient flows into the
    observation.

    Parameters
    ----------
    representation, observation : Tensor [N, classes]
        Logits that are made of the bottleneck z, and of its input v; float64, float32, bfloat16 or float16.
    released : bool
        What the released code computes: `kl_div` takes the observation's probabilities as if they were logarithms, and
        the mean is over N and the classes. It may be negative.

    Returns
    -------
    Tensor
        A scalar in nats; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For unequal shapes, dtypes or devices.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.fusion import losses
    >>> logits = torch.tensor([[0.0, 0.0]])
    >>> losses.self_distillation(logits, logits)
    tensor(0.)
    >>> losses.self_distillation(logits, logits, released=True)
    tensor(-0.5966)
    """
    z, v = _pair("self_distillation", representation=representation, observation=observation)
    z, v = z.log_softmax(1), v.detach().log_softmax(1)
    if _check.boolean("self_distillation", "released", released):
        return (z.exp() * (z - v.exp())).mean()
    return (z.exp() * (z - v)).sum(1).mean()
