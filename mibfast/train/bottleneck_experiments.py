"""Bottlenecks of two views compared by a linear SVM on their latents' means, swept over one quantity, over seeds."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibfast.bottleneck import Bottleneck, BottleneckLoss, methods
from mibfast.data import DataError, MultimodalData, load
from mibfast.data.multimodal import FRACTIONS, SPLITS, nearest
from mibfast.data.opening import read_bytes
from mibfast.data.sources import absolute_name
from mibfast.ops.mutual_information import ESTIMATORS
from mibfast.train.batches import shuffled
from mibfast.train.bottleneck_fitting import CRITICS, ENCODERS, build_networks, encode_in_parts, fit_bottleneck
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.folder import RunFolder
from mibfast.train.json_files import NUMBER, check_form, parse_json
from mibfast.train.pictures import draw_accuracies
from mibfast.train.probes import linear_svm, task_of
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
# The SVM on the views as they are: what there is to be gained.
PIXELS = "pixels"
METHODS = (*BOTTLENECKS, PIXELS)
BETA = 128.0
SWEEPS: dict[str, tuple[float, ...]] = {
    "latent": (2, 4, 8, 16, 32, 64),
    "beta": (1, 4, 16, 64, 256, 1024),
    "samples": (64, 128, 256, 512, 1024),
}
_LABELS = {"latent": "length of the latents", "beta": "beta", "samples": "training samples n"}
# A cell: its method, its value, its seed.
_Key: TypeAlias = tuple[str, float | None, int]
_PLAN, _CELLS = "plan.json", "cells.jsonl"
_CELL = {"method": str, "value": (*NUMBER, type(None)), "seed": int, "seconds": NUMBER, "views": (dict, type(None))}


@dataclass(frozen=True)
class Experiment:
    """What :func:`experiment` found.

    Attributes
    ----------
    sweep : {"latent", "beta", "samples"}
    cells : list of dict
        `method`, `value` (of the sweep; None where the method does not depend on it), `seed`, `seconds`, and under
        `views` for each view the `accuracy` on the test split, the `validation_accuracy`, the SVM's `C`, and of what
        was trained the `steps`, the `best_step` and its validation `terms` (nats). `views` is None where training
        diverged.
    title : str
    """

    sweep: str
    cells: Sequence[Mapping[str, Any]]
    title: str

    def accuracies(self) -> dict[str, dict[str, dict[float | None, list[float]]]]:
        """Return the test accuracies of all seeds, by view, method and value; NaN where training diverged."""
        views = list(dict.fromkeys(view for cell in self.cells for view in cell["views"] or ()))
        found: dict[str, dict[str, dict[float | None, list[float]]]] = {}
        for cell in sorted(self.cells, key=lambda cell: int(cell["seed"])):
            for view in views if cell["views"] is None else cell["views"]:
                accuracy = math.nan if cell["views"] is None else cell["views"][view]["accuracy"]
                found.setdefault(view, {}).setdefault(cell["method"], {}).setdefault(cell["value"], []).append(accuracy)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each view, method and value: mean, standard deviation, number of seeds, diverged ones."""
        return [
            {
                "view": view,
                "method": method,
                self.sweep: value,
                "mean": _mean(_finite(found)),
                "sd": _deviation(_finite(found)),
                "seeds": len(_finite(found)),
                "diverged": len(found) - len(_finite(found)),
            }
            for view, of_methods in self.accuracies().items()
            for method, of_values in of_methods.items()
            for value, found in of_values.items()
        ]

    def differences(self) -> list[dict[str, Any]]:
        """Return, by view and value, the first method's accuracy less each other's on the same seeds.

        With its mean, its standard deviation over seeds, the number of seeds that the first method `won`, the
        difference on `each` seed, and how many `seeds` there are.
        """
        rows = []
        for view, of_methods in self.accuracies().items():
            first, *others = of_methods
            for value, found in of_methods[first].items():
                for other in others:
                    compared = of_methods[other]
                    pairs = zip(found, compared.get(value, compared.get(None, [])), strict=False)
                    # Neither of a seed that either diverged on.
                    each = _finite([a - b for a, b in pairs])
                    rows.append(
                        {
                            "view": view,
                            self.sweep: value,
                            "first": first,
                            "other": other,
                            "mean": _mean(each),
                            "sd": _deviation(each),
                            "won": sum(x > 0 for x in each),
                            "each": each,
                            "seeds": len(each),
                        }
                    )
        return rows

    def exponents(self) -> list[dict[str, Any]]:
        """Return the power laws of a sweep over samples, none of another.

        By view and method `accuracy`, a where accuracy is proportional to n^a, and `error`, b where 1 - accuracy is to
        n^-b: means over seeds of least squares on logarithms, with `accuracy_sd` and `error_sd`. An SVM without an
        error is taken to have half of one.
        """
        if self.sweep != "samples":
            return []
        rows = []
        for view, of_methods in self.accuracies().items():
            for method, of_values in of_methods.items():
                if len(of_values) < 2:
                    continue
                logarithms = np.log(np.array(list(of_values), float))
                found = np.array(list(of_values.values()))
                found = found[:, ~np.isnan(found).any(axis=0)]
                if not found.size:
                    continue
                least = min(0.5 / cell["views"][view]["tested"] for cell in self.cells if cell["views"])
                slopes = {
                    "accuracy": np.polyfit(logarithms, np.log(np.maximum(found, least)), 1)[0],
                    "error": -np.polyfit(logarithms, np.log(np.maximum(1 - found, least)), 1)[0],
                }
                row: dict[str, Any] = {"view": view, "method": method}
                for name, each in slopes.items():
                    row[name], row[f"{name}_sd"] = float(each.mean()), _deviation(each.tolist())
                rows.append(row)
        return rows

    def markdown(self) -> str:
        """Return tables of accuracies in percent, of differences and of exponents."""
        found = self.accuracies()
        values = list(dict.fromkeys(v for each in found.values() for m in each.values() for v in m if v is not None))
        lines = [
            f"| view | method | {' | '.join(f'{self.sweep} {v:g}' for v in values)} |",
            "|---" * (2 + len(values)) + "|",
        ]
        for view, of_methods in found.items():
            for method, of_values in of_methods.items():
                cells = [_percent(of_values.get(value, of_values.get(None, []))) for value in values]
                lines.append(f"| {view} | {method} | {' | '.join(cells)} |")
        grouped: dict[tuple[str, str], list[str]] = {}
        for row in self.differences():
            name = f"{row['first']} - {row['other']}"
            cell = f"{_percent(row['each'], '+')} ({row['won']} of {row['seeds']})"
            grouped.setdefault((row["view"], name), []).append(cell)
        if grouped:
            lines += ["", lines[0].replace("method", "difference"), lines[1]]
        lines += [f"| {view} | {name} | {' | '.join(cells)} |" for (view, name), cells in grouped.items()]
        exponents = self.exponents()
        if exponents:
            lines += ["", "| view | method | a, accuracy ~ n^a | b, 1 - accuracy ~ n^-b |", "|---|---|---|---|"]
            for row in exponents:
                slopes = [
                    f"{row[name]:.3f}" + ("" if row[f"{name}_sd"] is None else f" ± {row[f'{name}_sd']:.3f}")
                    for name in ("accuracy", "error")
                ]
                lines.append(f"| {row['view']} | {row['method']} | {' | '.join(slopes)} |")
        return "\n".join(lines) + "\n"


