"""Block sizes and warps of Triton kernels: a function of shape and dtype that is written down, not tuned at a call.

A choice here is the same in every process, so results repeat; a measurement replaces it in one place. Chosen so that no
kernel spills registers on sm_80 and sm_90, which the tests see to by compiling them; not yet measured on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Embeddings or experts that one Triton kernel takes: each is a pointer, and a tile or a row of one in registers.
LARGEST_M = 16
# Threads of a warp.
_WARP = 32
# A row longer than this is walked in pieces.
_LONGEST_PIECE = 1024


class Tile(NamedTuple):
    """A tile of rows and columns, and the warps that share it."""

    rows: int
    columns: int
    warps: int


def elementwise_tile(d: int, matrices: int, dtype: torch.dtype) -> Tile:
    """For kernels that hold one tile of each of `matrices` [N, d] at a time, `dtype` what they compute in.

    Eight numbers a thread keep loads at 16 bytes of half precision; fewer where many matrices share the registers.
    """
    registers = matrices * (2 if dtype == torch.float64 else 1)
    a_thread = 8 if registers <= 4 else 4 if registers <= 16 else 2
    columns = min(power_of_two(d), _LONGEST_PIECE, 4 * _WARP * a_thread)
    return Tile(4 * _WARP * a_thread // columns, columns, 4)


def sample_tile(d: int, vectors: int) -> Tile:
    """For kernels whose program takes one sample, in float64: its vectors are the rows, a piece of d the columns.

    Up to four vectors take one warp, so that nothing waits for another, and sixteen numbers a thread and tile; more of
    them have larger small matrices, and registers for eight.
    """
    rows = power_of_two(vectors)
    warps, a_thread = max(1, rows // 4), 16 if rows <= 4 else 8
    return Tile(rows, min(power_of_two(d), a_thread * _WARP * warps // rows), warps)


def power_of_two(n: int) -> int:
    """The smallest power of two that is no less than n, at least 2."""
    return max(2, 1 << (n - 1).bit_length())


def on_device_of(x: Tensor) -> torch.cuda.device_of:
    """A context in which kernels are launched on the device of `x`, whatever device is current."""
    return torch.cuda.device_of(x)  # type: ignore[no-untyped-call]
