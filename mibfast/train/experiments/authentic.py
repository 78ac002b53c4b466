"""Classifiers of the synthetic data's true blocks: the first rows of OMIB's table 2, and their upper bounds."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from mibfast.data.multimodal import SPLITS
from mibfast.data.sim import SAMPLES, authentic_features, best_accuracies
from mibfast.nn import MLPEncoder, Standardisation
from mibfast.train import checks
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.fitting.batches import shuffled
from mibfast.train.folder import RunFolder
from mibfast.train.json_files import NUMBER
from mibfast.train.progress import Report, reported

ROWS = ("consistent", "specific", "v1", "v2", "optimal", "union")
_CLASSES = 2
_CELL = {"features": str, "seed": int, "accuracy": NUMBER}
_HIDDEN_FEATURES = 512


@dataclass(frozen=True)
class AuthenticAccuracies:
    """The result of :func:`classify_authentic_features`.

    Attributes
    ----------
    cells : list of dict
        `features`, `seed`, `accuracy` on the test split, `validation_accuracy`, and the `epoch` that was kept, from 1.
    title : str
    best : mapping from a row's name to float
        The accuracy that no classifier exceeds on average.
    """

    cells: Sequence[Mapping[str, Any]]
    title: str
    best: Mapping[str, float]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each kind of features: mean and standard deviation over seeds, and the best possible."""
        rows = []
        for name in ROWS:
            values = [float(cell["accuracy"]) for cell in self.cells if cell["features"] == name]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            row = {"features": name, "mean": statistics.fmean(values), "sd": spread}
            rows.append({**row, "seeds": len(values), "best": self.best[name]})
        return rows

    def markdown(self) -> str:
        """Return the table of accuracies."""
        lines = ["| features | accuracy | best possible |", "|---|---|---|"]
        lines += [f"| {r['features']} | {r['mean']:.3f} ± {r['sd']:.3f} | {r['best']:.3f} |" for r in self.rows()]
        return "\n".join(lines) + "\n"


def classify_authentic_features(
    data: str,
    output: str | Path,
    *,
    seeds: int = 3,
    samples: int = SAMPLES,
    epochs: int = 60,
    patience: int = 20,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    features: int = 256,
    depth: int = 3,
    dropout: float = 0.0,
    progress: bool | Report = True,
) -> AuthenticAccuracies:
    """Classify SIM's samples by their true blocks, going on where an earlier call was interrupted.

    Of each kind of :func:`mibfast.data.sim.authentic_features` as one vector: an encoder as the fusions have and two
    layers as those of :class:`mibfast.nn.fusion.Concatenation`, trained by Adam as fusions are, with the weights of the
    epoch with the lowest validation loss. "union" is what could be made of the modalities by one encoder of both;
    "optimal" what could be if it were known what is superfluous.

    Parameters
    ----------
    data : {"sim-i", "sim-ii", "sim-iii"}
    output : str or Path
        Folder: `accuracies.csv`, `accuracies.md`, and a file for each classifier.
    seeds : int
        From 0; each draws the data again, as :func:`mibfast.train.fit` does, and the weights.
    samples : int
    epochs, patience, batch_size, learning_rate, features, depth, dropout
        See :class:`mibfast.train.RunConfig`.
    progress : bool or Report

    Raises
    ------
    RunError
        For numbers out of range, a folder of something else or one that cannot be written.
    DataError
        For unknown data.
    DivergedError
        Where a loss became infinite or NaN.
    """
    settings = {"epochs": epochs, "patience": patience, "batch_size": batch_size, "features": features, "depth": depth}
    for name, value in {"seeds": seeds, **settings}.items():
        checks.integer(name, value, 1)
    checks.number("learning_rate", learning_rate, positive=True)
    checks.fraction("dropout", dropout)
    best = best_accuracies(data)
    if batch_size > samples - 2 * (samples // 10):
        raise RunError(f"a batch of {batch_size} is larger than the training split of {samples} samples")
    folder = RunFolder(Path(output))
    folder.claim(
        {
            "data": data,
            "seeds": seeds,
            "samples": samples,
            "learning_rate": learning_rate,
            "dropout": dropout,
            **settings,
        }
    )
    report = reported("classify_authentic_features", progress)
    cells = []
    with folder.locked(), report.task(f"classifying {data}", seeds * len(ROWS)) as task:
        for seed in range(seeds):
            features_of, labels, split = authentic_features(data, samples, seed)
            indices = {part: torch.from_numpy((split == part).nonzero()[0]) for part in SPLITS}
            for name in ROWS:
                file = f"{name},seed={seed}.json"
                if not os.path.lexists(folder.path / file):
                    x, y = torch.from_numpy(features_of[name]), torch.from_numpy(labels)
                    with isolate_rng():
                        cell = _classified(x, y, indices, seed, learning_rate, dropout, **settings)
                    folder.write_json(file, {"features": name, "seed": seed, **cell})
                cells.append(folder.read_json(file, _CELL))
                task.advance(1, f"{name}, seed {seed}")
        accuracies = AuthenticAccuracies(cells, f"{data}, {seeds} seed{'s' * (seeds > 1)}", best)
        folder.write_table("accuracies.csv", accuracies.rows())
        folder.write("accuracies.md", lambda path: path.write_text(accuracies.markdown()))
    return accuracies


def _classified(
    x: Tensor,
    y: Tensor,
    indices: Mapping[str, Tensor],
    seed: int,
    learning_rate: float,
    dropout: float,
    epochs: int,
    patience: int,
    batch_size: int,
    features: int,
    depth: int,
) -> dict[str, Any]:
    """Train a classifier of x [N, d], and score the weights of its best epoch."""
    torch.manual_seed(seed)
    train = x[indices["train"]]
    model = nn.Sequential(
        Standardisation(train.mean(0), train.std(0, correction=0)),
        MLPEncoder(x.shape[1], features, depth=depth, dropout=dropout),
        nn.Linear(features, _HIDDEN_FEATURES),
        nn.ReLU(),
        nn.Linear(_HIDDEN_FEATURES, _CLASSES),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    lowest, kept = float("inf"), {"epoch": 0, "validation_accuracy": 0.0, "accuracy": 0.0}
    for epoch in range(1, epochs + 1):
        order = shuffled(indices["train"], seed, epoch)
        model.train()
        for rows in torch.split(order[: len(order) // batch_size * batch_size], batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        model.eval()
        with torch.no_grad():
            logits = {part: model(x[indices[part]]) for part in ("validation", "test")}
        loss = nn.functional.cross_entropy(logits["validation"], y[indices["validation"]]).item()
        if not math.isfinite(loss):
            raise DivergedError(f"the validation loss became {loss} in epoch {epoch}; a lower learning_rate may help")
        accuracies = {part: (z.argmax(1) == y[indices[part]]).float().mean().item() for part, z in logits.items()}
        if loss < lowest:
            lowest = loss
            kept = {
                "epoch": epoch,
                "validation_accuracy": accuracies["validation"],
                "accuracy": accuracies["test"],
            }
        elif epoch - kept["epoch"] >= patience:
            break
    return kept
