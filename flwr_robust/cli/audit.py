"""Verbs of runs and their records: ``audit``, ``card``, ``rollback``."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flwr_robust.cli.shared import Json, as_text, console, print_json, say, told
from flwr_robust.errors import AuditError, ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from flwr_robust.audit.events import Suspected
    from flwr_robust.audit.history import ClientInRound, ClientSummary
    from flwr_robust.audit.log import Finding, Record, Verdict

__all__ = [
    "KeyFile",
    "Run",
    "SigningKey",
    "audit",
    "card_command",
    "clients_command",
    "hash_command",
    "head_command",
    "key_of",
    "keygen_command",
    "read_run",
    "rollback_command",
    "show_command",
    "verify_command",
    "warn_of",
]

_HEAD = re.compile(r"[0-9a-f]{64}")
_STATEMENTS = (
    "sampling, data_assumption, attack_model, attacker_goal, attacker_knowledge, attacker_capability, "
    "stage_of_learning, mitigation, authentication, node_authentication, tls, update_bounds, sybil_resistance, "
    "secure_aggregation, owner, legal_basis, notice"
)

_ORDERS: dict[str, Callable[[ClientSummary], tuple[float, float]]] = {
    "refusals": lambda each: (-each.refused, each.weight or 0.0),
    "weight": lambda each: (-(each.weight or 0.0), -each.refused),
    "signs": lambda each: (-sum(count for _, count in each.signs), -each.refused),
}

audit = typer.Typer(help="Verify and read the audit log of a run.", no_args_is_help=True)

Log = Annotated[Path, typer.Argument(help="The audit log, or the run's folder that holds it.")]
Run = Annotated[Path, typer.Argument(help="The run's folder.")]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help="File of the key that the log was written with, if it was.")
]


SigningKey = Annotated[
    Path | None, typer.Option("--signing-key", help="File of the private key that signs the log's heads, if one does.")
]
PublicKey = Annotated[
    Path | None, typer.Option("--public-key", help="File of the public key that must have signed the log's heads.")
]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _log(path: Path) -> Path:
    from flwr_robust.audit.contents import log_file

    return log_file(path) if path.is_dir() else path


def key_of(path: Path | None) -> bytes | None:
    """Return the content of a key file, without a newline at its end."""
    if path is None:
        return None
    from flwr_robust.audit.log import LEAST_KEY

    try:
        key = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise AuditError(f"--key-file {path} cannot be read: {error.strerror}") from None
    if len(key) < LEAST_KEY:
        raise ConfigurationError(f"--key-file {path} must hold at least {LEAST_KEY} bytes; got {len(key)}")
    return key


def read_run(path: Path, key_file: Path | None) -> tuple[list[Record], Verdict]:
    """Return a log's events and its verdict, also if the log is not intact."""
    from flwr_robust.audit.log import read_log, verify

    log = _log(path)
    verdict = verify(log, key=key_of(key_file))
    return read_log(log) if log.is_file() else [], verdict


def warn_of(verdict: Verdict) -> None:
    """Print a note if macs were not checked, and exit with status 1 if the log is not intact."""
    from flwr_robust.audit.log import UNCHECKED

    if UNCHECKED in verdict.remarks:
        note = f"note: the log was read without its key: {UNCHECKED}; --key-file FILE checks them"
        say(note, "yellow")
    if not verdict.intact:
        say(f"the log is NOT INTACT: {verdict.findings[0]}; see flwr-robust audit verify", "red")
        raise typer.Exit(1)


