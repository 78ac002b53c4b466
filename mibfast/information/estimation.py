"""Estimation of mutual information from samples: a critic is trained on some, stopped by others, read on the rest."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mibfast import _check
from mibfast.information.critics import BilinearCritic, ConcatenatedCritic, SeparableCritic
from mibfast.information.estimators import MutualInformation

_NAME = "estimate"
_CRITICS: dict[str, Callable[[int, int], nn.Module]] = {
    # Deep rather than wide: what is twisted into a spiral, a hidden layer of any width learns slowly. GELU learns more
    # of it than ReLU: 0.91 against 0.87 of 1.02 nats, from 5,000 samples.
    "separable": partial(SeparableCritic, hidden_features=64, depth=5, activation=nn.GELU),
    "bilinear": BilinearCritic,
    "concatenated": ConcatenatedCritic,
}
# Fewer leave a part of the data with no pairs.
_FEWEST_SAMPLES = 20
# Nats; a smaller rise of the objective does not put off the end: it is a tenth of what the parts' sampling makes.
_LEAST_RISE = 2e-3
# Without such a rise, before the end: of few samples an epoch is a step or two, which says nothing.
_FEWEST_STEPS = 48
# Of the weights that are evaluated: their running mean, which lets the learning rate be large. Before the mean has its
# whole length it grows with the steps, by a polynomial decay of this power (Shamir and Zhang, ICML 2013).
_AVERAGING, _DECAY = 0.98, 8

Samples: TypeAlias = "NDArray[np.floating] | Tensor"


@dataclass(frozen=True)
class Estimate:
    """What :func:`estimate` found.

    Attributes
    ----------
    value : float
        The estimate in nats, on samples that neither trained nor stopped a critic: the mean over seeds.
    spread : float
        The standard deviation over seeds, which differ in the split, the critic and the batches; NaN for a single one.
    by_seed : tuple of float
        Each seed's value.
    history : tuple of tuple of dict
        For each seed and epoch what the critic maximises, in means over batches: `train`, of the weights of each step
        before it is taken, and `validation`, of the averaged weights at the epoch's end.
    cap : float
        What the estimator cannot exceed on these samples: ln of the size of a batch of evaluation for "infonce" and
        "clip"; 0 for "js_fgan"; infinite for others. A value near it says only that the truth is larger.
    samples : int
        How many each seed's value was read on.
    """

    value: float
    spread: float
    by_seed: tuple[float, ...]
    history: tuple[tuple[dict[str, float], ...], ...]
    cap: float
    samples: int

    def __str__(self) -> str:
        spread = "" if math.isnan(self.spread) else f" ± {self.spread:.3f}"
        cap = f", capped at {self.cap:.3f}" if math.isfinite(self.cap) else ""
        return f"{self.value:.3f}{spread} nats on {self.samples} held-out samples{cap}"


def estimate(
    x: Samples,
    y: Samples,
    estimator: str = "smile",
    critic: str | Callable[[int, int], nn.Module] = "separable",
    *,
    clip: float | None = 5.0,
    momentum: float = 0.9,
    held_out: float = 0.1,
    batch_size: int = 512,
    evaluation_batch_size: int = 4096,
    epochs: int = 200,
    patience: int = 6,
    learning_rate: float = 8e-3,
    seeds: int | Sequence[int] = 3,
    device: torch.device | str | None = None,
    progress: Callable[[str], object] | None = None,
    backend: str | None = None,
) -> Estimate:
    """Estimate I(X; Y) from paired samples, by training a critic.

    Samples are split three ways: a critic is trained on the first part, the epoch with the best objective on the second
    is kept, and the value is read on the third, so it is of no sample that the critic has seen and is not the largest
    of many. Features are standardised by the first part's means and deviations, which changes no mutual information.

    Parameters
    ----------
    x, y : array or Tensor [N, dx], [N, dy] or [N]
        At least 20 samples, finite; a row of x belongs to the same row of y.
    estimator : {"smile", "infonce", "nwj", "tuba", "dv", "mine", "js_fgan", "js", "clip"}
        See :func:`mibfast.functional.mutual_information`.
    critic : {"separable", "concatenated", "bilinear"} or callable
        A class of :mod:`mibfast.information` by name, or what makes a critic for (dx, dy). The separable one has four
        hidden layers of 64, with GELU.
    clip, momentum
        Of "smile" and "mine".
    held_out : float
        The share of the samples to stop by, and again to read the value on, in (0, 0.5).
    batch_size : int
        Samples in a step; the negatives of each are the others.
    evaluation_batch_size : int
        Held-out samples are evaluated together up to this many, and their means averaged beyond it.
    epochs, patience : int
        At most so many passes over the data; stop when so many, and 48 steps, have not raised the objective by 0.002
        nats.
    learning_rate : float
        Of Adam. What is evaluated is a running mean of the weights, of about the last ninth of the steps so far and of
        the last fifty once there are more than 440.
    seeds : int or sequence of int
        How many, 0 and up, or which.
    device : device, optional
        Where to train; where x is, by default.
    progress : callable, optional
        Called with a line of text after every epoch, as `print` can be.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Estimate
        Repeats bit for bit on the same machine and number of threads; the state of torch's generators is left as it
        was.

    Raises
    ------
    TypeError, ValueError
        For samples that are not finite, too few or not paired, or settings out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from mibfast import information
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((2000, 2))
    >>> y = x + rng.standard_normal((2000, 2))  # ln(2) = 0.69 nats
    >>> found = information.estimate(x, y, "infonce", epochs=40, seeds=1)
    >>> 0.5 < found.value < 0.9
    True
    """
    rows_x, rows_y = _samples("x", x, device), _samples("y", y, device)
    n = rows_x.shape[0]
    if n != rows_y.shape[0]:
        raise ValueError(
            f"{_NAME}: x and y must have one number of samples, "
            f"got {_check.described(rows_x)} and {_check.described(rows_y)}"
        )
    if n < _FEWEST_SAMPLES:
        raise ValueError(f"{_NAME}: at least {_FEWEST_SAMPLES} samples are needed, got {n}")
    share = _check.number(_NAME, "held_out", held_out, 0.0, 0.5)
    held = int(share * n)
    if held < 2 or n - 2 * held < 2:
        raise ValueError(f"{_NAME}: held_out = {share:g} of {n} samples leaves a part with fewer than 2")
    for argument, number in (
        ("batch_size", batch_size),
        ("evaluation_batch_size", evaluation_batch_size),
        ("epochs", epochs),
        ("patience", patience),
    ):
        _check.count(_NAME, argument, number)
    if min(batch_size, evaluation_batch_size) < 2:
        raise ValueError(f"{_NAME}: a batch of 1 has no pairs of different samples; expected sizes of at least 2")
    if not _check.number(_NAME, "learning_rate", learning_rate, 0.0):
        raise ValueError(f"{_NAME}: learning_rate must be positive, got {learning_rate}")
    if isinstance(seeds, (int, Integral)):
        seeds = range(_check.count(_NAME, "seeds", seeds if isinstance(seeds, bool) else int(seeds)))
    chosen = list(seeds)
    if not chosen:
        raise ValueError(f"{_NAME}: seeds must hold at least one, got none")
    make = critic if callable(critic) else _CRITICS[_check.choice(_NAME, "critic", critic, tuple(_CRITICS))]
    data = _Data(rows_x, rows_y, held, batch_size, evaluation_batch_size)
    values, history = [], []
    with torch.random.fork_rng(devices=[rows_x.device] if rows_x.device.type == "cuda" else []):
        for seed in chosen:
            torch.manual_seed(seed)
            model = MutualInformation(
                make(rows_x.shape[1], rows_y.shape[1]), estimator, clip=clip, momentum=momentum, backend=backend
            )
            say = None if progress is None else _labelled(progress, f"seed {seed}, ")
            value, epochs_of_seed = _trained(model.to(rows_x.device), data, seed, epochs, patience, learning_rate, say)
            values.append(value)
            history.append(epochs_of_seed)
    return Estimate(
        value=statistics.fmean(values),
        spread=statistics.stdev(values) if len(values) > 1 else math.nan,
        by_seed=tuple(values),
        history=tuple(history),
        cap=_cap(estimator, held, evaluation_batch_size),
        samples=held,
    )


def _cap(estimator: str, held: int, evaluation_batch_size: int) -> float:
    if estimator == "js_fgan":
        return 0.0
    largest = max(map(len, _batches(torch.arange(held), evaluation_batch_size)))
    return math.log(largest) if estimator in ("infonce", "clip") else math.inf


def _labelled(progress: Callable[[str], object], label: str) -> Callable[[str], object]:
    return lambda line: progress(label + line)


def _samples(argument: str, given: Samples, device: torch.device | str | None) -> Tensor:
    if isinstance(given, Tensor):
        x = given.detach()
    else:
        array = np.asarray(given)
        if array.dtype.kind not in "fiub":
            raise TypeError(
                f"{_NAME}: {argument} must be an array or a tensor of numbers, got {_check.described(given)}"
            )
        x = torch.from_numpy(np.ascontiguousarray(array, np.float64 if array.dtype == np.float64 else np.float32))
    if not x.dtype.is_floating_point:
        x = x.float()
    x = x[:, None] if x.ndim == 1 else x
    _check.tensor(_NAME, argument, x, "N d")
    bad = int((~x.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{_NAME}: {argument} must be finite, got {bad} samples with NaN or infinity")
    return x.to(device=device or x.device)


def _batches(rows: Tensor, size: int) -> list[Tensor]:
    """Split rows into batches of `size`; a last one of fewer than half of it joins the one before."""
    parts = list(torch.split(rows, size))
    if len(parts) > 1 and (2 * len(parts[-1]) < size or len(parts[-1]) == 1):
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


class _Data:
    """Paired samples, and how each seed splits them."""

    def __init__(self, x: Tensor, y: Tensor, held: int, batch_size: int, evaluation_batch_size: int) -> None:
        self.x, self.y, self.held = x, y, held
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size

    def split(self, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the pairs to train on, to stop by and to read the value on, standardised by the first."""
        order = torch.randperm(len(self.x), generator=generator).to(self.x.device)
        parts = torch.split(order, [len(order) - 2 * self.held, self.held, self.held])
        views = []
        for z in (self.x, self.y):
            deviation, mean = torch.std_mean(z[parts[0]].double(), 0)
            # A constant feature tells nothing.
            scale = torch.where(deviation > 0, 1 / deviation, 0.0)
            views.append(((z.double() - mean) * scale).float())
        return tuple((views[0][part], views[1][part]) for part in parts)


