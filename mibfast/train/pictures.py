"""Pictures: learning curves, embeddings in two dimensions, evaluations, comparisons and sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mibfast import _check
from mibfast._precision import unit

_BLUE, _ORANGE = "#0072B2", "#D55E00"
_MARKERS = "o^sDvP*Xhd<>"
# More classes than this share one scale of colours, without a legend.
_NAMED_CLASSES = 20
_ERROR_TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 80)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    # Names come from the user's data, and are not formulas.
    mpl.rcParams["text.parse_math"] = False
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    # A file that is not yet whole has another suffix.
    figure.savefig(path, dpi=120, format="png")
    _pyplot().close(figure)


def draw_learning_curves(
    curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path, unit: str = "nats", kept: int | None = None
) -> None:
    """Draw training and validation loss by epoch, a panel for each method's title.

    A ring marks the epoch that was kept, from 0; without `kept` that of the lowest validation loss.
    """
    plt = _pyplot()
    figure, panels = plt.subplots(1, len(curves), figsize=(4.5 * len(curves), 3.4), squeeze=False, layout="constrained")
    for axes, (title, splits) in zip(panels[0], curves.items(), strict=True):
        for (split, values), colour in zip(splits.items(), (_BLUE, _ORANGE), strict=False):
            axes.plot(
                range(1, len(values) + 1), values, label=split, color=colour, marker="." if len(values) < 3 else ""
            )
        best = int(np.argmin(splits["validation"])) if kept is None else kept
        axes.plot(best + 1, splits["validation"][best], "o", color=_ORANGE, markerfacecolor="none", label="kept")
        axes.set(title=title, xlabel="epoch", ylabel=f"loss ({unit})" if unit else "loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    _save(figure, path)


def draw_modality_weights(
    weights: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[float]]]], path: Path
) -> None:
    """Draw the weights r of OMIB's divergences over the steps of the main stage.

    Parameters
    ----------
    weights : mapping from a run's title to (steps, mapping from a modality's name to its weights)
        Of one run or of several to compare.
    path : Path
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for title, (steps, by_modality) in weights.items():
        for name, values in by_modality.items():
            label = f"{title}: r of {name}" if len(weights) > 1 else f"r of {name}"
            axes.plot(steps, values, label=label, linewidth=1, marker="." if len(steps) < 3 else "")
    axes.axhline(1, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel="step", ylabel="weight r of a divergence", ylim=(-0.05, 2.05))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_embeddings(embeddings: Mapping[str, Mapping[str, Tensor]], labels: NDArray[Any] | None, path: Path) -> None:
    """Draw unit embeddings of all modalities in the two dimensions that t-SNE finds, a panel for each method's title.

    Colours are classes or targets, markers modalities: where modalities align, markers of one colour lie together.

    Parameters
    ----------
    embeddings : mapping from a title to a mapping from a modality's name to Tensor [n, d]
    labels : array [n] or [n, K], optional
        Of several targets the first is shown.
    path : Path
    """
    from sklearn.manifold import TSNE

    plt = _pyplot()
    figure, panels = plt.subplots(
        1, len(embeddings), figsize=(4.8 * len(embeddings) + 1.2, 4.8), squeeze=False, layout="constrained"
    )
    classes, codes = (None, None) if labels is None else _coded(labels)
    colours = plt.get_cmap("viridis" if classes is None else "tab10" if len(classes) <= 10 else "tab20")
    shades = {} if codes is None else {"vmin": codes.min(), "vmax": codes.max() if classes is None else colours.N - 1}
    for axes, (title, views) in zip(panels[0], embeddings.items(), strict=True):
        rows = [unit(z).numpy() for z in views.values()]
        stacked, n = np.concatenate(rows), len(rows[0])
        perplexity = min(30.0, (len(stacked) - 1) / 3)
        points = TSNE(
            init="pca" if stacked.shape[1] > 1 else "random", random_state=0, perplexity=perplexity, max_iter=500
        ).fit_transform(stacked)
        for position, name in enumerate(views):
            part, marker = points[position * n : (position + 1) * n], _MARKERS[position % len(_MARKERS)]
            paint = {"color": _BLUE} if codes is None else {"c": codes, "cmap": colours, **shades}
            axes.scatter(*part.T, **paint, s=9, marker=marker, alpha=0.7, linewidths=0)
            axes.scatter([], [], c="black", s=16, marker=marker, label=name)
        axes.set(title=title, xticks=[], yticks=[])
        axes.legend(frameon=False, fontsize=8, loc="best")
    if classes is not None:
        handles = [
            plt.Line2D([], [], marker="o", linestyle="", color=colours(code), label=str(each))
            for code, each in enumerate(classes)
        ]
        figure.legend(handles=handles, title="class", loc="outside right center", frameon=False)
    elif codes is not None:
        figure.colorbar(
            plt.cm.ScalarMappable(plt.Normalize(codes.min(), codes.max()), colours), ax=panels, label="target"
        )
    figure.suptitle("Test embeddings by t-SNE", fontsize=11)
    _save(figure, path)


