"""The boundary between PyTorch and the kernels, made for every operation from one declaration.

An operation is declared once: the folder of its kernels, its operands, its options, and the shapes of its results. From
that come the operations of `torch.library` (its forward, its backward, each with a fake kernel and a rule for `vmap`),
the `autograd.Function`, and the refusal of second derivatives. Launchers have one signature on every backend:

    forward(*operands, *options) -> results, then what the backward needs besides the operands
    backward(*upstream, *operands, *saved, needed, *options) -> a gradient for each operand
    with_gradient(*operands, needed, *options) -> values, then a gradient for each operand

`needed` says of each operand whether its gradient is wanted; what stands in place of the others is ignored. A starred
operand, such as "*embeddings", is any number of tensors, which a launcher takes as a list.

Plain tensors reach the launcher directly: going through `torch.library` would cost tens of microseconds. Under
`torch.compile`, `torch.func`, fake tensors, `make_fx` and other modes, and for subclasses, meta tensors and lazily
negated views, PyTorch's dispatcher decides what happens; what arrives at a launcher then has memory, or is refused by
name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers, _check, _env
from mibfast.kernels import interpreter
from mibfast.kernels.launch_configuration import LARGEST_K, LARGEST_M

_NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
# Tensors that may be read without asking the dispatcher, which every other subclass may redefine.
_PLAIN = (Tensor, torch.nn.Parameter)
_FIRST_ORDER_ONLY = 'is not implemented by the compiled backends; use backend="reference", which has every derivative'


@functools.cache
def kernels(folder: str, backend: str) -> ModuleType:
    """Import `mibfast.kernels.<folder>.<backend>`, on first use: compilers are not loaded by `import mibfast`."""
    if backend == "triton" and _env.triton_interpreted():
        interpreter.mend()
    return importlib.import_module(f"mibfast.kernels.{folder}.{backend}")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of scores and losses: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def offers_up_to_largest_m(symbol: str, count: int) -> dict[str, str | None]:
    """Return the backends of an operation on `count` tensors whose Triton kernels hold all of them at a time."""
    too_many = f"{symbol} = {count}, and its kernels take {symbol} <= {LARGEST_M}" if count > LARGEST_M else None
    return {"cpu": None, "triton": too_many}


def pairwise_offers(x: Tensor, symbol: str = "", count: int = 1, largest: int = LARGEST_K) -> dict[str, str | None]:
    """Return the backends that have kernels of all pairs, for :func:`mibfast._backend.choose`.

    Those of Triton hold `count` vectors a pair, whose number the operation calls `symbol`, and at most `largest`.
    """
    reason = None
    if x.dtype == torch.float64:
        reason = "its kernels are not for float64"
    elif count > largest:
        reason = f"{symbol} = {count}, and its kernels of all pairs take {symbol} <= {largest}"
    return {"cpu": None, "triton": reason}


def inverse_temperature(temperature: float | Tensor) -> float | Tensor:
    """Return 1 / temperature; NaN for a tensor, which is not read back, that is not positive and finite."""
    if isinstance(temperature, Tensor):
        valid = (temperature > 0) & (temperature < torch.inf)
        return torch.where(valid, temperature, torch.nan).reciprocal()
    return 1.0 / temperature


def temperature_tensor(temperature: float | Tensor) -> Tensor:
    """Return a temperature as a 0-d tensor."""
    if isinstance(temperature, Tensor):
        return temperature
    # On the CPU whatever the default device is: kernels read it there.
    return torch.scalar_tensor(temperature, dtype=torch.float64, device="cpu")


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Return the losses of samples for "none", their mean or their sum."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def differentiated(operands: Iterable[Tensor]) -> bool:
    """Whether autograd will want a gradient of an operand."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in operands)


class NoOptions(NamedTuple):
    """The options of an operation that has none."""


