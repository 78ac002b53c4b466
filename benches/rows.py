"""The rows of the benchmark table: contenders, floors and the bars that a release must clear.

A row is set up once. Its contenders run forward and backward on the same inputs; nothing is timed before their values
and gradients agree. A bar is a ratio between two contenders' medians in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mibfast
from benches import peers
from mibfast import _buffers, information, omib
from mibfast import functional as F
from mibfast.information.critics import Critic, Factors
from mibfast.nn.fusion import Classification

OURS = "mibfast"


@dataclass(frozen=True)
class Bar:
    """A claim: `peer` takes `least` times as long as mibfast or longer, or mibfast at most `most` times as long."""

    peer: str
    least: float | None = None
    most: float | None = None

    def ratio(self, seconds: dict[str, float]) -> float:
        """The ratio that the claim is about."""
        return seconds[self.peer] / seconds[OURS] if self.least is not None else seconds[OURS] / seconds[self.peer]


@dataclass
class Row:
    """One line of the table."""

    title: str
    inputs: Callable[[], list[Tensor]]
    contenders: dict[str, Callable[..., Any]]
    floor: tuple[str, Callable[[list[Tensor]], Callable[[], object]]] | None = None
    bars: Sequence[Bar] = ()
    rounds: int = 7
    tolerance: float = 1e-3
    # Most workspace of mibfast in bytes, or as a share of the named peer's.
    workspace_bytes: int | None = None
    workspace_share: tuple[str, float] | None = None
    workspace_of: Sequence[str] = ()
    upstream: Callable[[], Tensor | tuple[Tensor, ...]] | None = None
    backward: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def step(self, name: str, inputs: list[Tensor]) -> Callable[[], list[Tensor]]:
        """Forward and, where there is one, backward of one contender, gradients cleared first."""
        contender, upstream = self.contenders[name], self.upstream() if self.upstream else None

        def run() -> list[Tensor]:
            for x in inputs:
                x.grad = None
            results = contender(*inputs)
            if self.backward:
                torch.autograd.backward(results, upstream)
            return [x.detach() for x in (results if isinstance(results, tuple) else [results])]

        return run


def _embeddings(m: int, n: int, d: int = 256) -> list[Tensor]:
    """M views of a common signal, as alignment meets them: not orthogonal noise, not yet aligned."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(n, d, generator=generator)
    return [(common + torch.randn(n, d, generator=generator)).requires_grad_() for _ in range(m)]


def _unit_embeddings(m: int, n: int, d: int = 256) -> list[Tensor]:
    return [torch.nn.functional.normalize(z.detach(), dim=1).requires_grad_() for z in _embeddings(m, n, d)]


def _siglip_inputs(n: int) -> list[Tensor]:
    return [*_unit_embeddings(2, n), torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)]


def _queries_and_candidates(queries: int, candidates: int, d: int = 256) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, d, generator=generator) for n in (queries, candidates)]


def _gaussians(n: int, d: int = 256, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, d, generator=generator).requires_grad_() for _ in range(count)]


def _latents(m: int = 2, n: int = 1024, k: int = 256) -> list[Tensor]:
    """Means and log-variances [M, N, k] of OMIB's latents on SIM-III, and their noise, which needs no gradient."""
    generator = torch.Generator().manual_seed(0)
    leaves = [0.3 * torch.randn(m, n, k, generator=generator) for _ in range(2)]
    return [*(x.requires_grad_() for x in leaves), torch.randn(m, n, k, generator=generator)]


def _tokens(m: int, n: int = 1024, k: int = 256) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, m, k, generator=generator).requires_grad_() for _ in range(3)]


def _logits(m: int = 2, n: int = 1024, classes: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(m, n, classes, generator=generator), torch.randn(n, classes, generator=generator)]


