"""Steps of training captured into CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def assert_a_graph_repeats(step: Callable[[], list[Tensor]], change: Callable[[], object]) -> None:
    """Captured into a graph and replayed after its inputs were changed, a step gives what it gives at a call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        change()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))
