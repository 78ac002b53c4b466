"""The commands that train and evaluate: `demo`, `fit`, `evaluate`, `embed`, `compare`."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mibfast._check import InputError
from mibfast.cli import options
from mibfast.cli.arguments import numbers, pairs, words
from mibfast.cli.output import averaged_over, resumable, show
from mibfast.data import FORMS
from mibfast.data.file_names import why_no_file_name

# In Python's spelling; JSON's is read as JSON.
_PYTHON = {"True": True, "False": False, "None": None}
_Seed = Annotated[int, typer.Option(min=0, help="Of the split, the weights and the order of batches.")]
# Options under the names of a run's settings whose text is parsed.
_PARSERS: dict[str, Callable[[str], Any]] = {"modalities": words, "split": partial(numbers, "--split")}


def _run_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that a command's options give."""
    from mibfast.train import RunConfig

    names = [each.name for each in fields(RunConfig) if each.name not in ("method", "data", "encoders", "loss")]
    given = {name: arguments[name] for name in names if arguments.get(name) is not None}
    return {name: _PARSERS[name](value) if name in _PARSERS else value for name, value in given.items()}


def _folder(output: Path | None, name: str) -> Path:
    return output or Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def demo(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training samples.")] = 60,
    output: options.Output = None,
    seed: _Seed = 0,
) -> None:
    """Train OVA-IB and pairwise CLIP on digits."""
    from rich.console import Console

    from mibfast.train.experiments.demonstration import demonstrate
    from mibfast.train.progress import Report

    folder = _folder(output, "demo")
    started = time.perf_counter()
    metrics = demonstrate(folder, epochs=epochs, seed=seed, report=Report())
    console = Console()
    console.print(_side_by_side(metrics))
    console.print(
        "On the test split. Retrieval: of the missing modality by the other two, each method with its own score. "
        "Loss step: forward and backward of one batch of 64.",
        style="dim",
    )
    console.print(f"{time.perf_counter() - started:.0f} s; the run's folder is {folder}", soft_wrap=True)


def _side_by_side(metrics: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("handwritten digits, three views")
    for figures in metrics.values():
        table.add_column(figures["title"], justify="right")
    parts = {
        "linear_probe": ("accuracy of a linear probe, {}", "{:.3f}"),
        "retrieval": ("cross-modal retrieval, {}", "{:.3f}"),
        "loss_step_ms": ("loss step, {}", "{:.1f} ms"),
    }
    for part, (label, form) in parts.items():
        for name in next(iter(metrics.values()))[part]:
            table.add_row(label.format(name), *(form.format(figures[part][name]) for figures in metrics.values()))
        table.add_section()
    return table


def fit(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="An alignment or a fusion of those listed below.",
            show_default=False,
        ),
    ],
    data: Annotated[str | None, typer.Option(help=f"{FORMS}; see below.")] = None,
    modalities: options.Modalities = None,
    output: options.Output = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, or begin it where there is none.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="JSON file of settings, as a run's config.json; options come before it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the split, the weights and the order of batches. [default: 0]")
    ] = None,
    split: options.Split = None,
    task: options.Task = None,
    normal_class: options.NormalClass = None,
    beta: Annotated[
        float | None,
        typer.Option(help="The same as --loss beta=VALUE. Without, omib estimates its beta from the training split."),
    ] = None,
    beta_estimator: Annotated[
        str | None,
        typer.Option(metavar="smile|infonce|mine", help="Of omib's beta, where it is not given. [default: smile]"),
    ] = None,
    warm_up_epochs: options.WarmUpEpochs = None,
    epochs: options.Epochs = None,
    patience: options.Patience = None,
    batch_size: options.BatchSize = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW. [default: 0.001]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW. [default: 0]")] = None,
    features: Annotated[
        int | None, typer.Option(min=1, help="Length of representations and embeddings. [default: 256]")
    ] = None,
    depth: options.Depth = None,
    dropout: options.Dropout = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ENCODER",
            help="Encoder of a modality: mlp, conv1d, lstm, conv2d and resnet18 (images), or your own as "
            "module:callable, called with the shape of a sample and the length of a representation. [default: conv1d "
            "for arrays [N, T, C], mlp for all else]",
        ),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Argument of the loss or the fusion: temperature=0.1, beta=0.5, keys=pairwise, ...",
        ),
    ] = None,
    checkpoint_minutes: Annotated[
        float | None,
        typer.Option(help="Write the state to resume from this often within an epoch, too. [default: 10]"),
    ] = None,
) -> None:
    """Train an alignment of your modalities, or a fusion of them that predicts labels.

    Data are one array [N, ...] for each modality. Arrays called labels, and split ("train", "validation", "test"), may
    lie beside them, and NAME.presence (bool) where samples lack modality NAME; fusions use the samples that have all.

    The run's folder is whole at any moment: after Ctrl-C, SIGTERM or a crash the same command with --resume ends with
    the same weights, bit for bit.
    """
    from mibfast import train
    from mibfast.train.fitting.config import read_settings
    from mibfast.train.fitting.recording import choosing_loss

    given = _run_settings(locals())
    if encoder is not None:
        given["encoders"] = pairs("--encoder", encoder)
    if loss is not None:
        given["loss"] = {key: _value(text) for key, text in pairs("--loss", loss).items()}
    if beta is not None:
        given["loss"] = {**given.get("loss", {}), "beta": beta}
    if resume and output is None:
        raise InputError("--resume needs --output, the run's folder")
    if resume and config is None and output is not None and os.path.lexists(output / "config.json"):
        config = output / "config.json"
    settings = {} if config is None else read_settings(config)
    if isinstance(settings.get("encoders"), dict):
        for key, name in settings["encoders"].items():
            # An encoder that a file names is not imported unless the command names it too.
            if ":" in str(name) and key not in given.get("encoders", {}):
                raise InputError(
                    f"{config} names an encoder of its own; to have it imported, give it once more: "
                    f"--encoder {key}={name}"
                )
    settings.pop("method", None)
    for name in ("encoders", "loss"):
        # Options change the entries that they name, and leave the file's others.
        if name in given and isinstance(settings.get(name), dict):
            given[name] = {**settings[name], **given[name]}
    settings.update(given)
    source = data or settings.pop("data", None)
    settings.pop("data", None)
    if source is None:
        raise InputError(f"fit needs --data: {FORMS}")
    folder = _folder(output, method)
    started = time.perf_counter()
    with resumable(folder / "config.json", f"the same command with --resume --output {folder}"):
        run = train.fit(method, source, output=folder, resume=resume, **settings)
    best = run.epochs[run.best_epoch - 1]
    chosen_by = "validation loss" if run.target is None else "validation loss of predictions"
    loss_found = f"{choosing_loss(best):.4f} {run.unit}".rstrip()
    what = "alignment" if run.target is None else run.target.title
    print(
        f"{run.method.title} on {run.data.name}, {what}: {len(run.epochs)} epochs, the best {run.best_epoch} with "
        f"{chosen_by} {loss_found}; {time.perf_counter() - started:.0f} s\n"
        f"the run's folder is {folder}; next: mibfast evaluate {folder}"
    )


