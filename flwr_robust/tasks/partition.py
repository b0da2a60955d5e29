"""Who holds which samples: partitions of a labelled data set over clients.

A partition is a component like a rule: ``dirichlet(beta=0.1)``. Called with labels, a number of clients and a seed it
returns one index array per client; the arrays are disjoint and cover every sample. Each class says whether clients may
be without data.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from flwr_robust.core.fields import Choice, Flag, Integer, ListOf, Number
from flwr_robust.core.spec import Component, Registry
from flwr_robust.errors import ConfigurationError, check_integer
from flwr_robust.seeds import numpy_generator

__all__ = [
    "ByLabel",
    "Dirichlet",
    "GammaSimilarity",
    "Iid",
    "KClasses",
    "Natural",
    "Partition",
    "Peng2025",
    "Shards",
    "Sizes",
    "label_distances",
    "partitions",
]

Indices = NDArray[np.int64]

_REDRAWS = 20_000

partitions: Registry[Partition] = Registry("partition", "flwr_robust.tasks", "flwr_robust.partitions")


@dataclass(frozen=True)
class Partition(Component, ABC):
    """A way to spread samples over clients."""

    def __call__(
        self, labels: NDArray[np.integer], clients: int, seed: int, owners: NDArray[np.integer] | None = None
    ) -> list[Indices]:
        """Split samples.

        Parameters
        ----------
        labels : array (N,) of int
            Class of every sample, 0 .. K - 1.
        clients : int
            Number of parts; at least 1, at most N.
        seed : int
            The run's seed.
        owners : array (N,) of int, optional
            Who every sample came from, 0 .. owners - 1; `Natural` and some of `FlwrDatasets` read it.

        Returns
        -------
        list of array of int64
            ``clients`` arrays of sample indices, disjoint, covering 0 .. N - 1 unless the partition says that it leaves
            samples over. They are ascending, unless the partition says otherwise: clients that take consecutive samples
            follow this order.

        Raises
        ------
        ConfigurationError
            If the samples cannot be split in this way.
        """
        check_integer(self.name, "clients", clients, 1)
        labels = np.asarray(labels)
        if labels.size and labels.min() < 0:
            raise ConfigurationError(f"{self.name}: labels must be class numbers >= 0; got {labels.min()}")
        if clients > len(labels):
            raise ConfigurationError(
                f"{self.name}: clients must be at most the number of samples, {len(labels)}; got clients={clients}"
            )
        fields = [float(v) if isinstance(v, int | float) else v for v in self.drawn_from()]
        generator = numpy_generator(seed, "partition", self.name, repr(fields), clients)
        parts = self.split_owned(labels, owners, clients, generator)
        return [(np.sort(part) if self.ascending else part).astype(np.int64) for part in parts]

    @property
    def ascending(self) -> bool:
        """Say whether each client's samples are put into ascending order."""
        return True

    @property
    def reads_classes(self) -> bool:
        """Say whether the parts depend on the samples' classes; such a partition needs a task with classes."""
        return True

    def drawn_from(self) -> tuple[object, ...]:
        """Return the fields on which the draw depends."""
        return dataclasses.astuple(self)

    def split_owned(
        self,
        labels: NDArray[np.integer],
        owners: NDArray[np.integer] | None,
        clients: int,
        generator: np.random.Generator,
    ) -> list[Indices]:
        """Return the parts; a partition that follows the owners overrides this instead of `split`."""
        return self.split(labels, clients, generator)

    @abstractmethod
    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Return the parts, in any order within each."""


def _by_class(labels: NDArray[np.integer], generator: np.random.Generator) -> list[Indices]:
    """Return the shuffled indices of every class."""
    return [generator.permutation(np.flatnonzero(labels == k)) for k in range(int(labels.max()) + 1)]


def _deal(owners: list[list[int]], classes: list[Indices], clients: int) -> list[Indices]:
    """Split every class evenly over the clients that own it."""
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for holders, indices in zip(owners, classes, strict=True):
        for holder, piece in zip(holders, np.array_split(indices, len(holders)), strict=True):
            parts[holder].append(piece)
    return [np.concatenate(part) if part else np.empty(0, np.int64) for part in parts]


def _spread(
    classes: list[Indices], clients: int, minimum: int, cut: Callable[[int, Indices], Indices | None]
) -> list[Indices] | None:
    """Cut the classes at drawn places until every client has enough; None if that takes too many draws.

    ``cut`` takes the size of a class and how many samples every client holds so far. It returns the places, or None
    if all of the mass that was drawn lies on clients that are full.
    """
    for _ in range(_REDRAWS):
        held, cuts = np.zeros(clients, np.int64), []
        for indices in classes:
            at = cut(len(indices), held)
            if at is None:
                break
            held += np.diff(np.concatenate([[0], at, [len(indices)]]))
            cuts.append(at)
        if len(cuts) == len(classes) and held.min() >= minimum:
            pieces = [np.split(indices, at) for indices, at in zip(classes, cuts, strict=True)]
            return [np.concatenate([piece[c] for piece in pieces]) for c in range(clients)]
    return None


@partitions.register("iid")
@dataclass(frozen=True)
class Iid(Partition):
    """Shuffled samples in equal parts (sizes differ by at most one). No client is empty."""

    @property
    def reads_classes(self) -> bool:
        """Return False: only the number of samples matters."""
        return False

    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Shuffle and cut."""
        return list(np.array_split(generator.permutation(len(labels)), clients))


