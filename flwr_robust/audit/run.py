"""An audited run: one folder with an audit log and checkpoints, for evidence, resumption and rollback.

    audit.jsonl, audit.jsonl.head    the log and its head file
    seeds.secret                     the secret seeds of the rounds
    checkpoints/round-.../           the checkpoints
    updates/                         raw updates, if requested

Checkpoints hold the head of the log, which is the hash of its last line. The log holds the hashes of checkpoints. So
neither can be replaced by an earlier version without the other.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flwr_robust.audit.checkpoint import CheckpointStore, Snapshot, differences
from flwr_robust.audit.commitments import Commitments
from flwr_robust.audit.contents import (
    KeptUpdates,
    Standing,
    checkpoint_folder,
    delete_rounds,
    delete_updates,
    kept_rounds,
    log_file,
    run_links,
    update_file,
    updates_aside,
)
from flwr_robust.audit.digest import config_sha256
from flwr_robust.audit.events import (
    CheckpointsDeleted,
    CheckpointWritten,
    Event,
    Resumed,
    RolledBack,
    RunEnded,
    RunStarted,
    UpdateKept,
    UpdatesDeleted,
    check_statements,
)
from flwr_robust.audit.log import AuditLog, Record, read_log, verify
from flwr_robust.audit.secret_seeds import continued, keep_secret
from flwr_robust.audit.signing import PrivateKey
from flwr_robust.audit.software import commit, software
from flwr_robust.errors import (
    AuditError,
    CheckpointError,
    ConfigurationError,
    TamperedError,
    check_integer,
)
from flwr_robust.files import file_sha256, make_folder, move_aside, write_atomically
from flwr_robust.round_seeds import FixedSeed, RoundSeeds, SecretSeed

__all__ = ["AuditedRun", "check_retention", "checkpoint_folder", "log_file", "rollback"]

_KNOWN = FixedSeed(0)


class AuditedRun:
    """The log and the checkpoints of one run, to which a strategy writes.

    Parameters
    ----------
    folder : Path
        The run's folder; created if it does not exist.
    config : mapping
        Everything that determines the result, as scalars by name.
    rule : str
        The defence string; empty if the rule is not one of this project.
    strategy : str
        The class of the strategy.
    statements : mapping
        The operator's statements; the keys are those of `STATEMENTS`.
    registered_nodes : bool, optional
        Whether the nodes are registered, for the first event; see `RunStarted`.
    seeds : RoundSeeds
        The seeds of a new run's rounds. The log names the commitment to secret ones.
    resume : bool or int
        False starts a new run; the folder must not hold one. True continues from the latest checkpoint, or from the
        beginning if the run was stopped before its first one. A number continues from the checkpoint of that round.
        `snapshot` then holds the state to restore.
    may_differ : collection of str
        Keys of the configuration that may change when a run is resumed.
    every : int
        Rounds between checkpoints.
    keep : int, optional
        How many checkpoints to keep; None keeps all.
    keep_updates : bool, int or timedelta
        Whether `keep_update` may be called; the log records this. A number keeps the updates of as many rounds, and an
        age those that are not older; `delete_old_updates` deletes the others.
    key : bytes, optional
        The key of the audit log; see `AuditLog`.
    signing_key : Ed25519PrivateKey or Path, optional
        Signs the log's heads; see `AuditLog`.
    sync : bool
        Whether to wait for the disk; see `AuditLog`.
    accept : callable (Snapshot)
        Called with the checkpoint before anything is recorded or moved. It raises if the run cannot continue from it.

    Attributes
    ----------
    log : AuditLog
        The audit log, open for this process only.
    store : CheckpointStore
        The checkpoints.
    snapshot : Snapshot or None
        The state from which to continue; None starts from the beginning.
    seeds : RoundSeeds
        The seeds of the run's rounds. A resumed run has its own secret again.

    Raises
    ------
    AuditError
        If the folder holds a run and ``resume`` is False, or another process writes to it.
    TamperedError
        If the log is not intact, or log and checkpoint do not fit each other.
    CheckpointError
        If the checkpoint is damaged (an earlier one is then offered) or belongs to another configuration.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with AuditedRun(folder, {"seed": 0}, rule="median()", sync=False) as run:
    ...     run.checkpoint(Snapshot(1, run.config, {"w": np.ones(3)}))
    True
    >>> with AuditedRun(folder, {"seed": 0}, rule="median()", sync=False, resume=True) as run:
    ...     run.snapshot.round
    1
    """

    def __init__(
        self,
        folder: Path | str,
        config: Mapping[str, Any],
        *,
        rule: str = "",
        strategy: str = "",
        statements: Mapping[str, str] | None = None,
        registered_nodes: bool | None = None,
        seeds: RoundSeeds = _KNOWN,
        resume: bool | int = False,
        may_differ: Collection[str] = ("rounds",),
        every: int = 1,
        keep: int | None = 3,
        keep_updates: bool | int | timedelta = False,
        key: bytes | None = None,
        signing_key: PrivateKey | None = None,
        sync: bool = True,
        accept: Callable[[Snapshot], None] = lambda snapshot: None,
    ) -> None:
        check_integer("audit", "every", every, 1)
        check_statements(statements or ())
        check_retention(keep_updates)
        self.folder, self.config, self.every = Path(folder), dict(config), every
        self.keep_updates = keep_updates
        self._oldest: int | None = None  # the first round with kept updates
        self.store = CheckpointStore(checkpoint_folder(folder), keep=keep, sync=sync)
        self.snapshot: Snapshot | None = None
        self.seeds, self._sync = seeds, sync
        self.folder.mkdir(parents=True, exist_ok=True)
        _check_links(folder)
        self.log = AuditLog(log_file(folder), key=key, signing_key=signing_key, sync=sync)
        try:
            if self.log.lines and resume is False:
                raise AuditError(f"audit: {folder} holds a run already; resume it, or name another folder")
            if self.log.lines:
                self._resume(resume, may_differ, accept)
            else:
                begun = RunStarted(
                    self.config, config_sha256(self.config), rule, strategy, registered_nodes=registered_nodes
                )
                self._start(begun, statements)
        except BaseException:
            self.log.close()
            raise

    def _start(self, event: RunStarted, statements: Mapping[str, str] | None) -> None:
        if rounds := self.store.rounds():
            raise TamperedError(
                f"audit: {self.folder} holds checkpoints of rounds {rounds}, but its log is empty or gone"
            )
        if isinstance(self.seeds, SecretSeed):
            keep_secret(self.folder, self.seeds, sync=self._sync)
            event = dataclasses.replace(event, seed_commitment=self.seeds.commitment)
        self.log.append(
            dataclasses.replace(
                event,
                software=software(),
                statements=dict(statements or {}),
                keeps_updates=bool(self.keep_updates),
                run=secrets.token_hex(16),
                commit=commit(),
                public_key=self.log.public_key,
            )
        )

    def _resume(self, resume: bool | int, may_differ: Collection[str], accept: Callable[[Snapshot], None]) -> None:
        self.store.clean()
        standing = _finish(self.log.path, self.store)
        late: list[Event] = []
        later: list[Path] = []
        if self.store.rounds() or resume is not True:
            wanted = None if resume is True else int(resume)
            if wanted is None:
                _check_newest(self.store, standing)
            _check_hash(self.log.path, self.store, standing, wanted)
            self.snapshot = self.store.load(wanted, config=self.config, may_differ=may_differ)
            accept(self.snapshot)
            late = _check_recorded(self.log.path, self.store, standing, self.snapshot)
            later = self.store.later(self.snapshot.round)
        else:
            self._check_begun(may_differ)
        going_on = Resumed(0 if self.snapshot is None else self.snapshot.round, tuple(path.name for path in later))
        going_on = dataclasses.replace(
            going_on, seed_commitment=self._continue_seeds(standing.records, back=bool(later))
        )
        self.log.append(*late, going_on)
        self.store.put_aside(later)

    def _continue_seeds(self, records: Sequence[Record], *, back: bool) -> str:
        """Take the run's own secret seeds, and return the commitment to new ones; empty if there are none."""
        if not isinstance(self.seeds, SecretSeed):
            return ""
        if self.snapshot is not None:  # otherwise no round has ended
            self.seeds = continued(self.folder, records, self.snapshot.round, self.seeds, back=back)
        commitment = self.seeds.commitment
        if commitment in (known for _, known in Commitments.of(records).chains):
            return ""
        keep_secret(self.folder, self.seeds, sync=self._sync)
        return commitment

    def _check_begun(self, may_differ: Collection[str]) -> None:
        """Raise if a run without a checkpoint was started with another configuration."""
        events = [record.event for record in read_log(self.log.path)]
        if written := sorted({event.round for event in events if isinstance(event, CheckpointWritten)}):
            raise CheckpointError(
                f"audit: {self.store.folder} holds no checkpoint, but the log knows those of rounds "
                f"{', '.join(map(str, written))}; put one back, or start a new run in another folder"
            )
        event = next((event for event in events if isinstance(event, RunStarted)), None)
        if event is not None and (odd := differences(event.config, self.config, may_differ)):
            raise CheckpointError(
                f"audit: the run in {self.folder} was begun with another configuration: {'; '.join(odd)}; use the same "
                f"one, or another folder"
            )

    def record(self, *events: Event) -> None:
        """Record events in order; pass simultaneous events together."""
        self.log.append(*events)

    def checkpoint(self, snapshot: Snapshot, *, force: bool = False) -> bool:
        """Write a checkpoint if its round is due, and record it.

        Parameters
        ----------
        snapshot : Snapshot
            The state to write; this method sets its ``head``.
        force : bool
            Write it even if it is not due, for example after the last round.

        Returns
        -------
        bool
            Whether the checkpoint was written.
        """
        if snapshot.round % self.every and not force:
            return False
        self.store.save(dataclasses.replace(snapshot, head=self.log.head))
        events: list[Event] = [_written(self.store, snapshot.round)]
        needed = self._needed()
        if old := [each for each in self.store.surplus() if each not in needed]:
            events.append(CheckpointsDeleted(tuple(old), f"{len(self.store.rounds()) - len(old)} are kept"))
        self.log.append(*events)
        if old:  # recorded first, then deleted: what is gone is on record, also after a kill in between
            self.store.delete(old)
        return True

    def keep_update(self, server_round: int, node: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a client's raw update to a file, and record it.

        The file holds the arrays under their numbers, and their names as ``names``. If the round is repeated, the
        earlier file is moved to ``updates/aside``.

        Raises
        ------
        ConfigurationError
            If the run was started without ``keep_updates``.
        """
        if not self.keep_updates:
            raise ConfigurationError("audit: raw updates are not kept; begin the run with keep_updates=True")
        path = update_file(self.folder, server_round, node)
        _make(path.parent, self.folder)
        if os.path.lexists(path):
            _make(updates_aside(self.folder, server_round), self.folder)
            move_aside(path, updates_aside(self.folder, server_round))
        numbered = {str(index): values for index, values in enumerate(arrays.values())}
        write_atomically(path, lambda file: np.savez(file, allow_pickle=False, names=np.array([*arrays]), **numbered))
        place = str(path.relative_to(self.folder))
        self.log.append(UpdateKept(server_round, node, place, file_sha256(path), path.stat().st_size))

    def _needed(self) -> list[int]:
        """Return the rounds of the checkpoints from which kept updates can be replayed, now or when others are gone."""
        if not self.keep_updates:
            return []
        if self._oldest is None or self.keep_updates is not True:
            self._oldest = min(kept_rounds(self.folder), default=None)
        oldest = self._oldest
        found = [each for each in self.store.rounds() if oldest is not None and each >= oldest - 1]
        return found[:1] if self.keep_updates is True else found

    def delete_old_updates(self, server_round: int) -> None:
        """Delete the raw updates that are no longer kept after a round, and record it before."""
        keep = self.keep_updates
        if isinstance(keep, bool):
            return
        if isinstance(keep, timedelta):
            since = time.time() - keep.total_seconds()
            old = [
                each
                for each in kept_rounds(self.folder)
                if update_file(self.folder, each, 0).parent.stat().st_mtime < since
            ]
            why = f"updates are kept for {keep}"
        else:
            old = [each for each in kept_rounds(self.folder) if each <= server_round - keep]
            why = f"the updates of the latest {keep} rounds are kept"
        if old:
            self.log.append(UpdatesDeleted(server_round, tuple(old), (), why))
            delete_rounds(self.folder, old)

    def end(self, server_round: int, outcome: str, sentence: str = "", model: str = "") -> str:
        """Record the end of the run, and close the log.

        Parameters
        ----------
        server_round : int
            The last round.
        outcome : str
            ``finished``, ``stopped`` or ``failed``.
        sentence : str
            Why the run stopped or failed.
        model : str
            Hash of the final model.

        The keys of the rounds so far are revealed, unless the run failed: it may be continued.

        Returns
        -------
        str
            The log's head; note it elsewhere as evidence.
        """
        revealed = ""
        if isinstance(self.seeds, SecretSeed) and outcome != "failed":
            revealed = self.seeds.reveal(server_round)
        head = self.log.append(RunEnded(server_round, outcome, sentence, model, revealed))
        self.log.close()
        return head

    def close(self) -> None:
        """Close the log without recording an end, as if the process were killed; the run can be resumed."""
        self.log.close()

    def __enter__(self) -> Self:
        """Return this run."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the run's log."""
        self.close()


def check_retention(keep_updates: object) -> None:
    """Raise `ConfigurationError` unless this says how long to keep updates."""
    if isinstance(keep_updates, bool):
        return
    if isinstance(keep_updates, timedelta):
        if keep_updates <= timedelta(0):
            raise ConfigurationError(f"audit: keep_updates must be an age > 0; got keep_updates={keep_updates}")
        return
    if not isinstance(keep_updates, int):
        raise ConfigurationError(
            f"audit: keep_updates must be True, False, a number of rounds >= 1 or a timedelta; got "
            f"keep_updates={keep_updates!r:.100}"
        )
    check_integer("audit", "keep_updates", keep_updates, 1)


def rollback(
    folder: Path | str,
    to_round: int,
    *,
    reason: str = "",
    key: bytes | None = None,
    signing_key: PrivateKey | None = None,
    sync: bool = True,
) -> Snapshot:
    """Make an earlier round's model current again, move later checkpoints aside, and record this in the log.

    Parameters
    ----------
    folder : Path
        The run's folder; no other process may write to it.
    to_round : int
        A round that has a checkpoint.
    reason : str
        The reason, which is recorded.
    key : bytes, optional
        The key of the audit log.
    signing_key : Ed25519PrivateKey or Path, optional
        Signs the log's heads; see `AuditLog`.
    sync : bool
        Whether to wait for the disk.

    Returns
    -------
    Snapshot
        The new current state.

    Raises
    ------
    AuditError
        If the folder holds no run, or another process writes to it.
    TamperedError
        If the log is not intact, or log and checkpoint do not fit each other.
    CheckpointError
        If there is no such checkpoint, or it is damaged.
    """
    if not log_file(folder).is_file():
        raise AuditError(f"rollback: {folder} holds no run: there is no {log_file(folder).name}; name its folder")
    _check_links(folder)
    with AuditLog(log_file(folder), key=key, signing_key=signing_key, sync=sync) as log:
        store = CheckpointStore(checkpoint_folder(folder), sync=sync)
        standing = _finish(log.path, store)
        _check_hash(log.path, store, standing, to_round)
        snapshot = store.load(to_round)
        late = _check_recorded(log.path, store, standing, snapshot)
        later = store.later(to_round)
        # Record first, then move: after a kill in between, the log shows what to do, and it can be repeated.
        log.append(*late, RolledBack(store.rounds()[-1], to_round, reason, tuple(path.name for path in later)))
        store.put_aside(later)
    return snapshot


_EVIDENCE = "keep both as evidence, and start a new run in another folder"


def _check_links(folder: Path | str) -> None:
    if links := run_links(folder):
        raise AuditError(
            f"audit: {links[0]} is a symbolic link, and a run's folder must hold none; remove it, or name another "
            f"folder"
        )


def _make(path: Path, folder: Path) -> None:
    """Make a folder in a run's folder, and raise if a symbolic link is in its place."""
    try:
        make_folder(path, folder)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EEXIST, errno.ENOTDIR):
            raise
        raise AuditError(f"audit: {error.filename} cannot be used: {error.strerror}; remove it") from None