def _percent(found: Sequence[float], sign: str = "") -> str:
    finite = _finite(found)
    if not finite:
        return "diverged"
    deviation, diverged = _deviation(finite), len(found) - len(finite)
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{100 * statistics.fmean(finite):{sign}.1f}{spread}" + (f" ({diverged} diverged)" if diverged else "")


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


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
    """Compare bottlenecks of two views, going on where an earlier call with the same arguments was interrupted.

    Each seed makes and splits the data anew. A method whose graphs have a latent for each view is trained once on both;
    one with a latent of X alone is trained twice, each view once as X. A linear SVM is fitted to the latents' means of
    the training samples, its C out of logspace(-3, 2, 11) chosen by the validation split, and scored on the test split.

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
        See :func:`mibfast.train.bottleneck_fitting.build_networks`.
    steps, patience, batch_size, learning_rate
        See :func:`mibfast.train.bottleneck_fitting.fit_bottleneck`.
    progress : bool or Report

    Raises
    ------
    RunError, DataError
        For arguments and data that do not fit, before anything is trained; for a folder that holds something else or is
        in use; DivergedError where all training diverged. What diverges otherwise is said, and leaves its cells out.
    """
    names = _checked_methods(methods)
    _choice("sweep", sweep, tuple(SWEEPS))
    _choice("encoder", encoder, ENCODERS)
    _choice("critic", critic, CRITICS)
    _choice("estimator", estimator, ESTIMATORS)
    counts = {
        "seeds": seeds,
        "latent": latent,
        "hidden_features": hidden_features,
        "steps": steps,
        "patience": patience,
    }
    for argument, count in counts.items():
        _integer(argument, count, 1)
    _integer("batch_size", batch_size, 2)
    _positive("learning_rate", learning_rate)
    swept = _checked_values(sweep, SWEEPS[sweep] if values is None else values)
    if names == (PIXELS,) and sweep != "samples":
        raise RunError(f"pixels do not depend on {sweep}; a method that does must be compared with them")
    networks: dict[str, Any] = {
        "hidden_features": hidden_features,
        "encoder": encoder,
        "critic": critic,
        "estimator": estimator,
    }
    training = {
        **networks,
        "steps": steps,
        "patience": patience,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    source = absolute_name(data)
    of_seed = _SeedData(source, tuple(map(float, split)))
    first = of_seed(0)
    available = len(first.splits["train"])
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
        "split": list(map(float, split)),
        "training": training,
        "fingerprint": first.fingerprint(),
    }
    _try_networks(names, first, latent, networks)
    report = reported("experiment", progress)
    folder = RunFolder(Path(output))
    _claim(folder, plan)
    due: list[_Key] = [
        (name, value, seed)
        for seed in range(seeds)
        for name in names
        for value in (swept if name != PIXELS or sweep == "samples" else (None,))
    ]
    with folder.locked():
        cells = _read_cells(folder, due)
        with report.task(f"{sweep} of {data}", len(due), len(cells)) as task:
            for key in due:
                if key in cells:
                    continue
                name, value, seed = key
                started = time.perf_counter()
                chosen: dict[str, Any] = {"latent": latent, "beta": betas.get(name, BETA), "samples": None}
                chosen[sweep] = value
                found: dict[str, dict[str, Any]] | None
                try:
                    found = _cell(name, of_seed(seed), seed, training, **chosen)
                except DivergedError as error:
                    report.say(f"{name}, {sweep} {value}, seed {seed}: {error}")
                    found = None
                seconds = round(time.perf_counter() - started, 2)
                cells[key] = {"method": name, "value": value, "seed": seed, "seconds": seconds, "views": found}
                _write_cells(folder, cells)
                task.advance(1, f"{name}, {sweep} {value}, seed {seed}")
                if key == due[-1] or due[due.index(key) + 1][2] != seed:
                    so_far = Experiment(
                        sweep, [cells[each] for each in due if each in cells], f"{data}, {seed + 1} seeds"
                    )
                    if so_far.accuracies():
                        _write_results(folder, so_far)
        result = Experiment(sweep, [cells[key] for key in due], f"{data}, {seeds} seeds")
        if not result.accuracies():
            raise DivergedError(f"{data}: training diverged in all of {len(due)} cells; a lower learning_rate may help")
        _write_results(folder, result)
    return result


