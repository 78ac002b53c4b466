"""Bottlenecks of two views compared by a linear SVM on their latents' means, swept over one quantity, over seeds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibfast.bottleneck import Bottleneck, BottleneckLoss, methods
from mibfast.data import DataError, MultimodalData, load
from mibfast.data.multimodal import FRACTIONS, SPLITS
from mibfast.data.opening import read_bytes
from mibfast.data.sources import absolute_name
from mibfast.information.critics import CRITICS
from mibfast.ops.mutual_information import ESTIMATORS
from mibfast.train import checks
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.evaluation.probes import linear_svm
from mibfast.train.experiments.bottleneck_fitting import (
    ENCODERS,
    build_networks,
    encode_in_parts,
    fit_bottleneck,
)
from mibfast.train.experiments.bottleneck_results import Experiment, finite
from mibfast.train.fitting.batches import shuffled
from mibfast.train.fitting.targets import task_of
from mibfast.train.folder import RunFolder
from mibfast.train.json_files import NUMBER, check_form, parse_json
from mibfast.train.pictures import draw_accuracies
from mibfast.train.progress import Report, reported

BOTTLENECKS: dict[str, Callable[[float], Bottleneck]] = {
    "dvsib": methods.dvsib,
    "dvsib-private": methods.dvsib_private,
    "dvsib-no-reconstruction": methods.dvsib_no_reconstruction,
    "mvib": methods.mvib,
    "beta-vae": methods.beta_vae,
    "dvib": methods.dvib,
    "beta-dvcca": methods.beta_dvcca,
    "beta-dvcca-private": methods.beta_dvcca_private,
}
# The SVM on the views as they are, to compare with.
PIXELS = "pixels"
METHODS = (*BOTTLENECKS, PIXELS)
BETA = 128.0
SWEEPS: dict[str, tuple[float, ...]] = {
    "latent": (2, 4, 8, 16, 32, 64),
    "beta": (1, 4, 16, 64, 256, 1024),
    "samples": (64, 128, 256, 512, 1024),
}
_LABELS = {"latent": "length of the latents", "beta": "beta", "samples": "training samples n"}
# The method, the value and the seed of a cell.
_Key: TypeAlias = tuple[str, float | None, int]
_CELLS = "cells.jsonl"
_CELL = {"method": str, "value": (*NUMBER, type(None)), "seed": int, "seconds": NUMBER, "views": (dict, type(None))}


def experiment(
    data: str,
    sweep: str,
    output: str | Path,
    *,
    values: Sequence[float] | None = None,
    methods: Sequence[str] = ("dvsib", "beta-vae", PIXELS),
    seeds: int = 5,
    latent: int = 16,
    beta: float | Mapping[str, float] = BETA,
    split: Sequence[float] = FRACTIONS,
    encoder: str = "mlp",
    critic: str = "bilinear",
    estimator: str = "smile",
    hidden_features: int = 256,
    steps: int = 2000,
    patience: int = 250,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    progress: bool | Report = True,
) -> Experiment:
    """Compare bottlenecks of two views; a call with the same arguments goes on where an earlier one was interrupted.

    Each seed makes and splits the data again. A method whose graphs have a latent for each view is trained once on
    both; one with a latent of X alone is trained twice, each view once as X. A linear SVM is fitted to the latents'
    means of the training samples, its C out of logspace(-3, 2, 11) chosen by the validation split, and scored on the
    test split.

    Parameters
    ----------
    data : str
        As :func:`mibfast.data.load` takes it: two modalities between 0 and 1, and classes.
    sweep : {"latent", "beta", "samples"}
        What varies: the length of the latents, beta, or the number of training samples that encoders and SVM get. For
        the last, smaller sets are parts of larger ones.
    output : str or Path
        Folder of the experiment: `cells.jsonl`, a line for each method, value and seed as they end, and from these
        `results.csv`, `results.md`, `results.json` and `results.png`.
    values : sequence of float, optional
        Of the sweep; :data:`SWEEPS` has the defaults.
    methods : sequence of str
        Of :data:`METHODS`. The first is compared with each other; "pixels" is the SVM on the views themselves.
    seeds : int
        How many, from 0.
    latent : int
        Length of the latents, where it is not swept.
    beta : float or mapping from a method's name to float
        Where it is not swept; 128 for methods that a mapping leaves out.
    split : three floats
        Fractions of training, validation and test.
    encoder, critic, estimator, hidden_features
        See :func:`mibfast.train.experiments.bottleneck_fitting.build_networks`.
    steps, patience, batch_size, learning_rate
        See :func:`mibfast.train.experiments.bottleneck_fitting.fit_bottleneck`.
    progress : bool or Report

    Raises
    ------
    RunError, DataError
        For arguments and data that do not fit, before anything is trained; for a folder that holds something else or is
        in use; DivergedError where all training diverged. Where a part of it diverges, that is said, and its cells are
        left out.
    """
    checks.choice("sweep", sweep, SWEEPS)
    names = _checked_methods(methods)
    for argument, choice, valid in (
        ("encoder", encoder, ENCODERS),
        ("critic", critic, CRITICS),
        ("estimator", estimator, ESTIMATORS),
    ):
        checks.choice(argument, choice, valid)
    networks: dict[str, Any] = {
        "hidden_features": hidden_features,
        "encoder": encoder,
        "critic": critic,
        "estimator": estimator,
    }
    lengths = {"steps": steps, "patience": patience}
    for argument, count in {"seeds": seeds, "latent": latent, "hidden_features": hidden_features, **lengths}.items():
        checks.integer(argument, count, 1)
    checks.integer("batch_size", batch_size, 2)
    checks.number("learning_rate", learning_rate, positive=True)
    training = {**networks, **lengths, "batch_size": batch_size, "learning_rate": learning_rate}
    swept = _checked_values(sweep, SWEEPS[sweep] if values is None else values)
    if names == (PIXELS,) and sweep != "samples":
        raise RunError(f"pixels do not depend on {sweep}; a method that does must be compared with them")
    source, fractions = absolute_name(data), list(map(float, split))
    opened = _open(source, 0, fractions)
    available = len(opened.splits["train"])
    if sweep == "samples" and max(swept) > available:
        raise RunError(f"samples of {max(swept)} are more than the {available} training samples of {data}")
    betas = _checked_betas(beta, names)
    plan = {
        "data": source,
        "sweep": sweep,
        "values": list(swept),
        "methods": list(names),
        "seeds": seeds,
        "latent": latent,
        "beta": betas,
        "split": fractions,
        "training": training,
        "fingerprint": opened.fingerprint(),
    }
    _try_networks(names, opened, latent, networks)
    report = reported("experiment", progress)
    folder = RunFolder(Path(output))
    folder.claim(plan)
    due: list[_Key] = [
        (name, value, seed)
        for seed in range(seeds)
        for name in names
        for value in (swept if name != PIXELS or sweep == "samples" else (None,))
    ]
    with folder.locked():
        cells = _read_cells(folder, due)
        with report.task(f"{sweep} of {data}", len(due), len(cells)) as task:
            for seed in range(seeds):
                keys = [key for key in due if key[2] == seed]
                missing = [key for key in keys if key not in cells]
                if missing and seed:
                    opened = _open(source, seed, fractions)
                for key in missing:
                    name, value, _ = key
                    started = time.perf_counter()
                    settings: dict[str, Any] = {"latent": latent, "beta": betas.get(name, BETA), "samples": None}
                    settings[sweep] = value
                    views: dict[str, dict[str, Any]] | None
                    try:
                        views = _cell(name, opened, seed, training, **settings)
                    except DivergedError as error:
                        report.say(f"{name}, {sweep} {value}, seed {seed}: {error}")
                        views = None
                    seconds = round(time.perf_counter() - started, 2)
                    cells[key] = {"method": name, "value": value, "seed": seed, "seconds": seconds, "views": views}
                    _write_cells(folder, cells)
                    task.advance(1, f"{name}, {sweep} {value}, seed {seed}")
                ended = [cells[key] for key in due if key[2] <= seed]
                result = Experiment(sweep, ended, f"{data}, {seed + 1} seeds")
                if result.accuracies() and (missing or seed == seeds - 1):
                    _write_results(folder, result)
        if not result.accuracies():
            raise DivergedError(f"{data}: training diverged in all of {len(due)} cells; a lower learning_rate may help")
    return result


def _open(data: str, seed: int, split: Sequence[float]) -> MultimodalData:
    """Open the data of a seed; RunError or DataError where an experiment does not take them."""
    opened = load(data, seed, split=split)
    if len(opened.views) != 2 or opened.presence:
        raise RunError(f"an experiment takes data of two modalities that no sample lacks, got {opened!r}")
    try:
        classes = opened.labels is not None and task_of(opened.labels) == "classification"
    except DataError as error:
        raise DataError(f"{opened.name}: {error}") from error
    if not classes:
        raise RunError(f"an experiment takes data with classes as labels, got {opened!r}")
    for name, view in opened.views.items():
        low, high = float(view[:].min()), float(view[:].max())
        if not (low >= 0 and high <= 1):
            raise RunError(
                f"{opened.name}: modality {name!r} lies between {low:g} and {high:g}; an experiment takes values "
                "between 0 and 1, the range of its decoders"
            )
    return opened


def _try_networks(names: Sequence[str], data: MultimodalData, latent: int, networks: Mapping[str, Any]) -> None:
    """Build every method's networks once, so that those that do not fit are refused before hours are spent."""
    shapes = {name: view.shape[1:] for name, view in zip("XY", data.views.values(), strict=True)}
    with torch.random.fork_rng(devices=[]):
        for name in names:
            if name != PIXELS:
                build_networks(BOTTLENECKS[name](BETA), shapes, latent, **networks)


