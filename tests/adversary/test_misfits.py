"""Misfits that are no attack: what honest clients answer oddly costs nobody a place, and helps no attacker.

Each test plays a case against the product, and against a small model of the old behaviour, kept here.
"""

from __future__ import annotations

import logging
import math
import re
from contextlib import contextmanager

import numpy as np
import pytest
from flwr.client import NumPyClient
from flwr.client.mod import fixedclipping_mod, secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import FedAvg, FedXgbBagging
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from flwr_robust import ConfigurationError, Outcome, UntrainedError
from flwr_robust.audit import Quarantined, ReplyAdmitted, RunEnded, read_log
from flwr_robust.audit.history import clients
from flwr_robust.flower import Audit, Guarded, Krum, Median, Reason, TrimmedMean, run_in_process, serve
from flwr_robust.flower.metrics import robust_metrics, trimmed_metrics
from tests.flower_helpers import FIRST, client_app, content, drive, in_vain, sends
from tests.guard_helpers import SILENT

WIDE = {"w": np.zeros(3, np.float64), "norm.running_mean": np.zeros(2, np.float64)}


def old_admits(arrays, model, num_examples=10, **metrics):
    """The old rule: types as sent, more than 0 examples, every metric finite."""
    return (
        all(arrays[name].dtype == held.dtype for name, held in model.items())
        and num_examples > 0
        and all(math.isfinite(value) for value in metrics.values())
    )


def old_metrics(records):
    """The old aggregation: medians of the numbers, and no lists."""
    names = {name for each in records for name, value in each.items() if not isinstance(value, list)}
    return {name: float(np.median([each[name] for each in records])) for name in names - {"num-examples"}}


