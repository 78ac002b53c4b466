"""Runs the benches, judges every claim, writes the results, and makes the README's table from them.

    python -m benches.gate                 run all rows; exit status 1 where a claim is missed, a row is missing, or a
                                           figure has left its band, for the worse or for the better
    python -m benches.gate --rows NAME,..  run some rows, write nothing
    python -m benches.gate --bands RUNS    run all rows several times and write how far runs of one commit differ
    python -m benches.gate --table FILE    print the README's table of a results file
    python -m benches.gate --readme FILE   put that table into the README

A figure is compared with the last committed result of the same machine. Below its band it is a regression; above, and
above what is claimed, it is a win that nobody claimed, and the gate holds until the claim is raised to it.

Timed rows run one after another in one process, contenders interleaved round by round; memory and start-up are measured
in processes of their own afterwards. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import torch

import mibfast
from benches import memory, start
from benches.rows import OURS, Row, rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benches" / "results"
BANDS = RESULTS / "bands.json"
MIB = 2**20
# Of n runs of one commit, the next leaves the range of those before with probability 2 / (n + 1): a band is as wide
# twice, in the logarithm, and no narrower than timers are exact.
_WIDENED, _NARROWEST = 2, 1.02
# A claim that is beaten by more is no claim, whatever was found before.
_FAR = 5.0


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Return what figures were measured on."""
    return {"processor": _processor(), "threads": torch.get_num_threads(), "system": platform.system()}


def _timed(names: list[str]) -> dict[str, dict[str, float]]:
    """Median seconds of each contender and floor, by row."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmark.json"
        selection = [f"benches/bench_rows.py::test_row[{name}]" for name in names]
        options = ["-q", "--import-mode=importlib", "-o", "addopts=", "-o", "timeout=0", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, f"--benchmark-json={report}", *selection]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode or not report.exists():
            raise SystemExit("mibfast: error: the timed rows failed, see above")
        found = {}
        for entry in json.loads(report.read_text())["benchmarks"]:
            extra = entry["extra_info"]
            found[extra["row"]] = {OURS: entry["stats"]["median"], **extra["peers"]}
    return found


def _with_the_best(seconds: dict[str, float]) -> dict[str, float]:
    """Add what bars call the best chunk and the fastest peer."""
    added: dict[str, float] = {}
    for name, t in seconds.items():
        peer, chunk, _ = name.partition(", chunk ")
        if chunk:
            best = f"{peer}, best chunk"
            added[best] = min(t, added.get(best, t))
    peers = [seconds[name] for name in ("eager", "torch.compile") if name in seconds]
    return {**seconds, **added, **({"fastest peer": min(peers)} if peers else {})}


def _claim(claim: str, bound: float, found: float | None, digits: int = 3) -> dict[str, Any]:
    """What is claimed, `>= bound` or `<= bound`, and what was found."""
    least = ">=" in claim
    met = found is not None and (found >= bound if least else found <= bound)
    ratio = None if found is None else round(found, digits)
    return {"claim": claim, "bound": bound, "least": least, "ratio": ratio, "met": met}


def _judged(row: Row, seconds: dict[str, float]) -> list[dict[str, Any]]:
    claims = []
    everything = _with_the_best(seconds)
    for bar in row.bars:
        ratio = bar.ratio(everything)
        if bar.least is not None:
            claims.append(_claim(f">= {bar.least:g}x faster than {bar.peer}", bar.least, ratio))
        elif bar.most is not None:
            claims.append(_claim(f"<= {bar.most:g}x the time of {bar.peer}", bar.most, ratio))
    return claims


def _workspaces(name: str, row: Row) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Bytes of workspace by contender, and the claims about them."""
    found, claims = {}, []
    if not (row.workspace_bytes or row.workspace_share):
        return {}, []
    for contender in (OURS, *row.workspace_of):
        measured = memory.measure(name, contender)
        if measured is None:
            return {}, [_claim("workspace <= what is claimed", 0.0, None)]
        found[contender] = measured[0]
    if row.workspace_bytes:
        limit = row.workspace_bytes / MIB
        claims.append(_claim(f"workspace <= {limit:.0f} MiB", limit, found[OURS] / MIB, 1))
    if row.workspace_share:
        peer, share = row.workspace_share
        claims.append(_claim(f"workspace <= {share:.0%} of {peer}'s", share, found[OURS] / found[peer], 4))
    return found, claims


def _large_row(name: str, row: Row, of_eager: str) -> dict[str, Any]:
    measured = memory.measure(name, OURS)
    size, seconds = measured if measured is not None else (None, None)
    limit = (row.workspace_bytes or 0) / MIB
    claim = f"workspace <= {limit:.0f} MiB, where {of_eager}"
    return {
        "title": row.title,
        "seconds": {OURS: seconds},
        "workspace": {OURS: size},
        "claims": [_claim(claim, limit, None if size is None else size / MIB, 1)],
    }


