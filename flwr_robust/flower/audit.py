"""Audit: record a strategy's run in an audit log, and resume it from a checkpoint.

A checkpoint holds everything that the server needs to continue as if it had never stopped. This is the model, the
rule's state or that of the guarded strategy, the configs sent to nodes, the partitions and the refusals. The records of
earlier rounds and the metrics are in the log. A client's own state, such as a momentum in its Context, is included only
with ``client_states``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord

from flwr_robust.audit import (
    Aggregated,
    AuditedRun,
    Banned,
    ClientStatesKept,
    ClientStatesRestored,
    Evaluated,
    Event,
    Fingerprints,
    Measured,
    Quarantined,
    Released,
    ReplyAbstained,
    ReplyAdmitted,
    ReplyRefused,
    Rested,
    RoundConfigured,
    RoundRemembered,
    Suspected,
    distances_and_angles,
    model_sha256,
    read_log,
)
from flwr_robust.audit.events import check_statements
from flwr_robust.audit.history import banned, counting, released_since
from flwr_robust.audit.log import LEAST_KEY, head_of
from flwr_robust.audit.order_files import pending
from flwr_robust.audit.orders import carry_out
from flwr_robust.audit.run import check_retention
from flwr_robust.audit.signing import PrivateKey, Signer
from flwr_robust.audit.signs import Signs
from flwr_robust.core.rule import Outcome
from flwr_robust.errors import (
    AuditError,
    ConfigurationError,
    check_flag,
    check_integer,
)
from flwr_robust.files import open_to_append
from flwr_robust.flower._compat import registered_nodes
from flwr_robust.flower.admission import Admitted, Refusal
from flwr_robust.flower.client_states import ClientStates, most_bytes
from flwr_robust.flower.failures import failure
from flwr_robust.flower.memory import thaw
from flwr_robust.flower.observer import Observer, check_observers
from flwr_robust.flower.rests import Rest
from flwr_robust.flower.round_records import Aggregation, Opening, Progress, Round, RoundRecord, Scalar
from flwr_robust.flower.snapshots import check_fits, progress_of, remembered, snapshot_of
from flwr_robust.flower.wire import decode_record
from flwr_robust.protocol.buffers import learnt

__all__ = ["Audit", "observing"]

log = logging.getLogger("flwr")

_NO_RUN = (
    "audit: a run is recorded within the audited strategy's own start(), and this round is outside it. A strategy "
    "around it (such as differential privacy), or a start() of your own, runs the loop over the rounds. Call the "
    "strategy's start(), or super().start() in yours; or remove audit= from it, and write "
    "Guarded(outermost_strategy, audit=...).start(...)"
)


class Audit(Observer):
    """An audit log and checkpoints of a run, in one folder; see ``docs/audit-log.md``.

    The log holds every round from the beginning to the end of ``start``. It is verified and locked when a run starts.

    Parameters
    ----------
    folder : Path
        The run's folder; it is created if it does not exist.
    every : int
        Rounds between checkpoints. The initial model and the last round always have one.
    keep : int, optional
        How many checkpoints to keep; None keeps all.
    resume : bool or int
        False starts a new run; the folder must not hold one yet. True continues from the latest checkpoint, or starts a
        new run if there is none. A number continues from the checkpoint of that round. The model passed to ``start``
        must have the same arrays as the checkpoint.
    config : mapping, optional
        Other settings that determine the result, as scalars; for example a run config. These and the strategy's own
        options must be the same when the run is resumed.
    may_differ : collection of str
        Keys of ``config`` that may differ when the run is resumed.
    statements : mapping, optional
        Statements of the operator for the robustness card; see `flwr_robust.audit.events.STATEMENTS`.
    measured : sequence of Measured
        Measurements made before the run that belong in its log, such as how much the clients' labels differ.
    client_states : bool
        Whether checkpoints hold the clients' states, which are what they keep in their Context. The server asks for
        them at every checkpoint and returns them when the run is resumed. The clients must answer, as those of
        ``serve(..., hand_over_state=True)`` do. Without this option a resumed run starts with empty client states,
        unless the nodes outlive the server.
    most_state_bytes : int, optional
        The largest size of a client's state, all its records together. When not given, it is that of four models and
        1 MiB more. A larger state is not kept; the log says so.
    hash_updates : bool
        Whether to record the hash of every update.
    keep_updates : bool, int or timedelta
        Whether to keep the updates themselves, which a replay needs: those of all rounds, of the latest rounds by
        number, or those not older than an age. Older ones are deleted, on record.
    key : bytes, optional
        Signs every line of the log with a mac; at least 16 bytes. To check macs, the same key is needed.
    signing_key : Ed25519PrivateKey or Path, optional
        Signs the log's heads; a key, or its PEM file, as ``flwr-robust audit keygen`` writes it. To check signatures,
        the public key is enough.
    heads : callable (mapping) or Path, optional
        Receives the log's head after every checkpoint and at the end, to prove later that no line was changed. A
        function may hand it to a witness, such as a time-stamping service (RFC 3161). A file must be outside the run's
        folder; a line of JSON is added to it. The mapping holds ``lines`` and ``head``, with a signing key also
        ``public_key`` and ``signature``. A failure is logged, and the run goes on.
    sync : bool
        Whether to wait for the disk after each write, so that even a power failure loses nothing.

    Examples
    --------
    >>> from flwr_robust.flower import TrimmedMean
    >>> strategy = TrimmedMean(f=2, audit=Audit("runs/first", every=5, resume=True))

    Raises
    ------
    ConfigurationError, UnknownNameError
        If an argument is of another type or outside its bounds.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        every: int = 1,
        keep: int | None = 3,
        resume: bool | int = False,
        config: Mapping[str, Any] | None = None,
        may_differ: Collection[str] = ("rounds",),
        statements: Mapping[str, str] | None = None,
        measured: Sequence[Measured] = (),
        client_states: bool = False,
        most_state_bytes: int | None = None,
        hash_updates: bool = False,
        keep_updates: bool | int | timedelta = False,
        key: bytes | None = None,
        signing_key: PrivateKey | None = None,
        heads: HeadHook | Path | str | None = None,
        sync: bool = True,
    ) -> None:
        _check_arguments(folder, every, keep, resume, config, statements, key)
        flags = {"client_states": client_states, "hash_updates": hash_updates}
        check_retention(keep_updates)
        for name, value in {**flags, "sync": sync}.items():
            check_flag("audit", name, value)
        if most_state_bytes is not None:
            check_integer("audit", "most_state_bytes", most_state_bytes, 1)
        if isinstance(may_differ, str) or not isinstance(may_differ, Collection):
            raise ConfigurationError(f"audit: may_differ must be a collection of keys; got {may_differ!r:.100}")
        if not isinstance(measured, Sequence) or not all(isinstance(each, Measured) for each in measured):
            raise ConfigurationError(f"audit: measured must be a list of Measured events; got {measured!r:.100}")
        if signing_key is not None:
            Signer(signing_key)  # raises if it is none
        self._heads = _hook(heads, Path(folder))
        self.folder = Path(folder)
        self._config, self._measured = dict(config or {}), tuple(measured)
        self._left: set[Path] = set()  # files of orders that cannot be moved
        self._wants_states, self._most_state_bytes = client_states, most_state_bytes
        self._hash_updates, self._keep_updates = hash_updates, keep_updates
        self._options: dict[str, Any] = {
            "every": every,
            "keep": keep,
            "resume": resume,
            "may_differ": may_differ,
            "statements": statements,
            "keep_updates": keep_updates,
            "key": key,
            "signing_key": signing_key,
            "sync": sync,
        }
        self._run: AuditedRun | None = None
        self._opening: Opening | None = None
        self._states: ClientStates | None = None
        self._round = 0
        self._resting: int | None = None  # the round from which a run continues, until the next one begins
        self._waiting: list[Event] = []
        self._hashed: tuple[ArrayRecord | None, str] = None, ""
        self._signs = Signs()
        self._prints = Fingerprints({}, 0)

    # -- the run ----------------------------------------------------------------------------------

    def run_started(self, opening: Opening) -> Progress | None:
        """Open the folder, and return the progress from which the run continues, if any.

        Raises
        ------
        AuditError
            If the folder holds a run and ``resume`` is False, or if another process writes to it.
        CheckpointError
            If the checkpoint is damaged, or belongs to another configuration or model.
        """
        config = {**opening.config, **self._config}
        self._run = AuditedRun(
            self.folder,
            config,
            rule=opening.rule,
            strategy=opening.strategy,
            registered_nodes=registered_nodes(opening.grid),
            seeds=opening.seeds,
            accept=partial(check_fits, opening),
            **self._options,
        )
        self._opening, snapshot = opening, self._run.snapshot
        self._states = ClientStates(opening.grid, opening.nodes, opening.timeout) if self._wants_states else None
        self._resting = 0 if snapshot is None else snapshot.round
        self._signs = Signs()
        records = read_log(self._run.log.path)
        counted = [record.event for record in counting(records)]
        for event in counted:
            self._signs.take(event)
        known = banned(records) | {event.node for event in self._waiting if isinstance(event, Banned)}
        self._waiting += [Banned(0, node) for node in sorted(opening.nodes.banned - known)]
        opening.nodes.banned |= known
        if self._run.log.lines == 1:  # the round has just begun
            self._run.record(*self._measured)
        if snapshot is None:
            return None
        self._round = snapshot.round
        self._hashed = None, model_sha256(snapshot.model)  # in case no round follows
        if self._states is not None and "clients" in snapshot.values:
            self._states.recall(thaw(snapshot.values["clients"], snapshot.states["arrays"]))
        progress = progress_of(snapshot, [event for event in counted if isinstance(event, RoundRemembered)])
        released = released_since(records, snapshot.head)
        left = [
            {node: count for node, count in counts.items() if node not in released}
            for counts in (progress.refusals, progress.evaluation_refusals)
        ]
        return dataclasses.replace(progress, refusals=left[0], evaluation_refusals=left[1], seeds=self._run.seeds)

    def _restore(self, states: ClientStates, server_round: int, asked: Sequence[int]) -> None:
        """Return the clients' states to them, and record it."""
        given, missing = states.meet(asked)
        if given or missing:
            self._waiting.append(ClientStatesRestored(server_round, tuple(given), _by_node(missing)))
            self._flush()
        if missing:
            log.warning("resume: %s start without a client state: %s", *_summary(missing))

    def _collect(self, states: ClientStates, progress: Progress) -> None:
        """Ask clients for their states, and record which clients did not send one."""
        length = sum(len(array.data) for array in progress.result.arrays.values())
        missing = states.collect(self._most_state_bytes or most_bytes(length))
        self._waiting.append(ClientStatesKept(progress.round, len(states), _by_node(missing)))
        if missing:
            log.warning("checkpoint: it lacks the client states of %s: %s", *_summary(missing))

    def round_finished(self, progress: Progress, *, last: bool) -> None:
        """Record what the round adds to the run's history, and write a checkpoint if one is due."""
        run, due = self._opened(), last or progress.round % self._opened().every == 0
        self._waiting.append(remembered(progress))
        if due and self._states is not None:
            self._collect(self._states, progress)
        self._flush()
        if due:
            run.checkpoint(snapshot_of(progress, run.config, self._states), force=True)
            self._show_head(run)

    def run_ended(self, server_round: int, outcome: str, sentence: str) -> None:
        """Record the end of the run, and close the log."""
        if self._run is None:
            return
        # The strategy may have failed before it received the earlier rounds.
        server_round = server_round if self._resting is None else self._resting
        try:
            self.attended()
            self._flush()
            self._run.end(server_round, outcome, sentence, self._hashed[1])
            self._show_head(self._run)
        finally:
            self._run.close()
            self._run, self._waiting = None, []

    def _show_head(self, run: AuditedRun) -> None:
        """Hand the log's head to the witness; a failure must not end the run, because a later head covers it."""
        if self._heads is None:
            return
        try:
            self._heads(head_of(run.log.path))
        except Exception as error:
            log.warning("audit: the log's head could not be shown to its witness: %s", failure(self._heads, error))

    def _opened(self) -> AuditedRun:
        if self._run is None:
            raise AuditError("audit: rounds are recorded only while start() runs; call start()")
        return self._run

    def _put(self, event: Event) -> None:
        """Keep an event until the next `_flush`, and inform observers of the signs in it."""
        self._waiting.append(event)
        for found in self._signs.take(event):
            assert self._opening is not None
            self._opening.suspect(found.round, found.node, found.sign, found.detail)

    def _flush(self) -> None:
        self._opened().record(*self._waiting)
        self._waiting.clear()

    def _hash(self, arrays: ArrayRecord) -> str:
        """Return a model's hash; one round's final model is the next round's first one, so it is kept."""
        if self._hashed[0] is not arrays:
            self._hashed = arrays, model_sha256(decode_record(arrays))
        return self._hashed[1]

    def _partition(self, node: int) -> int | None:
        return None if self._opening is None else self._opening.nodes.partitions.get(node)

    # -- one round --------------------------------------------------------------------------------

    def round_configured(self, opened: Round, model: ArrayRecord) -> None:
        """Record which nodes are asked, before the messages are sent.

        Raises
        ------
        ConfigurationError
            If no run is in progress, because another strategy or an own `start` runs the loop over the rounds.
        """
        if self._run is None:
            raise ConfigurationError(_NO_RUN)
        self._round, self._resting = opened.number, None
        arrays = decode_record(model)
        # Clients do not know the places, unless they know the seed.
        self._prints = Fingerprints({name: arrays[name] for name in learnt(arrays)}, self._run.seeds.lasting)
        place = (opened.number, opened.kind, opened.asked, opened.available, opened.quarantined)
        self._put(RoundConfigured(*place, self._hash(model), opened.waiting))
        self._flush()
        if self._states is not None:
            self._restore(self._states, opened.number, opened.asked)

    def reply_judged(self, server_round: int, kind: str, verdict: Admitted | Refusal) -> None:
        """Keep a verdict, to record it together with the others of the round."""
        place = (server_round, kind, verdict.node, self._partition(verdict.node))
        if isinstance(verdict, Refusal):
            self._put(ReplyRefused(*place, verdict.reason.name, verdict.detail, verdict.count))
            return
        update = dict(zip(verdict.names, verdict.arrays, strict=True))
        sha256 = model_sha256(update) if update and self._hash_updates else ""
        own = {name: update[name] for name in learnt(update)}
        self._put(ReplyAdmitted(*place, verdict.num_examples, sha256, verdict.remark, self._prints.of(own)))
        if update and self._keep_updates:
            self._flush()
            self._opened().keep_update(server_round, verdict.node, update)

    def reply_abstained(self, server_round: int, kind: str, node: int) -> None:
        """Keep an abstention, to record it together with the verdicts of the round."""
        self._put(ReplyAbstained(server_round, kind, node, self._partition(node)))

    def node_rested(self, server_round: int, kind: str, rest: Rest) -> None:
        """Keep a rest that begins, to record it with its round."""
        place = (server_round, rest.node, self._partition(rest.node))
        self._waiting.append(Rested(*place, rest.failures, rest.until, kind))

    def node_quarantined(self, server_round: int, kind: str, node: int, refusals: int) -> None:
        """Record that a node is put into quarantine."""
        self._waiting.append(Quarantined(server_round, node, self._partition(node), refusals, kind))

    def node_banned(self, node: int, reason: str) -> None:
        """Record the ban; if no run is in progress, do so when the next one starts."""
        self._waiting.append(Banned(self._round, node, reason))

    def node_released(self, node: int, reason: str) -> None:
        """Record the release; if no run is in progress, do so when the next one starts."""
        self._waiting.append(Released(self._round, node, self._partition(node), reason))

    def attended(self) -> None:
        """Carry out the orders that operators have left in the folder."""
        opening = self._opening
        if self._run is None or opening is None:
            return
        left = {*self._left}
        for path, order in pending(self.folder, self._left):
            if isinstance(order, Banned):
                opening.ban(order.node, order.reason)
            elif isinstance(order, Released):
                if not opening.release(order.node, order.reason):  # the order is on record, though it changes nothing
                    self.node_released(order.node, order.reason)
            else:
                carry_out(self.folder, self._run.log, dataclasses.replace(order, round=self._round))
            self._flush()
            try:
                path.unlink(missing_ok=True)
            except OSError:
                self._left.add(path)  # it is carried out, and not once more
        for path in sorted(self._left - left):
            log.warning("Audit: %s cannot be moved or deleted, and is passed over from now on", path)

    def aggregated(self, aggregation: Aggregation) -> None:
        """Record how the rule aggregated the replies, and how the model changed."""
        record, self._resting = aggregation.record, None
        before = self._hash(aggregation.before)
        if torch.get_num_threads() > 1:
            with ThreadPoolExecutor(1) as pool:
                hashed = pool.submit(self._hash, aggregation.after)
                measured = _measured(aggregation)
            after = hashed.result()
        else:
            measured, after = _measured(aggregation), self._hash(aggregation.after)
        known = (record.admitted, record.partitions, record.weights)
        self._put(Aggregated(record.round, record.outcome.name, record.sentence, before, after, *known, **measured))
        self._flush()
        self._opened().delete_old_updates(record.round)

    def measured(self, server_round: int, quantity: str, value: float | None, method: str) -> None:
        """Record a quantity of the run."""
        self._put(Measured(server_round, quantity, value, method))

    def suspected(self, server_round: int, node: int, sign: str, detail: str) -> None:
        """Keep a suspicion, to record it with the others of the round."""
        self._waiting.append(Suspected(server_round, node, sign, detail))

    def evaluated(self, record: RoundRecord, metrics: MetricRecord | None) -> None:
        """Record those of the clients' metrics that are numbers."""
        self._put_metrics(record.round, "clients", metrics or {})

    def server_evaluated(self, server_round: int, metrics: MetricRecord) -> None:
        """Record the server's metrics."""
        self._put_metrics(server_round, "server", metrics)

    def _put_metrics(self, server_round: int, source: str, metrics: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in metrics.items() if not isinstance(value, list)}
        self._waiting.append(Evaluated(server_round, source, numbers))
        self._flush()


