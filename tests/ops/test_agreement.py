"""Backends agree in float64; shorter dtypes err no more than plain PyTorch of the same dtype."""

import pytest
import torch
from operations import NAMES, OPERATIONS, inputs, value_and_gradients

SIZES = [(2, 1), (3, 2), (17, 33), (600, 8)]


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_float64_agrees(name, n, d) -> None:
    leaves = inputs(n, d)
    truth = value_and_gradients(OPERATIONS[name], leaves, "reference")
    # With fewer dimensions than embeddings only the ridge of 1e-8 separates them: a condition number of 1e9.
    tolerance = 1e-10 if d > 4 else 1e-6
    for a, b in zip(value_and_gradients(OPERATIONS[name], leaves, "cpu"), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


WITHOUT_ONE_SAMPLE = ("positive out", "one_vs_all_info", "barlow_twins")


@pytest.mark.parametrize("name", [n for n in NAMES if not any(part in n for part in WITHOUT_ONE_SAMPLE)])
def test_one_sample(name) -> None:
    leaves = inputs(1, 5)
    truth = value_and_gradients(OPERATIONS[name], leaves, "reference")
    for a, b in zip(value_and_gradients(OPERATIONS[name], leaves, "cpu"), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def _under_autocast(operation):
    """The operation alone: gradients are formed outside, as PyTorch asks for."""

    def run(*arguments, backend):
        with torch.autocast("cpu", torch.bfloat16):
            return operation(*arguments, backend=backend)

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_that_of_plain_pytorch(name, dtype) -> None:
    """Against float64 on the same rounded inputs: three times the reference's own error, and a few roundings.

    Inputs are not written to, and autocast, which is for float32, changes nothing.
    """
    leaves = inputs(70, 24, dtype)
    kept = [x.detach().clone() for x in leaves]
    truth = value_and_gradients(OPERATIONS[name], [x.detach().double() for x in leaves], "reference")
    plain, found = (value_and_gradients(OPERATIONS[name], leaves, backend) for backend in ("reference", "cpu"))
    for a, b, exact in zip(found, plain, truth, strict=True):
        assert a.dtype == b.dtype
        scale = exact.abs().max()
        allowed = 3 * (b.double() - exact).abs().max() + 8 * torch.finfo(a.dtype).eps * scale + 1e-6 * scale
        assert (a.double() - exact).abs().max() <= allowed
    assert all(torch.equal(x, y) for x, y in zip(leaves, kept, strict=True))
    if dtype == torch.float32:
        for backend, expected in (("reference", plain), ("cpu", found)):
            again = value_and_gradients(_under_autocast(OPERATIONS[name]), leaves, backend)
            assert all(torch.equal(x, y) for x, y in zip(again, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_dtypes_of_results(dtype) -> None:
    leaves = inputs(6, 4, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    keeps = ("projection", "product_of_experts", "token_attention")
    for name, operation in OPERATIONS.items():
        for backend in ("cpu", "reference"):
            value, *gradients, _ = value_and_gradients(operation, leaves, backend)
            expected = dtype if name.split(",")[0].endswith(keeps) else wide
            assert value.dtype == expected, (name, backend)
            assert all(g.dtype == dtype for g in gradients)
