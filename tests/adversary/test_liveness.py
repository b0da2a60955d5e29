"""Silence and errors are attacks, too: a few clients that do not answer neither stop a run nor take it over.

Each attack is played against the product, and against a small model of a server that waits for whom it asked and
aggregates whatever came. The attack must win there.
"""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from flwr_robust import Outcome, aggregators
from flwr_robust.audit import Rested, RoundConfigured, read_log
from flwr_robust.audit.run import log_file
from flwr_robust.core.pipeline import parse
from flwr_robust.errors import ConfigurationError
from flwr_robust.flower import Audit, Guarded, Krum, Median, RobustStrategy, TrimmedMean
from tests.flower_helpers import FIRST, Deployed, client_app, content, drive
from tests.guard_helpers import ONE, SILENT

HOSTILE = 1e6


def failing(down, hostile=(), since=2):
    """Clients that move the model by one; from a round on some only raise errors, and some send a huge update."""

    def train(partition, model, config, context):
        attacked = config["server-round"] >= since
        if attacked and partition in down:
            raise RuntimeError("out of order")
        angle = 0.5 * partition  # foolsgold takes clients that agree too well for sybils
        step = np.array([np.cos(angle), np.sin(angle)]) * (HOSTILE if attacked and partition in hostile else 1)
        return content(
            {name: (values + step).astype(values.dtype) for name, values in model.items()}, 10, partition_id=partition
        )

    return client_app(train)


# -- one hostile reply among drop-outs ---------------------------------------------------------------

WITHOUT_F = ["median()", "geometric_median()", "flame()", "signguard()", "foolsgold()", "mean()", "nnm(f=0) | median()"]


def whatever_came(rule, replies):
    """The old server: aggregate what came, if the rule takes so few."""
    found = parse(rule)
    return None if found.check(len(replies)) else replies[0]


@pytest.mark.parametrize("rule", [*WITHOUT_F, "trimmed_mean(f=0)", "cge(f=0)"])
def test_one_hostile_reply_among_nine_drop_outs_is_not_the_model(rule):
    app = failing(set(range(9)), {9})
    strategy = RobustStrategy(rule, min_train_nodes=10, min_available_nodes=10, **SILENT)
    model, _ = drive(strategy, app, ONE, 10, rounds=2, grid=Deployed(app, 10))
    assert whatever_came(rule, [HOSTILE]) == HOSTILE
    assert 0 < np.abs(model["w"]).max() <= 1
    record = strategy.history[1]
    assert record.outcome is Outcome.INFEASIBLE
    declares = "no f" if rule in WITHOUT_F else "f=0"
    assert (
        f"declares {declares}, so more than half of the 10 clients asked must answer, at least 6; 1 did"
        in record.sentence
    )


def test_five_of_ten_are_not_more_than_half():
    for down, outcome in ((5, Outcome.INFEASIBLE), (4, Outcome.OK)):
        app = failing(set(range(down)))
        strategy = Median(min_train_nodes=10, min_available_nodes=10, **SILENT)
        drive(strategy, app, ONE, 10, rounds=2, grid=Deployed(app, 10))
        assert strategy.history[1].outcome is outcome


def test_an_operator_may_say_how_many_are_enough():
    app = failing(set(range(7)))
    for least, outcome in ((3, Outcome.OK), (4, Outcome.INFEASIBLE)):
        strategy = Median(min_replies=least, min_train_nodes=10, min_available_nodes=10, **SILENT)
        drive(strategy, app, ONE, 10, rounds=2, grid=Deployed(app, 10))
        assert strategy.history[1].outcome is outcome


def test_a_guarded_strategy_is_not_left_alone_with_one_reply():
    app = failing(set(range(9)), {9})
    every = {"min_train_nodes": 10, "min_available_nodes": 10, **SILENT}
    for least, taken in ((None, False), (1, True)):
        strategy = Guarded(FedAvg(**every), least=least)
        model, _ = drive(strategy, app, ONE, 10, rounds=2, grid=Deployed(app, 10))
        assert bool(np.abs(model["w"]).max() > 1) is taken


def test_every_rule_declares_an_f_or_needs_a_majority():
    from flwr_robust.protocol.rounds import least_replies

    for name, case in ((n, m.CASES[0]) for n, m in _modules()):
        rule = parse(case.rule)
        asked = next(n for n in range(1, 100) if rule.check(n) is None) + 20
        least = least_replies(rule, asked)
        assert least > asked // 2 or rule.declared(asked), name


def _modules():
    import sys

    for name in aggregators.__all__:
        cls = getattr(aggregators, name)
        yield name, sys.modules[cls.__module__]


# -- metrics of one hostile reply --------------------------------------------------------------------


def judging(down, abstaining=()):
    """Clients that evaluate: some raise errors, some have no test data, and the last one lies."""

    def train(partition, model, config, context):
        return content({"w": model["w"] + np.float32(1)}, 10, partition_id=partition)

    def evaluate(partition, model, config, context):
        if partition in down:
            raise RuntimeError("out of order")
        if partition in abstaining:
            return content(None, 0)
        return content(None, 10, accuracy=1.0 if partition == 9 else 0.1)

    return client_app(train, evaluate)


