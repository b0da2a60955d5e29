"""Hashes that identify a configuration and a model."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_robust.seeds import numpy_generator

__all__ = ["config_sha256", "fingerprint", "model_sha256"]

_WHOLE = 1 << 14  # numbers of a model whose fingerprint reads all of them
_BLOCKS, _BLOCK = 64, 256  # numbers that it reads of a larger one


def config_sha256(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration, computed from its JSON with sorted keys.

    Examples
    --------
    >>> config_sha256({"seed": 0, "rounds": 3}) == config_sha256({"rounds": 3, "seed": 0})
    True
    """
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def model_sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of a model: each array's name, a zero byte, and the array as an .npy file (version 1.0).

    Parameters
    ----------
    arrays : mapping of str to array
        The arrays in the model's order, which changes the hash.
    """
    digest = hashlib.sha256()
    for name, values in arrays.items():
        header = io.BytesIO()
        fields = {"descr": values.dtype.str, "fortran_order": False, "shape": values.shape}
        np.lib.format.write_array_header_1_0(header, fields)
        digest.update(name.encode() + b"\0" + header.getvalue())
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def fingerprint(update: Mapping[str, NDArray[Any]], sent: Mapping[str, NDArray[Any]], seed: int) -> str:
    """Return a hash of a sample of an update; identical updates have the same one.

    An update of up to 16,384 numbers is read completely. Of a larger one, 64 blocks of 256 numbers are read, at places
    drawn from the seed. So the time does not grow with the size. Two updates that differ only in other places have the
    same fingerprint.

    Parameters
    ----------
    update : mapping of str to array
        The arrays as the client sent them.
    sent : mapping of str to array
        The arrays that were sent to the client.
    seed : int
        Source of the places.

    Returns
    -------
    str
        32 hexadecimal digits. Empty if the numbers are all zero or are those that were sent: many honest clients may
        answer so, for example those that have nothing to learn from.
    """
    sample = _sample(list(update.values()), seed)
    unchanged = update.keys() == sent.keys() and _equal(sample, _sample([sent[name] for name in update], seed))
    if unchanged or not any(map(np.any, sample)):
        return ""
    digest = hashlib.blake2b(digest_size=16)
    for values in sample:
        digest.update(values.tobytes())
    return digest.hexdigest()


def _sample(arrays: Sequence[NDArray[Any]], seed: int) -> list[NDArray[Any]]:
    """Return all numbers of small arrays, or blocks of large ones, always in C order."""
    ends = np.cumsum([values.size for values in arrays])
    if not arrays or ends[-1] <= _WHOLE:
        return [values.ravel() for values in arrays]
    places = numpy_generator(seed, "fingerprint").integers(ends[-1], size=_BLOCKS)
    found = []
    for place, index in zip(places, np.searchsorted(ends, places, side="right"), strict=True):
        start = int(place - ends[index]) + arrays[index].size
        found.append(arrays[index].flat[start : start + _BLOCK])
    return found


def _equal(first: Sequence[NDArray[Any]], second: Sequence[NDArray[Any]]) -> bool:
    return all(map(np.array_equal, first, second))
