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


def test_an_answer_takes_back_one_failure_and_as_many_as_begin_a_rest_end_it():
    asked, begun = played(12, lambda at: at != 6)
    assert asked == [1, 2, 3, 6, 7, 12]  # one more failure begins the next rest, twice as long
    assert begun == [Rest(4, 3, 5), Rest(4, 3, 11), Rest(4, 4, 20)]
    asked, begun = played(14, lambda at: at not in {6, 7, 8})
    assert asked == [1, 2, 3, *range(6, 12), 14]  # three failures anew, and two rounds anew
    assert [rest.until for rest in begun] == [5, 13, 18]


def test_who_answers_now_and_then_rests_all_the_same():
    for answers_every, most in ((2, 30), (3, 15), (5, 12)):
        asked, begun = played(60, lambda at, every=answers_every: at % every != 0)
        assert (answers_every == 2) is (begun == [])  # who answers every second time does not
        if begun:
            assert len(asked) <= most
    forgetting = [at % 3 for at in range(1, 61)]  # the old way: an answer sets the count to zero
    assert max(len(run) for run in "".join("f" if each else "a" for each in forgetting).split("a")) < 3


def test_an_answer_ends_a_rest_at_once():
    rests = Rests()
    assert rests.settle(1, ALL, {4}, 1) == [Rest(4, 1, 3)]
    assert rests.resting(2, ALL) == [4]
    rests.settle(2, ALL, set(), 1)  # it is asked all the same, since others fail
    assert rests.resting(3, ALL) == []
    rests.settle(4, ALL, {4}, 3)
    rests.settle(5, ALL, {4}, 3)
    rests.settle(6, ALL, {4}, 3)
    assert rests.resting(8, ALL) == [4]
    rests.settle(7, ALL, set(), 3)
    assert rests.resting(8, ALL) == []


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
