"""Loss modules as modules."""

import copy
import pickle

import pytest
import torch

from mibfast import functional as F
from mibfast import losses

MODULES = [
    losses.OVAIBLoss(beta=0.5, keys="pairwise"),
    losses.PairwiseCLIPLoss(0.1, learnable_temperature=True),
    losses.PairwiseCLIPIBLoss(0.1, beta=2.0, positive_in_denominator=False),
    losses.SymileLoss(5.0, learnable_scale=True),
    losses.BarlowTwinsLoss(0.3),
    losses.GRAMLoss(0.1, learnable_temperature=True, anchor=1),
    losses.TRIANGLELoss(0.1, squared=False),
    losses.SigLIPLoss(),
    losses.SigLIPLoss(5.0, -2.0, learnable=False),
]


def _views(loss) -> list[torch.Tensor]:
    return [torch.randn(8, 6) for _ in range(2 if isinstance(loss, losses.BarlowTwinsLoss) else 3)]


@pytest.mark.parametrize("loss", MODULES, ids=repr)
def test_terms_make_up_the_loss(loss) -> None:
    views = dict(zip(("image", "text", "audio"), _views(loss), strict=False))
    terms = loss.terms(views)
    weights = {"minimality": getattr(loss, "beta", 1.0), "redundancy": getattr(loss, "off_diagonal_weight", 1.0)}
    torch.testing.assert_close(loss(views), sum(weights.get(name, 1.0) * term for name, term in terms.items()))
    assert all(term.ndim == 0 for term in terms.values())


@pytest.mark.parametrize("loss", MODULES, ids=repr)
def test_copies_and_states(loss) -> None:
    views = _views(loss)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(views), loss(views))
        other.load_state_dict(loss.state_dict())


@pytest.mark.parametrize("kind", [losses.GRAMLoss, losses.TRIANGLELoss])
def test_any_modality_is_the_anchor_or_all_of_them(kind) -> None:
    views = {name: torch.randn(8, 6) for name in ("image", "text", "audio")}
    every = kind(anchor=None)
    terms = every.terms(views)
    assert list(terms) == ["image", "text", "audio"]
    torch.testing.assert_close(every(views), sum(terms.values()) / 3)
    for m, name in enumerate(views):
        assert torch.equal(kind(anchor=name)(views), terms[name])
        assert torch.equal(kind(anchor=m)(views), terms[name])
        assert list(kind(anchor=m).terms(list(views.values()))) == [str(m)]


def test_gram_of_two_modalities_is_the_sine_of_their_angle() -> None:
    first, second = (torch.nn.functional.normalize(torch.randn(9, 5).double(), dim=1) for _ in range(2))
    sines = torch.sqrt(1 - (first @ second.T) ** 2)
    torch.testing.assert_close(F.gram_volume(first, [second]), sines, rtol=1e-12, atol=1e-12)
    target = torch.arange(9)
    entropy = torch.nn.functional.cross_entropy
    truth = (entropy(-sines / 0.07, target) + entropy(-sines.T / 0.07, target)) / 2
    found = losses.GRAMLoss(label_smoothing=0.0)([3 * first, 0.2 * second])
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


def test_no_minimality_without_beta() -> None:
    assert set(losses.OVAIBLoss(beta=0.0).terms([torch.eye(3)] * 3)) == {"alignment"}


def test_a_learned_temperature_learns_and_stays_positive() -> None:
    loss = losses.PairwiseCLIPLoss(0.07, learnable_temperature=True)
    assert abs(loss.temperature().item() - 0.07) < 1e-7
    views = [torch.randn(16, 6) for _ in range(2)]
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    before = loss(views)
    # Unaligned views: the temperature rises.
    for _ in range(5):
        optimizer.zero_grad()
        value = loss(views)
        value.backward()
        optimizer.step()
    assert value < before
    assert loss.temperature() > 0
    assert loss.to(torch.bfloat16).temperature().dtype == torch.float32
    assert not list(losses.PairwiseCLIPLoss(0.07).parameters())


def test_a_learned_scale_learns_and_stays_positive() -> None:
    loss = losses.SymileLoss(3.0, learnable_scale=True)
    assert abs(loss.scale().item() - 3.0) < 1e-6
    loss([torch.randn(16, 6) for _ in range(3)]).backward()
    # Unaligned views: the scale falls.
    assert loss.log_scale.grad > 0
    assert loss.to(torch.bfloat16).scale().dtype == torch.float32
    assert not list(losses.SymileLoss(3.0).parameters())


def test_siglip_starts_as_published_and_learns_scale_and_bias() -> None:
    loss = losses.SigLIPLoss()
    views = [torch.randn(16, 6) for _ in range(3)]
    parameters = dict(loss.named_parameters())
    assert {name: round(p.item(), 6) for name, p in parameters.items()} == {"log_scale": 2.302585, "bias": -10.0}
    loss(views).backward()
    assert all(p.grad.abs() > 0 for p in parameters.values())
    # Each pair pulls on the same two numbers.
    alone = [torch.autograd.grad(term, loss.bias)[0] for term in loss.terms(views).values()]
    torch.testing.assert_close(sum(alone), loss.bias.grad)
    assert not list(losses.SigLIPLoss(learnable=False).parameters())
    half = losses.SigLIPLoss().bfloat16()
    torch.testing.assert_close(half(views), losses.SigLIPLoss()(views), rtol=0.05, atol=0)


def test_siglip_does_not_depend_on_the_order_of_a_pair() -> None:
    first, second = torch.randn(9, 5), torch.randn(9, 5)
    loss = losses.SigLIPLoss(scale=4.0, bias=-1.0)
    torch.testing.assert_close(loss([first, second]), loss([second, first]))


def test_normalisation_is_in_float32_for_shorter_dtypes() -> None:
    views = [torch.randn(50, 64).bfloat16() for _ in range(3)]
    loss = losses.OVAIBLoss()
    truth = loss([z.double() for z in views])
    assert abs(loss(views).item() - truth.item()) < 1e-4


def test_two_modalities_of_pairwise_clip_are_info_nce() -> None:
    views = [torch.randn(9, 5) for _ in range(2)]
    expected = losses.InfoNCELoss(0.07, symmetric=True)(*views)
    assert torch.equal(losses.PairwiseCLIPLoss(0.07)(views), expected)


def test_repr_tells_the_settings() -> None:
    assert repr(losses.OVAIBLoss()) == (
        "OVAIBLoss(temperature=0.01, ridge=1e-08, beta=1, keys='per_sample', normalize=True, "
        "positive_in_denominator=False)"
    )
    assert "anchor='text', label_smoothing=0.1, normalize=True, squared=True" in repr(
        losses.TRIANGLELoss(anchor="text")
    )
    assert repr(losses.SigLIPLoss()) == "SigLIPLoss(scale=10, bias=-10, learnable=True, normalize=True)"
    assert "learnable=True" in repr(losses.PairwiseCLIPLoss(learnable_temperature=True))
