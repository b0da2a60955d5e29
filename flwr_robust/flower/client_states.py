"""Client states: what clients keep from round to round, such as momenta, saved in checkpoints and returned to them.

Flower keeps a node's state in its Context, which lasts as long as the run. A resumed run is a new run for Flower, with
new Contexts. So the server asks nodes for their states when a checkpoint is due (the query ``state``). In a resumed run
it returns them before it asks those nodes for anything else (the query ``restore``). A client app made by `serve`
answers both with ``hand_over_state=True``.

For the server a state is a sequence of bytes, as Flower would send them; it checks only their length. A client's state
is returned to that client only, which is the node with the same id. In Flower's simulation, nodes have new ids in every
run, and the runtime assigns partitions. There the state is returned to a new node if that node alone holds the
partition that the former node alone held. In a deployment a partition is a claim. There a new node gets a copy of a
state by its claim only if the state is sealed (`flwr_robust.flower.sealing`). Nobody but its owner can open it. The
state itself stays for the node with the former id.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from flwr_robust.flower._compat import packed, unpacked
from flwr_robust.flower.admission import answers_to, short
from flwr_robust.flower.quarantine import Nodes
from flwr_robust.flower.sealing import is_sealed

__all__ = ["RESTORE", "STATE", "ClientStates", "most_bytes"]

log = logging.getLogger("flwr")

STATE, RESTORE = "query.state", "query.restore"
"""The types of the two queries."""


def most_bytes(model_bytes: int) -> int:
    """Return the default limit of a client's state in bytes, all its records together: four models and 1 MiB."""
    return 4 * model_bytes + (1 << 20)


@dataclass(frozen=True)
class _Held:
    """A client's state, and its partition if it alone was known to hold that partition, or if the state is sealed."""

    partition: int | None
    state: NDArray[np.uint8]

    @property
    def sealed(self) -> bool:
        return is_sealed(_content_of(self.state))


class ClientStates:
    """The states that a run's clients have sent to the server.

    Parameters
    ----------
    grid : Grid
        The grid with the nodes.
    nodes : Nodes
        The partitions of the nodes, and the nodes in quarantine, which are not asked.
    timeout : float
        Seconds to wait for answers.
    """

    def __init__(self, grid: Grid, nodes: Nodes, timeout: float) -> None:
        self._grid, self._nodes, self._timeout = grid, nodes, timeout
        self._held: dict[int, _Held] = {}
        self._asked: set[int] = set()  # since they last sent their state
        self._known: set[int] = set()  # every node that was ever asked
        self._waiting: dict[int, _Held] = {}  # states of the earlier run, for nodes that have not appeared yet
        self._met: set[int] = set()  # nodes of the resumed run

    def __len__(self) -> int:
        """Return the number of states held."""
        return len(self._held) + len(self._waiting)

    # -- checkpoints ------------------------------------------------------------------------------

    def collect(self, most: int) -> dict[int, str]:
        """Ask nodes for their states: those asked anything since the last call, unless banned or in quarantine.

        Parameters
        ----------
        most : int
            The largest number of bytes of a state.

        Returns
        -------
        dict of int to str
            The nodes whose state is not held, with the reason. No answer raises an error.
        """
        away = {*self._nodes.quarantined, *self._nodes.banned}
        nodes = sorted(self._asked - away)
        missing = dict.fromkeys(sorted(self._asked & away), "it is banned or in quarantine")
        own = self._nodes.own_partitions(self._grid.get_node_ids())
        answers = self._answers([Message(RecordDict(), node, STATE) for node in nodes])
        for node in nodes:
            state = _taken(answers.get(node, "no answer"), most)
            if isinstance(state, str):
                missing[node] = state
                self._held.pop(node, None)  # the earlier state is out of date
            else:
                held = _Held(own.get(node, self._nodes.partitions.get(node)), state)
                self._held[node] = held if node in own or held.sealed else _Held(None, state)
        self._asked -= set(self._held)
        return missing

    def memory(self) -> dict[str, Any]:
        """Return all states; it is `storable`."""
        held = {**self._waiting, **self._held}
        return {
            "known": sorted(self._known),
            "clients": [(node, each.partition, each.state) for node, each in held.items()],
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take over what `memory` returned; `meet` gives the states back."""
        self._known = set(memory["known"])
        self._waiting = {node: _Held(partition, state) for node, partition, state in memory["clients"]}

    # -- rounds -----------------------------------------------------------------------------------

    def meet(self, nodes: Iterable[int]) -> tuple[list[int], dict[int, str]]:
        """Return their states to the nodes that are about to be asked and to all other connected nodes, once each.

        Returns
        -------
        list of int
            The nodes that received their state.
        dict of int to str
            The newly met nodes that start without a state, with the reason.
        """
        asked = set(nodes)
        self._asked |= asked
        if not self._waiting:
            self._known |= asked
            return [], {}
        present = {*self._grid.get_node_ids(), *asked}
        fresh = sorted(present - self._met)
        own = self._nodes.own_partitions(present)
        messages, missing, given = [], {}, {}
        for node in fresh:
            former = node if node in self._known else self._former(own.get(node), present)
            if former in self._waiting:
                given[node] = self._waiting.pop(former)
            elif node not in self._known and (copy := self._sealed(self._nodes.partitions.get(node), present)):
                given[node] = copy
            else:
                missing[node] = "no state of it is held"
                continue
            messages.append(Message(_content_of(given[node].state), node, RESTORE))
        answers = self._answers(messages)
        for node, each in given.items():
            if isinstance(answer := answers.get(node, "no answer"), str):
                missing[node] = f"it did not take its state back: {answer}"
            else:
                self._held[node] = each
        self._met |= present
        self._known |= present
        return [node for node in given if node not in missing], missing

    def _former(self, partition: int | None, present: set[int]) -> int | None:
        """Return the id that a new node had in the earlier run, if its partition shows it."""
        if partition is None:
            return None
        found = [node for node, each in self._waiting.items() if each.partition == partition and node not in present]
        return found[0] if len(found) == 1 else None

    def _sealed(self, claim: int | None, present: set[int]) -> _Held | None:
        """Return the sealed state of the one absent node that claimed a partition, if there is one."""
        former = self._former(claim, present)
        return None if former is None or not self._waiting[former].sealed else self._waiting[former]

    def _answers(self, messages: Sequence[Message]) -> dict[int, RecordDict | str]:
        """Send messages; return each node's first answer, or the reason why there is none."""
        found: dict[int, RecordDict | str] = {}
        replies = list(self._grid.send_and_receive(messages, timeout=self._timeout)) if messages else []
        for node, reply in answers_to(messages, replies):
            if node not in found:
                found[node] = reply.content if reply.has_content() else short(f"it failed: {reply.error.reason}")
        return found


def _taken(answer: RecordDict | str, most: int) -> NDArray[np.uint8] | str:
    """Return a state's bytes, or the reason why there are none."""
    if isinstance(answer, str):
        return answer
    try:
        data = packed(answer)
    except Exception as error:  # a client's state may be anything
        return short(f"{type(error).__name__}: {error}")
    if len(data) > most:
        return f"its state is too long: {len(data)} bytes, where {most} are taken"
    return np.frombuffer(data, np.uint8)


def _content_of(state: NDArray[np.uint8]) -> RecordDict:
    """Return a state as message content; empty if its bytes cannot be read, which no client can cause."""
    try:
        return unpacked(state.tobytes())
    except Exception as error:
        log.warning("checkpoint: a client's state cannot be read: %s", short(f"{type(error).__name__}: {error}"))
        return RecordDict()
