"""Guarded: what the strategies of others do wrong is put right, or leaves no trace."""

from __future__ import annotations

import copy
import logging
from collections import Counter, deque

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import strategy as flowers
from flwr.serverapp.strategy import FedAvg, Strategy

from flwr_robust import ConfigurationError, Outcome
from flwr_robust.audit import ReplyAdmitted, read_log
from flwr_robust.audit.run import log_file
from flwr_robust.flower import (
    Audit,
    Guarded,
    InProcessGrid,
    Mean,
    RobustStrategy,
    trimmed_metrics,
)
from flwr_robust.flower.guarded import _cast
from flwr_robust.flower.saved import Saved
from tests.flower_helpers import FIRST, client_app, content, drive, in_vain, record, same_bits, sends, values
from tests.guard_helpers import ONE, SILENT, misbehaving

MIXED = {
    "w": np.float32([1, -2]),
    "half": np.float16([0.5]),
    "steps": np.int64(7),
    "norm.running_var": np.float32([1]),
}


def learner(steps=(1, 2, 2)):
    """Clients that go some way, each the same, and count steps."""

    def train(i, model, config, context):
        moved = {k: v + v.dtype.type(0.25) for k, v in model.items() if v.dtype.kind == "f"}
        return content({**model, **moved, "steps": model["steps"] + steps[i]}, 10)

    return client_app(train)


THEIRS = {
    "FedAvg": FedAvg,
    "FedAvgM": lambda **o: flowers.FedAvgM(server_momentum=0.5, server_learning_rate=0.5, **o),
    "FedAdam": flowers.FedAdam,
    "FedAdagrad": flowers.FedAdagrad,
    "FedYogi": flowers.FedYogi,
    "FedMedian": flowers.FedMedian,
    "FedTrimmedAvg": flowers.FedTrimmedAvg,
    "FedProx": lambda **o: flowers.FedProx(proximal_mu=0.1, **o),
    "Krum": flowers.Krum,
    "MultiKrum": lambda **o: flowers.MultiKrum(num_nodes_to_select=2, **o),
    "Bulyan": flowers.Bulyan,
}


@pytest.mark.parametrize("name", THEIRS)
def test_every_strategy_of_flowers_keeps_the_models_form(name):
    options = {"min_train_nodes": 3, "min_available_nodes": 3, **SILENT}
    strategy = Guarded(THEIRS[name](**options))
    found, _ = drive(strategy, learner(), MIXED, 3, rounds=3)
    assert [seen.outcome for seen in strategy.history] == [Outcome.OK] * 3
    assert [(k, v.dtype, v.shape) for k, v in found.items()] == [(k, v.dtype, v.shape) for k, v in MIXED.items()]
    assert 1 < found["w"][0] < 6
    # Without the guard it is another model, in type or in shape.
    bare, _ = drive(THEIRS[name](**options), learner(), MIXED, 3, rounds=3)
    assert any(v.dtype != MIXED[k].dtype for k, v in bare.items())


