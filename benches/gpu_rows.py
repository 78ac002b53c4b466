"""The rows of the GPU's benchmark table: contenders, floors and bars; `benches.gpu` runs them.

Sizes are those that a GPU of Hopper's size is judged by. `rows(shrink)` divides the number of samples, to rehearse
everything on a CPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benches import peers
from benches.rows import OURS, Bar
from mibfast import functional as F
from mibfast import losses

Function = Callable[..., Tensor]
Floor = Callable[[list[Tensor]], Callable[[], object]]


@dataclass(frozen=True)
class GPURow:
    """One line of the table.

    `work` is what is timed: "forward" without gradients, "backward" alone, or "both". Contenders must agree on
    `checked`, inputs small enough for the reference in float64, before they are timed on `inputs`. FLOPs are counted by
    model, without what is computed again, and by hardware, with it.
    """

    title: str
    inputs: Callable[[], list[Tensor]]
    checked: Callable[[], list[Tensor]]
    contenders: dict[str, Function]
    truth: Function
    work: str = "both"
    floors: dict[str, Floor] | None = None
    bars: Sequence[Bar] = ()
    most_seconds: float | None = None
    most_bytes: int | None = None
    flops: tuple[float, float] | None = None
    moved_bytes: float | None = None
    rounds: int = 20
    # Calls that are timed together, where one is shorter than what events resolve.
    calls: int = 1
    graphed: bool = False


def _embeddings(m: int, n: int, d: int, dtype: torch.dtype, unit: bool = False, signal: float = 1.0) -> list[Tensor]:
    """M views of a common signal, as alignment meets them; a fresh draw each time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    common = signal * torch.randn(n, d, device=device)
    views = [common + torch.randn(n, d, device=device) for _ in range(m)]
    if unit:
        views = [torch.nn.functional.normalize(z, dim=1) for z in views]
    return [z.to(dtype).requires_grad_() for z in views]