def _check_arguments(
    folder: object,
    every: object,
    keep: object,
    resume: object,
    config: Mapping[str, Any] | None,
    statements: Mapping[str, str] | None,
    key: object,
) -> None:
    """Raise if an argument is of the wrong type, before any is used."""
    if not isinstance(folder, str | Path):
        raise ConfigurationError(f"audit: the run's folder must be a path; got {folder!r}")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ConfigurationError(f"audit: {folder} is a file; name the run's folder, which need not exist")
    check_integer("audit", "every", every, 1)
    if keep is not None:
        check_integer("audit", "keep", keep, 1)
    if not isinstance(resume, bool) and not (isinstance(resume, int) and resume >= 0):
        raise ConfigurationError(f"audit: resume must be True, False or a round >= 0; got resume={resume!r}")
    for argument, given in (("config", config), ("statements", statements)):
        if given is not None and not isinstance(given, Mapping):
            raise ConfigurationError(f"audit: {argument} must be a mapping; got {given!r:.100}")
    for name, value in (config or {}).items():
        if not isinstance(value, Scalar) or not isinstance(name, str):
            raise ConfigurationError(f"audit: config holds scalars by name; got {name!r}: {value!r:.100}")
    check_statements(statements or ())
    for name, text in (statements or {}).items():
        if not isinstance(text, str):
            raise ConfigurationError(f"audit: a statement is a text; got {name}={text!r:.100}")
    if key is not None and not (isinstance(key, bytes) and len(key) >= LEAST_KEY):
        what = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise ConfigurationError(f"audit: key must be at least {LEAST_KEY} bytes; got {what}")


