"""CLIP over all pairs of modalities, by itself and with the pairwise information bottleneck."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast.losses._learned import Temperature
from mibfast.losses._loss import EmbeddingsLoss
from mibfast.losses._presence import over_pairs


class PairwiseCLIPLoss(EmbeddingsLoss):
    r"""The sum over all pairs of modalities of symmetric InfoNCE.

    .. math:: L = \sum_{i < j} \tfrac12 \big( \ell(z_i \to z_j) + \ell(z_j \to z_i) \big)

    With M = 2, CLIP (Radford et al. 2021). The baseline of OVA-IB (arXiv 2605.29900), Eq. 1-3, is
    `temperature=0.01, positive_in_denominator=False`. There is a term for each pair, named by both modalities with a
    hyphen between them.

    With missing modalities, each pair's loss is over the samples that have both. Pairs with no such sample, or only one
    where the positive is left out of the denominator, are left out of the sum.

    Parameters
    ----------
    temperature : float
        Positive; the initial value where it is learned.
    learnable_temperature : bool
        Learn it, as its logarithm; one for all pairs.
    positive_in_denominator : bool
    normalize : bool
        L2-normalise embeddings first.
    reduction : {"mean", "sum", "none"}
        Of each pair's loss over samples; pairs are summed in any case. "none" gives [N].
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range; in `forward`, for embeddings or a presence that do not fit together, or a presence
        that leaves nothing to take the loss of.

    Examples
    --------
    >>> import torch, mibfast
    >>> loss = mibfast.losses.PairwiseCLIPLoss(temperature=1.0)
    >>> views = {"image": torch.eye(3), "text": torch.eye(3), "audio": torch.eye(3)}
    >>> {name: round(term.item(), 4) for name, term in loss.terms(views).items()}
    {'image-text': 0.5514, 'image-audio': 0.5514, 'text-audio': 0.5514}
    """

    normalizes_inside = True

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temperature: bool = False,
        positive_in_denominator: bool = True,
        *,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__(normalize=normalize, reduction=reduction, backend=backend)
        self.temperature = Temperature(self._name, temperature, learnable_temperature)
        self.positive_in_denominator = _check.boolean(self._name, "positive_in_denominator", positive_in_denominator)

    def _terms(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        loss = partial(
            F.info_nce,
            temperature=self.temperature(),
            normalize=self.normalize,
            positive_in_denominator=self.positive_in_denominator,
            symmetric=True,
            reduction=self.reduction,
            backend=self.backend,
        )
        return over_pairs(self._name, loss, z, names, presence, self._fewest)


class PairwiseCLIPIBLoss(PairwiseCLIPLoss):
    r"""Pairwise CLIP plus the pairwise information bottleneck.

    .. math:: L = L_\mathrm{CLIP} + \beta \sum_{i < j} \frac1N \sum_n \| z_{i,n} - z_{j,n} \|^2

    The second baseline of OVA-IB (arXiv 2605.29900), Eq. 4-5, after Almudevar et al. (2025), is
    `temperature=0.01, positive_in_denominator=False`. The sum of distances is the term `minimality`, beside those of
    :class:`PairwiseCLIPLoss`. It is :math:`(M-1)^2` times :func:`mibfast.functional.one_vs_all_minimality`, and
    computed as that.

    With missing modalities, as :class:`PairwiseCLIPLoss`; the distances of a pair are those of all samples that have
    both, be there only one.

    Parameters
    ----------
    temperature, learnable_temperature, positive_in_denominator, normalize, reduction, backend
        As in :class:`PairwiseCLIPLoss`.
    beta : float
        Weight of the squared distances, >= 0.

    Raises
    ------
    TypeError, ValueError
        As :class:`PairwiseCLIPLoss`, and for a negative beta.

    Examples
    --------
    >>> import torch, mibfast
    >>> loss = mibfast.losses.PairwiseCLIPIBLoss(beta=0.5)
    >>> loss.terms([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])])["minimality"]
    tensor(2.)
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temperature: bool = False,
        positive_in_denominator: bool = True,
        *,
        beta: float = 1.0,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            temperature,
            learnable_temperature,
            positive_in_denominator,
            normalize=normalize,
            reduction=reduction,
            backend=backend,
        )
        self.beta = _check.number(self._name, "beta", beta, 0.0)

    def _terms(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        alignment = super()._terms(z, names, presence)
        z = self._normalized(z)
        if presence is None:
            return {**alignment, "minimality": self._distance(*z)}
        distances = over_pairs(self._name, self._distance, z, names, presence)
        return {**alignment, "minimality": torch.stack(list(distances.values())).sum(0)}

    def _weights(self) -> dict[str, float]:
        return {"minimality": self.beta}

    def _distance(self, *z: Tensor) -> Tensor:
        """Return the squared distances of modalities from each other, summed over pairs."""
        reduction = "none" if self.reduction == "none" else "mean"
        distance = (len(z) - 1) ** 2 * F.one_vs_all_minimality(z, reduction=reduction, backend=self.backend)
        if reduction == "none":
            return distance.mean(0)
        return distance * len(z[0]) if self.reduction == "sum" else distance