def _coded(labels: NDArray[Any]) -> tuple[NDArray[Any] | None, NDArray[Any]]:
    """Return the classes, None where a scale of colours is clearer, and a number for each sample."""
    if labels.dtype.kind == "f":
        return None, labels if labels.ndim == 1 else labels[:, 0]
    classes, codes = np.unique(labels, return_inverse=True)
    return (classes if len(classes) <= _NAMED_CLASSES else None), codes


def draw_evaluation(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw an evaluation's figures with their confidence intervals, a panel for each task and metric.

    Parameters
    ----------
    rows : sequence of mapping
        As :func:`mibfast.train.evaluation.evaluate` returns them.
    title : str
    path : Path
    """
    plt = _pyplot()
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["metric"]), []).append(row)
    tallest = max(map(len, groups.values()))
    columns = min(len(groups), 3)
    lines = -(-len(groups) // columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(5.2 * columns, lines * (1.2 + 0.24 * tallest)),
        squeeze=False,
        layout="constrained",
    )
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, ((task, metric), rows_of_panel) in zip(panels.flat, groups.items(), strict=False):
        values = np.array([row["value"] for row in rows_of_panel])
        low, high = (np.array([row[end] for row in rows_of_panel], dtype=float) for end in ("low", "high"))
        places = np.arange(len(rows_of_panel))[::-1]
        spread = np.nan_to_num(np.clip(np.stack([values - low, high - values]), 0, None))
        axes.errorbar(values, places, xerr=spread, fmt="o", color=_BLUE, markersize=4, capsize=2, linewidth=1)
        axes.set_yticks(places, [row["modalities"] for row in rows_of_panel], fontsize=8)
        axes.set(title=f"{task}: {metric}", ylim=(-0.7, len(rows_of_panel) - 0.3))
        axes.locator_params(axis="x", nbins=6)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def draw_comparison(figures: Mapping[str, Mapping[str, tuple[float, float]]], title: str, path: Path) -> None:
    """Draw each method's figures, mean and standard deviation over seeds, a panel for each figure.

    Parameters
    ----------
    figures : mapping from a method's name to a mapping from a figure's title to (mean, deviation)
    title : str
    path : Path
    """
    plt = _pyplot()
    titles = list(dict.fromkeys(each for own in figures.values() for each in own))
    figure, panels = plt.subplots(
        1,
        len(titles),
        figsize=(2.6 * len(titles) + 1.2, 1.2 + 0.3 * len(figures)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    places = np.arange(len(figures))[::-1]
    for axes, each in zip(panels[0], titles, strict=True):
        means, spreads = zip(*(own[each] for own in figures.values()), strict=True)
        axes.errorbar(means, places, xerr=spreads, fmt="o", color=_BLUE, markersize=5, capsize=2, linewidth=1)
        axes.set_yticks(places, list(figures))
        axes.set(title=each, ylim=(-0.6, len(figures) - 0.4))
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def draw_sweep(
    sweep: Mapping[str, Mapping[float, Mapping[str, tuple[float, float]]]],
    option: str,
    title: str,
    path: Path,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Draw figures by the value of an option, on a logarithmic scale, a panel for each figure.

    Parameters
    ----------
    sweep : mapping from a method's title to a mapping from a value to figures
        These from a title to (mean, deviation).
    option, title : str
    path : Path
    marks : mapping from a name to a value, optional
        Two lines to draw across, the lower first: M_l and M_u of OMIB's beta.
    """
    plt = _pyplot()
    figures = list(dict.fromkeys(each for values in sweep.values() for own in values.values() for each in own))
    size = (4.2 * len(figures), 3.4)
    figure, panels = plt.subplots(1, len(figures), figsize=size, squeeze=False, layout="constrained")
    for axes, each in zip(panels[0], figures, strict=True):
        for name, values in sweep.items():
            places = sorted(values)
            means, spreads = (np.array([values[x][each][end] for x in places]) for end in (0, 1))
            (line,) = axes.plot(places, means, "o-", markersize=4, linewidth=1, label=name)
            axes.fill_between(places, means - spreads, means + spreads, color=line.get_color(), alpha=0.2, linewidth=0)
        # The lower bound's name goes to the left of its line, the upper one's to the right: the lines can be close.
        for (mark, value), side in zip((marks or {}).items(), ("right", "left"), strict=False):
            axes.axvline(value, color="black", linestyle=":", linewidth=1)
            axes.annotate(mark, (value, 1), xycoords=("data", "axes fraction"), ha=side, va="bottom", fontsize=8)
        axes.set(xscale="log", xlabel=option, ylabel=each)
        # The default labels of a logarithmic scale are formulas.
        axes.xaxis.set_major_formatter("{x:g}")
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def draw_accuracies(
    accuracies: Mapping[str, Mapping[str, Mapping[float | None, Sequence[float]]]],
    label: str,
    title: str,
    path: Path,
    *,
    power_laws: bool = False,
) -> None:
    """Draw test accuracies against what was swept, mean and standard deviation over seeds, a panel for each view.

    Parameters
    ----------
    accuracies : mapping from a view to a mapping from a method to a mapping from a value to accuracies
        The value None is of a method that does not depend on it: a level with a band.
    label : str
        Of what was swept.
    title : str
    path : Path
    power_laws : bool
        Also the error by logarithmic axes, with the power law that is fitted to the means of its logarithms.
    """
    plt = _pyplot()
    lines = 2 if _check.boolean("draw_accuracies", "power_laws", power_laws) else 1
    figure, panels = plt.subplots(
        lines,
        len(accuracies),
        figsize=(4.6 * len(accuracies), 3.4 * lines),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    for column, (view, by_method) in enumerate(accuracies.items()):
        for axes, error in zip(panels[:, column], (False, True), strict=False):
            for position, (method, by_value) in enumerate(by_method.items()):
                _draw_method(axes, method, by_value, error, position)
            axes.set_xscale("log")
            swept = sorted({value for by_value in by_method.values() for value in by_value if value is not None})
            axes.set_xticks(swept, [f"{value:g}" for value in swept])
            axes.minorticks_off()
            if error:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(plt.FixedLocator(_ERROR_TICKS))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_locator(plt.NullLocator())
            axes.set(title="" if error else f"view {view}", xlabel=label)
            if not column:
                axes.set_ylabel("test error (%)" if error else "test accuracy (%)")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _draw_method(
    axes: Any, method: str, by_value: Mapping[float | None, Sequence[float]], error: bool, position: int
) -> None:
    colour, marker = f"C{position}", _MARKERS[position % len(_MARKERS)]
    # A logarithmic axis cannot show an error of zero.
    percent = {
        value: 100 * (np.maximum(1 - np.array(accuracies), 1e-4) if error else np.array(accuracies))
        for value, accuracies in by_value.items()
    }
    if None in percent:
        mean, spread = percent[None].mean(), _spread(percent[None])
        axes.axhline(mean, color=colour, linestyle="--", linewidth=1, label=method)
        axes.axhspan(mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
        return
    values = np.array(list(percent), float)
    means = np.array([accuracies.mean() for accuracies in percent.values()])
    spreads = np.array([_spread(accuracies) for accuracies in percent.values()])
    name, style = method, "-"
    if error and len(values) > 1:
        slope, level = np.polyfit(np.log(values), [np.log(accuracies).mean() for accuracies in percent.values()], 1)
        axes.plot(values, np.exp(level) * values**slope, color=colour, linewidth=1, linestyle="--")
        name, style = f"{method}: n^{slope:.2f}", ""
    axes.errorbar(
        values, means, yerr=spreads, color=colour, marker=marker, linestyle=style, markersize=4, capsize=2, label=name
    )


def _spread(values: NDArray[Any]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
