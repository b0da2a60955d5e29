"""AdversarialGrid: attack any Flower strategy; neither the strategy nor the clients need to be changed.

A Grid carries the messages between a strategy and its clients (Flower calls them nodes). This one passes everything on
unchanged, except the training replies of compromised nodes. When all replies of a round have arrived, an attack
rewrites those of the compromised nodes. So only the grid needs to know all replies, and the same attack works with
every strategy, in process and on Ray.

If a round asks for classes (`DeSGD`), the attack handles one class after the other. For each class it sees the nodes
that sent it. The reply of a compromised node that abstains holds nothing to rewrite, so attackers' clients should
answer for every class.

The attack sees the same rows as a `RobustStrategy`: the learnt floating-point arrays of each reply. If clients send
parameters, the row is their difference from the model that was sent. Replies that fail, do not fit the model or are not
finite are invisible to the attack and stay unchanged.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.attacks.adversary import Adversary, written
from flwr_robust.attacks.data.base import drawn_attackers
from flwr_robust.attacks.fault.base import Fault, faults
from flwr_robust.attacks.message.base import Knowledge, MessageAttack, check_grant, check_honest_left, message_attacks
from flwr_robust.core.pipeline import as_rule
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Rule, State
from flwr_robust.core.spec import JoinedRegistry, Registry
from flwr_robust.errors import (
    ConfigurationError,
    InfeasibleError,
    check_choice,
    check_flag,
    check_integer,
)
from flwr_robust.flower._compat import fill, set_message_id
from flwr_robust.flower.replies import rows_of
from flwr_robust.flower.strategy import RobustStrategy
from flwr_robust.flower.wire import (
    PayloadError,
    as_tensor,
    copy_content,
    decode,
    decode_record,
    encode_record,
    records_of,
)
from flwr_robust.protocol.buffers import STATISTICS, learnt
from flwr_robust.protocol.messages import MESSAGES, message_kind

__all__ = ["AdversarialGrid", "AttackRecord", "parse_attack"]

log = logging.getLogger("flwr")

_attacks: Registry[MessageAttack | Fault] = JoinedRegistry("attack on messages", message_attacks, faults)

_CRASHED = 2  # Flower's error code for a ClientApp that raised


@dataclass(frozen=True)
class AttackRecord:
    """What the attackers did in one round of training.

    Attributes
    ----------
    round : int
        The round.
    nodes : tuple of int
        The nodes whose replies were rewritten or held back, in order of position. Attackers that a fault did not affect
        are not listed.
    positions : tuple of int
        Their positions among all nodes; these are their partitions if known.
    strength : float or None
        The strength that the attack chose, if it has one.
    """

    round: int
    nodes: tuple[int, ...]
    positions: tuple[int, ...]
    strength: float | None = None


@dataclass(frozen=True, eq=False)
class _Reply:
    """A reply that can be read."""

    position: int
    message: Message
    arrays: Sequence[NDArray[Any]]  # those that are learnt
    num_examples: float | None


@dataclass(frozen=True)
class _Model:
    """The learnt arrays of the model that was sent."""

    names: tuple[str, ...]
    arrays: tuple[NDArray[Any], ...]
    prefix: str = ""  # prefix of the array names in replies


@dataclass
class _Round:
    """Training messages that were pushed together, and the replies received so far."""

    messages: dict[str, Message]
    replies: list[Message]


class AdversarialGrid(Grid):
    """A Grid in which some nodes are compromised.

    Parameters
    ----------
    grid : Grid
        The grid with the nodes: an `InProcessGrid`, or the grid that Flower gives to a ServerApp.
    attack : MessageAttack, Fault or str
        The attack, as an object or as text, such as ``"alie()"`` or ``"crash(p=0.5)"``.
    attackers : int or collection of int
        The number of compromised nodes, which are the last ones by position. Or a collection of their positions, or of
        their ids with ``by="node"``. This number is the real f; the declared f of a strategy may differ.
    knowledge : Knowledge or str
        What the attackers may see. An attack that needs more raises an error. The draws of the defence stay unknown.
    known : int, optional
        With partial knowledge: how many honest replies the attackers see, those of the lowest positions.
    rule : Rule, str or RobustStrategy, optional
        The defence in use, for attackers that know it. With a strategy, the grid reads the strategy's own state. With a
        rule, it computes the state by running the rule on every round's replies, unless the rule has no state.
    start : int
        First round of the attack.
    stop : int, optional
        Last round of the attack; none when not given.
    redraw : bool
        Draw the same number of attackers anew in every round, from the seed.
    message : str
        What clients send: ``parameters``, ``delta``, ``gradient`` or ``momentum``.
    by : str
        ``position`` or ``node``: whether a collection of attackers holds positions or node ids.
    seed : int
        Source of all draws.

    Attributes
    ----------
    history : list of AttackRecord
        One record per round of the attack.
    state : State
        The attack's state; for a fault the states of its nodes, with keys prefixed by position. A strategy's
        checkpoints hold it.
    partitions : dict of int to int
        The known partitions by node; a node's partition is its position. It is read from the metric ``partition-id`` of
        a reply, or set beforehand. The position of any other node is its place in the order of node ids.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds, or the attack needs more knowledge than it has.

    Notes
    -----
    A strategy that pushes and pulls messages itself receives all replies of a training round together, after the last
    one. The round number is the messages' ``server-round``; if they hold none, the grid counts. If an attacker's client
    fails to answer, its reply stays a failure.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from flwr_robust.flower import InProcessGrid
    >>> grid = AdversarialGrid(InProcessGrid(ClientApp(), 10), "ipm(epsilon=0.1)", attackers=2)
    >>> len(list(grid.get_node_ids())), str(grid.attack)
    (10, 'ipm(epsilon=0.1)')
    """

    def __init__(
        self,
        grid: Grid,
        attack: MessageAttack | Fault | str,
        attackers: int | Collection[int],
        *,
        knowledge: Knowledge | str = Knowledge.OMNISCIENT,
        known: int | None = None,
        rule: Rule | str | RobustStrategy | None = None,
        start: int = 1,
        stop: int | None = None,
        redraw: bool = False,
        message: str = "parameters",
        by: str = "position",
        seed: int = 0,
    ) -> None:
        owner = "AdversarialGrid"
        self.attack = parse_attack(attack) if isinstance(attack, str) else attack
        if not isinstance(self.attack, MessageAttack | Fault):
            raise ConfigurationError(
                f"{owner}: attack must be an attack on messages, a fault, or the text of one; got {attack!r}"
            )
        if isinstance(attackers, str) or not isinstance(attackers, int | Collection):
            raise ConfigurationError(
                f"{owner}: attackers must be how many there are, or a collection of integers; got {attackers!r}"
            )
        for number in [attackers] if isinstance(attackers, int) else attackers:
            check_integer(owner, "attackers", number, 0)
        self.knowledge = Knowledge.of(knowledge)
        if known is not None:
            check_integer(owner, "known", known, 1)
        check_integer(owner, "start", start, 1)
        if stop is not None:
            check_integer(owner, "stop", stop, start)
        check_flag(owner, "redraw", redraw)
        check_choice(owner, "message", message, MESSAGES)
        check_choice(owner, "by", by, ("node", "position"))
        check_integer(owner, "seed", seed, 0)
        self.rule = None if rule is None else rule.rule if isinstance(rule, RobustStrategy) else as_rule(rule)
        self._strategy = rule if isinstance(rule, RobustStrategy) else None
        if self.knowledge == Knowledge.DEFENCE and self.rule is None:
            raise ConfigurationError(f"{owner}: knowledge='defence' needs the defence in use; pass rule=...")
        looking = self.attack if isinstance(self.attack, MessageAttack) else None
        check_grant(owner, looking, self.knowledge, known, self.rule)
        if self._strategy is not None and self._strategy.message != message:
            raise ConfigurationError(
                f"{owner}: message must be that of the strategy, {self._strategy.message!r}; got message={message!r}"
            )
        if by == "node" and (redraw or isinstance(attackers, int)):
            raise ConfigurationError(
                f"{owner}: by='node' goes with ids that stay; got attackers={attackers}, redraw={redraw}"
            )
        self.history: list[AttackRecord] = []
        self._adversary = Adversary(
            self.attack, message, knowledge=self.knowledge, known=known, rule=self.rule, seed=seed
        )
        self.partitions: dict[int, int] = {}
        self._grid, self._attackers = grid, attackers if isinstance(attackers, int) else frozenset(attackers)
        self._start, self._stop = start, stop
        self._redraw, self._kind, self._by, self._seed = redraw, message_kind(message), by, seed
        self._nodes: list[int] = []
        self._learnt: tuple[str, ...] = ()
        self._counted = 0
        self._rounds: list[_Round] = []
        self._rule_state: State = {} if self.rule is None else self.rule.init()
        self._follow = self.rule is not None and self._strategy is None and self.knowledge == Knowledge.DEFENCE

    @property
    def state(self) -> State:
        """What the attack remembers from round to round."""
        return self._adversary.state

    @state.setter
    def state(self, state: State) -> None:
        self._adversary.state = state

    def memory(self) -> dict[str, Any]:
        """Return what the grid remembers from round to round, for checkpoints; see `Progress.memory`."""
        return {
            "state": self.state,
            "rule_state": self._rule_state,
            "follow": self._follow,
            "counted": self._counted,
            "learnt": self._learnt,
        }

    def chronicle(self, since: int) -> list[tuple[Any, ...]]:
        """Return the records of attacked rounds from the given number on."""
        return [dataclasses.astuple(record) for record in self.history[since:]]

    def recall_chronicle(self, records: Sequence[Sequence[Any]]) -> None:
        """Restore the records of attacked rounds."""
        self.history = [AttackRecord(*each) for each in records]

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore what `memory` returned."""
        self.state = dict(memory["state"])
        self._rule_state = dict(memory["rule_state"])
        self._follow, self._counted, self._learnt = memory["follow"], memory["counted"], memory["learnt"]

    # -- what a Grid does -------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Look up attributes that only some Grids have, such as `InProcessGrid.contexts`, on the inner grid."""
        if name == "_grid":  # before __init__, when unpickled or copied
            raise AttributeError(name)
        return getattr(self._grid, name)

    @contextmanager
    def around(self, wrap: Callable[[Grid], Grid]) -> Iterator[None]:
        """Wrap the inner grid for a ``with`` block, so that the attack sees a round when the wrapper closes it."""
        inner = self._grid
        if isinstance(inner, AdversarialGrid):
            with inner.around(wrap):
                yield
            return
        self._grid = wrap(inner)
        try:
            yield
        finally:
            self._grid = inner

    def set_run(self, run: Any) -> None:
        """Set the run of the inner grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run of the inner grid."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message with the inner grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the inner grid."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Any:
        """Return the nodes of the inner grid."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages to the inner grid and remember those for training."""
        pushed = list(messages)
        self._settle(pushed)
        identifiers = list(self._grid.push_messages(pushed))
        training = {i: message for i, message in zip(identifiers, pushed, strict=False) if i and _trains(message)}
        if training:
            self._rounds.append(_Round(training, []))
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies; those of a training round are returned together, after the attack."""
        handed: list[Message] = []
        for reply in self._grid.pull_messages(message_ids):
            asked = reply.metadata.reply_to_message_id
            pending = next((pending for pending in self._rounds if asked in pending.messages), None)
            if pending is None:
                handed.append(reply)
                continue
            pending.replies.append(reply)
            if len(pending.replies) == len(pending.messages):
                self._rounds.remove(pending)
                handed += self._rewrite(list(pending.messages.values()), pending.replies)
        return handed

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages, pull their replies, and rewrite those of compromised nodes."""
        sent = list(messages)
        self._settle(sent)
        replies = list(self._grid.send_and_receive(sent, timeout=timeout))
        training = [message for message in sent if _trains(message)]
        if not training:
            return replies
        if len(training) == len(sent):
            return self._rewrite(training, replies)
        trained = [reply for reply in replies if _trains(reply)]
        return [reply for reply in replies if not _trains(reply)] + self._rewrite(training, trained)

    # -- who attacks ------------------------------------------------------------------------------

    def _settle(self, messages: Iterable[Message]) -> None:
        """Before the first training round, find the learnt arrays and check that the attackers are among the nodes."""
        first = next((message for message in messages if _trains(message)), None)
        if self._nodes or first is None:
            return
        if isinstance(self.attack, MessageAttack) and not self._learnt:
            # Use the types of the first model: Flower's own strategies later turn integers into floats.
            statistics = STATISTICS if self._strategy is None else self._strategy.statistics
            self._learnt = tuple(learnt(_model_in(first), statistics))
            if not self._learnt:
                raise ConfigurationError(
                    "AdversarialGrid: the model must hold at least one floating-point array; got none"
                )
        self._nodes = sorted(self._grid.get_node_ids())
        total, attackers = len(self._nodes), self._attackers
        if isinstance(attackers, int):
            fit, bound = attackers <= total, f"at most {total} nodes"
        elif self._by == "node":
            fit, bound = attackers <= set(self._nodes), "ids of nodes"
        else:
            fit, bound = attackers <= set(range(total)), f"positions below {total}"
        if not fit:
            given = attackers if isinstance(attackers, int) else sorted(attackers)
            raise ConfigurationError(f"AdversarialGrid: attackers must be {bound}; got attackers={given}")
        count = attackers if isinstance(attackers, int) else len(attackers)
        looking = self.attack if isinstance(self.attack, MessageAttack) else None
        check_honest_left("AdversarialGrid", looking, count, total)

    def _position(self, node: int) -> int:
        """Return a node's position: its partition if known, otherwise its place in the order of node ids."""
        if node in self.partitions:
            return self.partitions[node]
        if node not in self._nodes:
            self._nodes.append(node)
        return self._nodes.index(node)

    def _compromised(self, server_round: int, nodes: Iterable[int]) -> list[int]:
        """Return the attackers among the nodes asked in a round, in order of position."""
        total, attackers = len(self._nodes), self._attackers
        if self._redraw:
            count = attackers if isinstance(attackers, int) else len(attackers)
            attackers = frozenset(drawn_attackers(self._seed, server_round, total, count))
        elif isinstance(attackers, int):
            attackers = frozenset(range(total - attackers, total))
        key = self._position if self._by == "position" else int
        return sorted((node for node in nodes if key(node) in attackers), key=self._position)

    # -- what they do -----------------------------------------------------------------------------

    def _rewrite(self, sent: Sequence[Message], replies: Sequence[Message]) -> list[Message]:
        """Return a round's replies in their order of arrival, those of attackers rewritten."""
        self._counted = server_round = _round_of(sent[0], self._counted + 1)
        for reply in replies:
            self._learn_partition(reply)
        attacks = self._start <= server_round and (self._stop is None or server_round <= self._stop)
        asked = {message.metadata.dst_node_id: message for message in sent}
        nodes = self._compromised(server_round, asked) if attacks else []
        if attacks and not nodes:
            self.history.append(AttackRecord(server_round, (), ()))
        if isinstance(self.attack, Fault):
            return self._fail(server_round, nodes, asked, replies) if nodes else list(replies)
        if nodes or self._follow:
            arrays = _model_in(sent[0])
            names = tuple(name for name in self._learnt if name in arrays)
            model = _Model(names, tuple(arrays[name] for name in names))
            if nodes:
                classes = _classes_in(sent[0])
                for kind in classes or (None,):
                    self._craft(server_round, nodes, len(sent), model, replies, kind, len(classes) > 1)
                if len(classes) > 1:
                    self.history[-len(classes) :] = [_together(self.history[-len(classes) :])]
            if self._follow:
                self._advance(server_round, model, len(sent), replies)
        return list(replies)

    def _learn_partition(self, reply: Message) -> None:
        if reply.has_content():
            for record in records_of(reply.content, MetricRecord):
                if isinstance(partition := record.get("partition-id"), int):
                    self.partitions.setdefault(reply.metadata.src_node_id, partition)

    def _craft(
        self,
        server_round: int,
        nodes: Sequence[int],
        asked: int,
        model: _Model,
        replies: Iterable[Message],
        kind: int | None = None,
        several: bool = False,
    ) -> None:
        """Let the attack rewrite the replies of nodes in place; if the round asks for classes, for one class."""
        assert isinstance(self.attack, MessageAttack)
        model = dataclasses.replace(model, prefix=f"{kind}/" if several else "")
        read = self._read(model, replies)
        attacking = [reply.message.metadata.src_node_id in nodes for reply in read]
        own = list(itertools.compress(read, attacking))
        honest = [reply for reply in read if reply not in own]
        if not self._adversary.usable(len(own), len(honest)):
            log.warning("AdversarialGrid: round %s is not attacked: no reply that could be used", server_round)
            self.history.append(AttackRecord(server_round, (), ()))
            return
        values = self._adversary.craft(
            server_round,
            self._rows(model, own, asked),
            self._rows(model, honest, asked) if honest else None,
            [index for index, attacks in enumerate(attacking) if attacks],
            model.arrays,
            asked=asked,
            unit=_unit(own),
            rule_state=self._rule_state if self._strategy is None else self._strategy.state_of(kind),
            kind=kind if several else None,
        )
        for reply, row in zip(own, values, strict=True):
            self._write(reply, row, model)
        self.history.append(
            AttackRecord(
                server_round,
                tuple(reply.message.metadata.src_node_id for reply in own),
                tuple(reply.position for reply in own),
                self._adversary.strength,
            )
        )

    def _read(self, model: _Model, replies: Iterable[Message]) -> list[_Reply]:
        """Return the replies that fit the model, by position."""
        read: dict[int, _Reply] = {}
        for message in replies:
            arrays = _fitting(message, model)
            node = message.metadata.src_node_id
            if arrays is not None and node not in read:
                read[node] = _Reply(self._position(node), message, arrays, _num_examples(message))
        return [read[node] for node in sorted(read, key=lambda node: (read[node].position, node))]

    def _rows(self, model: _Model, replies: Sequence[_Reply], asked: int) -> Rows:
        counts = [reply.num_examples for reply in replies]
        return rows_of(
            [reply.arrays for reply in replies],
            dict(zip(model.names, model.arrays, strict=True)),
            relative=self._kind.relative,
            counts=None if None in counts else [float(count) for count in counts if count is not None],
            asked=max(asked, len(replies)),
        )

    def _write(self, reply: _Reply, row: NDArray[np.float64], model: _Model) -> None:
        """Put a row into a reply."""
        arrays: dict[str, NDArray[Any]] = {}
        offset = 0
        for name, sent, held in zip(model.names, model.arrays, reply.arrays, strict=True):
            values = row[offset : offset + held.size].reshape(held.shape)
            offset += held.size
            arrays[model.prefix + name] = written(values, held.dtype, sent if self._kind.relative else None)
        _rewrite_arrays(reply.message, arrays)

    def _advance(self, server_round: int, model: _Model, asked: int, replies: Sequence[Message]) -> None:
        """Run the rule on a round's replies, as the server will, to follow its state."""
        assert self.rule is not None
        if not (read := self._read(model, replies)):
            return
        rows = self._rows(model, read, asked)
        rows.seed = self._adversary.draws(server_round)
        try:
            self._rule_state = self.rule(rows, self._rule_state)[1]
        except InfeasibleError:
            return
        self._follow = bool(self._rule_state)

    def _fail(
        self, server_round: int, nodes: Sequence[int], asked: Mapping[int, Message], replies: Iterable[Message]
    ) -> list[Message]:
        """Let each node fail independently."""
        handed, failed = [], []
        for reply in replies:
            node = reply.metadata.src_node_id
            records = records_of(reply.content, ArrayRecord) if reply.has_content() else []
            if node not in nodes or len(records) != 1:
                handed.append(reply)
                continue
            try:
                layers = {name: as_tensor(values) for name, values in decode_record(records[0]).items()}
            except (PayloadError, TypeError):  # the client itself has failed
                handed.append(reply)
                continue
            position = self._position(node)
            answer = self._adversary.answer(server_round, position, layers)
            if isinstance(answer, Mapping) and _unchanged(layers, answer):
                handed.append(reply)
                continue
            failed.append((position, node))
            if isinstance(answer, str):
                error = Message(Error(_CRASHED, answer), reply_to=asked[node])
                set_message_id(error, reply.metadata.message_id)
                handed.append(error)
            elif answer is not None:
                arrays = {name: tensor.numpy() for name, tensor in answer.items()}
                _rewrite_arrays(reply, arrays, dropped=set(layers) - set(answer))
                handed.append(reply)
        failed.sort()
        self.history.append(
            AttackRecord(server_round, tuple(node for _, node in failed), tuple(place for place, _ in failed))
        )
        return handed


