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

from mibfast.nn import fusion
from mibfast.nn.fusion import METHODS, AnomalyDetection, Classification, Regression

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "golden.json").read_text())["goldens"]
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
    encoders = {name: nn.Linear(3 + k, features) for k, name in enumerate(NAMES[:modalities])}
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


def assert_golden(found: torch.Tensor, name: str, tolerance: float = 1e-6) -> None:
    """The released modules ran in float32."""
    torch.testing.assert_close(found, torch.tensor(GOLDENS[name]["value"]).double(), rtol=tolerance, atol=tolerance)


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
    assert_golden(of_released_inputs(model), f"ogm_fusion_{name}")


def test_the_released_sum_is_a_concatenation() -> None:
    model = released(fusion.Concatenation, hidden_features=None)
    parts = [nn.Parameter(torch.empty(shape).double()) for shape in ((3, 6), (3,), (3, 6), (3,))]
    filled(model, parts)
    (layer,) = model.predictor
    with torch.no_grad():
        layer.weight.copy_(torch.cat([parts[0], parts[2]], dim=1))
        layer.bias.copy_(parts[1] + parts[3])
    assert_golden(of_released_inputs(model), "ogm_fusion_sum")


@pytest.mark.parametrize(("kind", "option"), [(fusion.FiLM, "condition"), (fusion.GatedFusion, "gate")])
def test_any_modality_can_lead(kind, option) -> None:
    model = released(kind, **{option: "y"})
    swapped = released(kind)
    swapped.load_state_dict(model.state_dict())
    x, y = normal(1, 4, 6), normal(2, 4, 6)
    assert torch.equal(model({"x": x, "y": y}), swapped({"x": y, "y": x}))
    with pytest.raises(ValueError, match=f"{kind.__name__}: {option} must be one of 'x', 'y', got str 'z'"):
        released(kind, **{option: "z"})


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
    model = made(method, task, modalities)
    parameters = {name: x.detach() for name, x in model.named_parameters() if x.numel() <= 30}
    samples = views(4, modalities, seed=20)
    names = [*samples, *parameters]

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, tensors, strict=True))
        batch = {name: given.pop(name) for name in samples}
        torch.manual_seed(0)
        return torch.func.functional_call(_Loss(model), {f"model.{k}": x for k, x in given.items()}, (batch, task))

    leaves = [x.clone().requires_grad_() for x in (*samples.values(), *parameters.values())]
    assert torch.autograd.gradcheck(loss, leaves, atol=1e-6)


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


STOCHASTIC: set[type[fusion.FusionModel]] = set()


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
    """With one, weights of zero would predict the centre of everything."""
    biased, unbiased = made(method), made(method, "anomaly")
    assert sum(1 for _ in unbiased.parameters()) < sum(1 for _ in biased.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method) -> None:
    """The sign of a sum of what two modalities hold, neither of which tells it alone."""
    torch.manual_seed(0)
    batch = {"image": torch.randn(256, 4), "text": torch.randn(256, 4)}
    labels = (batch["image"][:, 0] + batch["text"][:, 0] > 0).long()
    encoders = {name: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)) for name in batch}
    taken = inspect.signature(METHODS[method]).parameters
    options = {name: 32 for name in ("hidden_features", "feedforward_features") if name in taken}
    model = METHODS[method](encoders, 8, Classification(2), **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model.terms(batch, labels)["loss"].backward()
        optimizer.step()
    assert (model(batch).argmax(1) == labels).double().mean() > 0.93


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_fit_is_refused(method) -> None:
    kind = METHODS[method]
    name = kind.__name__
    encoders = {"image": nn.Linear(3, 4), "text": nn.Linear(4, 4)}
    with pytest.raises(ValueError, match=f"{name}: encoders must be a mapping of at least 2 modalities"):
        kind({"image": nn.Linear(3, 4)}, 4, Classification(3))
    with pytest.raises(TypeError, match=re.escape(f"{name}: task must be a mibfast.nn.fusion.Task, got 3")):
        kind(encoders, 4, 3)
    with pytest.raises(ValueError, match=f"{name}: features must be at least 1, got 0"):
        kind(encoders, 0, Classification(3))
    for option, size in inspect.signature(kind).parameters.items():
        if option.endswith("_features"):
            with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
                kind(encoders, 4, Classification(3), **{option: 0})
        if option.endswith(("weight", "beta")):
            assert size.default > 0
            with pytest.raises(ValueError, match=f"{name}: {option} must be finite and at least 0, got -1"):
                kind(encoders, 4, Classification(3), **{option: -1})
    model = made(method)
    with pytest.raises(ValueError, match=f"{name}: views must hold image, text; text are missing"):
        model({"image": torch.zeros(2, 3)})
    narrow = kind({"image": nn.Linear(3, 4), "text": nn.Linear(4, 2)}, 4, Classification(3)).double()
    expected = f"{name}: the representation of 'text' must have the size 4 in dimension 1, got a tensor of shape [2, 2]"
    with pytest.raises(ValueError, match=re.escape(expected)):
        narrow(views(2))
    with pytest.raises(TypeError, match=re.escape("Classification: target must be int64 of shape [7]")):
        model.terms(views(7), torch.zeros(7))
    anomaly = made(method, "anomaly")
    anomaly.task.center.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="no centre is set"):
        anomaly.terms(views(7), None)


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_gives_nan_out(method) -> None:
    model = made(method)
    broken = {name: torch.full_like(x, torch.nan) for name, x in views(7).items()}
    assert model.terms(broken, target("classification", 7))["loss"].isnan()
