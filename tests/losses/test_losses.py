"""Loss modules as modules."""

import copy
import inspect
import pickle

import pytest
import torch

import mibfast
from mibfast import functional as F
from mibfast import losses

MODULES = [
    losses.OVAIBLoss(beta=0.5, keys="pairwise"),
    losses.LearnedProjectorOVAIBLoss(3, 6, temperature=0.1, beta=0.5),
    losses.LearnedProjectorOVAIBLoss(3, 6, 9, 3, beta=0.0, normalize=False, positive_in_denominator=True),
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


def _learned_projector_formula(loss, views):
    """The loss in plain PyTorch, with all cosines in memory."""
    if loss.normalize:
        views = [torch.nn.functional.normalize(z, dim=1) for z in views]
    total, count, diagonal = 0.0, len(views), torch.eye(len(views[0]), dtype=torch.bool)
    for m, z in enumerate(views):
        key = loss.projectors[m](torch.cat([x for k, x in enumerate(views) if k != m], 1))
        scores = torch.nn.functional.cosine_similarity(z[:, None], key[None], dim=2) / loss.temperature
        negatives = scores if loss.positive_in_denominator else scores.masked_fill(diagonal, -torch.inf)
        total += (negatives.logsumexp(1) - scores.diagonal()).mean() / count
        rest = sum(x for k, x in enumerate(views) if k != m) / (count - 1)
        total += loss.beta * ((z - rest) ** 2).sum(1).mean() / count
    return total


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("modalities", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "options",
    [{}, {"positive_in_denominator": True, "beta": 0.0}, {"normalize": False, "hidden_features": 3, "depth": 3}],
    ids=str,
)
def test_learned_projectors_follow_the_formula(modalities, options, backend) -> None:
    loss = losses.LearnedProjectorOVAIBLoss(modalities, 4, backend=backend, **options).double()
    views = [torch.randn(7, 4).double().requires_grad_() for _ in range(modalities)]
    leaves = [*views, *loss.parameters()]
    value, expected = loss(views), _learned_projector_formula(loss, views)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    found, truth = torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("modalities", [2, 3, 5])
def test_gradients_of_learned_projectors(modalities) -> None:
    loss = losses.LearnedProjectorOVAIBLoss(modalities, 3, temperature=0.3).double()
    views = [torch.randn(5, 3).double().requires_grad_() for _ in range(modalities)]
    names, parameters = zip(*loss.named_parameters(), strict=True)

    def value(*leaves):
        given = dict(zip(names, leaves[modalities:], strict=True))
        return torch.func.functional_call(loss, given, (list(leaves[:modalities]),))

    assert torch.autograd.gradcheck(value, [*views, *parameters])


def test_learned_projectors_belong_to_the_module() -> None:
    loss = losses.LearnedProjectorOVAIBLoss(3, 4, hidden_features=5)
    other = losses.LearnedProjectorOVAIBLoss(3, 4, hidden_features=5)
    views = [torch.randn(6, 4) for _ in range(3)]
    assert not torch.equal(loss(views), other(views))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(loss(views), other(views))
    assert [tuple(x.shape) for x in loss.projectors[0].parameters()] == [(5, 8), (5,), (4, 5), (4,)]
    optimizer, before = torch.optim.Adam(loss.parameters(), lr=0.01), loss(views).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss(views).backward()
        optimizer.step()
    assert loss(views) < before


def test_learned_projectors_take_any_dtype() -> None:
    views = [torch.randn(30, 8) for _ in range(3)]
    loss = losses.LearnedProjectorOVAIBLoss(3, 8, temperature=0.1)
    expected = loss(views)
    assert loss([z.double() for z in views]).dtype == torch.float64
    torch.testing.assert_close(loss([z.double() for z in views]).float(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss([z.bfloat16() for z in views]), expected, rtol=0.05, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(views), expected, rtol=0.05, atol=0)
    torch.testing.assert_close(loss.bfloat16()(views), expected, rtol=0.05, atol=0)


def test_zeros_and_nan_before_learned_projectors() -> None:
    loss = losses.LearnedProjectorOVAIBLoss(3, 4)
    zeros = [torch.zeros(6, 4, requires_grad=True) for _ in range(3)]
    value = loss(zeros)
    value.backward()
    assert value.isfinite()
    assert all(z.grad.isfinite().all() for z in zeros)
    views = [torch.randn(6, 4) for _ in range(3)]
    views[1][2, 0] = torch.nan
    assert loss(views).isnan()


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


@pytest.mark.parametrize(
    "loss",
    [
        losses.PairwiseCLIPLoss(learnable_temperature=True),
        losses.SymileLoss(learnable_scale=True),
        losses.SigLIPLoss(),
    ],
    ids=repr,
)
def test_what_is_learned_in_float64_is_not_rounded(loss) -> None:
    views = [torch.randn(6, 4).double() for _ in range(3)]
    loss = loss.double()
    for parameter in loss.parameters():
        before, step = loss(views).item(), 1e-10
        with torch.no_grad():
            parameter += step
        # A step that float32 does not see.
        slope = torch.autograd.grad(loss(views), parameter)[0].item()
        assert loss(views).item() - before == pytest.approx(step * slope, rel=1e-3)


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


def test_only_losses_are_listed() -> None:
    assert dir(losses) == losses.__all__
    assert {"functional", "information", "losses", "nn"} <= set(mibfast.__all__)
    assert all(hasattr(mibfast, name) for name in mibfast.__all__)


def test_repr_tells_the_settings() -> None:
    assert repr(losses.OVAIBLoss()) == (
        "OVAIBLoss(temperature=0.01, ridge=1e-08, beta=1, keys='per_sample', normalize=True, "
        "positive_in_denominator=False, reduction='mean')"
    )
    assert "anchor='text', label_smoothing=0.1, squared=True, normalize=True" in repr(
        losses.TRIANGLELoss(anchor="text")
    )
    assert repr(losses.SigLIPLoss()) == (
        "SigLIPLoss(scale=10, bias=-10, learnable=True, normalize=True, reduction='mean')"
    )
    assert "learnable=True" in repr(losses.PairwiseCLIPLoss(learnable_temperature=True))


@pytest.mark.parametrize("name", [name for name in losses.__all__ if name.endswith("Loss")])
def test_what_is_true_or_false_is_no_text(name) -> None:
    kind = getattr(losses, name)
    sizes = {"modalities": 3, "features": 8} if name.startswith("LearnedProjector") else {}
    flags = [each.name for each in inspect.signature(kind).parameters.values() if isinstance(each.default, bool)]
    for flag in flags:
        with pytest.raises(TypeError, match=rf"{name}: {flag} must be True or False, got str 'False'"):
            kind(**sizes, **{flag: "False"})
