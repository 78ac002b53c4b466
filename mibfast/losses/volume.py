"""GRAM and TRIANGLE: all modalities of a sample aligned at once, by the volume or the area that they span."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast._check import Embeddings
from mibfast._modules import ResettableModule
from mibfast.losses.presence import complete_embeddings
from mibfast.losses.temperature import Temperature


class _AnchoredLoss(ResettableModule):
    """A loss of one modality, the anchor, against all others together; or the mean over all anchors."""

    def __init__(
        self,
        temperature: float,
        learnable_temperature: bool,
        anchor: int | str | None,
        label_smoothing: float,
        normalize: bool,
        backend: str | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.temperature = Temperature(name, temperature, learnable_temperature)
        self.anchor = _check.anchor(name, anchor)
        self.label_smoothing = _check.smoothing(name, label_smoothing, True)
        self.normalize = _check.boolean(name, "normalize", normalize)
        self.backend = backend

    def forward(self, embeddings: Embeddings, presence: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar in nats (float64 for float64 embeddings, else float32).

        `presence` is a bool Tensor [N, M], True where sample n has modality m; None where none is missing.
        """
        first, *rest = self.terms(embeddings, presence).values()
        return sum(rest, start=first) / (1 + len(rest))

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss of each anchor under its modality's name; the loss is their mean."""
        name = type(self).__name__
        z, names = complete_embeddings(name, embeddings, presence, self.normalize)
        chosen = range(len(z)) if self.anchor is None else [_check.modality(name, "anchor", self.anchor, names)]
        temperature = self.temperature()
        return {names[m]: self._of_anchor(z[m], [*z[:m], *z[m + 1 :]], temperature) for m in chosen}

    def _of_anchor(self, anchor: Tensor, others: Sequence[Tensor], temperature: float | Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"anchor={self.anchor!r}, label_smoothing={self.label_smoothing:g}, normalize={self.normalize}"


class GRAMLoss(_AnchoredLoss):
    r"""GRAM's contrastive loss of M modalities: the volume that a sample's embeddings span, against those of mixtures.

    .. math:: L = \tfrac12 \big( \mathrm{CE}(-V / \tau) + \mathrm{CE}(-V^\top / \tau) \big)

    with :math:`V_{ij}` the volume spanned by the anchor of sample i and the others of sample j
    (:func:`mibfast.functional.gram_info_nce`). GRAM (arXiv 2412.11959); the defaults are those of the released code,
    whose anchor is the text, and which learns the temperature. Its matching loss is not part of this.

    With missing modalities (`presence`), the loss is over the samples that have all of them: the volume of fewer
    embeddings is of another dimension, and does not compare with these in one softmax. What stands in the place of any
    embedding of the other samples is not used and gets a gradient of zero. The values of `presence` are read back,
    which breaks the graph of `torch.compile`: `fullgraph=True` takes none.

    Parameters
    ----------
    temperature : float
        Positive; the initial value where it is learned.
    learnable_temperature : bool
        Learn it, as its logarithm; one for all anchors.
    anchor : int, str or None
        The modality's index, or its name where embeddings are a mapping; None takes the mean over all anchors.
    label_smoothing : float
        In [0, 1].
    normalize : bool
        L2-normalise embeddings first.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range; in `forward`, for embeddings or a presence that do not fit together, embeddings that
        do not have the anchor, or a presence that leaves no sample.

    Examples
    --------
    >>> import torch, mibfast
    >>> loss = mibfast.losses.GRAMLoss(temperature=1.0, anchor="text", label_smoothing=0.0)
    >>> views = {"image": torch.eye(3), "text": torch.eye(3)}
    >>> {name: round(term.item(), 4) for name, term in loss.terms(views).items()}
    {'text': 0.5514}
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temperature: bool = False,
        anchor: int | str | None = 0,
        *,
        label_smoothing: float = 0.1,
        normalize: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(temperature, learnable_temperature, anchor, label_smoothing, normalize, backend)

    def _of_anchor(self, anchor: Tensor, others: Sequence[Tensor], temperature: float | Tensor) -> Tensor:
        return F.gram_info_nce(anchor, others, temperature, label_smoothing=self.label_smoothing, backend=self.backend)


class TRIANGLELoss(_AnchoredLoss):
    r"""TRIANGLE's contrastive loss of three modalities: the area of a sample's triangle, against those of mixtures.

    .. math:: L = \tfrac12 \big( \mathrm{CE}(-S / \tau) + \mathrm{CE}(-S^\top / \tau) \big), \qquad S = 2 A^2

    or S = A, with :math:`A_{ij}` the area of the triangle of the anchor of sample i and the other two of sample j
    (:func:`mibfast.functional.triangle_info_nce`). TRIANGLE (arXiv 2509.24734); the defaults are those of the released
    code, whose anchor is the text, and which learns the temperature. Its matching loss is not part of this.

    With missing modalities, as :class:`GRAMLoss`: it takes three points to span a triangle.

    Parameters
    ----------
    temperature, learnable_temperature, anchor, label_smoothing, normalize, backend
        As in :class:`GRAMLoss`.
    squared : bool
        True for :math:`2 A^2`, as released; False for the paper's area.

    Raises
    ------
    TypeError, ValueError
        As :class:`GRAMLoss`, and for other than three modalities.

    Examples
    --------
    >>> import torch, mibfast
    >>> loss = mibfast.losses.TRIANGLELoss(temperature=1.0, anchor=None, label_smoothing=0.0)
    >>> views = [torch.eye(3), torch.eye(3), -torch.eye(3)]
    >>> {name: round(term.item(), 4) for name, term in loss.terms(views).items()}
    {'0': 0.2395, '1': 0.2395, '2': 1.0986}
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temperature: bool = False,
        anchor: int | str | None = 0,
        *,
        label_smoothing: float = 0.1,
        squared: bool = True,
        normalize: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(temperature, learnable_temperature, anchor, label_smoothing, normalize, backend)
        self.squared = _check.boolean(type(self).__name__, "squared", squared)

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss of each anchor under its modality's name; the loss is their mean."""
        name = type(self).__name__
        _check.three(name, _check.embeddings(name, embeddings, presence)[0])
        return super().terms(embeddings, presence)

    def _of_anchor(self, anchor: Tensor, others: Sequence[Tensor], temperature: float | Tensor) -> Tensor:
        b, c = others
        return F.triangle_info_nce(
            anchor,
            b,
            c,
            temperature,
            label_smoothing=self.label_smoothing,
            squared=self.squared,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"{super().extra_repr()}, squared={self.squared}"
