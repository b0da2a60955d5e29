"""RobustStrategy in FedAvg's place: rounds by hand, hostile replies, buffers, sampling, and Flower's own beside it."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flowers
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg

from flwr_robust import ConfigurationError, Outcome, UnknownNameError, flower, plan
from flwr_robust.audit.card import make_card
from flwr_robust.flower import (
    CenteredClipping,
    InProcessGrid,
    Krum,
    LFighter,
    Mean,
    Median,
    Reason,
    RobustStrategy,
    TrimmedMean,
    serve,
)
from tests.flower_helpers import FIRST, MALFORMED, client_app, content, drive, in_vain, record, same_bits, sends, values

SILENT = {"fraction_evaluate": 0.0}  # most tests need no evaluation


def f32(*numbers):
    return np.array(numbers, np.float32)


class Shuffled(InProcessGrid):
    """A grid whose replies come in another order."""

    def __init__(self, app, nodes, order):
        super().__init__(app, nodes)
        self.order = order

    def send_and_receive(self, messages, *, timeout=None):
        # By node first: Flower's own strategies ask in an order drawn from Python's global generator.
        replies = sorted(super().send_and_receive(messages, timeout=timeout), key=lambda m: m.metadata.src_node_id)
        return [replies[i] for i in self.order if i < len(replies)]


# -- what a message means ----------------------------------------------------------------------------

START = {"w": f32(1, 2), "b": np.float32(10.0)}
MOVES = [
    {"w": f32(1, 0), "b": np.float32(3)},
    {"w": f32(2, 2), "b": np.float32(-1)},
    {"w": f32(9, -4), "b": np.float32(1)},
]
MEDIAN_MOVE = {"w": f32(2, 0), "b": np.float32(1)}
MEAN_MOVE = {"w": f32(4, -2 / 3), "b": np.float32(1)}


def mover(message):
    """Clients whose answer means MOVES[partition], whatever model they are sent."""

    def train(partition, model, config, context):
        move = MOVES[partition]
        return {k: v + model[k] for k, v in move.items()} if message == "parameters" else move

    return client_app(train)


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize(("message", "sign"), [("parameters", 1), ("delta", 1), ("gradient", -1), ("momentum", -1)])
def test_the_model_moves_as_computed_by_hand(message, sign, rate):
    strategy = Median(message=message, server_learning_rate=rate, **SILENT)
    once, _ = drive(strategy, mover(message), START, 3)
    for name, start in START.items():
        np.testing.assert_allclose(once[name], start + sign * rate * MEDIAN_MOVE[name], rtol=1e-6)
        assert once[name].dtype == np.float32
        assert once[name].shape == start.shape
    twice, _ = drive(Median(message=message, server_learning_rate=rate, **SILENT), mover(message), START, 3, rounds=2)
    for name, start in START.items():
        np.testing.assert_allclose(twice[name], start + 2 * sign * rate * MEDIAN_MOVE[name], rtol=1e-6)


def test_another_rule_moves_the_model_elsewhere():
    found, _ = drive(Mean(message="delta", **SILENT), mover("delta"), START, 3)
    for name, start in START.items():
        np.testing.assert_allclose(found[name], start + MEAN_MOVE[name], rtol=1e-6)


def test_the_rule_may_be_a_defence_string():
    # Clipped to length 5, client 2's (9, -4, 1) becomes 5 / sqrt(98) of itself.
    shrunk = 5 / np.sqrt(98)
    found, _ = drive(RobustStrategy("clip(c=5.0) | mean()", message="delta", **SILENT), mover("delta"), START, 3)
    np.testing.assert_allclose(found["w"], [1 + (3 + 9 * shrunk) / 3, 2 + (2 - 4 * shrunk) / 3], rtol=1e-6)


def test_numpy_clients_send_parameters():
    class Adds(NumPyClient):
        def __init__(self, partition):
            self.partition = partition

        def fit(self, parameters, config):
            for held, moved in zip(parameters, MOVES[self.partition].values(), strict=True):
                held += moved
            return parameters, 10, {"loss": float(self.partition)}

        def evaluate(self, parameters, config):
            return float(parameters[0][0]), 10, {}

    app = serve(lambda context: Adds(context.node_config["partition-id"]))
    strategy = Median()
    found, result = drive(strategy, app, START, 3)
    for name, start in START.items():
        np.testing.assert_allclose(found[name], start + MEDIAN_MOVE[name], rtol=1e-6)
    assert dict(result.train_metrics_clientapp[1]) == {"loss": 1.0}
    assert dict(result.evaluate_metrics_clientapp[1]) == {"loss": 3.0}
    assert strategy.partitions == {FIRST: 0, FIRST + 1: 1, FIRST + 2: 2}


def test_clients_see_the_round_and_the_model_of_it():
    seen = []

    def train(partition, model, config, context):
        seen.append((config["server-round"], config["rate"], model["w"].tolist()))
        return {"w": model["w"] + 1}

    strategy = Mean(**SILENT)
    drive(strategy, client_app(train), {"w": f32(0, 0)}, 2, rounds=2, train_config=ConfigRecord({"rate": 0.5}))
    assert seen == [(1, 0.5, [0, 0])] * 2 + [(2, 0.5, [1, 1])] * 2


# -- beside Flower's own -----------------------------------------------------------------------------

TARGETS = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
ZERO = {"w": np.zeros((2, 3), np.float32), "b": np.full(6, 0.25, np.float32)}


def learner(message, attackers=0):
    """Clients that go half of the way to targets of their own; the last attackers lie."""

    def train(partition, model, config, context):
        target = TARGETS[partition]
        delta = {name: (target.reshape(held.shape) - held) / 2 for name, held in model.items()}
        if partition >= len(TARGETS) - attackers:
            delta = {name: -50 * moved for name, moved in delta.items()}
        return {k: v + model[k] for k, v in delta.items()} if message == "parameters" else delta

    return client_app(train)


def distance(first, second):
    return float(np.sqrt(sum(np.sum((first[k].astype(float) - second[k]) ** 2) for k in first)))


def fedavg(app, model, nodes, rounds=1, **options):
    return drive(FedAvg(min_train_nodes=nodes, min_available_nodes=nodes, **SILENT), app, model, nodes, rounds)[0]


@pytest.mark.parametrize("message", ["parameters", "delta"])
def test_the_mean_is_fedavg_when_clients_hold_equally_much(message):
    strategy = Mean(message=message, min_train_nodes=7, **SILENT)
    ours, _ = drive(strategy, learner(message), ZERO, 7, rounds=3)
    theirs = fedavg(learner("parameters"), ZERO, 7, rounds=3)
    for name in ZERO:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    assert distance(ours, ZERO) > 0.5  # something was learnt at all
    # When clients say they hold different amounts FedAvg follows them, and the plain mean does not.
    biased = client_app(lambda i, model, config, context: content({"w": f32(i)}, 1 + 99 * i))
    assert fedavg(biased, {"w": f32(0)}, 2)["w"] == pytest.approx(100 / 101)
    assert drive(Mean(**SILENT), biased, {"w": f32(0)}, 2)[0]["w"] == pytest.approx(0.5)


def test_a_lie_about_the_number_of_examples_buys_little():
    answers = [content({"w": f32(0)}, 10), content({"w": f32(0)}, 10), content({"w": f32(1)}, 10**12)]
    strategy = Mean(weighted=True, **SILENT)
    assert drive(strategy, sends(answers), {"w": f32(0)}, 3)[0]["w"] == pytest.approx(0.5)  # 20 of 40
    assert fedavg(sends(answers), {"w": f32(0)}, 3)["w"] == pytest.approx(1)
    assert strategy.history[0].weights == pytest.approx((0.25, 0.25, 0.5))


ROBUST = ["trimmed_mean(f=2)", "median()", "krum(f=2)", "multi_krum(f=2)", "geometric_median(f=2)", "faba(f=2)"]


@pytest.mark.parametrize("message", ["parameters", "delta"])
@pytest.mark.parametrize("rule", ROBUST)
def test_a_robust_rule_stays_near_the_honest_mean_where_fedavg_does_not(rule, message):
    honest = {name: held + (TARGETS[:5].mean(0).reshape(held.shape) - held) / 2 for name, held in ZERO.items()}
    spread = max(distance({"t": t / 2}, {"t": TARGETS[:5].mean(0) / 2}) for t in TARGETS[:5])
    strategy = RobustStrategy(rule, message=message, min_train_nodes=7, **SILENT)
    ours, _ = drive(strategy, learner(message, 2), ZERO, 7)
    theirs = fedavg(learner("parameters", 2), ZERO, 7)
    assert distance(ours, honest) < 2 * spread
    assert distance(theirs, honest) > 8 * spread
    # The plain mean of this package is as helpless: the rule is what helps, not the strategy around it.
    plain, _ = drive(Mean(message=message, min_train_nodes=7, **SILENT), learner(message, 2), ZERO, 7)
    assert distance(plain, theirs) < 1e-3 * distance(theirs, honest)


def test_flower_turns_integer_buffers_into_floats_and_we_do_not():
    model = {"w": f32(0), "n": np.int64(4)}
    app = client_app(lambda i, model, config, context: {"w": model["w"] + 1, "n": model["n"] + 1})
    assert drive(Mean(**SILENT), app, model, 2)[0]["n"].dtype == np.int64
    assert fedavg(app, model, 2)["n"].dtype == np.float64


# -- malformed replies -------------------------------------------------------------------------------

SENT = {"w": np.zeros((2, 3), np.float32), "b": f32(0, 0)}


def with_liar(make, rounds=None, nodes=6, liars=(5,)):
    """Clients that answer with their partition's number, and liars that answer with what make makes of it."""

    def train(partition, model, config, context):
        # The liar's numbers lie in the middle, so that distance alone does not give it away.
        level = 2.25 if partition in liars else float(partition)
        answer = {"w": np.full((2, 3), level, np.float32), "b": f32(level, level)}
        if partition in liars and (rounds is None or config["server-round"] in rounds):
            return make(answer)
        return content(answer)  # no partition-id: Flower's own want the same metrics of everybody

    return client_app(train)


