"""Audit plugged into strategies: what goes on record, and that a run which is resumed is the run that never stopped."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import threading
import time
from collections import defaultdict

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from flwr_robust.audit import (
    Aggregated,
    AuditLog,
    Evaluated,
    Measured,
    Quarantined,
    Released,
    ReplyAdmitted,
    Resumed,
    RoundConfigured,
    RunEnded,
    RunStarted,
    model_sha256,
    read_log,
    rollback,
    secret_file,
    verify,
    verify_run,
)
from flwr_robust.audit.card import make_card
from flwr_robust.audit.history import clients, rounds
from flwr_robust.audit.run import log_file
from flwr_robust.errors import AuditError, CheckpointError, ConfigurationError
from flwr_robust.flower import (
    AdversarialGrid,
    Audit,
    CenteredClipping,
    Guarded,
    Identity,
    InProcessGrid,
    Krum,
    Mean,
    Median,
    MixTailor,
    RobustStrategy,
    loop,
)
from flwr_robust.flower.memory import freeze, storable, thaw
from flwr_robust.flower.saved import Fingerprint
from flwr_robust.runs.config import RunConfig
from tests import apps
from tests.flower_helpers import FIRST, client_app, content, drive, same_bits, values

MODEL = {
    "w": np.zeros((3, 2), np.float32),
    "norm.running_mean": np.zeros(2, np.float32),
    "norm.num_batches_tracked": np.array(0),
    "half": np.ones(4, np.float16),
}
SAMPLED = {"fraction_train": 0.6, "fraction_evaluate": 0.4, "min_available_nodes": 10, "seed": 3}
EVERYBODY = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 10)
LIAR = 9


def train(partition, model, config, context):
    """A step that depends on who, when, from where, and what was asked; one client lies."""
    if partition == LIAR:
        return content({}, 1)
    draw = np.random.default_rng([partition, config["server-round"]])
    rate = config.get("rate", 0.1)
    moved = {
        name: array + (np.asarray(rate * (draw.normal(size=array.shape) - array)) if array.dtype.kind == "f" else 1)
        for name, array in model.items()
    }
    return content(
        {name: array.astype(model[name].dtype) for name, array in moved.items()},
        10 + partition,
        partition_id=partition,
        loss=float(draw.normal()),
    )


def evaluate(partition, model, config, context):
    return content(None, 10, accuracy=float(abs(model["w"]).sum()) + partition)


APP = client_app(train, evaluate)


class Decaying(FedAvg):
    """Lowers the clients' rate on the way, as Flower's documentation shows."""

    def configure_train(self, server_round, arrays, config, grid):
        config["rate"] = config.get("rate", 0.4) / 2
        return super().configure_train(server_round, arrays, config, grid)


class Noisy(FedAvg):
    """Keeps a state of its own, part of which no checkpoint can hold."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen, self.generator = [], np.random.default_rng(0)

    def aggregate_train(self, server_round, replies):
        self.seen, self.generator = [*self.seen, server_round], np.random.default_rng(server_round)
        return super().aggregate_train(server_round, replies)


# Guarded strategies ask everybody: what Flower's own would sample, no seed decides.
STRATEGIES = {
    "centered clipping": lambda **o: CenteredClipping(tau=0.05, quarantine_after=3, **SAMPLED, **o),
    "mixtailor": lambda **o: MixTailor(f=1, seed=5, fraction_train=0.8, min_available_nodes=10, **o),
    "pipeline": lambda **o: RobustStrategy("clip(c=0.1) | trimmed_mean(f=1)", message="delta", **SAMPLED, **o),
    "Guarded(FedAvg)": lambda **o: Guarded(FedAvg(**EVERYBODY), quarantine_after=1, **o),
    "Guarded(FedAdam)": lambda **o: Guarded(FedAdam(**EVERYBODY), **o),
    "Guarded(FedAvgM)": lambda **o: Guarded(FedAvgM(server_momentum=0.9, server_learning_rate=0.5, **EVERYBODY), **o),
    "Guarded(Decaying)": lambda **o: Guarded(Decaying(**EVERYBODY), **o),
}


def score(server_round, arrays):
    """What the server measures; nothing in round 1."""
    return None if server_round == 1 else MetricRecord({"sum": float(values(arrays)["w"].sum())})


def run(name, number, audit=None, model=MODEL, **options):
    strategy = STRATEGIES[name](audit=audit)
    found, result = drive(strategy, APP, model, 10, rounds=number, evaluate_fn=score, **options)
    return strategy, found, result


def quick(folder, **options):
    return Audit(folder, sync=False, **options)


def events(folder, *kinds):
    return [each.event for each in read_log(log_file(folder)) if not kinds or isinstance(each.event, kinds)]


def in_order(records):
    """Flower's own strategies ask in an order of their own, which no seed decides."""
    return [dataclasses.replace(record, asked=tuple(sorted(record.asked))) for record in records]


