"""OVA-IB with learned projectors: the ablation of its closed form."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast import functional as F
from mibfast._precision import at_least_float32, unit
from mibfast.losses._loss import EmbeddingsLoss


class LearnedProjectorOVAIBLoss(EmbeddingsLoss):
    r"""OVA-IB's loss with a multilayer perceptron in place of the projection: the paper's ablation.

    .. math:: L = L_S + \beta L_M, \qquad L_S = \frac1M \sum_m \frac1N \sum_n \Big( -\frac{s_{nn}^{(m)}}{\tau}
        + \log \sum_{n' \ne n} e^{s_{nn'}^{(m)} / \tau} \Big), \qquad
        s_{nn'}^{(m)} = \cos\big( z_n^{(m)}, t_m(z_{n'}^{(k)}, k \ne m) \big)

    with a perceptron :math:`t_m` for each modality, which maps the concatenated embeddings of the others to
    :math:`\mathbb{R}^d` (OVA-IB, arXiv 2605.29900, Section 3 and Table 4). The paper gives no layer sizes. The default
    here is one hidden layer of width d with ReLU, whose :math:`M d^2` multiplications agree with the paper's
    :math:`O(d^2 M)`. The terms are those of :class:`OVAIBLoss`. Unlike that, the loss has parameters, which must be
    trained with the encoders, and modalities must come in the same order in every call.

    With missing modalities, the loss is over the samples that have all, since a perceptron takes all the others. It
    needs two of them, or one with the positive in the denominator.

    Parameters
    ----------
    modalities : int
        M, >= 2.
    features : int
        d.
    hidden_features : int, optional
        Width of the hidden layers, d by default.
    depth : int
        Number of linear layers, >= 1.
    temperature : float
        Positive.
    beta : float
        Weight of the minimality, >= 0. At 0 it is not computed.
    normalize : bool
        L2-normalise embeddings before the perceptrons and :math:`L_M` take them.
    positive_in_denominator : bool
        False in the paper.
    reduction : {"mean", "sum", "none"}
        "none" gives [M, N].
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range; in `forward`, for embeddings that do not fit together or are not M of length d, or a
        presence that does not fit or leaves too few samples.

    Examples
    --------
    >>> import torch, mibfast
    >>> loss = mibfast.losses.LearnedProjectorOVAIBLoss(modalities=3, features=4, beta=0.5)
    >>> loss([torch.eye(4)] * 3).backward()
    >>> sum(p.numel() for p in loss.parameters())
    168
    """

    takes_complete_samples = True

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
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__(normalize=normalize, reduction=reduction, backend=backend)
        name = self._name
        if _check.count(name, "modalities", modalities) < 2:
            raise ValueError(f"{name}: modalities must be at least 2, got {modalities}")
        self.features = _check.count(name, "features", features)
        self.hidden_features = features
        if hidden_features is not None:
            self.hidden_features = _check.count(name, "hidden_features", hidden_features)
        self.depth = _check.count(name, "depth", depth)
        self.temperature = _check.positive(name, "temperature", temperature)
        self.beta = _check.number(name, "beta", beta, 0.0)
        self.positive_in_denominator = _check.boolean(name, "positive_in_denominator", positive_in_denominator)
        sizes = [(modalities - 1) * features, *[self.hidden_features] * (depth - 1), features]
        self.projectors = nn.ModuleList(_perceptron(sizes) for _ in range(modalities))

    def _terms(self, z: list[Tensor], names: list[str], presence: Tensor | None) -> dict[str, Tensor]:
        _check.modalities_of_size(self._name, z, len(self.projectors), self.features)
        alignment = torch.stack([self._alignment(z, m) for m in range(len(z))])
        if self.reduction != "none":
            alignment = alignment.mean() if self.reduction == "mean" else alignment.sum()
        if not self.beta:
            return {"alignment": alignment}
        minimality = F.one_vs_all_minimality(z, reduction=self.reduction, backend=self.backend)
        return {"alignment": alignment, "minimality": minimality}

    def _weights(self) -> dict[str, float]:
        return {"minimality": self.beta}

    def predict(self, m: int, others: Sequence[Tensor]) -> Tensor:
        """Return modality m's embeddings as predicted from those of the others, in their order: [N, d].

        The score of the loss, and so of retrieval by all other modalities, is the cosine with them.
        """
        return self._predict(m, self._normalized(list(others)))

    def _predict(self, m: int, others: Sequence[Tensor]) -> Tensor:
        projector = self.projectors[m]
        # Perceptrons run in the dtype of their parameters; cosines have that of the embeddings, at least float32.
        result: Tensor = projector(torch.cat(list(others), dim=1).to(next(projector.parameters()).dtype))
        return result.to(others[0].dtype)

    def _alignment(self, z: list[Tensor], m: int) -> Tensor:
        query, key = (unit(at_least_float32(x)) for x in (z[m], self._predict(m, [*z[:m], *z[m + 1 :]])))
        return F.info_nce(
            query,
            key,
            self.temperature,
            positive_in_denominator=self.positive_in_denominator,
            reduction=self.reduction,
            backend=self.backend,
        )


def _perceptron(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
