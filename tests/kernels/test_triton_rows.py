"""Triton kernels that take a sample, or a few, at a time: Gaussian terms, projections and OVA-IB's keys.

Without a GPU they run in Triton's interpreter, a fifth of a second a sample of a projection, so shapes are small.
"""

from __future__ import annotations

import math

import pytest
import torch
from cuda_graphs import assert_a_graph_repeats
from operations import OPERATIONS, inputs, value_and_gradients
from torch import Tensor
from triton_compilation import SHARED_MEMORY, assert_compiled_without_spills

from mibfast import functional as F
from mibfast.kernels.launch_configuration import LARGEST_M, elementwise_tile, sample_tile, tokens_tile
from mibfast.kernels.projection import reference

pytest.importorskip("triton")

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU")

ELEMENTWISE = [
    "gaussian_kl",
    "gaussian_kl, prior",
    "product_of_experts",
    "product_of_experts, one",
    "one_vs_all_minimality",
]
FUSION = ["reparameterised_gaussian", "reparameterised_gaussian, modalities", "token_attention"]
PROJECTIONS = [
    "ridge_projection",
    "ridge_projection, ridge",
    "leave_one_out_projection",
    "leave_one_out_projection, ridge",
]
ONE_VS_ALL = ["one_vs_all_info_nce", "one_vs_all_info_nce, each", "one_vs_all_info_nce, positive in"]
SIZES = {name: [(1, 1), (5, 7), (3, 1500)] for name in [*ELEMENTWISE, *FUSION]} | {
    name: [(1, 5), (3, 33), (2, 300)] for name in PROJECTIONS
}
# All tokens of a sample are in one tile.
SIZES["token_attention"] = [(1, 1), (5, 7), (3, 700)]


def _close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


@interpreted
@pytest.mark.parametrize(("name", "n", "d"), [(name, *size) for name, sizes in SIZES.items() for size in sizes])
def test_float64_agrees_with_reference_and_cpu(name, n, d) -> None:
    leaves = inputs(n, d)
    found = value_and_gradients(OPERATIONS[name], leaves, "triton")
    for backend in ("reference", "cpu"):
        _close(found, value_and_gradients(OPERATIONS[name], leaves, backend), 1e-11)


def _errs_no_more_than_plain_pytorch(name: str, leaves: list[Tensor]) -> None:
    """Against float64 on the same rounded inputs: three times the reference's own error, and a few roundings."""
    truth = value_and_gradients(OPERATIONS[name], [x.detach().double() for x in leaves], "reference")
    plain = value_and_gradients(OPERATIONS[name], leaves, "reference")
    found = value_and_gradients(OPERATIONS[name], leaves, "triton")
    for a, b, exact in zip(found, plain, truth, strict=True):
        assert a.dtype == b.dtype
        scale = exact.abs().max()
        rounding = torch.finfo(leaves[0].dtype).eps if name in ONE_VS_ALL else torch.finfo(a.dtype).eps
        allowed = 3 * (b.double() - exact).abs().max() + 8 * rounding * scale + 1e-6 * scale
        assert (a.double() - exact).abs().max() <= allowed


# The interpreter multiplies bfloat16 wrongly.
@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*ELEMENTWISE, *FUSION, *PROJECTIONS, *ONE_VS_ALL])
def test_error_is_that_of_plain_pytorch(name, dtype) -> None:
    _errs_no_more_than_plain_pytorch(name, inputs(4, 24, dtype))


@interpreted
@pytest.mark.parametrize("name", [*ELEMENTWISE, *FUSION, *PROJECTIONS[::2], *ONE_VS_ALL[:2]])
def test_each_gradient_alone(name) -> None:
    dtype = torch.float32 if name in ONE_VS_ALL else torch.float64
    full = inputs(2, 6, dtype)
    truth = OPERATIONS[name](*full, backend="reference")
    gradients = torch.autograd.grad(truth.sum(), full, allow_unused=True)
    for position, expected in enumerate(gradients):
        leaves = [x.detach().clone().requires_grad_(k == position) for k, x in enumerate(full)]
        result = OPERATIONS[name](*leaves, backend="triton")
        assert result.requires_grad == (expected is not None)
        if expected is None:
            continue
        # The gradient of a sum comes with strides of zero.
        result.sum().backward()
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(leaves[position].grad, expected, rtol=tolerance, atol=tolerance)
        assert all(x.grad is None for k, x in enumerate(leaves) if k != position)


