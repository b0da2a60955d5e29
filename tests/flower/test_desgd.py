"""Byz-DeSGD: the server against naive numpy, abstentions on record, and attacks class by class."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from flwr.client import NumPyClient
from typer.testing import CliRunner

from flwr_robust import ConfigurationError, Outcome
from flwr_robust.audit import ReplyAbstained, ReplyAdmitted, model_sha256, read_log, verify
from flwr_robust.audit.history import clients as client_summaries
from flwr_robust.audit.history import rounds as round_summaries
from flwr_robust.audit.history import visits
from flwr_robust.audit.run import log_file
from flwr_robust.cli import app as cli
from flwr_robust.errors import CheckpointError, UnknownNameError
from flwr_robust.flower import AdversarialGrid, Audit, DeSGD, InProcessGrid, Observer, Reason, RobustStrategy, serve
from flwr_robust.protocol.classes import (
    answer_names,
)
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate
from flwr_robust.runs.world import World
from tests import apps
from tests.flower_helpers import FIRST, client_app, content, drive, in_vain, same_bits
from tests.oracles.classes import server_oracle

# -- the strategy ------------------------------------------------------------------------------------

N, CLASSES = 8, 4
MODEL = {
    "w": np.zeros((3, 2), np.float32),
    "norm.running_mean": np.full(2, 5.0, np.float32),
    "count": np.array(7),
    "b": np.ones(2, np.float32),
}
HELD = [(0, 1), (1, 2), (2, 3), (0, 3), (0, 1, 2, 3), (1, 2), (0, 3), (0, 1, 2, 3)]
EVERYBODY = {"fraction_evaluate": 0.0, "min_available_nodes": N, "min_train_nodes": N}


def said(partition, server_round, k):
    """What a client has to say of a class: a different thing for everyone, every round and every class."""
    rng = np.random.default_rng([partition, server_round, k])
    return {
        name: (rng.normal(size=array.shape) + k).astype(np.float32) if array.dtype.kind == "f" else array
        for name, array in MODEL.items()
    }


def answer(partition, model, config, context, held=HELD):
    own = [k for k in config["classes"] if k in held[partition]]
    if not own:
        return content(None, 10, partition_id=partition)
    arrays = [array for k in own for array in said(partition, config["server-round"], k).values()]
    return content(
        dict(zip(answer_names(MODEL, own, config["classes"]), arrays, strict=True)), 10, partition_id=partition
    )


APP = client_app(answer)


def flat(arrays):
    return np.concatenate([arrays["w"].ravel(), arrays["b"].ravel()]).astype(np.float64)


def by_hand(rounds, count, eta, gamma, beta, aggregate, least=1, held=HELD):
    """The final model of the strategy, by naive means."""
    found = []
    for t in range(1, rounds + 1):
        asked = [((t - 1) * count + step) % CLASSES for step in range(count)]
        sent = {k: [flat(said(i, t, k)) for i in range(N) if k in held[i]] for k in asked}
        found.append({k: aggregate(np.array(r)) for k, r in sorted(sent.items()) if len(r) >= least})
    return server_oracle(flat(MODEL), found, CLASSES, eta, gamma, beta)


def trimmed(f):
    return lambda x: np.sort(x, axis=0)[f : len(x) - f].mean(0)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_the_strategy_like_oracle(count, gamma):
    options = {
        "classes": CLASSES,
        "gamma": gamma,
        "alpha": 0.7,
        "classes_per_round": count,
        "server_learning_rate": 0.1,
    }
    strategy = DeSGD("trimmed_mean(f=1)", **options, **EVERYBODY)
    found, _ = drive(strategy, APP, MODEL, N, rounds=9)
    assert [each.outcome for each in strategy.history] == [Outcome.OK] * 9
    expected = by_hand(9, count, 0.1, gamma, 0.7, trimmed(1))
    np.testing.assert_allclose(flat(found), expected, atol=2e-6)
    other = by_hand(9, count, 0.1, gamma + 0.05, 0.7, trimmed(1))
    assert np.abs(flat(found) - other).max() > 1e-4  # it can tell
    assert [found[name].tolist() for name in ("count", "norm.running_mean")] == [7, [5.0, 5.0]]
    assert {name: (a.dtype, a.shape) for name, a in found.items()} == {n: (a.dtype, a.shape) for n, a in MODEL.items()}


def test_options_that_are_not_its_own_are_refused():
    with pytest.raises(UnknownNameError, match="unknown option of DeSGD 'server_momentum'; allowed: "):
        DeSGD("median()", classes=3, server_momentum=0.9)


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_with_too_few_senders_is_not_aggregated(count):
    held = [tuple(k for k in own if k != 2 or i < 2) for i, own in enumerate(HELD)]  # one client is left for class 2
    app = client_app(partial(answer, held=held))
    strategy = DeSGD(
        "trimmed_mean(f=1)", classes=CLASSES, alpha=0.7, classes_per_round=count, server_learning_rate=0.1, **EVERYBODY
    )
    found, _ = drive(strategy, app, MODEL, N, rounds=8)
    expected = by_hand(8, count, 0.1, 0.5, 0.7, trimmed(1), least=3, held=held)
    np.testing.assert_allclose(flat(found), expected, atol=2e-6)
    outcomes = [each.outcome for each in strategy.history]
    if count == 1:
        assert outcomes == [Outcome.OK, Outcome.OK, Outcome.INFEASIBLE, Outcome.OK] * 2
        third = strategy.history[2]
        assert third.admitted == (FIRST + 1,)
        assert "class 2: trimmed_mean needs n >= 2f + 1; got n=1, f=1" in third.sentence
    else:
        assert outcomes == [Outcome.OK] * 8
        second = strategy.history[1]
        assert second.stats["classes"] == [3]
        assert "n=1, f=1" in second.stats["infeasible"]["2"]
        assert dict(zip(second.admitted, second.weights, strict=True))[FIRST + 1] == 0.0


def test_nobody_sends():
    app = client_app(partial(answer, held=[(0,)] * N))
    strategy = DeSGD("mean()", classes=2, **EVERYBODY)
    one, _ = drive(strategy, app, MODEL, N, rounds=1)
    found, _ = drive(DeSGD("mean()", classes=2, **EVERYBODY), app, MODEL, N, rounds=2)
    assert same_bits(found, one)
    strategy = DeSGD("mean()", classes=2, **EVERYBODY)
    drive(strategy, app, MODEL, N, rounds=2)
    last = strategy.history[-1]
    sentence = f"no reply was admitted, and {N} of {N} nodes abstained"
    assert (last.outcome, last.sentence, last.admitted) == (Outcome.INFEASIBLE, sentence, ())
    assert len(last.abstained) == N


def test_what_a_rule_remembers_of_points_it_remembers_class_by_class():
    strategy = DeSGD("centered_clipping(tau=0.3)", classes=2, server_learning_rate=0.1, **EVERYBODY)
    drive(strategy, APP, MODEL, N, rounds=4)
    centres = {}
    for t in range(1, 5):
        k = (t - 1) % 2
        x = np.array([flat(said(i, t, k)) for i in range(N) if k in HELD[i]])
        v = centres.get(k, np.zeros(x.shape[1]))
        lengths = np.linalg.norm(x - v, axis=1)
        centres[k] = v + ((x - v) * np.minimum(1, 0.3 / lengths)[:, None]).mean(0)
    for k in (0, 1):
        np.testing.assert_allclose(strategy.state_of(k)["centre"], centres[k], atol=1e-9)
    drawing = DeSGD("bucketing(s=2) | mean()", classes=2, **EVERYBODY)
    drive(drawing, APP, MODEL, N, rounds=3)
    assert int(drawing.state_of(0)["0.draws"]) == int(drawing.state_of(1)["0.draws"]) == 3  # counted over all classes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": 0}, "DeSGD: classes must be an integer >= 1"),
        ({"gamma": 1.5}, "DeSGD: gamma .* got gamma=1.5"),
        ({"gamma": -0.1}, "DeSGD: gamma"),
        ({"alpha": 0.0}, "alpha"),
        ({"schedule": "sorted"}, "DeSGD: schedule .* cyclic, random"),
        (
            {"classes_per_round": 5},
            "classes_per_round must be at most the number of classes, 4; got classes_per_round=5",
        ),
        ({"classes_per_round": 0}, "classes_per_round must be an integer >= 1"),
        ({"rule": "monna(f=1)"}, "compares replies with an update of the server's own, which knows no classes"),
    ],
)
def test_wrong_options_are_one_sentence(options, words):
    given = {"rule": "mean()", "classes": 4, **options}
    with pytest.raises(ConfigurationError, match=words):
        DeSGD(given.pop("rule"), **given)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"gamma": 2.0}, "gamma"),
        ({"schedule": "x"}, "schedule"),
        ({"classes_per_round": 0}, "classes-per-round must be an integer >= 1"),
        ({"message": "classes"}, "class_momentum"),
    ],
)
def test_wrong_run_configs_are_one_sentence(keys, words):
    with pytest.raises(ConfigurationError, match=words):
        RunConfig.from_mapping({"message": "class_momentum", **keys})


def test_more_classes_than_there_are():
    with pytest.raises(ConfigurationError, match="classes-per-round must be at most the number of classes, 10; got"):
        _ = RunConfig(message="class_momentum", classes_per_round=11).data_set
    with pytest.raises(ConfigurationError, match="classes-per-round=11 changes nothing with message='momentum'"):
        RunConfig(message="momentum", classes_per_round=11)


def test_classes_that_nobody_could_aggregate_are_found_before_round_1(tmp_path):
    keys = {"message": "class_momentum", "partition": "k_classes(k=3)", "clients": 10}
    sentence = (
        r"at most 3 clients send class \d, and trimmed_mean needs n >= 2f \+ 1; got n=3, f=2: take a partition that"
    )
    for start in (simulate, lambda config: apps.run(tmp_path, **config.to_mapping())):
        with pytest.raises(ConfigurationError, match=sentence):
            start(RunConfig.from_mapping({**keys, "defence": "trimmed_mean(f=2)"}))
    World(RunConfig.from_mapping({**keys, "defence": "trimmed_mean(f=1)"})).check_senders()
    World(RunConfig.from_mapping({**keys, "defence": "trimmed_mean(f=2)", "message": "momentum"})).check_senders()
    attacked = {"attack": "sign_flip()", "attackers": 2}  # they may claim every class
    World(RunConfig.from_mapping({**keys, **attacked, "defence": "trimmed_mean(f=1)"})).check_senders()


# -- what clients may answer -------------------------------------------------------------------------


def wrong(change):
    """An app whose first client answers wrongly in one way."""

    def train(partition, model, config, context):
        if partition:
            return answer(partition, model, config, context, [tuple(range(CLASSES))] * N)
        return change(config["classes"])

    return client_app(train)


def arrays_of(classes, asked):
    arrays = [array for k in classes for array in said(0, 1, k).values()]
    return dict(zip(answer_names(MODEL, classes, asked), arrays, strict=True))


BAD = {
    "not asked for": (lambda asked: content(arrays_of([3], asked)), Reason.NAMES),
    "one too many": (lambda asked: content(arrays_of([0, 3], asked)), Reason.NAMES),
    "half a class": (lambda asked: content(dict(list(arrays_of([0, 1], asked).items())[:-1])), Reason.NAMES),
    "no prefix": (lambda asked: content(said(0, 1, 0)), Reason.NAMES),
    "no arrays in a record": (lambda asked: content({}), Reason.NAMES),
    "another shape": (lambda asked: content({**arrays_of([0], asked), "0/b": np.zeros(3, np.float32)}), Reason.SHAPE),
    "nan": (
        lambda asked: content({**arrays_of([0, 1], asked), "1/b": np.array([0, np.nan], np.float32)}),
        Reason.NOT_FINITE,
    ),
    "abstains with a wrong number": (lambda asked: content(None, float("nan")), Reason.NUM_EXAMPLES),
    "abstains without metrics": (lambda asked: RecordDict(), Reason.RECORDS),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_answers_are_refused(name):
    make, reason = BAD[name]
    strategy = DeSGD("mean()", classes=CLASSES, classes_per_round=2, **EVERYBODY)
    drive(strategy, wrong(make), MODEL, N, rounds=1)
    only = strategy.history[0]
    assert [(refusal.node, refusal.reason) for refusal in only.refused] == [(FIRST, reason)]
    assert only.outcome is Outcome.OK
    assert only.abstained == only.silent == ()
    assert only.admitted == tuple(range(FIRST + 1, FIRST + N))


def test_where_no_classes_are_asked_for_nobody_abstains():
    strategy = RobustStrategy("median()", **EVERYBODY)
    app = client_app(lambda partition, model, *_: model if partition else content(None))
    drive(strategy, app, MODEL, N, rounds=1)
    assert [refusal.reason for refusal in strategy.history[0].refused] == [Reason.RECORDS]
    assert strategy.history[0].abstained == ()


def test_records_under_stated_names():
    strategy = DeSGD("mean()", classes=CLASSES, records=("arrays", "metrics"), **EVERYBODY)
    drive(strategy, APP, MODEL, N, rounds=1)
    assert strategy.history[0].refused == ()
    assert len(strategy.history[0].abstained) == 3
    strategy = DeSGD("mean()", classes=CLASSES, records=("arrays", "numbers"), **EVERYBODY)
    in_vain(strategy, APP, MODEL, N)
    assert len(strategy.history[0].refused) == N


class Told(Observer):
    def __init__(self):
        self.events = []

    def reply_judged(self, server_round, kind, verdict):
        self.events.append((server_round, kind, verdict.node, "judged"))

    def reply_abstained(self, server_round, kind, node):
        self.events.append((server_round, kind, node, "abstained"))


def test_abstentions_are_on_record_and_neither_refusals_nor_silences():
    def train(partition, model, config, context):
        if partition == 1:
            raise RuntimeError("down")
        return answer(partition, model, config, context)

    told = Told()
    strategy = DeSGD("mean()", classes=CLASSES, observers=[told], quarantine_after=1, **EVERYBODY)
    _, result = drive(strategy, client_app(train), MODEL, N, rounds=4)
    for each in strategy.history:
        k = each.round - 1
        assert each.admitted == tuple(FIRST + i for i in range(N) if k in HELD[i] and i != 1)
        assert each.abstained == tuple(FIRST + i for i in range(N) if k not in HELD[i] and i != 1)
        assert [refusal.reason for refusal in each.refused] == [Reason.ERROR]
        assert each.silent == ()
        assert each.stats["classes"] == [k]
        assert len(each.weights) == len(each.admitted)
        assert [n for r, kind, n, what in told.events if (r, what) == (each.round, "abstained")] == list(each.abstained)
    assert strategy.quarantined == ()
    assert all(what != "judged" or r in (1, 2, 3, 4) for r, _, _, what in told.events)
    assert result.train_metrics_clientapp[1] is not None


@pytest.mark.parametrize("count", [1, 2])
def test_the_audit_log_lists_them(tmp_path, count):
    audit = Audit(tmp_path, sync=False, hash_updates=True, keep_updates=True)
    strategy = DeSGD("median()", classes=CLASSES, classes_per_round=count, audit=audit, **EVERYBODY)
    drive(strategy, APP, MODEL, N, rounds=2)
    records = read_log(log_file(tmp_path))
    assert verify(log_file(tmp_path)).intact
    abstained = [
        (e.event.round, e.event.node, e.event.partition) for e in records if isinstance(e.event, ReplyAbstained)
    ]
    assert abstained == [(r.round, node, node - FIRST) for r in strategy.history for node in r.abstained]
    assert len(abstained) > 0
    first = next(e.event for e in records if isinstance(e.event, ReplyAdmitted))
    own = [k for k in range(count) if k in HELD[0]]
    sent = dict(
        zip(answer_names(MODEL, own, range(count)), [a for k in own for a in said(0, 1, k).values()], strict=True)
    )
    assert first.update_sha256 == model_sha256(sent)
    with np.load(tmp_path / "updates" / "round-00000001" / f"{FIRST}.npz") as kept:
        assert kept["names"].tolist() == list(sent)
    total = {node: sum(node in r.abstained for r in strategy.history) for node in range(FIRST, FIRST + N)}
    summaries = client_summaries(records)
    assert {each.node: each.abstained for each in summaries} == total
    assert {each.silent for each in summaries} == {0}
    assert [(each.admitted, each.abstained, each.refused) for each in round_summaries(records)] == [
        (len(r.admitted), len(r.abstained), 0) for r in strategy.history
    ]
    assert sum(visit.verdict == "abstained" for visit in visits(records)) == len(abstained)
    shown = CliRunner().invoke(cli, ["audit", "show", str(tmp_path)], env={"COLUMNS": "100"})
    assert "abstained" in shown.output
    ranked = CliRunner().invoke(cli, ["audit", "clients", str(tmp_path)], env={"COLUMNS": "100"})
    assert "abst." in ranked.output
    assert ranked.exit_code == shown.exit_code == 0


RESUMED = {
    "one class": {"classes_per_round": 1, "seed": 1},
    "two, at random": {"classes_per_round": 2, "schedule": "random", "seed": 3},
    "sampled": {"fraction_train": 0.7, "min_train_nodes": 3, "gamma": 0.8, "seed": 2},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_is_the_run_that_never_stopped(name, tmp_path):
    def run(rounds, audit=None, model=MODEL, **changes):
        options = {"classes": CLASSES, "server_learning_rate": 0.1, **EVERYBODY, **RESUMED[name], **changes}
        strategy = DeSGD("bucketing(s=2) | centered_clipping(tau=0.5)", audit=audit, **options)
        found, _ = drive(strategy, APP, model, N, rounds=rounds)
        return strategy, found

    whole, model = run(4)
    for at in (0, 1, 2, 3):
        folder = tmp_path / str(at)
        run(at, Audit(folder, sync=False))
        strategy, found = run(4, Audit(folder, sync=False, resume=True))
        assert same_bits(found, model)
        assert strategy.history == whole.history
        assert strategy.state.keys() == whole.state.keys()
        assert all(torch.equal(strategy.state[key], value) for key, value in whole.state.items())
    _, halfway = run(2)
    assert not same_bits(run(2, model=halfway)[1], model)  # the model alone would not do
    with pytest.raises(CheckpointError, match=r"gamma was 0\.\d and is 0\.25; use the same"):
        run(4, Audit(tmp_path / "2", sync=False, resume=True), gamma=0.25)


class Plain(NumPyClient):
    """Somebody's own client, which does not list its classes."""

    def __init__(self, partition):
        self.partition = partition

    def fit(self, parameters, config):
        (k,) = config["classes"]
        return ([p + 1 for p in parameters] if k == self.partition % 2 else []), 5, {"loss": 1.0}


