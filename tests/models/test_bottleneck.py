"""Bottlenecks: the published losses, graphs that make no sense, and networks that do not fit them."""

import json
import math
import re
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibfast import functional as F
from mibfast import information
from mibfast._check import InputError
from mibfast.bottleneck import Bottleneck, BottleneckLoss, GaussianEncoder, methods

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "golden.json").read_text())["goldens"]
LINEAR = torch.nn.Linear


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


class Fixed(torch.nn.Module):
    """A network whose output is given."""

    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs):
        return self.output


def fixed_networks(b: Bottleneck) -> tuple[dict[str, torch.nn.Module], dict[str, torch.nn.Module]]:
    """The golden's posteriors, in the order of its K, and its reconstructions."""
    order = [term.target for term in b.terms if term.kind == "compression"]
    encoders = {name: Fixed((normal(301 + i, 4, 6), 0.3 * normal(311 + i, 4, 6))) for i, name in enumerate(order)}
    reconstructions = {"X": normal(943, 4, 7).sigmoid(), "Y": normal(944, 4, 9).sigmoid()}
    return encoders, {name: Fixed(reconstructions[name]) for name in b.likelihoods}


@pytest.mark.parametrize(
    ("name", "make"),
    {
        "beta_vae": lambda: methods.beta_vae(8),
        "dvib": lambda: methods.dvib(8),
        "beta_dvcca": lambda: methods.beta_dvcca(8),
        "dvcca": methods.dvcca,
        "beta_dvcca_private": lambda: methods.beta_dvcca_private(8),
        "dvsib": lambda: methods.dvsib(8),
        "dvsib_norecon": lambda: methods.dvsib_no_reconstruction(8),
        "dvsib_private": lambda: methods.dvsib_private(8),
    }.items(),
)
def test_losses_of_the_paper(name, make) -> None:
    b = make()
    loss = b.build(*fixed_networks(b), estimator=lambda critic, x, y: torch.tensor(0.7, dtype=torch.float64))
    observed = {"X": normal(941, 4, 7).sigmoid(), "Y": normal(942, 4, 9).sigmoid()}
    inputs = {name: observed[name] for name in b.observed}
    golden = GOLDENS["dvmib_losses"]["value"]
    assert abs(loss(**inputs).item() - golden[name]) < 1e-9
    terms = loss.terms(**inputs)
    compressed = [terms[term.name].item() for term in b.terms if term.kind == "compression"]
    assert np.allclose(compressed, golden["K"][: len(compressed)], rtol=0, atol=1e-9)
    for target, key in (("X", "rx"), ("Y", "ry")):
        for term in b.terms:
            if term.kind == "prediction" and term.target == target:
                assert abs(terms[term.name].item() - golden[key]) < 1e-9


def test_the_released_notebook() -> None:
    """DVSIB end to end: its encoders, decoders and critic, its shuffled pairs, and its loss."""
    golden = GOLDENS["dvsib_full_notebook"]

    def decoder(latent: int, out: int) -> torch.nn.Sequential:
        layers = [LINEAR(latent, 1024), torch.nn.ReLU(), LINEAR(1024, 1024), torch.nn.ReLU(), LINEAR(1024, out)]
        return torch.nn.Sequential(*layers, torch.nn.Sigmoid())

    encoders = {"ZX": GaussianEncoder(12, 4), "ZY": GaussianEncoder(10, 3)}
    decoders = {"X": decoder(4, 12), "Y": decoder(3, 10)}
    critic = information.ConcatenatedCritic(4, 3, 1024, 2)
    loss = methods.dvsib(8.0).build(encoders, decoders, critic, "mine", negatives="shuffled")
    released = [p for part in (*encoders.values(), *decoders.values(), critic) for p in part.parameters()]
    assert len(released) == len(golden["param_names"])
    with torch.no_grad():
        for k, parameter in enumerate(released):
            parameter.copy_(normal(2000 + k, *parameter.shape) / math.sqrt(parameter.shape[-1]))
    inputs = {"X": normal(871, 8, 12).sigmoid().float(), "Y": normal(872, 8, 10).sigmoid().float()}
    drawn = {
        "noise": {"ZX": normal(873, 8, 4).float(), "ZY": normal(874, 8, 3).float()},
        "permutations": {
            "ZX -- ZY": torch.stack([torch.from_numpy(np.random.default_rng(s).permutation(8)) for s in (875, 876)])
        },
    }
    terms = loss.terms(**inputs, **drawn)
    expected = golden["value"]
    assert abs(terms["ZX -- ZY"].item() - expected["I_zxzy"]) < 2e-6
    assert abs((terms["X -> ZX"] + terms["Y -> ZY"]).item() - expected["lossE"]) < 2e-6
    decoded = terms["ZX -> X"] + terms["ZY -> Y"] + terms["ZX -- ZY"]
    assert abs(decoded.item() - expected["lossD"]) < 2e-6
    assert abs(loss(**inputs, **drawn).item() - expected["loss"]) < 2e-5