def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folder of a run, or of several that differ in their seed."),
    ],
    data: options.OtherData = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results. [default: RUN/evaluation/SPLIT; none for several runs]")
    ] = None,
    probe: Annotated[str, typer.Option(metavar="linear|mlp|both|none", help="Probes of representations.")] = "both",
    task: Annotated[
        str,
        typer.Option(
            metavar="auto|classification|regression", help="What labels are: by default classes unless they are floats."
        ),
    ] = "auto",
    split: Annotated[
        str, typer.Option(metavar="test|validation", help="Samples to score on; choose settings by validation alone.")
    ] = "test",
    pool: Annotated[int, typer.Option(min=2, help="Candidates of retrieval, at most.")] = 1000,
    encoder: options.OwnEncoders = None,
) -> None:
    """Score a run: a fusion's predictions, or probes of an alignment and retrieval across its modalities.

    A fusion's figures are accuracy and F1 of classes; MAE, Pearson's r and, of sentiment, Acc-2, F1 and Acc-7; AUC and
    F1 at the true number of anomalies. All options but --data, --output, --split and --encoder are of alignments.

    Every combination of modalities is probed by a linear model and a 4-layer MLP, fitted to the training split; every
    modality is retrieved by every context of others. Where samples lack modalities, each figure is of those that have
    what it is about. Intervals are a bootstrap over samples, or Student's t over runs.
    """
    from mibfast.train import open_run
    from mibfast.train.evaluation import evaluate as evaluate_runs
    from mibfast.train.folder import RunFolder

    probes = {"linear": ("linear",), "mlp": ("mlp",), "both": ("linear", "mlp"), "none": ()}
    for option, chosen, valid in (
        ("--probe", probe, tuple(probes)),
        ("--task", task, ("auto", "classification", "regression")),
        # A split becomes a folder's name.
        ("--split", split, ("test", "validation")),
    ):
        if chosen not in valid:
            raise InputError(f"{option} must be one of {', '.join(valid)}, got {chosen!r}")
    own = pairs("--encoder", encoder or [])
    place = output
    if place is None and len(runs) == 1:
        # A folder for each split and each data set, so that no results replace others.
        name = split if data is None else f"{split} of {Path(data.partition(':')[2] or data).name}"
        why = why_no_file_name(name)
        if why is not None:
            raise InputError(f"no folder can be called {name!r}: {why}; give --output")
        place = runs[0] / "evaluation" / name
    opened = [open_run(path, data=data, encoders=own) for path in runs]
    if place is not None:
        RunFolder(place).check()
    evaluation = evaluate_runs(opened, probes=probes[probe], task=task, pool=pool, split=split)
    if place is not None:
        evaluation.write(RunFolder(place))
    written = f"; written to {place}" if place else ""
    show(evaluation.title, list(_evaluation_tables(evaluation)), f"± half of {evaluation.interval}{written}")


