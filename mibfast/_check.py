"""Every error about an argument, in one place: the operation, the argument, what came in, what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

Embeddings: TypeAlias = Sequence[Tensor] | Tensor | Mapping[str, Tensor]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def described(x: object) -> str:
    """Say what came in: shape, dtype and device of a tensor, the type and value of anything else."""
    if isinstance(x, Tensor):
        return f"a tensor of shape {list(x.shape)}, {x.dtype}, on {x.device}"
    text = repr(x)
    return f"{type(x).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def tensor(operation: str, argument: str, x: Any, shape: str) -> Tensor:
    """Check one floating-point tensor whose dimensions are named by `shape`, as in "N d" or "... d" (none empty)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{operation}: {argument} must be a tensor [{_listed(shape)}], got {described(x)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{operation}: {argument} must be float64, float32, bfloat16 or float16, got {described(x)}")
    if x.layout != torch.strided:
        raise TypeError(f"{operation}: {argument} must be a dense tensor, got layout {x.layout} in {described(x)}")
    names = shape.split()
    open_ended = names[0] == "..."
    fits = x.ndim >= len(names) - 1 if open_ended else x.ndim == len(names)
    if not fits:
        raise ValueError(f"{operation}: {argument} must be [{_listed(shape)}], got {described(x)}")
    if 0 in x.shape:
        raise ValueError(f"{operation}: {argument} must not be empty, got {described(x)}")
    return x


def _listed(shape: str) -> str:
    return ", ".join(shape.split())


def alike(operation: str, **tensors: Tensor) -> None:
    """Check that tensors share device and dtype (any floating dtypes under autocast)."""
    (first_name, first), *rest = tensors.items()
    for name, x in rest:
        if x.device != first.device:
            raise ValueError(
                f"{operation}: {first_name} and {name} must be on one device, got {described(first)} and {described(x)}"
            )
        if x.dtype != first.dtype and not torch.is_autocast_enabled(first.device.type):
            raise TypeError(
                f"{operation}: {first_name} and {name} must have one dtype, got {described(first)} and {described(x)}"
            )


def same_shape(operation: str, **tensors: Tensor) -> None:
    """Check that tensors have one shape."""
    (first_name, first), *rest = tensors.items()
    for name, x in rest:
        if x.shape != first.shape:
            raise ValueError(
                f"{operation}: {first_name} and {name} must have one shape, got {described(first)} and {described(x)}"
            )


def same_dimension(operation: str, **tensors: Tensor) -> None:
    """Check that tensors have one last dimension."""
    (first_name, first), *rest = tensors.items()
    for name, x in rest:
        if x.shape[-1] != first.shape[-1]:
            raise ValueError(
                f"{operation}: {first_name} and {name} must have one last dimension, "
                f"got {described(first)} and {described(x)}"
            )


def expandable(operation: str, **tensors: Tensor) -> None:
    """Check that tensors can be broadcast to the shape of the first."""
    (first_name, first), *rest = tensors.items()
    for name, x in rest:
        leading = (1,) * (first.ndim - x.ndim) + tuple(x.shape)
        if len(leading) != first.ndim or any(n not in (1, m) for n, m in zip(leading, first.shape, strict=True)):
            raise ValueError(
                f"{operation}: {name} must broadcast to the shape of {first_name}, "
                f"got {described(first)} and {described(x)}"
            )


def promoted(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors in their widest dtype; they differ under autocast only, see :func:`alike`."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return [x if x.dtype == dtype else x.to(dtype) for x in tensors]


def embeddings(operation: str, x: Any) -> tuple[list[Tensor], list[str]]:
    """Return the M tensors [N, d] of `Embeddings` and the modalities' names (their index where they have none)."""
    if isinstance(x, Mapping):
        names, tensors = [str(name) for name in x], list(x.values())
        arguments = [f"embeddings[{name!r}]" for name in names]
    elif isinstance(x, Tensor):
        if x.ndim != 3:
            raise ValueError(f"{operation}: embeddings as one tensor must be [M, N, d], got {described(x)}")
        tensors = list(x.unbind(0))
        names = [str(m) for m in range(len(tensors))]
        arguments = [f"embeddings[{name}]" for name in names]
    elif isinstance(x, Sequence) and not isinstance(x, str):
        tensors = list(x)
        names = [str(m) for m in range(len(tensors))]
        arguments = [f"embeddings[{name}]" for name in names]
    else:
        raise TypeError(
            f"{operation}: embeddings must be a sequence of M tensors [N, d], one tensor [M, N, d] or a mapping from "
            f"a modality's name to [N, d], got {described(x)}"
        )
    if len(tensors) < 2:
        raise ValueError(f"{operation}: embeddings must hold at least 2 modalities, got {len(tensors)}")
    for argument, z in zip(arguments, tensors, strict=True):
        tensor(operation, argument, z, "N d")
    for argument, z in zip(arguments[1:], tensors[1:], strict=True):
        same_shape(operation, **{arguments[0]: tensors[0], argument: z})
        alike(operation, **{arguments[0]: tensors[0], argument: z})
    return promoted(tensors), names


def temperature(operation: str, x: Any, device: torch.device) -> float | Tensor:
    """Check a temperature: a positive finite number, or a 0-d floating-point tensor on `device` (not read back)."""
    if isinstance(x, Tensor):
        if x.ndim != 0 or not x.dtype.is_floating_point:
            raise ValueError(
                f"{operation}: temperature must be a positive number or a 0-d floating-point tensor, got {described(x)}"
            )
        if x.device != device:
            raise ValueError(f"{operation}: temperature must be on {device} as the embeddings are, got {described(x)}")
        return x
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{operation}: temperature must be a positive number or a 0-d tensor, got {described(x)}")
    value = float(x)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{operation}: temperature must be positive and finite, got {x}")
    return value


def scalar(operation: str, argument: str, x: Any, device: torch.device) -> float | Tensor:
    """Check a finite number of either sign, or a 0-d floating-point tensor on `device` (not read back)."""
    if isinstance(x, Tensor):
        if x.ndim != 0 or not x.dtype.is_floating_point:
            raise ValueError(
                f"{operation}: {argument} must be a number or a 0-d floating-point tensor, got {described(x)}"
            )
        if x.device != device:
            raise ValueError(f"{operation}: {argument} must be on {device} as the embeddings are, got {described(x)}")
        return x
    return number(operation, argument, x)


def number(operation: str, argument: str, x: Any, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """Check a finite Python number in [minimum, maximum]."""
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{operation}: {argument} must be a number, got {described(x)}")
    value = float(x)
    if not (math.isfinite(value) and minimum <= value <= maximum):
        bound = f" and in [{minimum:g}, {maximum:g}]"
        if maximum == math.inf:
            bound = f" and at least {minimum:g}" if minimum > -math.inf else ""
        raise ValueError(f"{operation}: {argument} must be finite{bound}, got {x}")
    return value


def count(operation: str, argument: str, x: Any) -> int:
    """Check a positive int."""
    if isinstance(x, bool) or not isinstance(x, int):
        raise TypeError(f"{operation}: {argument} must be an int, got {described(x)}")
    if x < 1:
        raise ValueError(f"{operation}: {argument} must be at least 1, got {x}")
    return x


def choice(operation: str, argument: str, x: Any, valid: Sequence[str]) -> str:
    """Check a name against the valid ones."""
    if x not in valid:
        raise ValueError(f"{operation}: {argument} must be one of {', '.join(map(repr, valid))}, got {described(x)}")
    return str(x)


def positives(operation: str, rows: Tensor, columns: Tensor, offset: Any, excluded: bool, symmetric: bool) -> int:
    """Check that row i has its positive at column i + offset, and a negative where the positive is left out."""
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(f"{operation}: offset must be an int, got {described(offset)}")
    n, n_columns = rows.shape[0], columns.shape[0]
    if offset < 0 or n + offset > n_columns:
        raise ValueError(
            f"{operation}: the positive of row i is column i + offset, so offset must be in [0, N' - N]; "
            f"got offset {offset}, N = {n} rows and N' = {n_columns} columns"
        )
    if symmetric and n != n_columns:
        raise ValueError(f"{operation}: symmetric=True needs as many keys as queries, got N = {n} and N' = {n_columns}")
    if excluded:
        negatives(operation, n_columns)
    return offset


def negatives(operation: str, n_columns: int) -> None:
    """Check that a row has a negative where the positive is left out."""
    if n_columns < 2:
        raise ValueError(
            f"{operation}: with the positive left out of the denominator a batch of N = 1 has no negatives; "
            "expected N >= 2, or positive_in_denominator=True"
        )


def smoothing(operation: str, label_smoothing: Any, positive_in_denominator: bool) -> float:
    """Check label smoothing, which is defined only where the positive is in the denominator."""
    value = number(operation, "label_smoothing", label_smoothing, 0.0, 1.0)
    if value and not positive_in_denominator:
        raise ValueError(
            f"{operation}: label_smoothing = {value} needs positive_in_denominator=True: smoothed targets ask for the "
            "probability of every key, the positive's too"
        )
    return value
