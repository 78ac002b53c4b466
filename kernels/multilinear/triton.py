"""Symile on the GPU: one sweep over all N^M combinations feeds all log-sum-exps; `cpu.py` has the formula.

Rows are products of the first M - 1 modalities, columns the last. Rows that share the leading M - 2 are a group: x_i
(x_i y_j with four modalities) times every row of the last but one. A sweep is 2 N^M d FLOPs.

- Forward, 1 sweep: programs walk blocks of a group's rows, and for each all columns. A product is formed where it is
  multiplied, a row of the group's factor times a tile of rows, so none is ever stored: 1 multiplication for the tile's
  2 COLUMNS FLOPs. The state of a block of rows stays in registers, that of columns is one for each program, as in
  `pairwise/reduce_triton.py`; both are merged afterwards in a fixed order: row to group, group to sample.
- Backward, 3 sweeps: a kernel like the first writes w = M N dL/ds of some groups in the operands' dtype, weights of all
  anchors together; with P the products, dP = w z and dz += w^T P are cuBLAS GEMMs, and a last kernel takes dP to
  the modalities. A row of products costs 3 N numbers of w (a write, two reads), 2 d of P and 4 d in float32, N times
  fewer than combinations. Fused into one kernel, dP and dz would ask N d accumulators of a program.

Every factor is one of the operands' dtype where a tensor core multiplies it: a product of bf16 embeddings is rounded
to bf16, as by whoever multiplies them in that dtype, and gradients' weights are; scores of positives, where a
loss near zero comes from, are formed separately, from unrounded products. Products of float16 would leave its range:
each modality is divided by the power of two of its largest number, which the scale takes in, and weights are multiplied
by 2^10. float32 is multiplied as torch multiplies it.

Memory besides operands and results: 32 MiB of row states, 8 bytes a column and program, and 32 MiB of w, P and dP,
or one group's.

`negatives_log_sum_exp`, for shuffled negatives, is a sweep of the pairwise engine.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels import launch_configuration
from mibfast.kernels.launch_configuration import Problem, Tile, launched
from mibfast.kernels.matrix_product import matrix_product
from mibfast.kernels.pairwise import triton as pairwise
from mibfast.kernels.pairwise.flags import POSITIVE_EXCLUDED, TWO_WAY
from mibfast.kernels.pairwise.gradient_triton import Wanted, Weights
from mibfast.kernels.pairwise.pairs_triton import Pairs, Scalar, load_block, load_scalar, rows_in_place
from mibfast.kernels.pairwise.reductions.log_sum_exp import LOG2_E
from mibfast.kernels.pairwise.triton import INNER_PRODUCT, LOG_SUM_EXP

_LOG2_E = tl.constexpr(LOG2_E)
# Row states, and weights with products and their gradients, that are held at once.
_STATE_BYTES = 32 * 2**20
_CHUNK_BYTES = 32 * 2**20
# Powers of two by which a row's log-sum-exp may exceed a column's while one exponential serves both.
_LARGEST_EXCESS = tl.constexpr(80.0)
# Weights keep all their bits down to 6e-8, and are at most M.
_FLOAT16_LIFT = 2.0**10
# Samples and dimensions that a program of `_backward` holds, and programs that fill the device.
_SAMPLES, _DIMENSIONS, _PROGRAMS = 32, 64, 528
_NOT_SPECIALISED = ["count", "first_group", "n"]


@triton.jit
def _rows(x, stride, first, n, SIZE: tl.constexpr):
    """Pointers [SIZE] to the rows of x from `first` on; past the end, to the last row again."""
    return x + tl.minimum(first + tl.arange(0, SIZE), n - 1).to(tl.int64) * stride


@triton.jit
def _scores(
    lead,  # [d]
    rows,  # [ROWS], pointers
    columns,  # [COLUMNS], pointers
    d,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Inner products of columns with rows times `lead`, a row: [ROWS, COLUMNS]."""
    tile = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, d, DEPTH):
        left = load_block(rows, start, d, DEPTH, EVEN)
        right = load_block(columns, start, d, DEPTH, EVEN)
        index = start + tl.arange(0, DEPTH)
        factor = tl.load(lead + index, mask=index < d, other=0.0)
        # A lead in float32 is a product itself, which is rounded once, with this one.
        product = (left.to(factor.dtype) * factor[None, :]).to(right.dtype)
        tile = tl.dot(product, tl.trans(right), tile, input_precision=PRECISION)
    return tile


