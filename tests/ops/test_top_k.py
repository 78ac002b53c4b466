"""Top-k retrieval: backends, ties, NaN, blocks, threads, memory."""

import dataclasses
import math
import threading
import tracemalloc

import pytest
import torch

from mibfast import functional as F
from mibfast.kernels.pairwise import scores
from mibfast.kernels.retrieval import cpu, reference

# Embeddings a query, where it has more than one.
CONTEXTS = {"ridge_projection": 3, "gram_volume": 3, "triangle_area": 2, "symile": 3}
SCORES = ["inner_product", "squared_distance", "lorentz", "cosine", *CONTEXTS]
LOWEST_ARE_BEST = ["gram_volume", "triangle_area"]
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
EVERY_SCORE = pytest.mark.parametrize("score", SCORES)


def _inputs(q, c, d, score, dtype=torch.float64):
    shape = (q, CONTEXTS[score], d) if score in CONTEXTS else (q, d)
    return torch.randn(shape, dtype=torch.float64).to(dtype), torch.randn(c, d, dtype=torch.float64).to(dtype)


def _whole_numbers(*shape, dtype=torch.float32):
    """Scores of which have no rounding, and many ties."""
    return torch.randint(-2, 3, shape).to(dtype)


@EVERY_SCORE
@pytest.mark.parametrize(
    ("q", "c", "d", "k"), [(1, 1, 1, 1), (3, 9, 5, 9), (17, 4500, 8, 10), (130, 1030, 24, 100), (1, 5000, 16, 3)]
)
def test_float64_agrees(q, c, d, k, score) -> None:
    query, key = _inputs(q, c, d, score)
    values, indices = F.top_k(query, key, k, score=score, backend="cpu")
    expected, places = F.top_k(query, key, k, score=score, backend="reference")
    tolerance = 1e-10 if d > 3 else 1e-6
    torch.testing.assert_close(values, expected, rtol=tolerance, atol=tolerance)
    assert indices.dtype == places.dtype == torch.int64
    # d <= K spans everything, and every candidate scores the same.
    if d > 3:
        assert torch.equal(indices, places)


@EVERY_SCORE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_shorter_dtypes(dtype, score) -> None:
    query, key = _inputs(20, 3000, 24, score, dtype)
    exact, _ = F.top_k(query.double(), key.double(), 10, score=score, backend="reference")
    values, indices = F.top_k(query, key, 10, score=score, backend="cpu")
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-5)
    every = reference.SCORES[score][0](query.double(), key.double(), 1e-8)
    torch.testing.assert_close(values.double(), every.gather(1, indices), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [1, 7, 64, 3000])
def test_ties_go_to_the_smaller_index(k, dtype) -> None:
    query, key = _whole_numbers(40, 6, dtype=dtype), _whole_numbers(3000, 6, dtype=dtype)
    values, indices = F.top_k(query, key, k, backend="cpu")
    expected, places = F.top_k(query, key, k, backend="reference")
    assert torch.equal(values, expected)
    assert torch.equal(indices, places)
    assert (values[:, :-1] >= values[:, 1:]).all()
    tie = values[:, :-1] == values[:, 1:]
    assert (indices[:, :-1] < indices[:, 1:])[tie].all()


def test_values_follow_torch_topk() -> None:
    query, key = torch.randn(50, 32), torch.randn(4000, 32)
    values, _ = F.top_k(query, key, 12)
    torch.testing.assert_close(values, (query @ key.T).topk(12, dim=1).values)


@pytest.mark.parametrize("descending", [False, True])
def test_candidates_in_the_worst_order(descending) -> None:
    """Where each candidate is better than all before it, each is taken; or else none after the first k."""
    key = torch.linspace(-1, 1, 3000)[:, None]
    values, indices = F.top_k(torch.ones(3, 1), key.flip(0) if descending else key, 50)
    assert torch.equal(values, key.flip(0)[:50, 0].expand(3, 50))
    assert torch.equal(indices[0], torch.arange(50) if descending else torch.arange(2999, 2949, -1))


