"""The compiled module of csrc/bindings.cpp; it may be missing."""

import enum
from collections.abc import Sequence

ARCHITECTURES: tuple[str, ...]
RUNTIME_VERSION: int
MOST_MODALITIES: int

class Dtype(enum.Enum):
    float64 = ...
    float32 = ...
    float16 = ...
    bfloat16 = ...

def driver_version() -> int: ...
def leave_one_out(
    device: int,
    dtype: Dtype,
    z: Sequence[int],
    strides: Sequence[int],
    n: int,
    d: int,
    ridge: float,
    out: int,
    inverse: int,
    stream: int,
) -> None: ...
def leave_one_out_backward(
    device: int,
    dtype: Dtype,
    upstream: Sequence[int],
    upstream_strides: Sequence[int],
    z: Sequence[int],
    strides: Sequence[int],
    n: int,
    d: int,
    inverse: int,
    gradients: Sequence[int],
    stream: int,
) -> None: ...
