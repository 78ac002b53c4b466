"""Embeddings of a run, written for use elsewhere."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mibfast import _check
from mibfast.data.file_names import why_no_file_name
from mibfast.data.multimodal import PRESENCE
from mibfast.train.errors import RunError
from mibfast.train.fitting.run import Run
from mibfast.train.folder import RunFolder
from mibfast.train.progress import Report, Task, reported


def write_embeddings(
    run: Run,
    output: Path,
    *,
    split: str = "all",
    representations: bool = False,
    progress: bool | Report = True,
) -> dict[str, tuple[int, ...]]:
    """Write an array [n, features] (float32) for each modality, labels where there are any, and the split of `"all"`.

    Rows are in the data's order. Where samples lack modality NAME its rows are zeros, and `NAME.presence` says which.
    What is written can be fitted again, in the same split: `npz:FILE`, `dir:FOLDER`.

    Parameters
    ----------
    run : Run
    output : Path
        A file that ends in `.npz` or `.safetensors` (strings are left out of the latter, so the split too), else a
        folder of .npy files, which is written piece by piece and so can be larger than memory. A file is replaced in
        one step; a folder must not exist.
    split : {"all", "train", "validation", "test"}
    representations : bool
        What the encoders return, before the projection heads.
    progress : bool or Report

    Returns
    -------
    mapping from an array's name to its shape

    Raises
    ------
    RunError
        Where `output` exists as a folder, or cannot be written, or a modality's name cannot be a file's; for a fusion,
        which has representations only.
    DataError
        For NaN or infinity among the samples.
    """
    if run.target is not None and not representations:
        raise RunError(f"{run.method.title} is a fusion and has no embeddings; --representations writes its encoders'")
    report = reported("write_embeddings", progress)
    _check.boolean("write_embeddings", "representations", representations)
    indices = run.data.indices(split)
    shapes: dict[str, tuple[int, ...]] = {name: (len(indices), run.config.features) for name in run.data.views}
    apart: dict[str, NDArray[Any]] = {}
    if run.data.labels is not None:
        apart["labels"] = run.data.labels[indices.numpy()]
    for name, present in run.data.presence.items():
        apart[f"{name}{PRESENCE}"] = present[indices.numpy()]
    if split == "all" and run.data.splits:
        apart["split"] = np.empty(len(indices), "<U10")
        for name, samples in run.data.splits.items():
            apart["split"][samples.numpy()] = name
    if output.suffix == ".safetensors":
        apart = {name: array for name, array in apart.items() if array.dtype.kind != "U"}
    shapes.update({name: array.shape for name, array in apart.items()})
    for name in shapes:
        # For an archive too: unpacking it writes files with these names.
        why = why_no_file_name(f"{name}.npy")
        if why is not None:
            raise RunError(f"no embeddings can be written under the name {name!r}: {why}")
    in_file = output.suffix in (".npz", ".safetensors")
    if in_file:
        RunFolder(output.parent).check()
    with report.task("embedding", len(indices)) as task:
        parts = _reported(run.embed_in_parts(indices, representations=representations), task)
        if in_file:
            gathered: dict[str, list[NDArray[Any]]] = {name: [] for name in run.data.views}
            for part in parts:
                for name, z in part.items():
                    gathered[name].append(z.numpy())
            arrays = {name: np.concatenate(each) for name, each in gathered.items()}
            _write_file(RunFolder(output.parent), output.name, {**arrays, **apart})
        else:
            folder = RunFolder(output)
            folder.create()
            _write_folder(folder, shapes, parts, apart)
    return shapes


def _reported(parts: Iterator[dict[str, Tensor]], task: Task) -> Iterator[dict[str, Tensor]]:
    for part in parts:
        yield part
        task.advance(len(next(iter(part.values()))))


def _write_file(folder: RunFolder, name: str, arrays: dict[str, NDArray[Any]]) -> None:
    if name.endswith(".npz"):
        folder.write(name, lambda path: _save_npz(path, arrays))
        return
    from safetensors.numpy import save

    folder.write(name, lambda path: path.write_bytes(save(arrays)))


def _write_folder(
    folder: RunFolder,
    shapes: dict[str, tuple[int, ...]],
    parts: Iterator[dict[str, Tensor]],
    apart: dict[str, NDArray[Any]],
) -> None:
    # All modalities come at once, so their files are open together, each `write` inside the one before.
    names = [name for name in shapes if name not in apart]
    files: dict[str, Any] = {}

    def fill(position: int, path: Path) -> None:
        with open(path, "wb") as file:
            name = names[position]
            files[name] = file
            header = {"descr": "<f4", "fortran_order": False, "shape": shapes[name]}
            np.lib.format.write_array_header_1_0(file, header)
            if position + 1 < len(names):
                folder.write(f"{names[position + 1]}.npy", lambda next_path: fill(position + 1, next_path))
                return
            for part in parts:
                for each, z in part.items():
                    files[each].write(np.ascontiguousarray(z.numpy(), "<f4"))

    folder.write(f"{names[0]}.npy", lambda path: fill(0, path))
    for name, array in apart.items():
        folder.write(f"{name}.npy", partial(_save_npy, array=array))


def _save_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    # numpy's savez would take a modality called "file" for its own argument.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def _save_npy(path: Path, array: NDArray[Any]) -> None:
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)
