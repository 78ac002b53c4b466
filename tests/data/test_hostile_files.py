"""Files that are not what they say or are not to be believed: one line, before memory is taken, without waiting."""

import io
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mibfast import data
from mibfast.data.file_names import why_no_file_name
from mibfast.data.npy import open_rows, read_npy

VIEWS = {"a": np.arange(120.0).reshape(40, 3), "b": np.arange(80, dtype=np.float32).reshape(40, 2)}


def npy(descr: str = "'<f8'", shape: str = "(40, 3)", order: str = "False", content: bytes = b"") -> bytes:
    """An .npy file whose header says what it is given."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def whole(array: np.ndarray, **options: object) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


# What no array can be read of.
NO_ARRAYS = {
    "nothing": (b"", "header is damaged"),
    "text": (b"no array at all", "header is damaged: the magic string is not correct"),
    "only a header": (npy(), "it is shorter than its header says"),
    "80 GB by its header": (npy(shape="(10000000000, 1)", content=bytes(64)), "it is shorter than its header says"),
    "more than can be counted": (npy(shape=f"({10**30}, 3)", content=bytes(64)), "it is shorter than its header says"),
    "negative": (npy(shape="(-40, 3)", content=bytes(960)), r"its header says that it is of shape [-40, 3]"),
    "negative twice": (npy(shape="(-40, -3)", content=bytes(960)), "of shape [-40, -3]"),
    "a shape of text": (npy(shape="('40', 3)", content=bytes(960)), "header is damaged"),
    "a shape of truths": (npy(shape="(True, 3)", content=bytes(960)), "of shape [True, 3]"),
    "no dtype": (npy(descr="'<q9'", content=bytes(960)), "header is damaged"),
    "a dtype that is a number": (npy(descr="3", content=bytes(960)), "header is damaged"),
    "nested deeply": (npy(shape="(" * 4000 + ")" * 4000), "header is damaged"),
    "signs nested deeply": (npy(shape="(" + "-" * 9000 + "1, 3)"), "header is damaged"),
    "no Python": (npy(shape="(40, 3", content=bytes(960)), "header is damaged"),
    "another version": (b"\x93NUMPY\x09\x00" + npy()[8:], "header is damaged: version 9.0; expected 1.0 or 2.0"),
    "objects": (
        whole(np.array([{}] * 40), allow_pickle=True),
        "is an object array, which would have to be unpickled; save it with a numeric dtype, or strings by .astype",
    ),
}


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", compression) as written:
        for name, content in members.items():
            written.writestr(name, content)
    return f"npz:{path}"


def members(**changed: bytes) -> dict[str, bytes]:
    return {f"{name}.npy": whole(view) for name, view in VIEWS.items()} | {f"{k}.npy": v for k, v in changed.items()}


def refused(name: str) -> str:
    with pytest.raises(data.DataError) as caught:
        data.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["npz", "dir"])
@pytest.mark.parametrize("role", ["a", "labels", "split", "a.presence"])
@pytest.mark.parametrize(("content", "message"), NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_what_is_no_array_is_refused_whatever_it_is_for(tmp_path, kind, role, content, message) -> None:
    files = members(**{role: content})
    if kind == "npz":
        name = archive(tmp_path / "x.npz", files)
    else:
        name = f"dir:{tmp_path}"
        for file, each in files.items():
            (tmp_path / file).write_bytes(each)
    said = refused(name)
    assert message in said
    assert f"{role}'" in said or f"{role}.npy" in said


def claiming(path: Path, size: int) -> str:
    """An archive whose directory says that its first member has so many bytes."""
    name = archive(path, members(a=npy(shape=f"({size // 8}, 1)", content=bytes(800))))
    hurt = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = hurt.index(signature)
        hurt[at + offset : at + offset + 4] = struct.pack("<I", size)
    path.write_bytes(hurt)
    return name


def with_method(path: Path, method: int) -> str:
    name = archive(path, members())
    hurt = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = hurt.index(signature)
        hurt[at + offset : at + offset + 2] = struct.pack("<H", method)
    path.write_bytes(hurt)
    return name


def encrypted(path: Path) -> str:
    name = archive(path, members())
    hurt = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        hurt[hurt.index(signature) + offset] |= 1
    path.write_bytes(hurt)
    return name


def saved_by_torch(path: Path) -> str:
    torch.save({"a": torch.zeros(40, 3)}, path)
    return f"npz:{path}"


def twice(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("a.npy", whole(VIEWS["a"]))
        with pytest.warns(UserWarning, match="Duplicate name"):
            written.writestr("a.npy", whole(VIEWS["a"]))
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: claiming(path, 4_000_000_000),
            "it is 4000000000 bytes by the archive's directory, and there are",
        ),
        (lambda path: with_method(path, 97), "array 'a' cannot be used: That compression method is not supported"),
        (encrypted, "array 'a' cannot be used: "),
        (saved_by_torch, "holds no arrays, NAME.npy as numpy.savez writes them, but 'x/data.pkl'"),
        (twice, "holds two arrays 'a'"),
        (lambda path: archive(path, {}), "holds no arrays, NAME.npy as numpy.savez writes them, but nothing"),
        (lambda path: archive(path, {"README": b"text"}), "but 'README'"),
        (lambda path: archive(path, members(a=whole(VIEWS["a"]) + b"more")), "it is longer than its header says"),
    ],
    ids=["claims 4 GB", "unknown method", "encrypted", "torch.save", "twice", "empty", "README alone", "longer"],
)
def test_archives_that_are_not_believed(tmp_path, make, message) -> None:
    assert message in refused(make(tmp_path / "x.npz"))


@pytest.mark.parametrize("kind", ["npz", "dir"])
def test_what_takes_more_memory_than_is_free_is_refused_before_it_is_read(tmp_path, monkeypatch, kind) -> None:
    """Zeros are small in an archive, and a sparse file holds none of them."""
    monkeypatch.setattr("mibfast.data.opening.free_memory", lambda: 10**6)
    large = whole(np.asfortranarray(np.zeros((40, 50_000))))
    if kind == "npz":
        name = archive(tmp_path / "x.npz", members(a=large))
    else:
        name = f"dir:{tmp_path}"
        for file, each in members(a=large).items():
            (tmp_path / file).write_bytes(each)
    said = refused(name)
    assert "it takes 0.032 GB of memory, and 0.001 GB are free; rows are read as needed" in said
    assert "numpy.ascontiguousarray" in said


def test_what_belongs_to_the_archive_or_the_system_is_no_array(tmp_path) -> None:
    """As macOS zips a folder, with a README; other files in a folder are not looked at either."""
    extra = {"README.md": b"text", "__MACOSX/._a.npy": b"\0\5\x16\7", "._b.npy": b"\0\5\x16\7", "notes/": b""}
    name = archive(tmp_path / "x.npz", {**extra, **members()})
    assert list(data.load(name).views) == ["a", "b"]
    folder = tmp_path / "folder"
    folder.mkdir()
    for file, content in {**extra, **members()}.items():
        if "/" not in file:
            (folder / file).write_bytes(content)
    assert list(data.load(f"dir:{folder}").views) == ["a", "b"]


@pytest.mark.parametrize("contiguous", [np.asfortranarray, np.ascontiguousarray])
@pytest.mark.parametrize("kind", ["npz", "dir"])
def test_arrays_of_either_order_are_read(tmp_path, kind, contiguous) -> None:
    views = {"a": contiguous(VIEWS["a"]), "c": contiguous(np.arange(240).reshape(40, 2, 3).astype(">i4"))}
    files = {f"{name}.npy": whole(view) for name, view in views.items()}
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    found = data.load(archive(tmp_path / "x.npz", files) if kind == "npz" else f"dir:{tmp_path}")
    for name, view in views.items():
        assert np.array_equal(found.split("all")[0][name].numpy(), view)
    assert isinstance(open_rows(tmp_path / "a.npy"), np.ndarray) == (contiguous is np.asfortranarray)
    assert read_npy(tmp_path / "c.npy").flags.c_contiguous


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)  # A socket's path is short.
        listener.bind(path.name)
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_pipe, "it is a pipe, not a regular file"),
        (make_socket, ""),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a regular file"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "No such file or directory"),
    ],
    ids=["pipe", "socket", "device", "folder", "loop", "dangling"],
)
@pytest.mark.parametrize(
    ("file", "form"),
    [
        ("x.npz", "npz:{}/x.npz"),
        ("a.npy", "dir:{}"),
        ("labels.npy", "dir:{}"),
        ("mfeat-fou", "mfeat:{}"),
        ("train-images-idx3-ubyte", "noisy-mnist:{}"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path, make: Callable[[Path], object], message, file, form) -> None:
    if form == "dir:{}":
        for name, content in members().items():
            (tmp_path / name).write_bytes(content)
    (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / "train-labels-idx1-ubyte").touch()
    make(tmp_path / file)
    said = refused(form.format(tmp_path))
    assert "cannot read" in said
    assert message in said


@pytest.mark.parametrize("name", ["npz:{}", "dir:{}", "mfeat:{}", "noisy-mnist:{}"])
@pytest.mark.parametrize("place", ["a\0b", "x" * 300, "~nobody-at-all/x"])
def test_places_that_no_system_call_takes(name, place) -> None:
    refused(name.format(place))


HOSTILE_NAMES = {
    "/etc/a": "it holds '/'",
    "../a": "it holds '/'",
    "a\\b": "it holds '\\\\'",
    "a\0b": "cannot be printed",
    "a\nb": "cannot be printed",
    "a\x1b[2J": "cannot be printed",
    "a\udcff": "cannot be printed",
    ".a": "it begins with a dot",
    "..": "it begins with a dot",
    "": "it is empty",
    "n" * 250: "at most 255 bytes",
    "ñ" * 125: "at most 255 bytes",
}


@pytest.mark.parametrize(("name", "message"), HOSTILE_NAMES.items())
def test_names_that_cannot_be_files_are_refused_wherever_they_come_from(tmp_path, name, message) -> None:
    assert message in str(why_no_file_name(name))
    with pytest.raises(data.DataError, match="a modality cannot be called") as caught:
        data.from_arrays({"a": VIEWS["a"], name: VIEWS["b"]})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if name and "\0" not in name and "\udcff" not in name:
        assert message in refused(archive(tmp_path / "x.npz", {**members(), f"{name}.npy": whole(VIEWS["b"])}))


@pytest.mark.parametrize("name", ["labels", "split", "a.b", "a,b", "train"])
def test_names_that_mean_something_else_are_refused(name) -> None:
    with pytest.raises(data.DataError, match="a modality cannot be called"):
        data.from_arrays({"a": VIEWS["a"], name: VIEWS["b"]})


@pytest.mark.parametrize("name", ["image", "image 2", "Bild-größe", "音声", "n" * 200, "-x", "~"])
def test_names_that_can_be_files_are_taken(name) -> None:
    assert why_no_file_name(name) is None
    assert list(data.from_arrays({name: VIEWS["a"]}).views) == [name]


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["cat", "dog"] * 20),
        np.array([b"cat", b"dog"] * 20),
        np.array(["cat", "dog"] * 20, dtype=object),
        ["cat", "dog"] * 20,
    ],
    ids=["fixed width", "bytes", "objects in memory", "a list"],
)
def test_strings_are_classes(tmp_path, labels) -> None:
    found = data.from_arrays(VIEWS, labels)
    assert found.labels.dtype == np.dtype("<U3")
    assert found.labels[:2].tolist() == ["cat", "dog"]
    if np.asarray(labels).dtype != object:
        read = data.load(archive(tmp_path / "x.npz", members(labels=whole(np.asarray(labels)))))
        assert np.array_equal(read.labels, found.labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array(["cat", None] * 20, dtype=object), "not all strings: 1 is NoneType; fill in what is missing"),
        (np.array(["cat", float("nan")] * 20, dtype=object), "1 is float"),
        (np.array([b"\xff", b"dog"] * 20), "labels are bytes and no UTF-8"),
        (np.full(40, 2**63, np.uint64), "labels hold 9223372036854775808, beyond int64; save them as strings"),
        (np.zeros(40, "M8[s]"), "labels must be integers, strings or floats, got dtype datetime64"),
        (np.array("cat"), r"labels must be \[N\]"),
    ],
)
def test_labels_that_cannot_be_classes(labels, message) -> None:
    with pytest.raises(data.DataError, match=message):
        data.from_arrays(VIEWS, labels)
