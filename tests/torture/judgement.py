"""Whether numbers are right: against the plain formulas, within bounds that follow from the dtype and the condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Run = Callable[[Callable[[Tensor], Tensor]], Sequence[Tensor]]


# The share of a number that rounding may take where inputs determine it well, where only a ridge of 1e-8 does (the
# reference has lost half of float64's digits itself), and where nothing but rounding separates vectors: three digits
# are left of float64's, and none of float32's.
WELL, BY_RIDGE, BY_FLOOR = 1e-11, 1e-6, 1e-2


def judged(results: Sequence[Tensor], outputs: int, reference: Run, share: float = WELL) -> tuple[str, str] | None:
    """Return what is wrong with outputs and gradients, given the plain formulas on inputs that a function changes.

    Allowed is three times the error of plain PyTorch in the same dtype, what rounding the inputs makes of the result,
    and a few roundings of the result, in the largest numbers of a tensor; and a `share` of the largest of all, since
    what cancels leaves nothing but roundings. Of outputs none of which is finite, gradients are no numbers to compare;
    and where one is not, the plain formulas' gradients are NaN wherever 0 meets it, as of pairs that are left out, and
    0 wherever a mask does, so that a NaN there is neither right nor wrong.
    """
    samples = results[0].numel() if results else 1
    narrow = any(x.dtype.is_floating_point and x.dtype != torch.float64 for x in results)
    if narrow and share == BY_FLOOR:
        return None
    plain = reference(lambda x: x)
    exact = reference(lambda x: x.double())
    generator = torch.Generator().manual_seed(0)

    def rounded(x: Tensor) -> Tensor:
        eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
        noise = torch.rand(x.shape, generator=generator, dtype=torch.float64) - 0.5
        return x.double() * (1 + 8 * eps * noise)

    moved = [reference(rounded) for _ in range(2)]
    if not len(results) == len(plain) == len(exact):
        return "wrong number", f"{len(results)} results, and the reference has {len(plain)}"
    problem = max((float(x[x.isfinite()].abs().max()) for x in exact if bool(x.isfinite().any())), default=0.0)
    # Gradients of a temperature that is float64 are no better than the embeddings': of weights whose exponents, of a
    # hundred or more, float32 rounds.
    computed = torch.finfo(torch.float32 if narrow else torch.float64).eps
    finite_outputs = [x.isfinite() & y.isfinite() for x, y in zip(plain[:outputs], exact[:outputs], strict=True)]
    any_finite, all_finite = (any(bool(x.any()) for x in finite_outputs), all(bool(x.all()) for x in finite_outputs))
    for i, (a, b, c) in enumerate(zip(results, plain, exact, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return "wrong shape or dtype", f"result {i}: {a.dtype} {list(a.shape)}, not {b.dtype} {list(b.shape)}"
        if not a.dtype.is_floating_point or not a.numel():
            continue
        others = [m[i].double() for m in moved]
        a, b, c = a.double(), b.double(), c.double()
        finite = c.isfinite() & b.isfinite() & torch.stack([m.isfinite() for m in others]).all(0)
        lost = a.isfinite() & c.isnan() & b.isnan()
        if bool(lost.any()) and (i < outputs or all_finite):
            return "NaN lost", f"result {i}: {a[lost][0]:.6g} where the reference is NaN"
        if i >= outputs and not all_finite:
            finite &= ~a.isnan()
        if not (any_finite and bool(finite.any())):
            continue
        eps = max(torch.finfo(results[i].dtype).eps, computed)
        largest = c[finite].abs().max()
        allowed = (
            3 * (b - c)[finite].abs().max()
            + 16 * max((m - c)[finite].abs().max() for m in others)
            + (3e-4 if narrow and results[i].dtype == torch.float64 else 8 * eps) * largest
            # A temperature's gradient adds up what each sample's exponents were rounded by.
            + (4e-6 * samples if narrow and results[i].ndim == 0 else 0.0)
            + max(share, 1e-6 if eps > 1e-10 else 0.0) * problem
            + (2e-6 if eps > 1e-10 else 1e-10 if share == WELL else 1e-6)
        )
        error = (a - c)[finite].abs()
        # Not `error > allowed`: NaN is wrong.
        if not bool((error <= allowed).all()):
            worst = error.nan_to_num(torch.inf).argmax()
            return "wrong number", (
                f"result {i}: {a[finite][worst]:.9g} where {c[finite][worst]:.9g} is right, allowed {allowed:.2g}"
            )
    return None
