"""Studies: reading them, running their cells once, rendering what came of them."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flwr_robust.cli import app
from flwr_robust.errors import ConfigurationError, FlwrRobustError, UnknownNameError
from flwr_robust.flower import serve
from flwr_robust.studies import report, sheets
from flwr_robust.studies.failures import is_failure
from flwr_robust.studies.runner import read_results, run_in_process_cell, run_study
from flwr_robust.studies.study import STUDIES, load_study
from flwr_robust.tasks import TARGETS

SMALL = """
title = "small"
question = "does it run?"
[config]
task = "digits"
rounds = 3
evaluate-every = 2
attack = "label_flip()"
attackers = 1
[axes]
defence = ["mean()", "median()"]
setting = [{ label = "same", partition = "iid" }, { label = "apart", partition = "by_label", weight-decay = 0.01 }]
seed = [0, 1]
[report]
rows = "defence"
columns = "setting"
baseline = "mean()"
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return str(path)


@pytest.fixture
def make_small(tmp_path):
    """Read the small study with parts of its text replaced."""

    def load(*replaced):
        text = SMALL
        for old, new in zip(replaced[::2], replaced[1::2], strict=True):
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "small.toml"
        path.write_text(text)
        return load_study(str(path))

    return load


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_cells_are_the_product_of_the_axes(small):
    study = load_study(small)
    assert len(study.cells) == 8
    assert study.axes == {"defence": ("mean()", "median()"), "setting": ("same", "apart"), "seed": ("0", "1")}
    apart = [cell.config for cell in study.cells if cell.labels["setting"] == "apart"]
    assert {(c.partition, c.weight_decay) for c in apart} == {("by_label", 0.01)}
    assert len({cell.name for cell in study.cells}) == 8


def test_digest_is_of_what_is_run_not_where(small):
    here, there = load_study(small), load_study(small, {"data": "/elsewhere"})
    longer = load_study(small, {"rounds": 4})
    assert [c.digest for c in here.cells] == [c.digest for c in there.cells]
    assert not {c.digest for c in here.cells} & {c.digest for c in longer.cells}


@pytest.mark.usefixtures("in_this_process")
def test_a_result_of_another_configuration_is_refused(small, tmp_path):
    study, folder = load_study(small), tmp_path / "results"
    run_study(study, folder, workers=2)
    path = sorted(folder.glob("*.json"))[0]
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "config": {**document["config"], "alpha": 0.2}}))
    for look in (read_results, run_study):
        with pytest.raises(FlwrRobustError, match="is of another alpha; delete it"):
            look(study, folder)
    del document["config"]["alpha"]  # a key that is younger than the result
    path.write_text(json.dumps(document))
    assert len(read_results(study, folder)) == 8


def test_cells_run_once_and_resume(small, tmp_path):
    study, folder = load_study(small), tmp_path / "results"
    first = run_study(study, folder, workers=2)
    assert (first.finished, first.skipped, first.failed) == (8, 0, {})
    documents = read_results(study, folder)
    assert [d["labels"] for d in documents] == [dict(c.labels) for c in study.cells]
    for document in documents:
        assert [p["round"] for p in document["curve"]] == [0, 2, 3]
        assert document["declared_f"] is None
        assert document["real_f"] == 1
        assert sum(document["mean_weights"]) == pytest.approx(1)
        assert document["versions"]["flwr"]
    lost = sorted(folder.glob("*.json"))[3]
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*.json") if p != lost}
    lost.unlink()
    again = run_study(study, folder, workers=1)
    assert (again.finished, again.skipped) == (1, 7)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not list(folder.glob("*.part"))


def test_cells_of_one_configuration_run_once(tmp_path, monkeypatch):
    path = tmp_path / "small.toml"
    path.write_text(
        SMALL.replace('["mean()", "median()"]', '[{ label = "mean()", alpha = 0.2 }, { label = "b", alpha = 0.2 }]')
    )
    with pytest.warns(UserWarning, match=r"mean\(\) and b of axis defence give the same runs; leave one out"):
        study = load_study(str(path))
    ran = []

    def some(cells, workers, run):
        for cell in cells:
            ran.append(cell)
            yield cell, {"curve": [{"accuracy": 0.5, "loss": 1.0}], "seconds": 1.0}

    monkeypatch.setattr("flwr_robust.studies.runner._in_processes", some)
    summary = run_study(study, tmp_path / "results")
    assert (len(ran), summary.finished) == (4, 8)
    found = read_results(study, tmp_path / "results")
    assert [d["labels"] for d in found] == [dict(cell.labels) for cell in study.cells]


