"""Tiles of Triton kernels: the table that is shipped, and measuring, whose clock these tests bring themselves."""

from __future__ import annotations

import json
import math
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from operations import OPERATIONS, inputs, value_and_gradients

from mibfast import _env
from mibfast.kernels import launch_configuration as configuration
from mibfast.kernels.launch_configuration import INTERPRETED, Problem, Tile, choose, shipped

pytest.importorskip("triton")

GPU = torch.device("cuda", 0)
REDUCE = "pairwise.reduce"
STARTS = Tile(128, 64, 8, 64, 3)
BEST = Tile(64, 128, 4, 32, 4)


def _problem(n: int = 4096, d: int = 512, dtype: torch.dtype = torch.bfloat16, device: torch.device = GPU) -> Problem:
    return Problem(device, dtype, n, n, d)


def _distance(tile: Tile) -> float:
    """A time that is the larger the further a tile is from `BEST`, by factors of two."""
    return 1.0 + sum(abs(math.log2(a / b)) for a, b in zip(tile, BEST, strict=True))


class _Clock:
    """Launches and the time that each is said to take."""

    def __init__(self, time: Callable[[Tile], float] = _distance) -> None:
        self.launched: list[Tile] = []
        self._time = time

    def launch(self, tile: Tile) -> None:
        self.launched.append(tile)

    def measure(self, launch: Callable[[], object]) -> float:
        launch()
        return self._time(self.launched[-1])

    def choose(self, problem: Problem, kernel: str = REDUCE) -> Tile:
        return choose(kernel, problem, self.launch, self.measure)


def _forget() -> None:
    """As in a process that starts."""
    configuration._choices.clear()
    configuration._files_read.clear()
    configuration._warned.clear()


@pytest.fixture(autouse=True)
def _measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measuring is on, on a Hopper GPU that is not there, and nothing was measured yet."""
    monkeypatch.setenv("MIBFAST_AUTOTUNE", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(configuration, "capability", lambda device: 90)
    monkeypatch.setattr(configuration, "_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(configuration, "_is_capturing", lambda: False)
    monkeypatch.setattr(configuration, "_choices", {})
    monkeypatch.setattr(configuration, "_files_read", set())
    monkeypatch.setattr(configuration, "_warned", set())
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.cuda.device_of(torch.empty(0)))


def test_the_table_holds_a_tile_for_every_kernel_and_device() -> None:
    for kernel, rows in configuration._TABLE.items():
        for how in rows:
            for device in (INTERPRETED, 75, 80, 90, 120):
                for d in (1, 64, 65, 128, 129, 4096):
                    tile = shipped(kernel, device, how, d, 1, light=True)
                    assert tile.rows * tile.columns <= (512 if device == INTERPRETED else 128 * 128)
                    assert tile.depth == 0 or tile.depth >= 16


def test_rows_stay_where_registers_hold_all_of_d() -> None:
    assert shipped(REDUCE, 90, "half", 100, 1, light=True) == (128, 128, 8, 128, 1)
    assert shipped(REDUCE, 90, "half", 100, 1) == (128, 64, 8, 128, 1)
    assert shipped(REDUCE, 90, "half", 129, 1, light=True) == (128, 128, 8, 64, 3)
    assert shipped(REDUCE, 90, "half", 100, 2) == (64, 64, 8, 32, 2)
    assert shipped(REDUCE, 90, "half", 100, 5) == (64, 32, 8, 32, 2)
    assert shipped(REDUCE, 90, "half", 100, 8) == (32, 32, 8, 32, 2)
    assert shipped(REDUCE, 90, "tf32", 65, 1) == (128, 64, 8, 32, 3)
    assert shipped(REDUCE, 90, "tf32", 64, 1).holds(64)
    assert not shipped(REDUCE, 90, "ieee", 16, 1).holds(16)


def test_the_fastest_tile_is_found_from_the_tables() -> None:
    clock = _Clock()
    assert clock.choose(_problem()) == BEST
    assert clock.launched[0] == STARTS
    assert len(clock.launched) == len(set(clock.launched)) < 40


def test_a_gain_within_the_noise_changes_nothing() -> None:
    clock = _Clock(lambda tile: 1.0 if tile == STARTS else 0.985)
    assert clock.choose(_problem()) == STARTS


def test_tiles_that_do_not_fit_the_device_lose() -> None:
    clock = _Clock(lambda tile: math.inf if tile.warps == 4 else _distance(tile))
    assert clock.choose(_problem()) == BEST._replace(warps=8)
    clock = _Clock(lambda tile: math.inf)
    assert clock.choose(_problem(d=1024)) == STARTS


def test_measured_tiles_stay_within_their_ranges() -> None:
    """Those of critics divide the padding, and rows that stay whole are neither cut nor pipelined."""
    for kernel, dtype, d in (("critic.scores", torch.float32, 70), (REDUCE, torch.bfloat16, 70)):
        clock = _Clock(lambda tile: 1.0 / (1 + len(clock.launched)))  # noqa: B023 - every later one is faster
        clock.choose(_problem(d=d, dtype=dtype), kernel)
        edges = {edge for tile in clock.launched for edge in (tile.rows, tile.columns)}
        assert len(edges) > 2
        assert edges <= ({8, 16, 32, 64} if kernel == "critic.scores" else {16, 32, 64, 128, 256})
        assert {tile[3:] for tile in clock.launched} == {(0, 0) if kernel == "critic.scores" else (128, 1)}
        assert {tile.warps for tile in clock.launched} <= {2, 4, 8, 16}


def test_sizes_of_one_bucket_share_a_measurement() -> None:
    clock = _Clock()
    clock.choose(_problem(4096))
    measured = len(clock.launched)
    for n, d in ((2049, 512), (3000, 257), (4096, 400)):
        assert clock.choose(_problem(n, d)) == BEST
    assert len(clock.launched) == measured
    apart = [
        _problem(4097),
        _problem(2048),
        _problem(d=513),
        _problem(dtype=torch.float16),
        _problem(device=torch.device("cuda", 1)),
        _problem()._replace(operands=2),
        _problem()._replace(light=True),
        _problem()._replace(n_columns=100),
    ]
    for k, problem in enumerate(apart):
        clock.choose(problem)
        assert len(configuration._choices) == 2 + k
    for few, many in ((1, 256), (8193, 2**20)):
        clock.choose(_problem(few))
        measured = len(clock.launched)
        clock.choose(_problem(many))
        assert len(clock.launched) == measured


def test_a_depth_that_holds_d_follows_it() -> None:
    """In one bucket d's power of two is one; the file holds what stands for it."""
    assert _Clock(lambda tile: 1.0).choose(_problem(d=100)).depth == 128
    (numbers,) = json.loads(configuration._file().read_text()).values()
    assert Tile(*numbers).depth == configuration._ALL