def _written(store: CheckpointStore, server_round: int) -> CheckpointWritten:
    name, sha256 = store.path(server_round).name, store.sha256(server_round)
    return CheckpointWritten(server_round, name, sha256, store.size(server_round))


def _check_newest(store: CheckpointStore, standing: Standing) -> None:
    """Raise if a checkpoint later than all that are there is on record, and no deletion of it."""
    newest, there = max(standing.current, default=-1), store.rounds()[-1]
    if newest > there:
        raise CheckpointError(
            f"audit: the log knows the checkpoint of round {newest}, but the newest in {store.folder} is that of round "
            f"{there}; put it back, or resume from round {there} by its number",
            there,
        )


def _check_hash(log: Path, store: CheckpointStore, standing: Standing, server_round: int | None) -> None:
    """Raise if a round's checkpoint (None: the latest) is intact but not the one on record; this needs no loading."""
    rounds = store.rounds()
    wanted = rounds[-1] if server_round is None and rounds else server_round
    if wanted not in rounds or standing.sha256(wanted) is None:
        return
    try:
        same = standing.odd(store, wanted) is None
    except OSError:  # it is damaged, which loading it will report
        return
    if not same and store.damage(wanted) is None:
        raise TamperedError(
            f"audit: the checkpoint of round {wanted} is not the one that {log} has on record: its hash is another "
            f"one; {_EVIDENCE}"
        )


