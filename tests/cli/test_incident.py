"""The verbs of an incident: what they print, and what they refuse."""

from __future__ import annotations

import threading

import pytest
from typer.testing import CliRunner

from flwr_robust.audit import AuditLog
from flwr_robust.audit.orders import pending
from flwr_robust.audit.run import log_file
from flwr_robust.cli.main import app
from tests.audit_runs import NODES, make

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


def test_a_log_with_a_key_needs_the_key(tmp_path):
    make(tmp_path / "run", key=KEY)
    (tmp_path / "key").write_bytes(KEY)
    assert "was written with a key" in call("ban", tmp_path / "run", "--node", NODES[0], code=2)
    assert "on record" in call("ban", tmp_path / "run", "--node", NODES[0], "--key-file", tmp_path / "key")
    assert "intact" in call("audit", "verify", tmp_path / "run", "--key-file", tmp_path / "key")


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
