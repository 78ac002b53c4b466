"""Numbers of released code and of the formulas, on both backends: 1e-9 in float64, 2e-5 in float32."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mibfast import functional as F
from mibfast import losses

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "golden.json").read_text())["goldens"]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
pytestmark = [
    pytest.mark.parametrize("backend", ["reference", "cpu"]),
    pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"]),
]


def embeddings(m: int, dtype: torch.dtype, unit: bool = True) -> list[torch.Tensor]:
    """The goldens' recipe: rows of standard_normal((8, 16)) from default_rng(100 + m), m = 1..M."""
    views = [torch.from_numpy(np.random.default_rng(101 + k).standard_normal((8, 16))) for k in range(m)]
    if unit:
        views = [z / z.norm(dim=1, keepdim=True) for z in views]
    return [z.to(dtype).requires_grad_() for z in views]


def assert_near(found, expected, dtype) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    found = torch.as_tensor(found).detach().double()
    allowed = TOLERANCE[dtype] * expected.abs().max().clamp(min=1.0)
    assert (found - expected).abs().max() <= allowed


def assert_gradients(leaves, golden, dtype) -> None:
    for leaf, expected in zip(leaves, golden["grad"], strict=True):
        gradient = leaf.grad.double()
        # The sum cancels: its tolerance is that of the gradient it is summed from.
        scale = max(1.0, expected["l2"])
        assert abs(gradient.sum().item() - expected["sum"]) <= 16 * TOLERANCE[dtype] * scale
        assert abs(gradient.norm().item() - expected["l2"]) <= TOLERANCE[dtype] * scale
        assert_near(gradient.flatten()[:3] / scale, np.array(expected["first3"]) / scale, dtype)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("m", [2, 3, 4, 5])
@pytest.mark.parametrize(("reading", "keys"), [("A", "per_sample"), ("B", "pairwise")])
def test_one_vs_all_info_nce(reading, keys, m, temperature, dtype, backend) -> None:
    golden = GOLDENS[f"ovaib_LS_reading{reading}_M{m}_tau{temperature}"]
    z = embeddings(m, dtype)
    loss = F.one_vs_all_info_nce(z, temperature, keys=keys, backend=backend)
    loss.backward()
    assert_near(loss, golden["value"], dtype)
    assert_gradients(z, golden, dtype)
    each = F.one_vs_all_info_nce(z, temperature, keys=keys, reduction="none", backend=backend)
    assert_near(each.mean(1), golden["per_modality"], dtype)


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_one_vs_all_info_nce_of_embeddings_that_are_not_normalised(m, dtype, backend) -> None:
    golden = GOLDENS[f"ovaib_LS_readingA_M{m}_tau0.1_unnormalised"]
    loss = F.one_vs_all_info_nce(embeddings(m, dtype, unit=False), 0.1, backend=backend)
    assert_near(loss, golden["value"], dtype)


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_minimality(m, dtype, backend) -> None:
    golden = GOLDENS[f"ovaib_LM_M{m}"]
    z = embeddings(m, dtype)
    loss = F.one_vs_all_minimality(z, backend=backend)
    loss.backward()
    assert_near(loss, golden["value"], dtype)
    assert_gradients(z, golden, dtype)


def test_ova_ib_loss(dtype, backend) -> None:
    loss = losses.OVAIBLoss(backend=backend)(embeddings(3, dtype, unit=False))
    assert_near(loss, GOLDENS["ovaib_total_readingA_M3_beta1"]["value"], dtype)


def test_projection_score(dtype, backend) -> None:
    first, second, candidates = embeddings(3, dtype)
    scores = F.projection_score(candidates, torch.stack([first, second], 1), backend=backend)
    assert_near(scores[0], GOLDENS["ovaib_retrieval_score"]["value"], dtype)


def test_top_k_of_projection_scores(dtype, backend) -> None:
    first, second, candidates = embeddings(3, dtype)
    context = torch.stack([first, second], 1)
    values, indices = F.top_k(context, candidates, 5, score="ridge_projection", backend=backend)
    golden = torch.tensor(GOLDENS["ovaib_retrieval_score"]["value"], dtype=torch.float64).topk(5)
    assert_near(values[0], golden.values, dtype)
    assert torch.equal(indices[0], golden.indices)


