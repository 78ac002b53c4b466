"""What an alignment is worth: linear probes, cross-modal retrieval, and the time of a loss step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from mibfast.data import MultimodalData
from mibfast.train.alignment import AlignmentModule
from mibfast.train.methods import Method


def linear_probe(module: AlignmentModule, data: MultimodalData) -> dict[str, float]:
    """Test accuracy of logistic regression on each modality's representation, and on `all` of them together."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    splits = {}
    for split in ("train", "test"):
        views, labels = data.split(split)
        with torch.no_grad():
            representations = module.represent(views)
        splits[split] = {**representations, "all": torch.cat(list(representations.values()), dim=1)}, labels.numpy()
    accuracies = {}
    for name, train in splits["train"][0].items():
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe.fit(train.numpy(), splits["train"][1])
        accuracies[name] = float(probe.score(splits["test"][0][name].numpy(), splits["test"][1]))
    return accuracies


def retrieval(module: AlignmentModule, data: MultimodalData, method: Method) -> dict[str, float]:
    """R@1, R@5 and MRR of finding a test sample's missing modality by the others, averaged over which is missing.

    The candidates are all test samples; one of them, the sample's own, is right.
    """
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR

    with torch.no_grad():
        embeddings = module(data.split("test")[0])
    totals = {"R@1": 0.0, "R@5": 0.0, "MRR": 0.0}
    for missing, candidates in embeddings.items():
        scores = method.retrieval_score(candidates, [z for name, z in embeddings.items() if name != missing])
        n = len(scores)
        query = torch.arange(n).repeat_interleave(n)
        right = torch.eye(n, dtype=torch.bool).flatten()
        for name, metric in (
            ("R@1", RetrievalHitRate(top_k=1)),
            ("R@5", RetrievalHitRate(top_k=5)),
            ("MRR", RetrievalMRR()),
        ):
            totals[name] += float(metric(scores.flatten(), right, indexes=query)) / len(embeddings)
    return totals


def loss_step_milliseconds(method: Method, embeddings: Mapping[str, Tensor], rounds: int = 30) -> dict[str, float]:
    """Median milliseconds of forward and backward of the loss, fused and as eager PyTorch, interleaved."""
    views = {name: z.detach().clone().requires_grad_() for name, z in embeddings.items()}
    steps = {"fused": method.loss(None), "eager": method.loss("reference")}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, loss in steps.items():
            started = time.perf_counter()
            loss(views).backward()
            times[name].append(time.perf_counter() - started)
            for z in views.values():
                z.grad = None
    # The first round compiled.
    return {name: 1e3 * statistics.median(seconds[1:]) for name, seconds in times.items()}