def parse_attack(text: str) -> MessageAttack | Fault:
    """Turn text into a message attack or a fault.

    Parameters
    ----------
    text : str
        ``name(field=literal, ...)``.

    Raises
    ------
    ConfigurationError
        If the text cannot be read, or a name, a field or a value is not allowed.

    Examples
    --------
    >>> parse_attack("delay(rounds=2)")
    Delay(rounds=2)
    """
    return _attacks.parse(text)


def _unchanged(layers: Mapping[str, Tensor], answer: Mapping[str, Tensor]) -> bool:
    """Say whether an answer holds exactly the same arrays as before."""
    return layers.keys() == answer.keys() and all(answer[name] is layers[name] for name in layers)


def _trains(message: Message) -> bool:
    return message.metadata.message_type.partition(".")[0] == MessageType.TRAIN


def _round_of(message: Message, counted: int) -> int:
    """Return the round that a message names; if it names none, the counted one."""
    for record in records_of(message.content, ConfigRecord):
        named = record.get("server-round")
        if isinstance(named, int) and not isinstance(named, bool):
            return named
    return counted


def _classes_in(message: Message) -> list[int]:
    """Return the classes that a message asks for, if any; see `DeSGD`."""
    for record in records_of(message.content, ConfigRecord):
        named = record.get("classes")
        if isinstance(named, list):
            return [k for k in named if isinstance(k, int)]
    return []


