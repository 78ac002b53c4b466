"""Matrix products on the GPU that keep what tensor cores accumulate: float32 results of half-precision matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_product(x: Tensor, y: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """x @ y of matrices of one dtype, accumulated in float32 at least; into `out`, or added to it without another.

    The result is float32 where x is of half precision, unless `out` is of its dtype; else of the dtype of x.
    """
    if x.dtype.itemsize == 2 and (out is None or out.dtype != x.dtype):
        if x.device.type == "cuda":
            if add:
                return torch.addmm(out, x, y, out_dtype=torch.float32, out=out)
            return torch.mm(x, y, out_dtype=torch.float32, out=out)
        # The interpreter: CPU products are of one dtype.
        x, y = x.float(), y.float()
    return torch.addmm(out, x, y, out=out) if add else torch.mm(x, y, out=out)
