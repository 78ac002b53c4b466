"""Tiles, warps and stages of Triton kernels: a table that is shipped, and measurements on the device that replace it.

The table is a function of the device's capability, the dtype, d and the number of operands that is written down, so
every process makes the same choice and results repeat. What it holds compiles without spills and within shared memory
for sm_80 and sm_90, which the tests see to by asking the compiler; not yet measured on a GPU.

With `MIBFAST_AUTOTUNE=1` a kernel is measured where it is first launched, and the fastest tile is kept. Keys are the
device's name and powers of two that hold d, N and N', the last two from 2^8 to 2^14: a batch of another size measures
nothing again. The search changes one number of the table's tile at a time, by a factor of two or a stage, and goes on
from a change that wins 2%; a tile that does not compile or asks too much memory loses. Nothing is measured while a CUDA
graph is captured: there the table serves what was not measured before. Tiles decide the order of sums, and so the last
bits of results.

Choices are kept beside what Triton compiled, in `mibfast/` of `TRITON_CACHE_DIR` (else `~/.triton/cache`), in a JSON
file for each fingerprint of the kernels' source and Triton's version. Of processes that measure the same at the same
time all take the choice that was kept first. A folder that cannot be written costs each process its own measurements,
and says so; a damaged file is passed over, and says so.

Kernels that read every number once, Gaussian terms and projections, have formulas in place of a table, and are not
measured.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from mibfast import _env

_Result = TypeVar("_Result")

# Embeddings or experts that one Triton kernel takes: each is a pointer, and a tile or a row of one in registers.
LARGEST_M = 16
# Inner products a pair that kernels of all pairs take, each a tile of registers.
LARGEST_K = 7
# Numbers of a vector that kernels hold whole, by how many others of its sample they hold beside it: no more without
# spilling registers backward.
LARGEST_WHOLE_D = {1: 4096, 2: 4096, 3: 2048, 4: 1024, 5: 1024, 6: 512, 7: 512}
# What stands for a device's capability in the interpreter: small tiles, so that small inputs have many.
INTERPRETED = 0
# Bytes of a sample's tokens, as computed with, that one Triton program holds four times: keys, values, their gradients.
LARGEST_TOKENS = 32768
# Threads of a warp.
_WARP = 32
# A row longer than this is walked in pieces.
_LONGEST_PIECE = 1024
# A depth that holds all of d, whatever it is.
_ALL = -1
# Smaller and larger batches share a choice with these, as powers of two.
_LEAST_COUNT, _LARGEST_COUNT = 8, 14
# A tile replaces another where it takes less than this share of its time: noise does not.
_WORTHWHILE = 0.98


class Tile(NamedTuple):
    """Rows and columns of a tile and the warps that share it.

    Where products are formed also the piece of d that is multiplied at once, and stages of the pipeline.
    """

    rows: int
    columns: int
    warps: int
    depth: int = 0
    stages: int = 0

    def holds(self, d: int) -> bool:
        """Whether a program's rows are multiplied whole, and stay while it walks the columns."""
        return self.stages == 1 and self.depth >= d

    def arguments(self) -> dict[str, int]:
        """Arguments of a kernel's launch that say how large its tiles are."""
        return {"ROWS": self.rows, "COLUMNS": self.columns, "num_warps": self.warps}

    def product_arguments(self, d: int, dtype: torch.dtype) -> dict[str, Any]:
        """The same of a kernel that forms products of rows [d] of a dtype."""
        how = {"DEPTH": self.depth, "EVEN": d % self.depth == 0, "PRECISION": precision(dtype)}
        return {**self.arguments(), **how, "num_stages": self.stages}


class Problem(NamedTuple):
    """What a tile is chosen for: N rows [d] and N' columns, and how many tiles of a pair registers hold.

    These are the products with each of its operands, and the score where it is none of them.
    """

    device: torch.device
    dtype: torch.dtype
    n: int
    n_columns: int
    d: int
    operands: int = 1
    light: bool = False


