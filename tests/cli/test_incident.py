"""The verbs of an incident: what they print, and what they refuse."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from typer.testing import CliRunner

from flwr_robust.audit import (
    AuditLog,
    CheckpointStore,
    IncidentReported,
    Replayed,
    UpdatesDeleted,
    model_sha256,
    read_log,
)
from flwr_robust.audit.contents import update_file
from flwr_robust.audit.order_files import pending
from flwr_robust.audit.orders import give_order
from flwr_robust.audit.run import log_file
from flwr_robust.cli.main import app
from flwr_robust.flower import Audit, Mean
from flwr_robust.flower.replay import replay
from tests.audit_runs import NODES, make
from tests.flower_helpers import FIRST, client_app, content, drive

KEY = b"a key of at least sixteen bytes"


def call(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize("verb", ["ban", "release", "erase"])
def test_an_order_needs_a_run(tmp_path, verb):
    assert "holds no run: there is no audit.jsonl; name its folder" in call(verb, tmp_path, "--node", 5, code=2)


def test_a_node_that_the_log_does_not_know_can_be_banned_before_it_comes(tmp_path):
    out = call("ban", make(tmp_path), "--node", 12345)
    assert "it is taken as the id of a node that may come" in out
    assert "node 12345 is banned, and on record" in out


def test_nothing_is_erased_of_a_node_that_the_log_does_not_know(tmp_path):
    run = make(tmp_path)
    assert "client 77 is neither a node nor the partition of one" in call("erase", run, "--client", 77, code=2)
    call("ban", run, "--node", 77)
    before = log_file(run).read_bytes()
    out = call("erase", run, "--client", 77, code=2)
    assert "erase: the log knows no node 77 that was ever asked or has answered" in out
    assert log_file(run).read_bytes() == before


def test_a_log_with_a_key_needs_the_key(tmp_path):
    make(tmp_path / "run", key=KEY)
    (tmp_path / "key").write_bytes(KEY)
    assert "was written with a key" in call("ban", tmp_path / "run", "--node", NODES[0], code=2)
    assert "on record" in call("ban", tmp_path / "run", "--node", NODES[0], "--key-file", tmp_path / "key")
    assert "intact" in call("audit", "verify", tmp_path / "run", "--key-file", tmp_path / "key")


def test_a_log_with_a_signing_key_is_signed_again(tmp_path):
    call("audit", "keygen", tmp_path / "private.pem")
    (public,) = (path for path in tmp_path.iterdir() if path.name != "private.pem")
    audit = Audit(tmp_path / "run", signing_key=tmp_path / "private.pem", sync=False)
    answer = client_app(lambda partition, model, config, context: content({"w": model["w"] + 1}))
    drive(Mean(audit=audit, fraction_evaluate=0.0), answer, {"w": np.zeros(2, np.float32)}, 3, 1)
    call("ban", tmp_path / "run", "--node", FIRST, code=2)
    call("ban", tmp_path / "run", "--node", FIRST, "--signing-key", tmp_path / "private.pem")
    call("audit", "verify", tmp_path / "run", "--public-key", public)


def test_a_command_waits_until_the_run_has_carried_out_the_order(tmp_path):
    make(tmp_path)
    ended = threading.Event()

    def run():
        while not ended.is_set():
            for path, _ in pending(tmp_path):
                path.unlink()

    with AuditLog(log_file(tmp_path), sync=False):
        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert "is released, and on record" in call("release", tmp_path, "--node", NODES[0], "--wait", 60)
        finally:
            ended.set()
            thread.join()
        assert "the run is in progress, and carries out" in call("erase", tmp_path, "--node", NODES[0], "--wait", 0)


# -- questions --------------------------------------------------------------------------------------


def kept(folder, rounds=3, **options):
    """A run with kept updates in which client 6 sends far more than the others."""

    def train(partition, model, config, context):
        draws = np.random.default_rng((config["server-round"], partition))
        update = draws.standard_normal(5).astype(np.float32) * np.float32(40 if partition == 6 else 1)
        return content({"w": model["w"] + update}, 10, partition_id=partition)

    audit = Audit(folder, keep_updates=True, keep=None, sync=False)
    strategy = Mean(audit=audit, fraction_evaluate=0.0, **options)
    drive(strategy, client_app(train), {"w": np.zeros(5, np.float32)}, 7, rounds)
    return folder


def test_an_incident_is_answered_and_on_record(tmp_path):
    kept(tmp_path)
    found = json.loads(call("incident", tmp_path, "--client", FIRST + 6, "--replay", "--json"))
    assert (found["rounds"], found["exact"], found["rollback"], found["checkpoint"]) == ([1, 2, 3], True, 0, 0)
    assert found["weight"] == pytest.approx(3 / 7)
    sent = [np.zeros(5), *(CheckpointStore(tmp_path / "checkpoints").load(number).model["w"] for number in (1, 2))]
    own = [np.load(update_file(tmp_path, number, FIRST + 6))["0"] - sent[number - 1] for number in (1, 2, 3)]
    assert found["displacement"] == pytest.approx(np.linalg.norm(np.sum(own, 0)) / 7, rel=1e-5)
    assert found["bound"] > found["displacement"]
    events = [record.event for record in read_log(log_file(tmp_path))]
    assert events[-1] == IncidentReported(3, FIRST + 6, (1, 2, 3), found["weight"], found["displacement"], True)
    bound = json.loads(call("incident", tmp_path, "--client", FIRST + 6, "--json"))
    assert (bound["displacement"], bound["exact"], bound["replay"]) == (found["bound"], False, None)
    out = call("incident", tmp_path, "--client", FIRST + 6)
    assert "rollback point  round 0, model" in out
    assert "part in the model  3 rounds: 1-3" in out
    call("audit", "verify", tmp_path)


def test_a_replay_is_answered_and_on_record(tmp_path):
    kept(tmp_path)
    out = call("replay", tmp_path)
    assert "3 equal, 0 different, 0 missing; started from the checkpoints of rounds 0" in out
    assert read_log(log_file(tmp_path))[-1].event == Replayed(3, (1, 2, 3), (), (), None, None)
    out = call("replay", tmp_path, "--rounds", "2-3", "--without", FIRST + 6, "--write", tmp_path / "model.npz")
    assert f"without node {FIRST + 6}: all changes together have norm" in out
    with np.load(tmp_path / "model.npz") as held:
        model = {name: held[name] for name in held.files}
    assert f"the model would be {model_sha256(model)}" in out
    found = json.loads(call("replay", tmp_path, "--rounds", "2", "--without", FIRST + 6, "--json"))
    assert [each["round"] for each in found["rounds"]] == [2]
    call("audit", "verify", tmp_path)


def test_a_replay_that_differs_ends_with_status_1(tmp_path):
    kept(tmp_path)
    text = log_file(tmp_path).read_text()
    log_file(tmp_path).write_text(text.replace('"rule":"mean()"', '"rule":"median()"'))
    assert "NOT INTACT" in call("replay", tmp_path, code=1)


def old_status(found):
    return 1 if found.of("different") else 0


@pytest.mark.parametrize("rounds", ["1-99999", "2-3", "4"])
def test_a_replay_that_lacks_a_round_that_was_asked_for_ends_with_status_1(tmp_path, rounds):
    kept(tmp_path)
    if rounds == "2-3":
        path = update_file(tmp_path, 2, FIRST)
        path.write_bytes(path.read_bytes()[:-1])
    elif rounds == "4":
        kept(tmp_path / "four", 4)
        tmp_path = tmp_path / "four"
        update_file(tmp_path, 4, FIRST).unlink()
    first, last = (int(number) for number in (rounds.split("-") * 2)[:2])
    assert old_status(replay(tmp_path, first, last)) == 0
    out = call("replay", tmp_path, "--rounds", rounds, code=1)
    assert "not all rounds that were asked for are equal" in out
    if rounds == "1-99999":
        assert "the log has no finished rounds 4 to 99999 of training" in out
        found = json.loads(call("replay", tmp_path, "--rounds", rounds, "--json", code=1))
        assert (found["absent"], found["complete"]) == ([[4, 99999]], False)
    else:
        assert "1 missing" in out


def test_rounds_that_were_deleted_on_record_are_named_and_not_missed(tmp_path):
    kept(tmp_path)
    give_order(tmp_path, UpdatesDeleted(0, (1,)), sync=False)
    out = call("replay", tmp_path)
    assert "2 equal, 0 different, 1 missing" in out
    assert "the updates of rounds 1 were deleted on record" in out
    give_order(tmp_path, UpdatesDeleted(0, (2,), (FIRST,)), sync=False)  # one client alone: that is no retention
    call("replay", tmp_path, code=1)
    give_order(tmp_path, UpdatesDeleted(0), sync=False)
    assert "0 equal, 0 different, 3 missing" in call("replay", tmp_path, code=1)


@pytest.mark.parametrize("rounds", ["0", "3-2", "a", "1-", "-1", "1-2-3"])
def test_rounds_are_a_range(tmp_path, rounds):
    assert "--rounds must be A-B or A" in call("replay", make(tmp_path), f"--rounds={rounds}", code=2)


def test_a_question_about_a_folder_that_cannot_be_written_is_answered(tmp_path, monkeypatch):
    kept(tmp_path)

    def refuse(*arguments, **named):
        raise PermissionError("read-only")

    monkeypatch.setattr("flwr_robust.audit.orders.AuditLog", refuse)
    assert "note: this is not on record: read-only" in call("incident", tmp_path, "--client", FIRST + 6)


def test_a_question_about_a_run_in_progress_is_recorded_by_the_run(tmp_path):
    kept(tmp_path)
    with AuditLog(log_file(tmp_path), sync=False):
        assert "the run is in progress, and records this" in call("incident", tmp_path, "--client", FIRST)
    assert [order.node for _, order in pending(tmp_path)] == [FIRST]
