"""A command that is stopped, however, leaves no process behind and keeps what is finished."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from flwr_robust.cli import app, shared

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
title = "Something short, and something that never ends"
question = "Who is left?"
[config]
task = "digits"
clients = 4
evaluate-every = 2
[axes]
defence = ["mean()"]
length = [{ label = "short", rounds = 2 }, { label = "endless", rounds = 100000000 }]
[report]
rows = "defence"
columns = "length"
"""
PATIENCE = 120  # seconds, on a machine that does much else
PARENT = """
import sys, time
from flwr_robust.studies.flower_run import FlowerRuns
flower = FlowerRuns()
print(flower.home, flush=True)
import subprocess
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", str(flower.home)], start_new_session=True)
print("started", flush=True)
time.sleep(1000)
"""


def alive(processes):
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def family(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    return condition()


@pytest.fixture
def endless(tmp_path):
    """A run whose short cell is finished, and whose endless one is going on; with all its processes."""
    path, results = tmp_path / "endless.toml", tmp_path / "results"
    path.write_text(STUDY)
    command = [sys.executable, "-m", "flwr_robust.cli", "run", str(path), "--results", str(results)]
    process = subprocess.Popen(
        [*command, "--engine", "fast", "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    processes = []
    try:
        assert wait_for(lambda: list(results.glob("endless/*.json"))), process.communicate(timeout=1)
        processes = family(process)
        assert len(processes) >= 3, "two workers"
        yield process, processes, results
    finally:
        for left in alive([*processes, *family(process)]):
            left.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_run_that_is_stopped(endless, number, status):
    process, processes, results = endless
    os.kill(process.pid, number)
    assert process.wait(PATIENCE) == status
    assert wait_for(lambda: not alive(processes)), "orphans"
    (kept,) = results.glob("endless/*.json")
    assert json.loads(kept.read_text())["labels"]["length"] == "short"
    assert not list(results.glob("endless/*.part"))
    if number != signal.SIGKILL:
        assert "what is finished is kept" in process.stderr.read()


SHARDED = """
[config]
task = "digits"
clients = 4
evaluate-every = 2
[axes]
defence = ["mean()"]
rounds = [2, 3, 3000, 3001]
"""


@pytest.mark.slow
def test_a_job_of_an_array_that_is_stopped_continues(tmp_path):
    """The script of docs/large-studies.md: SIGTERM reaches every process of the job, and the same job ends the rest."""
    from flwr_robust.studies.runner import read_failures, read_results
    from flwr_robust.studies.study import load_study

    script = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / "large-studies.md").read_text(), re.DOTALL)[1]
    (tmp_path / "grid.sbatch").write_text(script.replace("SHARDS=8", "SHARDS=2"))
    (tmp_path / "grid.toml").write_text(SHARDED)
    command = tmp_path / "flwr-robust"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flwr_robust.cli "$@"\n')
    command.chmod(0o755)
    results = tmp_path / "results" / "grid"

    def job(part, log):
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SLURM_ARRAY_TASK_ID": str(part),
            "SLURM_CPUS_PER_TASK": "1",
        }
        with (tmp_path / log).open("w") as file:
            options = {"stdout": file, "stderr": file, "start_new_session": True}
            return subprocess.Popen(["bash", "grid.sbatch"], cwd=tmp_path, env=environment, **options)

    jobs = [job(1, "1.log"), job(2, "2.log")]
    try:
        first = jobs[0]
        assert wait_for(lambda: list(results.glob("*-2-*.json"))), (tmp_path / "1.log").read_text()
        processes = family(first)
        assert len(processes) >= 2
        os.killpg(first.pid, signal.SIGTERM)
        assert first.wait(PATIENCE) == 143
        assert "the same command continues from there" in (tmp_path / "1.log").read_text()
        assert wait_for(lambda: not alive(processes)), "orphans"
        study = load_study(str(tmp_path / "grid.toml"))
        assert read_failures(study, results) == {}
        assert not list(results.glob(".*.part"))
        assert not list(results.glob("*-3001-*.json")), "the job was stopped before its last cell"
        jobs.append(job(1, "again.log"))
        assert [each.wait(PATIENCE) for each in jobs[1:]] == [0, 0]
        assert [d["labels"]["rounds"] for d in read_results(study, results)] == ["2", "3", "3000", "3001"]
        assert "finished before, skipped" in (tmp_path / "again.log").read_text()
    finally:
        for left in alive([p for each in jobs for p in family(each)]):
            left.kill()
        for each in jobs:
            each.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_flower_run_started_ends_with_its_parent(number):
    """The keeper stops what names the private home, even in a session of its own, and removes the files."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        home = parent.stdout.readline().strip()
        parent.stdout.readline()

        def mine():
            found = []
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if home in process.cmdline():
                        found.append(process)
            return alive(found)

        assert len(wait_for(lambda: len(mine()) == 2 and mine())) == 2  # the keeper, and what was started
        os.kill(parent.pid, number)
        parent.wait(PATIENCE)
        assert wait_for(lambda: not mine() and not os.path.exists(home))


def test_sigterm_raises_only_inside_and_the_second_changes_nothing(capsys):
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def stopped():
        with shared.told():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(PATIENCE)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # what cleans up is not disturbed
                cleaned.append(True)

    with pytest.raises(shared.typer.Exit) as caught:
        stopped()
    assert (caught.value.exit_code, cleaned) == (143, [True])
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("verb", ["run", "reproduce", "red-team", "league", "demo"])
def test_every_verb_that_takes_long_ends_with_143(monkeypatch, verb, tmp_path):
    def stopped(*_arguments, **_options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)

    monkeypatch.setattr("flwr_robust.studies.runner.run_study", stopped)
    monkeypatch.setattr("flwr_robust.redteam.run.red_team", stopped)
    monkeypatch.setattr("flwr_robust.redteam.league.run_league", stopped)
    arguments = {
        "run": ["demo"],
        "reproduce": ["rfa"],
        "red-team": ["--defence", "krum(f=1)"],
        "league": ["--run"],
        "demo": [],
    }[verb]
    done = CliRunner().invoke(app, [verb, *arguments, "--results", str(tmp_path / "new")])
    assert done.exit_code == 143
    assert "the same command continues from there" in done.stderr
