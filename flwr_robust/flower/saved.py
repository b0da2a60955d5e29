"""Saved: copy the attributes of any strategy to restore them later, and detect whether they have changed."""

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
    """A copy of a strategy's attributes at one moment, which can be restored.

    The copy holds the attributes and the contents of arrays, tensors, records, lists, dicts, sets and deques, at any
    depth. This includes inner strategies, such as those in Flower's strategies for differential privacy. Other objects
    are not copied: after `restore` they are the same objects, and their inner state is not restored.

    Parameters
    ----------
    strategy : Strategy
        The strategy.

    Notes
    -----
    Only the numbers of writable arrays and of tensors in the strategy are copied. The model and replies of a round are
    not in the strategy and have no effect on later rounds. The bytes of Flower's arrays are immutable, so a strategy
    that keeps the model that was sent needs no copy of it.

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
        self._found: dict[int, tuple[Any, Any]] = {}  # by id: the object, which keeps its id in use; its content
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
        """Restore every content in the original objects, so that other holders of these objects see it too.

        It never raises: an object that cannot be written stays as it is, and a warning names it.
        """
        for value, content in self._found.values():
            try:
                _put_back(value, content)
            except Exception as error:
                log.warning("Guarded: a %s of the strategy could not be restored: %s", type(value).__name__, error)


def _content(value: object) -> Any:
    """Return a copy of the content of an object that can be changed in place; None for other objects."""
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
                value.copy_(content)  # objects that share its memory see it too
            except RuntimeError:  # an expanded tensor stores several numbers in one place in memory
                value.data = content
    elif isinstance(value, _MAPPINGS):
        # Only if something has changed: Flower's own record of the model that was sent may be among them.
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
    """Say whether both hold the same objects under the same names and in the same order, without comparing arrays."""
    one, two = list(first), list(second)
    return len(one) == len(two) and all(a[0] == b[0] and a[1] is b[1] for a, b in zip(one, two, strict=True))


class Fingerprint:
    """A fingerprint that shows, within one process, whether any object has changed in place.

    Parameters
    ----------
    value : object
        The object. Only a hash of its pickled form is kept.
    owner : object
        An object that is left out where ``value`` refers to it.

    Notes
    -----
    Functions, classes, modules and locks are compared by identity. They are kept, so that no other object gets their
    id. An object that cannot be pickled matches nothing, not even itself.

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
        except Exception:  # objects that cannot be pickled raise many kinds of errors
            self._digest = None
        else:
            self._digest = writer.digest.digest()

    def matches(self, other: Fingerprint) -> bool:
        """Say whether both fingerprints exist and show the same state."""
        return self._digest is not None and self._digest == other._digest


class _Hashed:
    """A file that keeps only the hash of what is written, because objects may be as large as models."""

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
        """Return a name for objects that are compared by identity."""
        if obj is self._owner:
            return "owner"
        bound = not isinstance(getattr(obj, "__self__", None), ModuleType | None)
        known = isinstance(obj, FunctionType | BuiltinFunctionType | ModuleType | type) and not bound
        if known or type(obj).__module__ == "_thread":
            self._named.append(obj)
            return str(id(obj))
        return None
