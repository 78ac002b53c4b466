"""Checks and times everything on the GPU that is there; installs nothing.

    python -m benches.gpu                   build what is not built, run the GPU's tests, time all rows
    python -m benches.gpu --rows NAME,..    some rows
    python -m benches.gpu --seconds 500     start no row after so many seconds
    python -m benches.gpu --no-tests        time at once
    python -m benches.gpu --table FILE      print the table of a results file
    python -m benches.gpu --bars            print what every row must reach, not run
    python -m benches.gpu --rehearse        all rows on the CPU with few samples, to see that they run; writes nothing

Results are written after each row, to `benches/results/<device>-<date>.json`, with the exit status 1 where a row failed
or a bar is missed. Contenders are interleaved, the L2 cache is cleared between them, and events of the device measure;
figures are medians.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mibfast
from benches import gate
from benches.gpu_rows import GPURow, rows
from benches.rows import OURS

ROOT = Path(__file__).parents[1]
_SHRINK = 512
_FLUSHED_BYTES = 256 * 2**20


class _Clock:
    """Milliseconds of calls, by events on a GPU and by the wall clock on a CPU."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device="cuda") if on_gpu else torch.empty(0)

    def seconds(self, step: Callable[[], object], calls: int) -> float:
        if not self._on_gpu:
            started = time.perf_counter()
            for _ in range(calls):
                step()
            return (time.perf_counter() - started) / calls
        if calls == 1:
            self._flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / calls


def _step(row: GPURow, name: str, inputs: list[Tensor]) -> Callable[[], object]:
    contender = row.contenders[name]
    if row.work == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return contender(*inputs)

        return forward
    if row.work == "backward":
        result = contender(*inputs)
        upstream = torch.rand_like(result)
        return lambda: torch.autograd.grad(result, inputs, upstream, retain_graph=True)

    def both() -> object:
        return torch.autograd.grad(contender(*inputs), inputs)

    return both


