"""InProcessGrid: nodes with contexts of their own, records that nobody shares, and failures that are replies."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flwr_robust import ConfigurationError
from flwr_robust.flower import InProcessGrid, Mean, run_in_process
from tests.flower_helpers import FIRST, client_app, content, drive, record, values

MODEL = {"w": np.float32([1, 2]), "b": np.float32([3])}


def sent(node=FIRST, kind="train"):
    config = ConfigRecord({"rate": 0.5, "layers": [1, 2]})
    return Message(RecordDict({"arrays": record(MODEL), "config": config}), node, kind)


def app_of(function):
    """Make a ClientApp of a train function (message, context)."""
    app = ClientApp()
    app.train()(function)
    return app


def echo(message, context):
    return Message(message.content, reply_to=message)


def exchange(grid, *messages):
    return list(grid.send_and_receive(messages))


# -- nodes -------------------------------------------------------------------------------------------


def test_it_is_a_grid():
    grid = InProcessGrid(ClientApp(), 3)
    assert isinstance(grid, Grid)
    assert list(grid.get_node_ids()) == [FIRST, FIRST + 1, FIRST + 2] == list(grid.contexts)


@pytest.mark.parametrize("nodes", [0, -1, 2.0, True])
def test_it_needs_a_node(nodes):
    with pytest.raises(ConfigurationError, match="num_supernodes must be an integer >= 1"):
        InProcessGrid(ClientApp(), nodes)


def test_nodes_know_their_partition_and_the_run_config():
    grid = InProcessGrid(ClientApp(), 3, {"rate": 0.5, "task": "digits"})
    for i, (node, context) in enumerate(grid.contexts.items()):
        assert context.node_id == node
        assert context.node_config == {"partition-id": i, "num-partitions": 3}
        assert context.run_config == {"rate": 0.5, "task": "digits"}
        assert len(context.state) == 0


def test_a_nodes_run_config_is_its_own():
    given = {"rate": 0.5}
    grid = InProcessGrid(ClientApp(), 2, given)
    grid.contexts[FIRST].run_config["rate"] = 9.0
    assert grid.contexts[FIRST + 1].run_config == given == {"rate": 0.5}


def test_contexts_last_and_are_not_shared():
    def count(message, context):
        seen = context.state.get("seen", MetricRecord({"rounds": 0}))["rounds"] + 1
        context.state["seen"] = MetricRecord({"rounds": seen})
        return Message(RecordDict({"m": MetricRecord({"rounds": seen})}), reply_to=message)

    grid = InProcessGrid(app_of(count), 2)
    rounds = [exchange(grid, sent(FIRST), sent(FIRST + 1)), exchange(grid, sent(FIRST)), exchange(grid, sent(FIRST))]
    assert [[r.content["m"]["rounds"] for r in replies] for replies in rounds] == [[1, 1], [2], [3]]
    assert {n: c.state["seen"]["rounds"] for n, c in grid.contexts.items()} == {FIRST: 3, FIRST + 1: 1}
    # Another grid starts afresh.
    assert exchange(InProcessGrid(app_of(count), 2), sent())[0].content["m"]["rounds"] == 1


# -- messages ----------------------------------------------------------------------------------------


def test_replies_come_in_the_order_of_the_messages():
    grid = InProcessGrid(app_of(echo), 4)
    order = [FIRST + 2, FIRST, FIRST + 3, FIRST + 1, FIRST + 2]
    replies = exchange(grid, *[sent(node) for node in order])
    assert [reply.metadata.src_node_id for reply in replies] == order
    # The lowest Flower that is supported knows no identity of tasks: its messages name no sender, which is 0.
    assert {reply.metadata.dst_node_id for reply in replies} in ({1}, {0})
    assert {reply.metadata.message_type for reply in replies} == {"train"}


def test_messages_and_replies_have_ids_that_belong_together():
    grid = InProcessGrid(app_of(echo), 2)
    messages = [sent(FIRST), sent(FIRST + 1)]
    identifiers = list(grid.push_messages(messages))
    assert [message.metadata.message_id for message in messages] == identifiers
    replies = list(grid.pull_messages(identifiers))
    assert [reply.metadata.reply_to_message_id for reply in replies] == identifiers
    every = identifiers + [reply.metadata.message_id for reply in replies]
    assert len(set(every)) == 4
    assert "" not in every


def test_push_runs_nothing_and_pull_runs_once():
    seen = []

    def train(message, context):
        seen.append(context.node_id)
        return echo(message, context)

    grid = InProcessGrid(app_of(train), 3)
    first, second, third = grid.push_messages([sent(FIRST), sent(FIRST + 1), sent(FIRST + 2)])
    assert seen == []
    assert [r.metadata.src_node_id for r in grid.pull_messages([second])] == [FIRST + 1]
    assert seen == [FIRST + 1]
    # What was pulled is gone; what is unknown does not come; the rest is still there.
    assert [r.metadata.src_node_id for r in grid.pull_messages([second, "no such id", third, first])] == [
        FIRST + 2,
        FIRST,
    ]
    assert list(grid.pull_messages([first, second, third])) == []
    assert seen == [FIRST + 1, FIRST + 2, FIRST]


def test_create_message():
    grid = InProcessGrid(app_of(echo), 2)
    message = grid.create_message(RecordDict(), "train", FIRST + 1, "group", ttl=60)
    assert (message.metadata.dst_node_id, message.metadata.group_id, message.metadata.ttl) == (FIRST + 1, "group", 60)
    assert exchange(grid, message)[0].metadata.src_node_id == FIRST + 1


def test_set_run():
    grid = InProcessGrid(ClientApp(), 1)
    before = grid.run
    other = type(before).create_empty(77)
    grid.set_run(other)
    assert grid.run is other
    assert before.run_id != 77


def test_a_message_of_another_kind_goes_to_its_function():
    app = app_of(echo)

    @app.query("name")
    def name(message, context):
        return Message(RecordDict({"m": MetricRecord({"asked": 1})}), reply_to=message)

    grid = InProcessGrid(app, 1)
    assert exchange(grid, sent(kind="query.name"))[0].content["m"]["asked"] == 1
    assert exchange(grid, sent(kind="evaluate"))[0].has_error()  # no such function


# -- nobody changes the other side's records ---------------------------------------------------------


def vandal(message, context):
    """Change everything that was received, and answer that it was done."""
    held = message.content
    held["arrays"]["w"].data = b"changed"
    held["arrays"].pop("b")
    held["arrays"]["new"] = Array(np.zeros(1))
    held["config"]["rate"] = -1.0
    del held["config"]["layers"]
    held["more"] = MetricRecord({"x": 1})
    return Message(RecordDict({"m": MetricRecord({"num-examples": 1})}), reply_to=message)


def intact(message):
    assert list(message.content) == ["arrays", "config"]
    assert list(message.content["arrays"]) == list(MODEL)
    assert message.content["arrays"] == record(MODEL)
    assert message.content["config"] == {"rate": 0.5, "layers": [1, 2]}


def test_a_client_cannot_change_what_the_server_sent():
    message = sent()
    (reply,) = exchange(InProcessGrid(app_of(vandal), 1), message)
    assert reply.has_content()  # the vandal got to its end
    intact(message)


def test_a_client_cannot_change_what_another_client_gets():
    seen = []

    def train(message, context):
        seen.append(values(message.content["arrays"]))
        return vandal(message, context)

    shared = sent().content
    messages = [Message(shared, FIRST + i, "train") for i in range(3)]  # as Flower's strategies do
    replies = exchange(InProcessGrid(app_of(train), 3), *messages)
    assert all(reply.has_content() for reply in replies)
    assert len(seen) == 3
    for found in seen:
        np.testing.assert_array_equal(found["w"], MODEL["w"])
        np.testing.assert_array_equal(found["b"], MODEL["b"])
    intact(messages[0])


def test_without_the_grid_the_vandal_would_succeed():
    # The control: called directly, the same function changes the message.
    InProcessGrid(ClientApp(), 1)
    message = sent()
    vandal(message, None)
    assert message.content["arrays"]["w"].data == b"changed"


def test_the_server_cannot_change_what_a_client_keeps():
    def train(message, context):
        if "kept" not in context.state:
            context.state["kept"] = record(MODEL)
        return Message(RecordDict({"arrays": context.state["kept"]}), reply_to=message)

    grid = InProcessGrid(app_of(train), 1)
    (reply,) = exchange(grid, sent())
    reply.content["arrays"]["w"].data = b"changed"
    reply.content["arrays"].pop("b")
    assert grid.contexts[FIRST].state["kept"] == record(MODEL)
    assert exchange(grid, sent())[0].content["arrays"] == record(MODEL)


def test_a_client_that_keeps_what_it_received_keeps_it_as_it_was():
    def train(message, context):
        context.state.setdefault("kept", message.content["arrays"])
        return echo(message, context)

    message = sent()
    grid = InProcessGrid(app_of(train), 1)
    exchange(grid, message)
    message.content["arrays"]["w"].data = b"changed"
    assert grid.contexts[FIRST].state["kept"] == record(MODEL)


def test_a_client_cannot_change_a_list_the_server_sent():
    def train(message, context):
        message.content["config"]["layers"].append(99)
        return echo(message, context)

    message = sent()
    exchange(InProcessGrid(app_of(train), 1), message)
    intact(message)


def test_the_server_cannot_change_a_list_a_client_keeps():
    def train(message, context):
        context.state["kept"] = MetricRecord({"losses": [1.0, 2.0]})
        return Message(RecordDict({"m": context.state["kept"]}), reply_to=message)

    grid = InProcessGrid(app_of(train), 1)
    (reply,) = exchange(grid, sent())
    reply.content["m"]["losses"].clear()
    assert grid.contexts[FIRST].state["kept"] == {"losses": [1.0, 2.0]}


def test_bytes_are_not_copied():
    message = sent()
    held = []

    def train(received, context):
        held.append(received.content["arrays"]["w"].data)
        return Message(received.content, reply_to=received)

    (reply,) = exchange(InProcessGrid(app_of(train), 1), message)
    assert held[0] is message.content["arrays"]["w"].data is reply.content["arrays"]["w"].data


# -- failures ----------------------------------------------------------------------------------------


def test_a_client_that_raises_becomes_an_error_reply():
    def train(message, context):
        if context.node_id == FIRST + 1:
            raise ValueError("no data here")
        return echo(message, context)

    replies = exchange(InProcessGrid(app_of(train), 3), *[sent(FIRST + i) for i in range(3)])
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.reason == "ValueError: no data here"
    assert replies[1].metadata.src_node_id == FIRST + 1
    assert replies[1].metadata.message_id != ""


def test_an_error_reply_of_the_client_comes_through():
    def train(message, context):
        return Message(Error(99, "busy"), reply_to=message)

    (reply,) = exchange(InProcessGrid(app_of(train), 1), sent())
    assert (reply.error.code, reply.error.reason) == (99, "busy")


def test_a_node_that_does_not_exist_becomes_an_error_reply():
    replies = exchange(InProcessGrid(app_of(echo), 2), sent(999), sent(FIRST))
    assert replies[0].has_error()
    assert "node 999 does not exist" in replies[0].error.reason
    assert replies[1].has_content()


@pytest.mark.parametrize("returned", [None, RecordDict()], ids=["None", "RecordDict"])
def test_a_client_that_returns_no_message_becomes_an_error_reply(returned):
    (reply,) = exchange(InProcessGrid(app_of(lambda message, context: returned), 1), sent())
    assert reply.has_error()


def test_an_interrupt_is_no_reply():
    def train(message, context):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exchange(InProcessGrid(app_of(train), 1), sent())


# -- whole runs --------------------------------------------------------------------------------------


def adds_one():
    return client_app(
        lambda i, model, config, context: content({k: v + 1 for k, v in model.items()}, loss=float(i)),
        lambda i, model, config, context: content(None, loss=float(model["w"][0])),
    )


@pytest.mark.parametrize("strategy", [FedAvg, Mean])
def test_flowers_own_and_our_strategies_run_on_it(strategy):
    found, result = drive(strategy(), adds_one(), MODEL, 3, rounds=2)
    for name, start in MODEL.items():
        np.testing.assert_allclose(found[name], start + 2)
    assert {r: m["loss"] for r, m in result.train_metrics_clientapp.items()} == {1: 1.0, 2: 1.0}
    assert {r: m["loss"] for r, m in result.evaluate_metrics_clientapp.items()} == {1: 2.0, 2: 3.0}


def test_flowers_own_strategy_bears_a_client_that_raises():
    def train(partition, model, config, context):
        if partition == 1:
            raise RuntimeError("gone")
        return content({k: v + 1 for k, v in model.items()})

    found, _ = drive(FedAvg(fraction_evaluate=0.0, min_train_nodes=3), client_app(train), MODEL, 3)
    np.testing.assert_allclose(found["w"], MODEL["w"] + 1)


def test_run_in_process_runs_both_apps():
    seen = {}
    client = ClientApp()

    @client.train()
    def train(message, context):
        seen.setdefault("clients", []).append((context.node_config["partition-id"], dict(context.run_config)))
        return Message(message.content, reply_to=message)

    server = ServerApp()

    @server.main()
    def main(grid, context):
        seen["server"] = dict(context.run_config)
        seen["nodes"] = len(list(grid.get_node_ids()))
        replies = grid.send_and_receive([Message(RecordDict(), node, "train") for node in grid.get_node_ids()])
        context.state["result"] = MetricRecord({"replies": len(list(replies))})

    config = {"text": "a", "number": 1.5, "count": 3, "flag": True}
    context = run_in_process(server, client, 3, config)
    assert isinstance(context, Context)
    assert context.state["result"]["replies"] == 3
    assert seen["server"] == config
    assert seen["nodes"] == 3
    assert seen["clients"] == [(i, config) for i in range(3)]


def test_run_in_process_needs_no_run_config():
    server = ServerApp()

    @server.main()
    def main(grid, context):
        context.state["empty"] = MetricRecord({"entries": len(context.run_config)})

    assert run_in_process(server, ClientApp(), 1).state["empty"]["entries"] == 0


def test_an_error_of_the_server_app_comes_through():
    server = ServerApp()

    @server.main()
    def main(grid, context):
        raise ArithmeticError("server")

    with pytest.raises(ArithmeticError, match="server"):
        run_in_process(server, ClientApp(), 1)


@pytest.mark.parametrize("value", [[1, 2], None, {"a": 1}, (1,), b"bytes", np.zeros(2)], ids=lambda v: type(v).__name__)
def test_a_run_config_holds_scalars_only(value):
    server = ServerApp()
    server.main()(lambda grid, context: pytest.fail("the server must not start"))
    with pytest.raises(ConfigurationError, match="run_config: values must be text, numbers or booleans"):
        run_in_process(server, ClientApp(), 1, {"fine": 1, "odd": value})


def test_records_of_a_reply_may_be_of_any_kind():
    def train(message, context):
        made = RecordDict({"a": ArrayRecord(), "m": MetricRecord({"x": 1}), "c": ConfigRecord({"y": b"z"})})
        return Message(made, reply_to=message)

    (reply,) = exchange(InProcessGrid(app_of(train), 1), sent())
    assert {k: type(v) for k, v in reply.content.items()} == {"a": ArrayRecord, "m": MetricRecord, "c": ConfigRecord}
    assert reply.content["c"]["y"] == b"z"


def test_the_state_of_a_client_that_raises_stays_as_it_was():
    app = ClientApp()

    @app.train()
    def train(message, context):
        context.state["count"] = MetricRecord({"rounds": message.content["config"]["server-round"]})
        if message.content["config"]["server-round"] == 2:
            raise RuntimeError("after it wrote")
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, 1)
    (node,) = grid.get_node_ids()
    for at in (1, 2):
        list(
            grid.send_and_receive([Message(RecordDict({"config": ConfigRecord({"server-round": at})}), node, "train")])
        )
    assert grid.contexts[node].state["count"]["rounds"] == 1
