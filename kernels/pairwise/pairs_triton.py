"""Pairs of rows and columns in Triton: what is scored, and how a program forms a tile of scores."""

# ruff: noqa: RUF005 - jit functions build tuples by addition
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,assignment"
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import Problem, Tile

# What a scalar argument is: a number, the address of one, or the address of one whose inverse is meant.
GIVEN, AT_ADDRESS, INVERSE_AT_ADDRESS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# Blocks of rows that walk the columns abreast, so that they find them in L2.
_ABREAST = tl.constexpr(8)


@triton.jit
def load_scalar(x, KIND: tl.constexpr):
    """A float32 scalar; the inverse of one that is not positive and finite is NaN."""
    if KIND == GIVEN:
        value = tl.cast(x, tl.float32)
    else:
        value = tl.load(x).to(tl.float64)
        if KIND == INVERSE_AT_ADDRESS:
            value = tl.where((value > 0.0) & (value < float("inf")), 1.0 / value, float("nan"))
        value = value.to(tl.float32)
    return value


@triton.jit
def block_pointers(x, stride, first, last, SIZE: tl.constexpr):
    """Pointers [SIZE] to the rows of x from `first` on; past the end, to row `last` - 1 again."""
    index = tl.minimum(tl.arange(0, SIZE), last - 1 - first)
    return x + tl.cast(first, tl.int64) * stride + index * stride


@triton.jit
def load_block(pointers, start, d, DEPTH: tl.constexpr, EVEN: tl.constexpr):
    """Numbers `start` to `start + DEPTH` of each row, zeros from d on: [SIZE, DEPTH]."""
    index = start + tl.arange(0, DEPTH)
    addresses = pointers[:, None] + index[None, :]
    if EVEN:
        return tl.load(addresses)
    return tl.load(addresses, mask=index[None, :] < d, other=0.0)


@triton.jit
def inner_products(
    row_pointers,  # [ROWS]
    left,  # [ROWS, DEPTH], the rows, where they are held whole; else None
    operands,  # [K, N', d]
    column_stride,
    tile_stride,
    start,
    last_column,
    d,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """K tiles [ROWS, COLUMNS] of inner products of rows with the columns from `start` on."""
    tiles = ()
    for k in tl.static_range(K):
        columns = block_pointers(operands + k * tile_stride, column_stride, start, last_column, COLUMNS)
        if left is not None:
            right = load_block(columns, 0, d, DEPTH, EVEN)
            tile = tl.dot(left, tl.trans(right), input_precision=PRECISION)
        else:
            tile = tl.zeros((ROWS, COLUMNS), tl.float32)
            for begin in range(0, d, DEPTH):
                piece = load_block(row_pointers, begin, d, DEPTH, EVEN)
                right = load_block(columns, begin, d, DEPTH, EVEN)
                tile = tl.dot(piece, tl.trans(right), tile, input_precision=PRECISION)
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def load_statistics(row_statistic, column_statistics, rows, columns, n_columns, S: tl.constexpr):
    """The row's statistic, 0 where it has none, in the shape of `rows`, and S of the columns, a tuple."""
    row_value = 0.0
    if row_statistic is not None:
        row_value = tl.load(row_statistic + rows)
    column_values = ()
    for number in tl.static_range(S):
        column_values = column_values + (tl.load(column_statistics + number * n_columns + columns),)
    return row_value, column_values


@triton.jit
def block_of_program(program, row_blocks, column_blocks):
    """A program's block of rows and block of columns."""
    group = program // (_ABREAST * column_blocks)
    abreast = tl.minimum(row_blocks - group * _ABREAST, _ABREAST)
    within = program - group * _ABREAST * column_blocks
    return group * _ABREAST + within % abreast, within // abreast


class Scalar(NamedTuple):
    """A number that the host knows, or one on the device, or there its inverse."""

    value: float | Tensor
    kind: int

    @staticmethod
    def of(x: Tensor | float, inverted: bool = False) -> Scalar:
        """A scalar argument from a number or a 0-d tensor, which is read back only where it is on the CPU anyway."""
        if isinstance(x, Tensor) and x.device.type != "cpu":
            return Scalar(x, (INVERSE_AT_ADDRESS if inverted else AT_ADDRESS).value)
        value = float(x)
        if inverted:
            value = 1.0 / value if 0.0 < value < math.inf else math.nan
        return Scalar(value, GIVEN.value)

    def number(self) -> float | Tensor:
        """The number, float64 on the device where it is there."""
        if isinstance(self.value, float):
            return self.value
        value = self.value.double()
        if self.kind == INVERSE_AT_ADDRESS.value:
            value = torch.where((value > 0) & (value < torch.inf), value.reciprocal(), torch.nan)
        return value


ZERO, ONE = Scalar(0.0, GIVEN.value), Scalar(1.0, GIVEN.value)


@dataclass(frozen=True)
class Pairs:
    """What is scored: rows, columns of K operands, and what scores and reductions ask for.

    The positive of row i is column i + offset, if there is such a column. Statistics, and scores of positives that are
    known more exactly than tiles give them, are float32.
    """

    rows: Tensor  # [N, d]
    operands: Tensor  # [K, N', d]
    scale: Scalar = ONE
    bias: Scalar = ZERO
    offset: int = 0
    row_statistic: Tensor | None = None  # [N]
    column_statistics: Tensor | None = None  # [S, N']
    positives: Tensor | None = None  # [N]

    @property
    def n(self) -> int:
        return int(self.rows.shape[0])

    @property
    def count(self) -> int:
        return int(self.operands.shape[1])

    @property
    def d(self) -> int:
        return int(self.rows.shape[1])

    @property
    def k(self) -> int:
        return int(self.operands.shape[0])

    @property
    def held(self) -> int:
        """Tiles that a pair takes in registers: inner products, and the score where it is none of them."""
        return self.k + (self.row_statistic is not None or self.column_statistics is not None)

    def problem(self, light: bool = False) -> Problem:
        """What a tile is chosen for."""
        return Problem(self.rows.device, self.rows.dtype, self.n, self.count, self.d, self.held, light)

    def arguments(self, tile: Tile) -> dict[str, Any]:
        """Arguments that every kernel of scores takes."""
        return {
            "rows": self.rows,
            "operands": self.operands,
            "row_statistic": self.row_statistic,
            "column_statistics": self.column_statistics,
            "positives": self.positives,
            "scale": self.scale.value,
            "bias": self.bias.value,
            "n": self.n,
            "n_columns": self.count,
            "d": self.d,
            "offset": self.offset,
            "row_stride": self.rows.stride(0),
            "column_stride": self.operands.stride(1),
            "tile_stride": self.operands.stride(0),
            "K": self.k,
            "S": 0 if self.column_statistics is None else self.column_statistics.shape[0],
            "SCALE": self.scale.kind,
            "BIAS": self.bias.kind,
            **tile.product_arguments(self.d, self.rows.dtype),
        }


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of operands of a score that float16 is too narrow for: dL/dtile of a volume grows as it vanishes."""
    return torch.float32 if dtype == torch.float16 else dtype


def rows_in_place(x: Tensor) -> Tensor:
    """A matrix whose rows are contiguous: x itself where they are."""
    x = x.detach()
    return x if x.stride(-1) == 1 else x.contiguous()
