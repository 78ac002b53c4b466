"""The module of a run, assembled from its settings: encoders, and a loss or a fusion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from mibfast.train.errors import RunError
from mibfast.train.fitting.alignment import AlignmentModule
from mibfast.train.fitting.config import RunConfig
from mibfast.train.fitting.encoders import build_encoders
from mibfast.train.fitting.fusion import FusionModule
from mibfast.train.fitting.targets import Target
from mibfast.train.memory import refuse_more_than_memory, sketched
from mibfast.train.methods import Alignment, method


def build_module(
    config: RunConfig,
    shapes: Mapping[str, Sequence[int]],
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    target: Target | None = None,
    beta: Mapping[str, Any] | None = None,
) -> AlignmentModule | FusionModule:
    """Build the module that is trained; RunError where it takes more memory than is free."""
    # The size of a user's own encoders is not known before they are made.
    named = {name: encoder for name, encoder in config.encoders.items() if ":" not in encoder}
    known = dataclasses.replace(config, encoders=named, dropout=0.0)
    refuse_more_than_memory(sketched(partial(assembled, known, shapes, statistics, target, beta)))
    return assembled(config, shapes, statistics, target, beta)


def assembled(
    config: RunConfig,
    shapes: Mapping[str, Sequence[int]],
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    target: Target | None,
    beta: Mapping[str, Any] | None,
) -> AlignmentModule | FusionModule:
    """Build the module of a config's method, whatever memory it takes."""
    chosen, optimizer = method(config.method), (config.learning_rate, config.weight_decay)
    # With biases, encoders could map every sample to the centre that normal samples should be near.
    bias = target is None or target.task != "anomaly-detection"
    encoders = build_encoders(shapes, statistics, config.features, config.encoders, config.depth, bias, config.dropout)
    if isinstance(chosen, Alignment):
        loss = chosen.loss(len(shapes), config.features, **config.loss)
        return AlignmentModule(encoders, loss, config.features, *optimizer)
    if target is None:
        raise RunError("a fusion needs a target")
    options = {**({} if beta is None else {"beta": beta["beta"]}), **config.loss}
    return FusionModule(
        chosen.model(encoders, config.features, target.of(config.features), **options), target, *optimizer
    )