def assert_the_same(first, second):
    """Two runs came to the same: model, metrics, and all that is on record."""
    (one, model, result), (other, twin, double) = first, second
    assert same_bits(model, twin)
    for kind in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"):
        assert getattr(result, kind) == getattr(double, kind)
    assert in_order(one.history) == in_order(other.history)
    assert in_order(one.evaluations) == in_order(other.evaluations)
    assert (one.partitions, one.guard.refusals) == (other.partitions, other.guard.refusals)


# -- two rounds and two are four ----------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_run_is_the_run_that_never_stopped(name, tmp_path):
    whole = run(name, 4)
    for at in range(5):
        folder = tmp_path / str(at)
        run(name, at, quick(folder))
        assert_the_same(run(name, 4, quick(folder, resume=True)), whole)
        assert (verify_run(folder).findings, verify_run(folder).remarks) == ((), ())
        assert [event.round for event in events(folder, RoundConfigured) if event.phase == "train"] == [1, 2, 3, 4]
        assert [event.round for event in events(folder, Resumed)] == [at]


@pytest.mark.parametrize("name", ["centered clipping", "mixtailor", "Guarded(FedAdam)", "Guarded(Decaying)"])
def test_the_model_alone_would_not_do(name):
    _, halfway, _ = run(name, 2)
    _, whole, _ = run(name, 4)
    _, found, _ = run(name, 2, model=halfway)
    assert not same_bits(found, whole)


def secretly(number, audit=None, seed=None):
    """A run that draws whom to ask, who shares a bucket, and where to look."""
    strategy = RobustStrategy(SECRETLY, seed=seed, audit=audit, **DRAWN)
    found, result = drive(strategy, APP, MODEL, 10, rounds=number, evaluate_fn=score)
    return strategy, found, result


SECRETLY = "bucketing(s=2) | dnc(f=1, sub_dimension=3)"
DRAWN = {"fraction_train": 0.8, "min_available_nodes": 10, "quarantine_after": 3}


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_two_and_two_are_four_with_secret_seeds(at, tmp_path):
    secretly(at, quick(tmp_path))
    resumed = secretly(4, quick(tmp_path, resume=True))
    revealed = events(tmp_path, RunEnded)[-1].seed_revealed
    assert_the_same(resumed, secretly(4, seed=revealed))  # what is revealed repeats the run, here without a stop
    assert verify_run(tmp_path).intact
    again = quick(tmp_path / "again")
    assert_the_same(secretly(2, again, revealed), secretly(2, seed=revealed))
    assert events(tmp_path / "again", RunStarted)[0].config["seed"] == revealed
    with pytest.raises(ConfigurationError, match=r"num_rounds must be at most 4, .*; got num_rounds=5"):
        secretly(5, seed=revealed)


def test_two_secret_runs_are_not_alike(tmp_path):
    asked = [[record.asked for record in secretly(4)[0].history] for _ in range(3)]
    assert len(set(map(tuple, asked))) == 3
    strategy = secretly(4)[0]  # a strategy that is started again has another secret
    first = strategy.guard.seeds.of(1)
    drive(strategy, APP, MODEL, 10, rounds=1)
    assert strategy.guard.seeds.of(1) != first


def test_a_secret_run_resumes_as_a_secret_run_alone(tmp_path):
    secretly(2, quick(tmp_path))
    with pytest.raises(CheckpointError, match='seed was "secret" and is 3; use the same'):
        secretly(4, quick(tmp_path, resume=True), seed=3)
    secret_file(tmp_path).unlink()
    with pytest.raises(AuditError, match=r"seeds.secret is missing"):
        secretly(4, quick(tmp_path, resume=True))


@pytest.mark.parametrize("name", ["centered clipping", "Guarded(FedAdam)"])
def test_an_audit_changes_nothing(name, tmp_path):
    assert_the_same(run(name, 3, quick(tmp_path, every=2)), run(name, 3))


def test_one_argument_is_enough(tmp_path):
    folder = tmp_path / "runs" / "first"
    drive(Krum(f=1, audit=str(folder), min_train_nodes=10), APP, MODEL, 10, rounds=2)
    assert verify(log_file(folder)).intact
    assert sorted(path.name for path in (folder / "checkpoints").glob("round-*")) == [
        f"round-{number:08}" for number in range(3)
    ]


def test_what_the_same_object_resumes(tmp_path):
    strategy = STRATEGIES["Guarded(FedAdam)"](audit=quick(tmp_path, resume=True))
    sent = ConfigRecord({"rate": 0.3})
    for number in (2, 4):
        found, result = drive(strategy, APP, MODEL, 10, rounds=number, evaluate_fn=score, train_config=sent)
    assert dict(sent) == {"rate": 0.3}
    assert_the_same((strategy, found, result), run("Guarded(FedAdam)", 4, train_config=sent))


