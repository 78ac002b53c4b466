"""The demonstration: methods trained side by side on handwritten digits, and their evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mibfast.train import pictures
from mibfast.train.evaluation.evaluation import evaluate, loss_step_milliseconds
from mibfast.train.fitting.training import fit
from mibfast.train.folder import RunFolder
from mibfast.train.methods import Alignment
from mibfast.train.progress import Report

_PICTURED_SAMPLES = 330


def demonstrate(
    folder: Path, *, epochs: int = 60, seed: int = 0, methods: Sequence[str] = ("ova-ib", "clip"), report: Report
) -> dict[str, Any]:
    """Train each method on digits, evaluate it, and leave a run for each in a folder.

    The folder gets a run's folder for each method, `metrics.json`, `learning_curves.png` and `embeddings.png`.

    Parameters
    ----------
    folder : Path
        Must not exist, or be empty.
    epochs, seed : int
    methods : sequence of str
    report : Report

    Returns
    -------
    dict
        For each method its `title`, accuracy of a `linear_probe` on each modality and all of them, `retrieval` of a
        missing modality by all others, averaged over which is missing, and `loss_step_ms`.

    Raises
    ------
    RunError
        Where the folder holds something, or cannot be written.
    """
    whole = RunFolder(folder)
    whole.create()
    metrics: dict[str, Any] = {}
    curves, embeddings, labels = {}, {}, None
    for name in methods:
        run = fit(name, "digits", output=folder / name, epochs=epochs, seed=seed, patience=epochs, progress=report)
        evaluation = evaluate(run, probes=("linear",), progress=report)
        assert isinstance(run.method, Alignment)
        title, modalities = run.method.title, list(run.data.views)
        batch = {view: z[: run.config.batch_size] for view, z in run.embed("train").items()}
        others = {missing: "+".join(each for each in modalities if each != missing) for missing in modalities}
        metrics[name] = {
            "title": title,
            "linear_probe": {
                **{view: evaluation.value("linear probe", "accuracy", view) for view in modalities},
                "all": evaluation.value("linear probe", "accuracy", "+".join(modalities)),
            },
            "retrieval": {
                metric: sum(
                    evaluation.value("retrieval", metric, f"{context} → {missing}")
                    for missing, context in others.items()
                )
                / len(others)
                for metric in ("R@1", "R@5", "MRR")
            },
            "loss_step_ms": loss_step_milliseconds(run.method, batch),
        }
        curves[title] = {part: [row[f"{part}_loss"] for row in run.epochs] for part in ("train", "validation")}
        embeddings[title] = {view: z[:_PICTURED_SAMPLES] for view, z in run.embed("test").items()}
        labels = run.data.split("test")[1]
    assert labels is not None
    shown = labels[:_PICTURED_SAMPLES]
    whole.write("learning_curves.png", lambda path: pictures.draw_learning_curves(curves, path))
    whole.write("embeddings.png", lambda path: pictures.draw_embeddings(embeddings, shown, path))
    whole.write_json("metrics.json", metrics)
    return metrics
