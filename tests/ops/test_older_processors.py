"""A part of the numerical tests on code for older processors: results must not depend on the one that runs them.

Numba compiles for the processor that it finds, and PyTorch chooses among what it was compiled for. Of other widths of
vectors sums have another order, and without fused multiply-add products round on their own. Both take the processor
from the environment when a process starts, so these tests start pytest anew. The part is small, since its kernels are
compiled for each processor: vector code of scalar functions, log-sum-exps one way and both, softplus sums,
projections in float64, volumes and Gaussian terms.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

llvm = pytest.importorskip("llvmlite.binding")

# No feature of the processor at hand is added to those of the one that is asked for.
PROCESSORS = {
    "SSE4.2": {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "", "ATEN_CPU_CAPABILITY": "default"},
    "AVX2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "", "ATEN_CPU_CAPABILITY": "avx2"},
}
OPERATIONS = (
    "info_nce, symmetric, smoothed, each",
    "one_vs_all_info_nce",
    "siglip",
    "gram_info_nce",
    "gaussian_kl, prior",
)
TESTS = [
    "kernels/test_vector_math.py",
    "ops/test_extremes.py::test_siglip_of_every_scale_and_bias",
    "ops/test_extremes.py::test_both_ways_with_rows_and_columns_far_from_the_others[64-torch.float32]",
    "ops/test_extremes.py::test_nearly_aligned_modalities_project_exactly_in_float32",
    "ops/test_extremes.py::test_divergences_overflow_where_they_are_beyond_float32_and_not_before[gaussian_kl-cpu]",
    *(f"ops/test_agreement.py::test_error_is_that_of_plain_pytorch[{name}-torch.float32]" for name in OPERATIONS),
]


def _has(feature: str) -> bool:
    return platform.machine() in ("x86_64", "AMD64") and bool(llvm.get_host_cpu_features().get(feature))


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_numerical_tests_pass_on_code_for(processor) -> None:
    if not _has(processor.lower()):
        pytest.skip(f"this processor has no {processor}")
    here = Path(__file__)
    tests = [
        f"{here}::test_code_is_for_the_processor_that_is_asked_for",
        *(f"{here.parents[1]}/{test}" for test in TESTS),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests],
        cwd=here.parents[2],
        env=os.environ | PROCESSORS[processor],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.skipif(os.environ.get("NUMBA_CPU_NAME") not in ("nehalem", "haswell"), reason="no processor is asked for")
def test_code_is_for_the_processor_that_is_asked_for() -> None:
    import numba
    import numpy as np

    @numba.njit(fastmath=True)
    def squares(x):
        total = np.float32(0.0)
        for each in x:
            total += each * each
        return total

    squares(np.ones(99, np.float32))
    (assembly,) = squares.inspect_asm().values()
    is_old = os.environ["NUMBA_CPU_NAME"] == "nehalem"
    assert [name in assembly for name in ("%xmm", "%ymm", "vfmadd", "%zmm")] == [True, not is_old, not is_old, False]
    assert torch.backends.cpu.get_cpu_capability() == ("DEFAULT" if is_old else "AVX2")