@triton.jit
def _sample(group, diagonal):
    """The sample that all leading modalities of a group share, -1 where there is none."""
    return tl.where(group % diagonal == 0, group // diagonal, -1)


@triton.jit(do_not_specialize=_NOT_SPECIALISED)
def _reduce(
    lead,  # [count, d], products of the leading modalities
    last,  # [n, d], the last but one
    columns,  # [n, d], the last modality
    positives,  # [n]
    scale,
    row_states,  # [2, count, n]
    column_states,  # [2, programs, n]
    count,  # groups
    first_group,
    n,
    d,
    diagonal,  # groups from one that its leading modalities share a sample in to the next
    lead_stride,
    last_stride,
    column_stride,
    ADD: tl.constexpr,
    FLAGS: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Row states [2, count, n] of groups, and a program's column states [2, programs, n]: a maximum and a sum."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    factor = load_scalar(scale, SCALE)
    blocks = tl.cdiv(n, ROWS)
    for block in range(program, count * blocks, programs):
        group = block // blocks
        first = (block % blocks) * ROWS
        sample = _sample(first_group + group, diagonal)
        lead_row = lead + group.to(tl.int64) * lead_stride
        rows = _rows(last, last_stride, first, n, ROWS)
        own = first + tl.arange(0, ROWS)
        row_state = (tl.full((ROWS,), -float("inf"), tl.float32), tl.zeros((ROWS,), tl.float32))
        # What other threads of the program stored for its last block of rows is read below.
        tl.debug_barrier()
        for start in range(0, n, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            others = _rows(columns, column_stride, start, n, COLUMNS)
            s = _scores(lead_row, rows, others, d, ROWS, COLUMNS, DEPTH, EVEN, PRECISION)
            states = column_states + program * n.to(tl.int64) + column
            plane_size = programs * n.to(tl.int64)
            known = (column < n) & (block != program)
            column_state = (
                tl.load(states, mask=known, other=-float("inf")),
                tl.load(states + plane_size, mask=known, other=0.0),
            )
            ragged = (first + ROWS > n) | (start + COLUMNS > n)
            here = (sample >= first) & (sample < first + ROWS) & (sample >= start) & (sample < start + COLUMNS)
            if ragged | here:
                valid = (own < n)[:, None] & (column < n)[None, :]
                positive = (own == sample)[:, None] & (column == sample)[None, :]
                s = tl.where(positive, tl.load(positives + tl.maximum(sample, 0)), s)
                row_state, column_state = ADD(
                    row_state, column_state, s, factor, 0.0, valid, positive, FLAGS, SPECIAL=True
                )
            else:
                row_state, column_state = ADD(row_state, column_state, s, factor, 0.0, None, None, FLAGS, SPECIAL=False)
            tl.store(states, column_state[0], mask=column < n)
            tl.store(states + plane_size, column_state[1], mask=column < n)
        place = row_states + group * n.to(tl.int64) + own
        tl.store(place, row_state[0], mask=own < n)
        tl.store(place + count * n.to(tl.int64), row_state[1], mask=own < n)


@triton.jit
def _as_score(lse, inverse_scale):
    """A log-sum-exp, nats in float64, as a score in two float32 parts."""
    level = lse * inverse_scale
    high = level.to(tl.float32)
    low = (level - high.to(tl.float64)).to(tl.float32)
    return level, high, tl.where(tl.abs(high) == float("inf"), 0.0, low)


@triton.jit(do_not_specialize=_NOT_SPECIALISED)
def _grad_scores(
    lead,  # [count, d], products of the leading modalities
    last,  # [n, d], the last but one
    columns,  # [n, d], the last modality
    positives,  # [n]
    scale,
    lead_lse,  # [count], float64
    last_lse,  # [n], float64
    column_lse,  # [n], float64
    weights,  # [count n, n], or None
    sums,  # [programs], or None
    lift,
    modalities,
    count,  # groups
    first_group,
    n,
    d,
    diagonal,  # groups from one that its leading modalities share a sample in to the next
    lead_stride,
    last_stride,
    column_stride,
    weights_stride,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """lift M N dL/ds of groups [count n, n], and the sum of M N dL/ds times score over each program's tile.

    M N dL/ds is the sum over anchors of e^(s - R), less M at positives. A row's anchors share one exponential, e^(s -
    L) with e^-L = sum of their e^-R; the column's has it too, unless R lies too far above the column's.
    """
    row_blocks, column_blocks = tl.cdiv(n, ROWS), tl.cdiv(n, COLUMNS)
    block, start = tl.program_id(0) // column_blocks, (tl.program_id(0) % column_blocks) * COLUMNS
    group = block // row_blocks
    first = (block % row_blocks) * ROWS
    sample = _sample(first_group + group, diagonal)
    factor = load_scalar(scale, SCALE)
    own, column = first + tl.arange(0, ROWS), start + tl.arange(0, COLUMNS)
    rows, others = _rows(last, last_stride, first, n, ROWS), _rows(columns, column_stride, start, n, COLUMNS)
    lead_row = lead + group.to(tl.int64) * lead_stride
    s = _scores(lead_row, rows, others, d, ROWS, COLUMNS, DEPTH, EVEN, PRECISION)
    valid = (own < n)[:, None] & (column < n)[None, :]
    positive = (own == sample)[:, None] & (column == sample)[None, :]
    s = tl.where(positive, tl.load(positives + tl.maximum(sample, 0)), s)

    c = factor * _LOG2_E
    inverse_scale = 1.0 / factor.to(tl.float64)
    lse_of_lead = tl.load(lead_lse + group)
    lse_of_last = tl.load(last_lse + tl.minimum(own, n - 1))
    apart = tl.abs(lse_of_lead - lse_of_last).to(tl.float32)
    lowest = tl.where(lse_of_lead < lse_of_last, lse_of_lead, lse_of_last)
    lse_of_row = lowest - tl.log(1.0 + tl.exp(-apart)).to(tl.float64)
    level, high, low = _as_score(lse_of_row, inverse_scale)
    column_level, column_high, column_low = _as_score(tl.load(column_lse + tl.minimum(column, n - 1)), inverse_scale)
    e = tl.exp2((s - high[:, None]) * c - (low * c)[:, None])
    highest_row, lowest_column = tl.max(high, 0), tl.min(column_high, 0)
    if (highest_row - lowest_column) * c <= _LARGEST_EXCESS:
        middle = (0.5 * (highest_row + lowest_column)).to(tl.float64)
        by_row = tl.exp2((level - middle).to(tl.float32) * c)
        by_column = tl.exp2((middle - column_level).to(tl.float32) * c)
        w = e * (1.0 + by_row[:, None] * by_column[None, :])
    else:
        w = e + tl.exp2((s - column_high[None, :]) * c - (column_low * c)[None, :])
    w = tl.where(positive, w - modalities, w)
    if sums is not None:
        tl.store(sums + tl.program_id(0), tl.sum(tl.sum(tl.where(valid, w * s, 0.0), 1), 0))
    if weights is not None:
        row = group * n.to(tl.int64) + own
        addresses = weights + row[:, None] * weights_stride + column[None, :]
        tl.store(addresses, (w * lift).to(weights.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["count", "n"])
def _backward(
    gradient,  # [count n, d]
    lead,  # [count, d]
    last,  # [n, d]
    grad_lead,  # [sample blocks, count, d], or None
    grad_last,  # [splits, n, d], or None
    count,  # groups
    n,
    d,
    split_size,
    lead_stride,
    last_stride,
    SAMPLES: tl.constexpr,
    DIMENSIONS: tl.constexpr,
):
    """Gradients of the lead and the last modality from that of their products.

    A program reads a tile of samples and dimensions of some groups, once, for both.
    """
    own = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    dimension = tl.program_id(1) * DIMENSIONS + tl.arange(0, DIMENSIONS)
    split = tl.program_id(2)
    inside = (own < n)[:, None] & (dimension < d)[None, :]
    rows = own[:, None].to(tl.int64)
    factor = tl.load(last + rows * last_stride + dimension[None, :], mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((SAMPLES, DIMENSIONS), tl.float32)
    for group in range(split * split_size, tl.minimum((split + 1) * split_size, count)):
        wide_group = tl.cast(group, tl.int64)
        tile = tl.load(gradient + (wide_group * n + rows) * d + dimension[None, :], mask=inside, other=0.0)
        if grad_last is not None:
            by = tl.load(lead + wide_group * lead_stride + dimension, mask=dimension < d, other=0.0).to(tl.float32)
            total += tile * by[None, :]
        if grad_lead is not None:
            place = (tl.program_id(0) * count.to(tl.int64) + wide_group) * d + dimension
            tl.store(grad_lead + place, tl.sum(tile * factor, 0), mask=dimension < d)
    if grad_last is not None:
        tl.store(grad_last + (split * n.to(tl.int64) + rows) * d + dimension[None, :], total, mask=inside)


@dataclass(frozen=True)
class _Block:
    """Groups that are taken together: where samples of each leading modality begin and end, and the first group."""

    ranges: tuple[tuple[int, int], ...]
    first: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(end - begin for begin, end in self.ranges)

    @property
    def count(self) -> int:
        return math.prod(self.shape)


class _Sweep:
    """All combinations of samples, a block of groups at a time."""

    def __init__(self, z: Sequence[Tensor], scale: Tensor) -> None:
        self.z = [rows_in_place(x) for x in z]
        self.scale = Scalar.of(scale.detach())
        self.powers: list[Tensor | float] = [1.0] * len(z)
        if z[0].dtype == torch.float16:
            self.powers = [_power_of_two(x) for x in self.z]
            self.z = [(x.float() / power).half() for x, power in zip(self.z, self.powers, strict=True)]
            self.scale = Scalar.of(self.scale.number() * self.power())
        self.m, (self.n, self.d), self.device = len(z), z[0].shape, z[0].device
        product = self.z[0].double()
        for x in self.z[1:]:
            product = product * x
        self.positives = product.sum(1).float()

    def problem(self) -> Problem:
        """The problem that tiles are chosen for: rows of a group, and columns."""
        return Problem(self.device, self.z[0].dtype, self.n, self.n, self.d)

    def power(self) -> Any:
        """The product of the powers of two that modalities were divided by."""
        return math.prod(self.powers)

    def factor(self) -> Tensor:
        """The scale, rounded to float32 as kernels have it, in float64."""
        number = self.scale.number()
        if not isinstance(number, Tensor):
            number = torch.full((), number, device=self.device)
        return number.float().double()

    def blocks(self, most: int) -> Iterator[_Block]:
        """Blocks of no more than `most` groups, or of one."""
        sizes = [min(self.n, max(1, most))]
        if self.m == 4:
            sizes = [max(1, most // self.n), *sizes]
        if self.m == 3:
            for begin in range(0, self.n, sizes[0]):
                yield _Block(((begin, min(begin + sizes[0], self.n)),), begin)
            return
        for begin in range(0, self.n, sizes[0]):
            for second in range(0, self.n, sizes[1]):
                ends = min(begin + sizes[0], self.n), min(second + sizes[1], self.n)
                yield _Block(((begin, ends[0]), (second, ends[1])), begin * self.n + second)

    def lead(self, block: _Block) -> Tensor:
        """The product of the leading modalities for each group; the rows themselves where there is one."""
        parts = [x[begin:end] for x, (begin, end) in zip(self.z, block.ranges, strict=False)]
        if len(parts) == 1:
            return parts[0]
        return (parts[0].float()[:, None] * parts[1].float()).flatten(0, 1)

    def arguments(self, block: _Block, lead: Tensor, tile: Tile) -> dict[str, Any]:
        """Arguments that both kernels of scores take."""
        last, columns = self.z[-2], self.z[-1]
        return {
            "lead": lead,
            "last": last,
            "columns": columns,
            "positives": self.positives,
            "scale": self.scale.value,
            "count": block.count,
            "first_group": block.first,
            "n": self.n,
            "d": self.d,
            "diagonal": 1 if self.m == 3 else self.n + 1,
            "lead_stride": lead.stride(0),
            "last_stride": last.stride(0),
            "column_stride": columns.stride(0),
            "SCALE": self.scale.kind,
            **tile.product_arguments(self.d, columns.dtype),
        }


def _power_of_two(x: Tensor) -> Tensor:
    """The power of two by which the largest number of x comes into [0.5, 1); 1 where there is none."""
    largest = x.abs().amax().double()
    power = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
    return torch.where((largest > 0) & (largest < torch.inf), power, 1.0)


def _log_sum_exps(sweep: _Sweep, tile: Tile) -> Tensor:
    """The log-sum-exps of all anchors [M, N], float64."""
    n, m, device, factor = sweep.n, sweep.m, sweep.device, sweep.factor()
    lse = torch.full((m, n), -torch.inf, dtype=torch.float64, device=device)

    def add(modality: int, begin: int, end: int, values: Tensor) -> None:
        torch.logaddexp(lse[modality, begin:end], values, out=lse[modality, begin:end])

    for block in sweep.blocks(_STATE_BYTES // (8 * n)):
        programs = min(launch_configuration.programs(device), block.count * triton.cdiv(n, tile.rows))
        row_states = torch.empty(2, *block.shape, n, dtype=torch.float32, device=device)
        column_states = torch.empty(2, programs, n, dtype=torch.float32, device=device)
        _reduce[(programs,)](
            **sweep.arguments(block, sweep.lead(block), tile),
            row_states=row_states,
            column_states=column_states,
            ADD=LOG_SUM_EXP.triton[0],
            FLAGS=TWO_WAY,
        )
        row_lse, column_lse = (
            factor * maxima.double() + sums.double().log()
            for maxima, sums in (row_states.unbind(), column_states.unbind())
        )
        add(m - 1, 0, n, column_lse.logsumexp(0))
        add(m - 2, 0, n, row_lse.flatten(0, -2).logsumexp(0))
        group_lse = row_lse.logsumexp(-1)
        for k, (begin, end) in enumerate(block.ranges):
            add(k, begin, end, group_lse.movedim(k, 0).flatten(1).logsumexp(1) if m > 3 else group_lse)
    return lse


def symile_with_gradient(z: Sequence[Tensor], scale: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    """Symile with all negatives and, where any is needed, its gradients: those of the M embeddings, and the scale's.

    The embeddings' are float32. Gradients that are not needed are empty.
    """
    m, results = len(z), [*(x.new_empty(x.shape, dtype=torch.float32) for x in z), scale.new_empty(())]
    with torch.cuda.device_of(z[0]), torch.autocast(z[0].device.type, enabled=False):
        sweep = _Sweep(z, scale)
        lse = launched("multilinear.reduce", sweep.problem(), lambda tile: _log_sum_exps(sweep, tile))
        loss = (lse.mean() - sweep.factor() * sweep.positives.double().mean()).float()
        if not any(needed):
            return [loss, *results]
        # A scale given as a Python number is a CPU tensor here, and needs no gradient.
        wants_scale = needed[m] and scale.device == sweep.device
        gradients, along = launched(
            "multilinear.gradient", sweep.problem(), lambda tile: _gradients(sweep, lse, needed[:m], wants_scale, tile)
        )
        share = 1.0 / (m * sweep.n)
        lift = _lift(sweep)
        for k, gradient in enumerate(gradients):
            if gradient is not None:
                multiple = sweep.scale.number() * (share / lift) / sweep.powers[k]
                results[k] = gradient * multiple
        if along is not None:
            results[m] = (along * share * sweep.power()).to(scale.dtype)
    return [loss, *results]


def _lift(sweep: _Sweep) -> float:
    return _FLOAT16_LIFT if sweep.z[0].dtype == torch.float16 else 1.0


def _gradients(
    sweep: _Sweep, lse: Tensor, needed: Sequence[bool], wants_scale: bool, tile: Tile
) -> tuple[list[Tensor | None], Tensor | None]:
    """Gradients [N, d] of lifted weights for modalities, float32, and the sum of weights times scores, float64."""
    n, d, m, device, dtype = sweep.n, sweep.d, sweep.m, sweep.device, sweep.z[0].dtype
    wide: dict[str, Any] = {"dtype": torch.float32, "device": device}
    gradients = [torch.zeros(n, d, **wide) if need else None for need in needed]
    wants_rows, grad_columns = any(needed[: m - 1]), gradients[m - 1]
    along = torch.zeros((), dtype=torch.float64, device=device) if wants_scale else None
    # A leading dimension of whole 128 bytes is what cuBLAS reads fastest.
    stride = triton.cdiv(n, 64) * 64
    row_bytes = stride * dtype.itemsize + d * (dtype.itemsize + 4)
    weights = None
    for block in sweep.blocks(_CHUNK_BYTES // (row_bytes * n)):
        lead = sweep.lead(block)
        if weights is None and any(needed):
            # The first block is the largest.
            weights = torch.empty(block.count * n, stride, dtype=dtype, device=device)
        tiles = block.count * triton.cdiv(n, tile.rows) * triton.cdiv(n, tile.columns)
        sums = torch.empty(tiles, **wide) if wants_scale else None
        (begin, end), *rest = block.ranges
        lead_lse = lse[0, begin:end]
        for k, (other_begin, other_end) in enumerate(rest, start=1):
            lead_lse = -torch.logaddexp(-lead_lse[:, None], -lse[k, other_begin:other_end]).flatten()
        _grad_scores[(tiles,)](
            **sweep.arguments(block, lead, tile),
            lead_lse=lead_lse,
            last_lse=lse[m - 2],
            column_lse=lse[m - 1],
            weights=weights,
            sums=sums,
            lift=_lift(sweep),
            modalities=float(m),
            weights_stride=stride,
        )
        if along is not None and sums is not None:
            along += sums.sum(dtype=torch.float64)
        if weights is None:
            continue
        w = weights[: block.count * n, :n]
        if grad_columns is not None:
            products = (lead[:, None] * sweep.z[-2]).to(dtype).flatten(0, 1)
            matrix_product(w.T, products, grad_columns, add=True)
        if wants_rows:
            _add_to_rows(sweep, block, lead, matrix_product(w, sweep.z[-1]), gradients)
    return gradients, along


def _add_to_rows(
    sweep: _Sweep, block: _Block, lead: Tensor, gradient: Tensor, gradients: Sequence[Tensor | None]
) -> None:
    """Add the gradient of a block's products [count N, d] to those of the first M - 1 modalities."""
    n, d, m = sweep.n, sweep.d, sweep.m
    last = sweep.z[-2]
    grad_last, grad_leads = gradients[m - 2], gradients[: m - 2]
    wants_lead = any(x is not None for x in grad_leads)
    samples, dimensions = triton.cdiv(n, _SAMPLES), triton.cdiv(d, _DIMENSIONS)
    size = triton.cdiv(block.count, max(1, min(block.count, _PROGRAMS // (samples * dimensions))))
    splits = triton.cdiv(block.count, size)
    lead_parts = gradient.new_empty(samples, block.count, d) if wants_lead else None
    last_parts = gradient.new_empty(splits, n, d) if grad_last is not None else None
    _backward[(samples, dimensions, splits)](
        gradient=gradient,
        lead=lead,
        last=last,
        grad_lead=lead_parts,
        grad_last=last_parts,
        count=block.count,
        n=n,
        d=d,
        split_size=size,
        lead_stride=lead.stride(0),
        last_stride=last.stride(0),
        SAMPLES=_SAMPLES,
        DIMENSIONS=_DIMENSIONS,
        num_warps=4,
    )
    if grad_last is not None and last_parts is not None:
        grad_last += last_parts.sum(0)
    if lead_parts is None:
        return
    grad_lead = lead_parts.sum(0).view(*block.shape, d)
    if m == 3:
        ((begin, end),) = block.ranges
        assert grad_leads[0] is not None
        grad_leads[0][begin:end] = grad_lead
        return
    # Times the other leading modality: never by dividing, which zeros forbid.
    for k, result in enumerate(grad_leads):
        if result is not None:
            begin, end = block.ranges[1 - k]
            other = sweep.z[1 - k][begin:end].float()
            own_begin, own_end = block.ranges[k]
            result[own_begin:own_end] += (grad_lead * (other if k == 0 else other[:, None])).sum(1 - k)


def negatives_log_sum_exp(query: Tensor, key: Tensor) -> Tensor:
    """Log-sum-exp over j != i of q_i . k_j: [N], float64."""
    return pairwise.losses(INNER_PRODUCT, _pairs(query, key), POSITIVE_EXCLUDED, 0.0)[1]


def negatives_log_sum_exp_backward(
    upstream: Tensor, query: Tensor, key: Tensor, lse: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of `negatives_log_sum_exp`, those that are needed; the others are empty."""
    # A label smoothing of 1 takes InfoNCE's target off the positive; without TOTALS it goes nowhere else.
    weights = Weights(upstream.float().contiguous(), 1.0, lse, lse.new_empty(0), 1.0)
    wanted = Wanted(needed[0], needed[1])
    gradients = pairwise.losses_gradient(INNER_PRODUCT, _pairs(query, key), POSITIVE_EXCLUDED, weights, wanted)
    return gradients.embedding_gradients(query, key)


def _pairs(query: Tensor, key: Tensor) -> Pairs:
    return Pairs(rows_in_place(query), rows_in_place(key)[None])
