"""Costs that grow: neither the number of rounds nor what one client repeats makes a round dearer than the first."""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.serverapp.strategy import FedAvg

from flwr_robust.audit import ReplyRefused, RoundRemembered, read_log, verify_run
from flwr_robust.audit.history import clients, rounds
from flwr_robust.audit.run import log_file
from flwr_robust.flower import AdversarialGrid, Audit, Guarded, InProcessGrid, Median, Reason, Refusal, serve
from flwr_robust.flower.admission import Terms, admit
from flwr_robust.flower.client_states import most_bytes
from flwr_robust.flower.snapshots import snapshot_of
from tests.flower_helpers import FIRST, client_app, content, drive, record

ONE = {"w": np.zeros(2, np.float32)}
ALL = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 4)


def train(partition, model, config, context):
    return content({"w": model["w"] + np.float32(partition + 1)}, 10, loss=float("nan") if partition == 3 else 1.0)


APP = client_app(train, lambda partition, model, config, context: content(None, 10, accuracy=1.0))


def score(server_round, arrays):
    return MetricRecord({"loss": float("inf") if server_round == 1 else 0.1 * server_round, "rounds": server_round})


class Progresses(Audit):
    """An audit that also keeps what it was told."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sizes, self.told = {}, {}

    def round_finished(self, progress, *, last):
        super().round_finished(progress, last=last)
        self.told[progress.round] = len(json.dumps(snapshot_of(progress, {}).values))
        self.sizes[progress.round] = [event.size for event in [*_written(self.folder)][-1:]]


def _written(folder):
    return (each.event for each in read_log(log_file(folder)) if each.event.kind == "checkpoint_written")


def old_values(strategy, result):
    """What a checkpoint held before: the records of all rounds and all metrics."""
    records = [[each.round, each.asked, each.admitted, each.weights] for each in strategy.history]
    return len(json.dumps([records, [[n, dict(m)] for n, m in result.train_metrics_clientapp.items()]]))


STRATEGIES = {
    "median": lambda **options: Median(**ALL, **options),
    "guarded": lambda **options: Guarded(FedAvg(**ALL), **options),
}


# -- rounds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_checkpoint_does_not_grow_with_the_rounds(name, tmp_path):
    old, new = {}, {}
    for last in (5, 40):
        audit = Progresses(tmp_path / str(last), sync=False, every=5)
        strategy = STRATEGIES[name](audit=audit)
        grid = AdversarialGrid(InProcessGrid(APP, 4), "sign_flip()", 1)
        result = strategy.start(grid, record(ONE), num_rounds=last, evaluate_fn=score)
        old[last], new[last] = old_values(strategy, result), audit.told[last]
        assert len(strategy.history) == len(grid.history) == last
        sizes = {event.size for event in _written(audit.folder) if event.round >= 5}
        assert max(sizes) - min(sizes) < 100  # numbers with more digits
    assert old[40] > 6 * old[5]
    assert new[40] < new[5] + 100


def in_order(records):
    """Flower's own strategies ask nodes in an order that no seed decides."""
    return [dataclasses.replace(each, asked=tuple(sorted(each.asked))) for each in records]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_run_has_the_whole_history(name, tmp_path):
    def run(rounds, **options):
        strategy = STRATEGIES[name](**options)
        grid = AdversarialGrid(InProcessGrid(APP, 4), "sign_flip()", 1)
        found = strategy.start(grid, record(ONE), num_rounds=rounds, evaluate_fn=score)
        return strategy, grid, found

    whole, grid, found = run(6)
    run(3, audit=Audit(tmp_path, sync=False, every=2))
    run(4, audit=Audit(tmp_path, sync=False, every=2, resume=2))
    again, same, resumed = run(6, audit=Audit(tmp_path, sync=False, every=2, resume=True))
    assert in_order(again.history) == in_order(whole.history)
    assert in_order(again.evaluations) == in_order(whole.evaluations)
    assert same.history == grid.history
    for metrics in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"):
        assert getattr(resumed, metrics) == getattr(found, metrics)
    assert verify_run(tmp_path).intact
    told = [each.event.round for each in read_log(log_file(tmp_path)) if isinstance(each.event, RoundRemembered)]
    assert told == [0, 1, 2, 3, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_round_costs_the_same_after_hundreds(tmp_path):
    marks = []

    def mark(server_round, arrays):
        marks.append(time.process_time())

    strategy = Median(audit=Audit(tmp_path, sync=False), **ALL)
    strategy.start(InProcessGrid(APP, 4), record(ONE), num_rounds=400, evaluate_fn=mark)
    cost = np.diff(marks)
    assert np.median(cost[-100:]) < 1.3 * np.median(cost[50:150])


# -- replies ----------------------------------------------------------------------------------------


class Repeating(InProcessGrid):
    """One node answers thousands of times, with an answer that no check would pass either."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = list(super().send_and_receive(messages, timeout=timeout))
        return [*replies, *[reply for reply in replies if reply.metadata.src_node_id == FIRST + 3] * 5000]


def old_admit(replies, messages):
    """A refusal for every reply, as it was."""
    seen, refused = set(), []
    for reply in replies:
        node = reply.metadata.src_node_id
        if node in seen:
            refused.append(Refusal(node, Reason.DUPLICATE))
        seen.add(node)
    return refused


def test_thousands_of_duplicates_are_one_line(tmp_path):
    strategy = Median(audit=Audit(tmp_path, sync=False), fraction_evaluate=0.0, **ALL)
    strategy.start(Repeating(APP, 4), record(ONE), num_rounds=2)
    for each in strategy.history:
        assert each.refused == (Refusal(FIRST + 3, Reason.DUPLICATE, "", 5000),)
        assert len(each.admitted) == 4
    records = read_log(log_file(tmp_path))
    refused = [each.event for each in records if isinstance(each.event, ReplyRefused)]
    assert [(event.node, event.reason, event.count) for event in refused] == [(FIRST + 3, "DUPLICATE", 5000)] * 2
    assert [each.refused for each in rounds(records)] == [5000, 5000]
    summary = clients(records)[-1]
    assert (summary.refused, summary.reasons) == (10_000, (("DUPLICATE", 10_000),))
    grid = Repeating(APP, 4)
    messages = [grid.create_message(RecordDict(), "train", node, "1") for node in grid.get_node_ids()]
    replies = [Message(RecordDict(), reply_to=messages[0])] * 5001
    assert len(old_admit(replies, messages)) == 5000
    assert len(admit(replies, messages, Terms(), None)[1]) == 2  # one answer that does not fit, and the rest


def test_thousands_of_strangers_are_a_hundred_lines():
    grid = InProcessGrid(APP, 2)
    messages = [grid.create_message(RecordDict(), "train", node, "1") for node in grid.get_node_ids()]
    replies = []
    for stranger in range(3000):
        asked = grid.create_message(RecordDict(), "train", stranger, "1")
        replies.append(Message(RecordDict(), reply_to=asked))
    _, refused = admit(replies, messages, Terms(), None)
    assert len(refused) == 102
    assert sum(refusal.count for refusal in refused) == 3000
    assert refused[-1].count == 3000 - 101


# -- states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [0, 8, 100_000_000])
def test_states_are_bounded_by_the_honest_size(model):
    assert most_bytes(model) == 4 * model + (1 << 20)
    assert most_bytes(model) < max(64 * model, 1 << 26)  # what it was


def test_a_small_model_does_not_let_a_client_fill_the_checkpoint(tmp_path):
    def client_fn(context):
        class Client(NumPyClient):
            def fit(self, parameters, config):
                if context.node_config["partition-id"] == 3:  # in records of two kinds, each short enough
                    context.state["one"] = record({"hoard": np.zeros(700_000, np.uint8)})
                    context.state["two"] = ConfigRecord({"hoard": bytes(700_000)})
                return [array + 1 for array in parameters], 1, {}

        return Client()

    strategy = Median(audit=Audit(tmp_path, sync=False, client_states=True), fraction_evaluate=0.0, **ALL)
    drive(strategy, serve(client_fn, hand_over_state=True), ONE, 4)
    (kept,) = [each.event for each in read_log(log_file(tmp_path)) if each.event.kind == "client_states_kept"][-1:]
    assert kept.clients == 3
    assert "its state is too long" in kept.missing[str(FIRST + 3)]
