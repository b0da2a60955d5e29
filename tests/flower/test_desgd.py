"""Byz-DeSGD: its parts and the server against naive numpy, abstentions on record, and one run on every engine."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from hypothesis import given, settings
from hypothesis import strategies as st
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
    answers,
    by_label,
    class_momenta,
    classes_of_round,
    compensated,
    draw_class_batch,
    held_classes,
    part_sizes,
    updated_buffer,
)
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate
from flwr_robust.runs.world import World
from flwr_robust.studies.flower_run import FlowerRuns
from tests import apps
from tests.flower_helpers import FIRST, client_app, content, drive, record, same_bits, values

# -- pure parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "count"), [(10, 1), (10, 3), (3, 2), (4, 4), (1, 1)])
def test_the_cyclic_schedule_asks_for_all_classes_in_turn(classes, count):
    asked = [classes_of_round("cyclic", t, classes, count) for t in range(1, 2 * classes + 1)]
    assert asked[0] == tuple(range(count))
    flat = [(t * count + step) % classes for t in range(2 * classes) for step in range(count)]
    assert asked == [tuple(sorted(flat[t * count : (t + 1) * count])) for t in range(2 * classes)]
    assert {sum(k in one for one in asked) for k in range(classes)} == {2 * count}
    assert asked[0] == classes_of_round("cyclic", 1, classes, count, seed=9)


def test_the_random_schedule_is_drawn_from_the_seed_without_repetition():
    def drawn(seed, count=2):
        return [classes_of_round("random", t, 5, count, seed) for t in range(1, 401)]

    found = drawn(0)
    assert found == drawn(0)
    assert found != drawn(1)
    assert all(len(set(one)) == 2 and list(one) == sorted(one) for one in found)
    counts = [sum(k in one for one in found) for k in range(5)]
    assert sum(counts) == 800
    assert min(counts) > 120  # 160 expected, standard deviation 10
    assert drawn(0, 5) == [(0, 1, 2, 3, 4)] * 400


@given(st.integers(1, 300), st.integers(1, 40))
def test_a_batch_is_split_evenly(batch, parts):
    sizes = part_sizes(batch, parts)
    assert len(sizes) == parts
    assert sum(sizes) == max(batch, parts)
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_samples_by_class():
    labels = torch.tensor([3, 1, 3, 0, 1, 3])
    found = held_classes(labels, torch.tensor([0, 1, 2, 4]))
    assert {k: places.tolist() for k, places in found.items()} == {1: [1, 4], 3: [0, 2]}
    assert list(found) == [1, 3]


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 1), st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=8), st.integers(0, 2**31))
def test_momenta_like_oracle(alpha, held, seed):
    rng = np.random.default_rng(seed)
    momenta, expected = {}, {}
    for classes in held:
        gradients = {k: rng.normal(size=3) for k in classes}
        before = {k: m.clone() for k, m in momenta.items()}
        following = class_momenta(momenta, {k: torch.from_numpy(g) for k, g in gradients.items()}, alpha)
        assert all(torch.equal(momenta[k], before[k]) for k in before)  # arguments stay
        momenta = following
        for k, g in gradients.items():
            expected[k] = g if k not in expected else (1 - alpha) * expected[k] + alpha * g
        assert momenta.keys() == expected.keys()
        for k, m in momenta.items():
            np.testing.assert_allclose(m, expected[k], rtol=1e-12, atol=1e-12)


def server_oracle(x, rounds, classes, eta, gamma, beta):
    """Run the server's update, number by number; rounds: per round the aggregates by class, none if infeasible."""
    buffer = [[0.0] * len(x) for _ in range(classes)]
    x = [float(value) for value in x]
    for fresh in rounds:
        if fresh:
            for k in range(classes):
                buffer[k] = list(map(float, fresh[k])) if k in fresh else [beta * value for value in buffer[k]]
            for j in range(len(x)):
                m_hat = sum(float(fresh[k][j]) for k in fresh) / len(fresh)
                m_bar = sum(buffer[k][j] for k in range(classes)) / classes
                x[j] -= eta * ((1 - gamma) * m_hat + gamma * m_bar)
    return np.array(x)


