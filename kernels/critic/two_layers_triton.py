"""Critics of two hidden layers over all pairs in Triton, and their gradients; `cpu.py` has the formulas.

With a second layer W [g, h] a tile of pairs forms its relu(u_i + v_j) on the chip, a piece of the units at a time, for
a product with a block of W: 1 GEMM of 2 N N' h g FLOPs forward, two both ways, and nothing of a pair leaves the chip.
The backward takes chunks of pairs, square, 128 MiB at most: `_grad_second_layer` forms the scores once more and writes
the first layer, and the gradient of the second over its sums; cuBLAS makes dL/dW and the gradient of the first of them,
4 GEMMs in all; and `_sum_pairs` adds that up for rows and columns. In bfloat16 what is multiplied is rounded to it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.critic.operands_triton import Objective, Operands, Upstream, multiple
from mibfast.kernels.critic.scores_triton import grad_scores, two_layer_scores
from mibfast.kernels.launch_configuration import Tile, arithmetic, capability, precision, shipped
from mibfast.kernels.matrix_product import matrix_product
from mibfast.kernels.pairwise.pairs_triton import operand_dtype

# Units of the first layer that a tile takes at once; of the second it takes as many as pad them.
UNITS_AT_ONCE = 32
# Bytes of a chunk of pairs, their first layer, its gradient, and the second layer's.
_PAIRS_BYTES = 2**27
# Pairs that `_sum_pairs` adds at once.
_OTHERS = 16


@triton.jit
def _grad_second_layer(
    u,  # [padded N, units]
    v,  # [padded N', units]
    weight,  # [second_units]
    row_offsets,  # [padded N]
    column_offsets,  # [padded N']
    hidden_weight,  # [second_units, units]
    hidden_bias,  # [second_units]
    grad_positives,  # [N]
    grad_rows,  # [N]
    grad_columns,  # [N'], or None
    row_lse,  # [N], float64, or None
    column_lse,  # [N'], float64, or None
    first_layer,  # [chunk's pairs, units]
    second_layer,  # [chunk's pairs, second_units], which becomes its gradient
    sums,  # [programs, 2, second_units], to which dL/dweight and dL/d(hidden bias) are added
    totals,  # [programs], to which dL/ds is added
    first_row,
    first_column,
    rows,
    columns,
    chunk_columns,
    units,
    second_units,
    clip,
    offset,
    SOFTPLUS: tl.constexpr,
    POSITIVE: tl.constexpr,
    CLIPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    SECOND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The first layer of a chunk of pairs, and dL/d of the sums that the second layer is made of."""
    start_row = first_row + tl.program_id(0) * ROWS
    start_column = first_column + tl.program_id(1) * COLUMNS
    s = two_layer_scores(
        u,
        v,
        weight,
        row_offsets,
        column_offsets,
        hidden_weight,
        hidden_bias,
        start_row,
        start_column,
        units,
        second_units,
        layers=(first_layer, second_layer, first_row, first_column, chunk_columns),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        UNITS=UNITS,
        SECOND=SECOND,
        PRECISION=PRECISION,
    )
    gradient = grad_scores(
        s,
        start_row + tl.arange(0, ROWS),
        start_column + tl.arange(0, COLUMNS),
        rows,
        columns,
        (grad_positives, grad_rows, grad_columns, row_lse, column_lse),
        clip,
        offset,
        SOFTPLUS=SOFTPLUS,
        POSITIVE=POSITIVE,
        CLIPPED=CLIPPED,
    )
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(totals + program, tl.load(totals + program) + tl.sum(tl.sum(gradient, 1), 0))
    gradient = tl.reshape(gradient, (ROWS * COLUMNS,))[:, None]
    pair = tl.arange(0, ROWS * COLUMNS)
    local_row, local_column = start_row - first_row + pair // COLUMNS, start_column - first_column + pair % COLUMNS
    place = second_layer + (local_row.to(tl.int64) * chunk_columns + local_column)[:, None] * second_units
    # What other threads of the program stored is read.
    tl.debug_barrier()
    for first in range(0, second_units, SECOND):
        second = first + tl.arange(0, SECOND)
        z = tl.load(place + second[None, :]).to(tl.float32)
        # A NaN is no reason to leave a gradient out.
        inactive = z <= 0.0
        grad_weight = tl.sum(tl.where(inactive, 0.0, gradient * z), 0)
        grad_z = tl.where(inactive, 0.0, gradient * tl.load(weight + second)[None, :])
        tl.store(place + second[None, :], grad_z.to(second_layer.dtype.element_ty))
        at = sums + program * 2 * second_units + second
        tl.store(at, tl.load(at) + grad_weight)
        tl.store(at + second_units, tl.load(at + second_units) + tl.sum(grad_z, 0))


