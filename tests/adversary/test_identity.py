"""A claimed identity is not an identity: no draw, no blame and no state follows what a client says it is.

Each attack is played against the product, and against a small model of a server that believes the partition that a node
claims. The attack must win there.
"""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.client import NumPyClient
from flwr.serverapp.strategy import FedAvg

from flwr_robust import Outcome
from flwr_robust.audit import ClientStatesRestored, read_log
from flwr_robust.audit.run import log_file
from flwr_robust.flower import Audit, Guarded, Identity, Median, Nodes, Observer, RobustStrategy, discover, serve
from flwr_robust.flower.quarantine import LeftOut
from flwr_robust.protocol.rounds import sample_clients
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.results import RoundResult, document
from tests.flower_helpers import FIRST, Deployed, client_app, content, drive
from tests.guard_helpers import ONE, SILENT, misbehaving

POOL, ASKED, COLLUDERS, TARGET = 100, 20, 10, 7
SEED = 5


# -- who is asked ------------------------------------------------------------------------------------


def believing(claims, seed, server_round):
    """The old order of the pool: by the partition that a node claims, then by id."""
    pool = sorted(range(FIRST, FIRST + POOL), key=lambda node: (claims[node], node))
    return {pool[place] for place in sample_clients(seed, "train", server_round, POOL, ASKED)}


def chosen_claims():
    """What the colluders, the last ten, say: the places that the draw of the round of their choice will name."""
    places = sample_clients(SEED, "train", TARGET, POOL, ASKED)[:COLLUDERS]
    honest = {FIRST + place: place for place in range(POOL - COLLUDERS)}
    # The j-th of them gets a place if as many honest nodes stand before it as there are places before, but for j. Of
    # two equal claims the smaller id, that of the honest node, comes first.
    colluding = {FIRST + POOL - COLLUDERS + j: place - j - 1 for j, place in enumerate(places)}
    return honest, colluding


def asked_in(claims, rounds_=TARGET):
    """Return the colluders whom the product asks in the round, where everybody claims what it likes."""

    def train(partition, model, config, context):
        return content(model, 10, partition_id=claims[context.node_id])

    strategy = Median(
        f=5, fraction_train=ASKED / POOL, seed=SEED, min_train_nodes=ASKED, min_available_nodes=POOL, **SILENT
    )
    strategy.identify({node: Identity(partition) for node, partition in claims.items()})
    app = client_app(train)
    drive(strategy, app, ONE, POOL, rounds=rounds_, grid=Deployed(app, POOL))
    return set(strategy.history[-1].asked)


def test_colluders_cannot_name_the_numbers_that_are_drawn():
    honest, colluding = chosen_claims()
    truth = {FIRST + place: place for place in range(POOL)}
    lies = {**honest, **colluding}
    colluders = set(colluding)
    # The old server asks all ten, where f = 5 is declared and honest claims bring about two.
    assert len(colluders & believing(truth, SEED, TARGET)) <= 5
    assert colluders <= believing(lies, SEED, TARGET)
    # The product asks whom it would ask if nobody said anything.
    found = asked_in(lies)
    assert found == asked_in(truth) == asked_in(dict.fromkeys(truth, 0))
    assert len(colluders & found) <= 5


# -- who is blamed -----------------------------------------------------------------------------------


def believed_quarantine(refusals, partitions_then, partitions_now):
    """The old resumption: refusals go to the node that now claims the partition of one that is away."""
    former = {partition: node for node, partition in partitions_then.items()}
    return {
        node: refusals[former[partition]]
        for node, partition in partitions_now.items()
        if former.get(partition) in refusals and former[partition] not in partitions_now
    }


@pytest.mark.parametrize("by_partition", [None, True])
def test_a_claim_excludes_nobody_after_a_restart(by_partition, tmp_path):
    """The liar in quarantine goes away; whoever holds its partition now, by an attacker's doing, is not to blame."""

    def run(resume, rounds_, grid, app):
        strategy = Median(
            f=1,
            quarantine_after=1,
            by_partition=by_partition,
            min_train_nodes=6,
            min_available_nodes=6,
            audit=Audit(tmp_path, resume=resume, sync=False),
            **SILENT,
        )
        strategy.identify({node: Identity(c.node_config["partition-id"]) for node, c in grid.contexts.items()})
        drive(strategy, app, ONE, 7, rounds=rounds_, grid=grid)
        return strategy

    first = run(False, 2, Deployed(misbehaving({3}), 7), None)
    assert first.quarantined == (FIRST + 3,)
    honest = misbehaving({})
    second = run(True, 3, Deployed(honest, 7, shift=100), None)
    victim = FIRST + 103
    then, now = ({FIRST + shift + i: i for i in range(7)} for shift in (0, 100))
    blamed = believed_quarantine({FIRST + 3: 1}, then, now)
    assert blamed == {victim: 1}  # the old server excludes it
    if by_partition is None:
        assert second.quarantined == (FIRST + 3,)
        assert victim in second.history[-1].asked
    else:  # the operator says that partitions are assigned, as in a simulation
        assert second.quarantined == (victim,)


