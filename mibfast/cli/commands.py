"""The commands: `demo`, `info`, `verify`, `bench`."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import mibfast

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fast, exact losses of multimodal alignment and of the information bottleneck.",
)


class InputError(Exception):
    """Something that the user can put right, in one line."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mibfast {mibfast.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training samples.")] = 60,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run, which must not exist. [default: runs/demo-DATE-TIME]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the weights and the order of batches.")] = 0,
) -> None:
    """Train OVA-IB and pairwise CLIP on digits."""
    from rich.console import Console

    from mibfast.train.run import RunConfig, train_and_evaluate

    folder = output or Path("runs") / f"demo-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    console = Console()
    started = time.perf_counter()
    try:
        metrics = train_and_evaluate(
            RunConfig(epochs=epochs, seed=seed),
            folder,
            progress=console.is_terminal,
            announce=lambda title: console.print(f"training {title}: {epochs} epochs on handwritten digits"),
        )
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}" if error.strerror else str(error)) from error
    console.print(_table(metrics))
    console.print(
        "On the test split. Retrieval: of the missing modality by the other two, each method with its own score. "
        "Loss step: forward and backward of one batch of 64.",
        style="dim",
    )
    console.print(f"{time.perf_counter() - started:.0f} s; the run's folder is {folder}", soft_wrap=True)


def _table(metrics: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("handwritten digits, three views")
    for found in metrics.values():
        table.add_column(found["title"], justify="right")
    parts = {
        "linear_probe": ("accuracy of a linear probe, {}", "{:.3f}"),
        "retrieval": ("cross-modal retrieval, {}", "{:.3f}"),
        "loss_step_ms": ("loss step, {}", "{:.1f} ms"),
    }
    for part, (label, form) in parts.items():
        for name in next(iter(metrics.values()))[part]:
            table.add_row(label.format(name), *(form.format(found[part][name]) for found in metrics.values()))
        table.add_section()
    return table


@app.command()
def info() -> None:
    """Report versions, backends and devices."""
    found = mibfast.info()
    for title, entries in (("versions", found["versions"]), ("backends", found["backends"])):
        print(title)
        for name, value in entries.items():
            print(f"  {name:<10} {value or 'not installed'}")
    print(f"  {'default':<10} {found['default_backend']}")
    print("devices")
    for device in found["devices"]:
        print(f"  {device}")


@app.command()
def verify() -> None:
    """Check this installation's numbers."""
    from mibfast.cli.verification import checks

    failed = 0
    for name, error, allowed in checks():
        fine = error <= allowed
        failed += not fine
        print(f"{'ok    ' if fine else 'FAILED'} {name:<58} error {error:.1e}, allowed {allowed:.0e}")
    print("all checks passed" if not failed else f"{failed} checks failed")
    raise typer.Exit(1 if failed else 0)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Measure against peers and floors.",
)
def bench(context: typer.Context) -> None:
    """Run `benches.gate` of the checkout, whose exit status becomes this one."""
    candidates = (Path.cwd(), Path(mibfast.__file__).parents[1])
    root = next((folder for folder in candidates if (folder / "benches" / "gate.py").exists()), None)
    if root is None:
        raise InputError(f"no benches/ in {candidates[0]}: run it in a checkout of the repository")
    done = subprocess.run([sys.executable, "-m", "benches.gate", *context.args], cwd=root, check=False)
    raise typer.Exit(done.returncode)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit status."""
    try:
        result = app(list(arguments), standalone_mode=False)
    except InputError as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        return _refuse(f"{error.name} is missing; pip install 'mibfast[train]'")
    except (KeyboardInterrupt, typer.Abort):
        print("mibfast: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # Click's own errors, which typer brings along under a private name.
        if not hasattr(error, "format_message"):
            raise
        return _refuse(" ".join(str(error.format_message()).split()))
    return result if isinstance(result, int) else 0


def _refuse(message: str) -> int:
    print(f"mibfast: error: {message}", file=sys.stderr)
    return 2
