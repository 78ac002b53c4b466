"""C-MIB: each modality passes a variational bottleneck, and so does what they are fused to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mibfast.nn.fusion.l_mib import LMIB
from mibfast.nn.fusion.stochastic_encoder import StochasticEncoder, drawn
from mibfast.nn.fusion.tasks import Task


class CMIB(LMIB):
    r"""L-MIB with a variational bottleneck after the fusion too: complete bottleneck.

    .. math:: L = w \, \ell(\hat y_z) + \beta \, \mathrm{KL}\big( q(z | z_1, \dots, z_M) \,\Vert\, N(0, I) \big)
              + \sum_m \Big[ \ell(\hat y_m) + \beta \, \mathrm{KL}\big( q(z_m | x_m) \,\Vert\, N(0, I) \big) \Big]

    Mai et al. (IEEE Transactions on Multimedia, 2023), as released: the KL divergences are means over the d features
    too, so beta is d times weaker than in the usual bound. Predictions are those of the posteriors' means; the released
    code draws from them in the test too.

    Parameters
    ----------
    encoders, features, task, beta, task_weight, hidden_features
        As those of :class:`LMIB`.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.CMIB(encoders, 4, fusion.Regression(error="absolute"))
    >>> views = {"image": torch.randn(5, 8), "text": torch.randn(5, 6)}
    >>> list(model.terms(views, torch.zeros(5)))
    ['loss', 'task', 'compression', 'modality_task', 'modality_compression']
    """

    title: ClassVar[str] = "C-MIB"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        features: int,
        task: Task,
        beta: float = 1e-3,
        task_weight: float = 2.0,
        hidden_features: int = 1024,
    ) -> None:
        super().__init__(encoders, features, task, beta, task_weight, hidden_features)
        self.posterior = StochasticEncoder("CMIB", features, features, hidden_features, bias=task.biased)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        mean, _ = self.posterior(self._joined(self.posteriors.means(representations)))
        prediction: Tensor = self.predictor(mean)
        return prediction

    def _terms(self, views: Mapping[str, Tensor], target: Any, stage: str) -> dict[str, Tensor]:
        """Return the loss, of one draw from each posterior, and its terms, those of modalities summed."""
        joined, modality_task, modality_compression = self._of_modalities(views, target)
        latent, divergence = drawn(*self.posterior(joined))
        task = self.task.loss(self.predictor(latent), target).mean()
        compression = divergence.mean() / latent.shape[1]
        return {
            "loss": self.task_weight * task + modality_task + self.beta * (compression + modality_compression),
            "task": task,
            "compression": compression,
            "modality_task": modality_task,
            "modality_compression": modality_compression,
        }
