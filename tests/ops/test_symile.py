"""Symile: its two kinds of negatives, the sweep over all combinations, and where it usually breaks."""

import math

import pytest
import torch

from mibfast import functional as F
from mibfast import losses
from mibfast.kernels.multilinear import cpu

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
NEGATIVES = pytest.mark.parametrize("negatives", ["all", "shuffled"])


def _loss_and_gradients(views, scale, backend, **options):
    leaves = [z.detach().clone().requires_grad_() for z in views]
    s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    if options.get("negatives") == "shuffled":
        options["generator"] = torch.Generator().manual_seed(5)
    loss = F.symile_info_nce(leaves, s, backend=backend, **options)
    loss.backward()
    return loss.detach(), [*(z.grad for z in leaves), s.grad]


def _near(views, scale, tolerance, **options) -> None:
    """The kernels in the views' dtype against the reference in float64, on the same numbers."""
    truth, exact = _loss_and_gradients([z.double() for z in views], scale, "reference", **options)
    found, gradients = _loss_and_gradients(views, scale, "cpu", **options)
    assert abs(found.item() - truth.item()) <= tolerance * max(1.0, abs(truth.item()))
    for a, b in zip(gradients, exact, strict=True):
        assert (a.double() - b).norm() <= tolerance * max(1e-3, b.norm())


