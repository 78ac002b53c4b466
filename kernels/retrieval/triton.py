"""Top-k retrieval on the GPU: blocks of scores, and a kernel that keeps each query's best.

Inner products are cuBLAS's; scores of a context of several embeddings are the pairwise engine's, whose rows are the
candidates and whose columns the queries, transposed as it stores them. The lowest volumes and areas are the best: their
sign is turned before they are compared, and back at the end.

A block of scores [Q, B], float32, is written to a workspace that L2 holds, and read once: a program walks scores of
one query, compares them with a bar, the worst of its k best so far, and sorts only a piece that holds a score above it.
A candidate is a key of 64 bits, its score's bits so that integers order as scores do and NaN comes last, and below them
its index counted down: so keys never tie, and equal scores go to the smaller index whatever the order of work. Of C
candidates in random order pieces of 1024 clear the bar about k (1 + ln(C / 1024 k)) times; in the worst order each
does, and a piece costs its sort, a microsecond and a half, in place of a tenth of one.

Selection by torch over [Q, k + B] in place of the kernel would have to order ties: a stable sort, or `torch.topk` of
such keys, passes over 8 bytes a score eight times or more.

All blocks have one shape, the last shares candidates with the one before and passes them over: so every candidate is
scored by the same kernel, and equal candidates score the same. Cosines are inner products of vectors as they
are times inverse norms: nothing is rounded to the inputs' dtype. Products for Symile, and unit vectors for volumes and
areas, are float32, and multiplied as torch multiplies float32.

Cost: 2 Q C K d FLOPs for K embeddings a query, and a write and a read of 4 bytes a score. Memory: a block of 32 MiB,
and keys, 8 bytes for each of the least power of two from k on. More than `_MOST_QUERIES` are taken in turns, each
reading all candidates once.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import INTERPRETED, capability
from mibfast.kernels.matrix_product import matrix_product
from mibfast.kernels.pairwise import dense_triton as dense
from mibfast.kernels.pairwise import scores
from mibfast.kernels.pairwise import triton as pairwise
from mibfast.kernels.pairwise.pairs_triton import ONE, rows_in_place
from mibfast.kernels.volume import triton as volume
from mibfast.kernels.volume.reference import GRAM, TRIANGLE

_MOST_QUERIES = 4096
_BLOCK_BYTES = 32 * 2**20
# Scores that a program reads at once, fewer in the interpreter, and programs that fill the device.
_PIECE, _INTERPRETED_PIECE, _PROGRAMS = 1024, 64, 1056
# Indices take 31 bits of a key; the largest stands for no candidate.
_LAST_INDEX = tl.constexpr(2**31 - 1)
_NO_KEY = tl.constexpr(-(2**63))
_MISSING = tl.constexpr(-(2**31))
# Keys below this are of NaN, or of no candidate.
_LEAST_NUMBER = tl.constexpr((1 - 2**31) * 2**32)


@triton.jit
def _keys(scores, candidates):
    """Integers that order as scores do, equal ones by index and NaN last."""
    # Zeros of both signs are equal.
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & _LAST_INDEX)
    order = tl.where(scores != scores, _MISSING, order)
    return (order.to(tl.int64) << 32) | (candidates ^ _LAST_INDEX).to(tl.int64)


@triton.jit
def _score(key):
    order = (key >> 32).to(tl.int32)
    return (order ^ ((order >> 31) & _LAST_INDEX)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["begin", "first_candidate"])
def _keep_best(
    scores,  # [queries, size]
    query_factors,  # [queries], or None
    factors,  # [size], or None
    kept,  # [queries, splits, KEPT]
    begin,
    size,
    split_size,
    first_candidate,
    KEPT: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Merge candidates `begin` to `size` of a block, whose first is `first_candidate`, into the kept keys.

    Keys are [queries, splits, KEPT]; a split takes `split_size` of the candidates. Later candidates have larger indices
    than those kept, so that one with the score of the bar does not clear it.
    """
    query, split = tl.program_id(0), tl.program_id(1)
    places = kept + (query.to(tl.int64) * tl.num_programs(1) + split) * KEPT + tl.arange(0, KEPT)
    best = tl.load(places)
    worst = tl.min(best, 0)
    bar = _score(worst)
    row = scores + query.to(tl.int64) * size
    start = begin + split * split_size
    for first in range(start, tl.minimum(start + split_size, size), PIECE):
        index = first + tl.arange(0, PIECE)
        inside = index < tl.minimum(start + split_size, size)
        score = tl.load(row + index, mask=inside, other=-float("inf"))
        if factors is not None:
            score = score * tl.load(query_factors + query) * tl.load(factors + index, mask=inside, other=1.0)
        clears = tl.max((inside & (score > bar)).to(tl.int32), 0)
        # Until there are k numbers anything passes, NaN too.
        if (clears > 0) | (worst < _LEAST_NUMBER):
            keys = tl.where(inside, _keys(score, first_candidate + index), _NO_KEY)
            best = tl.topk(tl.reshape(tl.join(best, tl.topk(keys, KEPT)), (2 * KEPT,)), KEPT)
            worst = tl.min(best, 0)
            bar = _score(worst)
    tl.store(places, best)