@interpreted
@pytest.mark.parametrize("name", [*ELEMENTWISE, *FUSION, *PROJECTIONS[::2], ONE_VS_ALL[0]])
def test_strides_and_inputs_that_are_not_written_to(name) -> None:
    plain = inputs(3, 6, torch.float32)
    expected = value_and_gradients(OPERATIONS[name], plain, "triton")
    a, b, c, d, tau = (x.detach() for x in plain)
    strided = [
        a.T.contiguous().T,
        torch.stack([b, b + 9], 2).flatten(1)[:, ::2],
        torch.cat([c, c - 5], 1)[:, :6],
        torch.stack([d, d + 9], 1).flatten(0, 1)[::2],
    ]
    kept = [x.clone() for x in strided]
    leaves = [x.requires_grad_() for x in (*strided, tau.clone())]
    result = OPERATIONS[name](*leaves, backend="triton")
    upstream = torch.linspace(-0.7, 1.3, result.numel(), dtype=torch.float64).view(result.shape).to(result)
    # Every other number of a tensor twice as wide.
    upstream = torch.stack([upstream, upstream], -1).flatten(-2)[..., ::2] if result.ndim else upstream * 0 + 1.7
    result.backward(upstream)
    found = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    _close([result.detach(), *found], expected, 1e-6)
    assert all(torch.equal(x, y) for x, y in zip(strided, kept, strict=True))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponentials_near_and_far_from_zero(dtype) -> None:
    """KL of mean zero is e^x - 1 - x, halved, and its gradient e^x - 1: nothing may cancel as x goes to zero."""
    near = torch.logspace(-12, 0, 49, dtype=torch.float64)
    x = torch.cat([near, -near, torch.linspace(-60, 60, 241, dtype=torch.float64)])
    x = x[x != 0].to(dtype)[:, None].requires_grad_()
    loss = F.gaussian_kl(torch.zeros_like(x), x, reduction="none", backend="triton")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    wide = x.detach().double().squeeze(1)
    # Of torch.expm1(x) - x the leading term is lost for small x: there, its series.
    series = wide**2 * (0.5 + wide / 6 + wide**2 / 24 + wide**3 / 120)
    truth = 0.5 * torch.where(wide.abs() < 1e-3, series, torch.expm1(wide) - wide)
    eps = torch.finfo(dtype).eps
    assert ((loss.double() - truth) / truth).abs().max() <= 16 * eps + 1e-12
    exact = 0.5 * torch.expm1(wide)
    assert ((gradient.double().squeeze(1) - exact) / exact).abs().max() <= 8 * eps