@audit.command("verify")
def verify_command(
    log: Log,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            help="A head that was noted earlier, elsewhere, or a file of such heads; the log must hold their lines. "
            "May be repeated."
        ),
    ] = None,
    key_file: KeyFile = None,
    public_key: PublicKey = None,
    as_json: Json = False,
) -> None:
    """Find every edit, insertion, deletion, reordering and truncation, and say where.

    LOG is the audit log, or the run's folder that holds it. Every checkpoint and kept update is compared with its hash
    in the log, and every round's model with the one before.

    Every line holds the hash of the line before. A head file beside the log, and every checkpoint, name the hash of the
    last line (the head). So accidental changes are found, and changes by a person who can write only the log.

    This does not protect against a person who can write all these files and make another valid log. To detect that,
    note heads in a place that this person cannot reach (``audit head``, Audit(heads=)), and pass them with --expect. Or
    sign the heads with a private key that this person does not have (``audit keygen``, Audit(signing_key=)), and pass
    the public key with --public-key. Or write the log with a secret key, and pass the same key with --key-file.

    Exit status: 0 intact, 1 tampered with, 2 wrong input.

    JSON: intact, lines, head, findings (line, fault, sentence), remarks, checkpoints (heads by checkpoint).
    """
    with told():
        from flwr_robust.audit.contents import checkpointed_heads, log_file, verify_run
        from flwr_robust.audit.log import verify
        from flwr_robust.audit.signing import read_public_key

        path, key, signer = _log(log), key_of(key_file), None if public_key is None else read_public_key(public_key)
        expected = [head for each in expect or [] for head in _heads(each, signer)]
        heads = checkpointed_heads(path.parent)
        # A log with another name is a copy, so the folder around it is not checked.
        if path == log_file(path.parent):
            verdict = verify_run(path.parent, expect=expected, key=key, public_key=signer)
        else:
            verdict = verify(path, expect=expected, known=heads, key=key, public_key=signer)
    if as_json:
        findings = [dataclasses.asdict(finding) | {"fault": finding.fault.name} for finding in verdict.findings]
        chain = {"intact": verdict.intact, "lines": verdict.lines, "head": verdict.head}
        print_json({**chain, "findings": findings, "remarks": verdict.remarks, "checkpoints": heads})
    else:
        _show_verdict(verdict, heads)
    raise typer.Exit(0 if verdict.intact else 1)


def _heads(text: str, public_key: str | None) -> list[str]:
    """Return the heads that one --expect names."""
    from flwr_robust.audit.log import read_heads

    if _HEAD.fullmatch(text):
        return [text]
    if not Path(text).exists():
        raise ConfigurationError(
            f"audit verify: --expect must be a head, 64 hexadecimal digits, or a file of heads; got {text}"
        )
    return read_heads(text, public_key)


@audit.command("head")
def head_command(
    log: Log,
    out: Annotated[
        Path | None, typer.Option(help="A file to which the head is added, for example on another machine.")
    ] = None,
    key_file: KeyFile = None,
    public_key: PublicKey = None,
) -> None:
    """Print a log's head as one line of JSON, to note it where the log's writer cannot reach it.

    LOG is the audit log, or the run's folder that holds it. The log is verified first. The line holds the number of
    lines and the hash of the last one, and its signature if heads are signed. ``audit verify --expect FILE`` later
    shows whether the log still holds it.

    Exit status: 0 the head was printed, 1 the log was tampered with, 2 wrong input.
    """
    with told():
        from flwr_robust.audit.log import head_of, verify
        from flwr_robust.audit.signing import read_public_key

        path, signer = _log(log), None if public_key is None else read_public_key(public_key)
        warn_of(verify(path, key=key_of(key_file), public_key=signer))
        line = json.dumps(head_of(path))
        if out is not None:
            try:
                with out.open("a") as file:
                    file.write(f"{line}\n")
            except OSError as error:
                raise AuditError(f"audit head: {out} cannot be written: {error.strerror}") from None
    console().print(line, soft_wrap=True)


@audit.command("keygen")
def keygen_command(
    file: Annotated[Path, typer.Argument(help="The file of the private key; the public key goes to FILE.pub.")],
) -> None:
    """Make a pair of Ed25519 keys that sign a log's heads.

    Pass FILE as Audit(signing_key=FILE), and keep it out of the reach of those who may change the run's folder. Give
    FILE.pub to auditors: ``audit verify --public-key FILE.pub`` needs nothing else.
    """
    with told():
        from flwr_robust.audit.signing import make_keys

        private, public = make_keys(file)
    console().print(as_text(f"private key: {private}"), soft_wrap=True)
    console().print(as_text(f"public key:  {public}"), soft_wrap=True)