def test_a_cell_that_another_study_has_run_is_taken_from_there(small, tmp_path, monkeypatch):
    other = tmp_path / "other.toml"
    other.write_text(SMALL.replace('["mean()", "median()"]', '["mean()", "krum(f=1)"]').replace('"same"', '"alike"'))
    one, two = load_study(small), load_study(str(other))
    ran = []

    def some(cells, workers, run):
        for cell in cells:
            ran.append(cell.config.defence)
            yield cell, {"curve": [{"accuracy": 0.5, "loss": 1.0}], "seconds": 1.0}

    monkeypatch.setattr("flwr_robust.studies.runner._in_processes", some)
    results = tmp_path / "results"
    run_study(one, results / "one", others=results)
    spoilt = next(path for path in (results / "one").glob("mean*.json"))
    spoilt.write_text("{}")
    ran.clear()
    summary = run_study(two, results / "two", others=results)
    # Of the four cells of the mean three are taken over; what cannot be read is run once more.
    assert sorted(ran) == ["krum(f=1)"] * 4 + ["mean()"]
    assert (summary.finished, summary.skipped) == (5, 3)
    found = read_results(two, results / "two")
    assert {document["study"] for document in found} == {two.name}
    assert [d["labels"] for d in found] == [dict(cell.labels) for cell in two.cells]


@pytest.mark.usefixtures("in_this_process")
def test_a_study_may_attack_messages(small, tmp_path):
    keys = {"rounds": 2, "attack": "optimised(base='ipm(epsilon=1.0)', budget=3)", "knowledge": "defence"}
    study = load_study(small, keys)
    summary = run_study(study, tmp_path / "results", workers=1)
    assert (summary.finished, summary.failed) == (8, {})
    for document in read_results(study, tmp_path / "results"):
        assert (document["config"]["attack"], document["config"]["knowledge"]) == (keys["attack"], "defence")
        assert document["real_f"] == 1


def test_a_failing_cell_is_named_and_the_others_finish(small, tmp_path, monkeypatch):
    study, folder = load_study(small), tmp_path / "results"
    folder.mkdir()

    def some(cells, workers, run):
        for index, cell in enumerate(cells):
            yield cell, (RuntimeError("out of luck") if index == 2 else {"curve": [{"accuracy": 0.5, "loss": 1.0}]})

    monkeypatch.setattr("flwr_robust.studies.runner._in_processes", some)
    summary = run_study(study, folder)
    assert summary.finished == 7
    assert summary.failed == {study.cells[2].name: "RuntimeError: out of luck"}
    assert len([path for path in folder.glob("*.json") if not is_failure(path)]) == 7


def documents_of(study, accuracy, success=None):
    """Results as the runner writes them, with accuracies, and an attack's success, from functions of the labels."""
    return [
        {
            "labels": dict(cell.labels),
            "config": cell.config.to_mapping(),
            "config_digest": cell.digest,
            "declared_f": None,
            "real_f": 1,
            "engine": "in-process",
            "final": {
                "accuracy": accuracy(cell.labels),
                "loss": 1.0,
                **({} if success is None else {"attack_success": success(cell.labels)}),
            },
            "curve": [{"round": 0, "accuracy": 0.1}, {"round": 3, "accuracy": accuracy(cell.labels)}],
            "best_accuracy": max(0.1, accuracy(cell.labels)),
            "model_sha256": "0" * 64,
            "outcomes": {"OK": 3},
            "refused": [],
            "mean_weights": [0.25] * 4,
            "attackers_weight": 0.1,
            "seconds": 1.0,
            "finished": "2026-01-01",
            "machine": {"cpus": 2, "system": "Linux", "python": "3.11"},
            "versions": {"flwr": "1.41"},
        }
        for cell in study.cells
    ]