# -- who is given a state ----------------------------------------------------------------------------


def keeping():
    """An app whose clients keep a secret of their own."""

    def client_fn(context):
        class Client(NumPyClient):
            def fit(self, parameters, config):
                if "own" not in context.state:
                    context.state["own"] = ConfigRecord({"secret": f"of node {context.node_id}"})
                return [array + 1 for array in parameters], 1, {}

        return Client()

    return serve(client_fn, hand_over_state=True)


def believed_state(states, partitions_then, claim):
    """The old hand-back: the state of the absent node whose partition a new node claims."""
    return next((states[node] for node, partition in partitions_then.items() if partition == claim), None)


@pytest.mark.parametrize("told", ["by discover", "by replies"])
def test_a_claim_fetches_no_state(told, tmp_path):
    """A new node names the partition of an absent client, to be sent its private state."""

    def run(grid, rounds_, resume=False):
        audit = Audit(tmp_path, resume=resume, client_states=True, sync=False)
        strategy = RobustStrategy("median()", audit=audit, min_available_nodes=2, **SILENT)
        if told == "by discover":
            strategy.identify(discover(grid, grid.get_node_ids()))
        drive(strategy, None, {"w": np.zeros(2, np.float32)}, 4, rounds=rounds_, grid=grid)
        return grid

    first = run(Deployed(keeping(), 4), 1)
    states = {node: context.state["own"]["secret"] for node, context in first.contexts.items()}
    attacker, victim = FIRST + 100, FIRST
    assert believed_state(states, {FIRST + i: i for i in range(4)}, 0) == f"of node {victim}"
    second = Deployed(keeping(), 4, claims={FIRST + 3: 0})
    second.contexts[attacker] = second.contexts.pop(FIRST + 3)
    second.contexts[attacker].node_id = attacker
    second.away = {victim}
    run(second, 2, True)
    assert second.contexts[attacker].state["own"]["secret"] == f"of node {attacker}"
    (restored,) = [r.event for r in read_log(log_file(tmp_path)) if isinstance(r.event, ClientStatesRestored)]
    assert restored.nodes == (FIRST + 1, FIRST + 2)
    assert restored.missing == {str(attacker): "no state of it is held"}
    # The victim's is kept for it, and given back to its own node id alone.
    third = run(Deployed(keeping(), 4), 3, True)
    assert third.contexts[victim].state["own"]["secret"] == f"of node {victim}"


# -- who comes back as new ---------------------------------------------------------------------------


def taking_part(probation, make):
    """Return the rounds in which a client takes part that comes back under a new id once it is in quarantine."""
    grid = Deployed(misbehaving({6}), 7)
    strategy = make(quarantine_after=1, probation=probation)

    class Renews(Observer):
        def node_quarantined(self, server_round, kind, node, refusals):
            grid.contexts[node + 1000] = grid.contexts.pop(node)
            grid.contexts[node + 1000].node_id = node + 1000

    strategy.guard.observers = (Renews(),)
    drive(strategy, None, ONE, 7, rounds=9, grid=grid)
    honest = set(range(FIRST, FIRST + 6))
    return [record.round for record in strategy.history if not {*record.asked} <= honest], strategy


@pytest.mark.parametrize("make", [lambda **o: Median(f=1, **SILENT, **o), lambda **o: Guarded(FedAvg(**SILENT), **o)])
def test_a_probation_makes_new_ids_dear(make):
    free, _ = taking_part(0, make)
    assert free == [*range(1, 10)]  # without node authentication a quarantine alone costs one round
    dear, strategy = taking_part(3, make)
    assert dear == [1, 5, 9]
    assert [len(record.waiting) for record in strategy.history] == [0, 1, 1, 1, 0, 1, 1, 1, 0]


