"""Wire: read Flower's arrays without copies, and write them.

An `Array` holds the bytes of an .npy file. Flower's own reader trusts the header of that file and ignores bytes after
the data. `decode` checks the header, requires the exact length, copies nothing, and refuses everything else.
"""

from __future__ import annotations

import ast
import io
import math
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from flwr_robust.flower._compat import fill, twin

__all__ = [
    "PayloadError",
    "as_tensor",
    "copy_content",
    "decode",
    "decode_record",
    "encode",
    "encode_record",
    "is_finite",
    "plain",
    "records_of",
]

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 1024  # enough for 32 dimensions of 19 digits each
_MOST_DIMENSIONS = 32
_LARGEST = 2**63 - 1
_FINITE_BLOCK = 1 << 16
_NUMBERS = re.compile(r"[<>|=][biufc][0-9]{1,2}")
_STYPE = "numpy.ndarray"

with warnings.catch_warnings():
    # torch warns once per process that a view of read-only memory could be written to; this package never does that.
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(4), np.float32))


class PayloadError(ValueError):
    """The bytes of an array are not a plain .npy file of the length that its header declares."""


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran_order: bool
    count: int


@lru_cache(maxsize=4096)
def _parse(text: bytes) -> _Header:
    try:
        fields = ast.literal_eval(text.decode("latin1").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise PayloadError("its npy header cannot be read") from None
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise PayloadError("its npy header lacks descr, fortran_order or shape")
    descr, fortran_order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if not isinstance(descr, str) or not _NUMBERS.fullmatch(descr) or not isinstance(fortran_order, bool):
        raise PayloadError("its npy header declares no numbers")
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError):
        raise PayloadError(f"its npy header declares the type {descr}") from None
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise PayloadError("its npy header declares no shape")
    if any(type(extent) is not int or not 0 <= extent <= _LARGEST for extent in shape):
        raise PayloadError("its npy header declares an impossible shape")
    # The largest size that numpy can address, checked even if another dimension is zero.
    if math.prod(extent for extent in shape if extent) * dtype.itemsize > _LARGEST:
        raise PayloadError("its npy header declares an impossible shape")
    return _Header(dtype, shape, fortran_order, math.prod(shape))


def decode(array: Array) -> NDArray[Any]:
    """Return an array's numbers as a read-only view of its bytes.

    Parameters
    ----------
    array : Array
        Flower's array; its ``dtype`` and ``shape`` attributes are ignored.

    Raises
    ------
    PayloadError
        If the bytes are not an .npy file of numbers of exactly the declared length.
    """
    data = array.data
    if array.stype != _STYPE:
        raise PayloadError(f"it is serialised as {array.stype!r}, not {_STYPE!r}")
    if not isinstance(data, bytes) or data[:6] != _MAGIC or len(data) < 12:
        raise PayloadError("it does not start as an npy file")
    if data[6:8] == b"\x01\x00":
        start, length = 10, struct.unpack_from("<H", data, 8)[0]
    elif data[6:8] in (b"\x02\x00", b"\x03\x00"):
        start, length = 12, struct.unpack_from("<I", data, 8)[0]
    else:
        raise PayloadError(f"its npy version is {data[6]}.{data[7]}")
    if length > _LONGEST_HEADER or start + length > len(data):
        raise PayloadError(f"its npy header declares {length} bytes for itself")
    header = _parse(data[start : start + length])
    offset = start + length
    expected = header.count * header.dtype.itemsize
    if len(data) - offset != expected:
        raise PayloadError(f"it holds {len(data) - offset} bytes where its header declares {expected}")
    flat = np.frombuffer(data, header.dtype, header.count, offset)
    return flat.reshape(header.shape, order="F" if header.fortran_order else "C")


def as_tensor(values: NDArray[Any]) -> torch.Tensor:
    """Return a tensor that shares the memory of decoded numbers; do not write into it."""
    return torch.from_numpy(values)


def is_finite(values: NDArray[Any]) -> bool:
    """Say whether all numbers are finite, without another array of the size of the data.

    A finite sum shows that all numbers are finite, and takes a tenth of the time of checking each. A sum that overflows
    shows nothing, so the numbers are then checked one by one.
    """
    flat = values.ravel(order="K")
    if math.isfinite(float(as_tensor(flat).sum())):
        return True
    return all(
        bool(np.isfinite(flat[start : start + _FINITE_BLOCK]).all()) for start in range(0, flat.size, _FINITE_BLOCK)
    )


@lru_cache(maxsize=4096)
def _head(descr: str, shape: tuple[int, ...]) -> tuple[str, bytes]:
    """Return a type's name and the npy header of an array of it."""
    buffer = io.BytesIO()
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return str(np.dtype(descr)), buffer.getvalue()


def encode(values: NDArray[Any]) -> Array:
    """Return an array as Flower's `Array`, in C order; Flower's own writer gives the same bytes for such arrays."""
    name, header = _head(values.dtype.str, values.shape)
    return Array(dtype=name, shape=values.shape, stype=_STYPE, data=header + values.tobytes())


def plain(array: Array, values: NDArray[Any]) -> Array:
    """Return an array that Flower's own reader reads like `decode`, with correct attributes.

    Parameters
    ----------
    array : Array
        As a client sent it.
    values : array
        The numbers that `decode` returned for it.

    Returns
    -------
    Array
        The same object if `encode` would give the same bytes, as for honest clients; otherwise a new one.
    """
    name, header = _head(values.dtype.str, values.shape)
    if not array.data.startswith(header):
        return encode(values)
    if array.dtype == name and array.shape == values.shape:
        return array
    return Array(dtype=name, shape=values.shape, stype=_STYPE, data=array.data)


R = TypeVar("R", ArrayRecord, MetricRecord, ConfigRecord)


def copy_content(content: RecordDict) -> RecordDict:
    """Copy records so that neither side can change the other's; both share the bytes of arrays, which are immutable."""
    copied: dict[str, Any] = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            copied[name] = fill(ArrayRecord(), {key: twin(array) for key, array in record.items()})
        else:
            lists = {key: list(value) for key, value in record.items() if isinstance(value, list)}
            apart: Any = record.copy()
            copied[name] = fill(apart, lists)
    return fill(RecordDict(), copied)


def records_of(content: RecordDict, kind: type[R]) -> list[R]:
    """Return the records of one kind, in order, without the copies and checks of RecordDict's own views."""
    return [record for record in content.values() if isinstance(record, kind)]


def decode_record(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Return all arrays of a record by name, read-only."""
    return {name: decode(array) for name, array in record.items()}


def encode_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return a record of named arrays, in their order."""
    return fill(ArrayRecord(), {name: encode(values) for name, values in arrays.items()})
