"""Verbs of an incident: ``incident``, ``replay``, ``ban``, ``release``, ``erase``."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flwr_robust.cli.audit import KeyFile, Run, SigningKey, key_of, read_run, warn_of
from flwr_robust.cli.shared import Json, Plugins, as_text, console, print_json, say, told
from flwr_robust.errors import AuditError, CheckpointError, ConfigurationError

if TYPE_CHECKING:
    from flwr_robust.audit.incident import Incident
    from flwr_robust.audit.log import Record
    from flwr_robust.audit.order_files import Order
    from flwr_robust.flower.replay import Replay

__all__ = ["ban_command", "erase_command", "incident_command", "release_command", "replay_command"]

Client = Annotated[int, typer.Option("--node", "--client", help="A node's id; in a simulation, also its partition.")]
Reason = Annotated[str, typer.Option(help="The reason, which is recorded in the log.")]
Wait = Annotated[
    float, typer.Option(min=0, help="Seconds to wait until a run that is in progress has carried out the order.")
]
Pending = Annotated[
    bool, typer.Option("--pending", help="First carry out the other orders that wait in the run's folder.")
]
_ROUNDS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_MOST_GAPS = 20
_STEP = 0.1  # seconds between looks at the order's file


def _records(run: Path) -> list[Record]:
    """Return the records of a run's log."""
    from flwr_robust.audit.contents import log_file
    from flwr_robust.audit.log import read_log

    if not log_file(run).is_file():
        raise AuditError(f"{run} holds no run: there is no {log_file(run).name}; name its folder")
    return read_log(log_file(run))


def _node(run: Path, client: int) -> int:
    """Return the node for a number; a number that the log does not know is the id of a node that has not come yet."""
    from flwr_robust.audit.history import find_client

    records = _records(run)
    try:
        return find_client(records, client)
    except AuditError as error:
        say(f"note: {error}; it is taken as the id of a node that may come", "yellow")
        return client


def _ordered(
    run: Path, order: Order, key_file: Path | None, signing_key: Path | None, wait: float, others: bool, done: str
) -> None:
    """Give an order and say what became of it, and of the other orders that wait."""
    from flwr_robust.audit.order_files import described
    from flwr_robust.audit.orders import give_order

    def show(path: Path, other: Order) -> None:
        console().print(as_text(f"carried out too: {described(path, other)}"), soft_wrap=True)

    earlier = show if others else None
    path = give_order(run, order, key=key_of(key_file), signing_key=signing_key, earlier=earlier)
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


def ban_command(
    run: Run,
    node: Client,
    reason: Reason = "",
    wait: Wait = 10.0,
    pending: Pending = False,
    key_file: KeyFile = None,
    signing_key: SigningKey = None,
) -> None:
    """Ban a client: it is not asked any more, and its replies are refused, until you release it.

    RUN is the run's folder. If the run is in progress, it carries out the order before it next asks nodes or judges
    replies. Otherwise the ban holds when the run is resumed. A rollback does not lift it.
    """
    with told():
        from flwr_robust.audit.events import Banned

        node = _node(run, node)
        _ordered(run, Banned(0, node, reason), key_file, signing_key, wait, pending, f"node {node} is banned")


def release_command(
    run: Run,
    node: Client,
    reason: Reason = "",
    wait: Wait = 10.0,
    pending: Pending = False,
    key_file: KeyFile = None,
    signing_key: SigningKey = None,
) -> None:
    """Release a client: lift its ban, take it out of quarantine, and forget its refusals.

    RUN is the run's folder. It works for a run that is in progress, and before a run is resumed, as ``ban`` does.
    """
    with told():
        from flwr_robust.audit.events import Released

        node = _node(run, node)
        done = f"node {node} is released"
        _ordered(run, Released(0, node, None, reason), key_file, signing_key, wait, pending, done)