@given(st.floats(0, 1), st.floats(0.01, 1), st.integers(1, 4), st.integers(0, 2**31))
def test_the_buffer_like_oracle(gamma, beta, count, seed):
    rng = np.random.default_rng(seed)
    rounds = [{k: rng.normal(size=3) for k in classes_of_round("random", t, 4, count, seed)} for t in range(1, 8)]
    buffer, x = torch.zeros(4, 3, dtype=torch.float64), np.zeros(3)
    for fresh in rounds:
        tensors = {k: torch.from_numpy(value) for k, value in fresh.items()}
        held = buffer.clone()
        following = updated_buffer(buffer, tensors, beta)
        assert torch.equal(buffer, held)
        buffer = following
        x = x - 0.3 * compensated(tensors, buffer, gamma).numpy()
    np.testing.assert_allclose(x, server_oracle(np.zeros(3), rounds, 4, 0.3, gamma, beta), rtol=1e-9, atol=1e-12)


def test_names_of_answers():
    assert answer_names(["w", "b"], [3], [3]) == ["w", "b"]
    assert answer_names(["w", "b"], [1, 3], [1, 2, 3]) == ["1/w", "1/b", "3/w", "3/b"]
    assert answer_names(["w"], [], [1, 2]) == []


def test_who_claims_answers_for_everything():
    momenta = {1: torch.tensor([2.0]), 4: torch.tensor([6.0])}
    assert answers(momenta, [0, 1, 2], False).keys() == {1}
    assert {k: float(m) for k, m in answers(momenta, [0, 1, 2], True).items()} == {0: 4.0, 1: 2.0, 2: 4.0}
    assert answers(momenta, [0], False) == {}


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
    assert (last.outcome, last.sentence, last.admitted) == (Outcome.INFEASIBLE, "no reply was admitted", ())
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
    few = RunConfig.from_mapping({**keys, "partition": "by_label", "clients": 4, "task": str(odd(tmp_path))})
    with pytest.raises(ConfigurationError, match=r"class \d, and nobody holds it"):
        World(few).check_senders()


def odd(folder):
    """A task one of whose classes has no training samples."""
    x, y = np.zeros((40, 4), np.float32), np.arange(40) % 4
    np.savez(folder / "odd.npz", x_train=x, y_train=y, x_test=x, y_test=np.full(40, 4))
    return folder / "odd.npz"


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
    drive(strategy, APP, MODEL, N, rounds=1)
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
    "one class": {"classes_per_round": 1},
    "two, at random": {"classes_per_round": 2, "schedule": "random", "seed": 3},
    "sampled": {"fraction_train": 0.7, "min_train_nodes": 3, "gamma": 0.8},
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


# -- the studies' clients ----------------------------------------------------------------------------

DIGITS = {
    "message": "class_momentum",
    "alpha": 0.9,
    "partition": "k_classes(k=3, others=4)",
    "clients": 24,
    "batch_size": 20,
    "device": "cpu",
}


class Alone:
    """One of the studies' clients, as its node would run it."""

    def __init__(self, config, client):
        from flwr_robust.app.client import app

        self.config, self.app = config, app
        self.context = Context(1, 1, {"partition-id": client}, RecordDict(), config.to_mapping())

    def __call__(self, model, server_round, classes):
        grid = InProcessGrid(self.app, 1, self.config.to_mapping())
        sent = RecordDict(
            {"arrays": record(model), "config": ConfigRecord({"server-round": server_round, "classes": classes})}
        )
        message = grid.create_message(sent, "train", FIRST, "")
        reply = self.app(message, self.context)
        assert isinstance(reply, Message)
        return values(reply.content["arrays"]) if "arrays" in reply.content else {}


