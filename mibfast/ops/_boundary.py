"""The boundary between autograd and the kernels, the same for every operation.

An operation is an `autograd.Function` whose forward and backward each call one kernel launcher. In eager mode the
launcher is called directly; under `torch.compile` the same launcher is called through a `torch.library` operation,
which the graph can hold. Going through `torch.library` in eager mode as well would cost tens of microseconds a call.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers, _check, _env
from mibfast.kernels import interpreter
from mibfast.kernels.launch_configuration import LARGEST_K, LARGEST_M

_NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def kernels(folder: str, backend: str) -> ModuleType:
    """Import `mibfast.kernels.<folder>.<backend>`, on first use: compilers are not loaded by `import mibfast`."""
    if backend == "triton" and _env.triton_interpreted():
        interpreter.mend()
    return importlib.import_module(f"mibfast.kernels.{folder}.{backend}")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of scores and losses: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def offers_up_to_largest_m(symbol: str, count: int) -> dict[str, str | None]:
    """Return the backends of an operation on `count` tensors whose Triton kernels hold all of them at a time."""
    too_many = f"{symbol} = {count}, and its kernels take {symbol} <= {LARGEST_M}" if count > LARGEST_M else None
    return {"cpu": None, "triton": too_many}


def inverse_temperature(temperature: float | Tensor) -> float | Tensor:
    """Return 1 / temperature; NaN for a tensor, which is not read back, that is not positive and finite."""
    if isinstance(temperature, Tensor):
        valid = (temperature > 0) & (temperature < torch.inf)
        return torch.where(valid, temperature, torch.nan).reciprocal()
    return 1.0 / temperature


def temperature_tensor(temperature: float | Tensor) -> Tensor:
    """Return a temperature as a 0-d tensor."""
    return temperature if isinstance(temperature, Tensor) else torch.tensor(temperature, dtype=torch.float64)


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Reduce one value a sample to the mean, or leave it."""
    return losses.mean() if reduction == "mean" else losses


def pairwise_offers(x: Tensor, symbol: str = "", count: int = 1, largest: int = LARGEST_K) -> dict[str, str | None]:
    """Return the backends that have kernels of all pairs, for :func:`mibfast._backend.choose`.

    Those of Triton hold `count` vectors a pair, whose number the operation calls `symbol`, and at most `largest`.
    """
    reason = None
    if x.dtype == torch.float64:
        reason = "its kernels are not for float64"
    elif count > largest:
        reason = f"{symbol} = {count}, and its kernels of all pairs take {symbol} <= {largest}"
    return {"cpu": None, "triton": reason}


def operation(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a launcher an operation of `torch.library`, `mibfast::<name>`, that is used under `torch.compile` only.

    `fake` gives empty results of the right shapes and dtypes.
    """

    def decorate(launcher: Callable[..., Any]) -> Callable[..., Any]:
        registered = torch.library.custom_op(f"mibfast::{launcher.__name__}", launcher, mutates_args=())
        registered.register_fake(fake)

        @functools.wraps(launcher)
        def launch(*arguments: Any) -> Any:
            if torch.compiler.is_compiling():
                return registered(*arguments)
            try:
                return launcher(*arguments)
            except Exception as error:
                # What Triton says names neither the operation nor what it was given. Memory may be there next time.
                if not _by_triton(*arguments) or isinstance(error, (torch.OutOfMemoryError, MemoryError)):
                    raise
                given = ", ".join(_check.described(x) for x in _tensors(arguments))
                raise RuntimeError(f"{launcher.__name__}: its Triton kernels failed on {given}: {error}") from error

        return launch

    return decorate


def _by_triton(*arguments: Any) -> bool:
    """Whether an operation's arguments, of which the backend is the last, name Triton."""
    return isinstance(arguments[-1], str) and arguments[-1] == "triton"


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among an operation's arguments, those of lists too."""
    for x in arguments:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from _tensors(x)


def scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a gradient that was formed with the loss times the loss's own, 0-d, on kept memory where there is some.

    The dtype is that of what the gradient is of. Until here it was float32 at least: in float16 it would have fallen to
    zero before a scaled loss, whose purpose it is to prevent that, could raise it.
    """
    kept = gradient.dtype == dtype and dtype in _NUMPY_DTYPES and gradient.device.type == "cpu"
    if torch.compiler.is_compiling():
        return (gradient * upstream).to(dtype)
    if not kept:
        # In one pass over memory.
        return torch.mul(gradient, upstream.to(gradient.dtype), out=torch.empty_like(gradient, dtype=dtype))
    out = torch.from_numpy(_buffers.empty(tuple(gradient.shape), _NUMPY_DTYPES[gradient.dtype]))
    return torch.mul(gradient, upstream.to(gradient.dtype), out=out)


def of_any_number(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the forward of a Function that takes any number of tensors, so that `torch.compile` passes its context.

    Where no gradient is needed, it leaves the context out if there are as many arguments as parameters, `ctx` and
    `*tensors` counted: here 2, and no Function has as few arguments. The signature must be this one, so not `wraps`.
    """

    def wrapped(ctx: Any, *arguments: Any) -> Any:
        return forward(ctx, *arguments)

    return wrapped


class _Refused(torch.autograd.Function):
    """The identity, whose backward raises: stands where a second derivative would otherwise be silently zero."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchor: Tensor, operation: str) -> Tensor:
        ctx.operation = operation
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            f"{ctx.operation}: the second derivative is not implemented by the compiled backends; "
            'use backend="reference", which has every derivative'
        )


def first_order(operation: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap the backward of a Function so that differentiating its result raises instead of being ignored."""

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *upstream: Tensor) -> Any:
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return backward(ctx, *upstream)
            with torch.no_grad():
                gradients = backward(ctx, *upstream)
            anchor = torch.zeros((), requires_grad=True)
            refused = _Refused.apply
            return tuple(refused(g, anchor, operation) if g is not None else None for g in gradients)  # type: ignore[no-untyped-call]

        return wrapped

    return decorate
