"""The results of an experiment: accuracies, differences of methods, power laws, and their tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Experiment:
    """The result of :func:`mibfast.train.experiments.bottlenecks.experiment`.

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
        accuracies: dict[str, dict[str, dict[float | None, list[float]]]] = {}
        for cell in sorted(self.cells, key=lambda cell: int(cell["seed"])):
            for view in views if cell["views"] is None else cell["views"]:
                accuracy = math.nan if cell["views"] is None else cell["views"][view]["accuracy"]
                by_value = accuracies.setdefault(view, {}).setdefault(cell["method"], {})
                by_value.setdefault(cell["value"], []).append(accuracy)
        return accuracies

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each view, method and value: mean, standard deviation, number of seeds, diverged ones."""
        return [
            {
                "view": view,
                "method": method,
                self.sweep: value,
                **_summary(accuracies),
                "diverged": len(accuracies) - len(finite(accuracies)),
            }
            for view, by_method in self.accuracies().items()
            for method, by_value in by_method.items()
            for value, accuracies in by_value.items()
        ]

    def differences(self) -> list[dict[str, Any]]:
        """Return, by view and value, the first method's accuracy less each other's on the same seeds.

        With its mean, its standard deviation over seeds, the number of seeds that the first method `won`, the
        difference on `each` seed, and how many `seeds` there are.
        """
        rows = []
        for view, by_method in self.accuracies().items():
            first, *others = by_method
            for value, accuracies in by_method[first].items():
                for other in others:
                    compared = by_method[other]
                    pairs = zip(accuracies, compared.get(value, compared.get(None, [])), strict=False)
                    # A seed counts where neither method diverged.
                    each = finite([a - b for a, b in pairs])
                    names = {"view": view, self.sweep: value, "first": first, "other": other}
                    rows.append({**names, **_summary(each), "won": sum(x > 0 for x in each), "each": each})
        return rows

    def exponents(self) -> list[dict[str, Any]]:
        """Return the power laws of a sweep over samples; none for another sweep.

        By view and method `accuracy`, a where accuracy is proportional to n^a, and `error`, b where 1 - accuracy is to
        n^-b: means over seeds of least squares on logarithms, with `accuracy_sd` and `error_sd`. An SVM without an
        error is taken to have half of one.
        """
        rows: list[dict[str, Any]] = []
        if self.sweep != "samples":
            return rows
        for view, by_method in self.accuracies().items():
            for method, by_value in by_method.items():
                accuracies = np.array(list(by_value.values()))
                accuracies = accuracies[:, ~np.isnan(accuracies).any(axis=0)]
                if len(by_value) < 2 or not accuracies.size:
                    continue
                least = min(0.5 / cell["views"][view]["tested"] for cell in self.cells if cell["views"])
                logarithms = np.log(np.array(list(by_value), float))
                row: dict[str, Any] = {"view": view, "method": method}
                for name, shares, sign in (("accuracy", accuracies, 1), ("error", 1 - accuracies, -1)):
                    slopes = _summary((sign * np.polyfit(logarithms, np.log(np.maximum(shares, least)), 1)[0]).tolist())
                    row[name], row[f"{name}_sd"] = slopes["mean"], slopes["sd"]
                rows.append(row)
        return rows

    def markdown(self) -> str:
        """Return tables of accuracies in percent, of differences and of exponents."""
        accuracies = self.accuracies()
        by_values = [by_value for by_method in accuracies.values() for by_value in by_method.values()]
        values = list(dict.fromkeys(value for each in by_values for value in each if value is not None))
        titles = [f"{self.sweep} {value:g}" for value in values]
        lines = _table(
            ["view", "method", *titles],
            [
                [view, method, *(_percent(by_value.get(value, by_value.get(None, []))) for value in values)]
                for view, by_method in accuracies.items()
                for method, by_value in by_method.items()
            ],
        )
        differences: dict[tuple[str, str], list[str]] = {}
        for row in self.differences():
            cell = f"{_percent(row['each'], '+')} ({row['won']} of {row['seeds']})"
            differences.setdefault((row["view"], f"{row['first']} - {row['other']}"), []).append(cell)
        if differences:
            lines += [
                "",
                *_table(["view", "difference", *titles], [[*key, *each] for key, each in differences.items()]),
            ]
        exponents = self.exponents()
        if exponents:
            slopes = ["a, accuracy ~ n^a", "b, 1 - accuracy ~ n^-b"]
            lines += ["", *_table(["view", "method", *slopes], [_exponents(row) for row in exponents])]
        return "\n".join(lines) + "\n"


def finite(values: Sequence[float]) -> list[float]:
    """Return the values without NaN."""
    return [value for value in values if not math.isnan(value)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _summary(values: Sequence[float]) -> dict[str, Any]:
    counted = finite(values)
    return {
        "mean": statistics.fmean(counted) if counted else None,
        "sd": statistics.stdev(counted) if len(counted) > 1 else None,
        "seeds": len(counted),
    }


def _percent(values: Sequence[float], sign: str = "") -> str:
    mean, deviation, seeds = _summary(values).values()
    if not seeds:
        return "diverged"
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{100 * mean:{sign}.1f}{spread}" + (f" ({len(values) - seeds} diverged)" if seeds < len(values) else "")


def _exponents(row: Mapping[str, Any]) -> list[str]:
    deviations = [row[f"{name}_sd"] for name in ("accuracy", "error")]
    spreads = ["" if each is None else f" ± {each:.3f}" for each in deviations]
    return [row["view"], row["method"], f"{row['accuracy']:.3f}{spreads[0]}", f"{row['error']:.3f}{spreads[1]}"]
