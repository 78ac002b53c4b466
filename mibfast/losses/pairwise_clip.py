"""CLIP over all pairs of modalities, by itself and with the pairwise information bottleneck."""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast._check import Embeddings
from mibfast._modules import ResettableModule
from mibfast.losses.presence import pairs, partnered_embeddings
from mibfast.losses.temperature import Temperature


class PairwiseCLIPLoss(ResettableModule):
    r"""The sum over all pairs of modalities of symmetric InfoNCE.

    .. math:: L = \sum_{i < j} \tfrac12 \big( \ell(z_i \to z_j) + \ell(z_j \to z_i) \big)

    With M = 2, CLIP (Radford et al. 2021). The baseline of OVA-IB (arXiv 2605.29900), Eq. 1-3, is
    `temperature=0.01, positive_in_denominator=False`.

    With missing modalities (`presence`), each pair is over the samples that have both, and pairs of fewer than two
    samples (one, with the positive in the denominator) are left out of the sum. What stands in the place of an absent
    embedding is not used and gets a gradient of zero. The values of `presence` are read back, which breaks the graph of
    `torch.compile`: `fullgraph=True` takes none.

    Parameters
    ----------
    temperature : float
        Positive; the initial value where it is learned.
    learnable_temperature : bool
        Learn it, as its logarithm; one for all pairs.
    positive_in_denominator : bool
    normalize : bool
        L2-normalise embeddings first.
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

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temperature: bool = False,
        positive_in_denominator: bool = True,
        *,
        normalize: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.temperature = Temperature(name, temperature, learnable_temperature)
        self.positive_in_denominator = _check.boolean(name, "positive_in_denominator", positive_in_denominator)
        self.normalize = _check.boolean(name, "normalize", normalize)
        self.backend = backend

    def forward(self, embeddings: Embeddings, presence: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar in nats (float64 for float64 embeddings, else float32).

        `presence` is a bool Tensor [N, M], True where sample n has modality m; None where none is missing.
        """
        first, *rest = self.terms(embeddings, presence).values()
        return sum(rest, start=first)

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return each pair's loss, under the modalities' names joined by a hyphen."""
        z, names = partnered_embeddings(type(self).__name__, embeddings, presence, self.normalize)
        return self._pairs(z, names, presence)

    def _pairs(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        temperature = self.temperature()
        fewest = 1 if self.positive_in_denominator else 2
        return {
            pair: F.info_nce(
                first,
                second,
                temperature,
                positive_in_denominator=self.positive_in_denominator,
                symmetric=True,
                backend=self.backend,
            )
            for pair, first, second in pairs(type(self).__name__, z, names, presence, fewest)
        }

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"positive_in_denominator={self.positive_in_denominator}, normalize={self.normalize}"


class PairwiseCLIPIBLoss(PairwiseCLIPLoss):
    r"""Pairwise CLIP plus the pairwise information bottleneck.

    .. math:: L = L_\mathrm{CLIP} + \beta \sum_{i < j} \frac1N \sum_n \| z_{i,n} - z_{j,n} \|^2

    The second baseline of OVA-IB (arXiv 2605.29900), Eq. 4-5, after Almudevar et al. (2025), with
    `temperature=0.01, positive_in_denominator=False`. The sum over pairs is :math:`(M-1)^2` times
    :func:`mibfast.functional.one_vs_all_minimality`, and computed as that.

    With missing modalities, as :class:`PairwiseCLIPLoss`; each pair's mean distance is over the samples that have both,
    one at least.

    Parameters
    ----------
    temperature, learnable_temperature, positive_in_denominator, normalize, backend
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
        backend: str | None = None,
    ) -> None:
        super().__init__(
            temperature, learnable_temperature, positive_in_denominator, normalize=normalize, backend=backend
        )
        self.beta = _check.number(type(self).__name__, "beta", beta, 0.0)

    def forward(self, embeddings: Embeddings, presence: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar in nats (float64 for float64 embeddings, else float32).

        `presence` is a bool Tensor [N, M], True where sample n has modality m; None where none is missing.
        """
        terms = self.terms(embeddings, presence)
        minimality = terms.pop("minimality")
        first, *rest = terms.values()
        return sum(rest, start=first) + self.beta * minimality

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return each pair's loss, and `minimality`, the sum of squared distances before it is multiplied by `beta`."""
        name = type(self).__name__
        z, names = partnered_embeddings(name, embeddings, presence, self.normalize)
        if presence is None:
            minimality = F.one_vs_all_minimality(z, backend=self.backend) * (len(z) - 1) ** 2
            return {**self._pairs(z, names, presence), "minimality": minimality}
        alignment = self._pairs(z, names, presence)
        distances = [
            F.one_vs_all_minimality([first, second], backend=self.backend)
            for _, first, second in pairs(name, z, names, presence)
        ]
        return {**alignment, "minimality": torch.stack(distances).sum()}

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"{super().extra_repr()}, beta={self.beta:g}"