TEN = {"min_train_nodes": 10, "min_available_nodes": 10}


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrimmedMean(f=2, min_evaluate_nodes=10, **TEN),
        lambda: TrimmedMean(f=2, min_evaluate_nodes=10, min_replies=5, **TEN),
        lambda: TrimmedMean(f=2, min_evaluate_nodes=10, deadline=1, **TEN),
        lambda: Guarded(FedAvg(min_evaluate_nodes=10, **TEN)),
        lambda: Guarded(FedAvg(min_evaluate_nodes=10, **TEN), least=1),
    ],
)
def test_one_hostile_reply_is_not_the_accuracy(make):
    for down, abstaining, shown in (
        (range(9), (), False),
        (range(5), (), False),
        (range(4), (), True),
        (range(4, 9), range(4), False),  # one of six that could have answered
        (range(7, 9), range(5), True),  # three of five
        ((), range(9), True),  # nobody else has test data
    ):
        strategy = make()
        app = judging({*down}, {*abstaining})
        _, result = drive(strategy, app, ONE, 10, grid=Deployed(app, 10))
        (found,) = strategy.evaluations
        metrics = result.evaluate_metrics_clientapp
        assert ({*metrics} == {1}) is shown
        assert (found.outcome is Outcome.OK) is shown
        assert bool(found.sentence) is not shown
        assert FIRST + 9 in found.admitted  # the old server shows what came
    assert "that did not abstain" not in judged_sentence(range(9), ())
    assert judged_sentence(range(4, 9), range(4)) == (
        "metrics need replies from more than half of the 6 nodes asked that did not abstain, at least 4; got 1"
    )


def judged_sentence(down, abstaining):
    strategy, app = Median(min_evaluate_nodes=10, **TEN), judging({*down}, {*abstaining})
    drive(strategy, app, ONE, 10, grid=Deployed(app, 10))
    return strategy.evaluations[0].sentence


def test_a_guarded_strategy_never_sees_evaluations_of_too_few():
    seen = []

    class Best(FedAvg):
        """Keeps what it is shown, as strategies that keep the best model do."""

        def aggregate_evaluate(self, server_round, replies):
            seen.append(super().aggregate_evaluate(server_round, replies))
            return seen[-1]

    for down, count in ((range(9), 0), (range(4), 1)):
        seen.clear()
        app = judging({*down})
        drive(Guarded(Best(min_evaluate_nodes=10, **TEN)), app, ONE, 10, grid=Deployed(app, 10))
        assert len(seen) == count


def test_an_infeasible_round_has_no_training_metrics():
    def train(partition, model, config, context):
        if partition < 9 and config["server-round"] == 2:
            raise RuntimeError("out of order")
        return content({"w": model["w"] + np.float32(1)}, 10, loss=0.0 if partition == 9 else 1.0)

    for make in (lambda: TrimmedMean(f=2, **TEN, **SILENT), lambda: Guarded(FedAvg(**TEN, **SILENT))):
        strategy, app = make(), client_app(train)
        _, result = drive(strategy, app, ONE, 10, rounds=3, grid=Deployed(app, 10))
        assert [record.outcome.name for record in strategy.history] == ["OK", "INFEASIBLE", "OK"]
        assert [*result.train_metrics_clientapp] == [1, 3]  # the old server shows loss=0.0 in round 2


# -- errors at the default minimum -------------------------------------------------------------------


def asked_at_the_minimum(pool, minimum, rounds, down):
    """The old server: ask the rule's minimum. Say how many rounds are feasible if one of those asked always fails."""
    generator = np.random.default_rng(0)
    return sum(not set(generator.choice(pool, minimum, replace=False)) & down for _ in range(rounds))


def test_a_client_that_only_answers_with_errors_does_not_stop_the_rounds():
    """Krum(f=1) of 6 nodes asks five; it has six, so it asks the spare one, too."""
    app = failing({0}, since=1)
    strategy = Krum(f=1, fraction_train=0.1, **SILENT)
    drive(strategy, app, ONE, 6, rounds=20, grid=Deployed(app, 6))
    assert {record.outcome for record in strategy.history} == {Outcome.OK}
    assert {len(record.asked) for record in strategy.history[:3]} == {6}
    assert asked_at_the_minimum(6, 5, 20, {0}) < 10


def test_where_there_is_no_slack_a_warning_says_so(caplog):
    caplog.set_level("WARNING", logger="flwr")
    for nodes, told in ((5, True), (6, False)):
        caplog.clear()
        app = failing(set())
        drive(Krum(f=1, **SILENT), app, ONE, nodes, grid=Deployed(app, nodes))
        assert ("krum(f=1) needs a reply from each of the 5 nodes asked" in caplog.text) is told


# -- errors and silence without end ------------------------------------------------------------------


class Silent(Deployed):
    """Some nodes never answer."""

    def __init__(self, app, nodes, silent=()):
        super().__init__(app, nodes)
        self.silent = {FIRST + place for place in silent}

    def send_and_receive(self, messages, *, timeout=None):
        sent = [message for message in messages if message.metadata.dst_node_id not in self.silent]
        return super().send_and_receive(sent, timeout=timeout)


