"""Repeatability, threads, forked workers."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mibfast import _threads, losses
from mibfast import functional as F


def _step() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(700, 48, generator=generator).requires_grad_() for _ in range(3)]
    value = losses.OVAIBLoss()(views) + losses.PairwiseCLIPLoss()(views) + losses.SigLIPLoss()(views)
    value = value + losses.GRAMLoss()(views) + losses.TRIANGLELoss()(views)
    # On threads that no Python is run on.
    sample, divergence = F.reparameterised_gaussian(views[0], views[1], views[2])
    tokens = torch.stack(views, 1)
    value = value + sample.sum() + divergence.mean() + F.token_attention(tokens, tokens, tokens).square().mean()
    value.backward()
    return [value.detach(), *(z.grad for z in views)]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_results_repeat_bit_for_bit() -> None:
    first = _step()
    assert all(_same(_step(), first) for _ in range(5))


def test_threads_get_the_same_bits() -> None:
    first, failures = _step(), []

    def work() -> None:
        for _ in range(4):
            if not _same(_step(), first):
                failures.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class _Steps(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, _: int) -> torch.Tensor:
        return _step()[0]


def test_forked_workers() -> None:
    """After the parent has used its threads, which a forked child does not have."""
    expected = _step()[0]
    loader = DataLoader(_Steps(), batch_size=2, num_workers=2, multiprocessing_context="fork")
    torch.testing.assert_close(torch.cat(list(loader)), expected.expand(4), rtol=1e-5, atol=1e-5)


def test_one_thread() -> None:
    expected, threads = _step()[0], torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.testing.assert_close(_step()[0], expected, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("openmp", [True, False])
def test_pool_runs_every_slot_once_and_raises_the_first_failure(openmp, monkeypatch) -> None:
    if not openmp:
        monkeypatch.setattr(_threads, "_openmp", None)
    done: list[int] = []
    _threads.parallel(done.append, 9)
    assert sorted(done) == list(range(9))

    def fail(slot: int) -> None:
        if slot == 3:
            raise ZeroDivisionError("slot 3")

    with pytest.raises(ZeroDivisionError, match="slot 3"):
        _threads.parallel(fail, 9)


def test_compiled_kernels_without_openmp_give_the_same_bits(monkeypatch) -> None:
    expected = _step()
    monkeypatch.setattr(_threads, "_openmp", None)
    assert _same(_step(), expected)


def test_slots_are_never_smaller_than_the_grain() -> None:
    assert _threads.slots(10, 6) == 1
    for work in (12, 100, 10**6):
        assert 1 <= _threads.slots(work, 6) <= work // 6


@pytest.mark.slow
def test_a_process_that_compiles_and_one_that_does_not_give_the_same_bits(tmp_path) -> None:
    """A kernel that calls another one, not inlined, runs another copy of it where it was just compiled."""
    program = (
        "import torch; from mibfast import functional as F; torch.manual_seed(0);"
        "a = torch.randn(300, 64, requires_grad=True); b = torch.randn(300, 64);"
        "kl = F.gaussian_kl(a, b, reduction='none');"
        "sample, divergence = F.reparameterised_gaussian(a, a, b); tokens = a.view(150, 2, 64);"
        "attended = F.token_attention(tokens, tokens, tokens);"
        "scores = F.projection_score(a, b.view(150, 2, 64), ridge=0.3);"
        "results = [sample.square(), divergence, attended.square(), kl, scores, F.info_nce(a, b, symmetric=True)];"
        "sum(x.sum() for x in results).backward();"
        "print(*(x.detach().numpy().tobytes().hex() for x in (*results, a.grad)))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    found = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        ).stdout
        for _ in range(2)
    ]
    assert found[0] == found[1]
