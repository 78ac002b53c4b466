"""GRAM, TRIANGLE and OVA-IB's ridge projections of all pairs in Triton.

Without a GPU the kernels run in Triton's interpreter, with small tiles; it gets products of bfloat16 wrong. What the
compiler makes of them for GPUs is asked apart.

OVA-IB's bases take the interpreter a fifth of a second a sample, so where their number is of no account there are two
or three, and with a ridge, which is no matter of tiles, five. Layouts go in turn within a test, another for each input.
Of all subsets of inputs that need gradients those are left in which any two need both, either or neither. Factors are
compiled in one dtype a size, since they compute in float64 whatever they read. The CPU's kernels are held to the
reference as these are, so the two are not compared again.
"""

# ruff: noqa: RUF005 - jit functions build tuples by addition
from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cuda_graphs import assert_a_graph_repeats
from operations import LAYOUTS, OPERATIONS, inputs, strided, subsets, value_and_gradients
from torch import Tensor
from triton_compilation import Compilation, assert_compiled_without_spills, of_pairwise_engine

from mibfast import functional as F

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from mibfast.kernels.launch_configuration import LARGEST_K, LARGEST_WHOLE_D, whole_vectors_tile  # noqa: E402
from mibfast.kernels.pairwise import flags as asked  # noqa: E402
from mibfast.kernels.pairwise import gradient_triton, scores  # noqa: E402
from mibfast.kernels.pairwise.pairs_triton import AT_ADDRESS, INVERSE_AT_ADDRESS, Scalar  # noqa: E402

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU")
# NumPy, behind the interpreter, warns where infinities are results.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
LOSSES = [
    "one_vs_all_info_nce, pairwise",
    "one_vs_all_info_nce, pairwise, each",
    "one_vs_all_info_nce, pairwise, ridge",
    "gram_info_nce",
    "gram_info_nce, two modalities",
    "gram_info_nce, four modalities",
    "triangle_info_nce",
    "triangle_info_nce, area",
]
DENSE = [
    "projection_score",
    "projection_score, ridge",
    "gram_volume",
    "gram_volume, fewer anchors",
    "triangle_area",
    "triangle_area, squared, more anchors",
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _of_a_tile(
    c, norms, statistics, weights, out, VALUE: tl.constexpr, GRADIENT: tl.constexpr, K: tl.constexpr, S: tl.constexpr
):
    """The score, the K gradients of tiles, that of the norm and the S of statistics: [2 + K + S, 16, 16]."""
    row, column = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    at = row * 16 + column
    tiles = ()
    for k in tl.static_range(K):
        tiles = tiles + (tl.load(c + k * 256 + at),)
    of_columns = ()
    for s in tl.static_range(S):
        of_columns = of_columns + (tl.load(statistics + s * 16 + column),)
    norm = tl.load(norms + row)
    tl.store(out + at, VALUE(tiles, norm, of_columns))
    of_tiles, of_norm, grad_statistics = GRADIENT(tiles, norm, of_columns, tl.load(weights + at))
    for k in tl.static_range(K):
        tl.store(out + (1 + k) * 256 + at, of_tiles[k])
    tl.store(out + (1 + K) * 256 + at, of_norm + tl.zeros([16, 16], tl.float32))
    for s in tl.static_range(S):
        tl.store(out + (2 + K + s) * 256 + at, grad_statistics[s])


def _ridge_projection(c, norm, statistics):
    k = len(c)
    v = c.new_zeros(k, k, *c.shape[1:])
    places = torch.triu_indices(k, k).tolist()
    for entry, (i, j) in enumerate(zip(*places, strict=True)):
        v[i, j] = v[j, i] = statistics[entry]
    c = norm * c
    return (c * c).sum(0) / torch.einsum("kij,klij,lij->ij", c, v, c).sqrt()


def _gram_volume(c, norm, statistics):
    return statistics[0] * (norm - (c * c).sum(0)).sqrt()


def _squared_triangle_area(c, norm, statistics):
    return statistics[0] * (norm - 2 * c[1] + statistics[1] - c[0] ** 2)


def _triangle_area(c, norm, statistics):
    return statistics[0] * (norm - 2 * c[1] + statistics[1] - c[0] ** 2).sqrt()


def _squared_distance(c, norm, statistics):
    return c[0] - 0.5 * norm - 0.5 * statistics[0]


def _lorentz(c, norm, statistics):
    return -torch.acosh(torch.sqrt((1 + norm) * (1 + statistics[0])) - c[0])


CASES = [
    *(("ridge_projection", _ridge_projection, k, k * (k + 1) // 2) for k in (1, 2, 3)),
    *(("gram_volume", _gram_volume, k, 1) for k in (1, 2, 3)),
    ("triangle_area", _triangle_area, 2, 2),
    ("squared_triangle_area", _squared_triangle_area, 2, 2),
    ("squared_distance", _squared_distance, 1, 1),
    ("lorentz", _lorentz, 1, 1),
]
IDS = [f"{name}, {k} tiles" for name, _, k, _ in CASES]


def _found(score, c, norms, statistics, weights):
    out = torch.empty(2 + len(c) + len(statistics), 16, 16, device=DEVICE)
    value, gradient = scores.named(score).triton
    arguments = (x.float().contiguous().to(DEVICE) for x in (c, norms, statistics, weights))
    _of_a_tile[(1,)](*arguments, out, VALUE=value, GRADIENT=gradient, K=len(c), S=len(statistics))
    return out.cpu()


def _arguments(k, s):
    generator = torch.Generator().manual_seed(k)
    shapes = ((k, 16, 16), (16,), (s, 16), (16, 16))
    c, norms, statistics, weights = (torch.rand(x, generator=generator).double() for x in shapes)
    # Far from where a root ends: V is near the identity, and norms are above the squared tiles.
    statistics = 0.2 * statistics + 0.05
    if s == k * (k + 1) // 2:
        statistics[(torch.triu_indices(k, k).diff(dim=0) == 0)[0]] += 1.0
    return c - 0.5, norms + 2.0, statistics, weights - 0.5


@pytest.mark.parametrize(("score", "formula", "k", "s"), CASES, ids=IDS)
def test_scores_and_their_gradients_are_those_of_the_formula(score, formula, k, s) -> None:
    c, norms, statistics, weights = _arguments(k, s)
    leaves = [c, norms[:, None].expand(16, 16), statistics[:, None, :].expand(s, 16, 16)]
    leaves = [x.clone().requires_grad_() for x in leaves]
    value = formula(*leaves)
    gradients = torch.autograd.grad(value, leaves, weights, allow_unused=True, materialize_grads=True)
    expected = torch.cat([value.detach()[None], gradients[0], gradients[1][None], gradients[2]])
    torch.testing.assert_close(_found(score, c, norms, statistics, weights).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("score", "formula", "k", "s"),
    [case for case in CASES if case[0] != "squared_distance"],
    ids=[x for x in IDS if not x.startswith("squared_distance")],
)
def test_zero_has_gradient_zero_and_nan_stays(score, formula, k, s) -> None:
    """Of all but the squared distance, whose gradient depends on no tile."""
    c, norms, statistics, weights = _arguments(k, s)
    zero = _found(score, 0 * c, 0 * norms, 0 * statistics, weights)
    assert (zero == 0).all()
    c[0, 3, 5] = torch.nan
    found = _found(score, c, norms, statistics, weights)
    assert found[0, 3, 5].isnan()
    assert found[1 : 1 + k, 3, 5].isnan().any()
    assert found[:, :3].isfinite().all()


# ---- operations ------------------------------------------------------------------------------------------------------


def _errs_no_more_than_plain_pytorch(operation, leaves: list[Tensor], absolute: float = 1e-6) -> None:
    """Against float64 on the same rounded inputs: three times the reference's own error, and a few roundings."""
    truth = value_and_gradients(operation, [x.detach().double() for x in leaves], "reference")
    plain = value_and_gradients(operation, leaves, "reference")
    for a, b, exact in zip(value_and_gradients(operation, leaves, "triton"), plain, truth, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        # In bfloat16 operands are of it.
        rounding = torch.finfo(torch.bfloat16 if leaves[0].dtype == torch.bfloat16 else a.dtype).eps
        allowed = 3 * (b.double() - exact).abs().max() + (8 * rounding + 1e-6) * exact.abs().max() + absolute
        assert (a.double() - exact).abs().max() <= allowed


def _sizes(name: str) -> list[tuple[int, int]]:
    """Bases are whitened a sample a program, which the interpreter takes its time for."""
    if name in LOSSES[:3]:
        return [(2, 3), (5 if "ridge" in name else 18, 20)]
    # Four vectors of three dimensions span a volume of zero, which float32 finds to the square root of its rounding on
    # one processor, and exactly on another: no measure of a kernel.
    few = (2, 4) if "four" in name else (2, 3)
    return [(1, 5), few, (5 if "ridge" in name else 18, 20) if name in DENSE[:2] else (35, 20)]


@interpreted
@pytest.mark.parametrize(("name", "n", "d"), [(name, *size) for name in [*LOSSES, *DENSE] for size in _sizes(name)])
def test_float32_errs_no_more_than_plain_pytorch(name, n, d) -> None:
    _errs_no_more_than_plain_pytorch(OPERATIONS[name], inputs(n, d, torch.float32))


@interpreted
@pytest.mark.parametrize("name", [*LOSSES, *DENSE])
def test_float16_errs_no_more_than_plain_pytorch(name) -> None:
    _errs_no_more_than_plain_pytorch(
        OPERATIONS[name], inputs(*((7, 12) if name in LOSSES[:3] else (19, 12)), torch.float16)
    )


@interpreted
@pytest.mark.parametrize("name", ["one_vs_all_info_nce, pairwise", "gram_info_nce", "triangle_info_nce, area"])
def test_chunks_join(name, monkeypatch) -> None:
    """Chunks of 16 x 16 pairs, of which there are ragged ones; statistics and positives' gradients come from each."""
    monkeypatch.setattr(gradient_triton, "_CHUNK_BYTES", 16 * 16 * 2 * 4)
    monkeypatch.setattr(gradient_triton, "_even", lambda count, size: size)
    _errs_no_more_than_plain_pytorch(OPERATIONS[name], inputs(19 if name in LOSSES[:3] else 37, 7, torch.float32))


@interpreted
@pytest.mark.parametrize("name", ["one_vs_all_info_nce, pairwise", "gram_info_nce", "triangle_info_nce"])
def test_subsets_of_inputs_that_need_gradients(name) -> None:
    full = inputs(2, 2, torch.float32)
    used = (0, 1, 2, 4)
    expected = OPERATIONS[name](*full, backend="triton")
    gradients = torch.autograd.grad(expected, [full[i] for i in used])
    for needed in subsets(4):
        leaves = [x.detach().clone() for x in full]
        for i, need in zip(used, needed, strict=True):
            leaves[i].requires_grad_(need)
        result = OPERATIONS[name](*leaves, backend="triton")
        torch.testing.assert_close(result.detach(), expected.detach(), rtol=1e-6, atol=1e-6)
        assert result.requires_grad == any(needed)
        if any(needed):
            result.backward()
        for i, need, g in zip(used, needed, gradients, strict=True):
            assert (leaves[i].grad is None) == (not need)
            if need:
                torch.testing.assert_close(leaves[i].grad, g, rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize("name", ["one_vs_all_info_nce, pairwise", "gram_volume", "triangle_info_nce"])
def test_strides(name) -> None:
    plain = inputs(3 if name in LOSSES[:3] else 19, 6, torch.float32)
    expected = value_and_gradients(OPERATIONS[name], plain, "triton")
    for turn in range(len(LAYOUTS)):
        for a, b in zip(value_and_gradients(OPERATIONS[name], strided(plain, turn), "triton"), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def _unit_rows(n: int, d: int) -> list[Tensor]:
    return [torch.nn.functional.normalize(torch.randn(n, d), dim=1) for _ in range(4)]


EXTREMES = {
    "tau of 1e-3": lambda: [*_unit_rows(9, 8), torch.tensor(1e-3)],
    "aligned to 1e-4": lambda: [x + 1e-4 * torch.randn(9, 8) for x in [_unit_rows(9, 8)[0]] * 4],
    "small": lambda: [1e-4 * torch.randn(9, 8) for _ in range(4)],
    "large": lambda: [1e4 * torch.randn(9, 8) for _ in range(4)],
    "duplicates": lambda: [torch.randn(2, 8).repeat(5, 1) for _ in range(4)],
    "alike": lambda: [torch.randn(9, 8)] * 4,
    "zero vectors": lambda: [torch.randn(9, 8) * (torch.arange(9) % 3 > 0)[:, None] for _ in range(4)],
}
# A temperature that a loss's scores are worth at a scale of 1e4 or 1e-4, which multiplies volumes of three vectors.
TAUS = {"small": {"gram": 1e-12, "triangle": 1e-8}, "large": {"gram": 1e12, "triangle": 1e8}}


@interpreted
@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("name", ["one_vs_all_info_nce, pairwise", "gram_info_nce", "triangle_info_nce, area"])
def test_extremes(name, case) -> None:
    """Errors are of a loss of scores over the temperature, which a score's last digit moves by 1e-7 over it."""
    leaves = EXTREMES[case]()
    if len(leaves) == 4:
        leaves.append(torch.tensor(TAUS.get(case, {}).get(name.split("_")[0], 0.1)))
    truth = value_and_gradients(OPERATIONS[name], [x.double() for x in leaves], "reference")
    plain = value_and_gradients(OPERATIONS[name], leaves, "reference")
    for a, b, exact in zip(value_and_gradients(OPERATIONS[name], leaves, "triton"), plain, truth, strict=True):
        assert a.isfinite().all()
        error = (b.double() - exact).norm()
        assert (a.double() - exact).norm() <= 3 * error + 2e-5 * exact.norm()


@interpreted
def test_positives_keep_their_digits_where_modalities_align() -> None:
    """Volumes of 1e-6, which a difference of float32 squares would lose."""
    one = _unit_rows(12, 8)[0].double()
    views = [(one + 1e-6 * torch.randn(12, 8)).float().requires_grad_() for _ in range(3)]
    wide = [x.detach().double().requires_grad_() for x in views]
    for function in (lambda a, b, c, **o: F.gram_volume(a, [b, c], **o), F.triangle_area):
        found, truth = function(*views, backend="triton").diagonal(), function(*wide, backend="reference").diagonal()
        torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
        gradients = torch.autograd.grad(found.sum(), views)
        for g, exact in zip(gradients, torch.autograd.grad(truth.sum(), wide), strict=True):
            torch.testing.assert_close(g.double(), exact, rtol=1e-5, atol=1e-6 * exact.abs().max().item())


@interpreted
@pytest.mark.parametrize("name", ["one_vs_all_info_nce, pairwise", "gram_info_nce", "triangle_info_nce"])
def test_nan_in_gives_nan_out(name) -> None:
    leaves = inputs(19, 6, torch.float32)
    with torch.no_grad():
        leaves[1][7, 3] = torch.nan
    value, of_a, of_b, *_ = value_and_gradients(OPERATIONS[name], leaves, "triton")
    assert value.isnan()
    assert of_a.isnan().all()
    assert of_b[7].isnan().any()


@interpreted
@pytest.mark.parametrize("name", ["one_vs_all_info_nce, pairwise, each", "gram_info_nce", "projection_score"])
def test_results_repeat_bit_for_bit(name) -> None:
    leaves = inputs(9 if name.startswith("gram") else 3, 5, torch.float32)
    first = value_and_gradients(OPERATIONS[name], leaves, "triton")
    for a, b in zip(value_and_gradients(OPERATIONS[name], leaves, "triton"), first, strict=True):
        assert torch.equal(a, b)


@interpreted
@pytest.mark.parametrize("name", ["gram_info_nce", "triangle_info_nce", "one_vs_all_info_nce, pairwise"])
def test_numbers_at_addresses(name, monkeypatch) -> None:
    """As on a GPU, where a temperature that is a tensor is not read back; one that is none gives NaN."""
    leaves = inputs(3 if name in LOSSES[:3] else 19, 4, torch.float32)
    expected = value_and_gradients(OPERATIONS[name], leaves, "triton")

    def at_address(x, inverted=False):
        kind = INVERSE_AT_ADDRESS if inverted else AT_ADDRESS
        return Scalar(torch.as_tensor(x), kind.value)

    monkeypatch.setattr(Scalar, "of", at_address)
    for a, b in zip(value_and_gradients(OPERATIONS[name], leaves, "triton"), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert OPERATIONS[name](*leaves[:4], torch.tensor(-1.0), backend="triton").isnan()


@interpreted
def test_what_the_kernels_cannot_take_is_said() -> None:
    z = torch.randn(LARGEST_K + 2, 2, 3)
    too_many = f"K = {LARGEST_K + 1}, and its kernels of all pairs take K <= {LARGEST_K}"
    for function in (F.gram_volume, F.gram_info_nce):
        with pytest.raises(RuntimeError, match=too_many):
            function(z[0], list(z[1:]), backend="triton")
    with pytest.raises(RuntimeError, match=too_many):
        F.projection_score(z[0], z[1:].transpose(0, 1), backend="triton")
    with pytest.raises(RuntimeError, match="d = 4097, and its kernels of K = 2 hold vectors of d <= 4096"):
        F.triangle_area(*torch.randn(3, 2, 4097), backend="triton")
    wide = torch.randn(8, 2, 513)
    with pytest.raises(RuntimeError, match="d = 513, and its kernels of K = 7 hold vectors of d <= 512"):
        F.gram_volume(wide[0], list(wide[1:]), backend="triton")
    for function in (F.triangle_area, F.triangle_info_nce):
        with pytest.raises(RuntimeError, match="not for float64"):
            function(*z[:3].double(), backend="triton")


@interpreted
@pytest.mark.parametrize("others", [1, LARGEST_K])
def test_fewest_and_most_vectors(others) -> None:
    """All that the kernels take; with more than d of them, too, which span none."""
    for d in (12, 3):
        z = list(torch.randn(others + 1, 18, d))
        wide = [x.double() for x in z]
        volumes = F.gram_volume(wide[0], wide[1:], backend="reference")
        found = F.gram_volume(z[0], z[1:], backend="triton").double()
        torch.testing.assert_close(found, volumes, rtol=1e-3, atol=1e-4 * (1 + volumes.max().item()))
        cosines = F.projection_score(wide[0], torch.stack(wide[1:], 1), 0.1, backend="reference")
        found = F.projection_score(z[0], torch.stack(z[1:], 1), 0.1, backend="triton").double()
        torch.testing.assert_close(found, cosines, rtol=1e-5, atol=1e-5)


# ---- what the compiler says ------------------------------------------------------------------------------------------

# Tiles and statistics of columns; two and four are the most that share a size of tiles.
_TILES = {
    "gram_volume": [(1, 1), (2, 1), (LARGEST_K, 1)],
    "ridge_projection": [(k, k * (k + 1) // 2) for k in (2, 4, LARGEST_K)],
    "triangle_area": [(2, 2)],
    "squared_triangle_area": [(2, 2)],
    "squared_distance": [(1, 1)],
    "lorentz": [(1, 1)],
}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("score", _TILES)
def test_sweeps_compile_without_spills(score, capability) -> None:
    """Both ways with totals, as volumes are swept, or one way, and as dense scores."""
    flags = 0 if score == "ridge_projection" else asked.TWO_WAY | asked.TOTALS
    cases = [
        of_pairwise_engine(kernel, capability, 512, flags, "log_sum_exp", dtype, how, score, *tiles)
        for tiles in _TILES[score]
        for dtype, how in ((torch.bfloat16, "half"), (torch.float32, "ieee"))
        for kernel in ("_reduce", "_grad_chunk", "_score")
    ]
    assert_compiled_without_spills(cases, capability)


def _factors(kernel: str, m: int, d: int, element: str, operand: str) -> Compilation:
    backward = kernel.endswith("_backward")
    tile = whole_vectors_tile(d, (2 if backward else 1) * m)
    types: dict[str, str | list[str]] = {
        "others": [f"*{element}:16"] * (m - 1),
        "strides": ["i32:16"] * (m - 1),
        "anchor": f"*{element}:16",
        "origin": "*fp32:16",
        "anchor_stride": "i32:16",
        "count": "i32",
        "paired": "i32",
        "d": "i32:16",
        "operands": f"*{operand}:16",
        **dict.fromkeys(("statistics", "positives", "grad_operands", "grad_statistics"), "*fp32:16"),
        **dict.fromkeys(("grad_positives", "grad_anchor"), "*fp32:16"),
        "grad_others": ["*fp32:16"] * (m - 1),
    }
    constants = {"K": m - 1, "SIGN": -1.0, "SQUARED": True, "SAMPLES": tile.rows, "DEPTH": tile.columns}
    return "mibfast.kernels.volume.triton", kernel, types, constants, {"num_warps": tile.warps}


@pytest.mark.parametrize("capability", [80, 90])
def test_factors_compile_without_spills(capability) -> None:
    """Of bfloat16 at common d, and at the largest d of each number of others of float32, which takes more registers."""
    common, largest = ((1, 100), (2, 512), (7, 256)), LARGEST_WHOLE_D.items()
    sizes = [("gram", k + 1, d, "bf16") for k, d in common] + [("gram", k + 1, d, "fp32") for k, d in largest]
    sizes += [("triangle", 3, LARGEST_WHOLE_D[2], element) for element in ("bf16", "fp32")]
    cases = [
        (f"_{kind}_factors{way}", m, d, element, element) for kind, m, d, element in sizes for way in ("", "_backward")
    ]
    assert_compiled_without_spills([_factors(*case) for case in cases], capability)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU")
def test_the_interpreter_runs_in_a_process_of_its_own() -> None:
    """Where nothing of the tests helps it."""
    code = (
        "import torch; from mibfast import functional as F; a, b = torch.eye(3, 4), torch.ones(3, 4);"
        "torch.testing.assert_close(F.gram_volume(a, [b], backend='triton'), F.gram_volume(a, [b], backend='cpu'))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- on a GPU --------------------------------------------------------------------------------------------------------


def _on_gpu(n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    leaves = [torch.nn.functional.normalize(x.detach(), dim=1).to(dtype) for x in inputs(n, d)[:4]]
    return [x.cuda().requires_grad_() for x in (*leaves, torch.tensor(0.1, dtype=torch.float64))]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "d"), [(2, 5), (300, 77), (1500, 512)])
@pytest.mark.parametrize("name", [*LOSSES, *DENSE])
def test_on_a_gpu_errs_no_more_than_plain_pytorch(name, n, d, dtype) -> None:
    _errs_no_more_than_plain_pytorch(OPERATIONS[name], _on_gpu(n, d, dtype), 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["one_vs_all_info_nce, pairwise", "gram_info_nce", "triangle_info_nce"])
def test_on_a_gpu_autocast_compile_and_repetition_change_nothing(name) -> None:
    leaves = _on_gpu(5000, 200, torch.bfloat16)
    expected = value_and_gradients(OPERATIONS[name], leaves, "triton")
    for _ in range(3):
        with torch.autocast("cuda", torch.float16):
            found = value_and_gradients(OPERATIONS[name], leaves, "triton")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    compiled = torch.compile(OPERATIONS[name], fullgraph=True)
    for a, b in zip(value_and_gradients(compiled, leaves, "triton"), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["one_vs_all_info_nce, pairwise", "gram_info_nce", "triangle_info_nce"])
def test_on_a_gpu_a_graph_captures_loss_and_gradients(name) -> None:
    """Which it could not of anything that waits for the device."""
    leaves = _on_gpu(900, 100, torch.bfloat16)

    def step() -> list[Tensor]:
        loss = OPERATIONS[name](*leaves, backend="triton")
        return [loss.detach(), *torch.autograd.grad(loss, [*leaves[:3], leaves[4]])]

    assert_a_graph_repeats(step, lambda: (leaves[0].copy_(leaves[3]), leaves[4].fill_(0.3)))
