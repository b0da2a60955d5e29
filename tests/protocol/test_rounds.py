"""The server's round: the ordinary one is the case of one class, and what cannot be aggregated changes nothing."""

import itertools

import numpy as np
import pytest
import torch

from flwr_robust.aggregators import CenteredClipping, Mean, Median, TrimmedMean
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Outcome
from flwr_robust.errors import InfeasibleError
from flwr_robust.protocol.classes import ClassBuffer
from flwr_robust.protocol.messages import MESSAGE_KINDS, message_kind
from flwr_robust.protocol.momentum import HeavyBall
from flwr_robust.protocol.rounds import (
    ServerStep,
    batch_generator,
    batch_seeds,
    draw_batch,
    moved,
    sample_clients,
    settle,
    settle_round,
    state_of_class,
)


def rows(*values):
    return Rows.from_layers([[torch.tensor(value, dtype=torch.float64)] for value in values])


def plain(name="gradient", learning_rate=0.5, momentum=0.0):
    return ServerStep(message_kind(name), learning_rate, HeavyBall(momentum))


def by_class(gamma=0.0, classes=3, alpha=0.5):
    return ServerStep(message_kind("class_momentum"), 0.5, ClassBuffer(classes, gamma, alpha))


SENT = ([1.0, 8.0], [2.0, 9.0], [9.0, 1.0])


@pytest.mark.parametrize("name", MESSAGE_KINDS)
def test_the_step_is_along_the_aggregate_or_against_it_as_the_table_says(name):
    found = settle_round(Median(), {None: rows(*SENT)}, {}, plain(name))
    assert found.change.tolist() == [message_kind(name).sign * v for v in (1.0, 4.0)]
    assert found.change.dtype == np.float64
    assert (found.outcome, found.sentence, found.state) == (Outcome.OK, "", {})


def test_the_ordinary_round_is_that_of_one_class_whose_buffer_has_no_weight():
    rule = CenteredClipping(tau=0.5)
    ordinary = settle_round(rule, {None: rows(*SENT)}, rule.init(), plain())
    one = settle_round(rule, {2: rows(*SENT)}, {}, by_class(), members={2: [0, 1, 2]}, replies=3)
    assert ordinary.change.tolist() == one.change.tolist()
    assert ordinary.aggregate.weights.tolist() == one.aggregate.weights.tolist()
    assert ordinary.aggregate.value.tolist() == one.aggregate.value.tolist()
    assert (one.aggregate.stats["classes"], "classes" in ordinary.aggregate.stats) == ([2], False)
    again = state_of_class(rule, one.state, 2)
    assert {key: torch.equal(again[key], value) for key, value in ordinary.state.items()} == dict.fromkeys(again, True)
    assert state_of_class(rule, ordinary.state, None) is ordinary.state
    weighed = settle_round(rule, {2: rows(*SENT)}, {}, by_class(gamma=1.0), members={2: [0, 1, 2]}, replies=3)
    assert weighed.change.tolist() == pytest.approx((ordinary.change / 3).tolist())  # the buffer's other lines are zero


def test_a_rule_counts_its_draws_over_all_classes():
    rule = parse("bucketing(s=2) | mean")
    first = settle_round(rule, {2: rows(*SENT)}, {}, by_class(), members={2: [0, 1, 2]}, replies=3)
    other, untouched = state_of_class(rule, first.state, 1), state_of_class(rule, {}, 1)
    assert (untouched, other) == (rule.init(), state_of_class(rule, first.state, 2))
    assert other != untouched
    second = settle_round(rule, {1: rows(*SENT)}, first.state, by_class(), members={1: [0, 1, 2]}, replies=3)
    assert state_of_class(rule, second.state, 1) != other  # it draws anew


def test_classes_are_aggregated_each_on_its_own():
    members = {0: [0, 1, 2], 2: [1, 3, 4]}
    sent = {0: rows(*SENT), 2: rows([3.0, 3.0], [4.0, 5.0], [5.0, 4.0])}
    found = settle_round(Median(), sent, {}, by_class(), members=members, replies=5)
    assert found.change.tolist() == [-0.5 * (2.0 + 4.0) / 2, -0.5 * (8.0 + 4.0) / 2]
    assert found.aggregate.stats["classes"] == [0, 2]
    assert found.aggregate.weights.sum() == pytest.approx(1)
    assert found.aggregate.weights[3:].tolist() != [0, 0]
    assert found.state["desgd.buffer"].tolist() == [[2.0, 8.0], [0.0, 0.0], [4.0, 4.0]]


def test_a_class_that_cannot_be_aggregated_leaves_the_step_to_the_others():
    members = {0: [0, 1, 2], 1: [], 2: [0, 1]}
    sent = {0: rows(*SENT), 1: None, 2: rows([3.0, 3.0], [4.0, 5.0])}
    found = settle_round(TrimmedMean(f=1), sent, {}, by_class(), members=members, replies=3)
    assert found.outcome is Outcome.OK
    assert found.change.tolist() == [-0.5 * 2.0, -0.5 * 8.0]
    told = found.aggregate.stats["infeasible"]
    assert told["1"] == "nobody sent it"
    assert "trimmed_mean needs n >= 2f + 1; got n=2" in told["2"]


