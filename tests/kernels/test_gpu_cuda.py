"""Leave-one-out projections by the CUDA kernels, on a GPU: `make test-gpu`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from cuda_graphs import assert_a_graph_repeats
from torch import Tensor

from mibfast import functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

# Roundings of a number, that of the largest being one.
ROUNDING = {torch.float64: 1e-11, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


def embeddings(m: int, n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    return list(torch.randn(m, n, d, generator=generator, device="cuda", dtype=torch.float64).to(dtype))


def value_and_gradients(z: Sequence[Tensor], backend: str, ridge: float = 1e-3) -> list[Tensor]:
    """The projections, and the gradients for an uneven upstream gradient of the embeddings' dtype."""
    leaves = [x.detach().requires_grad_() for x in z]
    found = F.leave_one_out_projection(leaves, ridge, backend=backend)
    upstream = torch.linspace(-0.7, 1.3, found.numel(), dtype=torch.float64, device="cuda").view(found.shape)
    gradients = torch.autograd.grad(found, leaves, upstream.to(z[0].dtype).to(found.dtype))
    return [found.detach(), torch.stack(gradients)]


def exact(z: Sequence[Tensor], ridge: float = 1e-3) -> list[Tensor]:
    """The reference in float64, for an upstream gradient rounded to the embeddings' dtype."""
    leaves = [x.detach().double().requires_grad_() for x in z]
    found = F.leave_one_out_projection(leaves, ridge, backend="reference")
    upstream = torch.linspace(-0.7, 1.3, found.numel(), dtype=torch.float64, device="cuda").view(found.shape)
    gradients = torch.autograd.grad(found, leaves, upstream.to(z[0].dtype).double())
    return [found.detach(), torch.stack(gradients)]


def assert_close(found: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype) -> None:
    for a, b in zip(found, truth, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).abs().max() <= ROUNDING[dtype] * b.abs().max()


@DTYPES
@pytest.mark.parametrize(("n", "d"), [(1, 32), (3, 64), (33, 20), (1000, 512), (37, 1000), (5, 20_000)])
@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16])
def test_agrees_with_the_reference(m, n, d, dtype) -> None:
    z = embeddings(m, n, d, dtype)
    assert_close(value_and_gradients(z, "cuda"), exact(z), dtype)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 7, 31, 33, 127, 129, 515])
@DTYPES
def test_ragged_dimensions(d, dtype) -> None:
    z = embeddings(3, 41, d, dtype)
    assert_close(value_and_gradients(z, "cuda", 0.3), exact(z, 0.3), dtype)


LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "every other column": lambda x: torch.stack([x, x + 9], 2).flatten(1)[:, ::2],
    "rows of a wider matrix": lambda x: torch.cat([x, x - 5], 1)[:, : x.shape[1]],
    "every other row": lambda x: torch.stack([x, x + 9], 1).flatten(0, 1)[::2],
    "one number in": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "one row for all": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@DTYPES
def test_strides(layout, dtype) -> None:
    strided = [LAYOUTS[layout](x) for x in embeddings(3, 19, 64, dtype)]
    expected = value_and_gradients([x.contiguous() for x in strided], "cuda")
    for a, b in zip(value_and_gradients(strided, "cuda"), expected, strict=True):
        assert (a - b).abs().max() <= 2 * ROUNDING[dtype] * b.abs().max()


@DTYPES
def test_every_subset_of_gradients(dtype) -> None:
    z = embeddings(3, 17, 24, dtype)
    _, expected = value_and_gradients(z, "cuda")
    for needed in range(1, 8):
        leaves = [x.detach().requires_grad_(bool(needed >> k & 1)) for k, x in enumerate(z)]
        found = F.leave_one_out_projection(leaves, 1e-3, backend="cuda")
        upstream = torch.linspace(-0.7, 1.3, found.numel(), dtype=torch.float64, device="cuda").view(found.shape)
        found.backward(upstream.to(dtype))
        for x, gradient in zip(leaves, expected, strict=True):
            assert x.grad is None if not x.requires_grad else torch.equal(x.grad, gradient)


def test_nan_stays_in_its_sample() -> None:
    z = embeddings(5, 50, 96, torch.float32)
    plain = value_and_gradients(z, "cuda")
    z[3][17, 5] = torch.nan
    others = [i for i in range(50) if i != 17]
    for a, b in zip(value_and_gradients(z, "cuda"), plain, strict=True):
        assert a[:, 17].isnan().all()
        assert torch.equal(a[:, others], b[:, others])


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_duplicates_and_zero_vectors(scale) -> None:
    view = scale * embeddings(1, 40, 64, torch.float32)[0]
    for z in ([view] * 4, [view, torch.zeros_like(view), view], [torch.zeros_like(view)] * 3):
        assert all(x.isfinite().all() for x in value_and_gradients(z, "cuda", 1e-8))
    torch.testing.assert_close(F.leave_one_out_projection([view] * 2, backend="cuda")[0], view, rtol=1e-4, atol=0)


