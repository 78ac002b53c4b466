"""What a user would write without mibfast: the fastest plain PyTorch of each operation, and its literal form.

Every peer takes the tensors that the operation takes and returns the loss (or the projections), with autograd as it
comes. `reference.py` in the kernels is the truth of tests; these are the opponents.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibfast.omib import OMIB

RIDGE = 1e-8


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.compile` with what helps it: fixed shapes."""
    return torch.compile(function, dynamic=False)


def _others(embeddings: Sequence[Tensor], m: int) -> Tensor:
    return torch.stack([z for k, z in enumerate(embeddings) if k != m], dim=1)


def _excluding_positive(similarity: Tensor, temperature: float) -> Tensor:
    logits = similarity / temperature
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return (torch.logsumexp(logits.masked_fill(diagonal, -torch.inf), dim=1) - logits.diagonal()).mean()


def ridge_projection(target: Tensor, basis: Tensor) -> Tensor:
    """A (A^T A + ridge I)^-1 A^T z by one batched `torch.linalg.solve`."""
    gram = basis @ basis.mT + RIDGE * torch.eye(basis.shape[1], device=basis.device)
    return (torch.linalg.solve(gram, basis @ target[..., None]).mT @ basis).squeeze(1)


def ridge_projection_on_two(target: Tensor, basis: Tensor) -> Tensor:
    """The same with the 2 x 2 system written out, which `torch.compile` can fuse."""
    a, b = basis[:, 0], basis[:, 1]
    aa, bb, ab = (a * a).sum(1) + RIDGE, (b * b).sum(1) + RIDGE, (a * b).sum(1)
    az, bz = (a * target).sum(1), (b * target).sum(1)
    determinant = aa * bb - ab * ab
    return ((bb * az - ab * bz) / determinant)[:, None] * a + ((aa * bz - ab * az) / determinant)[:, None] * b


def one_vs_all_info_nce(
    embeddings: Sequence[Tensor],
    temperature: float = 0.01,
    project: Callable[[Tensor, Tensor], Tensor] = ridge_projection,
) -> Tensor:
    """OVA-IB Eq. 12 with a key a sample."""
    losses = []
    for m, z in enumerate(embeddings):
        key = F.normalize(project(z, _others(embeddings, m)), dim=1)
        losses.append(_excluding_positive(F.normalize(z, dim=1) @ key.T, temperature))
    return torch.stack(losses).mean()


def one_vs_all_info_nce_solved_by_hand(embeddings: Sequence[Tensor], temperature: float = 0.01) -> Tensor:
    """The same for M = 3, whose systems are 2 x 2."""
    return one_vs_all_info_nce(embeddings, temperature, ridge_projection_on_two)


def one_vs_all_info_nce_pairwise(embeddings: Sequence[Tensor], temperature: float = 0.01) -> Tensor:
    """The same with pairwise keys, on whitened bases: s = |B_j^T q|, one GEMM a tile."""
    losses = []
    for m, z in enumerate(embeddings):
        basis = _others(embeddings, m)
        gram = basis @ basis.mT + RIDGE * torch.eye(basis.shape[1], device=basis.device)
        whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), basis, upper=False)
        query = F.normalize(z, dim=1)
        squared = sum((query @ whitened[:, k].T) ** 2 for k in range(basis.shape[1]))
        losses.append(_excluding_positive(torch.sqrt(squared), temperature))
    return torch.stack(losses).mean()


def ova_ib(embeddings: Sequence[Tensor]) -> Tensor:
    """OVA-IB's whole loss, normalisation and minimality with it, as the paper writes it."""
    unit = [F.normalize(z, dim=1) for z in embeddings]
    return one_vs_all_info_nce(unit) + minimality(unit)


def info_nce(query: Tensor, key: Tensor, temperature: float = 0.07) -> Tensor:
    """Symmetric InfoNCE: cross-entropy over rows and over columns of one matrix."""
    logits = query @ key.T / temperature
    target = torch.arange(len(query), device=query.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def info_nce_by_linear_cross_entropy(
    query: Tensor, key: Tensor, temperature: float = 0.07, batch_chunk_size: int | None = None
) -> Tensor:
    """The same by torch's chunked linear cross-entropy, once each way."""
    target = torch.arange(len(query), device=query.device)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=batch_chunk_size, chunking_method=None)
    scaled = query / temperature
    forward = F.linear_cross_entropy(scaled, key, target, options=options)
    scaled = key / temperature
    return 0.5 * (forward + F.linear_cross_entropy(scaled, query, target, options=options))


def one_way_info_nce(query: Tensor, key: Tensor) -> Tensor:
    """InfoNCE of inner products as they are, over rows."""
    return F.cross_entropy(query @ key.T, torch.arange(len(query)))


