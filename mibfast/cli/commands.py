"""The application: its commands, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

import mibfast
from mibfast._check import InputError, MibfastError
from mibfast._termination import STATUS, Terminated, raised
from mibfast.cli import derivation, experiments, training
from mibfast.cli.listing import command_with

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fast, exact losses of multimodal alignment and of the information bottleneck.",
)


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


_with_methods = command_with(
    {
        "Alignments, which need no labels": "mibfast.train.methods:ALIGNMENTS",
        "Fusions, which predict labels": "mibfast.train.methods:FUSIONS",
        "Data": "mibfast.data.sources:DATA_SETS",
    }
)
_with_bottlenecks = command_with(
    {
        "Methods": "mibfast.train.experiments.bottlenecks:BOTTLENECKS",
        "Critics": "mibfast.information.critics:CRITICS",
        "Estimators": "mibfast.ops.mutual_information:ESTIMATORS",
    }
)
for _command, _kind in (
    (training.demo, TyperCommand),
    (training.fit, _with_methods),
    (training.evaluate, TyperCommand),
    (training.embed, TyperCommand),
    (training.compare, _with_methods),
    (derivation.derive, TyperCommand),
    (experiments.experiment, _with_bottlenecks),
    (experiments.authentic, TyperCommand),
):
    app.command(cls=_kind)(_command)


@app.command()
def info() -> None:
    """Report versions, backends and devices."""
    report = mibfast.info()
    for title, entries in (("versions", report["versions"]), ("backends", report["backends"])):
        print(title)
        for name, value in entries.items():
            print(f"  {name:<10} {value or 'not installed'}")
    print(f"  {'default':<10} {report['default_backend']}")
    print("devices")
    for device in report["devices"]:
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
        with raised():
            result = app(list(arguments), standalone_mode=False)
    except MibfastError as error:
        return _refuse(str(error))
    except MemoryError as error:
        return _refuse(f"there is not enough memory: {error}")
    except ModuleNotFoundError as error:
        return _refuse(f"{error.name} is missing; pip install 'mibfast[train]'")
    except (KeyboardInterrupt, typer.Abort):
        print("mibfast: interrupted", file=sys.stderr)
        return 130
    except Terminated:
        print("mibfast: terminated", file=sys.stderr)
        return STATUS
    except Exception as error:
        # Click's own errors, which typer brings along under a private name.
        if not hasattr(error, "format_message"):
            raise
        return _refuse(str(error.format_message()))
    return result if isinstance(result, int) else 0


def _refuse(message: str) -> int:
    print(f"mibfast: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
