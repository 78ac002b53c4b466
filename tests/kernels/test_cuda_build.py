"""The build of mibfast._cuda, what is said where it is missing, and its checks of arguments. None needs a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mibfast
from mibfast import _backend
from mibfast.ops import leave_one_out_projection

ROOT = Path(__file__).parents[2]
GPU = torch.device("cuda", 0)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")


@pytest.fixture
def compiled() -> object:
    return pytest.importorskip("mibfast._cuda")


@needs_nvcc
def test_the_installation_compiled_it() -> None:
    """With every warning an error, where `make` installed it."""
    reason = _backend._missing_reason("cuda")
    if reason is not None and "the compilation by" not in reason:
        pytest.skip(reason)
    assert reason is None


def _reason_not_built(tmp_path: Path, **environment: str) -> str:
    """Build in a copy of the sources, and return the reason that is left."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    for package in ("mibfast", "kernels"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    command = [sys.executable, "setup.py", "--quiet", "build_cuda", "--build-lib", "built"]
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    subprocess.run(command, cwd=tmp_path, env={**kept, **environment}, check=True, capture_output=True)
    assert not list(tmp_path.glob("built/mibfast/_cuda.*"))
    return (tmp_path / "built" / "mibfast" / "_cuda_missing.txt").read_text().strip()


def _compiler(folder: Path, script: str) -> str:
    path = folder / "cuda" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(folder / "cuda")


def test_reasons_why_it_is_not_built(tmp_path: Path) -> None:
    def of(case: str, **environment: str) -> str:
        (tmp_path / case).mkdir()
        return _reason_not_built(tmp_path / case, **environment)

    home = _compiler(tmp_path, "echo 'some.cu(1): error: too old'; exit 1")
    assert of("off", MIBFAST_CUDA="0", CUDA_HOME=home) == "MIBFAST_CUDA was 0 at installation"
    assert of("no nvcc", PATH="/nowhere").startswith("there was no nvcc at installation")
    for package in ("ninja", "pybind11"):
        pytest.importorskip(package)
    found = of("architectures", MIBFAST_CUDA_ARCHS="Hopper", CUDA_HOME=home)
    assert found == "MIBFAST_CUDA_ARCHS must be a list such as '80+ptx 90a', got 'Hopper'"
    assert of("fails", CUDA_HOME=home) == f"the compilation by {home}/bin/nvcc failed: some.cu(1): error: too old"


def test_the_reason_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(_backend, "__file__", str(tmp_path / "_backend.py"))
    expected = "mibfast._cuda was not built: "
    assert _backend._missing_reason("cuda") == expected + "the installation does not say why"
    (tmp_path / "_cuda_missing.txt").write_text("there was no nvcc\n")
    assert _backend._missing_reason("cuda") == expected + "there was no nvcc"


