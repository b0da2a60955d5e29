"""Orders: events that another process asks the writer of a log to record and to carry out.

A run that is in progress has its log open, and nobody else may write there. So a command puts an order into the folder
``orders`` of the run. The run looks there before it asks nodes, and before it judges replies. It carries out the order,
records its event, and deletes the file. If no run is in progress, the command records the event itself.

An order is a JSON file with the ``kind`` and the fields of one event, of at most 64 KiB. A file that is no order is
renamed to end in ``.refused``. A person who can write into the run's folder can give orders.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from flwr_robust.audit.contents import KeptUpdates, delete_updates, log_file
from flwr_robust.audit.events import Banned, IncidentReported, Released, Replayed, RoundConfigured, UpdatesDeleted
from flwr_robust.audit.log import AuditLog, read_log
from flwr_robust.audit.signing import PrivateKey
from flwr_robust.errors import AuditError, LogInUseError
from flwr_robust.files import make_folder, read_plain, write_atomically

__all__ = ["Order", "carry_out", "give_order", "pending"]

Order: TypeAlias = Banned | Released | UpdatesDeleted | IncidentReported | Replayed
"""The events that may be ordered; the last two are only recorded."""

_KINDS = {each.kind: each for each in (Banned, Released, UpdatesDeleted, IncidentReported, Replayed)}
_LONGEST = 1 << 16  # bytes of a file


def give_order(
    run: Path | str,
    order: Order,
    *,
    key: bytes | None = None,
    signing_key: PrivateKey | None = None,
    sync: bool = True,
) -> Path | None:
    """Record an order in the log of a run and carry it out, or leave it for the process that has the log open.

    Parameters
    ----------
    run : Path
        The run's folder.
    order : Order
        What to record and carry out. Its round is set by the process that records it.
    key : bytes, optional
        The key of the audit log.
    signing_key : Ed25519PrivateKey or Path, optional
        Signs the log's heads, if the run began so; see `AuditLog`.
    sync : bool
        Whether to wait for the disk.

    Returns
    -------
    Path or None
        The file of the order, which exists until the order is carried out. None if the order is on record.

    Raises
    ------
    AuditError
        If the folder holds no run, or the log cannot be written.
    TamperedError
        If the log is not intact.
    """
    if not log_file(run).is_file():
        raise AuditError(f"{order.kind}: {run} holds no run: there is no {log_file(run).name}; name its folder")
    try:
        log = AuditLog(log_file(run), key=key, signing_key=signing_key, sync=sync)
    except LogInUseError:
        path = _folder(run) / f"{time.time_ns()}-{os.getpid()}.json"
        make_folder(path.parent, Path(run))
        text = json.dumps({"kind": order.kind, **order.to_fields()}).encode()
        write_atomically(path, lambda file: file.write(text), sync=sync)
        return path
    with log:
        asked = [record.event.round for record in read_log(log.path) if isinstance(record.event, RoundConfigured)]
        server_round = asked[-1] if asked else 0
        # A question changes nothing, so it does not carry out what a run has left, or what anybody put there.
        for path, earlier in () if isinstance(order, IncidentReported | Replayed) else pending(run):
            carry_out(run, log, dataclasses.replace(earlier, round=server_round))
            path.unlink(missing_ok=True)
        carry_out(run, log, dataclasses.replace(order, round=server_round))
    return None


def carry_out(run: Path | str, log: AuditLog, order: Order) -> None:
    """Record an order; then delete the updates that it names, if it does so."""
    log.append(order)
    if isinstance(order, UpdatesDeleted):
        deleted = KeptUpdates.of(read_log(log.path)).deleted
        rounds = order.rounds or tuple(deleted)
        delete_updates(run, {each: deleted[each] for each in rounds if each in deleted})


def pending(run: Path | str) -> Iterator[tuple[Path, Order]]:
    """Yield the orders that wait in a run's folder, the oldest first, with their files."""
    for path in sorted(_folder(run).glob("[0-9]*.json")):
        order = _read(path)
        if order is None:
            path.rename(path.with_suffix(".refused"))
        else:
            yield path, order


def _folder(run: Path | str) -> Path:
    return Path(run) / "orders"


def _read(path: Path) -> Order | None:
    """Return the order in a file, or None if there is none."""
    try:
        fields = json.loads(read_plain(path, _LONGEST))
        return _KINDS[fields.pop("kind")].from_fields(fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, AuditError):
        return None
