"""Archives of arrays, .npz, whose claims are compared with their bytes before they are trusted."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mibfast.data.npy import read_array
from mibfast.data.opening import open_regular

# Deflate makes no more than 1032 bytes of one, other methods more; no array of numbers comes near.
_LARGEST_RATIO = 2000
_LISTED_MEMBERS = 3


class NpzArchive:
    """An .npz file, of which arrays are read as they are asked for.

    Members that are no arrays are passed over, as other files in a folder of .npy files are: a README, and what macOS
    adds to an archive (`__MACOSX/`, `._NAME`).

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    names : list of str
        Of the arrays.

    Raises
    ------
    OSError
        Where it cannot be read.
    ValueError
        For a file that is no archive, that holds no array, or two of one name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_regular(path) as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    members = archive.infolist()
            except OSError:
                raise
            except Exception as error:
                # What zipfile raises depends on where the directory is damaged.
                raise ValueError(f"not an .npz file: {error or type(error).__name__}") from error
        self._size = os.stat(path).st_size
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            folder, _, last = member.filename.rpartition("/")
            if not last.endswith(".npy") or last.startswith("._") or folder.split("/")[0] == "__MACOSX":
                continue
            name = member.filename.removesuffix(".npy")
            if name in self._members:
                raise ValueError(f"holds two arrays {name!r}")
            self._members[name] = member
        self.names = list(self._members)
        if not self.names:
            listed = ", ".join(repr(each.filename) for each in members[:_LISTED_MEMBERS]) or "nothing"
            raise ValueError(f"holds no arrays, NAME.npy as numpy.savez writes them, but {listed}")

    def read(self, name: str) -> NDArray[Any]:
        """Return an array; OSError where it cannot be read, ValueError where it is damaged or cannot be held."""
        member = self._members[name]
        if member.file_size > _LARGEST_RATIO * (member.compress_size + 1) or member.compress_size > self._size:
            raise ValueError(
                f"it is {member.file_size} bytes by the archive's directory, and there are {member.compress_size} of it"
            )
        with open_regular(self._path) as file:
            try:
                with zipfile.ZipFile(file) as archive, archive.open(member) as content:
                    array = read_array(content, member.file_size)
                    if content.read(1):
                        raise ValueError("it is longer than its header says")
            except (OSError, ValueError):
                raise
            except MemoryError as error:
                raise ValueError("it takes more memory than is free") from error
            except Exception as error:
                # zipfile and the decompressors raise errors of any class, for an unknown method or a password too.
                raise ValueError(str(error) or type(error).__name__) from error
        return array
