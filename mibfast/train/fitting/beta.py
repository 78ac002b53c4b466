"""OMIB's beta, estimated from the training split where the settings leave it out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from mibfast import omib
from mibfast.data import MultimodalData
from mibfast.train.errors import RunError
from mibfast.train.fitting.config import RunConfig
from mibfast.train.fitting.requirements import usable
from mibfast.train.fitting.targets import Target
from mibfast.train.progress import Report

# As many as estimates of beta take.
_BETA_SAMPLES = 4096


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