def _checked_methods(methods: Sequence[str]) -> tuple[str, ...]:
    checks.named_once("methods", methods)
    for name in methods:
        checks.choice("method", name, METHODS)
    # The others are compared with the first, which must not be the views themselves.
    return tuple(sorted(methods, key=lambda name: name == PIXELS))


def _checked_values(sweep: str, values: Sequence[float]) -> tuple[float, ...]:
    least = 0 if sweep == "beta" else 1 if sweep == "latent" else 20
    kind = "a positive number" if sweep == "beta" else f"an integer of at least {least}"
    for value in values:
        if not checks.is_finite(value) or value < least or (value <= 0 if sweep == "beta" else value != int(value)):
            raise RunError(f"values of {sweep} must each be {kind}, got {value!r}")
    checks.named_once(f"values of {sweep}", values)
    return tuple(float(value) if sweep == "beta" else int(value) for value in values)


def _checked_betas(beta: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    by_name = beta if isinstance(beta, Mapping) else dict.fromkeys(names, beta)
    for name, value in by_name.items():
        checks.choice("beta of", name, names)
        checks.number("beta", value)
    return {name: float(by_name.get(name, BETA)) for name in names if name != PIXELS}


def _write_cells(folder: RunFolder, cells: Mapping[_Key, Mapping[str, Any]]) -> None:
    lines = "".join(json.dumps(cell) + "\n" for cell in cells.values())
    folder.write(_CELLS, lambda path: path.write_text(lines))


def _read_cells(folder: RunFolder, due: Sequence[_Key]) -> dict[_Key, dict[str, Any]]:
    path = folder.path / _CELLS
    cells: dict[_Key, dict[str, Any]] = {}
    if not os.path.lexists(path):
        return cells
    try:
        lines = read_bytes(path).splitlines()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        try:
            cell = parse_json(line)
            check_form(cell, _CELL)
            if cell["views"] is not None:
                check_form(cell["views"], {str: {"accuracy": NUMBER, "tested": int}})
            key = cell["method"], cell["value"], cell["seed"]
            damaged = key not in due
        except ValueError:
            damaged = True
        if damaged:
            raise RunError(f"{path} is damaged in line {number}; without that line the cell is measured again")
        cells[key] = cell
    return cells


def _write_results(folder: RunFolder, result: Experiment) -> None:
    folder.write_table("results.csv", result.rows())
    folder.write("results.md", lambda path: path.write_text(result.markdown()))
    folder.write_json(
        "results.json", {"rows": result.rows(), "differences": result.differences(), "exponents": result.exponents()}
    )
    # Without what diverged.
    drawn = {
        view: {
            method: {value: finite(each) for value, each in by_value.items() if finite(each)}
            for method, by_value in by_method.items()
            if any(map(finite, by_value.values()))
        }
        for view, by_method in result.accuracies().items()
    }
    label, power_laws = _LABELS[result.sweep], result.sweep == "samples"
    folder.write("results.png", lambda path: draw_accuracies(drawn, label, result.title, path, power_laws=power_laws))


def _cell(
    method: str,
    data: MultimodalData,
    seed: int,
    training: Mapping[str, Any],
    *,
    latent: float,
    beta: float,
    samples: float | None,
) -> dict[str, dict[str, Any]]:
    """Train a method on a seed's data, and return what the SVM makes of each view."""
    chosen = dict(data.splits)
    if samples is not None:
        chosen["train"] = shuffled(chosen["train"], seed, 0)[: int(samples)]
    parts = {split: data.take(indices) for split, indices in chosen.items()}
    assert data.labels is not None
    labels = [data.labels[chosen[split].numpy()] for split in SPLITS]
    x, y = data.views
    if method == PIXELS:
        return {view: _scored([parts[split][view] for split in SPLITS], labels) for view in (x, y)}
    # The networks take float32.
    parts = {split: {view: each.float() for view, each in part.items()} for split, part in parts.items()}
    scores: dict[str, dict[str, Any]] = {}
    # A latent for each view, or one of X alone, for which each view is X in turn.
    symmetric = "ZY" in BOTTLENECKS[method](beta).latents
    for x_view, y_view in ((x, y),) if symmetric else ((x, y), (y, x)):
        variables = {split: {"X": parts[split][x_view], "Y": parts[split][y_view]} for split in SPLITS}
        bottleneck = BOTTLENECKS[method](beta)
        observed = {split: {name: each[name] for name in bottleneck.observed} for split, each in variables.items()}
        fitted = fit_bottleneck(
            bottleneck, observed["train"], observed["validation"], int(latent), seed=seed, **training
        )
        terms = _validation_terms(fitted.loss, observed["validation"])
        for view, name, latents in ((x_view, "X", ("ZX", "Z")), (y_view, "Y", ("ZY",))):
            read = [each for each in latents if each in bottleneck.latents]
            if not read:
                continue
            means = [encode_in_parts(fitted.loss, {name: variables[split][name]})[read[0]] for split in SPLITS]
            scores[view] = {
                **_scored(means, labels),
                "steps": int(fitted.checks[-1]["step"]),
                "best_step": fitted.best_step,
                "terms": terms,
            }
    return scores


def _validation_terms(loss: BottleneckLoss, observed: Mapping[str, Tensor]) -> dict[str, float]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given: dict[str, Any] = dict(observed)
        return {name: round(float(value), 4) for name, value in loss.terms(**given).items()}


def _scored(views: Sequence[Tensor], labels: Sequence[NDArray[Any]]) -> dict[str, Any]:
    arrays = [each.flatten(1).double().numpy() for each in views]
    if len(np.unique(labels[0])) < 2:
        raise RunError(f"{len(labels[0])} training samples are all of class {labels[0][0].item()!r}: take more samples")
    svm = linear_svm(*zip(arrays, labels, strict=True))
    return {
        "accuracy": svm.test_accuracy,
        "validation_accuracy": svm.validation_accuracy,
        "C": svm.C,
        "tested": len(labels[-1]),
    }
