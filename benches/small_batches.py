"""Times losses as users call them at small batches, beside eager PyTorch and `torch.compile`, step by step in turn.

    python -m benches.small_batches [--losses NAME;..] [--samples N,..] [--features D,..] [--output FILE]

Modules, with their normalisation, forward and backward, N = 32 to 1,024 and d = 128 and 512: medians in microseconds,
and how many times as long the others take. With `--output`, each line is kept in a JSON file as it is measured, and a
second call goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as nn

from benches import peers
from benches.gate import machine
from mibfast import losses

Step = Callable[[], None]
Formula = Callable[[Sequence[Tensor]], Tensor]


class Case(NamedTuple):
    """A loss of M modalities, as a module of mibfast and as a formula."""

    modalities: int
    ours: Callable[[], Formula]
    plain: Formula


def _units(z: Sequence[Tensor]) -> list[Tensor]:
    return [nn.normalize(x, dim=1) for x in z]


def _one_way(z: Sequence[Tensor]) -> Tensor:
    query, key = _units(z)
    return nn.cross_entropy(query @ key.T / 0.07, torch.arange(len(query)))


def _pairwise_clip(z: Sequence[Tensor]) -> Tensor:
    unit, terms = _units(z), []
    target = torch.arange(len(unit[0]))
    for i, query in enumerate(unit):
        for key in unit[i + 1 :]:
            logits = query @ key.T / 0.07
            terms.append(0.5 * (nn.cross_entropy(logits, target) + nn.cross_entropy(logits.T, target)))
    return torch.stack(terms).sum()


def _siglip(z: Sequence[Tensor]) -> Tensor:
    query, key = _units(z)
    return peers.siglip(query, key, torch.tensor(10.0), torch.tensor(-10.0))


def _of_two(loss: torch.nn.Module) -> Formula:
    return lambda z: loss(z[0], z[1])


CASES = {
    "InfoNCELoss": Case(2, lambda: _of_two(losses.InfoNCELoss()), _one_way),
    "PairwiseCLIPLoss, 2": Case(2, losses.PairwiseCLIPLoss, _pairwise_clip),
    "PairwiseCLIPLoss, 3": Case(3, losses.PairwiseCLIPLoss, _pairwise_clip),
    "SigLIPLoss": Case(2, losses.SigLIPLoss, _siglip),
    "OVAIBLoss, 3": Case(3, losses.OVAIBLoss, lambda z: peers.ova_ib(_units(z))),
    "GRAMLoss, 3": Case(3, losses.GRAMLoss, lambda z: peers.gram_info_nce(*_units(z))),
    "BarlowTwinsLoss": Case(2, losses.BarlowTwinsLoss, lambda z: peers.barlow_twins(*z)),
}


def _step(loss: Formula, z: Sequence[Tensor]) -> Step:
    def run() -> None:
        for x in z:
            x.grad = None
        loss(z).backward()

    return run


def measure(case: Case, n: int, d: int, seconds: float = 2.0) -> dict[str, float]:
    """Return the median of each contender in microseconds, their steps taken in turn."""
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(n, d, generator=generator).requires_grad_() for _ in range(case.modalities)]
    torch.compiler.reset()
    contenders = {"mibfast": case.ours(), "eager": case.plain, "compiled": torch.compile(case.plain)}
    steps = {name: _step(loss, z) for name, loss in contenders.items()}
    values = {name: float(loss(z).detach()) for name, loss in contenders.items()}
    if max(values.values()) - min(values.values()) > 1e-3 * (1.0 + abs(values["eager"])):
        raise SystemExit(f"mibfast: error: contenders disagree: {values}")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(5):
            step()
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(times["mibfast"]) < 15:
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    return {name: 1e6 * statistics.median(each) for name, each in times.items()}


def main() -> None:
    """Measure, print a line each, and keep them."""
    numbers = lambda text: [int(each) for each in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", type=lambda text: text.split(";"), default=list(CASES), help="names, by semicolons")
    parser.add_argument("--samples", type=numbers, default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--features", type=numbers, default=[128, 512])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    unknown = [name for name in options.losses if name not in CASES]
    if unknown:
        parser.error(f"no loss is called {unknown[0]!r}; expected some of {'; '.join(CASES)}")
    results: dict[str, Any] = {"machine": machine(), "microseconds": {}}
    if options.output and options.output.exists():
        results = json.loads(options.output.read_text())
    kept = results["microseconds"]
    print(f"{'loss':20} {'N':>5} {'d':>4} {'mibfast':>9} {'eager':>9} {'compiled':>9}   eager/ours  compiled/ours")
    for name in options.losses:
        for d in options.features:
            for n in options.samples:
                key = f"{name}, N = {n}, d = {d}"
                if key not in kept:
                    kept[key] = measure(CASES[name], n, d)
                    if options.output:
                        partial = options.output.with_name(f".{options.output.name}.part")
                        partial.write_text(json.dumps(results, indent=1) + "\n")
                        partial.replace(options.output)
                ours, eager, compiled = (kept[key][each] for each in ("mibfast", "eager", "compiled"))
                print(
                    f"{name:20} {n:5} {d:4} {ours:9.0f} {eager:9.0f} {compiled:9.0f}   "
                    f"{eager / ours:10.2f}  {compiled / ours:13.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
