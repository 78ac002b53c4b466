"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from mibfast.data import FORMS

Output: TypeAlias = Annotated[Path | None, typer.Option(help="Folder of the run. [default: runs/NAME-DATE-TIME]")]
OtherData: TypeAlias = Annotated[
    str | None, typer.Option(help=f"Other data than the run's, with some of its modalities: {FORMS}.")
]
OwnEncoders: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=ENCODER", help="Your own encoders that the run was trained with, to import them."),
]
Modalities: TypeAlias = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="Modalities to take, in this order. [default: all]")
]
Split: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="X,Y,Z", help="Fractions of training, validation and test. [default: 0.6,0.2,0.2]"),
]
Task: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="auto|classification|regression|anomaly-detection",
        help="Of a fusion; auto is classification, or regression where labels are floats. [default: auto]",
    ),
]
NormalClass: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="LABEL", help="The normal class of anomaly detection, the only one trained on."),
]
WarmUpEpochs: TypeAlias = Annotated[
    int | None, typer.Option(min=0, help="Of omib, before its main training; 0 for none. [default: 1]")
]
Epochs: TypeAlias = Annotated[int | None, typer.Option(min=1, help="At most. [default: 60]")]
Patience: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Epochs without a lower validation loss before training stops. [default: 20]"),
]
BatchSize: TypeAlias = Annotated[int | None, typer.Option(min=2, help="[default: 64]")]
Depth: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Linear layers of MLP encoders, and convolutions. [default: 3]")
]
Dropout: TypeAlias = Annotated[
    float | None, typer.Option(help="Share of MLP encoders' hidden units that training leaves out. [default: 0]")
]
