"""OMIB: task-relevance branches, one a modality, and a fusion of Gaussian latents that is compressed towards its task.

Wu et al., "Learning Optimal Multimodal Information Bottleneck Representations", ICML 2025 (arXiv 2505.19996): sections
4 and 5.1, appendices D.1, H and L. No code was released; what the text leaves open is said where it is decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast import functional as F
from mibfast._modules import ResettableModule, reset
from mibfast._precision import at_least_float32
from mibfast.nn.fusion.cross_attention import CrossAttention
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.tasks import AnomalyDetection, Regression, Task
from mibfast.omib.weights import RATIOS, modality_weights


def omf_loss(task_loss: Tensor, divergences: Sequence[Tensor], weights: Tensor | None, beta: float) -> Tensor:
    """Return the loss of the fusion, L_OMF: task_loss + beta (KL_1 + sum_k r_{k-1} KL_k) (OMIB, Eq. 10 and 67).

    Parameters
    ----------
    task_loss : Tensor
        A scalar.
    divergences : sequence of M scalar tensors
        KL_k of each modality, in nats, a sum over features and a mean over samples.
    weights : Tensor [M - 1] or None
        r of :func:`modality_weights`; None for 1.
    beta : float
        At least 0.

    Returns
    -------
    Tensor
        A scalar; float64 for a float64 task_loss, else float32.

    Raises
    ------
    TypeError, ValueError
        For other shapes, unequal dtypes or devices, or a negative beta.

    Examples
    --------
    >>> import torch
    >>> from mibfast import omib
    >>> omib.omf_loss(torch.tensor(1.0), [torch.tensor(2.0), torch.tensor(4.0)], torch.tensor([0.5]), 0.25)
    tensor(2.)
    """
    name = "omf_loss"
    beta = _check.number(name, "beta", beta, 0.0)
    if not isinstance(divergences, Sequence) or not divergences:
        got = _check.described(divergences)
        raise TypeError(f"{name}: divergences must be a sequence of scalar tensors, one at least, got {got}")
    given = {"task_loss": task_loss, **{f"divergences[{k}]": each for k, each in enumerate(divergences)}}
    scalars = {argument: _check.scalar_tensor(name, argument, x) for argument, x in given.items()}
    _check.alike(name, **scalars)
    task_loss, first, *others = (at_least_float32(x) for x in _check.promoted(list(scalars.values())))
    if weights is not None and others:
        _check.tensor(name, "weights", weights, "M-1")
        _check.size(name, "weights", weights, 0, len(others))
        _check.alike(name, task_loss=scalars["task_loss"], weights=weights)
        others = [weight * each for weight, each in zip(weights, others, strict=True)]
    return task_loss + beta * (first + sum(others))


class GaussianHead(ResettableModule):
    """A perceptron with one hidden layer and two heads, the mean and the log-variance of a latent (OMIB, Eq. 5).

    The paper multiplies its Sigma with the noise and so means standard deviations, exp(logvar / 2) here.
    """

    def __init__(self, features: int, latent_features: int, hidden_features: int, bias: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, hidden_features, bias=bias)
        self.mean = nn.Linear(hidden_features, latent_features, bias=bias)
        self.logvar = nn.Linear(hidden_features, latent_features, bias=bias)

    def mean_of(self, representation: Tensor) -> Tensor:
        """Return the mean [N, k] for representations [N, features]."""
        mean: Tensor = self.mean(self.hidden(representation).relu())
        return mean

    def forward(self, representation: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [N, k] for representations [N, features]."""
        hidden = self.hidden(representation).relu()
        return self.mean(hidden), self.logvar(hidden)


