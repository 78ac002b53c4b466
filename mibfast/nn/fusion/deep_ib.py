"""Deep multi-view information bottleneck: each view passes a bottleneck with a weight of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.stochastic_encoder import StochasticEncoder, StochasticEncoders, drawn
from mibfast.nn.fusion.tasks import Task


class DeepIB(FusionModel):
    r"""Each view passes a bottleneck with a weight of its own; the latents are fused into one more latent.

    .. math:: L = \ell(\hat y_z) + \sum_m \beta_m \, \mathrm{KL}\big( q(z_m | x_m) \,\Vert\, N(0, I) \big)

    Wang et al. (SDM 2019), as released for two views, in nats. The fused latent z is stochastic too, and has no
    divergence. The released code averages ten draws of each view's latent in a training step, and the predictions of
    ten draws in the test; here a step takes one draw, and predictions are those of the means.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`; `features` is also the length of a latent.
    beta : float or sequence of float
        One for all views or for each, at least 0. The paper's example has 9e-5 and 1e-3.
    hidden_features : int
        Width of the fusion's hidden layer.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.DeepIB(encoders, 4, fusion.Classification(3), beta=[1e-4, 1e-3])
    >>> views = {"image": torch.randn(5, 8), "text": torch.randn(5, 6)}
    >>> list(model.terms(views, torch.tensor([0, 1, 2, 0, 1])))
    ['loss', 'task', 'image_compression', 'text_compression']
    """

    title: ClassVar[str] = "deep IB"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        features: int,
        task: Task,
        beta: float | Sequence[float] = 1e-3,
        hidden_features: int = 1024,
    ) -> None:
        super().__init__(encoders, features, task)
        m = len(encoders)
        given = list(beta) if isinstance(beta, Sequence) else [beta] * m
        if len(given) != m:
            got = _check.described(beta)
            raise ValueError(f"DeepIB: beta must be one number or {m}, one for each modality, got {got}")
        self.beta = [_check.number("DeepIB", "beta", x, 0.0) for x in given]
        self.posteriors = StochasticEncoders("DeepIB", m, features, bias=task.biased)
        self.fusion = StochasticEncoder("DeepIB", m * features, features, hidden_features, bias=task.biased)
        self.predictor = prediction_head("DeepIB", features, task)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        mean, _ = self.fusion(torch.cat(self.posteriors.means(representations), dim=1))
        prediction: Tensor = self.predictor(mean)
        return prediction

    def _terms(self, views: Mapping[str, Tensor], target: Any, stage: str) -> dict[str, Tensor]:
        """Return the loss, of one draw from each posterior, and its terms, in nats."""
        latents, divergences = self.posteriors.draw(self.encode(views))
        fused, _ = drawn(*self.fusion(torch.cat(latents, dim=1)))
        task = self.task.loss(self.predictor(fused), target).mean()
        compression = {
            f"{name}_compression": divergence
            for name, divergence in zip(self.modalities, divergences.mean(1), strict=True)
        }
        weighed = [beta * term for beta, term in zip(self.beta, compression.values(), strict=True)]
        return {"loss": task + torch.stack(weighed).sum(), "task": task, **compression}
