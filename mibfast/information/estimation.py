"""Estimation of mutual information from samples: some train a critic, some stop it, the rest give the value."""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mibfast import _check
from mibfast.information.critics import CRITICS, BilinearCritic
from mibfast.information.estimators import MutualInformation
from mibfast.ops.mutual_information import ESTIMATORS, check_options

_NAME = "estimate"


# For exponential estimators Adam's second moment decays by this factor a step, and gradients are cut to this norm. By
# its usual moment, which decays by 0.999, Adam divides the gradient of a single large score by a mean that has hardly
# seen it, and goes on in its direction for ten steps: all scores are pushed down until the critic tells nothing apart,
# for dozens of steps, in which it may be stopped.
_SECOND_DECAY, _LARGEST_GRADIENT = 0.95, 1.0
# For those and for bilinear critics: steps over which the learning rate rises. Adam's first are of full length whatever
# the gradient; MINE's moving average lags behind the scores that they make, and a bilinear critic's of hundreds of
# features are noise.
_WARM_UP_STEPS = 24
# Nats below zero beyond the sampling error of held-out pairs of independent variables.
_NEGATIVE, _NEGATIVE_OF_A_SEED = -0.01, -0.1
# A deviation over seeds is doubtful beyond this share of the value and this many nats.
_LARGEST_SPREAD, _LEAST_SPREAD = 0.25, 0.1
# A value this near to a cap says only that the truth is larger.
_NEAR = 0.95
# Correlation of a feature with the normal scores of its ranks (Shapiro and Francia, 1972), below which tails hide the
# rest. From 2,000 samples it is 1 for a Gaussian or a rare event, 0.9 for an exponential distribution, 0.5 for the
# exponential of 2 x, 0.25 for sinh(4 x) and 0.08 with an outlier of 1e8, of a Gaussian x.
_LEAST_CORRELATION = 0.5
# A critic whose scores of so many held-out rows with one another deviate by no more, relative to 1 or the largest.
_ROWS_COMPARED, _ALIKE = 64, 1e-5
# With fewer samples, a part of the data would have no pairs.
_FEWEST_SAMPLES = 20
# Nats; a smaller rise of the objective does not put off the end: it is a tenth of what the parts' sampling makes.
_LEAST_RISE = 2e-3
# Steps without such a rise before training ends: with few samples, an epoch is only a step or two.
_FEWEST_STEPS = 48
# Of the weights that are evaluated: their running mean, which lets the learning rate be large. Before the mean has its
# whole length it grows with the steps, by a polynomial decay of this power (Shamir and Zhang, ICML 2013).
_AVERAGING, _DECAY = 0.98, 8

Samples: TypeAlias = "NDArray[np.floating] | Tensor"


class EstimateWarning(UserWarning):
    """A warning that an estimate is doubtful, and why."""


@dataclass(frozen=True)
class Estimate:
    """The result of :func:`estimate`.

    Attributes
    ----------
    value : float
        The estimate in nats, on samples that neither trained nor stopped a critic: the mean over seeds. NaN where a
        seed's training diverged.
    spread : float
        The standard deviation over seeds, which differ in the split, the critic and the batches; NaN for a single one.
    by_seed : tuple of float
        Each seed's value; NaN where its training diverged.
    history : tuple of tuple of dict
        For each seed and epoch what the critic maximises, in means over batches: `train`, of the weights of each step
        before it is taken, and `validation`, of the averaged weights at the epoch's end. It ends where training
        diverged.
    cap : float
        What the estimator cannot exceed on these samples: ln of the size of a batch of evaluation for "infonce" and
        "clip"; 0 for "js_fgan"; infinite for others. A value near it says only that the truth is larger.
    samples : int
        How many each seed's value was read on.
    doubts : tuple of str
        Why the value may not be trusted; each was an :class:`EstimateWarning`.
    """

    value: float
    spread: float
    by_seed: tuple[float, ...]
    history: tuple[tuple[dict[str, float], ...], ...]
    cap: float
    samples: int
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        spread = "" if math.isnan(self.spread) else f" ± {self.spread:.3f}"
        cap = f", capped at {self.cap:.3f}" if math.isfinite(self.cap) else ""
        summary = f"{self.value:.3f}{spread} nats on {self.samples} held-out samples{cap}"
        return "\n".join([summary, *(f"doubtful: {doubt}" for doubt in self.doubts)])