class _Row(NamedTuple):
    """A tile, and for what it is: up to so many numbers and operands, on such a device or a later one."""

    tile: Tile
    largest_d: int = 2**31
    most_operands: int = 2**31
    light: bool = False
    capability: int = INTERPRETED + 1


_INTERPRETED_PRODUCTS = _Row(Tile(16, 32, 1, 16, 1), capability=INTERPRETED)
_WITHOUT_TENSOR_CORES = (
    _Row(Tile(64, 64, 8, 16, 2), most_operands=3),
    _Row(Tile(64, 32, 8, 16, 2), most_operands=5),
    _Row(Tile(32, 32, 8, 16, 2)),
    _INTERPRETED_PRODUCTS,
)
_OF_MANY = (
    _Row(Tile(64, 64, 8, 32, 2), most_operands=3),
    _Row(Tile(64, 32, 8, 32, 2), most_operands=5),
    _Row(Tile(32, 32, 8, 32, 2)),
    _INTERPRETED_PRODUCTS,
)
_CHUNK = {
    "half": (
        _Row(Tile(128, 128, 8, 64, 3), most_operands=1, light=True),
        _Row(Tile(128, 64, 8, 64, 3), most_operands=1),
        *_OF_MANY,
    ),
    "tf32": (_Row(Tile(128, 64, 8, 32, 3), most_operands=1), *_WITHOUT_TENSOR_CORES),
    "ieee": _WITHOUT_TENSOR_CORES,
}
_RECOMPUTED = (_Row(Tile(64, 64, 8, _ALL, 2)), _Row(Tile(16, 32, 1, _ALL, 1), capability=INTERPRETED))

# By kernel and arithmetic the rows of which the first that fits is taken; light ones form nothing but a softmax.
#
# With d in pieces of 64 a tile of 128 x 64 pairs is 24 KB a stage in bf16. A tile of 128 x 128 asks half the traffic of
# columns of L2, but registers allow it where a softmax of rows is all; with weights both ways, totals or softplus it
# spills (124 to 712 bytes a thread). Up to d = 128 the block of rows stays for the whole walk, and only columns are
# loaded; that loop has one stage, since Triton 3.6 fails to pipeline it for sm_90 around a branch. Where a program
# forms a product of what it multiplies (multilinear), that costs the less the more columns it meets.
_TABLE: dict[str, dict[str, tuple[_Row, ...]]] = {
    "pairwise.reduce": {
        "half": (
            _Row(Tile(128, 128, 8, _ALL, 1), largest_d=128, most_operands=1, light=True),
            _Row(Tile(128, 64, 8, _ALL, 1), largest_d=128, most_operands=1),
            _Row(Tile(128, 128, 8, 64, 3), most_operands=1, light=True),
            _Row(Tile(128, 64, 8, 64, 3), most_operands=1),
            *_OF_MANY,
        ),
        "tf32": (
            _Row(Tile(128, 64, 8, _ALL, 1), largest_d=64, most_operands=1),
            _Row(Tile(128, 64, 8, 32, 3), most_operands=1),
            *_WITHOUT_TENSOR_CORES,
        ),
        "ieee": _WITHOUT_TENSOR_CORES,
    },
    "pairwise.chunk": _CHUNK,
    "pairwise.score": _CHUNK,
    # Rows are of the program's own side, columns of the one that it walks.
    "pairwise.recompute": {
        "half": _RECOMPUTED,
        "tf32": _RECOMPUTED,
        "ieee": (_Row(Tile(32, 32, 8, _ALL, 1)), _RECOMPUTED[1]),
    },
    "multilinear.reduce": {
        "half": (_Row(Tile(128, 128, 8, 64, 3)), _INTERPRETED_PRODUCTS),
        "tf32": (_Row(Tile(128, 128, 8, 32, 3)), _INTERPRETED_PRODUCTS),
        "ieee": (_Row(Tile(64, 64, 4, 16, 2)), _INTERPRETED_PRODUCTS),
    },
    "multilinear.gradient": _CHUNK,
    # Sizes divide the padding of the critics' operands, and nothing is multiplied by tensor cores.
    "critic.scores": {
        **dict.fromkeys(("ieee", "tf32"), (_Row(Tile(64, 64, 8)), _Row(Tile(8, 16, 4), capability=INTERPRETED))),
        "float64": (_Row(Tile(32, 32, 4)), _Row(Tile(8, 16, 4), capability=INTERPRETED)),
    },
    # Pairs, which are rows of a product with the second hidden layer.
    "critic.two_layers": {
        **dict.fromkeys(("half", "tf32"), (_Row(Tile(8, 16, 8)), _Row(Tile(4, 8, 4), capability=INTERPRETED))),
        "ieee": (_Row(Tile(4, 16, 8)), _Row(Tile(4, 8, 4), capability=INTERPRETED)),
    },
    # Owners and units.
    "critic.sums": dict.fromkeys(
        ("ieee", "tf32", "float64"), (_Row(Tile(32, 64, 4)), _Row(Tile(8, 8, 4), capability=INTERPRETED))
    ),
}
# What a field may be measured at; edges of the critics' tiles go up to their padding.
_RANGES = {"rows": (16, 256), "columns": (16, 256), "warps": (2, 16), "depth": (16, 128), "stages": (2, 5)}
_LARGEST_EDGES = {"critic.scores": 64, "critic.sums": 64}

