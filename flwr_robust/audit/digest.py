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

__all__ = ["Fingerprints", "config_sha256", "model_sha256"]

_WHOLE = 1 << 14  # numbers of a model whose fingerprint reads all of them
_BLOCKS, _BLOCK = 64, 256  # numbers that it reads of a larger one
_ZEROS = b"\0\x80"  # bytes of 0 and -0


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


class Fingerprints:
    """Hashes of samples of updates; identical updates have the same one.

    An update of up to 16,384 numbers is read completely. Of a larger one, 64 blocks of 256 numbers are read, at places
    drawn from the seed. So the time does not grow with the size. Two updates that differ only in other places have the
    same fingerprint.

    Parameters
    ----------
    sent : mapping of str to array
        The arrays that were sent to the clients.
    seed : int
        Source of the places.

    Examples
    --------
    >>> prints = Fingerprints({"w": np.zeros(2)}, 0)
    >>> prints.of({"w": np.ones(2)}) == prints.of({"w": np.ones(2)}), prints.of({"w": np.zeros(2)})
    (True, '')
    """

    def __init__(self, sent: Mapping[str, NDArray[Any]], seed: int) -> None:
        self._seed, self._names = seed, sent.keys()
        self._places: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        self._sent = self._sample(list(sent.values()))

    def of(self, update: Mapping[str, NDArray[Any]]) -> str:
        """Return the fingerprint of an update as a client sent it.

        Returns
        -------
        str
            32 hexadecimal digits. Empty if the numbers are all zero or are those that were sent: many honest clients
            may answer so, for example those that have nothing to learn from.
        """
        sample = self._sample(list(update.values()))
        unchanged = sample == self._sent and update.keys() == self._names
        if unchanged or not sample.strip(_ZEROS):
            return ""
        return hashlib.blake2b(sample, digest_size=16).hexdigest()

    def _sample(self, arrays: Sequence[NDArray[Any]]) -> bytes:
        """Return all numbers of small arrays, or blocks of large ones, always in C order."""
        sizes = tuple(values.size for values in arrays)
        if sum(sizes) <= _WHOLE:
            return b"".join(values.tobytes() for values in arrays)
        if sizes not in self._places:
            self._places = {sizes: self._drawn(sizes)}  # of one model at a time
        places = self._places[sizes]
        return b"".join(_block(arrays[index], start) for index, start in places)

    def _drawn(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Return the places of the blocks: an array's index, and the first number in it."""
        ends = np.cumsum(sizes)
        places = numpy_generator(self._seed, "fingerprint").integers(ends[-1], size=_BLOCKS)
        found = np.searchsorted(ends, places, side="right").tolist()
        return [(at, int(place - ends[at]) + sizes[at]) for at, place in zip(found, places, strict=True)]


def _block(values: NDArray[Any], start: int) -> bytes:
    if values.flags.c_contiguous:  # a view, in a tenth of the time
        return values.reshape(-1)[start : start + _BLOCK].tobytes()
    return values.flat[start : start + _BLOCK].tobytes()