@interpreted
def test_experts_whose_precisions_overflow() -> None:
    means = [torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, -7.0]])]
    logvars = [torch.tensor([[-200.0, 150.0]]), torch.tensor([[-202.0, 160.0]])]
    found = F.product_of_experts(means, logvars, backend="triton")
    for a, b in zip(found, F.product_of_experts(means, logvars, backend="reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@interpreted
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_minimality_of_aligned_embeddings(scale) -> None:
    """1e-4 apart: the difference of two sums of squares would have no correct digit."""
    common = torch.randn(5, 40)
    z = [scale * (common + 1e-4 * torch.randn(5, 40)) for _ in range(4)]
    found = F.one_vs_all_minimality(z, backend="triton").double()
    truth = F.one_vs_all_minimality([x.double() for x in z], backend="reference")
    assert abs(found / truth - 1) <= 1e-6
    assert F.one_vs_all_minimality([scale * common] * 4, backend="triton") == 0


@interpreted
@pytest.mark.parametrize("name", [*ELEMENTWISE, *PROJECTIONS[::2]])
def test_nan_stays_and_stays_in_its_sample(name) -> None:
    leaves = inputs(3, 5, torch.float32)
    with torch.no_grad():
        leaves[1][1, 2] = math.nan
    value, *gradients, _ = value_and_gradients(OPERATIONS[name], leaves, "triton")
    if name == "one_vs_all_minimality":
        # The mean over samples is in every gradient through its upstream alone.
        assert value.isnan()
    else:
        # The samples are the first or, of several results, the second dimension.
        of_samples = value if value.ndim == 1 else value.reshape(-1, 3, 5).sum((0, 2))
        assert of_samples.isnan().tolist() == [False, True, False]
    assert any(g.isnan().any() for g in gradients)
    assert not any(g[[0, 2]].isnan().any() for g in gradients)


@interpreted
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("apart", [0.0, 1e-4])
def test_projections_of_aligned_embeddings(apart, scale) -> None:
    common = torch.randn(2, 16)
    z = [scale * (common + apart * torch.randn(2, 16)) for _ in range(3)]
    leaves = [x.clone().requires_grad_() for x in z]
    found = F.leave_one_out_projection(leaves, backend="triton")
    truth = F.leave_one_out_projection([x.double() for x in z], backend="reference")
    assert (found.double() - truth).norm() <= 2e-7 * truth.norm()
    found.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)
    for backend in ("triton", "cpu"):
        single = F.ridge_projection(z[0], torch.stack(z[1:], 1), backend=backend)
        assert (single.double() - truth[0]).norm() <= 2e-7 * truth[0].norm()


@interpreted
def test_zero_vectors_have_zero_gradients() -> None:
    z = [torch.randn(3, 6) for _ in range(3)]
    z[1][2] = 0
    leaves = [x.clone().requires_grad_() for x in z]
    value = F.one_vs_all_info_nce(leaves, 0.1, backend="triton")
    value.backward()
    torch.testing.assert_close(value.detach(), F.one_vs_all_info_nce(z, 0.1, backend="reference"), rtol=1e-5, atol=1e-5)
    assert all(x.grad.isfinite().all() for x in leaves)
    assert (leaves[1].grad[2] == 0).all()


@interpreted
@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("apart", [0.0, 1e-4])
def test_one_vs_all_of_aligned_embeddings(apart, scale) -> None:
    """At the paper's temperature; the ridge alone separates exact duplicates."""
    common = torch.randn(4, 16)
    leaves = [(scale * (common + apart * torch.randn(4, 16))).requires_grad_() for _ in range(3)]
    value = F.one_vs_all_info_nce(leaves, 0.01, backend="triton")
    truth = F.one_vs_all_info_nce([x.detach().double() for x in leaves], 0.01, backend="reference")
    assert abs(value.item() - truth.item()) <= 1e-6 * abs(truth.item())
    value.backward()
    assert all(x.grad.isfinite().all() for x in leaves)


@interpreted
def test_nan_in_one_vs_all() -> None:
    z = [torch.randn(3, 8, requires_grad=True) for _ in range(3)]
    with torch.no_grad():
        z[2][1, 5] = math.nan
    value = F.one_vs_all_info_nce(z, 0.1, backend="triton")
    value.backward()
    assert value.isnan()
    assert all(x.grad.isnan().any() for x in z)


@interpreted
@pytest.mark.parametrize("m", [2, 9, 16])
def test_number_of_modalities(m) -> None:
    z = torch.randn(m, 2, 40, dtype=torch.float64)
    for operation in (F.leave_one_out_projection, F.one_vs_all_minimality):
        leaf = z.clone().requires_grad_()
        truth = operation(leaf, backend="reference")
        upstream = torch.randn_like(truth)
        (exact,) = torch.autograd.grad(truth, leaf, upstream)
        found = operation(leaf, backend="triton")
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(found, leaf, upstream)[0], exact, rtol=1e-10, atol=1e-12)


