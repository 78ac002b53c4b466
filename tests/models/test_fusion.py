"""Fusions: the released code's numbers, gradients, every task and number of modalities, errors."""

import copy
import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mibfast import functional as F
from mibfast.nn import fusion
from mibfast.nn.fusion import METHODS, AnomalyDetection, Classification, Regression

# Some released modules ran in float32.
FLOAT32 = 1e-6
GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "golden.json").read_text())["goldens"]
STOCHASTIC = (fusion.EMIB, fusion.LMIB, fusion.CMIB, fusion.DeepIB, fusion.MMIBCui, fusion.MMIBZhang)
NAMES = ("image", "text", "audio")
TASKS = {
    "classification": lambda: Classification(3),
    "regression": lambda: Regression(2),
    "absolute": lambda: Regression(1, "absolute"),
    "anomaly": lambda: AnomalyDetection(5),
}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def made(method: str, task: str = "classification", modalities: int = 2, features: int = 4, **options):
    """A small fusion in float64, of vectors of 3, 4, ... numbers, its centre set where it has one."""
    torch.manual_seed(0)
    kind = METHODS[method]
    small = {"hidden_features": 6, "feedforward_features": 6, "latent_features": 4}
    taken = inspect.signature(kind).parameters
    encoders = {name: nn.Linear(3 + k, features, bias=task != "anomaly") for k, name in enumerate(NAMES[:modalities])}
    options = {**{name: size for name, size in small.items() if name in taken}, **options}
    model = kind(encoders, features, TASKS[task](), **options).double()
    if task == "anomaly":
        model.task.set_center(model(views(7, modalities)))
    return model


def views(n: int, modalities: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: normal(seed + k, n, 3 + k) for k, name in enumerate(NAMES[:modalities])}


def target(task: str, n: int) -> torch.Tensor | None:
    return {
        "classification": torch.arange(n) % 3,
        "regression": normal(50, n, 2),
        "absolute": normal(51, n),
        "anomaly": None,
    }[task]


def filled(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    """The recipe's parameters: standard_normal of default_rng(3000 + k), divided by the root of the last dimension."""
    with torch.no_grad():
        for k, parameter in enumerate(parameters):
            parameter.copy_(normal(3000 + k, *parameter.shape) / math.sqrt(parameter.shape[-1]))


def released(kind: type[fusion.FusionModel], **options) -> fusion.FusionModel:
    encoders = {"x": nn.Identity(), "y": nn.Identity()}
    return kind(encoders, 6, Classification(3), **options).double()


def of_released_inputs(model: nn.Module) -> torch.Tensor:
    return model({"x": normal(881, 4, 6), "y": normal(882, 4, 6)}).detach()


def assert_golden(found: torch.Tensor, name: str, tolerance: float) -> None:
    expected = torch.tensor(GOLDENS[name]["value"], dtype=torch.float64)
    torch.testing.assert_close(found.detach(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("concat", fusion.Concatenation, {"hidden_features": None}),
        ("film", fusion.FiLM, {}),
        ("gated", fusion.GatedFusion, {"hidden_features": 6}),
    ],
)
def test_released_fusions(name, kind, options) -> None:
    model = released(kind, **options)
    filled(model, list(model.parameters()))
    assert_golden(of_released_inputs(model), f"ogm_fusion_{name}", FLOAT32)


def test_the_released_sum_is_a_concatenation() -> None:
    model = released(fusion.Concatenation, hidden_features=None)
    parts = [nn.Parameter(torch.empty(shape).double()) for shape in ((3, 6), (3,), (3, 6), (3,))]
    filled(model, parts)
    (layer,) = model.predictor
    with torch.no_grad():
        layer.weight.copy_(torch.cat([parts[0], parts[2]], dim=1))
        layer.bias.copy_(parts[1] + parts[3])
    assert_golden(of_released_inputs(model), "ogm_fusion_sum", FLOAT32)


@pytest.mark.parametrize(("kind", "option"), [(fusion.FiLM, "condition"), (fusion.GatedFusion, "gate")])
def test_any_modality_can_lead(kind, option) -> None:
    model = released(kind, **{option: "y"})
    swapped = released(kind)
    swapped.load_state_dict(model.state_dict())
    x, y = normal(1, 4, 6), normal(2, 4, 6)
    assert torch.equal(model({"x": x, "y": y}), swapped({"x": y, "y": x}))
    with pytest.raises(ValueError, match=f"{kind.__name__}: {option} must be one of 'x', 'y', got str 'z'"):
        released(kind, **{option: "z"})


class Fixed(nn.Module):
    """A module whose output is given."""

    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs):
        return self.output


