"""The boundary of critics over all pairs, which their reductions share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mibfast import _check
from mibfast.kernels.critic import reference
from mibfast.kernels.pairwise.scores import OF_EMBEDDINGS, SCORES

# What the launchers take.
OPERANDS = "x y *parameters"
_SCORES = (*OF_EMBEDDINGS, "additive")
# Backends whose sweep over all pairs forms the gradient of a mean with it.
FUSED = ("cpu",)


def operands(
    name: str,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    hidden: Sequence[Tensor] | None,
    score: str,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Check what a score is of; return x, y and the parameters: none, or weight and bias, and W and c where given."""
    _check.choice(name, "score", score, _SCORES)
    _check.tensor(name, "x", x, "N h" if score == "additive" else "N d")
    _check.tensor(name, "y", y, "N' h" if score == "additive" else "N' d")
    _check.alike(name, x=x, y=y)
    _check.same_dimension(name, x=x, y=y)
    if y.shape[0] < x.shape[0]:
        raise ValueError(
            f"{name}: the positive of row i is column i, so y must have as many rows as x or more, "
            f"got {_check.described(x)} and {_check.described(y)}"
        )
    if score != "additive":
        for argument, given in (("weight", weight), ("bias", bias), ("hidden", hidden)):
            if given is not None:
                raise ValueError(
                    f'{name}: {argument} must be None for score={score!r}, got {_of(given)}; score="additive" takes it'
                )
        x, y = _check.promoted([x, y])
        return x, y, []
    if weight is None:
        raise ValueError(f"{name}: score='additive' needs a weight [h], got None")
    _check.tensor(name, "weight", weight, "h" if hidden is None else "g")
    _check.alike(name, x=x, weight=weight)
    if bias is None:
        bias = weight.new_zeros(())
    bias = _zero_dimensional(name, bias)
    _check.alike(name, x=x, bias=bias)
    if hidden is None:
        _check.size(name, "weight", weight, 0, x.shape[1])
        x, y, *parameters = _check.promoted([x, y, weight, bias])
        return x, y, parameters
    if not isinstance(hidden, (tuple, list)) or len(hidden) != 2:
        raise TypeError(f"{name}: hidden must be a pair of tensors (W [g, h], c [g]), got {_of(hidden)}")
    matrix, offset = hidden
    _check.tensor(name, "hidden[0]", matrix, "g h")
    _check.tensor(name, "hidden[1]", offset, "g")
    _check.alike(name, x=x, **{"hidden[0]": matrix, "hidden[1]": offset})
    _check.size(name, "hidden[0]", matrix, 1, x.shape[1])
    _check.size(name, "hidden[1]", offset, 0, matrix.shape[0])
    _check.size(name, "weight", weight, 0, matrix.shape[0])
    x, y, *parameters = _check.promoted([x, y, weight, bias, matrix, offset])
    return x, y, parameters


def _of(x: Any) -> str:
    return f"{type(x).__name__} of {len(x)}" if isinstance(x, (tuple, list)) else _check.described(x)


def _zero_dimensional(name: str, bias: Any) -> Tensor:
    scalar = _check.zero_dimensional(bias)
    if not isinstance(scalar, Tensor) or scalar.ndim or not scalar.dtype.is_floating_point:
        raise ValueError(f"{name}: bias must be a 0-d floating-point tensor or None, got {_check.described(bias)}")
    return scalar


def has_norms(score: str) -> bool:
    """Whether a score depends on the embeddings' norms beside their inner product."""
    return score in SCORES and SCORES[score].squared_norms


def scores(score: str, x: Tensor, y: Tensor) -> Tensor:
    """Return a score of two embeddings of all pairs, [N, N'], in memory."""
    return reference.scores(x, y, (), score)


def scores_of_rows(score: str, x: Tensor, y: Tensor) -> Tensor:
    """Return a score of two embeddings [N] of row i of x [N, d] with row i of y [N, d]."""
    if score == "inner_product":
        return (x * y).sum(-1)
    return reference.scores(x[:, None], y[:, None], (), score)[:, 0, 0]


def bound(name: str, clip: float | None) -> float:
    """Return the bound of clamped scores, infinite without a clip."""
    limit = math.inf if clip is None else _check.number(name, "clip", clip, 0.0)
    if not limit:
        raise ValueError(f"{name}: clip must be positive, got {clip}")
    return limit


def offers(x: Tensor, parameters: Sequence[Tensor]) -> dict[str, str | None]:
    """Each backend, with the reason why it cannot take these arguments, or None."""
    refused = None
    if x.dtype == torch.float64 and len(parameters) != 2:
        refused = f"its kernels of {'two hidden layers' if parameters else 'two embeddings'} are not for float64"
    return {"cpu": None, "triton": refused}
