"""What can happen in a run: one frozen dataclass per kind of event, and its JSON form.

Fields hold what JSON holds, of the declared types; these are checked when an event is written and when it is read. A
number that is not finite becomes null. ``docs/audit-log.md`` describes every kind and what it discloses.
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
    "SCHEMA",
    "STATEMENTS",
    "Aggregated",
    "CheckpointWritten",
    "ClientStatesKept",
    "ClientStatesRestored",
    "Evaluated",
    "Event",
    "LogReopened",
    "Measured",
    "Quarantined",
    "RedTeamed",
    "Released",
    "ReplyAbstained",
    "ReplyAdmitted",
    "ReplyRefused",
    "Resumed",
    "RolledBack",
    "RoundConfigured",
    "RunEnded",
    "RunStarted",
    "UpdateKept",
    "check_statements",
    "kinds",
]

SCHEMA = 1
"""Version of the events and of the line they stand in; it grows when a field changes its meaning or goes."""

STATEMENTS = {
    "sampling": "how clients are chosen for a round",
    "data_assumption": "what is assumed of the clients' data",
    "attack_model": "which attacks the run is meant to bear",
    "authentication": "how clients prove who they are",
    "tls": "how connections are encrypted",
    "update_bounds": "what bounds a single update",
    "sybil_resistance": "what stops one party from running many clients",
    "secure_aggregation": "whether the server sees single updates",
}
"""What only an operator knows: the keys of `RunStarted.statements`, and what each says."""


def check_statements(names: Iterable[str]) -> None:
    """Raise `UnknownNameError` unless all names are keys of `STATEMENTS`."""
    for name in names:
        if name not in STATEMENTS:
            raise UnknownNameError("statement", name, STATEMENTS)


Scalar: TypeAlias = str | int | float | bool | None

_KINDS: dict[str, type[Event]] = {}


@dataclass(frozen=True)
class Event:
    """Something that happened; a subclass names its ``kind``."""

    kind: ClassVar[str] = ""

    def __init_subclass__(cls, *, kind: str) -> None:
        cls.kind = kind
        _KINDS[kind] = cls

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as JSON holds them.

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
        """Make an event from its fields as JSON holds them.

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
    """A run began.

    Attributes
    ----------
    config, config_sha256
        The whole configuration, and its hash.
    rule : str
        The defence string; empty where the rule is not one of this project's.
    strategy : str
        The class that aggregates.
    software : mapping
        Versions by package.
    statements : mapping
        What the operator states; see `STATEMENTS`.
    keeps_updates : bool
        Whether raw updates are kept.
    """

    config: Mapping[str, Scalar]
    config_sha256: str
    rule: str = ""
    strategy: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    statements: Mapping[str, str] = field(default_factory=dict)
    keeps_updates: bool = False


@dataclass(frozen=True)
class LogReopened(Event, kind="log_reopened"):
    """A log whose writer had been stopped was opened again, and something had to be mended.

    Attributes
    ----------
    torn_bytes, torn_sha256
        Length and hash of the torn bytes that stand before this line; 0 and empty if there are none.
    unsealed : int
        Whole lines that the head file had only announced.
    """

    torn_bytes: int = 0
    torn_sha256: str = ""
    unsealed: int = 0


@dataclass(frozen=True)
class RoundConfigured(Event, kind="round_configured"):
    """Clients were asked.

    Attributes
    ----------
    round, phase
        Flower's round, and ``train`` or ``evaluate``.
    asked : tuple of int
        The nodes asked.
    available : int, optional
        How many nodes there were to choose from.
    left_out : tuple of int
        Nodes in quarantine.
    model : str
        Hash of the model sent; empty where it is not known.
    """

    round: int
    phase: str
    asked: tuple[int, ...]
    available: int | None = None
    left_out: tuple[int, ...] = ()
    model: str = ""


@dataclass(frozen=True)
class ReplyAdmitted(Event, kind="reply_admitted"):
    """A reply was let in.

    Attributes
    ----------
    round, phase, node, partition
        Where it belongs, and who sent it.
    num_examples : float, optional
        What the client says it has.
    update_sha256 : str
        Hash of the update, where the operator asked for it.
    """

    round: int
    phase: str
    node: int
    partition: int | None = None
    num_examples: float | None = None
    update_sha256: str = ""


@dataclass(frozen=True)
class ReplyAbstained(Event, kind="reply_abstained"):
    """A client answered that it has nothing to say to what the round asks for, such as classes that it does not hold.

    Attributes
    ----------
    round, phase, node, partition
        Where it belongs, and who sent it.
    """

    round: int
    phase: str
    node: int
    partition: int | None = None


