"""Whom to ask: repeated offenders are left out, never too many; nodes with new ids are known again."""

from __future__ import annotations

import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_robust import Outcome
from flwr_robust.errors import ConfigurationError
from flwr_robust.flower import (
    Guarded,
    Identity,
    InProcessGrid,
    Krum,
    Median,
    Nodes,
    Reason,
)
from tests.flower_helpers import FIRST, Deployed, content, drive
from tests.guard_helpers import ONE, SILENT, asked, misbehaving, nodes


@pytest.mark.parametrize("make", [lambda **o: Median(f=1, **SILENT, **o), lambda **o: Guarded(FedAvg(**SILENT), **o)])
def test_repeated_offenders_are_left_out_of_sampling(make):
    strategy = make(quarantine_after=2)
    drive(strategy, misbehaving({1, 4}), ONE, 7, rounds=4)
    everybody = set(nodes(*range(7)))
    assert [set(found) for found in asked(strategy)] == [everybody] * 2 + [everybody - set(nodes(1, 4))] * 2
    assert [seen.quarantined for seen in strategy.history] == [(), (), nodes(1, 4), nodes(1, 4)]
    assert strategy.quarantined == nodes(1, 4)
    assert [seen.refused for seen in strategy.history[2:]] == [(), ()]


def test_without_it_everybody_is_asked_for_ever():
    strategy = Median(f=1, **SILENT)
    drive(strategy, misbehaving({1, 4}), ONE, 7, rounds=5)
    assert {len(found) for found in asked(strategy)} == {7}
    assert strategy.quarantined == ()
    assert strategy.guard.refusals == {FIRST + 1: 5, FIRST + 4: 5}


def test_a_node_can_be_released():
    strategy = Median(f=1, quarantine_after=1, **SILENT)
    app = misbehaving({1, 4}, until=2)
    model, _ = drive(strategy, app, ONE, 7, rounds=2)
    assert strategy.quarantined == nodes(1, 4)
    strategy.release(FIRST + 1)
    strategy.release(FIRST + 3)  # it was never held
    drive(strategy, misbehaving({}), model, 7)
    assert set(asked(strategy)[-1]) == set(nodes(0, 1, 2, 3, 5, 6))
    assert strategy.quarantined == nodes(4)
    assert strategy.guard.refusals == {FIRST + 4: 1}


def test_refusals_in_evaluation_are_counted_apart():
    strategy = Median(f=1, quarantine_after=2, min_evaluate_nodes=7)
    drive(strategy, misbehaving({1}), ONE, 7, rounds=3)
    assert [len(seen.asked) for seen in strategy.history] == [7, 7, 6]
    assert [len(seen.asked) for seen in strategy.evaluations] == [7, 7, 6]
    assert strategy.guard.nodes.evaluation_refusals == {FIRST + 1: 2}
    assert strategy.guard.refusals == {FIRST + 1: 2}


def test_what_is_not_certainly_its_own_is_not_held_against_a_node():
    class Odd(InProcessGrid):
        """Drops, doubles, and answers in other nodes' names."""

        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            replies = list(super().send_and_receive(messages, timeout=timeout))
            if not replies:
                return []
            forged = Message(content({}), reply_to=messages[0])
            forged.metadata.__dict__["_src_node_id"] = FIRST + 1
            return [forged, *replies[:5], replies[2], *replies[6:]]

    def crash(model):
        raise RuntimeError("gone")

    app = misbehaving({3}, broken=crash)
    strategy = Median(f=1, quarantine_after=1, min_train_nodes=7, **SILENT)
    drive(strategy, app, ONE, 7, rounds=2, grid=Odd(app, 7))
    found = {(refusal.node - FIRST, refusal.reason) for refusal in strategy.history[0].refused}
    assert found == {(1, Reason.NOT_ASKED), (2, Reason.DUPLICATE), (3, Reason.ERROR)}
    assert strategy.history[0].silent == nodes(5)
    assert strategy.quarantined == ()
    assert len(strategy.history[1].asked) == 7


@pytest.mark.parametrize("minimum", [3, 7])
def test_quarantine_does_not_starve_the_rule(minimum):
    # Krum with f = 1 needs five. Four of seven are offenders: two of them are asked all the same, whatever the
    # operator's minimum, so that Flower does not wait for nodes that nobody may ask.
    strategy = Krum(f=1, quarantine_after=1, min_train_nodes=7, min_available_nodes=7, **SILENT)
    drive(strategy, misbehaving({0, 1, 2, 3}, until=2), ONE, 7, rounds=3)
    first, second, third = strategy.history
    assert first.outcome is Outcome.INFEASIBLE
    assert set(second.asked) == set(nodes(0, 1, 4, 5, 6))
    assert second.quarantined == nodes(2, 3)
    assert second.outcome is third.outcome is Outcome.OK


