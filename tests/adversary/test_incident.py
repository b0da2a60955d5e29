"""After an incident: operators ban, release and erase while a run is in progress and before it is resumed."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from datetime import timedelta

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg
from typer.testing import CliRunner

from flwr_robust.audit import (
    Banned,
    Released,
    ReplyAdmitted,
    ReplyRefused,
    RoundConfigured,
    UpdatesDeleted,
    read_log,
    verify_run,
)
from flwr_robust.audit.contents import kept_rounds, update_file
from flwr_robust.audit.run import log_file
from flwr_robust.cli.main import app
from flwr_robust.core.pipeline import parse
from flwr_robust.errors import AuditError, ConfigurationError
from flwr_robust.flower import Audit, Guarded, Median, Observer, RobustStrategy, TrimmedMean
from flwr_robust.flower.replay import replay
from tests.flower_helpers import FIRST, client_app, content, drive, same_bits
from tests.house import ROOT

MODEL = {"w": np.zeros(5, np.float32)}
LIAR = 9


def call(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output


def clients(at=lambda number, partition: None):
    def train(partition, model, config, context):
        at(config["server-round"], partition)
        draws = np.random.default_rng((config["server-round"], partition))
        return content({"w": model["w"] + draws.standard_normal(5).astype(np.float32)}, 10, partition_id=partition)

    return client_app(train)


def play(folder, rounds, at=lambda number, partition: None, **options):
    strategy = Median(audit=Audit(folder, sync=False, **options), fraction_evaluate=0.0)
    model, _ = drive(strategy, clients(at), MODEL, 10, rounds)
    return strategy, model


def asked(folder):
    events = [record.event for record in read_log(log_file(folder))]
    return {event.round: len(event.asked) for event in events if isinstance(event, RoundConfigured)}


def test_a_ban_while_a_run_is_in_progress_is_carried_out_before_replies_are_judged(tmp_path):
    """An attacker who is found out in round 2 has no part in round 2; the old way is to stop the run."""

    def at(number, partition):
        if number == 2 and partition == 0:
            out = call("ban", tmp_path, "--node", FIRST + LIAR, "--reason", "found out", "--wait", 0)
            assert "the run is in progress, and carries out" in out
        if number == 4 and partition == 0:
            call("release", tmp_path, "--node", FIRST + LIAR, "--reason", "a mistake", "--wait", 0)

    strategy, _ = play(tmp_path, 5, at)
    assert asked(tmp_path) == {1: 10, 2: 10, 3: 9, 4: 9, 5: 10}
    events = [record.event for record in read_log(log_file(tmp_path))]
    assert Banned(2, FIRST + LIAR, "found out") in events
    assert Released(4, FIRST + LIAR, LIAR, "a mistake") in events
    refused = [event for event in events if isinstance(event, ReplyRefused)]
    assert [(event.round, event.node, event.reason) for event in refused] == [(2, FIRST + LIAR, "BANNED")]
    admitted = [event.round for event in events if isinstance(event, ReplyAdmitted) and event.node == FIRST + LIAR]
    assert admitted == [1, 5]
    assert strategy.banned == ()
    assert not list((tmp_path / "orders").iterdir())
    assert verify_run(tmp_path).intact


def test_a_ban_before_a_resumption_holds_and_a_rollback_does_not_lift_it(tmp_path):
    play(tmp_path, 3)
    partition = 1  # no node has this id, and in a simulation the partition names the node
    assert f"node {FIRST + partition} is banned, and on record" in call("ban", tmp_path, "--node", partition)
    call("rollback", tmp_path, "--to-round", 1)
    strategy, _ = play(tmp_path, 3, resume=True)
    assert asked(tmp_path) == {1: 10, 2: 9, 3: 9}
    assert strategy.banned == (FIRST + partition,)
    ranked = json.loads(call("audit", "clients", tmp_path, "--json"))["clients"]
    assert [each["node"] for each in ranked if each["banned"]] == [FIRST + partition]
    assert "(banned)" in call("audit", "clients", tmp_path)


def test_a_ban_holds_for_guarded_strategies_and_for_rules_with_too_few_left(tmp_path):
    class Banning(Observer):
        def round_finished(self, progress, *, last):
            if progress.round == 1:
                for place in range(8):
                    strategy.ban(FIRST + place, "all of them")

    for strategy in (
        Guarded(FedAvg(fraction_evaluate=0.0), observers=[Banning()]),
        TrimmedMean(f=2, fraction_evaluate=0.0, observers=[Banning()]),
    ):
        drive(strategy, clients(), MODEL, 10, 2)
        assert [len(record.asked) for record in strategy.history] == [10, 2]
    assert strategy.history[1].outcome.name == "INFEASIBLE"


def test_a_resumed_run_with_a_ban_is_the_run_that_never_stopped(tmp_path):
    """The ban is in the log, not in the checkpoint: it is the same wherever the run was stopped."""

    def at(number, partition):
        if number == 2 and partition == 0:
            call("ban", at.folder, "--node", FIRST + LIAR, "--wait", 0)

    at.folder = tmp_path / "whole"
    _, whole = play(at.folder, 5, at)
    at.folder = tmp_path / "parts"
    play(at.folder, 3, at)
    _, parts = play(at.folder, 5, at, resume=True)
    assert same_bits(whole, parts)


def test_a_release_before_a_resumption_ends_a_quarantine(tmp_path):
    def run(rounds, **options):
        def train(partition, model, config, context):
            return content({} if partition == LIAR and config["server-round"] < 3 else {"w": model["w"] + 1}, 10)

        strategy = Median(audit=Audit(tmp_path, sync=False, **options), quarantine_after=2, fraction_evaluate=0.0)
        drive(strategy, client_app(train), MODEL, 10, rounds)
        return strategy

    assert run(3).quarantined == (FIRST + LIAR,)
    call("release", tmp_path, "--node", FIRST + LIAR)
    assert run(5, resume=True).quarantined == ()
    assert asked(tmp_path) == {1: 10, 2: 10, 3: 9, 4: 10, 5: 10}


@pytest.mark.parametrize("live", [False, True])
def test_one_clients_updates_are_erased_and_the_log_stays_intact(tmp_path, live):
    def at(number, partition):
        if live and number == 3 and partition == 0:
            call("erase", tmp_path, "--client", FIRST + LIAR, "--reason", "asked for", "--wait", 0)

    play(tmp_path, 3, at, keep_updates=True)
    if not live:
        # the old way: delete the files, after which the folder is not intact
        path = update_file(tmp_path, 2, FIRST + LIAR)
        held = path.read_bytes()
        path.unlink()
        assert not verify_run(tmp_path).intact
        path.write_bytes(held)
        call("erase", tmp_path, "--client", FIRST + LIAR, "--reason", "asked for")
    erased = range(1, 3 if live else 4)
    for number in (1, 2, 3):
        assert update_file(tmp_path, number, FIRST + LIAR).exists() == (number not in erased)
        assert update_file(tmp_path, number, FIRST).exists()
    verdict = verify_run(tmp_path)
    assert verdict.intact
    assert f"{len(erased)} updates were deleted on record" in verdict.remarks
    events = [record.event for record in read_log(log_file(tmp_path))]
    assert UpdatesDeleted(3, (), (FIRST + LIAR,), "asked for") in events


def test_an_erasure_that_was_killed_half_way_is_finished_by_the_next_resumption(tmp_path):
    from flwr_robust.audit import AuditLog

    play(tmp_path, 2, keep_updates=True)
    with AuditLog(log_file(tmp_path), sync=False) as log:
        log.append(UpdatesDeleted(2, (), (FIRST,)))
    assert "2 updates were deleted on record, but 2 are there" in verify_run(tmp_path).remarks
    play(tmp_path, 3, keep_updates=True, resume=True)
    assert not update_file(tmp_path, 1, FIRST).exists()
    assert update_file(tmp_path, 3, FIRST).exists()
    assert verify_run(tmp_path).intact


def test_updates_are_kept_for_as_many_rounds_and_for_as_long_as_asked(tmp_path):
    play(tmp_path / "rounds", 5, keep_updates=2)
    assert kept_rounds(tmp_path / "rounds") == [4, 5]

    def wait(number, partition):
        if number == 3 and partition == 0:
            for each in (1, 2):
                os.utime(update_file(tmp_path / "age", each, 0).parent, (0, 0))

    play(tmp_path / "age", 4, wait, keep_updates=timedelta(hours=1))
    assert kept_rounds(tmp_path / "age") == [3, 4]
    for folder, reason in (("rounds", "the updates of the latest 2 rounds are kept"), ("age", "kept for 1:00:00")):
        events = [record.event for record in read_log(log_file(tmp_path / folder))]
        deleted = [event for event in events if isinstance(event, UpdatesDeleted)]
        assert sorted(each for event in deleted for each in event.rounds) == (
            [1, 2, 3] if folder == "rounds" else [1, 2]
        )
        assert reason in deleted[0].reason
        verdict = verify_run(tmp_path / folder)
        assert verdict.intact
        assert any("updates were deleted on record" in remark for remark in verdict.remarks)


@pytest.mark.parametrize("keep_updates", [0, -1, 1.5, "30d", None, timedelta(0)])
def test_a_retention_is_a_number_or_an_age(tmp_path, keep_updates):
    with pytest.raises(ConfigurationError, match="audit: keep_updates must be"):
        Audit(tmp_path, keep_updates=keep_updates)


HANGS = [
    "centered_clipping(tau=1.0, steps=1000000000)",
    "clip(c=1.0) | centered_clipping(tau=1.0, steps=1_000_000_000)",
    "geometric_median(iterations=1000000000)",
    "geometric_median(f=1, maximum=1000000000, tolerance=1e-08)",
    "mixtailor(f=1, pool=('centered_clipping(tau=1.0, steps=0x3b9aca00)',))",
    "bulyan(f=1, selection='clip(c=1.0) | centered_clipping(tau=1.0, steps=1000000000)')",
    " | ".join(["clip(c=1.0)"] * 1500 + ["median()"]),
]


@pytest.mark.parametrize("rule", HANGS, ids=lambda rule: rule[:60])
def test_a_rule_in_a_log_does_not_hang_the_commands(tmp_path, rule):
    play(tmp_path, 2, keep_updates=True)
    text = log_file(tmp_path).read_text()
    old = re.search('"rule":"([^"]*)"', text)[1]
    log_file(tmp_path).write_text(text.replace(f'"rule":"{old}"', f'"rule":"{rule}"'))
    parse(rule)  # a valid rule, which was taken before
    with pytest.raises(AuditError, match="it is not replayed"):
        replay(tmp_path)
    assert "not replayed" in call("replay", tmp_path, code=2)
    out = call("incident", tmp_path, "--client", FIRST, code=1)
    assert "at most (a bound from the log)" in out
    assert "no replay" not in out
    assert "note: no replay" in call("incident", tmp_path, "--client", FIRST, "--replay", code=1)


@pytest.mark.parametrize("rule", ["smea(f=1)", "minimum_diameter(f=1)", "dnc(f=1)", "mixtailor(f=1)", "bulyan(f=1)"])
def test_rules_whose_defaults_are_large_are_replayed(tmp_path, rule):
    strategy = RobustStrategy(rule, audit=Audit(tmp_path, sync=False, keep_updates=True), fraction_evaluate=0.0)
    drive(strategy, clients(), MODEL, 10, 1)
    assert replay(tmp_path).complete


def test_a_log_without_its_first_line_ends_with_one_sentence(tmp_path):
    play(tmp_path, 2, keep_updates=True)
    lines = log_file(tmp_path).read_text().splitlines(keepends=True)
    assert '"run_started"' in lines[0]
    log_file(tmp_path).write_text("".join(lines[1:]))
    for arguments in (["incident", "--client", FIRST], ["replay"]):
        assert "has no line that says how the run was started" in call(arguments[0], tmp_path, *arguments[1:], code=2)


def test_every_command_of_the_runbook_works(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "runbook.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.S)
    commands = [line[2:] for block in re.findall(r"```console\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert {shlex.split(command)[1] for command in commands} >= {"ban", "incident", "replay", "rollback", "erase"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(sys, "argv", ["run.py", "8"])
    exec(compile(script, "run.py", "exec"), {})
    for command in commands:
        first, *arguments = shlex.split(command)
        if first == "python":
            exec(compile(script, "run.py", "exec"), {})
        else:
            call(*arguments)
    assert asked(tmp_path / "RUN") == {1: 10, 2: 10, 3: 10, **dict.fromkeys(range(4, 9), 9)}
    assert not update_file(tmp_path / "RUN", 4, FIRST + 9).exists()
