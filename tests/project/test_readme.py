"""What the README shows runs, and its table is that of the newest results."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_example_runs(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert "alignment" in capsys.readouterr().out


def test_table_is_that_of_the_newest_results() -> None:
    pytest.importorskip("pytest_benchmark")
    import json
    import sys

    sys.path.insert(0, str(ROOT))
    try:
        from benches import gate
    finally:
        sys.path.remove(str(ROOT))
    newest = max((ROOT / "benches" / "results").glob("cpu-*.json"))
    readme = (ROOT / "README.md").read_text()
    assert gate.in_readme(readme, gate.markdown(json.loads(newest.read_text()))) == readme


def test_links_to_files_lead_somewhere() -> None:
    for document in DOCUMENTS:
        prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)\)", prose):
            assert target.startswith("http") or (document.parent / target).exists(), f"{document} links to {target}"


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_examples_in_the_documents_run(document, tmp_path, monkeypatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
        exec(compile(block, document.name, "exec"), {})


def test_commands_in_the_documents_exist() -> None:
    typer = pytest.importorskip("typer")
    from mibfast.cli.commands import app

    commands = typer.main.get_command(app).commands
    shown = [
        shlex.split(line)[1:]
        for document in DOCUMENTS
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("mibfast ")
    ]
    assert len(shown) >= 4
    for command, *arguments in shown:
        known = {name for each in commands[command].params for name in (*each.opts, *each.secondary_opts)}
        for option in (each for each in arguments if each.startswith("--")):
            assert option in known, f"mibfast {command} has no {option}"
