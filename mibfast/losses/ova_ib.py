"""OVA-IB: one-vs-all alignment and minimality."""

from __future__ import annotations

from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast.losses._loss import EmbeddingsLoss


class OVAIBLoss(EmbeddingsLoss):
    r"""OVA-IB's loss of M modalities: each aligned with the span of all the others, none holding more than they do.

    .. math:: L = L_S + \beta L_M

    with :math:`L_S`, the term `alignment`, the one-vs-all InfoNCE (:func:`mibfast.functional.one_vs_all_info_nce`) and
    :math:`L_M`, the term `minimality`, its :func:`mibfast.functional.one_vs_all_minimality`. OVA-IB (arXiv 2605.29900),
    Eq. 12 and 19-20; the defaults are the paper's settings. The paper does not say whether :math:`L_M` takes normalised
    embeddings. With `normalize=True` it does here: otherwise shrinking all embeddings would minimise :math:`L_M` and
    leave :math:`L_S` unchanged.

    With missing modalities, both terms take, for each modality, the samples that have it and another one, and those of
    the others that they have. "mean" is over modalities of the mean over their samples; modalities with too few samples
    are left out of a term, also under "sum" and "none".

    Parameters
    ----------
    temperature : float
        Positive.
    ridge : float
        :math:`\lambda \ge 0` of the projection.
    beta : float
        Weight of the minimality, >= 0. At 0 it is not computed.
    keys : {"per_sample", "pairwise"}
        See :func:`mibfast.functional.one_vs_all_info_nce`.
    normalize : bool
        L2-normalise embeddings first. :math:`L_S` does not depend on it but for the ridge.
    positive_in_denominator : bool
        False in the paper.
    reduction : {"mean", "sum", "none"}
        "none" gives [M, N], the loss of each modality of each sample.
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
    >>> loss = mibfast.losses.OVAIBLoss(temperature=1.0)
    >>> views = [torch.eye(4, requires_grad=True) for _ in range(3)]
    >>> value = loss(views)
    >>> value.backward()
    >>> {name: round(term.item(), 4) for name, term in loss.terms(views).items()}
    {'alignment': 0.0986, 'minimality': 0.0}
    >>> presence = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0]]).bool()
    >>> {name: round(term.item(), 4) for name, term in loss.terms(views, presence).items()}
    {'alignment': -0.769, 'minimality': 0.0}
    """

    def __init__(
        self,
        temperature: float = 0.01,
        ridge: float = 1e-8,
        beta: float = 1.0,
        keys: str = "per_sample",
        normalize: bool = True,
        *,
        positive_in_denominator: bool = False,
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__(normalize=normalize, reduction=reduction, backend=backend)
        self.temperature = _check.positive(self._name, "temperature", temperature)
        self.ridge = _check.number(self._name, "ridge", ridge, 0.0)
        self.beta = _check.number(self._name, "beta", beta, 0.0)
        self.keys = _check.choice(self._name, "keys", keys, ("per_sample", "pairwise"))
        self.positive_in_denominator = _check.boolean(self._name, "positive_in_denominator", positive_in_denominator)

    def _terms(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        alignment = F.one_vs_all_info_nce(
            z,
            self.temperature,
            self.ridge,
            keys=self.keys,
            positive_in_denominator=self.positive_in_denominator,
            reduction=self.reduction,
            presence=presence,
            backend=self.backend,
        )
        if not self.beta:
            return {"alignment": alignment}
        minimality = F.one_vs_all_minimality(z, reduction=self.reduction, presence=presence, backend=self.backend)
        return {"alignment": alignment, "minimality": minimality}

    def _weights(self) -> dict[str, float]:
        return {"minimality": self.beta}