def asked_of(strategy, place):
    return [record.round for record in strategy.history if FIRST + place in record.asked]


def test_a_silent_node_that_answers_every_third_round_rests_all_the_same():
    class Intermittent(Silent):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            self.silent = {FIRST} if messages and messages[0].content["config"]["server-round"] % 3 else set()
            return super().send_and_receive(messages, timeout=timeout)

    app = failing(set())
    strategy = Krum(f=1, **SILENT)
    drive(strategy, app, ONE, 8, rounds=30, grid=Intermittent(app, 8))
    waits = [record.round for record in strategy.history if FIRST in record.silent]
    assert len(waits) <= 10
    old = [at for at in range(1, 31) if at % 3]  # the old way: two silent rounds, an answer, and the count is zero
    assert len(old) == 20


@pytest.mark.parametrize("way", ["errors", "silence"])
def test_who_never_answers_is_left_out_for_a_while_without_blame(way, tmp_path):
    app = failing({0} if way == "errors" else set(), since=1)
    grid = Silent(app, 8, (0,) if way == "silence" else ())
    strategy = Krum(f=1, quarantine_after=1, audit=Audit(tmp_path, sync=False), **SILENT)
    drive(strategy, app, ONE, 8, rounds=14, grid=grid)
    # The old server asks it in all rounds, and waits for it in each.
    assert asked_of(strategy, 0) == [1, 2, 3, 6, 11]
    assert asked_of(strategy, 1) == [*range(1, 15)]
    assert strategy.quarantined == ()
    assert strategy.guard.refusals == {}
    assert strategy.history[3].waiting == (FIRST,)
    events = [record.event for record in read_log(log_file(tmp_path))]
    rests = [(e.round, e.node, e.failures, e.until) for e in events if isinstance(e, Rested)]
    assert rests == [(3, FIRST, 3, 5), (6, FIRST, 4, 10), (11, FIRST, 5, 19)]
    asked = [event for event in events if isinstance(event, RoundConfigured) and event.round == 4]
    assert [(event.waiting, event.left_out) for event in asked] == [((FIRST,), ())]


def test_rests_leave_the_rule_enough_nodes():
    """Krum(f=1) needs five of six; two of six never answer: one of them is asked all the same."""
    app = failing({0, 1}, since=2)
    strategy = Krum(f=1, **SILENT)
    drive(strategy, app, ONE, 6, rounds=8, grid=Deployed(app, 6))
    assert {len(record.asked) for record in strategy.history[4:]} == {5}


def test_nodes_that_drop_out_one_after_the_other_leave_no_hostile_one_alone():
    """Every five rounds some more fail; if all of them rested, the hostile one would at last be asked alone."""
    waves = {0: 2, 1: 2, 2: 2, 3: 2, 4: 7, 5: 7, 6: 7, 7: 12, 8: 17}

    def train(i, model, config, context):
        if waves.get(i, 99) <= config["server-round"]:
            raise RuntimeError("gone")
        attacks = i == 9 and config["server-round"] > 12
        return content({"w": model["w"] + np.float32(HOSTILE if attacks else 0.1)}, partition_id=i)

    app = client_app(train)
    strategy = Median(min_train_nodes=2, min_available_nodes=2, **SILENT)
    model, _ = drive(strategy, app, ONE, 10, rounds=25, grid=Deployed(app, 10))
    assert min(len(record.asked) for record in strategy.history) == 6
    assert np.abs(model["w"]).max() < HOSTILE
    # The old way: those that failed three times in a row are not asked, however many these are.
    left = [sum(waves.get(i, 99) + 3 > at for i in range(10)) for at in range(1, 26)]
    assert left[-1] == 1


def test_in_a_simulation_nobody_rests_unless_it_is_said():
    for stated, asked in ((None, [*range(1, 8)]), (3, [1, 2, 3, 6])):
        app = failing({0}, since=1)
        strategy = Krum(f=1, rest_after=stated, **SILENT)
        drive(strategy, app, ONE, 8, rounds=7)
        assert asked_of(strategy, 0) == asked
    with pytest.raises(ConfigurationError, match="rest_after must be an integer >= 1; got rest_after=0"):
        Krum(f=1, rest_after=0)


def test_two_and_two_are_four_with_nodes_that_rest(tmp_path):
    def run(folder, rounds, resume=False):
        app = failing({0}, since=1)
        audit = Audit(tmp_path / folder, resume=resume, sync=False)
        strategy = Krum(f=1, rest_after=2, probation=3, fraction_train=0.9, seed=3, audit=audit, **SILENT)
        return drive(strategy, app, ONE, 9, rounds=rounds, grid=Deployed(app, 9))[0], strategy

    model, whole = run("whole", 12)
    for rounds in (3, 5, 9, 12):
        found, again = run("parts", rounds, True)
    assert found["w"].tobytes() == model["w"].tobytes()
    assert [record.asked for record in again.history] == [record.asked for record in whole.history]
    assert any(record.waiting for record in whole.history)
