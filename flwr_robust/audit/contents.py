"""Compare a run's folder with its log: checkpoints, kept updates, and the models from round to round.

The log names the hash of every checkpoint and of every kept update. A checkpoint is on record if the log named it last
for its round, and no later entry undid that round (resumption, rollback). Only the newest checkpoint may be missing
from the log: its writer may be at work, or may have been killed. It must then fit the log's entry of the last
aggregated round.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from flwr_robust.audit.checkpoint import CheckpointStore
from flwr_robust.audit.commitments import odd_keys
from flwr_robust.audit.digest import model_sha256
from flwr_robust.audit.events import (
    Aggregated,
    CheckpointsDeleted,
    CheckpointWritten,
    LogReopened,
    Resumed,
    RolledBack,
    UpdateKept,
    UpdatesDeleted,
)
from flwr_robust.audit.log import Fault, Finding, Record, Verdict, head_file, read_log, verify
from flwr_robust.audit.order_files import described, waiting
from flwr_robust.errors import AuditError, CheckpointError
from flwr_robust.files import file_sha256, file_size, links_in

__all__ = [
    "KeptUpdates",
    "Standing",
    "check_contents",
    "checkpoint_folder",
    "checkpointed_heads",
    "delete_rounds",
    "delete_updates",
    "kept_rounds",
    "log_file",
    "run_links",
    "update_file",
    "updates_aside",
    "verify_run",
]


_ATTEMPTS = 5
_MOST_ORDERS = 20
_UNKNOWN = "no checkpoint of this hash and round was ever on record"


def log_file(folder: Path | str) -> Path:
    """Return the audit log of a run's folder."""
    return Path(folder) / "audit.jsonl"


def checkpoint_folder(folder: Path | str) -> Path:
    """Return the folder of a run's checkpoints."""
    return Path(folder) / "checkpoints"


def update_file(folder: Path | str, server_round: int, node: int) -> Path:
    """Return the file of a client's raw update."""
    return Path(folder) / "updates" / f"round-{server_round:08}" / f"{node}.npz"


def updates_aside(folder: Path | str, server_round: int) -> Path:
    """Return the folder of a round's updates that were moved aside because the round was repeated."""
    return Path(folder) / "updates" / "aside" / f"round-{server_round:08}"


@dataclass
class Standing:
    """The checkpoints on record in a log, and the log's entry of the last round.

    Attributes
    ----------
    current : dict of int to Record
        The last `CheckpointWritten` of each round that was neither undone nor deleted.
    written : dict of int to set of str
        The hashes of all checkpoints of each round that were ever on record.
    deleted : set of int
        The rounds whose checkpoint was deleted on record, and not written again.
    aggregated : Aggregated or None
        The last entry of this kind that was not undone.
    records : sequence of Record
        The records of the log.
    """

    current: dict[int, Record] = field(default_factory=dict)
    written: dict[int, set[str]] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    aggregated: Aggregated | None = None
    records: Sequence[Record] = ()

    @classmethod
    def of(cls, records: Iterable[Record]) -> Standing:
        """Compute the standing from a log's records."""
        records = list(records)
        standing, rounds = cls(records=records), {}
        for record in records:
            event = record.event
            if isinstance(event, CheckpointWritten):
                standing.current[event.round] = record
                standing.written.setdefault(event.round, set()).add(event.sha256)
                standing.deleted.discard(event.round)
            elif isinstance(event, CheckpointsDeleted):
                standing.deleted.update(event.rounds)
                for server_round in event.rounds:
                    standing.current.pop(server_round, None)
            elif isinstance(event, Aggregated):
                rounds[event.round] = event
            elif isinstance(event, Resumed | RolledBack):
                to_round = _back_to(event)
                standing.current = {key: each for key, each in standing.current.items() if key <= to_round}
                rounds = {key: each for key, each in rounds.items() if key <= to_round}
        standing.aggregated = rounds[max(rounds)] if rounds else None
        return standing

    def written_of(self, server_round: int) -> CheckpointWritten | None:
        """Return the entry of a round's checkpoint; None if the log has no valid one."""
        record = self.current.get(server_round)
        return record.event if record and isinstance(record.event, CheckpointWritten) else None

    def sha256(self, server_round: int) -> str | None:
        """Return the hash that a round's checkpoint must have; None if the log has no valid one."""
        written = self.written_of(server_round)
        return None if written is None else written.sha256

    def undone(self, store: CheckpointStore) -> list[Path]:
        """Return the checkpoints that the log has undone but that were not moved aside, the latest first.

        A process that was killed between recording this and moving the checkpoints leaves such ones.
        """
        found = []
        for server_round in reversed(store.rounds()):
            try:
                sha256 = store.sha256(server_round)
            except OSError:
                continue
            live = self.sha256(server_round) is not None or server_round in self.deleted
            if not live and sha256 in self.written.get(server_round, ()):
                found.append(store.path(server_round))
        return found

    def odd(self, store: CheckpointStore, server_round: int) -> str | None:
        """Return why a checkpoint is not the one in the log; None if it is or may be.

        A checkpoint that is in the log must have its size and hash; it is not read. One that is not in the log may
        still be valid. It must be the newest, must have been written when the log had its present length, and must hold
        the model of the last round. It is read only if the rest fits.

        Raises
        ------
        CheckpointError
            If it is damaged, and is not in the log.
        OSError
            If a file of it cannot be read.
        """
        written = self.written_of(server_round)
        if written is not None and store.size(server_round) != written.size:
            return "its size is another one"
        if written is not None:
            return None if store.sha256(server_round) == written.sha256 else "its hash is another one"
        if server_round != store.rounds()[-1]:
            return "the log has none of this round, and it is not the newest"
        head = store.head(store.path(server_round))
        follower = next((each.event for each in self.records if each.previous == head), None)
        if follower is not None and not isinstance(follower, LogReopened | Resumed | RolledBack):
            return "the log has none of this round, and went on when it was written"
        if self.aggregated is not None and server_round != self.aggregated.round:
            return f"the log has none of this round, and the last one that counts is {self.aggregated.round}"
        snapshot = store.load(server_round)
        if snapshot.head != (head or ""):
            return "it names two heads of the log"
        if self.aggregated is not None and model_sha256(snapshot.model) != self.aggregated.model_after:
            return "it does not hold the model that the log has after this round"
        return None


