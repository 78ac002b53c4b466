"""Every file of a run's folder and of data damaged in every way: commands end right, or in one line and exit status 2.

Bytes are lost and flipped; files are replaced by folders, pipes and links in a loop; and values of other types and
sizes are put under checksums that are right.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torture.runs import RUNS, Place, command, contents, copied, in_child, made
from torture.supervision import Finding

Hurt = Callable[[Path, random.Random], object]


def _removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _replaced(by: Callable[[Path], object]) -> Hurt:
    return lambda path, rng: (_removed(path), by(path))


def _bytes(change: Callable[[bytearray, random.Random], object]) -> Hurt:
    def hurt(path: Path, rng: random.Random) -> None:
        content = bytearray(path.read_bytes())
        result = change(content, rng)
        path.write_bytes(result if isinstance(result, (bytes, bytearray)) else content)

    return hurt


def _flip(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 8))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _zeroed(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(max(1, len(content)))
    content[start : start + 64] = bytes(len(content[start : start + 64]))


ANY_FILE: dict[str, Hurt] = {
    "removed": lambda path, rng: path.unlink(),
    "emptied": _bytes(lambda content, rng: b""),
    "cut in half": _bytes(lambda content, rng: content[: len(content) // 2]),
    "cut by a byte": _bytes(lambda content, rng: content[:-1]),
    "cut somewhere": _bytes(lambda content, rng: content[: rng.randrange(len(content) + 1)]),
    "bits flipped": _bytes(_flip),
    "other bits flipped": _bytes(_flip),
    "zeros in it": _bytes(_zeroed),
    "text in its place": _bytes(lambda content, rng: b"text\n"),
    "zeros in its place": _bytes(lambda content, rng: bytes(len(content))),
    "twice in a row": _bytes(lambda content, rng: bytes(content) * 2),
    "a folder": _replaced(Path.mkdir),
    "a pipe": _replaced(os.mkfifo),
    "a link to itself": _replaced(lambda path: path.symlink_to(path.name)),
    "a link to nothing": _replaced(lambda path: path.symlink_to("nothing")),
    "a socket's device": _replaced(lambda path: path.symlink_to("/dev/full")),
    "a tebibyte of zeros": _replaced(lambda path: (path.touch(), os.truncate(path, 2**40))),
}
_JUNK = (None, "x", "", -1, 0, 1e308, [], {}, True, 10**30, [[]], "../../x", 2**31, [1, 2, 3])


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in itertools.islice(items, 40):
        yield from _leaves(value, (*path, key))


def _changed(tree: Any, rng: random.Random, junk: tuple[Any, ...]) -> str:
    """Replace a value somewhere in lists and dicts, in place."""
    path = rng.choice(list(_leaves(tree)))
    for key in path[:-1]:
        tree = tree[key]
    if rng.random() < 0.15:
        del tree[path[-1]]
        return f"{path} gone"
    tree[path[-1]] = rng.choice(junk)
    return f"{path} = {tree[path[-1]]!r}"[:100]


def _json(path: Path, rng: random.Random) -> str:
    tree = json.loads(path.read_text())
    text = _changed(tree, rng, _JUNK)
    path.write_text(json.dumps(tree))
    return text


def _state(path: Path, rng: random.Random) -> str:
    import torch

    tree = torch.load(path, weights_only=True)
    junk = (*_JUNK, torch.zeros(3), torch.zeros(0), torch.full((2, 2), torch.nan), torch.zeros(2, dtype=torch.int64))
    text = _changed(tree, rng, junk)
    torch.save(tree, path)
    return text


def _weights(path: Path, rng: random.Random) -> str:
    """Other tensors, and their checksum in metrics.json."""
    import torch
    from safetensors.torch import load_file, save

    from mibfast.train.folder import RunFolder

    tensors = load_file(path)
    name = rng.choice(list(tensors))
    changes: dict[str, Callable[[], Any]] = {
        "in float64": lambda: tensors.update({name: tensors[name].double()}),
        "as integers": lambda: tensors.update({name: tensors[name].int()}),
        "of another shape": lambda: tensors.update({name: torch.zeros(7, 5)}),
        "empty": lambda: tensors.update({name: torch.zeros(0)}),
        "NaN": lambda: tensors.update({name: torch.full_like(tensors[name], torch.nan)}),
        "gone": lambda: tensors.pop(name),
        "one more": lambda: tensors.update({"../more": torch.zeros(2)}),
    }
    change = rng.choice(list(changes))
    changes[change]()
    path.write_bytes(save(tensors))
    folder = RunFolder(path.parent)
    folder.write_metrics({**folder.read_metrics(), "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    return f"{name} {change}"


def _deep(path: Path, rng: random.Random) -> None:
    path.write_text("[" * 200_000 + "]" * 200_000)


CRAFTED: dict[str, dict[str, Hurt]] = {
    ".json": {**{f"another value, {k}": _json for k in range(24)}, "nested 200,000 deep": _deep,
              **{f"{text} in its place": lambda path, rng, text=text: path.write_text(text)
                 for text in ("[]", "{}", "null", "3", '"x"', '{"format": 1, "settings": {}}', "NaN", "\ufeff{}")}},
    ".pt": {f"another value, {k}": _state for k in range(24)},
    ".safetensors": {f"other weights, {k}": _weights for k in range(12)},
}  # fmt: skip


def _header(path: Path, rng: random.Random) -> str:
    shape = rng.choice(("(-1, 4)", "(60, -4)", "(10**9, 4)", "(10000000000, 4)", "(60,)", "()", "(60, 4, 'x')", "60"))
    descr = rng.choice(("'<f4'", "'<f4'", "'|O'", "'<f8'", "'<U3'", "'<c8'", "'<M8[s]'", "'V4'", "[('x', '<f4')]", "3"))
    order = rng.choice(("False", "False", "True", "7"))
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    content = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n" + bytes(60 * 4 * 4)
    path.write_bytes(content)
    return text


def _array(make: Callable[[], np.ndarray]) -> Hurt:
    return lambda path, rng: np.save(path, make(), allow_pickle=True)


ARRAY: dict[str, Hurt] = {
    **{f"another header, {k}": _header for k in range(16)},
    "in Fortran's order": _array(lambda: np.asfortranarray(np.random.default_rng(0).standard_normal((60, 4)))),
    "objects": _array(lambda: np.array([{}] * 60)),
    "text": _array(lambda: np.array([["x"] * 4] * 60)),
    "no rows": _array(lambda: np.zeros((0, 4), np.float32)),
    "no columns": _array(lambda: np.zeros((60, 0), np.float32)),
    "fewer rows": _array(lambda: np.zeros((59, 4), np.float32)),
    "NaN": _array(lambda: np.full((60, 4), np.nan, np.float32)),
    "beyond float32": _array(lambda: np.full((60, 4), 1e300)),
    "big-endian": _array(lambda: np.zeros((60, 4), ">f4")),
    "complex": _array(lambda: np.zeros((60, 4), np.complex64)),
    "longer floats": _array(lambda: np.zeros((60, 4), np.longdouble)),
    "dates": _array(lambda: np.zeros((60, 4), "M8[s]")),
}
_MEMBERS = ("README", "/tmp/x.npy", "../x.npy", "a/../../x.npy", ".npy", "a\n.npy", "._a.npy", "a.presence.npy",
            "split.npy", "labels.npy", "x" * 300 + ".npy", "nul\x00.npy")  # fmt: skip


def _member(path: Path, rng: random.Random) -> str:
    """One more member of an .npz, or one in another's place."""
    name = rng.choice(_MEMBERS)
    content = io.BytesIO()
    np.save(content, rng.choice((np.zeros((60, 4), np.float32), np.zeros(60, bool), np.array(["train"] * 60))))
    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(path, "a", kind) as archive:
        archive.writestr(name, rng.choice((content.getvalue(), content.getvalue(), b"text", b"")))
    return repr(name)[:40]