@pytest.mark.parametrize(("make", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_reply_is_refused_and_the_run_goes_on(make, reason):
    strategy = RobustStrategy("krum(f=1)", min_train_nodes=6, **SILENT)
    found, result = drive(strategy, with_liar(make, rounds=[1]), SENT, 6, rounds=2)
    first, second = strategy.history
    assert [(refused.node, refused.reason) for refused in first.refused] == [(FIRST + 5, reason)]
    assert first.admitted == tuple(range(FIRST, FIRST + 5))
    assert first.outcome is Outcome.OK
    assert len(first.weights) == 5
    # In the second round the same node behaves, and is let in again.
    assert second.refused == ()
    assert second.admitted == tuple(range(FIRST, FIRST + 6))
    assert set(found) == {"w", "b"}
    for name, values_ in found.items():
        assert values_.dtype == np.float32
        assert values_.shape == SENT[name].shape
        assert np.isin(values_, [0, 1, 2, 3, 4, 2.25]).all()  # Krum returns one of the rows
    assert sorted(result.train_metrics_clientapp) == [1, 2]


# What one such reply does to Flower's own strategies, 6 nodes answering.
RAISES = [
    "array missing",
    "array too many",
    "array renamed",
    "transposed",
    "truncated",
    "garbage",
    "text array",
    "no ArrayRecord",
    "two ArrayRecords",
    "no MetricRecord",
    "two MetricRecords",
    "empty",
    "no num-examples",
    "num-examples list",
]
FEDAVG_BREAKS = ["nan", "inf", "minus inf", "num-examples nan", "num-examples inf"]
OTHER_TYPE = ["float64 beyond float32", "longdouble", "complex"]


@pytest.mark.parametrize(
    ("name", "theirs"),
    # Krum flattens before it compares, so it sees no shape.
    [(name, FedAvg) for name in RAISES] + [(name, flowers.Krum) for name in RAISES if name != "transposed"],
)
def test_the_same_reply_ends_a_run_of_flowers_own(name, theirs):
    strategy = theirs(min_train_nodes=6, min_available_nodes=6, **SILENT)
    with pytest.raises(Exception) as raised:
        drive(strategy, with_liar(MALFORMED[name][0]), SENT, 6)
    assert isinstance(raised.value, InconsistentMessageReplies | ValueError | TypeError)
    assert "MetricRecords must have the same keys" not in str(raised.value) or "num-examples" in name


@pytest.mark.parametrize("name", FEDAVG_BREAKS)
def test_the_same_reply_ruins_fedavgs_model(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = fedavg(with_liar(MALFORMED[name][0]), SENT, 6)
    assert not all(np.isfinite(values_).all() for values_ in found.values())


KRUM_BREAKS = {name: MALFORMED[name][0] for name in ("num-examples nan", "num-examples inf")}
KRUM_BREAKS["num-examples 0"] = lambda arrays: content(arrays, 0)  # of which ours makes an abstention


@pytest.mark.parametrize("name", KRUM_BREAKS)
def test_the_same_reply_ruins_flowers_krum(name):
    # Two liars lie where Krum looks for its row, so one of them is chosen.
    strategy = flowers.Krum(num_malicious_nodes=1, min_train_nodes=6, min_available_nodes=6, **SILENT)
    app = with_liar(KRUM_BREAKS[name], liars=(4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            found = drive(strategy, app, SENT, 6)[0]
        except ZeroDivisionError:
            return
    assert not all(np.isfinite(values_).all() for values_ in found.values())


@pytest.mark.parametrize("name", OTHER_TYPE)
def test_the_same_reply_changes_the_type_of_fedavgs_model(name):
    app = with_liar(MALFORMED[name][0], liars=(0,))
    strategy = FedAvg(min_train_nodes=6, min_available_nodes=6, **SILENT)
    # FedAvg sums in the type of the reply that comes first.
    found, _ = drive(strategy, app, SENT, 6, grid=Shuffled(app, 6, range(6)))
    assert found["w"].dtype not in (np.float32, np.int32)
    ours = Mean(**SILENT)
    assert drive(ours, app, SENT, 6, grid=Shuffled(app, 6, range(6)))[0]["w"].dtype == np.float32


@pytest.mark.parametrize("theirs", [FedAvg, flowers.Krum])
def test_flowers_own_manage_when_nobody_lies(theirs):
    # The other side of the controls above: it is the one reply that ends, ruins or changes the run.
    strategy = theirs(min_train_nodes=6, min_available_nodes=6, **SILENT)
    found, _ = drive(strategy, with_liar(content), SENT, 6, rounds=2)
    assert all(np.isfinite(values_).all() and 0 <= values_.min() <= values_.max() <= 5 for values_ in found.values())
    if theirs is FedAvg:
        assert found["w"] == pytest.approx(np.full((2, 3), 12.25 / 6))
        assert found["w"].dtype == np.float32


def test_every_control_is_one_of_the_malformed():
    assert {*RAISES, *FEDAVG_BREAKS, *OTHER_TYPE} <= set(MALFORMED)


@pytest.mark.parametrize("name", MALFORMED)
def test_when_every_reply_is_malformed_the_model_stays_as_it_is(name):
    make, reason = MALFORMED[name]
    model = {"w": np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32), "b": f32(0.1, -0.0)}
    app = client_app(lambda partition, held, config, context: make(held))
    strategy = Mean(**SILENT)
    found = in_vain(strategy, app, model, 3, rounds=2)
    assert same_bits(found, model)
    assert [seen.outcome for seen in strategy.history] == [Outcome.INFEASIBLE] * 2
    assert {refused.reason for seen in strategy.history for refused in seen.refused} == {reason}
    assert strategy.history[0].sentence.startswith("no reply was admitted: all 3 nodes that answered")
    assert strategy.history[0].weights == ()


def test_when_every_client_raises_the_model_stays_as_it_is():
    def train(partition, model, config, context):
        raise RuntimeError("no data")

    strategy = Median(**SILENT)
    assert same_bits(in_vain(strategy, client_app(train), START, 4), START)
    assert [refused.reason for refused in strategy.history[0].refused] == [Reason.ERROR] * 4
    assert "no data" in strategy.history[0].refused[0].detail


def test_too_few_replies_for_the_rule_leave_the_model_as_it_is():
    def train(partition, model, config, context):
        if config["server-round"] == 1 and partition in (0, 3):
            raise RuntimeError("gone")
        return content({"w": model["w"] + 1}, loss=float(partition), partition_id=partition)

    strategy = Krum(f=1, min_train_nodes=6, message="parameters", **SILENT)
    found, result = drive(strategy, client_app(train), {"w": f32(3)}, 6, rounds=2)
    first, second = strategy.history
    assert first.outcome is Outcome.INFEASIBLE
    assert "krum needs n >= 2f + 3; got n=4, f=1" in first.sentence
    assert (len(first.admitted), len(first.refused), first.weights) == (4, 2, ())
    assert second.outcome is Outcome.OK
    assert found["w"].tolist() == [4]  # one step, not two
    assert {t: m["loss"] for t, m in result.train_metrics_clientapp.items()} == {2: 2.5}  # none of an infeasible round


def test_silent_clients_do_not_shrink_the_trim():
    # trimmed_mean(fraction=0.25) of 8 asked drops 2 a side, also when only 6 answer.
    levels = [0, 1, 2, 3, 100, 100, None, None]

    def train(partition, model, config, context):
        if levels[partition] is None:
            raise RuntimeError("gone")
        return {"w": f32(levels[partition])}

    found, _ = drive(TrimmedMean(fraction=0.25, min_train_nodes=8, **SILENT), client_app(train), {"w": f32(0)}, 8)
    assert found["w"] == pytest.approx(2.5)
    theirs = flowers.FedTrimmedAvg(beta=0.25, min_train_nodes=8, min_available_nodes=8, **SILENT)
    assert drive(theirs, client_app(train), {"w": f32(0)}, 8)[0]["w"] > 25


def test_finite_numbers_whose_norm_overflows_are_left_out():
    answers = [{"w": np.array([1.0])}, {"w": np.array([2.0])}, {"w": np.array([3.0])}, {"w": np.array([1e300])}]
    strategy = Mean(min_train_nodes=4, **SILENT)
    found, _ = drive(strategy, sends(answers), {"w": np.array([0.0])}, 4)
    assert found["w"] == pytest.approx(2.0)
    assert strategy.history[0].weights == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0))
    assert strategy.history[0].stats["not_finite"] == [3]


def test_the_step_ends_at_the_types_largest_number():
    largest = np.finfo(np.float16).max
    answers = [{"w": np.array([6e4, -6e4], np.float16)}] * 2
    start = {"w": np.array([6e4, -6e4], np.float16)}
    found, _ = drive(Mean(message="delta", server_learning_rate=3.0, **SILENT), sends(answers), start, 2)
    assert found["w"].tolist() == [largest, -largest]


# -- configuration -----------------------------------------------------------------------------------


def counting_app():
    seen = []

    def train(partition, model, config, context):
        seen.append(partition)
        return model

    return client_app(train), seen


def test_a_sample_that_does_not_fit_the_rule_is_an_error_before_anything_is_sent():
    app, seen = counting_app()
    strategy = Krum(f=2, min_train_nodes=4, min_available_nodes=4, **SILENT)
    with pytest.raises(ConfigurationError, match=r"krum needs n >= 2f \+ 3; got n=4, f=2"):
        drive(strategy, app, START, 4)
    assert seen == []
    assert strategy.history == []
    # One node more than the minimum and it runs.
    app, seen = counting_app()
    drive(Krum(f=2, min_train_nodes=7, **SILENT), app, START, 7)
    assert len(seen) == 7


@pytest.mark.parametrize("model", [{"n": np.int64(1)}, {"w": np.zeros(2, np.complex64)}], ids=["integers", "complex"])
def test_a_model_that_cannot_be_used_is_an_error_before_anything_is_sent(model):
    app, seen = counting_app()
    with pytest.raises(ConfigurationError, match="model: "):
        drive(Mean(**SILENT), app, model, 2)
    assert seen == []


def test_a_model_with_nothing_to_learn_is_an_error_before_anything_is_sent():
    app, seen = counting_app()
    with pytest.raises(ConfigurationError, match="model: "):
        drive(Mean(**SILENT), app, {"norm.running_mean": f32(1, 2)}, 2)
    assert seen == []


def trusted(server_round, record):
    """The server's own answer: the model, moved by one."""
    return [value + 1 for value in values(record).values()]


NAMED = {
    "Bulyan": {"f": 0},
    "CAF": {"f": 1},
    "CGE": {"f": 1},
    "ClipMean": {},
    "ClippedClustering": {},
    "Clustering": {},
    "DnC": {"f": 1},
    "FLAME": {},
    "FLTrust": {"trusted_fn": trusted},
    "FoolsGold": {},
    "GeneralisedKrum": {"f": 1, "p": 3},
    "Meamed": {"f": 1},
    "MinimumDiameter": {"f": 1},
    "MixTailor": {"f": 1, "pool": ["median", "krum"], "seed": 1},
    "Monna": {"f": 1, "trusted_fn": trusted},
    "NormBound": {"c": 1.0},
    "Phocas": {"f": 1},
    "SMEA": {"f": 1},
    "ReweightedGeometricMedian": {"f": 1},
    "SignGuard": {},
    "SignMajority": {},
    "CenteredClipping": {"tau": 1.0, "f": 1},
    "FABA": {"f": 1},
    "GeometricMedian": {"f": 1},
    "Krum": {"f": 1},
    "LFighter": {},
    "Mean": {},
    "Median": {"f": 1},
    "MultiKrum": {"f": 1},
    "TrimmedMean": {"f": 1},
}


SHORTENING = {"CenteredClipping", "ClipMean", "ClippedClustering", "FLAME", "FLTrust", "NormBound", "SignGuard"}


def named(name, **options):
    return getattr(flower, name)(**NAMED[name], **options)


def test_the_table_of_strategies_is_complete():
    exported = {n for n in flower.__all__ if isinstance(getattr(flower, n), type)}
    robust = {n for n in exported if issubclass(getattr(flower, n), RobustStrategy)}
    assert robust - {"RobustStrategy", "DeSGD"} == set(NAMED)  # which take any rule


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("CenteredClipping", {"tau": 2.0, "steps": 3, "f": 2}, "centered_clipping(tau=2.0, steps=3, f=2)"),
        ("FABA", {"f": 2}, "faba(f=2)"),
        (
            "GeometricMedian",
            {"f": 2, "tolerance": 0.1, "nu": 0.2, "iterations": 3, "maximum": 4, "weighted": True, "clamp": 5.0},
            "geometric_median(f=2, tolerance=0.1, nu=0.2, iterations=3, maximum=4, weighted=True, clamp=5.0)",
        ),
        ("Krum", {"f": 2, "variant": "byzfl"}, "krum(f=2, variant='byzfl')"),
        ("LFighter", {"head": "w"}, "lfighter(head='w')"),
        ("MixTailor", {"f": 2, "pool": ["krum"], "seed": 3}, "mixtailor(f=2, pool=('krum',))"),
        ("Mean", {"weighted": True, "clamp": 3.0}, "mean(weighted=True, clamp=3.0)"),
        ("Median", {"f": 2}, "median(f=2)"),
        ("MultiKrum", {"f": 2, "m": 4, "variant": "byzfl"}, "multi_krum(f=2, m=4, variant='byzfl')"),
        ("TrimmedMean", {"fraction": 0.2}, "trimmed_mean(fraction=0.2)"),
    ],
)
def test_a_named_strategys_hyperparameters_reach_its_rule(name, fields, text):
    assert str(getattr(flower, name)(**fields).rule) == text