@BACKENDS
def test_two_modalities_are_symmetric_info_nce(backend) -> None:
    a, b = (torch.randn(30, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    symile = F.symile_info_nce([a, b], scale, backend=backend)
    clip = F.info_nce(a, b, 1 / scale, symmetric=True, backend=backend)
    torch.testing.assert_close(symile, clip, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(clip, (a, b, scale))
    for found, e in zip(torch.autograd.grad(symile, (a, b, scale)), expected, strict=True):
        torch.testing.assert_close(found, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("m", "n", "d"), [(2, 900, 5), (3, 1, 4), (3, 2, 1), (3, 90, 6), (4, 1, 2), (4, 23, 5)])
def test_blocks_and_slots_join(m, n, d, kept, monkeypatch) -> None:
    """Several blocks of several slots, their scores kept for the gradient or formed again."""
    monkeypatch.setattr(cpu, "_MOST_ROWS", 700)
    monkeypatch.setattr(cpu, "_LEAST_ROWS", 700)
    monkeypatch.setattr(cpu, "_GRAIN", 64)
    if not kept:
        monkeypatch.setattr(cpu, "_KEPT_BYTES", 0)
    views = [torch.randn(n, d, dtype=torch.float64) for _ in range(m)]
    scale = torch.tensor(0.8, dtype=torch.float64)
    loss, *gradients = cpu.symile_with_gradient(views, scale, [True] * (m + 1))
    leaves = [x.clone().requires_grad_() for x in (*views, scale)]
    truth = cpu_reference_of(leaves)
    assert abs(loss.item() - truth.item()) < 1e-12 * max(1.0, truth.item())
    expected = torch.autograd.grad(truth, leaves)
    for found, e in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, e, rtol=1e-10, atol=1e-13)


def cpu_reference_of(leaves):
    return F.symile_info_nce(leaves[:-1], leaves[-1], backend="reference")


def test_tiles_stay_small_however_many_combinations() -> None:
    for n in (16, 192, 512, 1024, 2048):
        sweep = cpu._Sweep([torch.zeros(n, 8)] * 3, 1.0, keep=True)
        assert sweep._tile.nbytes <= max(cpu._KEPT_BYTES, 4 * n * cpu._LEAST_ROWS)
        assert sweep._products.nbytes <= 4 * 8 * cpu._MOST_ROWS


@NEGATIVES
@BACKENDS
def test_order_of_modalities_does_not_matter(negatives, backend) -> None:
    views = [torch.randn(9, 5, dtype=torch.float64) for _ in range(3)]
    if negatives == "all":
        orders = [views, [views[2], views[0], views[1]]]
        found = [F.symile_info_nce(z, 1.5, backend=backend) for z in orders]
    else:
        # The same shuffle for every use of a modality, so that its place does not matter.
        shuffle = torch.stack([torch.randperm(9) for _ in range(3)])
        found = []
        for order in ((0, 1, 2), (2, 0, 1)):
            rows = [shuffle[k] for m in order for k in order if k != m]
            options = {"negatives": negatives, "permutations": torch.stack(rows).view(3, 2, 9), "backend": backend}
            found.append(F.symile_info_nce([views[k] for k in order], 1.5, **options))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@BACKENDS
def test_a_generator_makes_shuffles_repeatable(backend) -> None:
    views = [torch.randn(20, 6) for _ in range(5)]

    def loss(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return F.symile_info_nce(views, 2.0, negatives="shuffled", generator=generator, backend=backend)

    assert torch.equal(loss(1), loss(1))
    assert not torch.equal(loss(1), loss(2))
    assert not torch.equal(*(F.symile_info_nce(views, 2.0, negatives="shuffled", backend=backend) for _ in range(2)))


@pytest.mark.parametrize("m", [2, 3, 6])
def test_shuffled_negatives_of_any_number_of_modalities(m) -> None:
    views = [torch.randn(600, 12, dtype=torch.float64) for _ in range(m)]
    _near(views, 0.9, 1e-11, negatives="shuffled")
    _near([z.float() for z in views], 0.5, 2e-4, negatives="shuffled")


@NEGATIVES
@BACKENDS
def test_one_sample_has_no_negatives(negatives, backend) -> None:
    views = [torch.randn(1, 4) for _ in range(3)]
    loss, gradients = _loss_and_gradients(views, 3.0, backend, negatives=negatives)
    assert loss == 0
    assert all((g == 0).all() for g in gradients)


@NEGATIVES
@BACKENDS
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_duplicates_and_scales_of_embeddings(size, backend, negatives) -> None:
    view = size * torch.randn(24, 8)
    loss, gradients = _loss_and_gradients([view] * 3, 10.0, backend, negatives=negatives)
    assert bool(loss.isfinite())
    assert all(bool(g.isfinite().all()) for g in gradients)


@NEGATIVES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_large_scales(scale, dtype, negatives) -> None:
    first = torch.nn.functional.normalize(torch.randn(40, 16, dtype=dtype), dim=1)
    views = [torch.nn.functional.normalize(first + 0.1 * torch.randn(40, 16, dtype=dtype), dim=1) for _ in range(3)]
    _near(views, scale, 1e-10 if dtype == torch.float64 else 1e-6 * scale, negatives=negatives)


@NEGATIVES
@BACKENDS
def test_zero_vectors(backend, negatives) -> None:
    views = [torch.randn(12, 6) for _ in range(3)]
    views[1][3] = 0
    loss, gradients = _loss_and_gradients(views, 2.0, backend, negatives=negatives)
    assert bool(loss.isfinite())
    assert all(bool(g.isfinite().all()) for g in gradients)
    loss, gradients = _loss_and_gradients([torch.zeros(5, 4)] * 3, 2.0, backend, negatives=negatives)
    assert abs(loss.item() - math.log(25 if negatives == "all" else 5)) < 1e-6
    assert all((g == 0).all() for g in gradients)


@NEGATIVES
@BACKENDS
@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_is_not_lost(position, backend, negatives) -> None:
    views = [torch.randn(12, 6) for _ in range(3)]
    views[position][5, 1] = math.nan
    loss, gradients = _loss_and_gradients(views, 2.0, backend, negatives=negatives)
    assert loss.isnan()
    assert all(g.isnan().any() for g in gradients)
    assert F.symile_info_nce([torch.eye(3)] * 3, torch.tensor(math.nan), negatives=negatives, backend=backend).isnan()


@NEGATIVES
@BACKENDS
def test_an_infinite_positive_is_no_loss_of_zero(backend, negatives) -> None:
    views = [torch.ones(1, 3) for _ in range(3)]
    views[0][0, 1] = math.inf
    assert _loss_and_gradients(views, 2.0, backend, negatives=negatives)[0].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_samples_far_from_the_others(position, kept, dtype, monkeypatch) -> None:
    """Log-sum-exps of one modality far below the others': a reference for all columns does not reach them."""
    if not kept:
        monkeypatch.setattr(cpu, "_KEPT_BYTES", 0)
    views = [torch.randn(20, 6, dtype=torch.float64).abs() for _ in range(3)]
    views[position][4] *= -60
    views[position][7] *= 90
    views[(position + 1) % 3][2] *= 30
    views = [z.to(dtype) for z in views]
    _near(views, 1.0, 1e-11 if dtype == torch.float64 else 1e-5)


@BACKENDS
def test_a_negative_scale_tensor_is_taken_as_it_is(backend) -> None:
    views = [torch.randn(7, 5, dtype=torch.float64) for _ in range(3)]
    flipped = F.symile_info_nce([-views[0], *views[1:]], 0.7, backend=backend)
    found = F.symile_info_nce(views, torch.tensor(-0.7, dtype=torch.float64), backend=backend)
    torch.testing.assert_close(found, flipped, rtol=1e-12, atol=1e-12)


def test_the_module_normalises_where_asked() -> None:
    views = [3 * torch.randn(8, 5) for _ in range(3)]
    unit = [torch.nn.functional.normalize(z, dim=1) for z in views]
    torch.testing.assert_close(losses.SymileLoss(4.0)(views), F.symile_info_nce(unit, 4.0))
    torch.testing.assert_close(losses.SymileLoss(4.0, normalize=False)(views), F.symile_info_nce(views, 4.0))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    shuffled = losses.SymileLoss(4.0, negatives="shuffled", generator=generators[0])
    expected = F.symile_info_nce(unit, 4.0, negatives="shuffled", generator=generators[1])
    torch.testing.assert_close(shuffled(views), expected)


def _in_slabs(views, scale, samples):
    """The loss of unit views, a slab [N] * (M - 1) of scores at a time, and its gradients in rows `samples` of each."""
    m, n = len(views), len(views[0])
    axes = "abc"[: m - 1]
    rows_of_slab = ",".join(f"{axis}z" for axis in axes)

    def slab(x, others):
        return scale * torch.einsum(f"{rows_of_slab}->{axes}", x * others[0], *others[1:])

    # No score of unit views exceeds the scale in size.
    sums = torch.zeros(m, n, dtype=torch.float64)
    for i, x in enumerate(views[0]):
        e = torch.exp_(slab(x, views[1:]) - scale)
        sums[0, i] = e.sum()
        for axis in range(m - 1):
            sums[axis + 1] += e.sum([k for k in range(m - 1) if k != axis])
    lse = sums.log() + scale
    gradients = []
    for k, view in enumerate(views):
        others, lse_others = [*views[:k], *views[k + 1 :]], [*lse[:k], *lse[k + 1 :]]
        rows = []
        for i in samples:
            s = slab(view[i], others)
            weights = (s - lse[k, i]).exp()
            for axis, lse_axis in enumerate(lse_others):
                weights += (s - lse_axis.view([-1 if j == axis else 1 for j in range(m - 1)])).exp()
            positive = torch.stack([x[i] for x in others]).prod(0)
            rows.append(torch.einsum(f"{axes},{rows_of_slab}->z", weights, *others) - m * positive)
        gradients.append(scale / (m * n) * torch.stack(rows))
    positives = scale * torch.stack(views).prod(0).sum(1)
    return (lse.mean(0) - positives).mean(), gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("m", "n"), [(3, 250), (4, 60)])
def test_more_combinations_than_are_kept(m, n, dtype) -> None:
    """Blocks of the size that large batches get, many and the last one short, their scores formed again for gradients.

    More samples only add blocks of this kind, which are summed in float64: what grows with N stays in this many.
    """
    scale, d, samples = 6.0, 8, [0, 1, n // 2, n - 1]
    views = [torch.nn.functional.normalize(torch.randn(n, d, dtype=dtype), dim=1).requires_grad_() for _ in range(m)]
    sweep = cpu._Sweep(views, scale, keep=True)
    blocks = len(sweep.blocks())
    assert not sweep.kept
    assert sweep.size % n != 0
    assert blocks > 10
    assert sweep.blocks()[-1][1] < sweep.size
    loss = F.symile_info_nce(views, scale, backend="cpu")
    loss.backward()
    truth, exact = _in_slabs([z.detach().double() for z in views], scale, samples)
    # In roundings u, and for sums in any order: a score of unit views is a sum of d products of m numbers and a factor,
    # its exponential is within 16. A log-sum-exp sums n of them at a time, or a block's rows for columns.
    score = scale * (d + m)
    lse = score + 16 + max(n, sweep.size)
    # Doubled, since in float64 the truth rounds as much.
    u = torch.finfo(dtype).eps
    assert abs(loss.item() - truth.item()) <= u * (lse + score + truth.item())
    # The softmaxes of all anchors, m in all, times numbers of at most one; they are summed over n columns and n rows a
    # modality, or over a block's rows and then over blocks.
    weight = score + lse + 16 + max(m * n, sweep.size + blocks)
    for z, expected in zip(views, exact, strict=True):
        assert (z.grad[samples].double() - expected).abs().max() <= u * scale / n * weight
