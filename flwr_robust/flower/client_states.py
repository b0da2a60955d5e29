"""What clients keep from round to round, such as momenta: taken into checkpoints, and given back.

Flower keeps a node's state in its Context, which lasts as long as the run: one that is resumed is another run, with new
Contexts. So the server asks nodes for their states when a checkpoint is due (the query ``state``), and hands them back
before it asks those nodes for anything else (``restore``). `serve` answers both where the app says so.

To the server a state is bytes, those that Flower would send: it looks at nothing but their length, and what a client
handed over comes back to nobody but that client: the node of the same id; or, where that is gone, as in Flower's
simulation, whose nodes have other ids in every run, a new node that alone is known to hold the partition which the
other alone was known to hold.
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

__all__ = ["RESTORE", "STATE", "ClientStates", "most_bytes"]

log = logging.getLogger("flwr")

STATE, RESTORE = "query.state", "query.restore"
"""The types of the two messages."""


def most_bytes(model_bytes: int) -> int:
    """Return how long a client's state may be where nobody says it: 64 times the model, and 64 MiB always."""
    return max(64 * model_bytes, 1 << 26)


@dataclass(frozen=True)
class _Held:
    """A client's state, and the partition that it alone was known to hold when it handed that over."""

    partition: int | None
    state: NDArray[np.uint8]


class ClientStates:
    """The states of a run's clients, as far as they were handed over.

    Parameters
    ----------
    grid : Grid
        Where the nodes are.
    nodes : Nodes
        Their partitions, and which of them are in quarantine.
    timeout : float
        Seconds to wait for answers.
    """

    def __init__(self, grid: Grid, nodes: Nodes, timeout: float) -> None:
        self._grid, self._nodes, self._timeout = grid, nodes, timeout
        self._held: dict[int, _Held] = {}
        self._asked: set[int] = set()  # since they last handed their state over
        self._known: set[int] = set()  # every node that was ever asked
        self._waiting: dict[int, _Held] = {}  # states of before the run was resumed, for nodes yet to come
        self._met: set[int] = set()  # nodes of the resumed run

    def __len__(self) -> int:
        """Return how many clients' states are held."""
        return len(self._held) + len(self._waiting)

    # -- checkpoints ------------------------------------------------------------------------------

    def collect(self, most: int) -> dict[int, str]:
        """Ask the nodes that were asked anything since the last time, but those in quarantine, for their states.

        Parameters
        ----------
        most : int
            How many bytes a state may have.

        Returns
        -------
        dict of int to str
            The nodes whose state is not held, and why; what they answer raises nothing.
        """
        away = set(self._nodes.quarantined)
        nodes = sorted(self._asked - away)
        missing = dict.fromkeys(sorted(self._asked & away), "it is in quarantine")
        own = self._nodes.own_partitions(self._grid.get_node_ids())
        answers = self._answers([Message(RecordDict(), node, STATE) for node in nodes])
        for node in nodes:
            state = _taken(answers.get(node, "no answer"), most)
            if isinstance(state, str):
                missing[node] = state
                self._held.pop(node, None)  # what it was before is not what it is now
            else:
                self._held[node] = _Held(own.get(node), state)
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
        """Take over what `memory` returned, to be given back by `meet`."""
        self._known = set(memory["known"])
        self._waiting = {node: _Held(partition, state) for node, partition, state in memory["clients"]}

    # -- rounds -----------------------------------------------------------------------------------

    def meet(self, nodes: Iterable[int]) -> tuple[list[int], dict[int, str]]:
        """Give nodes that are about to be asked, and all others that are there, their states back, once.

        Returns
        -------
        list of int
            The nodes that were given theirs.
        dict of int to str
            The nodes, of those that were asked before or are new, that begin anew, and why.
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
            if former is None or former not in self._waiting:
                missing[node] = "no state of it is held"
                continue
            given[node] = self._waiting.pop(former)
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
        """Return the id that a new node of a partition had before, if there is one that can be told."""
        if partition is None:
            return None
        found = [node for node, each in self._waiting.items() if each.partition == partition and node not in present]
        return found[0] if len(found) == 1 else None

    def _answers(self, messages: Sequence[Message]) -> dict[int, RecordDict | str]:
        """Send messages; return each node's first answer, or why it is none."""
        found: dict[int, RecordDict | str] = {}
        replies = list(self._grid.send_and_receive(messages, timeout=self._timeout)) if messages else []
        for node, reply in answers_to(messages, replies):
            if node not in found:
                found[node] = reply.content if reply.has_content() else short(f"it failed: {reply.error.reason}")
        return found


def _taken(answer: RecordDict | str, most: int) -> NDArray[np.uint8] | str:
    """Return a state's bytes, or why there are none."""
    if isinstance(answer, str):
        return answer
    try:
        data = packed(answer)
    except Exception as error:  # what a client keeps may be anything
        return short(f"{type(error).__name__}: {error}")
    if len(data) > most:
        return f"its state is too long: {len(data)} bytes, where {most} are taken"
    return np.frombuffer(data, np.uint8)


def _content_of(state: NDArray[np.uint8]) -> RecordDict:
    """Return a state as a message holds it; empty where its bytes are none, which no client can have done."""
    try:
        return unpacked(state.tobytes())
    except Exception as error:
        log.warning("checkpoint: a client's state cannot be read: %s", short(f"{type(error).__name__}: {error}"))
        return RecordDict()
