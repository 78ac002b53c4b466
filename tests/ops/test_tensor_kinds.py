"""Tensors that are not what kernels read: without memory, standing for others, of subclasses, lazily negated."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from operations import NAMES, OPERATIONS, inputs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mibfast import functional as F
from mibfast import losses
from mibfast.ops.info_nce import _loss, _Options


def _shape_and_dtype(x: Tensor | None) -> object:
    return None if x is None else (x.shape, x.dtype)


def _value_and_gradients(name: str, leaves: list[Tensor], backend: str | None) -> list[Tensor | None]:
    result = OPERATIONS[name](*leaves, backend=backend)
    return [result, *torch.autograd.grad(result.sum(), leaves, allow_unused=True)]


@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors_get_shapes(name) -> None:
    leaves = inputs(5, 4, torch.float32)
    expected = _value_and_gradients(name, leaves, "cpu")
    values = [x.detach() for x in leaves]
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x).requires_grad_() for x in values]
        found = _value_and_gradients(name, fake, "cpu")
    assert list(map(_shape_and_dtype, found)) == list(map(_shape_and_dtype, expected))


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_get_shapes(name) -> None:
    """By whichever backend, and without a warning that none serves them."""
    leaves = inputs(5, 4, torch.float32)
    expected = _value_and_gradients(name, leaves, "cpu")
    on_meta = [x.detach().to("meta").requires_grad_() for x in leaves]
    found = _value_and_gradients(name, on_meta, None)
    assert list(map(_shape_and_dtype, found)) == list(map(_shape_and_dtype, expected))


def _negated(x: Tensor) -> Tensor:
    """The same numbers, as a view that negates what stands in memory."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize("name", NAMES)
def test_views_that_negate(name) -> None:
    leaves = inputs(5, 4)
    result = OPERATIONS[name](*leaves, backend="cpu")
    expected = torch.autograd.grad(result, leaves, torch.ones_like(result), allow_unused=True)
    negated = [_negated(x.detach()).requires_grad_() for x in leaves]
    found = OPERATIONS[name](*negated, backend="cpu")
    assert torch.equal(found, result)
    upstream = _negated(torch.ones_like(found.detach()))
    for a, b in zip(torch.autograd.grad(found, negated, upstream, allow_unused=True), expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


class _Named(Tensor):
    """A subclass that changes nothing, as libraries make them to carry a label."""


@pytest.mark.parametrize("name", NAMES)
def test_subclasses(name) -> None:
    values = [x.detach() for x in inputs(5, 4)]
    found = OPERATIONS[name](*(x.as_subclass(_Named) for x in values), backend="cpu")
    assert torch.equal(found.as_subclass(Tensor), OPERATIONS[name](*values, backend="cpu"))


@pytest.fixture
def alone(tmp_path) -> Iterator[None]:
    """A world of one process."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


OF_TWO = {
    "info_nce": F.info_nce,
    "one_vs_all_info_nce": lambda x, y: F.one_vs_all_info_nce([x, y]),
    "gaussian_kl": F.gaussian_kl,
    "siglip": F.siglip,
    "top_k": lambda x, y: F.top_k(x, y, 2),
    "leave_one_out_projection": lambda x, y: F.leave_one_out_projection([x, y]),
    "gram_info_nce": lambda x, y: F.gram_info_nce(x, [y]),
    "critic_softplus": F.critic_softplus,
    "barlow_twins": F.barlow_twins,
    "OVAIBLoss": lambda x, y: losses.OVAIBLoss()([x, y]),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", OF_TWO)
def test_distributed_tensors_are_refused_by_name(name) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    x, y = (distribute_tensor(torch.randn(6, 4), mesh) for _ in range(2))
    with pytest.raises(TypeError, match=r"[a-z_]+: a DTensor is spread over devices; give x.full_tensor\(\)"):
        OF_TWO[name](x, y)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("name", OF_TWO)
def test_nested_tensors_are_refused_by_name(name, layout) -> None:
    x, y = (torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(3, 4)], layout=layout) for _ in range(2))
    with pytest.raises(TypeError, match=r"must be a dense tensor, got layout .* in a tensor of nested shapes"):
        OF_TWO[name](x, y)


@pytest.mark.parametrize(
    "name", [name for name in OF_TWO if name not in ("gaussian_kl", "critic_softplus", "OVAIBLoss")]
)
def test_memory_that_was_freed_is_not_read(name) -> None:
    """As FSDP frees that of the parameters that it gathers."""
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    x.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match=f"^{name}: a tensor without memory cannot be read"):
        OF_TWO[name](x, y)


def test_gradients_that_are_zero_without_memory() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    result = F.leave_one_out_projection([x, x.detach().flip(0)])
    (gradient,) = torch.autograd.grad(result, x, torch._efficientzerotensor(result.shape))
    assert torch.equal(gradient, torch.zeros(6, 4))


NUMBERS_ON_META = ["info_nce", "info_nce, each", "siglip", "one_vs_all_info_nce", "gram_info_nce", "symile_info_nce"]


@pytest.mark.parametrize("name", NUMBERS_ON_META)
def test_the_default_device_is_of_no_account(name) -> None:
    """To a temperature that is a number: made on the meta device, it would have a fake kernel answer."""
    *values, _ = (x.detach() for x in inputs(5, 4, torch.float32))
    expected = OPERATIONS[name](*values, 0.5, backend="cpu")
    with torch.device("meta"):
        assert torch.equal(OPERATIONS[name](*values, 0.5, backend="cpu"), expected)


def test_meta_tensors_beside_others_are_refused() -> None:
    """Past the checks of a public function."""
    x = torch.randn(5, 4)
    with pytest.raises(TypeError, match="info_nce: meta tensors stand beside others, got a tensor of shape"):
        _loss(
            "cpu", (x, x.to("meta"), torch.tensor(0.5)), _Options("inner_product", False, 0, True, False, 0.0), "none"
        )
