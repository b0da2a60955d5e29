"""State: the attributes of a strategy that is not ours, taken back as they were, or found changed."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections import deque
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

__all__ = ["Fingerprint", "Saved"]

log = logging.getLogger("flwr")

_MAPPINGS = (dict, ArrayRecord, ConfigRecord, MetricRecord)


class Saved:
    """What a strategy remembers at one moment, to be put back.

    Saved are its attributes and what stands in them: arrays, tensors, records, and lists, dicts, sets and deques,
    however deep, also in strategies that it holds, as Flower's for differential privacy do. Other objects are not
    looked into: after `restore` they are the same objects, in whatever state they are.

    Parameters
    ----------
    strategy : Strategy
        The strategy.

    Notes
    -----
    Copied are the numbers of writable arrays and of tensors that the strategy holds, and nothing else: what it does not
    hold, the model and the replies of a round, has no effect on later rounds, and the bytes of Flower's arrays cannot
    be changed, so that a strategy which keeps the model that was sent costs no copy of it.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> strategy = FedAvg()
    >>> momentum = strategy.momentum = np.ones(2)
    >>> saved = Saved(strategy)
    >>> strategy.momentum *= np.inf
    >>> saved.restore()
    >>> strategy.momentum, strategy.momentum is momentum
    (array([1., 1.]), True)
    """

    def __init__(self, strategy: Strategy) -> None:
        self._found: dict[int, tuple[Any, Any]] = {}  # by id: the object, kept so that the id stays its own; content
        pending: list[Any] = [vars(strategy)]
        while pending:
            value = pending.pop()
            if isinstance(value, tuple | frozenset):
                pending.extend(value)
            elif isinstance(value, Strategy | Array):
                pending.append(vars(value))
            elif id(value) not in self._found and (content := _content(value)) is not None:
                self._found[id(value)] = value, content
                if isinstance(content, dict):
                    pending.extend(content.values())
                elif isinstance(content, list):
                    pending.extend(content)

    def restore(self) -> None:
        """Put everything back into the objects that it was in, so that others which share them see it too.

        It never raises: what does not let itself be written to stays, and is named in a warning.
        """
        for value, content in self._found.values():
            try:
                _put_back(value, content)
            except Exception as error:
                log.warning("Guarded: a %s of the strategy could not be restored: %s", type(value).__name__, error)


def _content(value: object) -> Any:
    """Return a copy of what stands in an object that can be changed in place; None for other objects."""
    if isinstance(value, np.ndarray):
        return value.copy() if value.flags.writeable else None
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, _MAPPINGS):
        return dict(value)
    if isinstance(value, list | deque):
        return list(value)
    if isinstance(value, set | bytearray):
        return frozenset(value) if isinstance(value, set) else bytes(value)
    return None


def _put_back(value: Any, content: Any) -> None:
    if isinstance(value, np.ndarray):
        if value.shape != content.shape:
            value.resize(content.shape, refcheck=False)
        value[...] = content
    elif isinstance(value, Tensor):
        with torch.inference_mode(value.is_inference()), torch.no_grad():
            try:
                if value.shape != content.shape:
                    value.data = content
                value.copy_(content)  # what shares its memory sees it, too
            except RuntimeError:  # expanded, it has one place in memory for several numbers
                value.data = content
    elif isinstance(value, _MAPPINGS):
        # Only where something changed: Flower's own record of the model that was sent may be among them.
        if not _same(value.items(), content.items()):
            value.clear()
            value.update(content)
    elif isinstance(value, list | deque):
        if not _same(enumerate(value), enumerate(content)):
            value.clear()
            value.extend(content)
    elif isinstance(value, set):
        value.clear()
        value.update(content)
    else:
        value[:] = content


def _same(first: Iterable[tuple[Any, Any]], second: Iterable[tuple[Any, Any]]) -> bool:
    """Say whether the same objects stand under the same names, in the same order; arrays have no truth value."""
    one, two = list(first), list(second)
    return len(one) == len(two) and all(a[0] == b[0] and a[1] is b[1] for a, b in zip(one, two, strict=True))


class Fingerprint:
    """What tells whether an object of any kind changed in place, within one process.

    Parameters
    ----------
    value : object
        The object. It is pickled, and only a hash is kept of that.
    owner : object
        What is not looked into where the object refers to it.

    Notes
    -----
    Functions, classes and modules are told from each other by identity, as are locks; they are kept, so that no other
    object gets their identity. What cannot be pickled equals nothing, not even itself.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> before = Fingerprint(generator, None)
    >>> before.matches(Fingerprint(generator, None))
    True
    >>> drawn = generator.random()
    >>> before.matches(Fingerprint(generator, None))
    False
    """

    def __init__(self, value: object, owner: object) -> None:
        self._named: list[object] = []
        writer = _Hashed()
        try:
            _Pickler(writer, owner, self._named).dump(value)
        except Exception:  # objects say in many ways that they cannot be pickled
            self._digest = None
        else:
            self._digest = writer.digest.digest()

    def matches(self, other: Fingerprint) -> bool:
        """Say whether both are known, and of objects in the same state."""
        return self._digest is not None and self._digest == other._digest


class _Hashed:
    """A file that keeps nothing but the hash of what is written, since objects may be as large as models."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)


class _Pickler(pickle.Pickler):
    def __init__(self, writer: _Hashed, owner: object, named: list[object]) -> None:
        super().__init__(writer, protocol=5)
        self._owner, self._named = owner, named

    def persistent_id(self, obj: Any) -> str | None:
        """Return a name for what is told from others by identity alone."""
        if obj is self._owner:
            return "owner"
        bound = not isinstance(getattr(obj, "__self__", None), ModuleType | None)
        known = isinstance(obj, FunctionType | BuiltinFunctionType | ModuleType | type) and not bound
        if known or type(obj).__module__ == "_thread":
            self._named.append(obj)
            return str(id(obj))
        return None