def test_later_processes_read_what_was_measured() -> None:
    _Clock().choose(_problem())
    _forget()
    clock = _Clock()
    assert clock.choose(_problem()) == BEST
    assert clock.launched == []


def test_nothing_is_measured_or_read_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    _Clock().choose(_problem())
    _forget()
    monkeypatch.setenv("MIBFAST_AUTOTUNE", "0")
    clock = _Clock()
    assert clock.choose(_problem()) == STARTS
    monkeypatch.setenv("MIBFAST_AUTOTUNE", "1")
    monkeypatch.setattr(configuration, "capability", lambda device: INTERPRETED)
    assert clock.choose(_problem()).rows == 16
    assert clock.launched == []
    monkeypatch.setenv("MIBFAST_AUTOTUNE", "yes")
    with pytest.raises(ValueError, match="MIBFAST_AUTOTUNE must be 0 or 1, got 'yes'"):
        _env.autotune()


def test_nothing_is_measured_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    with monkeypatch.context() as patch:
        patch.setattr(configuration, "_is_capturing", lambda: True)
        assert clock.choose(_problem()) == STARTS
        assert clock.launched == []
        assert not configuration._file().exists()
    assert clock.choose(_problem()) == BEST
    monkeypatch.setattr(configuration, "_is_capturing", lambda: True)
    assert clock.choose(_problem()) == BEST


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"pairwise.reduce": 1}',
        '{"pairwise.reduce": [64]}',
        '{"pairwise.reduce": [64, 64, 8, 64, "3"]}',
        '{"pairwise.reduce": [64, 64, 8, 64, true]}',
        '{"pairwise.reduce": [64, 64, 8, 64, 3, 6]}',
        '{"pairwise.reduce": [0, 64, 8, 64, 3]}',
        '{"pairwise.reduce": [48, 64, 8, 64, 3]}',
        '{"pairwise.reduce": [64, 64, 8, 64, 30]}',
        '{"critic.scores": [128, 64, 8, 0, 0]}',
        '{"no_such_kernel": [64, 64, 8, 64, 3]}',
        pytest.param("[" * 100_000, id="nested"),
        pytest.param('{"pairwise.reduce": [' + "9" * 5000 + "]}", id="digits"),
        pytest.param("\udcff", id="no UTF-8"),
    ],
)
def test_a_damaged_file_is_passed_over_with_one_warning_and_mended(text: str) -> None:
    path = configuration._file()
    path.parent.mkdir()
    path.write_text(text, errors="surrogateescape")
    with pytest.warns(RuntimeWarning, match="is no table of tiles") as found:
        assert _Clock().choose(_problem()) == BEST
    assert len(found) == 1
    _forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clock = _Clock()
        assert clock.choose(_problem()) == BEST
    assert clock.launched == []


def test_a_file_that_cannot_be_read_is_not_called_damaged() -> None:
    """A folder in place of the file: permissions do not bind every user."""
    configuration._file().mkdir(parents=True)
    with pytest.warns(RuntimeWarning) as found:
        assert _Clock().choose(_problem()) == BEST
    said = [str(warning.message) for warning in found]
    assert any("cannot be read" in message for message in said)
    assert not any("no table of tiles" in message for message in said)


