"""The runs of a comparison, each trained and scored once and kept in its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mibfast.data.sources import absolute_name
from mibfast.train.comparison.results import CHOOSING, LESS_IS_BETTER
from mibfast.train.comparison.settings import run_name, split_settings
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.evaluation import evaluate
from mibfast.train.fitting import Run, fit, open_run
from mibfast.train.fitting.config import RunConfig
from mibfast.train.fitting.requirements import estimated_beta, open_data, refuse_beta
from mibfast.train.fitting.targets import target_of
from mibfast.train.folder import RunFolder
from mibfast.train.json_files import NUMBER
from mibfast.train.methods import Fusion, method
from mibfast.train.progress import Report, Task

# The forms of the files that are kept: OMIB's beta, and the rows of an evaluation.
_BETA = {
    "beta": NUMBER,
    "lower": NUMBER,
    "upper": NUMBER,
    "entropies": {str: {"value": NUMBER}},
    "estimator": str,
    "samples": int,
    "indistinct": [str],
}
_ROWS = [{"task": str, "modalities": str, "metric": str, "value": NUMBER}]
_QUIET = Report(False)


class Runner:
    """The runs of one method, each in a folder that is named by its settings."""

    def __init__(self, folder: RunFolder, name: str, data: str, settings: Mapping[str, Any], task: Task) -> None:
        self._folder, self._name, self._data, self._settings, self._task = folder, name, data, settings, task

    def _path(self, loss: Mapping[str, float], seed: int) -> Path:
        return self._folder.path / "runs" / run_name(self._name, loss, seed)

    def _run(self, loss: Mapping[str, float], seed: int) -> Run:
        path = self._path(loss, seed)
        if RunFolder(path).ended:
            return open_run(path, encoders=self._settings.get("encoders"))
        run_settings, options = split_settings(loss)
        settings = {**self._settings, **run_settings}
        chosen = method(self._name)
        if isinstance(chosen, Fusion) and chosen.needs_beta(options):
            named = {"method": self._name, "data": absolute_name(self._data), "seed": seed}
            estimated = kept_beta(self._folder, RunConfig(**{**settings, **named}), _QUIET)
            refuse_beta(estimated)
            options["beta"] = estimated["beta"]
        try:
            return fit(
                self._name,
                self._data,
                output=path,
                resume=True,
                pictures=False,
                progress=_QUIET,
                seed=seed,
                loss=options,
                **settings,
            )
        except DivergedError:
            # Training that diverged late has ended with the weights of its best epoch.
            if not RunFolder(path).ended:
                raise
            return open_run(path, encoders=self._settings.get("encoders"))

    def validation_score(self, loss: Mapping[str, float]) -> float | None:
        """Return the score to tune by; None where there is none, or training diverged before it had any weights."""
        how = {"probes": ("linear",), "split": "validation", "combinations": "whole"}
        try:
            rows = self._kept(loss, 0, "validation", how)
        except DivergedError:
            self._task.advance(1, f"{self._name}: diverged")
            return None
        self._task.advance(1, f"{self._name}: tuning")
        for metric in CHOOSING:
            values = [row["value"] for row in rows if row["metric"] == metric]
            if values:
                score = float(np.mean(values)) * (-1 if metric in LESS_IS_BETTER else 1)
                # R2 of labels that do not vary is NaN, by which nothing can be chosen.
                return score if np.isfinite(score) else None
        raise RunError(f"{self._data}: nothing to tune by")

    def tested(self, loss: Mapping[str, float], seed: int, combinations: str) -> list[dict[str, Any]]:
        """Return the figures of the test split."""
        rows = self._kept(loss, seed, "test", {"combinations": combinations})
        self._task.advance(1, f"{self._name}: seed {seed}")
        return rows

    def _kept(self, loss: Mapping[str, float], seed: int, name: str, how: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of an evaluation, which are kept with the run."""
        place = RunFolder(self._path(loss, seed))
        file = place.path / f"{name}.json"
        if os.path.lexists(file):
            rows: list[dict[str, Any]] = place.read_json(file.name, _ROWS)
            return rows
        rows = evaluate(self._run(loss, seed), progress=_QUIET, **how).rows
        place.write_json(file.name, rows)
        return rows


def kept_beta(folder: RunFolder, config: RunConfig, report: Report) -> dict[str, Any]:
    """Return OMIB's beta for a seed, and its bounds: estimated once, and kept in the comparison's folder."""
    name = f"beta,seed={config.seed}.json"
    if not os.path.lexists(folder.path / name):
        data = open_data(config)
        target = target_of(data, config.task, config.normal_class)
        folder.write_json(name, estimated_beta(config, data, target, report))
    beta: dict[str, Any] = folder.read_json(name, _BETA)
    if not set(beta["indistinct"]) <= set(beta["entropies"]):
        raise RunError(f"{folder.path / name} is damaged: it has no entropy of what is indistinct")
    return beta
