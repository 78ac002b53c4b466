"""The row functions of scores and reductions, as kernels call them: by code.

A kernel is compiled for the code of a score and of a reduction, which are numbers, since the cache on disk would not
find a kernel again by the functions that it is made of. Here the number becomes the function while Numba compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import overload

from mibfast.kernels.compilation import INLINED
from mibfast.kernels.halves import compiled
from mibfast.kernels.pairwise import reductions, scores


def _by_code(function_of: Callable[[int], Callable[..., Any] | None]) -> Any:
    """Return what kernels call with a code, a constant, and the arguments of the function that the code stands for."""

    def by_code(code: int, *arguments: Any) -> Any:
        raise NotImplementedError("called from kernels only")

    @overload(by_code, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
    def chosen(code: Any, *arguments: Any) -> Any:
        # Numba also tries without a constant, and compiles branches of stages that a reduction does not take.
        half = function_of(code.literal_value) if isinstance(code, types.IntegerLiteral) else None
        if half is None:
            return None
        function = compiled(half)
        return lambda code, *arguments: function(*arguments)

    return by_code


# See `scores/__init__.py` and `reductions/__init__.py` for their arguments.
score_row = _by_code(lambda code: scores.NUMBERED[code].row)
grad_score_row = _by_code(lambda code: scores.NUMBERED[code].grad_row)
add_row = _by_code(lambda code: reductions.cpu_half(code).add_row)
grad_added_row = _by_code(lambda code: reductions.cpu_half(code).grad_added_row)
grad_merged_row = _by_code(lambda code: reductions.cpu_half(code).grad_merged_row)
grad_row = _by_code(lambda code: reductions.cpu_half(code).grad_row)