def test_the_strategy_inside_does_what_it_does_without_a_guard():
    # Where nobody misbehaves and counts are alike, the floats are the same to the bit: replies in one order.
    options = {"min_train_nodes": 3, "min_available_nodes": 3, **SILENT}
    rng = np.random.default_rng(0)
    moves = rng.standard_normal((3, 5)).astype(np.float32)
    app = client_app(lambda i, model, config, context: content({"w": model["w"] + moves[i]}, 10))

    class InOrder(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return sorted(super().send_and_receive(messages), key=lambda reply: reply.metadata.src_node_id)

    model = {"w": np.zeros(5, np.float32)}
    for name in ("FedAvg", "Krum", "FedMedian"):
        theirs, _ = drive(THEIRS[name](**options), app, model, 3, rounds=3, grid=InOrder(app, 3))
        ours, _ = drive(Guarded(THEIRS[name](**options)), app, model, 3, rounds=3)
        assert same_bits(ours, theirs)


def test_examples_are_capped_for_the_strategy_inside():
    answers = [content({"w": np.float32([v, v])}, n) for v, n in [(0, 10), (0, 10), (1, 10**12)]]
    options = {"min_train_nodes": 3, "min_available_nodes": 3, **SILENT}
    assert drive(Guarded(FedAvg(**options)), sends(answers), ONE, 3)[0]["w"] == pytest.approx(0.5)
    assert drive(Guarded(FedAvg(**options), clamp=1.0), sends(answers), ONE, 3)[0]["w"] == pytest.approx(1 / 3)
    assert drive(Guarded(FedAvg(**options), clamp=None), sends(answers), ONE, 3)[0]["w"] == pytest.approx(1)


def test_clients_metrics_are_medians_whatever_the_strategy_says():
    class Own(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, _ = super().aggregate_train(server_round, replies)
            return arrays, MetricRecord({"loss": -1.0, "rate": 0.1})

    answers = [content(ONE, 10, loss=v) for v in (1.0, 2.0, 1e12)]
    options = {"min_train_nodes": 3, "min_available_nodes": 3, **SILENT}
    _, result = drive(Guarded(Own(**options)), sends(answers), ONE, 3)
    assert dict(result.train_metrics_clientapp[1]) == {"loss": 2.0, "rate": 0.1}
    _, result = drive(Guarded(Own(**options), metrics_aggr_fn=None), sends(answers), ONE, 3)
    assert dict(result.train_metrics_clientapp[1]) == {"loss": -1.0, "rate": 0.1}
    _, result = drive(Guarded(FedAvg(**options), metrics_aggr_fn=trimmed_metrics(1)), sends(answers), ONE, 3)
    assert dict(result.train_metrics_clientapp[1]) == {"loss": 2.0}


def broken(name):
    """Strategies that go wrong in round 2, each in its way, after they have changed what they remember."""

    class Broken(FedAvg):
        memory = 0

        def aggregate_train(self, server_round, replies):
            self.memory = self.memory + 1
            arrays, metrics = super().aggregate_train(server_round, replies)
            if server_round != 2:
                return arrays, metrics
            if name == "raises":
                raise ZeroDivisionError
            if name == "returns nothing":
                return None, None
            found = values(arrays)
            found["w"] = {"nan": found["w"] * np.nan, "shape": found["w"][:1], "text": np.array(["a", "b"])}.get(
                name, found["w"]
            )
            if name == "lacks":
                del found["w"]
            return record(found), metrics

    return Broken(min_train_nodes=3, min_available_nodes=3, **SILENT)


@pytest.mark.parametrize("name", ["raises", "returns nothing", "nan", "shape", "text", "lacks"])
def test_a_strategy_that_goes_wrong_leaves_the_model(name):
    inner = broken(name)
    strategy = Guarded(inner)
    found, _ = drive(strategy, learner(), MIXED, 3, rounds=3)
    assert [seen.outcome for seen in strategy.history] == [Outcome.OK, Outcome.INFEASIBLE, Outcome.OK]
    assert strategy.history[1].sentence.startswith("Broken: ")
    np.testing.assert_allclose(found["w"], [1.5, -1.5], rtol=1e-6)  # two steps, not three
    assert inner.memory == 2  # the failed round left nothing behind


def test_the_log_shows_what_the_strategy_inside_raised_and_where(caplog):
    class Broken(FedAvg):
        def aggregate_train(self, server_round, replies):
            raise LookupError("my own mistake")

        def aggregate_evaluate(self, server_round, replies):
            raise OSError("another")

    caplog.set_level("WARNING", logger="flwr")
    logging.getLogger("flwr").addHandler(caplog.handler)
    strategy = Guarded(Broken(min_train_nodes=3, min_available_nodes=3))
    in_vain(strategy, misbehaving(()), ONE, 3)
    logging.getLogger("flwr").removeHandler(caplog.handler)
    assert "Broken.aggregate_train raised LookupError: my own mistake" in caplog.text
    assert 'raise LookupError("my own mistake")' in caplog.text
    assert "Broken.aggregate_evaluate raised OSError: another" in caplog.text
    assert strategy.history[0].sentence == "Broken: my own mistake"


class InPlace(FedAvg):
    """Accumulates what it is given, in place, in all kinds of things; evaluation can go wrong, too."""

    def __init__(self, *, fails=(), **options):
        super().__init__(**options)
        self.fails = fails
        self.momentum = np.zeros(2, np.float32)
        self.view = self.momentum[:1]  # of the same memory
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)  # no copy may take its tensor's place
        self.grown = torch.zeros(1)
        self.fitted = np.zeros(1)
        self.nested = {"list": [np.zeros(2)], "tuple": ({1: np.zeros(2)}, {"seen"})}
        self.record, self.sums = record({"w": np.zeros(2)}), MetricRecord({"all": [0.0]})
        self.counts, self.recent, self.text = Counter(), deque(maxlen=3), bytearray(b"0")
        self.cycle = [0]
        self.cycle.append(self.cycle)
        self.helper = FedAvg()
        self.helper.momentum = np.zeros(2)
        self.read_only = np.zeros(2)
        self.read_only.flags.writeable = False

    def accumulate(self, server_round, found):
        with torch.no_grad():
            self.weight += torch.from_numpy(found.astype(np.float32))
        self.momentum *= np.float32(0.9)
        self.momentum += found
        self.grown.data = torch.full((server_round + 1,), float(server_round))
        self.fitted.resize(server_round + 1, refcheck=False)
        self.nested["list"][0] += found
        self.nested["list"].append(found)
        self.nested["tuple"][0][1] += found
        self.nested["tuple"][0][server_round] = found
        self.nested["tuple"][1].add(server_round)
        self.record["w"] = Array(found)
        self.sums["all"].append(1.0)
        self.counts[server_round] += 1
        self.recent.append(server_round)
        self.text += b"1"
        self.cycle[0] += 1
        self.helper.momentum += found
        self.helper.rounds = server_round
        setattr(self, f"new{server_round}", 1)
        self.nested["cycle"] = self.nested

    def state(self):
        with torch.no_grad():
            kept = [self.momentum, self.view, self.weight, self.optimizer.param_groups[0]["params"][0], self.grown]
            kept += [self.fitted, *self.nested["list"], *self.nested["tuple"][0].values(), self.helper.momentum]
            kept = [np.array(each).tolist() for each in kept]
        names = [sorted(vars(self.helper)), sorted(vars(self)), sorted(map(str, self.nested["tuple"][1]))]
        kept += [list(self.nested), values(self.record)["w"].tolist(), list(self.sums["all"]), dict(self.counts)]
        return [*kept, *names, list(self.recent), bytes(self.text), self.cycle[0]]

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.accumulate(server_round, values(arrays)["w"])
        return record({"w": self.momentum}), metrics

    def aggregate_evaluate(self, server_round, replies):
        if server_round in self.fails:
            self.accumulate(server_round, np.full(2, 7.0))
            raise ZeroDivisionError
        return super().aggregate_evaluate(server_round, replies)


def overflowing(rounds):
    """Clients that send 0.1; in some rounds the first sends the largest number there is."""

    def train(partition, model, config, context):
        sent = np.finfo(np.float32).max if partition == 0 and config["server-round"] in rounds else 0.1
        return content({"w": np.full(2, sent, np.float32)}, 10, partition_id=partition)

    return client_app(train, lambda partition, model, config, context: content(None, 10, loss=1.0))


def test_what_a_failed_round_did_in_place_is_undone():
    inner = InPlace(**SILENT)
    held = {name: getattr(inner, name) for name in ("momentum", "weight", "nested", "record", "counts", "helper")}
    strategy = Guarded(inner)
    # With two clients half of the largest number is learnt each time: the third time 0.9 * 0.95 + 0.5 overflows.
    model, _ = drive(strategy, overflowing({2, 3, 4, 5}), ONE, 2, rounds=5)
    assert [seen.outcome.name for seen in strategy.history] == ["OK"] * 3 + ["INFEASIBLE"] * 2
    assert {name: value for name, value in vars(inner).items() if name in held and value is not held[name]} == {}

    same = InPlace(**SILENT)  # it never had the two rounds that failed, nor a guard
    expected, _ = drive(same, overflowing({2, 3}), ONE, 2, rounds=3)
    assert inner.state() == same.state()
    assert same_bits(model, expected)
    assert inner.cycle[1] is inner.cycle

    drive(strategy, overflowing(()), model, 2, rounds=5)
    assert {seen.outcome for seen in strategy.history[5:]} == {Outcome.OK}


def test_without_that_the_rounds_would_be_lost_for_ever(monkeypatch):
    monkeypatch.setattr(Saved, "restore", lambda saved: None)
    strategy = Guarded(InPlace(**SILENT))
    drive(strategy, overflowing({1, 2, 3}), ONE, 2, rounds=6)
    assert [seen.outcome.name for seen in strategy.history] == ["OK", "OK", *["INFEASIBLE"] * 4]


def test_an_evaluation_that_fails_leaves_nothing_behind_either():
    inner, same = InPlace(fails={1, 2}), InPlace()
    for strategy in (inner, same):
        drive(Guarded(strategy), overflowing(()), ONE, 2, rounds=2)
    assert inner.state() == same.state()


def test_a_strategy_sees_nothing_of_the_guard_afterwards():
    inner = FedAvg(min_train_nodes=3, min_available_nodes=3, **SILENT)
    before = dict(vars(inner))
    drive(Guarded(inner), learner(), MIXED, 3)
    assert vars(inner) == before
    assert inner.configure_train.__func__ is FedAvg.configure_train
    drive(inner, learner(), MIXED, 3)


def test_a_start_of_the_users_own_is_run():
    class Custom(FedAvg):
        def start(self, grid, initial_arrays, num_rounds=3, **options):
            self.best = []
            arrays = initial_arrays
            for at in range(1, num_rounds + 1):
                replies = grid.send_and_receive(self.configure_train(at, arrays, ConfigRecord(), grid))
                arrays, _ = self.aggregate_train(at, replies)
                self.best.append(values(arrays)["w"].tolist())
            return flowers.Result(arrays=arrays)

    inner = Custom(min_train_nodes=3, min_available_nodes=3, **SILENT)
    strategy = Guarded(inner)
    found, _ = drive(strategy, misbehaving({1}), ONE, 3, rounds=2)
    assert inner.best == [[1, 1], [2, 2]]
    assert [len(seen.refused) for seen in strategy.history] == [1, 1]
    assert found["w"].tolist() == [2, 2]


def test_a_strategy_of_the_users_own_sees_clean_replies_alone():
    class Own(Strategy):
        """No FedAvg: it shares nothing with it but the four methods."""

        handed = ()

        def summary(self):
            pass

        def configure_train(self, server_round, arrays, config, grid):
            made = content(values(arrays))
            made["config"] = ConfigRecord({"server-round": server_round})
            return [Message(made, node, "train") for node in grid.get_node_ids()]

        def aggregate_train(self, server_round, replies):
            self.handed = [copy.copy(reply) for reply in replies]
            return self.handed[-1].content["arrays"], None

        def configure_evaluate(self, server_round, arrays, config, grid):
            return []

        def aggregate_evaluate(self, server_round, replies):
            raise AssertionError("nobody was asked")

    inner = Own()
    strategy = Guarded(inner, on_infeasible="stop")
    found, _ = drive(strategy, misbehaving({0, 2}), {"b": np.float32([1, 2]), "a": np.float32([3])}, 5, rounds=3)
    assert [reply.metadata.src_node_id for reply in inner.handed] == [FIRST + i for i in (1, 3, 4)]
    assert all(list(reply.content["arrays"]) == ["b", "a"] for reply in inner.handed)
    assert {k: v.tolist() for k, v in found.items()} == {"b": [4, 5], "a": [6]}  # three rounds
    assert len(strategy.history) == 3


def test_too_few_replies_leave_the_model():
    app = misbehaving({0, 1}, until=2)
    strategy = Guarded(flowers.Krum(num_malicious_nodes=1, min_train_nodes=6, min_available_nodes=6, **SILENT))
    assert strategy.guard.least == 5
    found, _ = drive(strategy, app, ONE, 6, rounds=2)
    assert [seen.outcome for seen in strategy.history] == [Outcome.INFEASIBLE, Outcome.OK]
    assert strategy.history[0].sentence == "4 replies were admitted, but 5 are needed"
    assert found["w"].tolist() == [1, 1]
    assert Guarded(flowers.Bulyan(num_malicious_nodes=1)).guard.least == 7
    assert Guarded(FedAvg()).guard.least == 1
    assert Guarded(FedAvg(), least=4).guard.least == 4


def test_a_sample_that_is_too_small_is_an_error_before_anything_is_sent():
    strategy = Guarded(flowers.Krum(num_malicious_nodes=2, **SILENT))
    with pytest.raises(ConfigurationError, match="Krum needs 7 replies, but asks 3 nodes"):
        drive(strategy, learner(), MIXED, 3)


def test_a_model_that_cannot_be_used_is_an_error_before_anything_is_sent():
    with pytest.raises(ConfigurationError, match="at least one floating-point array"):
        drive(Guarded(FedAvg(**SILENT)), learner(), {"trees": np.zeros(9, np.uint8)}, 3)


def test_only_strategies_without_a_guard_can_be_guarded():
    for wrong in (Mean(), RobustStrategy("median"), Guarded(FedAvg()), "FedAvg", FedAvg):
        with pytest.raises(ConfigurationError, match="Guarded: strategy must be"):
            Guarded(wrong)


def test_a_round_in_which_the_strategy_asks_nobody_is_none():
    strategy = Guarded(FedAvg(fraction_train=0.0, min_available_nodes=2))
    drive(strategy, misbehaving(()), ONE, 3, rounds=3)
    assert strategy.history == []
    assert len(strategy.evaluations) == 3
    assert strategy.aggregate_train(1, []) == (None, None)
    assert strategy.aggregate_evaluate(1, []) is None


def test_another_key_may_count_the_examples():
    app = client_app(lambda i, model, config, context: content(model, weight=i + 1))
    inner = FedAvg(weighted_by_key="weight", min_train_nodes=3, min_available_nodes=3, **SILENT)
    strategy = Guarded(inner)
    drive(strategy, app, ONE, 3)
    assert len(strategy.history[0].admitted) == 3


CASTS = [
    ("float32", np.array([0.25, 1e300, -1e300]), [0.25, np.finfo("f4").max, np.finfo("f4").min]),
    ("float16", np.float32([1e6, -1e6, 0.5]), [65504, -65504, 0.5]),
    ("int64", np.array([2.5, 3.5, -0.6, 1e30, -1e30]), [2, 4, -1, 2**63 - 1024, -(2**63)]),
    ("int8", np.array([127.4, 300, -300]), [127, 127, -128]),
    ("uint8", np.array([-3, 255.6]), [0, 255]),
    ("int32", np.int64([2**40, -(2**40), 5]), [2**31 - 1, -(2**31), 5]),
    ("int64", np.uint64([2**64 - 1, 5]), [2**63 - 1, 5]),
    ("uint16", np.int8([-1, 5]), [0, 5]),
    ("int64", np.array([True, False]), [1, 0]),
    ("bool", np.array([0.5, 0.49, 1, 0]), [True, False, True, False]),
]


@pytest.mark.parametrize(("dtype", "given", "expected"), CASTS)
def test_numbers_end_at_the_range_of_the_models_type(dtype, given, expected):
    found = _cast(given, np.dtype(dtype))
    assert found.dtype == dtype
    assert found.tolist() == np.array(expected, dtype).tolist()


def test_a_model_in_other_order_or_with_more_arrays_is_put_right():
    class Shuffles(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            return ArrayRecord({**dict(reversed(arrays.items())), "more": Array(np.zeros(1))}), metrics

    options = {"min_train_nodes": 3, "min_available_nodes": 3, **SILENT}
    strategy = Guarded(Shuffles(**options))
    found, _ = drive(strategy, learner(), MIXED, 3, rounds=3)
    assert list(found) == list(MIXED)
    assert found["steps"] == 7 + 6  # each round the mean of 1, 2, 2, rounded


def test_the_seed_says_where_the_audit_looks_for_identical_updates(tmp_path):
    model = {"w": np.zeros(40_000)}
    app = client_app(lambda partition, model, config, context: {"w": np.random.default_rng(partition).random(40_000)})

    def prints(name, seed):
        strategy = Guarded(FedAvg(**SILENT), seed=seed, audit=Audit(tmp_path / name, sync=False))
        drive(strategy, app, model, 3)
        events = (record.event for record in read_log(log_file(tmp_path / name)))
        return sorted(event.fingerprint for event in events if isinstance(event, ReplyAdmitted))

    one, two, first, second = (prints(name, seed) for name, seed in zip("abcd", (1, 1, None, None), strict=True))
    assert one == two
    assert len({*one, *first, *second}) == 9