def misa_inputs() -> list[torch.Tensor]:
    return [normal(seed, 8, 5).requires_grad_() for seed in (701, 702)]


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("misa_diff", fusion.losses.difference),
        ("misa_cmd5", lambda a, b: fusion.losses.central_moment_discrepancy(a.sigmoid(), b.sigmoid())),
        ("misa_mse", fusion.losses.reconstruction),
        (
            "misa_simse",
            lambda a, b: fusion.losses.reconstruction(a, b) - fusion.losses.reconstruction(a, b, scale_invariant=True),
        ),
    ],
)
def test_released_terms_of_misa(name, loss) -> None:
    inputs = misa_inputs()
    found = loss(*inputs)
    found.backward()
    assert_golden(found, name, 1e-9)
    for x, expected in zip(inputs, GOLDENS[name].get("grad", []), strict=False):
        assert abs(x.grad.sum().item() - expected["sum"]) < 1e-9
        assert abs(x.grad.norm().item() - expected["l2"]) < 1e-9
        assert np.allclose(x.grad.flatten()[:3], expected["first3"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("released", [True, False])
def test_released_sufficiency_of_dmib_and_the_divergence_in_its_place(released) -> None:
    golden = GOLDENS["dmib_vsd"]
    expected = golden["value"] if released else golden["proper_kl_re_given_ob"]
    of_input, of_bottleneck = normal(851, 8, 4), normal(852, 8, 4).requires_grad_()
    model = fusion.DMIB(
        {"x": nn.Identity(), "y": nn.Identity()}, 6, Classification(4), modality_weight=2.0, released=released
    ).double()
    model.observation_predictor, model.predictor = Fixed(of_input), Fixed(of_bottleneck)
    model.modality_predictors = nn.ModuleList([Fixed(of_input), Fixed(of_bottleneck)])
    labels = torch.arange(8) % 4
    terms = model.terms({"x": normal(1, 8, 6), "y": normal(2, 8, 6)}, labels)
    assert abs(terms["sufficiency"].item() - expected) < 1e-9
    assert abs(fusion.losses.self_distillation(of_bottleneck, of_input, released=released).item() - expected) < 1e-9
    both = sum(nn.functional.cross_entropy(x, labels) for x in (of_input, of_bottleneck))
    torch.testing.assert_close(terms["loss"], 3 * both + 500 * expected)


def mai(kind: type[fusion.FusionModel]) -> fusion.FusionModel:
    """All posteriors and predictions of the golden, of three modalities."""
    model = kind({name: nn.Identity() for name in NAMES}, 5, Regression(error="absolute")).double()
    posterior = Fixed((normal(801, 8, 5), 2 * nn.functional.softplus(normal(802, 8, 5) - 5).log()))
    prediction = Fixed(normal(803, 8, 1))
    model.posterior, model.predictor = posterior, prediction
    if kind is not fusion.EMIB:
        for k in range(3):
            model.posteriors[k], model.modality_predictors[k] = posterior, prediction
    return model


@pytest.mark.parametrize(
    ("kind", "total"),
    [
        (fusion.EMIB, lambda golden: golden["L1"] + golden["total"]),
        (fusion.LMIB, lambda golden: 3 * golden["total"] + 2 * golden["L1"]),
        (fusion.CMIB, lambda golden: 4 * golden["total"] + golden["L1"]),
    ],
)
def test_released_totals_of_mai(kind, total) -> None:
    golden = GOLDENS["mai_mib_loss_function"]["value"]
    terms = mai(kind).terms({name: normal(1 + k, 8, 5) for k, name in enumerate(NAMES)}, normal(804, 8, 1))
    assert abs(terms["loss"].item() - total(golden)) < 1e-9
    assert abs(terms["task"].item() - golden["L1"]) < 1e-9
    compressions = {name: term for name, term in terms.items() if name.endswith("compression")}
    for name, term in compressions.items():
        assert abs(term.item() / (3 if name.startswith("modality") else 1) - golden["KL_mean"]) < 1e-9


def test_deep_ib_is_the_released_information_bottleneck_in_nats() -> None:
    golden = GOLDENS["vib_bits"]["value"]
    model = fusion.DeepIB({"x": nn.Identity(), "y": nn.Identity()}, 5, Classification(10)).double()
    logvar = 2 * nn.functional.softplus(normal(802, 8, 5) - 5).log()
    nothing = torch.zeros(8, 5, dtype=torch.float64)
    model.posteriors[0], model.posteriors[1] = Fixed((normal(801, 8, 5), logvar)), Fixed((nothing, nothing))
    model.predictor = Fixed(normal(853, 8, 10))
    labels = torch.from_numpy(np.random.default_rng(854).integers(0, 10, 8))
    terms = model.terms({"x": normal(1, 8, 5), "y": normal(2, 8, 5)}, labels)
    found = {name: term.item() / math.log(2) for name, term in terms.items()}
    assert abs(found["task"] - golden["class_bits"]) < 1e-9
    assert abs(found["x_compression"] - golden["info_bits"]) < 1e-9
    assert found["y_compression"] == 0
    assert abs(found["loss"] - golden["total"]) < 1e-9


def test_views_of_deep_ib_have_weights_of_their_own() -> None:
    model = made("deep-ib", beta=[0.5, 2.0])
    terms = model.terms(views(7), target("classification", 7))
    expected = terms["task"] + 0.5 * terms["image_compression"] + 2 * terms["text_compression"]
    torch.testing.assert_close(terms["loss"], expected)
    with pytest.raises(ValueError, match="DeepIB: beta must be one number or 2, one for each modality, got"):
        made("deep-ib", beta=[0.5])


def test_the_discriminator_of_cui() -> None:
    model = made("mmib-cui")
    torch.manual_seed(1)
    found = model.terms(views(7), target("classification", 7))["alignment"]
    torch.manual_seed(1)
    posteriors = [posterior(x) for posterior, x in zip(model.posteriors, model.encode(views(7)), strict=True)]
    a, b = (mean + (logvar / 2).exp() * torch.randn_like(mean) for mean, logvar in posteriors)
    (score,) = model.discriminators
    scores = torch.cat([score(a, b), score(a, torch.cat([b[-1:], b[:-1]]))], 1).sigmoid()
    labels = torch.tensor([1.0, 0.0]).double().expand(7, 2)
    torch.testing.assert_close(found, 2 * nn.functional.binary_cross_entropy(scores, labels))


@pytest.mark.parametrize("method", ["l-mib", "mmib-cui", "mmib-zhang", "deep-ib"])
def test_compression_of_every_modality(method) -> None:
    """Sums over modalities, of means over samples and, as their papers have it, over features or not."""
    model = made(method, modalities=3)
    found = model.terms(views(7, 3), target("classification", 7))
    posteriors = [posterior(x) for posterior, x in zip(model.posteriors, model.encode(views(7, 3)), strict=True)]
    each = torch.stack([F.gaussian_kl(mean, logvar, reduction="batchmean") for mean, logvar in posteriors]).detach()
    if method == "deep-ib":
        torch.testing.assert_close(torch.stack([found[f"{name}_compression"] for name in model.modalities]), each)
        return
    if method != "mmib-zhang":
        each = each / posteriors[0][0].shape[1]
    torch.testing.assert_close(found["modality_compression" if method == "l-mib" else "compression"], each.sum())


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("misa", {"difference": 0.3, "similarity": 1.0, "reconstruction": 1.0}),
        ("dmib", {"observation_task": 1.0, "sufficiency": 500.0, "modality_task": 1000.0}),
        ("e-mib", {"task": 2.0, "compression": 1e-3}),
        ("l-mib", {"task": 2.0, "modality_task": 1.0, "modality_compression": 1e-3}),
        ("c-mib", {"task": 2.0, "compression": 1e-3, "modality_task": 1.0, "modality_compression": 1e-3}),
        ("deep-ib", dict.fromkeys(("image_compression", "text_compression", "audio_compression"), 1e-3)),
        ("mmib-cui", {"compression": 1.0, "alignment": 1.0}),
        ("mmib-zhang", {"compression": 1e-3, "alignment": 0.1}),
    ],
)
def test_terms_make_up_the_loss(method, weights) -> None:
    terms = made(method, modalities=3).terms(views(7, 3), target("classification", 7))
    weights = {"task": 1.0, **weights}
    assert next(iter(terms)) == "loss"
    assert set(terms) == {"loss", *weights}
    torch.testing.assert_close(terms["loss"], sum(weight * terms[name] for name, weight in weights.items()))