@BACKENDS
@EVERY_SCORE
def test_nan_ranks_behind_all_numbers(score, backend) -> None:
    query, key = _inputs(5, 40, 8, score)
    key[3:33, 2] = math.nan
    query[4] = math.nan
    values, indices = F.top_k(query, key, 20, score=score, backend=backend)
    numbers = torch.cat([torch.arange(3), torch.arange(33, 40)])
    assert values[:4, :10].isfinite().all()
    assert torch.equal(indices[:4, :10].sort().values, numbers.expand(4, 10))
    assert values[:4, 10:].isnan().all()
    assert torch.equal(indices[:4, 10:], torch.arange(3, 13).expand(4, 10))
    assert values[4].isnan().all()
    assert torch.equal(indices[4], torch.arange(20))


@BACKENDS
def test_infinite_scores(backend) -> None:
    key = torch.tensor([[-math.inf], [math.nan], [1.0], [math.inf], [-math.inf]])
    values, indices = F.top_k(torch.ones(1, 1), key, 5, backend=backend)
    assert indices.tolist() == [[3, 2, 0, 4, 1]]
    assert values[0, :4].tolist() == [math.inf, 1.0, -math.inf, -math.inf]


@BACKENDS
@pytest.mark.parametrize("score", ["cosine", "ridge_projection"])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_vectors_of_zeros_score_zero_and_scale_does_not_matter(scale, score, backend) -> None:
    query, key = _inputs(4, 30, 8, score)
    key[7] = 0
    query[2] = 0
    plain, places = F.top_k(query, key, 30, score=score, ridge=0.0, backend=backend)
    assert (plain[2] == 0).all()
    assert torch.equal(places[2], torch.arange(30))
    assert (plain[places == 7] == 0).all()
    scaled, found = F.top_k(scale * query, scale * key, 30, score=score, ridge=0.0, backend=backend)
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-9)
    assert torch.equal(found, places)


@BACKENDS
@pytest.mark.parametrize("score", LOWEST_ARE_BEST)
@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1e4, 1e18])
def test_volumes_are_of_unit_vectors_and_the_lowest_come_first(scale, score, backend) -> None:
    query, key = (x.float() for x in _inputs(4, 30, 8, score))
    plain, places = F.top_k(query, key, 30, score=score, backend=backend)
    assert (plain[:, :-1] <= plain[:, 1:]).all()
    # The largest triangle on the unit sphere, where a volume is 1 at most.
    assert (plain <= 3 * 3**0.5 / 4).all()
    scaled, found = F.top_k(scale * query, scale * key, 30, score=score, backend=backend)
    torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, places)


def _unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def test_scores_are_those_of_the_operations_of_the_same_name() -> None:
    query, key = torch.randn(9, 2, 6).double(), torch.randn(40, 6).double()
    first, second = _unit(query).unbind(1)
    truths = {
        "gram_volume": -F.gram_volume(_unit(key), [first, second]).T,
        "triangle_area": -F.triangle_area(_unit(key), first, second).T,
        "symile": torch.einsum("qd,qd,cd->qc", *query.unbind(1), key),
    }
    for score, truth in truths.items():
        expected = truth.topk(6, dim=1)
        values, indices = F.top_k(query, key, 6, score=score)
        torch.testing.assert_close(values, expected.values * (-1 if score in LOWEST_ARE_BEST else 1))
        assert torch.equal(indices, expected.indices)