def softmax_gradient(weight, bias, x, y, decay):
    s = x @ weight.T + bias
    p = np.exp(s - s.max(1, keepdims=True))
    error = p / p.sum(1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    error /= len(y)
    return error.T @ x + decay * weight, error.sum(0) + decay * bias


@pytest.mark.parametrize(("attack", "client"), [("none", 2), ("none", 23), ("label_flip()", 9)])
def test_a_clients_momenta_like_oracle(attack, client):
    keys = {**DIGITS, "weight_decay": 0.02, "alpha": 0.8}
    if attack != "none":
        keys |= {"attack": attack, "attackers": 1, "clients": 10, "partition": "k_classes(k=3)"}
    config = RunConfig.from_mapping(keys)
    alone = Alone(config, client)
    held = sorted({int(k) for k in config.data_set.y_train[torch.from_numpy(config.samples[client])]})
    assert len(held) == (10 if client == 23 else 3)
    shown = [9 - k for k in held] if attack != "none" else held  # whoever holds flipped labels holds these classes
    rng = np.random.default_rng(0)
    momenta = {}
    for t in range(1, 5):
        model = {"1.weight": rng.normal(size=(10, 64)).astype(np.float32) / 5, "1.bias": np.zeros(10, np.float32)}
        parts = draw_class_batch(config.seed, client, t, World(config).classes_of(client), "random", 20)
        assert [len(part) for part in parts] == part_sizes(20, len(held))
        for k, part in zip(held, parts, strict=True):
            assert set(config.data_set.y_train[part].tolist()) == {k}
            assert set(part.tolist()) <= set(config.samples[client].tolist())
            x = config.data_set.x_train[part].numpy().reshape(len(part), -1) / 16
            label = 9 - k if attack != "none" else k
            w, b = (model[name].astype(np.float64) for name in ("1.weight", "1.bias"))
            g = np.concatenate([v.ravel() for v in softmax_gradient(w, b, x, np.full(len(x), label), 0.02)])
            momenta[label] = g if label not in momenta else 0.2 * momenta[label] + 0.8 * g
        asked = [t % 10, (t + 5) % 10]
        found = alone(model, t, sorted(asked))
        expected = sorted(k for k in asked if k in shown)
        assert sorted({int(name.partition("/")[0]) for name in found}) == expected
        for k in expected:
            sent = np.concatenate([found[f"{k}/1.weight"].ravel(), found[f"{k}/1.bias"]])
            np.testing.assert_allclose(sent, momenta[k], atol=1e-5)


def test_batches_are_drawn_per_class_round_and_client():
    held = World(RunConfig.from_mapping(DIGITS)).classes_of(23)

    def drawn(client=23, t=1, seed=0, held=held, size=20):
        return [part.tolist() for part in draw_class_batch(seed, client, t, held, "random", size)]

    assert drawn() == drawn()
    assert drawn() != drawn(t=2)
    assert drawn() != drawn(client=22)
    assert drawn() != drawn(seed=1)
    fewer = {k: held[k] for k in list(held)[::2]}
    assert drawn(held=fewer, size=10) == drawn()[::2]  # a class's draw does not depend on the other classes
    assert [len(part) for part in drawn(size=3)] == [1] * 10


def test_by_label_keeps_the_order():
    x, y = torch.arange(5.0)[:, None], torch.tensor([2, 0, 2, 1, 0])
    assert {k: part.flatten().tolist() for k, (part, _) in by_label(x, y).items()} == {0: [1, 4], 1: [3], 2: [0, 2]}


# -- one run on every engine -------------------------------------------------------------------------

CASES = {
    "no attack": {"defence": "trimmed_mean(f=4)"},
    "flipped": {"attack": "label_flip()", "attackers": 4, "defence": "krum(f=3)", "weight_decay": 0.001},
    "few classes, flipped": {
        "partition": "k_classes(k=3)",
        "attack": "label_flip(p=0.5)",
        "attackers": 4,
        "defence": "median()",
    },
    "dynamic": {"attack": "dynamic_label_flip()", "attackers": 3, "redraw": True, "defence": "faba(f=3)"},
    "scaled": {"attack": "backdoor(target=0, scale=3.0)", "attackers": 2, "attack_start": 3, "attack_stop": 5},
    "several classes": {"classes_per_round": 3, "schedule": "random", "defence": "centered_clipping(tau=0.5)"},
    "several, scaled": {
        "classes_per_round": 4,
        "attack": "label_flip(scale=2.0)",
        "attackers": 2,
        "defence": "bucketing(s=2) | geometric_median()",
    },
    "sampled": {"fraction_train": 0.5, "defence": "dnc(f=1)", "gamma": 0.2},
    "no compensation": {"gamma": 0.0, "model": "mlp", "batching": "consecutive", "batch_size": 7},
    "all compensation": {"gamma": 1.0, "alpha": 0.3},
    "small cnn": {"model": "small_cnn", "rounds": 3, "defence": "multi_krum(f=4, strict=False)"},
    "dirichlet": {"partition": "dirichlet(beta=0.5)", "clients": 6, "batch_size": 33, "defence": "clustering()"},
    "not finite": {
        "attack": "label_flip(scale=1e39)",
        "attackers": 1,
        "attack_start": 2,
        "classes_per_round": 2,
        "defence": "trimmed_mean(f=1)",
    },
}
CASES |= {
    f"{attack}, {count} a round": {"attack": attack, "attackers": 4, "classes_per_round": count, **keys}
    for count in (1, 3)
    for attack, keys in {
        "mimic(worker=0)": {"defence": "krum(f=3)"},
        "mimic(warmup=3)": {"defence": "median()"},
        "constant(c=5.0)": {"defence": "clip_mean()"},
        "gaussian(sigma=2.0)": {"defence": "multi_krum(f=3)", "redraw": True},
        "sign_flip()": {"partition": "k_classes(k=3)", "defence": "faba(f=4)"},
        "ipm(epsilon=0.1)": {"defence": "dnc(f=4)", "attack_start": 3, "attack_stop": 8},
        "alie(z=1.0)": {"defence": "clustering()", "fraction_train": 0.8},
        "optimised(base='ipm(epsilon=1.0)')": {"defence": "centered_clipping(tau=0.5)", "knowledge": "defence"},
        "model_based(size=2.0)": {"defence": "geometric_median(f=4)"},
        "nan()": {"defence": "trimmed_mean(f=2)"},
        "crash(p=0.5)": {"defence": "median()"},
        "crash(p=0.5, error=True)": {"defence": "median()"},
        "delay(rounds=2)": {"defence": "median()"},
        "stale(rounds=2)": {"defence": "median()", "partition": "k_classes(k=3)"},
        "drop_layers(layers=['1.bias'])": {"defence": "median()"},
    }.items()
}
TIMES = ("seconds", "median_round_seconds")


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("name", CASES)
def test_the_fast_engine_is_the_run_in_process_to_the_bit(tmp_path, name):
    keys = {**DIGITS, "rounds": 12, "evaluate_every": 4, **CASES[name]}
    slow, expected = apps.run(tmp_path, **keys)
    path = tmp_path / "fast.npz"
    quick = json.loads(json.dumps(simulate(RunConfig.from_mapping({**keys, "save_model": str(path)}))))
    assert list(quick) == list(slow)
    for key in set(slow) - set(TIMES):
        assert quick[key] == slow[key], key
    with np.load(path) as file:
        assert all(file[key].tobytes() == expected[key].tobytes() for key in expected)
    assert sum(slow["abstentions"]) > 0
    told = {reason for reason in ("refused", "missing") if slow[reason]}
    attack = CASES[name].get("attack", "")
    if attack.startswith(("delay", "stale", "drop")):
        return
    refused = attack.startswith("nan") or "error=True" in attack or name == "not finite"
    assert told == ({"refused"} if refused else {"missing"} if attack.startswith("crash") else set())


@pytest.mark.parametrize("changes", [{"gamma": 0.6}, {"schedule": "random"}, {"classes_per_round": 2}, {"seed": 1}])
def test_another_run_is_another_model(changes):
    keys = {**DIGITS, "rounds": 4, "evaluate_every": 4}
    first, again = (simulate(RunConfig.from_mapping(keys))["model_sha256"] for _ in range(2))
    assert first == again
    assert simulate(RunConfig.from_mapping({**keys, **changes}))["model_sha256"] != first


@pytest.mark.parametrize("changes", [{"gamma": 0.9}, {"schedule": "random"}, {"classes_per_round": 2}])
def test_keys_of_class_momenta_are_refused_with_other_messages(changes):
    with pytest.raises(ConfigurationError, match="changes nothing with message='momentum', only with 'class_momentum'"):
        RunConfig.from_mapping(changes)


@pytest.mark.parametrize("attack", ["sign_flip()", "mimic(warmup=2)", "alie(z=1.0)", "constant(c=5.0)"])
def test_attackers_on_messages_claim_the_classes_they_lack(tmp_path, attack):
    keys = {**DIGITS, "partition": "k_classes(k=3)", "clients": 20, "rounds": 10, "evaluate_every": 10}
    keys |= {"attackers": 2, "defence": "median()"}
    found, _ = apps.run(tmp_path, **keys, attack=attack)
    assert found["abstentions"][-2:] == [0, 0]
    assert found["abstentions"][:18] == [7] * 18
    assert found["outcomes"]["OK"] == 10
    assert found["refused"] == found["missing"] == []
    honest, _ = apps.run(tmp_path, **{**keys, "attackers": 0}, attack="none")
    assert honest["abstentions"] == [7] * 20
    early, _ = apps.run(tmp_path, **keys, attack=attack, attack_stop=4)
    assert 0 < early["abstentions"][-1] < 7  # then they are honest


def test_the_app_goes_on_from_a_checkpoint(tmp_path):
    """Model and buffer come back; what clients keep begins anew in another process, so momenta are left out here."""
    keys = {**DIGITS, "alpha": 1.0, "evaluate_every": 1, "defence": "centered_clipping(tau=0.5)"}
    folder = str(tmp_path / "run")
    apps.run(tmp_path, rounds=2, audit=folder, **keys)
    found, model = apps.run(tmp_path, rounds=4, audit=folder, resume=True, **keys)
    expected, whole = apps.run(tmp_path, rounds=4, **keys)
    assert same_bits(model, whole)
    assert found["abstentions"] == expected["abstentions"]


def test_a_metric_of_the_senders_alone():
    def train(partition, model, config, context):
        made = answer(partition, model, config, context)
        made["metrics"] = MetricRecord({**made["metrics"], "loss": 1.0 if "arrays" in made else 100.0})
        return made

    _, result = drive(DeSGD("mean()", classes=CLASSES, **EVERYBODY), client_app(train), MODEL, N, rounds=1)
    assert result.train_metrics_clientapp[1]["loss"] == 1.0


# -- what it is for ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_saves_krum_among_clients_of_three_classes(tmp_path):
    keys = {**DIGITS, "server_learning_rate": 0.5, "rounds": 200, "evaluate_every": 200}
    krum = {"defence": "krum(f=4)", "message": "momentum"}
    saved = {"defence": "krum(f=4, strict=False)"}

    def accuracy(**changes):
        attackers = 0 if changes.get("attack", "none") == "none" else 4
        return 100 * apps.run(tmp_path, **{**keys, "attackers": attackers, **changes})[0]["curve"][-1]["accuracy"]

    assert 88 < accuracy(**krum) < 97  # 92 without attack, and 93 with class-wise momenta
    assert 88 < accuracy(**saved) < 97
    assert accuracy(**krum, attack="sign_flip()") < 60  # 43
    assert 88 < accuracy(**saved, attack="sign_flip()") < 97  # 93
    # The attackers, who hold all classes, resemble each other most: Krum trusts them alone.
    assert accuracy(**krum, attack="label_flip()") < 10  # 1
    assert 88 < accuracy(**saved, attack="label_flip()") < 97  # 94


@pytest.mark.ray
def test_ray_gives_the_same_model_to_the_bit(tmp_path):
    keys = {**DIGITS, "clients": 10, "partition": "k_classes(k=3, others=2)", "rounds": 4, "evaluate_every": 2}
    cases = [
        {**keys, "attack": "label_flip()", "attackers": 2, "defence": "trimmed_mean(f=1)"},
        {**keys, "attack": "ipm(epsilon=0.5)", "attackers": 2, "classes_per_round": 2, "schedule": "random"},
    ]
    with FlowerRuns() as flower:
        for each in cases:
            on_ray = flower.run(RunConfig.from_mapping(each))
            in_process, _ = apps.run(tmp_path, **each)
            for key in ("model_sha256", "curve", "abstentions", "mean_weights", "refused", "missing", "outcomes"):
                assert on_ray[key] == in_process[key]
            assert sum(on_ray["abstentions"]) > 0


@pytest.mark.gpu
def test_the_same_run_on_a_gpu_agrees_to_rounding(tmp_path):
    keys = {**DIGITS, "rounds": 5, "evaluate_every": 5, "model": "mlp", "attack": "label_flip()", "attackers": 4}
    models = []
    for device in ("cpu", "cuda"):
        path = tmp_path / f"{device}.npz"
        simulate(RunConfig.from_mapping({**keys, "device": device, "save_model": str(path)}))
        with np.load(path) as file:
            models.append(dict(file))
    for key in models[0]:
        np.testing.assert_allclose(models[1][key], models[0][key], atol=1e-3)