def _evaluation_tables(evaluation: Any) -> Iterator[Any]:
    from rich.table import Table

    for task in dict.fromkeys(row["task"] for row in evaluation.rows):
        rows = [row for row in evaluation.rows if row["task"] == task]
        metrics = list(dict.fromkeys(row["metric"] for row in rows))
        table = Table(task)
        for metric in metrics:
            table.add_column(metric, justify="right", no_wrap=True)
        lines: dict[str, list[str]] = {}
        for row in rows:
            half = (row["high"] - row["low"]) / 2
            lines.setdefault(row["modalities"], []).append(f"{row['value']:.3f} ± {half:.3f}")
        for modalities, cells in lines.items():
            table.add_row(modalities, *cells)
        yield table


def embed(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    output: Annotated[
        Path,
        typer.Option(help="A file that ends in .npz or .safetensors, else a folder of .npy files, for large data."),
    ],
    data: options.OtherData = None,
    split: Annotated[str, typer.Option(metavar="all|train|validation|test", help="Samples to embed.")] = "all",
    representations: Annotated[
        bool, typer.Option("--representations", help="What encoders return, before the projection heads.")
    ] = False,
    encoder: options.OwnEncoders = None,
) -> None:
    """Write a run's embeddings of data, for use elsewhere.

    Where samples lack modality NAME, its rows are zeros and NAME.presence (bool) says which.
    """
    from mibfast.train import open_run
    from mibfast.train.evaluation.embedding import write_embeddings

    own = pairs("--encoder", encoder or [])
    opened = open_run(run, data=data, encoders=own, whole=split == "all")
    shapes = write_embeddings(opened, output, split=split, representations=representations)
    print(f"wrote {output}: " + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()))


def compare(
    methods: Annotated[str, typer.Option(metavar="A,B,...", help="Methods, as `mibfast fit` names them.")],
    data: Annotated[str, typer.Option(help=f"{FORMS}, as for `mibfast fit`.")],
    modalities: options.Modalities = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder; given again, the comparison in it goes on. [default: runs/compare-DATE-TIME]"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, of split and training.")] = 3,
    tune: Annotated[bool, typer.Option(help="Choose settings by the validation split, over one grid for all.")] = True,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=X,Y,...",
            help="Methods that take this option of --loss are compared with each value.",
        ),
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=VALUE",
            help="Ablation: methods that take this option of --loss, or warm_up_epochs, are compared as they are and "
            "with it; each ablation is by itself.",
        ),
    ] = None,
    every_combination: Annotated[
        bool,
        typer.Option(help="Probe every combination of modalities and retrieve by every context, or by all alone."),
    ] = True,
    split: options.Split = None,
    task: options.Task = None,
    normal_class: options.NormalClass = None,
    warm_up_epochs: options.WarmUpEpochs = None,
    epochs: options.Epochs = None,
    patience: options.Patience = None,
    batch_size: options.BatchSize = None,
    depth: options.Depth = None,
    dropout: options.Dropout = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW. [default: 0.001, and tuned for fusions]")
    ] = None,
) -> None:
    """Tune methods alike, train each with several seeds, and rank them.

    Each method is tuned over temperature 0.05, 0.1, 0.2 (or a scale of their inverses) and, where it has one, beta 0.1,
    1, with the first seed, by the validation accuracy of a linear probe on all modalities. The best setting is
    trained with every seed and evaluated on the test split. An interrupted comparison goes on where it was.

    Fusions are compared with each other alone: tuned over learning rate 0.0001, 0.001 and, where they have one, 0.1, 1,
    10 times their beta (omib's is estimated) by the validation accuracy, MAE or AUC.
    """
    from rich.markdown import Markdown

    from mibfast.train.comparison import compare as compare_methods

    settings = _run_settings(locals())
    folder = _folder(output, "compare")
    with resumable(folder / "plan.json", f"the same command with --output {folder}"):
        comparison = compare_methods(
            words(methods),
            data,
            folder,
            seeds=seeds,
            tune=tune,
            vary={
                option: [_value(text) for text in values.split(",")]
                for option, values in pairs("--vary", vary or []).items()
            },
            ablate={option: _value(text) for option, text in pairs("--ablate", ablate or []).items()},
            combinations="every" if every_combination else "whole",
            **settings,
        )
    show(comparison.title, [Markdown(comparison.markdown())], averaged_over(seeds, folder))


def _value(text: str) -> Any:
    if text in _PYTHON:
        return _PYTHON[text]
    from mibfast.train.json_files import parse_json

    try:
        return parse_json(text)
    except ValueError:
        return text