def _trained(
    model: MutualInformation,
    data: _Data,
    seed: int,
    epochs: int,
    patience: int,
    learning_rate: float,
    progress: Callable[[str], object] | None,
) -> tuple[float, tuple[dict[str, float], ...]]:
    """Train a critic; return its value on the last part of the data, and the history."""
    generator = torch.Generator().manual_seed(seed)
    train, validation, test = data.split(generator)
    averaged = copy.deepcopy(model)
    weights = list(zip(averaged.parameters(), model.parameters(), strict=True))
    steps = 0
    # Tens of small tensors: a step apart for each takes longer than the networks.
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=data.x.device.type in ("cpu", "cuda"))
    best, mark, marked_epoch, marked_step, kept = -math.inf, -math.inf, 0, 0, copy.deepcopy(averaged)
    history: list[dict[str, float]] = []
    for epoch in range(epochs):
        model.train()
        seen = []
        for rows in _batches(torch.randperm(len(train[0]), generator=generator), data.batch_size):
            x, y = (z[rows.to(z.device)] for z in train)
            objective = model.objective(x, y)
            optimizer.zero_grad()
            (-objective).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
            share = max(1.0 - _AVERAGING, (_DECAY + 1.0) / (_DECAY + 1.0 + steps))
            with torch.no_grad():
                for mean, weight in weights:
                    mean.lerp_(weight, share)
            seen.append(objective.detach())
        # Running statistics of a critic's layers: those of the network that trains are near, and there are no others.
        for own, buffer in zip(averaged.buffers(), model.buffers(), strict=True):
            own.copy_(buffer)
        found = {
            "train": float(torch.stack(seen).mean()),
            "validation": _mean(averaged.objective, validation, data, averaged),
        }
        history.append(found)
        if progress is not None:
            progress(f"epoch {epoch + 1}: train {found['train']:.4f}, validation {found['validation']:.4f}")
        if found["validation"] > best:
            best, kept = found["validation"], copy.deepcopy(averaged)
        if best > mark + _LEAST_RISE:
            mark, marked_epoch, marked_step = best, epoch, steps
        if epoch - marked_epoch >= patience and steps - marked_step >= _FEWEST_STEPS:
            break
    return _mean(kept, test, data, kept), tuple(history)


def _mean(
    of_batch: Callable[[Tensor, Tensor], Tensor], pairs: tuple[Tensor, Tensor], data: _Data, model: nn.Module
) -> float:
    """Return the mean over batches of evaluation, each weighted by its size."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for rows in _batches(torch.arange(len(pairs[0])), data.evaluation_batch_size):
            x, y = (z[rows.to(z.device)] for z in pairs)
            total += len(rows) * float(of_batch(x, y))
    return total / len(pairs[0])