def test_reconstruction_is_the_released_one() -> None:
    target, prediction = normal(861, 8, 7).sigmoid(), normal(862, 8, 7).sigmoid()
    loss = methods.beta_vae().build({"Z": Fixed((target, target))}, {"X": Fixed(prediction)})
    found = loss.terms(X=target)["Z -> X"]
    assert abs(found.item() - GOLDENS["dvmib_recon"]["value"]) < 1e-12


def networks(b: Bottleneck, features: int = 5, latent: int = 3) -> dict[str, object]:
    """Small networks for any graphs of vectors."""
    width = dict.fromkeys(b.observed, features) | dict.fromkeys(b.latents, latent)

    def encoder(name: str) -> torch.nn.Module:
        inputs = sum(width[parent] for parent in b.parents[name])
        return LINEAR(inputs, latent) if name in b.deterministic else GaussianEncoder(inputs, latent, 4, 1)

    terms = {term.name: term for term in b.terms}
    return {
        "encoders": {name: encoder(name) for name in b.latents},
        "decoders": {
            t.target: LINEAR(latent * len(t.sources), features) for t in terms.values() if t.kind == "prediction"
        },
        "critics": {
            name: information.SeparableCritic(latent * len(t.sources), latent, 4, 6)
            for name, t in terms.items()
            if t.kind == "information"
        },
    }


EVERY_METHOD = [
    methods.beta_vae,
    methods.dvib,
    methods.dvcca,
    methods.beta_dvcca,
    methods.beta_joint_dvcca,
    methods.beta_dvcca_private,
    methods.beta_joint_dvcca_private,
    methods.dvsib,
    methods.dvsib_private,
    methods.dvsib_no_reconstruction,
    methods.mvib,
    methods.clip,
    methods.barlow_twins,
]


@pytest.mark.parametrize("make", EVERY_METHOD, ids=lambda make: make.__name__)
def test_every_method_trains_every_network(make) -> None:
    b = make()
    loss = b.build(**networks(b), estimator="infonce")
    inputs = {name: torch.randn(9, 5) for name in b.observed}
    torch.manual_seed(1)
    value = loss(**inputs)
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    torch.manual_seed(1)
    terms = loss.terms(**inputs)
    assert list(terms) == [term.name for term in b.terms]
    expected = sum(term.weight * terms[term.name] for term in b.terms)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (methods.beta_joint_dvcca, {"X, Y -> Z", "Z -> X", "Z -> Y"}),
        (methods.beta_joint_dvcca_private, {"X, Y -> Z", "X -> WX", "Y -> WY", "Z, WX -> X", "Z, WY -> Y"}),
        (methods.dvsib_private, {"X -> ZX", "Y -> ZY", "X -> WX", "Y -> WY", "ZX, WX -> X", "ZY, WY -> Y", "ZX -- ZY"}),
        (methods.clip, {"ZX -- ZY"}),
    ],
)
def test_terms_of_methods(make, expected) -> None:
    assert {term.name for term in make().terms} == expected


def test_the_gradient_of_the_whole_loss() -> None:
    """Against differences, through sampling, likelihoods, bounds of log-variances and a critic."""
    b = Bottleneck(
        "X -> Z, Y -> Z, X -> W, W => V",
        "Z -> X, W -> X, Z -> Y, Z -> C, V -- Z",
        likelihoods={"Y": "bernoulli", "C": "categorical"},
    )
    loss = b.build(**networks(b), estimator="clip").double()
    fixed = {"Y": torch.rand(6, 5).double(), "C": torch.tensor([0, 1, 4, 2, 2, 0])}
    noise = {"Z": torch.randn(6, 3).double(), "W": torch.randn(6, 3).double()}
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(X=x, **fixed, noise=noise), x)