def _back_to(event: Resumed | RolledBack) -> int:
    return event.round if isinstance(event, Resumed) else event.to_round


def checkpointed_heads(folder: Path | str) -> dict[str, str]:
    """Return the log heads in a run's checkpoints, with the names of the checkpoints."""
    store = CheckpointStore(checkpoint_folder(folder))
    if store.folder.is_symlink():
        return {}
    heads = {store.head(path): path.name for path in map(store.path, store.rounds())}
    return {head: name for head, name in heads.items() if head is not None}  # a damaged one is no evidence


def run_links(folder: Path | str) -> list[Path]:
    """Return the symbolic links among the files of a run's folder; a run makes none."""
    log = log_file(folder)
    others = (Path(folder) / name for name in ("updates", "orders", "seeds.secret"))
    places = (log, head_file(log), checkpoint_folder(folder), *others)
    return [link for place in places for link in links_in(place)]


def verify_run(
    folder: Path | str,
    *,
    expect: Collection[str] = (),
    key: bytes | None = None,
    public_key: str | None = None,
) -> Verdict:
    """Verify a run's log, and compare the contents of its folder with it.

    Parameters
    ----------
    folder : Path
        The run's folder.
    expect, key, public_key
        As for `verify`; the log must also hold the heads named in checkpoints.

    Returns
    -------
    Verdict
        Findings about the log first, then those about checkpoints, kept updates and models.

    Raises
    ------
    AuditError
        If there is neither log nor head file.
    """
    log = log_file(folder)
    if links := run_links(folder):
        findings = [Finding(0, Fault.LINK, f"{link} {Fault.LINK.value}, which was not followed") for link in links]
        return Verdict(0, "", tuple(findings), ("nothing else was examined: a run's folder holds no symbolic links",))
    verdict = verify(log, expect=expect, known=checkpointed_heads(folder), key=key, public_key=public_key)
    orders = tuple(
        f"an order waits, which the run or a resumption carries out: {described(path, order)}"
        if order is not None
        else f"{path.name} in the folder of orders is no order, and is not carried out"
        for path, order in islice(waiting(folder), _MOST_ORDERS)
    )
    if len(orders) == _MOST_ORDERS:
        orders = (*orders, "further files in the folder of orders were not examined")
    verdict = replace(verdict, remarks=(*verdict.remarks, *orders))
    for _ in range(_ATTEMPTS):
        try:
            records = read_log(log) if log.is_file() else []
        except AuditError as error:
            remark = f"checkpoints and kept updates could not be held against the log: {error}"
            return replace(verdict, remarks=(*verdict.remarks, remark))
        findings, remarks = check_contents(folder, records)
        # A run in progress writes checkpoints after the lines were read.
        if not findings or not log.is_file() or len(read_log(log)) == len(records):
            break
    return replace(verdict, findings=(*verdict.findings, *findings), remarks=(*verdict.remarks, *remarks))


