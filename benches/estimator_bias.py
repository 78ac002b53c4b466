"""Bias and variance of the estimators of mutual information on correlated Gaussians, of 2 to 10 nats.

    python -m benches.estimator_bias measure FILE        train and evaluate, and write the results
    python -m benches.estimator_bias draw FILE PICTURE   draw them

x has 20 independent normal features, and each of y's is correlated with one of them, all alike: the setting of Poole et
al. (2019) and of Song and Ermon (2020). A critic is trained on fresh batches of 128 by each estimator, the truth rising
in steps, so data are unlimited; after each step the estimator is read on 100 fresh batches. So is the same estimator
with the exact density ratio as its critic: what is left then is the estimator's own bias and variance, and the
difference is the training's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mibfast
from benches.gate import machine
from mibfast import functional as F
from mibfast import information

ESTIMATORS = ("infonce", "clip", "nwj", "tuba", "dv", "mine", "js", "smile")
NATS = (2.0, 4.0, 6.0, 8.0, 10.0)
FEATURES, BATCH, STEPS, BATCHES, REPEATS = 20, 128, 1000, 100, 2
LEARNING_RATE = 5e-4
_ROWS, _COLUMNS = 2, 4
# Okabe and Ito's colours, told apart by colour-blind readers too.
_TRAINED, _EXACT = "#0072B2", "#D55E00"


def _correlation(nats: float) -> float:
    return math.sqrt(1.0 - math.exp(-2.0 * nats / FEATURES))


def _batch(nats: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x, noise = torch.randn(2, BATCH, FEATURES, generator=generator)
    rho = _correlation(nats)
    return x, rho * x + math.sqrt(1.0 - rho * rho) * noise


def _density_ratios(nats: float, x: Tensor, y: Tensor) -> Tensor:
    """ln p(y_j | x_i) - ln p(y_j) for all pairs [N, N]."""
    rho = _correlation(nats)
    variance = 1.0 - rho * rho
    squares = (y - rho * x[:, None]).square().sum(2)
    return 0.5 * (y.square().sum(1) - squares / variance) - 0.5 * FEATURES * math.log(variance)


def _trained(estimator: str, seed: int) -> list[list[float]]:
    """Estimates by a critic that is trained on, truth by truth: [truths][batches]."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    critic = information.SeparableCritic(FEATURES, FEATURES)
    module = information.MutualInformation(critic, estimator)
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    found = []
    for nats in NATS:
        module.train()
        for _ in range(STEPS):
            loss = -module.objective(*_batch(nats, generator))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        module.eval()
        with torch.no_grad():
            found.append([float(module(*_batch(nats, generator))) for _ in range(BATCHES)])
    return found


def _exact(estimator: str, seed: int) -> list[list[float]]:
    """Estimates with the critic that is each objective's optimum: the density ratio's logarithm, plus 1 for NWJ."""
    generator = torch.Generator().manual_seed(seed)
    constant = 1.0 if estimator == "nwj" else 0.0
    found = []
    for nats in NATS:
        batches = (_batch(nats, generator) for _ in range(BATCHES))
        found.append([float(F.mutual_information(_density_ratios(nats, *b) + constant, estimator)) for b in batches])
    return found


def _summary(runs: list[list[list[float]]]) -> list[dict[str, float]]:
    """Mean and deviation over the batches of all runs, by truth."""
    pooled = [[value for run in runs for value in run[k]] for k in range(len(NATS))]
    return [{"mean": statistics.fmean(values), "deviation": statistics.stdev(values)} for values in pooled]


def measure(file: Path) -> None:
    """Train and evaluate every estimator that the file does not have yet."""
    settings = {"features": FEATURES, "batch": BATCH, "steps": STEPS, "batches": BATCHES, "repeats": REPEATS}
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"estimators": {}}
    results |= {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": mibfast.info()["versions"],
    }
    results |= {"settings": settings, "nats": list(NATS)}
    found = results["estimators"]
    for estimator in ESTIMATORS:
        if estimator not in found:
            runs = {"trained": _trained, "exact": _exact}
            found[estimator] = {
                name: _summary([run(estimator, s) for s in range(REPEATS)]) for name, run in runs.items()
            }
            print(estimator, *(f"{each['mean']:.2f} ± {each['deviation']:.2f}" for each in found[estimator]["trained"]))
            file.write_text(json.dumps(results, indent=1) + "\n")


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw a panel for each estimator."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    nats = results["nats"]
    top = max(nats) * 1.3
    cap = math.log(results["settings"]["batch"])
    figure, axes = plt.subplots(_ROWS, _COLUMNS, figsize=(11, 6), sharex=True, sharey=True, layout="constrained")
    for axis, (estimator, found) in zip(axes.flat, results["estimators"].items(), strict=True):
        axis.plot([0, top], [0, top], color="black", linewidth=1, label="truth")
        if estimator in ("infonce", "clip"):
            axis.axhline(cap, color="black", linewidth=1, linestyle=":", label="ln N")
        for kind, colour, label in (("exact", _EXACT, "exact density ratio"), ("trained", _TRAINED, "trained critic")):
            means = [each["mean"] for each in found[kind]]
            low, high = ([each["mean"] + sign * each["deviation"] for each in found[kind]] for sign in (-1, 1))
            axis.fill_between(nats, low, high, color=colour, alpha=0.25, linewidth=0)
            axis.plot(nats, means, color=colour, marker="o", markersize=4, label=label)
        axis.set_title({"infonce": "InfoNCE"}.get(estimator, estimator.upper()), fontsize=10)
        axis.set_xlim(min(nats) - 0.5, max(nats) + 0.5)
        axis.set_ylim(0, top)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("mutual information, nats")
    for axis in axes[:, 0]:
        axis.set_ylabel("estimate, nats")
    axes.flat[0].legend(fontsize=8, loc="upper left")
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Bias and variance of estimators of mutual information.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("measure").add_argument("file", type=Path)
    drawing = commands.add_parser("draw")
    drawing.add_argument("file", type=Path)
    drawing.add_argument("picture", type=Path)
    options = parser.parse_args()
    if options.command == "measure":
        measure(options.file)
    else:
        draw(json.loads(options.file.read_text()), options.picture)


if __name__ == "__main__":
    main()