@pytest.mark.parametrize("name", NAMED)
def test_every_named_strategy_runs(name):
    model = {"hidden.weight": np.zeros((3, 2), np.float32), "head.weight": np.zeros((4, 3), np.float32), "b": f32(0)}
    rng = np.random.default_rng(3)
    moves = [{k: rng.standard_normal(v.shape).astype(np.float32) for k, v in model.items()} for _ in range(7)]
    app = client_app(lambda i, held, config, context: {k: v + held[k] for k, v in moves[i].items()})
    strategy = named(name, min_train_nodes=7, min_available_nodes=7, **SILENT)
    assert isinstance(strategy, FedAvg)
    found, _ = drive(strategy, app, model, 7, rounds=2)
    assert [seen.outcome for seen in strategy.history] == [Outcome.OK] * 2
    for seen in strategy.history:
        assert len(seen.weights) == len(seen.admitted) == 7
        assert min(seen.weights) >= 0
        # Rules that shorten rows give away less than the whole; centered clipping leaves a share to the last value.
        assert 0 < sum(seen.weights) <= 1 + 1e-9
        if name not in SHORTENING:
            assert sum(seen.weights) == pytest.approx(1)
    # Two rounds of a rule without memory are twice one round, for the moves do not depend on the model.
    once, _ = drive(named(name, min_train_nodes=7, **SILENT), app, model, 7)
    for key in model:
        assert found[key].any()
        # SignGuard, MixTailor and LFighter draw anew each round.
        if name not in ("CenteredClipping", "ClippedClustering", "LFighter", "MixTailor", "SignGuard"):
            np.testing.assert_allclose(found[key], 2 * once[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMED)
def test_the_default_minima_fit_the_rule(name):
    strategy = named(name)
    least = strategy.min_train_nodes
    assert strategy.min_available_nodes == least
    assert least >= 2
    assert strategy.rule.check(least) is None
    assert least == 2 or strategy.rule.check(least - 1) is not None
    assert named(name, min_train_nodes=9).min_train_nodes == 9
    assert named(name, min_available_nodes=11).min_available_nodes == 11


def test_the_minima_follow_the_rule():
    assert Krum(f=3).min_train_nodes == 9
    assert TrimmedMean(f=3).min_train_nodes == 7
    assert RobustStrategy("clip(c=1.0) | multi_krum(f=1, m=6)").min_train_nodes == 6
    assert FedAvg().min_train_nodes == 2


def test_the_strategys_own_parameters_are_checked():
    for options, sentence in [
        ({"message": "weights"}, "message must be one of delta, gradient, momentum, parameters; got message='weights'"),
        ({"server_learning_rate": 0}, "server_learning_rate must be a finite number and > 0"),
        ({"server_learning_rate": float("nan")}, "server_learning_rate must be"),
        ({"buffers": "mean"}, "buffers must be one of keep, median"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"seed": 1.0}, "seed must be an integer >= 0"),
    ]:
        with pytest.raises(ConfigurationError, match=sentence):
            Mean(**options)
    with pytest.raises(ConfigurationError, match="krum: f must be an integer >= 0"):
        Krum(f=-1)
    with pytest.raises(UnknownNameError, match="Did you mean 'krum'"):
        RobustStrategy("crum(f=1)")


