"""Scalar functions that LLVM turns into vector code, for the inner loops of the CPU kernels.

`np.exp` under Numba calls a scalar library function, 15 times slower than the polynomial here; Python's `max` on
floats keeps LLVM from vectorising a reduction (1.27 against 0.17 ns an element). Both facts were measured; see
`benches/notes/cpu-measurements.md`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from mibfast.kernels.compilation import FASTMATH, INLINED, inline

_f32 = np.float32

# exp(x) = 2^n exp(r), n = rint(x / ln 2), |r| <= ln 2 / 2; ln 2 is split in two so that r is exact, and exp(r) is the
# minimax polynomial of degree 6 from the Cephes library. Relative error 2.8e-7 on [-87, 88].
_LOG2_E = _f32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = _f32(0.693359375), _f32(-2.12194440e-4)
_P0, _P1, _P2 = _f32(1.9875691500e-4), _f32(1.3981999507e-3), _f32(8.3334519073e-3)
_P3, _P4, _P5 = _f32(4.1665795894e-2), _f32(1.6666665459e-1), _f32(5.0000001201e-1)
_ZERO, _ONE = _f32(0.0), _f32(1.0)
# Below, 2^n would be subnormal: exp(-87.3) = 1.2e-38 stands for zero.
_LOWEST = _f32(-87.3)
# exp(89) is beyond float32, whose largest power of two is 2^127; exp(89.7) / 2 is, too, whose exponent is one less.
_OVERFLOWING, _LARGEST_EXPONENT, _TWO = _f32(89.0), _f32(127.0), _f32(2.0)
_HALF, _HALF_OVERFLOWING, _LARGEST_EXPONENT_OF_TWICE = _f32(0.5), _f32(89.7), _f32(128.0)
# Reordered, 2 (y 2^127) would be y (2 2^127), and (x / 2) x the half of x^2, which may be inf.
_IN_ORDER = INLINED | {"fastmath": FASTMATH - {"reassoc"}}


@intrinsic  # type: ignore[untyped-decorator]
def _rint(typing_context: Any, x: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()]), args)

    return types.float32(types.float32), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _two_to_the(typing_context: Any, n: Any) -> Any:
    """2^n of an integral float32 n in [-126, 127], by writing the exponent's bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(32)
        exponent = builder.add(builder.fptosi(args[0], integer), ir.Constant(integer, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(integer, 23)), ir.FloatType())

    return types.float32(types.float32), codegen


@intrinsic  # type: ignore[untyped-decorator]
def maximum(typing_context: Any, x: Any, y: Any) -> Any:
    """The larger of two floats of one dtype; NaN loses, so a caller must meet NaN elsewhere."""
    if x != y or x not in (types.float32, types.float64):
        return None
    kind = ir.FloatType() if x == types.float32 else ir.DoubleType()

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.maxnum", [kind], ir.FunctionType(kind, [kind, kind]))
        return builder.call(function, args)

    return x(x, x), codegen


@intrinsic  # type: ignore[untyped-decorator]
def float32_at(typing_context: Any, address: Any) -> Any:
    """A pointer to float32 from an integer address, for `numba.carray`."""
    signature = types.CPointer(types.float32)(address)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def float64_at(typing_context: Any, address: Any) -> Any:
    """A pointer to float64 from an integer address, for `numba.carray`."""
    signature = types.CPointer(types.float64)(address)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return signature, codegen


def exp(x: float) -> float:
    """exp(x) with NaN kept: for float32 a polynomial, 1.2e-38 or more, inf above its range; else the library's."""
    return math.exp(x)


@overload(exp, jit_options=_IN_ORDER, strict=False)  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    if x == types.float32:

        def polynomial(x: Any) -> Any:
            # Comparisons, not min and max: a NaN fails them and stays.
            x = _LOWEST if x < _LOWEST else x
            x = _OVERFLOWING if x > _OVERFLOWING else x
            n = _rint(x * _LOG2_E)
            r = (x - n * _LN2_HIGH) - n * _LN2_LOW
            y = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
            # 2^128 is no float32, but e^88.4 is: half of it is formed, and doubled.
            power = (y * r * r + r + _ONE) * _two_to_the(_LARGEST_EXPONENT if n > _LARGEST_EXPONENT else n)
            return power * _TWO if n > _LARGEST_EXPONENT else power

        return polynomial
    return lambda x: math.exp(x)


def exp_of_negative(x: float) -> float:
    """exp(x) for x <= 0, with NaN kept: as :func:`exp`, a quarter faster."""
    return math.exp(x)