def test_a_disk_that_is_full_ends_the_run_and_leaves_the_log_to_others(tmp_path, monkeypatch):
    append = AuditLog.append

    def full(log, *events):
        if log.lines > 20:
            raise OSError("no space left")
        return append(log, *events)

    monkeypatch.setattr(AuditLog, "append", full)
    with pytest.raises(OSError, match="no space left"):
        run("mixtailor", 3, quick(tmp_path))
    monkeypatch.setattr(AuditLog, "append", append)
    assert_the_same(run("mixtailor", 3, quick(tmp_path, resume=True)), run("mixtailor", 3))


def test_a_run_that_is_over_is_only_read(tmp_path):
    first = run("centered clipping", 3, quick(tmp_path))
    assert_the_same(run("centered clipping", 3, quick(tmp_path, resume=True)), first)
    one, again = events(tmp_path, RunEnded)
    assert (one, len(one.model)) == (again, 64)


def test_fewer_rounds_than_are_done_are_refused(tmp_path):
    run("centered clipping", 3, quick(tmp_path))
    with pytest.raises(ConfigurationError, match=r"at least the 3 rounds that .*; got num_rounds=2: ask for more"):
        run("centered clipping", 2, quick(tmp_path, resume=True))
    run("centered clipping", 4, quick(tmp_path, resume=True))
    assert [(event.round, event.outcome) for event in events(tmp_path, RunEnded)] == [(3, "finished"), (4, "finished")]


def test_from_a_given_round_and_after_a_rollback(tmp_path):
    whole = run("centered clipping", 5)
    run("centered clipping", 4, quick(tmp_path, keep=None))
    assert_the_same(run("centered clipping", 5, quick(tmp_path, resume=2, keep=None)), whole)
    rollback(tmp_path, 1, reason="the accuracy fell", sync=False)
    assert_the_same(run("centered clipping", 5, quick(tmp_path, resume=True)), whole)
    assert verify(log_file(tmp_path)).intact
    assert [summary.round for summary in rounds(read_log(log_file(tmp_path))) if not summary.undone] == [1, 2, 3, 4, 5]


def test_checkpoints_come_every_few_rounds_at_the_beginning_and_at_the_end(tmp_path):
    run("mixtailor", 7, quick(tmp_path, every=3, keep=None))
    found = sorted(int(path.name[6:]) for path in (tmp_path / "checkpoints").glob("round-*"))
    assert found == [0, 3, 6, 7]


def test_a_run_stopped_by_an_infeasible_round_goes_on(tmp_path):
    def strategy(audit):
        return Krum(f=3, on_infeasible="stop", min_train_nodes=10, audit=audit)

    def until(good):
        def answer(partition, model, config, context):
            return train(LIAR if config["server-round"] == good else partition, model, config, context)

        return client_app(answer, evaluate)

    first = strategy(quick(tmp_path))
    drive(first, until(2), MODEL, 10, rounds=3)
    assert [(event.round, event.outcome) for event in events(tmp_path, RunEnded)] == [(2, "stopped")]
    second = strategy(quick(tmp_path, resume=True))
    drive(second, until(0), MODEL, 10, rounds=3)
    assert [record.outcome.name for record in second.history] == ["OK", "INFEASIBLE", "OK"]
    assert events(tmp_path)[-1].outcome == "finished"


def test_what_no_checkpoint_can_hold_is_named(tmp_path, caplog):
    caplog.set_level("WARNING", logger="flwr")
    strategy = Guarded(Noisy(**EVERYBODY), audit=quick(tmp_path))
    drive(strategy, APP, MODEL, 10, rounds=1)
    assert "generator of Guarded(Noisy) cannot be put into a checkpoint" in caplog.text
    again = Guarded(Noisy(**EVERYBODY), audit=quick(tmp_path, resume=True))
    drive(again, APP, MODEL, 10, rounds=2)
    assert again.strategy.seen == [1, 2]


