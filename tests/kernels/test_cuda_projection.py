"""The arithmetic of the CUDA projection kernels, run on the host: the same code, its lanes gone through one by one."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mibfast.kernels.projection import cpu, reference

ROOT = Path(__file__).parents[2]
RIDGE = 1e-8


class Host:
    """Projections and their gradients by csrc/projection.h."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def forward(
        self, z: Sequence[Tensor], ridge: float = RIDGE, lanes: int = 8, backwards: bool = False
    ) -> tuple[Tensor, Tensor]:
        m, (n, d) = len(z), z[0].shape
        out, inverse = z[0].new_full((m, n, d), -7.0), torch.full((n, m, m), -7.0, dtype=torch.float64)
        arrays = (_addresses(z), [x.stride(0) for x in z], _addresses([out]), _addresses([inverse]))
        launch = self.at_addresses("forward", str(z[0].dtype).removeprefix("torch."))
        launch(arrays, m, n, d, ridge, aligned=_aligned(z), lanes=lanes, backwards=backwards)
        return out, inverse

    def backward(
        self, upstream: Tensor, z: Sequence[Tensor], inverse: Tensor, lanes: int = 8, backwards: bool = False
    ) -> list[Tensor]:
        assert upstream.is_contiguous()
        assert inverse.is_contiguous()
        m, (n, d) = len(z), z[0].shape
        gradients = [torch.full((n, d), -7.0, dtype=x.dtype) for x in z]
        rows = (_addresses(z), [x.stride(0) for x in z], _addresses(upstream.unbind()), [d] * m)
        arrays = (*rows, _addresses([inverse]), _addresses(gradients))
        launch = self.at_addresses("backward", str(z[0].dtype).removeprefix("torch."))
        launch(arrays, m, n, d, aligned=_aligned(z), lanes=lanes, backwards=backwards)
        return gradients

    def at_addresses(self, direction: str, dtype: str) -> Callable[..., None]:
        """The function of one direction, for lists of addresses, a single one standing for itself, and sizes."""
        function = getattr(self._library, f"{direction}_{dtype}")

        def launch(arrays, m, n, d, *ridge, aligned=False, lanes=8, backwards=False) -> None:
            lists = [(ctypes.c_int64 * len(x))(*x) if len(x) > 1 else ctypes.c_void_p(x[0]) for x in arrays]
            numbers = [m, ctypes.c_int64(n), d, *map(ctypes.c_double, ridge), aligned, lanes, backwards]
            function(*lists, *numbers)

        return launch

    def layout(self, m: int, rows: int, matrices: int, d: int, size: int, aligned: bool, shared: int) -> list[int]:
        found = (ctypes.c_int64 * 5)()
        wide = (ctypes.c_int64(d), ctypes.c_int64(size), aligned, ctypes.c_int64(shared))
        self._library.layout_of(m, rows, matrices, *wide, found)
        return list(found)


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _aligned(z: Sequence[Tensor]) -> bool:
    """As in csrc/bindings.cpp."""
    size, d = z[0].element_size(), z[0].shape[1]
    return d * size % 16 == 0 and all(x.data_ptr() % 16 == 0 and x.stride(0) * size % 16 == 0 for x in z)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    library = tmp_path_factory.mktemp("host") / "projection.so"
    # Contracted multiply-adds, as nvcc makes them.
    flags = ["-std=c++17", "-O1", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-shared", "-fPIC"]
    source = ROOT / "tests" / "csrc" / "projection_on_host.cpp"
    subprocess.run([compiler, *flags, f"-I{ROOT / 'csrc'}", str(source), "-o", str(library)], check=True)
    return Host(ctypes.CDLL(str(library)))


def embeddings(m: int, n: int, d: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return list(torch.randn(m, n, d, dtype=torch.float64).to(dtype))


def uneven(m: int, n: int, d: int) -> Tensor:
    return torch.linspace(-0.7, 1.3, m * n * d, dtype=torch.float64).view(m, n, d)


def truth(z: Sequence[Tensor], upstream: Tensor, ridge: float = RIDGE) -> tuple[Tensor, list[Tensor]]:
    """Projections and gradients by the reference, in float64."""
    leaves = [x.detach().double().requires_grad_() for x in z]
    projections = reference.leave_one_out_projection(leaves, ridge)
    return projections.detach(), list(torch.autograd.grad(projections, leaves, upstream.double()))


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference beside the largest number; NaN stays NaN."""
    a, b = torch.stack(list(found)).double(), torch.stack(list(exact))
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("d", [1, 2, 17, 24, 130])
@pytest.mark.parametrize("m", range(2, 17))
def test_float64_agrees_with_the_reference(host, m, d) -> None:
    z, upstream = embeddings(m, 5, d), uneven(m, 5, d)
    projections, gradients = truth(z, upstream, ridge=0.01)
    found, inverse = host.forward(z, 0.01)
    # With fewer dimensions than embeddings only the ridge separates them.
    tolerance = 1e-12 if d > m else 1e-9
    assert distance(found, projections) <= tolerance
    assert distance(host.backward(upstream, z, inverse), gradients) <= tolerance
    stacked = torch.stack(z, 1)
    gram = stacked @ stacked.mT + 0.01 * torch.eye(m, dtype=torch.float64)
    assert distance(list(inverse @ gram), list(torch.eye(m, dtype=torch.float64).expand(5, m, m))) <= 1e-10
    assert torch.equal(inverse, inverse.mT)


@pytest.mark.parametrize("d", [1, 3, 8, 33, 256])
@pytest.mark.parametrize("m", [2, 3, 5, 8, 9, 16])
def test_float32_errs_as_its_own_rounding(host, m, d) -> None:
    z, upstream = embeddings(m, 7, d, torch.float32), uneven(m, 7, d).float()
    projections, gradients = truth(z, upstream, ridge=0.1)
    found, inverse = host.forward(z, 0.1)
    assert distance(found, projections) <= 1e-7
    assert distance(host.backward(upstream, z, inverse), gradients) <= 1e-7


@pytest.mark.parametrize("m", range(2, 17))
def test_lanes_share_the_work_in_any_order(host, m) -> None:
    """No lane reads what another writes before they wait for each other: their order changes no bit."""
    z, upstream = embeddings(m, 3, 72), uneven(m, 3, 72)
    for lanes in (4, 8, 16, 32):
        found, inverse = host.forward(z, lanes=lanes)
        gradients = host.backward(upstream, z, inverse, lanes)
        again, again_inverse = host.forward(z, lanes=lanes, backwards=True)
        assert torch.equal(found, again)
        assert torch.equal(inverse, again_inverse)
        reordered = host.backward(upstream, z, inverse, lanes, backwards=True)
        assert all(torch.equal(a, b) for a, b in zip(gradients, reordered, strict=True))
        few, few_inverse = host.forward(z, lanes=4)
        assert distance(list(inverse), list(few_inverse)) <= 1e-12
        assert distance(found, few) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [4, 5, 64])
@pytest.mark.parametrize("m", [2, 5, 8, 12, 13])
def test_rows_of_any_stride(host, m, d, dtype) -> None:
    z, upstream = embeddings(m, 6, d, dtype), uneven(m, 6, d).to(dtype)
    expected, inverse = host.forward(z)
    gradients = host.backward(upstream, z, inverse)
    wide = [torch.cat([torch.full((6, 1), 9.0, dtype=dtype), x, torch.full((6, k), 9.0, dtype=dtype)], 1)[:, 1 : d + 1]
            for k, x in enumerate(z)]  # fmt: skip
    assert not _aligned(wide)
    assert torch.equal(host.forward(wide)[0], expected)
    found = host.backward(upstream, wide, inverse)
    assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))
    shared = [x[:1].expand(6, d) for x in z]
    assert torch.equal(host.forward(shared)[0], expected[:, :1].expand(m, 6, d))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("m", [2, 3, 5, 8, 11, 16])
def test_duplicates_and_zero_vectors(host, m, scale) -> None:
    z = [scale * x for x in embeddings(m, 4, 40)]
    z[-1][0] = z[0][0]  # duplicates
    z[0][1] = 0  # a zero vector
    for x in z:
        x[2] = z[0][2]  # all alike
        x[3] = 0
    upstream = uneven(m, 4, 40)
    found, inverse = host.forward(z)
    assert found.isfinite().all()
    projections, _ = truth(z, upstream)
    # The ridge, of 2^-40 beside one, is all that tells duplicates apart: errors of 2^-53 grow to 2^-13.
    assert distance([found[:, :3]], [projections[:, :3]]) <= 2.0**-13
    assert (found[:, 3] == 0).all()
    gradients = host.backward(upstream, z, inverse)
    by_cpu = cpu.leave_one_out_backward(upstream, z, inverse, [True] * len(z), 0.0)
    assert all(x.isfinite().all() for x in gradients)
    assert distance([g[1] for g in gradients], [g[1] for g in by_cpu]) <= 1e-10


def test_agrees_with_the_cpu_kernel_to_rounding(host) -> None:
    for m in range(2, 17):
        z, upstream = embeddings(m, 9, 50), uneven(m, 9, 50)
        projections, inverse = cpu.leave_one_out(z, RIDGE)
        found, found_inverse = host.forward(z)
        assert distance(found, projections) <= 1e-13
        assert distance(list(found_inverse), list(inverse)) <= 1e-13
        gradients = cpu.leave_one_out_backward(upstream, z, inverse, [True] * len(z), 0.0)
        assert distance(host.backward(upstream, z, inverse), gradients) <= 1e-12


def test_nearly_aligned_modalities_in_float32(host) -> None:
    """1e-4 apart the Gram matrix has a condition number of 4e8."""
    common = torch.randn(64, 256, dtype=torch.float64)
    z = [(common + 1e-4 * torch.randn(64, 256, dtype=torch.float64)).float() for _ in range(4)]
    projections, _ = truth(z, torch.zeros(4, 64, 256))
    assert distance(host.forward(z)[0], projections) <= 1e-7


@pytest.mark.parametrize("m", range(2, 17))
def test_nan_stays_in_its_sample(host, m) -> None:
    z, upstream = embeddings(m, 4, 20), uneven(m, 4, 20)
    expected, inverse = host.forward(z)
    gradients = host.backward(upstream, z, inverse)
    others = [0, 1, 3]
    for position in range(m):
        missing = [x.clone() for x in z]
        missing[position][2, 7] = torch.nan
        found, found_inverse = host.forward(missing)
        assert found[:, 2].isnan().all()
        assert torch.equal(found[:, others], expected[:, others])
        lost = host.backward(upstream, missing, found_inverse)
        assert all(x[2].isnan().all() for x in lost)
        assert all(torch.equal(a[others], b[others]) for a, b in zip(lost, gradients, strict=True))
    upstream = upstream.clone()
    upstream[0, 1, 3] = torch.nan
    lost = host.backward(upstream, z, inverse)
    assert all(x[1].isnan().any() and x[[0, 2, 3]].isfinite().all() for x in lost)


class _Instead:
    """Stands in for `mibfast._cuda`'s functions: runs the same code on the host, on the same addresses."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def leave_one_out(self, *, dtype, z, strides, n, d, ridge, out, inverse, stream, device) -> None:
        launch = self._host.at_addresses("forward", dtype.name)
        launch((z, strides, [out], [inverse]), len(z), n, d, ridge)

    def leave_one_out_backward(
        self, *, dtype, upstream, upstream_strides, z, strides, n, d, inverse, gradients, stream, device
    ) -> None:
        launch = self._host.at_addresses("backward", dtype.name)
        launch((z, strides, upstream, upstream_strides, [inverse], gradients), len(z), n, d)


LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "transposed": lambda x: x.T.contiguous().T,
    "rows of a wider matrix": lambda x: torch.cat([x, x - 5], 1)[:, : x.shape[1]],
    "every other row": lambda x: torch.stack([x, x + 9], 1).flatten(0, 1)[::2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_launchers_hand_over_what_the_kernels_expect(host, layout, dtype, monkeypatch) -> None:
    pytest.importorskip("mibfast._cuda")
    from mibfast.kernels.projection import cuda

    instead = _Instead(host)
    monkeypatch.setattr(cuda._cuda, "leave_one_out", instead.leave_one_out)
    monkeypatch.setattr(cuda._cuda, "leave_one_out_backward", instead.leave_one_out_backward)
    monkeypatch.setattr(cuda, "_stream", lambda device: 0)
    z, upstream = embeddings(3, 6, 5, dtype), uneven(3, 6, 5).to(dtype)
    expected, expected_inverse = host.forward(z)
    gradients = host.backward(upstream, z, expected_inverse)
    strided = [LAYOUTS[layout](x) for x in z]
    found, inverse = cuda.leave_one_out(strided, RIDGE)
    assert torch.equal(found, expected)
    assert torch.equal(inverse, expected_inverse)
    for given in (upstream, upstream.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        returned = cuda.leave_one_out_backward(given, strided, inverse, [True] * len(strided), 0.0)
        assert all(torch.equal(a, b) for a, b in zip(returned, gradients, strict=True))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_layouts_fit_the_device(host, size) -> None:
    sizes = itertools.product(range(2, 17), (1, 2, 8, 100, 512, 768, 4096, 100_000, 2**30), ("forward", "backward"))
    for m, d, direction in sizes:
        rows, matrices = (m, 2) if direction == "forward" else (2 * m, 3)
        aligned = d * size % 16 == 0
        for shared in (102400, 167936, 233472):  # of compute capabilities 8.6, 8.0 and 9.0
            lanes, warps, staged, sample, block = host.layout(m, rows, matrices, d, size, aligned, shared)
            assert lanes in (4, 8, 16, 32)
            assert lanes >= m
            assert warps in (1, 2, 4)
            # Samples of a block begin at multiples of 16 bytes, with room for matrices and, where staged, embeddings.
            assert sample % 16 == 0
            assert sample >= matrices * m * m * 8 + staged * rows * d * size
            assert block == sample * warps * 32 // lanes
            # A block may have a KiB less than the multiprocessor, which keeps one for itself.
            assert block + 1024 <= shared
            assert not host.layout(m, rows, matrices, d, size, False, shared)[2]


def test_the_layout_that_the_prediction_counts_on(host) -> None:
    """A warp a sample and 20 of them on a multiprocessor of an H200, for M = 5 and d = 512 in float32."""
    lanes, warps, staged, _, block = host.layout(5, 5, 2, 512, 4, True, 233472)
    assert (lanes, staged) == (32, 1)
    assert 233472 // (block + 1024) * warps >= 20