def hash_command(
    model: Annotated[Path, typer.Argument(help="A model: .npz, .pt, or a checkpoint's folder.")],
    run: Annotated[Path | None, typer.Option("--run", help="The run in whose log the model is looked for.")] = None,
    as_json: Json = False,
) -> None:
    """Print the hash of a model file, and with --run the rounds of the run after which it is the model.

    The hash is the one in audit logs. It depends on the arrays' names, order, types, shapes and bytes. The log is not
    verified here; use ``audit verify``.

    Exit status: 0 the hash was printed and, with --run, found; 1 the run's log does not have it; 2 wrong input.

    JSON: sha256, run (its id), places (line, round, undone, final).
    """
    with told():
        from flwr_robust.audit.digest import model_sha256
        from flwr_robust.audit.events import RunStarted
        from flwr_robust.audit.log import read_log
        from flwr_robust.audit.models import places_of, read_model

        sha256 = model_sha256(read_model(model))
        records = [] if run is None else read_log(_log(run))
        found = list(places_of(records, sha256))
        ids = [record.event.run for record in records if isinstance(record.event, RunStarted)]
    if as_json:
        print_json({"sha256": sha256, "run": "".join(ids[:1]), "places": [dataclasses.asdict(each) for each in found]})
    else:
        console().print(sha256)
        for each in found:
            what = "the initial model" if each.round == 0 else f"the model after round {each.round}"
            end = ", with which the run ended" if each.final else ""
            console().print(as_text(f"line {each.line}: {what}{end}{' (undone)' if each.undone else ''}"))
        if run is not None and not found:
            console().print(as_text(f"no round of {run} has this model"), style="red")
    raise typer.Exit(1 if run is not None and not found else 0)


def _show_verdict(verdict: Verdict, heads: Mapping[str, str]) -> None:
    out = console()
    for lines, sentence in _gathered(verdict.findings):
        out.print(as_text(f"{lines}{sentence}", "red"), soft_wrap=True)
    for remark in verdict.remarks:
        out.print(as_text(f"note: {remark}", "yellow"), soft_wrap=True)
    word = as_text("intact", "green") if verdict.intact else as_text("NOT INTACT", "red")
    out.print(word + f", {verdict.lines} lines")
    if heads and verdict.intact:
        out.print(f"the heads in {', '.join(heads.values())} are among them")
    out.print(f"head {verdict.head}", soft_wrap=True)


