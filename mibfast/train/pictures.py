"""Pictures of a run: learning curves, and embeddings in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_learning_curves(curves: Mapping[str, Mapping[str, list[float]]], path: Path) -> None:
    """Draw training and validation loss by epoch, a panel for each method's title."""
    plt = _pyplot()
    figure, panels = plt.subplots(1, len(curves), figsize=(4.5 * len(curves), 3.4), squeeze=False, layout="constrained")
    for axes, (title, splits) in zip(panels[0], curves.items(), strict=True):
        for (split, values), colour in zip(splits.items(), ("#0072B2", "#D55E00"), strict=False):
            axes.plot(range(1, len(values) + 1), values, label=split, color=colour)
        axes.set(title=title, xlabel="epoch", ylabel="loss (nats)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_embeddings(embeddings: Mapping[str, Mapping[str, Tensor]], labels: Tensor, path: Path) -> None:
    """Draw unit embeddings of all modalities in the two dimensions that t-SNE finds, a panel for each method's title.

    Colours are classes, markers modalities: where modalities align, markers of one colour lie together.
    """
    import numpy as np
    from sklearn.manifold import TSNE

    plt = _pyplot()
    figure, panels = plt.subplots(
        1, len(embeddings), figsize=(4.8 * len(embeddings) + 1.2, 4.8), squeeze=False, layout="constrained"
    )
    colours = plt.get_cmap("tab10")
    for axes, (title, views) in zip(panels[0], embeddings.items(), strict=True):
        stacked = np.concatenate([(z / z.norm(dim=1, keepdim=True)).numpy() for z in views.values()])
        points = TSNE(init="pca", random_state=0, perplexity=30).fit_transform(stacked)
        for position, (name, marker) in enumerate(zip(views, "o^sDv", strict=False)):
            part = points[position * len(labels) : (position + 1) * len(labels)]
            axes.scatter(*part.T, c=colours(labels.numpy() % 10), s=9, marker=marker, alpha=0.7, linewidths=0)
            axes.scatter([], [], c="black", s=16, marker=marker, label=name)
        axes.set(title=title, xticks=[], yticks=[])
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=colours(int(k) % 10), label=str(int(k)))
        for k in sorted(set(labels.tolist()))
    ]
    figure.legend(handles=handles, title="class", loc="outside right center", frameon=False)
    figure.suptitle("Test embeddings by t-SNE", fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)
