"""The events of a run: one frozen dataclass per kind of event, and its JSON form.

Fields hold JSON values of the declared types, which are checked when an event is written and read. A number that is not
finite becomes null. ``docs/audit-log.md`` describes every kind and what it discloses.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Self, TypeAlias

from flwr_robust.errors import AuditError, UnknownNameError

__all__ = [
    "SAMPLING_RISK",
    "SCHEMA",
    "STATEMENTS",
    "Aggregated",
    "Banned",
    "CheckpointWritten",
    "CheckpointsDeleted",
    "ClientStatesKept",
    "ClientStatesRestored",
    "Evaluated",
    "Event",
    "IncidentReported",
    "LogReopened",
    "Measured",
    "Quarantined",
    "RedTeamed",
    "Released",
    "Replayed",
    "ReplyAbstained",
    "ReplyAdmitted",
    "ReplyRefused",
    "Rested",
    "Resumed",
    "RolledBack",
    "RoundConfigured",
    "RoundRemembered",
    "RunEnded",
    "RunStarted",
    "Suspected",
    "UpdateKept",
    "UpdatesDeleted",
    "check_statements",
    "kinds",
]

SCHEMA = 1
"""Version of the events and of the log's lines; it grows when a field changes its meaning or is removed."""

STATEMENTS = {
    "sampling": "how clients are chosen for a round",
    "data_assumption": "what is assumed of the clients' data",
    "attack_model": "which attacks the run is meant to bear",
    "attacker_goal": "availability breakdown, integrity violation or privacy compromise",
    "attacker_knowledge": "white-box, gray-box or black-box",
    "attacker_capability": "such as training data control, model control or query access",
    "stage_of_learning": "training or deployment",
    "mitigation": "what is done against these attacks beside the rule",
    "authentication": "how clients prove who they are",
    "node_authentication": "whether the SuperLink lets in nodes with a registered key only",
    "tls": "how connections are encrypted",
    "update_bounds": "what bounds a single update",
    "sybil_resistance": "what stops one party from running many clients",
    "secure_aggregation": "whether the server sees single updates",
    "owner": "who answers for the run",
    "legal_basis": "on which legal basis the clients' data are used",
    "notice": "what the persons concerned were told, and when",
}
"""Facts that only the operator knows: the keys of `RunStarted.statements`, with their meaning."""

SAMPLING_RISK = "sampling risk"
"""The `Measured.quantity` for the probability that more than f of the clients asked in a round are faulty."""


def check_statements(names: Iterable[str]) -> None:
    """Raise `UnknownNameError` if a name is not a key of `STATEMENTS`."""
    for name in names:
        if name not in STATEMENTS:
            raise UnknownNameError("statement", name, STATEMENTS)


Scalar: TypeAlias = str | int | float | bool | None

_KINDS: dict[str, type[Event]] = {}


