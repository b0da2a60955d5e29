"""What a reply must be to be let in; everything else is refused with a reason, and nothing raises.

A reply is judged alone, against what the server sent: never against other replies, and never by what it says of itself.
Cheap questions come first: who answers which message, how many records, names and numbers there are, what the headers
declare against the bytes that came. Only arrays of exactly the names, shapes and types that were sent are looked at,
once, where they lie. So judging takes no memory to speak of, whatever is sent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from flwr_robust.errors import ConfigurationError, check_number
from flwr_robust.flower._compat import fill
from flwr_robust.flower.expected import Expected
from flwr_robust.flower.metrics import PARTITION, levelled
from flwr_robust.flower.wire import PayloadError, decode, is_finite, plain, records_of

__all__ = [
    "MOST_EXAMPLES",
    "Admitted",
    "Reason",
    "Refusal",
    "Terms",
    "admit",
    "answers_to",
    "rebuilt",
    "short",
]

_MOST_NUMBERS = 10_000  # in the metrics of one reply
_LONGEST_NAME = 256  # of a metric
MOST_EXAMPLES = 2.0**53  # beyond it a float no longer counts by ones


class Reason(Enum):
    """Why a reply is refused; the value is the phrase a user reads."""

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
    NUM_EXAMPLES = "num-examples is no finite number above 0, or above the cap"
    METRICS = "a metric is not finite, or missing, or there are too many"
    UNREADABLE = "reading the reply failed"

    @property
    def blames(self) -> bool:
        """Say whether it is certain that the node named has sent what was refused.

        An error may be the network's, and a message that answers nothing may have been sent in another's name.
        """
        return self not in (Reason.ERROR, Reason.NOT_ASKED, Reason.DUPLICATE)


@dataclass(frozen=True)
class Refusal:
    """A reply that was not let in.

    Attributes
    ----------
    node : int
        Flower's id of the node, as far as it is known.
    reason : Reason
        Why.
    detail : str
        What was found.
    """

    node: int
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Admitted:
    """A reply that was let in.

    Attributes
    ----------
    node : int
        Flower's id of the node.
    message : Message
        What it sent.
    arrays : tuple of arrays
        In the order in which they were demanded; empty in evaluation, and of a node that abstains.
    num_examples : float
        Examples it says it has; finite, above 0, at most the cap.
    partition : int or None
        The partition it says it holds.
    names : tuple of str
        The names of the arrays.
    abstains : bool
        Whether the node has nothing to say to what the round asks for.
    """

    node: int
    message: Message
    arrays: tuple[NDArray[Any], ...]
    num_examples: float
    partition: int | None
    names: tuple[str, ...] = ()
    abstains: bool = False

    @property
    def content(self) -> RecordDict:
        """The records it sent."""
        return self.message.content


@dataclass(frozen=True)
class Terms:
    """What replies must hold beside the model.

    Attributes
    ----------
    weighted_by_key : str
        Name of the metric with the number of examples.
    max_examples : float
        The largest number of examples that is believed, > 0.
    metrics : tuple of str, optional
        Metrics that every reply must hold, each one number; any when not given.
    records : (str, str), optional
        The names under which a reply must hold its ArrayRecord and its MetricRecord; any when not given.

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
        for field, names in (("metrics", self.metrics), ("records", self.records)):
            if names is not None and not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
                raise ConfigurationError(f"strategy: {field} must be a tuple of names; got {field}={names!r}")
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
        As they came; read once.
    messages : sequence of Message
        What was sent. A reply belongs to the node asked by the message that it answers; where a Grid gives messages
        no ids, to the node that it names as its source.
    terms : Terms
        What replies must hold beside the model.
    expected : Expected or None
        What training replies must match; None in evaluation.

    Returns
    -------
    admitted : list of Admitted
    refused : list of Refusal
        One for every reply not let in.
    """
    admitted: list[Admitted] = []
    refused: list[Refusal] = []
    kinds = {message.metadata.dst_node_id: message.metadata.message_type for message in messages}
    asked = _by_id(messages)
    waiting = set(kinds)
    for message in replies:
        try:
            verdict = _identify(message, asked, kinds, waiting) or _judge(message, kinds, terms, expected)
        except Exception as error:  # what a client sends never stops a round, not even by a way nobody thought of
            node = message.metadata.src_node_id
            verdict = Refusal(node, Reason.UNREADABLE, short(f"{type(error).__name__}: {error}"))
        if isinstance(verdict, Admitted):
            admitted.append(verdict)
        else:
            refused.append(verdict)
    return admitted, refused


def _by_id(messages: Iterable[Message]) -> dict[str, int]:
    """Return whom messages were sent to, by their ids; empty where the Grid keeps these to itself."""
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    return {} if "" in asked else asked


def answers_to(messages: Sequence[Message], replies: Iterable[Message]) -> Iterator[tuple[int, Message]]:
    """Yield the replies that come from the nodes that were asked, each with its node; others are nobody's."""
    asked, nodes = _by_id(messages), {message.metadata.dst_node_id for message in messages}
    for reply in replies:
        node = reply.metadata.src_node_id
        if asked.get(reply.metadata.reply_to_message_id) == node if asked else node in nodes:
            yield node, reply


