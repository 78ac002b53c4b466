"""Options of one string that hold words, numbers, or values by name."""

from __future__ import annotations

from collections.abc import Sequence

from mibfast._check import InputError


def words(text: str) -> tuple[str, ...]:
    """Return words with commas between them."""
    return tuple(name.strip() for name in text.split(","))


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Return numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} must be numbers with commas between them, got {text!r}") from None


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """Return the values of NAME=VALUE, by name."""
    values: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise InputError(f"{option} must be NAME=VALUE, got {text!r}")
        if name in values:
            raise InputError(f"{option} names {name} twice, {values[name]} and {value}")
        values[name] = value
    return values
