"""What the README shows runs, and its table is that of the newest results."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            assert target.startswith("http") or (ROOT / target).exists(), f"{document} links to {target}"
