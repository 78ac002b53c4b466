"""Methods compared on one data set: tuned alike on the validation split, then trained with several seeds and tested."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mibfast import _check
from mibfast.data import DataError, MultimodalData
from mibfast.data.file_names import why_no_file_name
from mibfast.data.multimodal import nearest
from mibfast.data.sources import absolute_name
from mibfast.train.config import RunConfig
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.evaluation import evaluate, probed_task
from mibfast.train.fitting import (
    Run,
    estimated_beta,
    fit,
    fitting_target,
    open_data,
    open_run,
    refuse_beta,
    refuse_settings,
)
from mibfast.train.folder import RunFolder
from mibfast.train.json_files import NUMBER
from mibfast.train.methods import Fusion, Method, method
from mibfast.train.pictures import draw_comparison, draw_sweep
from mibfast.train.progress import Report, Task, reported
from mibfast.train.targets import Target, class_notes, target_of

TEMPERATURES = (0.05, 0.1, 0.2)
BETAS = (0.1, 1.0)
# Of fusions.
LEARNING_RATES = (1e-4, 1e-3)
BETA_MULTIPLES = (0.1, 1.0, 10.0)
_PLAN = "plan.json"
# Of files that are kept: OMIB's beta, and what an evaluation found.
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
# What is tuned or varied and is no argument of the loss.
_WARM_UP = "warm_up_epochs"
_OF_RUN = ("learning_rate", _WARM_UP)
# What is compared: a column's title, the task, the metric.
FIGURES = (
    ("linear probe", "linear probe", "accuracy"),
    ("MLP probe", "MLP probe", "accuracy"),
    ("linear probe, R2", "linear probe", "R2"),
    ("MLP probe, R2", "MLP probe", "R2"),
    ("retrieval R@1", "retrieval", "R@1"),
    ("retrieval MRR", "retrieval", "MRR"),
    ("retrieval mAP", "retrieval", "mAP"),
    ("accuracy", "classification", "accuracy"),
    ("F1", "classification", "F1"),
    *((metric, "regression", metric) for metric in ("MAE", "Pearson r", "Acc-2", "F1", "Acc-7")),
    ("AUC", "anomaly-detection", "AUC"),
    ("F1", "anomaly-detection", "F1"),
)
# By which metric a setting is chosen, the first that there is; and those of which less is better.
_CHOOSING = ("accuracy", "R2", "MRR", "MAE", "AUC")
_LESS_IS_BETTER = ("MAE",)


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes
    ----------
    rows : list of dict
        A row for each method, task, combination of modalities and metric: `method`, `task`, `modalities`, `metric`,
        `mean`, `sd` (over seeds, n - 1), `seeds`.
    settings : mapping from a method's name to its arguments that were given or that the validation split chose
        Those of its loss, and of a fusion the learning rate as well.
        Of a method whose settings vary, from names such as `ova-ib[beta=0.1]`, which `rows` and `tried` have as well.
    tried : list of dict
        `method`, `loss` and the validation `score` of each setting, the higher the better (so the negative MAE), None
        where training diverged at once or a score is not a number.
    title : str
    """

    rows: list[dict[str, Any]]
    settings: dict[str, dict[str, Any]]
    tried: list[dict[str, Any]]
    title: str

    def figures(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Return mean and spread of each method's figures: of all modalities, and averaged over what is retrieved."""
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for name in self.settings:
            found[name] = {}
            for title, task, metric in FIGURES:
                rows = [r for r in self.rows if (r["method"], r["task"], r["metric"]) == (name, task, metric)]
                most = max((_size(r["modalities"]) for r in rows), default=0)
                whole = [r for r in rows if _size(r["modalities"]) == most]
                if whole:
                    means, spreads = ([r[key] for r in whole] for key in ("mean", "sd"))
                    found[name][title] = (float(np.mean(means)), float(np.mean(spreads)))
        return found

    def markdown(self) -> str:
        """Return the table of figures, the best of each column in bold."""
        figures = self.figures()
        # Several tasks have a figure of one name.
        every = dict.fromkeys(title for title, _, _ in FIGURES)
        titles = [title for title in every if any(title in found for found in figures.values())]
        lines = [f"| method | settings | {' | '.join(titles)} |", f"|---|---|{'---|' * len(titles)}"]
        best = {
            title: (min if title in _LESS_IS_BETTER else max)(found[title][0] for found in figures.values())
            for title in titles
        }
        for name, found in figures.items():
            cells = []
            for title in titles:
                mean, spread = found[title]
                cell = f"{mean:.4f} ± {spread:.4f}"
                cells.append(f"**{cell}**" if mean == best[title] else cell)
            settings = ", ".join(f"{key} {_short(value)}" for key, value in self.settings[name].items())
            lines.append(f"| {method(name.partition('[')[0]).title} | {settings} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    """Return a setting as rows and folders of runs are named by it: a number by six digits."""
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _run_name(name: str, settings: Mapping[str, Any], seed: int) -> str:
    return ",".join([name, *(f"{key}={_short(value)}" for key, value in settings.items()), f"seed={seed}"])


def _size(modalities: str) -> int:
    return modalities.count("+") + 1


def grid(chosen: Method, tune: bool = True, learning_rate: float | None = None, **given: Any) -> list[dict[str, Any]]:
    """Return the settings that a method is tuned over; without tuning there is one. What is given stays as it is.

    Of alignments temperatures (or scales, their inverses) and betas; of fusions learning rates and the same multiples
    of each method's own beta, which some sum over features and some average. OMIB's is estimated, not tuned.
    """
    _check.boolean("grid", "tune", tune)
    takes = chosen.options
    axes: dict[str, Sequence[Any]] = {}
    if tune and isinstance(chosen, Fusion):
        if learning_rate is None:
            axes["learning_rate"] = LEARNING_RATES
        if chosen.beta is not None:
            axes["beta"] = [multiple * chosen.beta for multiple in BETA_MULTIPLES]
    elif tune:
        if "temperature" in takes:
            axes["temperature"] = TEMPERATURES
        elif "scale" in takes:
            axes["scale"] = tuple(1 / t for t in TEMPERATURES)
        if "beta" in takes:
            axes["beta"] = BETAS
    axes.update((name, (value,)) for name, value in given.items())
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _variants(
    methods: Sequence[str], vary: Mapping[str, Sequence[Any]], ablate: Mapping[str, Any]
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the name of each row with its method and the settings that it is given.

    A row for each value it takes of what varies, or without these the method itself and a row for each ablation.
    """
    takes = {name: _taken(name) for name in methods}
    for option, values in {**vary, **{option: [value] for option, value in ablate.items()}}.items():
        if not any(option in each for each in takes.values()):
            valid = sorted({each for parameters in takes.values() for each in parameters})
            raise RunError(f"none of the methods has a loss option {option!r}{nearest(option, valid)}")
        # Rows and folders of runs are named by six digits.
        if len({_short(value) for value in values}) < max(1, len(values)):
            listed = ", ".join(map(str, values)) or "none"
            raise RunError(f"values of {option} must be given, each once and told apart by six digits; got {listed}")
    if vary and ablate:
        raise RunError("a comparison varies options or ablates them, not both")
    found = {}
    for name in methods:
        options = [option for option in vary if option in takes[name]]
        combinations = itertools.product(*(vary[option] for option in options))
        settings = [dict(zip(options, values, strict=True)) for values in combinations]
        settings += [{option: value} for option, value in ablate.items() if option in takes[name]]
        for given in settings:
            listed = ",".join(f"{option}={_short(value)}" for option, value in given.items())
            found[f"{name}[{listed}]" if given else name] = name, given
    return found


def _taken(name: str) -> list[str]:
    """Return what of a method's settings can be varied: the loss's arguments, and how long its warm-up is."""
    chosen = method(name)
    return [*chosen.options, *([_WARM_UP] if _warms_up(chosen) else [])]


def _warms_up(chosen: Method) -> bool:
    return isinstance(chosen, Fusion) and len(chosen.stages) > 1


def _apart(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the run's settings and the loss's arguments among what a method is given."""
    of_run = {name: value for name, value in given.items() if name in _OF_RUN}
    return of_run, {name: value for name, value in given.items() if name not in of_run}


def compare(
    methods: Sequence[str],
    data: str,
    output: str | Path,
    *,
    seeds: int = 3,
    tune: bool = True,
    vary: Mapping[str, Sequence[Any]] | None = None,
    ablate: Mapping[str, Any] | None = None,
    combinations: str = "every",
    progress: bool | Report = True,
    **settings: Any,
) -> Comparison:
    """Compare methods on one data set, going on where an earlier call with the same arguments was interrupted.

    Each method is tuned over the same temperatures and betas, with the first seed, by the validation accuracy of a
    linear probe on all modalities (R2 for regression; without labels the MRR of retrieval by all other modalities).
    The best setting is trained with every seed and evaluated on the test split.

    Fusions, which are compared with each other alone, are tuned over the same learning rates and multiples of their
    betas by the validation split's accuracy, MAE or AUC. OMIB's beta is estimated, once for each
    seed, and kept with its report in `beta,seed=SEED.json`.

    Parameters
    ----------
    methods : sequence of str
        Of :data:`mibfast.train.METHODS`.
    data : str
        As :func:`mibfast.data.load` takes it.
    output : str or Path
        Folder of the comparison: `comparison.csv`, `.md`, `.json`, `.png`, and a folder for each run.
    seeds : int
        Number of seeds, of split and training.
    tune : bool
        Without, each loss keeps its own settings.
    vary : mapping from a loss's argument to its values, optional
        A method that takes the argument is compared with each of the values, tuned over the rest, and so for every
        combination of several arguments' values. Of one argument with three positive numbers or more, `sweep.png` draws
        the figures by it; of OMIB's beta with its estimated bounds.
    ablate : mapping from a loss's argument, or `warm_up_epochs`, to a value, optional
        A method that takes it is compared as it is and with each of these, one at a time.
    combinations : {"every", "whole"}
        See :func:`mibfast.train.evaluation.evaluate`.
    progress : bool or Report
    **settings
        Fields of :class:`mibfast.train.RunConfig`, for all methods alike; `warm_up_epochs` for those that have any. A
        `learning_rate` that is given is not tuned.

    Raises
    ------
    RunError, DataError
        As :func:`mibfast.train.fit`, for what does not fit a method before anything is trained; RunError too for
        methods named twice, alignments beside fusions, a folder of another comparison, and where every setting of a
        method diverged.
    """
    report = reported("compare", progress)
    _check.boolean("compare", "tune", tune)
    if not methods or len(set(methods)) < len(methods):
        raise RunError(f"methods must be named, each once; got {', '.join(methods) or 'none'}")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise RunError(f"seeds must be an integer of at least 1, got {seeds!r}")
    if "seed" in settings or "loss" in settings:
        raise RunError("a comparison chooses seeds and losses itself")
    variants = _variants(methods, vary or {}, ablate or {})
    if len({type(method(name)) for name in methods}) > 1:
        raise RunError("alignments and fusions are scored differently; compare one kind at a time")
    config = RunConfig(**{**settings, "method": methods[0], "data": absolute_name(data)})
    # What is wrong with the data, or does not fit a method, is said before hours are spent and leaves no folder behind.
    found_data = open_data(config)
    for name, given in variants.values():
        of_run, loss = _apart(given)
        its = RunConfig(**{**_settings_of(name, settings), **of_run, "method": name, "data": config.data, "loss": loss})
        refuse_settings(its)
        target = fitting_target(its, found_data)
    notes = _notes(found_data, target)
    settings_of = {
        variant: grid(method(name), tune, settings.get("learning_rate"), **given)
        for variant, (name, given) in variants.items()
    }
    for variant, (name, _) in variants.items():
        for each in settings_of[variant]:
            why = why_no_file_name(_run_name(name, each, seeds - 1))
            if why is not None:
                raise RunError(f"the runs of {variant!r} are named by its settings, which cannot be: {why}")
    plan = {
        "methods": list(methods),
        "seeds": seeds,
        "tune": tune,
        "vary": {option: list(values) for option, values in (vary or {}).items()},
        "ablate": dict(ablate or {}),
        "combinations": combinations,
        "settings": config.to_json(),
        "fingerprint": found_data.fingerprint(),
    }
    folder = RunFolder(Path(output))
    _claim(folder, plan)
    for note in notes:
        report.say(note)
    total = sum(seeds + (len(each) if len(each) > 1 else 0) for each in settings_of.values())
    tried: list[dict[str, Any]] = []
    best: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    quiet = Report(False)
    with report.task("comparing", total) as task:
        for variant, (name, _) in variants.items():
            runner = _Runner(folder, name, data, _settings_of(name, settings), quiet, task)
            scores: list[float | None] = []
            if len(settings_of[variant]) > 1:
                for loss in settings_of[variant]:
                    score = runner.validation_score(loss)
                    scores.append(score)
                    tried.append({"method": variant, "loss": loss, "score": score})
            best[variant] = settings_of[variant][_best(variant, scores)] if scores else settings_of[variant][0]
            found = [runner.tested(best[variant], seed, combinations) for seed in range(seeds)]
            rows += _summarised(variant, found)
    comparison = Comparison(rows, best, tried, f"{data}, {seeds} seed{'s' * (seeds > 1)}")
    folder.write_table("comparison.csv", rows)
    folder.write("comparison.md", lambda path: path.write_text(comparison.markdown()))
    folder.write("comparison.png", lambda path: draw_comparison(comparison.figures(), comparison.title, path))
    sweep = _sweep(comparison, variants, vary or {})
    if sweep:
        (option,) = vary or {}
        marks = {}
        if option == "beta" and any(isinstance(each, Fusion) and each.estimates_beta for each in map(method, methods)):
            kept = _kept_beta(folder, config, report)
            marks = {"M_l": kept["lower"], "M_u": kept["upper"]}
        folder.write("sweep.png", lambda path: draw_sweep(sweep, option, comparison.title, path, marks))
    folder.write_json("comparison.json", {**plan, "chosen": best, "tried": tried, "rows": rows})
    return comparison


def _notes(data: MultimodalData, target: Target | None) -> list[str]:
    """Say what cannot be trained or scored of the first seed's data."""
    if target is not None:
        return class_notes(target, data)
    try:
        probed_task(data)
    except DataError as error:
        return [f"no probes: {error}"]
    return []


def _kept_beta(folder: RunFolder, config: RunConfig, report: Report) -> dict[str, Any]:
    """Return OMIB's beta for a seed, and its bounds: estimated once, and kept in the comparison's folder."""
    name = f"beta,seed={config.seed}.json"
    if not os.path.lexists(folder.path / name):
        data = open_data(config)
        target = target_of(data, config.task, config.normal_class)
        folder.write_json(name, estimated_beta(config, data, target, report))
    found: dict[str, Any] = folder.read_json(name, _BETA)
    if not set(found["indistinct"]) <= set(found["entropies"]):
        raise RunError(f"{folder.path / name} is damaged: it has no entropy of what is indistinct")
    return found


def _sweep(
    comparison: Comparison, variants: Mapping[str, tuple[str, Mapping[str, Any]]], vary: Mapping[str, Sequence[Any]]
) -> dict[str, dict[float, dict[str, tuple[float, float]]]]:
    """Return each method's figures by the value of the one option that is varied, where that is a picture."""
    if len(vary) != 1:
        return {}
    ((option, values),) = vary.items()
    if len(values) < 3 or not all(isinstance(x, (int, float)) and not isinstance(x, bool) and x > 0 for x in values):
        return {}
    found: dict[str, dict[float, dict[str, tuple[float, float]]]] = {}
    for variant, figures in comparison.figures().items():
        name, given = variants[variant]
        if option in given:
            found.setdefault(method(name).title, {})[given[option]] = figures
    return found


def _settings_of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is of another method."""
    warms_up = _warms_up(method(name))
    return {each: value for each, value in settings.items() if warms_up or each != _WARM_UP}


def _claim(folder: RunFolder, plan: Mapping[str, Any]) -> None:
    if os.path.lexists(folder.path / _PLAN):
        if folder.read_json(_PLAN, object) != plan:
            raise RunError(f"{folder.path} is of another comparison or other data; choose another folder")
        return
    folder.create()
    folder.write_json(_PLAN, plan)


def _best(name: str, scores: Sequence[float | None]) -> int:
    """Return the position of the highest score; None is that of a setting that diverged at once."""
    if all(score is None for score in scores):
        raise RunError(f"{name} diverged with every setting, or none has a score; a lower learning_rate may help")
    return int(np.argmax([-np.inf if score is None else score for score in scores]))


class _Runner:
    """The runs of one method, each in a folder that says what it is of."""

    def __init__(
        self, folder: RunFolder, name: str, data: str, settings: Mapping[str, Any], report: Report, task: Task
    ) -> None:
        self._folder, self._name, self._data, self._settings = folder, name, data, settings
        self._report, self._task = report, task

    def _path(self, loss: Mapping[str, float], seed: int) -> Path:
        return self._folder.path / "runs" / _run_name(self._name, loss, seed)

    def _run(self, loss: Mapping[str, float], seed: int) -> Run:
        path = self._path(loss, seed)
        if RunFolder(path).ended:
            return open_run(path, encoders=self._settings.get("encoders"))
        of_run, options = _apart(loss)
        settings = {**self._settings, **of_run}
        chosen = method(self._name)
        if isinstance(chosen, Fusion) and chosen.needs_beta(options):
            named = {"method": self._name, "data": absolute_name(self._data), "seed": seed}
            kept = _kept_beta(self._folder, RunConfig(**{**settings, **named}), self._report)
            refuse_beta(kept)
            options["beta"] = kept["beta"]
        try:
            return fit(
                self._name,
                self._data,
                output=path,
                resume=True,
                pictures=False,
                progress=self._report,
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
        for metric in _CHOOSING:
            found = [row["value"] for row in rows if row["metric"] == metric]
            if found:
                score = float(np.mean(found)) * (-1 if metric in _LESS_IS_BETTER else 1)
                # R2 of labels that do not vary is NaN, which says nothing for a setting.
                return score if np.isfinite(score) else None
        raise RunError(f"{self._data}: nothing to tune by")

    def tested(self, loss: Mapping[str, float], seed: int, combinations: str) -> list[dict[str, Any]]:
        rows = self._kept(loss, seed, "test", {"combinations": combinations})
        self._task.advance(1, f"{self._name}: seed {seed}")
        return rows

    def _kept(self, loss: Mapping[str, float], seed: int, name: str, how: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of an evaluation, kept with the run once it was made."""
        place = RunFolder(self._path(loss, seed))
        file = place.path / f"{name}.json"
        if os.path.lexists(file):
            rows: list[dict[str, Any]] = place.read_json(file.name, _ROWS)
            return rows
        rows = evaluate(self._run(loss, seed), progress=self._report, **how).rows
        place.write_json(file.name, rows)
        return rows


def _summarised(name: str, found: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    values_of: dict[tuple[str, str, str], list[float]] = {}
    for row in itertools.chain(*found):
        values_of.setdefault((row["task"], row["modalities"], row["metric"]), []).append(row["value"])
    for row in found[0]:
        values = values_of[row["task"], row["modalities"], row["metric"]]
        # Where samples lack modalities, a seed's splits can hold too few for a row that others have.
        if len(values) < len(found):
            continue
        rows.append(
            {
                "method": name,
                **{key: row[key] for key in ("task", "modalities", "metric")},
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
                "seeds": len(values),
            }
        )
    return rows
