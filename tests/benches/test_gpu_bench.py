"""The GPU's bench, as far as it goes without one: rows run small, wrong results are not timed, claims are judged."""

from functools import partial

import pytest
import torch

from benches import gpu
from benches.gpu_rows import GPURow, moving, rows
from benches.rows import OURS, Bar
from mibfast import functional as F


def row(**changes: object) -> GPURow:
    def inputs() -> list[torch.Tensor]:
        return [torch.randn(6, 4).requires_grad_() for _ in range(2)]

    settings = {
        "title": "a row",
        "inputs": inputs,
        "checked": inputs,
        "contenders": {OURS: F.info_nce, "eager": partial(F.info_nce, backend="reference")},
        "truth": partial(F.info_nce, backend="reference"),
        "floors": {"copy": moving(64.0)},
        "bars": [Bar("eager", least=0.0), Bar("copy", least=1e9)],
        "flops": (1e6, 2e6),
        "moved_bytes": 64.0,
        **changes,
    }
    return GPURow(**settings)


@pytest.mark.parametrize("name", ["lse-forward-256-scale-100", "lse-backward-512", "leave-one-out-backward-cuda"])
def test_rows_run_small(name: str) -> None:
    found = gpu._measured(rows(512)[name], on_gpu=False)
    assert found["seconds"][OURS] > 0
    assert found["errors"][OURS] < 0.05


def test_what_is_wrong_is_not_timed() -> None:
    for wrong in (lambda q, k: F.info_nce(q, k) * 1.01, lambda q, k: F.info_nce(q, k) * torch.nan):
        with pytest.raises(ValueError, match="wrong: the error is"):
            gpu._measured(row(contenders={OURS: wrong, "eager": F.info_nce}), on_gpu=False)
    # A gradient alone that is wrong is seen as well.
    with pytest.raises(ValueError, match="wrong: the error is"):
        gpu._measured(row(contenders={OURS: lambda q, k: F.info_nce(q, k.detach()) + 0 * k.sum()}), on_gpu=False)


def test_a_peer_without_memory_leaves_the_others_to_go_on() -> None:
    def greedy(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        if timing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB")
        return F.info_nce(q, k)

    def inputs() -> list[torch.Tensor]:
        timing.append(True)
        return [torch.randn(6, 4).requires_grad_() for _ in range(2)]

    timing: list[bool] = []
    found = gpu._measured(row(inputs=inputs, contenders={OURS: F.info_nce, "eager": greedy}), on_gpu=False)
    assert found["failed"] == {"eager": "CUDA out of memory. Tried to allocate 16 GiB"}
    assert found["claims"][0] == {"claim": "eager runs out of memory", "ratio": None, "met": True}


def test_claims_and_the_table() -> None:
    found = gpu._measured(row(most_seconds=1e-12), on_gpu=False)
    assert [claim["met"] for claim in found["claims"]] == [True, False, False]
    results = {
        "date": "2026-01-01",
        "machine": {"device": "A GPU", "cuda": "13.0"},
        "versions": {"torch": "2.11.0", "triton": "3.6.0"},
        "rows": {"info-nce-256": found},
        "missing": {"one-vs-all": "not started within 500 s"},
    }
    text = gpu.markdown(results)
    assert "missed: time of copy over mibfast's >= 1e+09" in text
    assert "| not run | | | | | not started within 500 s |" in text


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu.main(["--rows", "one-vs-all"])
    assert "no GPU here" in capsys.readouterr().err
