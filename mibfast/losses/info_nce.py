"""InfoNCE of two modalities."""

from __future__ import annotations

from torch import Tensor

from mibfast import _check
from mibfast import functional as F
from mibfast._modules import ResettableModule
from mibfast.losses.normalisation import unit
from mibfast.losses.presence import complete_embeddings
from mibfast.losses.temperature import Temperature


class InfoNCELoss(ResettableModule):
    r"""InfoNCE of queries and keys, the key of the same index being the positive.

    :func:`mibfast.functional.info_nce` of normalised embeddings; `symmetric=True` with a learnable temperature is
    CLIP's loss (Radford et al. 2021).

    With missing queries or keys (`presence`), the loss is over the samples that have both, which must be two at least
    (one, with the positive in the denominator). What stands in the place of an absent embedding is not used and gets a
    gradient of zero. The values of `presence` are read back, which breaks the graph of `torch.compile`:
    `fullgraph=True` takes none.

    Parameters
    ----------
    temperature : float
        Positive; the initial value where it is learned.
    learnable_temperature : bool
        Learn it, as its logarithm.
    positive_in_denominator : bool
    symmetric : bool
        Half the sum of both directions.
    label_smoothing : float
        In [0, 1].
    normalize : bool
        L2-normalise queries and keys first.
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

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temperature: bool = False,
        *,
        positive_in_denominator: bool = True,
        symmetric: bool = False,
        label_smoothing: float = 0.0,
        normalize: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.temperature = Temperature(name, temperature, learnable_temperature)
        self.positive_in_denominator = _check.boolean(name, "positive_in_denominator", positive_in_denominator)
        self.label_smoothing = _check.smoothing(name, label_smoothing, positive_in_denominator)
        self.symmetric = _check.boolean(name, "symmetric", symmetric)
        self.normalize = _check.boolean(name, "normalize", normalize)
        self.backend = backend

    def forward(self, query: Tensor, key: Tensor, presence: Tensor | None = None) -> Tensor:
        """Return the loss of queries [N, d] and keys [N', d], N' >= N: a scalar in nats.

        `presence` is a bool Tensor [N, 2], True where sample n has a query and a key, and needs N' = N; None where none
        is missing.
        """
        name = type(self).__name__
        _check.tensor(name, "query", query, "N d")
        _check.tensor(name, "key", key, "N' d")
        if presence is not None:
            _check.same_shape(name, query=query, key=key)
            fewest = 1 if self.positive_in_denominator else 2
            (query, key), _ = complete_embeddings(name, [query, key], presence, normalize=False, fewest=fewest)
        if self.normalize:
            query, key = unit([query, key])
        return F.info_nce(
            query,
            key,
            self.temperature(),
            positive_in_denominator=self.positive_in_denominator,
            symmetric=self.symmetric,
            label_smoothing=self.label_smoothing,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return (
            f"positive_in_denominator={self.positive_in_denominator}, symmetric={self.symmetric}, "
            f"label_smoothing={self.label_smoothing:g}, normalize={self.normalize}"
        )
