"""Cells that fail leave their reason, are told apart from missing ones, and run again."""

import json

import pytest
from typer.testing import CliRunner

from flwr_robust.cli import app
from flwr_robust.core.spec import PLUGINS
from flwr_robust.errors import ConfigurationError, FlwrRobustError
from flwr_robust.studies import export
from flwr_robust.studies.failures import cells_in_words, failure_path, grouped, is_failure
from flwr_robust.studies.runner import read_failures, read_results, run_study
from flwr_robust.studies.study import load_study

STUDY = """
title = "small"
question = "what fails?"
[config]
task = "digits"
rounds = 1
evaluate-every = 1
[axes]
defence = ["mean()", "median()"]
batch-size = [8, 16]
seed = [0, 1]
"""
DONE = {
    "curve": [{"round": 1, "accuracy": 0.5, "loss": 1.0}],
    "seconds": 1.0,
    "attackers_weight": 0.0,
    "mean_weights": [0.1],
    "model_sha256": "0" * 64,
    "outcomes": {"OK": 1},
    "refused": [],
}


@pytest.fixture
def study(tmp_path):
    (tmp_path / "small.toml").write_text(STUDY)
    return load_study(str(tmp_path / "small.toml"))


@pytest.fixture
def failing(monkeypatch):
    """Let the cells of which the predicate holds fail with an error; the others have a result at once."""

    def choose(fails, error):
        def some(cells, workers, run):
            for cell in cells:
                yield cell, error if fails(cell.labels) else DONE

        monkeypatch.setattr("flwr_robust.studies.runner._in_processes", some)

    return choose


def of_median(labels):
    return labels["defence"] == "median()"


def test_a_failed_cell_leaves_its_reason_until_it_succeeds(study, failing, tmp_path):
    folder = tmp_path / "results"
    failing(of_median, RuntimeError("out of luck"))
    summary = run_study(study, folder)
    assert (summary.finished, len(summary.failed)) == (4, 4)
    reasons = {("median()", size, seed): "RuntimeError: out of luck" for size in ("8", "16") for seed in ("0", "1")}
    assert read_failures(study, folder) == reasons
    assert len(read_results(study, folder)) == 4

    cell = next(cell for cell in study.cells if of_median(cell.labels))
    document = json.loads(failure_path(folder, cell).read_text())
    assert (document["error"], document["sentence"]) == ("RuntimeError", "out of luck")
    assert (document["labels"], document["config"]) == (dict(cell.labels), cell.config.to_mapping())
    assert document["config_digest"] == cell.digest
    assert document["finished"]
    assert document["versions"]["flwr-robust"]

    failing(lambda labels: of_median(labels) and labels["seed"] == "1", ConfigurationError("two are left"))
    again = run_study(study, folder)
    assert (again.finished, again.skipped) == (2, 4)
    assert set(read_failures(study, folder).values()) == {"ConfigurationError: two are left"}
    failing(lambda labels: False, None)
    assert run_study(study, folder).failed == {}
    assert read_failures(study, folder) == {}
    assert not any(map(is_failure, folder.iterdir()))


def test_a_result_from_elsewhere_ends_a_failure_too(study, failing, tmp_path):
    failing(of_median, RuntimeError("out of luck"))
    run_study(study, tmp_path / "one")
    failing(lambda labels: False, None)
    run_study(study, tmp_path / "two")
    summary = run_study(study, tmp_path / "one", others=tmp_path)
    assert (summary.finished, summary.skipped) == (0, 8)
    assert not any(map(is_failure, (tmp_path / "one").iterdir()))


