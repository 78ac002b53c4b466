"""Builds `csrc/` into `mibfast._cuda` where CUDA's compiler is.

Everything else stands in pyproject.toml. The extension is optional: where it is not built, the reason goes into
`mibfast/_cuda_missing.txt`, for `mibfast info` to say. Objects are kept in `build/cuda` and made anew only when their
sources change.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

CSRC = Path(__file__).resolve().parent / "csrc"
DTYPES = ("float64", "float32", "float16", "bfloat16")
# Machine code for A100s and the H100's generation; what others compile from at first use, from Ampere on.
ARCHITECTURES = "80+ptx 90a"


class NotBuiltError(Exception):
    """Why the extension is not there."""


def nvcc() -> str | None:
    """Return CUDA's compiler, of CUDA_HOME, of CUDA_PATH or on the path."""
    homes = filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")))
    candidates = (Path(home) / "bin" / "nvcc" for home in homes)
    return next((str(path) for path in candidates if path.is_file()), shutil.which("nvcc"))


def switched_off() -> bool:
    return os.environ.get("MIBFAST_CUDA", "").strip() == "0"


def code_options(architectures: str) -> tuple[list[str], list[str]]:
    """Return nvcc's options for a list such as "80+ptx 90a", and what they make: "sm_80", "compute_80", "sm_90a"."""
    options, made = [], []
    for item in architectures.lower().replace(",", " ").replace(";", " ").split():
        number, plus, suffix = item.replace(".", "").partition("+")
        if not number.rstrip("af").isdecimal() or suffix != ("ptx" if plus else ""):
            raise NotBuiltError(f"MIBFAST_CUDA_ARCHS must be a list such as {ARCHITECTURES!r}, got {architectures!r}")
        codes = [f"sm_{number}", *([f"compute_{number}"] if suffix else [])]
        options.append(f"-gencode=arch=compute_{number},code=[{','.join(codes)}]")
        made += codes
    return options, made


def rules(compiler: str, target: str) -> str:
    """Return ninja's rules for the extension."""
    import pybind11

    codes, made = code_options(os.environ.get("MIBFAST_CUDA_ARCHS", "").strip() or ARCHITECTURES)
    compiled = [compiler, "-std=c++17", "-O3", f"-I{CSRC}", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
    kernels = [*codes, "-Xfatbin=-compress-all"]
    module = [f"-isystem={folder}" for folder in (sysconfig.get_path("include"), pybind11.get_include())]
    module.append(f'-DMIBFAST_ARCHITECTURES="{" ".join(made)}"')
    # The runtime is linked in, so that the module loads without a driver; its symbols must not meet those of torch's.
    linked = [compiler, "-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL", "-Xlinker=--strip-all"]

    def command(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    def path(name: Path) -> str:
        return str(name).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    lines = [
        "rule compile",
        f"  command = {command(compiled)} $flags -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {command(linked)} $in -o $out",
    ]
    sources = {"bindings.cpp": module, **{f"projection_{dtype}.cu": kernels for dtype in DTYPES}}
    for name, flags in sources.items():
        lines += [f"build {name}.o: compile {path(CSRC / name)}", f"  flags = {command(flags)}"]
    lines.append(f"build {target}: link {' '.join(f'{name}.o' for name in sources)}")
    return "\n".join(lines) + "\n"


def built(folder: Path) -> Path:
    """Build the extension in a folder and return its file; NotBuiltError where that cannot be."""
    compiler = nvcc()
    if switched_off():
        raise NotBuiltError("MIBFAST_CUDA was 0 at installation")
    if compiler is None:
        raise NotBuiltError("there was no nvcc at installation, in CUDA_HOME or on the path")
    for package in ("pybind11", "ninja"):
        if importlib.util.find_spec(package) is None:
            raise NotBuiltError(f"{package} was not installed at installation")
    folder.mkdir(parents=True, exist_ok=True)
    target = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    (folder / "build.ninja").write_text(rules(compiler, target))
    command = [sys.executable, "-m", "ninja", "-C", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines()]
        wrong = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise NotBuiltError(f"the compilation by {compiler} failed: {wrong}")
    return folder / target


class BuildCuda(Command):
    """Build `mibfast._cuda`, or leave the reason why it was not."""

    description = "build the CUDA kernels where nvcc is found"
    user_options: ClassVar[list[tuple[str, str, str]]] = [("build-lib=", "b", "folder of the built packages")]

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        package = Path("mibfast") if self.editable_mode else Path(self.build_lib) / "mibfast"
        extension = package / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
        missing = package / "_cuda_missing.txt"
        package.mkdir(parents=True, exist_ok=True)
        for stale in (extension, missing):
            stale.unlink(missing_ok=True)
        try:
            # A new file: what processes have loaded stays as it is.
            shutil.copy2(built(Path("build") / "cuda" / sysconfig.get_config_var("SOABI")), extension)
        except NotBuiltError as reason:
            print(f"mibfast: CUDA kernels are not built: {reason}", file=sys.stderr)
            missing.write_text(f"{reason}\n")

    def get_source_files(self) -> list[str]:
        return [f"csrc/{path.name}" for path in sorted(CSRC.iterdir())]

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Mibfast(Distribution):
    """Has compiled modules, which a wheel is named for, where they can be built."""

    def has_ext_modules(self) -> bool:
        return nvcc() is not None and not switched_off()


build.sub_commands = [*build.sub_commands, ("build_cuda", None)]

setup(cmdclass={"build_cuda": BuildCuda}, distclass=Mibfast)
