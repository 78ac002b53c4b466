"""`mibfast derive`: the loss of an information bottleneck, from its two graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mibfast._check import InputError


def derive(
    encoder: Annotated[str, typer.Option(help='What is compressed: "X -> ZX, Y -> ZY".')],
    decoder: Annotated[str, typer.Option(help='What is predicted: "ZX -> X, ZY -> Y, ZX -- ZY".')],
    beta: Annotated[float, typer.Option(min=0.0, help="Weight of what is predicted.")] = 1.0,
    latex: Annotated[bool, typer.Option("--latex", help="Print the loss as LaTeX.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw both graphs into this file.")] = None,
) -> None:
    """Derive an information bottleneck's loss from its graphs."""
    from mibfast.bottleneck import Bottleneck

    derived = Bottleneck(encoder, decoder, beta)
    print(derived.latex() if latex else derived)
    if picture is not None:
        try:
            derived.draw(picture)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot draw into {picture}: {error}") from error
