"""A seeded fuzz of the public API: arguments by their names, good ones and bad, and what comes of them.

Right is what agrees with `backend="reference"`, values and gradients; a named error is one line that begins with the
name of what was called. All else is a finding: foreign text, a wrong number, one backend that takes what the other
refuses, and files that appear; crashes and hangs are seen by the parent.
"""

from __future__ import annotations

import inspect
import math
import os
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mibfast
import mibfast.omib
from mibfast import _check, information
from mibfast.nn import fusion
from torture.judgement import BY_FLOOR, BY_RIDGE, WELL, judged
from torture.supervision import Case

_DTYPES = (torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16)


class _Draw:
    """Random values; sizes and dtype are drawn once, so that the tensors of a call fit each other."""

    def __init__(self, rng: random.Random, dtypes: tuple[torch.dtype, ...]) -> None:
        self.rng, self.one_of = rng, lambda *values: rng.choice(values)
        self.generator = torch.Generator().manual_seed(rng.getrandbits(60))
        self.n, self.d = self.one_of(1, 2, 3, 5, 8, 33, 70), self.one_of(2, 3, 4, 7, 16, 33)
        self.m, self.k, self.dtype = self.one_of(2, 2, 3, 3, 4, 5), rng.randint(1, 4), rng.choice(dtypes)
        self.scale = self.one_of(*(1.0,) * 12, 0.0, 1e-20, 1e-4, 1e4, 1e20)
        self.holds = self.one_of(*(None,) * 20, math.nan, math.inf)

    def tensor(self, *shape: int) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64).mul(self.scale).to(self.dtype)
        if self.holds is not None:
            x.view(-1)[self.rng.randrange(x.numel())] = self.holds
        form = self.rng.randrange(15) if x.ndim else 0
        if form == 1:
            x = x.mT.contiguous().mT if x.ndim > 1 else x
        elif form == 2:
            x = torch.stack([x, x], -1)[..., 0]
        elif form == 3:
            x = x[:1].expand(shape)
        elif form == 4:
            x = torch._neg_view(-x)  # type: ignore[attr-defined]
        elif form == 5:
            x = torch.complex(x, x).conj().real if x.dtype in (torch.float32, torch.float64) else x
        return x.requires_grad_(self.rng.random() < 0.7)

    def matrix(self) -> Tensor:
        return self.tensor(self.n, self.d)

    def several(self) -> Any:
        views = [self.matrix() for _ in range(self.m)]
        return self.one_of(views, views, tuple(views), dict(zip("abcde", views, strict=False)), torch.stack(views))

    def number(self, *values: float) -> Any:
        value = self.rng.choice(values)
        return value if self.rng.random() < 0.8 else torch.tensor(float(value)).requires_grad_(self.one_of(True, False))

    def bad(self) -> Any:
        x = self.matrix().detach()
        tensors: list[Callable[[], Any]] = [
            lambda: x.to("meta"),
            x.to_sparse,
            x.int,
            x.bool,
            lambda: x.to(torch.complex64),
            lambda: x.to(torch.float8_e4m3fn),
            lambda: x[:0],
            lambda: x[:, :0],
            lambda: x[0],
            lambda: x[0, 0],
            lambda: x[None],
            lambda: x[: len(x) // 2 + 1],
            lambda: torch.cat([x, x], 1),
            lambda: torch.nested.nested_tensor([x, x[:1]]),
            lambda: x.to(torch.float64 if x.dtype != torch.float64 else torch.float32),
            lambda: nn.Parameter(x),
            lambda: x.float().resolve_neg().numpy(),
            lambda: torch.full_like(x, math.nan),
            lambda: torch.tensor(math.nan),
            lambda: torch.ones(1),
            lambda: [x, None],
            lambda: [x],
            lambda: {"a": x, "b": x[:, :1]},
            lambda: iter([x, x]),
        ]
        others = [
            *(None, "", "False", "a: b", "two\nlines", "X -> Z", "mean", b"mean", True, False, 0, 1, -1, 2, 1.0, 0.5),
            *(-0.5, 10**49, 2**63, -(2**63), math.nan, math.inf, -math.inf, 1e-300, 1e-38, 1e308, 1j),
            *(np.float64(0.1), np.float32(0.1), np.int64(3), np.array(0.1), np.bool_(True), np.nan),
            *([], (), {}, {"a": 1}, [1.0, 2.0], (1.0, -1.0), (None, None), object, object(), range(3), slice(None)),
            *(torch.float32, torch.device("cpu"), torch.Generator(), nn.Identity(), nn.Linear, print),
        ]
        if self.rng.random() < 0.5:
            # Warnings are of prototypes in torch.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.rng.choice(tensors)()
        return self.rng.choice(others)


def _choices(*values: Any) -> Callable[[_Draw], Any]:
    return lambda s: s.rng.choice(values)


# By the argument's name, for those without a default and those whose default says little.
_GOOD: dict[str, Callable[[_Draw], Any]] = {
    name: draw
    for names, draw in (
        ("query key x y a b c anchor mean logvar noise candidates target prediction", _Draw.matrix),
        ("representation observation reconstructed parents parent", _Draw.matrix),
        ("basis context value", lambda s: s.tensor(s.n, s.k, s.d)),
        ("embeddings means logvars latents", _Draw.several),
        ("others", lambda s: [s.matrix() for _ in range(s.m - 1)]),
        ("prior_mean prior_logvar", lambda s: s.one_of(None, s.matrix(), s.tensor(s.d))),
        ("scores", lambda s: s.tensor(s.n, s.n)),
        ("presence", lambda s: s.one_of(None, torch.rand(s.n, s.m, generator=s.generator) < 0.8)),
        ("weight center", lambda s: s.tensor(s.d)),
        ("bias temperature scale", lambda s: s.number(0.07, 0.5, 1.0, 10.0, 3)),
        ("ridge", _choices(1e-8, 0.3, 1, 0)),
        ("off_diagonal_weight label_smoothing", _choices(0.0, 0.1, 1)),
        ("reduction", _choices("mean", "none", "batchmean")),
        ("offset", _choices(0, 0, 1)),
        ("keys", _choices("per_sample", "pairwise")),
        ("negatives", _choices("all", "shuffled")),
        ("score", _choices("inner_product", "additive")),
        ("estimator", _choices("smile", "infonce", "nwj", "tuba", "dv", "mine", "js_fgan", "js", "clip")),
        ("clip", _choices(None, 5.0, 1)),
        ("k", lambda s: s.one_of(1, s.n)),
        ("backend", _choices(None, None, "auto", "cpu")),
        ("beta", _choices(1.0, 0.1, 3)),
        ("modalities", lambda s: s.m),
        ("features x_features y_features in_features latent_features embedding_features", lambda s: s.d),
        ("hidden_features feedforward_features", _choices(4, 7)),
        ("depth hidden_layers heads epochs patience seeds", _choices(1)),
        ("critic", lambda s: s.one_of(information.CosineCritic(), information.BilinearCritic(s.d, s.d))),
        ("encoders", lambda s: {f"v{i}": nn.Linear(s.d, s.d) for i in range(s.m)}),
        ("views", lambda s: {f"v{i}": s.matrix() for i in range(s.m)}),
        ("task", lambda s: s.one_of(fusion.Classification(3), fusion.Regression(1))),
        ("labels", lambda s: torch.arange(s.n) % 2),
        ("fused_logits", lambda s: s.tensor(s.n, 3)),
        ("logits_by_modality", lambda s: [s.tensor(s.n, 3) for _ in range(s.m)]),
        ("task_loss", lambda s: s.tensor()),
        ("divergences", lambda s: [s.tensor() for _ in range(s.m)]),
        ("weights", lambda s: s.one_of(None, s.tensor(s.m - 1))),
        ("entropies", lambda s: [1.0 + i for i in range(s.m)]),
        ("pairwise_mutual_information", lambda s: {(i, j): 0.3 for j in range(s.m) for i in range(j)}),
        ("encoder", _choices("X -> Z", "X -> ZX, Y -> ZY")),
        ("decoder", _choices("Z -> X", "ZX -- ZY", "ZX -> X, ZX -- ZY")),
        ("classes", _choices(2, 5)),
        ("operation", _choices("encoder")),
    )
    for name in names.split()
}
# What an argument is in one place alone.
_SPECIAL: dict[str, dict[str, Callable[[_Draw], Any]]] = {
    "functional.token_attention": dict.fromkeys(("query", "key"), _GOOD["value"]),
    "functional.top_k": {
        "query": lambda s: s.one_of(s.matrix(), s.tensor(s.n, s.k, s.d), s.tensor(s.n, 2, s.d)),
        "score": _choices("inner_product", "cosine", "ridge_projection", "gram_volume", "triangle_area", "symile"),
    },
    **{
        f"functional.critic_{name}": {"bias": lambda s: s.one_of(None, s.tensor()), "hidden": _choices(None)}
        for name in ("log_mean_exp", "log_sum_exp", "mean_softplus", "softplus")
    },
    **{f"omib.{name}": {"scores": lambda s: s.tensor(s.n)} for name in ("anomaly_threshold", "f1_at_true_count")},
    **{f"{place}.CrossAttention": {"bias": _choices(True, False)} for place in ("omib", "nn.fusion")},
    "nn.fusion.StochasticEncoder": {"bias": _choices(True, False)},
    "information.estimate": dict.fromkeys("xy", lambda s: s.tensor(40, s.d)) | {"critic": _choices("bilinear")},
}
_MODULES = {
    **{place: getattr(mibfast, place) for place in ("functional", "losses", "information", "bottleneck", "omib")},
    "nn.fusion": fusion,
    "nn.fusion.losses": fusion.losses,
}
_METHODS: dict[str, tuple[str | None, ...]] = {
    "Bottleneck": ("__str__",),
    **dict.fromkeys(("Classification", "Regression"), ("loss",)),
    # Results, bases of classes, and what is made of another's modules.
    **dict.fromkeys(("Estimate", "CLIPTerms", "BetaEstimate", "Term", "Task", "FusionModel", "Predictor"), ()),
    **dict.fromkeys(("BottleneckLoss", "GaussianHeads", "collapse_risks", "estimate_beta", "AnomalyDetection"), ()),
}
# The parameters of modules, or noise that they draw, are of one dtype.
_FLOAT64_ONLY = (
    *("nn.fusion", "omib", "bottleneck", "losses.LearnedProjector"),
    *(f"information.{name}" for name in ("Bilinear", "Separable", "Concatenated", "Mutual", "clip")),
)


def _targets() -> Iterator[tuple[str, Any, str | None]]:
    for place, module in _MODULES.items():
        for name, what in vars(module).items():
            listed = name in module.__all__ if hasattr(module, "__all__") else inspect.isfunction(what)
            if not listed or name[0] == "_" or not callable(what):
                continue
            own = tuple(m for m in ("forward", "terms") if getattr(what, m, None) not in (None, nn.Module.forward))
            methods = _METHODS.get(name, own if inspect.isclass(what) else (None,))
            yield from ((f"{place}.{name}", what, method) for method in methods)


TARGETS = sorted(_targets(), key=lambda target: (target[0], target[2] or ""))
_NAMES = {name for module in _MODULES.values() for name in vars(module) if not name.startswith("_")} | {"encoder"}
# The parameters of modules, or noise that they draw, are of one dtype.
_FLOAT64_ONLY = ("nn.fusion", "omib", "bottleneck", "information.Bilinear", "information.Sep", "information.Conc",
                 "information.Mutual", "information.clip", "losses.LearnedProjector")  # fmt: skip


def _mapped(x: Any, change: Callable[[Tensor], Tensor], leaves: list[Tensor]) -> Any:
    """Return arguments whose floating-point tensors are changed; those that need gradients are added to leaves."""
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.is_nested or x.device.type != "cpu" or x.dtype not in _check.DTYPES:
            return x
        y = x if change is _same else change(x.detach().clone()).requires_grad_(x.requires_grad)
        if y.requires_grad:
            leaves.append(y)
        return y
    if type(x) in (list, tuple):
        return type(x)(_mapped(y, change, leaves) for y in x)
    if isinstance(x, dict):
        return {key: _mapped(y, change, leaves) for key, y in x.items()}
    return x


def _same(x: Tensor) -> Tensor:
    return x


def _of_no_numbers(x: Tensor) -> Tensor:
    bad = ~x.isfinite()
    return bad.any(-1, keepdim=True) if x.ndim else bad


def _flat(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, float):
        yield torch.tensor(x, dtype=torch.float64)
    elif isinstance(x, (tuple, list, Mapping)) and not isinstance(x, information.Estimate):
        for y in x.values() if isinstance(x, Mapping) else x:
            yield from _flat(y)


def _described(x: Any) -> str:
    if isinstance(x, (list, tuple)) and len(x) < 9:
        return f"[{', '.join(map(_described, x))}]"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key!r}: {_described(y)}" for key, y in x.items()) + "}"
    if isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested:
        strides = "" if x.is_contiguous() else f" strides {x.stride()}"
        strides += " negative bit" * x.is_neg() + " conjugate bit" * x.is_conj()
        return f"{str(x.dtype)[6:]}{list(x.shape)}{strides}{'' if x.device.type == 'cpu' else ' meta'}"
    return repr(x).replace("\n", " ")[:60]


