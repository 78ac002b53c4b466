"""Draws the README's picture from a results file: `python -m benches.picture FILE docs/benchmarks.png`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from benches.rows import OURS

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = {"best plain PyTorch": "#999999", "torch.compile": "#E69F00", OURS: "#0072B2", "floor": "#009E73"}
_LABELS = {
    "one-vs-all-per-sample": "one-vs-all InfoNCE\nM=3, N=4096",
    "one-vs-all-pairwise": "one-vs-all InfoNCE,\npairwise keys, M=3, N=2048",
    "info-nce-8192": "symmetric InfoNCE\nN=8192",
    "leave-one-out": "leave-one-out projection\nM=4, N=8192",
    "gaussian-kl": "Gaussian KL\n65,536 x 256",
    "minimality": "one-vs-all minimality\nM=5, N=65,536",
}


def _kinds(row: dict[str, Any]) -> dict[str, float]:
    """Seconds by kind of contender: the fastest of each."""
    found: dict[str, float] = {}
    floor = row["floor"]["name"] if row["floor"] else None
    for name, seconds in row["seconds"].items():
        if name == OURS:
            kind = OURS
        elif name == floor:
            kind = "floor"
        else:
            kind = "torch.compile" if name.startswith("torch.compile") else "best plain PyTorch"
        found[kind] = min(seconds, found.get(kind, seconds))
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of time relative to mibfast, a group for each row."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = {name: _kinds(results["rows"][name]) for name in _LABELS if name in results["rows"]}
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.2
    for position, (kind, colour) in enumerate(_COLOURS.items()):
        places, heights = [], []
        for group, found in enumerate(rows.values()):
            if kind in found:
                places.append(group + (position - 1.5) * width)
                heights.append(found[kind] / found[OURS])
        bars = axes.bar(places, heights, width, label=kind, color=colour)
        axes.bar_label(bars, fmt=lambda x: f"{x:.2g}", fontsize=8, padding=2)
    axes.set_yscale("log")
    axes.set_ylabel("time, in multiples of mibfast's")
    axes.set_xticks(range(len(rows)), [_LABELS[name] for name in rows], fontsize=8)
    axes.set_ylim(0.2, 2.2 * max(max(found.values()) / found[OURS] for found in rows.values()))
    axes.axhline(1, color="black", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=4, frameon=False, loc="upper left", fontsize=9)
    machine = results["machine"]
    axes.set_title(
        f"Forward + backward, float32, {machine['threads']} threads of {machine['processor']}, {results['date']}",
        fontsize=9,
    )
    temporary = path.with_suffix(".partial.png")
    figure.savefig(temporary, dpi=150)
    plt.close(figure)
    os.replace(temporary, path)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