def two_rows(study, gap, noise):
    """Results in which the mean leads the median by a gap with a noise by seed, and both share what a seed does."""

    def accuracy(labels):
        common = 0.6 + 0.1 * int(labels["seed"])
        return common + (gap + noise[int(labels["seed"])] if labels["defence"] == "mean()" else 0.0)

    return documents_of(study, accuracy)


def test_the_sentence_follows_the_paired_differences(make_small):
    """Seeds differ by ten points, the rows by two in each: only pairs tell the rows apart."""
    study = make_small("seed = [0, 1]", "seed = [0, 1, 2]")
    (section,) = sheets.summarise(study, two_rows(study, 0.02, (0.0, 0.001, -0.001)))
    sentence = sheets.conclude(study, section)
    # The t quantile with 2 degrees of freedom is 4.303: 4.303 * 10 / sqrt(3) = 24.8 points, and 0.2 for the pairs.
    assert "With same, mean() (72.0 ± 24.7 %) beats the best other rule, median() (70.0 ± 24.8 %)" in sentence
    assert "paired difference +2.0 points, from +1.8 to +2.2" in sentence
    (turned,) = sheets.summarise(study, two_rows(study, -0.02, (0.0, 0.001, -0.001)))
    assert "mean() (68.0 ± 24.7 %) loses to the best other rule" in sheets.conclude(study, turned)
    (unclear,) = sheets.summarise(study, two_rows(study, 0.02, (0.0, 0.02, -0.02)))
    assert "cannot be told from the best other rule" in sheets.conclude(study, unclear)
    assert "from -3.0 to +7.0" in sheets.conclude(study, unclear)


def test_one_seed_gives_no_interval(make_small):
    study = make_small("seed = [0, 1]", "seed = [0]")
    (section,) = sheets.summarise(study, two_rows(study, 0.3, (0.0,)))
    sentence = sheets.conclude(study, section)
    assert "mean() (90.0 %) is 30.0 points above the best other rule, median() (60.0 %)" in sentence
    assert "in one seed, which gives no interval" in sentence
    measured, difference = sheets.sheets(study, section)
    assert measured.caption == "final test accuracy, %, higher is better; n = 1 seed, so no interval"
    assert difference.rows == (("median()", "-30.0", "-30.0"),)
    assert difference.caption.endswith("n = 1, so no interval")
    assert not any(sheet.numbers[0, 0].half == sheet.numbers[0, 0].half for sheet in (measured, difference))


def test_differences_are_paired_over_common_seeds_and_say_so(make_small):
    study = make_small("seed = [0, 1]", "seed = [0, 1, 2]")
    documents = two_rows(study, 0.02, (0.0, 0.001, -0.001))
    gone = {"defence": "mean()", "setting": "same", "seed": "2"}
    (section,) = sheets.summarise(study, [d for d in documents if d["labels"] != gone])
    measured, difference = sheets.sheets(study, section)
    assert measured.rows[0][1] == "67.0 ± 64.2 (n = 2)"
    assert measured.caption.endswith("n = 3 seeds where a cell says no other n")
    assert difference.rows == (("median()", "-2.1 ± 0.6* (n = 2)", "-2.0 ± 0.2*"),)
    assert (difference.numbers[0, 0].n, difference.numbers[0, 1].n) == (2, 3)
    assert difference.numbers[0, 1].high < 0
    assert measured.best == {(0, 1), (1, 0)}  # the mean over other seeds is another mean


@pytest.mark.parametrize(
    ("spread", "cell", "words"),
    [
        ("interval", "61.0 ± 12.7", "mean ± half of its 95 % t-interval, n = 2 seeds"),
        ("deviation", "61.0 ± 1.4", "mean ± standard deviation, n = 2 seeds"),
        ("points", "61.0 (60.0, 62.0)", "mean, and in brackets each seed, n = 2 seeds"),
    ],
)
def test_what_stands_beside_a_mean_is_chosen_and_said(make_small, spread, cell, words):
    study = make_small('baseline = "mean()"', f'spread = "{spread}"')
    (section,) = sheets.summarise(study, documents_of(study, lambda labels: 0.6 + 0.02 * int(labels["seed"])))
    (sheet,) = sheets.sheets(study, section)
    assert sheet.rows[0][1] == cell
    assert sheet.caption.endswith(words)


