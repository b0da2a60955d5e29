"""The one command: its verbs, what help costs, how it is started, and what --json prints."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import flwr_robust
from flwr_robust.audit.events import STATEMENTS
from flwr_robust.cli import app, components, doctor
from flwr_robust.cli import audit as audit_verbs
from flwr_robust.cli import studies as study_verbs
from flwr_robust.studies.runner import ENGINES
from flwr_robust.tasks import MODELS, TASKS
from tests.audit_runs import make

ROOT = Path(__file__).resolve().parents[2]
VERBS = [
    *(["list"], ["describe"], ["doctor"], ["demo"], ["run"], ["report"], ["record"], ["reproduce"], ["diagnose"]),
    *(["certify"], ["plan"], ["red-team"], ["red-team", "compare"], ["league"], ["card"], ["rollback"]),
    *(["audit"], ["audit", "verify"], ["audit", "show"], ["audit", "clients"]),
]
HEAVY = {"torch", "numpy", "numba", "flwr", "ray", "matplotlib", "sklearn", "torchvision", "scipy", "jinja2", "psutil"}


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def module(*arguments, name="flwr_robust.cli", cwd=ROOT):
    command = [sys.executable, "-m", name, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, json\n"
        "from typer.testing import CliRunner\n"
        "from flwr_robust.cli import app\n"
        f"for verb in [[], *{VERBS}]:\n"
        "    for flag in ('--help', '-h'):\n"
        "        done = CliRunner().invoke(app, [*verb, flag])\n"
        "        assert done.exit_code == 0 and 'Usage' in done.output, (verb, done.output)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
        "import flwr_robust; flwr_robust.parse\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    modules, later = done.stdout.splitlines()
    assert HEAVY.isdisjoint(json.loads(modules))
    assert later == "True"


def test_all_verbs_are_known_and_say_what_they_do():
    help_text = call("--help").output
    for verb, *_ in VERBS:
        assert re.search(rf"│ {verb} +[A-Z]", help_text), verb
    assert "Exit status: 0 all is well; 1 a finding" in help_text
    assert "--install-completion" in help_text
    assert max(map(len, help_text.splitlines())) <= 100


def test_version():
    done = call("--version")
    assert (done.exit_code, done.output) == (0, f"flwr-robust {flwr_robust.__version__}\n")


def test_the_alias_in_the_clone_is_the_same_command():
    done = module("--version", name="experiments")
    assert done.stdout == f"flwr-robust {flwr_robust.__version__}\n"
    assert "python -m experiments" in module("--help", name="experiments").stdout


def test_what_help_says_without_looking_is_so():
    """Texts that stand in for values whose modules are heavy."""
    assert ", ".join(ENGINES) == study_verbs._ENGINES
    assert ", ".join(STATEMENTS) == audit_verbs._STATEMENTS
    assert set(components._MODELS) == set(MODELS)
    assert set(components._TASKS) == set(TASKS)
    assert all(kind in components.list_command.__doc__ for kind in components._listings(""))


def test_no_verb_s_module_imports_what_is_heavy_at_its_top():
    for path in (ROOT / "flwr_robust" / "cli").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert HEAVY.isdisjoint(name.partition(".")[0] for name in names), path


def test_json_is_all_there_is_on_standard_output(tmp_path):
    run = make(tmp_path / "run")
    for arguments, keys in (
        (["list", "rules"], {"rules"}),
        (["describe", "krum"], {"components"}),
        (["audit", "verify", run], {"intact", "lines", "head", "findings", "remarks", "checkpoints"}),
        (["audit", "show", run], {"intact", "rounds"}),
        (["audit", "show", run, "--round", 1], {"intact", "visits"}),
        (["audit", "clients", run], {"intact", "clients", "partitions_are_claims"}),
    ):
        done = call(*arguments, "--json")
        document = json.loads(done.stdout)
        assert (done.exit_code, set(document)) == (0, keys)
        help_text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", call(*arguments[:2], "--help").output).split())
        assert all(key in help_text for key in keys - {"rules"}), arguments
    shown = json.loads(call("audit", "show", run, "--json").stdout)["rounds"]
    assert [entry["round"] for entry in shown] == [1, 2, 3]


def test_wrong_input_leaves_standard_output_empty():
    for arguments in (["list", "rulez"], ["describe", "kurm"], ["report", "nope"]):
        done = call(*arguments, "--json")
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1


def test_doctor_reports_by_exit_status_and_json(monkeypatch):
    def fine(*_arguments, **_options):
        yield doctor.Finding("torch", "ok", "works")
        yield doctor.Finding("ray", "missing", "for runs", "pip install it")

    def broken(*_arguments, **_options):
        yield doctor.Finding("torch", "fault", "no", "reinstall")

    monkeypatch.setattr(doctor, "examine", fine)
    done = call("doctor")
    assert done.exit_code == 0
    assert "all that is needed works" in done.output
    monkeypatch.setattr(doctor, "examine", broken)
    assert "does not work: torch" in call("doctor").output
    done = call("doctor", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (
        1,
        {"usable": False, "parts": [{"part": "torch", "status": "fault", "found": "no", "todo": "reinstall"}]},
    )


def test_record_is_of_the_clone_alone(monkeypatch, tmp_path):
    assert study_verbs.in_clone()
    monkeypatch.setattr(study_verbs, "shipped", lambda name: tmp_path / "shipped" / name)
    assert not study_verbs.in_clone()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_holds_no_number_that_json_has_not(value, capsys):
    from flwr_robust.cli.shared import print_json

    print_json({"a": [value, 1.5, (2,), Path("x"), None, True]})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5, [2], "x", None, True]}
