"""The bounds between which OMIB's beta is chosen, from entropies and mutual informations of the modalities."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibfast import _check
from mibfast.information import Estimate, EstimateWarning, estimate
from mibfast.information.estimation import heavy_tails

Samples: TypeAlias = "NDArray[np.floating] | Tensor"
# The fewest that `information.estimate` splits.
_FEWEST_SAMPLES = 20
# The largest deviation over seeds, as a share of an entropy, or of the entropy that an information cannot exceed.
_LARGEST_SPREAD = 0.25
# A value this near to a cap says only that the truth is larger.
_NEAR = 0.95
# An entropy below this share of ln N is of a critic that told hardly any of N samples apart.
_FAR_BELOW = 0.1


def beta_bounds(
    entropies: Sequence[float] | Mapping[str, float],
    pairwise_mutual_information: Mapping[tuple[Any, Any], float],
    weights: Sequence[float] | None = None,
) -> tuple[float, float]:
    r"""Return the bounds M_l and M_u of beta, between which OMIB's fusion keeps all that is relevant, and no more.

    .. math:: M_u = \frac{1}{(2M - 1) \left( \sum_i H_i - \frac2M \sum_{i<j} I_{ij} \right)}, \qquad
              M_l = \frac{1}{(2M - 1) \sum_i H_i}

    For two and three modalities these are the paper's (propositions 5.7 and D.6; the lower bound of three is formed as
    that of two). For more, the bracket is Kounias' bound of the information in all modalities together, and 2M - 1 that
    of 1 + r_1 + ... + r_{M-1}, every r being at most 2.

    Parameters
    ----------
    entropies : sequence of M >= 2 numbers, or mapping from a modality's name to them
        H_i, in nats, positive in sum.
    pairwise_mutual_information : mapping from (i, j), i < j, to a number
        I_ij, in nats, of every pair: of names, or of positions, counted from 0 or from 1.
    weights : sequence of M - 1 numbers, optional
        Known weights r_k in [0, 2], in whose place the bound otherwise has 2: 1 + sum r is the factor of M_u then.

    Returns
    -------
    (float, float)
        M_l and M_u.

    Raises
    ------
    TypeError, ValueError
        For numbers that are negative or not finite, pairs that are missing or unknown, an information above either
        entropy, and modalities that together would hold no information.

    Examples
    --------
    >>> from mibfast import omib
    >>> lower, upper = omib.beta_bounds([2.0, 3.0], {(0, 1): 0.5})
    >>> round(lower, 4), round(upper, 4)
    (0.0667, 0.0741)
    """
    name = "beta_bounds"
    for argument, x in (("entropies", entropies), ("weights", () if weights is None else weights)):
        if not isinstance(x, (Mapping, Sequence)) or isinstance(x, (str, bytes)):
            raise TypeError(f"{name}: {argument} must be a sequence of numbers, got {_check.described(x)}")
    names = list(entropies) if isinstance(entropies, Mapping) else None
    values = list(entropies.values()) if isinstance(entropies, Mapping) else list(entropies)
    M = len(values)
    if M < 2:
        raise ValueError(f"{name}: entropies must be of at least 2 modalities, got {M}")
    total = math.fsum(_check.number(name, f"entropies[{k}]", h, 0.0) for k, h in enumerate(values))
    _check_pairs(name, pairwise_mutual_information, M, names)
    first = min(min(pair) for pair in pairwise_mutual_information) if names is None else 0
    for pair, given in pairwise_mutual_information.items():
        argument = f"pairwise_mutual_information[{pair}]"
        smaller = min(values[names.index(k) if names else k - first] for k in pair)
        if _check.number(name, argument, given, 0.0) > smaller * (1 + 1e-9):
            raise ValueError(
                f"{name}: {argument} must be in [0, {smaller:g}], since an information exceeds neither entropy, got "
                f"{given:g}"
            )
    shared = math.fsum(pairwise_mutual_information.values())
    factor = 2.0 * M - 1
    if weights is not None:
        if len(weights) != M - 1:
            raise ValueError(f"{name}: weights must be r_1 .. r_(M-1), {M - 1} numbers, got {len(weights)}")
        factor = 1 + math.fsum(_check.number(name, f"weights[{k}]", r, 0.0, 2.0) for k, r in enumerate(weights))
    together = total - 2 / M * shared
    if total <= 0 or together <= 0:
        raise ValueError(
            f"{name}: the modalities must hold information: entropies sum up to {total:g} nats, and without what they "
            f"share to {together:g}"
        )
    return 1 / ((2 * M - 1) * total), 1 / (factor * together)


def _check_pairs(name: str, given: Mapping[tuple[Any, Any], float], M: int, names: list[str] | None) -> None:
    numberings: Iterable[Sequence[Any]] = (range(M), range(1, M + 1)) if names is None else (names,)
    expected = [set(combinations(numbering, 2)) for numbering in numberings]
    if not isinstance(given, Mapping) or set(given) not in expected:
        listed = ", ".join(map(str, sorted(expected[0])))
        raise ValueError(
            f"{name}: pairwise_mutual_information must be a mapping from every pair, {listed}, got "
            f"{_check.described(list(given) if isinstance(given, Mapping) else given)}"
        )


@dataclass(frozen=True)
class BetaEstimate:
    """The result of :func:`estimate_beta`.

    Attributes
    ----------
    lower, upper : float
        M_l and M_u.
    entropies : mapping from a modality's name to Estimate
        H_i = I(v_i; v_i), in nats, as the estimator sees it.
    informations : mapping from a pair of names to Estimate
        I_ij, in nats.
    estimator : str
    cap : float
        What the estimator cannot exceed on these samples, in nats; infinite for those without a cap.
    samples : int
        How many were drawn of the data. A part of them trains a critic, a part stops it, a part gives the value.
    doubts : tuple of str
        Why the bounds may not be trusted; each was a :class:`mibfast.information.EstimateWarning`.
    """

    lower: float
    upper: float
    entropies: Mapping[str, Estimate]
    informations: Mapping[tuple[str, str], Estimate]
    estimator: str
    cap: float
    samples: int
    doubts: tuple[str, ...]

    @property
    def indistinct(self) -> list[str]:
        """Modalities of which the critic told hardly any samples apart: entropies below 0.1 ln N, N held out."""
        return [name for name, entropy in self.entropies.items() if _is_indistinct(entropy)]

    def draw(self, seed: int) -> float:
        """Return a beta, uniform in [lower, upper], as algorithm 2 draws it once before training."""
        return float(np.random.default_rng(seed).uniform(self.lower, self.upper))

    def as_dict(self) -> dict[str, Any]:
        """Return the estimates as numbers and strings, for a file; pairs are "NAME, NAME"."""

        def numbers(result: Estimate) -> dict[str, Any]:
            return {"value": result.value, "spread": result.spread, "by_seed": list(result.by_seed)}

        return {
            "lower": self.lower,
            "upper": self.upper,
            "entropies": {name: numbers(result) for name, result in self.entropies.items()},
            "informations": {", ".join(pair): numbers(result) for pair, result in self.informations.items()},
            "estimator": self.estimator,
            "cap": self.cap if math.isfinite(self.cap) else None,
            "samples": self.samples,
            "indistinct": self.indistinct,
            "doubts": list(self.doubts),
        }

    def __str__(self) -> str:
        cap = f"capped at {self.cap:.3f} nats" if math.isfinite(self.cap) else "without a cap"
        rows = [(f"H({name})", result) for name, result in self.entropies.items()]
        rows += [(f"I({first}; {second})", result) for (first, second), result in self.informations.items()]
        width = max(len(label) for label, _ in rows)
        return "\n".join(
            [
                f"beta in [{self.lower:.3g}, {self.upper:.3g}]",
                f"from {self.samples} samples by {self.estimator!r}, {cap}",
                *(f"{label:<{width}}  {str(result).splitlines()[0]}" for label, result in rows),
                *(f"doubtful: {doubt}" for doubt in self.doubts),
            ]
        )


def estimate_beta(
    views: Mapping[str, Samples] | Sequence[Samples],
    *,
    estimator: str = "smile",
    critic: str = "separable",
    samples: int = 4096,
    seeds: int | Sequence[int] = 3,
    epochs: int = 100,
    progress: Callable[[str], object] | None = None,
    **options: Any,
) -> BetaEstimate:
    """Estimate the bounds of beta from the modalities' samples, before any training (OMIB, algorithm 2, lines 1 to 5).

    As in the paper, a modality's entropy is its information about itself, H(v) = I(v; v), by the estimator that also
    gives the informations between modalities. For continuous data I(v; v) is infinite: what an estimator gives is the
    information that its critic can tell from its samples. "infonce" cannot exceed the logarithm of the samples that it
    is read on, whatever the data; "mine", the paper's, and "smile" have no cap (the clamp of "smile" is on the
    negatives' term, not on the positives') and stop where held-out samples stop the critic. The bounds are of the data
    as the estimator sees them, then, and orders of magnitude rather than digits: report the estimator with them. What
    makes them less than that is warned of:

    - an entropy or information near the estimator's cap, or above the logarithm of the held-out samples, more than
      which N samples cannot vouch for (McAllester and Stratos, 2020);
    - an entropy far below the logarithm of the held-out samples (below 0.1 of it): the critic told hardly any of them
      apart, and beta is too large;
    - features with tails so heavy that a critic sees little else, which `transform="ranks"` mends;
    - values that differ much between seeds;
    - an information above either entropy. For the bounds it is lowered to the smaller one, and a negative one raised
      to 0, with which M_l <= M_u always.

    Parameters
    ----------
    views : mapping from a modality's name to array or Tensor [N, ...], or sequence of them
        At least 2, of at least 20 samples. Raw: features are flattened, and standardised by the estimator. Those of
        training only. Memory-mapped arrays are read where rows are drawn.
    estimator : {"smile", "mine", "infonce", ...}
        See :func:`mibfast.information.estimate`.
    critic : {"separable", "concatenated", "bilinear"}
    samples : int
        At most so many rows are drawn, one set for all, by the first seed.
    seeds : int or sequence of int
        Repeats: how many, 0 and up, or which.
    epochs : int
        At most so many for each critic.
    progress : callable, optional
        Called with a line of text after every epoch, as `print` can be.
    **options
        Others of :func:`mibfast.information.estimate`: `transform`, `clip`, `batch_size`, `patience`, `device` and so
        on.

    Returns
    -------
    BetaEstimate
        Repeats bit for bit on the same machine and number of threads.

    Raises
    ------
    TypeError, ValueError
        For fewer than 2 modalities, unequal numbers of samples, too few of them, a modality that is not finite or is
        constant, or estimates that give no bounds.

    Examples
    --------
    >>> import numpy as np
    >>> from mibfast import omib
    >>> rng = np.random.default_rng(0)
    >>> image = rng.standard_normal((600, 2))
    >>> text = image + rng.standard_normal((600, 2))
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # of entropies near their cap
    ...     found = omib.estimate_beta({"image": image, "text": text}, estimator="infonce", seeds=1, epochs=5)
    >>> 0 < found.lower < found.draw(seed=0) < found.upper
    True
    """
    name = "estimate_beta"
    drawn = _drawn(name, views, _check.count(name, "samples", samples), _first(seeds))
    names = list(drawn)

    def information(first: str, second: str) -> Estimate:
        label = f"H({first})" if first == second else f"I({first}; {second})"
        say = None if progress is None else _after(label, progress)
        x, y = drawn[first], drawn[second]
        with warnings.catch_warnings():
            # Doubts about all estimates are reported together below.
            warnings.simplefilter("ignore", EstimateWarning)
            return estimate(x, y, estimator, critic, seeds=seeds, epochs=epochs, progress=say, **options)

    entropies = {each: information(each, each) for each in names}
    informations = {pair: information(*pair) for pair in combinations(names, 2)}
    for label, result in _labelled(entropies, informations):
        if not math.isfinite(result.value):
            raise ValueError(
                f"{name}: the estimate of {label} by {estimator!r} is {result.value}, from which no bounds follow; "
                "'smile' and 'infonce' are steadier"
            )
    H = {each: result.value for each, result in entropies.items()}
    if math.fsum(H.values()) <= 0:
        raise ValueError(
            f"{name}: {estimator!r} found no information of the modalities about themselves ("
            + ", ".join(f"H({each}) = {h:.3g}" for each, h in H.items())
            + "); more samples or epochs are needed"
        )
    H = {each: max(h, 0.0) for each, h in H.items()}
    consistent = {(i, j): min(max(result.value, 0.0), H[i], H[j]) for (i, j), result in informations.items()}
    lower, upper = beta_bounds(H, consistent)
    doubts = _doubts(entropies, informations)
    if options.get("transform", "standardise") == "standardise":
        doubts += [doubt for each, x in drawn.items() for doubt in heavy_tails(each, x)]
    for doubt in doubts:
        warnings.warn(f"{name}: {doubt}", EstimateWarning, stacklevel=2)
    return BetaEstimate(
        lower=lower,
        upper=upper,
        entropies=entropies,
        informations=informations,
        estimator=estimator,
        cap=entropies[names[0]].cap,
        samples=len(drawn[names[0]]),
        doubts=tuple(doubts),
    )


def _after(label: str, progress: Callable[[str], object]) -> Callable[[str], object]:
    return lambda line: progress(f"{label}, {line}")


def _labelled(
    entropies: Mapping[str, Estimate], informations: Mapping[tuple[str, str], Estimate]
) -> list[tuple[str, Estimate]]:
    pairs = [(f"I({i}; {j})", result) for (i, j), result in informations.items()]
    return [(f"H({name})", result) for name, result in entropies.items()] + pairs


def _doubts(entropies: Mapping[str, Estimate], informations: Mapping[tuple[str, str], Estimate]) -> list[str]:
    """Say why estimates are not to be trusted."""
    doubts = []
    for label, result in _labelled(entropies, informations):
        if result.value > _NEAR * result.cap:
            doubts.append(f"{label} = {result.value:.3g} is at its cap, {result.cap:.3g}; the truth is larger")
        elif result.value > math.log(result.samples):
            doubts.append(
                f"{label} = {result.value:.3g} is above ln N = {math.log(result.samples):.3g}, more than which the "
                f"{result.samples} held-out samples cannot vouch for"
            )
    for name, result in entropies.items():
        if result.value <= 0:
            doubts.append(f"H({name}) = {result.value:.3g} is not positive: the critic learned nothing")
        elif _is_indistinct(result):
            doubts.append(
                f"H({name}) = {result.value:.3g} is far below ln N = {math.log(result.samples):.3g}: the critic told "
                f"hardly any of the {result.samples} held-out samples apart, and beta is too large"
            )
        elif result.spread > _LARGEST_SPREAD * result.value:
            doubts.append(f"H({name}) = {result.value:.3g} differs by {result.spread:.3g} between seeds")
    for (i, j), result in informations.items():
        smaller = min(entropies[i].value, entropies[j].value)
        if smaller <= 0:
            continue
        if result.value > smaller:
            doubts.append(f"I({i}; {j}) = {result.value:.3g} exceeds the smaller entropy, {smaller:.3g}")
        elif result.spread > _LARGEST_SPREAD * smaller:
            doubts.append(f"I({i}; {j}) = {result.value:.3g} differs by {result.spread:.3g} between seeds")
    return doubts


def _is_indistinct(entropy: Estimate) -> bool:
    return entropy.value < _FAR_BELOW * math.log(entropy.samples)


def _first(seeds: int | Sequence[int]) -> int:
    return 0 if isinstance(seeds, (int, numbers.Integral)) or not len(seeds) else seeds[0]


def _drawn(name: str, views: Mapping[str, Samples] | Sequence[Samples], samples: int, seed: int) -> dict[str, Samples]:
    """Check the modalities; return at most so many rows of each, the same of all, as [N, d]."""
    if not isinstance(views, Mapping):
        views = {f"v{k}": x for k, x in enumerate(views, 1)}
    if len(views) < 2:
        raise ValueError(f"{name}: views must hold at least 2 modalities, got {len(views)}")
    counts = {}
    for modality, x in views.items():
        numbers = isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.dtype.kind in "fiub")
        if not numbers or not x.ndim:
            raise TypeError(
                f"{name}: views[{modality!r}] must be an array or a tensor of numbers [N, ...], got "
                f"{_check.described(x)}"
            )
        counts[modality] = len(x)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {modality}" for modality, count in counts.items())
        raise ValueError(f"{name}: views must have one number of samples, got {listed}")
    count = next(iter(counts.values()))
    if min(count, samples) < _FEWEST_SAMPLES:
        raise ValueError(f"{name}: at least {_FEWEST_SAMPLES} samples are needed, got {count} and samples={samples}")
    rows = None
    if count > samples:
        # In order, as memory-mapped arrays are read fastest.
        rows = np.sort(np.random.default_rng(seed).choice(count, samples, replace=False))
    drawn: dict[str, Samples] = {}
    for modality, x in views.items():
        part: Any
        if isinstance(x, Tensor):
            part = x.detach() if rows is None else x.detach()[torch.from_numpy(rows).to(x.device)]
        else:
            part = np.asarray(x if rows is None else x[rows])
        part = part.reshape(len(part), -1)
        finite = part.isfinite() if isinstance(part, Tensor) else np.isfinite(part)
        bad = int((~finite).any(1).sum())
        if bad:
            raise ValueError(
                f"{name}: views[{modality!r}] must be finite, got {bad} of {len(part)} samples with NaN or infinity"
            )
        if bool((part == part[:1]).all()):
            raise ValueError(f"{name}: views[{modality!r}] is constant over the {len(part)} samples drawn")
        drawn[modality] = part
    return drawn
