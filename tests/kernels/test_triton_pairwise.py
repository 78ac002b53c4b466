"""The pairwise engine in Triton, and InfoNCE and SigLIP on it.

Without a GPU the kernels run in Triton's interpreter, with tiles of 16 rows and 32 columns, so that small inputs have
many; it gets products of bfloat16 wrong. What the compiler makes of them for GPUs is asked apart.

Of losses, dtypes and ways to a gradient any two meet, not all three: which way is taken depends on no dtype. Layouts go
in turn within a test, another for each input.
"""

# ruff: noqa: RUF005 - jit functions build tuples by addition
from __future__ import annotations

import dataclasses
from itertools import product

import pytest
import torch
from cuda_graphs import assert_a_graph_repeats
from operations import LAYOUTS, NAMES, OPERATIONS, inputs, strided, value_and_gradients
from triton_compilation import assert_compiled_without_spills, of_pairwise_engine

from mibfast import functional as F
from mibfast.kernels import launch_configuration
from mibfast.kernels.matrix_product import matrix_product
from mibfast.kernels.pairwise import reference

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from mibfast.kernels.halves import gpu  # noqa: E402
from mibfast.kernels.pairwise import flags as asked  # noqa: E402
from mibfast.kernels.pairwise import gradient_triton, reduce_triton, scores  # noqa: E402
from mibfast.kernels.pairwise import triton as pairwise  # noqa: E402
from mibfast.kernels.pairwise.gradient_triton import Wanted, Weights, chunk_shape  # noqa: E402
from mibfast.kernels.pairwise.pairs_triton import AT_ADDRESS, INVERSE_AT_ADDRESS, Pairs, Scalar  # noqa: E402

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU")
TWO_WAY_TOTALS = asked.TWO_WAY | asked.TOTALS
LOSSES = [name for name in NAMES if name.split(",")[0] in ("info_nce", "siglip", "partial_lse")]


