"""Methods compared on one data set: tuned alike on the validation split, then trained with several seeds and tested."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mibfast import _check
from mibfast.data import DataError, MultimodalData
from mibfast.data.file_names import why_no_file_name
from mibfast.data.sources import absolute_name
from mibfast.train import checks
from mibfast.train.comparison.results import Comparison
from mibfast.train.comparison.runs import Runner, kept_beta
from mibfast.train.comparison.settings import WARM_UP, Variant, grid, run_name, split_settings, variants_of, warms_up
from mibfast.train.errors import RunError
from mibfast.train.evaluation.evaluation import probed_task
from mibfast.train.fitting.config import RunConfig
from mibfast.train.fitting.requirements import fitting_target, open_data, refuse_settings
from mibfast.train.fitting.targets import class_notes
from mibfast.train.folder import RunFolder
from mibfast.train.methods import Fusion, method
from mibfast.train.pictures import draw_comparison, draw_sweep
from mibfast.train.progress import Report, reported


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
    betas by the validation split's accuracy, MAE or AUC. OMIB's beta is estimated, once for each seed, and kept with
    its report in `beta,seed=SEED.json`.

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
        False leaves each method the settings of its own.
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
        As :func:`mibfast.train.fit`, and before anything is trained; RunError also for methods named twice, alignments
        beside fusions, a folder of another comparison, and where every setting of a method diverged.
    """
    report = reported("compare", progress)
    _check.boolean("compare", "tune", tune)
    checks.named_once("methods", methods)
    checks.integer("seeds", seeds, 1)
    if "seed" in settings or "loss" in settings:
        raise RunError("a comparison chooses seeds and losses itself")
    vary, ablate = vary or {}, ablate or {}
    variants = variants_of(methods, vary, ablate)
    if len({type(method(name)) for name in methods}) > 1:
        raise RunError("alignments and fusions are scored differently; compare one kind at a time")
    config = RunConfig(**{**settings, "method": methods[0], "data": absolute_name(data)})
    # Data or settings that do not fit are refused before hours are spent, and leave no folder behind.
    opened = open_data(config)
    notes = _notes(opened, config, variants, settings)
    grids = {
        variant: grid(method(name), tune, settings.get("learning_rate"), **options)
        for variant, (name, options) in variants.items()
    }
    for variant, (name, _) in variants.items():
        for each in grids[variant]:
            why = why_no_file_name(run_name(name, each, seeds - 1))
            if why is not None:
                raise RunError(f"the runs of {variant!r} are named by its settings, which cannot be: {why}")
    plan = {
        "methods": list(methods),
        "seeds": seeds,
        "tune": tune,
        "vary": {option: list(values) for option, values in vary.items()},
        "ablate": dict(ablate),
        "combinations": combinations,
        "settings": config.to_json(),
        "fingerprint": opened.fingerprint(),
    }
    folder = RunFolder(Path(output))
    folder.claim(plan)
    for note in notes:
        report.say(note)
    total = sum(seeds + (len(each) if len(each) > 1 else 0) for each in grids.values())
    tried: list[dict[str, Any]] = []
    best: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    with report.task("comparing", total) as task:
        for variant, (name, _) in variants.items():
            runner = Runner(folder, name, data, _settings_of(name, settings), task)
            best[variant] = grids[variant][0]
            if len(grids[variant]) > 1:
                scores = [runner.validation_score(each) for each in grids[variant]]
                tried += [
                    {"method": variant, "loss": each, "score": score}
                    for each, score in zip(grids[variant], scores, strict=True)
                ]
                best[variant] = grids[variant][_best(variant, scores)]
            rows += _summary(variant, [runner.tested(best[variant], seed, combinations) for seed in range(seeds)])
    comparison = Comparison(rows, best, tried, f"{data}, {seeds} seed{'s' * (seeds > 1)}")
    folder.write_table("comparison.csv", rows)
    folder.write("comparison.md", lambda path: path.write_text(comparison.markdown()))
    folder.write("comparison.png", lambda path: draw_comparison(comparison.figures(), comparison.title, path))
    sweep = _sweep(comparison, variants, vary)
    if sweep:
        (option,) = vary
        marks = {}
        if option == "beta" and any(isinstance(each, Fusion) and each.estimates_beta for each in map(method, methods)):
            beta = kept_beta(folder, config, report)
            marks = {"M_l": beta["lower"], "M_u": beta["upper"]}
        folder.write("sweep.png", lambda path: draw_sweep(sweep, option, comparison.title, path, marks))
    folder.write_json("comparison.json", {**plan, "chosen": best, "tried": tried, "rows": rows})
    return comparison


def _notes(
    data: MultimodalData, config: RunConfig, variants: Mapping[str, Variant], settings: Mapping[str, Any]
) -> list[str]:
    """Check the first seed's data and every variant's settings; return what cannot be trained or scored."""
    target = None
    for name, options in variants.values():
        run_settings, loss = split_settings(options)
        own = RunConfig(
            **{**_settings_of(name, settings), **run_settings, "method": name, "data": config.data, "loss": loss}
        )
        refuse_settings(own)
        target = fitting_target(own, data)
    if target is not None:
        return class_notes(target, data)
    try:
        probed_task(data)
    except DataError as error:
        return [f"no probes: {error}"]
    return []


def _sweep(
    comparison: Comparison, variants: Mapping[str, Variant], vary: Mapping[str, Sequence[Any]]
) -> dict[str, dict[float, dict[str, tuple[float, float]]]]:
    """Return each method's figures by the value of the only option that varies, where they make a picture."""
    if len(vary) != 1:
        return {}
    ((option, values),) = vary.items()
    if len(values) < 3 or not all(checks.is_finite(x) and x > 0 for x in values):
        return {}
    sweep: dict[str, dict[float, dict[str, tuple[float, float]]]] = {}
    for variant, figures in comparison.figures().items():
        name, options = variants[variant]
        if option in options:
            sweep.setdefault(method(name).title, {})[options[option]] = figures
    return sweep


def _settings_of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the length of a warm-up for methods that have none."""
    return {each: value for each, value in settings.items() if each != WARM_UP or warms_up(method(name))}


def _best(name: str, scores: Sequence[float | None]) -> int:
    """Return the position of the highest score; None marks a setting that diverged at once."""
    if all(score is None for score in scores):
        raise RunError(f"{name} diverged with every setting, or none has a score; a lower learning_rate may help")
    return int(np.argmax([-np.inf if score is None else score for score in scores]))


def _summary(name: str, by_seed: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return mean and deviation over seeds of each figure that all of them have."""
    keys = ("task", "modalities", "metric")
    values: dict[tuple[str, ...], list[float]] = {}
    for row in itertools.chain(*by_seed):
        values.setdefault(tuple(row[key] for key in keys), []).append(row["value"])
    # Where samples lack modalities, a seed's splits can hold too few for a row that others have.
    shared = {key: each for key, each in values.items() if len(each) == len(by_seed)}
    return [
        {
            "method": name,
            **dict(zip(keys, key, strict=True)),
            "mean": float(np.mean(each)),
            "sd": float(np.std(each, ddof=1)) if len(each) > 1 else 0.0,
            "seeds": len(each),
        }
        for key, each in shared.items()
    ]