def erase_command(
    run: Run,
    node: Client,
    reason: Reason = "",
    wait: Wait = 10.0,
    pending: Pending = False,
    key_file: KeyFile = None,
    signing_key: SigningKey = None,
) -> None:
    """Delete the raw updates that were kept of a client; the log says so, and stays verifiable.

    RUN is the run's folder. What the log says of the client stays: its id, its numbers and hashes. Checkpoints may
    hold its state, if clients' states are kept; they go with the checkpoints.
    """
    with told():
        from flwr_robust.audit.events import UpdatesDeleted
        from flwr_robust.audit.history import find_client, visits

        records = _records(run)
        node = find_client(records, node)
        if all(each.node != node for each in visits(records)):  # for example, it was banned before it came
            raise AuditError(f"erase: the log knows no node {node} that was ever asked or has answered")
        done = f"the updates of node {node} are deleted"
        _ordered(run, UpdatesDeleted(0, (), (node,), reason), key_file, signing_key, wait, pending, done)


def incident_command(
    run: Run,
    node: Client,
    since: Annotated[int, typer.Option(min=1, help="The round from which the client is suspected.")] = 1,
    with_replay: Annotated[
        bool, typer.Option("--replay", help="Replay the kept updates: give the displacement itself, not a bound.")
    ] = False,
    as_json: Json = False,
    key_file: KeyFile = None,
    signing_key: SigningKey = None,
) -> None:
    """Say what a client has done: its rounds, its weight, how far it moved the model, and what followed.

    RUN is the run's folder. The displacement is the norm of the sum of the client's weights times its updates, with the
    server's learning rate. What is given is a bound from the weights and distances in the log. With --replay it is the
    norm itself, from a replay of kept updates, where these and a checkpoint are there; see ``replay``. The rollback
    point is the last round before the client had a part in the model, or before --since. The question is recorded in
    the log.

    Exit status: 0 intact, 1 tampered with (the answer is shown anyway), 2 wrong input.

    JSON: intact, node, partition, rounds, weight, displacement, exact, bound, models (round and hash), rollback,
    rollback_model, checkpoint, kept, kept_bytes, deleted, signs, reasons, banned, quarantined, visits, replay.
    """
    with told():
        from flwr_robust.audit.events import IncidentReported
        from flwr_robust.audit.history import find_client
        from flwr_robust.audit.incident import incident

        records, verdict = read_run(run, key_file)
        node = find_client(records, node)
        found = incident(run, records, node, since)
        replayed = None
        if with_replay and found.kept and found.rounds:
            replayed = _replayed(run, found.rounds[0], found.rounds[-1], node)
        done = {} if replayed is None else {each.round for each in replayed.rounds if each.result == "equal"}
        exact = replayed is not None and replayed.total is not None and {*found.rounds} <= {*done}
        displacement = replayed.total.own if exact and replayed and replayed.total else found.bound
        exact = exact and displacement is not None
        fields = {"displacement": displacement, "exact": exact}
    if as_json:
        held = {name: value for name, value in dataclasses.asdict(found).items() if name != "summary"}
        told_of = dataclasses.asdict(found.summary)
        told_of |= {"signs": dict(found.summary.signs), "reasons": dict(found.summary.reasons)}
        after = None if replayed is None else [dataclasses.asdict(each) for each in replayed.rounds]
        print_json({"intact": verdict.intact, **told_of, **held, **fields, "replay": after})
    else:
        _show_incident(found, displacement, exact)
    if verdict.intact:
        _note(run, IncidentReported(0, node, found.rounds, found.weight, displacement, exact), key_file, signing_key)
    warn_of(verdict)