def gemms(count: float, n: int) -> Floor:
    """So many products of 2 n^2 d FLOPs by cuBLAS, in the inputs' dtype, in blocks of rows where n^2 is large."""

    def prepare(inputs: list[Tensor]) -> Callable[[], object]:
        q, k = inputs[0].detach(), inputs[1].detach()
        block = min(n, max(1, 2**32 // n))
        scores = torch.empty(block, n, dtype=q.dtype, device=q.device)

        def run() -> None:
            for _ in range(max(1, round(count))):
                for first in range(0, n, block):
                    rows = q[first : first + block]
                    torch.mm(rows, k.T, out=scores[: len(rows)])

        return run

    return prepare


def moving(size: float) -> Floor:
    """A device-to-device copy that reads and writes so many bytes together."""

    def prepare(inputs: list[Tensor]) -> Callable[[], object]:
        shape = (max(1, int(size) // 8),)
        source = torch.randint(0, 2**31 - 1, shape, dtype=torch.int32, device=inputs[0].device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return prepare


def _listed(function: Callable[..., Tensor]) -> Function:
    def of_tensors(*embeddings: Tensor) -> Tensor:
        return function(list(embeddings))

    return of_tensors


def _installed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


def _both_ways(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Function:
    """Symmetric InfoNCE at temperature 0.07 by a linear cross-entropy of (embeddings, classifier, targets)."""

    def info_nce(query: Tensor, key: Tensor) -> Tensor:
        target = torch.arange(len(query), device=query.device)
        return 0.5 * (loss(query / 0.07, key, target) + loss(key / 0.07, query, target))

    return info_nce


def _installed_linear_cross_entropies() -> dict[str, Function]:
    """The published kernels that are installed here, each as symmetric InfoNCE."""
    found: dict[str, Function] = {}
    cut = _installed("cut_cross_entropy")
    if cut is not None:
        found["cut-cross-entropy, exact"] = _both_ways(partial(cut.linear_cross_entropy, impl="cce_exact"))
    liger = _installed("liger_kernel.transformers.functional")
    if liger is not None:
        found["Liger"] = _both_ways(liger.liger_fused_linear_cross_entropy)
    inf_cl = _installed("inf_cl")
    if inf_cl is not None:
        found["Inf-CL"] = lambda q, k: inf_cl.cal_flash_loss(q, k, q.new_tensor(1 / 0.07))
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        found["linear_cross_entropy"] = peers.info_nce_by_linear_cross_entropy
    return found


def _tokens(n: int, m: int, k: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.stack(_embeddings(m, n, k, torch.float32), 1).detach().to(dtype).requires_grad_() for _ in range(3)]


def _gaussian_loss(samples: Callable[..., tuple[Tensor, Tensor]]) -> Function:
    """One number of a sample and its divergence, for noise that is the third input."""

    def loss(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        sample, divergence = samples(mean, logvar, noise)
        return divergence.mean() + 1e-3 * sample.float().mean()

    return loss


def _reference(function: Callable[..., Tensor], **options: Any) -> Function:
    return partial(function, backend="reference", **options)


def rows(shrink: int = 1) -> dict[str, GPURow]:
    """All rows, by name, the most important first."""

    def size(n: int) -> int:
        return max(8, n // shrink)

    table: dict[str, GPURow] = {}
    bf16 = torch.bfloat16
    small = size(4096)
    symmetric = partial(F.info_nce, symmetric=True)
    info_nce_truth = _reference(F.info_nce, symmetric=True)
    eager_info_nce = {"eager": peers.info_nce, "torch.compile": peers.compiled(peers.info_nce)}

    for d, bar in ((256, 0.40), (512, 0.55), (1024, 0.65)):
        n = size(32_768)
        for scale, temperature in ((1, 1.0), (100, 0.01)):
            table[f"lse-forward-{d}-scale-{scale}"] = GPURow(
                title=f"two-way log-sum-exp, forward, N={n}, d={d}, scale {scale}",
                # Without a signal: at scale 100 the loss of aligned embeddings would be zero up to rounding.
                inputs=partial(_embeddings, 2, n, d, bf16, unit=True, signal=0.0),
                checked=partial(_embeddings, 2, small, d, bf16, unit=True, signal=0.0),
                contenders={OURS: partial(symmetric, temperature=temperature)},
                truth=partial(info_nce_truth, temperature=temperature),
                work="forward",
                floors={"1 GEMM": gemms(1, n)},
                bars=[Bar("1 GEMM", least=bar)],
                flops=(2.0 * n * n * d, 2.0 * n * n * d),
            )
    for d in (512, 1024):
        n = size(32_768)
        table[f"lse-backward-{d}"] = GPURow(
            title=f"two-way log-sum-exp, backward, N={n}, d={d}",
            inputs=partial(_embeddings, 2, n, d, bf16, unit=True),
            checked=partial(_embeddings, 2, small, d, bf16, unit=True),
            # Without a reduction the backward is apart from the forward.
            contenders={OURS: partial(symmetric, reduction="none")},
            truth=_reference(F.info_nce, symmetric=True, reduction="none"),
            work="backward",
            floors={"3 GEMMs": gemms(3, n)},
            bars=[Bar("3 GEMMs", least=0.6)],
            flops=(4.0 * n * n * d, 6.0 * n * n * d),
        )
    n, d = size(65_536), 768
    table["info-nce-65536"] = GPURow(
        title=f"symmetric InfoNCE, N={n}, d={d}",
        inputs=partial(_embeddings, 2, n, d, bf16, unit=True),
        checked=partial(_embeddings, 2, small, d, bf16, unit=True),
        contenders={OURS: symmetric, **_installed_linear_cross_entropies(), **eager_info_nce},
        truth=info_nce_truth,
        floors={"4 GEMMs": gemms(4, n)},
        most_seconds=0.065,
        most_bytes=10**9,
        flops=(6.0 * n * n * d, 8.0 * n * n * d),
        rounds=10,
    )
    n, d = size(32_768), 512
    table["one-vs-all"] = GPURow(
        title=f"one-vs-all InfoNCE, per-sample keys, M=3, N={n}, d={d}",
        inputs=partial(_embeddings, 3, n, d, bf16),
        checked=partial(_embeddings, 3, small, d, bf16),
        contenders={
            OURS: _listed(F.one_vs_all_info_nce),
            # torch.linalg.solve takes no bfloat16: projections in float32, scores in bfloat16.
            "eager": _listed(_one_vs_all_in_two_precisions),
            "torch.compile": _listed(peers.compiled(_one_vs_all_in_two_precisions)),
        },
        truth=_listed(_reference(F.one_vs_all_info_nce)),
        floors={"9 GEMMs": gemms(9, n)},
        bars=[Bar("eager", least=3.0), Bar("torch.compile", least=3.0)],
        flops=(3 * 6.0 * n * n * d, 3 * 6.0 * n * n * d),
        rounds=10,
    )
    n, d, m = size(262_144), 512, 5
    block_bytes = float(m * n * d * 4)
    for backend in ("cuda", "triton"):
        ours = _listed(partial(F.leave_one_out_projection, backend=None if shrink > 1 else backend))
        solve = {"batched torch.linalg.solve": _listed(peers.leave_one_out_projection)} if backend == "cuda" else {}
        for work, moved in (("forward", 2), ("backward", 3)):
            table[f"leave-one-out-{work}-{backend}"] = GPURow(
                title=f"leave-one-out projection, {work}, M={m}, N={n}, d={d}, float32, by {backend}",
                inputs=partial(_embeddings, m, n, d, torch.float32),
                checked=partial(_embeddings, m, small, d, torch.float32),
                contenders={OURS: ours, **(solve if work == "forward" else {})},
                truth=_listed(_reference(F.leave_one_out_projection)),
                work=work,
                floors={"moving inputs and outputs": moving(moved * block_bytes)},
                bars=[
                    Bar("moving inputs and outputs", least=0.7),
                    *(Bar(name, least=30.0) for name in (solve if work == "forward" else {})),
                ],
                moved_bytes=moved * block_bytes,
                rounds=10,
            )
    n, d = size(262_144), 512
    element = 2
    table["gaussian-kl"] = GPURow(
        title=f"Gaussian KL, {n} x {d}, bfloat16",
        inputs=partial(_embeddings, 2, n, d, bf16),
        checked=partial(_embeddings, 2, small, d, bf16),
        contenders={
            OURS: F.gaussian_kl,
            "eager": peers.gaussian_kl,
            "torch.compile": peers.compiled(peers.gaussian_kl),
        },
        truth=_reference(F.gaussian_kl),
        # Both are read forward and backward, and both gradients written.
        floors={"moving inputs and outputs": moving(6.0 * n * d * element)},
        bars=[Bar("moving inputs and outputs", least=0.75)],
        moved_bytes=6.0 * n * d * element,
    )
    table["gaussian-samples"] = GPURow(
        title=f"Gaussian samples with KL, {n} x {d}, bfloat16",
        inputs=partial(_embeddings, 3, n, d, bf16),
        checked=partial(_embeddings, 3, small, d, bf16),
        contenders={
            OURS: _gaussian_loss(F.reparameterised_gaussian),
            "eager": _gaussian_loss(peers.gaussian_samples),
            "torch.compile": peers.compiled(_gaussian_loss(peers.gaussian_samples)),
        },
        truth=_gaussian_loss(_reference(F.reparameterised_gaussian)),
        bars=[Bar("eager", least=3.0), Bar("torch.compile", least=1.0)],
    )
    tokens, k = size(262_144), 256
    for work, moved in (("forward", 4.0), ("backward", 7.0)):
        table[f"token-attention-{work}"] = GPURow(
            title=f"attention among 2 tokens a sample, {work}, N={tokens}, k={k}, bfloat16",
            inputs=partial(_tokens, tokens, 2, k, bf16),
            checked=partial(_tokens, small, 2, k, bf16),
            contenders={
                OURS: F.token_attention,
                "scaled_dot_product_attention": torch.nn.functional.scaled_dot_product_attention,
                "torch.compile": peers.compiled(peers.token_attention_elementwise),
            },
            truth=_reference(F.token_attention),
            work=work,
            floors={"moving inputs and outputs": moving(moved * tokens * 2 * k * element)},
            bars=[Bar("moving inputs and outputs", least=0.7), Bar("scaled_dot_product_attention", least=2.0)],
            moved_bytes=moved * tokens * 2 * k * element,
        )
    table["minimality"] = GPURow(
        title=f"one-vs-all minimality, M=5, N={n}, d={d}, bfloat16",
        inputs=partial(_embeddings, 5, n, d, bf16),
        checked=partial(_embeddings, 5, small, d, bf16),
        contenders={
            OURS: _listed(F.one_vs_all_minimality),
            "eager, literal": _listed(peers.minimality),
            "torch.compile, closed form": _listed(peers.compiled(peers.minimality_closed_form)),
        },
        truth=_listed(_reference(F.one_vs_all_minimality)),
        floors={"moving inputs and outputs": moving(15.0 * n * d * element)},
        bars=[Bar("moving inputs and outputs", least=0.75)],
        moved_bytes=15.0 * n * d * element,
    )
    for n in (256, 512, 1024, 2047):
        table[f"info-nce-{n}"] = GPURow(
            title=f"symmetric InfoNCE, N={size(n)}, d=256",
            inputs=partial(_embeddings, 2, size(n), 256, bf16, unit=True),
            checked=partial(_embeddings, 2, size(n), 256, bf16, unit=True),
            contenders={OURS: symmetric, **eager_info_nce},
            truth=info_nce_truth,
            bars=[Bar("eager", least=1.0)],
            rounds=30,
            calls=20,
            graphed=True,
        )
    table["ova-ib-1024"] = GPURow(
        title=f"OVAIBLoss, M=3, N={size(1024)}, d=256, float32",
        inputs=partial(_embeddings, 3, size(1024), 256, torch.float32),
        checked=partial(_embeddings, 3, size(1024), 256, torch.float32),
        contenders={OURS: _listed(losses.OVAIBLoss()), "eager": _listed(peers.ova_ib)},
        truth=_listed(losses.OVAIBLoss(backend="reference")),
        bars=[Bar("eager", least=1.0)],
        rounds=30,
        calls=20,
    )
    n, d = size(1_048_576), 256
    table["info-nce-1048576"] = GPURow(
        title=f"symmetric InfoNCE, N={n}, d={d}",
        inputs=partial(_embeddings, 2, n, d, bf16, unit=True),
        checked=partial(_embeddings, 2, small, d, bf16, unit=True),
        contenders={OURS: symmetric},
        truth=info_nce_truth,
        most_bytes=8 * 2**30,
        flops=(6.0 * n * n * d, 8.0 * n * n * d),
        rounds=2,
    )
    n = size(4096)
    siglip = partial(_siglip, F.siglip)
    for name, ours, peer, truth, count in (
        ("SigLIP", siglip, partial(_siglip, peers.siglip), partial(siglip, backend="reference"), 2),
        ("GRAM", _gram, peers.gram_info_nce, partial(_gram, backend="reference"), 3),
    ):
        table[name.lower()] = GPURow(
            title=f"{name}, M={count}, N={n}, d=256, float32",
            inputs=partial(_embeddings, count, n, 256, torch.float32, unit=True),
            checked=partial(_embeddings, count, size(512), 256, torch.float32, unit=True),
            contenders={OURS: ours, "eager": peer, "torch.compile": peers.compiled(peer)},
            truth=truth,
            bars=[Bar("eager", least=1.0)],
            rounds=5,
        )
    n = size(2048)
    table["triangle"] = GPURow(
        title=f"TRIANGLE, N={n}, d=256, float32",
        inputs=partial(_embeddings, 3, n, 256, torch.float32, unit=True),
        checked=partial(_embeddings, 3, size(512), 256, torch.float32, unit=True),
        contenders={OURS: F.triangle_info_nce, "eager": peers.triangle_info_nce},
        truth=partial(F.triangle_info_nce, backend="reference"),
        bars=[Bar("eager", least=10.0)],
        rounds=5,
    )
    n = size(4096)
    pairwise = partial(F.one_vs_all_info_nce, keys="pairwise")
    table["one-vs-all-pairwise"] = GPURow(
        title=f"one-vs-all InfoNCE, pairwise keys, M=3, N={n}, d=256, float32",
        inputs=partial(_embeddings, 3, n, 256, torch.float32),
        checked=partial(_embeddings, 3, size(512), 256, torch.float32),
        contenders={OURS: _listed(pairwise), "eager": _listed(peers.one_vs_all_info_nce_pairwise)},
        truth=_listed(_reference(pairwise)),
        floors={"18 GEMMs": gemms(18, n)},
        bars=[Bar("eager", least=1.0)],
        flops=(3 * 12.0 * n * n * 256, 3 * 16.0 * n * n * 256),
        rounds=5,
    )
    n, h = size(2048), 256
    table["critic-two-layers"] = GPURow(
        title=f"InfoNCE of a concatenated critic, two hidden layers, N={n}, h={h}, float32",
        inputs=partial(_two_layers, n, h),
        checked=partial(_two_layers, size(256), h),
        contenders={OURS: _info_nce_of_two_layers, "eager": partial(_info_nce_of_two_layers, backend="reference")},
        truth=partial(_info_nce_of_two_layers, backend="reference"),
        bars=[Bar("eager", least=0.5)],
        most_bytes=16 * n * h * 4 + 192 * 2**20,
        flops=(6.0 * n * n * h * h, 10.0 * n * n * h * h),
        rounds=5,
    )
    n, h = size(8192), 512
    table["critic-additive"] = GPURow(
        title=f"InfoNCE of a concatenated critic, N={n}, h={h}, float32",
        inputs=partial(_additive, n, h),
        checked=partial(_additive, size(512), h),
        contenders={OURS: _info_nce_of_additive, "eager": peers.info_nce_of_concatenated},
        truth=partial(_info_nce_of_additive, backend="reference"),
        bars=[Bar("eager", least=10.0)],
        most_bytes=16 * n * h * 4 + 64 * 2**20,
        rounds=5,
    )
    n, d = size(8192), 256
    table["critic-inner-product"] = GPURow(
        title=f"InfoNCE of a separable critic, N={n}, d={d}, bfloat16",
        inputs=partial(_embeddings, 2, n, d, bf16, unit=True),
        checked=partial(_embeddings, 2, size(4096), d, bf16, unit=True),
        contenders={OURS: _info_nce_of_inner_products, "eager": peers.one_way_info_nce},
        truth=partial(_info_nce_of_inner_products, backend="reference"),
        bars=[Bar("eager", least=1.0)],
        flops=(6.0 * n * n * d, 8.0 * n * n * d),
    )
    n = size(512)
    table["symile"] = GPURow(
        title=f"Symile, all negatives, M=3, N={n}, d=256, float32",
        inputs=partial(_embeddings, 3, n, 256, torch.float32, unit=True),
        checked=partial(_embeddings, 3, size(4096) // 64 + 8, 256, torch.float32, unit=True),
        contenders={
            OURS: _listed(partial(F.symile_info_nce, scale=10.0)),
            "torch.compile, logits shared": _listed(peers.compiled(peers.symile_shared)),
        },
        truth=_listed(_reference(F.symile_info_nce, scale=10.0)),
        bars=[Bar("torch.compile, logits shared", least=1.0)],
        flops=(6.0 * n**3 * 256, 8.0 * n**3 * 256),
        rounds=5,
    )
    table["barlow-twins"] = GPURow(
        title="Barlow Twins, N=256, d=8192, float32",
        inputs=partial(_embeddings, 2, size(256), 8192, torch.float32),
        checked=partial(_embeddings, 2, size(256), 512, torch.float32),
        contenders={
            OURS: F.barlow_twins,
            "eager": peers.barlow_twins,
            "torch.compile": peers.compiled(peers.barlow_twins),
        },
        truth=_reference(F.barlow_twins),
        bars=[Bar("eager", least=1.0)],
        rounds=10,
    )
    queries, candidates = size(1000), size(1_000_000)
    table["top-k"] = GPURow(
        title=f"top 10 of {candidates} candidates, {queries} queries, d=256",
        inputs=partial(_queries_and_candidates, queries, candidates),
        checked=partial(_queries_and_candidates, size(1000), size(8000)),
        contenders={
            OURS: _best_values,
            **{f"matmul + topk, chunk {c}": partial(peers.top_k, chunk=c) for c in (65_536, 262_144)},
        },
        truth=partial(_best_values, backend="reference"),
        work="forward",
        bars=[Bar(f"matmul + topk, chunk {c}", least=1.0) for c in (65_536, 262_144)],
        rounds=10,
    )
    return table


def _additive(n: int, h: int) -> list[Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    u, v, weight = (torch.randn(*shape, device=device) for shape in ((n, h), (n, h), (h,)))
    return [x.requires_grad_() for x in (u, v, weight / h**0.5, torch.zeros((), device=device))]


def _info_nce_of_additive(u: Tensor, v: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
    positives, row_lse = F.critic_log_sum_exp(u, v, weight, bias, score="additive", positive=True, **options)
    return (row_lse - positives).mean()


def _two_layers(n: int, h: int) -> list[Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix, offset = torch.randn(h, h, device=device) * (2 / h) ** 0.5, torch.randn(h, device=device)
    return [*_additive(n, h), *(x.requires_grad_() for x in (matrix, offset))]


def _info_nce_of_two_layers(
    u: Tensor, v: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor, offset: Tensor, **options: Any
) -> Tensor:
    hidden = {"hidden": (matrix, offset), "score": "additive", "positive": True}
    positives, row_lse = F.critic_log_sum_exp(u, v, weight, bias, **hidden, **options)
    return (row_lse - positives).mean()


def _info_nce_of_inner_products(query: Tensor, key: Tensor, **options: Any) -> Tensor:
    positives, row_lse = F.critic_log_sum_exp(query, key, positive=True, **options)
    return (row_lse - positives).mean()


def _queries_and_candidates(queries: int, candidates: int) -> list[Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [torch.randn(n, 256, device=device).requires_grad_() for n in (queries, candidates)]


def _best_values(query: Tensor, key: Tensor, **options: Any) -> Tensor:
    return F.top_k(query, key, min(10, len(key)), **options)[0]


def _siglip(function: Callable[..., Tensor], query: Tensor, key: Tensor, **options: Any) -> Tensor:
    scale, bias = (torch.tensor(x, device=query.device) for x in (10.0, -10.0))
    return function(query, key, scale, bias, **options)


def _gram(anchor: Tensor, first: Tensor, second: Tensor, **options: Any) -> Tensor:
    return F.gram_info_nce(anchor, [first, second], **options)


def _one_vs_all_in_two_precisions(embeddings: Sequence[Tensor]) -> Tensor:
    wide = [z.float() for z in embeddings]
    loss: list[Tensor] = []
    for m, z in enumerate(wide):
        others = torch.stack([x for k, x in enumerate(wide) if k != m], dim=1)
        key = torch.nn.functional.normalize(peers.ridge_projection(z, others), dim=1)
        query = torch.nn.functional.normalize(z, dim=1)
        logits = (query.to(embeddings[m].dtype) @ key.to(embeddings[m].dtype).T).float() / 0.01
        positives = logits.diagonal()
        diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        loss.append((torch.logsumexp(logits.masked_fill(diagonal, -torch.inf), dim=1) - positives).mean())
    return torch.stack(loss).mean()
