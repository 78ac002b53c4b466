"""Symile, Barlow Twins and top-k retrieval in Triton.

Without a GPU the kernels run in Triton's interpreter, with small tiles; it gets products of bfloat16 wrong. What the
compiler makes of them for GPUs is asked apart.

Layouts go in turn within a test, another for each input, and of all subsets of inputs that need gradients those are
left in which any two need both, either or neither.
"""

from __future__ import annotations

import math

import pytest
import torch
from cuda_graphs import assert_a_graph_repeats
from operations import LAYOUTS, OPERATIONS, inputs, strided, subsets, value_and_gradients
from triton_compilation import assert_compiled_without_spills

from mibfast import functional as F
from mibfast.kernels.launch_configuration import shipped
from mibfast.kernels.pairwise import reference as pairwise
from mibfast.kernels.retrieval import reference as retrieval

triton = pytest.importorskip("triton")

from mibfast.kernels.cross_correlation import triton as cross_correlation  # noqa: E402
from mibfast.kernels.multilinear import triton as multilinear  # noqa: E402
from mibfast.kernels.retrieval import triton as top_k  # noqa: E402

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU")
# NumPy, behind the interpreter, warns where infinities are results.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

SYMILE = ["symile_info_nce", "symile_info_nce, four", "symile_info_nce, shuffled"]
LOSSES = [*SYMILE, "barlow_twins"]
# What rounding products, weights and standardised columns to the inputs' dtype costs, in its roundings.
ROUNDINGS = {torch.float32: 16, torch.float16: 8, torch.bfloat16: 8}


def _near(operation, leaves, backend: str = "triton") -> None:
    """Against the reference in float64 on the same rounded inputs: values and gradients, by their norms."""
    truth = value_and_gradients(operation, [x.detach().double() for x in leaves], "reference")
    found = value_and_gradients(operation, leaves, backend)
    tolerance = ROUNDINGS[leaves[0].dtype] * torch.finfo(leaves[0].dtype).eps
    for k, (a, exact, like) in enumerate(zip(found, truth, (None, *leaves), strict=True)):
        assert a.shape == exact.shape
        assert a.dtype == (torch.float32 if like is None else like.dtype)
        assert (a.double() - exact).norm() <= tolerance * max(1.0 if k == 0 else 0.1, exact.norm())


def _shapes(name: str) -> list[tuple[int, int]]:
    if name == "barlow_twins":
        # More columns than rows and fewer, in one range of rows and in several.
        return [(2, 3), (40, 40), (40, 41), (150, 33)]
    # One sample; d in pieces; with three modalities also several blocks of rows.
    return [(1, 5), (5, 20), (19, 6)] if name == "symile_info_nce" else [(1, 5), (5, 20)]


@interpreted
@pytest.mark.parametrize(("name", "n", "d"), [(name, *shape) for name in LOSSES for shape in _shapes(name)])
def test_float32_errs_by_a_few_roundings(name, n, d) -> None:
    _near(OPERATIONS[name], inputs(n, d, torch.float32))


@interpreted
@pytest.mark.parametrize("name", LOSSES)
def test_float16_errs_by_a_few_roundings(name) -> None:
    _near(OPERATIONS[name], inputs(5 if "four" in name else 11, 12, torch.float16))


