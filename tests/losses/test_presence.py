"""Missing modalities: every loss against its definition over the samples that have them, written out."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity, cross_entropy, logsigmoid, normalize

from mibfast import functional as F
from mibfast import losses

few = settings(max_examples=15, deadline=None, derandomize=True)
batches = st.tuples(st.integers(1, 9), st.floats(0.2, 0.9), st.integers(0, 2**16))


# Each definition takes a loss, unit embeddings (lists of the rows that are there, by sample) and the samples of each
# modality, and gives the loss, or None where nothing is left. Nothing absent is ever touched.


def _info_nce(scores, positive_in_denominator):
    own = torch.eye(len(scores), dtype=torch.bool)
    logits = scores if positive_in_denominator else scores.masked_fill(own, -torch.inf)
    return (logits.logsumexp(1) - scores.diagonal()).mean()


def _with_all(z, modalities):
    """The embeddings of the samples that have all of some modalities."""
    samples = [n for n in range(len(z)) if all(m in z[n] for m in modalities)]
    return [torch.stack([z[n][m] for n in samples]) for m in modalities] if samples else None


def _pairs(z, count, fewest=1):
    found = [_with_all(z, pair) for pair in combinations(range(count), 2)]
    return [pair for pair in found if pair is not None and len(pair[0]) >= fewest]


def _clip(loss, z, count):
    inside = loss.positive_in_denominator
    terms = []
    for a, b in _pairs(z, count, 1 if inside else 2):
        scores = a @ b.T / loss.temperature()
        terms.append((_info_nce(scores, inside) + _info_nce(scores.T, inside)) / 2)
    return sum(terms) if terms else None


def _clip_ib(loss, z, count):
    alignment = _clip(loss, z, count)
    if alignment is None:
        return None
    return alignment + loss.beta * sum(((a - b) ** 2).sum(1).mean() for a, b in _pairs(z, count))


def _siglip(loss, z, count):
    scale = loss.initial_scale if loss.log_scale is None else loss.log_scale.exp()
    bias = loss.initial_bias if loss.bias is None else loss.bias
    terms = []
    for a, b in _pairs(z, count):
        sign = 2 * torch.eye(len(a), dtype=torch.float64) - 1
        terms.append(-logsigmoid(sign * (scale * a @ b.T + bias)).sum(1).mean())
    return sum(terms) if terms else None


def _projection(target, basis, ridge):
    a = torch.stack(basis)
    return a.T @ torch.linalg.solve(a @ a.T + ridge * torch.eye(len(a), dtype=a.dtype), a @ target)


def _ova_ib(loss, z, count):
    alignment, minimality = [], []
    for m in range(count):
        queries = [sample[m] for sample in z if m in sample and len(sample) > 1]
        contexts = [[x for k, x in sample.items() if k != m] for sample in z if m in sample and len(sample) > 1]
        if queries:
            distances = [((q - sum(c) / len(c)) ** 2).sum() for q, c in zip(queries, contexts, strict=True)]
            minimality.append(sum(distances) / len(distances))
        if len(queries) < (1 if loss.positive_in_denominator else 2):
            continue
        own = queries if loss.keys == "per_sample" else None
        scores = [
            torch.stack(
                [
                    cosine_similarity(q, _projection(own[j] if own else q, c, loss.ridge), dim=0, eps=0.0)
                    for j, c in enumerate(contexts)
                ]
            )
            for q in queries
        ]
        alignment.append(_info_nce(torch.stack(scores) / loss.temperature, loss.positive_in_denominator))
    if not alignment:
        return None
    return sum(alignment) / len(alignment) + loss.beta * sum(minimality) / len(minimality)


def _symile(loss, z, count):
    complete = _with_all(z, range(count))
    if complete is None:
        return None
    scores = loss.scale() * torch.einsum("id,jd,kd->ijk", *complete)
    n = torch.arange(len(scores))
    positives = scores[n, n, n]
    return sum((scores.movedim(m, 0).flatten(1).logsumexp(1) - positives).mean() for m in range(3)) / 3


def _smoothed(loss, scores):
    """The cross-entropy of both directions for scores [anchor, others] that are better the smaller."""
    logits, target = -scores / loss.temperature(), torch.arange(len(scores))
    smoothing = loss.label_smoothing
    return (
        cross_entropy(logits, target, label_smoothing=smoothing)
        + cross_entropy(logits.T, target, label_smoothing=smoothing)
    ) / 2


def _anchors(loss, complete):
    chosen = range(len(complete)) if loss.anchor is None else [loss.anchor]
    return [(complete[m], [*complete[:m], *complete[m + 1 :]]) for m in chosen]


def _gram(loss, z, count):
    complete = _with_all(z, range(count))
    if complete is None:
        return None
    terms = []
    for anchor, others in _anchors(loss, complete):
        n = len(anchor)
        vectors = torch.stack([anchor[:, None].expand(n, n, -1), *(x[None].expand(n, n, -1) for x in others)], 2)
        terms.append(_smoothed(loss, torch.linalg.det(vectors @ vectors.mT).sqrt()))
    return sum(terms) / len(terms)


def _triangle(loss, z, count):
    complete = _with_all(z, range(count))
    if complete is None:
        return None
    terms = []
    for anchor, (b, c) in _anchors(loss, complete):
        u, v = anchor[:, None] - b, anchor[:, None] - c
        doubled = (u * u).sum(2) * (v * v).sum(2) - (u * v).sum(2) ** 2
        terms.append(_smoothed(loss, doubled / 2 if loss.squared else doubled.sqrt() / 2))
    return sum(terms) / len(terms)


def _barlow_twins(loss, z, count):
    complete = _with_all(z, range(count))
    if complete is None or len(complete[0]) < 2:
        return None
    a, b = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in complete)
    squares = (a.T @ b / len(a) - torch.eye(a.shape[1], dtype=a.dtype)) ** 2
    off = 1 - torch.eye(a.shape[1], dtype=a.dtype)
    c = a.T @ b / len(a)
    return squares.diagonal().sum() + loss.off_diagonal_weight * (off * c**2).sum()


CASES = {
    "clip": (lambda b: losses.PairwiseCLIPLoss(0.3, learnable_temperature=True, backend=b), _clip, 4),
    "clip, positive out": (lambda b: losses.PairwiseCLIPLoss(0.3, positive_in_denominator=False, backend=b), _clip, 3),
    "clip + ib": (
        lambda b: losses.PairwiseCLIPIBLoss(0.3, positive_in_denominator=False, beta=0.7, backend=b),
        _clip_ib,
        3,
    ),
    "siglip": (lambda b: losses.SigLIPLoss(3.0, -1.0, backend=b), _siglip, 3),
    "ova-ib": (lambda b: losses.OVAIBLoss(0.2, beta=0.7, backend=b), _ova_ib, 4),
    "ova-ib, two": (lambda b: losses.OVAIBLoss(0.2, positive_in_denominator=True, backend=b), _ova_ib, 2),
    "ova-ib, pairwise": (lambda b: losses.OVAIBLoss(0.2, keys="pairwise", backend=b), _ova_ib, 4),
    "ova-ib, pairwise, ridge": (
        lambda b: losses.OVAIBLoss(0.2, 0.3, keys="pairwise", positive_in_denominator=True, backend=b),
        _ova_ib,
        3,
    ),
    "ova-ib, ridge": (lambda b: losses.OVAIBLoss(0.2, 0.3, backend=b), _ova_ib, 3),
    "symile": (lambda b: losses.SymileLoss(3.0, learnable_scale=True, backend=b), _symile, 3),
    "gram": (lambda b: losses.GRAMLoss(0.3, learnable_temperature=True, anchor=None, backend=b), _gram, 3),
    "triangle": (lambda b: losses.TRIANGLELoss(0.3, anchor=1, backend=b), _triangle, 3),
    "triangle, area": (lambda b: losses.TRIANGLELoss(0.3, anchor=None, squared=False, backend=b), _triangle, 3),
    "barlow twins": (lambda b: losses.BarlowTwinsLoss(0.3, backend=b), _barlow_twins, 2),
}


def _batch(n, share, seed, count, d=7):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(count)]
    return views, torch.rand(n, count, generator=generator) < share


def _truth(name, loss, views, presence):
    """The loss from its definition, or None, and the gradients: embeddings', then parameters'."""
    leaves = [x.clone().requires_grad_() for x in views]
    unit = (lambda x: x) if name == "barlow twins" else (lambda x: normalize(x, dim=0))
    has = presence.tolist()
    z = [{m: unit(leaves[m][n]) for m in range(len(views)) if has[n][m]} for n in range(len(presence))]
    value = CASES[name][1](loss, z, len(views))
    if value is None:
        return None
    variables = [*leaves, *loss.parameters()]
    if not value.requires_grad:
        return value, [torch.zeros_like(x) for x in variables]
    gradients = torch.autograd.grad(value, variables, allow_unused=True)
    return value, [torch.zeros_like(x) if g is None else g for x, g in zip(variables, gradients, strict=True)]


def _hidden(views, presence, rubbish=torch.nan):
    """Leaves with rubbish where embeddings are absent."""
    masked = [torch.where(has[:, None], x, rubbish) for x, has in zip(views, presence.unbind(1), strict=True)]
    return [x.requires_grad_() for x in masked]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", CASES)
@few
@given(batches)
def test_a_loss_is_its_definition_over_what_is_present(name, backend, batch) -> None:
    make, _, count = CASES[name]
    loss = make(backend).double()
    views, presence = _batch(*batch, count)
    truth = _truth(name, loss, views, presence)
    leaves = _hidden(views, presence)
    if truth is None:
        with pytest.raises(ValueError, match=f"{type(loss).__name__}|one_vs_all.*: presence leaves nothing"):
            loss(leaves, presence)
        return
    value, expected = truth
    found = loss(leaves, presence)
    # A learned number stays float32.
    tolerance = 1e-9 if not list(loss.parameters()) else 1e-6
    torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(found, [*leaves, *loss.parameters()])
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=10 * tolerance, atol=10 * tolerance)
    for gradient, has in zip(gradients, presence.unbind(1), strict=False):
        assert not gradient[~has].any()


@pytest.mark.parametrize("name", CASES)
def test_with_everything_present_nothing_changes(name) -> None:
    make, _, count = CASES[name]
    loss = make(None)
    views = [torch.randn(20, 12, requires_grad=True) for _ in range(count)]
    results = []
    for presence in (None, torch.ones(20, count, dtype=torch.bool)):
        value = loss(views, presence)
        results.append([value, *torch.autograd.grad(value, views)])
        terms = loss.terms(views, presence)
        assert list(terms) == list(loss.terms(views))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_sample_without_modalities_is_as_good_as_none(name) -> None:
    make, _, count = CASES[name]
    loss = make(None)
    views, presence = _batch(14, 0.7, 3, count)
    presence[[2, 9]] = False
    kept = presence.any(1)
    found = loss(_hidden(views, presence, torch.inf), presence)
    torch.testing.assert_close(found, loss([x[kept] for x in views], presence[kept]))


@pytest.mark.parametrize("keys", ["per_sample", "pairwise"])
def test_a_modality_that_no_sample_has_is_as_good_as_none(keys) -> None:
    views, presence = _batch(14, 1.1, 0, 3)
    presence[:, 1] = False
    two = [views[0], views[2]]
    for loss in (losses.OVAIBLoss(0.2, keys=keys), losses.PairwiseCLIPIBLoss(0.2), losses.SigLIPLoss(3.0)):
        torch.testing.assert_close(loss(_hidden(views, presence), presence), loss(two), rtol=1e-7, atol=1e-7)
    named = dict(zip(("image", "text", "audio"), _hidden(views, presence), strict=True))
    assert list(losses.PairwiseCLIPLoss().terms(named, presence)) == ["image-audio"]


@pytest.mark.parametrize("keys", ["per_sample", "pairwise"])
def test_one_value_a_sample(keys) -> None:
    views, presence = _batch(12, 0.6, 5, 4)
    presence[:, 3] = False
    presence[0, 3] = presence[0, 0] = True
    leaves = _hidden(views, presence)
    each = F.one_vs_all_info_nce(leaves, 0.2, keys=keys, presence=presence, reduction="none")
    assert each.shape == (4, 12)
    taken = presence & (presence.sum(1, keepdim=True) > 1)
    # The last modality has one sample, and so no negatives.
    assert taken.sum(0)[3] == 1
    taken[:, 3] = False
    assert torch.equal(each != 0, taken.T)
    mean = F.one_vs_all_info_nce(leaves, 0.2, keys=keys, presence=presence)
    torch.testing.assert_close((each.sum(1)[:3] / taken.sum(0)[:3]).mean(), mean)
    for value in (each.sum(), mean):
        for gradient in torch.autograd.grad(value, leaves):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("keys", ["per_sample", "pairwise"])
def test_gradcheck(keys) -> None:
    views, presence = _batch(6, 0.7, 1, 3)
    leaves = [x.requires_grad_() for x in views]
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(
            lambda tau, *z, r=reduction: F.one_vs_all_info_nce(z, tau, keys=keys, presence=presence, reduction=r),
            [temperature, *leaves],
        )
    for backend in ("cpu", "reference"):
        assert torch.autograd.gradcheck(
            lambda *z, b=backend: F.one_vs_all_minimality(z, presence=presence, backend=b), leaves
        )
    assert torch.autograd.gradgradcheck(
        lambda *z: F.one_vs_all_info_nce(z, 0.4, keys=keys, presence=presence, backend="reference"), leaves
    )


@pytest.mark.parametrize("keys", ["per_sample", "pairwise"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("ridge", [0.0, 1e-8])
def test_extremes(keys, backend, ridge) -> None:
    """Coinciding, huge and tiny embeddings, with and without ridge: what is absent still moves nothing."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    presence = torch.rand(10, 4, generator=generator) < 0.7
    for scale in (1e-8, 1.0, 1e8):
        z = [scale * base, scale * base, scale * (base + 1e-6 * base.flip(1)), scale * base.flip(0)]
        leaves = _hidden(z, presence)
        value = F.one_vs_all_info_nce(leaves, 0.1, ridge * scale**2, keys=keys, presence=presence, backend=backend)
        other = F.one_vs_all_info_nce(
            _hidden([x / scale for x in z], presence), 0.1, ridge, keys=keys, presence=presence, backend=backend
        )
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shorter_dtypes(dtype) -> None:
    views, presence = _batch(30, 0.7, 2, 3)
    views = [x.to(dtype) for x in views]
    for name in CASES:
        make, _, count = CASES[name]
        loss = make(None)
        leaves = _hidden(views[:count], presence[:, :count])
        found = loss(leaves, presence[:, :count])
        if count > 3:
            continue
        truth = loss([x.detach().double() for x in leaves], presence[:, :count])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), truth.double(), rtol=2e-3, atol=2e-3)
        for gradient, x in zip(torch.autograd.grad(found, leaves), leaves, strict=True):
            assert gradient.dtype == x.dtype
            assert gradient.isfinite().all()


