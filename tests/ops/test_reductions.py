"""`reduction`: what "none", "sum" and "mean" give, of functions and of modules, with and without missing modalities."""

import inspect
from itertools import combinations

import pytest
import torch

from mibfast import functional as F
from mibfast import losses
from mibfast.ops._boundary import kernels

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
N, M = 9, 3
# Modality 2 has one sample with a partner: enough for a distance, too few for a negative.
PRESENCE = torch.tensor([[1, 1, 0]] * 4 + [[1, 1, 1]] + [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]).bool()

FUNCTIONS = {
    "info_nce": lambda z, **options: F.info_nce(z[0], z[1], 0.3, **options),
    "info_nce, symmetric": lambda z, **options: F.info_nce(z[0], z[1], 0.3, symmetric=True, **options),
    "info_nce, slice": lambda z, **options: F.info_nce(z[0][:4], z[1], 0.3, offset=2, **options),
    "siglip": lambda z, **options: F.siglip(z[0], z[1], 3.0, -1.0, **options),
    "one_vs_all_info_nce": lambda z, **options: F.one_vs_all_info_nce(z, 0.3, **options),
    "one_vs_all_info_nce, pairwise": lambda z, **options: F.one_vs_all_info_nce(z, 0.3, keys="pairwise", **options),
    "one_vs_all_minimality": F.one_vs_all_minimality,
}
LOSSES = {
    "info_nce": lambda **options: losses.InfoNCELoss(0.3, symmetric=True, **options),
    "info_nce, positive out": lambda **options: losses.InfoNCELoss(0.3, positive_in_denominator=False, **options),
    "ova-ib": lambda **options: losses.OVAIBLoss(0.3, beta=0.5, **options),
    "ova-ib, pairwise": lambda **options: losses.OVAIBLoss(0.3, keys="pairwise", beta=0.5, **options),
    "ova-ib, alignment": lambda **options: losses.OVAIBLoss(0.3, beta=0.0, **options),
    "learned projector": lambda **options: losses.LearnedProjectorOVAIBLoss(
        M, 6, temperature=0.3, beta=0.5, positive_in_denominator=True, **options
    ),
    "clip": lambda **options: losses.PairwiseCLIPLoss(0.3, learnable_temperature=True, **options),
    "clip-ib": lambda **options: losses.PairwiseCLIPIBLoss(0.3, False, False, beta=0.5, **options),
    "siglip": lambda **options: losses.SigLIPLoss(3.0, -1.0, **options),
}


def _views() -> list[torch.Tensor]:
    return [torch.randn(N, 6, dtype=torch.float64, requires_grad=True) for _ in range(M)]


def _gradients(value, leaves) -> list[torch.Tensor]:
    return torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)


