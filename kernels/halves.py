"""Functions for both backends that stand in one file, and are compiled when a kernel first asks for them.

A score or a reduction is one file, which holds what it does on the CPU and in Triton. The file can import neither
compiler: Numba is not paid for before the first CPU kernel, and Triton may not be installed. So its functions are
marked, by :func:`cpu`, :func:`cpu_maximum` and :func:`gpu`, and :func:`compiled` compiles those of one backend
together, in a copy of the file's globals where

- `vm` is `mibfast.kernels.vector_math` for the CPU, and `tl` is `triton.language` for Triton;
- a marked function, of this file or of another that it was imported from, is the compiled one;
- integers and floats in capitals are `constexpr` for Triton, which takes no other globals.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

_CPU, _CPU_MAXIMUM, _GPU = "cpu", "cpu_maximum", "gpu"
# In place of what the compiled functions find under these names.
tl: Any = None
vm: Any = None


def _mark(function: _Function, kind: str) -> _Function:
    function.kind = kind  # type: ignore[attr-defined]
    return function


def cpu(function: _Function) -> _Function:
    """Mark a function that Numba compiles into the kernels that call it: see `compilation.inline`."""
    return _mark(function, _CPU)


def cpu_maximum(function: _Function) -> _Function:
    """Like :func:`cpu`, for maxima: see `compilation.inline_maximum`."""
    return _mark(function, _CPU_MAXIMUM)


def gpu(function: _Function) -> _Function:
    """Mark a function that Triton compiles into the kernels that call it."""
    return _mark(function, _GPU)


@functools.cache
def compiled(function: Callable[..., Any]) -> Any:
    """Compile a marked function."""
    return _namespace(function.__module__, function.kind == _GPU)[function.__name__]  # type: ignore[attr-defined]


@functools.cache
def _namespace(module: str, for_triton: bool) -> dict[str, Any]:
    """The globals of a file in which the marked functions of one backend are compiled."""
    source = vars(sys.modules[module])
    names = dict(source)
    if for_triton:
        import triton
        import triton.language

        compilers: dict[str, Callable[..., Any]] = {_GPU: triton.jit}
        names["tl"] = triton.language
        constant = triton.language.constexpr
        names |= {k: constant(v) for k, v in source.items() if k.isupper() and isinstance(v, (int, float))}
    else:
        from mibfast.kernels import vector_math
        from mibfast.kernels.compilation import inline, inline_maximum

        compilers = {_CPU: inline, _CPU_MAXIMUM: inline_maximum}
        names["vm"] = vector_math
    for name, value in source.items():
        compiler = compilers.get(getattr(value, "kind", ""))
        if compiler is None or not isinstance(value, FunctionType):
            continue
        if value.__module__ != module:
            names[name] = compiled(value)
            continue
        copy = FunctionType(value.__code__, names, name, value.__defaults__)
        copy.__doc__, copy.__annotations__ = value.__doc__, value.__annotations__
        names[name] = compiler(copy)
    return names