def check_contents(folder: Path | str, records: Sequence[Record]) -> tuple[list[Finding], list[str]]:
    """Compare a run's checkpoints, its kept updates, and the models from round to round with its log.

    Parameters
    ----------
    folder : Path
        The run's folder.
    records : sequence of Record
        The records of the log.

    Returns
    -------
    list of Finding
        Files that differ, that cannot be read, or that are gone although no line says that they were deleted.
    list of str
        Remarks that are no sign of tampering.
    """
    remarks: list[str] = []
    findings = [
        *_checkpoints(Path(folder), Standing.of(records), remarks),
        *_aside(Path(folder), Standing.of(records)),
        *_updates(Path(folder), records, remarks),
        *_models(records),
        *(Finding(line, Fault.SEED, f"the line reveals keys: {Fault.SEED.value}") for line in odd_keys(records)),
    ]
    return findings, remarks


def _checkpoints(folder: Path, standing: Standing, remarks: list[str]) -> Iterator[Finding]:
    """Yield the current checkpoints that differ or cannot be read."""
    store = CheckpointStore(checkpoint_folder(folder))
    there, undone = store.rounds(), standing.undone(store)
    for server_round in sorted({*standing.current} - {*there}):
        name = store.path(server_round).name
        sentence = f"the checkpoint {name} {Fault.GONE.value}, and no line says that it was deleted"
        yield Finding(standing.current[server_round].line, Fault.GONE, sentence)
    for server_round in there:
        path, record = store.path(server_round), standing.current.get(server_round)
        if server_round in standing.deleted:
            remarks.append(f"{path.name} is deleted on record, but there: its process was killed or is at work")
            continue
        if path in undone:
            remarks.append(f"{path.name} was undone, but not put aside: its process was killed; a resumed run does so")
            continue
        try:
            why = standing.odd(store, server_round) or store.damage(server_round)
        except CheckpointError as error:
            why = str(error)
        except OSError as error:
            why = f"it cannot be read ({error.strerror})"
        if why is None and record is None:
            remarks.append(f"{path.name} is not on record: its writer was killed before that, or is at work")
        elif why is not None and path.exists():  # otherwise its writer has deleted it as an old one
            sentence = f"the checkpoint {path.name} {Fault.CHECKPOINT.value}: {why}"
            yield Finding(record.line if record else 0, Fault.CHECKPOINT, sentence)


def _aside(folder: Path, standing: Standing) -> Iterator[Finding]:
    """Yield the checkpoints moved aside that were never on record, or cannot be read."""
    where = checkpoint_folder(folder) / "aside"
    for path in sorted(where.glob("round-*")):
        number = path.name.removeprefix("round-").partition(".")[0]
        known = standing.written.get(int(number), ()) if number.isascii() and number.isdecimal() else ()
        try:
            why = None if CheckpointStore.sha256_of(path) in known else _UNKNOWN
        except OSError as error:
            why = f"it cannot be read ({error.strerror})"
        why = why or CheckpointStore.damage_of(path)
        if why is not None:
            yield Finding(0, Fault.CHECKPOINT, f"the checkpoint aside/{path.name} {Fault.CHECKPOINT.value}: {why}")


