"""Sybils, replays and slow drift: admitted by every check of a single reply, and on record all the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from flwr_robust.audit import Suspected, model_sha256, read_log
from flwr_robust.audit.card import make_card
from flwr_robust.audit.run import log_file
from flwr_robust.cli.main import app
from flwr_robust.flower import Audit, Observer, TrimmedMean
from tests.flower_helpers import FIRST, client_app, content, drive

MODEL = {"w": np.zeros(200, np.float32)}


class Told(Observer):
    """Keeps what it is told of suspicions, and of refusals."""

    def __init__(self):
        self.suspicions, self.refused = [], 0

    def suspected(self, server_round, node, sign, detail):
        self.suspicions.append((server_round, node - FIRST, sign))

    def reply_judged(self, server_round, kind, verdict):
        self.refused += hasattr(verdict, "reason")


def clients(liars, attack, message="parameters"):
    """Honest clients whose updates scatter about a common one; liars answer as ``attack`` says."""

    def train(partition, model, config, context):
        number = config["server-round"]
        draws = np.random.default_rng((number, partition))
        honest = 0.01 * (1 + draws.standard_normal(200)).astype(np.float32)
        update = attack(number, partition, honest) if partition in liars else honest
        return content({"w": model["w"] + update}, 10, partition_id=partition)

    return client_app(train)


def play(folder, liars, attack, rounds):
    told = Told()
    strategy = TrimmedMean(f=3, audit=Audit(folder, sync=False), observers=[told], fraction_evaluate=0.0)
    drive(strategy, clients(liars, attack), MODEL, 10, rounds)
    assert told.refused == 0  # what admission looks at has no reason to refuse these replies: the old behaviour
    return told


def same_for_all(number, partition, honest):
    return np.random.default_rng(number).standard_normal(200).astype(np.float32)


def test_sybils_that_send_one_update_are_suspected_and_nobody_else(tmp_path):
    told = play(tmp_path, {7, 8, 9}, same_for_all, 4)
    assert told.suspicions == [(number, node, "duplicate") for number in range(1, 5) for node in (7, 8, 9)]
    on_record = [record.event for record in read_log(log_file(tmp_path)) if isinstance(record.event, Suspected)]
    assert [(event.round, event.node - FIRST, event.sign) for event in on_record] == told.suspicions
    card = make_card(tmp_path)["deployment"]
    assert card["sybil_evidence"] == {
        "value": {"identical updates in a round": {"suspicions": 12, "clients": 3, "rounds": 4}},
        "source": "log",
    }
    assert card["replay_evidence"]["value"]["updates of an earlier round"]["suspicions"] == 0
    printed = CliRunner().invoke(app, ["audit", "clients", str(tmp_path), "--by", "signs", "--json"])
    ranked = json.loads(printed.output)["clients"]
    assert [(each["node"] - FIRST, each["signs"]) for each in ranked[:4]] == [
        *((node, {"duplicate": 4}) for node in (7, 8, 9)),
        (0, {}),
    ]
    shown = CliRunner().invoke(app, ["audit", "show", str(tmp_path), "--client", str(FIRST + 7)]).output
    assert f"round 2: node {FIRST + 7} was suspected (duplicate): the same update as 2 other nodes" in shown
    assert "duplicate 4" in CliRunner().invoke(app, ["audit", "clients", str(tmp_path)]).output


def test_a_model_of_an_earlier_round_that_is_sent_again_is_suspected(tmp_path):
    held = {}

    def train(partition, model, config, context):
        answer = model["w"] + 0.01 * np.random.default_rng((config["server-round"], partition)).standard_normal(
            200
        ).astype(np.float32)
        if partition == 9:  # sends what client 0 sent in the round before
            answer, held["next"] = held.get("next", answer), held.get("now", answer)
        if partition == 0:
            held["now"] = answer
        return content({"w": answer}, 10, partition_id=partition)

    told = Told()
    drive(
        TrimmedMean(f=3, audit=Audit(tmp_path, sync=False), observers=[told], fraction_evaluate=0.0),
        client_app(train),
        MODEL,
        10,
        5,
    )
    assert {(node, sign) for _, node, sign in told.suspicions} == {(9, "replay")}
    assert len(told.suspicions) >= 3


def test_a_slow_push_to_one_side_is_suspected(tmp_path):
    """The attacker is well inside the others' lengths, but leans to its own side in every round."""
    aside = np.where(np.arange(200) % 2, 0.012, -0.012).astype(np.float32)
    told = play(tmp_path, {9}, lambda number, partition, honest: honest + aside, 30)
    assert {(node, sign) for _, node, sign in told.suspicions} == {(9, "drift")}
    assert told.suspicions[0][0] >= 24


def test_honest_clients_without_anything_to_say_are_not_suspected(tmp_path):
    assert play(tmp_path, {6, 7, 8, 9}, lambda number, partition, honest: 0 * honest, 5).suspicions == []


def test_a_client_that_only_fails_is_suspected(tmp_path):
    def train(partition, model, config, context):
        if partition == 9:
            raise RuntimeError("no")
        return content(
            {"w": model["w"] + np.float32(partition + 0.1 * config["server-round"])}, 10, partition_id=partition
        )

    told = Told()
    drive(
        TrimmedMean(f=3, audit=Audit(tmp_path, sync=False), observers=[told], fraction_evaluate=0.0),
        client_app(train),
        MODEL,
        10,
        6,
    )
    assert told.suspicions == [(3, 9, "failing"), (6, 9, "failing")]


@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_run_suspects_as_the_run_that_never_stopped(tmp_path, stop):
    def suspicions(folder):
        found = [record.event for record in read_log(log_file(folder)) if isinstance(record.event, Suspected)]
        return [(event.round, event.node, event.sign) for event in found]

    def run(folder, rounds, resume=False):
        strategy = TrimmedMean(f=3, audit=Audit(folder, resume=resume, sync=False), fraction_evaluate=0.0)
        app_ = clients({8, 9}, lambda number, partition, honest: same_for_all(number // 2, partition, honest))
        drive(strategy, app_, MODEL, 10, rounds)

    run(tmp_path / "whole", 5)
    run(tmp_path / "parts", stop)
    run(tmp_path / "parts", 5, resume=True)
    assert suspicions(tmp_path / "whole") == suspicions(tmp_path / "parts") != []


def test_sybils_that_change_a_few_numbers_of_a_large_update_are_found(tmp_path):
    """A hash of the whole update, the old way, sees three different ones."""
    model = {"w": np.zeros(100_000, np.float32)}
    sent = {}

    def train(partition, model, config, context):
        draws = np.random.default_rng((config["server-round"], 7 if partition >= 7 else partition))
        update = draws.standard_normal(100_000).astype(np.float32)
        update[:20] += partition
        sent[partition] = model_sha256({"w": model["w"] + update})
        return content({"w": model["w"] + update}, 10, partition_id=partition)

    told = Told()
    # A known seed, since a secret one draws a place among the 20 numbers once in six runs.
    options = {"audit": Audit(tmp_path, sync=False), "observers": [told], "fraction_evaluate": 0.0, "seed": 1}
    drive(TrimmedMean(f=3, **options), client_app(train), model, 10, 1)
    assert told.suspicions == [(1, node, "duplicate") for node in (7, 8, 9)]
    assert len(set(sent.values())) == 10