def test_those_with_the_fewest_refusals_are_asked_first():
    strategy = Krum(f=1, quarantine_after=1, **SILENT)
    strategy.guard.refusals.update({FIRST: 5, FIRST + 1: 1, FIRST + 2: 3, FIRST + 3: 1})
    assert strategy.guard.nodes.left_out("train", 1, nodes(*range(7))).blamed == nodes(2, 0)
    assert strategy.guard.nodes.left_out("train", 1, nodes(*range(9))).blamed == nodes(1, 3, 2, 0)
    assert strategy.guard.nodes.left_out("train", 1, nodes(0, 1)).blamed == ()
    assert strategy.guard.nodes.left_out("train", 1, []).blamed == ()


def test_a_sample_is_drawn_from_those_left():
    strategy = Median(f=1, quarantine_after=1, fraction_train=0.5, seed=3, **SILENT)
    drive(strategy, misbehaving({1, 4}), ONE, 10, rounds=12)
    for seen in strategy.history:
        assert len(seen.asked) == 5
        assert not set(seen.asked) & set(seen.quarantined)
    assert strategy.quarantined == nodes(1, 4)


def test_nodes_are_ordered_by_partition_then_by_id():
    known = Nodes(by_partition=True)
    known.partitions = {9: 0, 4: 2, 6: 2}
    assert sorted([3, 4, 6, 9, 1], key=known.order) == [9, 4, 6, 1, 3]
    claimed = Nodes()
    claimed.partitions = {9: 0, 4: 2, 6: 2}
    assert sorted([3, 4, 6, 9, 1], key=claimed.order) == [1, 3, 4, 6, 9]


def test_partitions_identify_nodes_in_a_simulation_or_where_the_operator_says_so():
    grid = InProcessGrid(ClientApp(), 2)
    for stated, expected in ((None, True), (False, False), (True, True)):
        known = Nodes(by_partition=stated)
        known.begin(grid)
        assert known.by_partition is expected
    deployed = Nodes()
    deployed.begin(Deployed(ClientApp(), 2))
    assert not deployed.by_partition
    with pytest.raises(ConfigurationError, match="by_partition must be True or False; got by_partition='yes'"):
        Nodes(by_partition="yes")


def test_a_claim_moves_no_quarantine():
    now = Nodes(quarantine_after=1)
    now.identify({11: Identity(0), 12: Identity(1)})
    now.recall({1: 0, 2: 1}, {1: 4}, {}, {})
    assert (now.replaced, now.refusals, now.quarantined) == ({}, {1: 4}, (1,))
    assert now.own_partitions([11, 12]) == {}


def test_a_partition_is_a_nodes_own_if_it_alone_claims_it_by_itself():
    known = Nodes(by_partition=True)
    known.identify({1: Identity(0), 2: Identity(1), 3: Identity(1), 4: Identity(2, assigned=True)})
    assert known.partitions == {1: 0, 2: 1, 3: 1, 4: 2}
    assert known.own_partitions([1, 2, 3, 4, 5]) == {1: 0}
    assert known.own_partitions([2, 4]) == {2: 1}


def test_one_refusal_alone_puts_a_node_into_quarantine():
    held = Nodes(quarantine_after=2)
    assert [held.refused("train", 5) for _ in range(3)] == [False, True, False]
    assert held.quarantined == (5,)
    assert (held.release(5), held.release(5), held.quarantined) == (True, False, ())
    assert [Nodes().refused("train", 5) for _ in range(2)] == [False, False]


def test_nodes_with_new_ids_are_known_by_their_partitions():
    now = Nodes(quarantine_after=1, by_partition=True)
    now.identify({11: Identity(0), 12: Identity(1), 13: Identity(2, assigned=True)})
    now.recall({1: 0, 2: 1, 3: 2}, {1: 4, 3: 5}, {}, {})
    assert now.replaced == {1: 0, 2: 1}
    assert now.refusals == {11: 4, 3: 5}  # nobody is punished for a partition that was assigned to it
    assert now.partitions == {3: 2, 11: 0, 12: 1, 13: 2}


def test_whoever_claims_a_partition_that_two_held_is_nobodys_successor():
    now = Nodes(by_partition=True)
    now.identify({11: Identity(0)})
    now.recall({1: 0, 2: 0}, {1: 4}, {7: 3}, {})
    assert (now.replaced, now.refusals) == ({7: 3}, {1: 4})


def test_a_node_that_kept_its_id_has_no_successor():
    now = Nodes(by_partition=True)
    now.identify({1: Identity(0), 11: Identity(1)})
    now.recall({1: 1}, {1: 4}, {}, {})
    assert (now.replaced, now.refusals) == ({}, {1: 4})


def test_a_sample_is_drawn_from_the_seed_in_the_order_of_partitions():
    grid = InProcessGrid(ClientApp(), 6)
    backwards = {node: Identity(5 - place) for place, node in enumerate(grid.get_node_ids())}

    def drawn(seed, server_round=1, fraction=0.5):
        known = Nodes(by_partition=True)
        known.identify(backwards)
        return known.sample("train", server_round, grid, fraction, 1, 6, seed=seed, who="median()")[0]

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed, at)) for seed in range(4) for at in (1, 2)}) > 4
    assert drawn(0, fraction=1.0) == list(nodes(5, 4, 3, 2, 1, 0))
    for seed in range(4):
        places = [backwards[node].partition for node in drawn(seed)]
        assert places == sorted(places)
        assert len(places) == 3
