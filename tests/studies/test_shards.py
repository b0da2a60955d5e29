"""Parts of a study that run apart: together they are the whole, and each has its share of every axis."""

import json
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flwr_robust.cli import app
from flwr_robust.errors import ConfigurationError
from flwr_robust.studies.runner import read_results, run_study, survey
from flwr_robust.studies.shards import WHOLE, Shard, read_shard
from flwr_robust.studies.study import load_study
from tests.studies.test_failures import DONE

STUDY = """
[config]
task = "digits"
rounds = 1
attack = "alie()"
[axes]
defence = ["trimmed_mean(f={f})", "krum(f={f})", "median()"]
partition = ["iid", "by_label"]
f = [0, 1, 2]
seed = [0, 1]
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "small.toml").write_text(STUDY)
    return load_study(str(tmp_path / "small.toml"))


@pytest.fixture
def ran(monkeypatch):
    """Give every run a result at once, and return the cells that were run."""
    cells_run = []

    def some(cells, workers, run):
        for cell in cells:
            cells_run.append(cell)
            if cell.labels["defence"] == "median()" and cell.labels["seed"] == "1":
                yield cell, RuntimeError("out of luck")
            else:
                yield cell, DONE

    monkeypatch.setattr("flwr_robust.studies.runner._in_processes", some)
    return cells_run


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 36, 100])
def test_shards_together_are_the_whole(study, count):
    held = [[cell.name for cell in Shard(index, count).cells(study)] for index in range(1, count + 1)]
    assert sorted(name for names in held for name in names) == sorted(cell.name for cell in study.cells)
    runs = [len({cell.digest for cell in Shard(index, count).cells(study)}) for index in range(1, count + 1)]
    assert max(runs) - min(runs) <= 1


@pytest.mark.parametrize("count", [2, 3, 6])
def test_no_axis_is_one_shard_s_alone(study, count):
    for axis, labels in study.axes.items():
        for index in range(1, count + 1):
            found = Counter(cell.labels[axis] for cell in Shard(index, count).cells(study))
            assert set(found) == set(labels), (axis, index)
            assert max(found.values()) <= 2 * min(found.values()), (axis, index, found)


def test_cells_of_one_run_stay_together(tmp_path):
    path = tmp_path / "twins.toml"
    path.write_text(
        '[axes]\nattack = ["none", "alie()", "zero()"]\nf = [0, 1]\ndefence = ["krum(f={f})"]\n'
    )  # without attackers all attacks are the same
    study = load_study(str(path))
    owners = {}
    for index in (1, 2, 3):
        for cell in Shard(index, 3).cells(study):
            owners.setdefault(cell.digest, set()).add(index)
    assert len(owners) == 4
    assert all(len(found) == 1 for found in owners.values())


def test_shards_in_one_folder_are_the_study_s_results(study, ran, tmp_path):
    summaries = [run_study(study, tmp_path / "parts", shard=Shard(index, 3)) for index in (1, 2, 3)]
    run_once = [cell.digest for cell in ran]
    assert len(run_once) == len(set(run_once))
    whole = run_study(study, tmp_path / "whole")
    assert sum(summary.finished for summary in summaries) == whole.finished == 30
    assert {name for summary in summaries for name in summary.failed} == set(whole.failed)
    parts, all_ = (read_results(study, tmp_path / name) for name in ("parts", "whole"))
    assert [d["labels"] for d in parts] == [d["labels"] for d in all_]
    # A shard is the same when others have finished.
    ran.clear()
    assert run_study(study, tmp_path / "parts", shard=Shard(2, 3)).skipped == summaries[1].finished
    assert {cell.name for cell in ran} == set(summaries[1].failed)


@pytest.mark.parametrize("text", ["0/3", "4/3", "x", "1", "1/0", "-1/3", "1/3/3", "1.0/3", "", "1/3x"])
def test_a_wrong_shard_is_one_sentence(text, tmp_path):
    with pytest.raises(ConfigurationError, match="--shard must be I/N, two whole numbers with 1 <= I <= N"):
        read_shard(text)
    for verb in (["run", "demo"], ["reproduce", "rfa"]):
        done = CliRunner().invoke(app, [*verb, f"--shard={text}", "--results", str(tmp_path)])
        assert (done.exit_code, done.output.count("error: ")) == (2, 1)
    assert read_shard("3/3") == Shard(3, 3)
    assert read_shard("1/1") == WHOLE


def test_the_command_runs_a_shard_and_lists_cells_without_a_run(study, ran, tmp_path):
    def call(*arguments):
        done = CliRunner().invoke(app, ["run", str(tmp_path / "small.toml"), "--results", str(tmp_path), *arguments])
        assert max(map(len, done.stdout.splitlines() or [""])) <= 100 or "--json" in arguments
        return done

    done = call("--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("waiting") == 36 + 1
    assert not (tmp_path / "small").exists()
    assert ran == []
    assert call("--shard", "1/2").exit_code == 1
    cells = json.loads(call("--dry-run", "--json").stdout)["cells"]
    assert [cell["labels"] for cell in cells] == [dict(cell.labels) for cell in study.cells]
    assert Counter(cell["state"] for cell in cells) == {"finished": 15, "failed": 3, "waiting": 18}
    listed = " ".join(call("--dry-run", "--shard", "1/2").stdout.replace("│", " ").split())
    assert "failed 3 defence median()" in listed
    assert "waiting 0" in listed
    assert "finished 15" in listed


def test_what_another_study_has_run_is_listed_as_such(study, ran, tmp_path):
    run_study(study, tmp_path / "other")
    states = [state for _, state in survey(study, tmp_path / "small", others=tmp_path)]
    assert Counter(states) == {"finished elsewhere": 30, "waiting": 6}
    assert run_study(study, tmp_path / "small", others=tmp_path).skipped == 30


def test_a_paper_in_shards_is_run_and_not_reported(monkeypatch, tmp_path):
    from flwr_robust.studies.runner import Summary

    asked = []

    def some(study, folder, *, shard, **options):
        asked.append((study.name, shard))
        return Summary(1, 2, {})

    monkeypatch.setattr("flwr_robust.studies.runner.run_study", some)
    arguments = ["reproduce", "rfa", "--study", "rfa_tail", "--shard", "2/4", "--results", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert asked == [("rfa_tail", Shard(2, 4))]
    assert "report" not in done.output
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert document["studies"][0]["finished"] == 1
    assert CliRunner().invoke(app, [*arguments, "--recorded"]).exit_code == 2


def test_the_study_and_the_scripts_of_the_docs_are_sound(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "large-studies.md").read_text()
    toml, bash = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("toml", "bash"))
    scripts = [bash, *re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text(toml)
    study = load_study("grid.toml")
    assert f"its {len(study.cells)} cells" in text
    nnm = [c.config for c in study.cells if c.labels["before"] == "nnm" and c.labels["rule"].startswith("krum")]
    assert {(c.defence, c.attack, c.attackers, c.clients) for c in nnm} == {
        ("nnm(f=0) | krum(f=0)", "none", 0, 11),
        ("nnm(f=1) | krum(f=1)", "alie()", 1, 11),
        ("nnm(f=2) | krum(f=2)", "alie()", 2, 11),
    }
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        for line in script.splitlines():
            words = shlex.split(line.partition("flwr-robust run ")[2].replace("$SLURM_ARRAY_TASK_ID/$SHARDS", "2/8"))
            words = [word.replace("{}", "1").replace("${SLURM_CPUS_PER_TASK:-1}", "1") for word in words]
            if words:
                end = words.index(":::") if ":::" in words else words.index("&") if "&" in words else len(words)
                done = CliRunner().invoke(app, ["run", *words[:end], "--dry-run"])
                assert (done.exit_code, "waiting" in done.stdout) == (0, True), done.output