def test_an_unknown_option_is_an_error():
    with pytest.raises(UnknownNameError, match="unknown option of Mean 'fraction_fit'"):
        Mean(fraction_fit=0.5)
    with pytest.raises(UnknownNameError, match="unknown option of Krum 'num_malicious_nodes'"):
        Krum(num_malicious_nodes=1)

    class Own(Krum):
        def __init__(self, **options):
            super().__init__(f=1, **options)

    with pytest.raises(UnknownNameError, match="unknown option of Own 'fraction_fit'"):
        Own(fraction_fit=0.5)


def test_fedavgs_options_are_kept():
    options = {
        "fraction_train": 0.5,
        "fraction_evaluate": 0.25,
        "min_train_nodes": 3,
        "min_evaluate_nodes": 4,
        "min_available_nodes": 5,
        "weighted_by_key": "examples",
        "arrayrecord_key": "model",
        "configrecord_key": "settings",
    }
    strategy = Median(**options)
    assert {key: getattr(strategy, key) for key in options} == options


def test_fedavgs_options_have_their_effect():
    sent, combined = [], []

    def combine(contents, key):
        combined.append((len(contents), key))
        return MetricRecord({"mine": 1.0})

    app = ClientApp()

    @app.train()
    def train(message, context):
        sent.append((sorted(message.content), dict(message.content["settings"])))
        answer = RecordDict({"m": MetricRecord({"examples": 3}), "a": message.content["model"]})
        return type(message)(answer, reply_to=message)

    strategy = Mean(
        weighted_by_key="examples",
        arrayrecord_key="model",
        configrecord_key="settings",
        train_metrics_aggr_fn=combine,
        **SILENT,
    )
    _, result = drive(strategy, app, START, 2)
    assert sent == [(["model", "settings"], {"server-round": 1})] * 2
    assert combined == [(2, "examples")]
    assert dict(result.train_metrics_clientapp[1]) == {"mine": 1.0}


def test_no_training_when_the_fraction_is_zero():
    app, seen = counting_app()
    strategy = Mean(fraction_train=0.0, **SILENT)
    grid = InProcessGrid(app, 2)
    assert list(strategy.configure_train(1, record(START), ConfigRecord(), grid)) == []
    assert strategy.aggregate_train(1, []) == (None, None)
    assert seen == []
    assert strategy.history == []


def test_the_summary_names_the_defence(monkeypatch):
    lines = []
    monkeypatch.setattr("flwr_robust.flower.strategy.log.info", lambda text, *args: lines.append(text % args))
    TrimmedMean(f=2, message="delta", server_learning_rate=0.5).summary()
    text = "\n".join(lines)
    assert "trimmed_mean(f=2)" in text
    assert "Messages: delta" in text
    assert "Server learning rate: 0.5" in text


# -- what is written down ----------------------------------------------------------------------------