def test_report_is_one_file_with_the_numbers(small, tmp_path):
    study = load_study(small)
    documents = documents_of(study, lambda labels: 0.75 if labels["defence"] == "mean()" else 0.5)
    page = report.write_report(report.render(study, documents[:-1], tmp_path), "flwr-robust run small").read_text()
    assert "75.0" in page
    assert "7 of 8 cells" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched from anywhere
    assert all(cell.digest in page for cell in study.cells[:-1])
    assert "What the project says" not in page
    noted = report.write_report(report.render(study, documents, tmp_path), "run", ["a < b", "Second."]).read_text()
    assert noted.index("What the project says") < noted.index("<p>a &lt; b</p>") < noted.index("<p>Second.</p>")
    for name in ("final.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_table_marks_the_best(small):
    study = load_study(small)
    documents = documents_of(study, lambda labels: 0.75 if labels["defence"] == "mean()" else 0.5)
    (section,) = sheets.summarise(study, documents)
    table, _ = sheets.tables(study, section)
    assert [cell.markup for cell in table.columns[1].cells] == ["[bold]75.0 ± 0.0[/bold]", "50.0 ± 0.0"]


def test_the_attack_s_success_has_a_table_where_it_is_defined(small, tmp_path):
    study = load_study(small)

    def accuracy(labels):
        return 0.75

    def success(labels):
        return (0.3 if labels["defence"] == "mean()" else 0.0125) + 0.02 * int(labels["seed"])

    with_success, without = documents_of(study, accuracy, success), documents_of(study, accuracy)
    *_, table = sheets.tables(study, sheets.summarise(study, with_success)[0])
    assert table.title.plain.startswith("final success of the attack, %, lower is better; mean ± half")
    assert [cell.markup for cell in table.columns[1].cells] == ["31.0 ± 12.7", "[bold]2.2 ± 12.7[/bold]"]
    assert len(list(sheets.tables(study, sheets.summarise(study, without)[0]))) == 2
    page = report.write_report(report.render(study, with_success[1:], tmp_path), "run").read_text()
    assert "success of the attack, %" in page
    assert "31.0 ± 12.7" in page
    assert "32.0" in page  # the cell of the mean that has one seed only
    page = report.write_report(report.render(study, without, tmp_path), "run").read_text()
    assert "success of the attack, %" not in page


@pytest.mark.usefixtures("in_this_process")
def test_a_backdoor_s_success_reaches_the_results_and_the_terminal(small, tmp_path):
    text = Path(small).read_text().replace("label_flip()", "backdoor(target=0)").replace("[0, 1]", "[0]")
    Path(small).write_text(text)
    done = invoke("run", small, "--results", tmp_path, "--workers", 1)
    assert done.exit_code == 0, done.output
    for document in read_results(load_study(small), tmp_path / "small"):
        assert set(document["final"]) == {*TARGETS["class"].metrics, "attack_success"}
        assert all(0 <= point["attack_success"] <= 1 for point in document["curve"])
        assert document["attackers_weight"] == pytest.approx(document["mean_weights"][-1])
    assert "final success of the attack, %" in invoke("report", small, "--results", tmp_path).output


def test_an_attack_that_does_not_fit_the_data_stops_a_study_before_it_runs(small, tmp_path):
    Path(small).write_text(Path(small).read_text().replace("label_flip()", "backdoor(target=10)"))
    done = invoke("run", small, "--results", tmp_path)
    assert done.exit_code == 2
    assert "backdoor: target must be below the task's 10 classes; got 10" in done.output.replace("\n", " ")


WRONG = [
    ("[axes]\nseed = [0]\n[confg]\nrounds = 1\n", UnknownNameError, "table of study.*'confg'.*config"),
    ("[config]\nrounds = 1\n", ConfigurationError, r"\[axes\]"),
    ('[axes]\ndefence = ["mean()"]\nseed = []\n', ConfigurationError, r"axis seed must be a list .* got \[\]"),
    ("[axes]\nseed = 0\n", ConfigurationError, "axis seed must be a list of at least one value; got 0"),
    ("[axes]\n", ConfigurationError, "at least one axis, a list of values; got none"),
    (
        "[axes]\nseed = [0]\n[[exceptions]]\nwhere = { seed = 0 }\nset = { alpha = 0.2 }\n",
        ConfigurationError,
        "are texts; got seed = 0: put it in quotes",
    ),
    (
        '[axes]\nseed = [0]\n[report]\nplots = ["metrics"]\nmetrics = ["xx"]\n',
        ConfigurationError,
        "metrics must be one",
    ),
    (
        '[axes]\nseed = [0]\nalpha = [1.0]\n[report]\nrows = "alpha"\ncolumns = "seed"\nplots = ["winners"]\n'
        'contest = "alpha"\n',
        ConfigurationError,
        "contest must be a third axis; got alpha",
    ),
    ('[axes]\ndefence = ["krum(f=9)"]\n', ConfigurationError, "cell defence=krum.*n >= 2f"),
    ("[axes]\nsedd = [0]\n", ConfigurationError, "sedd is no variable.*configuration key 'sedd'.*seed"),
    (
        '[axes]\nseed = [0]\n[report]\nrows = "rule"\n',
        UnknownNameError,
        "axis in rows of .report. of study.*'rule'.*seed",
    ),
    ("[axes\n", ConfigurationError, "no TOML"),
    ("axes = 3\n", ConfigurationError, r"\[axes\] must be a table"),
    ("config = 3\n[axes]\nseed = [0]\n", ConfigurationError, r"\[config\] must be a table"),
    ('[axes]\nseed = [0]\n[report]\ncolums = "seed"\n', UnknownNameError, "key of .report.*'colums'.*columns"),
    ('[axes]\nseed = [0]\n[report]\nrows = ["seed"]\n', ConfigurationError, "rows of .report. must be a text"),
    ('[axes]\nseed = [0]\n[report]\nplots = "bars"\n', ConfigurationError, "plots of .report. must be a list of texts"),
    ('[axes]\nseed = [0]\n[report]\nplots = ["pie"]\n', ConfigurationError, "plots must be one of bars.*'pie'"),
    (
        '[axes]\nseed = [0]\n[report]\ntake = "mean"\n',
        ConfigurationError,
        "take must be one of best, best_on_test, final",
    ),
    ('[axes]\nseed = [0]\n[report]\nplots = ["winners"]\n', ConfigurationError, "winners and the axis contest"),
    ('[axes]\nseed = [0]\n[report]\nplots = ["metrics"]\n', ConfigurationError, "metrics and the list metrics"),
    ('[axes]\nseed = [0]\n[report]\nagainst = "2"\n', UnknownNameError, "against of study.*'2'.*allowed: all"),
    ('[axes]\nseed = [0]\n[report]\nbaseline = "1"\n', UnknownNameError, "baseline of study.*'1'.*allowed: 0"),
    ('[axes]\nseed = [0]\nalpha = [1.0]\n[report]\nrows = "seed"\ncolumns = "seed"\n', ConfigurationError, "two axes"),
    (
        "[config]\nalpha = 0.2\n[axes]\nalpha = [0.1, 0.3]\n",
        ConfigurationError,
        r"alpha of \[config\] has no effect, every value of axis alpha replaces it",
    ),
    (
        '[config]\nbatch_size = 2\n[axes]\nsize = [{ label = "a", batch-size = 4 }, { label = "b", batch-size = 8 }]\n',
        ConfigurationError,
        r"batch-size of \[config\] has no effect, every value of axis size",
    ),
    (
        '[axes]\nalpha = [0.1]\nsize = [{ label = "a", alpha = 0.2 }]\n',
        ConfigurationError,
        "alpha of axis alpha has no effect, every value of axis size replaces it",
    ),
    ("[config]\nbatch-size = 2\nbatch_size = 2\n[axes]\nseed = [0]\n", ConfigurationError, "batch-size is given twice"),
    ("[axes]\nseed = [0, 0]\n", ConfigurationError, "labels of axis seed must differ; got 0, 0: give each value once"),
    ("[axes]\nx = [{ alpha = 0.1 }, { gamma = 0.1 }]\n", ConfigurationError, "must differ.*and tables of keys a label"),
    ("[axes]\nx = [{}]\n", ConfigurationError, "axis x: label must be a text of at least one letter"),
    (
        "[axes]\nseed = [[0]]\n",
        ConfigurationError,
        r"axis seed: values are texts, numbers, booleans or tables .* got \[0\]",
    ),
    (
        '[axes]\nx = [{ label = "a b", seed = 1 }, { label = "a_b", seed = 1 }]\n',
        ConfigurationError,
        "the cells a b and a_b would have one file of results",
    ),
    (
        '[axes]\nsize = [{ label = "a", clients = 4 }, { label = "a", clients = 6 }]\n',
        ConfigurationError,
        "labels of axis size must differ",
    ),
]


def test_a_run_in_which_nobody_could_train_is_a_failure_and_no_result(small, tmp_path, monkeypatch):
    import flwr_robust.app.client

    def broken(context):
        raise RuntimeError("out of luck")

    values = {**load_study(small).cells[0].config.to_mapping(), "rounds": 2}
    monkeypatch.setattr(flwr_robust.app.client, "app", serve(broken))
    with pytest.raises(FlwrRobustError, match=r"^run: 0 of 2 rounds changed the model; .*RuntimeError: out of luck"):
        run_in_process_cell(values)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="device"):
            run_in_process_cell({**values, "device": "cuda"})


