"""Matrix products on the GPU that keep what tensor cores accumulate: float32 results of half-precision matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def matrix_product(x: Tensor, y: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """x @ y of matrices of one dtype, accumulated in float32 at least; into `out`, or added to it without another.

    The result is float32 where x is of half precision, unless `out` is of its dtype; else of the dtype of x.
    """
    if add and out is None:
        raise ValueError("matrix_product: add=True needs out, which the product is added to, got None")
    options: dict[str, Any] = {} if out is None else {"out": out}
    if x.dtype.itemsize == 2 and (out is None or out.dtype != x.dtype):
        if x.device.type == "cuda":
            options["out_dtype"] = torch.float32
        else:  # the interpreter: CPU products are of one dtype
            x, y = x.float(), y.float()
    if out is not None and add:
        return torch.addmm(out, x, y, **options)
    return torch.mm(x, y, **options)