def test_siglip_is_that_of_open_clip(dtype, backend) -> None:
    """The formula of its `SigLipLoss`, on the goldens' embeddings, with learned scale and bias."""
    first, second = embeddings(2, dtype)
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (10.0, -10.0))
    leaves = first, second, scale, bias
    found = F.siglip(first, second, scale, bias, backend=backend)
    gradients = torch.autograd.grad(found, leaves)
    labels = 2 * torch.eye(8) - torch.ones(8, 8)
    logits = scale * first.double() @ second.double().T + bias
    truth = -torch.nn.functional.logsigmoid(labels * logits).sum() / 8
    assert_near(found, truth.detach(), dtype)
    for a, b in zip(gradients, torch.autograd.grad(truth, leaves), strict=True):
        assert_near(a, b, dtype)


def test_score_of_a_row_and_its_loss_agree(dtype, backend) -> None:
    golden = GOLDENS["ovaib_LS_readingB_M3_tau0.1"]
    query, *others = embeddings(3, dtype)
    scores = F.projection_score(query, torch.stack(others, 1), backend=backend)
    assert_near(scores[:, 0], golden["score_row0_m1"], dtype)


@pytest.mark.parametrize("temperature", [0.01, 0.07])
@pytest.mark.parametrize(("name", "included"), [("inclpos", True), ("exclpos", False)])
def test_pairwise_clip(name, included, temperature, dtype, backend) -> None:
    golden = GOLDENS[f"pairwise_clip_M3_tau{temperature}_{name}"]
    z = embeddings(3, dtype)
    loss = losses.PairwiseCLIPLoss(temperature, positive_in_denominator=included, normalize=False, backend=backend)(z)
    loss.backward()
    assert_near(loss, golden["value"], dtype)
    assert_gradients(z, golden, dtype)


def test_pairwise_clip_of_released_code(dtype, backend) -> None:
    golden = GOLDENS["pairwise_clip_sum_M3"]
    z = embeddings(3, dtype)
    loss = losses.PairwiseCLIPLoss(float(np.exp(-1.0)), normalize=False, backend=backend)(z)
    loss.backward()
    assert_near(loss, golden["value"], dtype)
    assert_gradients(z, golden, dtype)


def test_pairwise_information_bottleneck(dtype, backend) -> None:
    terms = losses.PairwiseCLIPIBLoss(backend=backend).terms(embeddings(3, dtype, unit=False))
    assert_near(terms["minimality"], GOLDENS["pairwise_ib_reg_M3"]["value"], dtype)


def test_almudevar(dtype, backend) -> None:
    first, second = embeddings(2, dtype, unit=False)
    contrastive = losses.InfoNCELoss(0.07, backend=backend)(first, second)
    # The released loss is minus the estimate ln N - InfoNCE.
    assert_near(contrastive - np.log(8), GOLDENS["almudevar_contrastive"]["value"], dtype)
    terms = losses.PairwiseCLIPIBLoss(backend=backend).terms([first, second])
    assert_near(terms["minimality"] / 2, GOLDENS["almudevar_alignment"]["value"], dtype)


@pytest.mark.parametrize("m", [3, 4])
def test_symile_with_all_negatives(m, dtype, backend) -> None:
    golden = GOLDENS[f"symile_n_squared_M{m}"]
    z = embeddings(m, dtype)
    loss = F.symile_info_nce(z, float(np.exp(1.0)), backend=backend)
    loss.backward()
    assert_near(loss, golden["value"], dtype)
    assert_gradients(z, golden, dtype)


def test_symile_with_shuffled_negatives(dtype, backend) -> None:
    golden = GOLDENS["symile_n_M3"]
    z = embeddings(3, dtype)
    options = {"negatives": "shuffled", "permutations": torch.tensor(golden["perms"]), "backend": backend}
    loss = F.symile_info_nce(z, float(np.exp(1.0)), **options)
    loss.backward()
    assert_near(loss, golden["value"], dtype)
    assert_gradients(z, golden, dtype)


def test_barlow_twins(dtype, backend) -> None:
    golden = GOLDENS["barlow_twins"]
    a = np.random.default_rng(601).standard_normal((16, 6))
    b = 0.5 * a + np.random.default_rng(602).standard_normal((16, 6))
    views = [torch.from_numpy(x).to(dtype).requires_grad_() for x in (a, b)]
    terms = losses.BarlowTwinsLoss(backend=backend).terms(views)
    assert_near(terms["invariance"], golden["value"]["on"], dtype)
    assert_near(terms["redundancy"], golden["value"]["off"], dtype)
    loss = F.barlow_twins(*views, backend=backend)
    loss.backward()
    assert_near(loss, golden["value"]["loss"], dtype)
    assert_gradients(views, golden, dtype)


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_gram(m, dtype, backend) -> None:
    golden = GOLDENS[f"gram_volume_f64_M{m}"]
    anchor, *others = embeddings(m, dtype)
    volumes = F.gram_volume(anchor, others, backend=backend)
    assert_near(volumes[0], golden["value"], dtype)
    assert_near(volumes.diagonal(), golden["diag"], dtype)
    # The released code forms determinants in float32.
    released = GOLDENS[f"gram_loss_M{m}"]
    loss = F.gram_info_nce(anchor, others, backend=backend)
    loss.backward()
    assert_near(loss, released["value"], torch.float32)
    assert_gradients([anchor, *others], released, torch.float32)
    assert_near(losses.GRAMLoss(backend=backend)(embeddings(m, dtype, unit=False)), released["value"], torch.float32)


