"""Rests: who fails again and again is left out for a while, for ever longer, and without blame."""

from __future__ import annotations

import itertools

from flwr_robust.flower.rests import Rest, Rests

ALL = set(range(5))


def played(rounds, fails, after=3):
    """Ask all nodes that do not rest, round by round; return when node 4 was asked, and the rests."""
    rests, asked, begun = Rests(), [], []
    for at in range(1, rounds + 1):
        nodes = ALL - set(rests.resting(at, ALL))
        if 4 in nodes:
            asked.append(at)
        begun += rests.settle(at, nodes, {4} if 4 in nodes and fails(at) else set(), after)
    return asked, begun


def test_rests_double_up_to_a_bound():
    asked, begun = played(400, lambda at: True)
    assert asked[:7] == [1, 2, 3, 6, 11, 20, 37]
    assert [b - a - 1 for a, b in itertools.pairwise(asked[2:])] == [2, 4, 8, 16, 32, *[64] * 5]
    assert begun[0] == Rest(4, 3, 5)
    assert begun[1] == Rest(4, 4, 10)


def test_an_answer_ends_it():
    asked, begun = played(12, lambda at: at != 6)
    assert asked == [1, 2, 3, 6, 7, 8, 9, 12]  # three failures anew, and two rounds anew
    assert [rest.until for rest in begun] == [5, 11, 16]
    assert played(9, lambda at: at % 3)[1] == []  # never three in a row


def test_if_most_of_them_fail_it_is_hardly_them():
    rests = Rests()
    for at in range(1, 9):
        assert rests.settle(at, ALL, {0, 1, 2}, 1) == []
    assert [rest.node for rest in rests.settle(9, {0, 1, 2, 3}, {0, 1}, 1)] == [0, 1]


def test_they_last_and_follow_a_new_id():
    rests = Rests()
    rests.settle(1, ALL, {4}, 1)
    again = Rests()
    again.recall(rests.memory())
    again.rename(4, 9)
    again.rename(0, 8)
    assert again.resting(3, [4, 8, 9]) == [9]
    assert again.memory() == {"failures": {9: 1}, "until": {9: (3, 2)}}
