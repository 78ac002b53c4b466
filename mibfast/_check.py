"""Every error about an argument, in one place: the operation, the argument, what came in, what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Embeddings: TypeAlias = Sequence[Tensor] | Tensor | Mapping[str, Tensor]


class MibfastError(Exception):
    """Base of all errors that have a class of mibfast's own; each also derives from the built-in error it is akin to.

    A function's arguments of a wrong type or value are a plain `TypeError` or `ValueError`, as in PyTorch.
    """


class InputError(MibfastError, ValueError):
    """What the user of a command, a data set or a run can put right, said in one line."""


class NothingPresentError(MibfastError, ValueError):
    """A presence that leaves nothing to take a loss of: a batch that a training loop may skip."""


class BackendError(MibfastError, RuntimeError):
    """What a backend cannot do: it is missing, lacks a kernel or a derivative, or cannot take the arguments."""


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Losses of all dtypes but float64 are formed in float32. Between the bounds of what is divided by, its inverse is held.
_LARGEST = torch.finfo(torch.float32).max
_SMALLEST_DIVISOR = torch.finfo(torch.float32).tiny
_LARGEST_DIVISOR = 1 / _SMALLEST_DIVISOR
_LARGEST_INT = torch.iinfo(torch.int64).max


def described(x: object) -> str:
    """Say what came in: shape, dtype and device of a tensor, the type and value of anything else."""
    if isinstance(x, Tensor):
        shape = "of nested shapes" if x.is_nested else f"of shape {list(x.shape)}"
        return f"a tensor {shape}, {x.dtype}, on {x.device}"
    return f"{type(x).__name__} {_written(x, repr)}"


def _written(x: object, how: Callable[[object], str] = str) -> str:
    """Write a value in one line of 60 characters at most."""
    try:
        text = " ".join(how(x).split())
    except ValueError:
        return "of more digits than Python writes"
    return text if len(text) <= 60 else f"{text[:57]}..."


def tensor(operation: str, argument: str, x: Any, shape: str) -> Tensor:
    """Check one floating-point tensor whose dimensions are named by `shape`, as in "N d" or "... d" (none empty)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{operation}: {argument} must be a tensor [{_listed(shape)}], got {described(x)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{operation}: {argument} must be float64, float32, bfloat16 or float16, got {described(x)}")
    if x.layout != torch.strided or x.is_nested:
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


def size(operation: str, argument: str, x: Tensor, dimension: int, expected: int) -> None:
    """Check the size of one dimension."""
    if x.shape[dimension] != expected:
        raise ValueError(
            f"{operation}: {argument} must have the size {expected} in dimension {dimension}, got {described(x)}"
        )


def fits(operation: str, argument: str, x: Any, features: int, parameter: Tensor) -> None:
    """Check vectors [N, features] that a layer takes: of the dtype and device of its parameter, see :func:`alike`."""
    tensor(operation, argument, x, "N d")
    size(operation, argument, x, 1, features)
    alike(operation, **{argument: x, "the module's parameters": parameter})


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


def array(operation: str, argument: str, x: Any) -> np.ndarray[Any, Any]:
    """Check that NumPy makes an array of a value, which it does not of lists of unequal lengths."""
    try:
        return np.asarray(x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{operation}: {argument} must be an array of numbers, got {described(x)}") from error


def finite(operation: str, argument: str, x: Tensor) -> None:
    """Check that samples [N, d] hold neither NaN nor infinity."""
    bad = int((~x.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{operation}: {argument} must be finite, got {bad} of {len(x)} samples with NaN or infinity")


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


def embeddings(operation: str, x: Any, presence: Any = None, *, fewest: int = 2) -> tuple[list[Tensor], list[str]]:
    """Return the M tensors [N, d] of `Embeddings` and the modalities' names (their index where they have none).

    A second tensor of numbers, given where a loss takes `presence`, is taken for another modality's.
    """
    if isinstance(x, Tensor) and isinstance(presence, Tensor) and presence.dtype.is_floating_point:
        raise TypeError(
            f"{operation}: embeddings are one argument, as in loss([a, b]); got two, as in loss(a, b): {described(x)} "
            f"and {described(presence)}"
        )
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
    if len(set(names)) < len(names):
        raise ValueError(f"{operation}: embeddings must have names that differ, got {', '.join(names)}")
    if len(tensors) < fewest:
        raise ValueError(f"{operation}: embeddings must hold at least {fewest} modalities, got {len(tensors)}")
    for argument, z in zip(arguments, tensors, strict=True):
        tensor(operation, argument, z, "N d")
    for argument, z in zip(arguments[1:], tensors[1:], strict=True):
        same_shape(operation, **{arguments[0]: tensors[0], argument: z})
        alike(operation, **{arguments[0]: tensors[0], argument: z})
    return promoted(tensors), names


def two_modalities(operation: str, x: Any, presence: Any = None) -> list[Tensor]:
    """Return the two tensors [N, d] of `Embeddings` that hold no more."""
    tensors, _ = embeddings(operation, x, presence)
    if len(tensors) != 2:
        raise ValueError(f"{operation}: embeddings must hold exactly 2 modalities, got {len(tensors)}")
    return tensors


def presence(operation: str, x: Any, embeddings: Sequence[Tensor]) -> Tensor:
    """Check which of M embeddings [N, d] each sample has: a bool tensor [N, M] on their device."""
    if not isinstance(x, Tensor) or x.dtype != torch.bool:
        raise TypeError(f"{operation}: presence must be a tensor of bool [N, M], got {described(x)}")
    shape = (embeddings[0].shape[0], len(embeddings))
    if x.shape != shape:
        raise ValueError(
            f"{operation}: presence must be [N, M], here {list(shape)}: a row for each sample and a column for each "
            f"modality, got {described(x)}"
        )
    if x.device != embeddings[0].device:
        raise ValueError(
            f"{operation}: presence must be on {embeddings[0].device} as the embeddings are, got {described(x)}"
        )
    return x


def no_presence(operation: str, x: Any, why: str) -> None:
    """Check that all modalities are there where none may be missing."""
    if x is not None:
        raise ValueError(f"{operation}: presence must be None {why}, got {described(x)}")


def left_by_presence(operation: str, left: bool, expected: str) -> None:
    """Check that the samples that have what a loss needs are enough for any of its terms."""
    if not left:
        raise NothingPresentError(f"{operation}: presence leaves nothing to take the loss of; expected {expected}")


def zero_dimensional(x: Any) -> Any:
    """Return a tensor [1] as a 0-d one, whose gradient comes back in the shape [1]; anything else as it is."""
    return x.reshape(()) if has_shape(x, 1) else x


def has_shape(x: Any, *shape: int) -> bool:
    """Return whether this is a tensor of a shape, which a nested one does not have."""
    return isinstance(x, Tensor) and not x.is_nested and x.shape == shape


def scalar_tensor(operation: str, argument: str, x: Any) -> Tensor:
    """Check a floating-point tensor of one number, and return it as a 0-d one."""
    scalar = zero_dimensional(x)
    if not isinstance(scalar, Tensor) or scalar.ndim or scalar.dtype not in DTYPES:
        raise TypeError(f"{operation}: {argument} must be a 0-d floating-point tensor, got {described(x)}")
    return scalar


def _scalar_tensor(operation: str, argument: str, x: Tensor, device: torch.device, otherwise: str) -> Tensor:
    scalar = zero_dimensional(x)
    if scalar.ndim != 0 or not x.dtype.is_floating_point:
        raise ValueError(
            f"{operation}: {argument} must be {otherwise} or a 0-d floating-point tensor, got {described(x)}"
        )
    if x.device != device:
        raise ValueError(f"{operation}: {argument} must be on {device} as the embeddings are, got {described(x)}")
    return scalar  # type: ignore[no-any-return]


def positive(operation: str, argument: str, x: Any, expected: str = "a positive number") -> float:
    """Check a positive Python number that, as its inverse, float32 holds."""
    value = _real(operation, argument, x, expected)
    # Comparisons, for under torch.compile numbers may be symbols.
    if not 0 < value < math.inf:
        raise ValueError(f"{operation}: {argument} must be positive and finite, got {_written(x)}")
    if not _SMALLEST_DIVISOR <= value <= _LARGEST_DIVISOR:
        raise ValueError(
            f"{operation}: {argument} must be in [{_SMALLEST_DIVISOR:.2g}, {_LARGEST_DIVISOR:.2g}], for float32 to "
            f"hold it and its inverse, got {_written(x)}"
        )
    return value


def initial(operation: str, argument: str, x: Any, flag: str) -> float:
    """Check the initial value of a number that is learned where the argument `flag` is True."""
    if isinstance(x, Tensor):
        raise TypeError(
            f"{operation}: {argument} must be a positive number, got {described(x)}; {flag}=True makes it a parameter"
        )
    return positive(operation, argument, x)


def temperature(operation: str, x: Any, device: torch.device) -> float | Tensor:
    """Check a temperature: a positive number, or a 0-d floating-point tensor on `device` (not read back)."""
    if isinstance(x, Tensor):
        return _scalar_tensor(operation, "temperature", x, device, "a positive number")
    return positive(operation, "temperature", x, "a positive number or a 0-d tensor")


def scale(operation: str, x: Any, device: torch.device) -> float | Tensor:
    """Check a scale of scores: a positive number, or a 0-d floating-point tensor on `device` (not read back)."""
    if isinstance(x, Tensor):
        return _scalar_tensor(operation, "scale", x, device, "a positive number")
    return positive(operation, "scale", x, "a positive number or a 0-d tensor")


def permutations(operation: str, x: Any, m: int, n: int, device: torch.device) -> Tensor:
    """Check m (m - 1) permutations of 0..n - 1, and return them as int64 [m, m - 1, n] on `device`."""
    expected = f"[M, M - 1, N], {m * (m - 1)} permutations of N = {n}"
    return _permutations(operation, x, ((m, m - 1, n), (m * (m - 1), n)), expected, device)


def two_permutations(operation: str, x: Any, n: int, device: torch.device) -> Tensor:
    """Check two permutations of 0..n - 1, of x and of y, and return them as int64 [2, n] on `device`."""
    return _permutations(operation, x, ((2, n),), f"[2, N], of x and of y, for N = {n}", device)


def _permutations(
    operation: str, x: Any, shapes: Sequence[tuple[int, ...]], expected: str, device: torch.device
) -> Tensor:
    """Check permutations of one of these shapes, and return them in the first."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{operation}: permutations must be a tensor of integers, got {described(x)}")
    if x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool:
        raise TypeError(f"{operation}: permutations must be integers, got {described(x)}")
    if x.shape not in shapes:
        raise ValueError(f"{operation}: permutations must be {expected}, got {described(x)}")
    result = x.reshape(shapes[0]).to(device, torch.int64)
    n = result.shape[-1]
    if readable(result) and not bool((result.sort(-1).values == torch.arange(n, device=device)).all()):
        raise ValueError(f"{operation}: each row of permutations must hold 0..N - 1 once, for N = {n}")
    return result


def readable(x: Tensor) -> bool:
    """Whether the values of a tensor are there to be read: not where a graph is captured, nor of fake or meta ones."""
    return type(x) in (Tensor, torch.nn.Parameter) and not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or x.is_meta
    )


def scalar(operation: str, argument: str, x: Any, device: torch.device) -> float | Tensor:
    """Check a number of either sign, or a 0-d floating-point tensor on `device` (not read back)."""
    if isinstance(x, Tensor):
        return _scalar_tensor(operation, argument, x, device, "a number")
    return number(operation, argument, x)


def number(operation: str, argument: str, x: Any, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """Check a Python number in [minimum, maximum], finite in float32 too."""
    value = _real(operation, argument, x)
    if not (-math.inf < value < math.inf and minimum <= value <= maximum):
        bound = f" and in [{minimum:g}, {maximum:g}]"
        if maximum == math.inf:
            bound = f" and at least {minimum:g}" if minimum > -math.inf else ""
        raise ValueError(f"{operation}: {argument} must be finite{bound}, got {_written(x)}")
    if abs(value) > _LARGEST:
        raise ValueError(
            f"{operation}: {argument} must be finite in float32, whose largest number is {_LARGEST:.2g}, "
            f"got {_written(x)}"
        )
    return value


def _real(operation: str, argument: str, x: Any, expected: str = "a number") -> float:
    """Return a real number as a float, inf where it is beyond one."""
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{operation}: {argument} must be {expected}, got {described(x)}")
    try:
        return float(x)
    except OverflowError:
        # Of an int or a fraction, whatever its sign.
        return math.inf


def count(operation: str, argument: str, x: Any) -> int:
    """Check a positive int."""
    if isinstance(x, bool) or not isinstance(x, int):
        raise TypeError(f"{operation}: {argument} must be an int, got {described(x)}")
    if not 1 <= x <= _LARGEST_INT:
        bound = "at least 1" if x < 1 else "below 2^63"
        raise ValueError(f"{operation}: {argument} must be {bound}, got {_written(x)}")
    return x


def boolean(operation: str, argument: str, x: Any) -> bool:
    """Check a bool: a text such as "False" would be true."""
    if not isinstance(x, bool):
        raise TypeError(f"{operation}: {argument} must be True or False, got {described(x)}")
    return x


def choice(operation: str, argument: str, x: Any, valid: Sequence[str]) -> str:
    """Check a name against the valid ones."""
    # A tensor or an array, compared with names, is no True or False.
    if not isinstance(x, str) or x not in valid:
        raise ValueError(f"{operation}: {argument} must be one of {', '.join(map(repr, valid))}, got {described(x)}")
    return x


def bounds(operation: str, argument: str, x: Any, *, open_ended: bool = False) -> tuple[float, float]:
    """Check a pair (low, high), low < high, of finite numbers, or infinite where `open_ended`."""
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        raise TypeError(f"{operation}: {argument} must be (low, high), got {described(x)}")
    low, high = (
        y if open_ended and isinstance(y, float) and y == end else number(operation, argument, y)
        for y, end in zip(x, (-math.inf, math.inf), strict=True)
    )
    if low >= high:
        raise ValueError(f"{operation}: {argument} must be (low, high) with low < high, got ({low}, {high})")
    return low, high


def reduction(operation: str, x: Any) -> str:
    """Check how the losses of samples are reduced."""
    return choice(operation, "reduction", x, ("mean", "sum", "none"))


def device(operation: str, x: Any) -> torch.device | None:
    """Check a device, by name or as it is, that is there and holds memory; None for that of the input."""
    if x is None:
        return None
    if not isinstance(x, (str, torch.device)):
        raise TypeError(f"{operation}: device must be a torch.device, its name or None, got {described(x)}")
    try:
        torch.empty(0, device=x)
        found = torch.device(x)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        # Torch explains an unknown name by many lines.
        raise ValueError(f"{operation}: device {x!r} cannot be used: {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise ValueError(f"{operation}: device must hold numbers, got {x!r}")
    return found


def whole_numbers(operation: str, argument: str, x: Any) -> list[int]:
    """Check a sequence of at least one int that a generator takes as its seed."""
    if not isinstance(x, Iterable) or isinstance(x, (str, bytes)) or (isinstance(x, Tensor) and x.ndim != 1):
        raise TypeError(f"{operation}: {argument} must be a sequence of ints, got {described(x)}")
    given = list(x)
    for each in given:
        if isinstance(each, bool) or not isinstance(each, Integral):
            raise TypeError(f"{operation}: {argument} must hold ints, got {described(each)}")
        if not 0 <= int(each) <= _LARGEST_INT:
            raise ValueError(f"{operation}: {argument} must be in [0, 2^63), got {_written(each)}")
    if not given:
        raise ValueError(f"{operation}: {argument} must hold at least one, got none")
    if len(set(given)) < len(given):
        raise ValueError(f"{operation}: {argument} must differ, got {_written(given)}")
    return [int(each) for each in given]


def positives(
    operation: str, rows: Tensor, columns: Tensor, offset: Any, excluded: bool = False, symmetric: bool = False
) -> int:
    """Check that row i has its positive at column i + offset, and negatives where the positive is left out."""
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(f"{operation}: offset must be an int, got {described(offset)}")
    n, n_columns = rows.shape[0], columns.shape[0]
    if offset < 0 or n + offset > n_columns:
        raise ValueError(
            f"{operation}: the positive of row i is column i + offset, so offset must be in [0, N' - N]; "
            f"got offset {_written(offset)}, N = {n} rows and N' = {n_columns} columns"
        )
    if excluded:
        negatives(operation, min(n, n_columns) if symmetric else n_columns)
    return offset


def offset_of_block(operation: str, offset: Any, rows: Tensor, columns: Tensor) -> int:
    """Check where a block's positives are; return an offset of which no more is told than the block can hold.

    The positive of row i is column i + offset; it is beyond the columns for all rows where `offset` is None.
    """
    n, n_columns = rows.shape[0], columns.shape[0]
    if offset is None:
        return n_columns
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(f"{operation}: offset must be an int or None, got {described(offset)}")
    return max(-n, min(offset, n_columns))


def negatives(operation: str, n_columns: int) -> None:
    """Check that a row has a negative where the positive is left out."""
    if n_columns < 2:
        raise ValueError(
            f"{operation}: with the positive left out of the denominator a batch of N = 1 has no negatives; "
            "expected N >= 2, or positive_in_denominator=True"
        )


def pairs(operation: str, count: int) -> None:
    """Check that there are pairs of different samples."""
    if count < 2:
        raise ValueError(f"{operation}: a batch of N = 1 has no pairs of different samples; expected N >= 2")


def smoothing(operation: str, label_smoothing: Any, positive_in_denominator: bool) -> float:
    """Check label smoothing, which is defined only where the positive is in the denominator."""
    value = number(operation, "label_smoothing", label_smoothing, 0.0, 1.0)
    if value and not positive_in_denominator:
        raise ValueError(
            f"{operation}: label_smoothing = {value} needs positive_in_denominator=True: smoothed targets ask for the "
            "probability of every key, the positive's too"
        )
    return value


def standardised(operation: str, count: int) -> None:
    """Check that there are samples to standardise features over."""
    if count < 2:
        raise ValueError(
            f"{operation}: features are standardised over the batch, which a batch of N = 1 leaves nothing of; "
            "expected N >= 2, over all processes of a group"
        )


def process_group(operation: str, x: Any) -> None:
    """Check a group of processes of `torch.distributed`."""
    if not (torch.distributed.is_available() and isinstance(x, torch.distributed.ProcessGroup)):
        raise TypeError(f"{operation}: group must be a torch.distributed.ProcessGroup, got {described(x)}")


def alike_in_group(operation: str, x: Tensor, group: torch.distributed.ProcessGroup) -> int:
    """Check that all processes of a group give a tensor [N, d] of one shape and dtype; return the sum of their N.

    A collective operation, after which all of them raise, or none: of unequal tensors a gather would end the process,
    or never end.
    """
    own = torch.tensor([*x.shape, DTYPES.index(x.dtype)], device=x.device)
    gathered = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, own, group=group)
    given: list[list[int]] = torch.stack(gathered).tolist()
    ranks: dict[str, list[int]] = {}
    for rank, (n, d, dtype) in enumerate(given):
        ranks.setdefault(f"[{n}, {d}], {DTYPES[dtype]}", []).append(rank)
    if len(ranks) > 1:
        listed = "; ".join(f"{what} on {_ranks(of)}" for what, of in ranks.items())
        raise ValueError(
            f"{operation}: embeddings must have one shape and dtype on all processes of the group (drop the last batch "
            f"where it is smaller), got {listed}"
        )
    return sum(n for n, _, _ in given)


def _ranks(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:4]))}{more}"


def vectors_of_samples(operation: str, argument: str, x: Any) -> list[Tensor]:
    """Return at least one tensor [N', d], of a sequence of them, all of one shape, dtype and device."""
    if not isinstance(x, Sequence) or isinstance(x, str):
        raise TypeError(f"{operation}: {argument} must be a sequence of tensors [N', d], got {described(x)}")
    if not x:
        raise ValueError(f"{operation}: {argument} must hold at least 1 tensor, got none")
    names = [f"{argument}[{k}]" for k in range(len(x))]
    for name, z in zip(names, x, strict=True):
        tensor(operation, name, z, "N' d")
        same_shape(operation, **{names[0]: x[0], name: z})
        alike(operation, **{names[0]: x[0], name: z})
    return list(x)


def anchor(operation: str, x: Any) -> int | str | None:
    """Check a modality's index or name, or None for all of them, before the modalities are known."""
    if isinstance(x, bool) or not isinstance(x, (int, str, type(None))):
        raise TypeError(f"{operation}: anchor must be the index or the name of a modality, or None, got {described(x)}")
    return x


def modality(operation: str, argument: str, x: int | str, names: Sequence[str]) -> int:
    """Return the index of a modality that is given by its index or its name."""
    if isinstance(x, str):
        return list(names).index(choice(operation, argument, x, names))
    if not 0 <= x < len(names):
        raise ValueError(f"{operation}: {argument} must be in [0, {len(names) - 1}], got {_written(x)}")
    return x


def modalities_of_size(operation: str, embeddings: Sequence[Tensor], modalities: int, features: int) -> None:
    """Check that there are as many modalities, of as many features, as a module has parameters for."""
    if len(embeddings) != modalities or embeddings[0].shape[1] != features:
        raise ValueError(
            f"{operation}: embeddings must be {modalities} modalities of {features} features, "
            f"got {len(embeddings)} of {embeddings[0].shape[1]}"
        )


def three(operation: str, embeddings: Sequence[Tensor]) -> None:
    """Check that there are three modalities."""
    if len(embeddings) != 3:
        raise ValueError(f"{operation}: embeddings must hold exactly 3 modalities, got {len(embeddings)}")
