"""Settings that a comparison tries: the grid of a method, and its variants by options that vary or are ablated."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from mibfast import _check
from mibfast.data.multimodal import nearest
from mibfast.train.errors import RunError
from mibfast.train.methods import Fusion, Method, method

TEMPERATURES = (0.05, 0.1, 0.2)
BETAS = (0.1, 1.0)
# For fusions.
LEARNING_RATES = (1e-4, 1e-3)
BETA_MULTIPLES = (0.1, 1.0, 10.0)
# Settings of a run, which are tuned or varied like arguments of the loss.
WARM_UP = "warm_up_epochs"
_OF_RUN = ("learning_rate", WARM_UP)
# A method's name, and the settings that its variant fixes.
Variant: TypeAlias = tuple[str, dict[str, Any]]


def grid(chosen: Method, tune: bool = True, learning_rate: float | None = None, **given: Any) -> list[dict[str, Any]]:
    """Return the settings that a method is tuned over: one without tuning. Arguments that are given are not tuned.

    For alignments they are temperatures (or scales, their inverses) and betas; for fusions learning rates and the same
    multiples of each method's own beta, which some sum over features and some average. OMIB's is estimated, not tuned.
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


def variants_of(
    methods: Sequence[str], vary: Mapping[str, Sequence[Any]], ablate: Mapping[str, Any]
) -> dict[str, Variant]:
    """Return what is compared, by the name of its row: each method, or a variant for each of the values it takes.

    With ablations, each method as it is and a variant for each ablation that it takes.
    """
    options_of = {name: _options(name) for name in methods}
    for option, values in {**vary, **{option: [value] for option, value in ablate.items()}}.items():
        if not any(option in options for options in options_of.values()):
            valid = sorted({option for options in options_of.values() for option in options})
            raise RunError(f"none of the methods has a loss option {option!r}{nearest(option, valid)}")
        # Rows and folders of runs are named by six digits.
        if len({short(value) for value in values}) < max(1, len(values)):
            listed = ", ".join(map(str, values)) or "none"
            raise RunError(f"values of {option} must be given, each once and told apart by six digits; got {listed}")
    if vary and ablate:
        raise RunError("a comparison varies options or ablates them, not both")
    variants = {}
    for name in methods:
        varied = [option for option in vary if option in options_of[name]]
        combinations = itertools.product(*(vary[option] for option in varied))
        settings = [dict(zip(varied, values, strict=True)) for values in combinations]
        settings += [{option: value} for option, value in ablate.items() if option in options_of[name]]
        for fixed in settings:
            listed = ",".join(f"{option}={short(value)}" for option, value in fixed.items())
            variants[f"{name}[{listed}]" if fixed else name] = name, fixed
    return variants


def _options(name: str) -> list[str]:
    """Return the settings of a method that can vary: the loss's arguments, and the length of its warm-up."""
    chosen = method(name)
    return [*chosen.options, *([WARM_UP] if warms_up(chosen) else [])]


def warms_up(chosen: Method) -> bool:
    """Return whether a method's training begins with a warm-up."""
    return isinstance(chosen, Fusion) and len(chosen.stages) > 1


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the run, and the arguments of the loss."""
    run_settings = {name: value for name, value in settings.items() if name in _OF_RUN}
    return run_settings, {name: value for name, value in settings.items() if name not in run_settings}


def run_name(name: str, settings: Mapping[str, Any], seed: int) -> str:
    """Return the name of a run's folder."""
    return ",".join([name, *(f"{key}={short(value)}" for key, value in settings.items()), f"seed={seed}"])


def short(value: Any) -> str:
    """Return a setting as it stands in names of rows and folders: a number by six digits."""
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
