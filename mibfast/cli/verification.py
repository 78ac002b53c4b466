"""The checks of `mibfast verify`: each operation by the default backend against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import mibfast
from mibfast import functional as F

_Operation = Callable[[list[Tensor], str | None], Tensor]


def _operations() -> dict[str, _Operation]:
    return {
        "ridge_projection": lambda z, b: F.ridge_projection(z[0], torch.stack(z[1:], 1), backend=b),
        "leave_one_out_projection": lambda z, b: F.leave_one_out_projection(z, backend=b),
        "projection_score": lambda z, b: F.projection_score(z[0], torch.stack(z[1:], 1), backend=b),
        "info_nce": lambda z, b: F.info_nce(z[0], z[1], 0.5, backend=b),
        "info_nce, symmetric, label smoothing": lambda z, b: F.info_nce(
            z[0], z[1], 0.5, symmetric=True, label_smoothing=0.1, backend=b
        ),
        "info_nce, positive left out": lambda z, b: F.info_nce(
            z[0], z[1], 0.5, positive_in_denominator=False, reduction="none", backend=b
        ),
        "one_vs_all_info_nce, per-sample keys": lambda z, b: F.one_vs_all_info_nce(z, 0.1, backend=b),
        "one_vs_all_info_nce, pairwise keys": lambda z, b: F.one_vs_all_info_nce(z, 0.1, keys="pairwise", backend=b),
        "one_vs_all_minimality": lambda z, b: F.one_vs_all_minimality(z, backend=b),
        "gram_volume": lambda z, b: F.gram_volume(z[0], z[1:], backend=b),
        "gram_info_nce": lambda z, b: F.gram_info_nce(z[0], z[1:3], 5.0, backend=b),
        "triangle_area": lambda z, b: F.triangle_area(*z[:3], backend=b),
        "triangle_info_nce": lambda z, b: F.triangle_info_nce(z[0], z[1], z[2], 50.0, backend=b),
        "gaussian_kl": lambda z, b: F.gaussian_kl(z[0], z[1], reduction="none", backend=b),
        "gaussian_kl, with a prior": lambda z, b: F.gaussian_kl(*z, reduction="none", backend=b),
        "product_of_experts": lambda z, b: torch.stack(F.product_of_experts(z[:2], z[2:], backend=b)),
        "symile_info_nce": lambda z, b: F.symile_info_nce(z[:3], 0.5, backend=b),
        "symile_info_nce, shuffled negatives": lambda z, b: F.symile_info_nce(
            z, 0.5, negatives="shuffled", generator=torch.Generator().manual_seed(0), backend=b
        ),
        "barlow_twins": lambda z, b: F.barlow_twins(z[0], z[1], backend=b),
        "siglip": lambda z, b: F.siglip(z[0], z[1], 2.0, -3.0, reduction="none", backend=b),
        "OVAIBLoss": lambda z, b: mibfast.losses.OVAIBLoss(temperature=0.1, backend=b)(z),
        "SigLIPLoss": lambda z, b: mibfast.losses.SigLIPLoss(backend=b)(z),
        "PairwiseCLIPIBLoss": lambda z, b: mibfast.losses.PairwiseCLIPIBLoss(backend=b)(z),
        "GRAMLoss": lambda z, b: mibfast.losses.GRAMLoss(anchor=None, backend=b)(z),
        "TRIANGLELoss": lambda z, b: mibfast.losses.TRIANGLELoss(squared=False, backend=b)(z[:3]),
    }


def _results(operation: _Operation, inputs: list[Tensor], backend: str | None) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = operation(leaves, backend)
    upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).view(value.shape)
    torch.autograd.backward(value, upstream.to(value.dtype))
    return [value.detach(), *(x.grad for x in leaves if x.grad is not None)]


def checks() -> Iterator[tuple[str, float, float]]:
    """Yield each check's name, its error relative to the largest number, and the error that is allowed."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(33, 20, generator=generator, dtype=torch.float64) for _ in range(4)]
    for name, operation in _operations().items():
        for dtype, allowed in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
            rounded = [x.to(dtype) for x in inputs]
            truth = _results(operation, [x.double() for x in rounded], "reference")
            results = _results(operation, rounded, None)
            errors = (
                float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30))
                for a, b in zip(results, truth, strict=True)
            )
            # max() would let a NaN pass.
            worst = 0.0
            for error in errors:
                worst = error if not error <= worst else worst
            yield f"{name}, {str(dtype).removeprefix('torch.')}", worst, allowed
