"""Whom to ask: the nodes of a run by partition, those in quarantine, and the sample of a round.

Quarantine: a node whose replies were refused ``quarantine_after`` times, for what was certainly its own doing, is no
longer asked, until it is released. The nodes left are never fewer than the strategy's rule needs: where they would be,
those in quarantine with the fewest refusals are asked all the same, and judged like everybody. So whoever has others,
or itself, put into quarantine gains nothing: the round has no fewer replies than it would have had without.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flwr.serverapp import Grid

from flwr_robust.errors import check_integer
from flwr_robust.flower._compat import connected_nodes
from flwr_robust.protocol.rounds import sample_clients

__all__ = ["Identity", "Nodes"]

log = logging.getLogger("flwr")


class Identity(NamedTuple):
    """What a node says of itself.

    Attributes
    ----------
    partition : int
        The partition that it holds.
    gpus : str
        Its CUDA_VISIBLE_DEVICES; ``all`` where it is not set.
    assigned : bool
        Whether the partition was assigned to it, because it named none, or one that others named, too.
    """

    partition: int
    gpus: str = "all"
    assigned: bool = False


class Nodes:
    """The nodes of a run: their partitions, how often they were refused, and which of them to ask.

    Parameters
    ----------
    seed : int
        Source of the samples.
    least : int
        Quarantine leaves at least as many nodes; >= 1.
    quarantine_after : int, optional
        Refusals after which a node is no longer asked; never when not given.

    Attributes
    ----------
    partitions : dict of int to int
        The partition of each node, as far as it is known.
    refusals : dict of int to int
        How often each node was refused for what was certainly its own doing, since it was last released.
    assigned : set of int
        Nodes whose partition was assigned to them, because they named none, or one that others named, too: they are
        taken for nobody's successor.
    replaced : dict of int to int
        The partitions of nodes that had other ids before the run was resumed; their records name the old ones.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds.

    Examples
    --------
    >>> nodes = Nodes(least=2, quarantine_after=1)
    >>> nodes.refused(7), nodes.withheld([5, 6, 7]), nodes.withheld([5, 7])
    (True, (7,), ())
    """

    def __init__(self, *, seed: int = 0, least: int = 1, quarantine_after: int | None = None) -> None:
        check_integer("strategy", "seed", seed, 0)
        check_integer("strategy", "least", least, 1)
        if quarantine_after is not None:
            check_integer("strategy", "quarantine_after", quarantine_after, 1)
        self.seed = seed
        self.least = least
        self.quarantine_after = quarantine_after
        self.partitions: dict[int, int] = {}
        self.refusals: dict[int, int] = {}
        self.assigned: set[int] = set()
        self.replaced: dict[int, int] = {}

    # -- who they are -----------------------------------------------------------------------------

    def identify(self, identities: Mapping[int, Identity]) -> None:
        """Set the partitions, with which of them are the nodes' own word."""
        self.partitions = {node: each.partition for node, each in identities.items()}
        self.assigned = {node for node, each in identities.items() if each.assigned}

    def order(self, node: int) -> tuple[int, int, int]:
        """Nodes of known partition first, by partition; then, and where two claim the same, by id."""
        partition = self.partitions.get(node)
        return (1, 0, node) if partition is None else (0, partition, node)

    def own_partitions(self, nodes: Iterable[int]) -> dict[int, int]:
        """Return the partitions of the nodes that alone, of all these, are said to hold theirs, by themselves."""
        known = {node: self.partitions[node] for node in nodes if node in self.partitions}
        count = Counter(known.values())
        return {node: own for node, own in known.items() if count[own] == 1 and node not in self.assigned}

    def recall(self, partitions: Mapping[int, int], refusals: Mapping[int, int], replaced: Mapping[int, int]) -> None:
        """Restore what is known of nodes, also of those that have new ids since, as all have that Flower simulates.

        They are known by their partition, if it is known before the run goes on, and if one node alone was said to
        hold it, then and now: nobody gets another one into quarantine by naming its partition.

        Parameters
        ----------
        partitions, refusals, replaced : mapping of int to int
            What these attributes were when the run stopped.
        """
        known, counts = dict(partitions), dict(refusals)
        then, own = Counter(known.values()), self.own_partitions(self.partitions)
        former = {partition: node for node, partition in known.items() if then[partition] == 1}
        self.replaced = dict(replaced)
        for node, partition in self.partitions.items():
            old = former.get(partition)
            if old is None or old in self.partitions or node in partitions or node not in own:
                continue
            self.replaced[old] = known.pop(old)
            if old in counts:
                counts[node] = counts.pop(old)
        self.partitions, self.refusals = {**known, **self.partitions}, counts

    # -- whom to ask ------------------------------------------------------------------------------

    @property
    def quarantined(self) -> tuple[int, ...]:
        """The nodes in quarantine, those with the fewest refusals first."""
        if self.quarantine_after is None:
            return ()
        held = (node for node, count in self.refusals.items() if count >= self.quarantine_after)
        return tuple(sorted(held, key=lambda node: (self.refusals[node], self.order(node))))

    def refused(self, node: int) -> bool:
        """Count a refusal of a node's own doing, and say whether it is the one that puts the node into quarantine."""
        self.refusals[node] = self.refusals.get(node, 0) + 1
        return self.refusals[node] == self.quarantine_after

    def release(self, node: int) -> bool:
        """Let a node out of quarantine and forget its refusals; say whether there were any."""
        return self.refusals.pop(node, None) is not None

    def withheld(self, nodes: Iterable[int]) -> tuple[int, ...]:
        """Return the nodes, of those that could be asked, that quarantine leaves out."""
        nodes = set(nodes)
        held = [node for node in self.quarantined if node in nodes]
        return tuple(held[max(self.least - (len(nodes) - len(held)), 0) :])

    def sample(
        self, kind: str, server_round: int, grid: Grid, fraction: float, minimum: int, available: int
    ) -> tuple[list[int], tuple[int, ...]]:
        """Draw the nodes to ask from the seed, in order, once there are enough.

        Parameters
        ----------
        kind : str
            ``train`` or ``evaluate``.
        server_round : int
            The round.
        grid : Grid
            Where the nodes are.
        fraction : float
            The share of all nodes to ask.
        minimum : int
            The smallest number to ask; fewer only if quarantine leaves fewer.
        available : int
            How many nodes to wait for.

        Returns
        -------
        list of int
            The nodes to ask.
        tuple of int
            The nodes left out because they are in quarantine.
        """
        size = max(int(len(list(grid.get_node_ids())) * fraction), minimum)
        nodes = connected_nodes(grid, available, size)
        held = self.withheld(nodes)
        pool = sorted((node for node in nodes if node not in held), key=self.order)
        size = min(size, len(pool))
        chosen = sample_clients(self.seed, kind, server_round, len(pool), size)
        log.info("configure_%s: Sampled %s nodes (out of %s)", kind, size, len(nodes))
        return [pool[index] for index in chosen], held