def one_way_info_nce_by_linear_cross_entropy(query: Tensor, key: Tensor) -> Tensor:
    """The same by torch's linear cross-entropy, in one chunk, its fastest here."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=None, chunking_method=None)
    return F.linear_cross_entropy(query, key, torch.arange(len(query)), options=options)


def _log_mean_exp_of_negatives(scores: Tensor) -> Tensor:
    n = len(scores)
    diagonal = torch.eye(n, dtype=torch.bool, device=scores.device)
    return torch.logsumexp(scores.masked_fill(diagonal, -torch.inf), dim=(0, 1)) - math.log(n * (n - 1))


def nwj(x: Tensor, y: Tensor) -> Tensor:
    """Minus NWJ's bound for inner products, as its released code has it."""
    scores = x @ y.T
    return torch.exp(_log_mean_exp_of_negatives(scores - 1.0)) - scores.diagonal().mean()


def smile(x: Tensor, y: Tensor, clip: float = 5.0) -> Tensor:
    """Minus SMILE for inner products, as its released code has it: one value with the gradient of another."""
    scores = x @ y.T
    n, positives = len(scores), scores.diagonal()
    negatives = F.softplus(scores).sum() - F.softplus(positives).sum()
    jensen_shannon = -F.softplus(-positives).mean() - negatives / (n * (n - 1))
    with torch.no_grad():
        value = positives.mean() - _log_mean_exp_of_negatives(scores.clamp(-clip, clip))
        apart = value - jensen_shannon
    return -(jensen_shannon + apart)


def club(mean: Tensor, logvar: Tensor, y: Tensor) -> Tensor:
    """CLUB as released, from the differences of all pairs."""
    precision = torch.exp(-logvar)
    positive = -0.5 * (mean - y) ** 2 * precision
    negative = -0.5 * ((y[None] - mean[:, None]) ** 2).mean(1) * precision
    return (positive - negative).sum(1).mean()


