"""What clients keep, taken into checkpoints and given back, whoever answers whatever."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.serverapp.strategy import FedAvg

from flwr_robust.audit import ClientStatesKept, ClientStatesRestored, read_log, verify
from flwr_robust.audit.run import checkpoint_folder, log_file
from flwr_robust.errors import ConfigurationError
from flwr_robust.flower import Audit, Guarded, InProcessGrid, RobustStrategy, discover, serve
from flwr_robust.flower.client_states import RESTORE, STATE, ClientStates, most_bytes
from flwr_robust.flower.memory import freeze, storable, thaw
from flwr_robust.flower.wire import decode_record, encode_record
from tests.flower_helpers import FIRST, drive

N = 4


@pytest.fixture(autouse=True)
def _warnings(caplog):
    """Whatever other tests set."""
    caplog.set_level("WARNING", logger="flwr")


def clients(**options):
    """An app whose clients count their rounds, and keep records of every kind."""

    def client_fn(context):
        class Client(NumPyClient):
            def fit(self, parameters, config):
                before = context.state.get("own")
                count = 0 if before is None else int(decode_record(before)["count"])
                arrays = {"count": np.array(count + 1), "half": np.full((2, 1), count, np.float16)}
                context.state["own"] = encode_record(arrays)
                told = {"name": f"client {context.node_config['partition-id']}", "": "", "none": [], "some": [True]}
                context.state["told"] = ConfigRecord(told)
                context.state["seen"] = MetricRecord({"rounds": [count, count + 1]})
                return [array + count for array in parameters], 1, {}

        return Client()

    return serve(client_fn, **{"hand_over_state": True, **options})


class Grid(InProcessGrid):
    """A grid whose nodes have ids of their own, come late, and of which one may answer queries as it likes."""

    def __init__(self, ids=None, *, answer=None, app=None):
        super().__init__(app or clients(), N)
        ids = ids or [FIRST + place for place in range(N)]
        self.contexts = dict(zip(ids, self.contexts.values(), strict=True))
        for node, context in self.contexts.items():
            context.node_id = node
        self.liar, self.answer, self.asked, self.away = ids[0], answer, [], set()

    def get_node_ids(self):
        return [node for node in self.contexts if node not in self.away]

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for identifier in self.push_messages(messages):
            message = self._waiting[identifier]
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            self.asked.append((kind, node))
            if node == self.liar and kind in (STATE, RESTORE) and self.answer:
                replies += self.answer(message)
            elif node not in self.away:
                replies += self.pull_messages([identifier])
        return replies

    def count(self, node):
        state = self.contexts[node].state.get("own")
        return 0 if state is None else int(decode_record(state)["count"])


MODEL = {"w": np.zeros(3, np.float32)}


def run(folder, grid, rounds, resume=False, identify=None, **options):
    """Drive a strategy with an audit that keeps clients' states; return the model and the strategy."""
    own = {name: options.pop(name) for name in ("client_states", "most_state_bytes", "keep") if name in options}
    audit = Audit(folder, resume=resume, sync=False, **{"client_states": True, **own})
    options = {"fraction_evaluate": 0.0, "min_available_nodes": 2, **options}
    strategy = RobustStrategy("median()", audit=audit, **options)
    if identify is not None:
        strategy.identify(identify)
    return drive(strategy, None, MODEL, N, rounds=rounds, grid=grid)[0], strategy


def events(folder, kind):
    return [record.event for record in read_log(log_file(folder)) if isinstance(record.event, kind)]


def states_of(grid, strategy=None):
    """Collect the states of a grid whose nodes have all been asked."""
    nodes = (strategy or RobustStrategy("median()")).guard.nodes
    states = ClientStates(grid, nodes, 10)
    states.meet(grid.get_node_ids())
    return states


def trained(grid, rounds=2):
    model = encode_record(MODEL)
    for number in range(1, rounds + 1):
        content = RecordDict({"arrays": model, "config": ConfigRecord({"server-round": number})})
        list(grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()]))
    return grid


# -- back to the bit ---------------------------------------------------------------------------------