def test_likelihoods() -> None:
    prediction, classes = torch.randn(6, 5).double(), torch.tensor([0, 1, 4, 2, 2, 0])
    x = torch.rand(6, 5).double()
    probabilities = prediction.sigmoid()
    expected = {
        "gaussian": -0.5 * ((x - prediction) ** 2).sum(1).mean(),
        "bernoulli": (x * probabilities.log() + (1 - x) * (1 - probabilities).log()).sum(1).mean(),
        "categorical": prediction.softmax(1).log()[torch.arange(6), classes].mean(),
        "laplace": -(x - prediction).abs().sum(1).mean(),
    }
    encoders = {"Z": Fixed((torch.zeros(6, 2), torch.zeros(6, 2)))}
    for name, value in expected.items():
        likelihood = (lambda p, t: -(t - p).abs().sum(1)) if name == "laplace" else name
        loss = methods.dvib(likelihoods={"Y": likelihood}).build(encoders, {"Y": Fixed(prediction)})
        found = loss.terms(X=x, Y=classes if name == "categorical" else x)["Z -> Y"]
        torch.testing.assert_close(found, value)


def test_images_and_joint_encoders_take_any_shape() -> None:
    b = methods.beta_joint_dvcca()
    encoders = {"Z": GaussianEncoder(3 * 4 * 4 + 5, 2, 8)}
    decoders = {"X": torch.nn.Sequential(LINEAR(2, 48), torch.nn.Unflatten(1, (3, 4, 4))), "Y": LINEAR(2, 5)}
    images = torch.randn(7, 3, 4, 4)
    terms = b.build(encoders, decoders).terms(X=images, Y=torch.randn(7, 5))
    assert all(term.ndim == 0 for term in terms.values())


def test_log_variances_are_bounded_and_come_back() -> None:
    """A plain clamp has no gradient outside, so an encoder that strays would never return."""
    logvar = torch.tensor([[-50.0, 0.0, 90.0]], requires_grad=True)
    b = methods.beta_vae(0.0)
    loss = b.build({"Z": Fixed((torch.zeros(1, 3), logvar))}, {"X": LINEAR(3, 2)}, logvar_bounds=(-8.0, 3.0))
    found = loss.terms(X=torch.zeros(1, 2))["X -> Z"]
    torch.testing.assert_close(found, F.gaussian_kl(torch.zeros(1, 3), torch.tensor([[-8.0, 0.0, 3.0]])))
    found.backward()
    assert logvar.grad[0, 0] < 0
    assert logvar.grad[0, 1] == 0
    assert logvar.grad[0, 2] > 0
    (pushed,) = torch.autograd.grad(-loss.terms(X=torch.zeros(1, 2))["X -> Z"], logvar)
    assert (pushed == 0).all()


def test_a_beta_for_each_term() -> None:
    betas = {"ZX -> X": 2.0, "ZY -> Y": 3.0, "ZX -- ZY": 5.0}
    b = Bottleneck("X -> ZX, Y -> ZY", "ZX -> X, ZY -> Y, ZX -- ZY", betas)
    assert {term.name: term.weight for term in b.terms} == {
        "X -> ZX": 1.0,
        "Y -> ZY": 1.0,
        **{name: -value for name, value in betas.items()},
    }
    assert str(b).splitlines()[0] == "L = I(X; ZX) + I(Y; ZY) - 2 I(ZX; X) - 3 I(ZY; Y) - 5 I(ZX; ZY)"


def test_clip_is_the_deterministic_symmetric_bottleneck_with_its_estimator() -> None:
    b = methods.clip()
    encoders = {"ZX": LINEAR(5, 4), "ZY": LINEAR(6, 4)}
    loss = b.build(encoders, critics=information.CosineCritic(0.2), estimator="clip")
    x, y = torch.randn(16, 5), torch.randn(16, 6)
    unit = [torch.nn.functional.normalize(encoders[name](z), dim=1) for name, z in (("ZX", x), ("ZY", y))]
    expected = F.info_nce(*unit, 0.2, symmetric=True) - math.log(16)
    torch.testing.assert_close(loss(X=x, Y=y), expected)
    terms = information.clip_terms(information.CosineCritic(0.2), encoders["ZX"](x), encoders["ZY"](y))
    torch.testing.assert_close(-terms.donsker_varadhan - terms.correction, expected)


