"""Modules whose weights are known to fit into memory before any of it is taken."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from mibfast.data.opening import why_no_memory
from mibfast.train.errors import RunError

_Module = TypeVar("_Module", bound=nn.Module)


def sketched(make: Callable[[], _Module]) -> _Module:
    """Make a module without memory for its weights, to know their names and shapes."""
    with torch.device("meta"), warnings.catch_warnings():
        # They are shown when the module is made.
        warnings.simplefilter("ignore")
        return make()


def built(make: Callable[[], _Module]) -> _Module:
    """Make a module; RunError, before any memory is taken, where its weights need more than is free."""
    refuse_more_than_memory(sketched(make))
    return make()


def refuse_more_than_memory(sketch: nn.Module) -> None:
    """Raise RunError where the weights of a module need more memory than is free."""
    why = why_no_memory(sum(x.numel() * x.element_size() for x in (*sketch.parameters(), *sketch.buffers())))
    if why is not None:
        raise RunError(f"{type(sketch).__name__}: {why}; ask for fewer features or smaller hidden layers")
