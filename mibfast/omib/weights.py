"""The weights of the modalities' divergences, from what their task-relevance branches still know beyond the fusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mibfast import _check
from mibfast.nn.fusion.tasks import AnomalyDetection, Classification, Regression, Task

_NAME = "modality_weights"
TASKS: Mapping[str, Callable[[int], Task]] = {
    "classification": Classification,
    "regression": Regression,
    "anomaly-detection": AnomalyDetection,
}
RATIOS = ("ratio_of_means", "mean_of_ratios")


@torch.no_grad()
def modality_weights(
    logits_by_modality: Sequence[Tensor] | Mapping[str, Tensor],
    fused_logits: Tensor,
    *,
    task: str | Task = "classification",
    ratio: str = "ratio_of_means",
) -> Tensor:
    r"""Return the weights r_1 .. r_{M-1} of the divergences of modalities 2 .. M (OMIB, Eq. 11); the first has 1.

    .. math:: r_{k-1} = 1 - \tanh(\ln \rho_k) = \frac{2}{1 + \rho_k^2}, \qquad
              \rho_k = \frac{\frac1N \sum_n KL(p(\hat y_k^n) \| p(\hat y^n))}
                            {\frac1N \sum_n KL(p(\hat y_1^n) \| p(\hat y^n))}

    A modality whose branch says more beyond the fused prediction than the first one's (rho > 1) has more left to give
    and is compressed less (r < 1). The first modality is the reference of all, so their order matters.

    Parameters
    ----------
    logits_by_modality : sequence of M >= 2 tensors [N, outputs], or mapping from a modality's name to them
        The branches' predictions; for classification logits.
    fused_logits : Tensor [N, outputs]
        The fused prediction.
    task : {"classification", "regression", "anomaly-detection"} or Task
        Gives the divergence: the categorical KL, or half the squared distance, the KL of Gaussians of one variance,
        which cancels. The paper has the first only.
    ratio : {"ratio_of_means", "mean_of_ratios"}
        Equation 11 prints the mean over samples of their ratios, which one sample with a divergence near 0 can decide
        alone; the proof of proposition 5.2 gives the ratio of the means, the default.

    Returns
    -------
    Tensor [M - 1]
        In [0, 2], without a gradient; float64 for float64 predictions, else float32. 1 where both divergences are 0,
        and no NaN for finite predictions.

    Raises
    ------
    TypeError, ValueError
        For fewer than two modalities, predictions of unequal shapes, dtypes or devices, or unknown names.

    Examples
    --------
    >>> import torch
    >>> from mibfast import omib
    >>> fused = torch.zeros(4, 2)
    >>> first, second = torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    >>> omib.modality_weights([first, second], fused)
    tensor([0.2055])
    >>> omib.modality_weights([first, first], fused)
    tensor([1.])
    """
    _check.choice(_NAME, "ratio", ratio, RATIOS)
    predictions, fused = _predictions(logits_by_modality, fused_logits)
    if not isinstance(task, Task):
        task = TASKS[_check.choice(_NAME, "task", task, tuple(TASKS))](fused.shape[1])
    # In float64 nothing that is finite in float32 overflows, and small divergences keep their digits.
    largest = torch.finfo(torch.float64).max
    # All modalities at once: operations on a few numbers a sample cost what their calls cost.
    m, n = len(predictions), fused.shape[0]
    reference = fused.double().expand(m, -1, -1).flatten(0, 1)
    divergences = task.divergence(torch.cat(predictions).double(), reference).clamp(0.0, largest).view(m, n)
    if ratio == "ratio_of_means":
        # Divided first: a sum may overflow where the mean does not.
        means = (divergences / divergences.shape[1]).sum(1).clamp(max=largest)
        weights = _weights(means[0], means[1:])
    else:
        first, others = divergences[0], divergences[1:]
        # 0 / 0 is a modality that knows as much as the first.
        ratios = torch.where((first == 0) & (others == 0), 1.0, others / first)
        weights = 2 / (1 + ratios.mean(1).square())
    return weights if fused.dtype == torch.float64 else weights.float()


def _weights(first: Tensor, others: Tensor) -> Tensor:
    """Return 2 / (1 + (others / first)^2), and 1 for two zeros, without overflow."""
    largest = torch.maximum(first, others)
    scale = torch.where(largest == 0, 1.0, largest)
    a, b = (first / scale).square(), (others / scale).square()
    return torch.where(largest == 0, 1.0, 2 * a / (a + b))


def _predictions(logits_by_modality: Any, fused: Any) -> tuple[list[Tensor], Tensor]:
    if isinstance(logits_by_modality, Mapping):
        given = {f"logits_by_modality[{name!r}]": x for name, x in logits_by_modality.items()}
    elif isinstance(logits_by_modality, Sequence) and not isinstance(logits_by_modality, str):
        given = {f"logits_by_modality[{k}]": x for k, x in enumerate(logits_by_modality)}
    else:
        raise TypeError(
            f"{_NAME}: logits_by_modality must be a sequence of M tensors [N, outputs] or a mapping from a modality's "
            f"name to them, got {_check.described(logits_by_modality)}"
        )
    if len(given) < 2:
        raise ValueError(f"{_NAME}: logits_by_modality must hold at least 2 modalities, got {len(given)}")
    _check.tensor(_NAME, "fused_logits", fused, "N outputs")
    for argument, x in given.items():
        _check.tensor(_NAME, argument, x, "N outputs")
        _check.same_shape(_NAME, fused_logits=fused, **{argument: x})
        _check.alike(_NAME, fused_logits=fused, **{argument: x})
    return list(given.values()), fused
