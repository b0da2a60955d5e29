"""Orders: events that another process asks the writer of a log to record and to carry out.

A run that is in progress has its log open, and nobody else may write there. So a command puts an order into the folder
``orders`` of the run. The run looks there before it asks nodes, and before it judges replies. It carries out the order,
records its event, and deletes the file. If no run is in progress, the command records the event itself.

A person who can write into the run's folder can give orders. So a command carries out no other order than its own,
unless its caller says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from flwr_robust.audit.contents import KeptUpdates, delete_updates, log_file
from flwr_robust.audit.events import IncidentReported, Replayed, RoundConfigured, UpdatesDeleted
from flwr_robust.audit.log import AuditLog, read_log
from flwr_robust.audit.order_files import Order, described, order_folder, pending
from flwr_robust.audit.signing import PrivateKey
from flwr_robust.errors import AuditError, LogInUseError
from flwr_robust.files import make_folder, write_atomically

__all__ = ["carry_out", "give_order"]

_MOST_NAMED = 10  # orders in one sentence


def give_order(
    run: Path | str,
    order: Order,
    *,
    key: bytes | None = None,
    signing_key: PrivateKey | None = None,
    sync: bool = True,
    earlier: Callable[[Path, Order], None] | None = None,
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
    earlier : callable (Path, Order), optional
        Called with each order that waits in the folder, before that is carried out too. When not given, orders that
        wait are an error, unless this one is only a record.

    Returns
    -------
    Path or None
        The file of the order, which exists until the order is carried out. None if the order is on record.

    Raises
    ------
    AuditError
        If the folder holds no run, the log cannot be written, or other orders wait; then nothing is carried out.
    TamperedError
        If the log is not intact.
    """
    if not log_file(run).is_file():
        raise AuditError(f"{order.kind}: {run} holds no run: there is no {log_file(run).name}; name its folder")
    try:
        log = AuditLog(log_file(run), key=key, signing_key=signing_key, sync=sync)
    except LogInUseError:
        path = order_folder(run) / f"{time.time_ns()}-{os.getpid()}.json"
        make_folder(path.parent, Path(run))
        text = json.dumps({"kind": order.kind, **order.to_fields()}).encode()
        write_atomically(path, lambda file: file.write(text), sync=sync)
        return path
    with log:
        asked = [record.event.round for record in read_log(log.path) if isinstance(record.event, RoundConfigured)]
        server_round = asked[-1] if asked else 0
        # A question changes nothing, so it does not carry out what a run has left, or what anybody put there.
        others = [] if isinstance(order, IncidentReported | Replayed) else list(pending(run))
        if others and earlier is None:
            more = [f"and {len(others) - _MOST_NAMED} more"] if len(others) > _MOST_NAMED else []
            names = "; ".join([*(described(*each) for each in others[:_MOST_NAMED]), *more])
            raise AuditError(
                f"{order.kind}: nothing is done, because other orders wait in {order_folder(run)}, which a run has "
                f"left or somebody has put there: {names}; give --pending to carry them out first, or delete them"
            )
        for path, other in others:
            if earlier is not None:
                earlier(path, other)
            try:
                path.unlink(missing_ok=True)  # first: what cannot be deleted would be carried out again and again
            except OSError as error:
                raise AuditError(f"{other.kind}: not carried out, as {path} cannot be deleted: {error}") from None
            carry_out(run, log, dataclasses.replace(other, round=server_round))
        carry_out(run, log, dataclasses.replace(order, round=server_round))
    return None


def carry_out(run: Path | str, log: AuditLog, order: Order) -> None:
    """Record an order; then delete the updates that it names, if it does so."""
    log.append(order)
    if isinstance(order, UpdatesDeleted):
        deleted = KeptUpdates.of(read_log(log.path)).deleted
        rounds = order.rounds or tuple(deleted)
        delete_updates(run, {each: deleted[each] for each in rounds if each in deleted})