def test_all_kinds_of_records_come_back_to_the_bit():
    old, new = trained(Grid()), Grid()
    states = states_of(old)
    assert states.collect(10_000) == {}
    assert len(states) == N
    tensors = {}
    written = freeze(states.memory(), tensors)
    assert storable(states.memory())
    again = ClientStates(new, RobustStrategy("median()").guard.nodes, 10)
    again.recall(thaw(written, tensors))
    assert again.meet([]) == (new.get_node_ids(), {})
    assert {node: str(context.state) for node, context in new.contexts.items()} == {
        node: str(context.state) for node, context in old.contexts.items()
    }


def guarded(folder, resume):
    audit = Audit(folder, resume=resume, client_states=True, sync=False)
    return Guarded(FedAvg(fraction_evaluate=0.0), audit=audit)


def robust(folder, resume):
    audit = Audit(folder, resume=resume, client_states=True, sync=False)
    return RobustStrategy("trimmed_mean(f=1)", fraction_evaluate=0.0, audit=audit)


@pytest.mark.parametrize("make", [robust, guarded])
def test_a_node_of_the_same_id_is_given_its_own_though_nobody_tells_partitions(make, tmp_path):
    drive(make(tmp_path, False), None, MODEL, N, rounds=2, grid=Grid())
    grid = Grid()
    found, _ = drive(make(tmp_path, True), None, MODEL, N, rounds=4, grid=grid)
    # The clients have counted on: 0 + 1, then 2 + 3.
    assert found["w"].tolist() == [6, 6, 6]
    assert events(tmp_path, ClientStatesRestored) == [ClientStatesRestored(3, tuple(grid.contexts))]
    assert {event.clients for event in events(tmp_path, ClientStatesKept)} == {0, N}


def test_nodes_with_other_ids_are_known_by_their_partitions(tmp_path):
    first = Grid()
    run(tmp_path, first, 2, identify=discover(first, first.get_node_ids()))
    second = Grid([900, 100, 300, 200])
    found, _ = run(tmp_path, second, 4, True, identify=discover(second, second.get_node_ids()))
    assert found["w"].tolist() == [6, 6, 6]
    names = [context.state["told"]["name"] for context in second.contexts.values()]
    assert names == [f"client {place}" for place in range(N)]


def test_without_partitions_nobody_can_tell_nodes_with_other_ids(tmp_path, caplog):
    run(tmp_path, Grid(), 2)
    found, _ = run(tmp_path, Grid([900, 100, 300, 200]), 4, True)
    assert found["w"].tolist() == [2, 2, 2]  # 0 + 1, twice
    (told,) = events(tmp_path, ClientStatesRestored)
    assert (told.nodes, sorted(told.missing)) == ((), ["100", "200", "300", "900"])
    assert "4 nodes start without a client state: node 100: no state of it is held" in caplog.text


def test_who_comes_late_is_given_its_own_then(tmp_path):
    run(tmp_path, Grid(), 2)
    late = Grid()
    late.away = {FIRST + 2, FIRST + 3}
    run(tmp_path, late, 3, True)
    assert [late.count(node) for node in late.contexts] == [3, 3, 0, 0]
    # The checkpoint of round 3 holds the states of those who are away, too.
    there = Grid()
    run(tmp_path, there, 4, True)
    assert [there.count(node) for node in there.contexts] == [4, 4, 3, 3]
    assert [event.nodes for event in events(tmp_path, ClientStatesRestored)] == [
        (FIRST, FIRST + 1),
        tuple(there.contexts),
    ]


def test_within_one_run_too_nodes_may_come_late(tmp_path):
    run(tmp_path, Grid(), 2)
    grid = Grid()
    grid.away = {FIRST + 3}

    class Arrives(Audit):
        def aggregated(self, aggregation):
            super().aggregated(aggregation)
            grid.away = set()

    strategy = RobustStrategy(
        "median()",
        fraction_evaluate=0.0,
        min_available_nodes=2,
        audit=Arrives(tmp_path, resume=True, client_states=True, sync=False),
    )
    drive(strategy, None, MODEL, N, rounds=4, grid=grid)
    assert [event.nodes for event in events(tmp_path, ClientStatesRestored)] == [
        (FIRST, FIRST + 1, FIRST + 2),
        (FIRST + 3,),
    ]
    assert [grid.count(node) for node in grid.contexts] == [4, 4, 4, 3]


