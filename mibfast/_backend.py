"""Choice and report of backends.

`auto` takes the fastest backend that is there for the tensors' device, and says so once where only the reference is
left. A backend asked for by name works or raises; it never falls back.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import threading
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mibfast import _check, _env
from mibfast._check import BackendError

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
# Compiled backends by the device they serve, the one to take first. Of meta tensors every backend gives the shapes.
_BY_DEVICE = {"cpu": ("cpu",), "cuda": ("cuda", "triton"), "meta": ("cpu", "triton")}
_CPU_ONLY: Mapping[str, str | None] = {"cpu": None}
_selected = threading.local()
_warned: set[str] = set()
# By the GPU's index; found at its first use, when CUDA is initialised anyway.
_UNSUPPORTED: dict[int, str | None] = {}


def _cuda_module() -> Any:
    """Import the compiled module, which may be missing."""
    return importlib.import_module("mibfast._cuda")


def _missing_reason(backend: str) -> str | None:
    """Return why a compiled backend cannot be used at all, None where it can."""
    if backend == "cpu":
        if _env.numba_disabled():
            return "NUMBA_DISABLE_JIT is set, so Numba compiles nothing"
        return None if importlib.util.find_spec("numba") else "numba is not installed"
    if backend == "triton":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if importlib.util.find_spec("mibfast._cuda") is None:
        reason = Path(__file__).with_name("_cuda_missing.txt")  # written by setup.py
        said = reason.read_text().strip() if reason.exists() else "the installation does not say why"
        return f"mibfast._cuda was not built: {said}"
    try:
        _cuda_module()
    except ImportError as error:
        return f"mibfast._cuda cannot be loaded: {error}"
    return None


_MISSING = {name: _missing_reason(name) for name in ("cpu", "triton", "cuda")}


def check_name(backend: str) -> str:
    """Return the name of a backend; ValueError with the valid ones where it is none."""
    # A tensor or an array, compared with names, is no True or False.
    if not isinstance(backend, str) or backend not in BACKENDS:
        got = repr(backend) if isinstance(backend, str) else _check.described(backend)
        raise ValueError(f"unknown backend {got}; expected one of {', '.join(map(repr, BACKENDS))}")
    return backend


_DEFAULT = check_name(_env.backend())


class use_backend:  # noqa: N801 - a context manager, named as torch names its own
    """Use one backend for every operation of this thread inside the `with` block.

    Parameters
    ----------
    backend : {"auto", "reference", "cpu", "triton", "cuda"}
        A name other than `"auto"` never falls back: an operation that this backend cannot do raises.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> import torch, mibfast
    >>> with mibfast.use_backend("reference"):
    ...     loss = mibfast.functional.info_nce(torch.eye(4), torch.eye(4))
    """

    def __init__(self, backend: str) -> None:
        self._backend = check_name(backend)

    def __enter__(self) -> None:
        self._previous = getattr(_selected, "backend", None)
        _selected.backend = self._backend

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _selected.backend = self._previous


def choose(
    operation: str, device: torch.device, backend: str | None, offers: Mapping[str, str | None] = _CPU_ONLY
) -> str:
    """Return the backend for an operation on a device: "reference", "cpu", "triton" or "cuda".

    Parameters
    ----------
    operation : str
    device : torch.device
    backend : str, optional
        That the caller named.
    offers : mapping from a compiled backend's name to str or None
        The backends that have kernels of this operation; to why they cannot take these arguments, None where they can.

    Raises
    ------
    ValueError
        For an unknown name.
    BackendError
        Where a backend asked for by name is missing, has no kernel of this operation, or cannot take the arguments.
    """
    name = check_name(backend) if backend is not None else (getattr(_selected, "backend", None) or _DEFAULT)
    if name == "reference":
        return name
    if name != "auto":
        reason = _unusable(name, device, offers)
        if reason is not None:
            raise BackendError(f"{operation}: backend {name!r} cannot be used: {reason}")
        return name
    reasons = {each: _unusable(each, device, offers) for each in _BY_DEVICE.get(device.type, ())}
    for each, reason in reasons.items():
        if reason is None:
            return each
        if offers.get(each) == reason:
            _warn_once(f"{operation}: backend {each!r} is passed over for these arguments: {reason}")
    why = "; ".join(f"{each}: {reason}" for each, reason in reasons.items()) or "no backend serves them"
    _warn_once(
        f"{operation} runs its reference formula on {device.type} tensors, slow and with N x N scores in memory: {why}"
    )
    return "reference"


def _unusable(backend: str, device: torch.device, offers: Mapping[str, str | None]) -> str | None:
    """Return why a compiled backend cannot do an operation with these arguments, None where it can."""
    if _MISSING[backend] is not None:
        return _MISSING[backend]
    if device.type not in (*_served(backend), "meta"):
        return f"it serves {' and '.join(_served(backend))} tensors and these are on {device}"
    if backend not in offers:
        return "it has no kernel of this operation"
    if offers[backend] is None and backend == "cuda" and device.index is not None:
        return _unsupported(device.index)
    return offers[backend]


def _unsupported(index: int) -> str | None:
    """Return why the CUDA kernels, as they were built, do not run on a GPU, None where they do."""
    if index not in _UNSUPPORTED and not torch.compiler.is_compiling():
        module = _cuda_module()
        driver = module.driver_version()
        capability = torch.cuda.get_device_capability(index)
        if driver // 1000 < module.RUNTIME_VERSION // 1000:
            built, served = _cuda_version(module.RUNTIME_VERSION), _cuda_version(driver)
            _UNSUPPORTED[index] = f"mibfast._cuda was built by CUDA {built} and the driver serves CUDA {served}"
        elif not any(runs_on(name, capability) for name in module.ARCHITECTURES):
            made = ", ".join(module.ARCHITECTURES)
            found = ".".join(map(str, capability))
            _UNSUPPORTED[index] = f"mibfast._cuda was built for {made}, and cuda:{index} has compute capability {found}"
        else:
            _UNSUPPORTED[index] = None
    return _UNSUPPORTED.get(index)


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Return whether code made for an architecture, as in "sm_80", "sm_90a" or "compute_80", runs on a GPU."""
    kind, _, number = architecture.partition("_")
    digits = number.rstrip("af")
    made = int(digits[:-1]), int(digits[-1])
    if digits != number:
        return made == capability
    # Machine code runs on later GPUs of its generation, intermediate code is compiled for any later one.
    return made <= capability and (kind == "compute" or made[0] == capability[0])


