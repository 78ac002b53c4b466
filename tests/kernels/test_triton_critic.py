"""Critics' Triton kernels: against the reference and the CPU's kernels, and compiled for GPUs that are not there.

Without a GPU they run in Triton's interpreter, so shapes and tiles are small: of float32 several ragged tiles, and of
shorter dtypes, which differ only in how they are read, fewer tiles or every other option; with two layers two chunks
each way, one of them ragged, not three; and of all subsets of inputs that need gradients those in which any two need
both, either or neither.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from cuda_graphs import assert_a_graph_repeats
from operations import OPERATIONS, inputs, subsets, value_and_gradients
from torch import Tensor
from triton_compilation import assert_compiled_without_spills, of_pairwise_engine

from mibfast import functional as F

pytest.importorskip("triton")
from mibfast.kernels.critic import one_layer_triton, operands_triton, two_layers_triton
from mibfast.kernels.critic.operands_triton import Operands
from mibfast.kernels.launch_configuration import Tile, shipped
from mibfast.kernels.pairwise import flags as asked
from mibfast.kernels.pairwise import gradient_triton

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU")
NAMES = [
    "critic_log_sum_exp, additive",
    "critic_log_sum_exp, additive, columns, clipped, positive out",
    "critic_softplus, additive",
]
TWO_LAYERS = ["critic_log_sum_exp, two layers, positive out", "critic_softplus, two layers"]
EMBEDDINGS = [
    "critic_log_sum_exp",
    "critic_log_sum_exp, columns, positive out",
    "critic_log_sum_exp, columns, clipped",
    "critic_log_sum_exp, clipped, positive out",
    "critic_softplus",
    "critic_log_sum_exp, squared_distance, slice, columns, clipped",
    "critic_softplus, lorentz",
]
OPERANDS, ONE_LAYER, TWO_LAYERS_MODULE = (
    f"mibfast.kernels.critic.{name}_triton" for name in ("operands", "one_layer", "two_layers")
)


@pytest.fixture(autouse=True)
def _little_padding_in_the_interpreter(monkeypatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(Operands, "padding", 16)
        monkeypatch.setattr(Operands, "unit_padding", 8)
        monkeypatch.setattr(one_layer_triton, "_PIECE", 16)


def _parameters(h: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, object]:
    weight = torch.randn(h, dtype=torch.float64).to(device, dtype).requires_grad_()
    bias = torch.tensor(0.3, dtype=dtype, device=device, requires_grad=True)
    return {"weight": weight, "bias": bias, "score": "additive"}


@interpreted
@pytest.mark.parametrize(("n", "h"), [(1, 1), (2, 3), (17, 9), (35, 20)])
@pytest.mark.parametrize("name", NAMES)
def test_float64_agrees_with_reference_and_cpu(name, n, h) -> None:
    leaves = inputs(n, h)
    found = value_and_gradients(OPERATIONS[name], leaves, "triton")
    for backend in ("reference", "cpu"):
        for a, b in zip(found, value_and_gradients(OPERATIONS[name], leaves, backend), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12 * max(1.0, b.nan_to_num(0, 0, 0).abs().max()))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_that_of_plain_pytorch(name, dtype) -> None:
    # Short dtypes are made float32 where they are read: fewer tiles of them will do.
    leaves = inputs(*((33, 24) if dtype == torch.float32 else (17, 9)), dtype)
    truth = value_and_gradients(OPERATIONS[name], [x.detach().double() for x in leaves], "reference")
    plain = value_and_gradients(OPERATIONS[name], leaves, "reference")
    for a, b, exact in zip(value_and_gradients(OPERATIONS[name], leaves, "triton"), plain, truth, strict=True):
        assert a.dtype == b.dtype
        scale = exact.abs().max()
        allowed = 3 * (b.double() - exact).abs().max() + 8 * torch.finfo(a.dtype).eps * scale + 1e-6 * scale
        assert (a.double() - exact).abs().max() <= allowed


def _embeddings_err_no_more_than_plain_pytorch(step, leaves: list[Tensor], absolute: float = 1e-7) -> None:
    """`step(leaves, backend)` gives values and gradients; infinities and NaN must stand where they do in float64."""
    truth = step([x.detach().double() for x in leaves], "reference")
    for a, b, exact in zip(step(leaves, "triton"), step(leaves, "reference"), truth, strict=True):
        assert a.dtype == b.dtype
        finite = exact.isfinite()
        torch.testing.assert_close(a[~finite].double(), exact[~finite], equal_nan=True, check_device=False)
        if finite.any():
            scale = exact[finite].abs().max()
            allowed = 3 * (b.double() - exact)[finite].abs().max() + (8 * torch.finfo(a.dtype).eps + 1e-6) * scale
            assert (a.double() - exact)[finite].abs().max() <= allowed + absolute


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 5), (37, 20)])
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_err_no_more_than_plain_pytorch(name, n, d, dtype) -> None:
    def step(leaves: list[Tensor], backend: str) -> list[Tensor]:
        return value_and_gradients(OPERATIONS[name], leaves, backend)

    _embeddings_err_no_more_than_plain_pytorch(step, inputs(n, d, dtype))


def _uneven(leaves: list[Tensor], backend: str, **options: object) -> list[Tensor]:
    """Upstream gradients of positives, rows and columns of both signs and 1e-3 to 1, and zeros among them."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    function = F.critic_log_sum_exp if options else F.critic_softplus
    found = function(*leaves, **options, backend=backend)
    upstreams = []
    for scale, z in zip((1e-3, 1.0, -0.3), found, strict=False):
        upstreams.append(scale * torch.linspace(-0.7, 1.3, len(z)).to(z) * (torch.arange(len(z)) % 5 > 0).to(z))
    return [*found, *torch.autograd.grad(found, leaves, upstreams)]