@dataclass
class KeptUpdates:
    """The raw updates on record in a log.

    Attributes
    ----------
    standing : dict of int to dict of int to list of Record
        The `UpdateKept` of each round and node that were not deleted; several if the round was repeated.
    deleted : dict of int to set of int
        The nodes whose updates were deleted on record, by round.
    """

    standing: dict[int, dict[int, list[Record]]] = field(default_factory=dict)
    deleted: dict[int, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> KeptUpdates:
        """Compute them from a log's records."""
        found = cls()
        for record in records:
            event = record.event
            if isinstance(event, UpdateKept):
                found.standing.setdefault(event.round, {}).setdefault(event.node, []).append(record)
                found.deleted.get(event.round, set()).discard(event.node)
            elif isinstance(event, UpdatesDeleted):
                for server_round in event.rounds or tuple(found.standing):
                    nodes = found.standing.get(server_round, {})
                    gone = {node for node in nodes if not event.nodes or node in event.nodes}
                    found.standing[server_round] = {node: nodes[node] for node in nodes if node not in gone}
                    found.deleted.setdefault(server_round, set()).update(gone)
        return found


def kept_rounds(folder: Path | str) -> list[int]:
    """Return the rounds of which raw updates are there, in ascending order."""
    found = [path.name.removeprefix("round-") for path in update_file(folder, 0, 0).parents[1].glob("round-*")]
    return sorted(int(number) for number in found if number.isdecimal())


def delete_rounds(folder: Path | str, rounds: Iterable[int]) -> None:
    """Delete all raw updates of rounds; the log should say so before."""
    for server_round in rounds:
        for place in (update_file(folder, server_round, 0).parent, updates_aside(folder, server_round)):
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)


def delete_updates(folder: Path | str, rounds: Mapping[int, Collection[int]]) -> None:
    """Delete the raw updates of nodes, by round; the log should say so before."""
    for server_round, nodes in rounds.items():
        for node in nodes:
            for path in _update_files(folder, server_round, node):
                path.unlink(missing_ok=True)
        for place in (update_file(folder, server_round, 0).parent, updates_aside(folder, server_round)):
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def _update_files(folder: Path | str, server_round: int, node: int) -> list[Path]:
    """Return the places of a client's update of a round: first the current one, then those moved aside."""
    return [
        update_file(folder, server_round, node),
        *updates_aside(folder, server_round).glob(f"{node}.*.npz"),
    ]


def _updates(folder: Path, records: Sequence[Record], remarks: list[str]) -> Iterator[Finding]:
    """Yield the kept updates for which no file has the recorded hash."""
    found = KeptUpdates.of(records)
    kept = [record for nodes in found.standing.values() for each in nodes.values() for record in each]
    if deleted := sum(map(len, found.deleted.values())):
        left = sum(
            path.exists()
            for r, nodes in found.deleted.items()
            for node in nodes
            for path in _update_files(folder, r, node)
        )
        remarks.append(f"{deleted} updates were deleted on record" + (f", but {left} are there" if left else ""))
    if kept and not (folder / "updates").is_dir():
        sentence = f"the folder of the {len(kept)} updates that were kept {Fault.GONE.value}, and no line says that it"
        yield Finding(kept[0].line, Fault.GONE, f"{sentence} was deleted")
        return
    hashes: dict[Path, str] = {}
    for record in kept:
        event = record.event
        assert isinstance(event, UpdateKept)
        unread = None
        for each in _update_files(folder, event.round, event.node):
            try:
                if file_size(each) != event.size:
                    continue
                if each not in hashes:
                    hashes[each] = file_sha256(each)
            except OSError as error:
                unread = f"it cannot be read ({error.strerror})"
                continue
            if hashes[each] == event.sha256:
                break
        else:
            path = update_file(folder, event.round, event.node)
            why = unread or "its hash is another one"
            sentence = f"the update {path.relative_to(folder)} {Fault.UPDATE.value}: {why}"
            yield Finding(record.line, Fault.UPDATE, sentence)


def _models(records: Sequence[Record]) -> Iterator[Finding]:
    """Yield the rounds that began with a model other than the current one."""
    after: dict[int, str] = {}
    current: tuple[int, str] | None = None
    begun = False  # whether a checkpoint of the initial model is on record
    for record in records:
        event = record.event
        if isinstance(event, CheckpointWritten):
            begun = begun or event.round == 0
        elif isinstance(event, Aggregated):
            if event.round == 1:
                after.setdefault(0, event.model_before)
            if current is not None and current[1] != event.model_before:
                sentence = f"round {event.round} {Fault.MODEL.value}: {current[1]} was current after round {current[0]}"
                yield Finding(record.line, Fault.MODEL, f"{sentence}, {event.model_before} was sent")
            current = event.round, event.model_after
            after[event.round] = event.model_after
        elif isinstance(event, Resumed | RolledBack):
            to_round = _back_to(event)
            # A run that is started again without a checkpoint has the model given by its caller.
            after = {key: model for key, model in after.items() if key <= to_round and (key or begun)}
            current = (to_round, after[to_round]) if to_round in after else None
