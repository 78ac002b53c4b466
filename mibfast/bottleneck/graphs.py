"""Graphs of a bottleneck: read from text or from networkx, and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from mibfast import _check
from mibfast._check import InputError

Arrow: TypeAlias = Literal["->", "=>", "--"]
_TOKEN = re.compile(r"[^\S\n]*(?:(?P<arrow>->|=>|--)|(?P<name>[^\W\d]\w*)|(?P<end>[,;\n])|(?P<other>\S))")
# Arguments of the loss's `forward` besides the variables.
_RESERVED = ("noise", "permutations", "self")


@dataclass(frozen=True)
class Edge:
    """An edge: noisy (->), deterministic (=>) or without direction (--)."""

    source: str
    arrow: Arrow
    target: str

    def __str__(self) -> str:
        return f"{self.source} {self.arrow} {self.target}"


def edges(graph_name: str, graph: Any) -> list[Edge]:
    """Return the edges of a graph in text, or of one of networkx: at least one, none twice, none to itself."""
    if isinstance(graph, str):
        result = _of_text(graph_name, graph)
    elif hasattr(graph, "edges") and hasattr(graph, "is_directed"):
        result = _of_networkx(graph_name, graph)
    else:
        raise TypeError(
            f'Bottleneck: {graph_name} must be text such as "X -> Z" or a networkx graph, got {_check.described(graph)}'
        )
    if not result:
        raise InputError(f'Bottleneck: the {graph_name} has no edges; expected some, as in "X -> Z"')
    seen: dict[frozenset[str] | tuple[str, str], Edge] = {}
    for edge in result:
        if edge.source == edge.target:
            raise InputError(f"Bottleneck: {graph_name} edge {edge} leads from {edge.source} to itself")
        key = frozenset((edge.source, edge.target)) if edge.arrow == "--" else (edge.source, edge.target)
        if key in seen:
            raise InputError(f"Bottleneck: {graph_name} edges {seen[key]} and {edge} are the same; write it once")
        seen[key] = edge
    for name in nodes(result):
        if name in _RESERVED:
            raise InputError(f"Bottleneck: {graph_name} calls a variable {name!r}, which has another use; rename it")
    return result


def nodes(edges: Iterable[Edge]) -> list[str]:
    """Return the variables of edges, in the order in which they come."""
    return list(dict.fromkeys(name for edge in edges for name in (edge.source, edge.target)))


def _of_text(graph_name: str, text: str) -> list[Edge]:
    """Read edges, or chains of them, that commas, semicolons or new lines separate."""
    result: list[Edge] = []
    source: str | None = None
    arrow: Arrow | None = None
    chained = False

    def refuse(expected: str, got: str, position: int) -> InputError:
        where = f"at the end of {text!r}" if got == "" else f"at character {position + 1} of {text!r}"
        return InputError(f"Bottleneck: {graph_name}: expected {expected}{f', got {got!r}' if got else ''} {where}")

    position = 0
    while match := _TOKEN.match(text, position):
        kind = cast(str, match.lastgroup)
        token, start = match[kind], match.start(kind)
        position = match.end()
        if source is None:
            if kind == "name":
                source, chained = token, False
            elif not (kind == "end" and token == "\n"):
                raise refuse("the name of a variable", token, start)
        elif arrow is None:
            if kind == "arrow":
                arrow = cast(Arrow, token)
            elif kind == "end" and chained:
                source = None
            elif kind == "end":
                raise refuse("an arrow (->, => or --; several parents are several edges: X -> Z, Y -> Z)", token, start)
            else:
                raise refuse("an arrow (->, => or --)" + (" or a comma" if chained else ""), token, start)
        elif kind == "name":
            result.append(Edge(source, arrow, token))
            source, arrow, chained = token, None, True
        else:
            raise refuse(f"the name of a variable after {source} {arrow}", token, start)
    if arrow is not None:
        raise refuse(f"the name of a variable after {source} {arrow}", "", position)
    if source is not None and not chained:
        raise refuse(f"an arrow after {source}", "", position)
    return result


def _of_networkx(graph_name: str, graph: Any) -> list[Edge]:
    """Read a graph of networkx; an edge's attribute `deterministic` makes it deterministic."""
    joined = {name for source, target in graph.edges() for name in (source, target)}
    for name in graph.nodes():
        if not (isinstance(name, str) and re.fullmatch(r"[^\W\d]\w*", name)):
            raise InputError(f"Bottleneck: {graph_name} has a node {name!r}; expected names such as 'ZX'")
        if name not in joined:
            raise InputError(f"Bottleneck: {graph_name} has a node {name} without edges")
    undirected: Arrow = "--"
    return [
        Edge(source, undirected if not graph.is_directed() else "=>" if data.get("deterministic") else "->", target)
        for source, target, data in graph.edges(data=True)
    ]


def ordered(graph_name: str, edges: Sequence[Edge]) -> list[str]:
    """Return the variables of directed edges, parents before children; refuse a cycle."""
    parents = {name: [edge.source for edge in edges if edge.target == name] for name in nodes(edges)}
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in path:
            cycle = " -> ".join([name, *reversed(path[path.index(name) :])])
            raise InputError(f"Bottleneck: {graph_name} has a cycle: {cycle}")
        if name in order:
            return
        path.append(name)
        for parent in parents[name]:
            visit(parent)
        path.pop()
        order.append(name)

    for name in parents:
        visit(name)
    return order