def test_gram_of_more_samples_than_anchors(dtype, backend) -> None:
    views = [np.random.default_rng(101 + k).standard_normal((rows, 16)) for k, rows in enumerate((3, 5, 5))]
    anchor, *others = (torch.from_numpy(z / np.linalg.norm(z, axis=1, keepdims=True)).to(dtype) for z in views)
    found = F.gram_volume(anchor, others, backend=backend)
    assert_near(found, GOLDENS["gram_volume_rect"]["value"], torch.float32)


def test_gram_has_a_gradient_where_the_released_code_has_nan(dtype, backend) -> None:
    assert GOLDENS["gram_nan_gradient"]["value"]["any_nan"]
    anchor, other = (torch.eye(4, dtype=dtype)[:2].requires_grad_() for _ in range(2))
    F.gram_volume(anchor, [other], backend=backend).sum().backward()
    # Of the two right angles alone: each vector pulled apart from the other.
    assert torch.equal(anchor.grad, torch.eye(4, dtype=dtype)[:2])
    assert torch.equal(other.grad, torch.eye(4, dtype=dtype)[:2])


def test_triangle(dtype, backend) -> None:
    z = embeddings(3, dtype)
    squared, area = GOLDENS["triangle_area_surrogate"], GOLDENS["triangle_area_true"]
    for golden, option in ((squared, True), (area, False)):
        found = F.triangle_area(*z, squared=option, backend=backend)
        assert_near(found[0], golden["value"], dtype)
        assert_near(found.diagonal(), golden["diag"], dtype)
    golden = GOLDENS["triangle_loss"]
    loss = F.triangle_info_nce(*z, backend=backend)
    loss.backward()
    assert_near(loss, golden["value"], dtype)
    assert_gradients(z, golden, dtype)
    assert_near(losses.TRIANGLELoss(backend=backend)(embeddings(3, dtype, unit=False)), golden["value"], dtype)


def experts(dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    means = [torch.from_numpy(np.random.default_rng(301 + i).standard_normal((4, 6))).to(dtype) for i in range(3)]
    logvars = [
        torch.from_numpy(0.3 * np.random.default_rng(311 + i).standard_normal((4, 6))).to(dtype) for i in range(3)
    ]
    return means, logvars


def test_gaussian_kl_to_the_standard_normal(dtype, backend) -> None:
    means, logvars = experts(dtype)
    golden = GOLDENS["kl_std_normal"]
    assert_near(F.gaussian_kl(means[0], logvars[0], reduction="none", backend=backend), golden["value"], dtype)
    assert_near(F.gaussian_kl(means[0], logvars[0], backend=backend), golden["mean"], dtype)


def test_gaussian_kl_to_a_product_of_experts(dtype, backend) -> None:
    means, logvars = experts(dtype)
    prior = F.product_of_experts(means[1:], logvars[1:], backend=backend)
    found = F.gaussian_kl(means[0], logvars[0], *prior, reduction="none", backend=backend)
    assert_near(found, GOLDENS["poe_kl_diag"]["value"], dtype)
    isotropic = [torch.full_like(x, float(np.log(0.5))) for x in logvars]
    prior = F.product_of_experts(means[1:], isotropic[1:], backend=backend)
    found = F.gaussian_kl(means[0], isotropic[0], *prior, reduction="none", backend=backend)
    assert_near(found, GOLDENS["poe_kl_isotropic"]["value"], dtype)


@pytest.mark.parametrize("seed", [101, 102, 103, 104, 105])
def test_the_recipes_random_numbers_are_these(seed, dtype, backend) -> None:
    golden = GOLDENS[f"input_check_{seed}"]["value"]
    x = np.random.default_rng(seed).standard_normal((8, 16))
    assert abs(x.sum() - golden["sum"]) < 1e-12
    assert np.allclose(x.flat[:3], golden["first3"], rtol=0, atol=1e-15)
