"""serve puts NumPyClients behind the Message API; discover asks who holds which partition."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from flwr_robust.flower import Identity, InProcessGrid, discover, serve
from tests.flower_helpers import FIRST, Deployed, record, values

MODEL = {"z": np.float32([[1, 2], [3, 4]]), "a": np.array([5, 6]), "m": np.float64(0.5)}


class Client(NumPyClient):
    """Doubles what it is given, and remembers how it was called."""

    def __init__(self, metrics=None, seen=None, examples=10):
        self.metrics = {} if metrics is None else metrics
        self.seen = [] if seen is None else seen
        self.examples = examples

    def fit(self, parameters, config):
        self.seen.append((parameters, config))
        return [values_ * 2 for values_ in parameters], self.examples, self.metrics

    def evaluate(self, parameters, config):
        self.seen.append((parameters, config))
        return 0.25, self.examples, self.metrics


def call(client, kind="train", content=None, **options):
    """Send one message to one node that serves a client; return the reply."""
    made = RecordDict({"arrays": record(MODEL), "config": ConfigRecord({"rate": 0.5, "server-round": 3})})
    client_fn = client if callable(client) else lambda context: client
    grid = InProcessGrid(serve(client_fn, **options), 2)
    (reply,) = grid.send_and_receive([Message(made if content is None else content, FIRST + 1, kind)])
    return reply


def metrics_of(reply):
    assert reply.has_content(), reply.error.reason
    return dict(reply.content["metrics"])


# -- training ----------------------------------------------------------------------------------------


def test_arrays_come_back_under_their_names_in_their_order():
    found = call(Client()).content["arrays"]
    assert isinstance(found, ArrayRecord)
    assert list(found) == ["z", "a", "m"]
    for name, values_ in values(found).items():
        np.testing.assert_array_equal(values_, MODEL[name] * 2)
        assert values_.dtype == MODEL[name].dtype
        assert values_.shape == MODEL[name].shape


def test_the_parameters_are_the_models_and_can_be_written_to():
    seen = []
    call(Client(seen=seen))
    ((parameters, _),) = seen
    for values_, expected in zip(parameters, MODEL.values(), strict=True):
        np.testing.assert_array_equal(values_, expected)
        assert values_.dtype == expected.dtype
        assert values_.flags.writeable


def test_writing_into_the_parameters_harms_nobody():
    class InPlace(Client):
        def fit(self, parameters, config):
            for values_ in parameters:
                values_ += 1
            return parameters, 1, {}

    message = RecordDict({"arrays": record(MODEL), "config": ConfigRecord()})
    reply = call(InPlace(), content=message)
    assert message["arrays"] == record(MODEL)
    np.testing.assert_array_equal(values(reply.content["arrays"])["z"], MODEL["z"] + 1)


def test_the_config_reaches_fit():
    seen = []
    call(Client(seen=seen))
    assert seen[0][1] == {"rate": 0.5, "server-round": 3}


def test_several_config_records_are_one():
    seen = []
    made = RecordDict({"x": record(MODEL), "c": ConfigRecord({"a": 1}), "d": ConfigRecord({"b": "two"})})
    call(Client(seen=seen), content=made)
    assert seen[0][1] == {"a": 1, "b": "two"}


def test_the_client_is_made_from_the_nodes_context():
    made = []

    def client_fn(context):
        made.append(context.node_config["partition-id"])
        context.state["here"] = MetricRecord({"calls": len(made)})
        return Client()

    grid = InProcessGrid(serve(client_fn), 2)
    content = RecordDict({"arrays": record(MODEL)})
    for _ in range(2):
        list(grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()]))
    assert made == [0, 1, 0, 1]  # anew for every message, as Flower does
    assert grid.contexts[FIRST + 1].state["here"]["calls"] == 4


def test_numbers_are_metrics_and_the_rest_is_config():
    metrics = {
        "loss": 0.5,
        "epochs": 3,
        "history": [1.0, 2.0],
        "numpy": np.float32(1.5),
        "whole": np.int64(7),
        "text": "fine",
        "raw": b"bytes",
        "flag": True,
    }
    reply = call(Client(metrics))
    assert metrics_of(reply) == {
        "num-examples": 10,
        "partition-id": 1,
        "loss": 0.5,
        "epochs": 3,
        "history": [1.0, 2.0],
        "numpy": 1.5,
        "whole": 7,
    }
    assert type(reply.content["metrics"]["whole"]) is int
    assert dict(reply.content["config"]) == {"text": "fine", "raw": b"bytes", "flag": True}


def test_numpys_booleans_are_booleans():
    reply = call(Client({"converged": np.bool_(True)}))
    assert reply.has_content()
    assert dict(reply.content["config"]) == {"converged": True}


def test_without_text_there_is_no_config():
    assert sorted(call(Client({"loss": 1.0})).content) == ["arrays", "metrics"]


def test_a_node_without_a_partition_states_none():
    grid = InProcessGrid(serve(lambda context: Client()), 1)
    del grid.contexts[FIRST].node_config["partition-id"]
    (reply,) = grid.send_and_receive([Message(RecordDict({"arrays": record(MODEL)}), FIRST, "train")])
    assert metrics_of(reply) == {"num-examples": 10}


def test_parameters_may_come_back_as_lists_and_scalars():
    class Plain(Client):
        def fit(self, parameters, config):
            return [[1.0, 2.0], 3, np.float16(4)], 1, {}

    found = values(call(Plain()).content["arrays"])
    assert {name: (v.dtype.name, v.shape) for name, v in found.items()} == {
        "z": ("float32", (2,)),  # numpy's float64 for a float32 that was sent is mended
        "a": ("int64", ()),
        "m": ("float64", ()),
    }


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_number_of_arrays_is_an_error_reply(count):
    class Odd(Client):
        def fit(self, parameters, config):
            return [np.zeros(1)] * count, 1, {}

    reply = call(Odd())
    assert reply.has_error()
    assert f"fit must return as many arrays as it was given, 3; got {count}" in reply.error.reason


@pytest.mark.parametrize("records", [{}, {"a": record(MODEL), "b": record(MODEL)}], ids=["none", "two"])
def test_a_message_without_one_model_is_an_error_reply(records):
    for kind in ("train", "evaluate"):
        reply = call(Client(), kind, RecordDict(dict(records)))
        assert reply.has_error()
        assert f"must hold one ArrayRecord; got {len(records)}" in reply.error.reason


def test_a_client_that_raises_is_an_error_reply():
    def client_fn(context):
        raise RuntimeError("no such partition")

    for kind in ("train", "evaluate"):
        assert "no such partition" in call(client_fn, kind).error.reason


def test_mods_are_passed_on():
    seen = []

    def mod(message, context, following):
        seen.append(message.metadata.message_type)
        return following(message, context)

    call(Client(), mods=[mod])
    assert seen == ["train"]


# -- evaluation --------------------------------------------------------------------------------------


def test_evaluate_answers_with_the_loss_and_no_arrays():
    seen = []
    reply = call(Client({"accuracy": np.float64(0.75), "note": "x"}, seen), "evaluate")
    assert metrics_of(reply) == {"num-examples": 10, "partition-id": 1, "loss": 0.25, "accuracy": 0.75}
    assert dict(reply.content["config"]) == {"note": "x"}
    assert "arrays" not in reply.content
    ((parameters, config),) = seen
    np.testing.assert_array_equal(parameters[0], MODEL["z"])
    assert config == {"rate": 0.5, "server-round": 3}


def test_a_loss_of_numpys_becomes_a_float():
    class Loss(Client):
        def evaluate(self, parameters, config):
            return np.float32(0.5), 1, {}

    assert type(metrics_of(call(Loss(), "evaluate"))["loss"]) is float


# -- who holds what ----------------------------------------------------------------------------------


def served(nodes):
    return InProcessGrid(serve(lambda context: Client()), nodes)


def test_discover_finds_partitions_and_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    grid = served(3)
    assert discover(grid, grid.get_node_ids()) == {FIRST + i: Identity(i, "all") for i in range(3)}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert discover(grid, [FIRST]) == {FIRST: Identity(0, "1,3")}
    assert discover(grid, []) == {}


def test_discover_does_not_make_a_client():
    grid = InProcessGrid(serve(lambda context: pytest.fail("no client is needed")), 1)
    assert discover(grid, grid.get_node_ids())[FIRST][0] == 0


def test_partitions_need_not_follow_the_nodes():
    grid = served(3)
    for context, partition in zip(grid.contexts.values(), (2, 0, 1), strict=True):
        context.node_config["partition-id"] = partition
    assert partitions(grid) == {FIRST: 2, FIRST + 1: 0, FIRST + 2: 1}
    assert not any(each.assigned for each in discover(grid, grid.get_node_ids()).values())


def partitions(grid, nodes=None):
    found = discover(grid, grid.get_node_ids() if nodes is None else nodes)
    return {node: each.partition for node, each in found.items()}


def test_a_node_that_does_not_answer_gets_what_is_left(caplog):
    grid = served(2)
    caplog.set_level(logging.WARNING, logger="flwr")
    logging.getLogger("flwr").addHandler(caplog.handler)
    assert partitions(grid, [FIRST + 1, 77, 78]) == {FIRST + 1: 1, 77: 0, 78: 2}
    logging.getLogger("flwr").removeHandler(caplog.handler)
    assert "node 77 has no partition-id of its own; it is counted as 0" in caplog.text


def test_nodes_that_serve_something_else_are_counted_in_order():
    assert partitions(InProcessGrid(ClientApp(), 2)) == {FIRST: 0, FIRST + 1: 1}


@pytest.mark.parametrize("partition", [None, "three", 1.5, -1, 3, 10**6])
def test_a_node_without_a_partition_cannot_stop_the_run(partition):
    grid = served(3)
    if partition is None:
        del grid.contexts[FIRST + 1].node_config["partition-id"]
    else:
        grid.contexts[FIRST + 1].node_config["partition-id"] = partition
    assert partitions(grid) == {FIRST: 0, FIRST + 1: 1, FIRST + 2: 2}


def test_two_nodes_that_claim_one_partition_are_told_apart_by_id():
    grid = served(3)
    grid.contexts[FIRST + 2].node_config["partition-id"] = 0
    assert partitions(grid) == {FIRST: 0, FIRST + 1: 1, FIRST + 2: 2}
    grid.contexts[FIRST + 2].node_config["partition-id"] = 1
    assert partitions(grid) == {FIRST: 0, FIRST + 1: 1, FIRST + 2: 2}
    assert [each.assigned for each in discover(grid, grid.get_node_ids()).values()] == [False, True, True]


def test_nobody_answers_for_another_node():
    class Spoofed(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = list(super().send_and_receive(messages))
            replies[0].metadata.__dict__["_src_node_id"] = FIRST + 1
            return [replies[0], replies[2], replies[1]]

    grid = Spoofed(serve(lambda context: Client()), 3)
    found = discover(grid, grid.get_node_ids())
    assert found == {FIRST: Identity(0, assigned=True), FIRST + 1: Identity(1), FIRST + 2: Identity(2)}


ODD = {
    "nothing": RecordDict(),
    "no config": RecordDict({"metrics": MetricRecord({"partition-id": 0})}),
    "no partition": RecordDict({"metrics": MetricRecord(), "config": ConfigRecord({"visible-gpus": "all"})}),
    "records exchanged": RecordDict({"metrics": ConfigRecord({"partition-id": 0}), "config": MetricRecord()}),
}


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_a_node_that_answers_oddly_is_as_good_as_silent(answer):
    app = ClientApp()

    @app.query("identity")
    def identity(message, context):
        return Message(answer, reply_to=message)

    assert partitions(InProcessGrid(app, 2)) == {FIRST: 0, FIRST + 1: 1}


def test_a_client_fn_in_flowers_old_form_will_do():
    assert not call(lambda context: Client().to_client()).has_error()


def test_in_a_deployment_a_silent_node_does_not_delay_the_start_for_an_hour():
    told = []

    class Watched(Deployed):
        def send_and_receive(self, messages, *, timeout=None):
            told.append(timeout)
            return super().send_and_receive(messages, timeout=timeout)

    class Simulated(Watched):
        simulates = True

    app = serve(lambda context: NumPyClient())
    for grid, options in ((Watched(app, 2), {}), (Simulated(app, 2), {}), (Watched(app, 2), {"timeout": 5})):
        assert [each.partition for each in discover(grid, grid.get_node_ids(), **options).values()] == [0, 1]
    assert told == [120, 3600, 5]
