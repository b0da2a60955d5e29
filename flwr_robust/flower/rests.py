"""Rests: leave nodes that keep failing to answer out for a while, without blame.

A node fails if it answers with an error or not at all. Nobody can tell malice from a bad connection or a crash, so this
is no refusal and counts towards no quarantine. After ``after`` failures in a row a node rests for 2 rounds. If it fails
again when it is next asked, it rests for twice as long, up to 64 rounds. An answer takes back one of the failures, of
which at most ``after`` then count. So who answers now and then rests all the same, and ``after`` answers end all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["Rest", "Rests"]

_FIRST, _LONGEST = 2, 64  # rounds


class Rest(NamedTuple):
    """A rest that begins.

    Attributes
    ----------
    node : int
        The node.
    failures : int
        How many times it failed, less the failures that its answers took back.
    until : int
        The last round in which it is not asked.
    """

    node: int
    failures: int
    until: int


class Rests:
    """The failures of nodes, and the rounds until which they rest.

    Attributes
    ----------
    failures : dict of int to int
        Failures by node, less those that answers took back; above 0.
    until : dict of int to (int, int)
        The last round of each node's latest rest, and its length.

    Examples
    --------
    >>> rests = Rests()
    >>> [rests.settle(t, {5, 6, 7}, {7}, after=2) for t in (1, 2)]
    [[], [Rest(node=7, failures=2, until=4)]]
    >>> [rests.resting(t, [5, 7]) for t in (4, 5)]
    [[7], []]
    """

    def __init__(self) -> None:
        self.failures: dict[int, int] = {}
        self.until: dict[int, tuple[int, int]] = {}

    def settle(self, server_round: int, asked: Iterable[int], failed: Iterable[int], after: int) -> list[Rest]:
        """Count who failed in a round, and return the rests that begin.

        If more than half of the nodes failed, nothing is counted: the cause is then hardly theirs.

        Parameters
        ----------
        server_round : int
            The round.
        asked, failed : iterable of int
            The nodes that were asked, and those of them that failed.
        after : int
            How many failures begin a rest; >= 1.
        """
        asked, failed = set(asked), set(failed)
        for node in asked - failed:
            left = min(self.failures.pop(node, 0), after) - 1
            _, length = self.until.pop(node, (0, 0))
            if left > 0:
                self.failures[node] = left
                if length:
                    self.until[node] = server_round, length  # the rest is over; the next one is twice as long
        begun = []
        for node in sorted(failed) if 2 * len(failed) <= len(asked) else ():
            self.failures[node] = count = self.failures.get(node, 0) + 1
            if count >= after:
                _, length = self.until.get(node, (0, _FIRST // 2))
                length = min(2 * length, _LONGEST)
                self.until[node] = server_round + length, length
                begun.append(Rest(node, count, server_round + length))
        return begun

    def resting(self, server_round: int, nodes: Iterable[int]) -> list[int]:
        """Return which of these nodes rest in a round, those with the fewest failures first."""
        found = [node for node in nodes if server_round <= self.until.get(node, (0, 0))[0]]
        return sorted(found, key=lambda node: (self.failures.get(node, 0), node))

    def rename(self, old: int, new: int) -> None:
        """Give a node another id, as that of a simulation has after a resumption."""
        if old in self.failures:
            self.failures[new] = self.failures.pop(old)
        if old in self.until:
            self.until[new] = self.until.pop(old)

    def memory(self) -> dict[str, dict[int, int] | dict[int, tuple[int, int]]]:
        """Return what must last; it is `storable`."""
        return {"failures": dict(self.failures), "until": dict(self.until)}

    def recall(self, memory: Mapping[str, Mapping[int, object]]) -> None:
        """Restore what `memory` returned."""
        self.failures = dict(memory["failures"])  # type: ignore[arg-type]
        self.until = {node: tuple(each) for node, each in memory["until"].items()}  # type: ignore[arg-type,misc]
