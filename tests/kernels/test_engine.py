"""The pairwise engine by itself: its plug-in contract, its blocks, and what it holds in memory."""

import importlib
import math
from collections.abc import Iterator

import numba
import numpy as np
import pytest
import torch
from operations import NAMES, OPERATIONS, inputs, value_and_gradients

from mibfast import _threads, functional
from mibfast.kernels import blas
from mibfast.kernels.halves import cpu as half
from mibfast.kernels.pairwise import cpu, engine_cpu, one_tile_cpu, reference, scores, tiles_cpu
from mibfast.kernels.pairwise.engine_cpu import Pairs
from mibfast.kernels.pairwise.rows_cpu import Rows
from mibfast.kernels.pairwise.tiles_cpu import Columns, Gradients

GRAM_VOLUME, INNER_PRODUCT = scores.named("gram_volume"), scores.named("inner_product")
FOLDERS = ("pairwise.tiles_", "critic.", "cross_correlation.", "gaussian.", "multilinear.", "projection.", "volume.")


@half
def _negative_excess(tiles, squared_norm, statistics, scratch):
    """q . b - b . b / 2, whose columns' statistics are b . b: what squared distances amount to, up to the row."""
    out, statistic = scratch[0], statistics[0]
    half = tiles.dtype.type(0.5)
    for j in range(out.size):
        out[j] = tiles[0, j] - half * statistic[j]
    return out


@half
def _grad_negative_excess(tiles, squared_norm, statistics, weights, factor, grad_statistics, scratch):
    half = tiles.dtype.type(0.5)
    for j in range(weights.size):
        tiles[0, j] = weights[j]
        grad_statistics[0, j] -= half * factor * weights[j]
    return tiles.dtype.type(0.0)


