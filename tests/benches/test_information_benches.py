"""What the benches of information make of made-up results, and the density ratio that they call exact."""

import copy
import sys
from pathlib import Path

import pytest
import torch

# The benches are no part of the package.
sys.path.insert(0, str(Path(__file__).parents[2]))
try:
    from benches import estimator_bias, known_information
finally:
    sys.path.pop(0)


def _estimates(values: list[float], seconds: float) -> dict[str, list[float]]:
    return {"values": values, "seconds": [seconds] * 3}


def _tasks() -> dict[str, dict]:
    return {
        "normal": {
            "truth": 0.4,
            "mibfast": {"infonce": _estimates([0.3, 0.4, 0.5], 1.0), "smile": _estimates([0.4, 0.4, 0.46], 1.0)},
            "peers": {"infonce": _estimates([0.4, 0.3, 0.4], 6.0), "mine": _estimates([0.3, 0.3, 0.3], 5.5)},
        }
    }


def test_nothing_is_missed() -> None:
    assert known_information.missed(_tasks()) == []


@pytest.mark.parametrize(
    ("owner", "estimator", "estimates", "expected"),
    [
        ("mibfast", "smile", _estimates([0.2, 0.2, 0.2], 1.0), "normal: smile is 0.200 nats from the truth"),
        ("mibfast", "infonce", _estimates([0.4, 0.4, 0.4], 2.0), "normal: infonce is 2.8 times as fast"),
        ("peers", "mine", _estimates([0.4, 0.4, 0.4], 4.0), "normal: smile is 4.0 times as fast"),
        (
            "peers",
            "infonce",
            _estimates([0.4, 0.4, 0.41], 6.0),
            "smile is 0.020 nats from the truth on average, the package's infonce 0.003",
        ),
    ],
)
def test_what_is_missed_is_said(owner, estimator, estimates, expected) -> None:
    tasks = copy.deepcopy(_tasks())
    tasks["normal"][owner][estimator] = estimates
    assert expected in known_information.missed(tasks)


def test_the_table_has_means_deviations_and_seconds() -> None:
    tasks = _tasks()
    del tasks["normal"]["peers"]["mine"]
    row = known_information.markdown({"tasks": tasks}).splitlines()[2]
    assert row == "| normal | 0.40 | 0.40 ± 0.10, 1.0 s | 0.42 ± 0.03, 1.0 s | 0.37 ± 0.06, 6.0 s | not run |"


@pytest.mark.parametrize("nats", [2.0, 6.0])
def test_the_exact_density_ratio_has_the_information_as_its_mean(nats) -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = [estimator_bias._density_ratios(nats, *estimator_bias._batch(nats, generator)) for _ in range(40)]
    means = torch.stack([r.diagonal().mean() for r in ratios])
    assert abs(means.mean() - nats) < 0.1
    if nats == 2.0:
        # Its exponential has the mean 1 over independent pairs.
        off = ~torch.eye(estimator_bias.BATCH, dtype=torch.bool)
        assert abs(torch.stack([r[off].exp().mean() for r in ratios]).mean() - 1.0) < 0.1
