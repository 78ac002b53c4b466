"""How training reads data: the share of an epoch that waits for it, the memory, and how soon a first epoch ends.

    python -m benches.loading                        1,000,000 samples of 3 modalities x 512 (6 GB, removed again)
    python -m benches.loading --samples 100000       fewer

The data are random: what is measured is how they are read. Each training runs in a process of its own. Exit status 1
where a claim is missed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"
FEATURES, MODALITIES, BATCH = 512, ("image", "text", "audio"), 512
GIB = 2**30
# Beyond what training on a hundredth of the samples takes.
EXTRA_MEMORY_GIB = 0.5
STEP_SHARE = 0.9
FIRST_EPOCH_SECONDS = 1.0

TRAIN = """
import json, sys
from pathlib import Path
from mibfast import train
run = train.fit("ova-ib", "dir:" + sys.argv[1], epochs=1, batch_size=int(sys.argv[2]), progress=False)
# Of this program alone: what getrusage gives begins with the parent's.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({**run.epochs[0], "peak": int(status["VmHWM"].split()[0]) * 1024}))
"""

FIRST_EPOCH = """
import time
started = time.perf_counter()
from mibfast import train
imported = time.perf_counter()
from mibfast.data import load
load("digits")
fitted = []
for _ in range(2):
    begun = time.perf_counter()
    run = train.fit("ova-ib", "digits", epochs=1, progress=False)
    fitted.append(time.perf_counter() - begun)
print(imported - started, *fitted)
"""


def write(folder: Path, samples: int) -> None:
    generator = np.random.default_rng(0)
    for name in MODALITIES:
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (samples, FEATURES))
        for start in range(0, samples, 10_000):
            rows = array[start : start + 10_000]
            rows[:] = generator.standard_normal(rows.shape, np.float32)
        array.flush()


def run(program: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mibfast: error: {done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the data are written, and removed again")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, samples in (("few", options.samples // 100), ("many", options.samples)):
            place = Path(folder) / name
            place.mkdir()
            write(place, samples)
            found[name] = json.loads(run(TRAIN, str(place), str(BATCH)))
    many, few = found["many"], found["few"]
    share = 1 - many["loading_seconds"] / many["seconds"]
    extra = (many["peak"] - few["peak"]) / GIB
    imported, first, second = (float(x) for x in run(FIRST_EPOCH).split())
    claims = {
        f"share of an epoch in the step >= {STEP_SHARE}": share >= STEP_SHARE,
        f"memory beyond that of 1/100 of the samples <= {EXTRA_MEMORY_GIB} GiB": extra <= EXTRA_MEMORY_GIB,
        f"a first epoch of digits <= {FIRST_EPOCH_SECONDS} s after fit() was called": first <= FIRST_EPOCH_SECONDS,
    }
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "samples": options.samples,
        "data_gib": options.samples * FEATURES * 4 * len(MODALITIES) / GIB,
        "batch": BATCH,
        "epoch_seconds": many["seconds"],
        "loading_seconds": many["loading_seconds"],
        "step_share": share,
        "peak_gib": many["peak"] / GIB,
        "extra_memory_gib": extra,
        "digits": {"import_seconds": imported, "first_fit_seconds": first, "second_fit_seconds": second},
        "claims": claims,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"loading-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