HeadHook: TypeAlias = Callable[[Mapping[str, Any]], object]


def _hook(heads: HeadHook | Path | str | None, folder: Path) -> HeadHook | None:
    """Return the function that receives heads; for a file, one that adds a line to it."""
    if heads is None or callable(heads):
        return heads
    if not isinstance(heads, str | Path):
        raise ConfigurationError(f"audit: heads must be a function or the path of a file; got {heads!r:.100}")
    path = Path(heads)
    if not path.parent.is_dir() or path.is_dir() or folder.resolve() in path.resolve().parents:
        raise ConfigurationError(
            f"audit: heads must name a file in a folder that exists, and outside the run's folder; got {path}"
        )

    def add(head: Mapping[str, Any]) -> None:
        descriptor = open_to_append(path)
        try:
            torn = False
            if os.fstat(descriptor).st_size:
                os.lseek(descriptor, -1, os.SEEK_END)
                torn = os.read(descriptor, 1) != b"\n"  # by a power failure
            os.write(descriptor, (b"\n" if torn else b"") + json.dumps(head).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    return add


def observing(observers: Sequence[Observer], audit: Audit | Path | str | None) -> tuple[Observer, ...]:
    """Return the observers of a guard, the audit first, so that it records before other observers act."""
    check_observers(observers)
    if audit is None:
        return tuple(observers)
    return audit if isinstance(audit, Audit) else Audit(audit), *observers


def _measured(aggregation: Aggregation) -> dict[str, Any]:
    """Return distances, angles and length, if there is an aggregate."""
    point = _point(aggregation)
    if point is None or aggregation.rows is None:
        return {}
    return dict(zip(("distances", "angles", "length"), distances_and_angles(aggregation.rows, point), strict=True))


def _point(aggregation: Aggregation) -> torch.Tensor | None:
    """Return the point from which the updates are measured: the aggregate, or the change of the model."""
    if aggregation.record.outcome is Outcome.INFEASIBLE or aggregation.rows is None:
        return None
    if aggregation.aggregate is not None:
        return aggregation.aggregate.value
    before, after = decode_record(aggregation.before), decode_record(aggregation.after)
    names = [layer.name for layer in aggregation.rows.layout or ()]
    return torch.from_numpy(np.concatenate([(after[name] - before[name]).ravel() for name in names]))


# -- what clients keep ------------------------------------------------------------------------------


def _by_node(missing: Mapping[int, str]) -> dict[str, str]:
    return {str(node): why for node, why in missing.items()}


def _summary(missing: Mapping[int, str]) -> tuple[str, str]:
    """Return the number of nodes and the reason of the first one."""
    node, why = next(iter(missing.items()))
    return f"{len(missing)} nodes", f"node {node}: {why}"
