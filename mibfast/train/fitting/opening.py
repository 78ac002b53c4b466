"""Runs opened again from their folders, nothing in which is trusted or executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from mibfast import _check
from mibfast.data import DataError, MultimodalData, load
from mibfast.data.multimodal import channel_axes, why_no_modality
from mibfast.train.errors import RunError
from mibfast.train.fitting.config import RunConfig, checked_names
from mibfast.train.fitting.modules import MultimodalModule, assembled, build_module
from mibfast.train.fitting.requirements import open_data
from mibfast.train.fitting.run import Run
from mibfast.train.fitting.targets import Target
from mibfast.train.folder import CONFIG, RunFolder
from mibfast.train.json_files import NUMBER, check_form
from mibfast.train.memory import sketched
from mibfast.train.methods import Alignment, Fusion, method


@dataclass(frozen=True)
class Description:
    """What a run's `config.json` says about it."""

    config: RunConfig
    shapes: Mapping[str, tuple[int, ...]]
    fingerprint: str
    target: Target | None
    beta: Mapping[str, Any] | None


def read_description(folder: RunFolder) -> Description:
    """Read a run's `config.json`; RunError where it is damaged, or says what no run has written."""
    place, content = folder.path / CONFIG, folder.read_config()
    settings = checked_names(content["settings"], str(place))
    try:
        config = RunConfig(**settings)
        check_form(content, {"data": {"shapes": {str: [int]}, "fingerprint": str}})
        shapes = {name: tuple(shape) for name, shape in content["data"]["shapes"].items()}
        for name, shape in shapes.items():
            why = why_no_modality(name)
            if why is not None:
                raise ValueError(f"a modality cannot be called {name!r}: {why}")
            if not all(1 <= size < 2**63 for size in shape):
                raise ValueError(f"samples of modality {name!r} cannot be of shape {list(shape)}")
        target = Target.from_json(content["target"]) if "target" in content else None
        beta = content.get("beta")
        if beta is not None:
            check_form(beta, {"beta": NUMBER}, "its beta")
        if not shapes or isinstance(method(config.method), Fusion) != (target is not None):
            raise ValueError("it does not say which modalities and which target it has")
    except (TypeError, ValueError) as error:
        raise RunError(f"{place} is damaged: {error}") from error
    return Description(config, shapes, content["data"]["fingerprint"], target, beta)


def open_run(
    path: str | Path,
    *,
    data: str | MultimodalData | None = None,
    encoders: Mapping[str, str] | None = None,
    whole: bool = False,
) -> Run:
    """Open the folder of a run that has ended. Nothing that it holds is executed.

    Parameters
    ----------
    path : str or Path
    data : str or MultimodalData, optional
        Other data than the run's: of all its modalities or of some, in the shapes that it was trained on.
    encoders : mapping from a modality's name to "module:callable", optional
        Must name a user's own encoders once more, since opening the run imports them.
    whole : bool
        Do not split other data at random: they have `"all"` samples only, and may be few.

    Raises
    ------
    RunError
        For a folder that holds no run that has ended, that is damaged or of another version, or whose data are no
        longer what it was trained on.
    DataError
        For data that cannot be used or do not fit.
    """
    _check.boolean("open_run", "whole", whole)
    folder = RunFolder(Path(path))
    description = read_description(folder)
    config, shapes, target, beta = description.config, description.shapes, description.target, description.beta
    metrics = folder.read_metrics()
    for name, encoder in config.encoders.items():
        if ":" in encoder and (encoders or {}).get(name) != encoder:
            raise RunError(
                f"{folder.path} was trained with an encoder of its own; to have it imported, "
                f"give it once more: --encoder {name}={encoder}"
            )
    weights = folder.read_weights(metrics["weights_sha256"])
    statistics = _placeholders(config, shapes, weights)
    with isolate_rng():
        if not any(":" in encoder for encoder in config.encoders.values()):
            # Before memory is taken for what a damaged config asks for.
            sketch = sketched(partial(assembled, config, shapes, statistics, target, beta))
            _refuse_other_shapes(sketch.state_dict(), weights, str(folder.path))
        module = build_module(config, shapes, statistics, target, beta)
    load_weights(module, weights, str(folder.path))
    if data is None:
        opened = open_data(config)
        if opened.fingerprint() != description.fingerprint:
            raise RunError(
                f"{opened.name} does not hold the data, or not in the splits, that the run in {folder.path} was "
                "trained on; give the data to use"
            )
    else:
        other = dataclasses.replace(config, modalities=None)
        opened = load(data, config.seed, split=None) if whole and isinstance(data, str) else open_data(other, data)
    opened = _known_modalities(opened, shapes)
    if target is not None and len(opened.views) < len(shapes):
        raise DataError(f"{opened.name}: a fusion needs all of {', '.join(shapes)}; got {', '.join(opened.views)}")
    return Run(module.eval(), opened, config, metrics["epochs"], metrics["best_epoch"], folder.path, target, beta)


def _placeholders(
    config: RunConfig, shapes: Mapping[str, Sequence[int]], weights: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return statistics of the shapes that the weights hold, in whose place the weights will be loaded."""
    statistics, owner = {}, "" if isinstance(method(config.method), Alignment) else "model."
    for name, shape in shapes.items():
        mean = weights.get(f"{owner}encoders.{name}.0.mean")
        if mean is None or mean.shape != torch.Size(shape[len(channel_axes(1 + len(shape))) - 1 :]):
            raise RunError(f"the weights are damaged: none fit modality {name!r} of shape {list(shape)}")
        statistics[name] = (mean, torch.ones_like(mean))
    return statistics


def _known_modalities(data: MultimodalData, shapes: Mapping[str, tuple[int, ...]]) -> MultimodalData:
    """Return the data with the run's modalities alone, which must have the shapes that it was trained on."""
    names = [name for name in shapes if name in data.views]
    if not names:
        raise DataError(
            f"{data.name}: has none of the run's modalities {', '.join(shapes)}; got {', '.join(data.views)}"
        )
    for name in names:
        if data.views[name].shape[1:] != shapes[name]:
            raise DataError(
                f"{data.name}: modality {name!r} has samples {list(data.views[name].shape[1:])}, "
                f"and the run was trained on {list(shapes[name])}"
            )
    return data.only(names)


def _refuse_other_shapes(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    for name, x in expected.items():
        weight = weights.get(name)
        if weight is None or (weight.shape, weight.dtype) != (x.shape, x.dtype):
            got = "nothing" if weight is None else f"{list(weight.shape)} of {weight.dtype}"
            raise RunError(
                f"{source}: the weights do not fit the settings: {name} is {got}, expected {list(x.shape)} of {x.dtype}"
            )


def load_weights(module: MultimodalModule, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a module; RunError, which names their source, where they are not its own."""
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise RunError(
            f"{source}: the weights do not fit the settings: {str(error).splitlines()[-1].strip()}"
        ) from error
