"""AdversarialGrid: what it rewrites, what it leaves alone, and that it works under any strategy."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.exception import InconsistentMessageReplies

from flwr_robust import ConfigurationError, Rows, UnknownNameError, parse
from flwr_robust.attacks.fault.base import Fault
from flwr_robust.attacks.message.base import Knowledge, View, message_attacks
from flwr_robust.flower import AdversarialGrid, InProcessGrid, RobustStrategy, parse_attack, serve
from flwr_robust.runs.config import RunConfig
from flwr_robust.seeds import torch_generator
from tests.flower_helpers import FIRST, MALFORMED, client_app, content, drive, record, same_bits, values

MODEL = {"w": np.float32([[1, 2, 3], [4, 5, 6]]), "b": np.float16([0.5, -0.5]), "steps": np.int64([7])}
N = 8


def sent_by(partition, server_round=1, model=MODEL):
    rng = np.random.default_rng((partition, server_round))
    return {
        name: (values + rng.standard_normal(values.shape)).astype(values.dtype)
        if values.dtype.kind == "f"
        else values + partition
        for name, values in model.items()
    }


def app(**odd):
    """Clients that answer with the model plus noise of their own; some of them with something else."""

    def train(partition, model, config, context):
        if partition in odd.get("odd", {}):
            return odd["odd"][partition](sent_by(partition, config["server-round"], model))
        arrays = sent_by(partition, config["server-round"], model)
        return content(arrays, num_examples=partition + 1, partition_id=partition)

    return client_app(train, lambda partition, model, config, context: content(None, loss=float(partition)))


class Recorder(flower.FedAvg):
    """FedAvg that keeps what it was handed, and the model it sent."""

    def __init__(self, **options):
        options.setdefault("fraction_evaluate", 0.0)
        super().__init__(min_train_nodes=N, min_available_nodes=N, **options)
        self.sent, self.handed, self.evaluations = [], [], []

    def configure_train(self, server_round, arrays, config, grid):
        self.sent.append(values(arrays))
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        self.handed.append(sorted(replies, key=lambda reply: reply.metadata.src_node_id))  # sent in a random order
        return super().aggregate_train(server_round, [r for r in self.handed[-1] if r.has_content()])

    def aggregate_evaluate(self, server_round, replies):
        self.evaluations.append(sorted(replies, key=lambda reply: reply.metadata.src_node_id))
        return super().aggregate_evaluate(server_round, self.evaluations[-1])


def attacked(attack, attackers=2, *, strategy=None, rounds=1, clients=None, model=MODEL, inner=None, **options):
    inner = InProcessGrid(app() if clients is None else clients, N) if inner is None else inner
    grid = AdversarialGrid(inner, attack, attackers, **options)
    strategy = Recorder() if strategy is None else strategy
    logging.getLogger("flwr").setLevel(logging.ERROR)
    drive(strategy, None, model, N, rounds, grid=grid)
    return grid, strategy


def arrays_of(replies):
    return {
        reply.metadata.src_node_id - FIRST: values(reply.content["arrays"]) for reply in replies if reply.has_content()
    }


def row(arrays, model, message="parameters"):
    """The learnt arrays as one row, relative to the model."""
    return np.concatenate(
        [
            (arrays[name].astype(float) - (model[name].astype(float) if message == "parameters" else 0)).ravel()
            for name in ("w", "b")
        ]
    )


def rows_of(arrays, model, partitions, message="parameters"):
    return np.stack([row(arrays[p], model, message) for p in partitions])


# -- what is rewritten -------------------------------------------------------------------------------


def test_it_is_a_grid_that_hands_everything_on():
    inner = InProcessGrid(app(), N, {"rate": 0.5})
    grid = AdversarialGrid(inner, "zero()", 2)
    assert isinstance(grid, Grid)
    assert list(grid.get_node_ids()) == list(inner.get_node_ids())
    assert grid.contexts is inner.contexts
    assert grid.run is inner.run
    assert [node.node_id for node in grid.get_nodes()] == list(inner.get_node_ids())
    message = grid.create_message(RecordDict(), "query", FIRST, "1")
    assert message.metadata.dst_node_id == FIRST
    with pytest.raises(AttributeError):
        _ = grid.nothing


@pytest.mark.parametrize("message", ["parameters", "delta"])
@pytest.mark.parametrize("attack", ["ipm(epsilon=0.5)", "alie(z=1.5)", "sign_flip(c=3.0)", "min_max()", "scale(c=2.0)"])
def test_attackers_send_the_crafted_rows_and_nobody_else_is_touched(attack, message):
    plain = attacked("zero()", attackers=0)[1]
    grid, strategy = attacked(attack, message=message)
    before, after = arrays_of(plain.handed[0]), arrays_of(strategy.handed[0])
    assert list(after) == list(before) == list(range(N))
    for partition in range(N - 2):
        assert same_bits(after[partition], before[partition])
    honest = rows_of(before, MODEL, range(N - 2), message)
    own = rows_of(before, MODEL, range(N - 2, N), message)
    view = View(
        Knowledge.OMNISCIENT,
        own=Rows.from_tensor(torch.from_numpy(own)),
        honest=Rows.from_tensor(torch.from_numpy(honest)),
    )
    crafted, _ = message_attacks.parse(attack).craft(view, {}, torch_generator(0))
    expected = crafted.slice(0, crafted.d).numpy()
    for index, partition in enumerate((N - 2, N - 1)):
        at = 0
        for name in ("w", "b"):
            base = MODEL[name].astype(float) if message == "parameters" else 0.0
            part = expected[index, at : at + MODEL[name].size].reshape(MODEL[name].shape)
            assert after[partition][name].dtype == MODEL[name].dtype
            exact = "min_max" not in attack  # there the rounding to come is taken into account
            tolerance = {"rtol": 0 if exact else 0.05, "atol": 0 if exact else 0.05}
            np.testing.assert_allclose(after[partition][name], (base + part).astype(MODEL[name].dtype), **tolerance)
            at += MODEL[name].size
        assert not same_bits(after[partition], before[partition])
        assert after[partition]["steps"] == before[partition]["steps"]
    for reply in strategy.handed[0]:  # nor are the metrics touched
        partition = reply.metadata.src_node_id - FIRST
        assert dict(reply.content["metrics"]) == {"num-examples": partition + 1, "partition-id": partition}
        assert list(reply.content["arrays"]) == list(MODEL)
    assert [(entry.round, entry.positions) for entry in grid.history] == [(1, (6, 7))]
    assert grid.history[0].nodes == (FIRST + 6, FIRST + 7)


def test_the_bound_is_kept_as_written():
    _, strategy = attacked("min_max()", model={"w": MODEL["w"] * 100, "b": MODEL["b"]})
    after, model = arrays_of(strategy.handed[0]), strategy.sent[0]
    honest = rows_of(after, model, range(N - 2))
    widest = max(np.linalg.norm(a - b) for a in honest for b in honest)
    for point in rows_of(after, model, (6, 7)):
        assert max(np.linalg.norm(point - a) for a in honest) <= widest


def test_values_saturate_and_what_is_not_finite_stays():
    _, strategy = attacked("constant(c=1e39)")
    for partition, arrays in arrays_of(strategy.handed[0]).items():
        if partition >= N - 2:
            assert (arrays["w"] == np.finfo(np.float32).max).all()
            assert (arrays["b"] == np.finfo(np.float16).max).all()
    for attack, bad in (("nan()", np.isnan), ("inf()", np.isposinf)):
        _, strategy = attacked(attack)
        after = arrays_of(strategy.handed[0])
        assert all(bad(after[7][name]).all() for name in ("w", "b"))
        assert after[7]["steps"] == 14


def test_clients_own_copies_are_not_touched():
    kept = []

    def train(partition, model, config, context):
        kept.append(content(sent_by(partition), partition_id=partition))
        return kept[-1]

    attacked("scale(c=100.0)", clients=client_app(train))
    for made in kept:
        assert made == content(sent_by(made["metrics"]["partition-id"]), partition_id=made["metrics"]["partition-id"])
    assert len(kept) == N


def test_evaluation_and_queries_pass_untouched():
    plain, strategy = (
        attacked("sign_flip()", attackers, strategy=Recorder(fraction_evaluate=1.0))[1] for attackers in (0, 8)
    )
    for first, second in zip(plain.evaluations[0], strategy.evaluations[0], strict=True):
        assert dict(first.content["metrics"]) == dict(second.content["metrics"])
    grid = AdversarialGrid(InProcessGrid(serve(lambda context: NumPyClient()), 3), "crash()", 3)
    replies = list(grid.send_and_receive([Message(RecordDict(), FIRST + i, "query.identity") for i in range(3)]))
    assert [reply.content["metrics"]["partition-id"] for reply in replies] == [0, 1, 2]
    assert grid.history == []


def test_the_model_statistics_are_left_alone():
    model = {**MODEL, "bn.running_mean": np.float32([1, 2])}
    _, strategy = attacked("zero()", model=model, rounds=2)
    # In round 2 FedAvg sends the integers as floats: they are still no part of what is learnt.
    assert strategy.sent[1]["steps"].dtype.kind == "f"
    for at, sent in enumerate(strategy.sent):
        after = arrays_of(strategy.handed[at])[7]
        assert np.array_equal(after["w"], sent["w"])
        for name in ("bn.running_mean", "steps"):
            assert np.array_equal(after[name], sent_by(7, at + 1, sent)[name])
            assert not np.array_equal(after[name], sent[name])


# -- under any strategy ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        lambda: RobustStrategy("krum(f=2)", min_train_nodes=N, fraction_evaluate=0.0),
        lambda: flower.FedAvg(min_train_nodes=N, min_available_nodes=N, fraction_evaluate=0.0),
        lambda: flower.Krum(num_malicious_nodes=2, min_train_nodes=N, min_available_nodes=N, fraction_evaluate=0.0),
        lambda: flower.FedMedian(min_train_nodes=N, min_available_nodes=N, fraction_evaluate=0.0),
        lambda: flower.FedTrimmedAvg(beta=0.3, min_train_nodes=N, min_available_nodes=N, fraction_evaluate=0.0),
        lambda: flower.FedAdam(min_train_nodes=N, min_available_nodes=N, fraction_evaluate=0.0),
    ],
)
def test_it_works_under_any_strategy(strategy):
    model = {"w": MODEL["w"]}
    far, _ = drive(
        strategy(), None, model, N, 3, grid=AdversarialGrid(InProcessGrid(app(), N), "constant(c=1000.0)", 2)
    )
    plain, _ = drive(strategy(), None, model, N, 3, grid=AdversarialGrid(InProcessGrid(app(), N), "zero()", 0))
    away = np.abs(far["w"] - plain["w"]).max()
    averages = type(strategy()).__name__ in ("FedAvg",)
    assert (away > 100) == averages


def test_numpy_clients_are_attacked_alike():
    class Client(NumPyClient):
        def __init__(self, partition):
            self.partition = partition

        def fit(self, parameters, config):
            return [p + self.partition for p in parameters], 1, {}

    clients = serve(lambda context: Client(int(context.node_config["partition-id"])).to_client())
    model = {"w": np.float32([1.0, 2.0])}
    grid, strategy = attacked("sign_flip()", 3, clients=clients, model=model)
    after = arrays_of(strategy.handed[0])
    for partition in range(N):
        sign = -1 if partition >= N - 3 else 1
        np.testing.assert_array_equal(after[partition]["w"], model["w"] + sign * partition)
    assert grid.history[0].positions == (5, 6, 7)


def test_push_and_pull_hand_a_round_over_together():
    inner = InProcessGrid(app(), N)
    grid = AdversarialGrid(inner, "zero()", 2)
    config = ConfigRecord({"server-round": 1})
    messages = [Message(RecordDict({"arrays": record(MODEL), "config": config}), FIRST + i, "train") for i in range(N)]
    identifiers = list(grid.push_messages([*messages, Message(RecordDict(), FIRST, "query.identity")]))
    assert list(grid.pull_messages(identifiers[:3])) == []
    assert [r.metadata.message_type for r in grid.pull_messages(identifiers[8:])] == ["query.identity"]
    replies = list(grid.pull_messages(identifiers[3:8]))
    assert len(replies) == N
    after = arrays_of(replies)
    assert np.array_equal(after[7]["w"], MODEL["w"])
    assert not np.array_equal(after[5]["w"], MODEL["w"])
    assert list(grid.pull_messages(identifiers)) == []


def test_messages_of_both_kinds_may_be_sent_together():
    grid = AdversarialGrid(InProcessGrid(app(), N), "zero()", 2)
    body = RecordDict({"arrays": record(MODEL), "config": ConfigRecord({"server-round": 1})})
    messages = [Message(body, FIRST + i, kind) for i in range(N) for kind in ("train", "evaluate")]
    replies = list(grid.send_and_receive(messages))
    assert sorted(r.metadata.message_type for r in replies) == ["evaluate"] * N + ["train"] * N
    assert grid.history[0].positions == (6, 7)


# -- who and when ------------------------------------------------------------------------------------


def test_start_and_stop():
    grid, strategy = attacked("zero()", rounds=5, start=2, stop=3)
    assert [entry.round for entry in grid.history] == [2, 3]
    for at, (sent, replies) in enumerate(zip(strategy.sent, strategy.handed, strict=True), 1):
        unmoved = [p for p, arrays in arrays_of(replies).items() if np.array_equal(arrays["w"], sent["w"])]
        assert unmoved == ([6, 7] if at in (2, 3) else [])


def test_attackers_may_be_named():
    assert attacked("zero()", [0, 5])[0].history[0].positions == (0, 5)
    assert attacked("zero()", {FIRST + 1, FIRST + 4}, by="node")[0].history[0].positions == (1, 4)
    assert attacked("zero()", 0)[0].history[0].positions == ()
    assert len(attacked("zero()", N)[0].history[0].positions) == N


def test_redraw():
    grids = [attacked("zero()", 3, rounds=6, redraw=True, seed=seed)[0] for seed in (0, 0, 1)]
    first, again, other = ([entry.positions for entry in grid.history] for grid in grids)
    assert first == again != other
    assert len(set(first)) > 1
    assert all(len(positions) == 3 for positions in first)
    config = RunConfig(clients=N, attackers=3, attack="label_flip()", redraw=True)
    assert first == [tuple(config.attackers_in(at)) for at in range(1, 7)]  # the same clients poison their data
    fixed, _ = attacked("zero()", 3, rounds=3)
    assert [entry.positions for entry in fixed.history] == [(5, 6, 7)] * 3


def test_positions_are_partitions_where_they_are_known():
    # Node FIRST + i says that it holds partition 7 - i.
    def train(partition, model, config, context):
        return content(sent_by(partition), partition_id=N - 1 - partition)

    grid, _ = attacked("zero()", clients=client_app(train))
    assert grid.history[0].nodes == (FIRST + 1, FIRST)
    assert grid.history[0].positions == (6, 7)
    assert grid.partitions[FIRST] == 7

    def silent(partition, model, config, context):
        return content(sent_by(partition))

    grid, _ = attacked("zero()", clients=client_app(silent))
    assert grid.history[0].nodes == (FIRST + 6, FIRST + 7)
    grid = AdversarialGrid(InProcessGrid(client_app(silent), N), "zero()", 1)
    grid.partitions = {FIRST + i: N - 1 - i for i in range(N)}
    drive(Recorder(), None, MODEL, N, grid=grid)
    assert grid.history[0].nodes == (FIRST,)


def test_sampled_rounds_attack_with_the_attackers_that_are_in_the_sample():
    strategy = RobustStrategy("median()", fraction_train=0.5, min_train_nodes=4, fraction_evaluate=0.0)
    grid, _ = attacked("zero()", 4, strategy=strategy, rounds=8)
    asked = [{node - FIRST for node in entry.asked} for entry in strategy.history]
    assert [set(entry.positions) for entry in grid.history] == [nodes & {4, 5, 6, 7} for nodes in asked]


def test_rounds_are_counted_where_no_message_names_them():
    grid = AdversarialGrid(InProcessGrid(client_app(lambda p, m, c, x: sent_by(p)), 3), "zero()", 1, start=2)
    for _ in range(3):
        body = RecordDict({"arrays": record(MODEL), "config": ConfigRecord()})
        list(grid.send_and_receive([Message(body, FIRST + i, "train") for i in range(3)]))
    assert [entry.round for entry in grid.history] == [2, 3]


# -- what is seen ------------------------------------------------------------------------------------


class Spy(message_attacks.get("zero")):
    """Sends zeros, and keeps the views."""

    views: ClassVar[list] = []

    @property
    def knowledge(self):
        return Knowledge.NOTHING

    def craft(self, view, state, rng):
        self.views.append(view)
        return super().craft(view, {"calls": torch.tensor(len(self.views))}, rng)


@pytest.fixture
def spy():
    Spy.views = []
    return Spy()


def test_the_view_shows_the_round_as_it_is(spy):
    grid, strategy = attacked(spy, [1, 4], rounds=2, knowledge="defence", rule="krum(f=2)")
    view = spy.views[1]
    assert (view.round, view.n, view.attackers, view.replies) == (2, N, (1, 4), N)
    assert view.granted == Knowledge.DEFENCE
    assert str(view.rule) == "krum(f=2)"
    honest = [sent_by(p, 2, strategy.sent[1]) for p in (0, 2, 3, 5, 6, 7)]
    expected = np.stack([row(arrays, strategy.sent[1]) for arrays in honest])
    np.testing.assert_array_equal(view.honest.slice(0, view.d).numpy(), expected)
    assert view.honest.counts.tolist() == [1, 3, 4, 6, 7, 8]
    assert [layer.name for layer in view.own.layout] == ["w", "b"]
    np.testing.assert_array_equal(view.model.numpy(), row(strategy.sent[1], strategy.sent[1], "delta"))
    assert int(grid.state["calls"]) == 2


def test_gradients_turn_the_model_around(spy):
    attacked(spy, message="gradient")
    np.testing.assert_array_equal(spy.views[0].model.numpy(), -row(MODEL, MODEL, "delta"))
    np.testing.assert_array_equal(spy.views[0].honest.slice(0, 8)[0].numpy(), row(sent_by(0), MODEL, "gradient"))


# What is odd is not in the arrays that are learnt: such replies are seen, and rewritten.
READABLE = {name for name in MALFORMED if "metric" in name.lower() or "num-examples" in name}
READABLE |= {"array too many", "float64 beyond float32"}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_replies_are_left_out_and_left_alone(spy, name):
    make, _ = MALFORMED[name]
    odd = {0: lambda arrays: make({"w": arrays["w"]}), 7: lambda arrays: make({"w": arrays["w"]})}
    made = {}

    def keep(partition):
        def wrapped(arrays):
            made[partition] = odd[partition](arrays)
            return made[partition]

        return wrapped

    grid = AdversarialGrid(InProcessGrid(app(odd={p: keep(p) for p in odd}), N), spy, 2)
    body = RecordDict({"arrays": record({"w": MODEL["w"]}), "config": ConfigRecord({"server-round": 1})})
    replies = list(grid.send_and_receive([Message(body, FIRST + i, "train") for i in range(N)]))
    assert len(replies) == N
    view = spy.views[0]
    if name in READABLE:
        assert view.replies == N
        return
    assert (view.replies, view.n, view.attackers) == (N - 2, N, (5,))
    assert grid.history[0].positions == (6,)
    untouched = replies[7].content
    assert list(untouched) == list(made[7])
    if "arrays" in untouched:
        assert {k: a.data for k, a in untouched["arrays"].items()} == {k: a.data for k, a in made[7]["arrays"].items()}


def test_failures_are_left_out_and_left_alone(spy):
    def fail(arrays):
        raise RuntimeError("no")

    grid, strategy = attacked(spy, clients=app(odd={2: fail, 6: fail}))
    assert (spy.views[0].replies, spy.views[0].attackers) == (6, (5,))
    assert [reply.has_error() for reply in strategy.handed[0]] == [p in (2, 6) for p in range(N)]
    assert grid.history[0].positions == (7,)


def test_a_round_without_anybody_to_look_at_is_not_attacked(caplog):
    logging.getLogger("flwr").setLevel(logging.WARNING)
    clients = {p: (lambda arrays: content({"other": np.float32([1])})) for p in range(6)}
    grid = AdversarialGrid(InProcessGrid(app(odd=clients), N), "alie()", 2)
    body = RecordDict({"arrays": record(MODEL), "config": ConfigRecord({"server-round": 1})})
    replies = list(grid.send_and_receive([Message(body, FIRST + i, "train") for i in range(N)]))
    assert same_bits(values(replies[7].content["arrays"]), sent_by(7))
    assert grid.history[0].positions == ()


def test_a_state_lasts_and_can_be_taken_over():
    grid, _ = attacked("mimic(warmup=2)", rounds=3)
    assert int(grid.state["rounds"]) == 2
    other = AdversarialGrid(InProcessGrid(app(), N), "mimic(warmup=2)", 2)
    other.state = grid.state
    drive(Recorder(), None, MODEL, N, grid=other)
    assert torch.equal(other.state["scores"], grid.state["scores"])


def test_runs_repeat_to_the_bit_and_seeds_differ():
    runs = [attacked("gaussian(sigma=1.0)", rounds=3, seed=seed)[1] for seed in (0, 0, 1)]
    last = [values(run.handed[-1][7].content["arrays"]) for run in runs]
    assert same_bits(last[0], last[1])
    assert not same_bits(last[0], last[2])
    # Rounds draw for themselves.
    first = row(values(runs[0].handed[0][7].content["arrays"]), runs[0].sent[0])
    assert np.abs(first - row(last[0], runs[0].sent[2])).max() > 0.1


# -- a defence that is known -------------------------------------------------------------------------


def test_the_strategy_in_use_is_looked_at_live(spy):
    strategy = RobustStrategy("centered_clipping(tau=0.5)", min_train_nodes=N, fraction_evaluate=0.0)
    states = []

    class Live(Spy):
        def craft(self, view, state, rng):
            states.append(view.rule_state)
            assert view.rule_state is strategy.state
            return super().craft(view, state, rng)

    attacked(Live(), strategy=strategy, rounds=3, knowledge="defence", rule=strategy)
    assert states[0] == {}
    assert not torch.equal(states[1]["centre"], states[2]["centre"])


def test_a_rules_state_is_followed_as_the_server_has_it(spy):
    strategy = RobustStrategy("centered_clipping(tau=0.5)", min_train_nodes=N, fraction_evaluate=0.0)
    # From round 2 on: what happened in round 1, unattacked, is in the state.
    grid, _ = attacked(
        spy, strategy=strategy, rounds=3, start=2, knowledge="defence", rule="centered_clipping(tau=0.5)"
    )
    assert [view.round for view in spy.views] == [2, 3]
    assert float(spy.views[0].rule_state["centre"].norm()) > 0
    torch.testing.assert_close(grid._rule_state["centre"], strategy.state["centre"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "attack", ["optimised(base='alie()')", "tailored(epsilon='search')", "optimised(base='sign_flip()')"]
)
@pytest.mark.parametrize("rule", ["krum(f=2)", "nnm(f=2) | krum(f=2)", "median()"])
def test_a_known_defence_is_hurt_more(attack, rule):
    def harm(text, **options):
        strategy = Recorder()
        attacked(text, strategy=strategy, **options)
        everyone = rows_of(arrays_of(strategy.handed[0]), MODEL, range(N))
        value = parse(rule)(Rows.from_tensor(torch.from_numpy(everyone)))[0].value.numpy()
        return np.linalg.norm(value - everyone[: N - 2].mean(0))

    base = {"tailored": "ipm(epsilon=0.05)"}.get(attack.partition("(")[0], attack.partition("'")[2].partition("'")[0])
    grid, _ = attacked(attack, knowledge="defence", rule=rule)
    assert grid.history[0].strength > 0
    assert harm(attack, knowledge="defence", rule=rule) >= harm(base) * 0.999


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "options", "words"),
    [
        ("alie()", {"knowledge": "own"}, r"alie\(\) needs knowledge='omniscient', but 'own' is granted; grant more"),
        ("sign_flip()", {"knowledge": Knowledge.NOTHING}, "needs knowledge='own', but 'nothing' is granted"),
        ("optimised()", {}, r"optimised\(\) needs knowledge='defence', but 'omniscient' is granted"),
        ("ipm(epsilon=1.0, known=5)", {"knowledge": "partial", "known": 3}, "needs 5 honest replies, but known=3"),
        ("sybil(k=2, base='ipm(epsilon=1, known=5)')", {"knowledge": "partial", "known": 3}, "needs 5 honest replies"),
        ("zero()", {"knowledge": "defence"}, "knowledge='defence' needs the defence in use; pass rule"),
        ("optimised()", {"knowledge": "defence", "rule": "fltrust()"}, "compares with an update of the server's own"),
        ("zero()", {"knowledge": "all"}, "unknown knowledge 'all'"),
        ("zero()", {"knowledge": "partial"}, "known, the number of honest replies seen, goes with knowledge='partial'"),
        ("zero()", {"known": 3}, "goes with knowledge='partial'; got knowledge='omniscient', known=3"),
        ("zero()", {"knowledge": "partial", "known": 0}, "known must be an integer >= 1"),
        ("zero()", {"start": 0}, "start must be an integer >= 1"),
        ("zero()", {"start": 5, "stop": 4}, "stop must be an integer >= 5; got stop=4"),
        ("zero()", {"redraw": 1}, "redraw must be True or False"),
        ("zero()", {"message": "weights"}, "message must be one of"),
        ("zero()", {"by": "name"}, "by must be one of node, position"),
        ("zero()", {"by": "node"}, "by='node' goes with ids that stay; got attackers=2"),
        ("zero()", {"seed": -1}, "seed must be an integer >= 0"),
        ("zero()", {"attackers": -1}, "attackers must be an integer >= 0; got attackers=-1"),
        ("zero()", {"attackers": [1, 2.0]}, "attackers must be an integer >= 0; got attackers=2.0"),
        ("label_flip()", {}, "unknown attack on messages 'label_flip'; allowed: alie, .*crash"),
        ("ipm()", {}, "epsilon must be given"),
    ],
)
def test_refusals_at_construction(attack, options, words):
    options = {"attackers": 2, **options}
    with pytest.raises(ConfigurationError, match=words):
        AdversarialGrid(InProcessGrid(app(), N), attack, **options)


def test_a_strategy_of_other_messages_is_refused():
    strategy = RobustStrategy("krum(f=2)", message="delta")
    with pytest.raises(ConfigurationError, match="message must be that of the strategy, 'delta'"):
        AdversarialGrid(InProcessGrid(app(), N), "zero()", 2, rule=strategy)


@pytest.mark.parametrize(
    ("attackers", "options", "words"),
    [
        (9, {}, "attackers must be at most 8 nodes; got attackers=9"),
        ([0, 8], {}, r"attackers must be positions below 8; got attackers=\[0, 8\]"),
        ([1], {"by": "node"}, r"attackers must be ids of nodes; got attackers=\[1\]"),
    ],
)
def test_attackers_that_are_no_nodes_are_refused_before_anybody_trains(attackers, options, words):
    def train(*_):
        raise AssertionError("a client was asked")

    grid = AdversarialGrid(InProcessGrid(client_app(train), N), "zero()", attackers, **options)
    with pytest.raises(ConfigurationError, match=words):
        drive(Recorder(), None, MODEL, N, grid=grid)


def test_models_that_cannot_be_attacked_are_refused():
    with pytest.raises(ConfigurationError, match="at least one floating-point array; got none"):
        attacked("zero()", model={"steps": np.int64([1])})
    grid = AdversarialGrid(InProcessGrid(app(), N), "zero()", 1)
    body = RecordDict({"one": record(MODEL), "arrays": record(MODEL), "config": ConfigRecord({"server-round": 1})})
    with pytest.raises(ConfigurationError, match="must hold one ArrayRecord, the model; got 2"):
        grid.send_and_receive([Message(body, FIRST + i, "train") for i in range(N)])


# -- faults ------------------------------------------------------------------------------------------


def test_crashed_clients_are_gone_or_answer_with_an_error():
    grid, strategy = attacked("crash()")
    assert sorted(arrays_of(strategy.handed[0])) == list(range(N - 2))
    assert len(strategy.handed[0]) == N - 2
    assert grid.history[0].positions == (6, 7)
    _, strategy = attacked("crash(error=True)")
    assert [reply.has_error() for reply in strategy.handed[0]] == [False] * 6 + [True] * 2
    last = strategy.handed[0][-1]
    assert last.error.reason == "the client crashed"
    assert last.metadata.src_node_id == FIRST + 7
    assert last.metadata.reply_to_message_id


def test_clients_crash_independently():
    grid, strategy = attacked("crash(p=0.5)", N, rounds=6, strategy=Recorder(), seed=1)
    left = [sorted(arrays_of(replies)) for replies in strategy.handed]
    assert len({tuple(partitions) for partitions in left}) > 2
    assert 0.2 < np.mean([len(partitions) for partitions in left]) / N < 0.8
    # On record are those who crashed, not those whom it spared.
    assert [sorted({*range(N)} - {*entry.positions}) for entry in grid.history] == left


def test_delayed_and_stale_replies_are_those_of_earlier_rounds():
    for fault, shift in (("delay(rounds=2)", [None, None, 1, 2]), ("stale(rounds=2)", [1, 1, 1, 4])):
        grid, strategy = attacked(fault, [3], rounds=4)
        for at, (made, replies) in enumerate(zip(shift, strategy.handed, strict=True), 1):
            found = arrays_of(replies)
            if made is None:
                assert 3 not in found
            else:
                assert same_bits(found[3], sent_by(3, made, strategy.sent[made - 1]))
            assert same_bits(found[2], sent_by(2, at, strategy.sent[at - 1]))
        assert all(key.startswith("3/") for key in grid.state)
        honest = [made == at for at, made in enumerate(shift, 1)]
        assert [entry.positions for entry in grid.history] == [() if spared else (3,) for spared in honest]


def test_dropped_layers_stop_flower_but_not_the_robust_strategy():
    with pytest.raises(InconsistentMessageReplies):
        drive(
            flower.FedAvg(min_train_nodes=N, min_available_nodes=N, fraction_evaluate=0.0),
            None,
            MODEL,
            N,
            grid=AdversarialGrid(InProcessGrid(app(), N), "drop_layers(layers=['b'])", 1),
        )
    robust = RobustStrategy("median()", min_train_nodes=N, fraction_evaluate=0.0)
    attacked("drop_layers(layers=['b'])", 1, strategy=robust)
    assert [refusal.node for refusal in robust.history[0].refused] == [FIRST + 7]
    assert "missing ['b']" in robust.history[0].refused[0].detail


def test_a_client_that_has_failed_by_itself_stays_failed():
    def fail(arrays):
        raise RuntimeError("by itself")

    broken = MALFORMED["garbage"][0]
    _, strategy = attacked("stale()", [2, 3], clients=app(odd={2: fail}))
    assert "by itself" in strategy.handed[0][2].error.reason
    grid = AdversarialGrid(InProcessGrid(app(odd={3: broken}), N), "drop_layers(layers=['w'])", [3])
    body = RecordDict({"arrays": record(MODEL), "config": ConfigRecord({"server-round": 1})})
    replies = list(grid.send_and_receive([Message(body, FIRST + i, "train") for i in range(N)]))
    assert list(replies[3].content["arrays"]) == list(MODEL)
    assert grid.history[0].positions == ()


def test_attacks_and_faults_are_parsed_by_one_name():
    assert isinstance(parse_attack("crash"), Fault)
    assert str(parse_attack("ipm(epsilon=0.1)")) == "ipm(epsilon=0.1)"
    with pytest.raises(UnknownNameError, match="Did you mean 'crash'"):
        parse_attack("crush")


def test_what_a_dead_node_sends_passes():
    grid = AdversarialGrid(InProcessGrid(app(), N), "zero()", 2)
    body = RecordDict({"arrays": record(MODEL), "config": ConfigRecord({"server-round": 1})})
    messages = [Message(body, FIRST + i, "train") for i in range(N)] + [Message(body, 99, "train")]
    replies = list(grid.send_and_receive(messages))
    assert len(replies) == N + 1
    assert replies[-1].has_error()


# -- on Ray ------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_on_ray_the_same_replies_are_rewritten():
    root = Path(__file__).parents[2]
    code = (
        "import logging, sys; logging.getLogger('flwr').setLevel(logging.ERROR)\n"
        "from flwr.simulation import run_simulation\n"
        "from flwr.serverapp import ServerApp\n"
        "from flwr_robust.flower import AdversarialGrid, InProcessGrid\n"
        "from tests.flower.test_adversarial import MODEL, N, Recorder, app, arrays_of\n"
        "from tests.flower_helpers import record, values\n"
        "server = ServerApp()\n"
        "@server.main()\n"
        "def main(grid, context):\n"
        "    strategy, grid = Recorder(), AdversarialGrid(grid, 'ipm(epsilon=0.5)', 2)\n"
        "    result = strategy.start(grid=grid, initial_arrays=record(MODEL), num_rounds=2)\n"
        "    handed = strategy.handed[0]\n"
        "    found = {r.content['metrics']['partition-id']: values(r.content['arrays']) for r in handed}\n"
        "    print('FOUND', [e.positions for e in grid.history], [found[p]['w'].tolist() for p in sorted(found)])\n"
        "if sys.argv[1] == 'ray':\n"
        "    run_simulation(server, app(), N, backend_config={'client_resources': {'num_cpus': 1, 'num_gpus': 0}})\n"
        "else:\n"
        "    from flwr_robust.flower import run_in_process\n"
        "    run_in_process(server, app(), N)\n"
    )
    lines = []
    for engine in ("ray", "process"):
        done = subprocess.run([sys.executable, "-c", code, engine], capture_output=True, text=True, cwd=root)
        assert done.returncode == 0, done.stderr[-2000:]
        lines.append(next(line for line in done.stdout.splitlines() if line.startswith("FOUND")))
    assert lines[0] == lines[1]
    assert "[(6, 7), (6, 7)]" in lines[0]


@pytest.mark.parametrize("attack", [5, None])
def test_what_is_no_attack_is_refused(attack):
    with pytest.raises(ConfigurationError, match="attack must be"):
        AdversarialGrid(InProcessGrid(ClientApp(), 4), attack, 1)


@pytest.mark.parametrize("attackers", [1.5, None, "2"])
def test_what_are_no_attackers_is_refused(attackers):
    with pytest.raises(ConfigurationError, match="attackers must be"):
        AdversarialGrid(InProcessGrid(ClientApp(), 4), "zero()", attackers)


def test_what_is_no_rule_is_refused():
    with pytest.raises(ConfigurationError, match="defence string or a Rule"):
        AdversarialGrid(InProcessGrid(ClientApp(), 4), "zero()", 1, rule=3)