@pytest.mark.parametrize(("text", "kind", "words"), WRONG)
def test_wrong_studies_are_one_sentence(tmp_path, text, kind, words):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(kind, match=words):
        load_study(str(path))


def test_every_study_of_the_project_is_sound():
    for path in STUDIES.glob("*.toml"):
        study = load_study(path.stem)
        if study.rows == "defence":  # rules are compared with one of them; other rows need no baseline
            assert study.baseline in study.axes[study.rows]
        assert study.title
        assert study.question


BAD_CALLS = [
    (["run", "demoo"], "unknown study 'demoo'"),
    (["run", "demo", "--engine", "slurm"], "fast, in-process, ray"),
    (["run", "demo", "--set", "rounds"], "key=value"),
    (["run", "demo", "--set", "attackers=11"], "clients=10"),
    (["run", "demo", "--set", "attack=optimised()"], "needs knowledge='defence', but 'omniscient' is granted"),
    (["run", "demo", "--set", "task=mnits"], "unknown task 'mnits'"),
    (["run", "demo", "--set", "task=mnist", "--data", "/no/such/folder"], "/no/such/folder does not exist"),
    (["run", "demo", "--set", "partition=iid"], "partition cannot be set, the study varies it"),
    (["report", "demo"], "holds no result"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_CALLS)
def test_bad_calls_say_one_sentence_and_fail(arguments, words, tmp_path):
    done = invoke(*arguments, "--results", tmp_path)
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output
    assert len([line for line in done.output.splitlines() if line.startswith("error: ")]) == 1


def test_a_results_folder_that_cannot_be_is_one_sentence(small, tmp_path):
    (tmp_path / "file").write_text("")
    done = invoke("run", small, "--results", tmp_path / "file")
    assert done.exit_code == 2
    assert "cannot be written to (Not a directory); name another" in done.output.replace("\n", " ")


@pytest.mark.usefixtures("in_this_process")
def test_the_report_names_the_command_that_gives_it(small, tmp_path):
    assert invoke("run", small, "--results", tmp_path, "--workers", 1, "--set", "rounds=2").exit_code == 0
    assert invoke("report", small, "--results", tmp_path, "--set", "rounds=2").exit_code == 0
    assert f"run {small} --results {tmp_path} --set rounds=2" in (tmp_path / "small" / "report.html").read_text()


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"schema": 2}'])
def test_damaged_result_is_named(small, tmp_path, text):
    study = load_study(small)
    (tmp_path / f"{study.cells[0].name}.json").write_text(text)
    with pytest.raises(FlwrRobustError, match="cannot be read; delete it"):
        read_results(study, tmp_path)


