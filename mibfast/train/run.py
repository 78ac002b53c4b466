"""A run: methods trained side by side on one data set, evaluated, and left in a folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import mibfast
from mibfast.data import load
from mibfast.train import evaluation, pictures
from mibfast.train.alignment import fit
from mibfast.train.methods import method


@dataclass(frozen=True)
class RunConfig:
    """What a run does."""

    methods: Sequence[str] = ("ova_ib", "pairwise_clip")
    data: str = "digits"
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


def train_and_evaluate(
    config: RunConfig, folder: Path, *, progress: bool = True, announce: Callable[[str], None] = lambda title: None
) -> dict[str, Any]:
    """Train and evaluate every method, and leave the run's folder.

    The folder holds `config.json`, `metrics.json`, `<method>.safetensors`, `learning_curves.png` and `embeddings.png`.
    It appears whole or not at all: everything is written beside it and then renamed.

    Parameters
    ----------
    config : RunConfig
    folder : Path
        Must not exist.
    progress : bool
        Show progress bars.
    announce : callable
        Called with each method's title before it is trained.

    Returns
    -------
    dict
        What `metrics.json` holds: for each method its title, `linear_probe` accuracies, `retrieval` figures,
        `loss_step_ms` and loss `curves`.

    Raises
    ------
    FileExistsError
        Where the folder exists.
    ValueError
        For an unknown method or data set, before anything is trained.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another folder for the run")
    chosen = {name: method(name) for name in config.methods}
    data = load(config.data, config.seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        metrics = _run(config, chosen, data, partial, progress, announce)
        # As the user's other files: temporary ones are private.
        for path in (partial, *partial.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return metrics


def _run(
    config: RunConfig, chosen: dict[str, Any], data: Any, folder: Path, progress: bool, announce: Callable[[str], None]
) -> dict[str, Any]:
    from safetensors.torch import save_file

    metrics, embeddings = {}, {}
    for name, each in chosen.items():
        announce(each.title)
        module = fit(
            data,
            each.loss(None),
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            seed=config.seed,
            progress=progress,
        )
        with torch.no_grad():
            embeddings[each.title] = module(data.split("test")[0])
            batch = {view: z[: config.batch_size] for view, z in module(data.split("train")[0]).items()}
        metrics[name] = {
            "title": each.title,
            "linear_probe": evaluation.linear_probe(module, data),
            "retrieval": evaluation.retrieval(module, data, each),
            "loss_step_ms": evaluation.loss_step_milliseconds(each, batch),
            "curves": module.curves,
        }
        save_file({key: x.contiguous() for key, x in module.state_dict().items()}, folder / f"{name}.safetensors")
    description = {**asdict(config), "mibfast": mibfast.info()}
    (folder / "config.json").write_text(json.dumps(description, indent=1) + "\n")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    curves = {m["title"]: m["curves"] for m in metrics.values()}
    pictures.draw_learning_curves(curves, folder / "learning_curves.png")
    pictures.draw_embeddings(embeddings, data.split("test")[1], folder / "embeddings.png")
    return metrics
