"""Compiles Triton kernels for GPUs that are not there, and reads what the binary takes of registers and memory.

That happens in a process of its own, since nothing compiles in one where Triton's interpreter is on. The first call
starts it and all later ones ask it again: importing torch and Triton costs more than most kernels. What Triton compiled
before from the same source it finds in its cache.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import torch

# Shared memory a program may take, bytes, by capability.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
# A module, a kernel's name in it, types of its arguments, constants, and options such as num_warps.
Compilation = tuple[str, str, dict[str, str | list[str]], dict[str, object], dict[str, int]]


class Resources(NamedTuple):
    """What a compiled kernel takes: bytes of stack a thread, where registers spill to, registers, bytes shared."""

    spilled: int
    registers: int
    shared: int


def resources(compilations: Sequence[Compilation], capability: int) -> list[Resources]:
    """Compile kernels, each a module, a name in it, types of its arguments, constants, and options such as num_warps.

    A constant that is a string "module:a.b.0" stands for the attribute, entry or element that is found there; arguments
    without a type are constants, and those of type "*..." and "i..." may end in ":16" where they are known to be
    divisible by 16. The type of a tuple is a list of types.
    """
    compiler = _compiler()
    assert compiler.stdin is not None
    assert compiler.stdout is not None
    print(json.dumps([capability, compilations]), file=compiler.stdin, flush=True)
    answer = json.loads(compiler.stdout.readline())
    assert isinstance(answer, list), answer
    return [Resources(*each) for each in answer]


def assert_compiled_without_spills(compilations: Sequence[Compilation], capability: int) -> None:
    """No kernel spills a register or asks for more shared memory than there is."""
    for compilation, found in zip(compilations, resources(compilations, capability), strict=True):
        assert found.spilled == 0, (compilation, found)
        assert found.shared <= SHARED_MEMORY[capability], (compilation, found)


def of_pairwise_engine(
    kernel: str,
    capability: int,
    d: int,
    flags: int = 0,
    reduction: str = "log_sum_exp",
    dtype: torch.dtype = torch.bfloat16,
    how: str = "half",
    score: str = "inner_product",
    k: int = 1,
    s: int = 0,
) -> Compilation:
    """The compilation of a kernel of the pairwise engine, at the tile that is shipped.

    `reduction` is the name of one, `how` the arithmetic. A score is of k tiles, and of s statistics of
    columns and, with them, one of rows and positives that are known apart.
    """
    from mibfast.kernels.launch_configuration import shipped
    from mibfast.kernels.pairwise import reductions

    found = reductions.named(reduction)
    module, name = {
        "_reduce": ("reduce_triton", "reduce"),
        "_score": ("dense_triton", "score"),
        "_grad_chunk": ("gradient_triton", "chunk"),
        "_recompute": ("gradient_triton", "recompute"),
    }[kernel]
    light = found.is_light(flags) and kernel != "_score"
    tile = shipped(f"pairwise.{name}", capability, how, d, k + (s > 0), light)
    place_of_score = f"mibfast.kernels.pairwise.scores:SCORES.{score}.triton"
    place_of_reduction = f"mibfast.kernels.pairwise.reductions:REDUCTIONS.{reduction}.triton"
    constants = {
        "SCORE": f"{place_of_score}.0",
        "SCORE_GRADIENT": f"{place_of_score}.1",
        "ADD": f"{place_of_reduction}.0",
        "GRAD": f"{place_of_reduction}.1",
        "ROW_PLANES": found.row_planes(flags),
        "COLUMN_PLANES": found.column_planes(flags),
        "MAXIMUM": found.keeps_maximum,
        "FLAGS": flags,
        "K": k,
        "S": s,
        "out_column_stride": 1,
        "SCALE": 2,
        **dict.fromkeys(("BIAS", "GAIN", "UNDO"), 0),
        "TIMES_SCALE": True,
        "SUMS": 2 if reduction == "sigmoid_loss" else 1,
        "OF_COLUMNS": True,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "WHOLE": tile.holds(d),
        "EVEN": True,
        "PRECISION": "ieee" if how == "ieee" else "tf32",
    }
    counts = "n n_columns offset first_row last_row first_column last_column first_sum sums_size upstream_stride"
    strides = (
        "d row_stride column_stride tile_stride grad_tiles_stride own_stride other_stride out_row_stride split_size"
    )
    matrices = "rows operands grad_tiles own others out"
    vectors = "upstream sums row_states column_states positive_scores"
    types = {
        **dict.fromkeys(counts.split(), "i32"),
        **dict.fromkeys(strides.split(), "i32:16"),
        **dict.fromkeys(matrices.split(), "*bf16:16" if dtype == torch.bfloat16 else "*fp32:16"),
        **dict.fromkeys(vectors.split(), "*fp32:16"),
        **dict.fromkeys(("row_lse", "column_lse"), "*fp64:16"),
        **dict.fromkeys(("bias", "gain", "undo", "smoothing"), "fp32"),
        "scale": "*fp32:16",
    }
    if s:
        given = ("row_statistic", "column_statistics", "positives")
        types |= dict.fromkeys((*given, *(f"grad_{x}" for x in given)), "*fp32:16")
    if kernel == "_score":
        types["out"] = "*fp32:16"
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return f"mibfast.kernels.pairwise.{module}", kernel, types, constants, options


@functools.cache
def _compiler() -> subprocess.Popen[str]:
    compiler = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )

    @atexit.register
    def end() -> None:
        compiler.communicate()

    return compiler


def _compiled(compilation: Compilation, capability: int) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def found(x: object) -> object:
        if isinstance(x, str) and ":" in x:
            module, _, path = x.partition(":")
            value = importlib.import_module(module)
            for name in path.split("."):
                if isinstance(value, dict):
                    value = value[name]
                else:
                    value = value[int(name)] if name.isdigit() else getattr(value, name)
            return value
        return x

    def of_elements(type_: str | list[str]) -> list[tuple[tuple[int, ...], str]]:
        return [((), type_)] if isinstance(type_, str) else [((k,), each) for k, each in enumerate(type_)]

    def without_divisor(type_: str | list[str]) -> str | tuple[str, ...]:
        return type_.removesuffix(":16") if isinstance(type_, str) else tuple(x.removesuffix(":16") for x in type_)

    module, name, types, constants, options = compilation
    kernel = getattr(importlib.import_module(module), name)
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    places = {
        (at, *rest): type_
        for at, argument in enumerate(kernel.arg_names)
        for rest, type_ in of_elements(signature[argument])
    }
    source = ASTSource(
        kernel,
        {argument: without_divisor(type_) for argument, type_ in signature.items()},
        {argument: found(constants.get(argument)) for argument, type_ in signature.items() if type_ == "constexpr"},
        {place: [["tt.divisibility", 16]] for place, type_ in places.items() if type_.endswith(":16")},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return Resources(int(stack), int(registers), compiled.metadata.shared)


def _main() -> None:
    for line in sys.stdin:
        capability, compilations = json.loads(line)
        try:
            answer: object = [_compiled(each, capability) for each in compilations]
        except Exception:
            answer = traceback.format_exc()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