def _uneven(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def _between_matrix_products(
    mean: Tensor, logvar: Tensor, noise: Tensor, query: Tensor, key: Tensor, value: Tensor, *logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sample, divergence = F.reparameterised_gaussian(mean, logvar, noise)
    first, *others = divergence.mean(1)
    weights = omib.modality_weights(list(logits[0]), logits[1])
    return sample, F.token_attention(query, key, value), first + weights @ torch.stack(others)


def _omib_steps() -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    """A step of OMIB's main stage with Adam: from views of SIM-III's lengths and labels to the loss and a gradient."""
    names, length, features = ("v1", "v2"), 900, 256

    def views_and_target(x: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        return dict(zip(names, x, strict=False)), x[2]

    def encoder() -> nn.Module:
        return nn.Sequential(nn.Linear(length, features), nn.GELU(), nn.Linear(features, features))

    torch.manual_seed(0)
    model = omib.OMIB({name: encoder() for name in names}, features, Classification(2), beta=0.01)
    plain = peers.PlainOMIB(model)

    def steps_of(module: nn.Module, loss_of: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)
        watched = module.get_parameter("omf.heads.1.logvar.weight")

        def step(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            torch.manual_seed(0)
            optimizer.zero_grad()
            loss = loss_of(*views_and_target(inputs))
            loss.backward()
            optimizer.step()
            assert watched.grad is not None
            return loss, watched.grad

        return step

    return {
        OURS: steps_of(model, lambda views, target: model.terms(views, target)["loss"]),
        "plain PyTorch": steps_of(plain, plain),
    }


def _omib_inputs(n: int = 1024) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        *(torch.randn(n, 900, generator=generator) for _ in range(2)),
        torch.randint(2, (n,), generator=generator),
    ]


def _hidden_units(n: int, h: int) -> list[Tensor]:
    """Both halves of a concatenated critic's first layer, its weight, and its bias, which InfoNCE does not see."""
    generator = torch.Generator().manual_seed(0)
    leaves = [*(torch.randn(n, h, generator=generator) for _ in range(2)), torch.randn(h, generator=generator) / h**0.5]
    return [*(x.requires_grad_() for x in leaves), torch.tensor(0.1)]


def _critic_info_nce(*inputs: Tensor, **options: Any) -> Tensor:
    positives, rows = F.critic_log_sum_exp(*inputs, positive=True, **options)
    return (rows - positives).mean()


class _InnerProduct(Critic):
    """A separable critic after its networks."""

    def factors(self, x: Tensor, y: Tensor) -> Factors:
        return Factors(x, y)


def _separable_critic_row(estimator: str, others: dict[str, Callable[..., Tensor]], *bars: Bar) -> Row:
    n, module = 4096, information.MutualInformation(_InnerProduct(), estimator)
    # InfoNCE's peers leave out ln N.
    constant = math.log(n) if estimator == "infonce" else 0.0
    return Row(
        title=f"separable critic, {estimator}, N={n}, d=128",
        inputs=partial(_unit_embeddings, 2, n, 128),
        contenders={OURS: lambda x, y: constant - module(x, y), **others},
        floor=("3 GEMMs", gemms(1, 1, n)),
        bars=[*bars, Bar("torch.compile", least=1.05), Bar("3 GEMMs", most=1.15)],
        # The tile, both gradients twice, and what positives take.
        workspace_bytes=6 * n * 128 * 4 + 16 * 2**20,
        workspace_of=("torch.compile",),
    )


def gemms(forward: int, backward: int, n: int) -> Callable[[list[Tensor]], Callable[[], object]]:
    """GEMMs of 2 n^2 d FLOPs: `forward` of the scores' shape and `backward` of each gradient's, into ready memory."""

    def prepare(inputs: list[Tensor]) -> Callable[[], object]:
        q, k = inputs[0].detach().clone(), inputs[1].detach().clone()
        scores, gradient = torch.empty(n, n), torch.empty_like(q)

        def run() -> None:
            for _ in range(forward):
                torch.mm(q, k.T, out=scores)
            for _ in range(backward):
                torch.mm(scores, k, out=gradient)
                torch.mm(scores.T, q, out=gradient)

        return run

    return prepare


def gemms_of_combinations(n: int) -> Callable[[list[Tensor]], Callable[[], object]]:
    """Four GEMMs of 2 n^3 d FLOPs: the scores of n^2 products twice, the gradients of columns and of products."""

    def prepare(inputs: list[Tensor]) -> Callable[[], object]:
        columns = inputs[2].detach().clone()
        products = (inputs[0].detach()[:, None] * inputs[1].detach()[None]).flatten(0, 1)
        scores, gradient = torch.empty(n * n, n), torch.empty_like(products)
        column_gradient = torch.empty_like(columns)

        def run() -> None:
            for _ in range(2):
                torch.mm(products, columns.T, out=scores)
            torch.mm(scores.T, products, out=column_gradient)
            torch.mm(scores, columns, out=gradient)

        return run

    return prepare


def scores_in_blocks(block: int = 2048) -> Callable[[list[Tensor]], Callable[[], object]]:
    """The GEMM of all scores alone, a block of candidates at a time into one tile: nothing is chosen."""

    def prepare(inputs: list[Tensor]) -> Callable[[], object]:
        query, key = inputs
        tile = torch.empty(block, len(query))

        def run() -> None:
            for first in range(0, len(key), block):
                rows = key[first : first + block]
                torch.mm(rows, query.T, out=tile[: len(rows)])

        return run

    return prepare


def _empty(shape: torch.Size) -> Tensor:
    return torch.from_numpy(_buffers.empty(tuple(shape), np.float32))


def copies(times: int = 1) -> Callable[[list[Tensor]], Callable[[], object]]:
    """Copies of all inputs, as one block, into memory that is allocated as the kernels' outputs are."""

    def prepare(inputs: list[Tensor]) -> Callable[[], object]:
        sources = [x.detach().clone() for x in inputs]
        outputs: list[Tensor] = []

        def run() -> None:
            # As gradients: cleared at the start of a step, alive together at its end.
            outputs.clear()
            for _ in range(times):
                outputs.extend(_empty(x.shape).copy_(x) for x in sources)

        return run

    return prepare


def copies_in_one_block(times: int) -> Callable[[list[Tensor]], Callable[[], object]]:
    """Copies of all inputs, stacked, into one block that is allocated as the kernels' outputs are."""

    def prepare(inputs: list[Tensor]) -> Callable[[], object]:
        source = torch.stack([x.detach() for x in inputs])
        outputs: list[Tensor] = []

        def run() -> None:
            outputs.clear()
            outputs.extend(_empty(source.shape).copy_(source) for _ in range(times))

        return run

    return prepare


def _info_nce_row(n: int) -> Row:
    return Row(
        title=f"InfoNCE, symmetric, N={n}, d=256",
        inputs=partial(_unit_embeddings, 2, n),
        contenders={
            OURS: partial(F.info_nce, symmetric=True),
            "eager": peers.info_nce,
            "torch.compile": peers.compiled(peers.info_nce),
            **{
                f"linear_cross_entropy, chunk {chunk}": partial(
                    peers.info_nce_by_linear_cross_entropy, batch_chunk_size=chunk
                )
                for chunk in (512, 1024, 2048)
            },
        },
        floor=("4 GEMMs", gemms(2, 1, n)),
        bars=[
            Bar("eager", least=1.8),
            Bar("linear_cross_entropy, best chunk", least=1.4),
            Bar("torch.compile", least=0.9),
            Bar("4 GEMMs", most=1.2),
        ],
        rounds=7 if n <= 4096 else 5,
        # A few matrices [N, d] and the tile: nothing that grows with N^2.
        workspace_bytes=4 * n * 256 * 4 + 24 * 2**20,
        workspace_of=("eager", "torch.compile"),
    )


def _gram_row(m: int, n: int) -> Row:
    k = m - 1
    return Row(
        title=f"GRAM, M={m}, N={n}, d=256",
        inputs=partial(_unit_embeddings, m, n),
        contenders={
            OURS: lambda anchor, *others: F.gram_info_nce(anchor, others),
            "eager": peers.gram_info_nce,
            "torch.compile": peers.compiled(peers.gram_info_nce),
        },
        floor=(f"{4 * k} GEMMs", gemms(2 * k, k, n)),
        bars=[Bar("eager", least=6.0), Bar("torch.compile", least=4.0), Bar(f"{4 * k} GEMMs", most=1.4)],
        workspace_share=("eager", 0.02),
        workspace_of=("eager",),
    )


def _symile_row(n: int) -> Row:
    return Row(
        title=f"Symile, all negatives, M=3, N={n}, d=256",
        inputs=partial(_unit_embeddings, 3, n),
        contenders={
            OURS: _sequence(partial(F.symile_info_nce, scale=10.0)),
            "eager": _sequence(peers.symile),
            "torch.compile, logits shared": _sequence(peers.compiled(peers.symile_shared)),
        },
        floor=("4 GEMMs", gemms_of_combinations(n)),
        bars=[
            Bar("eager", least=3.0),
            Bar("torch.compile, logits shared", least=1.1),
            Bar("4 GEMMs", most=1.35),
        ],
        # Scores that are kept, products of a block, and little else.
        workspace_bytes=48 * 2**20,
        workspace_of=("eager", "torch.compile, logits shared"),
    )


def _best_values(query: Tensor, key: Tensor) -> Tensor:
    return F.top_k(query, key, 10)[0]


def _sequence(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def of_tensors(*embeddings: Tensor) -> Tensor:
        return function(embeddings)

    return of_tensors


def rows() -> dict[str, Row]:
    """All rows whose contenders are timed against each other, by name."""
    table = {
        "one-vs-all-per-sample": Row(
            title="one-vs-all InfoNCE, per-sample keys, M=3, N=4096, d=256",
            inputs=partial(_embeddings, 3, 4096),
            contenders={
                OURS: _sequence(F.one_vs_all_info_nce),
                "eager": _sequence(peers.one_vs_all_info_nce),
                "torch.compile": _sequence(peers.compiled(peers.one_vs_all_info_nce)),
                "torch.compile, solved by hand": _sequence(peers.compiled(peers.one_vs_all_info_nce_solved_by_hand)),
            },
            floor=("9 GEMMs", gemms(3, 3, 4096)),
            bars=[
                Bar("eager", least=2.2),
                Bar("torch.compile", least=1.35),
                Bar("torch.compile, solved by hand", least=1.15),
                Bar("9 GEMMs", most=1.2),
            ],
            workspace_share=("eager", 0.05),
            workspace_of=("eager", "torch.compile, solved by hand"),
        ),
        "info-nce-4096": _info_nce_row(4096),
        "info-nce-8192": _info_nce_row(8192),
        "one-vs-all-pairwise": Row(
            title="one-vs-all InfoNCE, pairwise keys, M=3, N=2048, d=256",
            inputs=partial(_embeddings, 3, 2048),
            contenders={
                OURS: _sequence(partial(F.one_vs_all_info_nce, keys="pairwise")),
                "eager": _sequence(peers.one_vs_all_info_nce_pairwise),
                "torch.compile": _sequence(peers.compiled(peers.one_vs_all_info_nce_pairwise)),
            },
            floor=("18 GEMMs", gemms(6, 6, 2048)),
            bars=[Bar("fastest peer", least=1.2), Bar("18 GEMMs", most=1.25)],
            workspace_bytes=10 * 2048 * 256 * 4 + 24 * 2**20,
            workspace_of=("eager",),
        ),
        "gram": _gram_row(3, 1024),
        "gram-5": _gram_row(5, 512),
        "triangle": Row(
            title="TRIANGLE, N=512, d=256",
            inputs=partial(_unit_embeddings, 3, 512),
            contenders={
                OURS: F.triangle_info_nce,
                "eager": peers.triangle_info_nce,
                "torch.compile": peers.compiled(peers.triangle_info_nce),
            },
            floor=("8 GEMMs", gemms(4, 2, 512)),
            bars=[Bar("eager", least=150.0), Bar("torch.compile", least=30.0), Bar("8 GEMMs", most=1.5)],
            rounds=5,
            workspace_share=("eager", 0.01),
            workspace_of=("eager", "torch.compile"),
        ),
        "siglip": Row(
            title="SigLIP, N=4096, d=256",
            inputs=partial(_siglip_inputs, 4096),
            contenders={
                OURS: F.siglip,
                "eager": peers.siglip,
                "torch.compile": peers.compiled(peers.siglip),
            },
            floor=("3 GEMMs", gemms(1, 1, 4096)),
            bars=[Bar("eager", least=2.0), Bar("torch.compile", least=1.8), Bar("3 GEMMs", most=1.15)],
            workspace_bytes=8 * 4096 * 256 * 4 + 24 * 2**20,
            workspace_of=("eager",),
        ),
        "top-k": Row(
            title="top 10 of 1,000,000 candidates, 1,000 queries, d=256, forward only",
            inputs=partial(_queries_and_candidates, 1000, 1_000_000),
            contenders={
                OURS: _best_values,
                **{f"matmul + topk, chunk {c}": partial(peers.top_k, chunk=c) for c in (4096, 16384, 65536)},
            },
            floor=("1 GEMM", scores_in_blocks()),
            bars=[Bar("matmul + topk, best chunk", least=1.2), Bar("1 GEMM", most=1.1)],
            rounds=3,
            backward=False,
            # Bars, heaps and the tile.
            workspace_bytes=16 * 2**20,
            workspace_of=("matmul + topk, chunk 16384",),
        ),
        "leave-one-out": Row(
            title="leave-one-out projection, M=4, N=8192, d=256",
            inputs=partial(_embeddings, 4, 8192),
            contenders={
                OURS: _sequence(F.leave_one_out_projection),
                "batched torch.linalg.solve": _sequence(peers.leave_one_out_projection),
            },
            # Forward: embeddings to projections; backward: upstream gradient to gradients. Each as large as the inputs.
            floor=("copying inputs and outputs", copies_in_one_block(2)),
            bars=[Bar("batched torch.linalg.solve", least=15.0), Bar("copying inputs and outputs", most=2.0)],
            upstream=lambda: torch.randn(4, 8192, 256, generator=torch.Generator().manual_seed(1)),
        ),
        "gaussian-kl": Row(
            title="Gaussian KL, 65,536 x 256",
            inputs=partial(_gaussians, 65536),
            contenders={
                OURS: F.gaussian_kl,
                "eager": peers.gaussian_kl,
                "torch.compile": peers.compiled(peers.gaussian_kl),
            },
            floor=("copying inputs", copies()),
            bars=[Bar("eager", least=10.0), Bar("torch.compile", least=2.5), Bar("copying inputs", most=1.25)],
        ),
        "minimality": Row(
            title="one-vs-all minimality, M=5, N=65,536, d=256",
            inputs=partial(_embeddings, 5, 65536),
            contenders={
                OURS: _sequence(F.one_vs_all_minimality),
                "eager, literal": _sequence(peers.minimality),
                "torch.compile, closed form": _sequence(peers.compiled(peers.minimality_closed_form)),
            },
            floor=("copying inputs", copies()),
            bars=[
                Bar("eager, literal", least=25.0),
                Bar("torch.compile, closed form", least=4.0),
                Bar("copying inputs", most=1.6),
            ],
            rounds=5,
        ),
    }
    table["symile"] = _symile_row(192)
    table["separable-critic"] = _separable_critic_row(
        "infonce",
        {
            "linear_cross_entropy": peers.one_way_info_nce_by_linear_cross_entropy,
            "torch.compile": peers.compiled(peers.one_way_info_nce),
        },
        Bar("linear_cross_entropy", least=1.25),
    )
    for name, peer in (("nwj", peers.nwj), ("smile", peers.smile)):
        table[f"separable-critic-{name}"] = _separable_critic_row(name, {"torch.compile": peers.compiled(peer)})
    table["concatenated-critic"] = Row(
        title="concatenated critic, one hidden layer, InfoNCE, N=1024, h=256",
        inputs=partial(_hidden_units, 1024, 256),
        contenders={
            OURS: partial(_critic_info_nce, score="additive"),
            "eager": peers.info_nce_of_concatenated,
            "torch.compile": peers.compiled(peers.info_nce_of_concatenated),
        },
        bars=[Bar("eager", least=40.0), Bar("torch.compile", least=2.0)],
        rounds=3,
        workspace_bytes=24 * 2**20,
        workspace_of=("torch.compile",),
    )
    table["club"] = Row(
        title="CLUB, N=4096, d=16",
        inputs=partial(_gaussians, 4096, 16, 3),
        contenders={
            OURS: information.club,
            "eager, as released": peers.club,
            "torch.compile, as released": peers.compiled(peers.club),
        },
        bars=[Bar("eager, as released", least=1000.0), Bar("torch.compile, as released", least=25.0)],
        rounds=3,
        workspace_bytes=2**20,
        workspace_of=("eager, as released",),
    )
    table["barlow-twins"] = Row(
        title="Barlow Twins, N=256, d=8192",
        inputs=partial(_embeddings, 2, 256, 8192),
        contenders={
            OURS: F.barlow_twins,
            "eager": peers.barlow_twins,
            "torch.compile": peers.compiled(peers.barlow_twins),
        },
        floor=("4 GEMMs", gemms(2, 1, 256)),
        bars=[Bar("eager", least=20.0), Bar("torch.compile", least=10.0)],
        rounds=5,
        # Standardised embeddings and the inner products.
        workspace_bytes=2 * 256 * 8192 * 4 + 24 * 2**20,
        workspace_of=("eager",),
    )
    table["gaussian-samples"] = Row(
        title="Gaussian samples with KL, M=2, 1,024 x 256",
        inputs=_latents,
        contenders={
            OURS: F.reparameterised_gaussian,
            "eager": peers.gaussian_samples,
            "torch.compile": peers.compiled(peers.gaussian_samples),
        },
        bars=[Bar("eager", least=2.0), Bar("torch.compile", least=1.0)],
        rounds=101,
        upstream=partial(_uneven, (2, 1024, 256), (2, 1024)),
    )
    table["token-attention"] = Row(
        title="attention among 2 tokens a sample, N=1,024, k=256",
        inputs=partial(_tokens, 2),
        contenders={
            OURS: F.token_attention,
            "eager": peers.token_attention,
            "scaled_dot_product_attention": torch.nn.functional.scaled_dot_product_attention,
            "torch.compile": peers.compiled(peers.token_attention_elementwise),
        },
        bars=[Bar("eager", least=1.5), Bar("scaled_dot_product_attention", least=2.0)],
        rounds=101,
        upstream=lambda: _uneven((1024, 2, 256))[0],
    )
    table["between-matrix-products"] = Row(
        title="OMIB outside its matrix products: samples, KL, r, attention; M=2, N=1,024, k=256",
        inputs=lambda: [*_latents(), *_tokens(2), *_logits()],
        contenders={OURS: _between_matrix_products, "eager": peers.between_matrix_products},
        bars=[Bar("eager", least=2.0)],
        rounds=101,
        upstream=lambda: (*_uneven((2, 1024, 256), (1024, 2, 256)), torch.tensor(0.01)),
    )
    table["omib-step"] = Row(
        title="OMIB's main stage, a step with Adam, SIM-III, N=1,024",
        inputs=_omib_inputs,
        contenders=dict(_omib_steps()),
        bars=[Bar("plain PyTorch", least=1.0)],
        rounds=31,
        backward=False,
    )
    for n in (64, 256):
        table[f"ova-ib-{n}"] = Row(
            title=f"OVAIBLoss, M=3, N={n}, d=256",
            inputs=partial(_embeddings, 3, n),
            contenders={OURS: _sequence(mibfast.losses.OVAIBLoss()), "eager": _sequence(peers.ova_ib)},
            bars=[Bar("eager", least=1.0)],
            rounds=101,
        )
    return table