@partitions.register("dirichlet")
@dataclass(frozen=True)
class Dirichlet(Partition):
    """Each class spread by proportions drawn from Dirichlet(beta, ..., beta).

    Small beta is heterogeneous, large beta nearly iid. No client holds fewer than ``minimum`` samples: the draw is
    repeated until this holds; after 20,000 draws an error is raised. ``minimum=0`` allows empty clients.

    Attributes
    ----------
    beta : float
        Concentration; > 0.
    balanced : bool
        The variant of Peng et al. (JMLR 2025): a client that already holds N / clients samples gets no more of later
        classes, and each ends with at least 10.
    minimum : int, optional
        Least samples per client; 10 when balanced, else 1.
    order : str
        ``ascending``, or ``by_class``: each client's samples class after class, shuffled within a class. Clients are
        the same; clients that take consecutive samples then have batches of hardly more than one class.
    """

    beta: Annotated[float, Number(above=0)]
    balanced: Annotated[bool, Flag()] = False
    minimum: Annotated[int | None, Integer(minimum=0)] = None
    order: Annotated[str, Choice(("ascending", "by_class"))] = "ascending"

    def drawn_from(self) -> tuple[object, ...]:
        """Return all but the order: the same clients in either."""
        return self.beta, self.balanced, self.minimum

    @property
    def ascending(self) -> bool:
        """Say whether each client's samples are put into ascending order."""
        return self.order == "ascending"

    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Draw proportions until every client has enough, then cut the classes."""
        classes = _by_class(labels, generator)
        least = self.minimum if self.minimum is not None else (10 if self.balanced else 1)
        share = len(labels) / clients
        if least > share:
            raise ConfigurationError(
                f"dirichlet: minimum must be at most samples / clients = {share:.3g}; got minimum={least}"
            )

        def cut(size: int, held: Indices) -> Indices | None:
            proportions = generator.dirichlet(np.full(clients, float(self.beta)))
            if self.balanced:
                proportions = proportions * (held < share)
            sums = np.cumsum(proportions)
            # Divided by the last sum, not by one, so that a client with no share at the end gets nothing.
            return np.rint(sums[:-1] / sums[-1] * size).astype(np.int64) if sums[-1] > 0 else None

        if (parts := _spread(classes, clients, least, cut)) is not None:
            return parts
        raise ConfigurationError(
            f"dirichlet: beta={self.beta} left a client with fewer than minimum={least} samples in "
            f"each of {_REDRAWS:,} "
            f"draws; take a larger beta, fewer clients, balanced=True, or minimum=0 to allow empty clients"
        )


@partitions.register("peng2025")
@dataclass(frozen=True)
class Peng2025(Partition):
    """The Dirichlet split of the code behind Peng et al. (JMLR 26, 2025): one draw, the same for every seed.

    Proportions come from numpy's legacy generator with seed 1. A client that already holds N / clients samples gets no
    more of later classes. Cuts are rounded down, and the draw is repeated until every client has ``minimum`` samples.
    Each client's samples stand class after class, shuffled within a class. The run's seed draws the shuffles alone. So
    seeds repeat training, not who is poisoned. `Dirichlet` with ``balanced`` and ``order="by_class"`` draws the split
    from the seed, too.

    Attributes
    ----------
    beta : float
        Concentration; > 0.
    minimum : int
        Least samples per client; 10 in the authors' mild setting, 3,000 and 4,000 in their grid at 0.1 and 0.01.
    """

    beta: Annotated[float, Number(above=0)]
    minimum: Annotated[int, Integer(minimum=0)] = 10

    @property
    def ascending(self) -> bool:
        """Return False: the samples stand class after class."""
        return False

    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Draw proportions until every client has enough, then cut the classes."""
        classes, share = _by_class(labels, generator), len(labels) / clients
        if self.minimum > share:
            raise ConfigurationError(
                f"peng2025: minimum must be at most samples / clients = {share:.3g}; got minimum={self.minimum}"
            )
        legacy = np.random.RandomState(1)

        def cut(size: int, held: Indices) -> Indices | None:
            proportions = legacy.dirichlet(np.full(clients, float(self.beta))) * (held < share)
            total = proportions.sum()
            return (np.cumsum(proportions / total) * size).astype(np.int64)[:-1] if total > 0 else None

        if (parts := _spread(classes, clients, self.minimum, cut)) is not None:
            return parts
        raise ConfigurationError(
            f"peng2025: beta={self.beta} left a client with fewer than minimum={self.minimum} samples in each of "
            f"{_REDRAWS:,} draws; take a larger beta, fewer clients, or a smaller minimum"
        )


