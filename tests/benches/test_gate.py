"""How the gate of the benches judges made-up results."""

import copy
import sys
from pathlib import Path

import pytest

# The benches are no part of the package.
sys.path.insert(0, str(Path(__file__).parents[2]))
try:
    from benches import gate
finally:
    sys.path.pop(0)


def _results(*, faster=8.0, slower=1.2, workspace=20.0):
    claims = [
        gate._claim(">= 6x faster than eager", 6.0, faster),
        gate._claim("<= 1.4x the time of 8 GEMMs", 1.4, slower),
        gate._claim("workspace <= 48 MiB", 48.0, workspace),
    ]
    return {"rows": {"gram": {"title": "GRAM", "claims": claims}}, "missing": []}


BANDS = gate.bands_of([_results(), _results(faster=8.8, slower=1.23, workspace=20.1), _results(faster=8.4)])


def test_bands_are_the_spread_of_runs() -> None:
    assert BANDS == {"gram": {"faster than eager": 1.1, "the time of 8 GEMMs": 1.025, "workspace MiB": 1.005}}


def test_runs_within_their_bands_pass() -> None:
    assert gate.missed(_results()) == []
    assert gate.moved(_results(), _results(), BANDS) == []
    assert gate.moved(_results(faster=6.7, slower=1.25, workspace=20.7), _results(), BANDS) == []


@pytest.mark.parametrize("worse", [{"faster": 6.5}, {"slower": 1.27}, {"workspace": 21.0}])
def test_a_figure_below_its_band_is_a_regression_though_its_claim_holds(worse) -> None:
    found = _results(**worse)
    assert gate.missed(found) == []
    (line,) = gate.moved(found, _results(), BANDS)
    assert line.startswith("regression: GRAM: ")


@pytest.mark.parametrize("better", [{"faster": 10.0}, {"slower": 1.1}, {"workspace": 18.0}])
def test_a_figure_above_its_band_is_a_win_until_it_is_claimed(better) -> None:
    found = _results(**better)
    (line,) = gate.moved(found, _results(), BANDS)
    assert line.startswith("unclaimed win: GRAM: ")
    raised = copy.deepcopy(found)
    ((name, value),) = better.items()
    claim = raised["rows"]["gram"]["claims"][["faster", "slower", "workspace"].index(name)]
    # A claim is about the same thing when its bound is raised.
    old, new = f"{claim['bound']:g}", f"{value:g}"
    claim.update(claim=claim["claim"].replace(f"= {old}", f"= {new}"), bound=value)
    assert gate.moved(raised, _results(), BANDS) == []


def test_a_claim_far_below_what_is_found_is_none() -> None:
    found = _results(faster=31.0)
    (line,) = gate.moved(found, found, BANDS)
    assert line.startswith("unclaimed win: GRAM: >= 6x faster than eager")


def test_what_has_no_band_or_no_past_is_told_apart() -> None:
    assert gate.moved(_results(), None, BANDS) == []
    without = {"gram": {about: band for about, band in BANDS["gram"].items() if about != "workspace MiB"}}
    (line,) = gate.moved(_results(), _results(), without)
    assert line.startswith("no band: GRAM: workspace <= 48 MiB")


def test_a_missed_claim_and_a_missing_row_fail() -> None:
    found = {**_results(slower=1.5), "missing": ["siglip"]}
    assert gate.missed(found) == ["GRAM: <= 1.4x the time of 8 GEMMs (found 1.5)", "siglip: not measured"]


def test_a_workspace_of_nothing_has_no_band() -> None:
    found = _results(workspace=0.0)
    assert "workspace MiB" not in gate.bands_of([found, found])["gram"]
    assert gate.moved(found, _results(), BANDS) == []
