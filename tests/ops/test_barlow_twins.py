"""Barlow Twins: both its forms, columns without variance, and batches spread over processes."""

import math
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mibfast import functional as F
from mibfast import losses

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def _loss_and_gradients(views, weight, backend):
    leaves = [z.detach().clone().requires_grad_() for z in views]
    loss = F.barlow_twins(*leaves, weight, backend=backend)
    loss.backward()
    return loss.detach(), [z.grad for z in leaves]


def _near(views, tolerance, weight=0.0051) -> None:
    truth, exact = _loss_and_gradients([z.double() for z in views], weight, "reference")
    found, gradients = _loss_and_gradients(views, weight, "cpu")
    assert abs(found.item() - truth.item()) <= tolerance * max(1.0, truth.item())
    for a, b in zip(gradients, exact, strict=True):
        assert (a.double() - b).norm() <= tolerance * max(1e-6, b.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "d"), [(3, 2), (64, 63), (64, 64), (64, 65), (32, 700), (900, 40)])
def test_both_forms(n, d, dtype) -> None:
    """Through inner products of samples, and of features."""
    first = torch.randn(n, d, dtype=dtype)
    _near([first, 0.5 * first + torch.randn(n, d, dtype=dtype)], 1e-11 if dtype == torch.float64 else 3e-5)


@BACKENDS
def test_it_is_the_released_formula(backend) -> None:
    a, b = torch.randn(16, 6, dtype=torch.float64), torch.randn(16, 6, dtype=torch.float64)
    norm = torch.nn.BatchNorm1d(6, affine=False, dtype=torch.float64)
    c = norm(a).T @ norm(b) / 16
    expected = (c.diagonal() - 1).pow(2).sum() + 0.1 * (c - c.diagonal().diag()).pow(2).sum()
    torch.testing.assert_close(F.barlow_twins(a, b, 0.1, backend=backend), expected, rtol=1e-12, atol=1e-12)


@BACKENDS
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_constant_columns_and_nan(shape, backend) -> None:
    views = [torch.randn(*shape), torch.randn(*shape)]
    views[0][:, 2] = 3.0
    loss, gradients = _loss_and_gradients(views, 0.3, backend)
    assert bool(loss.isfinite())
    assert all(bool(g.isfinite().all()) for g in gradients)
    loss, gradients = _loss_and_gradients([torch.zeros(shape)] * 2, 0.3, backend)
    assert loss == shape[1]
    assert all((g == 0).all() for g in gradients)
    views[1][1, 4] = math.nan
    loss, gradients = _loss_and_gradients(views, 0.3, backend)
    assert loss.isnan()
    assert all(g.isnan().any() for g in gradients)


@pytest.mark.parametrize("size", [1e-4, 1e4])
@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_scales_and_offsets(size, shape) -> None:
    views = [size * torch.randn(*shape) for _ in range(2)]
    _near(views, 3e-5)
    # Columns far from zero beside their deviation.
    _near([torch.randn(*shape) + 100.0 for _ in range(2)], 1e-4)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_terms_have_gradients_of_their_own(shape) -> None:
    views = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = F.barlow_twins_terms(*views, backend="reference")
    for found, truth in zip(F.barlow_twins_terms(*views, backend="cpu"), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(term, views, retain_graph=True) for term in (found, truth)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def _batch(n: int, d: int) -> torch.Tensor:
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _process(rank: int, processes: int, port: int, shape: tuple[int, int], folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    try:
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(shape[1], shape[1], dtype=torch.float64))
        share = _batch(*shape).chunk(processes, 1)[rank]
        loss = losses.BarlowTwinsLoss(0.2, group=dist.group.WORLD)
        value = loss(list(model(share.flatten(0, 1)).view_as(share)))
        value.backward()
        gradients = [p.grad for p in model.parameters()]
        own = share.clone().requires_grad_()
        F.barlow_twins(own[0], own[1], 0.2, group=dist.group.WORLD).backward()
        torch.save((value.detach(), gradients, own.grad), f"{folder}/{rank}")
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


GROUPS = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")


@GROUPS
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 12), (20, 6)])
def test_a_gathered_batch_has_the_gradient_of_a_single_process(shape, tmp_path) -> None:
    """Under the mean over processes that DistributedDataParallel takes, with different data on each."""
    processes = 2
    mp.spawn(_process, (processes, _free_port(), shape, str(tmp_path)), nprocs=processes)
    torch.manual_seed(0)
    model, batch = torch.nn.Linear(shape[1], shape[1], dtype=torch.float64), _batch(*shape)
    expected = F.barlow_twins(*model(batch), 0.2)
    expected.backward()
    whole = batch.clone().requires_grad_()
    F.barlow_twins(whole[0], whole[1], 0.2).backward()
    for rank in range(processes):
        value, gradients, own = torch.load(tmp_path / str(rank))
        torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
        for found, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-9, atol=1e-12)
        # Before the mean, each process has the gradient of its own rows as often as there are processes.
        torch.testing.assert_close(own / processes, whole.grad.chunk(processes, 1)[rank], rtol=1e-9, atol=1e-12)


UNEQUAL = {
    "rows": ([9, 6, torch.float64], [7, 6, torch.float64], ["[9, 6], torch.float64 on rank 0", "[7, 6]"]),
    "features": ([8, 6, torch.float64], [8, 5, torch.float64], ["[8, 6], torch.float64 on rank 0", "[8, 5]"]),
    "dtypes": ([8, 6, torch.float64], [8, 6, torch.float32], ["torch.float64 on rank 0", "torch.float32 on rank 1"]),
    "one sample": ([1, 6, torch.float64], [1, 6, torch.float64], None),
}


def _unequal_process(rank: int, port: int, folder: str) -> None:
    """All in one group, one after the other: it goes on after what was refused."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    try:
        for name, shapes in UNEQUAL.items():
            n, d, dtype = shapes[rank]
            z = torch.linspace(-1, 1 + rank, n * d, dtype=dtype).view(n, d).requires_grad_()
            try:
                loss = losses.BarlowTwinsLoss(group=dist.group.WORLD)([z, z.detach().flip(0)])
                loss.backward()
                found[name] = loss.item()
            except ValueError as error:
                found[name] = str(error)
        torch.save(found, f"{folder}/{rank}")
    finally:
        dist.destroy_process_group()


@GROUPS
@pytest.mark.slow
def test_unequal_batches_are_refused_on_every_process(tmp_path) -> None:
    """And one sample on each of two processes is a batch of two."""
    mp.spawn(_unequal_process, (_free_port(), str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    for name, (*_, expected) in UNEQUAL.items():
        assert found[0][name] == found[1][name]
        if expected is None:
            assert math.isfinite(found[0][name])
        else:
            assert all(part in found[0][name] for part in expected), found[0][name]