def test_only_what_has_no_result_has_failed(study, failing, tmp_path):
    failing(of_median, RuntimeError("out of luck"))
    run_study(study, tmp_path)
    left = {
        failure_path(tmp_path, c): failure_path(tmp_path, c).read_text() for c in study.cells if of_median(c.labels)
    }
    failing(lambda labels: False, None)
    run_study(study, tmp_path)
    for path, text in left.items():  # as if the process had ended between the two steps
        path.write_text(text)
    assert read_failures(study, tmp_path) == {}
    assert len(read_results(study, tmp_path)) == 8
    assert "failed" not in set(export.load(tmp_path, failed=True)["failed"].map(bool))


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_file_is_named(study, tmp_path, text):
    failure_path(tmp_path, study.cells[0]).write_text(text)
    with pytest.raises(FlwrRobustError, match=r"failed\.json cannot be read; delete it"):
        read_failures(study, tmp_path)


def test_data_frames_have_failed_cells_only_if_asked(study, failing, tmp_path):
    failing(of_median, RuntimeError("out of luck"))
    run_study(study, tmp_path)
    assert len(export.load(tmp_path)) == 4
    table = export.load(tmp_path, failed=True)
    assert len(table) == 8
    assert set(table[table["failed"] == ""]["defence"]) == {"mean()"}
    broken = table[table["failed"] == "RuntimeError: out of luck"]
    assert (set(broken["defence"]), len(broken), broken["accuracy"].notna().sum()) == ({"median()"}, 4, 0)
    with pytest.raises(ConfigurationError, match="failed must be True or False"):
        export.load(tmp_path, failed="yes")


def test_equal_reasons_stand_together_and_cells_are_named_in_short():
    found = grouped({("a", "0"): "x", ("a", "1"): "y", ("b", "0"): "y"})
    assert list(found.items()) == [("y", [("a", "1"), ("b", "0")]), ("x", [("a", "0")])]
    axes = {"rule": ["a", "b", "c"], "seed": ["0", "1", "2"], "only": ["it"]}
    product = [(rule, seed, "it") for rule in ("a", "c") for seed in ("0", "1", "2")]
    assert cells_in_words(axes, product) == "rule a or c, every seed"
    assert cells_in_words(axes, product[1:]).endswith("rule c, seed 1; and 1 more")


@pytest.mark.parametrize("as_json", [False, True])
def test_run_and_report_tell_what_failed_and_why(study, failing, tmp_path, as_json):
    flags = ["--json"] if as_json else []

    def call(verb):
        return CliRunner().invoke(app, [verb, str(tmp_path / "small.toml"), "--results", str(tmp_path), *flags])

    failing(lambda labels: True, RuntimeError("out of luck"))
    assert call("run").exit_code == 1
    done = call("report")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "8 cells failed, 8 of them with RuntimeError: out of luck; run `" in done.stderr.replace("\n", " ")

    failing(of_median, RuntimeError("[bold]out\x1b of luck[/bold] " + "x" * 1000 + " the end"))
    ran, shown = call("run"), call("report")
    assert (ran.exit_code, shown.exit_code) == (1, 0), shown.output
    if as_json:
        assert len(json.loads(ran.stdout)["failed"]) == 4
        first = json.loads(shown.stdout)["failed"][0]
        assert first["labels"] == {"defence": "median()", "batch-size": "8", "seed": "0"}
        assert first["reason"].endswith("the end")
        return
    for output in (ran.stdout, shown.stdout):
        assert max(map(len, output.splitlines()[:-1])) <= 100
        text = " ".join(output.replace("│", " ").split())
        assert "failed 4 defence median(), every batch-size, every seed: RuntimeError: [bold]out\\x1b of luck" in text
        assert "the end" in text
    assert "4 of 8 cells are not finished, 4 of them failed" in shown.stdout


def test_a_model_that_fails_ends_the_study_before_its_first_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PLUGINS, "")
    (tmp_path / "bad.py").write_text("import torch\n\ndef wrong(shape, classes):\n    return torch.nn.Flatten()\n")
    text = '[config]\nmodel = "bad.py:wrong"\nrounds = 1\n[axes]\ndefence = ["mean()", "median()"]\n'
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"model bad\.py:wrong: "):
        run_study(load_study("own.toml"), tmp_path / "results", engine="fast", workers=1)
    assert not list((tmp_path / "results").glob("*.json"))