@partitions.register("gamma_similarity")
@dataclass(frozen=True)
class GammaSimilarity(Partition):
    """A share gamma of all samples dealt at random, the others in order of their label; both in equal parts.

    gamma = 1 is iid, and gamma = 0 gives each client hardly more than one class or two. Karimireddy, Kale, Mohri,
    Reddi, Stich, Suresh, "SCAFFOLD: stochastic controlled averaging for federated learning" (ICML 2020), call it
    similarity. ByzFL has it under this name, and divides the samples among honest clients alone. For that the last
    ``idle`` clients, which are the attackers, hold a single sample each. It suits attacks on messages. No client is
    empty as long as there are two samples for each.

    Attributes
    ----------
    gamma : float
        The share of samples that is dealt at random; in [0, 1].
    idle : int
        How many clients, the last ones, hold a single sample each; >= 0 and below the number of clients.
    """

    gamma: Annotated[float, Number(minimum=0, maximum=1)]
    idle: Annotated[int, Integer(minimum=0)] = 0

    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Deal the first samples of a random order, and cut the others by label."""
        holders = clients - self.idle
        if holders < 1:
            raise ConfigurationError(
                f"gamma_similarity: idle must be below the number of clients, {clients}; got idle={self.idle}"
            )
        order = generator.permutation(len(labels))
        single, order = order[: self.idle, None], order[self.idle :]
        similar = int(self.gamma * len(order))
        rest = order[similar:]
        rest = rest[np.lexsort((rest, labels[rest]))]
        halves = zip(np.array_split(order[:similar], holders), np.array_split(rest, holders), strict=True)
        parts = [np.concatenate(both) for both in halves]
        return [*parts, *single]


@partitions.register("by_label")
@dataclass(frozen=True)
class ByLabel(Partition):
    """Class k to client k mod clients; with more clients than classes, clients k, k + K, ... share class k.

    No client is empty as long as every class has as many samples as clients share it.
    """

    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Hand out whole classes."""
        classes = _by_class(labels, generator)
        count = len(classes)
        owners = [[k % clients] if clients <= count else list(range(k, clients, count)) for k in range(count)]
        return _deal(owners, classes, clients)


_EXCHANGES = 20  # per pair; after about ten nothing is left of the order they started in


def _mix(pairs: list[tuple[int, int]], generator: np.random.Generator) -> None:
    """Let two clients exchange one class each, many times, where both then still hold different classes."""
    held = set(pairs)
    for first, second in generator.integers(len(pairs), size=(_EXCHANGES * len(pairs), 2)).tolist():
        (i, a), (j, b) = pairs[first], pairs[second]
        if i == j or (i, b) in held or (j, a) in held:  # a == b is among the latter
            continue
        held -= {(i, a), (j, b)}
        pairs[first], pairs[second] = (i, b), (j, a)
        held |= {(i, b), (j, a)}