def test_results_repeat_bit_for_bit() -> None:
    z = embeddings(5, 10_000, 256, torch.float32)
    first = value_and_gradients(z, "cuda")
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(value_and_gradients(z, "cuda"), first, strict=True))


@pytest.mark.parametrize("d", [1024, 1023])
def test_more_numbers_than_an_int32_counts(d) -> None:
    n = 2**21 + 5_000
    assert n * d > 2**31
    if torch.cuda.mem_get_info()[0] < 12 * n * d * 2:
        pytest.skip("the GPU's memory is too small")
    leaves = [torch.randn(n, d, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(2)]
    found = F.leave_one_out_projection(leaves, 1e-3, backend="cuda")
    gradients = torch.autograd.grad(found, leaves, torch.ones((), device="cuda", dtype=found.dtype).expand_as(found))
    ends = torch.cat([torch.arange(100), torch.arange(n - 100, n)]).to("cuda")
    few = [x.detach()[ends].requires_grad_() for x in leaves]
    expected = F.leave_one_out_projection(few, 1e-3, backend="cuda")
    assert torch.equal(found[:, ends], expected)
    for a, b in zip(gradients, torch.autograd.grad(expected.sum(), few), strict=True):
        assert torch.equal(a[ends], b)


def test_cuda_graphs_hold_both_directions() -> None:
    z = [x.requires_grad_() for x in embeddings(4, 300, 128, torch.float32)]
    upstream = torch.randn(4, 300, 128, device="cuda")

    def step() -> list[Tensor]:
        found = F.leave_one_out_projection(z, backend="cuda")
        return [found, *torch.autograd.grad(found, z, upstream)]

    assert_a_graph_repeats(step, lambda: [x.copy_(torch.randn_like(x)) for x in z])


def test_nothing_waits_and_the_current_stream_is_used() -> None:
    z = embeddings(3, 2000, 256, torch.float32)
    expected = F.leave_one_out_projection([2 * x for x in z], backend="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            doubled = [2 * x for x in z]
            found = F.leave_one_out_projection(doubled, backend="cuda")
            # Still asleep: had the launch waited, or gone to another stream, it would be done.
            assert not stream.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert torch.equal(found, expected)


def test_compiles_in_one_graph() -> None:
    z = [x.requires_grad_() for x in embeddings(3, 64, 32, torch.float32)]
    compiled = torch.compile(lambda z: F.leave_one_out_projection(z, 1e-3, backend="cuda"), fullgraph=True)
    expected = F.leave_one_out_projection(z, 1e-3, backend="cuda")
    assert torch.equal(compiled(z), expected)
    gradients = torch.autograd.grad(compiled(z).sum(), z)
    for a, b in zip(gradients, torch.autograd.grad(expected.sum(), z), strict=True):
        assert torch.equal(a, b)


def test_auto_takes_it_up_to_16_modalities() -> None:
    z = embeddings(16, 8, 32, torch.float32)
    assert torch.equal(F.leave_one_out_projection(z), F.leave_one_out_projection(z, backend="cuda"))
    with pytest.raises(RuntimeError, match="leave_one_out_projection: backend 'cuda' cannot be used: M = 17 > 16"):
        F.leave_one_out_projection(embeddings(17, 8, 32, torch.float32), backend="cuda")


def test_a_launch_that_fails_says_which_and_why() -> None:
    from mibfast import _cuda

    absent = torch.cuda.device_count()
    expected = f"leave_one_out_projection: M = 2, N = 3, d = 4, float32, on cuda:{absent}: .*: cudaErrorInvalidDevice"
    with pytest.raises(RuntimeError, match=expected):
        _cuda.leave_one_out(absent, _cuda.Dtype.float32, [64, 128], [4, 4], 3, 4, 0.0, 256, 512, 0)
    # The error is gone with the call that made it.
    assert F.leave_one_out_projection(embeddings(2, 3, 4, torch.float32), backend="cuda").isfinite().all()


_EVERY_WAY = """
import torch
from cuda_graphs import assert_a_graph_repeats
from mibfast import functional as F
for m, n, d, dtype in ((2, 9, 8, torch.float32), (5, 7, 512, torch.float32), (3, 5, 33, torch.bfloat16),
                       (8, 3, 136, torch.float16), (16, 3, 64, torch.float64), (11, 2, 3001, torch.float32)):
    z = [torch.randn(n, d, device="cuda").to(dtype).requires_grad_() for _ in range(m)]
    F.leave_one_out_projection(z, backend="cuda").float().square().sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("there is no compute-sanitizer")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", _EVERY_WAY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "not supported" in done.stdout.lower():
        pytest.skip("compute-sanitizer does not support this machine")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