def _show_incident(found: Incident, displacement: float | None, exact: bool) -> None:
    summary = found.summary
    out, rounds = console(), _ranges(found.rounds)
    counts = f"asked {summary.asked}, admitted {summary.admitted}, refused {summary.refused}, silent {summary.silent}"
    state = [word for word, holds in (("banned", summary.banned), ("in quarantine", summary.quarantined)) if holds]
    signs = ", ".join(f"{name} {count}" for name, count in summary.signs)
    how = "" if displacement is None else " (of its updates)" if exact else " at most (a bound from the log)"
    lines = {
        "client": f"node {summary.node}" + ("" if summary.partition is None else f", partition {summary.partition}"),
        "state": ", ".join(state) or "may be asked",
        "replies": counts,
        "suspected of": signs or "nothing",
        "part in the model": f"{len(found.rounds)} rounds: {rounds}" if found.rounds else "none",
        "weight in all": f"{found.weight:.4g}",
        "moved the model by": "unknown" if displacement is None else f"{displacement:.4g}{how}",
        "models since": f"{len(found.models)}, rounds {_ranges([number for number, _ in found.models])}"
        if found.models
        else "none",
        "rollback point": "none is needed"
        if found.rollback is None
        else f"round {found.rollback}, model {found.rollback_model}",
        "checkpoint": "none that is early enough"
        if found.checkpoint is None and found.rollback is not None
        else f"round {found.checkpoint}"
        if found.checkpoint is not None
        else "none is needed",
        "kept updates": f"{found.kept}, {found.kept_bytes} bytes; {found.deleted} were deleted on record",
    }
    for name, text in lines.items():
        out.print(as_text(f"{name:>18}  {text}"), soft_wrap=True)
    for number, model in found.models:
        out.print(as_text(f"{'after round':>18}  {number:>6}  {model}"), soft_wrap=True)


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in short: 1-3, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _note(run: Path, event: Order, key_file: Path | None, signing_key: Path | None) -> None:
    """Record that a question was asked; if the folder cannot be written, say that it is not on record."""
    from flwr_robust.audit.orders import give_order

    try:
        path = give_order(run, event, key=key_of(key_file), signing_key=signing_key)
    except (OSError, AuditError) as error:
        say(f"note: this is not on record: {error}", "yellow")
        return
    if path is not None:
        say("note: the run is in progress, and records this before it next asks nodes or judges replies")