@interpreted
@pytest.mark.parametrize("size", [(20, 30), (30, 20)])
def test_barlow_twins_in_float64(size) -> None:
    leaves = inputs(*size, torch.float64)
    truth = value_and_gradients(OPERATIONS["barlow_twins"], leaves, "reference")
    for a, b in zip(value_and_gradients(OPERATIONS["barlow_twins"], leaves, "triton"), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@interpreted
@pytest.mark.parametrize("name", SYMILE)
def test_float64_is_refused_with_a_reason(name) -> None:
    with pytest.raises(RuntimeError, match="not for float64"):
        OPERATIONS[name](*inputs(3, 2), backend="triton")


@interpreted
@pytest.mark.parametrize("groups", [1, 2, 9])
@pytest.mark.parametrize("name", SYMILE[:2])
def test_blocks_of_groups_join(name, groups, monkeypatch) -> None:
    """Groups one by one, some of a sample's, and some samples' at a time."""
    n, d = 7, 5
    monkeypatch.setattr(multilinear, "_STATE_BYTES", groups * 8 * n)
    monkeypatch.setattr(multilinear, "_CHUNK_BYTES", groups * n * (64 * 4 + d * 8))
    monkeypatch.setattr(multilinear, "_PROGRAMS", 3)
    _near(OPERATIONS[name], inputs(n, d, torch.float32))


@interpreted
@pytest.mark.parametrize("name", SYMILE[:2])
def test_symile_for_subsets_of_inputs_that_need_gradients(name) -> None:
    full = inputs(2, 3, torch.float32)
    used = [0, 1, 2, 4] if name == SYMILE[0] else [0, 1, 2, 3, 4]
    expected = OPERATIONS[name](*full, backend="triton")
    gradients = torch.autograd.grad(expected, [full[i] for i in used])
    for needed in subsets(len(used)):
        leaves = [x.detach().clone() for x in full]
        for i, need in zip(used, needed, strict=True):
            leaves[i].requires_grad_(need)
        result = OPERATIONS[name](*leaves, backend="triton")
        assert torch.equal(result.detach(), expected.detach())
        assert result.requires_grad == any(needed)
        if any(needed):
            result.backward()
        for i, need, g in zip(used, needed, gradients, strict=True):
            assert (leaves[i].grad is None) == (not need)
            if need:
                torch.testing.assert_close(leaves[i].grad, g, rtol=1e-6, atol=1e-7)


@interpreted
@pytest.mark.parametrize("size", [(8, 12), (12, 8)])
@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_barlow_twins_for_one_view(needed, size) -> None:
    full = inputs(*size, torch.float32)
    gradients = torch.autograd.grad(OPERATIONS["barlow_twins"](*full, backend="triton"), full[:2])
    leaves = [x.detach().requires_grad_(need) for x, need in zip(full, needed, strict=False)]
    F.barlow_twins(*leaves, 0.3, backend="triton").backward()
    for x, need, g in zip(leaves, needed, gradients, strict=True):
        assert torch.equal(x.grad, g) if need else x.grad is None


@interpreted
@pytest.mark.parametrize("name", ["symile_info_nce", "barlow_twins"])
def test_strides(name) -> None:
    plain = inputs(7, 6, torch.float32)
    expected = value_and_gradients(OPERATIONS[name], plain, "triton")
    for turn in range(len(LAYOUTS)):
        for a, b in zip(value_and_gradients(OPERATIONS[name], strided(plain, turn), "triton"), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def _aligned(n: int, d: int, noise: float) -> list[torch.Tensor]:
    one = torch.nn.functional.normalize(torch.randn(n, d), dim=1)
    return [one + noise * torch.randn(n, d) for _ in range(4)]


EXTREMES = {
    "sharp": lambda: [*(torch.nn.functional.normalize(torch.randn(8, 6), dim=1) for _ in range(4)), 1000.0],
    "aligned": lambda: [*_aligned(8, 6, 1e-4), 100.0],
    "small": lambda: [*(1e-4 * torch.randn(8, 6) for _ in range(4)), 10.0],
    "large": lambda: [*(1e4 * torch.randn(8, 6) for _ in range(4)), 1e-12],
    "duplicates": lambda: [*(torch.randn(2, 6).repeat(4, 1) for _ in range(4)), 2.0],
    "zero vectors": lambda: [*(torch.randn(8, 6) * (torch.arange(8) % 3 > 0)[:, None] for _ in range(4)), 2.0],
}


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("name", SYMILE[:2])
def test_symile_in_extremes(name, extreme, dtype) -> None:
    """Scores of several hundred differ by what their own rounding makes of them."""
    *tensors, scale = EXTREMES[extreme]()
    # Of four modalities the groups are as many as pairs of samples.
    leaves = [x[: 8 if name == SYMILE[0] else 4].to(dtype) for x in tensors] + [
        torch.tensor(scale, dtype=torch.float64)
    ]
    truth = value_and_gradients(OPERATIONS[name], [x.double() for x in leaves], "reference")
    found = value_and_gradients(OPERATIONS[name], leaves, "triton")
    largest = scale * math.prod(x.double().norm(dim=1).max() for x in leaves[: 3 if name == SYMILE[0] else 4])
    tolerance = ROUNDINGS[dtype] * torch.finfo(dtype).eps * max(1.0, largest)
    for a, b in zip(found, truth, strict=True):
        assert a.isfinite().all()
        # Smaller numbers than these float16 does not hold.
        assert (a.double() - b).norm() <= tolerance * b.norm() + (1e-7 if a.dtype == torch.float16 else 1e-12) * 8


@interpreted
@pytest.mark.parametrize("name", ["symile_info_nce", "barlow_twins"])
def test_nan_gives_nan(name) -> None:
    leaves = inputs(6, 4, torch.float32)
    with torch.no_grad():
        leaves[1][2, 3] = math.nan
    value, *gradients = value_and_gradients(OPERATIONS[name], leaves, "triton")
    assert value.isnan()
    assert all(g.isnan().any() for g in gradients[:2])


@interpreted
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_barlow_twins_of_constant_and_of_distant_columns(shape) -> None:
    views = [torch.randn(*shape) + 100.0, torch.randn(*shape)]
    views[0][:, 2] = 3.0
    _near(OPERATIONS["barlow_twins"], [*views, *views, torch.tensor(1.0)])
    zeros = torch.zeros(shape, requires_grad=True)
    loss = F.barlow_twins(zeros, zeros, 0.3, backend="triton")
    loss.backward()
    assert loss == shape[1]
    assert (zeros.grad == 0).all()


@interpreted
def test_barlow_twins_joins_ranges_of_rows(monkeypatch) -> None:
    monkeypatch.setattr(cross_correlation, "_LEAST_RANGE", 8)
    monkeypatch.setattr(cross_correlation, "_ROWS", 8)
    leaves = inputs(61, 5, torch.float32)
    assert cross_correlation._ranges(61, 5)[1] == 4
    _near(OPERATIONS["barlow_twins"], leaves)


@interpreted
@pytest.mark.parametrize("name", LOSSES)
def test_results_repeat_bit_for_bit(name) -> None:
    leaves = inputs(5, 5, torch.float32)
    first = value_and_gradients(OPERATIONS[name], leaves, "triton")
    for a, b in zip(value_and_gradients(OPERATIONS[name], leaves, "triton"), first, strict=True):
        assert torch.equal(a, b)


# ---- retrieval -------------------------------------------------------------------------------------------------------

SCORES = ["inner_product", "cosine", "symile", "ridge_projection", "gram_volume", "triangle_area"]


def _candidates(q: int, c: int, d: int, score: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers: scores have no rounding, but the cosine's, and many ties."""
    shape = (q, d) if score in ("inner_product", "cosine") else (q, 2, d)
    return torch.randint(-2, 3, shape).float(), torch.randint(-2, 3, (c, d)).float()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_the_best_candidates_in_order(score, dtype) -> None:
    if score == "ridge_projection" and dtype == torch.bfloat16:
        pytest.skip("its products are bfloat16's, which the interpreter gets wrong")
    # A distance is a difference of unit squares.
    tolerance = 5e-4 if score in ("gram_volume", "triangle_area") else 1e-6
    query, key = (x.to(dtype) for x in _candidates(2, 90, 6, score))
    values, indices = F.top_k(query, key, 20, score=score, backend="triton")
    expected, places = F.top_k(query, key, 20, score=score, backend="reference")
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=tolerance)
    assert values.dtype == torch.float32
    assert indices.dtype == torch.int64
    if score in ("inner_product", "symile"):
        assert torch.equal(indices, places)
    every = retrieval.SCORES[score][0](query, key, 0.0)
    torch.testing.assert_close(every.gather(1, indices), values, rtol=1e-6, atol=tolerance)


@interpreted
@pytest.mark.parametrize(("q", "c", "k"), [(1, 1, 1), (2, 65, 65), (3, 131, 3)])
def test_turns_blocks_and_splits_join(q, c, k, monkeypatch) -> None:
    """Turns of two queries, blocks of 50 candidates, of which the last holds some of the one before, in splits."""
    monkeypatch.setattr(top_k, "_MOST_QUERIES", 2)
    monkeypatch.setattr(top_k, "_BLOCK_BYTES", 50 * 4 * 2)
    monkeypatch.setattr(top_k, "_INTERPRETED_PIECE", 16)
    query, key = _candidates(q, c, 5, "inner_product")
    key[::7] = math.nan
    values, indices = F.top_k(query, key, k, backend="triton")
    expected, places = F.top_k(query, key, k, backend="reference")
    assert torch.equal(indices, places)
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)


@interpreted
def test_infinite_scores_and_both_zeros() -> None:
    key = torch.tensor([[-math.inf], [math.nan], [-0.0], [math.inf], [-math.inf], [0.0], [-1e-40]])
    values, indices = F.top_k(torch.ones(1, 1), key, 7, backend="triton")
    assert indices.tolist() == [[3, 2, 5, 6, 0, 4, 1]]
    assert torch.equal(values, F.top_k(torch.ones(1, 1), key, 6, backend="reference")[0]) or values[0, 6].isnan()


@interpreted
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_cosines_of_zeros_are_zero_and_scale_does_not_matter(scale) -> None:
    query, key = torch.randn(3, 8), torch.randn(30, 8)
    key[7] = 0
    query[2] = 0
    plain, places = F.top_k(query, key, 30, score="cosine", backend="reference")
    values, indices = F.top_k(scale * query, scale * key, 30, score="cosine", backend="triton")
    assert (values[2] == 0).all()
    assert torch.equal(indices, places)
    torch.testing.assert_close(values, plain, rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize(
    ("dtype", "k", "score", "reason"),
    [
        (torch.float64, 1, "cosine", "not for float64"),
        (torch.float32, 1025, "cosine", "at most 1024 candidates a query, got k = 1025"),
        (torch.float64, 1, "gram_volume", "not for float64"),
        (torch.float32, 1, "ridge_projection", "K = 8, and its kernels of all pairs take K <= 7"),
    ],
)
def test_what_retrieval_cannot_take_is_refused_with_a_reason(dtype, k, score, reason) -> None:
    query = torch.ones(2, 3, dtype=dtype) if score == "cosine" else torch.ones(2, 8, 3, dtype=dtype)
    with pytest.raises(RuntimeError, match=reason):
        F.top_k(query, torch.ones(2000, 3, dtype=dtype), k, score=score, backend="triton")


# ---- what the compiler says ------------------------------------------------------------------------------------------

_MULTILINEAR = "mibfast.kernels.multilinear.triton"
_CROSS_CORRELATION = "mibfast.kernels.cross_correlation.triton"
_POINTERS = {
    torch.bfloat16: "*bf16:16",
    torch.float16: "*fp16:16",
    torch.float32: "*fp32:16",
    torch.float64: "*fp64:16",
}


def _of_symile(kernel: str, capability: int, dtype: torch.dtype, lead: torch.dtype, dot: str):
    name = "multilinear.reduce" if kernel == "_reduce" else "multilinear.gradient"
    tile = shipped(name, capability, "half" if dtype.itemsize == 2 else dot, 512)
    types = {
        **dict.fromkeys(("last", "columns", "weights"), _POINTERS[dtype]),
        "lead": _POINTERS[lead],
        **dict.fromkeys(("positives", "scale", "row_states", "column_states", "sums"), "*fp32:16"),
        **dict.fromkeys(("lead_lse", "last_lse", "column_lse"), "*fp64:16"),
        **dict.fromkeys(("lift", "modalities"), "fp32"),
        **dict.fromkeys(("count", "first_group", "n", "diagonal"), "i32"),
        **dict.fromkeys(("d", "lead_stride", "last_stride", "column_stride", "weights_stride"), "i32:16"),
    }
    constants = {
        "ADD": "mibfast.kernels.pairwise.reductions:REDUCTIONS.log_sum_exp.triton.0",
        "FLAGS": 2,
        "SCALE": 1,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "EVEN": True,
        "PRECISION": dot,
    }
    return _MULTILINEAR, kernel, types, constants, {"num_warps": tile.warps, "num_stages": tile.stages}


def _of_products_gradient(dtype: torch.dtype):
    types = {
        **dict.fromkeys(("gradient", "grad_lead", "grad_last"), "*fp32:16"),
        **dict.fromkeys(("lead", "last"), _POINTERS[dtype]),
        **dict.fromkeys(("count", "n", "split_size"), "i32"),
        **dict.fromkeys(("d", "lead_stride", "last_stride"), "i32:16"),
    }
    constants = {"SAMPLES": multilinear._SAMPLES, "DIMENSIONS": multilinear._DIMENSIONS}
    return _MULTILINEAR, "_backward", types, constants, {"num_warps": 4}


def _of_barlow_twins(kernel: str, dtype: torch.dtype):
    wide = "*fp64:16" if dtype == torch.float64 else "*fp32:16"
    types = {
        **dict.fromkeys(("x", "z", "other", "into", "x_kept", "y_kept"), _POINTERS[dtype]),
        **dict.fromkeys(("partial", "inverse", "correlation", "factor", "along"), "*fp64:16"),
        **dict.fromkeys(("n", "d", "range_size", "ranges", "stride"), "i32"),
        "gradient": wide,
    }
    constants = {"ROWS": cross_correlation._ROWS, "COLUMNS": cross_correlation._COLUMNS, "WITHOUT_DIAGONAL": False}
    if kernel == "_sum_products":
        types |= {"x": wide, "y": wide, "divisor": "i32"}
        constants |= {"ROWS": cross_correlation._MATRIX_ROWS, "COLUMNS": cross_correlation._MATRIX_COLUMNS}
    return _CROSS_CORRELATION, kernel, types, constants, {"num_warps": 4}


def _of_retrieval(kept: int):
    types = {
        **dict.fromkeys(("scores", "query_factors", "factors"), "*fp32:16"),
        "kept": "*i64:16",
        **dict.fromkeys(("begin", "size", "split_size", "first_candidate"), "i32"),
    }
    constants = {"KEPT": kept, "PIECE": top_k._PIECE}
    return "mibfast.kernels.retrieval.triton", "_keep_best", types, constants, {"num_warps": 4}


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spills(capability) -> None:
    bf16, fp32 = torch.bfloat16, torch.float32
    choices = [(bf16, bf16, "tf32"), (bf16, fp32, "tf32"), (fp32, fp32, "tf32")]
    cases = [_of_symile(kernel, capability, *each) for kernel in ("_reduce", "_grad_scores") for each in choices]
    cases += [_of_symile(kernel, capability, fp32, fp32, "ieee") for kernel in ("_reduce", "_grad_scores")]
    cases += [_of_products_gradient(bf16), _of_retrieval(1024)]
    kernels = ("_moments", "_standardise", "_sum_products", "_mean_gradients", "_standardise_backward")
    cases += [_of_barlow_twins(kernel, dtype) for kernel in kernels for dtype in (bf16, torch.float64)]
    assert_compiled_without_spills(cases, capability)


# ---- on a GPU --------------------------------------------------------------------------------------------------------


def _on_gpu(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.detach().cuda().requires_grad_() for x in leaves]


def _symile(*leaves, backend=None):
    return F.symile_info_nce(leaves[:3], leaves[4], backend=backend)


GPU_LOSSES = {"symile": _symile, "barlow_twins": OPERATIONS["barlow_twins"]}
ON_A_GPU = pytest.mark.parametrize("name", GPU_LOSSES)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "d"), [(2, 5), (130, 77), (200, 256)])
@ON_A_GPU
def test_on_a_gpu_errs_by_a_few_roundings(name, n, d, dtype) -> None:
    leaves = inputs(n, d, dtype)
    with torch.no_grad():
        for x in leaves[:4]:
            x /= d**0.25
    _near(GPU_LOSSES[name], _on_gpu(leaves))