def info_nce_of_concatenated(u: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """InfoNCE of a critic with one hidden layer, split by linearity: a hidden unit of every pair in memory."""
    return F.cross_entropy(torch.relu(u[:, None] + v) @ weight + bias, torch.arange(len(u)))


def symile(embeddings: Sequence[Tensor], scale: float = 10.0) -> Tensor:
    """Symile of three modalities as released: for each anchor all products of the others, N rolls of N."""
    losses = []
    for m, anchor in enumerate(embeddings):
        y, z = (embeddings[k] for k in range(3) if k != m)
        products = torch.stack([y * z.roll(shift, 0) for shift in range(len(y))]).flatten(0, 1)
        # Roll 0 pairs each sample with itself: its own product is the column of its own index.
        losses.append(F.cross_entropy(scale * anchor @ products.T, torch.arange(len(anchor), device=anchor.device)))
    return torch.stack(losses).mean()


def symile_shared(embeddings: Sequence[Tensor], scale: float = 10.0) -> Tensor:
    """The same with one tensor of all N^3 logits, which every anchor sums over its own axes."""
    x, y, z = embeddings
    n = len(x)
    logits = ((scale * x[:, None] * y[None]).flatten(0, 1) @ z.T).view(n, n, n)
    samples = torch.arange(n, device=x.device)
    sums = [torch.logsumexp(logits, axes) for axes in ((1, 2), (0, 2), (0, 1))]
    return torch.stack(sums).mean() - logits[samples, samples, samples].mean()


def barlow_twins(a: Tensor, b: Tensor, off_diagonal_weight: float = 0.0051) -> Tensor:
    """Barlow Twins as released, in one process."""
    n, d = a.shape
    normalised = [F.batch_norm(x, None, None, training=True) for x in (a, b)]
    c = normalised[0].T @ normalised[1] / n
    on_diagonal = (c.diagonal() - 1).pow(2).sum()
    off_diagonal = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()
    return on_diagonal + off_diagonal_weight * off_diagonal.pow(2).sum()


def _smoothed_both_ways(scores: Tensor, temperature: float) -> Tensor:
    """GRAM's and TRIANGLE's loss of volumes or areas."""
    logits, target = -scores / temperature, torch.arange(len(scores), device=scores.device)
    forward = F.cross_entropy(logits, target, label_smoothing=0.1)
    return 0.5 * (forward + F.cross_entropy(logits.T, target, label_smoothing=0.1))


def gram_info_nce(anchor: Tensor, *others: Tensor, temperature: float = 0.07) -> Tensor:
    """GRAM with a determinant of a Gram matrix for each pair, as the released code has it."""
    n = len(anchor)
    along = [anchor @ x.T for x in others]
    own = (anchor * anchor).sum(1)[:, None].expand(-1, n)
    rows = [torch.stack([own, *along], -1)]
    for x, products in zip(others, along, strict=True):
        rows.append(torch.stack([products, *((x * y).sum(1).expand(n, -1) for y in others)], -1))
    return _smoothed_both_ways(torch.sqrt(torch.abs(torch.det(torch.stack(rows, -2)))), temperature)


def triangle_info_nce(a: Tensor, b: Tensor, c: Tensor, temperature: float = 0.07) -> Tensor:
    """TRIANGLE from the differences of all pairs, as the released code has it."""
    u, v = a[:, None] - b, a[:, None] - c
    areas = ((u**2).sum(2) * (v**2).sum(2) - (u * v).sum(2) ** 2) / 2
    return _smoothed_both_ways(areas, temperature)


def siglip(query: Tensor, key: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """open_clip's `SigLipLoss` on one device."""
    logits = scale * query @ key.T + bias
    labels = 2 * torch.eye(len(query), device=query.device) - torch.ones_like(logits)
    return -F.logsigmoid(labels * logits).sum() / len(query)


def top_k(query: Tensor, key: Tensor, k: int = 10, *, chunk: int) -> Tensor:
    """The best k scores, chunk by chunk of candidates, by `torch.topk`; their indices are formed as well."""
    values, indices = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    for first in range(0, len(key), chunk):
        scores = query @ key[first : first + chunk].T
        found, places = scores.topk(min(k, scores.shape[1]), dim=1)
        values, indices = torch.cat([values, found], 1), torch.cat([indices, places + first], 1)
        values, kept = values.topk(min(k, values.shape[1]), dim=1)
        indices = indices.gather(1, kept)
    return values


def leave_one_out_projection(embeddings: Sequence[Tensor]) -> Tensor:
    """All M projections, each by a batched solve."""
    return torch.stack([ridge_projection(z, _others(embeddings, m)) for m, z in enumerate(embeddings)])


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL to the standard normal, summed over d and averaged over the batch."""
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1).mean()


def minimality(embeddings: Sequence[Tensor]) -> Tensor:
    """OVA-IB Eq. 18-19 as it stands."""
    m = len(embeddings)
    each = [((z - _others(embeddings, k).mean(1)) ** 2).sum(1).mean() for k, z in enumerate(embeddings)]
    return torch.stack(each).sum() / m


def minimality_closed_form(embeddings: Sequence[Tensor]) -> Tensor:
    """M / (M - 1)^2 times the mean squared distance from the mean of all."""
    m = len(embeddings)
    mean = sum(embeddings[1:], start=embeddings[0]) / m
    distances = [((z - mean) ** 2).sum(1) for z in embeddings]
    return m / (m - 1) ** 2 * sum(distances[1:], start=distances[0]).mean()


def gaussian_samples(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Samples by the reparameterisation trick, and their KL to the standard normal, summed over d."""
    return mean + torch.exp(0.5 * logvar) * noise, 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(-1)


def token_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by two batched products and a softmax."""
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


def token_attention_elementwise(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same by sums of products, which `torch.compile` can fuse."""
    weights = ((query[:, :, None] * key[:, None]).sum(-1) / query.shape[-1] ** 0.5).softmax(-1)
    return (weights[..., None] * value[:, None]).sum(2)


def modality_weights(predictions: Tensor, fused: Tensor) -> Tensor:
    """OMIB's r of logits [M, N, K]: [M - 1]."""
    with torch.no_grad():
        p = predictions.log_softmax(-1)
        divergences = F.kl_div(fused.log_softmax(-1).expand_as(p), p, reduction="none", log_target=True).sum(-1).mean(1)
        return 2 / (1 + (divergences[1:] / divergences[0]) ** 2)


def between_matrix_products(
    mean: Tensor, logvar: Tensor, noise: Tensor, query: Tensor, key: Tensor, value: Tensor, *logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What OMIB's main stage does outside its matrix products: samples, attended tokens, and the weighted KL."""
    sample, divergence = gaussian_samples(mean, logvar, noise)
    first, *others = divergence.mean(1)
    return sample, token_attention(query, key, value), first + modality_weights(*logits) @ torch.stack(others)


class PlainOMIB(nn.Module):
    """The main stage of an OMIB that classifies, on copies of its layers, with nothing of mibfast in between."""

    def __init__(self, model: OMIB) -> None:
        super().__init__()
        self.encoders, self.branches, self.omf = (copy.deepcopy(x) for x in (model.encoders, model.branches, model.omf))
        self.beta = model.beta

    def forward(self, views: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """Return the loss."""
        representations = [encoder(views[name]) for name, encoder in self.encoders.items()]
        latents, divergences = [], []
        for head, z in zip(self.omf.heads, representations, strict=True):
            hidden = head.hidden(z).relu()
            mean, logvar = head.mean(hidden), head.logvar(hidden).clamp(-10.0, 4.0)
            sample, divergence = gaussian_samples(mean, logvar, torch.randn_like(mean))
            latents.append(sample)
            divergences.append(divergence.mean())
        tokens, attention = torch.stack(latents, 1), self.omf.fusion
        attended = F.scaled_dot_product_attention(
            attention.query(tokens), attention.key(tokens), attention.value(tokens)
        )
        xi = attention.out(attended.flatten(1))
        fused = self.omf.predictor(xi)
        predictions = [
            branch(torch.cat([z, xi], 1)) for branch, z in zip(self.branches.values(), representations, strict=True)
        ]
        weights = modality_weights(torch.stack(predictions), fused)
        compression = divergences[0] + weights @ torch.stack(divergences[1:])
        branches = sum(F.cross_entropy(prediction, target) for prediction in predictions)
        return F.cross_entropy(fused, target) + self.beta * compression + branches