@interpreted
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"columns": True, "clip": 1.5}, {"positive": True}], ids=str)
def test_embeddings_with_upstream_gradients_apart(options, dtype, recomputed, monkeypatch) -> None:
    """In chunks of 16 x 16 pairs, or recomputed."""
    monkeypatch.setattr(gradient_triton, "_CHUNK_BYTES", 16 * 16 * dtype.itemsize)
    monkeypatch.setattr(gradient_triton, "_even", lambda count, size: size)
    monkeypatch.setattr(gradient_triton, "_LEAST_RECOMPUTED_COUNT", 1 if recomputed else 1000)
    leaves = [torch.randn(35, 7).to(dtype), torch.randn(35 if options.get("columns") else 43, 7).to(dtype)]
    _embeddings_err_no_more_than_plain_pytorch(lambda x, backend: _uneven(x, backend, **options), leaves)


@interpreted
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("options", [{}, {"columns": True}, {"columns": True, "clip": 5.0}], ids=str)
def test_embeddings_small_large_and_repeated(options, scale) -> None:
    """Scores up to 1e4, some of pairs that are duplicates or zero, and the same result twice."""
    x, y = scale * torch.randn(33, 6), scale * torch.randn(33, 6)
    x[20:], y[::7] = x[:13].clone(), 0.0
    _embeddings_err_no_more_than_plain_pytorch(
        lambda leaves, backend: _uneven(leaves, backend, **options), [x, y], 1e-6 * scale
    )
    pairs = zip(_uneven([x, y], "triton", **options), _uneven([x, y], "triton", **options), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@interpreted
@pytest.mark.parametrize("name", [EMBEDDINGS[2], EMBEDDINGS[4]])
def test_embeddings_with_every_subset_of_inputs_that_need_gradients(name) -> None:
    full = inputs(5, 3, torch.float32)[:2]
    expected = torch.autograd.grad(OPERATIONS[name](*full, None, None, None, backend="triton").sum(), full)
    for needed in product([False, True], repeat=2):
        leaves = [x.detach().clone().requires_grad_(need) for x, need in zip(full, needed, strict=True)]
        result = OPERATIONS[name](*leaves, None, None, None, backend="triton")
        assert result.requires_grad == any(needed)
        if any(needed):
            result.sum().backward()
        for x, g in zip(leaves, expected, strict=True):
            assert (x.grad is None) == (not x.requires_grad)
            if x.grad is not None:
                assert torch.equal(x.grad, g)


@interpreted
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_with_nan(name) -> None:
    a, b, *others = inputs(21, 4, torch.float32)
    with torch.no_grad():
        a[7, 2] = torch.nan
    found = value_and_gradients(OPERATIONS[name], [a, b, *others], "triton")
    expected = value_and_gradients(OPERATIONS[name], [a, b, *others], "reference")
    assert torch.equal(found[0].isnan(), expected[0].isnan())
    assert found[1][7].isnan().all()
    # In row 7 of b the reference multiplies a NaN by the zero of a positive that is left out.
    for x, y in zip(found[1:3], expected[1:3], strict=True):
        assert torch.equal(x.isnan()[torch.arange(21) != 7], y.isnan()[torch.arange(21) != 7])


@interpreted
@pytest.mark.parametrize("name", NAMES)
def test_subsets_of_inputs_that_need_gradients(name) -> None:
    full = inputs(3, 2)[:4]
    expected = torch.autograd.grad(OPERATIONS[name](*full, None, backend="triton").sum(), full)
    for needed in subsets(4):
        leaves = [x.detach().clone().requires_grad_(need) for x, need in zip(full, needed, strict=True)]
        result = OPERATIONS[name](*leaves, None, backend="triton")
        assert result.requires_grad == any(needed)
        if any(needed):
            result.sum().backward()
        for x, g in zip(leaves, expected, strict=True):
            assert (x.grad is None) == (not x.requires_grad)
            if x.grad is not None:
                torch.testing.assert_close(x.grad, g, rtol=1e-12, atol=1e-13)


@interpreted
@pytest.mark.parametrize("layout", [lambda x: x.T.contiguous().T, lambda x: x.repeat_interleave(2, 1)[:, ::2]])
def test_strides(layout) -> None:
    leaves = inputs(9, 6, torch.float32)
    expected = value_and_gradients(OPERATIONS[NAMES[0]], leaves, "triton")
    strided = [layout(x.detach()) for x in leaves[:4]] + [leaves[4]]
    for a, b in zip(value_and_gradients(OPERATIONS[NAMES[0]], strided, "triton"), expected, strict=True):
        assert torch.equal(a, b)


@interpreted
def test_chunks_and_shares_join(monkeypatch) -> None:
    """Chunks of 16 of 30 rows, and shares of 16 of 40 columns."""
    x, y = (torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in (30, 40))
    parameters = _parameters(5, torch.float64)
    leaves = (x, y, parameters["weight"], parameters["bias"])

    def step(backend: str) -> list[Tensor]:
        positives, rows = F.critic_log_sum_exp(x, y, **parameters, backend=backend)
        return [rows, *torch.autograd.grad((rows * rows - positives).sum(), leaves)]

    monkeypatch.setattr(one_layer_triton, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(operands_triton, "_PROGRAMS", 9)
    for a, b in zip(step("triton"), step("reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@interpreted
@pytest.mark.parametrize("scale", [1e-4, 1e2])
@pytest.mark.parametrize("clip", [None, 5.0])
def test_small_and_large_scores(clip, scale) -> None:
    """Up to 1e4: log-sum-exps have no digits to spare, and the weights of pairs come from their differences."""
    x, y = (scale * torch.randn(20, 6).double() for _ in range(2))
    weight = scale * torch.randn(6).double()
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
        leaves = [z.to(dtype).requires_grad_() for z in (x, y, weight)]
        options = {"score": "additive", "columns": True, "clip": clip, "backend": backend}
        positives, rows, columns = F.critic_log_sum_exp(*leaves, **options)
        results.append([rows, columns, *torch.autograd.grad((rows - positives + columns).sum(), leaves)])
    for a, b in zip(*results, strict=True):
        assert (a.double() - b).abs().max() <= 3e-3 * b.abs().max()


@interpreted
def test_nan_is_kept_and_a_tie_has_no_gradient() -> None:
    x, y = torch.randn(2, 5, 3)
    x[1, 1] = math.nan
    for leaves in ((x, y), (y, x)):
        parameters = _parameters(3)
        for function in (F.critic_log_sum_exp, F.critic_softplus):
            found = function(*leaves, **parameters, backend="triton")
            expected = function(*leaves, **parameters, backend="reference")
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a.isnan(), b.isnan())
    x = torch.zeros(4, 3, requires_grad=True)
    _, rows = F.critic_log_sum_exp(x, torch.zeros(4, 3), **_parameters(3), backend="triton")
    rows.sum().backward()
    assert torch.equal(x.grad, torch.zeros(4, 3))


def test_what_has_no_kernel_says_why() -> None:
    x = torch.randn(4, 3)
    for function in (F.critic_softplus, F.critic_log_sum_exp):
        with pytest.raises(RuntimeError, match=r"'triton' cannot be used: .*not for float64|it serves"):
            function(x.double(), x.double(), backend="triton")
    x, hidden = x.double(), (torch.randn(2, 3).double(), torch.randn(2).double())
    with pytest.raises(
        RuntimeError, match=r"'triton' cannot be used: .*two hidden layers are not for float64|it serves"
    ):
        F.critic_log_sum_exp(x, x, hidden[1], hidden=hidden, score="additive", backend="triton")


def _two_layers(h: int, g: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Weight, bias, W and c."""
    shapes = ((g,), (), (g, h), (g,))
    return [(0.5 * torch.randn(shape)).to(device, dtype).requires_grad_() for shape in shapes]


def _of_two_layers(leaves: list[Tensor], backend: str, softplus: bool = False, **options: object) -> list[Tensor]:
    """Values, and the gradients of all for uneven upstream gradients."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    x, y, weight, bias, *hidden = leaves
    function = F.critic_softplus if softplus else F.critic_log_sum_exp
    found = function(x, y, weight, bias, tuple(hidden), score="additive", backend=backend, **options)
    upstreams = [a * torch.linspace(-0.7, 1.3, len(z)).to(z) for a, z in zip((1.0, 1.0, -0.3), found, strict=False)]
    return [*found, *torch.autograd.grad(found, leaves, upstreams)]


OPTIONS = [{}, {"columns": True, "clip": 1.0}, {"positive": True, "columns": True}, {"softplus": True}]


@interpreted
@pytest.mark.parametrize(
    ("options", "n", "h", "g", "dtype"),
    [
        *(
            (options, 17, 9, 20, dtype)
            for options, dtype in zip(OPTIONS, (torch.float32, torch.float16) * 2, strict=True)
        ),
        *((OPTIONS[2], 1, 1, 1, dtype) for dtype in (torch.float32, torch.float16)),
    ],
    ids=str,
)
def test_two_layers_err_no_more_than_plain_pytorch(options, n, h, g, dtype) -> None:
    """One pair, which only the positive's own score is a sum of, and several tiles, of dtypes in turn."""
    columns = n if options.get("columns") else n + 5
    leaves = [torch.randn(n, h).to(dtype), torch.randn(columns, h).to(dtype), *_two_layers(h, g, dtype)]
    _embeddings_err_no_more_than_plain_pytorch(lambda x, backend: _of_two_layers(x, backend, **options), leaves)


@interpreted
@pytest.mark.parametrize("options", OPTIONS[1::2], ids=str)
def test_two_layers_in_chunks_and_shares(options, monkeypatch) -> None:
    """Chunks of 16 x 16 pairs, ragged ones among them; and the same result twice, and as the CPU's kernels have it."""
    monkeypatch.setattr(two_layers_triton, "_PAIRS_BYTES", 1)
    monkeypatch.setattr(operands_triton, "_PROGRAMS", 9)
    leaves = [torch.randn(18, 5), torch.randn(18, 5), *_two_layers(5, 9, torch.float32)]
    found = _of_two_layers(leaves, "triton", **options)
    assert all(torch.equal(a, b) for a, b in zip(found, _of_two_layers(leaves, "triton", **options), strict=True))
    for backend in ("reference", "cpu"):
        for a, b in zip(found, _of_two_layers(leaves, backend, **options), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, b.abs().max().item()))


@interpreted
@pytest.mark.parametrize("name", TWO_LAYERS)
def test_two_layers_with_subsets_of_inputs_that_need_gradients(name) -> None:
    full = inputs(4, 3, torch.float32)[:4]
    expected = torch.autograd.grad(OPERATIONS[name](*full, None, backend="triton").sum(), full)
    for needed in subsets(4):
        leaves = [x.detach().clone().requires_grad_(need) for x, need in zip(full, needed, strict=True)]
        result = OPERATIONS[name](*leaves, None, backend="triton")
        assert result.requires_grad == any(needed)
        if any(needed):
            result.sum().backward()
        for x, g in zip(leaves, expected, strict=True):
            assert (x.grad is None) == (not x.requires_grad)
            if x.grad is not None:
                assert torch.equal(x.grad, g)


@interpreted
@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_two_layers_small_and_large_with_strides_and_duplicates(scale) -> None:
    x, y = scale * torch.randn(6, 18).T, scale * torch.randn(18, 12)[:, ::2]
    x[9:] = x[:9].clone()
    leaves = [x, y, *_two_layers(6, 7, torch.float32)]
    _embeddings_err_no_more_than_plain_pytorch(
        lambda x, backend: _of_two_layers(x, backend, columns=True), leaves, 1e-6
    )


@interpreted
def test_two_layers_keep_nan_and_a_tie_has_no_gradient() -> None:
    x, y = torch.randn(2, 19, 3)
    parameters = _two_layers(3, 4, torch.float32)
    broken = x.clone()
    broken[4, 1] = math.nan
    for leaves in ((broken, y), (y, broken)):
        for softplus in (False, True):
            found = _of_two_layers([*leaves, *parameters], "triton", softplus, positive=True)
            expected = _of_two_layers([*leaves, *parameters], "reference", softplus, positive=True)
            for a, b in zip(found[:2], expected[:2], strict=True):
                assert torch.equal(a.isnan(), b.isnan())
            assert all(g.isnan().any() for g in found[2:])
    zero = torch.zeros(5, 3)
    found = _of_two_layers([zero, zero, *parameters[:3], torch.zeros(4)], "triton")
    assert all((g == 0).all() for g in (found[2], found[3], found[6], found[7]))


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spills(capability) -> None:
    asked_for = {"POSITIVE": False, "CLIPPED": True, "UNITS": one_layer_triton.UNITS_AT_ONCE}
    sums = shipped("critic.sums", capability, "ieee", 256)
    compilations = []

    def add(
        module: str, kernel: str, tile: Tile, element: str, pointers: str, integers: str, **constants: object
    ) -> None:
        types = dict.fromkeys(pointers.split(), f"*{element}:16") | dict.fromkeys(integers.split(), "i32")
        types |= {"clip": "fp32"} if "CLIPPED" in constants else {}
        types |= {} if constants.get("SOFTPLUS", True) else dict.fromkeys(("row_lse", "column_lse"), "*fp64:16")
        constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns}
        compilations.append((module, kernel, types, constants, {"num_warps": tile.warps}))

    scores = "u n weight row_offsets column_offsets"
    for element, softplus in product(("fp32", "fp64"), (False, True)):
        tile, options = shipped("critic.scores", capability, "float64" if element == "fp64" else "ieee", 256), asked_for
        options = options | {"SOFTPLUS": softplus}
        integers = "rows columns units u_stride n_stride share offset"
        add(OPERANDS, "_reduce", tile, element, f"{scores} positives maxima totals", integers, **options)
        pointers = f"{scores} grad_positives grad_rows g g_transposed" + ("" if softplus else " grad_columns")
        integers = "first rows columns units u_stride n_stride g_stride transposed_stride offset"
        add(ONE_LAYER, "_grad_scores", tile, element, pointers, integers, **options)
        integers, options = "first count units g_stride", {"OF_ROWS": softplus, "ADD": True, "PIECE": 64}
        add(ONE_LAYER, "_sum_active", sums, element, "owners others g sums", integers, **options)
    assert_compiled_without_spills(compilations, capability)


@pytest.mark.parametrize("capability", [80, 90])
def test_two_layers_compile_without_spills(capability) -> None:
    cases = []
    for element, how in (("bf16", "half"), ("fp32", "tf32"), ("fp32", "ieee")):
        tile = shipped("critic.two_layers", capability, how, 256)
        constants = {"ROWS": tile.rows, "COLUMNS": tile.columns, "UNITS": two_layers_triton.UNITS_AT_ONCE, "SECOND": 64}
        constants |= {"PRECISION": "ieee" if how == "ieee" else "tf32"}
        constants |= {"SOFTPLUS": False, "POSITIVE": False, "CLIPPED": True}
        numbers = dict.fromkeys(("u", "n", "v", "hidden_weight", "first_layer", "second_layer"), f"*{element}:16")
        wide = "weight row_offsets column_offsets hidden_bias sums totals"
        wide += " positives maxima grad_positives grad_rows grad_columns"
        numbers |= dict.fromkeys(wide.split(), "*fp32:16")
        numbers |= dict.fromkeys(("row_lse", "column_lse"), "*fp64:16") | {"clip": "fp32"}
        numbers |= dict.fromkeys(
            ("rows", "columns", "share", "offset", "first_row", "first_column", "chunk_columns"), "i32"
        )
        numbers |= dict.fromkeys(("units", "second_units", "u_stride", "n_stride"), "i32:16")
        warps = {"num_warps": tile.warps}
        cases.append((OPERANDS, "_reduce", numbers, constants, warps))
        cases.append((TWO_LAYERS_MODULE, "_grad_second_layer", numbers, constants, warps))
        pointers = dict.fromkeys(("owners", "others", "pairs"), f"*{element}:16") | {"sums": "*fp32:16"}
        integers = {"count": "i32", "units": "i32:16", "owner_stride": "i32", "other_stride": "i32"}
        sizes = {"OTHERS": 16, "UNITS": 64}
        cases.append((TWO_LAYERS_MODULE, "_sum_pairs", pointers | integers, sizes, {"num_warps": 4}))
    assert_compiled_without_spills(cases, capability)


@pytest.mark.parametrize("capability", [80, 90])
def test_embeddings_compile_without_spills(capability) -> None:
    """The heaviest: both ways and clipped, upstream gradients apart, the positive out; and softplus sums."""
    log_sum_exp = asked.CLAMPED | asked.TWO_WAY | asked.POSITIVE_EXCLUDED
    apart, positive_out = log_sum_exp | asked.APART, asked.POSITIVE_EXCLUDED
    cases = [
        ("_reduce", 512, log_sum_exp),
        ("_reduce", 128, log_sum_exp),
        ("_reduce", 512, positive_out, "softplus"),
        ("_grad_chunk", 512, apart),
        ("_grad_chunk", 512, positive_out, "softplus"),
        ("_recompute", 128, apart),
        ("_recompute", 128, positive_out, "softplus"),
    ]
    assert_compiled_without_spills(
        [of_pairwise_engine(kernel, capability, *case) for kernel, *case in cases], capability
    )


def _on_gpu(n: int, h: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(n, h, device="cuda").to(dtype).requires_grad_() for _ in range(2)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("function", [F.critic_log_sum_exp, F.critic_softplus])
def test_on_a_gpu_errs_no_more_than_plain_pytorch(function, dtype) -> None:
    leaves = [*_on_gpu(300, 70, dtype)]
    parameters = _parameters(70, dtype, "cuda")

    def step(leaves: list[Tensor], parameters: dict[str, object], backend: str) -> list[Tensor]:
        positives, sums = function(*leaves, **parameters, backend=backend)
        sources = (*leaves, parameters["weight"], parameters["bias"])
        return [positives, sums, *torch.autograd.grad((sums - 0.5 * positives).mean(), sources)]

    wide = {k: v.detach().double().requires_grad_() if isinstance(v, Tensor) else v for k, v in parameters.items()}
    exact = step([x.detach().double().requires_grad_() for x in leaves], wide, "reference")
    plain, found = (step(leaves, parameters, backend) for backend in ("reference", "triton"))
    for a, b, truth in zip(found, plain, exact, strict=True):
        scale = truth.abs().max()
        allowed = 3 * (b.double() - truth).abs().max() + 8 * torch.finfo(a.dtype).eps * scale + 1e-6 * scale
        assert (a.double() - truth).abs().max() <= allowed


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"columns": True, "clip": 1.5}, {"positive": True}], ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 5), (300, 77), (9000, 64)])
def test_embeddings_on_a_gpu(n, d, options, dtype) -> None:
    def step(leaves: list[Tensor], backend: str) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in leaves]
        function = F.critic_log_sum_exp if options else F.critic_softplus
        found = function(*leaves, **options, backend=backend)
        upstreams = [torch.linspace(-0.7, 1.3, len(z), device="cuda").to(z) for z in found]
        return [*found, *torch.autograd.grad(found, leaves, upstreams)]

    leaves = [(torch.randn(n, d, device="cuda") / d**0.25).to(dtype) for _ in range(2)]
    _embeddings_err_no_more_than_plain_pytorch(step, leaves)
    assert all(torch.equal(a, b) for a, b in zip(step(leaves, "triton"), step(leaves, "triton"), strict=True))