def test_gradient_of_the_sufficiency() -> None:
    of_bottleneck, of_input = normal(1, 4, 3).requires_grad_(), normal(2, 4, 3).requires_grad_()
    for released in (True, False):
        assert torch.autograd.gradcheck(
            lambda x, released=released: fusion.losses.self_distillation(x, of_input, released=released), of_bottleneck
        )
    fusion.losses.self_distillation(of_bottleneck, of_input).backward()
    assert of_input.grad is None


def test_sufficiency_does_not_move_what_it_compares_with() -> None:
    gradients = []
    for weight in (0.0, 500.0):
        model = made("dmib", sufficiency_weight=weight)
        model.terms(views(7), target("classification", 7))["loss"].backward()
        gradients.append((model.observation_predictor[0].weight.grad, model.predictor[0].weight.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert not torch.equal(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize("loss", [fusion.losses.difference, fusion.losses.central_moment_discrepancy])
@pytest.mark.parametrize("n", [1, 8])
def test_terms_of_equal_and_of_single_samples(loss, n) -> None:
    x = normal(1, n, 5).sigmoid().requires_grad_()
    found = loss(x, x.detach())
    found.backward()
    assert x.grad.isfinite().all()
    if loss is fusion.losses.central_moment_discrepancy:
        assert found == 0
        assert not x.grad.any()
    elif n == 1:
        assert found == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "loss",
    [
        fusion.losses.difference,
        fusion.losses.central_moment_discrepancy,
        fusion.losses.reconstruction,
        fusion.losses.self_distillation,
    ],
)
def test_terms_of_shorter_dtypes(loss, dtype) -> None:
    """They differ from float64 by the rounding of the inputs alone."""
    a, b = (normal(seed, 8, 5).sigmoid().to(dtype) for seed in (1, 2))
    found = loss(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), loss(a.double(), b.double()), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=f"{loss.__name__}: .* must have one shape"):
        loss(a, b[:4])
    with pytest.raises(TypeError, match=f"{loss.__name__}: .* must have one dtype"):
        loss(a, b.double())


def test_deviations_of_a_stochastic_encoder() -> None:
    encoder = fusion.StochasticEncoder("test", 1, 1)
    with torch.no_grad():
        encoder.deviation.weight.fill_(1)
        encoder.deviation.bias.zero_()
    h = torch.tensor([[-1e4], [-15.1], [-14.9], [0.0], [5.0], [100.0]], requires_grad=True)
    _, logvar = encoder(h)
    exact = 2 * torch.where(h.double() < -30, h.double() - 5, nn.functional.softplus(h.double() - 5).log())
    torch.testing.assert_close(logvar.double(), exact, rtol=1e-6, atol=1e-6)
    logvar.sum().backward()
    assert torch.equal(h.grad[:2], torch.full((2, 1), 2.0))
    assert h.grad.isfinite().all()


def test_methods_are_all_that_there_are() -> None:
    public = [getattr(fusion, name) for name in fusion.__all__]
    kinds = {x for x in public if isinstance(x, type) and issubclass(x, fusion.FusionModel)}
    assert set(METHODS.values()) == kinds - {fusion.FusionModel}
    assert len(METHODS) == len(set(METHODS.values()))


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="MISA: features must be a multiple of heads = 2, got 3"):
        made("misa", features=3)
    for task in ("regression", "anomaly"):
        with pytest.raises(ValueError, match=re.escape("DMIB: released needs the task Classification, got")):
            made("dmib", task, released=True)
    with pytest.raises(TypeError, match="DMIB: released must be True or False, got str 'False'"):
        made("dmib", released="False")
    with pytest.raises(TypeError, match="scale_invariant must be True or False"):
        fusion.losses.reconstruction(torch.zeros(2, 3), torch.zeros(2, 3), scale_invariant="False")
    with pytest.raises(TypeError, match="released must be True or False"):
        fusion.losses.self_distillation(torch.zeros(2, 3), torch.zeros(2, 3), released="False")
    with pytest.raises(ValueError, match="temperature must be positive"):
        made("mmib-zhang", temperature=0.0)
    with pytest.raises(ValueError, match="moments must be at least 1, got 0"):
        made("misa", moments=0)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_task_and_number_of_modalities(method, task, modalities) -> None:
    model = made(method, task, modalities)
    for n in (1, 7):
        model.zero_grad()
        terms = model.terms(views(n, modalities), target(task, n), model.stages[-1])
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        terms["loss"].backward()
        without = [name for name, x in model.named_parameters() if x.grad is None or not x.grad.isfinite().all()]
        assert not without
    prediction = model(views(7, modalities))
    assert prediction.shape == (7, model.task.outputs)
    assert prediction.dtype == torch.float64


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_is_trained(method) -> None:
    model = made(method, "classification", 3)
    model.terms(views(7, 3), target("classification", 7))["loss"].backward()
    assert not [name for name, x in model.named_parameters() if not x.grad.any()]


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("task", ["classification", "absolute", "anomaly"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_the_loss(method, task, modalities) -> None:
    # What stands behind a stopped gradient is not the derivative of the loss; it has tests of its own.
    stopped = {"misa": "difference_weight", "dmib": "sufficiency_weight"}
    model = made(method, task, modalities, **({stopped[method]: 0.0} if method in stopped else {}))
    parameters = {name: x.detach() for name, x in model.named_parameters()}
    samples = views(4, modalities, seed=20)
    names = [*samples, *parameters]

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, tensors, strict=True))
        batch = {name: given.pop(name) for name in samples}
        torch.manual_seed(0)
        return torch.func.functional_call(_Loss(model), {f"model.{k}": x for k, x in given.items()}, (batch, task))

    leaves = [x.clone().requires_grad_() for x in (*samples.values(), *parameters.values())]
    assert torch.autograd.gradcheck(loss, leaves, atol=1e-6, fast_mode=True)