@triton.jit
def _sum_pairs(
    owners,  # [count of owners, units]
    others,  # [count, units]
    pairs,  # [owners, others, units] or [others, owners, units], as the strides say
    sums,  # [count of owners, units], which is added to
    count,
    units,
    owner_stride,
    other_stride,
    OTHERS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """sums_pk += sum_q pairs_pqk 1[owners_pk + others_qk > 0] over `count` others q."""
    owner = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    own = tl.load(owners + owner * units + unit).to(tl.float32)[None, :]
    total = tl.zeros((UNITS,), tl.float32)
    for start in range(0, count, OTHERS):
        other = (start + tl.arange(0, OTHERS))[:, None].to(tl.int64)
        x = own + tl.load(others + other * units + unit[None, :]).to(tl.float32)
        g = tl.load(pairs + (owner * owner_stride + other * other_stride) * units + unit[None, :]).to(tl.float32)
        total += tl.sum(tl.where(x <= 0.0, 0.0, g), 0)
    at = sums + owner * units + unit
    tl.store(at, tl.load(at) + total)


class TwoLayers(Operands):
    """u, v (in place of n), the weight and the hidden layer W and c; what is multiplied in the dtype of x.

    Or in float32 for float16, which is too narrow.
    """

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor, offset: Tensor) -> None:
        (self.rows, self._h), self.columns, self._g = x.shape, y.shape[0], matrix.shape[0]
        dtype = operand_dtype(x.dtype)
        self.units, second_units = multiple(self._h, self.unit_padding), multiple(self._g, self.unit_padding)
        self.u, self.n = self.padded(x.to(dtype)), self.padded(y.to(dtype))
        self.weight, hidden_bias = torch.zeros(2, second_units, dtype=torch.float32, device=x.device).unbind()
        self.weight[: self._g], hidden_bias[: self._g] = weight, offset
        self._hidden_weight = self.u.new_zeros(second_units, self.units)
        self._hidden_weight[: self._g, : self._h] = matrix
        self.row_offsets = self.weight.new_zeros(self.u.shape[0])
        self.column_offsets = bias.float().expand(self.n.shape[0]).contiguous()
        self.layers = {"hidden_weight": self._hidden_weight, "hidden_bias": hidden_bias, "second_units": second_units}
        units_at_once = min(UNITS_AT_ONCE, self.unit_padding)
        self.layers |= {"UNITS": units_at_once, "SECOND": self.unit_padding, "PRECISION": precision(dtype)}

    def sides(self) -> tuple[Tensor, Tensor]:
        return self.u, self.n

    def tile(self, objective: Objective) -> Tile:
        """The table's, which divides the padding; it is not measured."""
        return shipped("critic.two_layers", capability(self.u.device), arithmetic(self.u.dtype), self._h)

    def gradients(self, upstream: Upstream, objective: Objective, like: Sequence[Tensor]) -> list[Tensor]:
        tile, device, second_units = self.tile(objective), self.u.device, self.weight.shape[0]
        # Rows and columns of a chunk.
        pairs = _PAIRS_BYTES // ((2 * self.units + second_units) * self.u.element_size())
        edge = max(1, math.isqrt(pairs) // self.padding) * self.padding
        edge = min(edge, max(self.u.shape[0], self.n.shape[0]))
        at_once = min(edge, self.u.shape[0]) * min(edge, self.n.shape[0])

        def sums(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        first_layers, grad_first_layers = (self.u.new_empty(at_once, self.units) for _ in range(2))
        second_layers = self.u.new_empty(at_once, second_units)
        programs = at_once // (tile.rows * tile.columns)
        grad_second, totals = sums(programs, 2, second_units), sums(programs)
        grad_u, grad_v, grad_hidden = sums(*self.u.shape), sums(*self.n.shape), sums(*self._hidden_weight.shape)
        arguments = {**upstream.arguments(self.weight.dtype), **objective.arguments(), **tile.arguments()}
        chunks = [
            (row, column) for row in range(0, self.u.shape[0], edge) for column in range(0, self.n.shape[0], edge)
        ]
        with torch.cuda.device_of(self.u), torch.autocast(device.type, enabled=False):
            for first_row, first_column in chunks:
                height, breadth = min(edge, self.u.shape[0] - first_row), min(edge, self.n.shape[0] - first_column)
                count = height * breadth
                first_layer, grad_first, second_layer = (
                    x[:count] for x in (first_layers, grad_first_layers, second_layers)
                )
                _grad_second_layer[(height // tile.rows, breadth // tile.columns)](
                    u=self.u,
                    v=self.n,
                    weight=self.weight,
                    row_offsets=self.row_offsets,
                    column_offsets=self.column_offsets,
                    first_layer=first_layer,
                    second_layer=second_layer,
                    sums=grad_second,
                    totals=totals,
                    first_row=first_row,
                    first_column=first_column,
                    rows=self.rows,
                    columns=self.columns,
                    chunk_columns=breadth,
                    units=self.units,
                    **self.layers,
                    **arguments,
                )
                matrix_product(second_layer.mT, first_layer, grad_hidden, add=True)
                matrix_product(second_layer, self._hidden_weight, grad_first)
                u, v = self.u[first_row:], self.n[first_column:]
                for owners, others, out, owned, others_count, strides in (
                    (u, v, grad_u[first_row:], height, breadth, (breadth, 1)),
                    (v, u, grad_v[first_column:], breadth, height, (1, breadth)),
                ):
                    _sum_pairs[(owned, self.units // self.unit_padding)](
                        owners=owners,
                        others=others,
                        pairs=grad_first,
                        sums=out,
                        count=others_count,
                        units=self.units,
                        owner_stride=strides[0],
                        other_stride=strides[1],
                        OTHERS=_OTHERS,
                        UNITS=self.unit_padding,
                        num_warps=4,
                    )
        grad_weight, grad_offset = grad_second.sum(0, dtype=torch.float64)[:, : self._g]
        results = (
            grad_u[: self.rows, : self._h],
            grad_v[: self.columns, : self._h],
            grad_weight,
            totals.sum(dtype=torch.float64),
            grad_hidden[: self._g, : self._h],
            grad_offset,
        )
        return [z.to(x.dtype).contiguous() for z, x in zip(results, like, strict=True)]
