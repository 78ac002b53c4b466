"""The scalar functions of the kernels against numpy in float64."""

import numba
import numpy as np
import pytest

from mibfast.kernels import vector_math


def _applied(function, x):
    @numba.njit(error_model="numpy")
    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    out = np.empty_like(x)
    loop(x, out)
    return out


def _fuses() -> bool:
    """Whether the processor that Numba compiles for multiplies and adds in one rounding."""

    @numba.njit(fastmath=True)
    def square_and_add(x):
        return x * x + x

    square_and_add(np.float32(2.0))
    (assembly,) = square_and_add.inspect_asm().values()
    return "fma" in assembly or "fmla" in assembly


def _of_exponent(x, tolerance):
    """The relative error of e^x for |x| up to 110: where n log 2 is rounded, that of x."""
    rounded = x.dtype == np.float32 and not FUSES
    return tolerance + np.abs(x.astype(np.float64)) * (2.0**-24 if rounded else 0.0)


FUSES = _fuses()
RANGE = np.concatenate([np.linspace(-87, 88, 20001), np.linspace(-1e-3, 1e-3, 2001), np.linspace(-0.4, 0.4, 2001)])


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 4e-7), (np.float64, 1e-14)])
def test_exponentials(dtype, tolerance) -> None:
    x = RANGE.astype(dtype)
    wide = x.astype(np.float64)
    assert np.allclose(_applied(numba.njit(lambda x: vector_math.exp(x)), x), np.exp(wide), rtol=tolerance, atol=0)
    below = x[x <= 0]
    found = _applied(numba.njit(lambda x: vector_math.exp_of_negative(x)), below)
    assert np.allclose(found, np.exp(below.astype(np.float64)), rtol=_of_exponent(below, tolerance), atol=0)
    found = _applied(numba.njit(lambda x: vector_math.half_expm1(x)), x)
    assert np.allclose(2 * found.astype(np.float64), np.expm1(wide), rtol=2 * tolerance, atol=0)
    found = _applied(numba.njit(lambda x: vector_math.half_expm1_minus_x(x)), x)
    # expm1 in float64 leaves 1e-16 of x.
    assert np.allclose(2 * found.astype(np.float64), np.expm1(wide) - wide, rtol=20 * tolerance, atol=1e-15)


NEAR_THE_LARGEST_EXPONENTIAL = np.concatenate([np.linspace(88, 90, 4001), [100.0, 1e4, 1e30]]).astype(np.float32)
NEAR_THE_LARGEST_SQUARE = np.concatenate([np.linspace(1.8e19, 3e19, 4001), [1e30]]).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("exp", np.exp),
        ("half_square", lambda x: 0.5 * x * x),
        ("half_expm1", lambda x: 0.5 * np.expm1(x)),
        ("half_expm1_minus_x", lambda x: 0.5 * (np.expm1(x) - x)),
    ],
)
def test_overflow_is_infinite_where_it_is_beyond_float32_and_not_before(name, truth) -> None:
    x = NEAR_THE_LARGEST_SQUARE if name == "half_square" else NEAR_THE_LARGEST_EXPONENTIAL
    function = getattr(vector_math, name)
    found = _applied(numba.njit(lambda x: function(x)), x)
    with np.errstate(over="ignore"):
        expected = truth(x.astype(np.float64)).astype(np.float32)
    assert np.array_equal(np.isinf(found), np.isinf(expected))
    assert np.isinf(found).any()
    assert np.allclose(found, expected, rtol=4e-7, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 5e-7), (np.float64, 1e-14)])
def test_softplus_and_sigmoid(dtype, tolerance) -> None:
    x = RANGE.astype(dtype)
    wide = x.astype(np.float64)
    found = _applied(numba.njit(lambda x: vector_math.softplus_and_sigmoid(x)[0]), x)
    assert np.allclose(found, np.logaddexp(0, wide), rtol=_of_exponent(x, tolerance), atol=0)
    found = _applied(numba.njit(lambda x: vector_math.softplus_and_sigmoid(x)[1]), x)
    assert np.allclose(found, 1 / (1 + np.exp(-wide)), rtol=_of_exponent(x, tolerance), atol=0)
    ends = np.array([np.nan, -np.inf, np.inf], dtype)
    for part, expected in ((0, [0, np.inf]), (1, [0, 1])):
        found = _applied(numba.njit(lambda x, part=part: vector_math.softplus_and_sigmoid(x)[part]), ends)
        assert np.isnan(found[0])
        assert np.allclose(found[1:], expected, atol=1e-37)


def test_weights_reach_further_down_than_float32() -> None:
    x = np.linspace(-109, 30, 5001).astype(np.float32)
    found = _applied(numba.njit(lambda x: vector_math.exp_weight(x)), x)
    assert np.allclose(found, np.exp(x.astype(np.float64)) * 2.0**58, rtol=_of_exponent(x, 4e-7), atol=0)
    assert (found >= np.finfo(np.float32).tiny).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["exp", "exp_of_negative", "half_expm1", "half_expm1_minus_x", "exp_weight"])
def test_ends_and_nan(name, dtype) -> None:
    function = getattr(vector_math, name)
    found = _applied(numba.njit(lambda x: function(x)), np.array([np.nan, -np.inf, -1e4], dtype))
    assert np.isnan(found[0])
    assert not np.isnan(found[2])
    if name in ("exp", "exp_of_negative", "exp_weight"):
        assert 0 <= found[1] < 1e-29
    if name == "half_expm1":
        assert found[1] == -0.5


def test_maximum_loses_nan() -> None:
    @numba.njit
    def larger(x, y):
        return vector_math.maximum(x, y)

    assert larger(np.float32(1), np.float32(2)) == 2
    assert larger(np.float64("nan"), np.float64(2)) == 2