@partitions.register("k_classes")
@dataclass(frozen=True)
class KClasses(Partition):
    """k different classes per client, dealt at random and evenly; a class is split evenly over its holders.

    The numbers of holders of any two classes differ by at most one, and every such deal is about as likely. The deal
    starts in turns. Exchanges between two clients then mix it, as Kannan, Tetali and Vempala (Random Structures and
    Algorithms 14, 1999) do for bipartite graphs.

    The last ``others`` clients are different: they hold samples of all classes. Together they hold the share
    others / clients of each class, split evenly. Attackers are the last clients, so such a client can be an attacker.
    No client is empty as long as every class has as many samples as holders, and, with ``others``, as clients.

    Attributes
    ----------
    k : int
        Classes per client; 1 <= k <= number of classes, and (clients - others) * k >= number of classes.
    others : int
        How many of the last clients hold samples of all classes; 0 <= others < clients.
    deal : str
        ``random``, or ``turns``: clients take k classes in turn from one random order of all classes. Then clients
        whose numbers differ by a multiple of K / gcd(K, k) hold the same classes, of K.
    """

    k: Annotated[int, Integer(minimum=1)]
    others: Annotated[int, Integer(minimum=0)] = 0
    deal: Annotated[str, Choice(("random", "turns"))] = "random"

    def drawn_from(self) -> tuple[object, ...]:
        """Return k, and others if it is not 0; if it is, the draw is that of ``k_classes(k=...)``."""
        return (self.k, self.others) if self.others else (self.k,)

    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Deal the classes."""
        classes = _by_class(labels, generator)
        count, dealt = len(classes), clients - self.others
        if dealt < 1:
            raise ConfigurationError(
                f"k_classes: others must be below clients={clients}; got others={self.others}: lower others"
            )
        if self.k > count:
            raise ConfigurationError(f"k_classes: k must be at most the number of classes, {count}; got k={self.k}")
        if dealt * self.k < count:
            who, given = (
                ("clients", f"clients={clients}")
                if self.others == 0
                else ("(clients - others)", f"clients={clients}, others={self.others}")
            )
            raise ConfigurationError(
                f"k_classes: {who} * k must be at least the number of classes, {count}, or samples are left over; "
                f"got {given}, k={self.k}"
            )
        order = generator.permutation(count)
        pairs = [(position // self.k, int(order[position % count])) for position in range(dealt * self.k)]
        if self.deal == "random":
            _mix(pairs, generator)
        owners = [[client for client, own in pairs if own == k] for k in range(count)]
        if self.others == 0:
            return _deal(owners, classes, clients)
        cuts = [round(len(indices) * self.others / clients) for indices in classes]
        shared = [indices[:cut] for indices, cut in zip(classes, cuts, strict=True)]
        rest = [indices[cut:] for indices, cut in zip(classes, cuts, strict=True)]
        everybody = [list(range(self.others))] * count
        return _deal(owners, rest, dealt) + _deal(everybody, shared, self.others)


@partitions.register("shards")
@dataclass(frozen=True)
class Shards(Partition):
    """Samples sorted by label, cut into clients * per_client shards, dealt at random.

    McMahan et al. (AISTATS 2017) deal two shards each. No client is empty as long as there are at least
    clients * per_client samples, which is checked.

    Attributes
    ----------
    per_client : int
        Shards per client; >= 1.
    """

    per_client: Annotated[int, Integer(minimum=1)] = 2

    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Sort, cut and deal."""
        count = clients * self.per_client
        if count > len(labels):
            raise ConfigurationError(
                f"shards: clients * per_client must be at most the number of samples, {len(labels)}; got {count}"
            )
        order = generator.permutation(len(labels))
        shards = np.array_split(order[np.argsort(labels[order], kind="stable")], count)
        dealt = generator.permutation(count).reshape(clients, self.per_client)
        return [np.concatenate([shards[s] for s in hand]) for hand in dealt]


