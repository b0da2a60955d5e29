"""The command line of runs and their records: ``flwr-robust --help``.

Exit status: 0 when all is well, 1 when a log is not what was written, 2 when the command or its input is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flwr_robust.audit.card import write_card
from flwr_robust.audit.checkpoint import ARRAYS, CheckpointStore
from flwr_robust.audit.contents import checkpoint_folder, checkpointed_heads, log_file, verify_run
from flwr_robust.audit.events import (
    STATEMENTS,
    Aggregated,
    ClientStatesKept,
    ClientStatesRestored,
    LogReopened,
    Quarantined,
    RedTeamed,
    Released,
    Resumed,
    RolledBack,
    RunEnded,
    RunStarted,
    check_statements,
)
from flwr_robust.audit.history import ClientInRound, clients, find_client, rounds, visits
from flwr_robust.audit.log import LEAST_KEY, UNCHECKED, Finding, Record, Verdict, read_log, verify
from flwr_robust.audit.run import rollback
from flwr_robust.errors import AuditError, ConfigurationError, FlwrRobustError, TamperedError

__all__ = ["app", "card_command", "clients_command", "rollback_command", "show_command", "verify_command"]

_WIDTH = 100
_HEAD = re.compile(r"[0-9a-f]{64}")

app = typer.Typer(
    help="Read, prove and take back what a robust run did. Its folder holds audit.jsonl and checkpoints/.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
audit = typer.Typer(help="Verify and read the audit log of a run.", no_args_is_help=True)
app.add_typer(audit, name="audit")

Log = Annotated[Path, typer.Argument(help="The audit log, or the run's folder that holds it.")]
Run = Annotated[Path, typer.Argument(help="The run's folder.")]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help="File of the key that the log was written with, if it was.")
]


def _console() -> Console:
    # Wide enough for a pipe, never wider than a hundred columns.
    return Console(width=min(_WIDTH, Console().width) if sys.stdout.isatty() else _WIDTH, highlight=False)


def _fail(error: FlwrRobustError) -> NoReturn:
    typer.secho(f"error: {_printable(str(error))}", fg="red", err=True)
    raise typer.Exit(1 if isinstance(error, TamperedError) else 2)


def _printable(text: str) -> str:
    """Return text in which a client may have had a hand so that a terminal does not obey it."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _text(text: object) -> Text:
    return Text(_printable(str(text)), overflow="fold")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _log(path: Path) -> Path:
    return log_file(path) if path.is_dir() else path


def _key(path: Path | None) -> bytes | None:
    """Return a key file's content without the newline that an editor leaves at its end."""
    if path is None:
        return None
    try:
        key = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise AuditError(f"--key-file {path} cannot be read: {error.strerror}") from None
    if len(key) < LEAST_KEY:
        raise ConfigurationError(f"--key-file {path} must hold at least {LEAST_KEY} bytes; got {len(key)}")
    return key


def _read(path: Path, key_file: Path | None) -> tuple[list[Record], Verdict]:
    """Return a log's events, and what its chain says; to be shown even if it is not intact."""
    log = _log(path)
    verdict = verify(log, key=_key(key_file))
    return read_log(log) if log.is_file() else [], verdict


def _warn(verdict: Verdict) -> None:
    """Say if macs were not checked, and end with status 1 if what was shown is not intact."""
    if UNCHECKED in verdict.remarks:
        note = f"note: the log was read without its key: {UNCHECKED}; --key-file FILE checks them"
        typer.secho(note, fg="yellow", err=True)
    if not verdict.intact:
        finding = _printable(str(verdict.findings[0]))
        typer.secho(f"the log is NOT INTACT: {finding}; see flwr-robust audit verify", fg="red", err=True)
        raise typer.Exit(1)


@audit.command("verify")
def verify_command(
    log: Log,
    expect: Annotated[
        list[str] | None,
        typer.Option(help="A head that was noted earlier, elsewhere; the log must hold its line. May be repeated."),
    ] = None,
    key_file: KeyFile = None,
) -> None:
    """Find every edit, insertion, deletion, reordering and truncation, and say where.

    LOG is the audit log, or the run's folder that holds it. Every checkpoint and kept update there is held against
    the hash that the log has on record, and every round's model against the one before.

    Every line carries the hash of the line before; a head file beside the log, and every checkpoint, names the last
    one. That finds what happened to the log by accident, or by somebody who changed it alone.

    It proves nothing against somebody who could write all these files: he can make another chain. Against him note
    heads where he cannot reach them (this command prints the head) and pass them with --expect, or have the log
    written with a key that he does not have, and pass it with --key-file.

    Exit status: 0 intact, 1 tampered with, 2 wrong input.
    """
    console = _console()
    try:
        for head in expect or []:
            if not _HEAD.fullmatch(head):
                raise ConfigurationError(f"audit verify: --expect must be a head, 64 hexadecimal digits; got {head}")
        path = _log(log)
        key = _key(key_file)
        heads = checkpointed_heads(path.parent)
        # A log of another name is a copy that somebody put there; the folder is not what it is about.
        if path == log_file(path.parent):
            verdict = verify_run(path.parent, expect=expect or [], key=key)
        else:
            verdict = verify(path, expect=expect or [], known=heads, key=key)
    except FlwrRobustError as error:
        _fail(error)
    for lines, sentence in _gathered(verdict.findings):
        console.print(Text(f"{lines}{_printable(sentence)}", style="red"), soft_wrap=True)
    for remark in verdict.remarks:
        console.print(Text(f"note: {_printable(remark)}", style="yellow"), soft_wrap=True)
    console.print(
        "[green]intact[/green]" if verdict.intact else "[red]NOT INTACT[/red]", f"{verdict.lines} lines", sep=", "
    )
    if heads and verdict.intact:
        console.print(f"the heads in {', '.join(heads.values())} are among them")
    console.print(f"head {_printable(verdict.head)}", soft_wrap=True)
    raise typer.Exit(0 if verdict.intact else 1)