def test_the_weights_are_in_the_history():
    levels = [0.0, 1.0, 1.1, 1.2, 50.0]
    app = sends([content({"w": f32(level)}, partition_id=i) for i, level in enumerate(levels)])
    strategy = Krum(f=1, min_train_nodes=5, **SILENT)
    found, _ = drive(strategy, app, {"w": f32(0)}, 5)
    seen = strategy.history[0]
    assert seen.weights == (0, 0, 1, 0, 0)  # 1.1 lies between its two neighbours
    assert found["w"] == pytest.approx(1.1)
    assert seen.round == 1
    assert seen.asked == seen.admitted == tuple(range(FIRST, FIRST + 5))
    assert seen.silent == ()
    assert seen.partitions == (0, 1, 2, 3, 4)
    assert seen.sentence == ""
    assert len(seen.stats["scores"]) == 5

    plain = Mean(**SILENT)
    drive(plain, app, {"w": f32(0)}, 5)
    assert plain.history[0].weights == pytest.approx([0.2] * 5)


def test_an_iteration_that_does_not_converge_says_so():
    answers = [{"w": f32(*row)} for row in ((0, 0), (1, 0), (0, 1), (5, 5))]
    strategy = flower.GeometricMedian(maximum=1, min_train_nodes=4, **SILENT)
    found, _ = drive(strategy, sends(answers), {"w": f32(0, 0)}, 4)
    assert strategy.history[0].outcome is Outcome.NOT_CONVERGED
    assert found["w"].any()  # what it reached is used all the same
    strategy = flower.GeometricMedian(min_train_nodes=4, **SILENT)
    drive(strategy, sends(answers), {"w": f32(0, 0)}, 4)
    assert strategy.history[0].outcome is Outcome.OK


# -- memory ------------------------------------------------------------------------------------------


def test_centered_clipping_keeps_its_centre_from_round_to_round():
    # tau = 1. Round 1, from 0: (1 + 0.5 - 1) / 3 = 1/6. Round 2, from 1/6: differences 17/6, 1/3, -13/6
    # become 1, 1/3, -1, so the centre moves by 1/9 to 5/18. The model has moved by 1/6 + 5/18 = 4/9.
    app = sends([{"w": np.array([v])} for v in (3.0, 0.5, -2.0)])
    strategy = CenteredClipping(tau=1.0, message="delta", **SILENT)
    once, _ = drive(strategy, app, {"w": np.array([0.0])}, 3)
    assert once["w"] == pytest.approx(1 / 6)
    assert float(strategy.state["centre"]) == pytest.approx(1 / 6)
    strategy = CenteredClipping(tau=1.0, message="delta", **SILENT)
    twice, _ = drive(strategy, app, {"w": np.array([0.0])}, 3, rounds=2)
    assert twice["w"] == pytest.approx(4 / 9)  # forgetting the centre would give 1/3
    assert float(strategy.state["centre"]) == pytest.approx(5 / 18)


def test_a_round_without_replies_leaves_the_state_alone():
    def train(partition, model, config, context):
        if config["server-round"] == 2:
            raise RuntimeError("gone")
        return {"w": np.array([(3.0, 0.5, -2.0)[partition]])}

    strategy = CenteredClipping(tau=1.0, message="delta", **SILENT)
    found, _ = drive(strategy, client_app(train), {"w": np.array([0.0])}, 3, rounds=3)
    assert [seen.outcome.name for seen in strategy.history] == ["OK", "INFEASIBLE", "OK"]
    assert found["w"] == pytest.approx(4 / 9)


# -- arrays that are not learnt ----------------------------------------------------------------------

NORM = {
    "conv.weight": f32(1, 1),
    "norm.running_mean": f32(10, 20),
    "norm.running_var": f32(1, 1),
    "norm.num_batches_tracked": np.int64(7),
    "counts": np.array([1, 2], np.int32),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32),
    "my_running_mean": f32(4),  # its name only ends alike: it is learnt
}
CHANGES = [
    {"w": 1, "mean": (0, 3), "var": (1, 0), "n": 1, "counts": (5, -1), "mask": (True, False), "my": 2},
    {"w": 2, "mean": (1, 1), "var": (2, 0), "n": 2, "counts": (1, 3), "mask": (False, False), "my": 4},
    {"w": 3, "mean": (4, 2), "var": (3, 0), "n": 9, "counts": (2, 4), "mask": (True, True), "my": 6},
    {"w": 6, "mean": (900, -900), "var": (9, 0), "n": 5, "counts": (900, -9), "mask": (True, False), "my": 8},
]
# Middle two of four, the lower one for integers: change of mean (2.5, 1.5), var 2.5, n 2, counts (2, -1).


def norm_app(message):
    def train(partition, model, config, context):
        c = CHANGES[partition]
        change = {
            "conv.weight": f32(c["w"], c["w"]),
            "norm.running_mean": f32(*c["mean"]),
            "norm.running_var": f32(*c["var"]),
            "norm.num_batches_tracked": np.int64(c["n"]),
            "counts": np.array(c["counts"], np.int32),
            "mask": np.array(c["mask"]),
            "none": np.zeros((0, 3), np.float32),
            "my_running_mean": f32(c["my"]),
        }
        if message != "parameters":
            return change
        return {k: model[k] ^ v if k == "mask" else np.asarray(model[k] + v) for k, v in change.items()}

    return client_app(train)


def norm_round(message, **options):
    strategy = Mean(message=message, server_learning_rate=0.5, min_train_nodes=4, **SILENT, **options)
    found, _ = drive(strategy, norm_app(message), NORM, 4)
    assert list(found) == list(NORM)
    for name, values_ in NORM.items():
        assert found[name].dtype == values_.dtype
        assert found[name].shape == values_.shape
    # What is learnt follows the rule and the server's learning rate: the mean change is 3 and 5, halved.
    sign = -1 if message in ("gradient", "momentum") else 1
    np.testing.assert_allclose(found["conv.weight"], 1 + sign * 1.5, rtol=1e-6)
    np.testing.assert_allclose(found["my_running_mean"], 4 + sign * 2.5, rtol=1e-6)
    return found


@pytest.mark.parametrize("message", ["parameters", "delta"])
def test_buffers_take_the_median_and_keep_their_type(message):
    found = norm_round(message)
    np.testing.assert_allclose(found["norm.running_mean"], [12.5, 21.5])
    np.testing.assert_allclose(found["norm.running_var"], [3.5, 1])
    assert found["norm.num_batches_tracked"] == 9
    assert found["counts"].tolist() == [3, 1]
    # Sent (True, False). Parameters: of (F, F), (T, F), (F, T), (F, F) the lower middle is (F, F).
    # Delta: of the changes (T, F), (F, F), (T, T), (T, F) the lower middle is (T, F), which flips the first.
    assert found["mask"].tolist() == [False, False]


@pytest.mark.parametrize("message", ["gradient", "momentum"])
def test_buffers_stay_when_gradients_are_sent(message):
    found = norm_round(message)
    learnt = ("conv.weight", "my_running_mean")
    assert same_bits(
        {k: v for k, v in found.items() if k not in learnt}, {k: v for k, v in NORM.items() if k not in learnt}
    )


@pytest.mark.parametrize("message", ["parameters", "delta", "gradient", "momentum"])
def test_buffers_can_be_kept(message):
    found = norm_round(message, buffers="keep")
    learnt = ("conv.weight", "my_running_mean")
    assert same_bits(
        {k: v for k, v in found.items() if k not in learnt}, {k: v for k, v in NORM.items() if k not in learnt}
    )