def test_volumes_of_few_vectors_are_sines_chords_and_inner_products() -> None:
    query, key = torch.randn(9, 1, 6).double(), torch.randn(40, 6).double()
    cosines = _unit(query[:, 0]) @ _unit(key).T
    values, indices = F.top_k(query, key, 6, score="gram_volume")
    expected = cosines.abs().topk(6, dim=1)
    torch.testing.assert_close(values, torch.sqrt(1 - expected.values**2))
    assert torch.equal(indices, expected.indices)
    # Two embeddings across from each other: the area is the sine of the candidate's angle with their line.
    values, indices = F.top_k(torch.cat([query, -query], 1), key, 6, score="triangle_area")
    torch.testing.assert_close(values, torch.sqrt(1 - expected.values**2))
    assert torch.equal(indices, expected.indices)
    for a, b in zip(F.top_k(query, key, 6, score="symile"), F.top_k(query[:, 0], key, 6), strict=True):
        assert torch.equal(a, b)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_candidates_in_the_span_and_vectors_of_zeros_have_no_volume(dtype, backend) -> None:
    query, key = torch.randn(5, 2, 8, dtype=dtype), torch.randn(40, 8, dtype=dtype)
    key[10:15] = query[:, 0] - 3 * query[:, 1]
    key[30] = 0
    values, indices = F.top_k(query, key, 2, score="gram_volume", backend=backend)
    near = 1e-3 if dtype == torch.float32 else 1e-7
    assert (values < near).all()
    own = torch.arange(10, 15)
    assert torch.equal(indices.sort().values, torch.stack([own, torch.full((5,), 30)], 1))
    # Of a context that spans nothing all volumes are zero, and ties go to the smaller index.
    query[:, 1] = 2 * query[:, 0]
    values, indices = F.top_k(query, key, 4, score="gram_volume", backend=backend)
    assert not values.any()
    assert torch.equal(indices, torch.arange(4).expand(5, 4))


@pytest.mark.parametrize("score", CONTEXTS)
def test_contexts_of_any_size(score) -> None:
    for size in [2] if score == "triangle_area" else [1, 2, 5]:
        query, key = torch.randn(6, size, 12).double(), torch.randn(300, 12).double()
        values, indices = F.top_k(query, key, 5, score=score)
        expected, places = F.top_k(query, key, 5, score=score, backend="reference")
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10)
        assert torch.equal(indices, places)


def test_a_ridge_counts() -> None:
    query, key = _inputs(6, 50, 12, "ridge_projection")
    for a, b in zip(
        F.top_k(query, key, 8, score="ridge_projection", ridge=3.0),
        F.top_k(query, key, 8, score="ridge_projection", ridge=3.0, backend="reference"),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    expected = F.projection_score(key, query, 3.0).topk(8, dim=1)
    torch.testing.assert_close(F.top_k(query, key, 8, score="ridge_projection", ridge=3.0)[0], expected.values)


@EVERY_SCORE
def test_more_queries_and_candidates_than_one_block_takes(score, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "_MOST_COLUMNS", 33)
    monkeypatch.setattr(cpu, "_CONVERTED_BYTES", 4000)
    query, key = _inputs(100, 4200, 8, score)
    for candidates in (key, key.T.contiguous().T):
        values, indices = F.top_k(query, candidates, 5, score=score)
        expected, places = F.top_k(query, key, 5, score=score, backend="reference")
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10)
        assert torch.equal(indices, places)


@EVERY_SCORE
def test_strides(score) -> None:
    query, key = _inputs(9, 300, 8, score, torch.float32)
    values, indices = F.top_k(query, key, 7, score=score)
    wide = (
        torch.stack([key, key + 9], 2).flatten(1)[:, ::2],
        torch.cat([key, key - 5], 1)[:, :8],
        key.repeat(1, 2)[:, :8],
    )
    for candidates in (*wide, key.T.contiguous().T):
        found, places = F.top_k(query.transpose(0, 1).contiguous().transpose(0, 1), candidates, 7, score=score)
        torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6)
        assert (places == indices).float().mean() > 0.98


