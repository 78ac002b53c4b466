"""The rows of the CPU engine, taken a block at a time, and the way back of their gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibfast.kernels.compilation import kernel
from mibfast.kernels.row_addresses import RowAddresses, row_at


@kernel
def _load(
    address: int, stride: int, first: int, count: int, scale: float, unit: bool, block: Any, inverse: Any
) -> None:
    """block = scale x, or scale x / |x| where unit; `inverse` [B] gets scale or scale / |x|, 0 for a row of zeros."""
    d = block.shape[1]
    for i in range(count):
        x, row = row_at(address, first + i, stride, d, block), block[i]
        factor = block.dtype.type(scale)
        if unit:
            squared = 0.0
            for j in range(d):
                squared += np.float64(x[j]) * np.float64(x[j])
            factor = block.dtype.type(0.0 if squared == 0.0 else scale / math.sqrt(squared))
        inverse[i] = factor
        for j in range(d):
            row[j] = x[j] * factor


@kernel
def _add_gradient(
    block: Any,
    gradient: Any,
    factors: Any,
    inverse: Any,
    first: int,
    count: int,
    scale: float,
    unit: bool,
    scaled: bool,
    into: Any,
) -> float:
    """Add the gradient of the embeddings to rows of `into`, where it has any; return dL/dscale of the block times
    scale, where `scaled`.

    The gradient of the block is `factors * gradient`. A unit row passes on only what is across it.
    """
    along_scale = 0.0
    for i in range(count):
        x, g = block[i], gradient[i]
        dot = 0.0
        if unit or scaled:
            for j in range(x.size):
                dot += np.float64(x[j]) * np.float64(g[j])
        along_scale += dot * factors[i]
        if into.shape[0] == 0:
            continue
        row = into[first + i]
        across = factors[i] * inverse[i]
        along = block.dtype.type(dot / (scale * scale)) if unit else block.dtype.type(0.0)
        for j in range(x.size):
            row[j] += across * (g[j] - along * x[j])
    return along_scale


class Rows:
    """The rows of a score: embeddings [N, d] of any dtype and strides, made unit where asked, times a scale."""

    def __init__(self, embeddings: Tensor, *, scale: float = 1.0, unit: bool = False, scaled: bool = False) -> None:
        """`scaled` says that dL/dscale is wanted, and collected in `scale_gradient`."""
        self._source = RowAddresses([embeddings])
        self.n, self.d, self.dtype = self._source.n, self._source.d, self._source.torch_dtype
        self.numpy_dtype = self._source.dtype
        self.scale, self.scaled, self.scale_gradient = scale, scaled, 0.0
        self._unit, self._nothing = unit, self._source.empty(0, self.d)
        # Rows that nothing is done to are read where they lie.
        self._as_they_lie = None if unit or scale != 1.0 else self._source.contiguous(0)
        self._address, self._stride = int(self._source.addresses[0]), int(self._source.strides[0])

    def start(self, size: int) -> None:
        """Make room for blocks of up to `size` rows."""
        self._block = self._source.empty(size if self._as_they_lie is None else 0, self.d)
        self._weighted = self._source.empty(size, self.d)
        self._inverse = self._source.empty(size)
        self._inverse.fill(1.0)

    def block(self, first: int, last: int) -> Tensor:
        """Return rows first to last, which stay until the next block is asked for."""
        if self._as_they_lie is not None:
            self._block = self._as_they_lie[first:last]
            return torch.from_numpy(self._block)
        count = last - first
        _load(self._address, self._stride, first, count, self.scale, self._unit, self._block, self._inverse)
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
            self.scaled,
            target,
        )
        self.scale_gradient += along_scale / self.scale
