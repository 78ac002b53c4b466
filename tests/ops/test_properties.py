"""What holds for every input."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibfast import functional as F

few = settings(max_examples=25, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(2, 5), st.integers(2, 12), st.integers(6, 20), st.integers(0, 2**16))


def views_of(size) -> list[torch.Tensor]:
    m, n, d, seed = size
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(m, n, d, generator=generator, dtype=torch.float64))


def near(a, b, tolerance=1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@few
@given(sizes)
def test_order_of_samples_and_modalities_does_not_matter(size) -> None:
    views = views_of(size)
    order = torch.randperm(size[1], generator=torch.Generator().manual_seed(size[3]))
    for keys in ("per_sample", "pairwise"):
        loss = F.one_vs_all_info_nce(views, 0.2, keys=keys)
        near(F.one_vs_all_info_nce([z[order] for z in views], 0.2, keys=keys), loss)
        near(F.one_vs_all_info_nce(views[::-1], 0.2, keys=keys), loss)


@few
@given(sizes, st.floats(-6, 6))
def test_scale_of_an_embedding_does_not_matter_without_ridge(size, exponent) -> None:
    views = views_of(size)
    scaled = [views[0] * 10**exponent, *views[1:]]
    for keys in ("per_sample", "pairwise"):
        near(
            F.one_vs_all_info_nce(scaled, 0.2, 0.0, keys=keys), F.one_vs_all_info_nce(views, 0.2, 0.0, keys=keys), 1e-6
        )


@few
@given(sizes)
def test_both_kinds_of_keys_agree_on_positives(size) -> None:
    views = views_of(size)
    projections = F.leave_one_out_projection(views)
    for m, target in enumerate(views):
        context = torch.stack([z for k, z in enumerate(views) if k != m], dim=1)
        cosine = torch.nn.functional.cosine_similarity(projections[m], target)
        near(F.projection_score(target, context).diagonal(), cosine)
        near(F.ridge_projection(target, context), projections[m])


@few
@given(sizes)
def test_a_projection_projects_to_itself_and_leaves_a_right_angle(size) -> None:
    target, *basis = views_of(size)
    basis = torch.stack(basis, dim=1)
    projection = F.ridge_projection(target, basis, 0.0)
    near(F.ridge_projection(projection, basis, 0.0), projection, 1e-6)
    near((basis @ (target - projection)[..., None]).squeeze(-1), torch.zeros(basis.shape[:2]).double(), 1e-6)


@few
@given(sizes)
def test_scores_are_cosines_of_an_angle_with_a_span(size) -> None:
    candidates, *context = views_of(size)
    scores = F.projection_score(candidates, torch.stack(context, 1))
    assert (scores >= 0).all()
    assert (scores <= 1 + 1e-12).all()


@few
@given(sizes)
def test_minimality_is_the_sum_of_pairwise_distances(size) -> None:
    views = views_of(size)
    m = len(views)
    pairs = [((views[i] - views[j]) ** 2).sum(1).mean() for i in range(m) for j in range(i)]
    near(F.one_vs_all_minimality(views), torch.stack(pairs).sum() / (m - 1) ** 2)


@few
@given(sizes)
def test_volumes_are_square_roots_of_determinants(size) -> None:
    anchor, *others = views_of(size)
    rows = [anchor[:, None].expand(-1, len(anchor), -1), *(z.expand(len(anchor), -1, -1) for z in others)]
    vectors = torch.stack(rows, 2)
    volumes = F.gram_volume(anchor, others)
    truth = torch.linalg.det(vectors @ vectors.mT).clamp(min=0).sqrt()
    near(volumes, truth, 1e-7)
    near(F.gram_volume(3 * anchor, others[::-1]), 3 * volumes)
    # A sample's own volume is the same whichever modality is the anchor.
    near(F.gram_volume(others[0], [anchor, *others[1:]]).diagonal(), volumes.diagonal())


@few
@given(sizes)
def test_areas_are_those_of_differences(size) -> None:
    a, b, c = (*views_of(size), *views_of(size))[:3]
    b = b + 0.1
    u, v = a[:, None] - b, a[:, None] - c
    squared = ((u * u).sum(2) * (v * v).sum(2) - (u * v).sum(2) ** 2).clamp(min=0)
    near(F.triangle_area(a, b, c, squared=True), squared / 2)
    near(F.triangle_area(a, b, c), squared.sqrt() / 2, 1e-6)
    shift = torch.randn(a.shape[1], dtype=torch.float64)
    near(F.triangle_area(a + shift, c + shift, b + shift), F.triangle_area(a, b, c), 1e-6)


@few
@given(sizes)
def test_kl_is_positive_but_for_equals_and_follows_torch(size) -> None:
    mean, logvar, *rest = [*views_of(size), *views_of(size)][:4]
    prior = (rest[0], rest[1] * 0.5)
    found = F.gaussian_kl(mean, logvar, *prior, reduction="none")
    normal = torch.distributions.Normal
    truth = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(prior[0], (prior[1] / 2).exp()))
    near(found, truth.sum(-1))
    assert (found >= 0).all()
    near(F.gaussian_kl(mean, logvar, mean, logvar), torch.tensor(0.0).double())


@few
@given(sizes)
def test_a_product_with_itself_halves_the_variance(size) -> None:
    mean, logvar = views_of(size)[:2]
    product = F.product_of_experts([mean, mean], [logvar, logvar])
    near(product[0], mean)
    near(product[1], logvar - math.log(2))


@few
@given(sizes)
def test_info_nce_is_cross_entropy(size) -> None:
    query, key = views_of(size)[:2]
    logits, target = query @ key.T / 0.3, torch.arange(size[1])
    for smoothing in (0.0, 0.3):
        truth = torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing)
        near(F.info_nce(query, key, 0.3, label_smoothing=smoothing), truth)
        back = torch.nn.functional.cross_entropy(logits.T, target, label_smoothing=smoothing)
        near(F.info_nce(query, key, 0.3, label_smoothing=smoothing, symmetric=True), (truth + back) / 2)


@few
@given(sizes, st.floats(-20, 20), st.floats(-20, 20))
def test_siglip_is_binary_cross_entropy(size, scale, bias) -> None:
    query, key = views_of(size)[:2]
    logits, target = scale * query @ key.T + bias, torch.eye(size[1], dtype=torch.float64)
    truth = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
    near(F.siglip(query, key, scale, bias, reduction="none"), truth)
    near(F.siglip(query, key, scale, bias), truth.mean())
    cut = size[1] // 2
    if cut:
        near(F.siglip(query[cut:], key, scale, bias, offset=cut, reduction="none"), truth[cut:])


@few
@given(sizes, st.integers(1, 12))
def test_top_k_is_a_sorted_choice(size, k) -> None:
    query, key = views_of(size)[:2]
    k = min(k, size[1])
    values, indices = F.top_k(query, key, k)
    scores = query @ key.T
    near(values, scores.gather(1, indices))
    near(values, scores.sort(dim=1, descending=True).values[:, :k])
    assert all(len(set(row)) == k for row in indices.tolist())


@few
@given(sizes)
def test_slices_of_a_batch_make_up_the_whole(size) -> None:
    query, key = views_of(size)[:2]
    cut = size[1] // 2
    parts = [F.info_nce(query[s:e], key, offset=s, reduction="none") for s, e in ((0, cut), (cut, size[1])) if e > s]
    near(torch.cat(parts), F.info_nce(query, key, reduction="none"))
