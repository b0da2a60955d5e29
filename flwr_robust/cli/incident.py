"""Verbs of an incident: ``ban``, ``release``, ``erase``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flwr_robust.cli.audit import KeyFile, Run, key_of
from flwr_robust.cli.shared import as_text, console, say, told
from flwr_robust.errors import AuditError

if TYPE_CHECKING:
    from flwr_robust.audit.orders import Order

__all__ = ["ban_command", "erase_command", "release_command"]

Client = Annotated[int, typer.Option("--node", "--client", help="A node's id; in a simulation, also its partition.")]
Reason = Annotated[str, typer.Option(help="The reason, which is recorded in the log.")]
Wait = Annotated[
    float, typer.Option(min=0, help="Seconds to wait until a run that is in progress has carried out the order.")
]
_STEP = 0.1  # seconds between looks at the order's file


def _node(run: Path, client: int) -> int:
    """Return the node for a number; a number that the log does not know is the id of a node that has not come yet."""
    from flwr_robust.audit.contents import log_file
    from flwr_robust.audit.history import find_client
    from flwr_robust.audit.log import read_log

    if not log_file(run).is_file():
        raise AuditError(f"{run} holds no run: there is no {log_file(run).name}; name its folder")
    try:
        return find_client(read_log(log_file(run)), client)
    except AuditError as error:
        say(f"note: {error}; it is taken as the id of a node that may come", "yellow")
        return client


def _ordered(run: Path, order: Order, key_file: Path | None, wait: float, done: str) -> None:
    """Give an order and say what became of it."""
    from flwr_robust.audit.orders import give_order

    path = give_order(run, order, key=key_of(key_file))
    end = time.monotonic() + wait
    while path is not None and path.exists() and time.monotonic() < end:
        time.sleep(_STEP)
    if path is not None and path.with_suffix(".refused").exists():
        raise AuditError(
            f"{order.kind}: the run could not read the order {path.with_suffix('.refused')}; give it again"
        )
    if path is not None and path.exists():
        done = f"the run is in progress, and carries out {path} before it next asks nodes or judges replies"
    else:
        done += ", and on record"
    console().print(as_text(done), soft_wrap=True)


def ban_command(run: Run, node: Client, reason: Reason = "", wait: Wait = 10.0, key_file: KeyFile = None) -> None:
    """Ban a client: it is not asked any more, and its replies are refused, until you release it.

    RUN is the run's folder. If the run is in progress, it carries out the order before it next asks nodes or judges
    replies. Otherwise the ban holds when the run is resumed. A rollback does not lift it.
    """
    with told():
        from flwr_robust.audit.events import Banned

        node = _node(run, node)
        _ordered(run, Banned(0, node, reason), key_file, wait, f"node {node} is banned")


def release_command(run: Run, node: Client, reason: Reason = "", wait: Wait = 10.0, key_file: KeyFile = None) -> None:
    """Release a client: lift its ban, take it out of quarantine, and forget its refusals.

    RUN is the run's folder. It works for a run that is in progress, and before a run is resumed, as ``ban`` does.
    """
    with told():
        from flwr_robust.audit.events import Released

        node = _node(run, node)
        _ordered(run, Released(0, node, None, reason), key_file, wait, f"node {node} is released")


def erase_command(run: Run, node: Client, reason: Reason = "", wait: Wait = 10.0, key_file: KeyFile = None) -> None:
    """Delete the raw updates that were kept of a client; the log says so, and stays verifiable.

    RUN is the run's folder. What the log says of the client stays: its id, its numbers and hashes. Checkpoints may
    hold its state, if clients' states are kept; they go with the checkpoints.
    """
    with told():
        from flwr_robust.audit.events import UpdatesDeleted

        node = _node(run, node)
        _ordered(run, UpdatesDeleted(0, (), (node,), reason), key_file, wait, f"the updates of node {node} are deleted")