@partitions.register("sizes")
@dataclass(frozen=True)
class Sizes(Partition):
    """Shuffled samples in parts of given sizes, as hospitals have them.

    No client is empty: each gets at least one sample.

    Attributes
    ----------
    shares : sequence of float
        The size of every client, in any unit; each > 0. There are as many as clients.
    """

    shares: Annotated[Sequence[float], ListOf(Number(above=0))]

    @property
    def reads_classes(self) -> bool:
        """Return False: only the number of samples matters."""
        return False

    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Shuffle, and cut at the sums of the shares."""
        if len(self.shares) != clients:
            raise ConfigurationError(
                f"sizes: shares must hold one number per client; got {len(self.shares)} shares for clients={clients}"
            )
        sizes = _apportioned(np.asarray(self.shares, dtype=np.float64), len(labels))
        return np.split(generator.permutation(len(labels)), np.cumsum(sizes)[:-1])


def _apportioned(shares: NDArray[np.float64], samples: int) -> NDArray[np.int64]:
    """Return whole numbers >= 1 that add up to ``samples``, in proportion to shares, by largest remainders."""
    wanted = shares / shares.sum() * (samples - len(shares))
    sizes = np.floor(wanted).astype(np.int64)
    largest = np.argsort(sizes - wanted, kind="stable")[: samples - len(shares) - int(sizes.sum())]
    sizes[largest] += 1
    return np.asarray(sizes + 1)


@partitions.register("natural")
@dataclass(frozen=True)
class Natural(Partition):
    """Each client holds what its owners wrote, measured or said, as the data tell (``owners_train``).

    With as many owners as clients, owner i is client i. With more, whole owners are dealt to clients in turn, in a
    random order. No client is empty.

    Attributes
    ----------
    largest : bool
        Each client is one owner: client 0 the one with most samples, and so on. Samples of smaller owners are left
        over. Of equal sizes the first owner comes first.
    """

    largest: Annotated[bool, Flag()] = False

    @property
    def reads_classes(self) -> bool:
        """Return False: only the owners matter."""
        return False

    def drawn_from(self) -> tuple[object, ...]:
        """Return nothing: the draw depends on no field."""
        return ()

    def split_owned(
        self,
        labels: NDArray[np.integer],
        owners: NDArray[np.integer] | None,
        clients: int,
        generator: np.random.Generator,
    ) -> list[Indices]:
        """Deal the owners."""
        if owners is None:
            raise ConfigurationError(
                "natural: the task must say who its training samples came from; got none: store owners_train in the "
                ".npz, or give owners to task_of"
            )
        count = int(owners.max()) + 1
        if clients > count:
            raise ConfigurationError(
                f"natural: clients must be at most the number of owners, {count}; got clients={clients}"
            )
        if self.largest:
            order = np.argsort(-np.bincount(owners), kind="stable")[:clients]
            return [np.flatnonzero(owners == owner) for owner in order]
        order = np.arange(count) if clients == count else generator.permutation(count)
        place = np.empty(count, np.int64)
        place[order] = np.arange(count) % clients
        return [np.flatnonzero(place[owners] == client) for client in range(clients)]

    def split(self, labels: NDArray[np.integer], clients: int, generator: np.random.Generator) -> list[Indices]:
        """Raise: without owners there is nothing to follow."""
        return self.split_owned(labels, None, clients, generator)


def label_distances(labels: NDArray[np.integer], parts: Sequence[Indices]) -> NDArray[np.float64]:
    """Return how much each client's labels differ from all labels: the total variation distance of both distributions.

    Parameters
    ----------
    labels : array (N,) of int
        Class of every sample.
    parts : sequence of array of int
        What a partition returned; no part is empty.

    Returns
    -------
    array (clients,)
        In [0, 1]: half the sum over classes of |share at the client - share among all samples|. 0 if both agree;
        1 - 1/K for a client of one class, if all K classes are equally frequent.

    Examples
    --------
    >>> label_distances(np.array([0, 0, 1, 1]), [np.array([0, 2]), np.array([1, 3])]).tolist()
    [0.0, 0.0]
    >>> label_distances(np.array([0, 0, 1, 1]), [np.array([0, 1]), np.array([2, 3])]).tolist()
    [0.5, 0.5]
    """
    held = np.unique(np.concatenate(parts))
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    shares = np.stack([np.bincount(numbers[part], minlength=len(classes)) / len(part) for part in [held, *parts]])
    return np.asarray(np.abs(shares[1:] - shares[0]).sum(axis=1) / 2)