def test_run_and_report_by_command(small, tmp_path):
    done = invoke("run", small, "--results", tmp_path, "--workers", 1, "--set", "rounds=2")
    assert done.exit_code == 0, done.output
    assert re.search(r"finished now +│ +8 │", done.output), done.output
    assert re.search(r"finished before, skipped +│ +0 │", done.output), done.output
    done = invoke("report", small, "--results", tmp_path, "--set", "rounds=2")
    assert done.exit_code == 0, done.output
    assert "report.html" in done.output.replace("\n", "")
    assert Path(tmp_path / "small" / "report.html").is_file()
    assert max(map(len, done.output.splitlines()[:-1])) <= 100


def test_help_teaches():
    assert "Federated learning with Flower" in invoke("--help").output
    assert "no result yet" in invoke("run", "--help").output
    assert "demo" in invoke("list", "studies").output


def test_exceptions_change_the_cells_they_name(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(
        SMALL
        + """
[[exceptions]]
where = { defence = "median()", seed = "1" }
set = { rounds = 7 }
"""
    )
    study = load_study(str(path))
    rounds = {(cell.labels["defence"], cell.labels["seed"]): cell.config.rounds for cell in study.cells}
    assert rounds["median()", "1"] == 7
    assert all(found != 7 for place, found in rounds.items() if place != ("median()", "1"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('where = { defence = "median()" }', "two tables, where and set"),
        ('where = "median()"\nset = { rounds = 7 }', "two tables, where and set"),
        ('where = { rule = "median()" }\nset = { rounds = 7 }', "axis of an exception"),
        ('where = { defence = "krum(f=1)" }\nset = { rounds = 7 }', "label on axis defence"),
        ('where = { defence = "median()" }\nset = { round = 7 }', "round"),
    ],
)
def test_exceptions_are_checked(tmp_path, text, sentence):
    path = tmp_path / "small.toml"
    path.write_text(SMALL + "\n[[exceptions]]\n" + text + "\n")
    with pytest.raises(FlwrRobustError, match=sentence):
        load_study(str(path))


@pytest.mark.ray
def test_a_study_on_ray_gives_the_numbers_of_the_study_in_process(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace('["mean()", "median()"]', '["mean()"]').replace("seed = [0, 1]", "seed = [0]"))
    study = load_study(str(path))
    assert run_study(study, tmp_path / "ray", engine="ray").failed == {}
    assert run_study(study, tmp_path / "process").failed == {}
    ray, process = (read_results(study, tmp_path / engine) for engine in ("ray", "process"))
    assert [d["model_sha256"] for d in ray] == [d["model_sha256"] for d in process]
    assert {d["engine"] for d in ray} == {"ray"}


@pytest.mark.ray
def test_flwr_run_leaves_no_process_and_names_the_mistake(tmp_path):
    import psutil

    from flwr_robust.runs.config import RunConfig
    from flwr_robust.studies.flower_run import FlowerRunError, FlowerRuns

    npz = tmp_path / "gone.npz"
    import numpy as np

    np.savez(npz, x_train=np.ones((20, 2)), y_train=np.arange(20) % 2, x_test=np.ones((2, 2)), y_test=np.arange(2))
    config = RunConfig(task=str(npz), clients=2, rounds=1)
    npz.unlink()
    with FlowerRuns() as flower:
        home = str(flower.home)
        with pytest.raises(FlowerRunError) as caught:
            flower.run(config)
    # The sentence stands in Flower's log, and none of our frames around it.
    assert "gone.npz is not a file" in str(caught.value)
    assert "flwr_robust/app/server.py" not in str(caught.value)
    left = [p for p in psutil.process_iter() if any(home in part for part in _command(p))]
    assert left == []
    assert not Path(home).exists()


def _command(process):
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.usefixtures("in_this_process")
def test_results_are_json_without_nan(small, tmp_path):
    study = load_study(small, {"rounds": 2})
    run_study(study, tmp_path, workers=1)
    for path in tmp_path.glob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("flwr").setLevel(logging.ERROR)