def _errs_no_more_than_plain_pytorch(operation, leaves, absolute=1e-7, of_temperature=1e-7) -> None:
    """Against float64 on the same rounded inputs: three times the reference's own error, and a few roundings."""
    truth = value_and_gradients(operation, [x.detach().double() for x in leaves], "reference")
    plain = value_and_gradients(operation, leaves, "reference")
    found = value_and_gradients(operation, leaves, "triton")
    roundings = (*[absolute] * 5, of_temperature)
    for a, b, exact, rounding in zip(found, plain, truth, roundings[-len(found) :], strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        scale = exact.abs().max()
        allowed = 3 * (b.double() - exact).abs().max() + (8 * torch.finfo(a.dtype).eps + 1e-6) * scale + rounding
        assert (a.double() - exact).abs().max() <= allowed


@interpreted
@pytest.mark.parametrize(("n", "d"), [(1, 5), (33, 12), (35, 20)])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_errs_no_more_than_plain_pytorch(name, n, d) -> None:
    """One pair; several ragged tiles, with d in one piece and in more."""
    if n == 1 and "positive out" in name:
        pytest.skip("needs two keys")
    _errs_no_more_than_plain_pytorch(OPERATIONS[name], inputs(n, d, torch.float32))


@interpreted
@pytest.mark.parametrize("name", LOSSES)
def test_float16_errs_no_more_than_plain_pytorch(name) -> None:
    _errs_no_more_than_plain_pytorch(OPERATIONS[name], inputs(35, 20, torch.float16))


@interpreted
@pytest.mark.parametrize(
    ("name", "dtype", "recomputed"),
    [
        (name, dtype, (i + k) % 2 == 1)
        for i, name in enumerate(["info_nce", "info_nce, symmetric, smoothed, each", "siglip", "siglip, slice"])
        for k, dtype in enumerate((torch.float32, torch.float16))
    ],
    ids=str,
)
def test_gradients_in_chunks_and_recomputed(name, dtype, recomputed, monkeypatch) -> None:
    """Chunks of 16 rows and as many columns or more, which do not divide N; or no chunk at all."""
    monkeypatch.setattr(gradient_triton, "_CHUNK_BYTES", 16 * 16 * dtype.itemsize)
    monkeypatch.setattr(gradient_triton, "_even", lambda count, size: size)
    monkeypatch.setattr(gradient_triton, "_LEAST_RECOMPUTED_COUNT", 1 if recomputed else 1000)
    assert chunk_shape(43, 43, dtype.itemsize) == (16, 16)
    _errs_no_more_than_plain_pytorch(OPERATIONS[name], inputs(43, 20, dtype))


@interpreted
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("name", ["info_nce", "info_nce, symmetric, smoothed, each", "siglip", "siglip, each"])
def test_every_subset_of_inputs_that_need_gradients(name, recomputed, monkeypatch) -> None:
    monkeypatch.setattr(gradient_triton, "_LEAST_RECOMPUTED_COUNT", 1 if recomputed else 1000)
    full = inputs(9, 3, torch.float32)
    used = (0, 1, 4)
    expected = OPERATIONS[name](*full, backend="triton")
    gradients = torch.autograd.grad(expected.sum(), [full[i] for i in used])
    for needed in product([False, True], repeat=3):
        leaves = [x.detach().clone() for x in full]
        for i, need in zip(used, needed, strict=True):
            leaves[i].requires_grad_(need)
        result = OPERATIONS[name](*leaves, backend="triton")
        torch.testing.assert_close(result.detach(), expected.detach(), rtol=1e-6, atol=1e-6)
        assert result.requires_grad == any(needed)
        if any(needed):
            result.sum().backward()
        for i, need, g in zip(used, needed, gradients, strict=True):
            assert (leaves[i].grad is None) == (not need)
            if need:
                torch.testing.assert_close(leaves[i].grad, g, rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize("name", ["info_nce, symmetric", "siglip, each"])
def test_strides(name) -> None:
    plain = inputs(19, 6, torch.float32)
    expected = value_and_gradients(OPERATIONS[name], plain, "triton")
    for turn in range(len(LAYOUTS)):
        for a, b in zip(value_and_gradients(OPERATIONS[name], strided(plain, turn), "triton"), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@interpreted
@pytest.mark.parametrize("name", ["info_nce, symmetric", "siglip"])
def test_upstream_gradients_and_rows_that_are_expanded(name) -> None:
    leaves = inputs(18, 6, torch.float32)
    leaves[1] = leaves[1][:1].expand(18, 6)
    found = value_and_gradients(OPERATIONS[name + ", each" if name == "siglip" else name], leaves, "triton")
    truth = value_and_gradients(OPERATIONS[name + ", each" if name == "siglip" else name], leaves, "reference")
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _unit_rows(n: int, d: int) -> list[torch.Tensor]:
    return [torch.nn.functional.normalize(torch.randn(n, d), dim=1) for _ in range(4)]


EXTREMES = {
    "tau of 1e-3": lambda: [*_unit_rows(40, 8), torch.tensor(1e-3)],
    "aligned, tau of 1e-2": lambda: [
        *[x + 1e-4 * torch.randn(40, 8) for x in [_unit_rows(40, 8)[0]] * 4],
        torch.tensor(1e-2),
    ],
    "small": lambda: [*(1e-4 * torch.randn(40, 8) for _ in range(4)), torch.tensor(0.1)],
    "large": lambda: [*(1e4 * torch.randn(40, 8) for _ in range(4)), torch.tensor(1e7)],
    "duplicates": lambda: [*(torch.randn(2, 8).repeat(20, 1) for _ in range(4)), torch.tensor(0.1)],
    "zero vectors": lambda: [
        *(torch.randn(40, 8) * (torch.arange(40) % 3 > 0)[:, None] for _ in range(4)),
        torch.tensor(0.1),
    ],
}


# One of each way through the kernels: with and without the positive, one way and both, with totals, a softplus.
WAYS = [
    "info_nce",
    "info_nce, positive out",
    "info_nce, symmetric, positive out, each",
    "info_nce, symmetric, smoothed, each",
    "siglip, each",
]


@interpreted
@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("name", WAYS)
def test_extremes(name, case) -> None:
    leaves = EXTREMES[case]()
    # Weights are relative to 1, whatever is left of them: a few roundings of the target's, over the temperature.
    each = 1 if "each" in name else 40
    tau = leaves[4].item()
    absolute = (1e-6 / tau / each, 1e-6 / tau**2) if "tau" in case else (1e-7, 1e-7)
    if name.startswith("siglip"):
        leaves[4] = 1.0 / leaves[4]
    _errs_no_more_than_plain_pytorch(OPERATIONS[name], leaves, *absolute)


@interpreted
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_loss_near_zero_keeps_its_digits(symmetric) -> None:
    """It is no difference of two logits that were rounded apart, which at 100 nats would leave 1e-5, of either sign."""
    a = _unit_rows(40, 8)[0]
    loss = F.info_nce(a, a + 1e-4 * torch.randn(40, 8), 0.01, symmetric=symmetric, reduction="none", backend="triton")
    assert loss.min() > -2e-7
    assert loss.min() < 1e-6


@interpreted
@pytest.mark.parametrize("name", ["info_nce", "info_nce, symmetric, smoothed, each", "siglip", "siglip, each"])
def test_nan_in_gives_nan_out(name) -> None:
    leaves = inputs(37, 6, torch.float32)
    with torch.no_grad():
        leaves[1][20, 3] = torch.nan
    value, of_a, of_b, _, _, of_tau = value_and_gradients(OPERATIONS[name], leaves, "triton")
    assert value.isnan().all()
    assert of_a.isnan().all()
    assert of_b[20].isnan().all()
    assert of_tau.isnan()


@interpreted
def test_nan_in_a_query_stays_in_its_row_one_way() -> None:
    a, b, *_ = inputs(37, 6, torch.float32)
    with torch.no_grad():
        a[20, 3] = torch.nan
    for loss in (
        F.info_nce(a, b, reduction="none", backend="triton"),
        F.siglip(a, b, reduction="none", backend="triton"),
    ):
        assert torch.equal(loss.isnan(), torch.arange(37) == 20)
        (gradient,) = torch.autograd.grad(loss.sum(), a)
        assert torch.equal(gradient.isnan().any(1), torch.arange(37) == 20)


@interpreted
def test_rows_of_minus_infinity() -> None:
    q, b = torch.ones(40, 1), torch.full((40, 1), -torch.inf)
    for symmetric in (False, True):
        pairs = Pairs(q, b[None])
        _, row_lse, column_lse = pairwise.losses(pairwise.INNER_PRODUCT, pairs, asked.TWO_WAY if symmetric else 0, 0.0)
        assert (row_lse == -torch.inf).all()
        assert (column_lse == -torch.inf).all()


@interpreted
@pytest.mark.parametrize("tau", [0.0, -1.0, torch.inf, torch.nan])
def test_a_temperature_tensor_that_is_none_gives_nan(tau) -> None:
    a, b, *_ = inputs(20, 4, torch.float32)
    loss = F.info_nce(a, b, torch.tensor(tau), symmetric=True, backend="triton")
    assert loss.isnan()


@interpreted
@pytest.mark.parametrize("name", ["info_nce, symmetric, smoothed, each", "siglip"])
def test_numbers_at_addresses(name, monkeypatch) -> None:
    """As on a GPU, where a temperature that is a tensor is not read back."""
    leaves = inputs(20, 4, torch.float32)
    expected = value_and_gradients(OPERATIONS[name], leaves, "triton")

    def at_address(x, inverted=False):
        return Scalar(x, (INVERSE_AT_ADDRESS if inverted else AT_ADDRESS).value)

    for dtype in (torch.float32, torch.float16):
        leaves = inputs(20, 4, dtype)
        expected = value_and_gradients(OPERATIONS[name], leaves, "triton")
        with monkeypatch.context() as patch:
            patch.setattr(Scalar, "of", at_address)
            for a, b in zip(value_and_gradients(OPERATIONS[name], leaves, "triton"), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@interpreted
def test_scores_far_apart_have_exponentials_of_their_own() -> None:
    """One reference for a tile would leave rows and columns far below it to the floor of float32."""
    q, b = torch.randn(60, 8), torch.randn(60, 8)
    b[::3] *= 1e-3
    q[:, 0] = 100.0
    b[1::3, 0], b[2::3, 0] = 3.0, -3.0
    q.requires_grad_()
    b.requires_grad_()
    truth = value_and_gradients(F.info_nce, [x.detach().double() for x in (q, b)], "reference")
    for symmetric in (False, True):

        def loss(q, b, backend, symmetric=symmetric):
            return F.info_nce(q, b, 1.0, symmetric=symmetric, reduction="none", backend=backend)

        truth = value_and_gradients(loss, [x.detach().double() for x in (q, b)], "reference")
        found = value_and_gradients(loss, [q, b], "triton")
        plain = value_and_gradients(loss, [q, b], "reference")
        for a, p, exact in zip(found, plain, truth, strict=True):
            error = (p.double() - exact).abs().max()
            assert (a.double() - exact).abs().max() <= 3 * error + 1e-5 * exact.abs().max()


@interpreted
@pytest.mark.parametrize("name", ["info_nce, symmetric, smoothed, each", "siglip"])
def test_results_repeat_bit_for_bit(name) -> None:
    leaves = inputs(70, 20, torch.float32)
    first = value_and_gradients(OPERATIONS[name], leaves, "triton")
    assert all(
        torch.equal(a, b) for a, b in zip(first, value_and_gradients(OPERATIONS[name], leaves, "triton"), strict=True)
    )


@interpreted
def test_a_second_derivative_is_refused() -> None:
    leaves = inputs(5, 4, torch.float32)
    (gradient,) = torch.autograd.grad(F.info_nce(*leaves[:2], backend="triton"), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="info_nce: the second derivative"):
        gradient.square().sum().backward()


@interpreted
@pytest.mark.parametrize("operation", [F.info_nce, F.siglip])
def test_autocast_changes_nothing_and_float64_is_refused(operation) -> None:
    a, b, *_ = inputs(20, 6, torch.float32)
    expected = torch.autograd.grad(operation(a, b, backend="triton"), (a, b))
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(operation(a, b, backend="triton"), (a, b))
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    with pytest.raises(RuntimeError, match="backend 'triton' cannot be used: its kernels are not for float64"):
        operation(a.double(), b.double(), backend="triton")


@gpu
def _volume_like(tiles, row_statistic, column_statistics):
    squared = tiles[0] * tiles[0]
    for k in tl.static_range(1, len(tiles)):
        squared += tiles[k] * tiles[k]
    return column_statistics[0] * (row_statistic - squared) + column_statistics[1]


@gpu
def _volume_like_gradient(tiles, row_statistic, column_statistics, weights):
    squared = tiles[0] * tiles[0]
    for k in tl.static_range(1, len(tiles)):
        squared += tiles[k] * tiles[k]
    of_tiles = ()
    for k in tl.static_range(len(tiles)):
        of_tiles = of_tiles + (-2.0 * column_statistics[0] * tiles[k] * weights,)
    return of_tiles, column_statistics[0] * weights, (weights * (row_statistic - squared), weights)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_score_of_several_tiles_is_added_without_touching_the_loop(symmetric, apart, dtype, monkeypatch) -> None:
    """With statistics of rows and columns, and positives whose scores are known apart; in several chunks."""
    monkeypatch.setattr(gradient_triton, "_CHUNK_BYTES", 2 * 16 * 16 * dtype.itemsize)
    monkeypatch.setattr(gradient_triton, "_even", lambda count, size: size)
    n, d = 37, 5
    q, b = torch.randn(n, d).div(2).to(dtype), torch.randn(2, n, d).div(2).to(dtype)
    row, column, known = torch.randn(n), torch.randn(2, n), torch.randn(n)
    leaves = [x.double().requires_grad_() for x in (q, b, row, column, known)]

    def truth(q, b, row, column, known):
        tile = torch.einsum("id,kjd->kij", q, b)
        s = column[0] * (row[:, None] - tile.square().sum(0)) + column[1]
        if apart:
            s = torch.where(torch.eye(n, dtype=torch.bool), known[:, None], s)
        return reference.info_nce(2.5 * s, symmetric=symmetric, label_smoothing=0.1)

    upstream = torch.linspace(-0.7, 1.3, n, dtype=torch.float64)
    expected = truth(*leaves)
    gradients = torch.autograd.grad(expected, leaves, upstream, allow_unused=True)
    score = scores.Score(_volume_like, _volume_like_gradient, _volume_like, _volume_like_gradient)
    pairs = Pairs(q, b, Scalar.of(2.5), row_statistic=row, column_statistics=column)
    if apart:
        pairs = dataclasses.replace(pairs, positives=known)
    flags = (asked.TWO_WAY if symmetric else 0) | asked.TOTALS
    each, *saved = pairwise.losses(score, pairs, flags, 0.1)
    torch.testing.assert_close(each.double(), expected.detach(), rtol=1e-4, atol=1e-4)
    weights = Weights(upstream.float(), 1.0, *saved, 0.1)
    found = pairwise.losses_gradient(score, pairs, flags, weights, Wanted(statistics=True, sums=1))
    tolerance = 1e-4 if dtype == torch.float32 else 4e-3
    for a, g in zip(found[:5], gradients, strict=True):
        assert (a is None) == (g is None)
        if g is not None:
            torch.testing.assert_close(a.double(), g, rtol=0, atol=tolerance * g.abs().max().item())


@pytest.mark.parametrize(
    ("blocks", "programs"), [((256, 256), 264), ((64, 64), 264), ((96, 96), 132), ((1, 500), 132), ((8, 8), 3)]
)
def test_work_is_divided_evenly(blocks, programs) -> None:
    groups, splits = reduce_triton._division(*blocks, programs)
    steps = triton.cdiv(blocks[0], groups) * triton.cdiv(blocks[1], splits)
    assert groups * splits <= programs
    assert steps <= 1.15 * max(1, blocks[0] * blocks[1] / programs) + 1


def test_the_workspace_is_bounded(monkeypatch) -> None:
    """N = N' = 2^20 on an H200: what the launcher would allocate."""
    n = 2**20
    allocated = []
    monkeypatch.setattr(launch_configuration, "programs", lambda device: 132)
    monkeypatch.setattr(launch_configuration, "capability", lambda device: 90)
    monkeypatch.setattr(torch, "empty", lambda shape, **_: allocated.append(shape) or torch.Tensor())
    monkeypatch.setattr(reduce_triton, "_reduce", {})
    x = torch.zeros(1, 512, dtype=torch.bfloat16).expand(n, 512)
    with pytest.raises(KeyError):
        reduce_triton.reduce(
            pairwise.INNER_PRODUCT, pairwise.LOG_SUM_EXP, Pairs(x, x[None]), asked.TWO_WAY | asked.TOTALS
        )
    assert sum(4 * torch.Size(shape).numel() for shape in allocated) <= 8 * 2**30


def test_chunks_stay_in_the_cache_and_are_as_square_as_they_can_be() -> None:
    assert chunk_shape(32768, 32768, 2) == (4096, 4096)
    assert chunk_shape(2048, 2048, 2) == (2048, 2048)
    for n, n_columns, pair_bytes in ((2**20, 2**20, 2), (100, 2**20, 4), (2**20, 100, 4), (5000, 9000, 6), (1, 1, 2)):
        rows, columns = chunk_shape(n, n_columns, pair_bytes)
        assert 1 <= rows <= n
        assert 1 <= columns <= n_columns
        assert rows * columns * pair_bytes <= 36 * 2**20
        assert rows * columns >= min(n * n_columns, 2**21)


def test_a_product_is_added_to_something() -> None:
    with pytest.raises(ValueError, match="add=True needs out"):
        matrix_product(torch.ones(2, 2), torch.ones(2, 2), add=True)


# ---- what the compiler says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spills(capability) -> None:
    """The heaviest of each kind: both ways with totals, softplus with all sums."""
    of_float32 = {"dtype": torch.float32}
    cases = [
        of_pairwise_engine("_reduce", capability, 512),
        of_pairwise_engine("_reduce", capability, 512, TWO_WAY_TOTALS),
        of_pairwise_engine("_reduce", capability, 128, TWO_WAY_TOTALS),
        of_pairwise_engine("_reduce", capability, 512, 0, "sigmoid_loss"),
        of_pairwise_engine("_reduce", capability, 512, TWO_WAY_TOTALS, how="ieee", **of_float32),
        of_pairwise_engine("_grad_chunk", capability, 512),
        of_pairwise_engine("_grad_chunk", capability, 512, TWO_WAY_TOTALS),
        of_pairwise_engine("_grad_chunk", capability, 512, 0, "sigmoid_loss"),
        of_pairwise_engine("_grad_chunk", capability, 512, TWO_WAY_TOTALS, how="tf32", **of_float32),
        of_pairwise_engine("_recompute", capability, 128, TWO_WAY_TOTALS),
        of_pairwise_engine("_recompute", capability, 64, 0, "sigmoid_loss"),
    ]
    assert_compiled_without_spills(cases, capability)


# ---- on a GPU --------------------------------------------------------------------------------------------------------


def _on_gpu(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.detach().cuda().requires_grad_() for x in leaves]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 5), (300, 77), (1500, 512), (9000, 64), (9001, 200)])
@pytest.mark.parametrize("name", [x for x in LOSSES if "positive out" not in x])
def test_on_a_gpu_errs_no_more_than_plain_pytorch(name, n, d, dtype) -> None:
    leaves = inputs(n, d, dtype)
    with torch.no_grad():
        for x in leaves[:4]:
            x /= d**0.5
    _errs_no_more_than_plain_pytorch(OPERATIONS[name], _on_gpu(leaves))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["info_nce, symmetric, smoothed, each", "siglip"])