def _identify(
    message: Message, asked: Mapping[str, int], kinds: Mapping[int, str], waiting: set[int]
) -> Refusal | None:
    """Refuse errors and replies from nobody who is waited for; else return None and wait no longer."""
    node, answers = message.metadata.src_node_id, message.metadata.reply_to_message_id
    if message.has_error():  # Flower may answer in a dead node's name, as a source of its own
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
    """Say whether a metric is a finite number; an integer may be too large for a float."""
    try:
        return isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:
        return False


def short(text: str) -> str:
    """Return what a client wrote as one line of at most 200 characters that a terminal does not obey."""
    line = " ".join(text[:2000].split())
    return "".join(character if character.isprintable() else "?" for character in line)[:200]


def _judge(message: Message, kinds: Mapping[int, str], terms: Terms, expected: Expected | None) -> Admitted | Refusal:
    node, kind, content = message.metadata.src_node_id, message.metadata.message_type, message.content
    if kind != kinds[node]:
        return Refusal(node, Reason.KIND, short(f"got {kind}, asked {kinds[node]}"))
    records, metrics = records_of(content, ArrayRecord), records_of(content, MetricRecord)
    abstains = expected is not None and expected.may_abstain and not records
    if len(metrics) != 1 or (expected is not None and len(records) != 1 and not abstains):
        return Refusal(node, Reason.RECORDS, f"got {len(records)} ArrayRecords and {len(metrics)} MetricRecords")
    if terms.records is not None:
        arrays_name, metrics_name = terms.records
        arrays_found = records[0] if expected is not None and records else None
        misplaced = expected is not None and content.get(arrays_name) is not arrays_found
        if content.get(metrics_name) is not metrics[0] or misplaced:
            return Refusal(node, Reason.RECORDS, "they stand under other names than stated")
    if complaint := _complaint(metrics[0], terms):
        return Refusal(node, *complaint)
    arrays: dict[str, NDArray[Any]] = {}
    if expected is not None and not abstains:
        found = _arrays(node, records[0], expected)
        if isinstance(found, Refusal):
            return found
        arrays = found
    partition: Any = metrics[0].get(PARTITION)
    number: Any = metrics[0][terms.weighted_by_key]
    place = partition if type(partition) is int else None  # True is an int, too
    return Admitted(node, message, tuple(arrays.values()), float(number), place, tuple(arrays), abstains)


def _complaint(metrics: MetricRecord, terms: Terms) -> tuple[Reason, str] | None:
    """Say what is wrong with the numbers of a reply."""
    number = metrics.get(terms.weighted_by_key)
    if isinstance(number, list | None) or not _finite(number):
        return Reason.NUM_EXAMPLES, "not finite"
    if not 0 < number <= terms.max_examples:
        return Reason.NUM_EXAMPLES, short(f"got {terms.weighted_by_key}={number!r}")
    numbers = len(metrics)
    for name, value in metrics.items():
        numbers += len(value) if isinstance(value, list) else 0
        if numbers > _MOST_NUMBERS or len(name) > _LONGEST_NAME:
            return Reason.METRICS, f"more than {_MOST_NUMBERS} numbers, or a name of more than {_LONGEST_NAME} letters"
        if not all(_finite(v) for v in (value if isinstance(value, list) else [value])):
            return Reason.METRICS, f"{short(name)} is not finite"
    for name in terms.metrics or ():
        if isinstance(metrics.get(name), list | None):
            return Reason.METRICS, f"{short(name)} is no number, or missing"
    return None


def _arrays(node: int, record: ArrayRecord, expected: Expected) -> dict[str, NDArray[Any]] | Refusal:
    demanded = expected.demanded(record.keys())
    if record.keys() != demanded.keys() or not demanded:
        missing = list(islice((name for name in demanded if name not in record), 5))
        extra = list(islice((short(name) for name in record if name not in demanded), 5))
        return Refusal(node, Reason.NAMES, short(f"missing {missing}, not sent {extra}"))
    arrays = {}
    for name, model in demanded.items():
        try:
            values = decode(record[name])
        except PayloadError as error:
            return Refusal(node, Reason.PAYLOAD, f"{name}: {short(str(error))}")
        if values.shape != model.shape:
            return Refusal(node, Reason.SHAPE, f"{name}: got {values.shape}, sent {model.shape}")
        if values.dtype != model.dtype:
            return Refusal(node, Reason.DTYPE, f"{name}: got {values.dtype}, sent {model.dtype}")
        if values.dtype.kind == "f" and not is_finite(values):
            return Refusal(node, Reason.NOT_FINITE, name)
        arrays[name] = values
    return arrays


def rebuilt(
    admitted: Sequence[Admitted], terms: Terms, expected: Expected | None, clamp: float | None
) -> list[RecordDict]:
    """Return what was admitted as records that Flower's own functions can be given.

    Parameters
    ----------
    admitted : sequence of Admitted
        The replies.
    terms : Terms
        What they were judged by.
    expected : Expected or None
        What training replies were judged against; None in evaluation.
    clamp : float or None
        A number of examples above this multiple of the median is lowered to it.

    Returns
    -------
    list of RecordDict
        In each one ArrayRecord (in training), with the model's arrays in their order, and one MetricRecord, with the
        same metrics in all (see `flwr_robust.flower.metrics`), both under the names that most of the replies use.
        What else a reply holds is left out.
    """
    metrics = [records_of(reply.content, MetricRecord)[0] for reply in admitted]
    even = levelled(metrics, terms.weighted_by_key, clamp, terms.metrics)
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
