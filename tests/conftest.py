"""Every test starts from the same random numbers, and Triton's kernels run in its interpreter where there is no GPU."""

import importlib.util
import os

# Read when torch is imported: threads that wait sleep, since those that spin take the cores from whoever computes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from mibfast.kernels import interpreter

if not torch.cuda.is_available():
    # Read when a kernel's file is imported, so before any is.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def _interpreter_of_new_numpy() -> None:
    """For tests that launch a kernel without the operation that imports it."""
    if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
        interpreter.mend()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: a worker a core up to eight, none on one core; threads of each share what is left of the cores."""
    cores = len(os.sched_getaffinity(0))
    workers = min(cores, 8)
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // workers))
    return workers if cores > 1 else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
