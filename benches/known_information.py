"""Estimates of mutual information beside the truth and beside the estimators of `benchmark-mi`, on the same samples.

    python -m benches.known_information FOLDER [--tasks NAME,..]      estimate, and add to the results
    python -m benches.known_information --table FILE                  print the table of a results file

FOLDER is what `benches/known_information_tasks.py` wrote. Each estimate is one critic, as the package trains one, with
the defaults of `information.estimate`, for each of three samples. Seconds are of CPU time, so other work on the machine
does not count, all on one core (`taskset -c 0`, OMP_NUM_THREADS=1): medians over the samples. A call before leaves out
what Numba compiles; JAX compiles in every call. A release must come within 0.12 nats of the truth in the mean over the
samples of each task, be no farther from it than the package's estimators in the mean over tasks, and take a fifth of
their time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mibfast
from benches.gate import RESULTS, machine
from benches.known_information_tasks import SEEDS, TASKS
from mibfast import information

ESTIMATORS, PEERS = ("infonce", "smile"), ("infonce", "mine")
# Nats; times as fast.
FARTHEST, FASTER = 0.12, 5.0


def measure(folder: Path, tasks: list[str], after_each: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Estimate for some tasks: values and seconds by estimator, ours and the package's, and the truth."""
    peers = json.loads((folder / "peers.json").read_text())
    found: dict[str, Any] = {}
    for name in tasks:
        data = [np.load(folder / f"{name}-{seed}.npz") for seed in SEEDS]
        row: dict[str, Any] = {"truth": float(data[0]["truth"]), "peers": peers.get(name, {}), "mibfast": {}}
        for estimator in ESTIMATORS:
            information.estimate(data[0]["x"], data[0]["y"], estimator, epochs=1, seeds=1)
            values, seconds = [], []
            for seed, arrays in zip(SEEDS, data, strict=True):
                started = time.process_time()
                values.append(information.estimate(arrays["x"], arrays["y"], estimator, seeds=[seed]).value)
                seconds.append(time.process_time() - started)
            row["mibfast"][estimator] = {"values": values, "seconds": seconds}
            print(f"{name}, {estimator}: {np.mean(values):.3f} of {row['truth']:.3f} nats, {np.median(seconds):.2f} s")
        found[name] = row
        after_each(found)
    return found


def _error(row: dict[str, Any], owner: str, estimator: str) -> float:
    return abs(statistics.fmean(row[owner][estimator]["values"]) - row["truth"])


def missed(tasks: dict[str, Any]) -> list[str]:
    """What the figures miss, in words."""
    found = []
    for name, row in tasks.items():
        for estimator, each in row["mibfast"].items():
            error = _error(row, "mibfast", estimator)
            if error > FARTHEST:
                found.append(f"{name}: {estimator} is {error:.3f} nats from the truth")
            fastest = min((statistics.median(peer["seconds"]) for peer in row["peers"].values()), default=math.inf)
            faster = fastest / statistics.median(each["seconds"])
            if faster < FASTER:
                found.append(f"{name}: {estimator} is {faster:.1f} times as fast")
    for estimator in ESTIMATORS:
        for peer in PEERS:
            compared = [row for row in tasks.values() if peer in row["peers"]]
            errors = [[_error(row, *of) for of in (("mibfast", estimator), ("peers", peer))] for row in compared]
            ours, theirs = (statistics.fmean(each) for each in zip(*errors, strict=True)) if errors else (0.0, 0.0)
            if ours > theirs:
                found.append(
                    f"{estimator} is {ours:.3f} nats from the truth on average, the package's {peer} {theirs:.3f}"
                )
    return found


def markdown(results: dict[str, Any]) -> str:
    """Return the table: truth, and mean ± deviation over samples and seconds of each estimator."""
    columns = [("mibfast", "infonce"), ("mibfast", "smile"), ("peers", "infonce"), ("peers", "mine")]
    heads = ["InfoNCE", "SMILE", "benchmark-mi's InfoNCE", "benchmark-mi's MINE"]
    lines = ["| task | truth | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for name, row in results["tasks"].items():
        cells = []
        for owner, estimator in columns:
            each = row[owner].get(estimator)
            if each is None:
                cells.append("not run")
                continue
            values = each["values"]
            deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.2f}{deviation}, {statistics.median(each['seconds']):.1f} s")
        lines.append(f"| {name} | {row['truth']:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; the exit status is 1 where something is missed."""
    parser = argparse.ArgumentParser(description="Estimates of known mutual information.")
    parser.add_argument("folder", type=Path, nargs="?", help="of the samples, and of the package's estimates")
    parser.add_argument("--tasks", help=f"comma-separated, of {', '.join(TASKS)}")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a results file")
    options = parser.parse_args()
    if options.table is not None:
        print(markdown(json.loads(options.table.read_text())))
        return 0
    if options.folder is None:
        parser.error("the folder of the samples is missing")
    tasks = options.tasks.split(",") if options.tasks else list(TASKS)
    unknown = [name for name in tasks if name not in TASKS]
    if unknown:
        parser.error(f"unknown tasks {', '.join(unknown)}; expected some of {', '.join(TASKS)}")
    date = datetime.date.today().isoformat()
    file = RESULTS / f"known-information-{date}.json"
    results = json.loads(file.read_text()) if file.exists() else {"tasks": {}}
    results |= {"date": date, "machine": machine(), "versions": mibfast.info()["versions"]}

    def write(measured: dict[str, Any]) -> None:
        rows = {**results["tasks"], **measured}
        results["tasks"] = {name: rows[name] for name in TASKS if name in rows}
        file.write_text(json.dumps(results, indent=1) + "\n")

    measure(options.folder, tasks, write)
    failed = [f"missed: {line}" for line in missed(results["tasks"])]
    print("\n".join([*failed, f"written to {file.name}"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