# -- whose is whose ----------------------------------------------------------------------------------


class Claiming(Grid):
    """One node claims the partition of another."""

    def __init__(self, ids, claims):
        super().__init__(ids)
        for node, partition in claims.items():
            self.contexts[node].node_config["partition-id"] = partition


def test_a_claim_on_anothers_partition_gets_nobody_anothers_state(tmp_path):
    ids = [900, 100, 200, 300]  # the victim holds 0, the attacker 1
    first = Grid(ids)
    run(tmp_path, first, 2, identify=discover(first, ids))
    second = Claiming(ids, {100: 0})
    run(tmp_path, second, 3, True, identify=discover(second, ids))
    names = {node: context.state["told"]["name"] for node, context in second.contexts.items()}
    assert names[900] == "client 0"
    assert second.count(900) == second.count(100) == 3  # each by its id
    # With other ids both begin anew, whoever is counted as what.
    third = Claiming([9, 1, 2, 3], {1: 0})
    run(tmp_path, third, 4, True, identify=discover(third, third.get_node_ids()))
    assert [third.count(node) for node in (9, 1, 2, 3)] == [1, 1, 4, 4]
    assert sorted(events(tmp_path, ClientStatesRestored)[-1].missing) == ["1", "9"]


def test_who_was_known_then_is_given_nothing_of_one_that_is_away(tmp_path):
    ids = [900, 100, 200, 300]
    first = Grid(ids)
    run(tmp_path, first, 2, identify=discover(first, ids))
    second = Claiming(ids, {100: 0})
    second.away = {900}
    run(tmp_path, second, 3, True, identify=discover(second, second.get_node_ids()))
    assert second.count(100) == 3
    held = Grid(ids)
    run(tmp_path, held, 4, True, identify=discover(held, ids))
    assert [held.count(node) for node in ids] == [3, 4, 4, 4]  # the victim's was kept for it


# -- whatever they answer ----------------------------------------------------------------------------


def content(**records):
    return lambda message: [Message(RecordDict(records), reply_to=message)]