def _gathered(findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    """Yield lines and what is wrong with them, those that follow each other and have the same fault together."""
    for _, group in groupby(enumerate(findings), lambda pair: (pair[1].line - pair[0], pair[1].sentence)):
        first, *others = (finding for _, finding in group)
        place = f"lines {first.line} to {others[-1].line}" if others else f"line {first.line}"
        yield f"{place}: " if first.line else "", first.sentence


@audit.command("show")
def show_command(
    log: Log,
    client: Annotated[
        int | None, typer.Option(help="A node's id, or the partition that one node has: its whole history.")
    ] = None,
    server_round: Annotated[int | None, typer.Option("--round", help="What every client did in this round.")] = None,
    key_file: KeyFile = None,
) -> None:
    """Show a client's or a round's history as a table; without either, all rounds.

    LOG is the audit log, or the run's folder that holds it.

    weight: what the rule gave the client; distance and angle: how its update lies to the aggregate (degrees). A round
    is "undone" where the run was later taken back to before it.
    """
    console = _console()
    try:
        records, verdict = _read(log, key_file)
        if client is None and server_round is None:
            _show_rounds(console, records)
        else:
            node = None if client is None else find_client(records, client)
            found = [
                visit
                for visit in visits(records)
                if (node is None or visit.node == node) and (server_round is None or visit.round == server_round)
            ]
            if not found:
                there = [each.round for each in rounds(records)]
                known = f"rounds {min(there)} to {max(there)}" if there else "no round"
                raise AuditError(f"audit: the log says nothing of round {server_round}; it knows {known}")
            _show_visits(console, found, "" if node is None else f"node {node}")
            if server_round is not None:
                _show_outcomes(console, records, server_round)
    except FlwrRobustError as error:
        _fail(error)
    _warn(verdict)


def _show_visits(console: Console, found: Sequence[ClientInRound], title: str) -> None:
    table = Table(title=title or None)
    table.add_column("round", justify="right")
    table.add_column("phase")
    if not title:
        table.add_column("node", justify="right", no_wrap=True)
    table.add_column("part.", justify="right")
    table.add_column("verdict and reason", ratio=1)
    for name in ("weight", "distance", "angle"):
        table.add_column(name, justify="right", no_wrap=True)
    for visit in found:
        words = [visit.verdict + (" (undone)" if visit.undone else ""), visit.reason, visit.detail]
        table.add_row(
            str(visit.round),
            _text(visit.phase),
            *([] if title else [str(visit.node)]),
            "" if visit.partition is None else str(visit.partition),
            _text(": ".join(word for word in words if word)),
            *map(_number, (visit.weight, visit.distance, visit.angle)),
            style="dim" if visit.undone else "red" if visit.verdict == "refused" else "",
        )
    console.print(table)


def _show_outcomes(console: Console, records: Sequence[Record], server_round: int) -> None:
    for record in records:
        event = record.event
        if isinstance(event, Aggregated) and event.round == server_round:
            words = f"{event.outcome}: {event.sentence}" if event.sentence else event.outcome
            console.print(_text(f"{record.time}  {words}"), soft_wrap=True)
            console.print(_text(f"model before {event.model_before}"))
            console.print(_text(f"model after  {event.model_after}"))


def _show_rounds(console: Console, records: Sequence[Record]) -> None:
    table = Table()
    found = rounds(records)
    abstaining = any(each.abstained for each in found)
    counted = ("asked", "admitted", "refused", "silent", *(["abstained"] if abstaining else []))
    for name in ("round", *counted):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("largest weight", justify="right", min_width=7)
    table.add_column("outcome")
    table.add_column("model after", no_wrap=True)
    for each in found:
        table.add_row(
            *(str(getattr(each, name)) for name in ("round", *counted)),
            _number(each.heaviest),
            _text(each.outcome + (" (undone)" if each.undone else "")),
            _text(each.model_after[:12]),
            style="dim" if each.undone else "",
        )
    console.print(table)
    shown = (LogReopened, Quarantined, RedTeamed, Released, Resumed, RolledBack, RunEnded, RunStarted)
    for record in records:
        event = record.event
        anew = isinstance(event, ClientStatesRestored) or (isinstance(event, ClientStatesKept) and event.missing)
        if anew or isinstance(event, shown):
            fields = {key: value for key, value in event.to_fields().items() if key not in ("config", "software")}
            words = ", ".join(f"{key}={value}" for key, value in fields.items() if value not in ("", [], {}, None))
            console.print(_text(f"{record.time[:19]}  {event.kind}  {words}"))


@audit.command("clients")
def clients_command(
    log: Log,
    by: Annotated[str, typer.Option(help="refusals or weight: what puts a client at the top.")] = "refusals",
    key_file: KeyFile = None,
) -> None:
    """Rank clients by refusals, or by the weight that the rule gave them.

    LOG is the audit log, or the run's folder that holds it.

    weight: mean over the rounds in which the client was asked and which still count; a refused reply counts as 0.
    Refusals count for ever. A client at the top is one to look at, not a culprit: honest clients with unusual data are
    far from the others, too.
    """
    console = _console()
    try:
        if by not in ("refusals", "weight"):
            raise ConfigurationError(f"audit clients: --by must be refusals or weight; got {by}")
        records, verdict = _read(log, key_file)
    except FlwrRobustError as error:
        _fail(error)
    ranked = sorted(
        clients(records),
        key=lambda each: (
            (-each.refused, each.weight or 0.0) if by == "refusals" else (-(each.weight or 0.0), -each.refused)
        ),
    )
    table = Table()
    table.add_column("node", justify="right", no_wrap=True)
    abstaining = any(each.abstained for each in ranked)
    for name in ("part.", "asked", "adm.", "ref.", "silent", *(["abst."] if abstaining else []), "weight", "distance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why refused", ratio=1)
    for each in ranked:
        reasons = ", ".join(f"{reason} {count}" for reason, count in each.reasons)
        table.add_row(
            str(each.node),
            "" if each.partition is None else str(each.partition),
            *map(str, (each.asked, each.admitted, each.refused, each.silent)),
            *([str(each.abstained)] if abstaining else []),
            *map(_number, (each.weight, each.distance)),
            _text(reasons + (" (in quarantine)" if each.quarantined else "")),
        )
    console.print(table)
    _warn(verdict)


@app.command("rollback")
def rollback_command(
    run: Run,
    to_round: Annotated[int, typer.Option("--to-round", min=0, help="A round that has a checkpoint.")],
    reason: Annotated[str, typer.Option(help="Why; it goes on record.")] = "",
    key_file: KeyFile = None,
) -> None:
    """Make an earlier round's model current again, for instance because a backdoor came in later.

    RUN is the run's folder; the run must not be going on. Later checkpoints are moved to checkpoints/aside, not
    deleted, and the log says what was done. A run resumed after that goes on from this round.
    """
    try:
        snapshot = rollback(run, to_round, reason=reason, key=_key(key_file))
    except FlwrRobustError as error:
        _fail(error)
    path, last = CheckpointStore(checkpoint_folder(run)).path(snapshot.round), len(snapshot.model) - 1
    arrays = "array 0 of it" if last == 0 else f"arrays 0 to {last} of it"
    order = "in the order of the names under model in checkpoint.json beside it"
    sentence = f"round {snapshot.round} is current; its model is in {path / ARRAYS}: {arrays}, {order}"
    _console().print(_text(sentence), soft_wrap=True)


@app.command("card")
def card_command(
    run: Run,
    html: Annotated[bool, typer.Option("--html", help="Write card.html, too.")] = False,
    state: Annotated[
        list[str] | None,
        typer.Option(help="What only you know, as KEY=TEXT; may be repeated. Keys: " + ", ".join(STATEMENTS) + "."),
    ] = None,
    red_team: Annotated[
        Path | None,
        typer.Option("--red-team", help="The JSON that python -m experiments red-team wrote of this strategy."),
    ] = None,
    key_file: KeyFile = None,
) -> None:
    """Write the robustness card of a run: card.json and card.md in its folder, RUN.

    It states the rule and its limits, clients asked and admitted, declared f, attacks tested, evidence kept, and how
    the deployment is secured, each with its source. What the log does not say, and you do not state, is "not stated":
    say how clients authenticate with --state "authentication=...", how connections are secured with --state "tls=...".
    """
    try:
        statements, key = dict(_pair(text) for text in state or []), _key(key_file)
        check_statements(statements)  # before all files are read
        verdict = verify_run(run, key=key)
        paths = write_card(run, html=html, statements=statements, key=key, red_team=red_team, verdict=verdict)
    except FlwrRobustError as error:
        _fail(error)
    console = _console()
    for path in paths:
        console.print(_text(path), soft_wrap=True)
    _warn(verdict)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"card: --state must be KEY=TEXT; got '{text}'")
    return key.strip().replace("-", "_"), value.strip()


if __name__ == "__main__":
    app()