class OptimalFusion(ResettableModule):
    """The optimal multimodal fusion block: Gaussian latents, their fusion xi, and the prediction from xi.

    Parameters
    ----------
    heads : ModuleList of M GaussianHead, or None
        None fuses the representations themselves: the paper's ablation without the block.
    fusion : nn.Module
        From M latents [N, k], a list of them or [M, N, k], to xi [N, k].
    predictor : nn.Module
        From xi to predictions [N, outputs].
    logvar_bounds : (float, float)
        Log-variances are clamped to them.
    """

    def __init__(
        self,
        heads: nn.ModuleList | None,
        fusion: nn.Module,
        predictor: nn.Module,
        logvar_bounds: tuple[float, float],
    ) -> None:
        super().__init__()
        self.heads, self.fusion, self.predictor = heads, fusion, predictor
        self.logvar_bounds = logvar_bounds

    def fuse(self, representations: Sequence[Tensor]) -> Tensor:
        """Return xi [N, k] of the latents' means."""
        latents = list(representations)
        if self.heads is not None:
            heads = cast(Iterable[GaussianHead], self.heads)
            latents = [head.mean_of(z) for head, z in zip(heads, representations, strict=True)]
        xi: Tensor = self.fusion(latents)
        return xi

    def sample(self, representations: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return xi [N, k] of one sample of each latent, and their KL divergences, M of [N]; none without heads."""
        if self.heads is None:
            return self.fusion(list(representations)), []
        means, logvars = zip(*(head(z) for head, z in zip(self.heads, representations, strict=True)), strict=True)
        noise = [torch.randn_like(mean) for mean in means]
        latents, divergences = F.reparameterised_gaussian(means, logvars, noise, logvar_bounds=self.logvar_bounds)
        return self.fusion(latents), list(divergences)


class Predictor(FusionModel):
    """An :class:`OMIB` as it is used after training: its encoders and its fusion, without the branches.

    Shares the model's parameters, and predicts what it predicts. Made by :meth:`OMIB.without_branches`.
    """

    stages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: OMIB) -> None:
        super().__init__(dict(model.encoders.items()), model.features, model.task)
        self.omf = model.omf

    def embed(self, views: Mapping[str, Tensor]) -> Tensor:
        """Return the fused representations xi [N, k] of samples."""
        return self.omf.fuse(self.encode(views))

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        prediction: Tensor = self.omf.predictor(self.omf.fuse(representations))
        return prediction


def _checked_beta(value: Any) -> float | None:
    if value is None:
        return None
    beta = _check.number("OMIB", "beta", value, 0.0)
    if not beta:
        raise ValueError(f"OMIB: beta must be positive, got {value}")
    return beta


class OMIB(FusionModel):
    r"""Optimal multimodal information bottleneck: a fusion xi with all that modalities know of the task, and no more.

    Training has two stages. In "warm-up" (algorithm 1) each modality's encoder and its task-relevance branch learn the
    task alone, from the representation beside noise that is drawn again each step. In "main" (algorithm 2)
    representations become Gaussian latents, a sample of each is fused to xi, xi takes the noise's place in the
    branches, and everything is trained on one loss,

    .. math:: L = L_{task}(\hat y) + \beta \left( KL_1 + \sum_{k \ge 2} r_{k-1} KL_k \right)
              + \sum_k L_{task}(\hat y_k)

    with the weights r of :func:`modality_weights`, which the branches give: a modality that has more left is compressed
    less. Predictions are those of the latents' means.

    Parameters
    ----------
    encoders : mapping from a modality's name to nn.Module
        At least 2, from samples [N, ...] to representations [N, features]. The first is the reference of r.
    features : int
        Length of a representation.
    task : Task
        What is predicted. For :class:`~mibfast.nn.fusion.AnomalyDetection` no layer of the model's own has a bias, and
        a UserWarning names those of the encoders' that have; its centre must be set before training.
    beta : float, optional
        Weight of the divergences, positive: see :func:`estimate_beta`. The main stage cannot do without; it may be set
        later, as `model.beta`.
    latent_features : int, optional
        Length k of latents, xi and noise; `features` by default.
    hidden_features : int, optional
        Width of the hidden layer between representations and latents; `features` by default.
    head_features : sequence of int, optional
        Widths of the hidden layers of the branches and the predictor. The paper's by default: 512 and 100 with ReLU for
        classification, 50 with ReLU for regression, 256 with leaky ReLU for anomaly detection.
    logvar_bounds : (float, float)
        Log-variances are clamped to them.
    fusion : {"cross_attention", "concat_feature", "concatenation"}
        See :class:`CrossAttention`.
    bottleneck : bool
        False leaves the fusion block out: representations side by side through a linear layer are xi, nothing is drawn,
        and nothing is compressed.
    dynamic_weights : bool
        False sets r to 1.
    ratio : {"ratio_of_means", "mean_of_ratios"}
        See :func:`modality_weights`.
    detach_xi_in_trb, detach_z_in_omf : bool
        Keep the branches' losses from training the fusion, and the fusion's loss from training the encoders. Section 4
        says in prose that each loss updates its own networks; algorithm 2 takes one step on all, the default.

    Attributes
    ----------
    branches : ModuleDict
        From a representation and noise or xi, side by side, to a prediction.
    omf : OptimalFusion

    Raises
    ------
    TypeError, ValueError
        For fewer than 2 encoders, sizes that are not positive, beta <= 0, or unknown names.

    Examples
    --------
    >>> import torch
    >>> from mibfast import omib
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = omib.OMIB(encoders, 4, fusion.Classification(3), beta=0.01)
    >>> views = {"image": torch.randn(5, 8), "text": torch.randn(5, 6)}
    >>> target = torch.tensor([0, 1, 2, 0, 1])
    >>> sorted(model.terms(views, target, "warm-up"))
    ['loss', 'trb.image', 'trb.text']
    >>> sorted(model.terms(views, target, "main"))
    ['kl.image', 'kl.text', 'loss', 'r.text', 'task', 'trb.image', 'trb.text']
    >>> model(views).shape, model.embed(views).shape
    (torch.Size([5, 3]), torch.Size([5, 4]))
    """

    title: ClassVar[str] = "OMIB"
    stages: ClassVar[tuple[str, ...]] = ("warm-up", "main")

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        features: int,
        task: Task,
        *,
        beta: float | None = None,
        latent_features: int | None = None,
        hidden_features: int | None = None,
        head_features: Sequence[int] | None = None,
        logvar_bounds: tuple[float, float] = (-10.0, 4.0),
        fusion: str = "cross_attention",
        bottleneck: bool = True,
        dynamic_weights: bool = True,
        ratio: str = "ratio_of_means",
        detach_xi_in_trb: bool = False,
        detach_z_in_omf: bool = False,
    ) -> None:
        super().__init__(encoders, features, task)
        latent = features if latent_features is None else latent_features
        hidden = features if hidden_features is None else hidden_features
        for argument, size in {"features": features, "latent_features": latent, "hidden_features": hidden}.items():
            _check.count("OMIB", argument, size)
        bounds = _check.bounds("OMIB", "logvar_bounds", logvar_bounds)
        flags = {
            "bottleneck": bottleneck,
            "dynamic_weights": dynamic_weights,
            "detach_xi_in_trb": detach_xi_in_trb,
            "detach_z_in_omf": detach_z_in_omf,
        }
        for argument, flag in flags.items():
            _check.boolean("OMIB", argument, flag)
        # Not by the property: of a Parameter, Module would make a parameter without a check.
        self._beta = _checked_beta(beta)
        self.latent_features = latent
        self.dynamic_weights, self.ratio = dynamic_weights, _check.choice("OMIB", "ratio", ratio, RATIOS)
        self.detach_xi_in_trb, self.detach_z_in_omf = detach_xi_in_trb, detach_z_in_omf
        # What has a bias can map all samples to the centre.
        bias = task.biased
        heads, fused = None, features
        if bottleneck:
            heads = nn.ModuleList(GaussianHead(features, latent, hidden, bias) for _ in encoders)
            fused = latent
        else:
            fusion = "concatenation"
        self.branches = nn.ModuleDict({name: _head(features + latent, task, head_features) for name in encoders})
        self.omf = OptimalFusion(
            heads,
            CrossAttention(len(encoders), fused, fusion, latent, bias),
            _head(latent, task, head_features),
            (bounds[0], bounds[1]),
        )

    def reset_parameters(self) -> None:
        """Give all parameters initial values, drawn in the order of the constructor."""
        heads = [] if self.omf.heads is None else [self.omf.heads]
        for part in (self.encoders, self.task, *heads, self.branches, self.omf.fusion, self.omf.predictor):
            reset(part)

    @property
    def beta(self) -> float | None:
        """Weight of the divergences."""
        return self._beta

    @beta.setter
    def beta(self, value: float | None) -> None:
        self._beta = _checked_beta(value)

    def embed(self, views: Mapping[str, Tensor]) -> Tensor:
        """Return the fused representations xi [N, k] of samples, of the latents' means."""
        return self.omf.fuse(self.encode(views))

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]; nothing is drawn."""
        prediction: Tensor = self.omf.predictor(self.omf.fuse(representations))
        return prediction

    def without_branches(self) -> Predictor:
        """Return what predicts after training: the same parameters, but for those of the branches."""
        return Predictor(self)

    def terms(self, views: Mapping[str, Tensor], target: Any, stage: str = "main") -> dict[str, Tensor]:
        """Return a stage's loss and its terms, means over N; all but the loss are detached.

        "trb.NAME" is the task's loss of a branch. The main stage adds "task", that of the fused prediction, "kl.NAME",
        the divergence of a latent before its weight, in nats, and where weights are dynamic "r.NAME", those of all
        modalities but the first. Noise is drawn from torch's global generator.

        RuntimeError in the main stage where beta is None.
        """
        return super().terms(views, target, stage)

    def _terms(self, views: Mapping[str, Tensor], target: Any, stage: str) -> dict[str, Tensor]:
        if stage == "warm-up":
            representations = self.encode(views)
            noise = [torch.randn(len(z), self.latent_features, dtype=z.dtype, device=z.device) for z in representations]
            losses = self._branch_losses(self._branch_predictions(representations, noise), target)
            return {"loss": torch.stack(losses).sum(), **self._named("trb", losses)}
        if self.omf.heads is not None and self.beta is None:
            raise RuntimeError("OMIB: beta is None; give it, or set it to what omib.estimate_beta finds in the data")
        representations = self.encode(views)
        xi, each = self.omf.sample([z.detach() for z in representations] if self.detach_z_in_omf else representations)
        fused = self.omf.predictor(xi)
        beside = xi.detach() if self.detach_xi_in_trb else xi
        predictions = self._branch_predictions(representations, [beside] * len(representations))
        task_loss = self.task.loss(fused, target).mean()
        losses = self._branch_losses(predictions, target)
        terms = {"task": task_loss, **self._named("trb", losses)}
        loss = task_loss
        if self.omf.heads is not None and self.beta is not None:
            divergences = [divergence.mean() for divergence in each]
            terms.update(self._named("kl", divergences))
            weights = None
            if self.dynamic_weights:
                weights = modality_weights(predictions, fused, task=self.task, ratio=self.ratio)
                terms.update({f"r.{name}": weights[k] for k, name in enumerate(self.modalities[1:])})
            loss = omf_loss(task_loss, divergences, weights, self.beta)
        return {"loss": loss + torch.stack(losses).sum(), **terms}

    def _branch_predictions(self, representations: list[Tensor], beside: list[Tensor]) -> list[Tensor]:
        return [
            branch(torch.cat(pair, dim=1))
            for branch, *pair in zip(self.branches.values(), representations, beside, strict=True)
        ]

    def _branch_losses(self, predictions: list[Tensor], target: Any) -> list[Tensor]:
        return [self.task.loss(prediction, target).mean() for prediction in predictions]

    def _named(self, kind: str, values: list[Tensor]) -> dict[str, Tensor]:
        return {f"{kind}.{name}": value for name, value in zip(self.modalities, values, strict=True)}


def _head(inputs: int, task: Task, head_features: Sequence[int] | None) -> nn.Sequential:
    """Return the perceptron from [N, inputs] to predictions (appendix H)."""
    anomalies = isinstance(task, AnomalyDetection)
    if head_features is None:
        head_features = (256,) if anomalies else (50,) if isinstance(task, Regression) else (512, 100)
    if not isinstance(head_features, Sequence) or isinstance(head_features, str):
        raise TypeError(
            f"OMIB: head_features must be a sequence of ints or None, got {_check.described(head_features)}"
        )
    for width in head_features:
        _check.count("OMIB", "head_features", width)
    layers: list[nn.Module] = []
    for sizes in pairwise([inputs, *head_features, task.outputs]):
        layers += [nn.Linear(*sizes, bias=not anomalies), nn.LeakyReLU() if anomalies else nn.ReLU()]
    return nn.Sequential(*layers[:-1])
