"""Training of a bottleneck on two views, with the networks of its graphs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mibfast.bottleneck import Bottleneck, BottleneckLoss, GaussianEncoder, GaussianHeads
from mibfast.information.critics import CRITICS
from mibfast.nn import Conv2dDecoder, Conv2dEncoder, MLPEncoder, ResNet18Encoder
from mibfast.train.errors import DivergedError, RunError

ENCODERS = ("mlp", "conv2d", "resnet18")
_STEPS_BETWEEN_CHECKS = 25


@dataclass(frozen=True)
class BottleneckFit:
    """A trained bottleneck.

    Attributes
    ----------
    loss : BottleneckLoss
        With the weights of the step with the lowest validation loss, in evaluation mode.
    checks : list of dict
        `step`, the `train_loss` since the check before and the `validation_loss` (nats).
    best_step : int
    """

    loss: BottleneckLoss
    checks: Sequence[Mapping[str, float]]
    best_step: int


def build_networks(
    bottleneck: Bottleneck,
    shapes: Mapping[str, Sequence[int]],
    latent_features: int,
    *,
    hidden_features: int = 256,
    encoder: str = "mlp",
    critic: str = "bilinear",
    estimator: str = "smile",
) -> BottleneckLoss:
    """Build a bottleneck's loss with an encoder a latent, a decoder a prediction and a critic a pair of latents.

    Predictions end in a sigmoid: what is observed lies between 0 and 1.

    Parameters
    ----------
    bottleneck : Bottleneck
        Latents of observed variables alone; predictions Gaussian.
    shapes : mapping from an observed variable to the shape of a sample
    latent_features : int
        Length of every latent.
    hidden_features : int
        Width of hidden layers.
    encoder : {"mlp", "conv2d", "resnet18"}
        The first has two hidden layers, as the decoder has. The others take images [C, H, W]; their decoder is
        convolutional.
    critic : {"bilinear", "separable", "concatenated"}
        The first finds information that latents share linearly, the others in any form.
    estimator : str
        See :meth:`mibfast.bottleneck.Bottleneck.build`.

    Raises
    ------
    RunError
        For an encoder that does not fit, or that needs what is not installed.
    """

    def encode(latent: str) -> nn.Module:
        parents = bottleneck.parents[latent]
        if encoder == "mlp":
            return GaussianEncoder(sum(math.prod(shapes[each]) for each in parents), latent_features, hidden_features)
        shape = shapes[parents[0]]
        if len(parents) > 1 or len(shape) != 3:
            raise RunError(f"{encoder} encodes one image [C, H, W], got {[list(shapes[each]) for each in parents]}")
        make: Callable[[Sequence[int], int], nn.Module] = Conv2dEncoder if encoder == "conv2d" else ResNet18Encoder
        try:
            return GaussianHeads(make(shape, hidden_features), hidden_features, latent_features)
        except ImportError as error:
            raise RunError(str(error)) from error

    def decode(target: str, sources: Sequence[str]) -> nn.Module:
        inputs, shape = len(sources) * latent_features, shapes[target]
        if encoder == "mlp":
            perceptron = MLPEncoder(inputs, math.prod(shape), hidden_features)
            return nn.Sequential(perceptron, nn.Sigmoid(), nn.Unflatten(1, tuple(shape)))
        return nn.Sequential(Conv2dDecoder(inputs, shape), nn.Sigmoid())

    predictions = [term for term in bottleneck.terms if term.kind == "prediction"]
    pairs = [term for term in bottleneck.terms if term.kind == "information"]
    return bottleneck.build(
        {latent: encode(latent) for latent in bottleneck.latents},
        {term.target: decode(term.target, term.sources) for term in predictions},
        {
            term.name: CRITICS[critic].for_latents(
                len(term.sources) * latent_features, latent_features, hidden_features
            )
            for term in pairs
        },
        estimator if pairs else "smile",
    )


def fit_bottleneck(
    bottleneck: Bottleneck,
    train: Mapping[str, Tensor],
    validation: Mapping[str, Tensor],
    latent_features: int,
    *,
    steps: int = 2000,
    patience: int = 250,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: torch.device | str | None = None,
    **networks: Any,
) -> BottleneckFit:
    """Train a bottleneck's networks by Adam on its one loss, until the validation loss stops falling.

    Steps and not passes over the data are counted, so that few samples are trained on for as long as many. Batches are
    full, since estimates of information depend on their size: what is left over is for the next pass. The validation
    loss is taken every 25 steps, of the same batches with the same noise. On a CPU a seed repeats bit for bit, on one
    machine and number of threads. The state of torch's generators is left as it was.

    Parameters
    ----------
    bottleneck : Bottleneck
    train, validation : mapping from an observed variable to Tensor [N, ...]
        Between 0 and 1, of any real dtype: training is in float32.
    latent_features : int
        Length of every latent.
    steps, patience : int
        At most so many; stop when so many have not lowered the validation loss.
    batch_size : int
        All samples, where they are fewer.
    learning_rate : float
    seed : int
        Of weights, order and noise.
    device : device, optional
        Where to train; by default a GPU where there is one. The networks come back to the CPU.
    **networks
        `hidden_features`, `encoder`, `critic` and `estimator` of :func:`build_networks`.

    Raises
    ------
    DivergedError
        Where the loss becomes NaN or infinite.
    RunError
        As :func:`build_networks`.
    """
    shapes = {name: tuple(x.shape[1:]) for name, x in train.items()}
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    train, validation = (
        {name: x.to(device, torch.float32) for name, x in part.items()} for part in (train, validation)
    )
    with _forked_generators(device):
        torch.manual_seed(seed)
        loss = build_networks(bottleneck, shapes, latent_features, **networks).to(device)
        optimizer = torch.optim.Adam(loss.parameters(), learning_rate, fused=True)
        batches = _passes(_count(train), batch_size)
        checks: list[dict[str, float]] = []
        best, weights = -1, loss.state_dict()
        while len(checks) * _STEPS_BETWEEN_CHECKS < steps:
            loss.train()
            values = []
            for _ in range(min(_STEPS_BETWEEN_CHECKS, steps - len(checks) * _STEPS_BETWEEN_CHECKS)):
                batch = next(batches)
                value = loss(**{name: x[batch] for name, x in train.items()})
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                values.append(float(value.detach()))
            step = len(checks) * _STEPS_BETWEEN_CHECKS + len(values)
            losses = {"train_loss": _mean(values), "validation_loss": _validation_loss(loss, validation, batch_size)}
            if not all(map(math.isfinite, losses.values())):
                raise DivergedError(f"the loss became {losses['train_loss']} by step {step}; lower learning_rate")
            checks.append({"step": step, **losses})
            if best < 0 or losses["validation_loss"] < checks[best]["validation_loss"]:
                best, weights = len(checks) - 1, copy.deepcopy(loss.state_dict())
            if step - checks[best]["step"] >= patience:
                break
    loss.load_state_dict(weights)
    return BottleneckFit(loss.cpu().eval(), checks, int(checks[best]["step"]))


def encode_in_parts(loss: BottleneckLoss, observed: Mapping[str, Tensor], size: int = 1024) -> dict[str, Tensor]:
    """Return the means [N, d] of the latents that follow from what is observed, of `size` samples at a time."""
    parts = []
    with torch.no_grad():
        for start in range(0, _count(observed), size):
            parts.append(loss.encode(**{name: x[start : start + size] for name, x in observed.items()}))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _forked_generators(device: torch.device) -> AbstractContextManager[None]:
    # Setting a seed sets it on all GPUs.
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else [])


def _count(variables: Mapping[str, Tensor]) -> int:
    return len(next(iter(variables.values())))


def _passes(count: int, size: int) -> Iterator[Tensor]:
    """Yield batches of indices, pass after pass, each in an order of its own."""
    while True:
        yield from _batches(torch.randperm(count), size)


def _batches(order: Tensor, size: int) -> Sequence[Tensor]:
    size = min(size, len(order))
    return torch.split(order[: len(order) - len(order) % size], size)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _validation_loss(loss: BottleneckLoss, variables: Mapping[str, Tensor], batch_size: int) -> float:
    loss.eval()
    with torch.no_grad(), _forked_generators(next(iter(variables.values())).device):
        torch.manual_seed(0)
        batches = _batches(torch.arange(_count(variables)), batch_size)
        return _mean([float(loss(**{name: x[batch] for name, x in variables.items()})) for batch in batches])