class _Loss(nn.Module):
    """A fusion's loss as a forward, so that it can be called with other parameters."""

    def __init__(self, model: fusion.FusionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor], task: str) -> torch.Tensor:
        return self.model.terms(batch, target(task, 4))["loss"]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_drawn_to_predict(method) -> None:
    model = made(method, modalities=3)
    state = torch.get_rng_state()
    first = model(views(7, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(views(7, 3)), first)
    # A sample's prediction is its own: no layer looks at the batch.
    torch.testing.assert_close(model({name: x[2:3] for name, x in views(7, 3).items()}), first[2:3])


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_repeats_by_seed(method) -> None:
    model = made(method)

    def loss(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.terms(views(7), target("classification", 7))["loss"]

    assert torch.equal(loss(1), loss(1))
    draws = not torch.equal(loss(1), loss(2))
    assert draws == (METHODS[method] in STOCHASTIC)


@pytest.mark.parametrize("method", METHODS)
def test_copies_and_states(method) -> None:
    model = made(method, "anomaly")
    other = made(method, "anomaly")
    with torch.no_grad():
        for x in other.parameters():
            x.add_(1)
    other.load_state_dict(copy.deepcopy(model).state_dict())
    assert torch.equal(other(views(7)), model(views(7)))
    assert torch.equal(other.task.center, model.task.center)


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_predict_anomalies_have_no_bias(method) -> None:
    """With one, wherever it is, encoders of zero would leave the same prediction for everything."""
    model = made(method, "anomaly")
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.fill_(0 if name.startswith("encoders") else 1)
    if method != "misa":  # its sigmoids are one half of zero
        assert not model(views(7)).any()
    layers = [name for name, _ in model.named_children() if name not in ("discriminators", "reconstructions")]
    assert [risk for name in layers for risk in fusion.collapse_risks(getattr(model, name))] == []
    encoders = {"image": nn.Linear(3, 4), "text": nn.Linear(4, 4, bias=False)}
    with pytest.warns(
        UserWarning, match=f"{METHODS[method].__name__}: for anomaly detection .* have the bias of image$"
    ):
        METHODS[method](encoders, 4, AnomalyDetection(2))


@pytest.mark.parametrize("method", METHODS)
def test_reported_terms_are_detached_and_stages_known(method) -> None:
    model = made(method)
    terms = model.terms(views(7), target("classification", 7))
    assert [name for name, x in terms.items() if x.requires_grad] == ["loss"]
    with pytest.raises(ValueError, match="stage must be one of 'main', got str 'warm-up'"):
        model.terms(views(7), target("classification", 7), "warm-up")


def test_a_centre_is_known_without_asking_for_it() -> None:
    task = AnomalyDetection(2)
    with pytest.raises(RuntimeError, match="no centre is set"):
        task.loss(torch.zeros(3, 2))
    task.load_state_dict(AnomalyDetection(2).state_dict())
    with pytest.raises(RuntimeError, match="no centre is set"):
        task.loss(torch.zeros(3, 2))
    task.set_center(torch.ones(3, 2))
    other = nn.Sequential(AnomalyDetection(2))
    other.load_state_dict(nn.Sequential(task).state_dict())
    # No number of a meta tensor can be read.
    assert other[0].to("meta").loss(torch.zeros(3, 2, device="meta")).shape == (3,)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method) -> None:
    """The sign of a sum of what two modalities hold, neither of which tells it alone."""
    torch.manual_seed(0)
    samples = {"image": torch.randn(256, 4), "text": torch.randn(256, 4)}
    labels = (samples["image"][:, 0] + samples["text"][:, 0] > 0).long()
    encoders = {name: nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 64)) for name in samples}
    taken = inspect.signature(METHODS[method]).parameters
    options = {name: 32 for name in ("hidden_features", "feedforward_features") if name in taken}
    model = METHODS[method](encoders, 64, Classification(2), **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    for _ in range(20):
        for rows in torch.randperm(256).split(32):
            optimizer.zero_grad()
            model.terms({name: x[rows] for name, x in samples.items()}, labels[rows])["loss"].backward()
            optimizer.step()
    assert (model(samples).argmax(1) == labels).double().mean() > 0.93


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_fit_is_refused(method) -> None:
    kind = METHODS[method]
    name = kind.__name__
    encoders = {"image": nn.Linear(3, 4), "text": nn.Linear(4, 4)}
    with pytest.raises(ValueError, match=f"{name}: encoders must be a mapping of at least 2 modalities"):
        kind({"image": nn.Linear(3, 4)}, 4, Classification(3))
    with pytest.raises(TypeError, match=re.escape(f"{name}: task must be a mibfast.nn.fusion.Task, got int 3")):
        kind(encoders, 4, 3)
    with pytest.raises(ValueError, match=f"{name}: features must be at least 1, got 0"):
        kind(encoders, 0, Classification(3))
    for option in inspect.signature(kind).parameters:
        if option.endswith("_features"):
            with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
                kind(encoders, 4, Classification(3), **{option: 0})
        if option.endswith(("weight", "beta")):
            with pytest.raises(ValueError, match=f"{name}: {option} must be finite and at least 0, got -1"):
                kind(encoders, 4, Classification(3), **{option: -1})
    model = made(method)
    with pytest.raises(TypeError, match=f"{name}: views must be a mapping .*, got a tensor of shape"):
        model(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=f"{name}: views must hold image, text; text are missing"):
        model({"image": torch.zeros(2, 3)})
    narrow = kind({"image": nn.Linear(3, 4), "text": nn.Linear(4, 2)}, 4, Classification(3)).double()
    expected = (
        f"{name}: the output of encoders['text'] must have the size 4 in dimension 1, got a tensor of shape [2, 2]"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        narrow(views(2))
    with pytest.raises(TypeError, match=re.escape("Classification: target must be int64 of shape [7]")):
        model.terms(views(7), torch.zeros(7))
    # PyTorch leaves such a sample out, with a loss of 0.
    with pytest.raises(IndexError, match="-100"):
        model.terms(views(7), torch.full((7,), -100))


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_gives_nan_out(method) -> None:
    model = made(method)
    broken = {name: torch.full_like(x, torch.nan) for name, x in views(7).items()}
    assert model.terms(broken, target("classification", 7))["loss"].isnan()
