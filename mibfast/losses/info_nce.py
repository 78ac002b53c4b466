"""InfoNCE of two modalities."""

from __future__ import annotations

from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast.losses import _presence
from mibfast.losses._learned import Temperature
from mibfast.losses._loss import Loss
from mibfast.ops.info_nce import SCORES


class InfoNCELoss(Loss):
    r"""InfoNCE of queries and keys; the positive of a query is the key of the same index.

    .. math:: L = \frac1N \sum_i \Big( \log \sum_j e^{q_i \cdot k_j / \tau} - q_i \cdot k_i / \tau \Big)

    :func:`mibfast.functional.info_nce` of normalised embeddings (van den Oord et al. 2018); `symmetric=True` with a
    learnable temperature is CLIP's loss (Radford et al. 2021).

    With missing queries or keys, the loss is over the samples that have both, of which it needs one, or two where the
    positive is left out of the denominator.

    Parameters
    ----------
    temperature : float
        Positive; the initial value where it is learned.
    learnable_temperature : bool
        Learn it, as its logarithm.
    score : {"inner_product", "squared_distance", "lorentz"}
        See :func:`mibfast.functional.info_nce`. Hyperbolic embeddings have lengths of their own: `normalize=False`.
    positive_in_denominator : bool
    symmetric : bool
        Half the sum of both directions, as :func:`mibfast.functional.info_nce` takes them.
    label_smoothing : float
        In [0, 1].
    normalize : bool
        L2-normalise queries and keys first.
    reduction : {"mean", "sum", "none"}
        "none" gives [N].
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range; in `forward`, for tensors that do not fit together, or a presence that leaves too few
        samples.

    Examples
    --------
    >>> import torch, mibfast
    >>> loss = mibfast.losses.InfoNCELoss(temperature=1.0)
    >>> loss(torch.eye(3), torch.eye(3))
    tensor(0.5514)
    """

    normalizes_inside = True

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temperature: bool = False,
        *,
        score: str = "inner_product",
        positive_in_denominator: bool = True,
        symmetric: bool = False,
        label_smoothing: float = 0.0,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__(normalize=normalize, reduction=reduction, backend=backend)
        self.temperature = Temperature(self._name, temperature, learnable_temperature)
        _check.choice(self._name, "score", score, SCORES)
        self.score = score
        self.positive_in_denominator = _check.boolean(self._name, "positive_in_denominator", positive_in_denominator)
        self.label_smoothing = _check.smoothing(self._name, label_smoothing, positive_in_denominator)
        self.symmetric = _check.boolean(self._name, "symmetric", symmetric)

    def forward(self, query: Tensor, key: Tensor, presence: Tensor | None = None) -> Tensor:
        """Return the loss of queries [N, d] and keys [N', d], N' >= N, in nats.

        `presence` is a bool Tensor [N, 2], True where sample n has a query and a key, and needs N' = N; None where none
        is missing.
        """
        pair = [_check.tensor(self._name, "query", query, "N d"), _check.tensor(self._name, "key", key, "N' d")]
        _check.alike(self._name, query=query, key=key)
        if presence is not None:
            _check.same_shape(self._name, query=query, key=key)
            pair, _ = _check.embeddings(self._name, pair)
            _check.presence(self._name, presence, pair)
            pair, samples = _presence.complete(self._name, pair, presence, self._fewest)
        query, key = self._prepared(pair)
        loss = F.info_nce(
            query,
            key,
            self.temperature(),
            score=self.score,
            normalize=self.normalize,
            positive_in_denominator=self.positive_in_denominator,
            symmetric=self.symmetric,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            backend=self.backend,
        )
        return loss if presence is None else _presence.spread(loss, samples, len(presence))
