"""Tiles, warps and stages of the Triton engine's kernels: a function of the device, the dtype, d and K, written down.

Nothing is tuned at a first call, so every process makes the same choice and results repeat; a measurement replaces a
choice here. These compile without spills and within shared memory for sm_80 and sm_90 (`tests/test_triton_pairwise.py`
asks the compiler); not yet measured.

With d in pieces of 64 a tile of 128 x 64 pairs is 24 KB a stage in bf16. A tile of 128 x 128 asks half the traffic of
columns of L2, but registers allow it where a softmax of rows is all; with weights both ways, totals or softplus it
spills (124 to 712 bytes a thread). Up to d = 128 the block of rows stays for the whole walk, and only columns are
loaded; that loop is not pipelined, which Triton 3.6 fails to do for sm_90 around a branch.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

# What stands for a device's capability in the interpreter: small tiles, so that small inputs have many.
INTERPRETED = 0


class Tile(NamedTuple):
    """Rows and columns of a tile, the piece of d that is multiplied at once, warps and stages of the pipeline."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@functools.cache
def capability(device: torch.device) -> int:
    """80 for Ampere, 90 for Hopper; `INTERPRETED` for CPU tensors."""
    if device.type != "cuda":
        return INTERPRETED
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def programs(device: torch.device) -> int:
    """How many programs walk columns at the same time: one a multiprocessor, whose registers it takes."""
    if device.type != "cuda":
        return 3
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as torch multiplies it."""
    return "tf32" if dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def power_of_two(d: int) -> int:
    """The least power of two that is no less than d, and one that a tensor core takes."""
    return max(16, 1 << (d - 1).bit_length())


def of_reduction(device_capability: int, itemsize: int, dot: str, d: int, k: int, light: bool) -> tuple[Tile, bool]:
    """The tile of `reduce`, and whether rows are multiplied whole; `light` where nothing but a softmax is formed."""
    if device_capability == INTERPRETED:
        return Tile(16, 32, 16, 1, 1), d <= 16
    if dot == "ieee" or k > 2:
        return Tile(64, 64, 64 // itemsize, 8, 2), False
    columns = 128 if light and k == 1 and itemsize == 2 else 64
    if k == 1 and d * itemsize <= 256:
        return Tile(128, columns, power_of_two(d), 8, 1), True
    return Tile(128, columns, 128 // itemsize, 8, 3), False


def of_chunk(device_capability: int, itemsize: int, dot: str, k: int, light: bool) -> Tile:
    """The tile of the gradient in chunks."""
    if device_capability == INTERPRETED:
        return Tile(16, 32, 16, 1, 1)
    if dot == "ieee" or k > 1:
        return Tile(64, 64, 64 // itemsize, 8, 2)
    return Tile(128, 128 if light and itemsize == 2 else 64, 128 // itemsize, 8, 3)


def of_recomputation(device_capability: int, itemsize: int, dot: str, d: int) -> Tile:
    """The tile of the gradient that recomputes: `rows` are the program's own side, `columns` the one it walks."""
    if device_capability == INTERPRETED:
        return Tile(16, 32, power_of_two(d), 1, 1)
    if dot == "ieee":
        return Tile(32, 32, power_of_two(d), 8, 1)
    return Tile(64, 64, power_of_two(d), 8, 2)
