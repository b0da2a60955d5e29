"""Admission: the check that decides whether the server uses a client's reply.

A reply that fails is refused with a reason; no reply raises an exception. Each reply is compared with what the server
sent, never with other replies. Cheap checks come first. They compare sender and message, count records, names and
numbers, and compare the headers with the bytes that arrived. The numbers of an array are read only if its name and
shape are those that were sent, and its type fits. They are read once and not copied, so a check needs almost no memory.

Not every misfit is a fault. A float16, float32 or float64 array may have another of these types than the one sent. It
is then cast to the type sent, and must be finite after the cast. A reply with 0 examples is an abstention. A metric
that is not finite is left out of its reply.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from flwr_robust.errors import ConfigurationError, check_number
from flwr_robust.flower._compat import fill
from flwr_robust.flower.expected import Expected
from flwr_robust.flower.metrics import MOST_NUMBERS, PARTITION, levelled
from flwr_robust.flower.wire import PayloadError, decode, is_finite, plain, records_of
from flwr_robust.printing import printable

__all__ = [
    "MOST_EXAMPLES",
    "Admitted",
    "Reason",
    "Refusal",
    "Terms",
    "admit",
    "answers_to",
    "check_names",
    "rebuilt",
    "short",
]

_MOST_STRANGERS = 100  # refusals of nodes that were not asked, in one round
_LONGEST_NAME = 256  # of a metric
MOST_EXAMPLES = 2.0**53  # above this, a float no longer holds every integer


class Reason(Enum):
    """The reason why a reply is refused; the value is the phrase that users read."""

    ERROR = "the client answered with an error"
    NOT_ASKED = "the node was not asked"
    DUPLICATE = "the node has answered already"
    KIND = "the message is of another kind than the one it answers"
    RECORDS = "a reply holds exactly one MetricRecord, and in training one ArrayRecord"
    NAMES = "the arrays are not those of the model that was sent"
    PAYLOAD = "the bytes of an array are malformed"
    SHAPE = "an array has another shape than the one sent"
    DTYPE = "an array has another type than the one sent"
    NOT_FINITE = "an array holds NaN or Inf"
    NUM_EXAMPLES = "num-examples is no finite number >= 0, or above the cap"
    METRICS = "a stated metric is missing, or there are too many metrics"
    UNREADABLE = "reading the reply failed"
    BANNED = "an operator has banned the node"

    @property
    def blames(self) -> bool:
        """Say whether the named node certainly sent the refused reply itself, and that its content is at fault.

        The network may have caused an error. A message that answers no question may carry another node's name.
        """
        return self not in (Reason.ERROR, Reason.NOT_ASKED, Reason.DUPLICATE, Reason.BANNED)


@dataclass(frozen=True)
class Refusal:
    """A reply that was not admitted.

    Attributes
    ----------
    node : int
        Flower's id of the node, if known.
    reason : Reason
        Why.
    detail : str
        What was found, as `short` returns it.
    count : int
        How many replies of the node were refused for this reason in the round; ``detail`` is that of the first.
    """

    node: int
    reason: Reason
    detail: str = ""
    count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", short(self.detail))


@dataclass(frozen=True)
class Admitted:
    """A reply that was admitted.

    Attributes
    ----------
    node : int
        Flower's id of the node.
    message : Message
        What it sent.
    arrays : tuple of arrays
        In the expected order; empty in evaluation, and if the node abstains.
    num_examples : float
        The number of examples that the node states; finite, at most ``max_examples``, and above 0 unless it abstains.
    partition : int or None
        The partition (the node's share of the data, by number) that the node states.
    names : tuple of str
        The names of the arrays.
    abstains : bool
        Whether the node abstains: it answers, but has no examples, or no arrays for this round.
    metrics : MetricRecord
        Its metrics, without those that are not finite.
    remark : str
        What was mended or left out, on one line; usually empty.
    """

    node: int
    message: Message
    arrays: tuple[NDArray[Any], ...]
    num_examples: float
    partition: int | None
    names: tuple[str, ...] = ()
    abstains: bool = False
    metrics: MetricRecord = field(default_factory=MetricRecord)
    remark: str = ""

    @property
    def content(self) -> RecordDict:
        """The records it sent."""
        return self.message.content


def check_names(option: str, names: object) -> None:
    """Raise unless an option of a strategy is a tuple of names, or None."""
    if names is not None and not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
        raise ConfigurationError(
            f'strategy: {option} must be a tuple of names such as ("a", "b"); got {option}={names!r}'
        )


@dataclass(frozen=True)
class Terms:
    """What replies must hold in addition to the model's arrays.

    Attributes
    ----------
    weighted_by_key : str
        Name of the metric that holds the number of examples.
    max_examples : float
        The largest number of examples that is accepted, > 0.
    metrics : tuple of str, optional
        Metrics that every reply must hold, each a single number. When not given, any metrics are allowed.
    records : (str, str), optional
        The names under which a reply must hold its ArrayRecord and its MetricRecord. When not given, any names are
        allowed.

    Raises
    ------
    ConfigurationError
        If a value is outside its bounds.
    """

    weighted_by_key: str = "num-examples"
    max_examples: float = MOST_EXAMPLES
    metrics: tuple[str, ...] | None = None
    records: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        check_number("strategy", "max_examples", self.max_examples, above=0)
        check_names("metrics", self.metrics)
        check_names("records", self.records)
        if self.records is not None and len(set(self.records)) != 2:
            raise ConfigurationError(
                f"strategy: records must be two names, of the ArrayRecord and of the MetricRecord; "
                f"got records={self.records!r}"
            )


def admit(
    replies: Iterable[Message], messages: Sequence[Message], terms: Terms, expected: Expected | None
) -> tuple[list[Admitted], list[Refusal]]:
    """Judge every reply.

    Parameters
    ----------
    replies : iterable of Message
        The replies in the order of arrival; read once.
    messages : sequence of Message
        The messages that were sent. A reply belongs to the node that received the message it answers. If the Grid gives
        messages no ids, it belongs to the node that it names as its source.
    terms : Terms
        What replies must hold in addition to the model's arrays.
    expected : Expected or None
        What training replies must match; None in evaluation.

    Returns
    -------
    admitted : list of Admitted
    refused : list of Refusal
        One for every node and reason, in the order of the first such reply. So a node that answers thousands of times
        does not lengthen the records. Nodes that were not asked are told apart up to a hundred of them.
    """
    admitted: list[Admitted] = []
    refused: dict[tuple[int, Reason], Refusal] = {}
    counts: Counter[tuple[int, Reason]] = Counter()
    kinds = {message.metadata.dst_node_id: message.metadata.message_type for message in messages}
    asked = _by_id(messages)
    waiting = set(kinds)
    for message in replies:
        try:
            verdict = _identify(message, asked, kinds, waiting) or _judge(message, kinds, terms, expected)
        except Exception as error:  # what a client sends must never stop a round, not even through an unforeseen error
            node = message.metadata.src_node_id
            verdict = Refusal(node, Reason.UNREADABLE, short(f"{type(error).__name__}: {error}"))
        if isinstance(verdict, Admitted):
            admitted.append(verdict)
            continue
        key = verdict.node, verdict.reason
        if key not in refused and verdict.node not in kinds and len(refused) >= len(kinds) + _MOST_STRANGERS:
            key = next(each for each in reversed(refused) if each[0] not in kinds)
        refused.setdefault(key, verdict)
        counts[key] += 1
    return admitted, [replace(refusal, count=counts[key]) for key, refusal in refused.items()]


def _by_id(messages: Iterable[Message]) -> dict[str, int]:
    """Return the receivers of messages by message id; empty if the Grid does not give the ids."""
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    return {} if "" in asked else asked


def answers_to(messages: Sequence[Message], replies: Iterable[Message]) -> Iterator[tuple[int, Message]]:
    """Yield each reply that comes from a node that was asked, with that node; skip all others."""
    asked, nodes = _by_id(messages), {message.metadata.dst_node_id for message in messages}
    for reply in replies:
        node = reply.metadata.src_node_id
        if asked.get(reply.metadata.reply_to_message_id) == node if asked else node in nodes:
            yield node, reply


def _identify(
    message: Message, asked: Mapping[str, int], kinds: Mapping[int, str], waiting: set[int]
) -> Refusal | None:
    """Refuse errors and unexpected replies; otherwise return None and mark the node as answered."""
    node, answers = message.metadata.src_node_id, message.metadata.reply_to_message_id
    if message.has_error():  # Flower may answer for a dead node, with itself as the source
        return Refusal(asked.get(answers, node), Reason.ERROR, short(str(message.error.reason or "")))
    if node not in kinds:
        return Refusal(node, Reason.NOT_ASKED)
    if asked and asked.get(answers) != node:
        return Refusal(node, Reason.NOT_ASKED, "it answers no message that was sent to it")
    if node not in waiting:
        return Refusal(node, Reason.DUPLICATE)
    waiting.discard(node)
    return None


def _finite(value: object) -> bool:
    """Say whether a metric is a finite number; an integer too large for a float is not."""
    try:
        return isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:
        return False


def short(text: str) -> str:
    """Return a client's text as one line of at most 200 characters, without terminal control codes."""
    line = " ".join(text[:2000].split())
    return printable(line)[:200]


def _judge(message: Message, kinds: Mapping[int, str], terms: Terms, expected: Expected | None) -> Admitted | Refusal:
    node, kind, content = message.metadata.src_node_id, message.metadata.message_type, message.content
    if kind != kinds[node]:
        return Refusal(node, Reason.KIND, short(f"got {kind}, asked {kinds[node]}"))
    records, found = records_of(content, ArrayRecord), records_of(content, MetricRecord)
    if len(found) != 1 or (expected is not None and len(records) > 1):
        return Refusal(node, Reason.RECORDS, f"got {len(records)} ArrayRecords and {len(found)} MetricRecords")
    if complaint := _complaint(found[0], terms):
        return Refusal(node, *complaint)
    number: Any = found[0][terms.weighted_by_key]
    abstains = not number or (expected is not None and expected.may_abstain and not records)
    if expected is not None and not records and not abstains:
        return Refusal(node, Reason.RECORDS, "got no ArrayRecord")
    if terms.records is not None:
        arrays_name, metrics_name = terms.records
        misplaced = expected is not None and records and content.get(arrays_name) is not records[0]
        if content.get(metrics_name) is not found[0] or misplaced:
            return Refusal(node, Reason.RECORDS, "they stand under other names than stated")
    metrics, left_out = _finite_metrics(found[0])
    arrays: dict[str, NDArray[Any]] = {}
    remarks = [f"not finite: {', '.join(islice(map(short, left_out), 5))}"] if left_out else []
    if expected is not None and not abstains:
        read = _arrays(node, records[0], expected)
        if isinstance(read, Refusal):
            return read
        arrays, cast = read
        remarks += [f"cast {cast}"] if cast else []
    partition: Any = metrics.get(PARTITION)
    place = partition if type(partition) is int else None  # True is an int, too
    return Admitted(
        node,
        message,
        tuple(arrays.values()),
        float(number),
        place,
        tuple(arrays),
        abstains,
        metrics,
        short("; ".join(remarks)),
    )


def _complaint(metrics: MetricRecord, terms: Terms) -> tuple[Reason, str] | None:
    """Return what is wrong with the metrics of a reply."""
    number = metrics.get(terms.weighted_by_key)
    if isinstance(number, list | None) or not _finite(number):
        return Reason.NUM_EXAMPLES, "not finite"
    if not 0 <= number <= terms.max_examples:
        return Reason.NUM_EXAMPLES, short(f"got {terms.weighted_by_key}={number!r}")
    numbers = len(metrics)
    for name, value in metrics.items():
        numbers += len(value) if isinstance(value, list) else 0
        if numbers > MOST_NUMBERS or len(name) > _LONGEST_NAME:
            return Reason.METRICS, f"more than {MOST_NUMBERS} numbers, or a name of more than {_LONGEST_NAME} letters"
    for name in terms.metrics or ():
        if isinstance(metrics.get(name), list | None):
            return Reason.METRICS, f"{short(name)} is no number, or missing"
    return None


def _finite_metrics(metrics: MetricRecord) -> tuple[MetricRecord, list[str]]:
    """Return the metrics that are finite, and the names of the others."""
    left_out = [
        name
        for name, value in metrics.items()
        if not all(map(_finite, value) if isinstance(value, list) else (_finite(value),))
    ]
    if not left_out:
        return metrics, []
    dropped = set(left_out)
    return fill(MetricRecord(), {name: value for name, value in metrics.items() if name not in dropped}), left_out


def _arrays(node: int, record: ArrayRecord, expected: Expected) -> tuple[dict[str, NDArray[Any]], str] | Refusal:
    """Return the arrays of a reply in the model's types, and which types were cast."""
    demanded = expected.demanded(record.keys())
    if record.keys() != demanded.keys() or not demanded:
        missing = list(islice((name for name in demanded if name not in record), 5))
        extra = list(islice((short(name) for name in record if name not in demanded), 5))
        return Refusal(node, Reason.NAMES, short(f"missing {missing}, not sent {extra}"))
    arrays: dict[str, NDArray[Any]] = {}
    cast: dict[str, None] = {}
    for name, model in demanded.items():
        try:
            values = decode(record[name])
        except PayloadError as error:
            return Refusal(node, Reason.PAYLOAD, f"{name}: {short(str(error))}")
        if values.shape != model.shape:
            return Refusal(node, Reason.SHAPE, f"{name}: got {values.shape}, sent {model.shape}")
        came = values.dtype
        if came != model.dtype:
            if not (_is_float(came) and _is_float(model.dtype)):
                return Refusal(node, Reason.DTYPE, f"{name}: got {came}, sent {model.dtype}")
            with np.errstate(all="ignore"):  # what overflows becomes infinite, which the next check refuses
                values = values.astype(model.dtype)
            cast[f"{came} to {model.dtype}"] = None
        if values.dtype.kind == "f" and not is_finite(values):
            how = "" if came == model.dtype else f", cast from {came} to {model.dtype}"
            return Refusal(node, Reason.NOT_FINITE, f"{name}{how}")
        arrays[name] = values
    return arrays, ", ".join(cast)


def _is_float(dtype: np.dtype[Any]) -> bool:
    """Say whether a type is float16, float32 or float64 in this machine's byte order."""
    return dtype.kind == "f" and dtype.itemsize <= 8 and dtype.isnative


def rebuilt(
    admitted: Sequence[Admitted], terms: Terms, expected: Expected | None, clamp: float | None
) -> list[RecordDict]:
    """Return the admitted replies as records that Flower's own functions can read.

    Parameters
    ----------
    admitted : sequence of Admitted
        The replies.
    terms : Terms
        The terms of their admission.
    expected : Expected or None
        What training replies had to match; None in evaluation.
    clamp : float or None
        A number of examples above this multiple of the median is lowered to it.

    Returns
    -------
    list of RecordDict
        Each holds one MetricRecord, with the same metrics in all (see `flwr_robust.flower.metrics`). In training it
        also holds one ArrayRecord, with the model's arrays in their order. Both have the names that most replies use.
        Everything else in a reply is left out.
    """
    even = levelled([reply.metrics for reply in admitted], terms.weighted_by_key, clamp, terms.metrics)
    names = Counter(
        tuple(name for kind in (ArrayRecord, MetricRecord) for name, r in reply.content.items() if isinstance(r, kind))
        for reply in admitted
    )
    common = max(names, key=names.__getitem__, default=())
    if expected is None:
        return [fill(RecordDict(), {common[-1]: record}) for record in even]
    contents = []
    for reply, record in zip(admitted, even, strict=True):
        held = records_of(reply.content, ArrayRecord)[0]
        arrays = {name: plain(held[name], values) for name, values in zip(reply.names, reply.arrays, strict=True)}
        contents.append(fill(RecordDict(), {common[0]: fill(ArrayRecord(), arrays), common[1]: record}))
    return contents