def test_a_choice_that_is_known_waits_for_no_measurement() -> None:
    _Clock().choose(_problem())
    with configuration._lock:
        found: list[Tile] = []
        thread = threading.Thread(target=lambda: found.append(_Clock().choose(_problem())), daemon=True)
        thread.start()
        thread.join(30)
    assert found == [BEST]


def test_the_file_is_read_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr(configuration, "_read", lambda: reads.append(1) or {})
    monkeypatch.setattr(configuration, "_keep", lambda key, tile: tile)
    clock = _Clock()
    for n in (300, 600, 1200):
        clock.choose(_problem(n))
    assert len(reads) == 1


def test_a_folder_that_cannot_be_written_costs_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file in place of the folder: permissions do not bind every user."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    clock = _Clock()
    with pytest.warns(RuntimeWarning, match="cannot be kept .* Set TRITON_CACHE_DIR"):
        assert clock.choose(_problem()) == BEST
    # Said once: what else warns is an error here.
    assert clock.choose(_problem(1024)) == BEST
    measured = len(clock.launched)
    assert clock.choose(_problem()) == BEST
    assert len(clock.launched) == measured


def test_a_user_without_a_home_has_a_folder_as_triton_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "TRITON_HOME", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_: int) -> object:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert _env.triton_cache() == Path("~", ".triton", "cache")


def test_threads_measure_once() -> None:
    clock, found = _Clock(), []
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        found.append(clock.choose(_problem()))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BEST] * 4
    assert len(clock.launched) == len(set(clock.launched))


def test_processes_that_measure_the_same_take_the_first_choice() -> None:
    """Another process keeps its choice while this one measures."""
    others = Tile(32, 32, 8, 64, 3)

    def time(tile: Tile) -> float:
        configuration._keep(configuration._key(REDUCE, _problem()), others)
        return _distance(tile)

    assert _Clock(time).choose(_problem()) == others
    assert _Clock().choose(_problem()) == others


def test_who_writes_together_loses_nothing() -> None:
    """Threads that lock the file as processes do: each opens it anew."""

    def run(name: str) -> None:
        for k in range(20):
            configuration._keep(f"{REDUCE}, {name} {k}", BEST)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(configuration._read()) == 40
    assert sorted(path.suffix for path in configuration._file().parent.iterdir()) == [".json", ".lock"]


def test_the_file_is_of_these_kernels_and_this_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    before = configuration._fingerprint.__wrapped__()
    assert configuration._fingerprint.__wrapped__() == before
    monkeypatch.setattr(triton, "__version__", "0.0.0")
    assert configuration._fingerprint.__wrapped__() != before


KERNELS = {
    "info_nce, symmetric, smoothed, each": {"pairwise.reduce", "pairwise.chunk"},
    "siglip": {"pairwise.recompute"},
    "symile_info_nce": {"multilinear.reduce", "multilinear.gradient"},
    "critic_log_sum_exp, additive": {"critic.scores", "critic.sums"},
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU")
@pytest.mark.parametrize("name", KERNELS)
def test_launchers_are_measured_and_take_another_tile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first change of the interpreter's small tiles wins: no size is built into a launcher."""
    from mibfast.kernels.critic import one_layer_triton
    from mibfast.kernels.critic.operands_triton import Operands
    from mibfast.kernels.pairwise import gradient_triton

    monkeypatch.setattr(Operands, "padding", 16)
    monkeypatch.setattr(Operands, "unit_padding", 8)
    monkeypatch.setattr(one_layer_triton, "_PIECE", 16)
    monkeypatch.setattr(gradient_triton, "_LEAST_RECOMPUTED_COUNT", 1 if name == "siglip" else 1000)
    monkeypatch.setattr(configuration, "capability", lambda device: INTERPRETED)
    monkeypatch.setattr(configuration, "INTERPRETED", -1)
    launches: dict[str, int] = {}

    def measure(kernel: str, launch: Callable[[], object]) -> float:
        launches[kernel] = launches.get(kernel, 0) + 1
        if launches[kernel] <= 2:
            launch()
        return 0.5 if launches[kernel] == 2 else 1.0

    measured = configuration._measured
    monkeypatch.setattr(
        configuration,
        "_measured",
        lambda kernel, problem, start, launch, _: measured(kernel, problem, start, launch, partial(measure, kernel)),
    )
    leaves = inputs(6, 5, torch.float32)
    found = value_and_gradients(OPERATIONS[name], leaves, "triton")
    for a, b in zip(found, value_and_gradients(OPERATIONS[name], leaves, "reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    chosen = {key.split(",")[0]: tile for key, tile in configuration._choices.items()}
    assert chosen.keys() == KERNELS[name]
    assert all(
        tile not in [row.tile for row in configuration._TABLE[kernel]["ieee"]] for kernel, tile in chosen.items()
    )