def test_there_is_no_gradient_and_inputs_are_not_written_to() -> None:
    key = torch.randn(20, 8, requires_grad=True)
    kept = key.detach().clone()
    for backend in ("cpu", "reference"):
        for score in SCORES:
            query = _inputs(4, 20, 8, score, torch.float32)[0].requires_grad_()
            before = query.detach().clone()
            values, indices = F.top_k(query, key, 3, score=score, backend=backend)
            assert not values.requires_grad
            assert not indices.requires_grad
            assert torch.equal(query, before)
    assert torch.equal(key, kept)


@EVERY_SCORE
def test_compiled(score) -> None:
    query, key = _inputs(7, 50, 6, score, torch.float32)

    def search(query, key):
        return F.top_k(query, key, 4, score=score)

    for a, b in zip(
        torch.compile(search, fullgraph=True, backend="aot_eager")(query.requires_grad_(), key),
        search(query, key),
        strict=True,
    ):
        assert torch.equal(a, b)
    arguments = ([query.detach(), key], 4, score, 1e-8, "cpu")
    torch.library.opcheck(torch.ops.mibfast.top_k.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_autocast_changes_nothing() -> None:
    query, key = torch.randn(9, 8), torch.randn(40, 8)
    expected = F.top_k(query, key, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = F.top_k(query, key, 5)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_results_repeat_and_threads_do_not_mix() -> None:
    query, key = torch.randn(300, 32), torch.randn(5000, 32)
    first, failures = F.top_k(query, key, 10), []

    def work() -> None:
        for _ in range(3):
            if not all(torch.equal(a, b) for a, b in zip(F.top_k(query, key, 10), first, strict=True)):
                failures.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_number_of_threads_does_not_matter() -> None:
    query, key = _whole_numbers(300, 8), _whole_numbers(5000, 8)
    expected, threads = F.top_k(query, key, 10), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(F.top_k(query, key, 10), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_the_lowest_are_best_for_a_score_that_says_so(monkeypatch) -> None:
    """One entry makes a score, whichever end of it is the better."""
    scores_of, _ = reference.SCORES["inner_product"]
    monkeypatch.setitem(reference.SCORES, "cosine", (scores_of, False))
    lowest = dataclasses.replace(scores.named("inner_product"), large_is_alike=False)
    monkeypatch.setattr(scores, "NUMBERED", (*scores.NUMBERED, lowest))
    plain = cpu.RANKINGS["inner_product"]
    monkeypatch.setitem(
        cpu.RANKINGS, "cosine", cpu.Ranking(lambda query, ridge: (lowest, plain.columns(query, ridge)[1]))
    )
    query, key = _whole_numbers(10, 4), _whole_numbers(500, 4)
    values, indices = F.top_k(query, key, 9, score="cosine")
    expected, places = F.top_k(query, key, 9, score="cosine", backend="reference")
    assert torch.equal(values, expected)
    assert torch.equal(indices, places)
    assert (values[:, :-1] <= values[:, 1:]).all()


@EVERY_SCORE
def test_the_number_of_threads_does_not_matter_to_any_score(score) -> None:
    query, key = _inputs(300, 2000, 8, score, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = F.top_k(query, key, 10, score=score)
        torch.set_num_threads(2)
        torch.testing.assert_close(F.top_k(query, key, 10, score=score), alone, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("score", CONTEXTS)
def test_memory_does_not_grow_with_all_scores(score) -> None:
    """1000 queries and 60000 candidates would have 240 MB of scores; blocks have a tenth of it."""
    query, key = _inputs(1000, 60000, 4, score, torch.float32)
    F.top_k(query[:2], key[:50], 3, score=score)
    tracemalloc.start()
    try:
        with torch.profiler.profile(profile_memory=True) as profile:
            F.top_k(query, key, 3, score=score)
        arrays = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    tensors = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert arrays + tensors < 80e6


def test_every_score_is_in_every_list() -> None:
    from mibfast.ops import top_k

    assert list(top_k._QUERIES) == list(cpu.RANKINGS) == list(reference.SCORES)
