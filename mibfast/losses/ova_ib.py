"""OVA-IB: one-vs-all alignment and minimality."""

from __future__ import annotations

from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast._check import Embeddings
from mibfast._modules import ResettableModule
from mibfast.losses.presence import partnered_embeddings


class OVAIBLoss(ResettableModule):
    r"""OVA-IB's loss of M modalities: each aligned with the span of all the others, none holding more than they do.

    .. math:: L = L_S + \beta L_M

    with :math:`L_S` the one-vs-all InfoNCE (:func:`mibfast.functional.one_vs_all_info_nce`) and :math:`L_M` the
    minimality (:func:`mibfast.functional.one_vs_all_minimality`). OVA-IB (arXiv 2605.29900), Eq. 12 and 19-20; the
    paper's settings are the defaults. It does not say whether :math:`L_M` is of normalised embeddings; here
    it is where `normalize` is, since otherwise shrinking every embedding would minimise it and leave :math:`L_S` as it
    is.

    With missing modalities (`presence`), both terms take, for each modality, the samples that have it and another one,
    and those of the others that they have; they are means over modalities of the mean over its samples, and modalities
    of too few samples are left out. What stands in the place of an embedding that is absent, or alone in its sample, is
    not used and gets a gradient of zero. The values of `presence` are read back, which breaks the graph of
    `torch.compile`: `fullgraph=True` takes none.

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
        backend: str | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.temperature = _check.positive(name, "temperature", temperature)
        self.ridge = _check.number(name, "ridge", ridge, 0.0)
        self.beta = _check.number(name, "beta", beta, 0.0)
        self.keys = _check.choice(name, "keys", keys, ("per_sample", "pairwise"))
        self.normalize = _check.boolean(name, "normalize", normalize)
        self.positive_in_denominator = _check.boolean(name, "positive_in_denominator", positive_in_denominator)
        self.backend = backend

    def forward(self, embeddings: Embeddings, presence: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar in nats (float64 for float64 embeddings, else float32).

        `presence` is a bool Tensor [N, M], True where sample n has modality m; None where none is missing.
        """
        terms = self.terms(embeddings, presence)
        if "minimality" not in terms:
            return terms["alignment"]
        return terms["alignment"] + self.beta * terms["minimality"]

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return `alignment` and, where `beta` is not 0, `minimality` (before it is multiplied by `beta`)."""
        z, _ = partnered_embeddings(type(self).__name__, embeddings, presence, self.normalize)
        alignment = F.one_vs_all_info_nce(
            z,
            self.temperature,
            self.ridge,
            keys=self.keys,
            positive_in_denominator=self.positive_in_denominator,
            presence=presence,
            backend=self.backend,
        )
        if not self.beta:
            return {"alignment": alignment}
        minimality = F.one_vs_all_minimality(z, presence=presence, backend=self.backend)
        return {"alignment": alignment, "minimality": minimality}

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return (
            f"temperature={self.temperature:g}, ridge={self.ridge:g}, beta={self.beta:g}, keys={self.keys!r}, "
            f"normalize={self.normalize}, positive_in_denominator={self.positive_in_denominator}"
        )
