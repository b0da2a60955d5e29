"""Signs that a client may attack although its replies are admitted: suspicions, which refuse and blame nobody.

The signs are found in what the log holds of rounds of training, at the end of each:

- duplicate: the update has the same fingerprint as that of another node in the round.
- replay: the update has the same fingerprint as one of an earlier round, of any node.
- drift: over many rounds, the updates lie on one side of the others', more often than chance allows.
- failing: the client answered with an error, or not at all, several times in a row.

Fingerprints are those of `Fingerprints`; updates of zeros and unchanged models have none. Clients with the same data,
the same seed and full batches send identical updates and do not attack. A client whose data are unlike all others'
drifts.

The test for drift is Page's (1954) cumulative sum. Let c_i be the cosine of the angle between the update of client i
and the aggregate, and s_i = sign(c_i - median of c) in a round. If clients do not differ, both signs are equally
likely, whatever the distribution of c. For each side, with p = 0.9 against 1/2,

    S <- min(max(0, S + log(2 p)), h) if s_i is on this side;  S <- max(0, S + log(2 (1 - p))) if on the other

and h = log(10^6). By Lorden (1971), the mean number of rounds until a false alarm is at least e^h for one side, and
half of it for both. So a client that does not differ from the others is suspected less than once in 500,000 rounds. A
client that is always on one side is suspected after 24 rounds. If more than a quarter of a round's clients are beyond
h, now or before, the clients differ persistently among each other. Then nobody more is suspected.

E. S. Page, "Continuous inspection schemes", Biometrika 41 (1954). G. Lorden, "Procedures for reacting to a change in
distribution", Annals of Mathematical Statistics 42 (1971).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr_robust.audit.events import (
    Aggregated,
    Event,
    ReplyAbstained,
    ReplyAdmitted,
    ReplyRefused,
    RoundConfigured,
    Suspected,
)

__all__ = ["DRIFT", "DUPLICATE", "FAILING", "REPLAY", "Signs"]

DUPLICATE, REPLAY, DRIFT, FAILING = "duplicate", "replay", "drift", "failing"

_ROUNDS = 100  # how many rounds fingerprints are remembered
_STREAK = 3  # errors in a row that are a sign; the next are at twice as many, and so on
_SAME, _OTHER = math.log(2 * 0.9), math.log(2 * 0.1)
_THRESHOLD = math.log(10**6)
_SHARE = 0.25  # of a round's clients that may drift; if there are more, they differ among each other
_FEWEST = 4  # clients of a round whose median is compared with


@dataclass
class _Round:
    """A round of training until it is aggregated."""

    number: int
    asked: tuple[int, ...]
    answered: set[int] = field(default_factory=set)
    failed: list[int] = field(default_factory=list)
    fingerprints: dict[int, str] = field(default_factory=dict)


class Signs:
    """Finds signs in the events of a log, one after the other.

    What it remembers does not grow with the number of rounds: fingerprints of the last 100 rounds, and four values
    per client.

    Examples
    --------
    >>> signs, events = Signs(), [RoundConfigured(1, "train", (5, 6))]
    >>> events += [ReplyAdmitted(1, "train", node, fingerprint="ab") for node in (5, 6)]
    >>> events += [Aggregated(1, "OK", "", "", "", (5, 6))]
    >>> [(found.node, found.sign) for event in events for found in signs.take(event)]
    [(5, 'duplicate'), (6, 'duplicate')]
    """

    def __init__(self) -> None:
        self._round: _Round | None = None
        self._first: dict[str, tuple[int, int]] = {}  # round and node that first sent an update, by fingerprint
        self._kept: deque[tuple[int, list[str]]] = deque()  # the fingerprints first seen in each round
        self._sums: dict[int, tuple[float, float]] = {}  # the test for drift, by node: below and above the median
        self._drifted: set[int] = set()  # the nodes that were suspected of drift
        self._streaks: dict[int, int] = {}

    def take(self, event: Event) -> list[Suspected]:
        """Read the next event, and return what it makes suspect.

        Parameters
        ----------
        event : Event
            The next event of a log, without those of rounds that were undone (`counting`).
        """
        if isinstance(event, RoundConfigured) and event.phase == "train":
            self._round = _Round(event.round, event.asked)
        current = self._round
        if current is None or getattr(event, "round", None) != current.number:
            return []
        if isinstance(event, ReplyAdmitted | ReplyAbstained | ReplyRefused) and event.phase == "train":
            current.answered.add(event.node)
            if isinstance(event, ReplyAdmitted) and event.fingerprint:
                current.fingerprints[event.node] = event.fingerprint
            elif isinstance(event, ReplyRefused) and event.reason == "ERROR":
                current.failed.append(event.node)
        elif isinstance(event, Aggregated):
            self._round = None
            found = [*self._identical(current), *self._drifting(event), *self._failing(current)]
            return [Suspected(current.number, *each) for each in found]
        return []

    def _identical(self, current: _Round) -> Iterable[tuple[int, str, str]]:
        """Yield the nodes whose update is another one's, or an earlier one."""
        holders: dict[str, list[int]] = {}
        for node, fingerprint in current.fingerprints.items():
            holders.setdefault(fingerprint, []).append(node)
        for fingerprint, nodes in holders.items():
            earlier = self._first.get(fingerprint)
            for node in nodes:
                if len(nodes) > 1:
                    others = ", ".join(str(other) for other in nodes[:6] if other != node)
                    yield node, DUPLICATE, f"the same update as {len(nodes) - 1} other nodes: {others}"
                if earlier is not None:
                    yield node, REPLAY, f"the same update as that of node {earlier[1]} in round {earlier[0]}"
        new = {fingerprint: nodes[0] for fingerprint, nodes in holders.items() if fingerprint not in self._first}
        self._first.update({fingerprint: (current.number, node) for fingerprint, node in new.items()})
        self._kept.append((current.number, [*new]))
        while len(self._kept) > _ROUNDS:
            for fingerprint in self._kept.popleft()[1]:
                del self._first[fingerprint]

    def _drifting(self, event: Aggregated) -> Iterable[tuple[int, str, str]]:
        """Yield the nodes that are on one side of the others' median too often to be chance."""
        cosines = {
            node: math.cos(math.radians(angle))
            for node, angle in zip(event.nodes, event.angles, strict=False)
            if angle is not None and math.isfinite(angle)
        }
        if len(cosines) < _FEWEST:
            return
        middle = statistics.median(cosines.values())
        for node, cosine in cosines.items():
            below, above = self._sums.get(node, (0.0, 0.0))
            if cosine < middle:
                self._sums[node] = _next(below, _SAME), _next(above, _OTHER)
            elif cosine > middle:
                self._sums[node] = _next(below, _OTHER), _next(above, _SAME)
        beyond = [node for node in cosines if max(self._sums.get(node, (0.0, 0.0))) >= _THRESHOLD]
        if len({*beyond, *(self._drifted & cosines.keys())}) > _SHARE * len(cosines):
            return
        self._drifted.update(beyond)
        for node in beyond:
            below, above = self._sums.pop(node)
            side = "farther from the aggregate" if below >= above else "closer to the aggregate"
            yield node, DRIFT, f"in direction, its updates are {side} than most others', round after round"

    def _failing(self, current: _Round) -> Iterable[tuple[int, str, str]]:
        """Yield the nodes that have failed often enough in a row."""
        failed = {*current.failed, *(node for node in current.asked if node not in current.answered)}
        for node in current.asked:
            if node not in failed:
                self._streaks.pop(node, None)
                continue
            streak = self._streaks[node] = self._streaks.get(node, 0) + 1
            multiple, rest = divmod(streak, _STREAK)
            if not rest and multiple.bit_count() == 1:
                yield node, FAILING, f"errors or no answer in {streak} rounds in a row"


def _next(value: float, step: float) -> float:
    return min(max(0.0, value + step), _THRESHOLD)
