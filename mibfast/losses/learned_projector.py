"""OVA-IB with learned projectors: the ablation of its closed form."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast import functional as F
from mibfast._check import Embeddings
from mibfast._modules import ResettableModule
from mibfast.losses.normalisation import unit
from mibfast.losses.presence import complete_embeddings


class LearnedProjectorOVAIBLoss(ResettableModule):
    r"""OVA-IB's loss with a multilayer perceptron in place of the projection: the paper's ablation.

    .. math:: L = L_S + \beta L_M, \qquad L_S = \frac1M \sum_m \frac1N \sum_n \Big( -\frac{s_{nn}^{(m)}}{\tau}
        + \log \sum_{n' \ne n} e^{s_{nn'}^{(m)} / \tau} \Big), \qquad
        s_{nn'}^{(m)} = \cos\big( z_n^{(m)}, t_m(z_{n'}^{(k)}, k \ne m) \big)

    with a :math:`t_m` of its own for each modality, which maps the other embeddings, concatenated, to
    :math:`\mathbb{R}^d` (OVA-IB, arXiv 2605.29900, Section 3 and Table 4). The paper gives no layer sizes; here one
    hidden layer of d with ReLU, whose :math:`M d^2` products are the :math:`O(d^2 M)` that it states. All else is as in
    :class:`OVAIBLoss`. Unlike that, the loss has parameters, which must be trained with the encoders, and knows
    modalities by their order, which must be the same in every call.

    Parameters
    ----------
    modalities : int
        M, >= 2.
    features : int
        d.
    hidden_features : int, optional
        Width of the hidden layers; d without.
    depth : int
        Number of linear layers, >= 1.
    temperature : float
        Positive.
    beta : float
        Weight of the minimality, >= 0. At 0 it is not computed.
    normalize : bool
        L2-normalise embeddings first, as the perceptrons and :math:`L_M` see them; the cosines need none.
    positive_in_denominator : bool
        False in the paper.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range; in `forward`, for embeddings that do not fit together or are not M of length d.

    Examples
    --------
    >>> import torch, mibfast
    >>> loss = mibfast.losses.LearnedProjectorOVAIBLoss(modalities=3, features=4, beta=0.5)
    >>> loss([torch.eye(4)] * 3).backward()
    >>> sum(p.numel() for p in loss.parameters())
    168
    """

    def __init__(
        self,
        modalities: int,
        features: int,
        hidden_features: int | None = None,
        depth: int = 2,
        *,
        temperature: float = 0.01,
        beta: float = 1.0,
        normalize: bool = True,
        positive_in_denominator: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if _check.count(name, "modalities", modalities) < 2:
            raise ValueError(f"{name}: modalities must be at least 2, got {modalities}")
        self.features = _check.count(name, "features", features)
        self.hidden_features = features
        if hidden_features is not None:
            self.hidden_features = _check.count(name, "hidden_features", hidden_features)
        self.depth = _check.count(name, "depth", depth)
        self.temperature = _check.positive(name, "temperature", temperature)
        self.beta = _check.number(name, "beta", beta, 0.0)
        self.normalize = _check.boolean(name, "normalize", normalize)
        self.positive_in_denominator = _check.boolean(name, "positive_in_denominator", positive_in_denominator)
        self.backend = backend
        sizes = [(modalities - 1) * features, *[self.hidden_features] * (depth - 1), features]
        self.projectors = nn.ModuleList(_perceptron(sizes) for _ in range(modalities))

    def forward(self, embeddings: Embeddings, presence: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar in nats (float64 for float64 embeddings, else float32).

        Where modalities can be missing, `presence` is a bool [N, M]; the loss is that of the samples that have all,
        since a perceptron takes all the others.
        """
        terms = self.terms(embeddings, presence)
        if "minimality" not in terms:
            return terms["alignment"]
        return terms["alignment"] + self.beta * terms["minimality"]

    def terms(self, embeddings: Embeddings, presence: Tensor | None = None) -> dict[str, Tensor]:
        """Return `alignment` and, where `beta` is not 0, `minimality` (before it is multiplied by `beta`)."""
        name = type(self).__name__
        fewest = 1 if self.positive_in_denominator else 2
        z, _ = complete_embeddings(name, embeddings, presence, self.normalize, fewest)
        _check.modalities_of_size(name, z, len(self.projectors), self.features)
        first, *rest = (self._alignment(z, m) for m in range(len(z)))
        alignment = sum(rest, start=first) / len(z)
        if not self.beta:
            return {"alignment": alignment}
        return {"alignment": alignment, "minimality": F.one_vs_all_minimality(z, backend=self.backend)}

    def predict(self, m: int, others: Sequence[Tensor]) -> Tensor:
        """Return what modality m's perceptron makes of the other modalities' embeddings, in their order: [N, d].

        The score of the loss, and so of retrieval by all other modalities, is the cosine with it.
        """
        return self._predict(m, unit(others) if self.normalize else others)

    def _predict(self, m: int, others: Sequence[Tensor]) -> Tensor:
        projector = self.projectors[m]
        # The projector's dtype is its own, float32 as a rule; cosines are in that of the embeddings, at least float32.
        found: Tensor = projector(torch.cat(list(others), dim=1).to(next(projector.parameters()).dtype))
        return found.to(others[0].dtype)

    def _alignment(self, z: list[Tensor], m: int) -> Tensor:
        query, key = unit([z[m], self._predict(m, [*z[:m], *z[m + 1 :]])])
        return F.info_nce(
            query,
            key,
            self.temperature,
            positive_in_denominator=self.positive_in_denominator,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return (
            f"hidden_features={self.hidden_features}, depth={self.depth}, temperature={self.temperature:g}, "
            f"beta={self.beta:g}, normalize={self.normalize}, positive_in_denominator={self.positive_in_denominator}"
        )


def _perceptron(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