@interpreted
def test_what_the_kernels_cannot_take_is_said() -> None:
    z = torch.randn(17, 2, 3)
    with pytest.raises(RuntimeError, match="leave_one_out_projection: backend 'triton' cannot be used: M = 17"):
        F.leave_one_out_projection(z, backend="triton")
    with pytest.raises(RuntimeError, match="product_of_experts: backend 'triton' cannot be used: M = 17"):
        F.product_of_experts(z, z, backend="triton")
    with pytest.raises(RuntimeError, match="ridge_projection: backend 'triton' cannot be used: K = 17"):
        F.ridge_projection(torch.randn(2, 3), torch.randn(2, 17, 3), backend="triton")
    with pytest.raises(RuntimeError, match=r"one_vs_all_info_nce: .* M = 9, and its kernels of all pairs take M <= 8"):
        F.one_vs_all_info_nce(z[:9], keys="pairwise", backend="triton")
    with pytest.raises(RuntimeError, match=r"one_vs_all_info_nce: .* cannot be used: its kernels are not for float64"):
        F.one_vs_all_info_nce(z[:3].double(), backend="triton")


@interpreted
@pytest.mark.parametrize("with_grams", [True, False])
@pytest.mark.parametrize(("k", "ridge"), [(1, 1e-8), (3, 0.3), (16, 0.3)])
def test_whitened_bases(k, ridge, with_grams) -> None:
    from mibfast.kernels.projection import whitening_triton as projection

    contexts = [torch.randn(2, 21, dtype=torch.float64, requires_grad=True) for _ in range(k)]
    upper = torch.triu_indices(k, k)
    bases, full = reference.whitened_bases(torch.stack(contexts, 1), ridge)
    grams = full[:, upper[0], upper[1]].T
    found = projection.whitened_bases(contexts, ridge, torch.float64)
    torch.testing.assert_close(found[0], bases.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], grams.detach(), rtol=1e-10, atol=1e-12)
    g, h = torch.randn_like(bases), torch.randn_like(grams) if with_grams else None
    loss = (bases * g).sum() + ((grams * h).sum() if h is not None else 0.0)
    already = [torch.randn_like(x) for x in contexts]
    gradients = [x.clone() for x in already]
    projection.whitened_bases_backward(g, h, contexts, ridge, gradients)
    for found_, before, exact in zip(gradients, already, torch.autograd.grad(loss, contexts), strict=True):
        torch.testing.assert_close(found_ - before, exact, rtol=1e-9, atol=1e-10)


_D, _STRIDE, _INT = 256, "i64:16", "i32"


def _gaussian(name: str, matrices: int, types: dict[str, object], dtype: str, **constants: object) -> tuple:
    tile = elementwise_tile(_D, matrices, torch.float64 if dtype == "fp64" else torch.float32)
    wide = "triton.language:float64" if dtype == "fp64" else "triton.language:float32"
    constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns, "D": _D, "DTYPE": wide}
    types = types | {"N": _INT}
    return "mibfast.kernels.gaussian.triton", name, types, constants, {"num_warps": tile.warps}


def _gaussian_kernels(dtype: str, m: int) -> list[tuple]:
    """Each with the most that it takes: a prior, M experts."""
    x, wide = f"*{dtype}:16", "*fp64:16" if dtype == "fp64" else "*fp32:16"
    four = {"tensors": [x] * 4, "strides": [_STRIDE] * 4}
    experts = {"tensors": [x] * 2 * m, "strides": [_STRIDE] * 2 * m}
    z = {"z": [x] * m, "strides": [_STRIDE] * m}
    of_four, of_z = {"upstream": wide, "gradients": [x] * 4}, {"upstream": wide, "gradients": [x] * m}
    of_experts = {"upstream": [x] * 2, "upstream_strides": [_STRIDE] * 2, "gradients": [x] * 2 * m}
    return [
        _gaussian("_kl", 4, four | {"out": wide}, dtype, PRIOR=True),
        _gaussian("_kl_backward", 8, four | of_four, dtype, PRIOR=True),
        _gaussian("_product", 2 * m, experts | {"mean": x, "logvar": x}, dtype, M=m),
        _gaussian("_product_backward", 2 * m + 2, experts | of_experts, dtype, M=m),
        _gaussian("_minimality", m, z | {"partial": "*fp64:16"}, dtype, M=m),
        _gaussian("_minimality_backward", m, z | of_z, dtype, M=m),
    ]