def test_barlow_twins_is_the_deterministic_symmetric_bottleneck_of_gaussians() -> None:
    encoders = {"ZX": LINEAR(5, 3), "ZY": LINEAR(5, 3)}
    x, y = torch.randn(64, 5), torch.randn(64, 5)
    latents = encoders["ZX"](x), encoders["ZY"](y)
    b = methods.barlow_twins()
    torch.testing.assert_close(b.build(encoders, estimator="barlow_twins")(X=x, Y=y), F.barlow_twins(*latents))
    loss = b.build(encoders, estimator="gaussian")(X=x, Y=y)
    torch.testing.assert_close(loss, -information.gaussian_mutual_information(*latents))
    loss.backward()
    assert encoders["ZX"].weight.grad.abs().sum() > 0


def test_the_multi_view_bottleneck_is_the_mean_of_the_released_single_samples() -> None:
    """The released code takes the KL divergences by one sample; their mean over many is the exact one."""
    means = [normal(301 + i, 4, 6) for i in range(2)]
    deviations = [torch.nn.functional.softplus(normal(311 + i, 4, 6)) + 1e-7 for i in range(2)]
    first, second = (torch.distributions.Normal(m, s) for m, s in zip(means, deviations, strict=True))

    def single(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        one = (first.log_prob(z1) - second.log_prob(z1)).sum(-1)
        two = (second.log_prob(z2) - first.log_prob(z2)).sum(-1)
        return 0.5 * (one + two).mean(-1)

    released = single(means[0] + deviations[0] * normal(321, 4, 6), means[1] + deviations[1] * normal(322, 4, 6))
    assert abs(released.item() - GOLDENS["federici_skl_mc"]["value"]) < 1e-9
    torch.manual_seed(0)
    samples = single(first.sample((200_000,)), second.sample((200_000,)))
    b = methods.mvib()
    encoders = {n: Fixed((m, 2 * s.log())) for n, m, s in zip(("ZX", "ZY"), means, deviations, strict=True)}
    options = {"estimator": lambda critic, x, y: torch.zeros((), dtype=torch.float64), "logvar_bounds": (-50.0, 50.0)}
    found = b.build(encoders, **options)(X=torch.zeros(4, 1), Y=torch.zeros(4, 1))
    assert abs(found - samples.mean()) < 6 * samples.std() / math.sqrt(len(samples))


def test_encoding_gives_means_of_what_follows() -> None:
    b = Bottleneck("X -> ZX, Y -> ZY, ZX -> W", "W -- ZY")
    loss = b.build(**networks(b))
    x = torch.randn(4, 5)
    found = loss.encode(X=x)
    assert list(found) == ["ZX", "W"]
    assert torch.equal(found["W"], loss.encoders["W"](loss.encoders["ZX"](x)[0])[0])
    with pytest.raises(InputError, match="no latent follows from Q"):
        loss.encode(Q=x)


def test_training_finds_what_views_share() -> None:
    """One shared number, which the latents of both views come to hold."""
    generator = torch.Generator().manual_seed(0)

    def views(n: int) -> tuple[torch.Tensor, ...]:
        shared, *own = (torch.randn(n, d, generator=generator) for d in (1, 5, 5))
        return shared, *(torch.cat([shared + 0.1 * z[:, :1], z[:, 1:]], 1) for z in own)

    torch.manual_seed(0)
    networks = {
        "encoders": {"ZX": GaussianEncoder(5, 2, 32), "ZY": GaussianEncoder(5, 2, 32)},
        "decoders": {"X": LINEAR(2, 5), "Y": LINEAR(2, 5)},
        "critics": information.SeparableCritic(2, 2, 16, 32),
    }
    loss = methods.dvsib().build(**networks)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    for _ in range(250):
        _, x, y = views(128)
        optimizer.zero_grad()
        loss(X=x, Y=y).backward()
        optimizer.step()
    shared, x, _ = views(4000)
    found = information.gaussian_mutual_information(loss.encode(X=x)["ZX"].detach(), shared)
    # The view itself has 2.3 nats of the shared number.
    assert found > 1.8


def test_graphs_of_networkx_are_those_in_text() -> None:
    encoder = nx.DiGraph([("X", "ZX"), ("Y", "ZY")])
    encoder.add_edge("X", "W", deterministic=True)
    decoder = nx.DiGraph([("ZX", "X"), ("W", "X"), ("ZX", "ZY")])
    found = Bottleneck(encoder, decoder, 2.0)
    text = Bottleneck("X -> ZX\nY -> ZY; X => W", "ZX -> X, W -> X, ZX -> ZY", 2.0)
    assert {t.name for t in found.terms} == {t.name for t in text.terms}
    assert found.deterministic == {"W"}
    undirected = Bottleneck("X -> ZX, Y -> ZY", nx.Graph([("ZX", "ZY")]))
    assert [term.name for term in undirected.terms] == ["X -> ZX", "Y -> ZY", "ZX -- ZY"]


def test_chains_and_the_edge_of_the_data() -> None:
    b = Bottleneck("X -- Y, X -> Z -> W", "W -> Y, Z -> X,")
    assert b.observed == ("X", "Y")
    assert b.latents == ("Z", "W")
    assert [term.information for term in b.terms] == ["I(X; Z)", "I(Z; W)", "I(W; Y)", "I(Z; X)"]


SENSELESS = [
    ("", "Z -> X", r"the encoder has no edges"),
    ("X -> Z", "  ", r"the decoder has no edges"),
    ("X Z", "Z -> X", r"encoder: expected an arrow \(->, => or --\), got 'Z' at character 3 of 'X Z'"),
    ("X -> ", "Z -> X", r"encoder: expected the name of a variable after X -> at the end of 'X -> '"),
    ("X -> Z", "Z", r"decoder: expected an arrow after Z at the end of 'Z'"),
    ("X, Y -> Z", "Z -> X", r"several parents are several edges: X -> Z, Y -> Z\), got ',' at character 2"),
    ("X -> -> Z", "Z -> X", r"expected the name of a variable after X ->, got '->' at character 6"),
    ("X > Z", "Z -> X", r"got '>' at character 3"),
    ("X -> Z Y -> W", "Z -> X", r"or a comma, got 'Y' at character 8"),
    ("-> Z", "Z -> X", r"expected the name of a variable, got '->' at character 1"),
    ("X -> 2Z", "Z -> X", r"after X ->, got '2' at character 6"),
    ("X -> X", "Z -> X", r"encoder edge X -> X leads from X to itself"),
    ("X -> Z, X -> Z", "Z -> X", r"encoder edges X -> Z and X -> Z are the same"),
    ("X -> Z, X => Z", "Z -> X", r"encoder edges X -> Z and X => Z are the same"),
    ("X -> Z, Y => Z", "Z -> X", r"X -> Z and Y => Z make Z both noisy and deterministic"),
    ("X -> Z, Z -> W, W -> Z", "Z -> X", r"encoder has a cycle: (Z -> W -> Z|W -> Z -> W)$"),
    ("X -> Z, Z -- Y", "Z -> X", r"encoder edge Z -- Y has no direction and Z is a latent"),
    ("X -- Y", "Z -> X", r"the encoder makes no latent"),
    ("X -> Z", "W -> X", r"decoder edge W -> X reads W, which no encoder makes; the encoder makes Z"),
    ("X -> Z", "X -> Z", r"decoder edge X -> Z reads X, which no encoder makes"),
    ("X -> Z", "Z -- X", r"decoder edge Z -- X reads X, which no encoder makes"),
    ("X -> Z", "Z => X", r"decoder edge Z => X is deterministic"),
    ("X -> Z, Y -> W", "Z -> X", r"latent W is never used"),
    ("X -> Z, Y -> W", "Z -- W, W -- Z", r"decoder edges Z -- W and W -- Z are the same"),
    ("X -> Z, Y -> W", "Z -- W, W -> Z", r"Z -- W and an arrow between the two ask for the same information"),
    ("X -> Z, Y -> W", "Z -> W, W -> Z", r"decoder has a cycle"),
    ("noise -> Z", "Z -> noise", r"calls a variable 'noise', which has another use"),
]


@pytest.mark.parametrize(("encoder", "decoder", "message"), SENSELESS)
def test_graphs_that_make_no_sense(encoder, decoder, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Bottleneck(encoder, decoder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Bottleneck(3, "Z -> X"),
            TypeError,
            r"encoder must be text .* or a networkx graph, got int",
        ),
        (lambda: Bottleneck(nx.DiGraph([(1, 2)]), "Z -> X"), InputError, r"encoder has a node 1; expected names"),
        (lambda: Bottleneck(nx.empty_graph(["X"]), "Z -> X"), InputError, r"encoder has a node X without edges"),
        (lambda: methods.beta_vae(-1), ValueError, r"beta must be finite and at least 0, got -1"),
        (lambda: methods.beta_vae("much"), TypeError, r"beta must be a number, got str"),
        (lambda: methods.dvsib({"ZX -- ZY": 1.0}), InputError, r"beta must have a number for each term.*'ZX -> X'"),
        (
            lambda: methods.dvib(likelihoods={"X": "gaussian"}),
            InputError,
            r"likelihoods has X, which the decoder",
        ),
        (
            lambda: methods.dvib(likelihoods={"Y": "poisson"}),
            ValueError,
            r"likelihoods\['Y'\] must be one of",
        ),
        (
            lambda: Bottleneck("X -> Z", "Z -> X", compression="other_encoder"),
            InputError,
            r"is for exactly 2 noisy latents, got 1 \(Z\)",
        ),
        (lambda: Bottleneck("X -> Z", "Z -> X", compression="none"), ValueError, r"compression must be one of"),
    ],
)
def test_bad_settings(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


A = torch.zeros(6, 5)
VAE = {"encoders": {"Z": GaussianEncoder(5, 2, 4)}, "decoders": {"X": LINEAR(2, 5)}}
SIB = methods.dvsib_no_reconstruction()
PAIR = {"ZX": GaussianEncoder(5, 2, 4), "ZY": GaussianEncoder(5, 3, 4)}
CRITIC = information.BilinearCritic(2, 3)
LABELS = methods.dvib(likelihoods={"Y": "categorical"})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: methods.beta_vae().build({}, {}), InputError, r"encoders must be for Z, got none"),
        (
            lambda: methods.beta_vae().build({"Z": len}, VAE["decoders"]),
            TypeError,
            r"encoders\['Z'\] must be an",
        ),
        (lambda: methods.beta_vae().build(VAE["encoders"]), InputError, r"decoders must be for X, got none"),
        (lambda: methods.beta_vae().build(**VAE, critics=CRITIC), InputError, r"for one term between latents, got 0"),
        (
            lambda: methods.beta_vae().build(**VAE, logvar_bounds=(1, 0)),
            ValueError,
            r"logvar_bounds must be",
        ),
        (lambda: SIB.build(PAIR), InputError, r"critics must be for ZX -- ZY, got none"),
        (lambda: SIB.build(PAIR, critics=CRITIC, estimator="mi"), ValueError, r"estimator must be one of"),
        (lambda: SIB.build(PAIR, critics=CRITIC, estimator="gaussian"), InputError, r"critics must be for nothing"),
        (lambda: SIB.build(PAIR, critics=CRITIC, estimator=3), TypeError, r"estimator must be a name or a callable"),
        (lambda: SIB.build(PAIR, estimator=lambda c, x, y: 1.0, clip=2.0), ValueError, r"takes no options, got clip"),
        (
            lambda: SIB.build(PAIR, estimator=lambda c, x, y: 1.0)(X=A, Y=A),
            TypeError,
            r"estimator must return a scalar tensor, got float 1.0",
        ),
        (lambda: methods.beta_vae().build(**VAE)(), TypeError, r"the observed variables are X, got none"),
        (lambda: methods.beta_vae().build(**VAE)(X=A, Y=A), TypeError, r"the observed variables are X, got X, Y"),
        (lambda: methods.beta_vae().build(**VAE)(X=[1.0]), TypeError, r"X must be a tensor \[N, ...\], got list"),
        (lambda: SIB.build(PAIR, critics=CRITIC)(X=A, Y=A[:3]), ValueError, r"Y must have the size 6 in dimension 0"),
        (
            lambda: methods.beta_vae().build(**VAE)(X=A, noise={"W": A}),
            InputError,
            r"noise has W; expected noisy",
        ),
        (lambda: methods.beta_vae().build(**VAE)(X=A, noise={"Z": A}), ValueError, r"noise\['Z'\] must be \[6, 2\]"),
        (
            lambda: SIB.build(PAIR, critics=CRITIC)(X=A, Y=A, permutations={"Z": A}),
            InputError,
            r"permutations has 'Z'; expected one of 'ZX -- ZY'",
        ),
        (
            lambda: methods.beta_vae().build({"Z": LINEAR(5, 2)}, VAE["decoders"])(X=A),
            TypeError,
            r"encoders\['Z'\] must return \(mean, logvar\), each \[N, d\], for N = 6; got a tensor of shape \[6, 2\]",
        ),
        (
            lambda: Bottleneck("X => Z", "Z -> X").build(**VAE)(X=A),
            TypeError,
            r"encoders\['Z'\] must return one tensor \[N, d\], being deterministic",
        ),
        (
            lambda: methods.beta_vae().build(VAE["encoders"], {"X": LINEAR(2, 4)})(X=A),
            ValueError,
            r"prediction and target must have one shape.*\[6, 4\].*\[6, 5\]",
        ),
        (
            lambda: methods.dvib(likelihoods={"Y": "categorical"}).build(VAE["encoders"], {"Y": LINEAR(2, 4)})(
                X=A, Y=A
            ),
            ValueError,
            r"categorical likelihood is of logits \[N, K\] and class indices",
        ),
        (lambda: methods.mvib().build(PAIR, critics=CRITIC)(X=A, Y=A), ValueError, r"must have its shape, got ZX"),
    ],
)
def test_networks_and_inputs_that_do_not_fit(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


VARIABLES = st.sampled_from(["X", "Y", "Z", "W"])
EDGE = st.tuples(VARIABLES, st.sampled_from(["->", "=>", "--"]), VARIABLES)


def read_or_refused(encoder: str, decoder: str) -> Bottleneck | None:
    refusal = "Bottleneck: "
    try:
        return Bottleneck(encoder, decoder)
    except InputError as error:
        refusal = str(error)
    assert refusal.startswith("Bottleneck: ")
    assert "\n" not in refusal
    return None


@settings(deadline=None)
@given(st.lists(EDGE, max_size=5), st.lists(EDGE, max_size=5))
def test_any_graphs_are_refused_in_one_line_or_make_a_loss(encoder, decoder) -> None:
    texts = [", ".join(" ".join(edge) for edge in edges) for edges in (encoder, decoder)]
    b = read_or_refused(*texts)
    if b is None:
        return
    assert set(b.latents).isdisjoint(b.observed)
    loss = b.build(**networks(b), estimator="infonce")
    value = loss(**{name: torch.randn(4, 5) for name in b.observed})
    assert value.isfinite()
    assert str(b)
    assert b.latex().count("{") == b.latex().count("}")


@settings(deadline=None)
@given(st.text("XYZ_ab1 ->=,;\n.-", max_size=30))
def test_any_text_is_refused_in_one_line_or_read(text) -> None:
    b = read_or_refused(text, "Z -> X")
    assert b is None or "Z" in b.latents


def test_formulas_for_reading() -> None:
    b = methods.dvsib(128.0)
    assert str(b).splitlines() == [
        "L = I(X; ZX) + I(Y; ZY) - 128 [I(ZX; X) + I(ZY; Y) + I(ZX; ZY)]",
        "X -> ZX   I(X; ZX) <= E KL(q(ZX | X) || N(0, I))",
        "Y -> ZY   I(Y; ZY) <= E KL(q(ZY | Y) || N(0, I))",
        "ZX -> X   I(ZX; X) >= H(X) + E log q(X | ZX), q gaussian",
        "ZY -> Y   I(ZY; Y) >= H(Y) + E log q(Y | ZY), q gaussian",
        "ZX -- ZY  I(ZX; ZY) ~ estimate by a critic",
    ]
    assert repr(b) == "Bottleneck(encoder='X -> ZX, Y -> ZY', decoder='ZX -> X, ZY -> Y, ZX -- ZY')"
    assert str(methods.mvib()).splitlines()[1].endswith("I(X; ZX | Y) <= E KL(q(ZX | X) || q(ZY | Y))")
    assert str(b) in repr(b.build(**networks(b))).replace("\n  ", "\n")
    pytest.importorskip("matplotlib")
    from matplotlib.mathtext import MathTextParser

    # \big has no counterpart there.
    for make in EVERY_METHOD:
        MathTextParser("path").parse("$" + re.sub(r"\\big", "", make().latex()) + "$")


def test_pictures(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    b = Bottleneck("X => Z, Y -> W, Z -> V", "V -> X, W -- Z, W -- V")
    figure = b.draw(tmp_path / "graphs.png")
    assert (tmp_path / "graphs.png").stat().st_size > 5000
    names = [{text.get_text() for text in axes.texts} for axes in figure.axes]
    assert names == [{"X", "Y", "Z", "W", "V"}, {"X", "Z", "W", "V"}]


def derive(*arguments: str) -> int:
    pytest.importorskip("typer")
    from mibfast.cli.commands import run

    return run(["derive", *arguments])


def test_the_command(tmp_path, capsys) -> None:
    graphs = ["--encoder", "X -> Z", "--decoder", "Z -> Y", "--beta", "3"]
    assert derive(*graphs, "--picture", str(tmp_path / "graphs.svg")) == 0
    assert capsys.readouterr() == (f"{methods.dvib(3.0)}\n", "")
    assert "<svg" in (tmp_path / "graphs.svg").read_text()
    assert derive(*graphs, "--latex") == 0
    assert capsys.readouterr().out == f"{methods.dvib(3.0).latex()}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "X -> Z -> X", "--decoder", "Z -> Y"], "mibfast: error: Bottleneck: encoder has a cycle: "),
        (["--encoder", "X -> Z", "--decoder", "Z -> X", "--picture", "no/such/folder.png"], "cannot draw into"),
        (
            ["--encoder", "X -> Z", "--decoder", "Z -> X", "--picture", "graph.nothing"],
            "cannot draw into graph.nothing",
        ),
        (["--encoder", "X -> Z"], "mibfast: error: Missing option '--decoder'"),
        (["--encoder", "X -> Z", "--decoder", "Z -> X", "--beta", "-1"], "Invalid value for '--beta'"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message, capsys) -> None:
    assert derive(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_autocast() -> None:
    b = methods.dvsib_private()
    loss = b.build(**networks(b))
    inputs = {name: torch.randn(64, 5) for name in b.observed}
    noise = {name: torch.randn(64, 3) for name in b.latents}
    expected = loss(**inputs, noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(**inputs, noise=noise)
    found.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.1)


def test_a_compiled_loss_is_the_same() -> None:
    b = methods.dvsib()
    loss = b.build(**networks(b))
    inputs = {name: torch.randn(5, 5) for name in b.observed}
    noise = {name: torch.randn(5, 3) for name in b.latents}
    expected = torch.autograd.grad(loss(**inputs, noise=noise), list(loss.parameters()))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(**inputs, noise=noise), list(loss.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_compiles_where_no_gradient_is_needed() -> None:
    loss = methods.beta_vae().build(**VAE)
    noise = {"Z": torch.randn(6, 2)}
    with torch.no_grad():
        found = torch.compile(loss, fullgraph=True, backend="aot_eager")(X=A, noise=noise)
        torch.testing.assert_close(found, loss(X=A, noise=noise))


def test_state_is_kept() -> None:
    b = methods.dvsib()
    first, second = (b.build(**networks(b), estimator="mine") for _ in range(2))
    inputs = {name: torch.randn(5, 5) for name in b.observed}
    noise = {name: torch.randn(5, 3) for name in b.latents}
    first(**inputs, noise=noise)
    second.load_state_dict(first.state_dict())
    assert isinstance(second, BottleneckLoss)
    assert torch.equal(first.eval()(**inputs, noise=noise), second.eval()(**inputs, noise=noise))