@BACKENDS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_sum_and_mean_are_those_of_the_losses_of_samples(name, backend) -> None:
    views = _views()
    each = FUNCTIONS[name](views, reduction="none", backend=backend)
    assert each.shape == ((M, N) if name.startswith("one_vs_all") else (4,) if "slice" in name else (N,))
    for reduction, truth in (("sum", each.sum()), ("mean", each.mean())):
        value = FUNCTIONS[name](views, reduction=reduction, backend=backend)
        torch.testing.assert_close(value, truth, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(_gradients(value, views), _gradients(truth, views), rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            torch.testing.assert_close(FUNCTIONS[name](views, reduction=reduction, backend=backend), value)


@BACKENDS
@pytest.mark.parametrize("name", ["one_vs_all_info_nce", "one_vs_all_info_nce, pairwise", "one_vs_all_minimality"])
def test_the_mean_with_missing_modalities_is_over_modalities_of_the_mean_over_samples(name, backend) -> None:
    views = _views()
    options = {"presence": PRESENCE, "backend": backend}
    each = FUNCTIONS[name](views, reduction="none", **options)
    fewest = 1 if name == "one_vs_all_minimality" else 2
    taken = (PRESENCE & (PRESENCE.sum(1, keepdim=True) > 1)).T
    taken = taken & (taken.sum(1, keepdim=True) >= fewest)
    assert each.shape == (M, N)
    assert torch.equal(each != 0, taken)
    mean = torch.stack([x[has].mean() for x, has in zip(each, taken, strict=True) if has.any()]).mean()
    for reduction, truth in (("sum", each.sum()), ("mean", mean)):
        value = FUNCTIONS[name](views, reduction=reduction, **options)
        torch.testing.assert_close(value, truth, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(_gradients(value, views), _gradients(truth, views), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("info_nce, symmetric", "pairwise"),
        ("siglip", "siglip"),
        ("one_vs_all_info_nce", "one_vs_all"),
        ("one_vs_all_info_nce, pairwise", "one_vs_all"),
    ],
)
def test_the_gradient_of_a_sum_is_formed_in_the_sweep_that_finds_it(name, folder, monkeypatch) -> None:
    """As that of the mean is: there is no second one."""
    module = kernels(folder, "cpu")
    launcher = "siglip" if folder == "siglip" else "info_nce"
    for part in (launcher, f"{launcher}_backward"):
        assert callable(getattr(module, part))
        monkeypatch.setattr(module, part, None)
    FUNCTIONS[name](_views(), reduction="sum", backend="cpu").backward()


def _called(loss, views, presence):
    """The loss, and its terms where it has any."""
    if isinstance(loss, losses.InfoNCELoss):
        value = loss(views[0], views[1], None if presence is None else presence[:, :2])
        return value, {"alignment": value}
    return loss(views, presence), loss.terms(views, presence)


def _mean(name, loss, terms, presence):
    """The mean that a loss is documented to have, from the values of samples that make up its terms."""
    has = torch.ones(N, M, dtype=torch.bool) if presence is None else presence
    partnered = (has & (has.sum(1, keepdim=True) > 1)).T
    total = 0.0
    for term, each in terms.items():
        if name.startswith("info_nce"):
            mean = each[has[:, :2].all(1)].mean()
        elif name == "learned projector":
            mean = each[:, has.all(1)].mean()
        elif name.startswith("ova-ib"):
            fewest = 2 if term == "alignment" else 1
            mean = torch.stack(
                [x[of].mean() for x, of in zip(each, partnered, strict=True) if of.sum() >= fewest]
            ).mean()
        elif term == "minimality":
            continue
        else:
            i, j = (int(m) for m in term.split("-"))
            mean = each[has[:, i] & has[:, j]].mean()
        total = total + (loss.beta if term == "minimality" else 1.0) * mean
    return total


def _distances(views, presence):
    """Pairwise CLIP's mean squared distances, each pair's over the samples that have both."""
    unit = [torch.nn.functional.normalize(z, dim=1) for z in views]
    has = torch.ones(N, M, dtype=torch.bool) if presence is None else presence
    pairs = ((unit[i] - unit[j], has[:, i] & has[:, j]) for i, j in combinations(range(M), 2))
    return sum((difference[both] ** 2).sum(1).mean() for difference, both in pairs)


@BACKENDS
@pytest.mark.parametrize("presence", [None, PRESENCE], ids=["all there", "some missing"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_module_reduces_as_documented(name, presence, backend) -> None:
    views = _views()
    loss = LOSSES[name](reduction="none", backend=backend).double()
    each, terms = _called(loss, views, presence)
    by_modality = name.startswith(("ova-ib", "learned"))
    assert all(term.shape == each.shape == ((M, N) if by_modality else (N,)) for term in terms.values())
    if presence is not None:
        assert not each[..., ~(presence.sum(1) > 1)].any()
    mean = _mean(name, loss, terms, presence)
    if name == "clip-ib":
        mean = mean + loss.beta * _distances(views, presence)
    # What is learned is float32 while it is exponentiated.
    for reduction, truth in (("sum", each.sum()), ("mean", mean)):
        other = LOSSES[name](reduction=reduction, backend=backend).double()
        other.load_state_dict(loss.state_dict())
        value, parts = _called(other, views, presence)
        assert value.ndim == 0
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            _gradients(value, [*views, *other.parameters()]),
            _gradients(truth, [*views, *loss.parameters()]),
            rtol=1e-9,
            atol=1e-9,
        )
        assert list(parts) == list(terms)
        if reduction == "sum":
            for part in terms:
                torch.testing.assert_close(parts[part], terms[part].sum(), rtol=1e-10, atol=1e-10)


def test_losses_that_are_no_sum_over_samples_take_no_reduction() -> None:
    takes = {name for name in losses.__all__ if "reduction" in inspect.signature(getattr(losses, name)).parameters}
    tested = {type(make()).__name__ for make in LOSSES.values()}
    assert takes == tested == set(losses.__all__) - {"BarlowTwinsLoss", "GRAMLoss", "SymileLoss", "TRIANGLELoss"}


@pytest.mark.parametrize("name", LOSSES)
def test_an_unknown_reduction_is_refused_by_name(name) -> None:
    with pytest.raises(ValueError, match=r"Loss: reduction must be one of 'mean', 'sum', 'none', got str 'batchmean'"):
        LOSSES[name](reduction="batchmean")


def test_a_sum_compiles_to_one_graph() -> None:
    views = [z.detach().float().requires_grad_() for z in _views()]
    loss = losses.OVAIBLoss(0.3, reduction="sum")
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found, expected = compiled(views), loss(views)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, views), torch.autograd.grad(expected, views))