def _graph(step: Callable[[], object]) -> Callable[[], object]:
    """Capture a step into a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _errors(row: GPURow) -> dict[str, float]:
    """Each contender's error against the reference in float64: norms of differences over norms, the worst one."""
    inputs = row.checked()
    wide = [x.detach().double().requires_grad_() for x in inputs]

    def value_and_gradients(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
        result = function(*leaves)
        if row.work == "forward":
            return [result.detach()]
        upstream = torch.linspace(-0.7, 1.3, result.numel(), device=result.device).view(result.shape).to(result.dtype)
        upstream = torch.full_like(result, 1.7) if result.ndim == 0 else upstream
        return [result.detach(), *torch.autograd.grad(result, leaves, upstream)]

    truth = value_and_gradients(row.truth, wide)
    errors = {}
    for name, contender in row.contenders.items():
        found = value_and_gradients(contender, inputs)
        errors[name] = max(
            float((a.double() - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(found, truth, strict=True)
        )
    return errors


def _refuse_a_wrong_result(errors: dict[str, float], dtype: torch.dtype) -> None:
    """What is wrong is not timed: errors are bounded by those of the same dtype, the peers' where there are any."""
    peers = [error for name, error in errors.items() if name != OURS]
    bound = max(8 * torch.finfo(dtype).eps, 2 * min(peers, default=0.0), 1e-3 if dtype == torch.float32 else 0.0)
    if not errors[OURS] <= bound:
        raise ValueError(f"wrong: the error is {errors[OURS]:.2e}, where {bound:.2e} is allowed ({errors})")


def _peak(step: Callable[[], object]) -> int:
    """Bytes that a step allocates at most, results included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _measured(row: GPURow, on_gpu: bool) -> dict[str, Any]:
    errors = _errors(row)
    inputs = row.inputs()
    _refuse_a_wrong_result(errors, inputs[0].dtype)
    clock = _Clock(on_gpu)
    steps: dict[str, Callable[[], object]] = {}
    failures: dict[str, str] = {}
    peaks: dict[str, int] = {}

    def ready(name: str, make: Callable[[], Callable[[], object]]) -> None:
        """Warm a contender up; a peer that runs out of memory leaves the others to go on."""
        try:
            step = make()
            step()
            if on_gpu:
                peaks[name] = _peak(step)
            steps[name] = step
        except torch.OutOfMemoryError as error:
            if name == OURS:
                raise
            failures[name] = str(error).splitlines()[0]
        if on_gpu:
            torch.cuda.empty_cache()

    for name in row.contenders:
        ready(name, lambda name=name: _step(row, name, inputs))  # type: ignore[misc]
        if row.graphed and on_gpu and name in (OURS, "eager"):
            ready(f"{name}, in a CUDA graph", lambda name=name: _graph(_step(row, name, inputs)))  # type: ignore[misc]
    for name, floor in (row.floors or {}).items():
        ready(name, lambda floor=floor: floor(inputs))  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(row.rounds if on_gpu else 1):
        for name, step in steps.items():
            times[name].append(clock.seconds(step, row.calls if on_gpu else 1))
    seconds = {name: statistics.median(each) for name, each in times.items()}
    return {
        "title": row.title,
        "seconds": seconds,
        "spread": {name: max(each) - min(each) for name, each in times.items()},
        "errors": errors,
        "peak": peaks,
        "failed": failures,
        **_rates(row, seconds[OURS]),
        "claims": _claims(row, seconds, peaks, failures),
    }


def _rates(row: GPURow, seconds: float) -> dict[str, float]:
    found: dict[str, float] = {}
    if row.flops is not None:
        found["tflops_by_model"], found["tflops_by_hardware"] = (round(x / seconds / 1e12, 1) for x in row.flops)
    if row.moved_bytes is not None:
        found["bytes_per_second"] = row.moved_bytes / seconds
    return found


def bars(row: GPURow) -> list[str]:
    """What a row must reach, in words."""
    found = [f"time of {bar.peer} over mibfast's >= {bar.least:g}" for bar in row.bars]
    found += [f"<= {1e3 * row.most_seconds:g} ms"] if row.most_seconds is not None else []
    return found + ([f"<= {row.most_bytes / 2**20:.0f} MiB"] if row.most_bytes is not None else [])


def _claims(
    row: GPURow, seconds: dict[str, float], peaks: dict[str, int], failures: dict[str, str]
) -> list[dict[str, Any]]:
    claims = []
    for bar in row.bars:
        if bar.peer not in seconds:
            # A peer that the memory does not hold is beaten.
            held = bar.peer not in failures
            claims.append(
                {
                    "claim": f"{bar.peer} {'did not run' if held else 'runs out of memory'}",
                    "ratio": None,
                    "met": not held,
                }
            )
            continue
        ratio = bar.ratio(seconds)
        claims.append(
            {
                "claim": f"time of {bar.peer} over mibfast's >= {bar.least:g}",
                "ratio": round(ratio, 3),
                "met": ratio >= bar.least,
            }
        )
    if row.most_seconds is not None:
        milliseconds = 1e3 * seconds[OURS]
        claims.append(
            {
                "claim": f"<= {1e3 * row.most_seconds:g} ms",
                "ratio": round(milliseconds, 2),
                "met": seconds[OURS] <= row.most_seconds,
            }
        )
    if row.most_bytes is not None and OURS in peaks:
        claims.append(
            {
                "claim": f"<= {row.most_bytes / 2**20:.0f} MiB",
                "ratio": round(peaks[OURS] / 2**20, 1),
                "met": peaks[OURS] <= row.most_bytes,
            }
        )
    return claims


def _build() -> str:
    """Build the CUDA extension in place where it is missing; say what came of it."""
    if mibfast.info()["backends"]["cuda"] == "available":
        return "built"
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    script = "import mibfast; print(mibfast.info()['backends']['cuda'])"
    state = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    return state.stdout.strip() or f"failed: {done.stderr.strip()[-2000:]}"


def _tested() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--maxfail=20", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], flush=True)
    closing = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-500:]]
    return {"status": done.returncode, "closing": closing[0], "log": done.stdout[-20_000:]}


def _machine() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "cuda": torch.version.cuda,
    }


def _write(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)


def run(names: list[str], tests: bool, limit: float, path: Path) -> dict[str, Any]:
    """Build, test and time; results are written after each step."""
    started = time.perf_counter()
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "versions": mibfast.info()["versions"],
        "extension": _build(),
        "tests": _tested() if tests else None,
        "rows": {},
        "missing": {},
    }
    _write(results, path)
    table = rows()
    for name in names:
        if time.perf_counter() - started > limit:
            results["missing"][name] = f"not started within {limit:g} s"
            continue
        begun = time.perf_counter()
        try:
            results["rows"][name] = _measured(table[name], on_gpu=True)
        # A row that fails leaves the others to be measured.
        except Exception as error:
            results["missing"][name] = f"{type(error).__name__}: {str(error)[:2000]}"
        torch.cuda.empty_cache()
        ours = results["rows"].get(name, {}).get("seconds", {}).get(OURS)
        said = results["missing"].get(name) or f"{1e3 * ours:.4g} ms {results['rows'][name]['claims']}"
        print(f"{name}: {said} [{time.perf_counter() - begun:.0f} s]", flush=True)
        _write(results, path)
    return results


def markdown(results: dict[str, Any]) -> str:
    """The table of a results file; rows that were not run say why."""
    versions, machine = results["versions"], results["machine"]
    lines = [
        f"{machine['device']}, {results['date']}, torch {versions['torch']}, triton {versions['triton']}, "
        f"CUDA {machine['cuda']}. Medians of interleaved runs.",
        "",
        "| what | mibfast | against | TFLOP/s by model, hardware | GB/s | peak memory | claims |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"].values():
        seconds = row["seconds"]
        ours = seconds[OURS]
        against = "; ".join(f"{t / ours:.2f}x {name}" for name, t in seconds.items() if name != OURS)
        failed = "".join(f"; {name} failed: out of memory" for name in row["failed"])
        rates = f"{row['tflops_by_model']:g}, {row['tflops_by_hardware']:g}" if "tflops_by_model" in row else ""
        bandwidth = f"{row['bytes_per_second'] / 1e9:.0f}" if "bytes_per_second" in row else ""
        peak = f"{row['peak'][OURS] / 2**20:.0f} MiB" if OURS in row["peak"] else ""
        missed = "; ".join(f"missed: {c['claim']} (found {c['ratio']})" for c in row["claims"] if not c["met"])
        verdict = missed or f"all {len(row['claims'])} met"
        lines.append(
            f"| {row['title']} | {1e3 * ours:.4g} ms | {against}{failed} | {rates} | {bandwidth} | {peak} | {verdict} |"
        )
    table = rows()
    for name, why in results["missing"].items():
        lines.append(f"| {table[name].title} | not run | | | | | {why.splitlines()[0][:120]} |")
    return "\n".join(lines)


def markdown_of_bars() -> str:
    """The table of what every row must reach, before any was run."""
    lines = ["| what | must reach | measured |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.title} | {'; '.join(bars(row))} | not run |" for row in rows().values())])


def _rehearse(names: list[str]) -> int:
    failed = 0
    for name in names:
        try:
            _measured(rows(_SHRINK)[name], on_gpu=False)
            print(f"{name}: runs")
        except Exception as error:
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}")
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benches.gpu", description="Check and time on the GPU.")
    parser.add_argument("--rows", help=f"comma-separated, of {', '.join(rows())}")
    parser.add_argument("--seconds", type=float, default=3600.0, help="start no row after so many seconds [3600]")
    parser.add_argument("--no-tests", action="store_true", help="do not run the GPU's tests first")
    parser.add_argument("--output", type=Path, help="results file [benches/results/<device>-<date>.json]")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a results file")
    parser.add_argument("--bars", action="store_true", help="print what every row must reach, not run")
    parser.add_argument("--rehearse", action="store_true", help="run all rows small on the CPU; writes nothing")
    options = parser.parse_args(argv)
    if options.table:
        print(markdown(json.loads(options.table.read_text())))
        return 0
    if options.bars:
        print(markdown_of_bars())
        return 0
    names = options.rows.split(",") if options.rows else list(rows())
    unknown = [name for name in names if name not in rows()]
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; expected some of {', '.join(rows())}")
    if options.rehearse:
        return _rehearse(names)
    if not torch.cuda.is_available():
        parser.error("no GPU here; --rehearse runs all rows on the CPU")
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    path = options.output or gate.RESULTS / f"{device}-{datetime.date.today().isoformat()}.json"
    results = run(names, not options.no_tests, options.seconds, path)
    print(markdown(results))
    print(f"written to {path}")
    failed = [c for row in results["rows"].values() for c in row["claims"] if not c["met"]]
    tests_failed = bool(results["tests"]) and results["tests"]["status"] != 0
    return 1 if failed or results["missing"] or tests_failed else 0


if __name__ == "__main__":
    sys.exit(main())
