"""Memory: convert the state of a strategy into tensors and JSON for a checkpoint, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from flwr_robust.flower.wire import decode_record, encode_record

__all__ = ["freeze", "storable", "thaw"]


def storable(value: object) -> bool:
    """Say whether `thaw` restores a value: numbers, text, bytes, arrays, tensors, models, and containers of them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "fiub" and value.dtype.itemsize <= 8 and value.dtype.isnative
    if isinstance(value, dict):
        return all(_is_key(key) and storable(each) for key, each in value.items())
    if isinstance(value, set | frozenset):
        return all(_is_key(each) for each in value)
    if isinstance(value, list | tuple):
        return all(storable(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str | bytes | Tensor | ArrayRecord)


def _is_key(value: object) -> bool:
    """Say whether a value can be a key and comes back equal and of the same type; numpy's scalars do not."""
    if type(value) is tuple:
        return all(_is_key(each) for each in value)
    return value is None or type(value) in (bool, int, float, str, bytes)


def freeze(value: Any, tensors: dict[str, Tensor] | None = None) -> Any:
    """Return a storable value as JSON data; its arrays are put into ``tensors``, or into the data if there are none.

    Examples
    --------
    >>> tensors = {}
    >>> frozen = freeze({"step": 3, "velocity": [np.ones(2)]}, tensors)
    >>> frozen
    {'items': {'step': 3, 'velocity': [{'array': '0'}]}}
    >>> thaw(frozen, tensors)
    {'step': 3, 'velocity': [array([1., 1.])]}
    """
    if isinstance(value, Tensor | np.ndarray | np.generic):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
        if tensors is None:
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return {kind: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), flat.numpy().tobytes().hex()]}
        tensors[name := str(len(tensors))] = tensor
        return {kind: name}
    if isinstance(value, ArrayRecord):
        return {"record": freeze(decode_record(value), tensors)}
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value):
            return {"items": {key: freeze(each, tensors) for key, each in value.items()}}
        return {"pairs": [[freeze(key, tensors), freeze(each, tensors)] for key, each in value.items()]}
    if isinstance(value, set | frozenset):
        # The order of sets differs between processes; the bytes of a checkpoint must not.
        kind = "set" if isinstance(value, set) else "frozenset"
        return {kind: [freeze(each, tensors) for each in sorted(value, key=repr)]}
    if isinstance(value, tuple):
        return {"tuple": [freeze(each, tensors) for each in value]}
    if isinstance(value, list):
        return [freeze(each, tensors) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no such numbers
    return {"bytes": value.hex()} if isinstance(value, bytes) else value


def thaw(frozen: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Return the value that was given to `freeze`; numpy's scalars become arrays without dimensions."""
    if isinstance(frozen, list):
        return [thaw(each, tensors) for each in frozen]
    if not isinstance(frozen, Mapping):
        return frozen
    ((kind, held),) = frozen.items()
    if kind in ("tensor", "array"):
        tensor = _tensor(*held) if tensors is None else tensors[held]
        return tensor if kind == "tensor" else tensor.numpy()
    if kind == "float":
        return float(held)
    if kind == "record":
        return encode_record(thaw(held, tensors))
    if kind == "items":
        return {key: thaw(each, tensors) for key, each in held.items()}
    if kind == "pairs":
        return {thaw(key, tensors): thaw(each, tensors) for key, each in held}
    if kind == "bytes":
        return bytes.fromhex(held)
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](thaw(each, tensors) for each in held)


def _tensor(dtype: str, shape: list[int], data: str) -> Tensor:
    flat = torch.frombuffer(bytearray.fromhex(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(getattr(torch, dtype)).reshape(shape)
