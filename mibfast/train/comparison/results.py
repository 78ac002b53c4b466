"""The results of a comparison: figures of each method, and their table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mibfast.train.comparison.settings import short
from mibfast.train.methods import method

# The columns of the table: title, task, metric.
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
# The metrics that choose a setting, the first one that the data have; and those of which less is better.
CHOOSING = ("accuracy", "R2", "MRR", "MAE", "AUC")
LESS_IS_BETTER = ("MAE",)


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare`.

    Attributes
    ----------
    rows : list of dict
        A row for each method, task, combination of modalities and metric: `method`, `task`, `modalities`, `metric`,
        `mean`, `sd` (over seeds, n - 1), `seeds`.
    settings : mapping from a method's name to the arguments of its loss that were given or tuned
        With the learning rate of a fusion. A method whose settings vary has names such as `ova-ib[beta=0.1]`, in `rows`
        and `tried` as well.
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
        """Return mean and spread of each method's figures: of all modalities, averaged over the modality retrieved."""
        figures: dict[str, dict[str, tuple[float, float]]] = {}
        for name in self.settings:
            figures[name] = {}
            for title, task, metric in FIGURES:
                rows = [r for r in self.rows if (r["method"], r["task"], r["metric"]) == (name, task, metric)]
                most = max((_size(r["modalities"]) for r in rows), default=0)
                whole = [r for r in rows if _size(r["modalities"]) == most]
                if whole:
                    means, spreads = ([r[key] for r in whole] for key in ("mean", "sd"))
                    figures[name][title] = (float(np.mean(means)), float(np.mean(spreads)))
        return figures

    def markdown(self) -> str:
        """Return the table of figures, the best of each column in bold."""
        figures = self.figures()
        # Titles are shared by figures of several tasks.
        every = dict.fromkeys(title for title, _, _ in FIGURES)
        titles = [title for title in every if any(title in own for own in figures.values())]
        lines = [f"| method | settings | {' | '.join(titles)} |", f"|---|---|{'---|' * len(titles)}"]
        best = {
            title: (min if title in LESS_IS_BETTER else max)(own[title][0] for own in figures.values())
            for title in titles
        }
        for name, own in figures.items():
            cells = []
            for title in titles:
                mean, spread = own[title]
                cell = f"{mean:.4f} ± {spread:.4f}"
                cells.append(f"**{cell}**" if mean == best[title] else cell)
            settings = ", ".join(f"{key} {short(value)}" for key, value in self.settings[name].items())
            lines.append(f"| {method(name.partition('[')[0]).title} | {settings} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def _size(modalities: str) -> int:
    return modalities.count("+") + 1