def test_one_liar_does_not_move_buffers():
    model = {"w": f32(0), "norm.running_var": f32(1), "n": np.int64(3)}
    answers = [{"w": f32(0), "norm.running_var": f32(v), "n": np.int64(n)} for v, n in [(1, 4), (2, 4), (3, 5)]]
    answers.append({"w": f32(0), "norm.running_var": f32(-1e30), "n": np.int64(-(2**62))})
    found, _ = drive(Median(min_train_nodes=4, **SILENT), sends(answers), model, 4)
    assert 1 <= found["norm.running_var"] <= 3
    assert 4 <= found["n"] <= 5
    assert fedavg(sends(answers), model, 4)["norm.running_var"] < -1e29


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("message", ["parameters", "delta", "gradient"])
def test_floating_point_models_keep_their_type(dtype, message):
    model = {"w": np.array([1.0, -2.0], dtype), "s": np.array(0.5, dtype)}
    step = {"w": np.array([0.5, 0.25], dtype), "s": np.array(2.0, dtype)}
    app = client_app(
        lambda i, held, config, context: {k: v + held[k] for k, v in step.items()} if message == "parameters" else step
    )
    found, _ = drive(Median(message=message, **SILENT), app, model, 3)
    sign = -1 if message == "gradient" else 1
    assert same_bits(found, {k: np.asarray(model[k] + sign * step[k], dtype) for k in model})
    assert found["s"].shape == ()


def test_layers_may_have_types_of_their_own():
    model = {"a": np.array([1.0], np.float16), "b": np.array([1.0], np.float64), "c": f32(1)}
    step = {"a": np.array([0.5], np.float16), "b": np.array([1e-12]), "c": f32(0.25)}
    found, _ = drive(Mean(message="delta", **SILENT), sends([step, step]), model, 2)
    assert {k: v.dtype.name for k, v in found.items()} == {"a": "float16", "b": "float64", "c": "float32"}
    assert found["b"][0] == 1 + 1e-12  # float64 lost no digit on the way
    assert (found["a"][0], found["c"][0]) == (1.5, 1.25)


def test_small_updates_beside_large_weights_are_told_apart():
    # In float32 ||a||^2 + ||b||^2 - 2ab of these weights is noise; the updates differ in their sixth digit.
    start = {"w": np.full(1000, 1000.0, np.float32)}
    steps = [0.001, 0.0011, 0.0012, 0.0013, -0.01]
    app = sends([{"w": (start["w"].astype(float) + step).astype(np.float32)} for step in steps])
    strategy = Krum(f=1, min_train_nodes=5, **SILENT)
    drive(strategy, app, start, 5)
    assert strategy.history[0].weights[4] == 0
    scores = strategy.history[0].stats["scores"]
    assert max(scores) == scores[4]
    assert scores[4] > 100 * min(scores)


# -- order -------------------------------------------------------------------------------------------


ORDERS = [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)]
# Sums of these depend on the order in the last bits and beyond.
ROWS = np.random.default_rng(5).standard_normal((5, 40)) * np.logspace(0, 12, 5)[:, None]
ROWS[3] = -ROWS[4] + ROWS[0]


def shuffled_models(make, partition_id=True):
    found = []
    for order in ORDERS:
        app = client_app(
            lambda i, m, c, x: content({"w": ROWS[i] + m["w"]}, **({"partition_id": i} if partition_id else {}))
        )
        grid = Shuffled(app, 5, order)
        strategy = make()
        found.append(drive(strategy, app, {"w": np.zeros(40)}, 5, rounds=2, grid=grid)[0]["w"].tobytes())
    return found


@pytest.mark.parametrize("partition_id", [True, False], ids=["by partition", "by node"])
@pytest.mark.parametrize("rule", ["mean()", "median()", "geometric_median()", "krum(f=1)", "faba(f=1)"])
def test_replies_in_any_order_give_the_same_bits(rule, partition_id):
    make = lambda: RobustStrategy(rule, min_train_nodes=5, **SILENT)  # noqa: E731
    assert len(set(shuffled_models(make, partition_id))) == 1


def test_flowers_own_mean_depends_on_the_order():
    # The control: these rows are such that the order can be seen.
    make = lambda: FedAvg(min_train_nodes=5, min_available_nodes=5, **SILENT)  # noqa: E731
    assert len(set(shuffled_models(make))) > 1


def renumbered(app, nodes, ids):
    """Return a grid whose partition i sits at node ids[i], listed by id as Flower may list them."""
    grid = InProcessGrid(app, nodes)
    contexts = {}
    for node, context in sorted(zip(ids, grid.contexts.values(), strict=True)):
        contexts[node] = Context(1, node, context.node_config, context.state, context.run_config)
    grid.contexts = contexts
    return grid


@pytest.mark.parametrize("known", [True, False], ids=["known before", "learnt"])
def test_other_node_ids_give_the_same_run(known):
    def run(ids):
        app = client_app(lambda i, m, c, x: content({"w": m["w"] + ROWS[i]}, partition_id=i))
        strategy = Mean(min_train_nodes=3, fraction_train=0.6 if known else 1.0, seed=4, **SILENT)
        if known:
            strategy.partitions = {node: i for i, node in enumerate(ids)}
        found, _ = drive(strategy, app, {"w": np.zeros(40)}, 5, rounds=3, grid=renumbered(app, 5, ids))
        return found["w"].tobytes(), [seen.partitions for seen in strategy.history]

    first, second = run([11, 12, 13, 14, 15]), run([905, 33, 2**62, 7, 400])
    assert first == second
    assert first[1][0] == tuple(sorted(first[1][0]))


def test_a_client_that_claims_another_partition_does_not_make_the_order_matter():
    found = set()
    for order in ORDERS:
        app = client_app(lambda i, m, c, x: content({"w": ROWS[i]}, partition_id=min(i, 3)))  # 4 says it is 3
        strategy = Mean(min_train_nodes=5, **SILENT)
        drive(strategy, app, {"w": np.zeros(40)}, 5, grid=Shuffled(app, 5, order))
        found.add(strategy.history[0].admitted)
    assert len(found) == 1


def test_a_partition_that_is_known_is_not_overwritten():
    app = client_app(lambda i, m, c, x: content({"w": f32(i)}, partition_id=99))
    strategy = Mean(**SILENT)
    strategy.partitions = {FIRST: 0, FIRST + 1: 1}
    drive(strategy, app, {"w": f32(0)}, 2)
    assert strategy.partitions == {FIRST: 0, FIRST + 1: 1}
    assert strategy.history[0].partitions == (0, 1)


# -- sampling ----------------------------------------------------------------------------------------


def sampled(seed, rounds=4, nodes=10, fraction=0.5, **options):
    app, seen = counting_app()
    strategy = Mean(fraction_train=fraction, seed=seed, **SILENT, **options)
    drive(strategy, app, {"w": f32(0)}, nodes, rounds=rounds)
    asked = [record_.asked for record_ in strategy.history]
    assert sum(asked, ()) == tuple(FIRST + partition for partition in seen)  # who was asked has answered
    return asked


def test_samples_come_from_the_seed():
    asked = sampled(1)
    assert all(len(nodes) == len(set(nodes)) == 5 for nodes in asked)
    assert len({frozenset(nodes) for nodes in asked}) > 1  # rounds differ
    assert sampled(1) == asked
    assert [set(nodes) for nodes in sampled(2)] != [set(nodes) for nodes in asked]


def test_samples_do_not_touch_the_global_generator():
    # Flower's wait for nodes draws from Python's; what we draw must not depend on it.
    import random

    random.seed(0)
    first = sampled(3)
    random.seed(1)
    assert sampled(3) == first