def _bomb(path: Path, rng: random.Random) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (60, 2**22)})
        for _ in range(60):
            member.write(bytes(2**24))


ARCHIVE: dict[str, Hurt] = {
    **{f"another member, {k}": _member for k in range(20)},
    "a gibibyte of zeros, compressed": _bomb,
    "an array in its place": lambda path, rng: path.write_bytes((path.parent / "arrays" / "a.npy").read_bytes()),
}


def cases(place: Place) -> list[tuple[str, str, Hurt, str, str]]:
    """Return all: the folder that is copied, the file in it, the damage by its name, and the command."""
    found: list[tuple[str, str, Hurt, str, str]] = []
    for method in RUNS:
        for folder in (method, f"{method}-stopped"):
            for path in sorted((place.path / folder).rglob("*")):
                name = str(path.relative_to(place.path / folder))
                if not path.is_file() or name.startswith("tensorboard"):
                    continue
                ways = {**ANY_FILE, **CRAFTED.get(path.suffix, {})}
                # Pictures are read by nobody.
                few = path.suffix in (".png", ".csv", "")
                for way, hurt in list(ways.items())[:: 4 if few else 1]:
                    found += [(folder, name, hurt, way, what) for what in ("fit --resume", "evaluate", "embed")]
    for folder, name, crafted in (
        (".", "small.npz", ARCHIVE),
        ("arrays", "a.npy", ARRAY),
        ("arrays", "labels.npy", ARRAY),
    ):
        for way, hurt in {**ANY_FILE, **crafted}.items():
            found += [(folder, name, hurt, way, what) for what in ("fit", "embed --data")]
    return found


