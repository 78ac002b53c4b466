"""Every operation as a function of four [N, d] tensors and a temperature, for tests that go through all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mibfast import functional as F

Operation = Callable[..., Tensor]


def _one_vs_all(a, b, c, d, tau, backend=None, **options):
    return F.one_vs_all_info_nce([a, b, c], tau, backend=backend, **options)


def _info_nce(a, b, c, d, tau, backend=None, **options):
    return F.info_nce(a, b, tau, backend=backend, **options)


def _slice_of_a_batch(a, b, c, d, tau, backend=None, fewest=1, reduction="none", **options):
    rows = max(fewest, len(a) - 2)
    return F.info_nce(a[:rows], b, tau, offset=len(a) - rows, reduction=reduction, backend=backend, **options)


def _partial_lse(a, b, c, d, tau, backend=None, **options):
    return torch.cat(F.partial_lse(a, b, tau, offset=0, backend=backend, **options))


def _partial_lse_of_a_bank(a, b, c, d, tau, backend=None):
    """More columns than rows, and none of them a positive."""
    return torch.cat(F.partial_lse(a, torch.cat([b, c]), tau, backend=backend)[1:])


def _partial_lse_of_more_rows(a, b, c, d, tau, backend=None, offset=0, **options):
    """More rows than columns, so that the positives of some lie elsewhere."""
    rows, columns = torch.cat([a, d]), torch.cat([b, c[:1]])
    return torch.cat(F.partial_lse(rows, columns, tau, offset=offset, backend=backend, **options))


def _projection_score(a, b, c, d, tau, backend=None, ridge=1e-8):
    return F.projection_score(a, torch.stack([b, c], 1)[: max(1, len(b) - 1)], ridge, backend=backend)


def _ridge_projection(a, b, c, d, tau, backend=None, ridge=1e-8):
    return F.ridge_projection(a, torch.stack([b, c, d], 1), ridge, backend=backend)


def _leave_one_out(a, b, c, d, tau, backend=None, ridge=1e-8):
    return F.leave_one_out_projection([a, b, c, d], ridge, backend=backend)


def _gaussian_kl(a, b, c, d, tau, backend=None, prior=False):
    return F.gaussian_kl(a, b, *((c, d) if prior else ()), reduction="none", backend=backend)


def _product_of_experts(a, b, c, d, tau, backend=None):
    return torch.stack(F.product_of_experts([a, b], [c, d], backend=backend))


def _one_expert(a, b, c, d, tau, backend=None):
    return torch.stack(F.product_of_experts([a], [b], backend=backend))


def _reparameterised(a, b, c, d, tau, backend=None):
    sample, divergence = F.reparameterised_gaussian(a, b, c, backend=backend)
    return torch.cat([sample, divergence[:, None]], 1)


def _reparameterised_modalities(a, b, c, d, tau, backend=None):
    """Three modalities, none of whose tensors has one role only."""
    sample, divergence = F.reparameterised_gaussian([a, b, d], [c, d, a], [d, c, b], backend=backend)
    return torch.cat([sample, divergence[:, :, None]], 2)


def _token_attention(a, b, c, d, tau, backend=None, tokens=3):
    query, key, value = ([a, b, c, d, b][:tokens], [b, d, a, c, a][:tokens], [d, c, b, a, c][:tokens])
    return F.token_attention(*(torch.stack(x, 1) for x in (query, key, value)), backend=backend)


def _minimality(a, b, c, d, tau, backend=None):
    return F.one_vs_all_minimality([a, b, c, d], backend=backend)


def _symile(a, b, c, d, tau, backend=None, modalities=3, rows=40):
    """All combinations of few rows; the temperature serves as the scale."""
    return F.symile_info_nce([x[:rows] for x in (a, b, c, d)[:modalities]], tau, backend=backend)


def _symile_shuffled(a, b, c, d, tau, backend=None):
    permutations = torch.stack([torch.arange(len(a)).flip(0).roll(k) for k in range(12)])
    options = {"negatives": "shuffled", "permutations": permutations, "backend": backend}
    return F.symile_info_nce([a, b, c, d], tau, **options)


def _barlow_twins(a, b, c, d, tau, backend=None):
    return F.barlow_twins(a, b, 0.3, backend=backend)


def _gram_volume(a, b, c, d, tau, backend=None, spared=0):
    return F.gram_volume(a[: max(1, len(a) - spared)], [b, c], backend=backend)


def _gram_info_nce(a, b, c, d, tau, backend=None, others=2, **options):
    return F.gram_info_nce(a, [b, c, d][:others], tau, backend=backend, **options)


def _triangle_area(a, b, c, d, tau, backend=None, spared=0, **options):
    count = max(1, len(a) - spared)
    return F.triangle_area(a, b[:count], c[:count], backend=backend, **options)


def _triangle_info_nce(a, b, c, d, tau, backend=None, **options):
    return F.triangle_info_nce(a, b, c, tau, backend=backend, **options)


def _siglip(a, b, c, d, tau, backend=None, **options):
    return F.siglip(a, b, 3.0 * tau, -4.0 * tau, backend=backend, **options)


def _slice_of_siglip(a, b, c, d, tau, backend=None):
    rows = max(1, len(a) - 2)
    return F.siglip(a[:rows], b, tau, -1.0, offset=len(a) - rows, reduction="none", backend=backend)


def _critic_parameters(c, d, layers):
    """The weight and bias of one hidden layer of d units, or two layers of d and up to 3 units; all of c and d."""
    if layers == 1:
        return {"weight": c[0], "bias": d[0, 0], "score": "additive"}
    g = min(3, *c.shape)
    return {"weight": d[-1, :g], "bias": c[-1, 0], "hidden": (c[:g], d[:g, 0]), "score": "additive"}


def _critic_log_sum_exp(a, b, c, d, tau, backend=None, layers=0, spared=0, shifted=False, **options):
    parameters = _critic_parameters(c, d, layers) if layers else {}
    rows = a[: max(1, len(a) - spared)]
    offset = len(a) - len(rows) if shifted else 0
    return torch.cat(F.critic_log_sum_exp(rows, b, **parameters, offset=offset, backend=backend, **options))


def _critic_softplus(a, b, c, d, tau, backend=None, layers=0, spared=0, **options):
    parameters = _critic_parameters(c, d, layers) if layers else {}
    rows = a[: max(1, len(a) - spared)]
    return torch.cat(F.critic_softplus(rows, b, **parameters, backend=backend, **options))


def _critic_log_mean_exp(a, b, c, d, tau, backend=None, layers=0, spared=0, **options):
    parameters = _critic_parameters(c, d, layers) if layers else {}
    return F.critic_log_mean_exp(a[: max(1, len(a) - spared)], b, **parameters, backend=backend, **options)


def _critic_mean_softplus(a, b, c, d, tau, backend=None, layers=0, spared=0, **options):
    parameters = _critic_parameters(c, d, layers) if layers else {}
    found = F.critic_mean_softplus(a[: max(1, len(a) - spared)], b, **parameters, backend=backend, **options)
    # What comes beside the mean has no gradient.
    return found[0] if isinstance(found, tuple) else found


OPERATIONS: dict[str, Operation] = {
    "info_nce": _info_nce,
    "info_nce, each": partial(_info_nce, reduction="none"),
    "info_nce, positive out": partial(_info_nce, positive_in_denominator=False),
    "info_nce, smoothed": partial(_info_nce, label_smoothing=0.2),
    "info_nce, symmetric": partial(_info_nce, symmetric=True),
    "info_nce, symmetric, positive out, each": partial(
        _info_nce, symmetric=True, positive_in_denominator=False, reduction="none"
    ),
    "info_nce, symmetric, smoothed, each": partial(_info_nce, symmetric=True, label_smoothing=0.2, reduction="none"),
    "info_nce, normalize": partial(_info_nce, normalize=True),
    "info_nce, normalize, symmetric, smoothed": partial(_info_nce, normalize=True, symmetric=True, label_smoothing=0.2),
    "info_nce, normalize, lorentz, symmetric, each": partial(
        _info_nce, normalize=True, score="lorentz", symmetric=True, reduction="none"
    ),
    "siglip, normalize": partial(_siglip, normalize=True),
    "info_nce, squared_distance": partial(_info_nce, score="squared_distance"),
    "info_nce, squared_distance, symmetric, smoothed, each": partial(
        _info_nce, score="squared_distance", symmetric=True, label_smoothing=0.2, reduction="none"
    ),
    "info_nce, lorentz": partial(_info_nce, score="lorentz"),
    "info_nce, lorentz, symmetric": partial(_info_nce, score="lorentz", symmetric=True),
    "info_nce, slice": _slice_of_a_batch,
    "info_nce, slice, symmetric": partial(_slice_of_a_batch, symmetric=True, reduction="mean"),
    "info_nce, slice, symmetric, smoothed": partial(
        _slice_of_a_batch, symmetric=True, label_smoothing=0.2, reduction="mean"
    ),
    "info_nce, slice, symmetric, positive out, each": partial(
        _slice_of_a_batch, symmetric=True, positive_in_denominator=False, fewest=2
    ),
    "partial_lse": _partial_lse,
    "partial_lse, lorentz": partial(_partial_lse, score="lorentz"),
    "partial_lse, without positives": _partial_lse_of_a_bank,
    "partial_lse, more rows": partial(_partial_lse_of_more_rows, offset=-1),
    "partial_lse, more rows, positive out": partial(_partial_lse_of_more_rows, positive_in_denominator=False),
    "one_vs_all_info_nce": _one_vs_all,
    "one_vs_all_info_nce, each": partial(_one_vs_all, reduction="none"),
    "one_vs_all_info_nce, positive in": partial(_one_vs_all, positive_in_denominator=True),
    "one_vs_all_info_nce, pairwise": partial(_one_vs_all, keys="pairwise"),
    "one_vs_all_info_nce, pairwise, each": partial(_one_vs_all, keys="pairwise", reduction="none"),
    "one_vs_all_info_nce, pairwise, ridge": partial(_one_vs_all, keys="pairwise", ridge=0.3),
    "projection_score": _projection_score,
    "projection_score, ridge": partial(_projection_score, ridge=0.3),
    "ridge_projection": _ridge_projection,
    "ridge_projection, ridge": partial(_ridge_projection, ridge=0.3),
    "leave_one_out_projection": _leave_one_out,
    "leave_one_out_projection, ridge": partial(_leave_one_out, ridge=0.3),
    "gaussian_kl": _gaussian_kl,
    "gaussian_kl, prior": partial(_gaussian_kl, prior=True),
    "product_of_experts": _product_of_experts,
    "product_of_experts, one": _one_expert,
    "one_vs_all_minimality": _minimality,
    "reparameterised_gaussian": _reparameterised,
    "reparameterised_gaussian, modalities": _reparameterised_modalities,
    "token_attention": _token_attention,
    "token_attention, two": partial(_token_attention, tokens=2),
    "token_attention, five": partial(_token_attention, tokens=5),
    "symile_info_nce": _symile,
    "symile_info_nce, four": partial(_symile, modalities=4, rows=12),
    "symile_info_nce, shuffled": _symile_shuffled,
    "barlow_twins": _barlow_twins,
    "gram_volume": _gram_volume,
    "gram_volume, fewer anchors": partial(_gram_volume, spared=1),
    "gram_info_nce": _gram_info_nce,
    "gram_info_nce, two modalities": partial(_gram_info_nce, others=1, label_smoothing=0.0),
    "gram_info_nce, four modalities": partial(_gram_info_nce, others=3),
    "triangle_area": _triangle_area,
    "triangle_area, squared, more anchors": partial(_triangle_area, squared=True, spared=1),
    "triangle_info_nce": _triangle_info_nce,
    "triangle_info_nce, area": partial(_triangle_info_nce, squared=False, label_smoothing=0.0),
    "siglip": _siglip,
    "siglip, each": partial(_siglip, reduction="none"),
    "siglip, slice": _slice_of_siglip,
    "critic_log_sum_exp": partial(_critic_log_sum_exp, positive=True, spared=1),
    "critic_log_sum_exp, columns, positive out": partial(_critic_log_sum_exp, columns=True),
    "critic_log_sum_exp, columns, clipped": partial(_critic_log_sum_exp, columns=True, clip=0.7, positive=True),
    "critic_log_sum_exp, clipped, positive out": partial(_critic_log_sum_exp, clip=0.7),
    "critic_log_sum_exp, additive": partial(_critic_log_sum_exp, layers=1, spared=1, positive=True),
    "critic_log_sum_exp, additive, columns, clipped, positive out": partial(
        _critic_log_sum_exp, layers=1, columns=True, clip=2.0
    ),
    "critic_log_sum_exp, two layers, positive out": partial(_critic_log_sum_exp, layers=2),
    "critic_log_sum_exp, slice, columns, clipped": partial(
        _critic_log_sum_exp, spared=1, shifted=True, columns=True, clip=0.7, positive=True
    ),
    "critic_log_sum_exp, additive, slice, columns": partial(
        _critic_log_sum_exp, layers=1, spared=1, shifted=True, columns=True, positive=True
    ),
    "critic_log_sum_exp, two layers, slice, columns": partial(
        _critic_log_sum_exp, layers=2, spared=1, shifted=True, columns=True, positive=True
    ),
    "critic_log_sum_exp, squared_distance, slice, columns, clipped": partial(
        _critic_log_sum_exp, score="squared_distance", spared=1, shifted=True, columns=True, clip=5.0, positive=True
    ),
    "critic_log_mean_exp, squared_distance, positive out": partial(
        _critic_log_mean_exp, score="squared_distance", spared=1
    ),
    "critic_softplus, lorentz": partial(_critic_softplus, score="lorentz", spared=1),
    "critic_mean_softplus, lorentz, log_mean_exp, positive out": partial(
        _critic_mean_softplus, score="lorentz", spared=1, log_mean_exp=True
    ),
    "critic_softplus": partial(_critic_softplus, spared=1),
    "critic_softplus, additive": partial(_critic_softplus, layers=1, positive=True, spared=1),
    "critic_softplus, two layers": partial(_critic_softplus, layers=2),
    "critic_log_mean_exp, positive out": partial(_critic_log_mean_exp, spared=1),
    "critic_log_mean_exp, additive, positive out": partial(_critic_log_mean_exp, layers=1, spared=1),
    "critic_log_mean_exp, two layers, positive out": partial(_critic_log_mean_exp, layers=2),
    "critic_mean_softplus, positive out": _critic_mean_softplus,
    "critic_mean_softplus, additive, positive out": partial(_critic_mean_softplus, layers=1, spared=1),
    "critic_mean_softplus, log_mean_exp, positive out": partial(_critic_mean_softplus, spared=1, log_mean_exp=True),
    "critic_mean_softplus, logistic, positive out": partial(_critic_mean_softplus, spared=1, positives=True),
    "critic_mean_softplus, two layers, log_mean_exp, clipped, positive out": partial(
        _critic_mean_softplus, layers=2, log_mean_exp=True, clip=0.7
    ),
}
NAMES = list(OPERATIONS)


def refusing(name: str) -> str:
    """The operation that an error about derivatives of a case names: of scores with norms one is made of another."""
    return "critic_log_sum_exp" if name.startswith("critic_log_mean_exp, squared") else name.split(",")[0]


def inputs(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Four tensors [n, d] and a temperature, all needing gradients."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)]
    return [x.requires_grad_() for x in (*tensors, torch.tensor(0.5, dtype=torch.float64))]


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.T.contiguous().T,
    # Every other column, the left half of a wider matrix, and every other row.
    lambda x: torch.stack([x, x + 9], 2).flatten(1)[:, ::2],
    lambda x: torch.cat([x, x - 5], 1)[:, : x.shape[1]],
    lambda x: torch.stack([x, x + 9], 1).flatten(0, 1)[::2],
    # At an address that vectors of several numbers are not aligned to.
    lambda x: torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape),
]


def strided(leaves: list[Tensor], turn: int) -> list[Tensor]:
    """The same numbers, each matrix in a layout of its own; over `len(LAYOUTS)` turns each has every layout."""
    leaves = [x.detach() for x in leaves]
    return [LAYOUTS[(turn + k) % len(LAYOUTS)](x) if x.ndim == 2 else x for k, x in enumerate(leaves)]


def subsets(count: int) -> list[tuple[bool, ...]]:
    """Which of `count` inputs need gradients, where all subsets take too long: none, one, all but one, all.

    Any two inputs need both, either or neither in some of these.
    """
    alone = [tuple(k == place for k in range(count)) for place in range(count)]
    return [(False,) * count, *alone, *(tuple(not need for need in needed) for needed in alone), (True,) * count]


def value_and_gradients(operation: Operation, leaves: list[Tensor], backend: str | None) -> list[Tensor]:
    """The result and the gradients for an uneven upstream gradient; zeros for what is not used.

    The operation gets the memory of the leaves itself: a copy would have strides of its own.
    """
    leaves = [x.detach().requires_grad_() for x in leaves]
    result = operation(*leaves, backend=backend)
    upstream = torch.linspace(-0.7, 1.3, result.numel(), dtype=torch.float64).view(result.shape).to(result)
    if result.ndim == 0:
        upstream = torch.full_like(result, 1.7)
    result.backward(upstream)
    return [result.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)]
