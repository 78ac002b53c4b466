"""The cache of compiled CPU kernels: whatever is wrong with it costs a compilation and one warning, and is mended."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba import carray, types
from numba.core import caching

from mibfast.kernels import compilation

Compiled = tuple[float, int]


def kernel(dtype: type = np.float64) -> Compiled:
    """Compile a kernel as a new process does; what it makes of 21, and how often the cache had it."""

    def twice(x: Any) -> Any:
        return x + x

    compiled = compilation.kernel(twice)
    return float(compiled(dtype(21))), sum(compiled.stats.cache_hits.values())


def c_function(dtype: type = np.float64) -> Compiled:
    """The same of a function for callers in C."""

    def double(pointer: Any) -> None:
        x = carray(pointer, (1,))
        x[0] += x[0]

    compilation.named_by_sources(double)
    compiled = compilation.c_function(double, types.void(types.CPointer(numba.from_dtype(np.dtype(dtype)))))
    x = np.array([21], dtype)
    compiled.ctypes(x.ctypes.data_as(compiled.ctypes.argtypes[0]))
    return float(x[0]), compiled.cache_hits


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and none beside this file to fall back on; nothing was said yet."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    of_the_user = [each for each in caching.CacheImpl._locator_classes if "UserProvided" in each.__name__]
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", of_the_user)
    monkeypatch.setattr(compilation, "_failed", False)


@pytest.fixture(params=[kernel, c_function])
def compiled(request: pytest.FixtureRequest) -> Callable[..., Compiled]:
    return request.param


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in tmp_path.rglob("*") if path.is_file())


def warned_once(compiled: Callable[..., Compiled], said: str) -> None:
    """Compile again, with one warning that names the reason; another failure is not said."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert compiled() == (42, 0)
    (warning,) = found
    assert said in str(warning.message)
    assert str(warning.message).startswith("mibfast: the cache of compiled CPU kernels fails (")
    assert "NUMBA_CACHE_DIR" in str(warning.message)


def test_a_kernel_is_compiled_once_for_all_processes(compiled, tmp_path) -> None:
    assert compiled() == (42, 0)
    assert compiled() == (42, 1)
    # Another signature has a file of its own, and this one's stays.
    assert compiled(np.float32) == (42, 0)
    assert [compiled(np.float32), compiled()] == [(42, 1)] * 2
    assert len(files(tmp_path)) == 2


def _replaced(content: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content(path.read_bytes()))


def _flipped(position: float) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        at = int(position * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]

    return flip