@overload(exp_of_negative, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _exp_of_negative(x: Any) -> Any:
    if x == types.float32:

        def polynomial(x: Any) -> Any:
            x = _LOWEST if x < _LOWEST else x
            n = _rint(x * _LOG2_E)
            r = (x - n * _LN2_HIGH) - n * _LN2_LOW
            y = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
            return (y * r * r + r + _ONE) * _two_to_the(n)

        return polynomial
    return lambda x: math.exp(x)


def half_expm1(x: float) -> float:
    """(exp(x) - 1) / 2, without cancellation near zero; inf only where that is no float32, though exp(x) be none."""
    return 0.5 * math.expm1(x)


@overload(half_expm1, jit_options=_IN_ORDER, strict=False)  # type: ignore[untyped-decorator]
def _half_expm1(x: Any) -> Any:
    if x == types.float32:

        def polynomial(x: Any) -> Any:
            x = _LOWEST if x < _LOWEST else x
            x = _HALF_OVERFLOWING if x > _HALF_OVERFLOWING else x
            n = _rint(x * _LOG2_E)
            r = (x - n * _LN2_HIGH) - n * _LN2_LOW
            y = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
            # Near zero, n = 0, nothing is left to cancel. Written as a choice, since fast-math may reorder a sum.
            near = y * r * r + r
            scale = _two_to_the((_LARGEST_EXPONENT_OF_TWICE if n > _LARGEST_EXPONENT_OF_TWICE else n) - _ONE)
            far = near * scale + (scale - _HALF)
            far = far * _TWO if n > _LARGEST_EXPONENT_OF_TWICE else far
            return near * _HALF if n == _ZERO else far

        return polynomial
    return lambda x: 0.5 * math.expm1(x)


def half_expm1_minus_x(x: float) -> float:
    """(exp(x) - 1 - x) / 2, never negative, of the range of :func:`half_expm1`: what a log-variance x adds to a KL."""
    return 0.5 * (math.expm1(x) - x)


@overload(half_expm1_minus_x, jit_options=_IN_ORDER, strict=False)  # type: ignore[untyped-decorator]
def _half_expm1_minus_x(x: Any) -> Any:
    if x == types.float32:

        def polynomial(x: Any) -> Any:
            bounded = _LOWEST if x < _LOWEST else x
            bounded = _HALF_OVERFLOWING if bounded > _HALF_OVERFLOWING else bounded
            n = _rint(bounded * _LOG2_E)
            r = (bounded - n * _LN2_HIGH) - n * _LN2_LOW
            y = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
            # Near zero, n = 0, the square alone is left, and nothing cancels.
            square = y * r * r
            scale = _two_to_the((_LARGEST_EXPONENT_OF_TWICE if n > _LARGEST_EXPONENT_OF_TWICE else n) - _ONE)
            far = (square + r) * scale + (scale - _HALF)
            far = far * _TWO if n > _LARGEST_EXPONENT_OF_TWICE else far
            return square * _HALF if n == _ZERO else far - x * _HALF

        return polynomial
    return lambda x: 0.5 * (math.expm1(x) - x)


def half_square(x: float) -> float:
    """x^2 / 2, inf only where that is beyond the dtype, though x^2 be it."""
    return 0.5 * x * x


@overload(half_square, jit_options=_IN_ORDER, strict=False)  # type: ignore[untyped-decorator]
def _half_square(x: Any) -> Any:
    half = _HALF if x == types.float32 else 0.5
    return lambda x: (x * half) * x


def exp_and_remainders(x: float) -> tuple[float, float, float]:
    """exp(x), exp(x) - 1 and exp(x) - 1 - x from one exponential, the last two without cancellation near zero.

    In float32 exp(x) is inf above its range and 0 where it would be subnormal; the others end at x = 88.3.
    """
    return math.exp(x), math.expm1(x), math.expm1(x) - x


@overload(exp_and_remainders, jit_options=_IN_ORDER, strict=False)  # type: ignore[untyped-decorator]
def _exp_and_remainders(x: Any) -> Any:
    if x == types.float32:

        def polynomial(x: Any) -> Any:
            bounded = _LOWEST if x < _LOWEST else x
            bounded = _OVERFLOWING if bounded > _OVERFLOWING else bounded
            n = _rint(bounded * _LOG2_E)
            r = (bounded - n * _LN2_HIGH) - n * _LN2_LOW
            y = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
            square = y * r * r
            # 2^128 is no float32, but e^88.4 is: half of it is formed, and doubled.
            scale = _two_to_the(_LARGEST_EXPONENT if n > _LARGEST_EXPONENT else n)
            less_one = (square + r) * scale + (scale - _ONE)
            power = (square + r + _ONE) * scale
            power = power * _TWO if n > _LARGEST_EXPONENT else power
            return _ZERO if x < _LOWEST else power, less_one, square if n == _ZERO else less_one - x

        return polynomial
    return lambda x: (math.exp(x), math.expm1(x), math.expm1(x) - x)


# Softmax weights are kept multiplied by 2^58 in float32. Unscaled, those of negatives 87 nats below the maximum, common
# at a temperature of 0.01, are subnormal, and so are their products in the GEMM that follows: each costs a hundred
# cycles. A power of two costs nothing and rounds nothing. Weights reach down to e^-110.
WEIGHT_EXPONENT = 58
_WEIGHT_EXPONENT = _f32(WEIGHT_EXPONENT)
_WEIGHT_LOWEST, _WEIGHT_HIGHEST = _f32(-110.0), _f32(40.0)


def weight_scale(x: float) -> float:
    """The factor of :func:`exp_weight` for numbers of the dtype of `x`: 2^58 for float32, 1 for float64."""
    return 2.0**WEIGHT_EXPONENT


@overload(weight_scale, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _weight_scale(x: Any) -> Any:
    scale = 2.0**WEIGHT_EXPONENT if x == types.float32 else 1.0
    return lambda x: scale


def exp_weight(x: float) -> float:
    """exp(x) * weight_scale(x) for x <= 40, with NaN kept."""
    return math.exp(x) * weight_scale(x)


@overload(exp_weight, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _exp_weight(x: Any) -> Any:
    if x == types.float32:

        def polynomial(x: Any) -> Any:
            x = _WEIGHT_LOWEST if x < _WEIGHT_LOWEST else x
            x = _WEIGHT_HIGHEST if x > _WEIGHT_HIGHEST else x
            n = _rint(x * _LOG2_E)
            r = (x - n * _LN2_HIGH) - n * _LN2_LOW
            y = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
            return (y * r * r + r + _ONE) * _two_to_the(n + _WEIGHT_EXPONENT)

        return polynomial
    return lambda x: math.exp(x)


# log(1 + u) = 2 artanh(t), t = u / (2 + u) <= 1 / 3 for u <= 1: 2 t + t^3 times a polynomial in t^2 that is the best at
# Chebyshev's nodes. Relative error 1.6e-8.
_A0, _A1, _A2, _A3 = _f32(0.66666639), _f32(0.40007672), _f32(0.28233954), _f32(0.26867554)


def softplus_and_sigmoid(x: float) -> tuple[float, float]:
    """log(1 + e^x) and its derivative 1 / (1 + e^-x) from one exponential, with NaN kept.

    Neither overflows or cancels: with u = e^-|x|, the softplus is max(x, 0) + log(1 + u), the sigmoid 1 / (1 + u) for a
    positive x and u / (1 + u) for others.
    """
    u = math.exp(-abs(x))
    return max(x, 0.0) + math.log1p(u), (1.0 if x > 0.0 else u) / (1.0 + u)


@overload(softplus_and_sigmoid, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _softplus_and_sigmoid(x: Any) -> Any:
    if x == types.float32:

        def polynomial(x: Any) -> Any:
            u = exp_of_negative(-abs(x))
            one_u, two_u = _ONE + u, _TWO + u
            # One division for both quotients.
            r = _ONE / (one_u * two_u)
            t = u * one_u * r
            y = t * t
            logarithm = t * _TWO + t * y * (((_A3 * y + _A2) * y + _A1) * y + _A0)
            # Comparisons, not max: a NaN fails them and is in u already.
            positive = x if x > _ZERO else _ZERO
            numerator = _ONE if x > _ZERO else u
            return positive + logarithm, numerator * two_u * r

        return polynomial

    def by_the_library(x: Any) -> Any:
        u = math.exp(-abs(x))
        return (x if x > 0.0 else 0.0) + math.log1p(u), (1.0 if x > 0.0 else u) / (1.0 + u)

    return by_the_library


def softplus_sigmoid_and_exp(x: float) -> tuple[float, float, float]:
    """:func:`softplus_and_sigmoid` and e^x, from one exponential and one division; e^x holds for |x| <= 87."""
    return *softplus_and_sigmoid(x), math.exp(x)


@overload(softplus_sigmoid_and_exp, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _softplus_sigmoid_and_exp(x: Any) -> Any:
    if x == types.float32:

        def polynomial(x: Any) -> Any:
            u = exp_of_negative(-abs(x))
            one_u, two_u = _ONE + u, _TWO + u
            product = one_u * two_u
            # One division for all three quotients; u is no smaller than 1e-38.
            all_three = _ONE / (u * product)
            r = all_three * u
            t = u * one_u * r
            y = t * t
            logarithm = t * _TWO + t * y * (((_A3 * y + _A2) * y + _A1) * y + _A0)
            positive = x if x > _ZERO else _ZERO
            numerator = _ONE if x > _ZERO else u
            return positive + logarithm, numerator * two_u * r, all_three * product if x > _ZERO else u

        return polynomial

    def by_the_library(x: Any) -> Any:
        u = math.exp(-abs(x))
        softplus = (x if x > 0.0 else 0.0) + math.log1p(u)
        return softplus, (1.0 if x > 0.0 else u) / (1.0 + u), 1.0 / u if x > 0.0 else u

    return by_the_library


# float32 sums are cut into pieces of this length, which are added in float64.
PIECE = 2048


@inline
def sum_of(scores: Any) -> float:
    """The sum of numbers, in float64 between pieces of 2048."""
    total = 0.0
    for start in range(0, scores.size, PIECE):
        piece = scores[start : start + PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            partial += piece[j]
        total += partial
    return total


@inline
def dot(x: Any, y: Any) -> float:
    """The inner product of numbers, in float64 between pieces of 2048."""
    total = 0.0
    for start in range(0, x.size, PIECE):
        a, b = x[start : start + PIECE], y[start : start + PIECE]
        partial = x.dtype.type(0.0)
        for j in range(a.size):
            partial += a[j] * b[j]
        total += partial
    return total