@contextmanager
def heard():
    """Yield the lines of Flower's log."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda each: lines.append(each.getMessage())
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


# -- floating point ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda **o: TrimmedMean(f=1, **o), lambda **o: Guarded(FedAvg(), **o)])
@pytest.mark.parametrize(("sent", "came"), [(np.float64, np.float32), (np.float32, np.float64)])
def test_clients_of_another_floating_point_type_train(make, sent, came, tmp_path):
    model = {name: values.astype(sent) for name, values in WIDE.items()}
    answer = {name: (values + 1).astype(came) for name, values in model.items()}
    assert not old_admits(answer, model)  # all refused: the run ended "well", with the initial model
    strategy = make(quarantine_after=1, audit=tmp_path)
    found, _ = drive(strategy, client_app(lambda i, held, c, x: answer, lambda *_: content(None)), model, 5)
    assert {name: (values.dtype, values.tolist()) for name, values in found.items()} == {
        name: (values.dtype, [1.0] * values.size) for name, values in model.items()
    }
    assert strategy.quarantined == ()
    on_record = [e.event for e in read_log(tmp_path / "audit.jsonl") if isinstance(e.event, ReplyAdmitted)]
    remark = f"cast {np.dtype(came)} to {np.dtype(sent)}"
    assert [event.remark for event in on_record if event.phase == "train"] == [remark] * 5


def test_the_cast_smuggles_nothing_in():
    model = {name: values.astype(np.float32) for name, values in WIDE.items()}
    honest = {name: (values + 1).astype(np.float64) for name, values in model.items()}
    attacks = [
        {**honest, "w": np.array([0, 1e300, 0])},  # finite as it comes, infinite as it would be used
        {**honest, "norm.running_mean": np.array([1e39, 0])},
        {**honest, "w": np.array([0, np.nan, 0])},
        {**honest, "w": np.ones(3, np.int64)},
        {**honest, "w": np.ones(3, np.longdouble)},
        {**honest, "w": np.ones(3, np.complex128)},
    ]

    def naive(arrays):
        """A cast that is checked before, not after."""
        with np.errstate(all="ignore"):
            return [arrays[k].astype(v.dtype) for k, v in model.items()] if np.isfinite(arrays["w"]).all() else []

    assert any(not np.isfinite(values).all() for arrays in attacks for values in naive(arrays))
    strategy = Median(f=1, min_train_nodes=9, **SILENT)
    found, _ = drive(strategy, sends([honest] * 3 + attacks), model, 9)
    assert strategy.history[0].admitted == (FIRST, FIRST + 1, FIRST + 2)
    reasons = [refusal.reason for refusal in strategy.history[0].refused]
    assert reasons == [Reason.NOT_FINITE] * 3 + [Reason.DTYPE] * 3
    assert all((values == 1).all() for values in found.values())


# -- examples and metrics ----------------------------------------------------------------------------

NARROW = {"w": np.zeros(3, np.float32)}
STEP = {"w": np.ones(3, np.float32)}


def test_nodes_without_examples_abstain_and_keep_their_place():
    assert not old_admits(STEP, NARROW, 0)  # refused, counted, and left out after the second round
    answers = [content(STEP, 0, loss=0.1), *(content(STEP, 10, loss=0.1) for _ in range(5))]
    strategy = Krum(f=1, quarantine_after=2, min_train_nodes=6, **SILENT)
    drive(strategy, sends(answers), NARROW, 6, rounds=4)
    for seen in strategy.history:
        assert seen.abstained == (FIRST,)
        assert (len(seen.asked), len(seen.admitted), seen.refused) == (6, 5, ())
    assert strategy.quarantined == ()


def test_a_run_in_which_all_abstain_fails_and_says_why():
    strategy = Median(**SILENT)
    in_vain(strategy, sends([content(STEP, 0)] * 3), NARROW, 3)
    assert strategy.history[0].sentence == "no reply was admitted, and 3 of 3 nodes abstained"


def test_attackers_who_abstain_lower_n_and_not_f():
    answers = [content({"w": np.full(3, 9, np.float32)}, 0)] * 2 + [content(STEP, 10)] * 4
    strategy = Krum(f=1, min_train_nodes=6, **SILENT)
    in_vain(strategy, sends(answers), NARROW, 6)
    assert strategy.history[0].outcome is Outcome.INFEASIBLE  # four rows are too few for f = 1


def test_a_loss_of_nan_costs_its_reply_nothing_but_the_loss(tmp_path):
    assert not old_admits(STEP, NARROW, loss=math.nan)
    answers = [content(STEP, 10, loss=math.nan, top=[0.5, math.inf])]
    answers += [content(STEP, 10, loss=0.5 + i / 10, top=[0.5, 0.7]) for i in range(4)]
    strategy = TrimmedMean(f=1, quarantine_after=1, audit=tmp_path, **SILENT)
    found, result = drive(strategy, sends(answers), NARROW, 5, rounds=2)
    assert [len(seen.admitted) for seen in strategy.history] == [5, 5]
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(0.65)
    assert result.train_metrics_clientapp[1]["top"] == pytest.approx([0.5, 0.7])
    assert found["w"].tolist() == [1.0] * 3
    on_record = [e.event for e in read_log(tmp_path / "audit.jsonl") if isinstance(e.event, ReplyAdmitted)]
    assert [event.remark for event in on_record if event.node == FIRST] == ["not finite: loss, top"] * 2


def test_lists_are_shown_and_no_minority_steers_them():
    honest = [content(None, 10, recall=[0.9, 0.5, 0.1 + i / 100]) for i in range(5)]
    liars = [content(None, 10**12, recall=[-1e300, 1e300, 1.0]), content(None, 10, recall=[0.0] * 9_000)]
    replies = [*honest, *liars]
    assert old_metrics([each["metrics"] for each in replies]) == {}  # nothing was shown
    assert abs(aggregate_metricrecords([*honest, liars[0]], "num-examples")["recall"][0]) > 1e290  # or a liar decided
    for aggregate in (robust_metrics, trimmed_metrics(1)):
        recall = aggregate(replies, "num-examples")["recall"]
        assert np.abs(np.array(recall) - [0.9, 0.5, 0.12]).max() < 0.02


@pytest.mark.parametrize("make", [lambda **o: Median(f=1, **o), lambda **o: Guarded(FedAvg(), **o)])
def test_a_node_that_cannot_evaluate_keeps_its_place_in_training(make, tmp_path):
    def evaluate(i, model, config, context):
        return content(None, -1 if i == 0 else 10, loss=0.5)  # no test data, and an odd way to say so

    counts = {}
    strategy = make(quarantine_after=2, audit=Audit(tmp_path))
    app = client_app(lambda *_: content(STEP, 10), evaluate)
    drive(strategy, app, NARROW, 5, rounds=4)
    for seen in strategy.evaluations:
        old_blame(seen.refused, counts)
    assert counts == {FIRST: 2}  # in one ledger, enough to be left out of training
    assert [len(seen.admitted) for seen in strategy.history] == [5] * 4
    assert [len(seen.asked) for seen in strategy.evaluations] == [5, 5, 4, 4]
    events = [e.event for e in read_log(tmp_path / "audit.jsonl") if isinstance(e.event, Quarantined)]
    assert [(event.round, event.node, event.phase) for event in events] == [(2, FIRST, "evaluate")]
    assert not any(each.quarantined for each in clients(read_log(tmp_path / "audit.jsonl")))
    # A resumed run knows both ledgers.
    again = make(quarantine_after=2, audit=Audit(tmp_path, resume=True))
    drive(again, app, NARROW, 5, rounds=6)
    assert [len(seen.asked) for seen in again.history] == [5] * 6
    assert [len(seen.asked) for seen in again.evaluations][-2:] == [4, 4]


# -- faults of the app, and runs in vain ---------------------------------------------------------------


def old_blame(refused, counts):
    """The old ledger: every refusal that a node sent itself counts against it."""
    for refusal in refused:
        if refusal.reason.blames:
            counts[refusal.node] = counts.get(refusal.node, 0) + 1


@pytest.mark.parametrize("make", [lambda **o: Median(**SILENT, **o), lambda **o: Guarded(FedAvg(**SILENT), **o)])
def test_a_fault_of_the_app_is_told_once_and_blames_nobody(make, tmp_path):
    strategy = make(quarantine_after=1, audit=tmp_path)
    app = client_app(lambda i, model, config, context: {"w": np.ones(4, np.float32)})
    with heard() as lines:
        found = in_vain(strategy, app, NARROW, 5, rounds=3)
    assert found["w"].tolist() == [0.0] * 3
    told = [line for line in lines if "the fault is the app's and no node's" in line and "Refused" not in line]
    loud = [line for line in told if line.startswith("aggregate_train: all 5 nodes")]
    assert len(loud) == 1
    assert "w: got (4,), sent (3,)" in loud[0]
    assert "build the same model" in loud[0]
    assert all("the fault is the app's" in seen.sentence for seen in strategy.history)
    assert strategy.quarantined == ()
    assert strategy.guard.refusals == {}
    assert [len(seen.asked) for seen in strategy.history] == [5] * 3
    counts = {}
    for seen in strategy.history:
        old_blame(seen.refused, counts)
    assert counts == dict.fromkeys(range(FIRST, FIRST + 5), 3)  # all honest, and all left out
    ended = [e.event for e in read_log(tmp_path / "audit.jsonl") if isinstance(e.event, RunEnded)]
    assert [event.outcome for event in ended] == ["failed"]


@pytest.mark.parametrize("liars", [1, 3, 4])
def test_attackers_do_not_pass_their_fault_for_the_apps(liars):
    # Even a majority of attackers with one fault are blamed: one honest reply says that the app is well.
    wrong = {"w": np.ones(4, np.float32)}
    strategy = Median(quarantine_after=2, min_train_nodes=5, min_replies=1, **SILENT)
    drive(strategy, sends([wrong] * liars + [STEP] * (5 - liars)), NARROW, 5, rounds=1)
    assert strategy.guard.refusals == dict.fromkeys(range(FIRST, FIRST + liars), 1)


def test_attackers_are_blamed_in_later_rounds_even_if_they_alone_answer():
    def train(i, model, config, context):
        if config["server-round"] == 1:
            return content(STEP)
        if i < 3:
            return content({"w": np.ones(4, np.float32)})
        raise RuntimeError("gone")

    strategy = Median(quarantine_after=9, min_train_nodes=5, **SILENT)
    drive(strategy, client_app(train), NARROW, 5, rounds=3)
    assert strategy.guard.refusals == dict.fromkeys(range(FIRST, FIRST + 3), 2)


@pytest.mark.parametrize("stop", ["keep", "stop"])
def test_a_run_in_vain_fails(stop, tmp_path):
    def train(i, model, config, context):
        raise RuntimeError("no data")

    for place, make in enumerate([lambda **o: Median(f=1, **SILENT, **o), lambda **o: Guarded(FedAvg(**SILENT), **o)]):
        strategy = make(on_infeasible=stop, audit=tmp_path / str(place))
        with pytest.raises(UntrainedError, match=r"^run: 0 of [13] rounds changed the model; .*RuntimeError: no data"):
            drive(strategy, client_app(train), NARROW, 3, rounds=3)
        (ended,) = [e.event for e in read_log(tmp_path / str(place) / "audit.jsonl") if isinstance(e.event, RunEnded)]
        assert ended.outcome == "failed"
        assert ended.sentence.startswith("UntrainedError: run: 0 of")


def test_a_run_says_how_many_rounds_changed_the_model():
    def train(i, model, config, context):
        if config["server-round"] != 2:
            raise RuntimeError("no data")
        return content(STEP)

    with heard() as lines:
        drive(Median(f=1, **SILENT), client_app(train), NARROW, 3, rounds=3)
    assert "1 of 3 rounds changed the model" in lines


def test_a_second_run_of_one_strategy_and_a_resumed_one_count_as_they_should(tmp_path):
    def working(last):
        def train(i, model, config, context):
            if config["server-round"] > last:
                raise RuntimeError("no data")
            return content(STEP)

        return client_app(train)

    strategy = Median(f=1, **SILENT)
    drive(strategy, working(1), NARROW, 3)
    in_vain(strategy, working(0), NARROW, 3)  # what an earlier run achieved does not count
    drive(Median(f=1, audit=Audit(tmp_path), **SILENT), working(1), NARROW, 3)
    resumed = Median(f=1, audit=Audit(tmp_path, resume=True), **SILENT)
    drive(resumed, working(1), NARROW, 3, rounds=3)  # rounds 2 and 3 are in vain, the run is not


# -- statistics --------------------------------------------------------------------------------------


def test_statistics_by_other_names_do_not_outweigh_the_weights():
    # Keras' statistics are large beside an update of the weights. A rule that sees them looks at nothing else.
    model = {"dense/kernel": np.zeros(4, np.float32), "norm/moving_mean": np.zeros(90, np.float32)}
    rng = np.random.default_rng(0)

    def answer(i):
        liar = i == 0
        kernel = np.full(4, -9.0) if liar else 1 + 0.01 * rng.standard_normal(4)
        mean = np.full(90, 50.0) if liar else 50 + 30 * rng.standard_normal(90)
        return {"dense/kernel": kernel.astype(np.float32), "norm/moving_mean": mean.astype(np.float32)}

    answers = [answer(i) for i in range(7)]
    old, new = (
        Krum(f=1, min_train_nodes=7, **SILENT, **statistics) for statistics in ({}, {"statistics": ("*/moving_*",)})
    )
    assert drive(old, sends(answers), model, 7)[0]["dense/kernel"].tolist() == [-9.0] * 4
    found, _ = drive(new, sends(answers), model, 7)
    assert np.abs(found["dense/kernel"] - 1).max() < 0.1
    middle = np.median([each["norm/moving_mean"] for each in answers], axis=0)
    np.testing.assert_array_equal(found["norm/moving_mean"], middle)


def test_a_pattern_that_matches_nothing_is_told_before_round_1():
    strategy = Median(statistics=("*/moving_mean",), **SILENT)
    with heard() as lines:
        drive(strategy, sends([STEP] * 3), NARROW, 3, rounds=2)
    (told,) = [line for line in lines if "no array of the model" in line]
    assert "*/moving_mean" in told
    assert lines.index(told) < next(at for at, line in enumerate(lines) if "Sampled" in line)


# -- apps of another kind ----------------------------------------------------------------------------


def test_a_legacy_server_app_is_told_the_way():
    server = ServerApp(
        server_fn=lambda context: ServerAppComponents(strategy=Median(), config=ServerConfig(num_rounds=1))
    )
    with pytest.raises(ConfigurationError, match=r"^Median: ServerApp\(server_fn=\.\.\.\) .* write a function main"):
        run_in_process(server, sends([STEP] * 3), 3)
    with pytest.raises(ConfigurationError, match=r"got FedAvg of flwr\.server\.strategy: take that of flwr\.serverapp"):
        Guarded(LegacyFedAvg())


@pytest.mark.parametrize("make", [lambda **o: Median(**SILENT, **o), lambda **o: Guarded(FedXgbBagging(**SILENT), **o)])
@pytest.mark.parametrize("trees", [b"", b'{"learner": {}}'])
def test_trees_are_told_the_way(make, trees):
    model = {"0": np.frombuffer(trees, np.uint8)}
    with pytest.raises(ConfigurationError, match=r"got none but bytes: .* FedXgbBagging adds them up without a guard"):
        drive(make(), sends([model] * 3), model, 3)


class Legacy(NumPyClient):
    def fit(self, parameters, config):
        return [each + 1 for each in parameters], 10, {}


@pytest.mark.parametrize(
    ("app", "way"),
    [
        (
            ClientApp(client_fn=lambda context: Legacy().to_client()),
            r"flower\.serve in place of ClientApp",
        ),
        (serve(lambda context: Legacy(), mods=[fixedclipping_mod]), r"take mods from flwr\.clientapp\.mod"),
        (serve(lambda context: Legacy(), mods=[secaggplus_mod]), "leave its mod out of the ClientApp"),
    ],
    ids=["client_fn", "legacy mod", "SecAgg+"],
)
def test_a_legacy_client_app_is_told_the_way(app, way):
    strategy = Median(**SILENT)
    in_vain(strategy, app, NARROW, 3)
    assert re.search(way, strategy.history[0].sentence)
    # The same client behind serve() trains.
    found, _ = drive(Median(**SILENT), serve(lambda context: Legacy()), NARROW, 3)
    assert found["w"].tolist() == [1.0] * 3
