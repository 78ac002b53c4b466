"""Which backend an operation takes: the first that can do it, said once where one is passed over, or the one named."""

import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from mibfast import _backend, information, losses
from mibfast import functional as F
from mibfast.ops import _boundary

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ALL = {"cpu": None, "triton": None, "cuda": None}


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """All backends are there, the interpreter is off and nothing was said yet."""
    missing: dict[str, str | None] = dict.fromkeys(("cpu", "triton", "cuda"))
    monkeypatch.setattr(_backend, "_MISSING", missing)
    monkeypatch.setattr(_backend, "_warned", set())
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    return missing


def chosen(device: torch.device, offers: dict[str, str | None], backend: str | None = None) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return _backend.choose("op", device, backend, offers)


def test_auto_takes_cuda_then_triton(everything: dict[str, str | None]) -> None:
    assert chosen(CPU, ALL) == "cpu"
    assert chosen(CUDA, ALL) == "cuda"
    assert chosen(CUDA, {"cpu": None, "triton": None}) == "triton"
    everything["cuda"] = "not built"
    assert chosen(CUDA, ALL) == "triton"


def test_arguments_that_a_backend_cannot_take_go_to_the_next_said_once(everything: dict[str, str | None]) -> None:
    offers = {"cpu": None, "cuda": "M = 17 > 16", "triton": None}
    with pytest.warns(RuntimeWarning, match="op: backend 'cuda' is passed over for these arguments: M = 17 > 16"):
        assert _backend.choose("op", CUDA, None, offers) == "triton"
    assert chosen(CUDA, offers) == "triton"
    with pytest.raises(RuntimeError, match="op: backend 'cuda' cannot be used: M = 17 > 16"):
        _backend.choose("op", CUDA, "cuda", offers)


def test_the_reference_is_the_last_resort_with_every_reason(everything: dict[str, str | None]) -> None:
    everything["cuda"] = "not built"
    expected = "op runs its reference formula on cuda tensors.*cuda: not built; triton: it has no kernel"
    with pytest.warns(RuntimeWarning, match=expected):
        assert _backend.choose("op", CUDA, None, {"cpu": None}) == "reference"
    assert chosen(CUDA, {"cpu": None}) == "reference"
    with pytest.warns(RuntimeWarning, match="op runs its reference formula on xpu tensors.*no backend serves them"):
        assert _backend.choose("op", torch.device("xpu"), None, ALL) == "reference"


def test_triton_serves_cpu_tensors_in_its_interpreter_and_only_by_name(
    everything: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="serves cuda tensors and these are on cpu"):
        _backend.choose("op", CPU, "triton", ALL)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert chosen(CPU, ALL, "triton") == "triton"
    assert chosen(CPU, ALL) == "cpu"
    with pytest.raises(RuntimeError, match="serves cuda tensors and these are on cpu"):
        _backend.choose("op", CPU, "cuda", ALL)


@pytest.mark.parametrize(("value", "disabled"), [(None, False), ("", False), ("0", False), ("no", False), ("1", True)])
def test_a_numba_that_compiles_nothing_leaves_no_cpu_backend(value, disabled, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Numba reads the variable."""
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    if value is not None:
        monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
    expected = "NUMBA_DISABLE_JIT is set, so Numba compiles nothing" if disabled else None
    assert _backend._missing_reason("cpu") == expected


def test_every_operation_has_its_reference_where_numba_compiles_nothing() -> None:
    program = """
import sys, warnings
import mibfast
from operations import OPERATIONS, inputs, value_and_gradients
assert "NUMBA_DISABLE_JIT" in mibfast.info()["backends"]["cpu"]
leaves = inputs(6, 5)
for name, operation in OPERATIONS.items():
    try:
        operation(*leaves, backend="cpu")
    except RuntimeError as error:
        assert "'cpu' cannot be used: NUMBA_DISABLE_JIT is set" in str(error), error
    else:
        raise AssertionError(name)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        first = value_and_gradients(operation, leaves, None)
        value_and_gradients(operation, leaves, None)
    said = {str(warning.message) for warning in found}
    assert len(said) == len(found), (name, found)
    assert all("runs its reference formula on cpu tensors" in x and "cpu: NUMBA_DISABLE_JIT is set" in x for x in said)
    for x, y in zip(first, value_and_gradients(operation, leaves, "reference"), strict=True):
        assert x.equal(y), name
assert "numba" not in sys.modules
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_what_triton_fails_on_is_named(way, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    launchers = _boundary.kernels("gaussian", "triton")

    def out_of_resources(*_):
        raise ValueError("out of resource: shared memory")

    mean, logvar = torch.zeros(4, 3, requires_grad=True), torch.zeros(4, 3)
    divergence = F.gaussian_kl(mean, logvar, backend="triton") if way == "backward" else None
    # Nothing is added to what other backends say.
    monkeypatch.setattr(_boundary.kernels("gaussian", "cpu"), "kl", out_of_resources)
    with pytest.raises(ValueError, match=r"^out of resource"):
        F.gaussian_kl(mean, logvar, backend="cpu")
    monkeypatch.setattr(launchers, "kl_backward" if way == "backward" else "kl", out_of_resources)
    expected = (
        r"^gaussian_kl: its Triton kernels failed on a tensor of shape \[.*4, 3\], torch.float32.*: out of resource"
    )
    fails = divergence.backward if way == "backward" else lambda: F.gaussian_kl(mean, logvar, backend="triton")
    with pytest.raises(RuntimeError, match=expected):
        fails()


def test_memory_that_triton_lacks_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(_boundary.kernels("gaussian", "triton"), "kl", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory"):
        F.gaussian_kl(torch.zeros(4, 3), torch.zeros(4, 3), backend="triton")


@pytest.mark.parametrize(
    "given", ["gpu", 1, torch.zeros(2), torch.nested.nested_tensor([torch.zeros(2)])], ids=range(4)
)
@pytest.mark.parametrize(
    "make",
    [
        *(getattr(losses, name) for name in losses.__all__ if name.endswith("Loss") and "Projector" not in name),
        partial(losses.LearnedProjectorOVAIBLoss, 2, 4),
        partial(information.MutualInformation, information.BilinearCritic(3, 3)),
        partial(information.estimate, torch.randn(40, 3), torch.randn(40, 3), seeds=1),
    ],
)
def test_a_module_refuses_an_unknown_backend_when_it_is_made(make, given) -> None:
    with pytest.raises(ValueError, match=r"unknown backend .*expected one of 'auto', 'reference'"):
        make(backend=given)