def _start_row() -> dict[str, Any]:
    seconds = start.measure()
    limits = (("first loss, cold", 6.0), ("first loss, warm", 1.0))
    claims = [_claim(f"{name} cache <= {limit:g} s", limit, seconds[name]) for name, limit in limits]
    ratio = seconds["import mibfast"] / seconds["import torch"]
    claims.append(_claim("import mibfast <= 1.3x import torch", 1.3, ratio))
    return {"title": "first OVAIBLoss forward + backward in a process, N=256", "seconds": seconds, "claims": claims}


def measure(names: list[str], everything: bool) -> dict[str, Any]:
    """Measure rows and judge their claims."""
    table = rows()
    found: dict[str, Any] = {}
    for name, seconds in _timed(names).items():
        row = table[name]
        workspace, claims = _workspaces(name, row)
        floor = None if row.floor is None else {"name": row.floor[0], "share": seconds[row.floor[0]] / seconds[OURS]}
        found[name] = {
            "title": row.title,
            "seconds": seconds,
            "floor": floor,
            "workspace": workspace,
            "claims": [*_judged(row, seconds), *claims],
        }
    if everything:
        for name, (row, of_eager) in memory.large_rows().items():
            found[name] = _large_row(name, row, of_eager)
        found["start"] = _start_row()
    missing = [name for name in names if name not in found]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": mibfast.info()["versions"],
        "rows": found,
        "missing": missing,
    }


def missed(results: dict[str, Any]) -> list[str]:
    """What keeps a release back."""
    claims = [(row["title"], claim) for row in results["rows"].values() for claim in row["claims"]]
    failed = [f"{title}: {c['claim']} (found {c['ratio']})" for title, c in claims if not c["met"]]
    return failed + [f"{name}: not measured" for name in results["missing"]]


def _about(claim: str) -> str:
    """What a claim is about, whatever its bound."""
    return re.sub(r"[<>]= [\d.]+(x|%)? ", "", claim)


def _figures(results: dict[str, Any]) -> dict[tuple[str, str], float]:
    """What was found, by row and by what the claim is about."""
    claims = [(name, claim) for name, row in results["rows"].items() for claim in row["claims"]]
    # A workspace of nothing has no ratio to another.
    return {(name, _about(c["claim"])): c["ratio"] for name, c in claims if c["ratio"] is not None and c["ratio"] > 0}


def bands_of(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The largest figure over the smallest in runs of one commit, by row and by what the claim is about."""
    bands: dict[str, dict[str, float]] = {}
    figures = [_figures(run) for run in runs]
    for name, about in figures[0]:
        found = [each[name, about] for each in figures if (name, about) in each]
        bands.setdefault(name, {})[about] = round(max(found) / min(found), 4)
    return bands


def moved(results: dict[str, Any], last: dict[str, Any] | None, bands: dict[str, dict[str, float]]) -> list[str]:
    """Regressions, wins that nobody claimed, and figures without a band, of `results` after the results `last`."""
    before = {} if last is None else _figures(last)
    lines = []
    for name, row in results["rows"].items():
        for claim in row["claims"]:
            about, found = _about(claim["claim"]), claim["ratio"]
            if found is None or found <= 0:
                continue
            subject = f"{row['title']}: {claim['claim']} (found {found}"
            if about not in bands.get(name, {}):
                lines.append(f"no band: {subject})")
                continue
            allowed = max(bands[name][about], _NARROWEST) ** _WIDENED
            # More than 1 is better, whichever way the claim goes.
            over_claim = found / claim["bound"] if claim["least"] else claim["bound"] / found
            old = before.get((name, about))
            gain = 1.0 if old is None else found / old if claim["least"] else old / found
            compared = f"{subject}, {old} before, band {allowed:.2f}x)"
            if gain < 1 / allowed:
                lines.append(f"regression: {compared}")
            elif (gain > allowed and over_claim > allowed) or over_claim > max(_FAR, allowed):
                lines.append(f"unclaimed win: {compared}")
    return lines


def _last_committed(machine: dict[str, Any]) -> dict[str, Any] | None:
    """The newest committed results of this machine."""
    folder = RESULTS.relative_to(ROOT).as_posix()
    listed = _git("ls-tree", "--name-only", "HEAD", f"{folder}/")
    for path in sorted(listed.split(), reverse=True):
        if Path(path).name.startswith("cpu-"):
            results: dict[str, Any] = json.loads(_git("show", f"HEAD:{path}"))
            if results["machine"] == machine:
                return results
    return None


def _git(*arguments: str) -> str:
    """What git says; nothing outside a checkout."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


_BEGIN = "<!-- benchmarks: made by `python -m benches.gate --readme FILE` -->"
_END = "<!-- end of benchmarks -->"


def in_readme(readme: str, table: str) -> str:
    """The README with its table replaced."""
    before, rest = readme.split(_BEGIN)
    return f"{before}{_BEGIN}\n{table}\n{_END}{rest.split(_END)[1]}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "not run"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def markdown(results: dict[str, Any]) -> str:
    """The README's table of a results file."""
    machine, versions = results["machine"], results["versions"]
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, float32, forward + backward, {results['date']}, "
        f"torch {versions['torch']}, numba {versions['numba']}. Medians of interleaved runs.",
        "",
        "| what | mibfast | against | workspace | claims |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"].values():
        seconds = row["seconds"]
        ours = seconds.get(OURS)
        ratios = [f"{t / ours:.2g}x {name}" for name, t in seconds.items() if name != OURS and ours]
        if ours is None:
            ratios = [f"{name} {t:.2g} s" for name, t in seconds.items()]
        size = row.get("workspace", {}).get(OURS)
        held = "" if size is None else f"{max(size, 0) / MIB:.0f} MiB"
        others = [f"{name} {b / MIB:.0f} MiB" for name, b in row.get("workspace", {}).items() if name != OURS]
        shortfall = [f"missed: {c['claim']} (found {c['ratio']})" for c in row["claims"] if not c["met"]]
        verdict = "; ".join(shortfall) or f"all {len(row['claims'])} met"
        workspace = ", ".join([held, *others]) if held else ""
        time_of_ours = _milliseconds(ours) if ours is not None else ""
        lines.append(f"| {row['title']} | {time_of_ours} | {'; '.join(ratios)} | {workspace} | {verdict} |")
    return "\n".join(lines)


