"""What a method requires before it is trained: settings and data that fit, and for OMIB an estimated beta."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from mibfast import omib
from mibfast.data import DataError, MultimodalData, load
from mibfast.train.errors import RunError
from mibfast.train.fitting.config import RunConfig
from mibfast.train.fitting.targets import Target, target_of
from mibfast.train.methods import Alignment, Fusion, method
from mibfast.train.progress import Report

# Samples that bounds of beta are estimated from.
_BETA_SAMPLES = 4096


def refuse_settings(config: RunConfig) -> None:
    """Raise RunError for settings that the method does not have."""
    chosen = method(config.method)
    chosen.refuse_options(config.loss)
    if isinstance(chosen, Alignment):
        for name, default in (("task", "auto"), ("normal_class", None)):
            if getattr(config, name) != default:
                raise RunError(f"{name} is of fusions, which predict labels; {chosen.title} aligns modalities without")
    if config.warm_up_epochs is not None and not (isinstance(chosen, Fusion) and len(chosen.stages) > 1):
        raise RunError(f"{chosen.title} has no warm-up; leave warm_up_epochs out")


def open_data(config: RunConfig, data: str | MultimodalData | None = None) -> MultimodalData:
    """Return the data of a config, or other data at hand, with the modalities that the config names."""
    if isinstance(data, MultimodalData):
        return data if config.modalities is None else data.only(config.modalities)
    return load(config.data if data is None else data, config.seed, modalities=config.modalities, split=config.split)


def fitting_target(config: RunConfig, data: MultimodalData) -> Target | None:
    """Return what a fusion predicts from data, None for an alignment.

    Raises
    ------
    RunError, DataError
        Where data or settings do not fit the method.
    """
    chosen = method(config.method)
    if len(data.views) < 2:
        raise DataError(f"{data.name}: {chosen.title} needs at least 2 modalities, got {', '.join(data.views)}")
    with isolate_rng():
        if isinstance(chosen, Alignment):
            chosen.refuse_misfit(list(data.views), config.features, **config.loss)
            return None
        target = target_of(data, config.task, config.normal_class)
        chosen.refuse_misfit(list(data.views), config.features, target.task_for(config.features), **config.loss)
    return target


def refuse_few_samples(data: MultimodalData, config: RunConfig, target: Target | None) -> None:
    """Raise DataError or RunError where training or validation has too few samples for a batch."""
    for split, title in (("train", "training"), ("validation", "validation")):
        for name, present in data.presence.items():
            if not present[data.indices(split).numpy()].any():
                raise DataError(
                    f"{data.name}: no {title} sample has modality {name!r}; leave it out, or split otherwise"
                )
    which = ""
    if data.presence:
        chosen = method(config.method)
        joint = isinstance(chosen, Fusion) or chosen.joint
        which = " with all modalities" if joint else " with two modalities or more"
    if target is not None and target.normal is not None:
        which = f" of class {target.normal}{which}"
    n, n_validation = (len(usable(data, config, split, target)) for split in ("train", "validation"))
    if config.batch_size > n:
        raise RunError(
            f"a batch of {config.batch_size} is larger than the training split, which has {n} samples{which}"
        )
    if n_validation < 2:
        got = f"{n_validation} sample{'s' * (n_validation != 1)}{which}"
        raise RunError(f"the validation split has {got}; a loss needs at least 2")


def usable(data: MultimodalData, config: RunConfig, split: str, target: Target | None = None) -> Tensor:
    """Return the indices of a split's samples that training uses; batches are made of these alone.

    An alignment uses those with two modalities, or with all; a fusion those with all modalities and of a class that it
    learns, which for anomaly detection is the normal one.
    """
    chosen = method(config.method)
    fewest = 2 if isinstance(chosen, Alignment) and not chosen.joint else None
    indices = data.indices(split)
    indices = indices[data.has(indices, list(data.views), fewest)]
    if target is not None:
        assert data.labels is not None
        indices = indices[torch.from_numpy(target.learns(data.labels[indices.numpy()]))]
    return indices


def estimated_beta(config: RunConfig, data: MultimodalData, target: Target | None, report: Report) -> dict[str, Any]:
    """Return a `beta` drawn between the bounds estimated from the training split, and these with their estimates.

    RunError where the estimator does not take the data.
    """
    estimator = config.beta_estimator
    report.say(f"estimating the bounds of beta by {estimator!r}")
    chosen = usable(data, config, "train", target)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(config.seed))
    views = data.take(chosen[order[:_BETA_SAMPLES].sort().values])
    try:
        with warnings.catch_warnings(), isolate_rng():
            # The report shows them.
            warnings.filterwarnings("ignore", "estimate_beta: ")
            estimate = omib.estimate_beta({name: views[name] for name in data.views}, estimator=estimator)
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
    beta = estimate.draw(config.seed)
    report.say(f"{estimate}\ndrawn: beta {beta:.3g}")
    return {"beta": beta, **estimate.as_dict()}


def refuse_beta(estimate: Mapping[str, Any]) -> None:
    """Raise RunError for an estimated beta of a critic that told hardly any samples apart: it would be too large."""
    indistinct = estimate.get("indistinct", [])
    if indistinct:
        listed = ", ".join(f"H({name}) = {estimate['entropies'][name]['value']:.3g}" for name in indistinct)
        raise RunError(
            f"no beta can be estimated: {estimate['estimator']!r} told hardly any of {estimate['samples']} samples "
            f"apart, {listed} nats, and the bounds are too large; give a beta (--beta) or another beta_estimator"
        )