def _projection(name: str, vectors: int, types: dict[str, object], **constants: object) -> tuple:
    tile = sample_tile(_D, vectors)
    constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns, "D": _D}
    module = "whitening_triton" if "whiten" in name else "triton"
    return f"mibfast.kernels.projection.{module}", name, types, constants, {"num_warps": tile.warps}


def _fusion_kernels(dtype: str, m: int, tokens: list[tuple[int, int]]) -> list[tuple]:
    """Samples of M modalities, of noises that need gradients, and attention among tokens (M, k)."""
    precision = torch.float64 if dtype == "fp64" else torch.float32
    x, wide = f"*{dtype}:16", "*fp64:16" if dtype == "fp64" else "*fp32:16"
    of_dtype = "triton.language:float64" if dtype == "fp64" else "triton.language:float32"
    module = "mibfast.kernels.fusion.triton"
    given = {"tensors": [x] * 3 * m, "strides": [_STRIDE] * 3 * m, "N": _INT}
    above = {"sample_upstream": x, "sample_stride": _STRIDE, "divergence_upstream": wide, "gradients": [x] * 3 * m}
    compilations = []
    for name, matrices, types in (
        ("_samples", 4, {"samples": x, "divergences": wide}),
        ("_samples_backward", 18 if dtype == "fp64" else 9, above),
    ):
        tile = elementwise_tile(_D, matrices, precision)
        constants = {"D": _D, "M": m, "LOW": -10.0, "HIGH": 4.0, "OF_NOISE": True, "DTYPE": of_dtype}
        constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns}
        compilations.append((module, name, given | types, constants, {"num_warps": tile.warps}))
    for count, d in tokens:
        tile = tokens_tile(count, d, precision)
        constants = {"M": count, "D": d, "SCALE": d**-0.5, "DTYPE": of_dtype}
        constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns}
        types = dict.fromkeys(("query", "key", "value"), x) | {"scale": "fp32"}
        types |= {f"{argument}_stride": _STRIDE for argument in ("query", "key", "value")}
        options = {"num_warps": tile.warps}
        compilations.append((module, "_attend", types | {"out": x}, constants, options))
        types |= {"upstream": x, "upstream_stride": _STRIDE, "gradients": [x] * 3}
        compilations.append((module, "_attend_backward", types, constants, options))
    return compilations


def _leave_one_out_kernels(m: int) -> list[tuple]:
    """With unit queries and keys, which take more than projections alone."""
    x, wide = "*bf16:16", "*fp64:16"
    z = {"z": [x] * m, "strides": [_STRIDE] * m, "inverse": wide, "key_scales": wide, "N": _INT}
    results = {"projections": [x] * m, "projection_strides": [_STRIDE] * m}
    units = {"units": [x] * m, "unit_strides": [_STRIDE] * m}
    upstream = {"upstream": [x] * m, "upstream_strides": [_STRIDE] * m, "gradients": [x] * m}
    of_units = {"unit_upstream": [x] * m, "unit_upstream_strides": [_STRIDE] * m}
    return [
        _projection("_leave_one_out", m, z | results | units, M=m, RIDGE=1e-8, UNIT=True),
        _projection("_leave_one_out_backward", m, z | upstream | of_units, M=m, WEIGHT=0.25, UNIT=True),
    ]


