"""Checks of settings; what is wrong with one ends in a RunError that names it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mibfast.data.multimodal import nearest
from mibfast.train.errors import RunError


def integer(name: str, value: Any, least: int) -> int:
    """Return an integer that is large enough."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RunError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def number(name: str, value: Any, *, positive: bool = False) -> float:
    """Return a finite number that is not negative, or is positive."""
    if not is_finite(value) or value < 0 or (positive and not value):
        raise RunError(
            f"{name} must be a finite {'positive number' if positive else 'number of at least 0'}, got {value!r}"
        )
    return float(value)


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number, and not a bool."""
    # An int can be larger than any float.
    return not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def fraction(name: str, value: Any) -> float:
    """Return a number in [0, 1)."""
    if number(name, value) >= 1:
        raise RunError(f"{name} must be below 1, got {value!r}")
    return float(value)


def choice(name: str, value: Any, valid: Sequence[str] | Mapping[str, Any]) -> str:
    """Return one of several names; the error suggests the nearest."""
    if value not in list(valid):
        raise RunError(f"{name} {value!r} is not known{nearest(str(value), valid)}")
    return str(value)


def named_once(name: str, values: Sequence[Any]) -> None:
    """Check that there are values, none of them twice."""
    if not values or len(set(values)) < len(values):
        raise RunError(f"{name} must be given, each once; got {', '.join(map(str, values)) or 'none'}")