def test_a_module_that_does_not_load_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise ImportError("libstdc++.so.6: version not found")

    monkeypatch.setattr(_backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(_backend.importlib, "import_module", fails)
    assert _backend._missing_reason("cuda") == "mibfast._cuda cannot be loaded: libstdc++.so.6: version not found"


@pytest.mark.parametrize(
    ("architecture", "runs", "does_not"),
    [
        ("sm_80", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (10, 0)]),
        ("sm_86", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("compute_80", [(8, 0), (8, 9), (9, 0), (12, 0)], [(7, 0), (7, 5)]),
        ("sm_90a", [(9, 0)], [(8, 9), (10, 0)]),
        ("compute_90a", [(9, 0)], [(10, 0)]),
        ("sm_120", [(12, 0), (12, 1)], [(9, 0), (10, 0)]),
    ],
)
def test_which_code_runs_on_which_gpu(architecture, runs, does_not) -> None:
    assert all(_backend.runs_on(architecture, capability) for capability in runs)
    assert not any(_backend.runs_on(architecture, capability) for capability in does_not)


def test_gpus_and_drivers_that_it_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(ARCHITECTURES=("sm_80", "sm_90a"), RUNTIME_VERSION=13000, driver_version=lambda: 13010)
    monkeypatch.setitem(sys.modules, "mibfast._cuda", module)
    monkeypatch.setattr(_backend, "_MISSING", dict.fromkeys(("cpu", "triton", "cuda")))

    def chosen(capability: tuple[int, int], backend: str | None = None) -> str:
        monkeypatch.setattr(_backend, "_UNSUPPORTED", {})
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        return _backend.choose("op", GPU, backend, {"cuda": None, "triton": None})

    assert chosen((9, 0)) == "cuda"
    assert chosen((10, 0)) == "triton"
    with pytest.raises(RuntimeError, match=r"built for sm_80, sm_90a, and cuda:0 has compute capability 10\.0"):
        chosen((10, 0), "cuda")
    module.driver_version = lambda: 12080
    assert chosen((9, 0)) == "triton"
    with pytest.raises(RuntimeError, match=r"built by CUDA 13\.0 and the driver serves CUDA 12\.8"):
        chosen((9, 0), "cuda")


def test_what_the_kernel_cannot_take_is_said() -> None:
    assert leave_one_out_projection._not_by_cuda(16, 2**30) is None
    assert leave_one_out_projection._not_by_cuda(17, 4) == "M = 17 > 16 modalities"
    assert leave_one_out_projection._not_by_cuda(2, 2**30 + 1) == f"d = {2**30 + 1} > 2^30"


def test_it_loads_without_a_gpu_and_says_what_it_was_built_for(compiled) -> None:
    assert compiled.MOST_MODALITIES == 16
    assert compiled.ARCHITECTURES
    report = mibfast.info()["backends"]["cuda"]
    assert report.startswith("available, built by CUDA ")
    assert report.endswith(" for " + ", ".join(compiled.ARCHITECTURES))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"z": [64], "strides": [4]}, "M must be from 2 to 16"),
        ({"z": [64] * 17, "strides": [4] * 17}, "M must be from 2 to 16"),
        ({"z": [64, 0]}, "z is a null pointer"),
        ({"z": [64, 66]}, "z is not a multiple of its numbers' size"),
        ({"strides": [4]}, "z must be M addresses and strides, got 2 and 1"),
        ({"strides": [4, -4]}, "z has a negative stride"),
        ({"n": 0}, "N must be positive"),
        ({"d": 0}, r"d must be from 1 to 2\^30"),
        ({"d": 2**30 + 1}, r"d must be from 1 to 2\^30"),
        ({"device": -1}, "the device must be the index of one"),
        ({"ridge": -1.0}, "ridge must not be negative, got -1"),
        ({"ridge": float("nan")}, "ridge must not be negative, got nan"),
        ({"out": 0}, "out is a null pointer"),
        ({"inverse": 0}, "inverse is a null pointer"),
    ],
)
def test_forward_arguments_are_checked(compiled, wrong, message) -> None:
    arguments = {"device": 0, "dtype": compiled.Dtype.float32, "z": [64, 128], "strides": [4, 4], "n": 3, "d": 4}
    arguments |= {"ridge": 0.0, "out": 256, "inverse": 512, "stream": 0}
    with pytest.raises(ValueError, match="^leave_one_out_projection: M = .*, float32, on cuda:.*" + message):
        compiled.leave_one_out(**(arguments | wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"upstream": [64]}, "upstream must be M addresses and strides, got 1 and 2"),
        ({"upstream": [64, 0]}, "upstream is a null pointer"),
        ({"gradients": [64]}, "gradients must be M addresses and strides, got 1 and 1"),
        ({"gradients": [64, 0]}, "gradients is a null pointer"),
        ({"inverse": 0}, "inverse is a null pointer"),
    ],
)
def test_backward_arguments_are_checked(compiled, wrong, message) -> None:
    arguments = {"device": 0, "dtype": compiled.Dtype.float64, "z": [64, 128], "strides": [4, 4], "n": 3, "d": 4}
    arguments |= {"upstream": [64, 128], "upstream_strides": [4, 4], "inverse": 64, "gradients": [64, 64], "stream": 0}
    with pytest.raises(ValueError, match="^leave_one_out_projection, backward: M = 2, N = 3, d = 4.*" + message):
        compiled.leave_one_out_backward(**(arguments | wrong))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_launch_that_fails_says_which_and_why(compiled) -> None:
    expected = "leave_one_out_projection: M = 2, N = 3, d = 4, bfloat16, on cuda:0: .*: cudaError[A-Za-z]+: CUDA driver"
    with pytest.raises(RuntimeError, match=expected):
        compiled.leave_one_out(0, compiled.Dtype.bfloat16, [64, 128], [4, 4], 3, 4, 0.0, 256, 512, 0)
