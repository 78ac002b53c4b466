"""A picture of a bottleneck's two graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mibfast.bottleneck.formulation import Bottleneck

_RADIUS, _COLUMN, _ROW = 0.28, 1.2, 1.4


def draw(bottleneck: Bottleneck, path: Any = None) -> Figure:
    """Draw the encoder and the decoder side by side: observed variables grey and below, latents white and above.

    Deterministic edges are dashed; a line without a head is information both ways.
    """
    from matplotlib.figure import Figure

    places = _places(bottleneck)
    width = 1.4 + max(x for x, _ in places.values())
    height = 1.4 + max(y for _, y in places.values())
    figure = Figure(figsize=(2 * (width + 0.4), height + 0.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, title, edges in (
        (panels[0], "encoder: compress", bottleneck.encoder_edges),
        (panels[1], "decoder: predict", bottleneck.decoder_edges),
    ):
        shown = {name for edge in edges for name in (edge.source, edge.target)}
        circles = {name: _draw_node(axes, places[name], name, name in bottleneck.latents) for name in shown}
        for edge in edges:
            _draw_edge(axes, circles[edge.source], circles[edge.target], edge.arrow)
        axes.set(title=title, xlim=(-0.7, width - 0.7), ylim=(-0.7, height - 0.7), aspect="equal")
        axes.axis("off")
    if path is not None:
        figure.savefig(path, dpi=150, bbox_inches="tight")
    return figure


def _places(bottleneck: Bottleneck) -> dict[str, tuple[float, float]]:
    """Where each variable stands: a row for what is observed, and one for each depth of latents above it."""
    depth = dict.fromkeys(bottleneck.observed, 0)
    for name, parents in bottleneck.parents.items():
        depth[name] = 1 + max(depth[parent] for parent in parents)
    rows: dict[int, list[str]] = {}
    for name, row in depth.items():
        rows.setdefault(row, []).append(name)
    widest = max(map(len, rows.values()))
    return {
        name: (_COLUMN * (position + (widest - len(names)) / 2), _ROW * row)
        for row, names in rows.items()
        for position, name in enumerate(names)
    }


def _draw_edge(axes: Any, start: Any, end: Any, arrow: str) -> None:
    """Draw an edge between two circles."""
    from matplotlib.patches import FancyArrowPatch

    (x, y), (other_x, other_y) = start.center, end.center
    # A straight line between nodes that are not neighbours could pass through another node.
    bent = abs(other_y - y) > 1.5 * _ROW or (y == other_y and abs(other_x - x) > 1.5 * _COLUMN)
    axes.add_patch(
        FancyArrowPatch(
            start.center,
            end.center,
            patchA=start,
            patchB=end,
            arrowstyle="-" if arrow == "--" else "-|>",
            linestyle="--" if arrow == "=>" else "-",
            connectionstyle=f"arc3,rad={0.35 if bent else 0.0}",
            mutation_scale=12,
            color="black",
        )
    )


def _draw_node(axes: Any, place: tuple[float, float], name: str, latent: bool) -> Any:
    from matplotlib.patches import Circle

    circle = Circle(place, _RADIUS, facecolor="white" if latent else "#D9D9D9", edgecolor="black", zorder=2)
    axes.add_patch(circle)
    axes.text(*place, name, ha="center", va="center", fontsize=9, parse_math=False, zorder=3)
    return circle