def test_a_crowd_of_new_nodes_is_not_asked_while_enough_others_are_left():
    nodes = Nodes(least=3, probation=2)
    assert nodes.left_out("train", 1, range(5)) == LeftOut()
    assert nodes.left_out("train", 2, range(105)) == LeftOut((), tuple(range(5, 105)))
    assert nodes.left_out("train", 3, {0, 1, *range(5, 105)}).waiting == tuple(range(6, 105))  # one is needed
    assert nodes.left_out("train", 4, range(105)) == LeftOut()
    assert nodes.left_out("train", 5, {0, 1, 2, 200}).waiting == (200,)
    nodes.left_out("train", 6, {0, 1, 2})
    assert 200 not in nodes.joined  # short-lived nodes fill no memory
    assert nodes.left_out("train", 7, {0, 1, 2, 200}).waiting == (200,)  # and begin anew
    assert Nodes().left_out("train", 9, range(5)) == LeftOut()


# -- who may open a state ----------------------------------------------------------------------------


def secretive(secrets_by_node):
    """Clients that seal what they keep, each with its own secret."""

    def client_fn(context):
        class Client(NumPyClient):
            def fit(self, parameters, config):
                if "own" not in context.state:
                    context.state["own"] = ConfigRecord({"secret": f"of node {context.node_id}"})
                return [array + 1 for array in parameters], 1, {}

        return Client()

    return serve(client_fn, hand_over_state=True, state_key=lambda context: secrets_by_node[context.node_id])


def test_a_sealed_state_follows_a_claim_and_opens_for_its_owner_alone(tmp_path):
    """The owner comes back under a new id; so does an attacker that claims the same, in another run."""
    secrets_by_node = {FIRST + i: f"the secret of client {i}".encode() for i in range(4)}
    renewed = FIRST + 100

    def run(rounds, away=(), new=None, resume=True):
        grid = Deployed(secretive(secrets_by_node), 4)
        if new is not None:
            grid.contexts[renewed] = grid.contexts.pop(FIRST)
            grid.contexts[renewed].node_id = renewed
            secrets_by_node[renewed] = new
        grid.away = set(away)
        audit = Audit(tmp_path, resume=resume, client_states=True, sync=False)
        strategy = RobustStrategy("median()", audit=audit, min_available_nodes=2, **SILENT)
        strategy.identify(discover(grid, grid.get_node_ids()))
        drive(strategy, None, {"w": np.zeros(2, np.float32)}, 4, rounds=rounds, grid=grid)
        (told,) = [r.event for r in read_log(log_file(tmp_path)) if isinstance(r.event, ClientStatesRestored)][-1:] or [
            0
        ]
        return grid, told

    run(1, resume=False)
    for path in (tmp_path / "checkpoints").rglob("*"):
        assert not path.is_file() or b"of node" not in path.read_bytes()  # the server cannot read it
    thief, told = run(2, new=b"not the owner's secret")
    assert thief.contexts[renewed].state["own"]["secret"] == f"of node {renewed}"
    assert "sealed by another client" in told.missing[str(renewed)]
    del secrets_by_node[renewed]
    # It is still there for its owner, under its own id.
    same, told = run(3)
    assert same.contexts[FIRST].state["own"]["secret"] == f"of node {FIRST}"
    assert told.missing == {}


def test_the_owner_of_a_sealed_state_gets_it_under_a_new_id(tmp_path):
    secrets_by_node = {FIRST + i: f"the secret of client {i}".encode() for i in range(4)}

    def run(grid, rounds, resume):
        audit = Audit(tmp_path, resume=resume, client_states=True, sync=False)
        strategy = RobustStrategy("median()", audit=audit, min_available_nodes=2, **SILENT)
        strategy.identify(discover(grid, grid.get_node_ids()))
        drive(strategy, None, {"w": np.zeros(2, np.float32)}, 4, rounds=rounds, grid=grid)

    run(Deployed(secretive(secrets_by_node), 4), 1, False)
    grid = Deployed(secretive(secrets_by_node), 4, shift=100)
    secrets_by_node |= {node + 100: secret for node, secret in secrets_by_node.items()}
    run(grid, 2, True)
    found = [context.state["own"]["secret"] for context in grid.contexts.values()]
    assert found == [f"of node {FIRST + i}" for i in range(4)]


@pytest.mark.parametrize("claim", [999, -1, None])
def test_a_claim_does_not_end_a_run_when_its_result_is_written(claim):
    """A node that joins late may claim a partition that does not exist; its weight is then nobody's."""
    config = RunConfig(clients=2, rounds=1)
    rounds_ = [RoundResult(1, (1, claim), (0.25, 0.75), (), Outcome.OK)]
    found = document(config, {"w": np.zeros(2)}, {}, rounds_, [0.0, 1.0], 1.0, {})
    assert found["mean_weights"] == [0.0, 0.25]