def _gathered(findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    """Yield findings with their lines; consecutive lines with the same fault are combined."""
    for _, group in groupby(enumerate(findings), lambda pair: (pair[1].line - pair[0], pair[1].sentence)):
        first, *others = (finding for _, finding in group)
        place = f"lines {first.line} to {others[-1].line}" if others else f"line {first.line}"
        yield f"{place}: " if first.line else "", first.sentence


@audit.command("show")
def show_command(
    log: Log,
    client: Annotated[
        int | None, typer.Option(help="Show the history of one client: a node's id, or in a simulation its partition.")
    ] = None,
    server_round: Annotated[int | None, typer.Option("--round", help="Show all clients in this round.")] = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Show a client's or a round's history as a table; without either, all rounds.

    LOG is the audit log, or the run's folder that holds it.

    weight: the rule's weight for the client; distance and angle: of its update to the aggregate, the angle in degrees.
    A round is "undone" if a rollback or a resumption later went back to an earlier round.

    Exit status: 0 intact, 1 tampered with (the tables are shown anyway), 2 wrong input.

    JSON: intact, and rounds (round, asked, admitted, refused, silent, abstained, heaviest, outcome, model_after,
    undone). With --client or --round: visits (round, phase, node, partition, verdict, reason, detail, weight, distance,
    angle, undone).
    """
    with told():
        from flwr_robust.audit.events import Suspected
        from flwr_robust.audit.history import find_client, rounds, visits

        records, verdict = read_run(log, key_file)
        overview = client is None and server_round is None
        node = None if client is None else find_client(records, client)
        found = [
            visit
            for visit in (() if overview else visits(records))
            if (node is None or visit.node == node) and (server_round is None or visit.round == server_round)
        ]
        if not found and not overview:
            there = [each.round for each in rounds(records)]
            known = f"rounds {min(there)} to {max(there)}" if there else "no round"
            of_node = "" if node is None else f" of node {node}"
            where = "; the node was never asked" if server_round is None else f" in round {server_round}"
            raise AuditError(f"audit: the log has no reply{of_node}{where}; it knows {known}")
        suspected = [
            record.event
            for record in records
            if isinstance(record.event, Suspected) and (node is None or record.event.node == node)
        ]
        if as_json:
            name, entries = ("rounds", rounds(records)) if overview else ("visits", found)
            print_json({"intact": verdict.intact, name: [dataclasses.asdict(entry) for entry in entries]})
        elif overview:
            _show_rounds(console(), records)
        else:
            _show_visits(console(), found, "" if node is None else f"node {node}")
            _show_suspicions(console(), [each for each in suspected if server_round in (None, each.round)])
            if server_round is not None:
                _show_outcomes(console(), records, server_round)
    warn_of(verdict)


def _show_visits(console: Console, found: Sequence[ClientInRound], title: str) -> None:
    from rich.table import Table

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
        often = f" {visit.count} times" if visit.count > 1 else ""
        words = [f"{visit.verdict}{often}{' (undone)' if visit.undone else ''}", visit.reason, visit.detail]
        table.add_row(
            str(visit.round),
            as_text(visit.phase),
            *([] if title else [str(visit.node)]),
            "" if visit.partition is None else str(visit.partition),
            as_text(": ".join(word for word in words if word)),
            *map(_number, (visit.weight, visit.distance, visit.angle)),
            style="dim" if visit.undone else "red" if visit.verdict == "refused" else "",
        )
    console.print(table)


def _show_suspicions(console: Console, found: Sequence[Suspected]) -> None:
    for event in found:
        words = f"round {event.round}: node {event.node} was suspected ({event.sign}): {event.detail}"
        console.print(as_text(words), soft_wrap=True)


def _show_outcomes(console: Console, records: Sequence[Record], server_round: int) -> None:
    from flwr_robust.audit.events import Aggregated

    for record in records:
        event = record.event
        if isinstance(event, Aggregated) and event.round == server_round:
            words = f"{event.outcome}: {event.sentence}" if event.sentence else event.outcome
            console.print(as_text(f"{record.time}  {words}"), soft_wrap=True)
            console.print(as_text(f"model before {event.model_before}"))
            console.print(as_text(f"model after  {event.model_after}"))


def _show_rounds(console: Console, records: Sequence[Record]) -> None:
    from rich.table import Table

    from flwr_robust.audit import events
    from flwr_robust.audit.history import rounds

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
            as_text(each.outcome + (" (undone)" if each.undone else "")),
            as_text(each.model_after[:12]),
            style="dim" if each.undone else "",
        )
    console.print(table)
    shown = (
        events.Banned,
        events.LogReopened,
        events.Quarantined,
        events.RedTeamed,
        events.Released,
        events.Resumed,
        events.RolledBack,
        events.RunEnded,
        events.RunStarted,
        events.UpdatesDeleted,
    )
    for record in records:
        event = record.event
        kept = isinstance(event, events.ClientStatesKept) and event.missing
        anew = kept or isinstance(event, events.ClientStatesRestored)
        if anew or isinstance(event, shown):
            fields = {key: value for key, value in event.to_fields().items() if key not in ("config", "software")}
            words = ", ".join(f"{key}={value}" for key, value in fields.items() if value not in ("", [], {}, None))
            console.print(as_text(f"{record.time[:19]}  {event.kind}  {words}"))


@audit.command("clients")
def clients_command(
    log: Log,
    by: Annotated[str, typer.Option(help="refusals, weight or signs: the order of the clients.")] = "refusals",
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Rank clients by refusals, by the weight that the rule gave them, or by signs of an attack.

    LOG is the audit log, or the run's folder that holds it.

    weight: the mean over the rounds in which the client was asked and which are not undone; a refused reply counts as
    0. Refusals count in all rounds. signs: what clients were suspected of in rounds that are not undone, with numbers.
    duplicate: the update of another client in the same round; replay: an update of an earlier round; drift: on one side
    of the others' updates, round after round; failing: errors or no answer in a row. Examine the clients at the top,
    but do not assume that they attack: honest clients with unusual data also differ from the others.

    Exit status: 0 intact, 1 tampered with (the tables are shown anyway), 2 wrong input.

    claim: the partition that a node states, in a deployment; part.: the one that a simulation assigned.

    JSON: intact, partitions_are_claims, clients (node, partition, asked, admitted, refused, silent, abstained, reasons,
    weight, distance, quarantined, signs, banned).
    """
    with told():
        from flwr_robust.audit.history import clients, partitions_are_claims

        if by not in _ORDERS:
            raise ConfigurationError(f"audit clients: --by must be one of {', '.join(_ORDERS)}; got {by}")
        records, verdict = read_run(log, key_file)
    ranked = sorted(clients(records), key=_ORDERS[by])
    if as_json:
        entries = [
            dataclasses.asdict(each) | {"reasons": dict(each.reasons), "signs": dict(each.signs)} for each in ranked
        ]
        claimed = partitions_are_claims(records)
        print_json({"intact": verdict.intact, "partitions_are_claims": claimed, "clients": entries})
    else:
        _show_clients(ranked, "claim" if partitions_are_claims(records) else "part.")
    warn_of(verdict)


def _show_clients(ranked: Sequence[ClientSummary], place: str) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("node", justify="right", no_wrap=True)
    abstaining = any(each.abstained for each in ranked)
    for name in (place, "asked", "adm.", "ref.", "silent", *(["abst."] if abstaining else []), "weight", "distance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why refused", ratio=1)
    suspected = any(each.signs for each in ranked)
    if suspected:
        table.add_column("signs", ratio=1)
    for each in ranked:
        reasons, signs = (", ".join(f"{name} {count}" for name, count in pairs) for pairs in (each.reasons, each.signs))
        table.add_row(
            str(each.node),
            "" if each.partition is None else str(each.partition),
            *map(str, (each.asked, each.admitted, each.refused, each.silent)),
            *([str(each.abstained)] if abstaining else []),
            *map(_number, (each.weight, each.distance)),
            as_text(reasons + (" (in quarantine)" if each.quarantined else "") + (" (banned)" if each.banned else "")),
            *([as_text(signs)] if suspected else []),
        )
    console().print(table)


def rollback_command(
    run: Run,
    to_round: Annotated[int, typer.Option("--to-round", min=0, help="A round that has a checkpoint.")],
    reason: Annotated[str, typer.Option(help="The reason, which is recorded in the log.")] = "",
    key_file: KeyFile = None,
    signing_key: SigningKey = None,
) -> None:
    """Make an earlier round's model current again, for example to remove a backdoor of a later round.

    RUN is the folder of a run that is not in progress. Later checkpoints are moved to checkpoints/aside, not deleted,
    and the log records the rollback. If the run is resumed, it continues from this round.
    """
    with told():
        from flwr_robust.audit.checkpoint import ARRAYS, CheckpointStore
        from flwr_robust.audit.contents import checkpoint_folder
        from flwr_robust.audit.run import rollback

        snapshot = rollback(run, to_round, reason=reason, key=key_of(key_file), signing_key=signing_key)
    path, last = CheckpointStore(checkpoint_folder(run)).path(snapshot.round), len(snapshot.model) - 1
    arrays = "array 0 of it" if last == 0 else f"arrays 0 to {last} of it"
    order = "in the order of the names under model in checkpoint.json beside it"
    sentence = f"round {snapshot.round} is current; its model is in {path / ARRAYS}: {arrays}, {order}"
    console().print(as_text(sentence), soft_wrap=True)


def card_command(
    run: Run,
    html: Annotated[bool, typer.Option("--html", help="Write card.html, too.")] = False,
    state: Annotated[
        list[str] | None,
        typer.Option(help="Your own statement, as KEY=TEXT; may be repeated. Keys: " + _STATEMENTS + "."),
    ] = None,
    red_team: Annotated[
        Path | None,
        typer.Option("--red-team", help="The JSON that `flwr-robust red-team` wrote for this strategy."),
    ] = None,
    key_file: KeyFile = None,
    public_key: PublicKey = None,
) -> None:
    """Write the robustness card of a run: card.json and card.md in its folder, RUN.

    The card states the rule and its limits, the clients asked and admitted, the declared f and the tested attacks. It
    also states the threat in the terms of NIST AI 100-2, who answers for the run, the evidence and the security of the
    deployment. Each fact has a source. Facts that neither the log nor
    you state are "not stated". Use --state "authentication=..." for how clients authenticate, and --state "tls=..." for
    how connections are secured.
    """
    with told():
        from flwr_robust.audit.card import write_card
        from flwr_robust.audit.contents import verify_run
        from flwr_robust.audit.events import check_statements
        from flwr_robust.audit.signing import read_public_key

        statements, key = dict(_pair(text) for text in state or []), key_of(key_file)
        signer = None if public_key is None else read_public_key(public_key)
        check_statements(statements)  # checked before any file is read
        verdict = verify_run(run, key=key, public_key=signer)
        paths = write_card(
            run,
            html=html,
            statements=statements,
            key=key,
            red_team=red_team,
            verdict=verdict,
            public_key=signer,
        )
    for path in paths:
        console().print(as_text(path), soft_wrap=True)
    warn_of(verdict)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"card: --state must be KEY=TEXT; got '{text}'")
    return key.strip().replace("-", "_"), value.strip()