def _together(records: Sequence[AttackRecord]) -> AttackRecord:
    """Combine the records of a round's classes into one; its strength is that of the first class."""
    who = sorted({pair for record in records for pair in zip(record.positions, record.nodes, strict=True)})
    strength = next((record.strength for record in records if record.strength is not None), None)
    return AttackRecord(records[0].round, tuple(n for _, n in who), tuple(p for p, _ in who), strength)


def _model_in(message: Message) -> dict[str, NDArray[Any]]:
    """Return the model that a message carries."""
    records = records_of(message.content, ArrayRecord)
    if len(records) != 1:
        raise ConfigurationError(
            f"AdversarialGrid: a training message must hold one ArrayRecord, the model; got {len(records)}"
        )
    return decode_record(records[0])


def _fitting(message: Message, model: _Model) -> list[NDArray[Any]] | None:
    """Return a reply's arrays in the order of the model, or None if they do not fit the model."""
    records = records_of(message.content, ArrayRecord) if message.has_content() else []
    if len(records) != 1:
        return None
    arrays = []
    for name, sent in zip(model.names, model.arrays, strict=True):
        try:
            values = decode(records[0][model.prefix + name])
        except (KeyError, PayloadError):
            return None
        fits = values.shape == sent.shape and values.dtype.kind == "f" and values.dtype.isnative
        if not fits or values.dtype.itemsize > 8 or not np.isfinite(values).all():
            return None
        arrays.append(values)
    return arrays


def _num_examples(message: Message) -> float | None:
    """Return the number of examples that a reply states, if it is a valid number."""
    for record in records_of(message.content, MetricRecord):
        number = record.get("num-examples")
        if isinstance(number, int | float) and 0 < number < math.inf:
            return float(number)
    return None


def _unit(replies: Iterable[_Reply]) -> float:
    """Return the relative rounding error of the least precise type in the replies."""
    return max(float(np.finfo(values.dtype).eps) / 2 for reply in replies for values in reply.arrays)


def _rewrite_arrays(
    message: Message, arrays: Mapping[str, NDArray[Any]], dropped: Collection[str] = frozenset()
) -> None:
    """Replace the arrays of a reply; everything else in it stays unchanged."""
    content = copy_content(message.content)
    new = encode_record(arrays)
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            items = {key: new.get(key, array) for key, array in record.items() if key not in dropped}
            fill(content, {name: fill(ArrayRecord(), items)})
    message.content = content
