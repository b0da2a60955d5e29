"""What clients keep, taken into checkpoints and given back, whoever answers whatever."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient

from flwr_robust.audit import ClientStatesKept, ClientStatesRestored, read_log
from flwr_robust.audit.run import log_file
from flwr_robust.flower import Audit, InProcessGrid, RobustStrategy, serve
from flwr_robust.flower.client_states import MOST_BYTES, RESTORE, STATE, collect, restore
from flwr_robust.flower.memory import freeze, storable, thaw
from flwr_robust.flower.records import decode_record, encode_record
from tests.flower_helpers import FIRST, drive

N = 4


def clients(**options):
    """An app whose clients count their rounds, and keep arrays of some types."""

    def client_fn(context):
        class Client(NumPyClient):
            def fit(self, parameters, config):
                before = context.state.get("own")
                count = 0 if before is None else int(decode_record(before)["count"])
                arrays = {"count": np.array(count + 1), "half": np.full((2, 1), count, np.float16)}
                context.state["own"] = encode_record(arrays)
                context.state["told"] = ConfigRecord({"name": f"client {context.node_config['partition-id']}"})
                context.state["seen"] = MetricRecord({"rounds": [count, count + 1]})
                return [array + count for array in parameters], 1, {}

        return Client()

    return serve(client_fn, **options)


def trained(grid, rounds=2):
    model = encode_record({"w": np.zeros(3, np.float32)})
    for number in range(1, rounds + 1):
        content = RecordDict({"arrays": model, "config": ConfigRecord({"server-round": number})})
        list(grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()]))
    return grid


def partitions(shift=0):
    return {FIRST + shift + place: place for place in range(N)}


def test_they_come_back_to_the_bit_on_nodes_with_other_ids():
    old = trained(InProcessGrid(clients(hand_over_state=True), N))
    states = collect(old, partitions(), 10, 1000)
    assert sorted(states.partitions) == [0, 1, 2, 3]
    assert (states.nodes, states.missing) == ({}, {})
    written = (states.partitions, states.nodes)
    assert storable(written)
    tensors = {}
    assert str(thaw(freeze(written, tensors), tensors)) == str(written)
    new = InProcessGrid(clients(hand_over_state=True), N)
    assert restore(new, states, partitions(), 10) == {}
    for node, context in old.contexts.items():
        again = new.contexts[node].state
        assert again["told"]["name"] == f"client {node - FIRST}"
        assert again["seen"]["rounds"] == [1, 2]
        assert [a.data for a in again["own"].values()] == [a.data for a in context.state["own"].values()]


def test_nodes_of_unknown_or_disputed_partition_are_known_by_their_id():
    grid = trained(InProcessGrid(clients(hand_over_state=True), N))
    disputed = {FIRST: 0, FIRST + 1: 1, FIRST + 2: 1}
    states = collect(grid, disputed, 10, 1000)
    assert sorted(states.partitions) == [0]
    assert sorted(states.nodes) == [FIRST + 1, FIRST + 2, FIRST + 3]
    # Who claims a partition later gets nothing of whom it was not known to be.
    fresh = InProcessGrid(clients(hand_over_state=True), N)
    missing = restore(fresh, states, partitions(), 10)
    assert sorted(missing) == [FIRST + 1, FIRST + 2, FIRST + 3]
    assert not fresh.contexts[FIRST + 1].state


def test_an_app_that_was_not_asked_to_hands_over_nothing(caplog):
    grid = trained(InProcessGrid(clients(), N))
    states = collect(grid, partitions(), 10, 1000)
    assert (states.partitions, sorted(states.missing)) == ({}, sorted(partitions()))
    assert all(why.startswith("it failed: ") for why in states.missing.values())


class Answering(InProcessGrid):
    """A grid one of whose nodes answers queries for its state as it likes."""

    def __init__(self, answer):
        super().__init__(clients(hand_over_state=True), N)
        self.answer = answer

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            if message.metadata.dst_node_id == FIRST and message.metadata.message_type in (STATE, RESTORE):
                replies += self.answer(message)
            else:
                replies += super().send_and_receive([message])
        return replies


def content(**records):
    return lambda message: [Message(RecordDict(records), reply_to=message)]


def lying(data):
    return ArrayRecord({"w": Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=data)})


WHOLE = encode_record({"w": np.zeros(3, np.float32)})["w"].data
WRONG = {
    "none at all": (lambda message: [], "no answer"),
    "an error": (lambda message: [Message(Error(2, "out of luck"), reply_to=message)], "it failed: out of luck"),
    "cut short": (content(a=lying(WHOLE[:-1])), "11 bytes where its header declares 12"),
    "trailing": (content(a=lying(WHOLE + b"x")), "13 bytes where its header declares 12"),
    "a bomb": (content(a=lying(WHOLE.replace(b"(3,)", b"(9**9,)"))), "npy header"),
    "pickled": (content(a=lying(b"\x80\x04N.")), "does not start as an npy file"),
    "too long": (content(a=encode_record({"w": np.zeros(MOST_BYTES * 250)})), "its state is too long"),
    "too many": (content(c=ConfigRecord({str(i): 0 for i in range(10_001)})), "in 10001 entries"),
    "long lists": (content(m=MetricRecord({"m": [0.0] * 8 * MOST_BYTES * 20})), "its state is too long"),
    "complex": (content(a=encode_record({"w": np.zeros(2, np.complex64)})), "what no file can"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_state_that_cannot_be_kept_is_not_and_says_why(name):
    answer, words = WRONG[name]
    states = collect(trained(Answering(answer)), partitions(), 10, 1000)
    assert sorted(states.partitions) == [1, 2, 3]
    assert words in states.missing[FIRST]
    missing = restore(Answering(lambda message: []), states, partitions(), 10)
    assert missing == {FIRST: "the checkpoint holds no state of it"}


def test_a_node_answers_once_and_for_itself_alone():
    def twice(message):
        other = Message(RecordDict({"m": MetricRecord({"m": 1.0})}), reply_to=message)
        other.metadata.__dict__["_src_node_id"] = FIRST + 1
        unknown = Message(RecordDict({"m": MetricRecord({"m": 2.0})}), reply_to=message)
        unknown.metadata.__dict__["_src_node_id"] = 77
        first = Message(RecordDict({"m": MetricRecord({"m": 3.0})}), reply_to=message)
        again = Message(RecordDict({"m": MetricRecord({"m": 4.0})}), reply_to=message)
        return [first, again, unknown]

    states = collect(trained(Answering(twice)), partitions(), 10, 1000)
    assert states.partitions[0] == {"m": ("metrics", {"m": 3.0})}
    assert sorted(states.partitions) == [0, 1, 2, 3]


def test_who_does_not_take_its_state_back_is_named():
    states = collect(trained(InProcessGrid(clients(hand_over_state=True), N)), partitions(), 10, 1000)
    assert restore(Answering(lambda message: []), states, partitions(), 10) == {FIRST: "it did not take its state back"}


def test_all_of_it_is_on_record(tmp_path, caplog):
    model = {"w": np.zeros(3, np.float32)}

    def run(grid, rounds, resume):
        audit = Audit(tmp_path / "run", client_states=True, resume=resume, sync=False)
        strategy = RobustStrategy("median()", fraction_evaluate=0.0, audit=audit)
        strategy.partitions = partitions()
        return drive(strategy, None, model, N, rounds=rounds, grid=grid)[0]

    def events(kind):
        return [record.event for record in read_log(log_file(tmp_path / "run")) if isinstance(record.event, kind)]

    run(Answering(lambda message: []), 2, False)
    kept = events(ClientStatesKept)
    assert [event.round for event in kept] == [0, 1, 2]
    assert {event.clients for event in kept} == {N - 1}
    assert kept[0].missing == {str(FIRST): "no answer"}
    assert "what clients keep is not in it of 1 nodes: node 2: no answer" in caplog.text
    grid = InProcessGrid(clients(hand_over_state=True), N)
    found = run(grid, 4, True)
    (restored,) = events(ClientStatesRestored)
    assert (restored.round, restored.clients) == (2, N - 1)
    assert restored.missing == {str(FIRST): "the checkpoint holds no state of it"}
    # The three that were given theirs back have counted on: 0 + 1, then 2 + 3.
    assert found["w"].tolist() == [6, 6, 6]
    assert int(decode_record(grid.contexts[FIRST].state["own"])["count"]) == 2