class Unsorted(FedAvg):
    """Changes in place what it keeps, some of which no checkpoint can hold."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen, self.velocity, self.counts = set(), {}, defaultdict(int)
        self.generator, self.messages, self.inner = np.random.default_rng(0), [], FedAvg()
        # As they were at the start, whatever their kind: nobody needs to hear of these.
        self.other, self.lock, self.function = np.random.default_rng(1), threading.Lock(), lambda value: value
        self.own, self.partial = self.aggregate_train, functools.partial(self.function, self)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.seen.add(server_round)
        self.velocity[server_round] = np.ones(2) * len(self.seen)
        self.counts[server_round] += 1
        self.generator.random()
        self.messages.append(replies[0])
        self.inner.fraction_train /= 2
        return super().aggregate_train(server_round, replies)


def test_what_changes_in_place_is_stored_or_named(tmp_path, caplog):
    caplog.set_level("WARNING", logger="flwr")
    drive(Guarded(Unsorted(**EVERYBODY), audit=quick(tmp_path)), APP, MODEL, 10, rounds=2)
    named = [found.getMessage() for found in caplog.records if "cannot be put" in found.getMessage()]
    assert len(named) == 1  # once, not in every round
    assert named[0].startswith("Guarded: generator, messages, inner of Guarded(Unsorted) cannot")
    again = Guarded(Unsorted(**EVERYBODY), audit=quick(tmp_path, resume=True))
    drive(again, APP, MODEL, 10, rounds=3)
    assert again.strategy.seen == {1, 2, 3}
    assert {number: value.tolist() for number, value in again.strategy.velocity.items()} == {
        1: [1.0, 1.0],
        2: [2.0, 2.0],
        3: [3.0, 3.0],
    }
    assert again.strategy.counts == {1: 1, 2: 1, 3: 1}
    assert again.strategy.counts[9] == 0  # still a defaultdict


def test_what_stays_as_it_was_is_not_named(tmp_path, caplog):
    class Still(Unsorted):
        aggregate_train = FedAvg.aggregate_train

    caplog.set_level("WARNING", logger="flwr")
    drive(Guarded(Still(**EVERYBODY), audit=quick(tmp_path)), APP, MODEL, 10, rounds=2)
    assert "cannot be put" not in caplog.text


def test_what_cannot_be_compared_is_named(tmp_path, caplog):
    class Closed:
        def __reduce__(self):
            raise TypeError("no")

    caplog.set_level("WARNING", logger="flwr")
    strategy = FedAvg(**EVERYBODY)
    strategy.closed = Closed()
    drive(Guarded(strategy, audit=quick(tmp_path)), APP, MODEL, 10, rounds=1)
    assert "closed of Guarded(FedAvg) cannot be put into a checkpoint" in caplog.text


def test_functions_that_take_each_others_place_are_told_apart():
    def made(number):
        return Fingerprint([lambda: number], None)

    first = made(1)
    assert not first.matches(made(2))
    same = [lambda: 1]
    assert Fingerprint(same, None).matches(Fingerprint(same, None))


def test_sets_and_keys_of_other_types_come_back():
    kept = {1: "a", "1": "b", (2, None): {3, "x", 1.5}, b"k": frozenset({True}), 0.5: {}, "deep": [{7: np.ones(1)}]}
    tensors = {}
    frozen = json.loads(json.dumps(freeze(kept, tensors)))
    found = thaw(frozen, tensors)
    assert storable(kept)
    assert found["deep"][0][7].tolist() == [1.0]
    del found["deep"], kept["deep"]
    assert found == kept
    assert [type(key) for key in found] == [type(key) for key in kept]
    assert [type(each) for each in found.values()] == [type(each) for each in kept.values()]
    assert freeze({"b", "a", "c"}, {}) == {"set": ["a", "b", "c"]}  # whatever the process's order
    assert freeze({"a": 1}, {}) == {"items": {"a": 1}}  # as checkpoints always had it
    for odd in ({np.int64(1): 2}, {print: 1}, {print}, {(1, print)}, {1: print}, frozenset({np.float32(1)})):
        assert not storable(odd)


def test_memory_comes_back():
    arrays = {"a": np.float32(2), "b": [np.arange(3), (None, 1.5, "x", b"\0", True)], "c": {}}
    tensors = {}
    found = thaw(freeze(arrays, tensors), tensors)
    assert found["b"][1] == arrays["b"][1]
    assert (found["a"], found["a"].dtype, found["c"]) == (2, np.float32, {})
    assert found["b"][0].tolist() == [0, 1, 2]
    for odd in (object(), {1: print}, np.array(["x"]), np.longdouble(1), [print]):
        assert not storable(odd)


# -- killed -------------------------------------------------------------------------------------------


def in_another_process(work):
    """Run a function in a process of its own; return the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Fragile(InProcessGrid):
    """Kills the server when a round is sent for the k-th time, with half of its replies there."""

    def __init__(self, at):
        super().__init__(APP, 10)
        self.left = at

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        self.left -= 1
        if self.left == 0:
            die()
        return replies


@pytest.mark.parametrize("name", ["centered clipping", "Guarded(FedAdam)"])
def test_kill_9_loses_at_most_the_running_round(name, tmp_path, monkeypatch):
    def go(**options):
        return run(name, 4, quick(tmp_path, resume=True), **options)

    for at in range(1, 5):  # two messages a round, so before its aggregation and after
        assert in_another_process(lambda: go(grid=Fragile(at))) == signal.SIGKILL  # noqa: B023
    for call in ("rename", "replace"):  # while a checkpoint, and while the log's head file, is put into its place

        def work(call=call):
            monkeypatch.setattr(os, call, lambda *_, **__: die())
            go()

        assert in_another_process(work) == signal.SIGKILL
    assert_the_same(go(), run(name, 4))
    assert verify(log_file(tmp_path)).intact