def test_any_numpy_client_can_take_part():
    strategy = DeSGD("mean()", classes=2, server_learning_rate=1.0, gamma=0.0, **EVERYBODY)
    model = {"w": np.zeros(2, np.float32)}
    found, _ = drive(strategy, serve(lambda context: Plain(context.node_config["partition-id"])), model, N, rounds=2)
    assert [len(each.admitted) for each in strategy.history] == [4, 4]
    assert [each.partitions for each in strategy.history] == [(0, 2, 4, 6), (1, 3, 5, 7)]
    assert found["w"].tolist() == [-1.0, -1.0]  # 0 - 1, then -1 - 0


# -- attacks on messages -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_attackers_rewrite_what_they_send_class_by_class(count):
    def collected(attack):
        seen = {}

        class Keep(Observer):
            def reply_judged(self, server_round, kind, verdict):
                seen[server_round, verdict.node] = dict(zip(verdict.names, verdict.arrays, strict=True))

        grid = InProcessGrid(APP, N)
        strategy = DeSGD("mean()", classes=CLASSES, classes_per_round=count, observers=[Keep()], **EVERYBODY)
        if attack:
            grid = AdversarialGrid(grid, attack, 2, rule=strategy, message="momentum", knowledge="defence")
        drive(strategy, None, MODEL, N, rounds=4, grid=grid)
        return seen, grid, strategy

    honest, _, _ = collected("")
    found, grid, _ = collected("ipm(epsilon=0.5)")
    assert honest.keys() == found.keys()
    changed = {node for (r, node) in found if not same_bits(found[r, node], honest[r, node])}
    assert changed == {FIRST + 7, FIRST + 6}
    for t in range(1, 5):
        asked = [((t - 1) * count + step) % CLASSES for step in range(count)]
        for k in asked:
            prefix = f"{k}/" if count > 1 else ""
            mean = np.mean([said(i, t, k)["w"].astype(np.float64) for i in range(6) if k in HELD[i]], axis=0)
            np.testing.assert_allclose(found[t, FIRST + 7][f"{prefix}w"], -0.5 * mean, atol=1e-6)
    assert [each.round for each in grid.history] == [1, 2, 3, 4]
    senders = [tuple(i for i in (6, 7) if any(k in HELD[i] for k in range(count)))]
    assert grid.history[0].positions == senders[0]


def test_attacks_draw_for_every_class():
    grid = InProcessGrid(client_app(partial(answer, held=[tuple(range(CLASSES))] * N)), N)
    sent = []

    class Keep(Observer):
        def reply_judged(self, server_round, kind, verdict):
            if verdict.node == FIRST + 7:
                sent.append(verdict.arrays)

    adversary = AdversarialGrid(grid, "gaussian(sigma=1.0)", 1, message="momentum", knowledge="nothing")
    strategy = DeSGD("median()", classes=CLASSES, classes_per_round=2, observers=[Keep()], **EVERYBODY)
    drive(strategy, None, MODEL, N, rounds=1, grid=adversary)
    ((w0, _, _, _, w1, _, _, _),) = sent
    assert w0.shape == w1.shape
    assert not np.array_equal(w0, w1)


def test_a_metric_of_the_senders_alone():
    def train(partition, model, config, context):
        made = answer(partition, model, config, context)
        made["metrics"] = MetricRecord({**made["metrics"], "loss": 1.0 if "arrays" in made else 100.0})
        return made

    _, result = drive(DeSGD("mean()", classes=CLASSES, **EVERYBODY), client_app(train), MODEL, N, rounds=1)
    assert result.train_metrics_clientapp[1]["loss"] == 1.0
