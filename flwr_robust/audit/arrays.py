"""Read the arrays of an .npz file that anyone may have written: the memory for it never exceeds the file's size.

An .npz file is a zip archive of .npy files. Compressed members can be a thousand times as long as the archive, and the
header of an .npy file can state any shape. So members must be stored without compression, as `numpy.savez` does, and
every header must fit the bytes that follow. Nothing is unpickled.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from flwr_robust.files import open_plain

__all__ = ["read_arrays"]

_SUFFIX = ".npy"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name, in the file's order.

    Parameters
    ----------
    path : Path
        The file; symbolic links are not followed.

    Raises
    ------
    ValueError, OSError, zipfile.BadZipFile, NotImplementedError
        If it is no such file.
    """
    found: dict[str, NDArray[Any]] = {}
    with open_plain(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(each.compress_type != zipfile.ZIP_STORED or each.file_size != each.compress_size for each in members):
            raise ValueError("its members are compressed; this release stores them")
        if sum(each.file_size for each in members) > os.fstat(file.fileno()).st_size:
            raise ValueError("its members are longer than the file")
        for member in members:
            name = member.filename.removesuffix(_SUFFIX)
            if not member.filename.endswith(_SUFFIX) or "/" in name or name in found:
                raise ValueError("a member's name is not that of one array")
            data = bytearray(member.file_size)
            with archive.open(member) as held:
                if cast("BufferedReader", held).readinto(data) != len(data):
                    raise ValueError("a member is incomplete")
            found[name] = _array(data)
    return found


def _array(data: bytearray) -> NDArray[Any]:
    """Return the array of an .npy file that is in memory, without a copy of its numbers."""
    head = io.BytesIO(memoryview(data)[: 1 << 16])
    version = np.lib.format.read_magic(head)
    if version not in _HEADERS:
        raise ValueError(f"an array has version {version}")
    shape, fortran_order, dtype = _HEADERS[version](head)
    if dtype.hasobject:
        raise ValueError("an array holds Python objects")
    if min(shape, default=0) < 0 or head.tell() + math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array's shape {shape} does not fit its bytes")
    flat = np.frombuffer(data, dtype, math.prod(shape), head.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")