@contextmanager
def _rewritten(path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Write the entry again, as what was patched makes of it, under the name that it had."""
    path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        yield patch
        (kernel if "twice" in path.name else c_function)()
    (other,) = path.parent.iterdir()
    other.replace(path)


def _of_another_signature(path: Path) -> None:
    (kernel if "twice" in path.name else c_function)(np.float32)
    (other,) = set(path.parent.iterdir()) - {path}
    other.replace(path)


def _of_another_numba(path: Path) -> None:
    with _rewritten(path) as patch:
        patch.setattr(numba, "__version__", "0.0.0")


def _sealed(content: bytes) -> Callable[[Path], None]:
    """Something else under a digest that is right."""

    def write(path: Path) -> None:
        with _rewritten(path) as patch:
            patch.setattr(compilation, "dumps", lambda _: content)

    return write


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (_replaced(lambda _: b""), "is damaged"),
    "one byte": (_replaced(lambda content: content[:1]), "is damaged"),
    "half": (_replaced(lambda content: content[: len(content) // 2]), "is damaged"),
    "longer": (_replaced(lambda content: content + b"\0"), "is damaged"),
    "zeros": (_replaced(lambda content: bytes(len(content))), "is damaged"),
    **{f"a bit at {at}": (_replaced(_flipped(at)), "is damaged") for at in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)},
    "another pickle": (_replaced(lambda _: pickle.dumps({"a": 1})), "is damaged"),
    "of another signature": (_of_another_signature, "is damaged"),
    "of another numba": (_of_another_numba, "is damaged"),
    "no pickle, sealed": (_sealed(b"not a pickle"), "UnpicklingError"),
    "nothing, sealed": (_sealed(b""), "EOFError"),
    "another object, sealed": (_sealed(pickle.dumps((1, 2))), "TypeError"),
    "a folder": (_a_folder, "IsADirectoryError"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_again_and_replaced(compiled, damage, tmp_path) -> None:
    assert compiled() == (42, 0)
    (path,) = files(tmp_path)
    harm, said = DAMAGES[damage]
    harm(path)
    warned_once(compiled, said)
    if path.is_dir():
        assert compiled() == (42, 0)
    else:
        assert compiled() == (42, 1)
        assert files(tmp_path) == [path]


def _failing(operation: str, number: int) -> Callable[..., Any]:
    """What fails as `Path`'s operation of that name; "write" writes half before it does."""
    error = OSError(number, os.strerror(number))

    def fail(self: Path, *arguments: Any, **options: Any) -> Any:
        raise error

    def writing(self: Path, *arguments: Any, **options: Any) -> Any:
        file = open(self, *arguments, **options)  # noqa: SIM115 - the caller closes it

        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, content: bytes) -> None:
                file.write(content[: len(content) // 2])
                raise error

        return Full()

    return writing if operation == "write" else fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("operation", ["open", "write", "replace", "read_bytes"])
def test_a_failure_to_read_or_write_is_no_end(compiled, operation, number, tmp_path, monkeypatch) -> None:
    if operation == "read_bytes":
        assert compiled() == (42, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open" if operation == "write" else operation, _failing(operation, number))
        warned_once(compiled, os.strerror(number))
    # Nothing is left behind; once it works again, it works.
    assert len(files(tmp_path)) == (operation == "read_bytes")
    assert compiled() == (42, operation == "read_bytes")
    assert compiled() == (42, 1)


def _removed(folder: Path) -> None:
    shutil.rmtree(folder)


def _a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize(("change", "said"), [(_removed, None), (_a_file, "NotADirectoryError")])
def test_a_folder_that_changes_between_compilations(change, said, tmp_path, monkeypatch) -> None:
    """The dispatcher has found its folder; then it is gone, or something else, which is said once for all kernels."""

    def thrice(x: Any) -> Any:
        return 3 * x

    first, second = compilation.kernel(thrice), compilation.kernel(lambda x: 4 * x)
    change(tmp_path / "cache")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert (first(2.0), first(2), second(2.0), second(2)) == (6, 6, 8, 8)
    assert [said in str(warning.message) for warning in found] == ([] if said is None else [True])
    assert len(files(tmp_path)) == (4 if said is None else 1)


def test_a_folder_that_cannot_be_made_is_said_once_for_all_kernels(tmp_path) -> None:
    """A file in place of the folder: permissions do not bind every user."""
    (tmp_path / "cache").touch()
    warned_once(kernel, "RuntimeError: cannot cache function")
    assert [kernel(), c_function(), kernel()] == [(42, 0)] * 3


def test_jit_that_is_disabled_after_the_import_is_an_error_by_name(monkeypatch) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(RuntimeError, match="NUMBA_DISABLE_JIT is set"):
        kernel()


# A kernel and a C function in every dtype that is named.
PROGRAM = """
import resource, sys, warnings
import torch
from mibfast import functional as F
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    for dtype in sys.argv[2:]:
        x = torch.full((8, 4), 2.0, dtype=getattr(torch, dtype))
        samples, divergence = F.reparameterised_gaussian(x, 0 * x, 0 * x)
        print(F.gaussian_kl(x, 0 * x).item(), divergence[0].item(), samples.sum().item())
print("warnings", len(found))
"""


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> list[str]:
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return out.splitlines()


@pytest.mark.slow
def test_a_full_disk_costs_one_warning_a_process(tmp_path) -> None:
    """A limit on the size of files stands in for it."""
    assert ended(start(tmp_path, "full", "float32")) == ["8.0 8.0 64.0", "warnings 1"]
    assert files(tmp_path) == []


@pytest.mark.slow
def test_processes_that_write_at_the_same_time_keep_each_its_own(tmp_path) -> None:
    for process in [start(tmp_path, "", dtype) for dtype in ("float32", "float64")]:
        assert ended(process) == ["8.0 8.0 64.0", "warnings 0"]
    kept = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
    assert ended(start(tmp_path, "", "float32", "float64")) == ["8.0 8.0 64.0"] * 2 + ["warnings 0"]
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path)} == kept