def _inverse_norms(x: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
    return torch.where(norms == 0.0, 0.0, norms.reciprocal())


# Stores the scores of some candidates [B, d] in [Q, B].
_ScoreBlock = Callable[[Tensor, Tensor], object]
_VOLUMES = {"gram_volume": GRAM, "triangle_area": TRIANGLE}


def _unit(x: Tensor) -> Tensor:
    return x.float() * _inverse_norms(x)[:, None]


def _scored_by(score: str, query: Tensor, ridge: float) -> _ScoreBlock:
    """How candidates are scored against queries [Q, d] or [Q, K, d]; the highest are the best."""
    if score in _VOLUMES:
        named, columns = volume.columns(_VOLUMES[score], [_unit(x) for x in query.unbind(1)], -1.0)

        def volumes(candidates: Tensor, out: Tensor) -> None:
            rows = _unit(candidates)
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square().float()
            dense.scores(named, replace(columns, rows=rows, row_statistic=norms), out.T)

        return volumes
    if score in scores.OF_EMBEDDINGS and scores.named(score).squared_norms:
        named = scores.named(score)
        columns = pairwise.Embeddings(query[:1], query, None, score, 0).pairs

        def scores_of_embeddings(candidates: Tensor, out: Tensor) -> None:
            rows = pairwise.Embeddings(candidates, query[:1], None, score, 0).pairs
            dense.scores(named, replace(columns, rows=rows.rows, row_statistic=rows.row_statistic), out.T)

        return scores_of_embeddings
    if score == "ridge_projection":
        contexts = pairwise.cosines(query[:, 0], query.unbind(1), ridge, ONE)

        def projections(candidates: Tensor, out: Tensor) -> None:
            rows = rows_in_place(candidates.to(contexts.rows.dtype))
            pairs = replace(contexts, rows=rows, row_statistic=_inverse_norms(rows))
            dense.scores(scores.named("ridge_projection"), pairs, out.T)

        return projections
    return lambda candidates, out: matrix_product(query, candidates.to(query.dtype).T, out)


def top_k(query: Tensor, key: Tensor, k: int, score: str, ridge: float) -> tuple[Tensor, Tensor]:
    """The k best scores of each query [Q, k], float32, best first, and their indices, int64."""
    query, key = query.detach(), key.detach()
    with torch.cuda.device_of(query), torch.autocast(query.device.type, enabled=False):
        if score == "symile":
            query = query.float().prod(1)
        cosine, n = score == "cosine", query.shape[0]
        turn = min(n, _MOST_QUERIES)
        keys = torch.empty(n, k, dtype=torch.int64, device=query.device)
        for first in range(0, n, turn):
            # The last turn takes some queries again, and finds the same.
            begin = min(first, n - turn)
            part = query[begin : begin + turn]
            keys[begin : begin + turn] = _best_keys(part, key, k, _scored_by(score, part, ridge), cosine)
        order = (keys >> 32).int()
        values = (order ^ ((order >> 31) & _LAST_INDEX.value)).view(torch.float32)
        if score in _VOLUMES:
            values = 0.0 - values
        return values, _LAST_INDEX.value - (keys & _LAST_INDEX.value)


def _best_keys(query: Tensor, key: Tensor, k: int, score_block: _ScoreBlock, cosine: bool) -> Tensor:
    n, count, device = query.shape[0], key.shape[0], query.device
    kept = max(16, 1 << (k - 1).bit_length())
    piece = max(kept, _INTERPRETED_PIECE if capability(device) == INTERPRETED else _PIECE)
    size = min(count, max(1, _BLOCK_BYTES // (4 * n)))
    splits = max(1, min(_PROGRAMS // n, size // piece))
    split_size = triton.cdiv(size, splits)
    keys = torch.full((n, splits, kept), _NO_KEY.value, dtype=torch.int64, device=device)
    block = torch.empty(n, size, dtype=torch.float32, device=device)
    query_factors = _inverse_norms(query) if cosine else None
    for first in range(0, count, size):
        begin = min(first, count - size)
        candidates = key[begin : begin + size]
        score_block(candidates, block)
        _keep_best[(n, splits)](
            scores=block,
            query_factors=query_factors,
            factors=_inverse_norms(candidates) if cosine else None,
            kept=keys,
            begin=first - begin,
            size=size,
            split_size=split_size,
            first_candidate=begin,
            KEPT=kept,
            PIECE=piece,
            num_warps=4,
        )
    if splits == 1:
        return keys[:, 0, :k]
    # No two keys are equal, so their order is certain.
    return keys.flatten(1).topk(k, dim=1).values
