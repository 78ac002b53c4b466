"""Time and memory of an epoch of OMIB's training by the number of samples, in either stage (figure 4 of its paper).

    python -m benches.fusion_epochs                          100,000 to 1,000,000 samples of SIM-III (7 GB at a time)
    python -m benches.fusion_epochs --samples 10000 20000    others
    python -m benches.fusion_epochs --method concatenation   another fusion

Samples are drawn into a folder of files that training reads as it needs them, and removed again. Each training runs in
a process of its own: two epochs of each stage, of which the second counts. Exit status 1 where a claim is missed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

from benches.loading import GIB, RESULTS, run
from mibfast.data.sim import write_sim
from mibfast.train.methods import Fusion, method

SAMPLES = (100_000, 200_000, 400_000, 600_000, 800_000, 1_000_000)
BATCH = 1024
# Of the time a sample takes, most samples against fewest.
TIME_GROWTH = 1.2
EXTRA_MEMORY_GIB = 0.5

TRAIN = """
import json, sys
from pathlib import Path
from mibfast import train
name, place, batch, warm_up, options = sys.argv[1:]
settings = {"epochs": 2, "batch_size": int(batch), "depth": 2, "learning_rate": 1e-4, **json.loads(options)}
if warm_up == "True":
    settings["warm_up_epochs"] = 2
found = train.fit(name, "dir:" + place, progress=False, **settings)
# Of this program alone: what getrusage gives begins with the parent's.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
# The first epoch of a stage compiles.
stages = {row.get("stage", "main"): row for row in found.epochs}
print(json.dumps({
    **{f"{stage}_{key}": row[key] for stage, row in stages.items() for key in ("seconds", "loading_seconds")},
    "peak": int(status["VmHWM"].split()[0]) * 1024,
}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=list(SAMPLES), help="in growing order")
    parser.add_argument("--method", default="omib")
    parser.add_argument("--folder", type=Path, help="where the data are written, and removed again")
    options = parser.parse_args()
    chosen = method(options.method)
    if not isinstance(chosen, Fusion):
        parser.error(f"{options.method} is no fusion")
    # Any beta: it changes no time.
    loss = {"loss": {"beta": 1e-3}} if chosen.estimates_beta else {}
    found = []
    for samples in options.samples:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write_sim(folder, "sim-iii", samples)
            warm_up = str(len(chosen.stages) > 1)
            row = json.loads(run(TRAIN, options.method, folder, str(BATCH), warm_up, json.dumps(loss)))
        found.append({"samples": samples, **row})
        print(json.dumps(found[-1]), flush=True)
    first, last = found[0], found[-1]
    claims = {}
    if len(found) > 1:
        for stage in chosen.stages:
            key = f"{stage}_seconds"
            growth = (last[key] / last["samples"]) / (first[key] / first["samples"])
            claims[f"{stage}: time a sample grows by {TIME_GROWTH}x at most"] = growth <= TIME_GROWTH
        extra = (last["peak"] - first["peak"]) / GIB
        claims[f"memory grows by {EXTRA_MEMORY_GIB} GiB at most"] = extra <= EXTRA_MEMORY_GIB
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "method": options.method,
        "batch": BATCH,
        "epochs": found,
        "claims": claims,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"fusion-epochs-{options.method}-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
