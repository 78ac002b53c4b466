"""What all losses share: settings, how samples that lack modalities are treated, and the sum of weighted terms."""

from __future__ import annotations

import inspect
from typing import ClassVar

from torch import Tensor

from mibfast import _backend, _check
from mibfast._check import Embeddings
from mibfast._modules import ResettableModule
from mibfast._precision import at_least_float32, unit
from mibfast.losses import _presence


class Loss(ResettableModule):
    """A module with the settings that losses have in common."""

    # Whether the operations of the loss normalise, so that they get embeddings as they are.
    normalizes_inside: ClassVar[bool] = False

    def __init__(self, *, backend: str | None, normalize: bool = False, reduction: str = "mean") -> None:
        super().__init__()
        self.normalize = _check.boolean(self._name, "normalize", normalize)
        self.reduction = _check.reduction(self._name, reduction)
        self.backend = None if backend is None else _backend.check_name(backend)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _fewest(self) -> int:
        """The least number of samples: 2 where the positive is left out of the denominator, which needs a negative."""
        return 1 if getattr(self, "positive_in_denominator", True) else 2

    def _normalized(self, z: list[Tensor]) -> list[Tensor]:
        """Return embeddings as they are without `normalize`, else unit vectors."""
        # In float32 at least: bfloat16 would move a logit at temperature 0.01 by 0.4.
        return [unit(at_least_float32(x)) for x in z] if self.normalize else z

    def _prepared(self, z: list[Tensor]) -> list[Tensor]:
        """Return embeddings as the loss's operations take them."""
        return z if self.normalizes_inside else self._normalized(z)

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        shown = []
        for name in inspect.signature(type(self)).parameters:
            value = vars(self).get(f"initial_{name}", vars(self).get(name, self))
            if name not in ("backend", "generator", "group") and isinstance(value, (int, float, str, type(None))):
                shown.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value!r}")
        return ", ".join(shown)


class EmbeddingsLoss(Loss):
    """A loss of the embeddings of M modalities, the weighted sum of named terms."""

    # Whether only samples with all modalities count. Otherwise an embedding counts where its sample has another one.
    takes_complete_samples: ClassVar[bool] = False

    def forward(self, embeddings: Embeddings, presence: Tensor | None = None) -> Tensor:
        """Return the loss (float64 for float64 embeddings, else float32).

        `presence` is a bool Tensor [N, M], True where sample n has modality m; None where none is missing.
        """
        return self._total(self.terms(embeddings, presence))

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return the terms of the loss by their names, before they are weighted."""
        z, names = _check.embeddings(self._name, embeddings, presence)
        if presence is None:
            return self._terms(self._prepared(z), names, None)
        _check.presence(self._name, presence, z)
        if not self.takes_complete_samples:
            return self._terms(self._prepared(_presence.partnered(z, presence)), names, presence)
        rows, samples = _presence.complete(self._name, z, presence, self._fewest)
        terms = self._terms(self._prepared(rows), names, None)
        return {name: _presence.spread(term, samples, len(presence)) for name, term in terms.items()}

    def _terms(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        """Form the terms of embeddings that have been checked and normalised; what is absent from them is zero."""
        raise NotImplementedError

    def _total(self, terms: dict[str, Tensor]) -> Tensor:
        weights = self._weights()
        first, *rest = (weights[name] * term if name in weights else term for name, term in terms.items())
        return sum(rest, start=first)

    def _weights(self) -> dict[str, float]:
        """Return the weights of terms by their names; that of the others is 1."""
        return {}
