"""Samples whose mutual information is known, from the package `benchmark-mi`, and what its own estimators make of them.

    pip install benchmark-mi                                  in an environment of its own: it brings JAX
    python benches/known_information_tasks.py FOLDER          writes FOLDER/TASK-SEED.npz: x, y and the truth in nats
    python benches/known_information_tasks.py FOLDER --estimate [--tasks NAME,..]
                                                              runs its InfoNCE and MINE on them, and writes what they
                                                              found, and in how many CPU seconds, to FOLDER/peers.json

`benches/known_information.py` compares. The tasks, sample size and seeds were chosen before any estimate was made: four
pairs of one dimension, normal and not, two normal vectors of 5 dimensions, and two twisted into spirals. Czyż et al.
(2023), Beyond Normal: On the Evaluation of Mutual Information Estimators; the package is under the MIT licence.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

TASKS = (
    "1v1-normal-0.75",
    "1v1-bimodal-0.75",
    "wiggly-1v1-normal-0.75",
    "1v1-additive-0.75",
    "multinormal-sparse-5-5-2-2.0",
    "multinormal-dense-5-5-0.5",
    "spiral-multinormal-sparse-3-3-2-2.0",
    "spiral-multinormal-sparse-5-5-2-2.0",
)
SAMPLES, SEEDS = 5000, (0, 1, 2)


def write_samples(folder: Path, seeds: tuple[int, ...]) -> None:
    """Write the samples of every task."""
    import bmi
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        task = bmi.benchmark.BENCHMARK_TASKS[name]
        print(f"{name}: {task.mutual_information:.4f} nats")
        for seed in seeds:
            x, y = (np.asarray(z, np.float32) for z in task.sample(SAMPLES, seed=seed))
            np.savez(folder / f"{name}-{seed}.npz", x=x, y=y, truth=task.mutual_information)


def estimate(folder: Path, tasks: list[str]) -> None:
    """Run the package's estimators on the samples of some tasks, but those that were run before."""
    import bmi
    import numpy as np

    found = json.loads((folder / "peers.json").read_text()) if (folder / "peers.json").exists() else {}
    estimators = {"infonce": bmi.estimators.InfoNCEEstimator, "mine": bmi.estimators.MINEEstimator}
    for position, seed in enumerate(SEEDS):
        for name in tasks:
            arrays = np.load(folder / f"{name}-{seed}.npz")
            for label, make in estimators.items():
                each = found.setdefault(name, {}).setdefault(label, {"values": [], "seconds": []})
                if len(each["values"]) > position:
                    continue
                started = time.process_time()
                value = float(make(verbose=False, seed=seed).estimate(arrays["x"], arrays["y"]))
                each["seconds"].append(time.process_time() - started)
                each["values"].append(value)
                print(f"{name}-{seed}, {label}: {value:.3f} nats, {each['seconds'][-1]:.1f} s", flush=True)
                (folder / "peers.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Samples with known mutual information, from benchmark-mi.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--estimate", action="store_true", help="run the package's estimators on the samples")
    parser.add_argument("--tasks", help=f"comma-separated, of {', '.join(TASKS)}")
    parser.add_argument(
        "--seeds", default=",".join(map(str, SEEDS)), help="of the samples; others than 0, 1, 2 to tune on"
    )
    options = parser.parse_args()
    tasks = options.tasks.split(",") if options.tasks else list(TASKS)
    unknown = [name for name in tasks if name not in TASKS]
    if unknown:
        parser.error(f"unknown tasks {', '.join(unknown)}; expected some of {', '.join(TASKS)}")
    if options.estimate:
        estimate(options.folder, tasks)
    else:
        write_samples(options.folder, tuple(int(seed) for seed in options.seeds.split(",")))


if __name__ == "__main__":
    main()
