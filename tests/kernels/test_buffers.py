"""The memory that large results leave behind for the next step."""

import gc
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch

from mibfast import _buffers
from mibfast import functional as F


@pytest.fixture(autouse=True)
def _nothing_waiting():
    _buffers.release()
    yield
    _buffers.release()


def test_memory_comes_back_when_the_last_view_of_it_is_gone() -> None:
    array = _buffers.empty((1024, 1024), np.float32)
    address = array.ctypes.data
    view = torch.from_numpy(array)[10:20]
    del array
    assert _buffers.empty((1024, 1024), np.float32).ctypes.data != address
    _buffers.release()
    del view
    gc.collect()
    assert _buffers.empty((512, 1024), np.float64).ctypes.data == address


def test_no_two_live_arrays_share_memory() -> None:
    arrays = [_buffers.empty((2**20,), np.float32) for _ in range(6)]
    del arrays[::2]
    arrays += [_buffers.empty((2**20,), np.float32) for _ in range(6)]
    spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_what_waits_stays_within_the_limit(monkeypatch) -> None:
    monkeypatch.setattr(_buffers, "_limit", 8 * 2**20)
    for size in (3, 4, 5, 6):
        _buffers.empty((size * 2**20,), np.uint8)
    assert 0 < _buffers._waiting_bytes <= 8 * 2**20
    assert _buffers._waiting_bytes == sum(b.nbytes for b in _buffers._waiting.values())
    _buffers.empty((9 * 2**20,), np.uint8)
    assert all(b.nbytes != 9 * 2**20 for b in _buffers._waiting.values())


def test_limit_of_zero_keeps_nothing(monkeypatch) -> None:
    monkeypatch.setattr(_buffers, "_limit", 0)
    _buffers.empty((2**20,), np.float32)
    assert not _buffers._waiting


def test_gradients_of_an_earlier_step_are_not_overwritten() -> None:
    mean, logvar = (torch.randn(4096, 256, requires_grad=True) for _ in range(2))
    first = torch.autograd.grad(F.gaussian_kl(mean, logvar), (mean, logvar))
    kept = [g.clone() for g in first]
    for scale in (2.0, 3.0):
        torch.autograd.grad(scale * F.gaussian_kl(mean, logvar), (mean, logvar))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_threads_may_take_and_return_at_the_same_time() -> None:
    failures: list[int] = []

    def work(value: int) -> None:
        for _ in range(200):
            array = _buffers.empty((2**18,), np.float32)
            array[:] = value
            if not (array == value).all():
                failures.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
