"""Hashes that identify a configuration and a model."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["config_sha256", "model_sha256"]


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