@dataclass(frozen=True)
class Event:
    """Base of all events; each subclass names its ``kind``."""

    kind: ClassVar[str] = ""

    def __init_subclass__(cls, *, kind: str) -> None:
        cls.kind = kind
        _KINDS[kind] = cls

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as JSON values.

        Raises
        ------
        AuditError
            If a field is not of its declared type.
        """
        fields = {name: _plain(getattr(self, name)) for name in _hints_of(self.kind)}
        type(self).from_fields(fields)
        return fields

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Make an event from JSON values of its fields.

        Raises
        ------
        AuditError
            If a field is missing, unknown, or not of its declared type.
        """
        hints = _hints_of(cls.kind)
        if odd := sorted(set(hints) ^ set(fields)):
            raise AuditError(f"{cls.kind}: fields {', '.join(odd)} are missing or unknown in schema {SCHEMA}")
        for name, value in fields.items():
            if not _is(value, hints[name]):
                raise AuditError(f"{cls.kind}: {name} must be of type {hints[name]}; got {value!r:.100}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


@dataclass(frozen=True)
class RunStarted(Event, kind="run_started"):
    """A run has started.

    Attributes
    ----------
    config, config_sha256
        The complete configuration, and its hash.
    rule : str
        The defence string; empty if the rule is not one of this project.
    strategy : str
        The class of the strategy.
    software : mapping
        Versions by package.
    statements : mapping
        The operator's statements; see `STATEMENTS`.
    keeps_updates : bool
        Whether raw updates are kept.
    run : str
        The run's id: 128 random bits, in hexadecimal.
    commit : str
        The commit of this package's source; empty if unknown.
    public_key : str
        The Ed25519 key with which the log's heads are signed, in hexadecimal; empty if they are not signed.
    registered_nodes : bool, optional
        True if Flower names, for every node connected at the start, the account that registered it. None if it does not
        tell, as for SuperLinks without accounts.
    seed_commitment : str
        The commitment to the secret seeds of the rounds; empty if the seed is not secret.
    """

    config: Mapping[str, Scalar]
    config_sha256: str
    rule: str = ""
    strategy: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    statements: Mapping[str, str] = field(default_factory=dict)
    keeps_updates: bool = False
    run: str = ""
    commit: str = ""
    public_key: str = ""
    registered_nodes: bool | None = None
    seed_commitment: str = ""


@dataclass(frozen=True)
class LogReopened(Event, kind="log_reopened"):
    """A log whose writer was interrupted has been opened again and repaired.

    Attributes
    ----------
    torn_bytes, torn_sha256
        Length and hash of the incomplete line before this one; 0 and empty if there is none.
    unsealed : int
        Number of complete lines that the head file had only announced.
    """

    torn_bytes: int = 0
    torn_sha256: str = ""
    unsealed: int = 0


@dataclass(frozen=True)
class RoundConfigured(Event, kind="round_configured"):
    """Clients are asked in a round.

    Attributes
    ----------
    round, phase
        Flower's round, and ``train`` or ``evaluate``.
    asked : tuple of int
        The nodes that are asked.
    available : int, optional
        How many nodes were available.
    left_out : tuple of int
        Nodes that are banned or in quarantine, which are not asked.
    model : str
        Hash of the model that is sent; empty if unknown.
    waiting : tuple of int
        Nodes that are not asked for a while, without blame: they failed to answer several times, or have just joined.
    """

    round: int
    phase: str
    asked: tuple[int, ...]
    available: int | None = None
    left_out: tuple[int, ...] = ()
    model: str = ""
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReplyAdmitted(Event, kind="reply_admitted"):
    """A reply was admitted: it passed the server's check and is used.

    Attributes
    ----------
    round, phase, node, partition
        The round and phase of the reply, and its sender.
    num_examples : float, optional
        The number of examples that the client states.
    update_sha256 : str
        Hash of the update, if the operator asked for it.
    remark : str
        What admission cast to the model's type, or left out because it was not finite; usually empty.
    fingerprint : str
        Hash of a sample of the update, by which identical updates are found; empty if it has none (`Fingerprints`).
    """

    round: int
    phase: str
    node: int
    partition: int | None = None
    num_examples: float | None = None
    update_sha256: str = ""
    remark: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class ReplyAbstained(Event, kind="reply_abstained"):
    """A client abstained: it answered without arrays, for example because it holds none of the classes asked for.

    Attributes
    ----------
    round, phase, node, partition
        The round and phase of the reply, and its sender.
    """

    round: int
    phase: str
    node: int
    partition: int | None = None


@dataclass(frozen=True)
class ReplyRefused(Event, kind="reply_refused"):
    """A reply was refused.

    Attributes
    ----------
    round, phase, node, partition
        The round and phase of the reply, and its sender.
    reason : str
        The name of the reason; admission defines the reasons.
    detail : str
        What was found.
    count : int
        How often the node was refused for this reason in the round; ``detail`` is that of the first time.
    """

    round: int
    phase: str
    node: int
    partition: int | None
    reason: str
    detail: str = ""
    count: int = 1


@dataclass(frozen=True)
class Aggregated(Event, kind="aggregated"):
    """A round of training has ended, with or without an aggregate.

    Attributes
    ----------
    round : int
        Flower's round.
    outcome, sentence
        Name of the `Outcome`, and why the round was infeasible.
    model_before, model_after
        Hashes of the model that was sent and of the next model.
    nodes, partitions
        The aggregated replies, in order.
    weights, distances, angles
        The rule's weight, the distance and the angle in degrees to the aggregate, for each reply; empty if unknown.
    length : float, optional
        The norm of the aggregate.
    """

    round: int
    outcome: str
    sentence: str
    model_before: str
    model_after: str
    nodes: tuple[int, ...] = ()
    partitions: tuple[int | None, ...] = ()
    weights: tuple[float | None, ...] = ()
    distances: tuple[float | None, ...] = ()
    angles: tuple[float | None, ...] = ()
    length: float | None = None


@dataclass(frozen=True)
class Evaluated(Event, kind="evaluated"):
    """The global model was evaluated.

    Attributes
    ----------
    round : int
        Flower's round.
    source : str
        ``server``, or ``clients`` for metrics that were aggregated from replies.
    metrics : mapping
        The metrics by name.
    """

    round: int
    source: str
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class RoundRemembered(Event, kind="round_remembered"):
    """A round and its evaluations are over; a resumed run reads its history from these lines.

    Attributes
    ----------
    round : int
        Flower's round.
    values : mapping
        What the run has added to its history since the round before: the records of rounds, the metrics that its result
        shows, and the records of a simulated attack.
    """

    round: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Measured(Event, kind="measured"):
    """A quantity of the run was measured, such as xi, the difference of the clients' gradients.

    Attributes
    ----------
    round : int
        Flower's round.
    quantity, value, method
        The name of the quantity, its value, and how it was measured. The card states ``SAMPLING_RISK`` by itself.
    """

    round: int
    quantity: str
    value: float | None
    method: str


@dataclass(frozen=True)
class RedTeamed(Event, kind="red_teamed"):
    """An attack against the defence was run as a test.

    Attributes
    ----------
    attack : str
        The attack's text.
    attackers, clients : int
        The number of attackers, and of all clients.
    metric : str
        The name of the metric.
    honest, attacked : float
        The metric's value without and with the attack.
    source : str
        The place of the run that shows this.
    """

    attack: str
    attackers: int
    clients: int
    metric: str
    honest: float | None
    attacked: float | None
    source: str = ""


@dataclass(frozen=True)
class UpdateKept(Event, kind="update_kept"):
    """A raw update was written to a file, because the operator asked for it.

    Attributes
    ----------
    round, node, file, sha256
        The round and sender of the update, its file in the run's folder, and the file's hash.
    size : int
        The file's size in bytes.
    """

    round: int
    node: int
    file: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Quarantined(Event, kind="quarantined"):
    """A client is put into quarantine: it is no longer sampled.

    Attributes
    ----------
    round, node, partition
        The round of the change, and the client.
    refusals : int
        How many of its replies have been refused.
    phase : str
        ``train`` or ``evaluate``: the replies that were refused, for which the client is no longer sampled.
    """

    round: int
    node: int
    partition: int | None
    refusals: int
    phase: str = "train"


@dataclass(frozen=True)
class Banned(Event, kind="banned"):
    """An operator has banned a client: it is not asked, and its replies are refused, until it is released.

    Attributes
    ----------
    round, node
        The round of the change, and the client.
    reason : str
        The operator's reason.
    """

    round: int
    node: int
    reason: str = ""


@dataclass(frozen=True)
class UpdatesDeleted(Event, kind="updates_deleted"):
    """Raw updates that were kept are deleted, right after this line is written.

    Attributes
    ----------
    round : int
        The round of the change.
    rounds, nodes : tuple of int
        The updates: those that these clients sent in these rounds. Empty stands for all rounds, or all clients.
    reason : str
        Why.
    """

    round: int
    rounds: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class IncidentReported(Event, kind="incident_reported"):
    """A person has asked what is on record of a client (`flwr_robust.audit.incident`).

    Attributes
    ----------
    round, node
        The round of the question, and the client.
    rounds : tuple of int
        The rounds that count in which the client has a part in the model.
    weight : float
        The sum of its weights in these rounds.
    displacement : float, optional
        How far it moved the model.
    exact : bool
        Whether the displacement is that of its updates, and not a bound.
    """

    round: int
    node: int
    rounds: tuple[int, ...]
    weight: float
    displacement: float | None
    exact: bool


@dataclass(frozen=True)
class Replayed(Event, kind="replayed"):
    """A person has aggregated kept updates again, and compared the models with those on record.

    Attributes
    ----------
    round : int
        The round of the replay.
    equal, different, missing : tuple of int
        The rounds whose model is the same to the bit, another one, or could not be made again.
    without : int, optional
        The client that was left out in a second replay.
    distance : float, optional
        The norm of the difference that the client makes to the changes of the model in these rounds.
    """

    round: int
    equal: tuple[int, ...]
    different: tuple[int, ...]
    missing: tuple[int, ...]
    without: int | None = None
    distance: float | None = None


@dataclass(frozen=True)
class Rested(Event, kind="rested"):
    """A client failed to answer too often: it is not asked for some rounds, without blame.

    Attributes
    ----------
    round, node, partition
        The round of the change, and the client.
    failures : int
        How many times it failed, less the failures that its answers took back.
    until : int
        The last round in which it is not asked.
    phase : str
        ``train`` or ``evaluate``: what it is not asked for.
    """

    round: int
    node: int
    partition: int | None
    failures: int
    until: int
    phase: str = "train"


@dataclass(frozen=True)
class Released(Event, kind="released"):
    """A client is released from quarantine, or its ban is lifted: it may be sampled again.

    Attributes
    ----------
    round, node, partition
        The round of the change, and the client.
    reason : str
        Why or by whom it was released.
    """

    round: int
    node: int
    partition: int | None
    reason: str = ""


@dataclass(frozen=True)
class Suspected(Event, kind="suspected"):
    """A client may attack, although nothing was refused; observers were told.

    Attributes
    ----------
    round, node
        The round of training after which the sign was found, and the client.
    sign : str
        The name of the sign; see `flwr_robust.audit.signs`.
    detail : str
        What was found.
    """

    round: int
    node: int
    sign: str
    detail: str = ""


@dataclass(frozen=True)
class CheckpointWritten(Event, kind="checkpoint_written"):
    """A checkpoint is complete on the disk.

    Attributes
    ----------
    round, folder
        The round of the checkpoint, and its path in the run's folder.
    sha256 : str
        Hash of its SHA256SUMS, which covers all its files.
    size : int
        The size of all its files together, in bytes.
    """

    round: int
    folder: str
    sha256: str
    size: int


@dataclass(frozen=True)
class CheckpointsDeleted(Event, kind="checkpoints_deleted"):
    """Old checkpoints are deleted, right after this line is written.

    Attributes
    ----------
    rounds : tuple of int
        The rounds of the checkpoints.
    reason : str
        Why.
    """

    rounds: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True)
