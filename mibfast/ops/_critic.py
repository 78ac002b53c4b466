"""The boundary of critics over all pairs, which their reductions share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mibfast import _check
from mibfast.ops._boundary import accumulation_dtype, kernels, operation

_SCORES = ("inner_product", "additive")
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
    _check.tensor(name, "x", x, "N h" if score == "additive" else "N d")
    _check.tensor(name, "y", y, "N' h" if score == "additive" else "N' d")
    _check.choice(name, "score", score, _SCORES)
    _check.alike(name, x=x, y=y)
    _check.same_dimension(name, x=x, y=y)
    if y.shape[0] < x.shape[0]:
        raise ValueError(
            f"{name}: the positive of row i is column i, so y must have as many rows as x or more, "
            f"got {_check.described(x)} and {_check.described(y)}"
        )
    if score == "inner_product":
        for argument, given in (("weight", weight), ("bias", bias), ("hidden", hidden)):
            if given is not None:
                raise ValueError(f"{name}: {argument} must be None for score='inner_product', got {_of(given)}")
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


def bound(name: str, clip: float | None) -> float:
    """Return the bound of clamped scores, infinite without a clip."""
    found = math.inf if clip is None else _check.number(name, "clip", clip, 0.0)
    if not found:
        raise ValueError(f"{name}: clip must be positive, got {clip}")
    return found


def differentiated(x: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether autograd will want a gradient of the scores."""
    return torch.is_grad_enabled() and any(z.requires_grad for z in (x, y, *parameters))


def offers(x: Tensor, parameters: Sequence[Tensor]) -> dict[str, str | None]:
    """The backends with kernels of critics, and why one cannot take these arguments."""
    refused = None
    if x.dtype == torch.float64 and len(parameters) != 2:
        refused = f"its kernels of {'two hidden layers' if parameters else 'inner products'} are not for float64"
    return {"cpu": None, "triton": refused}


def _fake_gradients(x: Tensor, y: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return [z.new_empty(z.shape) for z in (x, y, *parameters)]


def _fake_log_sum_exp(
    x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool, clip: float, columns: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    n, n_columns = x.shape[0], y.shape[0] if columns else 0
    return (
        x.new_empty(n, dtype=accumulation_dtype(x.dtype)),
        x.new_empty(n, dtype=torch.float64),
        x.new_empty(n_columns, dtype=torch.float64),
    )


@operation(fake=_fake_log_sum_exp)
def critic_log_sum_exps(
    x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool, clip: float, columns: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels("critic", backend).log_sum_exp(x, y, parameters, positive, clip, columns)  # type: ignore[no-any-return]


@operation(fake=lambda _, __, ___, x, y, parameters, *____: _fake_gradients(x, y, parameters))
def critic_log_sum_exps_backward(
    of_positives: Tensor,
    of_rows: Tensor,
    of_columns: Tensor,
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    row_lse: Tensor,
    column_lse: Tensor,
    needed: list[bool],
    positive: bool,
    clip: float,
    columns: bool,
    backend: str,
) -> list[Tensor]:
    launcher = kernels("critic", backend).log_sum_exp_backward
    return launcher(  # type: ignore[no-any-return]
        of_positives, of_rows, of_columns, x, y, parameters, row_lse, column_lse, needed, positive, clip, columns
    )


def _fake_softplus(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(x.dtype)
    return x.new_empty(x.shape[0], dtype=dtype), x.new_empty(x.shape[0], dtype=dtype)


@operation(fake=_fake_softplus)
def critic_softplus_sums(
    x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return kernels("critic", backend).softplus(x, y, parameters, positive)  # type: ignore[no-any-return]


@operation(fake=lambda _, __, x, y, parameters, *___: _fake_gradients(x, y, parameters))
def critic_softplus_sums_backward(
    of_positives: Tensor,
    of_rows: Tensor,
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    needed: list[bool],
    positive: bool,
    backend: str,
) -> list[Tensor]:
    launcher = kernels("critic", backend).softplus_backward
    return launcher(of_positives, of_rows, x, y, parameters, needed, positive)  # type: ignore[no-any-return]


def _fake_with_gradients(scalars: int) -> Callable[..., list[Tensor]]:
    def fake(x: Tensor, y: Tensor, parameters: list[Tensor], *_: Any) -> list[Tensor]:
        dtype = accumulation_dtype(x.dtype)
        gradients = (z.new_empty(z.shape, dtype=dtype) for z in (x, y, *parameters))
        return [*(x.new_empty((), dtype=dtype) for _ in range(scalars)), *gradients]

    return fake


@operation(fake=_fake_with_gradients(1))
def critic_log_mean_exp_with_gradient(
    x: Tensor, y: Tensor, parameters: list[Tensor], needed: list[bool], backend: str
) -> list[Tensor]:
    return kernels("critic", backend).log_mean_exp_with_gradient(x, y, parameters, needed)  # type: ignore[no-any-return]


@operation(fake=_fake_with_gradients(3))
def critic_mean_softplus_with_gradient(
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    needed: list[bool],
    positives: bool,
    log_mean_exp: bool,
    clip: float,
    backend: str,
) -> list[Tensor]:
    launcher = kernels("critic", backend).mean_softplus_with_gradient
    return launcher(x, y, parameters, needed, positives, log_mean_exp, clip)  # type: ignore[no-any-return]