def estimate(
    x: Samples,
    y: Samples,
    estimator: str = "smile",
    critic: str | Callable[[int, int], nn.Module] = "separable",
    *,
    transform: str = "standardise",
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
    of many. Features are standardised by the first part's means and deviations, in float64 whatever their dtype, which
    changes no mutual information.

    Parameters
    ----------
    x, y : array or Tensor [N, dx], [N, dy] or [N]
        At least 20 samples, finite, real, of any dtype; a row of x belongs to the same row of y.
    estimator : {"smile", "infonce", "nwj", "tuba", "dv", "mine", "js_fgan", "js", "js_tuba", "clip"}
        See :func:`mibfast.functional.mutual_information`.
    critic : {"separable", "concatenated", "bilinear"} or callable
        A class of :mod:`mibfast.information` by name, or a callable that makes a critic of (dx, dy). The separable one
        has four hidden layers of 64, with GELU. A critic without parameters to train, such as a cosine, is evaluated as
        it is, and its history is empty.
    transform : {"standardise", "ranks"}
        "ranks" takes each feature by the normal scores of its ranks among all samples, ties by their mean rank. No
        strictly increasing map of a feature changes what it knows, so neither does this one; it makes an estimate the
        same whatever the scale of a feature is, and heavy tails and outliers do no harm.
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
        the last fifty once there are more than 440. For "nwj", "tuba", "dv", "mine" and for the bilinear critic the
        learning rate rises over the first 24 steps, which patience does not count. For those estimators Adam's second
        moment decays by 0.95 a step, and gradients are cut to a norm of 1; for that critic it is one number for all
        weights.
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

    Warns
    -----
    EstimateWarning
        Where training diverged, which gives NaN; of a value that is negative, near its cap, above the logarithm of the
        samples that it was read on, or far from seed to seed; of a critic that scores all pairs alike; and of features
        with tails so heavy that a critic sees little else, which `transform="ranks"` mends. The result's `doubts` and
        text say the same.

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
    where = _check.device(_NAME, device)
    if progress is not None and not callable(progress):
        raise TypeError(f"{_NAME}: progress must be a callable or None, got {_check.described(progress)}")
    rows_x = _samples("x", x, where)
    rows_y = _samples("y", y, rows_x.device)
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
    chosen = _check.whole_numbers(_NAME, "seeds", seeds)
    _check.choice(_NAME, "estimator", estimator, tuple(ESTIMATORS))
    check_options(_NAME, estimator, clip=clip, buffer=None, momentum=momentum, device=torch.device("cpu"))
    make = critic if callable(critic) else CRITICS[_check.choice(_NAME, "critic", critic, tuple(CRITICS))].for_estimates
    doubts = []
    if _check.choice(_NAME, "transform", transform, ("standardise", "ranks")) == "ranks":
        rows_x, rows_y = normal_scores(rows_x), normal_scores(rows_y)
    else:
        doubts += [*heavy_tails("x", rows_x), *heavy_tails("y", rows_y)]
    data = _Data(rows_x, rows_y, held, batch_size, evaluation_batch_size)
    values, history, alike = [], [], []
    with torch.random.fork_rng(devices=[rows_x.device] if rows_x.device.type == "cuda" else []):
        for seed in chosen:
            torch.manual_seed(seed)
            made = make(rows_x.shape[1], rows_y.shape[1])
            if not isinstance(made, nn.Module):
                raise TypeError(f"{_NAME}: critic must make an nn.Module, got {_check.described(made)}")
            model = MutualInformation(made, estimator, clip=clip, momentum=momentum, backend=backend)
            say = None if progress is None else _labelled(progress, f"seed {seed}, ")
            trained = _trained(model.to(rows_x.device), data, seed, epochs, patience, learning_rate, say)
            values.append(trained.value)
            history.append(trained.history)
            alike += [seed] if trained.scores_all_alike else []
    cap = _cap(estimator, held, evaluation_batch_size)
    diverged = [seed for seed, value in zip(chosen, values, strict=True) if math.isnan(value)]
    if diverged:
        doubts.append(
            f"training diverged (NaN or infinity) for {_listed(diverged, chosen)}, so there is no estimate; a lower "
            f"learning_rate than {learning_rate:g} may mend it"
        )
    if alike:
        doubts.append(
            f"the critic scores all pairs alike for {_listed(alike, chosen)}: it tells nothing, whatever x and y share"
        )
    value = statistics.fmean(values)
    # `statistics.stdev` takes no NaN.
    spread = math.nan if diverged or len(values) < 2 else statistics.stdev(values)
    doubts += _doubts_of(value, spread, min(values), estimator, cap, held)
    for doubt in doubts:
        warnings.warn(f"{_NAME}: {doubt}", EstimateWarning, stacklevel=2)
    return Estimate(
        value=value,
        spread=spread,
        by_seed=tuple(values),
        history=tuple(history),
        cap=cap,
        samples=held,
        doubts=tuple(doubts),
    )


def _listed(seeds: list[int], chosen: list[int]) -> str:
    return f"{len(seeds)} of {len(chosen)} seeds ({', '.join(map(str, seeds))})"


def _doubts_of(value: float, spread: float, least: float, estimator: str, cap: float, samples: int) -> list[str]:
    """Say why a value is not to be trusted, from what it is alone; `least` is the smallest of a seed."""
    doubts = []
    # The best value of a critic that scores all pairs alike.
    nothing = -2 * math.log(2) if estimator == "js_fgan" else 0.0
    if value < nothing + _NEGATIVE or least < nothing + _NEGATIVE_OF_A_SEED:
        which = f"{value:.3g} nats" if value < nothing + _NEGATIVE else f"{least:.3g} nats of one seed"
        what = "negative, which no information is" if estimator != "js_fgan" else f"below -2 ln 2 = {nothing:.3g}"
        low = '; and "js" reads 1 / e = 0.37 nats low, unlike "js_tuba"' if estimator == "js" else ""
        doubts.append(
            f"{which} is {what}: on held-out samples the critic does worse than one that scores all pairs alike, which "
            f"shows neither information nor that there is none{low}"
        )
    if estimator == "js_fgan":
        return doubts
    if value > _NEAR * cap:
        doubts.append(f"{value:.3g} nats is at the cap, {cap:.3g}; the truth is larger")
    elif value > math.log(samples):
        doubts.append(
            f"{value:.3g} nats is above ln N = {math.log(samples):.3g}, more than which the N = {samples} held-out "
            "samples cannot vouch for"
        )
    if spread > max(_LARGEST_SPREAD * abs(value), _LEAST_SPREAD):
        doubts.append(
            f"seeds differ by {spread:.3g} nats, of {value:.3g}: samples are few, or some of the critics learned little"
        )
    return doubts


def normal_scores(x: Tensor) -> Tensor:
    """Return each feature of x [N, d] as normal quantiles at its ranks, equal values at their mean rank."""
    columns = []
    for column in x.unbind(1):
        _, places, counts = torch.unique(column, return_inverse=True, return_counts=True)
        ranks = counts.cumsum(0) - 0.5 * (counts - 1).double()
        columns.append(torch.special.ndtri((ranks - 0.5) / len(x))[places])
    return torch.stack(columns, 1)


def heavy_tails(name: str, given: Samples) -> list[str]:
    """Return what to say of samples [N, d], a line, where features have tails that hide the rest."""
    x = _samples(name, given, None)
    z = _standardised(x, x)
    largest = z.abs().amax(0)
    # The mean of squares is 1: where nothing is large, no tail is heavy.
    (candidates,) = torch.nonzero(largest > 3.0, as_tuple=True)
    if not len(candidates):
        return []
    # Of x, for beside an outlier of 1e300 all others are one number after standardisation.
    scores = normal_scores(x[:, candidates])
    correlations = torch.nn.functional.cosine_similarity(z[:, candidates], scores - scores.mean(0), dim=0)
    heavy = candidates[correlations < _LEAST_CORRELATION]
    if not len(heavy):
        return []
    first = int(heavy[largest[heavy].argmax()])
    others = f" (as {len(heavy) - 1} others do)" if len(heavy) > 1 else ""
    return [
        f"{name}[:, {first}] reaches {float(largest[first]):.3g} standard deviations from its mean{others}, beside "
        f'which most samples hardly differ: the estimate may be far too low; transform="ranks" mends that'
    ]


def _cap(estimator: str, held: int, evaluation_batch_size: int) -> float:
    if estimator == "js_fgan":
        return 0.0
    largest = max(map(len, _batches(torch.arange(held), evaluation_batch_size)))
    return math.log(largest) if ESTIMATORS[estimator].capped else math.inf


def _labelled(progress: Callable[[str], object], label: str) -> Callable[[str], object]:
    return lambda line: progress(label + line)


def _samples(argument: str, given: Samples, device: torch.device | None) -> Tensor:
    expected = f"{_NAME}: {argument} must be an array or a tensor of real numbers, got {_check.described(given)}"
    if isinstance(given, Tensor):
        x = given.detach()
        if x.is_complex() or x.is_meta:
            raise TypeError(expected)
        # Integers are wider than float32, and most of them standardise to what is not: 1.7e9 seconds, give or take 60.
        x = x if x.dtype.is_floating_point else x.double()
    else:
        array = _check.array(_NAME, argument, given)
        if array.dtype.kind not in "fiub":
            raise TypeError(expected)
        short = array.dtype.kind == "f" and array.dtype.itemsize <= 4
        x = torch.from_numpy(np.ascontiguousarray(array, np.float32 if short else np.float64))
    x = x[:, None] if x.ndim == 1 else x
    _check.tensor(_NAME, argument, x, "N d")
    _check.finite(_NAME, argument, x)
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
        views = [_standardised(z, z[parts[0]]).float() for z in (self.x, self.y)]
        return tuple((views[0][part], views[1][part]) for part in parts)


def _standardised(x: Tensor, reference: Tensor) -> Tensor:
    """Return x [N, d] by the means and deviations of a reference [N', d], in float64; what is constant there is 0."""
    # By a power of two, exactly, lest squares leave float64's range, up or down.
    _, exponents = torch.frexp(x.double().abs().amax(0))
    scale = torch.exp2(-exponents.double().clamp(min=-1000))
    x, reference = x.double() * scale, reference.double() * scale
    deviation, mean = torch.std_mean(reference, 0)
    # A constant feature has no information.
    return (x - mean) * torch.where(deviation > 0, 1 / deviation, 0.0)


class _AdamByTensor(torch.optim.Optimizer):
    """Adam with one second moment for all entries of a tensor, so that a step follows the gradient.

    A step of Adam is as long in every entry: of a bilinear critic's dx dy weights most have a gradient of noise, and
    held-out scores of hundreds of features become noise with them. This step does not change with a rotation of x or y.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                steps = state["steps"] = state.get("steps", 0) + 1
                first = state.setdefault("first", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                second = state.setdefault("second", torch.zeros_like(p[..., :0].sum())).lerp_(
                    p.grad.square().mean(), 1e-3
                )
                p -= group["lr"] * (first / (1 - 0.9**steps)) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)


@dataclass(frozen=True)
class _Trained:
    """A seed's value, its history, and whether its critic scores all pairs alike."""

    value: float
    history: tuple[dict[str, float], ...]
    scores_all_alike: bool = False


def _trained(
    model: MutualInformation,
    data: _Data,
    seed: int,
    epochs: int,
    patience: int,
    learning_rate: float,
    progress: Callable[[str], object] | None,
) -> _Trained:
    """Train a critic, and read its value on the last part of the data."""
    generator = torch.Generator().manual_seed(seed)
    train, validation, test = data.split(generator)
    if not any(p.requires_grad for p in model.parameters()):
        return _evaluated(model, test, data, ())
    averaged = copy.deepcopy(model)
    weights = list(zip(averaged.parameters(), model.parameters(), strict=True))
    steps = 0
    bilinear = isinstance(model.critic, BilinearCritic)
    exponential = ESTIMATORS[model.estimator].exponential
    warm_up = _WARM_UP_STEPS if bilinear or exponential else 1
    optimizer: torch.optim.Optimizer
    if bilinear:
        optimizer = _AdamByTensor(model.parameters(), lr=learning_rate)
    else:
        betas = (0.9, _SECOND_DECAY if exponential else 0.999)
        # Separate steps for tens of small tensors would take longer than the networks.
        fused = data.x.device.type in ("cpu", "cuda")
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=betas, fused=fused)
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
            if exponential:
                nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
            steps += 1
            optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, steps / warm_up)
            optimizer.step()
            share = max(1.0 - _AVERAGING, (_DECAY + 1.0) / (_DECAY + 1.0 + steps))
            with torch.no_grad():
                for mean, weight in weights:
                    mean.lerp_(weight, share)
            seen.append(objective.detach())
        # Running statistics of a critic's layers are taken from the network that trains, the only ones there are.
        for own, buffer in zip(averaged.buffers(), model.buffers(), strict=True):
            own.copy_(buffer)
        objectives = {
            "train": float(torch.stack(seen).mean()),
            "validation": _mean(averaged.objective, validation, data, averaged),
        }
        history.append(objectives)
        if progress is not None:
            progress(f"epoch {epoch + 1}: train {objectives['train']:.4f}, validation {objectives['validation']:.4f}")
        if not all(map(math.isfinite, objectives.values())):
            return _Trained(math.nan, tuple(history))
        if objectives["validation"] > best:
            best, kept = objectives["validation"], copy.deepcopy(averaged)
        if best > mark + _LEAST_RISE:
            mark, marked_epoch, marked_step = best, epoch, steps
        if epoch - marked_epoch >= patience and steps - max(marked_step, warm_up) >= _FEWEST_STEPS:
            break
    return _evaluated(kept, test, data, tuple(history))


def _evaluated(
    model: MutualInformation, test: tuple[Tensor, Tensor], data: _Data, history: tuple[dict[str, float], ...]
) -> _Trained:
    value = _mean(model, test, data, model)
    return _Trained(value if math.isfinite(value) else math.nan, history, _scores_all_alike(model.critic, test))


def _scores_all_alike(critic: nn.Module, pairs: tuple[Tensor, Tensor]) -> bool:
    """Say whether a critic has one score for all pairs of the first rows, but for rounding."""
    with torch.no_grad():
        scores = critic(*(z[:_ROWS_COMPARED] for z in pairs))
    return bool(scores.std() <= _ALIKE * (1.0 + scores.abs().max()))


def _mean(
    value: Callable[[Tensor, Tensor], Tensor], pairs: tuple[Tensor, Tensor], data: _Data, model: nn.Module
) -> float:
    """Return the mean over batches of evaluation, each weighted by its size."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for rows in _batches(torch.arange(len(pairs[0])), data.evaluation_batch_size):
            x, y = (z[rows.to(z.device)] for z in pairs)
            total += len(rows) * float(value(x, y))
    return total / len(pairs[0])
