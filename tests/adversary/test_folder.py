"""A hostile run folder: what an auditor is sent must not command the terminal, fill the memory, or lead elsewhere."""

from __future__ import annotations

import ast
import json
import shutil

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flwr_robust.audit import read_log
from flwr_robust.audit.run import log_file
from flwr_robust.cli import app
from flwr_robust.flower import Reason, Refusal
from tests.audit_runs import LIAR, make
from tests.house import MODULES, module_name

EVIL = "\x1b[2J\x1b]0;owned\x07[red]intact[/red]:warning:\u202e"
SHOWN = r"\x1b[2J\x1b]0;owned\x07[red]intact[/red]:warning:\u202e"


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def harmless(text):
    """Whether a terminal shows nothing but what the text says."""
    return all(line.isprintable() for line in text.split("\n"))


# -- terminals --------------------------------------------------------------------------------------


def test_the_old_way_to_print_was_commanded(capsys):
    Console(highlight=False).print(f"the heads in round-{EVIL} are among them")
    out = capsys.readouterr().out
    assert not harmless(out)
    assert "[red]" not in out  # taken as markup


@pytest.mark.parametrize("command", [["audit", "verify"], ["audit", "show"], ["audit", "clients"], ["card"]])
@pytest.mark.parametrize("where", ["folder", "checkpoint", "aside", "file", "log", "statement"])
def test_no_name_or_text_in_a_folder_commands_the_terminal(tmp_path, command, where):
    run = make(tmp_path / (EVIL.replace("/", "") if where == "folder" else "run"), statements={"tls": EVIL})
    path = run / "checkpoints/round-00000002"
    if where == "checkpoint":
        shutil.copytree(path, path.with_name(f"round-{EVIL.replace('/', '')}"))
    elif where == "aside":
        shutil.copytree(path, run / f"checkpoints/aside/round-{EVIL.replace('/', '')}")
    elif where == "file":
        (path / "SHA256SUMS").write_text(f"{'0' * 64}  {EVIL}\n")
    elif where == "log":
        log = log_file(run)
        log.write_bytes(log.read_bytes().replace(b'"NOT_FINITE"', json.dumps(EVIL).encode()))
    for extra in ([], ["--json"] if command[0] == "audit" else ["--html"]):
        done = call(*command, run, *extra)
        assert harmless(done.stdout + done.stderr)
        assert done.exit_code in (0, 1, 2)
    if where == "log" and command[-1] == "clients":
        assert "[red]" in call(*command, run).stdout


def test_what_a_client_writes_is_shown_as_it_is(tmp_path):
    run = make(tmp_path / "run")
    text = call("audit", "show", run, "--client", LIAR).stdout
    assert harmless(text)
    assert r"w \x1b[31m[bold]<b>`x`|" in " ".join(text.replace("│", " ").split())
    assert any("\x1b" in getattr(each.event, "detail", "") for each in read_log(log_file(run)))


def test_a_refusal_is_printable_from_the_start():
    assert Refusal(1, Reason.NAMES, f"{EVIL}\n{'x' * 500}").detail.startswith(SHOWN)
    assert len(Refusal(1, Reason.NAMES, "x" * 500).detail) == 200


COMMANDS = [p for p in MODULES if p.parent.name == "cli" and p.name not in ("shared.py", "__init__.py")]


@pytest.mark.parametrize("path", COMMANDS, ids=module_name)
def test_commands_print_in_one_place_only(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = {ast.unparse(call.func) for call in calls}
    assert not named & {"print", "typer.secho", "Console", "Text", "Text.from_markup", "sys.stdout.write"}
    assert "typer.echo" not in named or path.name in ("main.py", "redteam.py")  # the version, and a template