def findings(place: Place, seed: int, only: int | None = None) -> Iterator[Finding | int]:
    """Try the cases in random order."""
    right: dict[tuple[str, str], str] = {}
    every = list(enumerate(cases(place)))
    random.Random(seed).shuffle(every)
    for number, (folder, name, hurt, way, what) in every if only is None else [x for x in every if x[0] == only]:
        rng = random.Random(f"corruption {seed} {number}")
        method = folder.partition("-stopped")[0]
        scratch, output = place.path / "scratch", place.path / "output"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        if method in RUNS:
            run = copied(place.path / folder, scratch)
            arguments = place.commands(method, run, output)[what]
            if (folder, what) not in right:
                whole = in_child(command(*arguments))
                # A run that was stopped is not evaluated.
                right[folder, what] = made(what, run, output) if whole.status == 0 else ""
                if whole.wrong() is not None:
                    raise RuntimeError(f"{what} of {folder}, undamaged: {whole}")
                run = copied(place.path / folder, scratch)
                shutil.rmtree(output)
                output.mkdir()
        else:
            scratch.mkdir()
            shutil.copy(place.path / "small.npz", scratch)
            shutil.copytree(place.path / "arrays", scratch / "arrays")
            run = scratch / folder
            source = f"npz:{scratch / name}" if folder == "." else f"dir:{run}"
            data_run = copied(place.path / "ova-ib", output / "run")
            arguments = {
                "fit": place.fit("ova-ib", output / "new", source),
                "embed --data": ("embed", str(data_run), "--data", source, "--output", str(output / "x.npz")),
            }[what]
        try:
            detail = hurt(run / name, rng)
        except Exception as error:
            detail = f"(cannot be made: {error})"
        text = f"{what}, {folder}/{name}: {way}" + (f", {detail}" if isinstance(detail, str) else "")
        before = contents(run) if "a tebibyte" not in way else {}
        done = in_child(command(*arguments))
        wrong = done.wrong()
        if wrong is None and method in RUNS:
            # Numbers that are others by intent, and have the right checksum, are as good as any.
            crafted = way.startswith("other weights")
            if (
                done.status == 0
                and not crafted
                and (not right[folder, what] or made(what, run, output) != right[folder, what])
            ):
                wrong = "wrong number", "success, with other numbers than of the whole folder"
            after = contents(run) if before else {}
            changed = sorted(x for x in before if after.get(x) != before[x])
            if done.status == 2 and changed:
                wrong = "changed by a refusal", ", ".join(changed)
        if wrong is not None:
            yield Finding(wrong[0], f"{text}: {wrong[1]}", "corruption", seed, number)
        yield number