def as_another(message):
    reply = Message(RecordDict({"m": MetricRecord({"m": 1.0})}), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = FIRST + 1
    return [reply]


WRONG = {
    "none at all": (lambda message: [], "no answer"),
    "an error": (lambda message: [Message(Error(2, "out of luck"), reply_to=message)], "it failed: out of luck"),
    "in anothers name": (as_another, "no answer"),
    "too long": (content(a=encode_record({"w": np.zeros(2000)})), "its state is too long"),
    "a long name": (content(**{"n" * 20_000: MetricRecord()}), "its state is too long"),
    "many records": (content(**{str(place): MetricRecord() for place in range(3000)}), "its state is too long"),
    "long lists": (content(m=MetricRecord({"m": [0.0] * 2000})), "its state is too long"),
    "a number too large": (content(m=MetricRecord({"m": 10**5000})), "ValueError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_state_that_cannot_be_kept_is_not_and_says_why(name, tmp_path, caplog):
    answer, words = WRONG[name]
    run(tmp_path, Grid(answer=answer), 2, most_state_bytes=10_000)
    for event in events(tmp_path, ClientStatesKept)[1:]:
        assert event.clients == N - 1
        assert words in event.missing[str(FIRST)]
    assert f"it lacks the client states of 1 nodes: node {FIRST}: " in caplog.text
    grid = Grid()
    found, _ = run(tmp_path, grid, 4, True, most_state_bytes=10_000)
    (restored,) = events(tmp_path, ClientStatesRestored)
    assert restored.nodes == (FIRST + 1, FIRST + 2, FIRST + 3)
    assert restored.missing == {str(FIRST): "no state of it is held"}
    assert found["w"].tolist() == [6, 6, 6]
    assert grid.count(FIRST) == 2


ODD = {
    "empty lists": ConfigRecord({"classes": [], "text": "", "bytes": b"", "lists": ["", ""]}),
    "numbers of numpy": MetricRecord({"loss": np.float64(1.5), "losses": [np.float64(1.5)]}),
    "booleans": ConfigRecord({"flags": [True] * 500}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_states_of_honest_clients_are_kept(name, tmp_path):
    run(tmp_path, Grid(answer=content(odd=ODD[name])), 1)
    given = []

    def answer(message):
        if message.metadata.message_type == RESTORE:
            given.append(message.content)
        return [Message(RecordDict(), reply_to=message)]

    run(tmp_path, Grid(answer=answer), 2, True)
    assert [dict(each["odd"]) for each in given] == [dict(ODD[name])]


def test_what_is_kept_is_as_long_as_what_was_sent(tmp_path):
    flags = ConfigRecord({"flags": [True] * 40_000, "text": "\0" * 40_000})
    run(tmp_path, Grid(answer=content(odd=flags)), 1)
    written = sum(path.stat().st_size for path in (checkpoint_folder(tmp_path) / "round-00000001").iterdir())
    assert written < 200_000


def test_a_node_answers_once(tmp_path):
    def twice(message):
        return [Message(RecordDict({"m": MetricRecord({"m": number})}), reply_to=message) for number in (3.0, 4.0)]

    given = []

    def answer(message):
        if message.metadata.message_type == RESTORE:
            given.append(message.content["m"]["m"])
        return [Message(RecordDict(), reply_to=message)]

    run(tmp_path, Grid(answer=twice), 1)
    run(tmp_path, Grid(answer=answer), 2, True)
    assert given == [3.0]


def test_who_does_not_take_its_state_back_is_named(tmp_path):
    run(tmp_path, Grid(), 1)

    def refuses(message):
        return [Message(Error(2, "no"), reply_to=message)] if message.metadata.message_type == RESTORE else []

    run(tmp_path, Grid(answer=refuses), 2, True)
    (event,) = events(tmp_path, ClientStatesRestored)
    assert event.missing == {str(FIRST): "it did not take its state back: it failed: no"}
    assert verify(log_file(tmp_path)).intact


def test_an_app_that_was_not_asked_to_hands_over_nothing(tmp_path):
    run(tmp_path, Grid(app=clients(hand_over_state=False)), 1)
    event = events(tmp_path, ClientStatesKept)[-1]
    assert event.clients == 0
    assert all(why.startswith("it failed: ") for why in event.missing.values())
    assert len(event.missing) == N


def test_nodes_in_quarantine_and_those_never_asked_are_left_alone(tmp_path):
    grid = Grid(answer=lambda message: [])
    strategy = RobustStrategy(
        "median()",
        fraction_train=0.5,
        spares=0,
        min_available_nodes=N,
        fraction_evaluate=0.0,
        quarantine_after=1,
        audit=Audit(tmp_path, client_states=True, sync=False),
    )
    strategy.guard.nodes.refusals = {FIRST: 1}
    drive(strategy, None, MODEL, N, rounds=1, grid=grid)
    trained_, asked = ({node for kind, node in grid.asked if kind == each} for each in ("train", STATE))
    assert asked == trained_
    assert FIRST not in asked
    assert len(asked) == 2


def test_the_bound_is_the_callers_or_a_multiple_of_the_model():
    assert most_bytes(10) == 40 + 2**20
    assert most_bytes(2**30) == 4 * 2**30 + 2**20
    with pytest.raises(ConfigurationError, match="most_state_bytes must be an integer >= 1; got most_state_bytes=0"):
        Audit("run", most_state_bytes=0)


def test_the_record_says_so_where_states_are_no_longer_kept(tmp_path):
    from flwr_robust.audit.card import make_card

    run(tmp_path, Grid(), 1)
    told = make_card(tmp_path)["deployment"]["evidence"]["value"]
    assert told["client_states"] == f"of {N} clients, in the latest checkpoint"
    run(tmp_path, Grid(), 2, True, client_states=False, keep=1)
    assert make_card(tmp_path)["deployment"]["evidence"]["value"]["client_states"] == "not in the latest checkpoint"