def _check_recorded(log: Path, store: CheckpointStore, standing: Standing, snapshot: Snapshot) -> list[Event]:
    """Raise if a checkpoint is not the one on record, or names a line that the log lacks.

    If a process was killed between writing the newest checkpoint and recording it, return the missing event. The caller
    appends it; from then on no other checkpoint is accepted for this round.
    """
    what = f"audit: the checkpoint of round {snapshot.round}"
    if not verify(log, known=[snapshot.head]).intact:
        raise TamperedError(f"{what} knows lines that {log} lacks; {_EVIDENCE}")
    if (why := standing.odd(store, snapshot.round)) is not None:
        raise TamperedError(f"{what} is not the one that {log} has on record: {why}; {_EVIDENCE}")
    newest = store.rounds()[-1]
    if standing.sha256(newest) is not None or store.damage(newest) is not None:
        return []
    try:
        late = standing.odd(store, newest) is None
    except CheckpointError:  # later than the requested one, and moved aside unchanged
        late = False
    return [_written(store, newest)] if late else []


def _finish(log: Path, store: CheckpointStore) -> Standing:
    """Move and delete the checkpoints that the log names as moved or deleted, as a killed process may not have done.

    Returns
    -------
    Standing
        The checkpoints on record in the log.
    """
    standing = Standing.of(read_log(log))
    store.delete(each for each in store.rounds() if each in standing.deleted)
    delete_updates(log.parent, KeptUpdates.of(standing.records).deleted)
    store.put_aside(standing.undone(store))
    return standing
