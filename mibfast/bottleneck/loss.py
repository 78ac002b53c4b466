"""The loss of a bottleneck, with its networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast import functional as F
from mibfast._check import InputError
from mibfast._modules import ResettableModule
from mibfast.bottleneck.likelihoods import LIKELIHOODS
from mibfast.information import MutualInformation, gaussian_mutual_information
from mibfast.nn.bounded import bounded

if TYPE_CHECKING:
    from mibfast.bottleneck.formulation import Bottleneck

Estimator: TypeAlias = Callable[[Any, Tensor, Tensor], Tensor]
_NAME = "BottleneckLoss"


def _gaussian(critic: None, x: Tensor, y: Tensor) -> Tensor:
    return gaussian_mutual_information(x, y)


def _barlow_twins(critic: None, x: Tensor, y: Tensor) -> Tensor:
    return -F.barlow_twins(x, y)


_WITHOUT_CRITICS: dict[str, Estimator] = {"gaussian": _gaussian, "barlow_twins": _barlow_twins}


class _Called(nn.Module):
    """An estimator that is a function of a critic and both latents."""

    def __init__(self, estimator: Estimator, critic: nn.Module | None) -> None:
        super().__init__()
        self.estimator, self.critic = estimator, critic

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        result = self.estimator(self.critic, x, y)
        if not isinstance(result, Tensor) or result.ndim:
            raise TypeError(f"{_NAME}: estimator must return a scalar tensor, got {_check.described(result)}")
        return result


class BottleneckLoss(ResettableModule):
    """The loss of a :class:`Bottleneck` with its encoders, decoders and critics, whose parameters are the module's.

    Made by :meth:`Bottleneck.build`. Every latent is sampled once a sample, mean + exp(logvar / 2) * noise, in training
    and in evaluation alike: the loss is a bound only of samples. All networks are trained on the one loss.

    Attributes
    ----------
    bottleneck : Bottleneck
        What the loss was derived from.
    encoders, decoders, estimators : ModuleDict
        By the latent, the target and the name of the term.

    Examples
    --------
    >>> import torch
    >>> from mibfast import bottleneck, information
    >>> b = bottleneck.methods.dvsib_no_reconstruction(beta=8.0)
    >>> encoders = {"ZX": bottleneck.GaussianEncoder(20, 4), "ZY": bottleneck.GaussianEncoder(10, 4)}
    >>> loss = b.build(encoders, critics=information.SeparableCritic(4, 4))
    >>> loss(X=torch.randn(32, 20), Y=torch.randn(32, 10)).backward()
    >>> sorted(loss.terms(X=torch.randn(32, 20), Y=torch.randn(32, 10)))
    ['X -> ZX', 'Y -> ZY', 'ZX -- ZY']
    """

    def __init__(
        self,
        bottleneck: Bottleneck,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        critics: nn.Module | Mapping[str, nn.Module] | None,
        estimator: str | Estimator,
        logvar_bounds: tuple[float, float],
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.encoders = _modules("encoders", encoders, bottleneck.latents)
        self.decoders = _modules("decoders", decoders, tuple(bottleneck.likelihoods))
        self.logvar_bounds = _check.bounds(_NAME, "logvar_bounds", logvar_bounds)
        terms = [term.name for term in bottleneck.terms if term.kind == "information"]
        if isinstance(critics, nn.Module) and not isinstance(critics, nn.ModuleDict):
            if len(terms) != 1:
                raise InputError(
                    f"{_NAME}: critics as one module is for one term between latents, got {len(terms)}; "
                    f"expected a mapping from {', '.join(map(repr, terms)) or 'none'}"
                )
            critics = {terms[0]: critics}
        self.estimators = _estimators(terms, dict(critics or {}), estimator, options)

    def forward(
        self,
        *,
        noise: Mapping[str, Tensor] | None = None,
        permutations: Mapping[str, Tensor] | None = None,
        **observed: Tensor,
    ) -> Tensor:
        """Return the loss, a scalar in nats, of the observed variables by their names, [N, ...] each.

        `noise` has standard normal numbers [N, d] for latents by their names, `permutations` those of
        :class:`mibfast.information.MutualInformation` with shuffled negatives for terms by theirs; what is not given is
        drawn.
        """
        terms = self.terms(noise=noise, permutations=permutations, **observed)
        weighted = [term.weight * terms[term.name] for term in self.bottleneck.terms]
        return torch.stack(weighted).sum()

    def terms(
        self,
        *,
        noise: Mapping[str, Tensor] | None = None,
        permutations: Mapping[str, Tensor] | None = None,
        **observed: Tensor,
    ) -> dict[str, Tensor]:
        """Return each term by its name, before its weight: KL divergences, log-likelihoods, information."""
        b = self.bottleneck
        self._check_observed(observed)
        samples, posteriors = self._sample(observed, dict(noise or {}))
        given = dict(permutations or {})
        for name in given:
            if name not in self.estimators:
                raise InputError(
                    f"{_NAME}: permutations has {name!r}; expected one of {', '.join(map(repr, self.estimators))}"
                )
        terms: dict[str, Tensor] = {}
        for term in b.terms:
            if term.kind == "compression":
                prior = () if b.compression == "standard_normal" else _other(posteriors, term.target)
                terms[term.name] = F.gaussian_kl(*posteriors[term.target], *prior)
                continue
            sources = torch.cat([samples[name] for name in term.sources], 1)
            if term.kind == "information":
                drawn = {"permutations": given[term.name]} if term.name in given else {}
                terms[term.name] = self.estimators[term.name](sources, samples[term.target], **drawn)
            else:
                likelihood = b.likelihoods[term.target]
                negative_log_likelihood = LIKELIHOODS[likelihood] if isinstance(likelihood, str) else likelihood
                terms[term.name] = negative_log_likelihood(
                    self.decoders[term.target](sources), observed[term.target]
                ).mean()
        return terms

    def encode(self, **observed: Tensor) -> dict[str, Tensor]:
        """Return the latents' means [N, d], of those that follow from the variables that are given."""
        known: dict[str, Tensor] = dict(observed)
        means: dict[str, Tensor] = {}
        for name, parents in self.bottleneck.parents.items():
            if all(parent in known for parent in parents):
                posterior = self._posterior(name, [known[parent] for parent in parents])
                known[name] = means[name] = posterior[0]
        if not means:
            raise InputError(f"{_NAME}: no latent follows from {', '.join(observed) or 'no variables'}")
        return means

    def _check_observed(self, observed: Mapping[str, Any]) -> None:
        expected = self.bottleneck.observed
        if sorted(observed) != sorted(expected):
            raise TypeError(
                f"{_NAME}: the observed variables are {', '.join(expected)}, got {', '.join(observed) or 'none'}"
            )
        for name, x in observed.items():
            if not isinstance(x, Tensor) or not x.ndim:
                raise TypeError(f"{_NAME}: {name} must be a tensor [N, ...], got {_check.described(x)}")
            _check.size(_NAME, name, x, 0, observed[expected[0]].shape[0])

    def _sample(
        self, observed: Mapping[str, Tensor], noise: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """Return a sample of each latent, and the Gaussians of those that have one."""
        samples: dict[str, Tensor] = {}
        posteriors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, parents in self.bottleneck.parents.items():
            mean, *logvar = self._posterior(name, [samples.get(p, observed.get(p)) for p in parents])
            samples[name] = mean
            if logvar:
                drawn = noise.pop(name, None)
                if drawn is None:
                    drawn = torch.randn_like(mean)
                elif drawn.shape != mean.shape:
                    raise ValueError(
                        f"{_NAME}: noise[{name!r}] must be {list(mean.shape)} as the mean is, "
                        f"got {_check.described(drawn)}"
                    )
                samples[name] = mean + torch.exp(0.5 * logvar[0]) * drawn
                posteriors[name] = mean, logvar[0]
        if noise:
            raise InputError(
                f"{_NAME}: noise has {', '.join(noise)}; expected noisy latents, {', '.join(posteriors) or 'none here'}"
            )
        return samples, posteriors

    def _posterior(self, name: str, parents: list[Any]) -> tuple[Tensor, ...]:
        """Return (mean, logvar) of a noisy latent, or the value alone of a deterministic one."""
        output = self.encoders[name](*parents)
        count = parents[0].shape[0]
        noisy = name not in self.bottleneck.deterministic
        tensors = tuple(output) if isinstance(output, (tuple, list)) else (output,)
        if len(tensors) != 1 + noisy or any(
            not isinstance(x, Tensor) or x.ndim != 2 or len(x) != count or x.shape != tensors[0].shape for x in tensors
        ):
            expected = "(mean, logvar), each [N, d]" if noisy else "one tensor [N, d], being deterministic"
            raise TypeError(
                f"{_NAME}: encoders[{name!r}] must return {expected}, for N = {count}; "
                f"got {' and '.join(map(_check.described, tensors))}"
            )
        if not noisy:
            return tensors
        return tensors[0], bounded(tensors[1], *self.logvar_bounds)

    def extra_repr(self) -> str:
        """Return the derivation, for `repr`."""
        return str(self.bottleneck)


def _other(posteriors: Mapping[str, tuple[Tensor, Tensor]], latent: str) -> tuple[Tensor, Tensor]:
    """The Gaussian of the other of two latents."""
    (other,) = (name for name in posteriors if name != latent)
    if posteriors[other][0].shape != posteriors[latent][0].shape:
        raise ValueError(
            f"{_NAME}: a latent that is compressed towards the other's encoder must have its shape, got {latent} "
            f"{_check.described(posteriors[latent][0])} and {other} {_check.described(posteriors[other][0])}"
        )
    return posteriors[other]


def _modules(argument: str, given: Mapping[str, nn.Module], names: tuple[str, ...]) -> nn.ModuleDict:
    if not isinstance(given, (Mapping, nn.ModuleDict)):
        raise TypeError(f"{_NAME}: {argument} must be a mapping of modules, got {_check.described(given)}")
    if sorted(given) != sorted(names):
        raise InputError(
            f"{_NAME}: {argument} must be for {', '.join(names) or 'nothing'}, got {', '.join(given) or 'none'}"
        )
    for name, module in given.items():
        if not isinstance(module, nn.Module):
            raise TypeError(f"{_NAME}: {argument}[{name!r}] must be an nn.Module, got {_check.described(module)}")
    return nn.ModuleDict({name: given[name] for name in names})


def _estimators(
    terms: list[str], critics: dict[str, nn.Module], estimator: str | Estimator, options: Mapping[str, Any]
) -> nn.ModuleDict:
    """Return an estimator for each term between latents."""
    named = isinstance(estimator, str) and estimator not in _WITHOUT_CRITICS
    if named:
        checked = _modules("critics", critics, tuple(terms))
        return nn.ModuleDict({name: MutualInformation(checked[name], str(estimator), **options) for name in terms})
    if options:
        raise ValueError(f"{_NAME}: estimator={estimator!r} takes no options, got {', '.join(options)}")
    if isinstance(estimator, str):
        _modules("critics", critics, ())
        return nn.ModuleDict({name: _Called(_WITHOUT_CRITICS[estimator], None) for name in terms})
    if not callable(estimator):
        raise TypeError(f"{_NAME}: estimator must be a name or a callable, got {_check.described(estimator)}")
    if critics:
        _modules("critics", critics, tuple(terms))
    return nn.ModuleDict({name: _Called(estimator, critics.get(name)) for name in terms})
