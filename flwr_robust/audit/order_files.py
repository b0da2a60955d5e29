"""The files of orders in a run's folder: anybody may have put them there, so reading them never raises.

An order is a file ``orders/NUMBER.json`` with the ``kind`` and the fields of one event, of at most 64 KiB. A file that
is no order is renamed to end in ``.refused``, and a symbolic link is removed. What cannot be moved is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from flwr_robust.audit.events import Banned, IncidentReported, Released, Replayed, UpdatesDeleted
from flwr_robust.errors import AuditError
from flwr_robust.files import read_plain

__all__ = ["Order", "described", "order_folder", "pending", "waiting"]

Order: TypeAlias = Banned | Released | UpdatesDeleted | IncidentReported | Replayed
"""The events that may be ordered; the last two are only recorded."""

_KINDS = {each.kind: each for each in (Banned, Released, UpdatesDeleted, IncidentReported, Replayed)}
_LONGEST = 1 << 16  # bytes of a file


def order_folder(run: Path | str) -> Path:
    """Return the folder of a run's orders."""
    return Path(run) / "orders"


def waiting(run: Path | str) -> Iterator[tuple[Path, Order | None]]:
    """Yield the files that wait in a run's folder, the oldest first, each with its order; None if it is no order."""
    folder = order_folder(run)
    try:
        paths = [] if folder.is_symlink() else sorted(folder.glob("[0-9]*.json"))
    except OSError:
        paths = []
    for path in paths:
        yield path, _read(path)


def pending(run: Path | str, left: set[Path] | None = None) -> Iterator[tuple[Path, Order]]:
    """Yield the orders that wait in a run's folder, the oldest first, with their files.

    Parameters
    ----------
    run : Path
        The run's folder.
    left : set of Path, optional
        Files to pass over. A file that is no order and cannot be moved is added.
    """
    left = set() if left is None else left
    for path, order in waiting(run):
        if path in left:
            continue
        if order is not None:
            yield path, order
            continue
        try:
            if path.is_symlink():
                path.unlink()  # under another name it would still be a link, and a run's folder holds none
            else:
                path.rename(path.with_suffix(".refused"))
        except OSError:
            left.add(path)


def described(path: Path, order: Order) -> str:
    """Return one line that names the file of an order, its kind and its fields."""
    fields = {key: value for key, value in order.to_fields().items() if key != "round" and value not in ("", [], None)}
    return f"{path.name} ({' '.join([order.kind, *(f'{key}={value!s:.80}' for key, value in fields.items())])})"


def _read(path: Path) -> Order | None:
    """Return the order in a file, or None if there is none."""
    try:
        fields = json.loads(read_plain(path, _LONGEST))
        return _KINDS[fields.pop("kind")].from_fields(fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, AuditError):
        return None