@pytest.mark.slow
def test_a_score_is_added_without_touching_the_loop(monkeypatch) -> None:
    score = scores.Score(_negative_excess, _grad_negative_excess, None, None)
    monkeypatch.setattr(scores, "NUMBERED", (*scores.NUMBERED, score))
    q, b = (torch.randn(40, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    statistic = torch.randn(1, 40, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    truth = reference.info_nce(scale * (q @ b.T - statistic / 2), symmetric=True)
    expected = torch.autograd.grad(truth.mean(), (q, b, statistic, scale))

    objective = cpu.Objective(symmetric=True)
    columns = Columns(b.detach()[None], statistic.detach())
    pairs = Pairs(score, Rows(q.detach()), columns, scale=1.7, wants_grad_scale=True)
    losses, row_lse, column_lse = cpu.losses(pairs, objective)
    gradients = Gradients(torch.zeros(40, 7).double(), torch.empty(1, 40, 7).double(), torch.empty(1, 40).double())
    upstream = torch.full((40,), 1 / 40)
    cpu.losses_gradient(pairs, objective, upstream, row_lse, column_lse, gradients)
    torch.testing.assert_close(losses, truth.detach(), rtol=1e-12, atol=1e-12)
    found = (gradients.rows, gradients.columns[0], gradients.statistics, torch.tensor(pairs.grad_scale))
    # The upstream gradient is float32: 1 / 40 is not exact.
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 1600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_and_slots_join(n, dtype) -> None:
    q, b = torch.randn(n, 9, dtype=dtype), torch.randn(n + 3, 9, dtype=dtype)
    columns = Columns(b[None], b.new_empty(0, n + 3))
    losses, row_lse, _ = cpu.losses(Pairs(INNER_PRODUCT, Rows(q), columns, scale=3.0, offset=2), cpu.Objective())
    truth = reference.info_nce(3.0 * reference.inner_product(q.double(), b.double()), 2)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-5
    torch.testing.assert_close(losses.double(), truth, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        row_lse, torch.logsumexp(3.0 * q.double() @ b.double().T, 1), rtol=tolerance, atol=tolerance
    )


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Two threads, which cut any work into four slots, however small it is; how many slots there were."""
    found: list[int] = []

    def cut(work: int, grain: int) -> int:
        found.append(_threads.slots(work, 1))
        return found[-1]

    for folder in FOLDERS:
        monkeypatch.setattr(importlib.import_module(f"mibfast.kernels.{folder}cpu"), "slots", cut)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield found
    torch.set_num_threads(threads)


# Those of fusion are callbacks, which take their slots by a counter of their own.
@pytest.mark.parametrize(
    "name", [n for n in NAMES if not n.startswith(("reparameterised_gaussian", "token_attention"))]
)
def test_slots_of_two_threads_join(name, slots) -> None:
    """Also where the tests run on one thread, which has one slot and joins nothing."""
    leaves = inputs(21, 5)
    found = value_and_gradients(OPERATIONS[name], leaves, "cpu")
    for a, b in zip(found, value_and_gradients(OPERATIONS[name], leaves, "reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert max(slots) == 4


@pytest.mark.parametrize("included", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("n", [2, 40, 1024, 1025])
def test_both_ways_in_one_tile_and_in_more(n, smoothing, included) -> None:
    """Up to 1024 rows the gradient comes from the tile of the loss, with more from a second sweep."""
    if smoothing and not included:
        return
    q, b = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    options = {"positive_in_denominator": included, "symmetric": True, "label_smoothing": smoothing}
    columns = Columns(b.detach().float()[None], torch.empty(0, n))
    assert engine_cpu.fits_one_tile(Pairs(INNER_PRODUCT, Rows(q.detach().float()), columns)) == (n <= 1024)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, b)]
        loss = functional.info_nce(*leaves, 0.4, **options, backend="cpu")
        truth = functional.info_nce(q, b, 0.4, **options, backend="reference")
        assert abs(loss.item() - truth.item()) <= tolerance * max(1.0, abs(truth.item()))
        expected = torch.autograd.grad(truth, (q, b))
        for a, e in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
            assert (a.double() - e).norm() <= tolerance * e.norm()


@pytest.mark.parametrize("n", [2, 900, 1100])
def test_several_tiles_both_ways_in_one_block_and_in_more(n) -> None:
    """16 MiB hold two tiles and the scores of 1182 rows in float32 and of 836 in float64; 1024 rows are the most."""
    z = [torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    columns = Columns(torch.empty(2, n, 6), torch.empty(1, n))
    rows = Rows(torch.empty(n, 6), wants_norms=True)
    assert engine_cpu.fits_one_tile(Pairs(GRAM_VOLUME, rows, columns)) == (n <= 1024)
    truth = functional.gram_info_nce(z[0], z[1:], 2.0, backend="reference")
    expected = torch.autograd.grad(truth, z)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in z]
        loss = functional.gram_info_nce(leaves[0], leaves[1:], 2.0, backend="cpu")
        assert abs(loss.item() - truth.item()) <= tolerance * max(1.0, abs(truth.item()))
        for a, e in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
            assert (a.double() - e).norm() <= tolerance * e.norm()


def test_a_score_of_one_tile_that_is_not_the_tile_keeps_its_scores() -> None:
    columns = Columns(torch.empty(1, 1500, 6), torch.empty(1, 1500))
    assert not engine_cpu.fits_one_tile(Pairs(GRAM_VOLUME, Rows(torch.empty(1500, 6)), columns))
    assert engine_cpu.fits_one_tile(Pairs(GRAM_VOLUME, Rows(torch.empty(1000, 6)), columns))


def test_tiles_stay_small_however_many_columns() -> None:
    for n_columns in (64, 4096, 65536, 2**20):
        rows = tiles_cpu.tile_rows(4 * n_columns)
        assert rows >= 16
        assert rows * 4 * n_columns <= max(tiles_cpu._LARGEST_TILE_BYTES, 16 * 4 * n_columns)


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.T.contiguous().T, lambda x: x.repeat(1, 2)[:, :9]])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_rows_that_nothing_is_done_to_are_read_where_they_lie(scale, layout) -> None:
    source = torch.randn(40, 9)
    rows = Rows(layout(source))
    rows.multiply(scale)
    rows.start(16)
    block = rows.block(8, 20)
    assert torch.equal(block, scale * source[8:20])
    # Read in place: a block that is a copy would not follow.
    assert (block.data_ptr() == source[8:].data_ptr()) == (scale == 1.0 and layout(source) is source)


@pytest.mark.parametrize("n", [1, 513, 2100])
@pytest.mark.parametrize("score", ["inner_product", "projection"])
def test_blocks_make_up_all_scores(score, n) -> None:
    q, b = torch.randn(n, 9), torch.randn(2 if score == "projection" else 1, 30, 9)
    columns = Columns(b, b.new_empty(0, 30))
    pairs = Pairs(scores.named(score), Rows(q), columns)
    found = np.concatenate([block.copy() for _, block in engine_cpu.blocks(pairs)])
    assert np.array_equal(found, engine_cpu.dense(pairs).numpy())


def test_columns_far_apart_are_summed_with_a_maximum_each(slots) -> None:
    """One reference for all columns would leave the low ones to the floor of float32 exponentials."""
    q, b = torch.randn(300, 8), torch.randn(300, 8)
    b[::3] *= 1e-3
    q[:, 0] = 100.0
    b[1::3, 0] = 3.0
    b[2::3, 0] = -3.0
    columns = Columns(b[None], b.new_empty(0, 300))
    _, _, column_lse = cpu.losses(Pairs(INNER_PRODUCT, Rows(q), columns), cpu.Objective(symmetric=True))
    truth = torch.logsumexp(q.double() @ b.double().T, 0)
    assert truth.max() - truth.min() > 500
    torch.testing.assert_close(column_lse, truth, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_of_minus_infinity_and_nan(symmetric) -> None:
    q = torch.ones(6, 1, dtype=torch.float64)
    b = torch.tensor([[-math.inf]] * 6, dtype=torch.float64)
    columns = Columns(b[None], b.new_empty(0, 6))
    objective = cpu.Objective(symmetric=symmetric)
    _, row_lse, column_lse = cpu.losses(Pairs(INNER_PRODUCT, Rows(q), columns), objective)
    assert (row_lse == -math.inf).all()
    assert (column_lse == -math.inf).all()
    b[2] = math.nan
    _, row_lse, column_lse = cpu.losses(Pairs(INNER_PRODUCT, Rows(q), columns), objective)
    assert row_lse.isnan().all()
    assert np.array_equal(column_lse.isnan().numpy(), np.arange(6) == 2) or not symmetric


def test_blocks_of_many_columns_are_shorter() -> None:
    """Blocks hold at most 16 MiB, however many columns there are, and no more rows than there are."""
    for n, count, height in ((6000, 1000, 3072), (6000, 4096, 1024), (40, 1000, 40)):
        columns = Columns(torch.randn(1, count, 4), torch.empty(0, count))
        pairs = Pairs(INNER_PRODUCT, Rows(torch.randn(n, 4)), columns)
        found = [(first, block.shape) for first, block in engine_cpu.blocks(pairs)]
        assert found[0] == (0, (height, count))
        assert sum(shape[0] for _, shape in found) == n


@pytest.mark.parametrize(
    "row_lse",
    [
        [0.5, -math.inf, 3.0],
        [-math.inf, -math.inf],
        [-math.inf, math.nan],
        [math.inf, -math.inf],
        [math.inf, math.inf],
        [math.inf, math.nan, 1.0],
    ],
    ids=str,
)
def test_the_log_sum_exp_of_rows_is_that_of_torch(row_lse) -> None:
    found = torch.tensor(cpu.log_sum_exp_of_rows(np.array(row_lse)), dtype=torch.float64)
    expected = torch.logsumexp(torch.tensor(row_lse, dtype=torch.float64), 0)
    torch.testing.assert_close(found, expected, equal_nan=True)


# Each score and way is a kernel to compile; other options are numbers to it.
FEW = [
    ("inner_product", {}),
    ("inner_product", {"label_smoothing": 0.2}),
    ("inner_product", {"positive_in_denominator": False, "symmetric": True}),
    ("inner_product", {"symmetric": True, "label_smoothing": 0.2}),
    ("squared_distance", {"symmetric": True}),
    ("lorentz", {"symmetric": True, "label_smoothing": 0.2}),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("score", "options"), FEW)
def test_few_pairs_in_one_call_are_the_sweep_of_many(score, options, normalize, dtype, monkeypatch) -> None:
    """The mean of InfoNCE and every gradient, by the kernel that takes all pairs at once, and by the engine's tiles."""
    n, spare = (23, 0) if options.get("label_smoothing") else (23, 4)
    query, key = torch.randn(n, 9, dtype=dtype), torch.randn(n + spare, 9, dtype=dtype)
    leaves = [x.requires_grad_() for x in (query, key, torch.tensor(0.7, dtype=torch.float64))]

    def step() -> list[torch.Tensor]:
        loss = functional.info_nce(
            *leaves, score=score, normalize=normalize, offset=spare // 2, backend="cpu", **options
        )
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    few = step()
    monkeypatch.setattr(one_tile_cpu, "serves_embeddings", lambda *_: False)
    one_tile = step()
    monkeypatch.setattr(one_tile_cpu, "serves", lambda *_: False)
    many = step()
    eps = torch.finfo(dtype).eps
    for results in (few, one_tile):
        for x, y in zip(results, many, strict=True):
            torch.testing.assert_close(x, y, rtol=64 * eps, atol=64 * eps)


def test_few_pairs_of_rows_with_gaps_and_of_other_layouts() -> None:
    """Rows that are read where they lie, at any distance from each other, and columns that are not contiguous."""
    query, key = torch.randn(12, 7), torch.randn(12, 7)
    expected = functional.info_nce(query, key, normalize=True, backend="reference")
    wide = torch.full((12, 10), torch.nan)
    wide[:, :7] = query
    for rows in (wide[:, :7], query.T.contiguous().T, query[:1].expand(12, 7)):
        loss = functional.info_nce(
            rows.clone(memory_format=torch.preserve_format).requires_grad_(), key, normalize=True
        )
        assert loss.isfinite()
    x, y = wide[:, :7].requires_grad_(), key.T.contiguous().T.requires_grad_()
    loss = functional.info_nce(x, y, normalize=True, backend="cpu")
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (x, y)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-20, 1.0, 1e18, 1e38])
def test_rows_of_every_magnitude_are_made_unit(scale, dtype) -> None:
    """As `unit` makes them; in float64 down to 1e-300 and up to 1e300."""
    if dtype == torch.float64:
        scale = scale**7
    x = (scale * torch.randn(6, 5, dtype=torch.float64).clamp(-2, 2)).to(dtype)
    x[2] = 0.0
    y = torch.randn(6, 5, dtype=dtype)
    x, y = x.requires_grad_(), y.requires_grad_()
    results = []
    for backend in ("cpu", "reference"):
        loss = functional.info_nce(x, y, 0.5, normalize=True, symmetric=True, backend=backend)
        results.append([loss.detach(), *torch.autograd.grad(loss, (x, y))])
    for ours, plain in zip(*results, strict=True):
        assert ours.isnan().sum() == plain.isnan().sum()
        finite = plain.isfinite() & ours.isfinite()
        torch.testing.assert_close(ours[finite], plain[finite], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rest", [0.0, 1e-30, 1.0])
def test_a_row_with_a_nan_is_no_row_of_zeros(rest) -> None:
    query = torch.full((5, 4), rest)
    query[3, 0] = torch.nan
    for leaf in (query, query.clone().requires_grad_()):
        assert functional.info_nce(leaf, torch.randn(5, 4), normalize=True, backend="cpu").isnan()
    assert functional.siglip(query, torch.randn(5, 4), normalize=True, reduction="none").isnan().tolist() == [
        number == 3 for number in range(5)
    ]


def test_a_blas_that_does_not_multiply_is_not_used(monkeypatch) -> None:
    """The loss is then the engine's, of products by torch."""
    query, key = (torch.randn(9, 5, requires_grad=True) for _ in range(2))
    expected = functional.info_nce(query, key, backend="cpu")
    monkeypatch.setattr(blas, "address", lambda dtype: 0)
    assert not one_tile_cpu.serves_embeddings(query, key)
    torch.testing.assert_close(functional.info_nce(query, key, backend="cpu"), expected)


def test_the_three_products_are_those_of_torch() -> None:
    @numba.njit
    def products(gemm, a, b, g, rows, columns, out):
        blas.rows_by_rows(gemm, a, b, out)
        blas.weighted_rows(gemm, g, b, rows)
        blas.weighted_columns(gemm, g, a, columns)

    for dtype in (torch.float32, torch.float64):
        if not blas.address(dtype):
            pytest.skip("PyTorch's BLAS is not found by its symbols")
        a, b, g = (torch.randn(shape, dtype=dtype) for shape in ((17, 5), (9, 5), (17, 9)))
        results = [torch.empty(shape, dtype=dtype) for shape in ((17, 5), (9, 5), (17, 9))]
        products(blas.address(dtype), *(x.numpy() for x in (a, b, g, *results)))
        for x, y in zip(results, (g @ b, g.T @ a, a @ b.T), strict=True):
            torch.testing.assert_close(x, y)
