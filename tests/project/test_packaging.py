"""What the source distribution and the wheel hold, and which checkout's kernels a process runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mibfast.kernels import compilation

ROOT = Path(__file__).parents[2]


def _run(folder: Path, *command: str | Path, **environment: str) -> str:
    """Run a command in a folder, which stands first on Python's path, and return what it prints."""
    words = [str(word) for word in command]
    env = {**os.environ, **environment}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _modules(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def test_a_wheel_of_the_source_distribution_is_whole_and_verifies_itself(tmp_path: Path) -> None:
    pytest.importorskip("build")
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT)
    _run(tmp_path, *command, MIBFAST_CUDA="0")
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()} <= names
    installed = tmp_path / "installed"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    package = installed / "mibfast"
    assert _modules(package / "kernels") == _modules(ROOT / "kernels")
    assert _modules(package) - {f"kernels/{name}" for name in _modules(ROOT / "kernels")} == {
        name for name in _modules(ROOT / "mibfast") if not name.startswith("kernels/")
    }
    # Compiled kernels are found by their sources' fingerprint: what this checkout has compiled serves the wheel.
    for compiled in (ROOT / "kernels").rglob(f"*.{compilation._FINGERPRINT}-*.nbc"):
        copy = package / "kernels" / compiled.relative_to(ROOT / "kernels")
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(compiled, copy)
    code = "import mibfast.cli, sys; print(mibfast.__file__); sys.argv = ['mibfast', 'verify']; mibfast.cli.main()"
    said = _run(installed, sys.executable, "-c", code)
    assert said.startswith(str(package))
    assert said.endswith("all checks passed")


def test_a_checkout_on_the_path_runs_its_own_kernels(tmp_path: Path) -> None:
    """And not those of the version that is installed."""
    for name in ("mibfast", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    code = "import mibfast.kernels.pairwise.reference as module; print(module.__file__)"
    found = _run(tmp_path / "mibfast", sys.executable, "-c", code, PYTHONPATH=str(tmp_path))
    assert Path(found) == tmp_path / "mibfast" / "kernels" / "pairwise" / "reference.py"
