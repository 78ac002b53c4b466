"""Every test starts from the same random numbers, and Triton's kernels run in its interpreter where there is no GPU."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Read when a kernel's file is imported, so before any is.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