def test_kill_9_at_random_moments(tmp_path):
    draw = np.random.default_rng(0)
    for delay in draw.uniform(0, 0.2, 8):
        child = os.fork()
        if child == 0:
            try:
                run("centered clipping", 12, Audit(tmp_path, resume=True))
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert_the_same(run("centered clipping", 12, quick(tmp_path, resume=True)), run("centered clipping", 12))
    assert verify(log_file(tmp_path)).intact


def test_kill_9_keeps_the_secret(tmp_path, monkeypatch):
    def go(**options):
        strategy = RobustStrategy(SECRETLY, audit=quick(tmp_path, resume=True), **DRAWN)
        found, result = drive(strategy, APP, MODEL, 10, rounds=8, evaluate_fn=score, **options)
        return strategy, found, result

    for call in ("replace", "rename"):  # while the secret, a head file or a checkpoint is put into its place

        def work(call=call):
            monkeypatch.setattr(os, call, lambda *_, **__: die())
            go()

        assert in_another_process(work) == signal.SIGKILL
    for at in range(1, 4):
        assert in_another_process(lambda: go(grid=Fragile(at))) == signal.SIGKILL  # noqa: B023
    draw = np.random.default_rng(1)
    for delay in draw.uniform(0, 0.1, 5):
        child = os.fork()
        if child == 0:
            try:
                go()
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert_the_same(go(), secretly(8, seed=events(tmp_path, RunEnded)[-1].seed_revealed))
    assert verify_run(tmp_path).intact
    assert all(event.seed_commitment == "" for event in events(tmp_path, Resumed) if event.round)


# -- what is on record --------------------------------------------------------------------------------


def test_the_log_tells_what_the_strategy_knows(tmp_path):
    strategy = Krum(f=1, quarantine_after=2, audit=quick(tmp_path), **EVERYBODY)
    found, _ = drive(strategy, APP, MODEL, 10, rounds=3, evaluate_fn=score)
    log = events(tmp_path)
    configured = [event for event in log if isinstance(event, RoundConfigured)]
    aggregated = [event for event in log if isinstance(event, Aggregated)]
    assert [(event.round, event.asked, event.left_out) for event in configured if event.phase == "train"] == [
        (record.round, record.asked, record.quarantined) for record in strategy.history
    ]
    assert {event.available for event in configured} == {10}  # also while one is in quarantine
    assert [(e.outcome, e.nodes, e.partitions, e.weights) for e in aggregated] == [
        (r.outcome.name, r.admitted, r.partitions, r.weights) for r in strategy.history
    ]
    # The hashes form a chain from the first model to the last.
    hashes = [model_sha256(MODEL), *(event.model_after for event in aggregated)]
    assert [event.model_before for event in aggregated] == hashes[:-1]
    assert [event.model for event in configured if event.phase == "train"] == hashes[:-1]
    assert [event.model for event in configured if event.phase == "evaluate"] == hashes[1:]
    assert log[-1] == RunEnded(3, "finished", "", model_sha256(found), strategy.guard.seeds.reveal(3))
    # Krum's value is one of the updates: its distance is zero, its angle too.
    for event in aggregated:
        chosen = event.weights.index(1.0)
        assert event.distances[chosen] == pytest.approx(0, abs=1e-6)
        assert event.angles[chosen] == pytest.approx(0, abs=0.1)
        assert min(event.distances[:chosen] + event.distances[chosen + 1 :]) > 0.01 * event.length
    assert [event.node for event in log if isinstance(event, Quarantined)] == [FIRST + LIAR]
    metrics = [(event.round, event.source) for event in log if isinstance(event, Evaluated)]
    assert metrics == [(0, "server"), (1, "clients"), (2, "clients"), (2, "server"), (3, "clients"), (3, "server")]
    summary = clients(read_log(log_file(tmp_path)))[-1]
    assert (summary.node, summary.refused, summary.quarantined) == (FIRST + LIAR, 2, True)
    assert summary.reasons[0][0] in ("NAMES", "NUM_EXAMPLES")


def test_a_guarded_strategy_has_distances_from_its_own_step(tmp_path):
    drive(Guarded(FedAvg(**EVERYBODY), audit=quick(tmp_path)), APP, MODEL, 10, rounds=1)
    assert {event.available for event in events(tmp_path, RoundConfigured)} == {10}
    (event,) = events(tmp_path, Aggregated)
    assert event.weights == ()
    assert len(event.distances) == len(event.angles) == len(event.nodes) == 9
    assert event.length > 0


def test_updates_are_kept_only_if_asked_for(tmp_path):
    run("Guarded(FedAvg)", 1, quick(tmp_path / "kept", keep_updates=True, hash_updates=True))
    run("Guarded(FedAvg)", 1, quick(tmp_path / "plain"))
    assert not (tmp_path / "plain" / "updates").exists()
    kept = sorted((tmp_path / "kept" / "updates").glob("*/*.npz"))
    assert len(kept) == 9
    admitted = [event for event in events(tmp_path / "kept", ReplyAdmitted) if event.phase == "train"]
    hashes = {event.node: event.update_sha256 for event in admitted}
    with np.load(kept[0]) as file:
        update = {str(name): file[str(index)] for index, name in enumerate(file["names"])}
    assert list(update) == list(MODEL)
    assert hashes[int(kept[0].stem)] == model_sha256(update)