def _print(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("row", "contender", "time", "times mibfast", "workspace", "claim", "found", "")
    for row in results["rows"].values():
        seconds, claims = row["seconds"], list(row["claims"])
        for position, (name, t) in enumerate(seconds.items()):
            ours = seconds.get(OURS)
            size = row.get("workspace", {}).get(name)
            claim = claims.pop(0) if claims else None
            table.add_row(
                row["title"] if position == 0 else "",
                name,
                _milliseconds(t),
                f"{t / ours:.2f}" if ours and t else "",
                "" if size is None else f"{size / MIB:.1f} MiB",
                claim["claim"] if claim else "",
                str(claim["ratio"]) if claim else "",
                ("[green]met[/]" if claim["met"] else "[red]missed[/]") if claim else "",
            )
        for claim in claims:
            verdict = "[green]met[/]" if claim["met"] else "[red]missed[/]"
            table.add_row("", "", "", "", "", claim["claim"], str(claim["ratio"]), verdict)
        table.add_section()
    Console(width=180 if not sys.stdout.isatty() else None).print(table)


def _write(path: Path, content: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
    print(f"written to {path.relative_to(ROOT)}")


def _write_bands(count: int) -> None:
    runs = [measure(list(rows()), everything=True) for _ in range(count)]
    about = {key: runs[-1][key] for key in ("date", "machine", "versions")}
    _write(RESULTS / f"cpu-{about['date']}.json", runs[-1])
    _write(BANDS, {**about, "commit": _git("rev-parse", "HEAD").strip(), "runs": count, "bands": bands_of(runs)})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mibfast: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the gate; the exit status."""
    parser = _Parser(prog="mibfast bench", description="Measure against the peers and the floors.")
    parser.add_argument("--rows", help=f"comma-separated, of {', '.join(rows())}; writes nothing")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the README's table of a results file")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put the table of a results file into the README")
    parser.add_argument("--bands", type=int, metavar="RUNS", help="run all rows so often; write bands and the last run")
    options = parser.parse_args(argv)
    if options.bands is not None:
        if options.bands < 2:
            parser.error(f"--bands must be at least 2 runs, got {options.bands}")
        _write_bands(options.bands)
        return 0
    file = options.table or options.readme
    if file is not None:
        try:
            table = markdown(json.loads(file.read_text()))
        except (OSError, ValueError, KeyError) as error:
            parser.error(f"{file} is no results file: {error}")
        if options.table:
            print(table)
        else:
            readme = ROOT / "README.md"
            readme.write_text(in_readme(readme.read_text(), table))
        return 0
    names = options.rows.split(",") if options.rows else list(rows())
    unknown = [name for name in names if name not in rows()]
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; expected some of {', '.join(rows())}")
    results = measure(names, everything=not options.rows)
    _print(results)
    failed = [f"missed: {line}" for line in missed(results)]
    bands = json.loads(BANDS.read_text()) if BANDS.exists() else {"machine": None, "bands": {}}
    if not options.rows:
        if bands["machine"] == results["machine"]:
            failed += moved(results, _last_committed(results["machine"]), bands["bands"])
        else:
            failed.append("no bands of this machine: make them with `python -m benches.gate --bands RUNS`")
        _write(RESULTS / f"cpu-{results['date']}.json", results)
    for line in failed:
        print(line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