def test_nearly_aligned_in_float32() -> None:
    """1e-4 apart: what is left of a difference of unit vectors, and logits at the paper's temperature."""
    common = torch.randn(50, 64, dtype=torch.float64)
    views = [normalize(common + 1e-4 * torch.randn(50, 64, dtype=torch.float64)).float() for _ in range(4)]
    presence = torch.rand(50, 4) < 0.7
    wide = [x.double() for x in views]
    truth = F.one_vs_all_minimality(wide, presence=presence)
    assert abs(F.one_vs_all_minimality(views, presence=presence).item() / truth.item() - 1) < 1e-4
    for keys in ("per_sample", "pairwise"):
        found, truth = (F.one_vs_all_info_nce(z, 0.01, keys=keys, presence=presence) for z in (views, wide))
        assert abs(found.item() - truth.item()) < 1e-4


def test_shuffled_negatives_and_info_nce_are_over_complete_samples() -> None:
    views, presence = _batch(20, 0.7, 4, 3)
    complete = presence.all(1)

    def shuffled(*arguments):
        return losses.SymileLoss(negatives="shuffled", generator=torch.Generator().manual_seed(0))(*arguments)

    assert torch.equal(shuffled(_hidden(views, presence), presence), shuffled([x[complete] for x in views]))
    query, key = _hidden(views[:2], presence[:, :2])
    both = presence[:, :2].all(1)
    for loss in (losses.InfoNCELoss(), losses.InfoNCELoss(symmetric=True, label_smoothing=0.2)):
        value = loss(query, key, presence[:, :2])
        torch.testing.assert_close(value, loss(views[0][both], views[1][both]), rtol=1e-12, atol=1e-12)
        for gradient in torch.autograd.grad(value, [query, key]):
            assert torch.equal(gradient.any(1), both)


def test_nan_that_is_present_stays() -> None:
    views, presence = _batch(12, 0.8, 0, 3)
    sample = presence.all(1).nonzero()[0, 0]
    views[0][sample] = torch.nan
    for loss in (losses.OVAIBLoss(), losses.PairwiseCLIPLoss(), losses.SigLIPLoss(), losses.GRAMLoss()):
        assert loss(views, presence).isnan()


@pytest.mark.slow
def test_torch_compile_breaks_its_graph_and_gives_the_same() -> None:
    views, presence = _batch(12, 0.7, 0, 3)
    for loss in (losses.OVAIBLoss(), losses.PairwiseCLIPLoss()):
        leaves = _hidden(views, presence)
        compiled = torch.compile(loss, backend="aot_eager")
        found, expected = compiled(leaves, presence), loss(leaves, presence)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))
