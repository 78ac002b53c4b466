"""JSON files that may be damaged or written by others: read without trust, and checked for their form."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mibfast._check import described
from mibfast.data.opening import read_bytes

NUMBER = (int, float)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; OSError where it cannot be read, ValueError where it is not JSON."""
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """Return the content of JSON; ValueError for anything else, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def sha256(content: Any) -> str:
    """Return the SHA-256 of JSON content, whatever the order of its keys."""
    # As it is read: JSON's keys are text.
    content = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_form(content: Any, form: Any, what: str = "it") -> None:
    """Raise ValueError where content does not have the form that it was written in.

    Parameters
    ----------
    content
    form : type, tuple, list or mapping
        A type, or a tuple of types, where a bool counts as `bool` alone, never as an int; a list of one form, for a
        list of any length; a mapping from `str` or `int` to a form, for a mapping with keys of that type; or from names
        to forms, for a mapping that has these and perhaps others.
    what : str
        For the message.

    Examples
    --------
    >>> from mibfast.train.json_files import NUMBER, check_form
    >>> check_form({"step": 3, "losses": [0.5, 1], "more": None}, {"step": int, "losses": [NUMBER]})
    >>> check_form({"losses": [0.5, "1"]}, {"losses": [NUMBER]})
    Traceback (most recent call last):
        ...
    ValueError: its 'losses' [1] must be int or float, got str '1'
    """
    if isinstance(form, Mapping):
        _check_kind(content, Mapping, what)
        for key, each in form.items():
            if isinstance(key, type):
                for name, value in content.items():
                    _check_kind(name, key, f"a key of {what}")
                    check_form(value, each, _part(what, repr(name)))
            elif key not in content:
                raise ValueError(f"{what} has no {key!r}")
            else:
                check_form(content[key], each, _part(what, repr(key)))
    elif isinstance(form, list):
        _check_kind(content, list, what)
        for position, value in enumerate(content):
            check_form(value, form[0], _part(what, f"[{position}]"))
    else:
        _check_kind(content, form, what)


def check_finite(numbers: Mapping[str, float], what: str = "it") -> None:
    """Raise ValueError for numbers that are NaN, infinite or beyond float64."""
    for name, value in numbers.items():
        try:
            finite = math.isfinite(value)
        except OverflowError:
            finite = False
        if not finite:
            raise ValueError(f"{_part(what, repr(name))} must be finite, got {described(value)}")


def _part(what: str, name: str) -> str:
    return f"its {name}" if what == "it" else f"{what} {name}"


def _check_kind(content: Any, kinds: Any, what: str) -> None:
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(content, kinds) or (isinstance(content, bool) and bool not in kinds):
        names = {Mapping: "a mapping", type(None): "null"}
        listed = " or ".join(names.get(kind, kind.__name__) for kind in kinds)
        raise ValueError(f"{what} must be {listed}, got {described(content)}")