@pytest.mark.gpu
def test_on_a_gpu_many_rows_repeat_bit_for_bit_and_under_autocast() -> None:
    leaves, parameters = _on_gpu(10000, 100, torch.float32), _parameters(100, device="cuda")

    def step() -> list[Tensor]:
        positives, rows, columns = F.critic_log_sum_exp(*leaves, **parameters, columns=True, backend="triton")
        return [rows, columns, *torch.autograd.grad((rows + columns - positives).mean(), leaves)]

    first = step()
    with torch.autocast("cuda", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(step(), first, strict=True))


@pytest.mark.gpu
def test_on_a_gpu_torch_compile_and_cuda_graphs() -> None:
    leaves, parameters = _on_gpu(200, 40, torch.float32), _parameters(40, device="cuda")

    def step(x: Tensor, y: Tensor) -> Tensor:
        positives, rows = F.critic_log_sum_exp(x, y, **parameters, backend="triton")
        return (rows - positives).mean()

    expected = torch.autograd.grad(step(*leaves), leaves)
    compiled = torch.compile(step, fullgraph=True)
    for a, b in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(a, b)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.autograd.grad(step(*leaves), leaves)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = torch.autograd.grad(step(*leaves), leaves)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "h", "g"), [(2, 5, 3), (300, 77, 130), (1000, 256, 128)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_on_a_gpu_two_layers_err_by_the_rounding_of_products(options, n, h, g, dtype) -> None:
    leaves = [torch.randn(n, h).to("cuda", dtype) for _ in range(2)] + _two_layers(h, g, dtype, "cuda")
    with torch.no_grad():
        leaves[4] /= h**0.5
    truth = _of_two_layers([x.double() for x in leaves], "reference", **options)
    # What is multiplied is bfloat16, or has the digits of float16 (tf32) where inputs do.
    rounding = 2e-2 if dtype == torch.bfloat16 else 4e-3 if dtype == torch.float16 else 1e-4
    for a, exact in zip(_of_two_layers(leaves, "triton", **options), truth, strict=True):
        finite = exact.isfinite()
        assert torch.equal(a.isfinite(), finite)
        assert (a.double() - exact)[finite].norm() <= rounding * exact[finite].norm().clamp(min=1.0)


@pytest.mark.gpu
def test_on_a_gpu_two_layers_repeat_and_graphs_capture_them() -> None:
    leaves = [torch.randn(700, 100, device="cuda") for _ in range(2)] + _two_layers(100, 90, torch.float32, "cuda")
    expected = _of_two_layers(leaves, "triton", columns=True)
    assert all(torch.equal(a, b) for a, b in zip(_of_two_layers(leaves, "triton", columns=True), expected, strict=True))
    assert_a_graph_repeats(
        lambda: _of_two_layers(leaves, "triton", columns=True), lambda: leaves[0].copy_(leaves[1].flip(0))
    )