def _served(backend: str) -> tuple[str, ...]:
    if backend == "cpu":
        return ("cpu",)
    return ("cuda", "cpu") if backend == "triton" and _env.triton_interpreted() else ("cuda",)


def _warn_once(message: str) -> None:
    if torch.compiler.is_compiling() or message in _warned:
        return
    _warned.add(message)
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _available(backend: str) -> str:
    if backend != "cuda":
        return "available"
    module = _cuda_module()
    return f"available, built by CUDA {_cuda_version(module.RUNTIME_VERSION)} for {', '.join(module.ARCHITECTURES)}"


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def info() -> dict[str, Any]:
    """Report versions, backends and devices.

    Returns
    -------
    dict
        `versions` (package to version, None where missing), `backends` (name to "available", with the architectures
        that it was built for, or to the reason why not), `default_backend`, `devices` (a line for each) and `threads`
        (that torch and the CPU kernels use).

    Examples
    --------
    >>> import mibfast
    >>> mibfast.info()["backends"]["reference"]
    'available'
    """
    packages = ("mibfast", "torch", "numba", "numpy", "triton")
    devices = [f"cpu: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    else:
        devices.append("cuda: none found")
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "backends": {"reference": "available", **{k: v or _available(k) for k, v in _MISSING.items()}},
        "default_backend": getattr(_selected, "backend", None) or _DEFAULT,
        "devices": devices,
        "threads": torch.get_num_threads(),
    }