# Choices of this process, by key, and those of the file that were read.
_choices: dict[str, Tile] = {}
_files_read: set[Path] = set()
# Held while a kernel is measured, whose launch may choose for another.
_lock = threading.RLock()


@functools.cache
def capability(device: torch.device) -> int:
    """80 for Ampere, 90 for Hopper; `INTERPRETED` for CPU tensors."""
    if device.type != "cuda":
        return INTERPRETED
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def programs(device: torch.device) -> int:
    """How many programs walk columns at the same time: one a multiprocessor, whose registers it takes."""
    if device.type != "cuda":
        return 3
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def arithmetic(dtype: torch.dtype) -> str:
    """How numbers are multiplied, and how large they are: "half", "tf32", "ieee" or "float64"."""
    if dtype.itemsize == 2:
        return "half"
    if dtype == torch.float64:
        return "float64"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies float32: as torch does."""
    return "ieee" if arithmetic(dtype) == "ieee" else "tf32"


def power_of_two(n: int, least: int = 2) -> int:
    """The smallest power of two that is no less than n and `least`."""
    return max(least, 1 << (n - 1).bit_length())


def on_device_of(x: Tensor) -> torch.cuda.device_of:
    """A context in which kernels are launched on the device of `x`, whatever device is current."""
    return torch.cuda.device_of(x)  # type: ignore[no-untyped-call]


def elementwise_tile(d: int, matrices: int, dtype: torch.dtype) -> Tile:
    """For kernels that hold one tile of each of `matrices` [N, d] at a time, `dtype` what they compute in.

    Eight numbers a thread keep loads at 16 bytes of half precision; fewer where many matrices share the registers.
    """
    registers = matrices * (2 if dtype == torch.float64 else 1)
    a_thread = 8 if registers <= 4 else 4 if registers <= 16 else 2 if registers <= 34 else 1
    columns = min(power_of_two(d), _LONGEST_PIECE, 4 * _WARP * a_thread)
    return Tile(4 * _WARP * a_thread // columns, columns, 4)


def sample_tile(d: int, vectors: int) -> Tile:
    """For kernels whose program takes one sample, in float64: its vectors are the rows, a piece of d the columns.

    Up to four vectors take one warp, so that nothing waits for another, and sixteen numbers a thread and tile; more of
    them have larger small matrices, and registers for eight.
    """
    rows = power_of_two(vectors)
    warps, a_thread = max(1, rows // 4), 16 if rows <= 4 else 8
    return Tile(rows, min(power_of_two(d), a_thread * _WARP * warps // rows), warps)


def whole_vectors_tile(d: int, vectors: int) -> Tile:
    """For kernels that hold vectors of samples whole, in float64: its rows are samples, of a few vectors each.

    Eight numbers a thread and vector at least, and warps for 96 registers of them.
    """
    columns = power_of_two(d)
    rows = max(1, 8 * _WARP // columns)
    warps = 1
    while warps < 16 and 2 * vectors * rows * columns > 96 * _WARP * warps:
        warps *= 2
    return Tile(rows, columns, warps)


def tokens_tile(m: int, d: int, dtype: torch.dtype) -> Tile:
    """For kernels whose program holds all M tokens [d] of a sample, four times: 64 bytes a thread and tile."""
    rows, columns = power_of_two(m), power_of_two(d)
    a_thread = 8 if dtype == torch.float64 else 16
    return Tile(rows, columns, min(16, max(1, rows * columns // (a_thread * _WARP))))


def shipped(kernel: str, device_capability: int, how: str, d: int, operands: int = 1, light: bool = False) -> Tile:
    """The table's tile of a kernel, `how` its arithmetic."""
    return _with_depth(_row(kernel, device_capability, how, d, operands, light), d)


