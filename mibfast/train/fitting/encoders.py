"""An encoder for each modality: by the shape of its arrays, by name, or a user's own."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mibfast.data.multimodal import nearest
from mibfast.nn import (
    Conv1dEncoder,
    Conv2dEncoder,
    LSTMEncoder,
    MLPEncoder,
    ResNet18Encoder,
    Standardisation,
)
from mibfast.train.errors import RunError

ENCODERS = ("mlp", "conv1d", "lstm", "conv2d", "resnet18")
_IMAGES = ("conv2d", "resnet18")


def build_encoders(
    shapes: Mapping[str, Sequence[int]],
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    features: int,
    chosen: Mapping[str, str],
    depth: int = 3,
    bias: bool = True,
    dropout: float = 0.0,
) -> dict[str, nn.Module]:
    """Build an encoder for each modality, standardisation first.

    Parameters
    ----------
    shapes : mapping from a modality's name to the shape of one sample
    statistics : mapping from a modality's name to mean and standard deviation
        As :meth:`mibfast.data.MultimodalData.statistics` returns them.
    features : int
        Length of a representation.
    chosen : mapping from a modality's name to an encoder's name
    depth : int
    bias : bool
    dropout : float
        See :func:`build_encoder`.

    Raises
    ------
    RunError
        For a modality or an encoder that is not there, an encoder that does not fit, or a dropout that is of none.
    """
    for name in chosen:
        if name not in shapes:
            raise RunError(f"an encoder is chosen for modality {name!r}, which there is not{nearest(name, shapes)}")
    encoders: dict[str, nn.Module] = {
        name: nn.Sequential(
            Standardisation(*statistics[name]),
            build_encoder(name, shape, features, chosen.get(name), depth, bias, dropout),
        )
        for name, shape in shapes.items()
    }
    if dropout and not any(isinstance(part, nn.Dropout) for each in encoders.values() for part in each.modules()):
        raise RunError(f"dropout = {dropout:g} is of the hidden layers of mlp encoders, and no encoder has any")
    return encoders


def build_encoder(
    modality: str,
    shape: Sequence[int],
    features: int,
    name: str | None = None,
    depth: int = 3,
    bias: bool = True,
    dropout: float = 0.0,
) -> nn.Module:
    """Build the encoder of samples of one shape.

    Parameters
    ----------
    modality : str
        For messages.
    shape : sequence of int
        Of one sample.
    features : int
        Length of a representation.
    name : str, optional
        `"mlp"` takes any shape, flattened; `"conv1d"` and `"lstm"` take [T, C]; `"conv2d"` and `"resnet18"`, which is
        torchvision's, take images [C, H, W]. `"module:callable"` imports a module, from the working directory too, and
        calls `callable(shape, features)` for an `nn.Module` that maps [N, *shape] to [N, features]. Without, [T, C] is
        encoded by convolutions and all else by an MLP.
    depth : int
        Number of an MLP's linear layers or of convolutions; ResNet-18 has its own.
    bias : bool
        Of an MLP's layers.
    dropout : float
        Of an MLP's hidden units; the other encoders have none.

    Raises
    ------
    RunError
        For an encoder that is not there or does not fit the shape.
    """
    name = name or ("conv1d" if len(shape) == 2 else "mlp")
    if ":" in name:
        return _imported(modality, tuple(shape), features, name)
    if name not in ENCODERS:
        raise RunError(f"modality {modality!r}: no encoder {name!r}{nearest(name, ENCODERS)}")
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(), MLPEncoder(math.prod(shape), features, depth=depth, bias=bias, dropout=dropout)
        )
    taken = "[C, H, W]" if name in _IMAGES else "[T, C]"
    if len(shape) != (3 if name in _IMAGES else 2):
        raise RunError(f"modality {modality!r}: {name} takes samples {taken}, got {list(shape)}")
    if name == "conv2d":
        return Conv2dEncoder(shape, features, depth=depth)
    if name == "resnet18":
        try:
            return ResNet18Encoder(shape, features)
        except ImportError as error:
            raise RunError(f"modality {modality!r}: {error}") from error
    return Conv1dEncoder(shape[1], features, depth=depth) if name == "conv1d" else LSTMEncoder(shape[1], features)


def _imported(modality: str, shape: tuple[int, ...], features: int, name: str) -> nn.Module:
    place, _, attribute = name.partition(":")
    where = f"modality {modality!r}: encoder {name!r}"
    added = "" not in sys.path
    if added:
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(place), attribute)
    except Exception as error:
        # A user's module can raise anything.
        raise RunError(f"{where} cannot be imported: {error}") from error
    finally:
        if added:
            sys.path.remove("")
    try:
        encoder = factory(shape, features)
    except Exception as error:
        raise RunError(f"{where} raised {type(error).__name__}: {error}") from error
    if not isinstance(encoder, nn.Module):
        raise RunError(f"{where} returned {type(encoder).__name__}, not an nn.Module")
    training = encoder.training
    try:
        with torch.no_grad():
            output = encoder.eval()(torch.zeros(2, *shape))
    except Exception as error:
        raise RunError(f"{where} does not take [2, {', '.join(map(str, shape))}]: {error}") from error
    if not isinstance(output, Tensor) or output.shape != (2, features):
        described = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise RunError(f"{where} must return [2, {features}] for 2 samples, got {described}")
    return encoder.train(training)
