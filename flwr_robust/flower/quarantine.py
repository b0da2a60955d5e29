"""Quarantine: the nodes of a run, those that are no longer asked, and the sample of each round.

A node (a client of Flower) holds a partition, which is its numbered share of the data. In a deployment the partition is
only what a node says about itself. There the node id, which Flower ties to the node's key, is the only identity. In a
simulation the runtime assigns the partitions, and draws node ids anew in every run. There the partition is the
identity, so that runs repeat to the bit.

A node goes into quarantine after ``quarantine_after`` refused replies, if the faults are certainly its own. It is then
no longer asked until it is released. Training and evaluation are counted apart, so a node without test data keeps its
place in training.

Other nodes are left out for a while, without blame. A node rests if it kept failing to answer
(`flwr_robust.flower.rests`). A node that joins after the first round may be on probation: it is not asked for its first
``probation`` rounds. Then a quarantined client that comes back under a new id, or a crowd of new nodes, has no
influence at once. It is not asked at all, so it gets no model, takes nobody's place, and costs the server nothing.

At most half of the known nodes rest at a time. Otherwise nodes that drop out one after the other would leave a few
alone, which could then be hostile. At least as many nodes as the strategy's rule needs are always left. If fewer are,
nodes that rest are asked as well, then those on probation, then those in quarantine with the fewest refusals. Their
replies are checked as usual. So an attacker gains nothing by getting itself or others into quarantine: the round has
enough replies all the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flwr.app import MessageType
from flwr.serverapp import Grid

from flwr_robust.errors import check_flag, check_integer
from flwr_robust.flower._compat import simulated
from flwr_robust.flower.rests import Rest, Rests
from flwr_robust.flower.waiting import wait_for_nodes
from flwr_robust.protocol.rounds import sample_clients

__all__ = ["Identity", "LeftOut", "Nodes"]

log = logging.getLogger("flwr")

_REST_AFTER = 3  # in a deployment; in a simulation failures are part of what is simulated


class Identity(NamedTuple):
    """What a node states about itself.

    Attributes
    ----------
    partition : int
        The partition of the node.
    gpus : str
        The node's CUDA_VISIBLE_DEVICES; ``all`` if it is not set.
    assigned : bool
        Whether the server assigned the partition, because the node named none or one that others named too.
    """

    partition: int
    gpus: str = "all"
    assigned: bool = False


class LeftOut(NamedTuple):
    """The available nodes that are not asked in a round.

    Attributes
    ----------
    blamed : tuple of int
        Those that are banned or in quarantine.
    waiting : tuple of int
        Those that rest or are on probation.
    """

    blamed: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()


class Nodes:
    """The nodes of a run: their partitions, their refusals, and which of them to ask.

    Parameters
    ----------
    least : int
        The smallest number of nodes that quarantine leaves to ask; >= 1.
    quarantine_after : int, optional
        Number of refusals after which a node is no longer asked. When not given, there is no quarantine.
    by_partition : bool, optional
        Whether partitions identify nodes. When not given, `begin` decides: in a simulation they do.
    rest_after : int, optional
        Number of failures in a row after which a node rests. When not given, it is 3; where partitions identify nodes,
        no node rests.
    probation : int
        For how many rounds a node that joins after the first round is not asked; 0 means none.

    Attributes
    ----------
    by_partition : bool
        Whether partitions identify nodes. If not, they are only shown: they move no quarantine, hand back no state, and
        have no part in the order of nodes.
    partitions : dict of int to int
        The known partitions, by node.
    refusals, evaluation_refusals : dict of int to int
        How many replies of each node to training, and to evaluation, were refused for a fault that is certainly its
        own, since its last release. Each decides about its own kind: a node that cannot evaluate may still train.
    banned : set of int
        The nodes that an operator has banned. They are never asked, however few others are left.
    assigned : set of int
        Nodes whose partition the server assigned, because they named none or one that others named too. They are never
        recognised as nodes of an earlier run.
    replaced : dict of int to int
        The partitions of nodes that had another id before the run was resumed, by the old id. Older records name the
        old ids.
    joined : dict of int to int
        With a probation: the round in which each node was first seen, 0 for those of the first round.
    rests : dict of str to Rests
        The nodes that keep failing to answer, for training and for evaluation.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds.

    Examples
    --------
    >>> nodes = Nodes(least=2, quarantine_after=1)
    >>> nodes.refused("train", 7), nodes.left_out("train", 1, [5, 6, 7]).blamed, nodes.left_out("train", 1, [5, 7])
    (True, (7,), LeftOut(blamed=(), waiting=()))
    >>> nodes.left_out("evaluate", 1, [5, 6, 7])
    LeftOut(blamed=(), waiting=())
    """

    def __init__(
        self,
        *,
        least: int = 1,
        quarantine_after: int | None = None,
        by_partition: bool | None = None,
        rest_after: int | None = None,
        probation: int = 0,
    ) -> None:
        check_integer("strategy", "probation", probation, 0)
        if rest_after is not None:
            check_integer("strategy", "rest_after", rest_after, 1)
        if by_partition is not None:
            check_flag("strategy", "by_partition", by_partition)
        check_integer("strategy", "least", least, 1)
        if quarantine_after is not None:
            check_integer("strategy", "quarantine_after", quarantine_after, 1)
        self.least = least
        self.quarantine_after = quarantine_after
        self.rest_after = rest_after
        self.probation = probation
        self._stated = by_partition
        self.by_partition = bool(by_partition)
        self.partitions: dict[int, int] = {}
        self.refusals: dict[int, int] = {}
        self.evaluation_refusals: dict[int, int] = {}
        self.banned: set[int] = set()
        self.assigned: set[int] = set()
        self.replaced: dict[int, int] = {}
        self.joined: dict[int, int] = {}
        self.rests = {kind: Rests() for kind in (MessageType.TRAIN, MessageType.EVALUATE)}

    # -- who they are -----------------------------------------------------------------------------

    def begin(self, grid: Grid) -> None:
        """Decide what identifies a node, unless it was stated: the partition in a simulation, else the node id."""
        if self._stated is None:
            self.by_partition = simulated(grid)

    def identify(self, identities: Mapping[int, Identity]) -> None:
        """Set the partitions, and keep which of them the server assigned."""
        self.partitions = {node: each.partition for node, each in identities.items()}
        self.assigned = {node for node, each in identities.items() if each.assigned}

    def order(self, node: int) -> tuple[int, int, int]:
        """Return a sort key: the node id; if partitions identify nodes, the known ones come first, by partition."""
        partition = self.partitions.get(node) if self.by_partition else None
        return (1, 0, node) if partition is None else (0, partition, node)

    def own_partitions(self, nodes: Iterable[int]) -> dict[int, int]:
        """Return the partitions that exactly one of these nodes holds; none unless partitions identify nodes.

        A partition that the server assigned is nobody's own.
        """
        if not self.by_partition:
            return {}
        known = {node: self.partitions[node] for node in nodes if node in self.partitions}
        count = Counter(known.values())
        return {node: own for node, own in known.items() if count[own] == 1 and node not in self.assigned}

    def recall(
        self,
        partitions: Mapping[int, int],
        refusals: Mapping[int, int],
        replaced: Mapping[int, int],
        evaluation_refusals: Mapping[int, int],
        absences: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Restore what is known of the nodes of an earlier run, whose ids may have changed, as in Flower's simulation.

        If partitions identify nodes, a node with a new id is recognised by its partition. This requires that the
        partition is known before the run continues, and that exactly one node held it then and now. Otherwise a node
        with a new id is a new node, whatever it says about itself.

        Parameters
        ----------
        partitions, refusals, replaced, evaluation_refusals : mapping of int to int
            The values of these attributes when the run stopped.
        absences : mapping
            What `absences` returned then.
        """
        self.joined = dict(absences.get("joined", {}))
        for kind, memory in absences.get("rests", {}).items():
            self.rests[kind].recall(memory)
        known, ledgers = dict(partitions), (dict(refusals), dict(evaluation_refusals))
        then, own = Counter(known.values()), self.own_partitions(self.partitions)
        former = {partition: node for node, partition in known.items() if then[partition] == 1}
        self.replaced = dict(replaced)
        for node, partition in self.partitions.items():
            old = former.get(partition)
            if old is None or old in self.partitions or node in partitions or node not in own:
                continue
            self.replaced[old] = known.pop(old)
            for counts in ledgers:
                if old in counts:
                    counts[node] = counts.pop(old)
            if old in self.banned:
                self.banned.add(node)
            if old in self.joined:
                self.joined[node] = self.joined.pop(old)
            for rests in self.rests.values():
                rests.rename(old, node)
        self.partitions = {**known, **self.partitions}
        self.refusals, self.evaluation_refusals = ledgers

    def absences(self) -> dict[str, Any]:
        """Return who joined when, and who rests, for a checkpoint; it is `storable`."""
        rests = {kind: each.memory() for kind, each in self.rests.items()}
        return {"joined": dict(self.joined), "rests": rests}

    # -- whom to ask ------------------------------------------------------------------------------

    @property
    def quarantined(self) -> tuple[int, ...]:
        """The nodes that are not asked to train, those with the fewest refusals first."""
        return self.quarantined_from(MessageType.TRAIN)

    def ledger(self, kind: str) -> dict[int, int]:
        """Return the refusals of replies of one kind, by node."""
        return self.refusals if kind == MessageType.TRAIN else self.evaluation_refusals

    def quarantined_from(self, kind: str) -> tuple[int, ...]:
        """Return the nodes that are not asked for replies of one kind, those with the fewest refusals first."""
        after, counts = self.quarantine_after, self.ledger(kind)
        if after is None:
            return ()
        held = (node for node, count in counts.items() if count >= after)
        return tuple(sorted(held, key=lambda node: (counts[node], self.order(node))))

    def refused(self, kind: str, node: int) -> bool:
        """Count a refusal that is a node's own fault, and say whether it puts the node into quarantine."""
        counts = self.ledger(kind)
        counts[node] = counts.get(node, 0) + 1
        return counts[node] == self.quarantine_after

    def release(self, node: int) -> bool:
        """Take a node out of quarantine, forget its refusals and lift its ban; say whether there were any."""
        known = node in self.banned
        self.banned.discard(node)
        forgotten = [counts.pop(node, 0) for counts in (self.refusals, self.evaluation_refusals)]
        return known or any(forgotten)

    def settle(self, kind: str, server_round: int, asked: Iterable[int], failed: Iterable[int]) -> list[Rest]:
        """Count which of the nodes asked failed to answer, and return the rests that begin."""
        after = (None if self.by_partition else _REST_AFTER) if self.rest_after is None else self.rest_after
        return [] if after is None else self.rests[kind].settle(server_round, asked, failed, after)

    def _newcomers(self, server_round: int, nodes: set[int]) -> list[int]:
        """Note which nodes are new, and return those on probation, the earliest first."""
        if not self.probation:
            return []
        first = not self.joined
        for node, round_joined in list(self.joined.items()):
            if node not in nodes and server_round - round_joined < self.probation and round_joined:
                del self.joined[node]  # so that short-lived nodes fill no memory; the probation begins anew
        for node in nodes - self.joined.keys():
            self.joined[node] = 0 if first else server_round
        found = [node for node in nodes if self.joined[node] and server_round - self.joined[node] < self.probation]
        return sorted(found, key=lambda node: (self.joined[node], self.order(node)))

    def left_out(
        self, kind: str, server_round: int, nodes: Iterable[int], connected: Iterable[int] | None = None
    ) -> LeftOut:
        """Return which of the available nodes are not asked in a round.

        Parameters
        ----------
        kind : str
            ``train`` or ``evaluate``.
        server_round : int
            The round.
        nodes : iterable of int
            The nodes that could be asked.
        connected : iterable of int, optional
            All connected nodes, if they are more.
        """
        nodes = set(nodes)
        newcomers = self._newcomers(server_round, nodes if connected is None else {*connected})
        barred = sorted(nodes & self.banned, key=self.order)
        nodes -= self.banned
        blamed = [node for node in self.quarantined_from(kind) if node in nodes]
        others = nodes - {*blamed}
        known = others - {*newcomers}
        resting = self.rests[kind].resting(server_round, known)
        resting = resting[max(len(resting) - (len(known) - 1) // 2, 0) :]  # more than half are always asked
        waiting = [*resting, *(node for node in newcomers if node in others)]
        missing = max(self.least - (len(others) - len(waiting)), 0)
        return LeftOut((*barred, *blamed[max(missing - len(waiting), 0) :]), tuple(waiting[missing:]))

    def sample(
        self,
        kind: str,
        server_round: int,
        grid: Grid,
        fraction: float,
        minimum: int,
        available: int,
        spares: int = 0,
        *,
        seed: int,
        who: str,
        wait: float | None = None,
    ) -> tuple[list[int], LeftOut, int]:
        """Wait for enough nodes, and draw those to ask; return them in order.

        Parameters
        ----------
        kind : str
            ``train`` or ``evaluate``.
        server_round : int
            The round.
        grid : Grid
            The grid with the nodes.
        fraction : float
            The share of all nodes to ask.
        minimum : int
            The smallest number of nodes to ask, unless fewer are left.
        available : int
            How many nodes to wait for.
        spares : int
            How many to ask beyond the minimum where so many are there.
        seed : int
            The seed of the round.
        who : str
            Who asks, such as ``krum(f=3)``, for the log.
        wait : float, optional
            How many seconds to wait at most; see `wait_for_nodes`.

        Returns
        -------
        list of int
            The nodes to ask.
        LeftOut
            The nodes that are left out.
        int
            How many nodes there were to choose from, with those left out.
        """
        nodes = wait_for_nodes(grid, max(available, minimum), self._needs(who, max(available, minimum)), wait)
        size = max(int(len(nodes) * fraction), min(minimum + spares, len(nodes)))
        held = self.left_out(kind, server_round, nodes)
        away = {*held.blamed, *held.waiting}
        pool = sorted((node for node in nodes if node not in away), key=self.order)
        size = min(size, len(pool))
        chosen = sample_clients(seed, kind, server_round, len(pool), size)
        log.info("configure_%s: Sampled %s nodes (out of %s)", kind, size, len(nodes))
        return [pool[index] for index in chosen], held, len(nodes)

    def _needs(self, who: str, needed: int) -> str:
        """Return who needs how many nodes, in words."""
        if needed == self.least:
            return f"{who} needs {needed} nodes"
        return f"the strategy's minimum is {needed} nodes ({who} needs {self.least})"