def _basis_kernels(k: int) -> list[tuple]:
    x, wide = "*bf16:16", "*fp32:16"
    basis = {"target": x, "target_stride": _STRIDE, "basis": x, "basis_stride": _STRIDE, "vector_stride": _STRIDE}
    of_basis = {"upstream": x, "upstream_stride": _STRIDE, "grad_target": x, "grad_basis": x}
    contexts = {"contexts": [x] * k, "strides": [_STRIDE] * k, "N": _INT}
    whitened = {"bases": wide, "grams": wide}
    of_whitened = {"grad_bases": wide, "grad_grams": wide, "gradients": [wide] * k}
    return [
        _projection("_ridge_projection", k, basis | {"out": x}, K=k, RIDGE=1e-8),
        _projection("_ridge_projection_backward", k, basis | of_basis, K=k, RIDGE=1e-8),
        _projection("_whiten", k, contexts | whitened, K=k, RIDGE=1e-8),
        _projection("_whiten_backward", k, contexts | of_whitened, K=k, RIDGE=1e-8),
    ]


KERNELS = {
    "Gaussian terms, bfloat16": lambda: _gaussian_kernels("bf16", LARGEST_M),
    "Gaussian terms, float64": lambda: _gaussian_kernels("fp64", LARGEST_M),
    "fusion, bfloat16": lambda: _fusion_kernels("bf16", LARGEST_M, [(2, 256), (8, 256), (8, 1024)]),
    "fusion, float64": lambda: _fusion_kernels("fp64", LARGEST_M, [(2, 256), (8, 512)]),
    "projections of modalities": lambda: [x for m in (4, 5, LARGEST_M) for x in _leave_one_out_kernels(m)],
    "projections on a basis": lambda: _basis_kernels(LARGEST_M),
}


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("kernels", KERNELS)
def test_kernels_compile_without_spills(kernels, capability) -> None:
    assert_compiled_without_spills(KERNELS[kernels](), capability)


ON_GPU = [*ELEMENTWISE, *FUSION, *PROJECTIONS, *ONE_VS_ALL]


def _on_gpu(n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    return [x.detach().cuda().requires_grad_() for x in inputs(n, d, dtype)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ON_GPU)
def test_error_on_a_gpu_is_that_of_plain_pytorch(name, dtype) -> None:
    _errs_no_more_than_plain_pytorch(name, _on_gpu(1003, 200, dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*ELEMENTWISE, *FUSION, *PROJECTIONS])
def test_float64_on_a_gpu(name) -> None:
    leaves = _on_gpu(1003, 200, torch.float64)
    found = value_and_gradients(OPERATIONS[name], leaves, "triton")
    _close(found, value_and_gradients(OPERATIONS[name], leaves, "reference"), 1e-11)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_results_on_a_gpu_repeat_bit_for_bit(name) -> None:
    leaves = _on_gpu(20011, 96, torch.bfloat16)
    first, second = (value_and_gradients(OPERATIONS[name], leaves, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_autocast_on_a_gpu_changes_nothing(name) -> None:
    leaves = _on_gpu(65, 48, torch.float32)
    expected = OPERATIONS[name](*leaves, backend="triton")
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(OPERATIONS[name](*leaves, backend="triton"), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_compiled_graphs_on_a_gpu(name) -> None:
    leaves = _on_gpu(65, 48, torch.float32)
    plain = value_and_gradients(OPERATIONS[name], leaves, "triton")
    compiled = torch.compile(OPERATIONS[name], fullgraph=True)
    for a, b in zip(value_and_gradients(compiled, leaves, "triton"), plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_cuda_graphs(name) -> None:
    leaves = _on_gpu(65, 48, torch.float32)

    def step() -> list[Tensor]:
        result = OPERATIONS[name](*leaves, backend="triton")
        gradients = torch.autograd.grad(result.float().square().sum(), leaves, allow_unused=True)
        return [result.detach(), *(g for g in gradients if g is not None)]

    assert_a_graph_repeats(step, lambda: [x.mul_(0.7) for x in leaves[:4]])