class _SeedData:
    """The data of a seed; the last one's are kept."""

    def __init__(self, data: str, split: Sequence[float]) -> None:
        self._data, self._split = data, split
        self._last: tuple[int, MultimodalData] | None = None

    def __call__(self, seed: int) -> MultimodalData:
        if self._last is None or self._last[0] != seed:
            found = load(self._data, seed, split=self._split)
            _check_data(found)
            self._last = seed, found
        return self._last[1]


def _try_networks(names: Sequence[str], data: MultimodalData, latent: int, networks: Mapping[str, Any]) -> None:
    """Build every method's networks once, so that what does not fit is said before hours are spent."""
    shapes = {name: view.shape[1:] for name, view in zip("XY", data.views.values(), strict=True)}
    with torch.random.fork_rng(devices=[]):
        for name in names:
            if name != PIXELS:
                build_networks(BOTTLENECKS[name](BETA), shapes, latent, **networks)


def _check_data(data: MultimodalData) -> None:
    if len(data.views) != 2 or data.presence:
        raise RunError(f"an experiment takes data of two modalities that no sample lacks, got {data!r}")
    try:
        classes = data.labels is not None and task_of(data.labels) == "classification"
    except DataError as error:
        raise DataError(f"{data.name}: {error}") from error
    if not classes:
        raise RunError(f"an experiment takes data with classes as labels, got {data!r}")
    for name, view in data.views.items():
        low, high = float(view[:].min()), float(view[:].max())
        if not (low >= 0 and high <= 1):
            raise RunError(
                f"{data.name}: modality {name!r} lies between {low:g} and {high:g}; an experiment takes values between "
                "0 and 1, which its decoders end in"
            )


def _checked_methods(methods: Sequence[str]) -> tuple[str, ...]:
    if not methods or len(set(methods)) < len(methods):
        raise RunError(f"methods must be named, each once; got {', '.join(methods) or 'none'}")
    for name in methods:
        _choice("method", name, METHODS)
    # The first is what others are compared with, and the views themselves are no method.
    return tuple(sorted(methods, key=lambda name: name == PIXELS))