class ClientStatesKept(Event, kind="client_states_kept"):
    """Clients have sent their states, which they keep from round to round, for the next checkpoint.

    Attributes
    ----------
    round : int
        The checkpoint's round.
    clients : int
        The number of clients whose state is in the checkpoint, whether sent now or before.
    missing : mapping
        The reasons why expected states are missing, by node.
    """

    round: int
    clients: int
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientStatesRestored(Event, kind="client_states_restored"):
    """Clients have received their states back before the run continues.

    Attributes
    ----------
    round : int
        The round for which the clients will be asked.
    nodes : tuple of int
        The nodes that received their state.
    missing : mapping
        The reasons why other nodes start without a state, by node.
    """

    round: int
    nodes: tuple[int, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resumed(Event, kind="resumed"):
    """The run continues from a checkpoint; records of later rounds no longer count.

    Attributes
    ----------
    round : int
        The checkpoint's round; 0 if the run starts from the beginning.
    set_aside : tuple of str
        Folders of later checkpoints.
    seed_commitment : str
        The commitment to new secret seeds, which begin after the round; empty if the run keeps its own.
    """

    round: int
    set_aside: tuple[str, ...] = ()
    seed_commitment: str = ""


@dataclass(frozen=True)
class RolledBack(Event, kind="rolled_back"):
    """An earlier round's model was made current; records of later rounds no longer count.

    Attributes
    ----------
    from_round, to_round
        The former and the new current round.
    reason : str
        Why.
    set_aside : tuple of str
        Folders of the later checkpoints, which are kept.
    """

    from_round: int
    to_round: int
    reason: str = ""
    set_aside: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunEnded(Event, kind="run_ended"):
    """A run has ended.

    Attributes
    ----------
    round : int
        The last round.
    outcome : str
        ``finished``, ``stopped`` or ``failed``.
    sentence : str
        Why the run stopped or failed.
    model : str
        Hash of the final model.
    seed_revealed : str
        The keys of the finished rounds, from which `RevealedSeed` repeats them; empty if the seed is not secret, or the
        run failed and may be continued.
    """

    round: int
    outcome: str
    sentence: str = ""
    model: str = ""
    seed_revealed: str = ""


def kinds() -> dict[str, type[Event]]:
    """Return the kinds of events by name."""
    return dict(_KINDS)


@cache
def _hints_of(kind: str) -> dict[str, Any]:
    """Return the declared type of every field of a kind."""
    hints = typing.get_type_hints(_KINDS[kind])
    return {each.name: hints[each.name] for each in dataclasses.fields(_KINDS[kind])}


def _plain(value: Any) -> Any:
    """Return a value for JSON: numpy's numbers become Python's, tuples become lists, NaN and Inf become null."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is(value: Any, hint: Any) -> bool:
    """Say whether a value read from JSON is of a declared type."""
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, each) for each in arguments)
    if origin is tuple:
        return isinstance(value, list) and all(_is(each, arguments[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(isinstance(k, str) and _is(v, arguments[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
