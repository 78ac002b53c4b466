"""Autocast off: its products would be of float16 or bfloat16, which moves a logit at a temperature of 0.01 by 0.4."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])


def without_autocast(function: _Function) -> _Function:
    """Compute a formula in the dtypes that it names. Its first argument is a tensor, or a sequence of them."""

    @functools.wraps(function)
    def in_its_dtypes(first: Any, *arguments: Any, **options: Any) -> Any:
        device = (first if isinstance(first, Tensor) else first[0]).device.type
        with torch.autocast(device, enabled=False):
            return function(first, *arguments, **options)

    return in_its_dtypes  # type: ignore[return-value]