@pytest.mark.parametrize("d", [64, 256])
def test_on_a_gpu_results_repeat_bit_for_bit(name, d) -> None:
    leaves = _on_gpu(inputs(9000, d, torch.bfloat16))
    first = value_and_gradients(OPERATIONS[name], leaves, "triton")
    for _ in range(5):
        found = value_and_gradients(OPERATIONS[name], leaves, "triton")
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["info_nce, symmetric", "siglip"])
def test_on_a_gpu_autocast_and_compile_change_nothing(name) -> None:
    leaves = _on_gpu(inputs(700, 200, torch.bfloat16))
    expected = value_and_gradients(OPERATIONS[name], leaves, "triton")
    with torch.autocast("cuda", torch.float16):
        found = value_and_gradients(OPERATIONS[name], leaves, "triton")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    compiled = torch.compile(OPERATIONS[name], fullgraph=True)
    for a, b in zip(value_and_gradients(compiled, leaves, "triton"), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["info_nce, symmetric", "siglip"])
@pytest.mark.parametrize(("n", "d"), [(1000, 300), (9000, 64)])
def test_on_a_gpu_a_graph_captures_loss_and_gradients(name, n, d) -> None:
    leaves = _on_gpu(inputs(n, d, torch.bfloat16))

    def step() -> list[torch.Tensor]:
        loss = OPERATIONS[name](*leaves, backend="triton")
        return [loss.detach(), *torch.autograd.grad(loss, [leaves[0], leaves[1], leaves[4]])]

    def change() -> None:
        leaves[0].copy_(leaves[2])
        leaves[4].fill_(0.3)

    assert_a_graph_repeats(step, change)


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_for_the_device() -> None:
    leaves = _on_gpu(inputs(500, 64, torch.float16))
    value_and_gradients(OPERATIONS["info_nce, symmetric"], leaves, "triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = OPERATIONS["info_nce, symmetric"](*leaves, backend="triton")
        torch.autograd.grad(loss, [leaves[0], leaves[1], leaves[4]])
        torch.autograd.grad(F.siglip(leaves[0], leaves[1], leaves[4], -1.0, backend="triton"), [leaves[0], leaves[4]])
    finally:
        torch.cuda.set_sync_debug_mode("default")
