"""Choice and report of backends.

`auto` takes the fastest backend that is there for the tensors' device, and says so once where only the reference is
left. A backend asked for by name works or raises; it never falls back.
"""

from __future__ import annotations

import importlib.util
import platform
import threading
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mibfast import _env

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
_KERNELS = Path(__file__).parent / "kernels"
_selected = threading.local()
_warned: set[str] = set()


def _missing_reason(backend: str) -> str | None:
    """Return why a compiled backend cannot be used at all, None where it can."""
    if backend == "cpu":
        return None if importlib.util.find_spec("numba") else "numba is not installed"
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        return "this version has no Triton kernels"
    if backend == "cuda" and importlib.util.find_spec("mibfast._cuda") is None:
        return "mibfast._cuda was not built"
    return None


_MISSING = {name: _missing_reason(name) for name in ("cpu", "triton", "cuda")}


def check_name(backend: str) -> str:
    """Return the name of a backend; ValueError with the valid ones where it is none."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected one of {', '.join(map(repr, BACKENDS))}")
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


def choose(operation: str, device: torch.device, backend: str | None) -> str:
    """Return the backend for an operation on a device: "reference", "cpu", "triton" or "cuda".

    Raises
    ------
    ValueError
        For an unknown name.
    RuntimeError
        Where a backend asked for by name is missing or cannot serve the device.
    """
    name = check_name(backend) if backend is not None else (getattr(_selected, "backend", None) or _DEFAULT)
    if name == "reference":
        return name
    if name == "auto":
        if device.type == "cpu" and _MISSING["cpu"] is None:
            return "cpu"
        _warn_reference(device)
        return "reference"
    serves = "cpu" if name == "cpu" else "cuda"
    reason = _MISSING[name]
    if reason is None and device.type != serves:
        reason = f"it serves {serves} tensors and these are on {device}"
    if reason is not None:
        raise RuntimeError(f"{operation}: backend {name!r} cannot be used: {reason}")
    return name


def _warn_reference(device: torch.device) -> None:
    if torch.compiler.is_compiling() or device.type in _warned:
        return
    _warned.add(device.type)
    if device.type == "cpu":
        reason = str(_MISSING["cpu"])
    elif device.type == "cuda":
        reason = f"triton: {_MISSING['triton']}; cuda: {_MISSING['cuda']}"
    else:
        reason = f"no backend serves {device.type} tensors"
    warnings.warn(
        f"mibfast runs its reference formulas on {device.type} tensors, which are slow and hold N x N scores: {reason}",
        RuntimeWarning,
        stacklevel=4,
    )


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
        `versions` (package to version, None where missing), `backends` (name to "available" or the reason why not),
        `default_backend`, `devices` (a line for each) and `threads` (that torch and the CPU kernels use).

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
        "backends": {"reference": "available", **{k: v or "available" for k, v in _MISSING.items()}},
        "default_backend": getattr(_selected, "backend", None) or _DEFAULT,
        "devices": devices,
        "threads": torch.get_num_threads(),
    }
