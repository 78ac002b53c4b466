"""Every operation with CPU kernels at odd sizes and strides, between guard pages, and with allocations that fail.

A read or write outside an array ends the process, or changes the pattern beside it; a read of what nobody wrote, or of
a gap between strides, is NaN. Values and gradients are judged as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import torch
from operations import OPERATIONS, Operation
from torch import Tensor

from mibfast import functional as F
from torture.guarded_memory import LAYOUTS, GuardedMemory, laid_out
from torture.judgement import BY_FLOOR, BY_RIDGE, WELL, judged
from torture.supervision import Case

_MEMORY = GuardedMemory()


def _presence(n: int, m: int) -> Tensor:
    """Most samples have all but a modality, which changes; a batch of one has all."""
    absent = torch.arange(n)[:, None] % (m + 1) == torch.arange(m)
    return ~absent if n > m + 1 else torch.ones(n, m, dtype=torch.bool)


def _modalities(operation: Callable[..., Tensor], m: int, present: bool = False) -> Operation:
    def run(a, b, c, d, tau, backend=None):
        views = [a, b, c, d, b, a, d, c][:m]
        return operation(views, **({"presence": _presence(len(a), m)} if present else {}), backend=backend)

    return run


def _top_k(a, b, c, d, tau, backend=None, score="inner_product", vectors=1):
    query = a if vectors == 0 else torch.stack([a, c, d][:vectors], 1)
    # A third of the candidates, and no gradient; scores alone, as candidates of equal scores may change places.
    return F.top_k(query[: max(1, len(a) - 1)], b, 1 + len(b) // 3, score=score, backend=backend)[0] + 0 * tau


def _symile_of(m: int) -> Operation:
    def run(a, b, c, d, tau, backend=None):
        permutations = torch.stack([torch.arange(len(a)).roll(k) for k in range(m * (m - 1))])
        views = [a, b, c, d, b, a][:m]
        return F.symile_info_nce(views, tau, negatives="shuffled", permutations=permutations, backend=backend)

    return run


def _bounded_gaussian(a, b, c, d, tau, backend=None):
    sample, divergence = F.reparameterised_gaussian([a, d], [b, c], [c, a], logvar_bounds=(-0.5, 0.7), backend=backend)
    return torch.cat([sample, divergence[:, :, None]], 2)


def _experts(a, b, c, d, tau, backend=None, m=1):
    return torch.stack(F.product_of_experts([a, b, c, d, a][:m], [c, d, b, a, b][:m], backend=backend))


def _wide_basis(a, b, c, d, tau, backend=None, vectors=7):
    return F.ridge_projection(a[None], torch.stack([b, c, d, b, a, c, d][:vectors], 1)[None], 0.1, backend=backend)


MORE: dict[str, Operation] = {
    "barlow_twins_terms": lambda a, b, c, d, tau, backend=None: torch.stack(
        F.barlow_twins_terms(a, b, backend=backend)
    ),
    "reparameterised_gaussian, bounds": _bounded_gaussian,
    "gaussian_kl, broadcast prior": lambda a, b, c, d, tau, backend=None: F.gaussian_kl(
        a, b, c[0], d[:1], backend=backend
    ),
    **{f"product_of_experts, {m}": partial(_experts, m=m) for m in (1, 3, 5)},
    **{f"ridge_projection, {k} vectors": partial(_wide_basis, vectors=k) for k in (1, 2, 7)},
    **{f"symile_info_nce, shuffled, {m}": _symile_of(m) for m in (2, 5)},
    **{
        f"{operation.__name__}, {m}{', presence' * present}": _modalities(operation, m, present)
        for operation in (F.one_vs_all_info_nce, F.one_vs_all_minimality, F.leave_one_out_projection)
        for m in (2, 3, 5, 8)
        for present in (False, True)
        if not (present and operation is F.leave_one_out_projection)
    },
    **{
        f"top_k, {score}, {vectors}": partial(_top_k, score=score, vectors=vectors)
        for score, choices in {
            "inner_product": (0,),
            "cosine": (0,),
            "ridge_projection": (1, 3),
            "gram_volume": (1, 3),
            "triangle_area": (2,),
            "symile": (1, 3),
        }.items()
        for vectors in choices
    },
}
EVERY = {**OPERATIONS, **MORE}
_ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129, 255, 257)
_FEATURES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 129)
# What the plain formulas hold of N x N x d is small.
_LARGEST = 200_000


def _run(operation: Operation, leaves: Sequence[Tensor], upstream: Callable[[Tensor], Tensor], backend: str):
    leaves = [x.requires_grad_() for x in leaves]
    result = operation(*leaves, backend=backend)
    if not result.requires_grad:
        return [result]
    result.backward(upstream(result))
    return [result.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)]


def _uneven(result: Tensor) -> Tensor:
    upstream = torch.linspace(-0.7, 1.3, result.numel(), dtype=torch.float64).to(result).view(result.shape)
    return upstream if result.ndim else torch.full_like(result, 1.7)


def draw(seed: int, number: int) -> Case:
    """Make a case: an operation, sizes, a dtype, strides of each input, and on which side of arrays a border is."""
    rng = random.Random(f"kernels {seed} {number}")
    name = list(EVERY)[(number + seed) % len(EVERY)]
    n, d = rng.choice(_ROWS), rng.choice(_FEATURES)
    while n * n * d > _LARGEST:
        n, d = rng.choice(_ROWS), rng.choice(_FEATURES)
    dtype = rng.choice([torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16])
    layouts = [rng.choice(list(LAYOUTS)) if rng.random() < 0.6 else "contiguous" for _ in range(4)]
    at_end, starved = rng.random() < 0.7, rng.random() < 0.2
    text = f"{name}, N = {n}, d = {d}, {dtype}, {', '.join(layouts)}, borders at {'ends' if at_end else 'beginnings'}"
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    values = [torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)]
    operation = EVERY[name]
    # Fewer features than vectors, vectors that are multiples of one, or that come twice.
    is_degenerate = (
        d < 9 or "one column for all" in layouts or name.endswith((", 5", ", 8", "5, presence", "8, presence"))
    )
    # Distances to a span are differences, of which float32 then has no digits to compare.
    is_distance = any(word in name for word in ("gram", "triangle", "projection", "lorentz"))
    has_digits = not (is_distance and (d == 1 or (is_degenerate and dtype != torch.float64)))

    def leaves() -> list[Tensor]:
        tensors = [laid_out(x, layout) for x, layout in zip(values, layouts, strict=True)]
        return [*tensors, torch.tensor(0.5, dtype=torch.float64)]

    def guarded() -> list[Tensor]:
        with _MEMORY.used():
            return _run(
                operation,
                leaves(),
                lambda x: laid_out(_uneven(x)[None], "contiguous")[0] if x.ndim == 1 else _uneven(x),
                "cpu",
            )

    def reference(changed: Callable[[Tensor], Tensor]) -> list[Tensor]:
        # Not in these strides, but the values that numbers got that share memory.
        return _run(
            operation,
            [changed(x.detach().clone(memory_format=torch.contiguous_format)) for x in leaves()],
            _uneven,
            "reference",
        )

    def run() -> tuple[str, str] | None:
        _MEMORY.at_end, _MEMORY.fails_at, _MEMORY.count = at_end, 0, 0
        _MEMORY.overwritten.clear()
        try:
            found = guarded()
        except ValueError as error:
            # One sample has no negatives, two have no four modalities: a named refusal, and the reference's too.
            try:
                reference(lambda x: x)
            except ValueError as same:
                return None if str(same) == str(error) else ("wrong error", f"{error}; the reference: {same}")
            return "wrong error", f"{error}, and the reference takes it"
        _MEMORY.release()
        if _MEMORY.overwritten:
            return "write outside", f"beside arrays of {_MEMORY.overwritten} bytes"
        wrong = None
        if has_digits:
            share = BY_RIDGE if is_degenerate else WELL
            # The downdate of the shared inverse cancels where all vectors together span no more than the others.
            share = BY_FLOOR if name.startswith("leave_one_out_projection") and d < 8 else share
            wrong = judged(found, 1, reference, share)
        if wrong is not None or not starved:
            return wrong
        _MEMORY.fails_at, _MEMORY.count = rng.randint(1, _MEMORY.count), 0
        try:
            guarded()
        except MemoryError:
            pass
        except Exception as error:
            return "wrong error", f"{error!r} where memory is short, at allocation {_MEMORY.fails_at}"
        finally:
            _MEMORY.fails_at = 0
        again = guarded()
        if not all(torch.equal(a, b) for a, b in zip(found, again, strict=True)):
            return "wrong number", "after an allocation that failed, the same call gives other numbers"
        return None

    return Case(text, run)