def test_a_round_of_which_nothing_could_be_aggregated_changes_nothing():
    state = {"desgd.buffer": torch.ones(3, 2)}
    found = settle_round(TrimmedMean(f=1), {0: None, 2: rows([3.0, 3.0])}, state, by_class(), members={0: [], 2: [0]})
    assert found.sentence.startswith("class 0: nobody sent it; class 2: trimmed_mean needs n >= 2f + 1; got n=1")
    assert (found.outcome, found.change, found.aggregate) == (Outcome.INFEASIBLE, None, None)
    assert found.state is state
    alone = settle_round(TrimmedMean(f=1), {None: rows([3.0, 3.0])}, state, plain())
    assert alone.sentence.startswith("trimmed_mean needs n >= 2f + 1; got n=1")
    assert alone.state is state
    nobody = settle_round(Mean(), {None: None}, state, plain())
    assert (nobody.outcome, nobody.change, nobody.state is state) == (Outcome.INFEASIBLE, None, True)


class Wrong(Mean):
    """A rule that gives what the test says."""

    def __call__(self, rows, state):
        found = super().__call__(rows, state)[0]
        return Aggregate(found.value + self.offset, found.weights, outcome=self.outcome), {"seen": torch.ones(1)}


@pytest.mark.parametrize(
    ("offset", "outcome", "sentence"),
    [
        (0.0, Outcome.INFEASIBLE, "mean kept no reply"),
        (float("nan"), Outcome.OK, "mean gave a value that is not finite"),
        (float("inf"), Outcome.OK, "mean gave a value that is not finite"),
    ],
)
def test_a_rule_that_gives_nothing_usable_changes_nothing_and_its_weights_are_shown(offset, outcome, sentence):
    rule = Wrong()
    object.__setattr__(rule, "offset", offset)
    object.__setattr__(rule, "outcome", outcome)
    found = settle_round(rule, {None: rows(*SENT)}, {}, plain())
    assert (found.outcome, found.sentence, found.change, found.state) == (Outcome.INFEASIBLE, sentence, None, {})
    assert found.aggregate.weights.tolist() == pytest.approx([1 / 3] * 3)
    object.__setattr__(rule, "offset", 0.0)
    object.__setattr__(rule, "outcome", Outcome.NOT_CONVERGED)
    used = settle_round(rule, {None: rows(*SENT)}, {}, plain())
    assert (used.outcome, used.state, used.change is None) == (Outcome.NOT_CONVERGED, {"seen": True}, False)
    members = {0: [0, 1, 2], 1: [0, 1, 2]}
    both = settle_round(rule, dict.fromkeys((0, 1), rows(*SENT)), {}, by_class(), members=members, replies=3)
    assert both.outcome is Outcome.NOT_CONVERGED


def test_a_step_that_would_not_be_finite_is_not_taken():
    largest = torch.finfo(torch.float64).max
    state = {"desgd.buffer": torch.full((3, 2), largest, dtype=torch.float64)}
    over = settle_round(Mean(), {0: rows([1.0, 1.0])}, state, by_class(1.0, alpha=1.0), members={0: [0]}, replies=1)
    assert (over.outcome, over.sentence) == (Outcome.INFEASIBLE, "the step would not be finite")
    assert over.state is state
    fading = settle_round(Mean(), {0: rows([1.0, 1.0])}, state, by_class(1.0, alpha=0.4), members={0: [0]}, replies=1)
    assert np.isfinite(fading.change).all()


def test_settle_never_raises_for_what_rows_hold():
    found = settle(Median(), rows([float("nan"), 0.0]), {})
    assert (found.outcome, found.result) == (Outcome.INFEASIBLE, None)

    class Raising(Mean):
        def __call__(self, rows, state):
            raise InfeasibleError("too few")

    assert settle(Raising(), rows(*SENT), {"kept": 1}).sentence == "too few"
    assert settle(Raising(), rows(*SENT), {"kept": 1}).state == {"kept": 1}


# -- clients and samples -------------------------------------------------------------------------------


def test_batches_repeat_and_depend_on_all_that_they_are_drawn_from():
    def drawn(seed=0, client=1, server_round=2, batching="random", size=8, held=50):
        return draw_batch(batching, size, held, batch_generator(seed, client, server_round)).tolist()

    assert drawn() == drawn()
    assert len({tuple(drawn(**other)) for other in ({}, {"seed": 1}, {"client": 2}, {"server_round": 3})}) == 4
    run = drawn(batching="consecutive", size=60)
    assert [(after - before) % 50 for before, after in itertools.pairwise(run)] == [1] * 59
    assert set(drawn(held=3, size=40)) == {0, 1, 2}
    seeds = batch_seeds(0, [1, 4], 2)
    assert draw_batch("random", 8, 50, torch.Generator().manual_seed(seeds[0])).tolist() == drawn()
    assert draw_batch("random", 8, 50, torch.Generator().manual_seed(seeds[1])).tolist() == drawn(client=4)


def test_samples_of_clients_are_ascending_and_all_of_them_need_no_draw():
    assert sample_clients(0, "train", 1, 5, 5) == [0, 1, 2, 3, 4]
    few = sample_clients(0, "train", 1, 50, 9)
    assert few == sorted(set(few))
    assert len(few) == 9
    assert few != sample_clients(0, "evaluate", 1, 50, 9)
    assert few != sample_clients(0, "train", 2, 50, 9)


def test_a_model_that_leaves_its_type_ends_at_the_limit():
    half = np.array([60000, -60000, 1], np.float16)
    found = moved(half, np.array([60000.0, -60000.0, 0.5]))
    assert found.dtype == np.float16
    assert found.tolist() == [np.finfo(np.float16).max, np.finfo(np.float16).min, 1.5]
    assert half.tolist() == [60000, -60000, 1]