def test_the_size_of_a_sample():
    assert {len(nodes) for nodes in sampled(0, fraction=0.35)} == {3}
    assert {len(nodes) for nodes in sampled(0, fraction=0.1, min_train_nodes=4)} == {4}
    assert {len(nodes) for nodes in sampled(0, fraction=1.0)} == {10}


def test_over_many_rounds_everybody_is_asked():
    assert set(sum(sampled(0, rounds=12, fraction=0.3), ())) == set(range(FIRST, FIRST + 10))


# -- LFighter ----------------------------------------------------------------------------------------

DEEP = {
    "hidden.weight": np.zeros((3, 2), np.float32),
    "norm.running_mean": np.zeros((3, 4), np.float32),  # a matrix, but no row of the rule's: it is not learnt
    "steps": np.zeros((2, 2), np.int64),
    "head.weight": np.zeros((4, 3), np.float32),
    "head.bias": np.zeros(4, np.float32),
}


def two_camps():
    """Clients 0 to 3 and 4, 5 differ in the hidden layer, clients 0, 1, 2, 4 and 3, 5 in the head."""
    rng = np.random.default_rng(0)
    answers = []
    for client in range(6):
        made = {k: v.copy() for k, v in DEEP.items()}
        hidden = rng.standard_normal((3, 2)) if client < 4 else np.full((3, 2), -9.0)
        head = rng.standard_normal((4, 3)) if client in (0, 1, 2, 4) else np.full((4, 3), -9.0)
        made["hidden.weight"] = hidden.astype(np.float32)
        made["head.weight"] = head.astype(np.float32)
        answers.append(made)
    return answers


@pytest.mark.parametrize(
    ("head", "kept"), [(None, [0, 1, 2, 4]), ("head.weight", [0, 1, 2, 4]), ("hidden.weight", [0, 1, 2, 3])]
)
def test_lfighter_finds_the_head_by_its_name(head, kept):
    answers = two_camps()
    strategy = LFighter(head=head, message="delta", min_train_nodes=6, **SILENT)
    found, _ = drive(strategy, sends(answers), DEEP, 6)
    assert strategy.history[0].stats["kept"] == kept
    assert strategy.history[0].weights == pytest.approx([1 / 4 if i in kept else 0 for i in range(6)])
    for name in ("hidden.weight", "head.weight"):
        np.testing.assert_allclose(found[name], np.mean([answers[i][name] for i in kept], 0), rtol=1e-5)


@pytest.mark.parametrize("head", ["no such layer", "head.bias", "norm.running_mean"])
def test_lfighter_says_which_heads_there_are(head):
    with pytest.raises(ConfigurationError, match=r"hidden\.weight, head\.weight"):
        drive(LFighter(head=head, message="delta", **SILENT), sends(two_camps()), DEEP, 6)


# -- evaluation --------------------------------------------------------------------------------------


def evaluator(answers):
    return client_app(lambda i, m, c, x: {k: v + 1 for k, v in m.items()}, lambda i, m, c, x: answers[i](m, c))


def test_evaluation_is_aggregated_robustly():
    def honest(model, config):
        return content(None, 10, loss=float(model["w"][0]), round=config["server-round"])

    def liar(model, config):
        return content(None, 10**9, loss=1e9, round=0)

    app = evaluator([honest, honest, liar])
    _, result = drive(Mean(), app, {"w": f32(0)}, 3, rounds=2)
    assert {k: dict(v) for k, v in result.evaluate_metrics_clientapp.items()} == {
        1: {"loss": 1.0, "round": 1.0},
        2: {"loss": 2.0, "round": 2.0},
    }
    _, theirs = drive(FedAvg(min_train_nodes=3, min_evaluate_nodes=3), app, {"w": f32(0)}, 3)
    assert theirs.evaluate_metrics_clientapp[1]["loss"] > 1e8


def test_malformed_evaluations_are_refused():
    def honest(model, config):
        return content(None, 10, loss=0.5)

    bad = [
        lambda model, config: content(None, 0, loss=9.0),
        lambda model, config: content(None, loss=float("nan")),
        lambda model, config: RecordDict(),
        lambda model, config: 1 / 0,
    ]
    strategy = Mean()
    _, result = drive(strategy, evaluator([*bad, honest, honest]), {"w": f32(0)}, 6, rounds=2)
    assert {k: dict(v) for k, v in result.evaluate_metrics_clientapp.items()} == {1: {"loss": 0.5}, 2: {"loss": 0.5}}
    assert len(strategy.history) == 2  # the history is of training
    assert all(seen.refused == () for seen in strategy.history)
    with pytest.raises(Exception):  # noqa: B017
        drive(FedAvg(), evaluator([*bad, honest, honest]), {"w": f32(0)}, 6)


def test_when_every_evaluation_is_malformed_there_is_no_result():
    _, result = drive(Mean(), evaluator([lambda m, c: RecordDict()] * 2), {"w": f32(0)}, 2)
    assert result.evaluate_metrics_clientapp == {}
    assert sorted(result.train_metrics_clientapp) == [1]


def test_evaluation_can_be_left_out():
    asked = []

    def seen(model, config):
        asked.append(1)
        return content(None, loss=1.0)

    _, result = drive(Mean(fraction_evaluate=0.0), evaluator([seen] * 2), {"w": f32(0)}, 2)
    assert (asked, result.evaluate_metrics_clientapp) == ([], {})
    drive(Mean(fraction_evaluate=0.5, min_evaluate_nodes=1), evaluator([seen] * 4), {"w": f32(0)}, 4)
    assert len(asked) == 2


def test_evaluation_of_the_global_model_on_the_server():
    seen = {}
    strategy = Mean(**SILENT)
    app = client_app(lambda i, m, c, x: {"w": m["w"] + 1})

    def evaluate(server_round, arrays):
        seen[server_round] = values(arrays)["w"].tolist()
        return MetricRecord({"w": seen[server_round][0]})

    _, result = drive(strategy, app, {"w": f32(0)}, 2, rounds=2, evaluate_fn=evaluate)
    assert seen == {0: [0.0], 1: [1.0], 2: [2.0]}
    assert dict(result.evaluate_metrics_serverapp[2]) == {"w": 2.0}


def test_a_head_that_the_model_lacks_is_an_error_before_anything_is_sent():
    strategy = LFighter(head="classifier.weight", fraction_evaluate=0.0)
    grid = InProcessGrid(ClientApp(), 3)
    arrays = ArrayRecord({"fc.weight": Array(np.ones((3, 2), np.float32))})
    with pytest.raises(
        ConfigurationError, match=r"head must name a matrix of the model \(fc.weight\); got head='classifier"
    ):
        strategy.configure_train(1, arrays, ConfigRecord(), grid)


@pytest.mark.parametrize("size", [1e30, 1e154, 1e200, 1e307])
@pytest.mark.parametrize(
    "rule", ["faba(f=1)", "geometric_median(f=1)", "krum(f=1)", "clip(c=1.0) | faba(f=1)", "median"]
)
def test_a_huge_finite_row_neither_stops_nor_spoils_a_float64_model(rule, size):
    model = {"w": np.zeros(4)}
    moves = [1.0, 1.1, 0.9, 1.05, size]
    app = client_app(lambda i, held, config, context: {"w": held["w"] + moves[i]})
    strategy = RobustStrategy(rule, min_train_nodes=5, min_available_nodes=5, **SILENT)
    found, _ = drive(strategy, app, model, 5, rounds=3)
    assert np.isfinite(found["w"]).all()
    assert 0.5 < found["w"].max() < 6
    # Undefended, the same row takes the model with it.
    mean, _ = drive(RobustStrategy("mean()", **SILENT), app, model, 5)
    assert not np.isfinite(mean["w"]).all() or abs(mean["w"]).max() > 1e20 or size > 1e150