def test_a_release_is_on_record(tmp_path):
    strategy = Median(f=1, quarantine_after=1, audit=quick(tmp_path), **EVERYBODY)

    def let_out(server_round, arrays):
        strategy.release(FIRST + LIAR)

    drive(strategy, APP, MODEL, 10, rounds=2, evaluate_fn=let_out)
    assert [event.round for event in events(tmp_path, Released)] == [1, 2]
    assert [len(event.asked) for event in events(tmp_path, RoundConfigured) if event.phase == "train"] == [10, 10]


def test_the_card_knows_the_run(tmp_path):
    strategy = RobustStrategy(
        "clip(c=0.1) | trimmed_mean(f=1)", audit=quick(tmp_path, config={"task": "none"}), **SAMPLED
    )
    drive(strategy, APP, MODEL, 10, rounds=2)
    card = make_card(tmp_path)
    assert card["claim"]["rule"]["value"] == "clip(c=0.1) | trimmed_mean(f=1)"
    assert card["claim"]["sampling"]["value"] == {"fraction-train": 0.6, "seed": 3}
    assert card["run"]["strategy"] == "RobustStrategy"
    assert card["run"]["outcome"] == "finished"


# -- what is refused ----------------------------------------------------------------------------------


def test_a_folder_holds_one_run(tmp_path):
    run("mixtailor", 1, quick(tmp_path))
    with pytest.raises(AuditError, match="holds a run already"):
        run("mixtailor", 1, quick(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"rule": "trimmed_mean(f=2)"}, "defence was .*f=1.* and is .*f=2"),
        ({"config": ConfigRecord({"rate": 0.3})}, "train_config.rate was absent and is 0.3"),
        ({"model": {"w": np.zeros((3, 3), np.float32)}}, "holds another model: .*3, 2.* there, .*3, 3.* now"),
    ],
)
def test_another_run_is_not_gone_on_with(change, message, tmp_path):
    def go(audit, rule="trimmed_mean(f=1)", seed=3, config=None, model=MODEL):
        strategy = RobustStrategy(rule, audit=audit, **{**SAMPLED, "seed": seed})
        return drive(strategy, APP, model, 10, rounds=1, train_config=config)

    go(quick(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        go(quick(tmp_path, resume=True), **change)
    go(quick(tmp_path, resume=True))  # nobody holds the log
    assert verify(log_file(tmp_path)).intact


def test_a_run_that_fails_is_on_record_and_can_go_on(tmp_path):
    def broken(server_round, arrays):
        if server_round == 2:
            raise RuntimeError("no test data")
        return score(server_round, arrays)

    strategy = STRATEGIES["mixtailor"](audit=quick(tmp_path))
    with pytest.raises(RuntimeError, match="no test data"):
        drive(strategy, APP, MODEL, 10, rounds=3, evaluate_fn=broken)
    ended = events(tmp_path)[-1]
    assert (ended.round, ended.outcome, ended.sentence) == (2, "failed", "RuntimeError: no test data")
    assert_the_same(run("mixtailor", 3, quick(tmp_path, resume=True)), run("mixtailor", 3))


def test_a_resumption_that_is_refused_changes_nothing(tmp_path):
    run("centered clipping", 4, quick(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="holds another model"):
        run("centered clipping", 5, quick(tmp_path, resume=2), model={"w": np.zeros((3, 3), np.float32)})
    with pytest.raises(ConfigurationError, match="ask for more, or roll the run back"):
        run("centered clipping", 1, quick(tmp_path, resume=2))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    run("centered clipping", 5, quick(tmp_path, resume=True))
    assert (events(tmp_path)[-1].round, events(tmp_path)[-1].outcome) == (5, "finished")


def test_a_resumption_that_fails_ends_at_the_round_it_was_to_go_on_from(tmp_path, monkeypatch):
    run("centered clipping", 2, quick(tmp_path))
    monkeypatch.setattr(CenteredClipping, "recall", lambda self, memory: _raise(RuntimeError("out of luck")))
    with pytest.raises(RuntimeError, match="out of luck"):
        run("centered clipping", 4, quick(tmp_path, resume=True))
    monkeypatch.undo()
    last = events(tmp_path)[-2:]
    assert last[0] == Resumed(2)
    assert (last[1].round, last[1].outcome) == (2, "failed")
    run("centered clipping", 4, quick(tmp_path, resume=True))
    assert (events(tmp_path)[-1].round, events(tmp_path)[-1].outcome) == (4, "finished")


def _raise(error):
    raise error


def test_rounds_without_start_are_not_forgotten_silently(tmp_path):
    strategy = Mean(audit=quick(tmp_path), **EVERYBODY)
    with pytest.raises(ConfigurationError, match=r"audit: a run is recorded within .* start\(\).*Guarded\("):
        strategy.configure_train(1, content(MODEL)["arrays"], ConfigRecord(), InProcessGrid(APP, 10))


def test_without_observers_nothing_is_gathered(monkeypatch):
    monkeypatch.setattr(loop, "Progress", None)
    run("Guarded(FedAdam)", 2)
    run("centered clipping", 2)


# -- the apps -----------------------------------------------------------------------------------------


IN_THE_APPS = {"fraction_train": 0.5, "evaluate_every": 1, "defence": "centered_clipping(tau=0.05)"}

# What is kept where: by the rule, the server, the clients, and attacks.
REMEMBERED = {
    "parameters": {"message": "parameters", "server_learning_rate": 1.0, "attack": "label_flip()", "attackers": 2},
    "momenta": {"message": "momentum", "attack": "label_flip(scale=2.0)", "attackers": 2, "attack_start": 2},
    "the server's momentum": {"message": "gradient", "server_momentum": 0.5, "server_learning_rate": 0.05},
    "class-wise momenta": {
        "message": "class_momentum",
        "partition": "k_classes(k=3, others=2)",
        "clients": 22,
        "attackers": 2,
        "attack": "mimic(warmup=3)",
        "defence": "trimmed_mean(f=2)",
        "fraction_train": 0.9,
    },
    "personal heads": {"message": "delta", "model": "mlp", "personal": "head.*", "local_steps": 2},
    "mimic": {"message": "momentum", "attack": "mimic(warmup=3)", "attackers": 2},
    "stale": {"message": "gradient", "attack": "stale(rounds=2)", "attackers": 2},
    "delay": {"message": "delta", "attack": "delay(rounds=2)", "attackers": 2},
    "a search against the rule": {
        "message": "momentum",
        "attack": "tailored(epsilon='search')",
        "knowledge": "defence",
        "attackers": 2,
    },
}


@pytest.mark.parametrize("name", REMEMBERED)
def test_the_apps_resume_too(name, tmp_path):
    folder, keys = str(tmp_path / "run"), {**IN_THE_APPS, **REMEMBERED[name]}
    apps.run(tmp_path, rounds=3, audit=folder, checkpoint_every=3, **keys)
    found, model = apps.run(tmp_path, rounds=6, audit=folder, resume=True, **keys)
    expected, whole = apps.run(tmp_path, rounds=6, **keys)
    times = ("seconds", "median_round_seconds")
    assert {k: v for k, v in found.items() if k not in times} == {k: v for k, v in expected.items() if k not in times}
    assert same_bits(model, whole)
    assert verify(log_file(folder)).intact
    with pytest.raises(CheckpointError, match=r"batch-size was 32 and is 16"):
        apps.run(tmp_path, rounds=7, audit=folder, resume=True, batch_size=16, **keys)


@pytest.mark.parametrize("name", ["momenta", "class-wise momenta", "personal heads", "mimic", "stale", "delay"])
def test_the_model_and_the_rule_alone_would_not_do(name, tmp_path, monkeypatch):
    """What clients and attacks keep matters: without it the resumed run is another one."""
    folder, keys = str(tmp_path / "run"), {**IN_THE_APPS, **REMEMBERED[name]}
    apps.run(tmp_path, rounds=3, audit=folder, **keys)
    monkeypatch.setattr("flwr_robust.flower.client_states.ClientStates.recall", lambda *arguments: None)
    monkeypatch.setattr(AdversarialGrid, "recall", lambda self, memory: None)
    _, model = apps.run(tmp_path, rounds=6, audit=folder, resume=True, **keys)
    _, whole = apps.run(tmp_path, rounds=6, **keys)
    assert not same_bits(model, whole)


def test_a_resumed_run_needs_its_folder():
    with pytest.raises(ConfigurationError, match="resume=True changes nothing with audit='': leave resume out"):
        RunConfig(resume=True)


def test_the_apps_put_on_record_how_unlike_each_other_the_clients_are(tmp_path):
    for partition, least, most in (("iid", 0, 0.2), ("by_label", 0.8, 1)):
        folder = tmp_path / partition
        apps.run(tmp_path, rounds=1, audit=str(folder), partition=partition, message="delta")
        mean, largest = events(folder, Measured)
        assert least <= mean.value <= largest.value <= most
        apps.run(tmp_path, rounds=2, audit=str(folder), partition=partition, message="delta", resume=True)
        assert len(events(folder, Measured)) == 2
        facts = make_card(folder)["claim"]["heterogeneity"]
        assert [fact["quantity"] for fact in facts["value"]] == ["label distribution distance"] * 2


class Renumbered(InProcessGrid):
    """A grid whose nodes have other ids, as those of Flower's simulation have in every run."""

    def __init__(self, shift):
        super().__init__(APP, 10)
        self.contexts = {node + shift: context for node, context in self.contexts.items()}
        for node, context in self.contexts.items():
            context.node_id = node


def known(audit, shift, claims=None, grid=None):
    """A strategy that knows beforehand who holds what, as this project's app does."""
    strategy = Median(f=1, quarantine_after=2, audit=audit, fraction_train=0.8, min_available_nodes=10, seed=1)
    strategy.partitions = {FIRST + shift + i: i for i in range(10)} if claims is None else claims
    return strategy


def test_quarantine_outlasts_resumption_under_other_node_ids(tmp_path):
    whole = known(None, 0)
    expected, _ = drive(whole, APP, MODEL, 10, rounds=9)
    for rounds_, shift in ((5, 0), (7, 1000), (9, 5000)):
        again = known(quick(tmp_path, resume=True), shift)
        found, _ = drive(again, APP, MODEL, 10, rounds=rounds_, grid=Renumbered(shift))
        assert again.quarantined == (FIRST + shift + LIAR,)
    assert same_bits(found, expected)
    assert again.guard.refusals == {FIRST + 5000 + LIAR: 2}
    assert len(again.guard.partitions) == 10
    # Rounds of earlier runs can still be read by partition.
    places = {**again.guard.replaced, **again.partitions}
    assert [sorted(places[node] for node in record.asked) for record in again.history] == [
        sorted(whole.partitions[node] for node in record.asked) for record in whole.history
    ]


def test_nobody_inherits_a_quarantine_that_discover_assigned(tmp_path):
    """Two claim one partition: what one of them is counted as instead is not its word."""
    drive(known(quick(tmp_path), 0), APP, MODEL, 10, rounds=4)
    grid = Renumbered(1000)
    nodes = [FIRST + 1000 + place for place in range(10)]
    victim = FIRST + 1000
    again = known(quick(tmp_path, resume=True), 1000)
    claims = {node: Identity(place) for place, node in enumerate(nodes)}
    # The liar, in quarantine, claims the victim's partition; numbers go to both in the order of their ids.
    claims[victim] = Identity(LIAR, assigned=True)
    claims[nodes[LIAR]] = Identity(0, assigned=True)
    again.identify(claims)
    drive(again, APP, MODEL, 10, rounds=5, grid=grid)
    assert victim not in again.guard.refusals


def test_nobody_inherits_a_quarantine_by_another_ones_claim(tmp_path):
    first = known(quick(tmp_path), 0, {FIRST + i: 3 if i == LIAR else i for i in range(10)})  # the liar says 3, too
    drive(first, APP, MODEL, 10, rounds=4)
    assert first.quarantined == (FIRST + LIAR,)
    again = known(quick(tmp_path, resume=True), 1000)
    drive(again, APP, MODEL, 10, rounds=4, grid=Renumbered(1000))
    assert again.quarantined == (FIRST + LIAR,)  # of the new nodes none


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"folder": 5}, "the run's folder must be a path; got 5"),
        ({"folder": __file__}, r"test_audit.py is a file; name the run's folder"),
        ({"every": 0}, "every must be an integer >= 1"),
        ({"keep": 0}, "keep must be an integer >= 1"),
        ({"resume": "yes"}, "resume must be True, False or a round >= 0; got resume='yes'"),
        ({"resume": -1}, "got resume=-1"),
        ({"key": "a text of some length"}, "key must be at least 16 bytes; got str"),
        ({"key": b"short"}, "key must be at least 16 bytes; got 5 bytes"),
        ({"config": {"x": [1]}}, r"config holds scalars by name; got 'x': \[1\]"),
        ({"config": {1: 2}}, "config holds scalars by name; got 1: 2"),
        ({"config": ["x"]}, r"config must be a mapping; got \['x'\]"),
        ({"statements": ["x"]}, r"statements must be a mapping; got \['x'\]"),
        ({"may_differ": "rounds"}, "may_differ must be a collection of keys; got 'rounds'"),
        ({"client_states": "no"}, "client_states must be True or False; got client_states='no'"),
        ({"keep_updates": "no"}, "keep_updates must be True, False, a number of rounds >= 1 or a timedelta"),
        ({"sync": "no"}, "sync must be True or False"),
        ({"measured": 3}, "measured must be a list of Measured events; got 3"),
        ({"measured": ["a"]}, r"measured must be a list of Measured events; got \['a'\]"),
        ({"statements": {"tls": 5}}, "a statement is a text; got tls=5"),
        ({"statements": {"tsl": "x"}}, "unknown statement 'tsl'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_made(arguments, words, tmp_path):
    with pytest.raises(ConfigurationError, match=words):
        Audit(**{"folder": tmp_path / "new", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_silently(tmp_path):
    run("mixtailor", 2, quick(tmp_path))
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="the log knows those of rounds 0, 1, 2; put one back"):
        run("mixtailor", 3, quick(tmp_path, resume=True))
    assert verify(log_file(tmp_path)).intact
