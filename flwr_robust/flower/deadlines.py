"""Deadlines: close a round at a time if enough nodes have answered, instead of waiting for every node that was asked.

A round closes when all nodes have answered, or when the deadline has passed and a quorum of nodes has answered without
an error. Without a quorum it stays open until Flower's timeout. The result does not depend on the order in which
replies arrive. It depends on which replies are in time, so runs with a deadline need not repeat.

Replies that come after their round has closed are never read. On record their nodes are silent. A reply counts towards
the quorum before it is checked. So one that is refused afterwards may take the place of a slow honest one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flwr_robust.errors import ConfigurationError, check_number

__all__ = ["DeadlineGrid", "check_deadline", "closing", "quorum_of"]

log = logging.getLogger("flwr")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two looks for replies


def check_deadline(owner: str, deadline: float | None, quorum: float | None) -> None:
    """Raise unless a deadline and a quorum can be used.

    Parameters
    ----------
    owner : str
        The owner of the parameters, which opens the sentence.
    deadline : float, optional
        Seconds, > 0.
    quorum : float, optional
        A share of the nodes asked, in (0, 1], or a whole number of replies above 1. It needs a deadline.

    Raises
    ------
    ConfigurationError
        If a value is outside its bounds.
    """
    if deadline is not None:
        check_number(owner, "deadline", deadline, above=0)
    if quorum is None:
        return
    check_number(owner, "quorum", quorum, above=0)
    if deadline is None:
        raise ConfigurationError(
            f"{owner}: quorum={quorum:g} has no effect without a deadline; set deadline= (seconds)"
        )
    if quorum > 1 and quorum != int(quorum):
        raise ConfigurationError(
            f"{owner}: quorum must be a share of the nodes asked, in (0, 1], or a whole number of replies; got "
            f"quorum={quorum:g}"
        )


def quorum_of(quorum: float, asked: int) -> int:
    """Return how many replies are a quorum.

    Parameters
    ----------
    quorum : float
        A share of the nodes asked, in (0, 1], or a whole number of replies above 1.
    asked : int
        How many nodes are asked.

    Examples
    --------
    >>> quorum_of(0.75, 10), quorum_of(1.0, 10), quorum_of(7, 10)
    (8, 10, 7)
    """
    return math.ceil(quorum * asked - 1e-9) if quorum <= 1 else int(quorum)


class DeadlineGrid(Grid):
    """A Grid that closes rounds at a deadline.

    Parameters
    ----------
    grid : Grid
        The grid that carries the messages.
    deadline : float
        Seconds from the moment at which the messages are sent.
    quorum : callable (str, int) -> int
        Takes ``train`` or ``evaluate`` and how many nodes are asked. Returns how many must have answered without an
        error, so that the round may close before all have answered.
    clock, sleep : callable
        The time in seconds, and how to let it pass.
    """

    def __init__(
        self,
        grid: Grid,
        deadline: float,
        quorum: Callable[[str, int], int],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._inner, self._deadline, self._quorum = grid, deadline, quorum
        self._clock, self._sleep = clock, sleep

    def __getattr__(self, name: str) -> Any:
        """Look up attributes that only some Grids have on the inner grid."""
        if name == "_inner":  # before __init__, when unpickled or copied
            raise AttributeError(name)
        return getattr(self._inner, name)

    def set_run(self, run: Any) -> None:
        """Set the run of the inner grid."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """The run of the inner grid."""
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message with the inner grid."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the inner grid."""
        return self._inner.get_node_ids()

    def get_nodes(self) -> Any:
        """Return the nodes of the inner grid."""
        return self._inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages to the inner grid."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies from the inner grid."""
        return self._inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push the messages of a round, and pull their replies until the round closes; other messages as ever."""
        sent = list(messages)
        kind = sent[0].metadata.message_type.partition(".")[0] if sent else ""
        if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
            return self._inner.send_and_receive(sent, timeout=timeout)
        needed = self._quorum(kind, len(sent))
        waiting = {identifier for identifier in self._inner.push_messages(sent) if identifier}
        replies: list[Message] = []
        started, pause, usable = self._clock(), _FIRST_PAUSE, 0
        while waiting:
            for reply in self._inner.pull_messages(waiting):
                replies.append(reply)
                if reply.metadata.reply_to_message_id in waiting:  # one per message counts, whoever sends more
                    waiting.discard(reply.metadata.reply_to_message_id)
                    usable += reply.has_content()
            passed = self._clock() - started
            if not waiting or (timeout is not None and passed >= timeout):
                break
            if passed >= self._deadline and usable >= needed:
                log.info("The round closes after %.1f s with %s of %s replies", passed, len(replies), len(sent))
                break
            ends = [end - passed for end in (self._deadline, timeout) if end is not None and end > passed]
            self._sleep(min([pause, *ends]))
            pause = min(2 * pause, _LONGEST_PAUSE)
        return replies


@contextmanager
def closing(grid: Grid, deadline: float | None, quorum: Callable[[str, int], int]) -> Iterator[Grid]:
    """Return a grid that closes rounds at a deadline, for a ``with`` block.

    A grid that changes replies when all of a round have arrived keeps its place outside. It has a method ``around``
    that takes a function and wraps its inner grid, as `AdversarialGrid` does.

    Parameters
    ----------
    grid : Grid
        The grid of the run.
    deadline, quorum
        As for `DeadlineGrid`; without a deadline the grid stays as it is.
    """
    if deadline is None:
        yield grid
        return

    def timed(inner: Grid) -> Grid:
        return DeadlineGrid(inner, deadline, quorum)

    if hasattr(type(grid), "around"):
        with grid.around(timed):  # type: ignore[attr-defined]
            yield grid
    else:
        yield timed(grid)
