"""`mibfast experiment` and `authentic`: sweeps of bottlenecks of two views, and classifiers of true features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mibfast._check import InputError
from mibfast.cli.arguments import numbers, pairs, words
from mibfast.cli.output import averaged_over, resumable, show

_LATENT = 16


def experiment(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="noisy-digits, noisy-mnist:DIR, or other data of two modalities between 0 and 1 with classes.",
            show_default=False,
        ),
    ],
    sweep: Annotated[str, typer.Option(metavar="latent|beta|samples", help="What varies.")],
    output: Annotated[Path, typer.Option(help="Folder of the experiment; one that was interrupted goes on.")],
    values: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Of what varies. [default: latent 2,4,8,16,32,64; beta 1,4,16,64,256,1024; "
            "samples 64,128,256,512,1024]",
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            help="Methods of those listed below, and pixels, the views as they are. The first is compared with each "
            "other.",
        ),
    ] = "dvsib,beta-vae,pixels",
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    latent: Annotated[
        int | None, typer.Option(min=1, help="Length of the latents, where it is not what varies. [default: 16]")
    ] = None,
    beta: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[METHOD=]NUMBER", help="Of all methods or of one, where it is not what varies. [default: 128]"
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="X,Y,Z", help="Fractions of training, validation and test.")
    ] = "0.6,0.2,0.2",
    encoder: Annotated[str, typer.Option(metavar="mlp|conv2d|resnet18", help="Of every latent.")] = "mlp",
    critic: Annotated[
        str, typer.Option(help="Of information between latents, one of those listed below.")
    ] = "bilinear",
    estimator: Annotated[
        str, typer.Option(help="Of information between latents, one of those listed below.")
    ] = "smile",
    hidden_features: Annotated[int, typer.Option(min=1, help="Width of hidden layers.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="At most.")] = 2000,
    patience: Annotated[
        int, typer.Option(min=1, help="Steps without a lower validation loss before training stops.")
    ] = 250,
    batch_size: Annotated[int, typer.Option(min=2)] = 128,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
) -> None:
    """Compare bottlenecks of two views by a linear SVM.

    Each seed makes and splits the data again, and trains every method for every value of the sweep. A linear SVM is
    fitted to the latents' means, its C chosen by the validation split, and scored on the test split.
    """
    from rich.markdown import Markdown

    from mibfast.train.experiments.bottlenecks import experiment as run_experiment

    for option, given in (("beta", beta), ("latent", latent)):
        if given and sweep == option:
            raise InputError(f"--{option} is what varies, by --values")
    with resumable(output / "plan.json", "the same command"):
        result = run_experiment(
            data,
            sweep,
            output,
            values=None if values is None else numbers("--values", values),
            methods=words(methods),
            seeds=seeds,
            latent=_LATENT if latent is None else latent,
            **_beta(beta or []),
            split=numbers("--split", split),
            encoder=encoder,
            critic=critic,
            estimator=estimator,
            hidden_features=hidden_features,
            steps=steps,
            patience=patience,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )
    title = f"{result.title}: test accuracy of a linear SVM in percent"
    show(title, [Markdown(result.markdown())], averaged_over(seeds, output))


def _beta(given: list[str]) -> dict[str, Any]:
    """Return the argument of `--beta`: one number, or one for each method that it names."""
    if len(given) == 1 and "=" not in given[0] and "," not in given[0]:
        return {"beta": numbers("--beta", given[0])[0]}
    if any("=" not in text or "," in text for text in given):
        raise InputError(f"--beta must be one NUMBER, or METHOD=NUMBER for each method, got {' '.join(given)}")
    return (
        {"beta": {name: numbers("--beta", text)[0] for name, text in pairs("--beta", given).items()}} if given else {}
    )


def authentic(
    data: Annotated[str, typer.Argument(metavar="DATA", help="sim-i, sim-ii or sim-iii.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder of the experiment; one that was interrupted goes on.")],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, of the data and the weights.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="At most.")] = 60,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without a lower validation loss.")] = 20,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    depth: Annotated[int, typer.Option(min=1, help="Linear layers of the encoder.")] = 3,
    dropout: Annotated[float, typer.Option(help="Share of its hidden units that training leaves out.")] = 0.0,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
) -> None:
    """Classify synthetic data by their true blocks, an upper bound for fusions.

    Rows are a0 (consistent), [a1; a2] (specific), either modality, [a0; a1; a2] (optimal) and all six blocks (union).
    """
    from rich.markdown import Markdown

    from mibfast.train.experiments.authentic import classify_authentic_features

    result = classify_authentic_features(
        data,
        output,
        seeds=seeds,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        depth=depth,
        dropout=dropout,
        learning_rate=learning_rate,
    )
    show(result.title, [Markdown(result.markdown())], averaged_over(seeds, output))
