"""The rows of the CPU engine, taken a block at a time, and the way back of their gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibfast.kernels.compilation import inline, kernel
from mibfast.kernels.row_addresses import RowAddresses, row_at

# Between them the norm's inverse is a normal float32, and squares are exact in float64.
_LEAST_SQUARE, _LARGEST_SQUARE = 1e-74, 1e290
_LOWERED, _RAISING, _LOWERING = 2.0**450, 2.0**900, 2.0**-600


@inline
def _load_extreme(x: Any, scale: float, row: Any, inverse: Any, i: int) -> float:
    """Make a row unit whose norm, or its inverse, is beyond the range of squares or of float32; return its square.

    Zeros stay zero, and so does their gradient; infinities and NaN give NaN.
    """
    largest, total = 0.0, 0.0
    for j in range(x.size):
        magnitude = abs(np.float64(x[j]))
        largest = largest if magnitude <= largest else magnitude
        # NaN, which `largest` forgets, stays in it.
        total += magnitude
    number = row.dtype.type
    if total == 0.0:
        for j in range(x.size):
            row[j] = number(0.0)
        inverse[i] = number(0.0)
        return 0.0
    # Exact: a power of two brings the squares of all that counts into range.
    power = _RAISING if largest < 1.0 / _LOWERED else _LOWERING if largest > _LOWERED else 1.0
    squared = 0.0
    for j in range(x.size):
        y = np.float64(x[j]) * power
        row[j] = number(y)
        squared += y * y
    factor = scale / math.sqrt(squared)
    # Apart: in one product the two factors may be multiplied with each other first, beyond every number.
    for j in range(x.size):
        row[j] = number(np.float64(row[j]) * factor)
    most = np.float64(np.finfo(row.dtype).max)
    inverse[i] = number(min(factor * power, most)) if factor == factor else number(factor)
    return scale * scale


def _load_rows(
    address: int,
    stride: int,
    first: int,
    count: int,
    scale: float,
    unit: bool,
    block: Any,
    inverse: Any,
    wants_norms: bool,
    squared_norms: Any,
) -> None:
    """block = scale x, or scale x / |x| where unit; `inverse` [B] gets scale or scale / |x|, 0 for a row of zeros.

    `squared_norms` [B] gets those of the block's rows, where they are wanted.
    """
    d = block.shape[1]
    for i in range(count):
        x, row = row_at(address, first + i, stride, d, block), block[i]
        factor = block.dtype.type(scale)
        squared = 0.0
        if unit or wants_norms:
            for j in range(d):
                squared += np.float64(x[j]) * np.float64(x[j])
        if unit:
            factor = block.dtype.type(0.0 if squared == 0.0 else scale / math.sqrt(squared))
            if not _LEAST_SQUARE <= squared <= _LARGEST_SQUARE:
                squared = _load_extreme(x, scale, row, inverse, i)
                if wants_norms:
                    squared_norms[i] = squared
                continue
        inverse[i] = factor
        if wants_norms:
            # In float64: the square of the factor that makes a tiny row unit is beyond float32.
            wide = np.float64(factor)
            squared_norms[i] = squared * wide * wide
        for j in range(d):
            row[j] = x[j] * factor


def _add_row_gradients(
    block: Any,
    gradient: Any,
    factors: Any,
    inverse: Any,
    first: int,
    count: int,
    scale: float,
    unit: bool,
    scaled: bool,
    has_norms: bool,
    squared_norm_gradient: Any,
    into: Any,
) -> float:
    """Add the gradient of the embeddings to rows of `into`, where it has any; return dL/dscale of the block times
    scale, where it is scaled.

    The gradient of the block is `factors * gradient`, and twice the rows times the gradient of their squared norms,
    where there is one, is added to `gradient` first. A unit row passes on only what is across it.
    """
    along_scale = 0.0
    for i in range(count):
        x, g = block[i], gradient[i]
        if has_norms:
            twice = block.dtype.type(2.0) * squared_norm_gradient[i]
            for j in range(x.size):
                g[j] += twice * x[j]
        dot = 0.0
        if scaled or unit:
            for j in range(x.size):
                dot += np.float64(x[j]) * np.float64(g[j])
        along_scale += dot * factors[i]
        if into.shape[0] == 0:
            continue
        row = into[first + i]
        # In float64: the factor of a softmax not yet normalised and the inverse of a large norm may both be tiny.
        across = np.float64(factors[i]) * np.float64(inverse[i])
        along = block.dtype.type(dot / (scale * scale)) if unit else block.dtype.type(0.0)
        for j in range(x.size):
            row[j] += block.dtype.type(across * (g[j] - along * x[j]))
    return along_scale


# Part of kernels that take all rows at once, and kernels of their own.
load_rows, _load = inline(_load_rows), kernel(_load_rows)
add_gradient, _add_gradient = inline(_add_row_gradients), kernel(_add_row_gradients)


def unit_rows(x: Tensor) -> tuple[Tensor, np.ndarray]:
    """Rows [N, d] of float32 or float64 divided by their norms, contiguous, and the norms' inverses."""
    source = RowAddresses([x])
    unit, inverse = source.empty(source.n, source.d), np.empty(source.n, source.dtype)
    norms = np.empty(0, source.dtype)
    _load(int(source.addresses[0]), int(source.strides[0]), 0, source.n, 1.0, True, unit, inverse, False, norms)
    return torch.from_numpy(unit), inverse