@dataclass(frozen=True)
class ReplyRefused(Event, kind="reply_refused"):
    """A reply was not let in.

    Attributes
    ----------
    round, phase, node, partition
        Where it belongs, and who sent it.
    reason : str
        The name of the reason, as admission enumerates them.
    detail : str
        What was found.
    """

    round: int
    phase: str
    node: int
    partition: int | None
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Aggregated(Event, kind="aggregated"):
    """A round of training was aggregated, or was not.

    Attributes
    ----------
    round : int
        Flower's round.
    outcome, sentence
        Name of the `Outcome`, and why it was infeasible.
    model_before, model_after
        Hashes of the model that was sent and of the one that came out.
    nodes, partitions
        The replies aggregated, in order.
    weights, distances, angles
        What the rule gave to each, how far each lies from the aggregate, and at which angle, in degrees; empty where
        not known.
    length : float, optional
        Norm of the aggregate.
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
        By name.
    """

    round: int
    source: str
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class Measured(Event, kind="measured"):
    """A quantity of the run was measured, such as xi, how much the clients' gradients differ.

    Attributes
    ----------
    round : int
        Flower's round.
    quantity, value, method
        What was measured, what came out, and how it was done.
    """

    round: int
    quantity: str
    value: float | None
    method: str


@dataclass(frozen=True)
class RedTeamed(Event, kind="red_teamed"):
    """An attack was run against the defence on purpose.

    Attributes
    ----------
    attack : str
        The attack's text.
    attackers, clients : int
        How many of how many clients attacked.
    metric : str
        What was measured.
    honest, attacked : float
        Its value without and with the attack.
    source : str
        Where the run that shows it is to be found.
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
        Whose it is, where it lies in the run's folder, and the file's hash.
    """

    round: int
    node: int
    file: str
    sha256: str


@dataclass(frozen=True)
class Quarantined(Event, kind="quarantined"):
    """A client is left out of sampling.

    Attributes
    ----------
    round, node, partition
        Since when, and who.
    refusals : int
        How many of its replies had been refused.
    """

    round: int
    node: int
    partition: int | None
    refusals: int


@dataclass(frozen=True)
class Released(Event, kind="released"):
    """A client is no longer left out.

    Attributes
    ----------
    round, node, partition
        Since when, and who.
    reason : str
        Why, or by whom.
    """

    round: int
    node: int
    partition: int | None
    reason: str = ""


@dataclass(frozen=True)
class CheckpointWritten(Event, kind="checkpoint_written"):
    """A checkpoint is whole on the disk.

    Attributes
    ----------
    round, folder
        What it holds, and where it lies in the run's folder.
    sha256 : str
        Hash of its SHA256SUMS, hence of all its files.
    """

    round: int
    folder: str
    sha256: str


@dataclass(frozen=True)
class ClientStatesKept(Event, kind="client_states_kept"):
    """Clients handed over what they keep from round to round, for a checkpoint that is about to be written.

    Attributes
    ----------
    round : int
        The checkpoint's round.
    clients : int
        Of how many the checkpoint holds what they handed over, now or before.
    missing : mapping
        Why those did not who should have, by node.
    """

    round: int
    clients: int
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientStatesRestored(Event, kind="client_states_restored"):
    """Clients were given back what they had handed over, before the run goes on.

    Attributes
    ----------
    round : int
        The round that they are about to be asked for.
    nodes : tuple of int
        The nodes that were.
    missing : mapping
        Why others begin anew, by node.
    """

    round: int
    nodes: tuple[int, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resumed(Event, kind="resumed"):
    """The run goes on from a checkpoint; what was recorded of later rounds no longer counts.

    Attributes
    ----------
    round : int
        The checkpoint's round; 0: from the start.
    set_aside : tuple of str
        Folders of later checkpoints.
    """

    round: int
    set_aside: tuple[str, ...] = ()


@dataclass(frozen=True)
class RolledBack(Event, kind="rolled_back"):
    """An earlier round's model was made current; what was recorded of later rounds no longer counts.

    Attributes
    ----------
    from_round, to_round
        What was current, and what is.
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
    """A run ended by itself.

    Attributes
    ----------
    round : int
        The last one.
    outcome : str
        ``finished``, ``stopped`` or ``failed``.
    sentence : str
        Why it stopped or failed.
    model : str
        Hash of the final model.
    """

    round: int
    outcome: str
    sentence: str = ""
    model: str = ""


def kinds() -> dict[str, type[Event]]:
    """Return the kinds of events by name."""
    return dict(_KINDS)


@cache
def _hints_of(kind: str) -> dict[str, Any]:
    """Return the declared type of every field of a kind."""
    hints = typing.get_type_hints(_KINDS[kind])
    return {each.name: hints[each.name] for each in dataclasses.fields(_KINDS[kind])}


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it: numpy's numbers become Python's, tuples lists, and NaN and Inf null."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is(value: Any, hint: Any) -> bool:
    """Say whether a value read from JSON is of a declared type."""
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
