"""Compiles Triton kernels for GPUs that are not there, and reads what the assembler says of registers and memory.

`resources` runs in a process of its own: where a test's process has Triton's interpreter on, nothing in it compiles.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

# Shared memory a program may take, bytes, by capability.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}


class Resources(NamedTuple):
    """What a compiled kernel takes: spilled bytes a thread, registers a thread, shared memory in bytes."""

    spilled: int
    registers: int
    shared: int


def resources(
    compilations: Sequence[tuple[str, str, dict[str, str | list[str]], dict[str, object], dict[str, int]]],
    capability: int,
) -> list[Resources]:
    """Compile kernels, each a module, a name in it, types of its arguments, constants, and options such as num_warps.

    A constant that is a string "module:a.b" stands for what is found there; arguments without a type are constants,
    and those of type "*..." and "i..." may end in ":16" where they are known to be divisible by 16. The type of a tuple
    is a list of types.
    """
    found = subprocess.run(
        [sys.executable, __file__, str(capability)],
        input=json.dumps(compilations),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_DUMP_PTXAS_LOG": "1", "TRITON_ALWAYS_COMPILE": "1"},
    )
    assert found.returncode == 0, found.stderr
    result = []
    for kernel in found.stdout.split("== compiled ")[1:]:
        log, end = kernel.split("== shared ")
        spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill", log))
        registers = int(re.findall(r"Used (\d+) registers", log)[0])
        result.append(Resources(spilled, registers, int(end.split()[0])))
    assert len(result) == len(compilations)
    return result


def _main(capability: int) -> None:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def found(x: object) -> object:
        if isinstance(x, str) and ":" in x:
            module, _, path = x.partition(":")
            value = importlib.import_module(module)
            for name in path.split("."):
                value = getattr(value, name)
            return value
        return x

    def of_elements(type_: str | list[str]) -> list[tuple[tuple[int, ...], str]]:
        return [((), type_)] if isinstance(type_, str) else [((k,), each) for k, each in enumerate(type_)]

    def without_divisor(type_: str | list[str]) -> str | tuple[str, ...]:
        return type_.removesuffix(":16") if isinstance(type_, str) else tuple(x.removesuffix(":16") for x in type_)

    for module, name, types, constants, options in json.load(sys.stdin):
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
        print("== compiled", name, flush=True)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        print("== shared", compiled.metadata.shared, flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