class Operation:
    """An operation without a derivative; the base of those with one.

    Parameters
    ----------
    name : str
        Of the public function: errors begin with it, and `torch.ops.mibfast` has it, with "_" and `part` behind it.
    folder : str
        Of `kernels/`.
    operands : str
        Names of the tensors, in the launchers' order, as in "query key temperature"; one may be starred.
    results : callable
        Takes what the forward launcher takes, and the backend, and returns empty tensors like all its results.
    options : type of a NamedTuple
        Its fields are int, float, bool or str.
    launcher : str, optional
        Of the forward, where its name is not the operation's. The backward's is this with "_backward", and that of the
        values with their gradient is this with "_with_gradient".
    outputs : int
        How many of the forward's results are the caller's; the rest is kept for the backward.
    part : str
        Of the function, where it is made of several operations.
    """

    def __init__(
        self,
        name: str,
        folder: str,
        operands: str,
        results: Callable[..., Sequence[Tensor]],
        options: type[Any] = NoOptions,
        launcher: str | None = None,
        outputs: int = 1,
        part: str = "",
    ) -> None:
        names = operands.split()
        starred = [name.startswith("*") for name in names]
        self.name, self.outputs = name, outputs
        self._registered = f"{name}_{part}" if part else name
        self._folder, self._launcher = folder, launcher or name
        # How many operands stand before the starred one and after it; None where none is starred.
        self._around = (starred.index(True), len(names) - 1 - starred.index(True)) if any(starred) else None
        self._results = results
        self._schema = "".join(f", {kind.__name__} {field}" for field, kind in get_type_hints(options).items())
        self._forward_operation = self._register("", "Tensor[] operands", self._forward, self._fake_forward)

    def __call__(self, backend: str, operands: Sequence[Tensor], options: tuple[Any, ...] = ()) -> tuple[Tensor, ...]:
        """Return the results that are the caller's."""
        return tuple(self.forward(backend, operands, options)[: self.outputs])

    def forward(self, backend: str, operands: Sequence[Tensor], options: tuple[Any, ...]) -> Sequence[Tensor]:
        """Return all results, those that are kept for the backward too."""
        if _readable(operands):
            # Views among several results of a Function could not be changed in place.
            results = self._forward(operands, *options, backend)
            return [_own(x) if x._is_view() else x for x in results]
        return self._forward_operation(_dispatched(self.name, operands), *options, backend)  # type: ignore[no-any-return]

    def _forward(self, operands: Sequence[Tensor], *options: Any) -> list[Tensor]:
        *options, backend = options  # type: ignore[assignment]
        return self._launch(self._launcher, backend, (*self._packed(operands), *options))

    def _fake_forward(self, operands: Sequence[Tensor], *options: Any) -> list[Tensor]:
        return self.empty_results(operands, *options)

    def empty_results(self, operands: Sequence[Tensor], *options: Any) -> list[Tensor]:
        """Return empty tensors like all results."""
        return list(self._results(*self._packed(operands), *options))

    def _packed(self, operands: Sequence[Tensor]) -> tuple[Any, ...]:
        """Return the operands as the launchers take them: those of the starred name in a list."""
        if self._around is None:
            return tuple(operands)
        before, after = self._around
        end = len(operands) - after
        return (*operands[:before], list(operands[before:end]), *operands[end:])

    def _register(self, suffix: str, tensors: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
        """Make an operation of `torch.library` of a kernel: `mibfast::<name><suffix>`."""

        def checked(*arguments: Any) -> Any:
            given = _tensors(arguments)
            for x in given:
                if x.numel() and not x.data_ptr():
                    raise TypeError(f"{self.name}: a tensor without memory cannot be read, got {_check.described(x)}")
            # What `torch.library` returns must share no memory, and fake results are contiguous.
            taken = {x.untyped_storage().data_ptr() for x in given if x.numel()}
            results = []
            for x in kernel(*arguments):
                shared = x.numel() and x.untyped_storage().data_ptr() in taken
                results.append(x.clone(memory_format=torch.contiguous_format) if shared else x.contiguous())
                taken.add(x.untyped_storage().data_ptr())
            return results

        registered = torch.library.custom_op(
            f"mibfast::{self._registered}{suffix}",
            checked,
            mutates_args=(),
            schema=f"({tensors}{self._schema}, str backend) -> Tensor[]",
        )
        registered.register_fake(fake)
        registered.register_vmap(functools.partial(_one_by_one, registered))
        return registered

    def _launch(self, launcher: str, backend: str, arguments: Sequence[Any]) -> list[Tensor]:
        launch = getattr(kernels(self._folder, backend), launcher)
        # A default device is a mode, and kernels of the CPU make tensors without naming theirs.
        elsewhere = backend == "cpu" and torch._C._len_torch_function_stack()
        try:
            with torch.device("cpu") if elsewhere else contextlib.nullcontext():
                results = launch(*arguments)
        except Exception as error:
            # What Triton says names neither the operation nor what it was given. Memory may be there next time.
            if backend != "triton" or isinstance(error, (torch.OutOfMemoryError, MemoryError)):
                raise
            given = ", ".join(_check.described(x) for x in _tensors(arguments))
            raise _check.BackendError(f"{self.name}: its Triton kernels failed on {given}: {error}") from error
        return [results] if isinstance(results, Tensor) else list(results)


class DifferentiableOperation(Operation):
    """An operation whose backward recomputes what it needs, for any upstream gradient.

    `keeps_operands` is False where the backward needs only what the forward saved; `saves_outputs` is True where it
    needs the results of the caller too.
    """

    def __init__(
        self, *arguments: Any, keeps_operands: bool = True, saves_outputs: bool = False, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._keeps_operands, self.saved_from = keeps_operands, 0 if saves_outputs else self.outputs
        self._apply = _apply_of(type(_camel(self._registered), (_Recomputed,), {}))
        self._forward_operation.register_autograd(self._compiled_backward, setup_context=self._compiled_context)
        self._backward_operation = self._register(
            "_backward",
            "Tensor[] upstream, Tensor[] operands, Tensor[] saved, bool[] needed",
            self._backward,
            self._fake_backward,
        )

    def __call__(self, backend: str, operands: Sequence[Tensor], options: tuple[Any, ...] = ()) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return super().__call__(backend, operands, options)
        results: tuple[Tensor, ...] = self._apply(self, backend, options, *operands)
        return results[: self.outputs]

    def kept(self, operands: Sequence[Tensor]) -> list[Tensor]:
        """Return the operands as they are kept for the backward: one number in place of each that it does not read."""
        if self._keeps_operands:
            return list(operands)
        return [x.new_empty(()).expand(x.shape) for x in operands]

    def backward(
        self,
        backend: str,
        upstream: Sequence[Tensor],
        operands: Sequence[Tensor],
        saved: Sequence[Tensor],
        needed: Sequence[bool],
        options: tuple[Any, ...],
    ) -> list[Tensor | None]:
        """Return the gradients of the operands, None of those whose gradient is not needed."""
        tensors = (*upstream, *operands, *saved)
        launch = self._backward
        if not _readable(tensors):
            _dispatched(self.name, tensors)
            launch = self._backward_operation
        results = launch(list(upstream), list(operands), list(saved), list(needed), *options, backend)
        return [g if need else None for g, need in zip(results, needed, strict=True)]

    def _backward(
        self,
        upstream: Sequence[Tensor],
        operands: Sequence[Tensor],
        saved: Sequence[Tensor],
        needed: list[bool],
        *options: Any,
    ) -> list[Tensor]:
        *options, backend = options  # type: ignore[assignment]
        packed = self._packed(operands) if self._keeps_operands else ()
        gradients = self._launch(f"{self._launcher}_backward", backend, (*upstream, *packed, *saved, needed, *options))
        return _wanted(gradients, operands, needed, wide=False)

    def _fake_backward(
        self,
        upstream: Sequence[Tensor],
        operands: Sequence[Tensor],
        saved: Sequence[Tensor],
        needed: list[bool],
        *_: Any,
    ) -> list[Tensor]:
        return [x.new_empty(x.shape if need else 0) for x, need in zip(operands, needed, strict=True)]

    def _compiled_context(self, ctx: Any, inputs: Any, output: Sequence[Tensor]) -> None:
        operands, *ctx.options, ctx.backend = inputs
        ctx.count = len(operands)
        ctx.save_for_backward(*self.kept(operands), *output[self.saved_from :])

    def _compiled_backward(self, ctx: Any, upstream: Sequence[Tensor]) -> Any:
        tensors = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[0])
        results = self._backward_operation(
            list(upstream[: self.outputs]),
            list(tensors[: ctx.count]),
            list(tensors[ctx.count :]),
            needed,
            *ctx.options,
            ctx.backend,
        )
        gradients = [g if need else None for g, need in zip(results, needed, strict=True)]
        return gradients, *([None] * len(ctx.options)), None


class OperationWithGradient(Operation):
    """An operation of scalar values whose gradient is formed with the first of them: the backward has only to scale.

    Its launcher is that of the name with "_with_gradient". The other values have no gradient.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._apply = _apply_of(type(f"{_camel(self._registered)}WithGradient", (_Scaled,), {}))

    def _register(self, suffix: str, tensors: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
        registered = super()._register("_with_gradient", f"{tensors}, bool[] needed", kernel, fake)
        registered.register_autograd(self._compiled_backward, setup_context=self._compiled_context)
        return registered

    def __call__(self, backend: str, operands: Sequence[Tensor], options: tuple[Any, ...] = ()) -> tuple[Tensor, ...]:
        enabled = torch.is_grad_enabled()
        needed = [enabled and x.requires_grad for x in operands]
        if torch.compiler.is_compiling():
            return tuple(self._forward_operation(list(operands), needed, *options, backend)[: self.outputs])
        results: tuple[Tensor, ...] = self._apply(self, backend, options, needed, *operands)
        return results[: self.outputs]

    def with_gradient(
        self, backend: str, operands: Sequence[Tensor], needed: list[bool], options: tuple[Any, ...]
    ) -> list[Tensor]:
        """Return the values, and the gradient of each operand; that of one that needs none is empty."""
        if _readable(operands):
            return self._forward(operands, needed, *options, backend)
        return self._forward_operation(_dispatched(self.name, operands), needed, *options, backend)  # type: ignore[no-any-return]

    def _forward(self, operands: Sequence[Tensor], *options: Any) -> list[Tensor]:
        needed, *options, backend = options  # type: ignore[assignment]
        arguments = (*self._packed(operands), needed, *options)
        results = self._launch(f"{self._launcher}_with_gradient", backend, arguments)
        return [*results[: self.outputs], *_wanted(results[self.outputs :], operands, needed, wide=True)]

    def _fake_forward(self, operands: Sequence[Tensor], *options: Any) -> list[Tensor]:
        needed, *options = options  # type: ignore[assignment]
        gradients = (
            x.new_empty(x.shape if need else 0, dtype=accumulation_dtype(x.dtype))
            for x, need in zip(operands, needed, strict=True)
        )
        return [*self._results(*self._packed(operands), *options)[: self.outputs], *gradients]

    def _compiled_context(self, ctx: Any, inputs: Any, output: Sequence[Tensor]) -> None:
        operands, _, *options = inputs
        ctx.dtypes, ctx.options = [x.dtype for x in operands], len(options)
        ctx.save_for_backward(*output[self.outputs :])

    def _compiled_backward(self, ctx: Any, upstream: Sequence[Tensor]) -> Any:
        gradients = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[0], strict=True)
        results = [_scaled_by_dispatcher(g, upstream[0], dtype) if need else None for g, dtype, need in gradients]
        return results, None, *([None] * ctx.options)


class StreamedLoss:
    """A loss of each sample, and its mean or sum, whose gradient is formed with it where one is needed."""

    def __init__(self, name: str, folder: str, operands: str, results: Callable[..., Any], **keywords: Any) -> None:
        def mean(*arguments: Any) -> Sequence[Tensor]:
            losses = results(*arguments)[0]
            return [losses.new_empty(())]

        self.each = DifferentiableOperation(name, folder, operands, results, **keywords)
        self.mean = OperationWithGradient(name, folder, operands, mean, **keywords)

    def __call__(self, backend: str, operands: Sequence[Tensor], options: tuple[Any, ...], reduction: str) -> Tensor:
        """Return the loss of each sample for "none", their mean or their sum."""
        if reduction != "none" and differentiated(operands):
            (mean,) = self.mean(backend, operands, options)
            if reduction == "mean":
                return mean
            losses, *_ = self.each.empty_results(operands, *options, backend)
            return mean * losses.numel()
        return reduced(self.each(backend, operands, options)[0], reduction)


def _wanted(
    gradients: Sequence[Tensor | None], operands: Sequence[Tensor], needed: Sequence[bool], wide: bool
) -> list[Tensor]:
    """Return the gradients that are needed, in the dtype of their operand or `wide`; in place of others, nothing."""
    results = []
    for gradient, x, need in zip(gradients, operands, needed, strict=True):
        dtype = accumulation_dtype(x.dtype) if wide else x.dtype
        if gradient is None or not need:
            results.append(x.new_empty(0, dtype=dtype))
        else:
            results.append(gradient if gradient.dtype == dtype else gradient.to(dtype))
    return results


def _own(view: Tensor) -> Tensor:
    """Return a tensor on the memory of a view that autograd takes for none."""
    return view.new_empty(0).set_(view.untyped_storage(), view.storage_offset(), view.shape, view.stride())


def _scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a gradient that was formed with the loss times the loss's own, 0-d, on kept memory where there is some.

    The dtype is that of what the gradient is of. Until here it was float32 at least: in float16 it would have fallen to
    zero before a scaled loss, whose purpose it is to prevent that, could raise it.
    """
    if upstream.dtype != gradient.dtype:
        upstream = upstream.to(gradient.dtype)
    if gradient.dtype != dtype:
        # In one pass over memory.
        return torch.mul(gradient, upstream, out=torch.empty_like(gradient, dtype=dtype))
    if gradient.device.type != "cpu" or gradient.nbytes < _buffers.SMALLEST:
        return gradient * upstream
    out = torch.from_numpy(_buffers.empty(tuple(gradient.shape), _NUMPY_DTYPES[dtype]))
    return torch.mul(gradient, upstream, out=out)


def _scaled_by_dispatcher(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    return (gradient * upstream).to(dtype)


# Which tensors reach a launcher.


def _readable(tensors: Iterable[Tensor]) -> bool:
    """Whether kernels may read the memory of tensors: nothing records, transforms or stands in for them."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    ):
        return False
    try:
        for x in tensors:
            if type(x) not in _PLAIN or x.is_neg() or not (x.data_ptr() or x.numel() == 0):
                return False
    except RuntimeError:  # raised for a tensor without storage, as autograd's `is_grads_batched` makes them
        return False
    return True


def _dispatched(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors that PyTorch's dispatcher takes to a kernel; raise where it would end in an error of its own."""
    if torch.compiler.is_compiling():
        return list(tensors)
    instead = 'or backend="reference"'
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        raise _check.BackendError(
            f"{name}: torch.jit.trace cannot record the compiled backends; use torch.export, {instead}"
        )
    transformed = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack()
    for x in tensors:
        if x.is_meta and not tensors[0].is_meta:
            raise TypeError(f"{name}: meta tensors stand beside others, got {_check.described(x)}")
        if type(x).__name__ == "DTensor":
            raise TypeError(
                f"{name}: a DTensor is spread over devices; give x.full_tensor() or x.to_local(), {instead}, "
                f"got {_check.described(x)}"
            )
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
        if not (transformed or wrapped or torch._C._has_storage(x)) and type(x) in _PLAIN:
            raise _check.BackendError(
                f"{name}: gradients in batches, of is_grads_batched=True or vectorize=True, need torch.func.vjp or "
                f"torch.func.jacrev, {instead}"
            )
    return list(tensors)


def _tensors(arguments: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among an operation's arguments, those of lists too."""
    results = []
    for x in arguments:
        if isinstance(x, Tensor):
            results.append(x)
        elif isinstance(x, (list, tuple)):
            results += _tensors(x)
    return results


def _one_by_one(operation: Any, info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[list[Tensor], list[int]]:
    """Call an operation for each element of a batch, as `torch.vmap` asks for, and stack the results."""

    def select(x: Any, dim: Any, index: int) -> Any:
        if isinstance(x, list) and isinstance(dim, (list, tuple)):
            return [select(each, at, index) for each, at in zip(x, dim, strict=True)]
        return x if dim is None else x.select(dim, index)

    if not info.batch_size:
        raise _check.BackendError("torch.vmap needs a batch of at least one element, got none")
    calls = [
        operation(*(select(x, dim, index) for x, dim in zip(arguments, in_dims, strict=True)))
        for index in range(info.batch_size)
    ]
    results = [torch.stack(each) for each in zip(*calls, strict=True)]
    return results, [0] * len(results)


# The autograd Functions.


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _apply_of(function: Any) -> Callable[..., Any]:
    """Return `function.apply`, without its binding of defaults where no transform of `torch.func` needs that.

    The binding takes 20 microseconds, more than all else at this boundary.
    """
    directly = super(torch.autograd.Function, function).apply

    def apply(*arguments: Any) -> Any:
        transformed = torch._C._are_functorch_transforms_active()
        return function.apply(*arguments) if transformed else directly(*arguments)

    return apply


class _FirstOrder(torch.autograd.Function):
    """The base of the Functions: first derivatives backward, `vmap` by a loop over the batch, nothing else."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _check.BackendError(f"{ctx.operation.name}: the forward-mode derivative {_FIRST_ORDER_ONLY}")


class _Recomputed(_FirstOrder):
    @staticmethod
    def forward(
        operation: DifferentiableOperation, backend: str, options: tuple[Any, ...], *operands: Tensor
    ) -> tuple[Tensor, ...]:
        results = operation.forward(backend, operands, options)
        return (*results, _anchor(results[0]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        ctx.operation, ctx.backend, ctx.options, *operands = inputs
        *results, anchor = output
        outputs = ctx.operation.outputs
        ctx.mark_non_differentiable(*results[outputs:])
        # Zeros in place of the upstream gradients of what has none would be made for nothing.
        ctx.set_materialize_grads(False)
        ctx.results = [(x.shape, x.dtype) for x in results[:outputs]]
        ctx.count = len(operands)
        ctx.save_for_backward(anchor, *ctx.operation.kept(operands), *results[ctx.operation.saved_from :])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        anchor, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        operands, saved = tensors[: ctx.count], tensors[ctx.count :]
        given = [x for x in upstream if x is not None]
        if not given:
            return (None,) * len(ctx.needs_input_grad)
        above = [
            given[0].new_zeros(shape, dtype=dtype) if x is None else x
            for x, (shape, dtype) in zip(upstream, ctx.results, strict=False)
        ]

        def gradients() -> Any:
            return ctx.operation.backward(ctx.backend, above, operands, saved, needed, ctx.options)

        return None, None, None, *_differentiable_once(ctx.operation.name, gradients, (*given, anchor))


class _Scaled(_FirstOrder):
    @staticmethod
    def forward(
        operation: OperationWithGradient,
        backend: str,
        options: tuple[Any, ...],
        needed: list[bool],
        *operands: Tensor,
    ) -> tuple[Tensor, ...]:
        results = operation.with_gradient(backend, operands, needed, options)
        return (*results, _anchor(results[0]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        ctx.operation, _, _, _, *operands = inputs
        *results, anchor = output
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        ctx.dtypes = [x.dtype for x in operands]
        ctx.save_for_backward(anchor, *results[ctx.operation.outputs :])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> Any:
        if upstream is None:
            return (None,) * len(ctx.needs_input_grad)
        anchor, *formed = ctx.saved_tensors
        operands = list(zip(formed, ctx.dtypes, ctx.needs_input_grad[4:], strict=True))
        times = _scaled if _readable((upstream, *formed)) else _scaled_by_dispatcher

        def gradients() -> Any:
            return [times(g, upstream, dtype) if need else None for g, dtype, need in operands]

        return None, None, None, None, *_differentiable_once(ctx.operation.name, gradients, (upstream, anchor))


def _anchor(result: Tensor) -> Tensor:
    """Return an empty result, which links the refusal of second derivatives to the operands.

    The operands need not be kept for that, and nobody else has it: what the caller has may be changed in place.
    """
    return result.new_empty(0)


def _differentiable_once(name: str, gradients: Callable[[], Any], depends_on: Sequence[Tensor]) -> Any:
    """Return gradients that raise an error when they are differentiated with respect to what they depend on."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return gradients()
    with torch.no_grad():
        results = gradients()
    at = [k for k, g in enumerate(results) if g is not None]
    arguments = (name, len(at), *(results[k] for k in at), *depends_on)
    for k, g in zip(at, _refuse(*arguments), strict=True):
        results[k] = g
    return results


class _Refused(torch.autograd.Function):
    """The identity of gradients, whose derivative would be silently zero, or a part of the truth, and is refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        raise _check.BackendError(f"{ctx.name}: the second derivative {_FIRST_ORDER_ONLY}")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _check.BackendError(f"{ctx.name}: the second derivative {_FIRST_ORDER_ONLY}")


_refuse = _apply_of(_Refused)


def forbid_double_backward(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap the backward of a Function that is linear in its input, so that differentiating the gradient raises."""

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *upstream: Tensor) -> Any:
            return tuple(_differentiable_once(name, lambda: list(backward(ctx, *upstream)), upstream))

        return wrapped

    return decorate