_written: list[str] | None = None
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.truncate")
_TEMPORARY = tempfile.gettempdir()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _written is None or (event not in _CHANGES and event != "open"):
        return
    if event == "open" and not (
        isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        return
    # Numba's and Python's caches, and what torch's compiler makes ready, are no call's.
    place = os.path.abspath(str(arguments[0]))
    if "__pycache__" not in place and (not place.startswith(_TEMPORARY) or place.startswith(os.getcwd())):
        _written.append(f"{event} {place}")


sys.addaudithook(_watch)


def _wrong_error(error: Exception) -> tuple[str, str] | None:
    text, trace = str(error), error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    # Python's own text in a line of ours, "'int' object is not iterable", is foreign as well.
    place = "" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('mibfast/')[2]}:{trace.tb_lineno}"
    said = f"{type(error).__name__}: {text[:160]!r} (in {place})"
    if "\n" in text:
        return "error of several lines", said
    if isinstance(error, (_check.InputError, _check.NothingPresentError)):
        return None
    begins = re.match(r"(\w+)(\.\w+)*[:(]", text)
    if isinstance(error, (TypeError, ValueError, RuntimeError)) and (
        (begins and begins[1] in _NAMES) or text.startswith("unknown backend")
    ):
        return None
    return "foreign text", said


