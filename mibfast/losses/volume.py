"""GRAM and TRIANGLE: all modalities of a sample aligned at once, by the volume or the area that they span."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast.losses._learned import Temperature
from mibfast.losses._loss import EmbeddingsLoss


class _AnchoredLoss(EmbeddingsLoss):
    """A loss of one modality, the anchor, against all others together; or the mean over all anchors."""

    takes_complete_samples = True

    def __init__(
        self,
        temperature: float,
        learnable_temperature: bool,
        anchor: int | str | None,
        label_smoothing: float,
        normalize: bool,
        backend: str | None,
    ) -> None:
        super().__init__(normalize=normalize, backend=backend)
        self.temperature = Temperature(self._name, temperature, learnable_temperature)
        self.anchor = _check.anchor(self._name, anchor)
        self.label_smoothing = _check.smoothing(self._name, label_smoothing, True)

    def _of_anchors(
        self, loss: Callable[[Tensor, list[Tensor], float | Tensor], Tensor], z: list[Tensor], names: list[str]
    ) -> dict[str, Tensor]:
        """Return a loss of each anchor, the others and the temperature, under the anchor's name."""
        anchors = range(len(z)) if self.anchor is None else [_check.modality(self._name, "anchor", self.anchor, names)]
        temperature = self.temperature()
        return {names[m]: loss(z[m], [*z[:m], *z[m + 1 :]], temperature) for m in anchors}

    def _total(self, terms: dict[str, Tensor]) -> Tensor:
        return super()._total(terms) / len(terms)


class GRAMLoss(_AnchoredLoss):
    r"""GRAM's contrastive loss of M modalities: the volume that a sample's embeddings span, against those of mixtures.

    .. math:: L = \tfrac12 \big( \mathrm{CE}(-V / \tau) + \mathrm{CE}(-V^\top / \tau) \big)

    with :math:`V_{ij}` the volume spanned by the anchor of sample i and the others of sample j
    (:func:`mibfast.functional.gram_info_nce`). GRAM (arXiv 2412.11959); the defaults are those of the released code,
    whose anchor is the text, and which learns the temperature. Its matching loss is not included. There is a term for
    each anchor, under its name.

    With missing modalities, the loss is over the samples that have all of them: volumes of fewer embeddings have
    another dimension, and do not belong in the same softmax.

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

    def _terms(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        loss = partial(F.gram_info_nce, label_smoothing=self.label_smoothing, backend=self.backend)
        return self._of_anchors(loss, z, names)


class TRIANGLELoss(_AnchoredLoss):
    r"""TRIANGLE's contrastive loss of three modalities: the area of a sample's triangle, against those of mixtures.

    .. math:: L = \tfrac12 \big( \mathrm{CE}(-S / \tau) + \mathrm{CE}(-S^\top / \tau) \big), \qquad S = 2 A^2

    or S = A, with :math:`A_{ij}` the area of the triangle of the anchor of sample i and the other two of sample j
    (:func:`mibfast.functional.triangle_info_nce`). TRIANGLE (arXiv 2509.24734); the defaults are those of the released
    code, whose anchor is the text, and which learns the temperature. Its matching loss is not included. There is a term
    for each anchor, under its name.

    With missing modalities, the loss is over the samples that have all three.

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
        self.squared = _check.boolean(self._name, "squared", squared)

    def _terms(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        _check.three(self._name, z)

        def loss(anchor: Tensor, others: list[Tensor], temperature: float | Tensor) -> Tensor:
            b, c = others
            smoothing, backend = self.label_smoothing, self.backend
            return F.triangle_info_nce(
                anchor, b, c, temperature, label_smoothing=smoothing, squared=self.squared, backend=backend
            )

        return self._of_anchors(loss, z, names)