def _checked_values(sweep: str, values: Sequence[float]) -> tuple[float, ...]:
    least = 0 if sweep == "beta" else 1 if sweep == "latent" else 20
    kind = "a positive number" if sweep == "beta" else f"an integer of at least {least}"
    for value in values:
        wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
        if wrong or value < least or (value <= 0 if sweep == "beta" else value != int(value)):
            raise RunError(f"values of {sweep} must each be {kind}, got {value!r}")
    if not values or len(set(values)) < len(values):
        raise RunError(f"values of {sweep} must be given, each once; got {', '.join(map(str, values)) or 'none'}")
    return tuple(float(value) if sweep == "beta" else int(value) for value in values)


def _checked_betas(beta: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    given = beta if isinstance(beta, Mapping) else dict.fromkeys(names, beta)
    for name, value in given.items():
        _choice("beta of", name, names)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
            raise RunError(f"beta must be a finite number of at least 0, got {value!r}")
    return {name: float(given.get(name, BETA)) for name in names if name != PIXELS}


def _choice(argument: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise RunError(f"{argument} {value!r} is not known{nearest(value, valid)}")


def _integer(argument: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RunError(f"{argument} must be an integer of at least {least}, got {value!r}")


def _positive(argument: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise RunError(f"{argument} must be a finite positive number, got {value!r}")


def _claim(folder: RunFolder, plan: Mapping[str, Any]) -> None:
    if os.path.lexists(folder.path / _PLAN):
        found = folder.read_json(_PLAN, object)
        if found != plan:
            differing = [key for key in plan if not isinstance(found, dict) or found.get(key) != plan[key]]
            raise RunError(f"{folder.path} is of another experiment, with other {', '.join(differing)}")
        return
    folder.create()
    folder.write_json(_PLAN, plan)


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
            raise RunError(f"{path} is damaged in line {number}; without that line the cell is measured anew")
        cells[key] = cell
    return cells


def _write_results(folder: RunFolder, found: Experiment) -> None:
    folder.write_table("results.csv", found.rows())
    folder.write("results.md", lambda path: path.write_text(found.markdown()))
    folder.write_json(
        "results.json", {"rows": found.rows(), "differences": found.differences(), "exponents": found.exponents()}
    )
    label, power_laws = _LABELS[found.sweep], found.sweep == "samples"
    folder.write(
        "results.png", lambda path: draw_accuracies(_drawable(found), label, found.title, path, power_laws=power_laws)
    )


def _drawable(found: Experiment) -> dict[str, dict[str, dict[float | None, list[float]]]]:
    """Return accuracies without what diverged."""
    return {
        view: {
            method: {value: _finite(each) for value, each in of_values.items() if _finite(each)}
            for method, of_values in of_methods.items()
            if any(map(_finite, of_values.values()))
        }
        for view, of_methods in found.accuracies().items()
    }


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
    # The networks', whatever the views are of.
    parts = {split: {view: each.float() for view, each in part.items()} for split, part in parts.items()}
    found: dict[str, dict[str, Any]] = {}
    # A latent for each view, or one of X alone, for which each view is X in turn.
    symmetric = "ZY" in BOTTLENECKS[method](beta).latents
    for of_x, of_y in ((x, y),) if symmetric else ((x, y), (y, x)):
        variables = {split: {"X": parts[split][of_x], "Y": parts[split][of_y]} for split in SPLITS}
        bottleneck = BOTTLENECKS[method](beta)
        observed = {split: {name: each[name] for name in bottleneck.observed} for split, each in variables.items()}
        fitted = fit_bottleneck(
            bottleneck, observed["train"], observed["validation"], int(latent), seed=seed, **training
        )
        terms = _validation_terms(fitted.loss, observed["validation"])
        for view, name, latents in ((of_x, "X", ("ZX", "Z")), (of_y, "Y", ("ZY",))):
            read = [each for each in latents if each in bottleneck.latents]
            if not read:
                continue
            means = [encode_in_parts(fitted.loss, {name: variables[split][name]})[read[0]] for split in SPLITS]
            found[view] = {
                **_scored(means, labels),
                "steps": int(fitted.checks[-1]["step"]),
                "best_step": fitted.best_step,
                "terms": terms,
            }
    return found


def _validation_terms(loss: BottleneckLoss, observed: Mapping[str, Tensor]) -> dict[str, float]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given: dict[str, Any] = dict(observed)
        return {name: round(float(value), 4) for name, value in loss.terms(**given).items()}


def _scored(views: Sequence[Tensor], labels: Sequence[NDArray[Any]]) -> dict[str, Any]:
    arrays = [each.flatten(1).double().numpy() for each in views]
    if len(np.unique(labels[0])) < 2:
        raise RunError(f"{len(labels[0])} training samples are all of class {labels[0][0].item()!r}: take more samples")
    found = linear_svm(*zip(arrays, labels, strict=True))
    return {
        "accuracy": found.test_accuracy,
        "validation_accuracy": found.validation_accuracy,
        "C": found.C,
        "tested": len(labels[-1]),
    }
