"""Methods, data sets, critics and estimators each have one entry, and help, documents and counts agree with it."""

import re
from pathlib import Path

import pytest

from mibfast import functional
from mibfast.data import load
from mibfast.data.sources import DATA_SETS
from mibfast.information.critics import CRITICS
from mibfast.nn import fusion
from mibfast.ops.mutual_information import ESTIMATORS

ROOT = Path(__file__).parents[2]
NUMBERS = {8: "eight", 9: "nine", 10: "ten", 11: "eleven", 12: "twelve", 13: "thirteen"}


def first_column(document: str, heading: str) -> list[str]:
    """Return the names in the first column of the table below a heading."""
    table = (ROOT / "docs" / document).read_text().split(heading, 1)[1]
    lines = [line for line in table.split("\n\n")[0].splitlines()[2:] if line.startswith("|")]
    return [name for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


def test_every_entry_has_a_title_and_one_line_of_help() -> None:
    pytest.importorskip("lightning")
    from mibfast.train import METHODS

    for registry in (METHODS, DATA_SETS, CRITICS, ESTIMATORS):
        assert all(entry.title and entry.help.endswith(".") and "\n" not in entry.help for entry in registry.values())
        assert len({entry.title for entry in registry.values()}) == len(registry)


def test_the_help_of_commands_lists_every_entry(capsys) -> None:
    pytest.importorskip("lightning")
    from mibfast.cli.commands import run
    from mibfast.cli.listing import rows

    listed = {
        "fit": ("train.methods:ALIGNMENTS", "train.methods:FUSIONS", "data.sources:DATA_SETS"),
        "compare": ("train.methods:ALIGNMENTS", "train.methods:FUSIONS", "data.sources:DATA_SETS"),
        "experiment": (
            "train.experiments.bottlenecks:BOTTLENECKS",
            "information.critics:CRITICS",
            "ops.mutual_information:ESTIMATORS",
        ),
    }
    for command, registries in listed.items():
        assert run([command, "--help"]) == 0
        words = " ".join(capsys.readouterr().out.split())
        for registry in registries:
            for name, text in rows(f"mibfast.{registry}"):
                assert text
                assert f"{name} {text}" in words.replace("- ", "-"), name


def test_the_table_of_fusions_is_that_of_the_registry() -> None:
    text = (ROOT / "docs" / "fusion.md").read_text()
    table = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert table == [(name, kind.__name__) for name, kind in fusion.METHODS.items()]


def test_estimators_are_those_of_the_operation() -> None:
    assert all(f'"{name}" ' in str(functional.mutual_information.__doc__) for name in ESTIMATORS)
    assert sorted(first_column("information.md", "## Which estimator\n\n")) == sorted(ESTIMATORS)
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{NUMBERS[len(ESTIMATORS)]} **estimators of mutual information**" in readme


def test_data_sets_in_the_documents_can_be_loaded() -> None:
    documented = first_column("own-data.md", "## Data\n\n")
    assert {name for name in documented if name not in DATA_SETS} <= {"NAME.npy", "sim-i:SAMPLES"}
    for form in DATA_SETS:
        assert f'"{form}"' in str(load.__doc__), form