@functools.lru_cache(maxsize=1024)
def _row(kernel: str, device_capability: int, how: str, d: int, operands: int, light: bool) -> Tile:
    for row in _TABLE[kernel][how]:
        fits = d <= row.largest_d and operands <= row.most_operands and device_capability >= row.capability
        if fits and (light or not row.light):
            return row.tile
    raise LookupError(f"launch configuration: no tile of {kernel} for {how} on sm_{device_capability}")


def _with_depth(tile: Tile, d: int) -> Tile:
    return tile._replace(depth=power_of_two(d, 16)) if tile.depth == _ALL else tile


def milliseconds(launch: Callable[[], object]) -> float:
    """The median time of a launch on the current GPU, its L2 cold; infinite for one that does not fit the device."""
    import triton
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        return float(triton.testing.do_bench(launch, warmup=5, rep=30, return_mode="median"))
    except (CompilationError, OutOfResources, PTXASError):
        return float("inf")


def launched(kernel: str, problem: Problem, launch: Callable[[Tile], _Result]) -> _Result:
    """The result of `launch(tile)` with the tile of a kernel.

    It may be called many times before, to be measured, so it writes to nothing but what it makes.
    """
    return launch(choose(kernel, problem, launch))


def choose(
    kernel: str,
    problem: Problem,
    launch: Callable[[Tile], object],
    measure: Callable[[Callable[[], object]], float] | None = None,
) -> Tile:
    """The tile of a kernel: the table's, or with `MIBFAST_AUTOTUNE=1` the one that took the least time on this device.

    `measure` gives the time of a call, whatever its unit: by default `milliseconds`.
    """
    how, on = arithmetic(problem.dtype), capability(problem.device)
    tile = _row(kernel, on, how, problem.d, problem.operands, problem.light)
    if on != INTERPRETED and _env.autotune():
        tile = _measured(kernel, problem, tile, launch, measure or milliseconds)
    return _with_depth(tile, problem.d)


def _measured(
    kernel: str,
    problem: Problem,
    start: Tile,
    launch: Callable[[Tile], object],
    measure: Callable[[Callable[[], object]], float],
) -> Tile:
    key = _key(kernel, problem)
    # Without the lock: another kernel may be measured for seconds.
    if key in _choices:
        return _choices[key]
    with _lock:
        path = _file()
        if path not in _files_read:
            _files_read.add(path)
            _choices.update(_read() | _choices)
        if key in _choices:
            return _choices[key]
        if _is_capturing():
            return start
        limits = _limits(kernel)

        def time(tile: Tile) -> float:
            return measure(lambda: launch(_with_depth(tile, problem.d)))

        with torch.cuda.device(problem.device if problem.device.type == "cuda" else -1):
            _choices[key] = _keep(key, fastest(start, limits, time))
        return _choices[key]


def _limits(kernel: str) -> dict[str, tuple[int, int]]:
    """What each field of a kernel's tile may be measured at."""
    if kernel not in _LARGEST_EDGES:
        return _RANGES
    edges = (8, _LARGEST_EDGES[kernel])
    return _RANGES | {"rows": edges, "columns": edges}


