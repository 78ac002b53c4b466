"""From two graphs to a loss, term by term: what is compressed, what is predicted, the bound that each becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import nn

from mibfast import _check
from mibfast._check import InputError
from mibfast.bottleneck.graphs import Edge, edges, nodes, ordered
from mibfast.bottleneck.likelihoods import LIKELIHOODS, Likelihood
from mibfast.bottleneck.loss import BottleneckLoss, Estimator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind: TypeAlias = Literal["compression", "prediction", "information"]
_NAME = "Bottleneck"
_COMPRESSIONS = ("standard_normal", "other_encoder")


@dataclass(frozen=True)
class Term:
    """A term of the loss.

    Attributes
    ----------
    name : str
        Its edges, "X -> ZX", "ZX, WX -> X" or "ZX -- ZY": the key in :meth:`BottleneckLoss.terms`.
    kind : {"compression", "prediction", "information"}
        Of the encoder; of the decoder, with an observed target; of the decoder, between latents.
    sources : tuple of str
        The parents.
    target : str
        The child.
    weight : float
        What the term is multiplied by in the loss: positive for compression, minus beta for the others.
    information : str
        The mutual information that it stands for.
    bound : str
        What stands in for that.
    latex : str
        The same, for LaTeX.
    """

    name: str
    kind: Kind
    sources: tuple[str, ...]
    target: str
    weight: float
    information: str
    bound: str
    latex: str


class Bottleneck:
    """A multivariate information bottleneck, from the graph that compresses and the graph that predicts.

    The loss is L = I_enc - beta I_dec: the information that the latents of the encoder graph hold of their parents,
    less beta times that which the decoder graph asks for (Abdelaleem, Nemenman and Martini, JMLR 26, 2025). Each term
    becomes a bound that can be trained:

    - of the encoder, I(X; Z): at most the KL divergence of q(z | x), a diagonal Gaussian, from the standard normal;
    - of the decoder, with an observed target, I(Z; X): at least H(X), which is constant and dropped, plus the expected
      log-likelihood of x under a decoder;
    - of the decoder, between latents, I(ZX; ZY): an estimate by a critic.

    Graphs are written as edges, with commas, semicolons or new lines between them. `X -> Z` makes the latent Z of X by
    a noisy encoder, `X => Z` by a deterministic one, which has no term. Several edges to one variable give it several
    parents, jointly. `ZX -- ZY` in the decoder is the information between two latents; `X -- Y` in the encoder, between
    what is observed, is a constant of the data. Variables of the encoder graph without a parent are observed, those
    with one are latents; any other variable that the decoder predicts, such as a label, is observed as well.

    Parameters
    ----------
    encoder, decoder : str or networkx graph
        An undirected graph's edges are `--`; an edge's attribute `deterministic` makes it `=>`.
    beta : float or mapping from str to float
        The weight of I_dec: large values compress less. A mapping has one for every term of the decoder, by its name.
    likelihoods : mapping from str to str or callable, optional
        For observed targets: "gaussian" (of variance 1, up to a constant; the default), "bernoulli" (of logits),
        "categorical" (of logits, for class indices [N]), or what returns the log-likelihoods [N] of (prediction,
        target).
    compression : {"standard_normal", "other_encoder"}
        What a latent's distribution is compressed towards. "other_encoder", for exactly two latents, takes that of the
        other latent, half of each KL divergence, as the multi-view information bottleneck (Federici et al., 2020) does:
        a bound on I(X; ZX | Y), what a latent holds beyond the other view.

    Attributes
    ----------
    terms : tuple of Term
        Those of the encoder first.
    observed : tuple of str
        The variables that the loss takes.
    latents : tuple of str
        Those that encoders make, parents before children.

    Raises
    ------
    TypeError, ValueError
        For graphs that cannot be read or make no sense, saying which edge and why; for settings that fit no term.

    Examples
    --------
    >>> from mibfast.bottleneck import Bottleneck
    >>> print(Bottleneck(encoder="X -> Z", decoder="Z -> Y", beta=8, likelihoods={"Y": "categorical"}))
    L = I(X; Z) - 8 I(Z; Y)
    X -> Z  I(X; Z) <= E KL(q(Z | X) || N(0, I))
    Z -> Y  I(Z; Y) >= H(Y) + E log q(Y | Z), q categorical
    """

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        beta: float | Mapping[str, float] = 1.0,
        *,
        likelihoods: Mapping[str, str | Likelihood] | None = None,
        compression: str = "standard_normal",
    ) -> None:
        self.encoder_edges, self.decoder_edges = edges("encoder", encoder), edges("decoder", decoder)
        self.compression = _check.choice(_NAME, "compression", compression, _COMPRESSIONS)
        arrows = [edge for edge in self.encoder_edges if edge.arrow != "--"]
        made = {edge.target for edge in arrows}
        if not arrows:
            raise InputError(f"{_NAME}: the encoder makes no latent; expected an edge such as X -> Z")
        order = ordered("encoder", arrows)
        self.latents = tuple(name for name in order if name in made)
        self._check_encoder(made)
        self.parents = {name: tuple(edge.source for edge in arrows if edge.target == name) for name in self.latents}
        self.deterministic = frozenset(edge.target for edge in arrows if edge.arrow == "=>")
        targets = self._decoder_targets()
        predicted = [name for name in targets if name not in made]
        self.observed = tuple(
            dict.fromkeys(name for name in [*nodes(self.encoder_edges), *predicted] if name not in made)
        )
        self.likelihoods = self._checked_likelihoods(predicted, {} if likelihoods is None else likelihoods)
        self.terms = (*self._compressions(), *self._weighted(self._predictions(targets), beta))

    def _check_encoder(self, made: set[str]) -> None:
        kinds: dict[str, Edge] = {}
        for edge in self.encoder_edges:
            if edge.arrow == "--":
                latent = next((name for name in (edge.source, edge.target) if name in made), None)
                if latent is not None:
                    raise InputError(
                        f"{_NAME}: encoder edge {edge} has no direction and {latent} is a latent; "
                        "-- in the encoder is for observed variables"
                    )
                continue
            other = kinds.setdefault(edge.target, edge)
            if other.arrow != edge.arrow:
                raise InputError(
                    f"{_NAME}: encoder edges {other} and {edge} make {edge.target} both noisy and deterministic"
                )

    def _decoder_targets(self) -> dict[str, list[str]]:
        """Check the decoder, and return the parents of what its arrows lead to."""
        targets: dict[str, list[str]] = {}
        for edge in self.decoder_edges:
            if edge.arrow == "=>":
                raise InputError(f"{_NAME}: decoder edge {edge} is deterministic; the decoder has -> and -- alone")
            for name in (edge.source, edge.target) if edge.arrow == "--" else (edge.source,):
                if name not in self.latents:
                    raise InputError(
                        f"{_NAME}: decoder edge {edge} reads {name}, which no encoder makes; "
                        f"the encoder makes {', '.join(self.latents)}"
                    )
            if edge.arrow == "->":
                targets.setdefault(edge.target, []).append(edge.source)
        ordered("decoder", [edge for edge in self.decoder_edges if edge.arrow == "->"])
        directed = {frozenset((source, target)): target for target, sources in targets.items() for source in sources}
        for edge in self.decoder_edges:
            if edge.arrow == "--" and frozenset((edge.source, edge.target)) in directed:
                raise InputError(
                    f"{_NAME}: decoder edge {edge} and an arrow between the two ask for the same information"
                )
        used = {name for edge in self.decoder_edges for name in (edge.source, edge.target)}
        used.update(name for sources in self.parents.values() for name in sources)
        for latent in self.latents:
            if latent not in used:
                raise InputError(f"{_NAME}: latent {latent} is never used; expected an edge of the decoder that has it")
        return targets

    def _checked_likelihoods(
        self, predicted: list[str], given: Mapping[str, str | Likelihood]
    ) -> dict[str, str | Likelihood]:
        if not isinstance(given, Mapping):
            raise TypeError(f"{_NAME}: likelihoods must be a mapping or None, got {_check.described(given)}")
        for name, likelihood in given.items():
            if name not in predicted:
                raise InputError(
                    f"{_NAME}: likelihoods has {name}, which the decoder does not predict; "
                    f"it predicts {', '.join(predicted) or 'nothing observed'}"
                )
            if not callable(likelihood):
                _check.choice(_NAME, f"likelihoods[{name!r}]", likelihood, tuple(LIKELIHOODS))
        return {name: given.get(name, "gaussian") for name in predicted}

    def _compressions(self) -> list[Term]:
        noisy = [name for name in self.latents if name not in self.deterministic]
        matched = self.compression == "other_encoder"
        if matched and len(noisy) != 2:
            raise InputError(
                f'{_NAME}: compression="other_encoder" is for exactly 2 noisy latents, '
                f"got {len(noisy)} ({', '.join(noisy) or 'none'})"
            )
        terms = []
        for latent in noisy:
            sources = self.parents[latent]
            conditional, latex = _conditional(latent, sources)
            name, information = f"{', '.join(sources)} -> {latent}", f"I({', '.join(sources)}; {latent})"
            prior, latex_prior = "N(0, I)", r"\mathcal{N}(0, I)"
            if matched:
                other = next(each for each in noisy if each != latent)
                prior, latex_prior = _conditional(other, self.parents[other])
                information = f"{information[:-1]} | {', '.join(self.parents[other])})"
            terms.append(
                Term(
                    name,
                    "compression",
                    sources,
                    latent,
                    0.5 if matched else 1.0,
                    information,
                    f"{information} <= E KL({conditional} || {prior})",
                    rf"\mathbb{{E}}\, D_\mathrm{{KL}}\big({latex} \,\|\, {latex_prior}\big)",
                )
            )
        return terms

    def _predictions(self, targets: Mapping[str, list[str]]) -> list[Term]:
        """Return the decoder's terms, in the order of its edges, before their weights."""
        terms: dict[str, Term] = {}
        for edge in self.decoder_edges:
            sources = (edge.source,) if edge.arrow == "--" else tuple(targets[edge.target])
            name = f"{', '.join(sources)} {edge.arrow} {edge.target}"
            information = f"I({', '.join(sources)}; {edge.target})"
            if edge.target in self.likelihoods:
                likelihood = self.likelihoods[edge.target]
                family = likelihood if isinstance(likelihood, str) else "given"
                conditional, latex = _conditional(edge.target, sources)
                bound = f"{information} >= H({edge.target}) + E log {conditional}, q {family}"
                terms[name] = Term(
                    name, "prediction", sources, edge.target, 1.0, information, bound, rf"\mathbb{{E}} \log {latex}"
                )
            else:
                bound = f"{information} ~ estimate by a critic"
                latex = rf"\hat I\big({', '.join(map(_symbol, sources))}; {_symbol(edge.target)}\big)"
                terms[name] = Term(name, "information", sources, edge.target, 1.0, information, bound, latex)
        return list(terms.values())

    def _weighted(self, terms: list[Term], beta: float | Mapping[str, float]) -> list[Term]:
        names = [term.name for term in terms]
        if not isinstance(beta, Mapping):
            betas = dict.fromkeys(names, _check.number(_NAME, "beta", beta, 0.0))
        elif sorted(beta) != sorted(names):
            raise InputError(
                f"{_NAME}: beta must have a number for each term of the decoder, {', '.join(map(repr, names))}, "
                f"got {', '.join(map(repr, beta)) or 'none'}"
            )
        else:
            betas = {name: _check.number(_NAME, f"beta[{name!r}]", beta[name], 0.0) for name in names}
        return [
            Term(t.name, t.kind, t.sources, t.target, -betas[t.name], t.information, t.bound, t.latex) for t in terms
        ]

    def __str__(self) -> str:
        width = max(len(term.name) for term in self.terms)
        total = _sum([(term.weight, term.information) for term in self.terms], "")
        return "\n".join([f"L = {total}", *(f"{term.name:<{width}}  {term.bound}" for term in self.terms)])

    def __repr__(self) -> str:
        encoder, decoder = (", ".join(map(str, each)) for each in (self.encoder_edges, self.decoder_edges))
        return f"Bottleneck(encoder={encoder!r}, decoder={decoder!r})"

    def latex(self) -> str:
        r"""Return the loss with its bounds, for LaTeX with amsmath and amssymb.

        Examples
        --------
        >>> from mibfast.bottleneck import Bottleneck
        >>> print(Bottleneck("X => ZX, Y => ZY", "ZX -- ZY").latex())
        L = - \hat I\big(Z_{X}; Z_{Y}\big)
        """
        return "L = " + _sum([(term.weight, term.latex) for term in self.terms], r"\, ")

    def draw(self, path: Any = None) -> Figure:
        """Draw both graphs; write them to `path` where one is given, in the format that its ending names.

        Needs matplotlib.
        """
        from mibfast.bottleneck.picture import draw

        return draw(self, path)

    def build(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module] | None = None,
        critics: nn.Module | Mapping[str, nn.Module] | None = None,
        estimator: str | Estimator = "smile",
        *,
        logvar_bounds: tuple[float, float] = (-10.0, 4.0),
        **options: Any,
    ) -> BottleneckLoss:
        """Return the loss of these networks, a module; see :class:`BottleneckLoss`.

        Parameters
        ----------
        encoders : mapping from a latent's name to Module
            Takes the latent's parents, in the order of the graph, and returns (mean, logvar), each [N, d]; a
            deterministic one returns one tensor [N, d].
        decoders : mapping from an observed target's name to Module
            Takes its parents' samples, concatenated to [N, d], and returns what the likelihood takes.
        critics : mapping from a term's name to Module, or Module
            For each term between latents, "ZX -- ZY"; the module itself where there is one such term. See
            :class:`mibfast.information.MutualInformation`.
        estimator : str or callable
            Of information between latents: a name of :func:`mibfast.functional.mutual_information`; "gaussian", exact
            for jointly Gaussian latents, or "barlow_twins", minus its loss, both without critics; or what returns a
            scalar for (critic, x, y).
        logvar_bounds : (float, float)
            Log-variances are held between these; a gradient that leads back inside passes.
        **options
            `clip`, `momentum`, `negatives` and `backend` of :class:`mibfast.information.MutualInformation`.

        Returns
        -------
        BottleneckLoss

        Raises
        ------
        TypeError, ValueError
            For networks that are missing or that no term has a use for, or settings out of range.
        """
        return BottleneckLoss(self, encoders, decoders or {}, critics, estimator, logvar_bounds, options)


def _symbol(name: str) -> str:
    """ZX as Z with the subscript X."""
    rest = name[1:].replace("_", "")
    return f"{name[0]}_{{{rest}}}" if rest else name


def _conditional(target: str, sources: tuple[str, ...]) -> tuple[str, str]:
    return (
        f"q({target} | {', '.join(sources)})",
        rf"q({_symbol(target)} \mid {', '.join(map(_symbol, sources))})",
    )


def _sum(parts: list[tuple[float, str]], product: str) -> str:
    """A sum with its signs, terms of one weight in brackets."""
    grouped: dict[float, list[str]] = {}
    for weight, text in parts:
        grouped.setdefault(weight, []).append(text)
    result = ""
    for weight, texts in grouped.items():
        inner = " + ".join(texts)
        size = abs(weight)
        factor = "" if size == 1.0 else f"{size:g}{product or ' '}"
        if len(texts) > 1 and (factor or weight < 0):
            inner = f"[{inner}]"
        sign = ("- " if weight < 0 else "") if not result else (" - " if weight <= 0 else " + ")
        result += f"{sign}{factor}{inner}"
    return result
