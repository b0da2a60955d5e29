"""The command line: what it prints, and the status it ends with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flwr_robust.audit import read_log, verify
from flwr_robust.audit.log import head_file
from flwr_robust.audit.run import log_file
from flwr_robust.cli import app
from tests.audit_runs import LIAR, NODES, SILENT, make

KEY = b"a key of at least sixteen bytes"


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "run")


def tamper(run):
    log = log_file(run)
    log.write_bytes(log.read_bytes().replace(b'"NOT_FINITE"', b'"NOT_FUNNY"', 1))
    return next(i for i, line in enumerate(log.read_bytes().splitlines(), 1) if b"FUNNY" in line)


def test_the_script_is_installed_under_its_name():
    root = Path(__file__).resolve().parents[2]
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"] == {
        "flwr-robust": "flwr_robust.cli:app"
    }


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["audit", "rollback", "card"]),
        (["audit"], ["verify", "show", "clients"]),
        (["audit", "verify"], ["Exit status: 0 intact, 1 tampered with, 2 wrong input", "does not protect against"]),
        (["audit", "show"], ["--client", "--round", "undone"]),
        (["audit", "clients"], ["do not assume that they attack"]),
        (["rollback"], ["--to-round", "not deleted"]),
        (["card"], ["--html", "not stated", "secure_aggregation"]),
    ],
)
def test_help_teaches(command, words):
    done = call(*command, "--help")
    assert done.exit_code == 0
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", done.output).split())
    for word in words:
        assert word in plain


def test_an_intact_log(run):
    head = verify(log_file(run)).head
    for place in (run, log_file(run)):
        done = call("audit", "verify", place, "--expect", head)
        assert done.exit_code == 0
        assert "intact, " in done.output
        assert f"head {head}" in done.output
        assert "round-00000001, round-00000002, round-00000003" in done.output


def test_a_log_that_was_tampered_with(run):
    number = tamper(run)
    done = call("audit", "verify", run)
    assert done.exit_code == 1
    assert f"line {number}: the line was changed" in done.output
    assert "NOT INTACT" in done.output
    for command in (["show"], ["clients"], ["show", "--round", "1"]):
        done = call("audit", command[0], run, *command[1:])
        assert done.exit_code == 1
        assert "NOT INTACT" in done.stderr
        assert "┃" in done.stdout  # shown all the same
    assert call("rollback", run, "--to-round", 1).exit_code == 1
    assert call("card", run).exit_code == 1
    assert json.loads((run / "card.json").read_text())["deployment"]["evidence"]["value"]["log_intact"] is False


def test_heads_that_are_missing(run):
    assert call("audit", "verify", run, "--expect", "f" * 64).exit_code == 1
    log = log_file(run)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:5]))
    done = call("audit", "verify", run)
    assert done.exit_code == 1
    assert f"line 6: {len(lines) - 5} lines are missing at the end" in done.output
    assert "no line has the expected hash" in done.output  # which a checkpoint knows
    log.unlink()
    assert call("audit", "verify", run).exit_code == 1


def test_a_key(tmp_path):
    run = make(tmp_path / "run", key=KEY)
    (tmp_path / "key").write_bytes(KEY + b"\n")
    (tmp_path / "other").write_bytes(KEY[::-1])
    assert call("audit", "verify", run, "--key-file", tmp_path / "key").exit_code == 0
    assert "only the key can check" in call("audit", "verify", run).output
    assert call("audit", "verify", run, "--key-file", tmp_path / "other").exit_code == 1
    done = call("audit", "verify", run, "--key-file", tmp_path / "none")
    assert (done.exit_code, "cannot be read: No such file" in done.stderr) == (2, True)
    assert call("rollback", run, "--to-round", 2).exit_code == 2
    assert call("rollback", run, "--to-round", 2, "--key-file", tmp_path / "key").exit_code == 0
    assert call("card", run, "--key-file", tmp_path / "key").exit_code == 0
    assert verify(log_file(run), key=KEY).intact


def test_reading_a_keyed_log_without_its_key_says_so(tmp_path):
    run, plain = make(tmp_path / "run", key=KEY), make(tmp_path / "plain")
    (tmp_path / "key").write_bytes(KEY)
    for command in (["audit", "clients"], ["audit", "show"], ["card"]):
        done = call(*command, run)
        assert done.exit_code == 0
        assert "only the key can check" in done.stderr
        assert "only the key can check" not in call(*command, plain).output
        keyed = call(*command, run, "--key-file", tmp_path / "key")
        assert keyed.exit_code == 0
        assert "only the key" not in keyed.output
    (tmp_path / "other").write_bytes(KEY[::-1])
    for command in ("clients", "show"):
        done = call("audit", command, run, "--key-file", tmp_path / "other")
        assert done.exit_code == 1
        assert "NOT INTACT" in done.stderr


def test_a_changed_checkpoint_is_found(run):
    path = run / "checkpoints" / "round-00000002" / "arrays.npz"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "round-00000002 is not the one on record: its size is another one" in call("audit", "verify", run).output
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for place in (run, log_file(run)):
        done = call("audit", "verify", place)
        assert done.exit_code == 1
        assert "the checkpoint round-00000002 is not the one on record: the SHA-256 of arrays.npz is" in done.output
        assert "NOT INTACT" in done.output
    done = call("card", run)
    assert (done.exit_code, "round-00000002" in done.stderr) == (1, True)


def test_the_module_is_a_command_too(run):
    def module(*arguments):
        command = [sys.executable, "-m", "flwr_robust.cli", "audit", "verify", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = module(str(run))
    assert (done.returncode, "intact, " in done.stdout) == (0, True)
    tamper(run)
    done = module(str(run))
    assert (done.returncode, "NOT INTACT" in done.stdout) == (1, True)


def narrow(done):
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line[-1] == line[0] for line in lines if line[0] == "│")  # nothing is cut off
    assert "\x1b[31m" not in done.stdout  # what a client wrote
    return done.stdout


def test_show_all_rounds(run):
    text = narrow(call("audit", "show", run))
    assert re.search(r"3 │ +5 │ +3 │ +1 │ +1 │ +0.5 │ OK", text)
    assert f"quarantined  round=3, node={LIAR}" in text
    assert "run_ended" in text


@pytest.mark.parametrize("client", [LIAR, 4])
def test_show_a_client(run, client):
    text = narrow(call("audit", "show", run, "--client", client))
    assert f"node {LIAR}" in text
    assert text.count("refused: NOT_FINITE: w \\x1b[31m[bold]<b>`x`|") == 3


def test_show_a_round(run):
    text = narrow(call("audit", "show", run, "--round", 2))
    assert all(str(node) in text for node in NODES)
    assert re.search(rf"{SILENT} │ +│ silent", text)
    assert re.search(rf"{NODES[1]} │ +1 │ admitted +│ +0.25 │ +2 │ +90", text)
    assert "model after " in text
    both = narrow(call("audit", "show", run, "--round", 2, "--client", 4))
    assert "NOT_FINITE" in both


def test_show_what_was_undone(run):
    assert call("rollback", run, "--to-round", 1, "--reason", "a [b]backdoor[/b]").exit_code == 0
    text = narrow(call("audit", "show", run))
    assert text.count("(undone)") == 2
    assert "rolled_back  from_round=3, to_round=1, reason=a [b]backdoor[/b]" in " ".join(text.split("\n")[-4:])
    assert "refused (undone): NOT_FINITE" in narrow(call("audit", "show", run, "--client", 4))


def test_rank_clients(run):
    def order(*options):
        text = narrow(call("audit", "clients", run, *options))
        return [int(found) for found in re.findall(r"9223372036854775\d\d\d", text)], text

    nodes, text = order()
    assert nodes[0] == LIAR
    assert "NOT_FINITE 3" in text
    assert "(in quarantine)" in text
    assert order("--by", "weight")[0][0] == NODES[2]
    assert call("audit", "clients", run, "--by", "looks").exit_code == 2


def test_a_client_that_was_never_asked_has_no_history(run):
    call("ban", run, "--node", "77")
    done = call("audit", "show", run, "--client", "77")
    assert done.exit_code == 2
    assert "the log has no reply of node 77; the node was never asked; it knows rounds 1 to 3" in done.output
    assert "None" not in done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["audit", "verify", "none.jsonl"], "there is no file none.jsonl"),
        (["audit", "show", "none.jsonl"], "there is no file"),
        (["audit", "clients", "none.jsonl"], "there is no file"),
        (["audit", "show", "RUN", "--client", "77"], "client 77 is neither a node nor the partition of one"),
        (["audit", "show", "RUN", "--round", "77"], "the log has no reply in round 77; it knows rounds 1 to 3"),
        (["rollback", "RUN", "--to-round", "77"], "there is none of round 77"),
        (["rollback", "none", "--to-round", "1"], "holds no run"),
        (["rollback", "RUN"], "--to-round"),
        (["card", "none"], "there is no file"),
        (["card", "RUN", "--state", "tls"], "--state must be KEY=TEXT"),
        (["card", "RUN", "--state", "tsl=yes"], "unknown statement 'tsl'"),
    ],
)
def test_wrong_input_ends_with_two_and_one_sentence(run, arguments, sentence, monkeypatch):
    monkeypatch.chdir(run.parent)
    done = call(*(str(run) if argument == "RUN" else argument for argument in arguments))
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_rollback(run):
    done = call("rollback", run, "--to-round", 2, "--reason", "a backdoor")
    assert done.exit_code == 0
    assert "round 2 is current" in done.output
    assert f"its model is in {run}/checkpoints/round-00000002/arrays.npz: array 0 of it" in done.output
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "aside",
        "round-00000001",
        "round-00000002",
    ]
    assert call("audit", "verify", run).exit_code == 0


def test_card(run):
    done = call("card", run, "--html", "--state", "secure-aggregation=off", "--state", "tls=on")
    assert done.exit_code == 0
    assert [Path(line).name for line in done.output.splitlines()] == ["card.json", "card.md", "card.html"]
    card = json.loads((run / "card.json").read_text())
    assert card["deployment"]["secure_aggregation"] == {"value": "off", "source": "operator"}


def test_a_head_file_that_is_gone(run):
    head_file(log_file(run)).unlink()
    head = verify(log_file(run)).head
    for expect, status in ((), 1), (("--expect", head), 0):
        done = call("audit", "verify", run, *expect)
        assert done.exit_code == status
        assert "there is no head file" in done.output


def test_lines_with_one_fault_are_named_together(tmp_path):
    make(tmp_path)
    key = tmp_path / "key"
    key.write_bytes(b"x" * 20)
    done = call("audit", "verify", str(tmp_path), "--key-file", str(key))
    assert done.exit_code == 1
    found = [line for line in done.output.splitlines() if "mac" in line]
    lines = len(read_log(log_file(tmp_path)))
    assert found[0] == f"lines 1 to {lines}: the line does not bear the key's mac"
    assert len(found) == 2  # and the head file


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--expect", "abc"], "--expect must be a head, 64 hexadecimal digits, or a file of heads; got abc"),
        (["--key-file", "KEY"], "must hold at least 16 bytes; got 5"),
    ],
)
def test_what_is_no_head_or_no_key_is_wrong_input(tmp_path, options, words):
    make(tmp_path)
    (tmp_path / "k").write_bytes(b"short\n")
    done = call("audit", "verify", str(tmp_path), *(str(tmp_path / "k") if o == "KEY" else o for o in options))
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())


def test_a_red_teams_file_is_attached_by_its_option(tmp_path):
    make(tmp_path)
    file = next((Path(__file__).parents[2] / "docs" / "red-team").glob("krum*.json"))
    done = call("card", str(tmp_path), "--red-team", str(file), "--state", "tls=TLS 1.3")
    assert done.exit_code == 0
    text = (tmp_path / "card.md").read_text()
    assert "same_rule_as_the_run: no" in text
    assert "backdoor triggers: tested" in text
    assert call("card", str(tmp_path), "--red-team", str(tmp_path / "no.json")).exit_code == 2


def test_the_cards_files_travel_in_a_flower_app(tmp_path):
    environment = {**os.environ, "FLWR_HOME": str(tmp_path / "home"), "FLWR_TELEMETRY_ENABLED": "0"}
    environment |= {"FLWR_DISABLE_UPDATE_CHECK": "1"}
    root = Path(__file__).parents[2]
    binary = Path(sys.executable).parent / "flwr"
    command = [str(binary), "build", "--app", str(root)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.fab"))) as fab:
        packed = {name for name in fab.namelist() if name.startswith("flwr_robust/")}
    package = root / "flwr_robust"
    needed = {
        p.relative_to(root).as_posix() for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    left = {name for name in needed - packed if not name.endswith(".j2")}  # templates of reports, which no app renders
    assert left == {"flwr_robust/py.typed"}  # a mark for type checkers