@pytest.mark.gpu
@ON_A_GPU
def test_on_a_gpu_results_repeat_bit_for_bit(name) -> None:
    leaves = _on_gpu(inputs(500, 200, torch.bfloat16))
    first = value_and_gradients(GPU_LOSSES[name], leaves, "triton")
    for _ in range(5):
        found = value_and_gradients(GPU_LOSSES[name], leaves, "triton")
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))


@pytest.mark.gpu
@ON_A_GPU
def test_on_a_gpu_autocast_and_compile_change_nothing(name) -> None:
    leaves = _on_gpu(inputs(140, 100, torch.bfloat16))
    expected = value_and_gradients(GPU_LOSSES[name], leaves, "triton")
    with torch.autocast("cuda", torch.float16):
        found = value_and_gradients(GPU_LOSSES[name], leaves, "triton")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    compiled = torch.compile(GPU_LOSSES[name], fullgraph=True)
    for a, b in zip(value_and_gradients(compiled, leaves, "triton"), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@ON_A_GPU
def test_on_a_gpu_a_graph_captures_loss_and_gradients(name) -> None:
    leaves = _on_gpu(inputs(140, 100, torch.bfloat16))

    def step() -> list[torch.Tensor]:
        loss = GPU_LOSSES[name](*leaves, backend="triton")
        return [loss.detach(), *torch.autograd.grad(loss, leaves[:2])]

    assert_a_graph_repeats(step, lambda: leaves[0].copy_(leaves[3]))


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_for_the_device() -> None:
    leaves = _on_gpu(inputs(100, 64, torch.float16))
    query, key = torch.randn(50, 32, device="cuda"), torch.randn(5000, 32, device="cuda")

    def step() -> None:
        for loss in GPU_LOSSES.values():
            torch.autograd.grad(loss(*leaves, backend="triton"), leaves[:2])
        F.top_k(query, key, 5, score="cosine", backend="triton")

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("q", "k"), [(1, 1), (300, 10), (5000, 1000)])
def test_on_a_gpu_the_best_candidates_in_order(q, k, dtype) -> None:
    query, key = (x.cuda().to(dtype) for x in _candidates(q, 100_000, 24, "inner_product"))
    values, indices = F.top_k(query, key, k, backend="triton")
    for begin in range(0, q, 500):
        part = slice(begin, begin + 500)
        scores = pairwise.inner_product(query[part], key)
        order = scores.sort(1, descending=True, stable=True)
        assert torch.equal(indices[part], order.indices[:, :k])
        assert torch.equal(values[part], order.values[:, :k])
