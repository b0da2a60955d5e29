"""Batcher's odd-even merge sort of n rows, pruned to the ranks asked for and cut into groups.

The network (Batcher, "Sorting networks and their applications", 1968; Knuth, TAOCP vol. 3, 5.3.4) is a list of
comparators (i, j): the smaller value goes to row i, the larger one to row j. Comparators whose results are not needed
are left out. A comparator alone reads and writes two rows; a group of them on the same few rows reads and writes those
once. The first three rounds sort eight neighbours. Every later merge joins two sorted halves of z rows. Its steps z,
z / 2 and z / 4 stay within eight rows that are z / 4 apart. Of the comparators left, three are joined where one follows
two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

__all__ = ["PROGRAMS", "comparators", "groups"]

Pairs = tuple[tuple[int, int], ...]
Group = tuple[int, tuple[int, ...]]
"""The index of a program and the rows it works on."""

Comparator = tuple[int, int, bool, bool]
"""Two rows, and whether the smaller and the larger value is asked for afterwards."""

_MERGE: Pairs = ((0, 4), (1, 5), (2, 6), (3, 7), (2, 4), (3, 5), (1, 2), (3, 4), (5, 6))
_HALVES: Pairs = ((0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6))

PROGRAMS: tuple[Pairs, ...] = (((0, 1),), ((0, 2), (1, 3), (1, 2)), _MERGE, _HALVES + _MERGE)
"""Comparators on the rows of a group, by their positions in it: one, two and one after them, a merge, a sort."""

_ONE, _THREE, _MERGE_EIGHT, _SORT_EIGHT = range(4)


def _placed(program: int, rows: Sequence[int], n: int) -> Iterator[Group]:
    """Yield a program as one group if all its rows exist, else its comparators of rows that do."""
    if rows[-1] < n:
        yield program, tuple(rows)
        return
    for i, j in PROGRAMS[program]:
        if rows[j] < n:  # a row beyond the last would hold the largest values, and stays where it is
            yield _ONE, (rows[i], rows[j])


def _network(n: int) -> Iterator[Group]:
    """Yield the groups that sort n rows."""
    for start in range(0, n, 8):
        yield from _placed(_SORT_EIGHT, range(start, start + 8), n)
    half = 8
    while half < n:
        for start in range(0, n, 2 * half):
            for first in range(start, start + half // 4):
                yield from _placed(_MERGE_EIGHT, range(first, start + 2 * half, half // 4), n)
        step = half // 8
        while step >= 1:
            for start in range(0, n, 2 * half):
                for low in range(start + step, min(start + 2 * half, n) - step, 2 * step):
                    for i in range(low, min(low + step, start + 2 * half - step, n - step)):
                        yield _ONE, (i, i + step)
            step //= 2
        half *= 2


def _pruned(n: int, low: int, high: int) -> list[tuple[Group, list[Comparator]]]:
    """Return the groups that settle ranks low .. high - 1, each with those of its comparators that are needed."""
    wanted = set(range(low, high))
    kept: list[tuple[Group, list[Comparator]]] = []
    for program, rows in reversed(list(_network(n))):
        needed: list[Comparator] = []
        for a, b in reversed(PROGRAMS[program]):
            i, j = rows[a], rows[b]
            if i in wanted or j in wanted:
                needed.append((i, j, i in wanted, j in wanted))
                wanted |= {i, j}
        if needed:
            kept.append(((program, rows), needed[::-1]))
    return kept[::-1]


@lru_cache(maxsize=256)
def groups(n: int, low: int, high: int) -> tuple[Group, ...]:
    """Return the groups that settle ranks low .. high - 1, in an order in which they may run.

    A group runs its whole program, even comparators whose results are not needed.
    """
    return tuple(_in_threes([group for group, _ in _pruned(n, low, high)]))


@lru_cache(maxsize=256)
def comparators(n: int, low: int, high: int) -> tuple[Comparator, ...]:
    """Return the comparators (i, j, keep the minimum, keep the maximum) that settle ranks low .. high - 1."""
    return tuple(comparator for _, needed in _pruned(n, low, high) for comparator in needed)


def _in_threes(items: Sequence[Group]) -> Iterator[Group]:
    """Join comparators (a, c) and (b, d) with the (b, c) that follows both."""
    before: list[dict[int, int]] = []  # for every group and row of it, the last group on that row before
    after: list[dict[int, int]] = [{} for _ in items]
    last: dict[int, int] = {}
    for index, (_, rows) in enumerate(items):
        before.append({row: last[row] for row in rows if row in last})
        for row, previous in before[index].items():
            after[previous][row] = index
        last.update(dict.fromkeys(rows, index))
    done: set[int] = set()

    def ready(index: int) -> bool:
        return index not in done and all(previous in done for previous in before[index].values())

    for index, (program, rows) in enumerate(items):
        if index in done:
            continue
        done.add(index)
        for row in rows if program == _ONE else ():
            follower = after[index].get(row)
            if follower is None or follower in done or items[follower][0] != _ONE:
                continue
            b, c = items[follower][1]
            partner = before[follower].get(b if row == c else c)
            if partner is None or not ready(partner) or items[partner][0] != _ONE:
                continue
            (a, upper), (lower, d) = (items[x][1] for x in ((index, partner) if row == c else (partner, index)))
            if (lower, upper) == (b, c) and len({a, b, c, d}) == 4:
                done |= {partner, follower}
                yield _THREE, (a, b, c, d)
                break
        else:
            yield program, rows