def fastest(start: Tile, limits: dict[str, tuple[int, int]], time: Callable[[Tile], float]) -> Tile:
    """The tile from which no change of one number, by two or a stage, wins time that is worth it; each timed once."""
    best, least, seen = start, time(start), {start}
    while True:
        for tile in _neighbours(best, limits):
            if tile in seen:
                continue
            seen.add(tile)
            taken = time(tile)
            if taken < _WORTHWHILE * least:
                best, least = tile, taken
                break
        else:
            return best


def _neighbours(tile: Tile, limits: dict[str, tuple[int, int]]) -> Iterator[Tile]:
    """Tiles that differ in one number. A kernel that is not pipelined stays so, and a depth of all d remains it."""
    for field, (least, most) in limits.items():
        value = getattr(tile, field)
        if value <= 0 or (field == "stages" and value == 1):
            continue
        for other in (value - 1, value + 1) if field == "stages" else (value // 2, value * 2):
            if least <= other <= most:
                yield tile._replace(**{field: other})


def _key(kernel: str, problem: Problem) -> str:
    def bucket(count: int) -> int:
        return 1 << min(max((count - 1).bit_length(), _LEAST_COUNT), _LARGEST_COUNT)

    d, n, n_columns = power_of_two(problem.d, 16), bucket(problem.n), bucket(problem.n_columns)
    dtype = str(problem.dtype).removeprefix("torch.")
    words = [kernel, _device_name(problem.device), dtype, arithmetic(problem.dtype), f"d {d}", f"{n} x {n_columns}"]
    words += [f"operands {problem.operands}"] + ["light"] * problem.light
    return ", ".join(words)


@functools.cache
def _device_name(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)} sm_{capability(device)}"


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@functools.cache
def _fingerprint() -> str:
    import triton

    digest = hashlib.sha256(triton.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        # Scores and reductions have a half in Triton.
        ours = path.stem.endswith("triton") or path.parent.name in ("scores", "reductions")
        if ours or path == Path(__file__):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _file() -> Path:
    return _env.triton_cache() / "mibfast" / f"tiles-{_fingerprint()}.json"


def _checked(key: str, numbers: list[int]) -> Tile:
    """A tile that its kernel can be launched with: in each field the number of a row of its table, or one measured."""
    tile = Tile(*numbers)
    # A bool is an int to Python.
    if not all(type(number) is int for number in tile):
        raise TypeError(f"{key!r} is {numbers}: a tile is five whole numbers")
    kernel = key.split(",")[0]
    if kernel not in _TABLE:
        raise ValueError(f"{key!r} is of no kernel")
    rows = [row.tile for by_capability in _TABLE[kernel].values() for row in by_capability]
    for field, (least, most) in _limits(kernel).items():
        number = getattr(tile, field)
        measured = least <= number <= most and (field == "stages" or number & (number - 1) == 0)
        if not measured and all(number != getattr(row, field) for row in rows):
            raise ValueError(f"{key!r} has {field} = {number}, expected a power of two from {least} to {most}")
    return tile


def _read() -> dict[str, Tile]:
    """The choices that were kept; none of a file that is damaged, or cannot be read."""
    path = _file()
    try:
        found = json.loads(path.read_text())
        choices = {key: _checked(key, numbers) for key, numbers in found.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        _warn_once(f"mibfast: {path} cannot be read ({error}); what was measured before is measured again")
        return {}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        _warn_once(f"mibfast: {path} is no table of tiles ({error}); it is passed over, and written again")
        return {}
    return choices


def _keep(key: str, tile: Tile) -> Tile:
    """Add a choice to the file, and return the one that is there: that of a process which was first."""
    path = _file()
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            choices = _read()
            tile = choices.setdefault(key, tile)
            temporary.write_text(json.dumps(choices, indent=1, sort_keys=True))
            temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _warn_once(
            f"mibfast: measured tiles cannot be kept ({error}); each process measures them again. "
            "Set TRITON_CACHE_DIR to a folder that can be written."
        )
    return tile


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