def _replayed(run: Path, first: int | None, last: int | None, node: int | None) -> Replay | None:
    """Replay rounds without Flower's messages; None if a run cannot be replayed, with a note."""
    from flwr_robust.flower.replay import replay

    try:
        with _quiet():
            return replay(run, first, last, without=node)
    except (AuditError, CheckpointError) as error:
        say(f"note: no replay: {error}", "yellow")
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Flower's logger say nothing below an error."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def replay_command(
    run: Run,
    rounds: Annotated[str, typer.Option(help="The rounds, as A-B or A; all that can be replayed when not given.")] = "",
    without: Annotated[
        int | None, typer.Option(help="A client to leave out: a node's id; in a simulation, also its partition.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="With --without: an .npz file for the model that the others' updates make.")
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
    key_file: KeyFile = None,
    signing_key: SigningKey = None,
) -> None:
    """Aggregate the kept updates of a run again, and compare every model with the log, to the bit.

    RUN is the folder of a run with kept updates. A replay starts at a checkpoint, with the rule's state and the
    server's velocity in it. With --without, it also says what the same updates make without one client. The other
    clients would have sent other updates for other models, so this is an estimate for the rounds after the first. The
    replay is recorded in the log. A rule with an integer above 10,000 that is not its default is not replayed: the log
    may be anybody's work.

    Exit status: 0 all rounds asked for are equal; 1 some differ or are missing, or the log was tampered with; 2 wrong
    input. Without --rounds, those after the earliest checkpoint are asked for. A round whose updates retention has
    deleted on record is named, and does not count as missing. If no round is equal, the status is 1.

    JSON: intact, complete, checkpoints, rounds, absent (first and last of rounds that the log lacks), total, model (its
    hash). Each of rounds: round, result, sentence, deleted, length, without, distance, cosine, outcome_without, own.
    The total is of the same form, for all rounds.
    """
    with told(plugin):
        import numpy as np

        from flwr_robust.audit.digest import model_sha256
        from flwr_robust.audit.events import Replayed
        from flwr_robust.audit.history import find_client
        from flwr_robust.files import write_atomically
        from flwr_robust.flower.replay import replay

        if write is not None and without is None:
            raise ConfigurationError("replay: --write needs --without: the models of the run are in its checkpoints")
        records, verdict = read_run(run, key_file)
        node = None if without is None else find_client(records, without)
        first, last = _rounds(rounds)
        with _quiet():
            found = replay(run, first, last, without=node)
        if write is not None and found.model is not None:
            model: dict[str, Any] = dict(found.model)
            write_atomically(write, lambda file: np.savez(file, allow_pickle=False, **model))
    model_hash = None if found.model is None else model_sha256(found.model)
    if as_json:
        print_json(
            {
                "intact": verdict.intact,
                "complete": found.complete,
                "checkpoints": found.checkpoints,
                "rounds": [dataclasses.asdict(each) for each in found.rounds],
                "absent": found.absent,
                "total": None if found.total is None else dataclasses.asdict(found.total),
                "model": model_hash,
            }
        )
    else:
        _show_replay(found, node, model_hash)
    if verdict.intact:
        distance = None if found.total is None else found.total.distance
        told_of = (found.of("equal"), found.of("different"), found.of("missing"))
        _note(run, Replayed(0, *told_of, node, distance), key_file, signing_key)
    warn_of(verdict)
    raise typer.Exit(0 if found.complete else 1)


def _rounds(text: str) -> tuple[int | None, int | None]:
    """Return the first and the last round in a text such as 3-7 or 3; None if it is empty."""
    if not text:
        return None, None
    match = _ROUNDS.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ConfigurationError(f"replay: --rounds must be A-B or A, with 1 <= A <= B; got {text}")
    return first, last


def _show_replay(found: Replay, node: int | None, model: str | None) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("round", justify="right")
    table.add_column("model")
    for name in ("change", *(["without", "difference", "cosine"] if node is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", ratio=1)
    for each in found.rounds:
        numbers = (each.length, *((each.without, each.distance, each.cosine) if node is not None else ()))
        remark = each.sentence or (each.outcome_without if each.outcome_without not in ("", "OK") else "")
        table.add_row(
            str(each.round),
            as_text(each.result),
            *("" if number is None else f"{number:.4g}" for number in numbers),
            as_text(remark),
            style="red" if each.result == "different" else "dim" if each.result == "missing" else "",
        )
    out = console()
    out.print(table)
    started = ", ".join(map(str, found.checkpoints))
    counts = ", ".join(f"{len(found.of(result))} {result}" for result in ("equal", "different", "missing"))
    out.print(as_text(f"{counts}; started from the checkpoints of rounds {started}"), soft_wrap=True)
    if deleted := [each.round for each in found.rounds if each.deleted]:
        out.print(as_text(f"the updates of rounds {_ranges(deleted)} were deleted on record"), soft_wrap=True)
    for first, last in found.absent[:_MOST_GAPS]:
        rounds = f"round {first}" if first == last else f"rounds {first} to {last}"
        out.print(as_text(f"the log has no finished {rounds} of training", "red"), soft_wrap=True)
    if not found.complete:
        out.print(as_text("not all rounds that were asked for are equal", "red"), soft_wrap=True)
    if found.total is not None:
        total = found.total
        cosine = "" if total.cosine is None else f", cosine {total.cosine:.4g}"
        sentence = (
            f"without node {node}: all changes together have norm {total.without:.4g} and not {total.length:.4g}, "
            f"difference {total.distance:.4g}{cosine}; the model would be {model}"
        )
        out.print(as_text(sentence), soft_wrap=True)