def draw(seed: int, number: int) -> Case:
    """Make a case: a function, or a module and its call, with arguments of which none, one or two are bad."""
    rng = random.Random(f"public_api {seed} {number}")
    name, what, method = TARGETS[(number + seed) % len(TARGETS)]
    values = _Draw(rng, (torch.float64,) if name.startswith(_FLOAT64_ONLY) else _DTYPES)
    if "ymile" in name:
        # The plain formula of all combinations is of N^M numbers.
        values.n = min(values.n, 8)
    torch.manual_seed(number)
    drawn = _GOOD | _SPECIAL.get(name, {})
    arguments: dict[str, dict[str, Any]] = {}
    for step, called in {"": what, **({method: getattr(what, method)} if method else {})}.items():
        given = arguments[step] = {}
        for argument, parameter in inspect.signature(called).parameters.items():
            optional = parameter.default is not parameter.empty
            if argument == "self" or (optional and rng.random() < 0.5):
                continue
            if step and argument == "target":
                given[argument] = torch.arange(values.n) % 2
            elif isinstance(parameter.default, bool):
                given[argument] = rng.random() < 0.5
            else:
                given[argument] = drawn[argument](values) if argument in drawn else parameter.default
    # An operation's name is what errors begin with.
    places = [(step, argument) for step, given in arguments.items() for argument in given if argument != "operation"]
    for step, argument in rng.sample(places, min(len(places), rng.choice((0, 0, 1, 1, 1, 2)))):
        arguments[step][argument] = values.bad()
    text = name + "".join(
        f"{f'.{step}' if step else ''}({', '.join(f'{k}={_described(v)}' for k, v in given.items())})"
        for step, given in arguments.items()
    )
    if values.scale != 1 or values.holds is not None:
        text += f", numbers of {values.scale:g}" + f" and {values.holds}" * (values.holds is not None)
    state = torch.get_rng_state()

    def call(change: Callable[[Tensor], Tensor], backend: str | None) -> tuple[list[Tensor], list[Tensor]]:
        """Return outputs and gradients; these are NaN for samples that are not finite, where they are no numbers."""
        leaves: list[Tensor] = []
        given = {step: _mapped(x, change, leaves) for step, x in arguments.items()}
        if backend is not None:
            for each in given.values():
                if isinstance(each.get("backend"), str) and each["backend"] in ("auto", "cpu"):
                    each["backend"] = backend
        torch.set_rng_state(state)
        result = what(**given[""])
        if method is not None:
            result = result.double() if isinstance(result, nn.Module) and name.startswith(_FLOAT64_ONLY) else result
            parents = given[method].pop("parents", None)
            result = getattr(result, method)(*([] if parents is None else [parents]), **given[method])
        outputs = [x for x in _flat(result) if x.layout == torch.strided]
        reached = [x for x in outputs if x.requires_grad]
        if not (reached and leaves):
            return [x.detach() for x in outputs], []
        upstream = [torch.linspace(0.7, 1.3, x.numel(), dtype=torch.float64).view(x.shape).to(x) for x in reached]
        gradients = torch.autograd.grad(reached, leaves, upstream, allow_unused=True)
        given = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
        at_numbers = [g.masked_fill(_of_no_numbers(x.detach()), math.nan) for x, g in zip(leaves, given, strict=True)]
        return [x.detach() for x in outputs], at_numbers

    def run() -> tuple[str, str] | None:
        global _written
        warnings.simplefilter("ignore")
        _written = []
        error: Exception | None = None
        outputs: list[Tensor] = []
        gradients: list[Tensor] = []
        try:
            outputs, gradients = call(_same, None)
        except Exception as raised:
            error = raised
        written, _written = _written, None
        if written:
            return "write outside", ", ".join(written)
        wrong = None if error is None else _wrong_error(error)
        if wrong is not None:
            return wrong
        if "estimate" in name:
            return None

        def reference(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
            with mibfast.use_backend("reference"):
                return [x for results in call(change, "reference") for x in results]

        try:
            reference(torch.clone)
        except Exception as raised:
            if error is None:
                return "backends differ", f"the reference refuses: {type(raised).__name__}: {str(raised)[:160]}"
            return None
        if error is not None:
            return "backends differ", f"the reference takes it: {type(error).__name__}: {str(error)[:160]}"
        # A loss of one sample is a difference of equal scores: their rounding, of a size that no result shows.
        if values.n == 1 and values.scale > 1.0:
            return None
        # A learned temperature is float32.
        share = BY_RIDGE if values.d < 9 or values.scale != 1.0 or name.startswith("losses") else WELL
        # More vectors than features.
        share = BY_FLOOR if values.d < values.m else share
        return judged([*outputs, *gradients], len(outputs), reference, share)

    return Case(text, run)