def test_a_value_that_is_not_finite_leaves_model_and_state(monkeypatch):
    strategy = RobustStrategy("centered_clipping(tau=1.0)", **SILENT)
    app = client_app(lambda i, held, config, context: {"w": held["w"] + 1})
    monkeypatch.setattr("flwr_robust.core.rows.Rows.cast", lambda self, value: value * float("nan"))
    assert in_vain(strategy, app, {"w": f32(1, 2)}, 3)["w"].tolist() == [1, 2]
    assert strategy.history[0].outcome is Outcome.INFEASIBLE
    assert "not finite" in strategy.history[0].sentence
    assert strategy.state == {}


def logged(caplog, strategy, evaluate=None):
    """Run a strategy and return what the log says."""
    caplog.set_level(logging.WARNING, logger="flwr")
    logging.getLogger("flwr").addHandler(caplog.handler)
    app = client_app(lambda i, held, config, context: held, evaluate)
    _, result = drive(strategy, app, {"w": f32(1)}, 3)
    logging.getLogger("flwr").removeHandler(caplog.handler)
    return caplog.text, result


def test_a_users_metrics_function_that_stumbles_gives_way_to_medians(caplog):
    def odd(contents, key):
        try:
            raise KeyError("lost")
        except KeyError as error:
            raise TypeError("'float' object is not \x1b[31miterable\nWARNING forged") from error

    text, result = logged(caplog, RobustStrategy("median", train_metrics_aggr_fn=odd, **SILENT))
    name = f"{__name__}.test_a_users_metrics_function_that_stumbles_gives_way_to_medians.<locals>.odd"
    assert f"medians are shown instead in round 1, for {name} raised TypeError: 'float' object is not" in text
    assert 'raise TypeError("' in text  # the line that raised it
    assert "because of KeyError: 'lost'" in text
    assert "\x1b" not in text
    assert not any(line.startswith("WARNING forged") for line in text.splitlines())
    assert dict(result.train_metrics_clientapp[1]) == {}


def test_a_users_metrics_function_that_returns_something_else_gives_way_to_medians(caplog):
    class Odd:
        def __call__(self, contents, key):
            return {"loss": 1.0}

    def evaluate(i, held, config, context):
        return content(None, loss=float(i))

    for found, expected in ((Odd(), {"loss": 1.0}), (lambda contents, key: MetricRecord({"mine": 2.0}), {"mine": 2.0})):
        strategy = RobustStrategy("median", evaluate_metrics_aggr_fn=found)
        text, result = logged(caplog, strategy, evaluate)
        assert type(result.evaluate_metrics_clientapp[1]) is MetricRecord
        assert dict(result.evaluate_metrics_clientapp[1]) == expected
        assert ("Odd raised TypeError: it returned a dict; return a MetricRecord" in text) == isinstance(found, Odd)
        caplog.clear()


def test_what_the_operators_trusted_fn_and_evaluate_fn_raise_ends_the_run_as_what_it_is():
    def broken(*arguments):
        raise LookupError("my own mistake")

    app = client_app(lambda i, held, config, context: held)
    for options, run in (({"trusted_fn": broken}, {}), ({"trusted_fn": trusted}, {"evaluate_fn": broken})):
        with pytest.raises(LookupError, match=r"^my own mistake$") as told:
            drive(flower.FLTrust(**options, **SILENT), app, {"w": f32(1)}, 3, **run)
        assert told.traceback[-1].name == "broken"


def test_rules_that_compare_with_the_servers_own_update_need_one():
    with pytest.raises(ConfigurationError, match="pass trusted_fn"):
        flower.FLTrust()
    # The trusted update is (1, 1): the client that goes the other way has no weight.
    app = client_app(lambda i, held, config, context: {"w": held["w"] + (-5 if i == 2 else 1)})
    strategy = flower.FLTrust(trusted_fn=trusted, **SILENT)
    found, _ = drive(strategy, app, {"w": f32(0, 0)}, 3)
    np.testing.assert_allclose(found["w"], [1, 1], atol=1e-6)
    assert strategy.history[0].weights[2] == 0
    as_tensors = flower.FLTrust(
        trusted_fn=lambda at, record: [torch.from_numpy(each) for each in trusted(at, record)], **SILENT
    )
    assert same_bits(drive(as_tensors, app, {"w": f32(0, 0)}, 3)[0], found)


@pytest.mark.parametrize("answer", [[np.zeros(3)], None, 3, [["a", "b"]], [[[1.0], [2.0, 3.0]]], "text"])
def test_what_the_servers_own_update_must_be_is_one_sentence(answer):
    bad = flower.FLTrust(trusted_fn=lambda at, record: answer, **SILENT)
    app = client_app(lambda i, held, config, context: {"w": held["w"] + 1})
    with pytest.raises(ConfigurationError, match="one per array of the model and of its shape; got"):
        drive(bad, app, {"w": f32(0, 0)}, 3)


def test_a_rule_that_keeps_nobody_leaves_the_model():
    app = client_app(lambda i, held, config, context: {"w": held["w"] - 1})
    strategy = flower.FLTrust(trusted_fn=trusted, **SILENT)  # everybody goes against the server's own update
    assert in_vain(strategy, app, {"w": f32(3, 3)}, 3)["w"].tolist() == [3, 3]
    assert (strategy.history[0].outcome, strategy.history[0].sentence) == (Outcome.INFEASIBLE, "fltrust kept no reply")


@pytest.mark.parametrize("make", [lambda **o: RobustStrategy("trimmed_mean(f=2)", **o), lambda **o: Mean(**o)])
def test_a_strategy_told_of_compromised_clients_says_its_plan_once(make, caplog, tmp_path):
    caplog.set_level("INFO", logger="flwr")
    app = client_app(lambda i, model, config, context: {"w": model["w"] + np.float32(1)})
    strategy = make(compromised=3, fraction_train=0.5, fraction_evaluate=0.0, seed=1, audit=tmp_path)
    drive(strategy, app, {"w": np.zeros(2, np.float32)}, 20, rounds=3)
    asked = len(strategy.history[0].asked)
    expected = plan(20, 3, sample=asked, rounds=3, rule=strategy.rule)
    said = [each for each in caplog.messages if expected.sentence in each]
    assert said == [f"configure_train: {expected.sentence}"]
    claim = make_card(tmp_path)["claim"]
    assert claim["sampling_risk"]["value"] == {"value": expected.over_rounds, "method": expected.chance}
    assert claim["sampling_risk"]["source"] == "log"


def test_without_the_number_of_compromised_clients_nothing_is_said(caplog, tmp_path):
    caplog.set_level("INFO", logger="flwr")
    app = client_app(lambda i, model, config, context: {"w": model["w"] + np.float32(1)})
    drive(RobustStrategy("trimmed_mean(f=1)", audit=tmp_path), app, {"w": np.zeros(2, np.float32)}, 6)
    assert not any("compromised" in each for each in caplog.messages)
    assert make_card(tmp_path)["claim"]["sampling_risk"]["source"] == "not stated"


def test_more_compromised_clients_than_nodes_end_the_run_before_round_1():
    app = client_app(lambda i, model, config, context: {"w": model["w"]})
    with pytest.raises(
        ConfigurationError, match=r"compromised must be at most the 6 nodes there are; got compromised=7"
    ):
        drive(RobustStrategy("median", compromised=7), app, {"w": np.zeros(2, np.float32)}, 6)