def unit_rows_backward(gradient: Tensor, unit: Tensor, inverse: np.ndarray) -> Tensor:
    """The gradient of rows from that of the unit rows."""
    into = np.zeros(tuple(unit.shape), inverse.dtype)
    ones, norms = np.ones(len(inverse), inverse.dtype), np.empty(0, inverse.dtype)
    _add_gradient(unit.numpy(), gradient.numpy(), ones, inverse, 0, len(inverse), 1.0, True, False, False, norms, into)
    return torch.from_numpy(into)


class Rows:
    """The rows of a score: embeddings [N, d] of any dtype and strides, made unit where asked, times a scale.

    Their one statistic is the squared norm, for scores that ask for it. Where the scores of the positives are known
    better than from the tiles, which cancel, `positives` holds them: those of row i < P and its positive. They take the
    place of the tiles' scores, whose gradients then leave these pairs out; theirs is collected apart.
    """

    def __init__(
        self,
        embeddings: Tensor,
        *,
        unit: bool = False,
        wants_norms: bool = False,
        positives: np.ndarray | None = None,
    ) -> None:
        self._source = RowAddresses([embeddings])
        self.n, self.d, self.dtype = self._source.n, self._source.d, self._source.torch_dtype
        self.numpy_dtype = self._source.dtype
        self._unit, self._wants_norms, self._nothing = unit, wants_norms, self._source.empty(0, self.d)
        self.positives = np.empty(0) if positives is None else positives
        self.grad_positives = np.zeros(self.positives.size)
        self.multiply(1.0)
        self._address, self._stride = int(self._source.addresses[0]), int(self._source.strides[0])

    def multiply(self, scale: float, wants_gradient: bool = False) -> None:
        """Let rows be times a scale, whose gradient, where it is wanted, is collected in `grad_scale`."""
        self.scale, self._wants_grad_scale, self.grad_scale = scale, wants_gradient, 0.0

    @property
    def whole(self) -> tuple[int, int, float, bool, bool, bool]:
        """All rows for a kernel that takes them at once: where they lie, and what is done to and asked of them."""
        return self._address, self._stride, self.scale, self._unit, self._wants_norms, self._wants_grad_scale

    @property
    def wants_gradient(self) -> bool:
        """Whether `add_gradient` has something to do besides the gradient of the embeddings."""
        return self._wants_grad_scale

    def start(self, size: int) -> None:
        """Make room for blocks of up to `size` rows."""
        # Rows that nothing is done to are read where they lie.
        untouched = not (self._unit or self._wants_norms) and self.scale == 1.0
        self._as_they_lie = self._source.contiguous(0) if untouched else None
        self._block = self._source.empty(size if self._as_they_lie is None else 0, self.d)
        self._weighted = self._source.empty(size, self.d)
        self._inverse = self._source.empty(size)
        self.squared_norms = np.zeros(size, self.numpy_dtype)
        self.grad_squared_norms = np.zeros(size, self.numpy_dtype)
        self._inverse.fill(1.0)

    def block(self, first: int, last: int) -> Tensor:
        """Return rows first to last, which stay until the next block is asked for."""
        if self._as_they_lie is not None:
            self._block = self._as_they_lie[first:last]
            return torch.from_numpy(self._block)
        count = last - first
        _load(
            self._address,
            self._stride,
            first,
            count,
            self.scale,
            self._unit,
            self._block,
            self._inverse,
            self._wants_norms,
            self.squared_norms,
        )
        return torch.from_numpy(self._block[:count])

    def weighted(self, factors: np.ndarray, count: int) -> Tensor:
        """Return the block, each row times its factor."""
        block, weighted = torch.from_numpy(self._block[:count]), torch.from_numpy(self._weighted[:count])
        return torch.mul(block, torch.from_numpy(factors[:count, None]), out=weighted)

    def add_gradient(self, first: int, count: int, gradient: Tensor, factors: np.ndarray, into: Tensor | None) -> None:
        """Bring `factors * gradient`, the gradient of the block, back to the embeddings, and add it to `into`'s rows.

        A score is of degree 1 in the row, so dL/dscale = sum of dL/ds s / scale = dL/drow . row / scale.
        """
        target = self._nothing if into is None else into.numpy()
        along_scale = _add_gradient(
            self._block,
            gradient.numpy(),
            factors,
            self._inverse,
            first,
            count,
            self.scale,
            self._unit,
            self._wants_grad_scale,
            self._wants_norms,
            self.grad_squared_norms,
            target,
        )
        self.grad_scale += along_scale / self.scale
