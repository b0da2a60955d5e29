"""A study's file: every wrong value of every key is one sentence; a study of one axis is shown as one column."""

import copy
import datetime
import json
import re
import tomllib
import warnings

import pytest
from typer.testing import CliRunner

from flwr_robust.cli import app
from flwr_robust.errors import FlwrRobustError
from flwr_robust.studies import sheets, study
from flwr_robust.studies.runner import read_results, run_study
from flwr_robust.studies.study import load_study
from tests.studies.test_failures import DONE

WHOLE = """
title = "t"
question = "q"
[config]
task = "digits"
clients = 6
[axes]
defence = ["mean()", "median()"]
setting = [{ label = "same", partition = "iid" }, { label = "apart", partition = "by_label" }]
third = [{ label = "a", alpha = 0.1 }, { label = "b", alpha = 0.2 }]
seed = [0, 1]
[[exceptions]]
where = { defence = "median()" }
set = { rounds = 7 }
[report]
rows = "defence"
columns = "setting"
baseline = "mean()"
metric = "accuracy"
take = "final"
against = "same"
plots = ["bars", "winners", "metrics"]
contest = "third"
metrics = ["xi"]
[[reported]]
source = "Table I"
values = { "mean()" = [91.0, 80.0], "median()" = [1.0, 2] }
drops = false
[[claims]]
text = "order"
where = { setting = "same" }
higher = ["mean()"]
lower = ["median()"]
by = 1.0
[[claims]]
text = "closeness"
rows = ["mean()", "median()"]
within = 1.0
[[claims]]
text = "contrasts"
contrasts = 1.0
against = "same"
[[claims]]
text = "pairs"
contrasts = 1.0
pairs = [["mean()", "median()"]]
"""

# What replaces what, and the words of the sentence: the key, and what is allowed.
WRONG = [
    ('title = "t"', "title = 3", "title must be a text; got 3"),
    ('question = "q"', "question = []", r"question must be a text; got \[\]"),
    ('title = "t"', 'titel = "t"', "table of study .*'titel'. Did you mean 'title'"),
    ('task = "digits"', "task = 3", "task must be text; got task=3"),
    ("clients = 6", "clients = 0", "clients must be an integer >= 1; got clients=0"),
    ("clients = 6", 'clients = "6"', "clients must be an integer >= 1; got clients='6'"),
    ("clients = 6", f"clients = {10**400}", "clients must be an integer >= 1; got clients=1000"),
    ("clients = 6", "clients = nan", "clients must be an integer >= 1; got clients=nan"),
    ("clients = 6", "client = 6", "client is no variable.*Did you mean 'clients'"),
    ('["mean()", "median()"]\nsetting', "3\nsetting", "axis defence must be a list of at least one value; got 3"),
    ('["mean()", "median()"]\nsetting', "[]\nsetting", "axis defence must be a list of at least one value"),
    (
        '["mean()", "median()"]\nsetting',
        '["mean()", ["x"]]\nsetting',
        "axis defence: values are texts, numbers, booleans",
    ),
    ('["mean()", "median()"]\nsetting', '["mean()", 1979-05-27]\nsetting', "axis defence: values are texts, numbers"),
    ("seed = [0, 1]", "seed = [0, 1.5]", "seed must be an integer >= 0; got seed=1.5"),
    ('{ label = "same", partition', "{ label = [], partition", "axis setting: label must be a text"),
    ('{ label = "same", partition', '{ label = " ", partition', "axis setting: label must be a text"),
    ('partition = "iid"', "partition = []", r"partition must be text; got partition=\[\]"),
    (
        'where = { defence = "median()" }',
        "where = {}",
        r"each of \[\[exceptions\]\] must hold two tables, where and set",
    ),
    ('where = { defence = "median()" }', "where = { defence = 1 }", r"labels in where of \[\[exceptions\]\] are texts"),
    ('where = { defence = "median()" }', 'where = { rule = "x" }', "axis of an exception in study .* 'rule'.*defence"),
    ('where = { defence = "median()" }', 'where = { defence = "x" }', "label on axis defence .*'x'.*mean"),
    ("set = { rounds = 7 }", 'set = { rounds = "x" }', "rounds must be an integer >= 1; got rounds='x'"),
    ("set = { rounds = 7 }", "set = []", r"each of \[\[exceptions\]\] must hold two tables"),
    ('rows = "defence"', "rows = 3", r"rows of \[report\] must be a text; got 3"),
    ('rows = "defence"', 'rows = ""', r"axis in rows of \[report\] of study .* ''; allowed: defence"),
    ('rows = "defence"', 'rows = "setting"', "rows and columns must be two axes; got setting"),
    ('columns = "setting"', 'columns = "x"', r"axis in columns of \[report\] of study .* 'x'; allowed: defence"),
    ('baseline = "mean()"', "baseline = []", r"baseline of \[report\] must be a text"),
    ('baseline = "mean()"', 'baseline = "x"', "baseline of study .* 'x'; allowed: mean"),
    ('metric = "accuracy"', 'metric = "acuracy"', "metric"),
    ('metric = "accuracy"', "metric = 1.5", r"metric of \[report\] must be a text; got 1.5"),
    ('take = "final"', 'take = "last"', "take must be one of best, best_on_test, final"),
    ('against = "same"\nplots', 'against = "x"\nplots', "against of study .* 'x'; allowed: apart, same"),
    ('plots = ["bars", ', 'plots = ["pie", ', "plots must be one of bars, curves"),
    (
        'plots = ["bars", "winners", "metrics"]',
        "plots = [1]",
        r"plots of \[report\] must be a list of texts; got \[1\]",
    ),
    ('contest = "third"', "contest = true", r"contest of \[report\] must be a text; got True"),
    ('contest = "third"', 'contest = "x"', "axis of study .* 'x'"),
    ('metrics = ["xi"]', 'metrics = "xi"', r"metrics of \[report\] must be a list of texts; got 'xi'"),
    ('metrics = ["xi"]', 'metric_s = ["xi"]', "key of .report. .*'metric_s'. Did you mean 'metrics'"),
    ('source = "Table I"', "source = 1", r"source of \[\[reported\]\] must be a text; got 1"),
    ('source = "Table I"', "", r"each of \[\[reported\]\] must be a table with source, values"),
    (
        "[91.0, 80.0]",
        "[91.0]",
        r"values of \[\[reported\]\] must hold one finite number, or nan, per setting, 2; got mean",
    ),
    ("[91.0, 80.0]", '[91.0, "x"]', r"values of \[\[reported\]\] must hold one finite number, or nan"),
    ("[91.0, 80.0]", "[91.0, inf]", r"values of \[\[reported\]\] must hold one finite number, or nan"),
    ("[91.0, 80.0]", f"[91.0, {10**400}]", r"values of \[\[reported\]\] must hold one finite number, or nan"),
    ("[91.0, 80.0]", "[91.0, true]", r"values of \[\[reported\]\] must hold one finite number, or nan"),
    ('{ "mean()" = [91.0', '{ "x" = [91.0', r"row of \[\[reported\]\] .* 'x'; allowed: mean"),
    ("drops = false", "drops = 0", r"drops of \[\[reported\]\] must be True or False"),
    ('text = "order"', "text = 1", r"text of \[\[claims\]\] must be a text; got 1"),
    ('text = "order"', 'text = ""', r"text of \[\[claims\]\] must be a text; got ''"),
    (
        'text = "order"\nwhere = { setting = "same" }',
        'text = "order"\nwhere = 3',
        r"labels in \[\[claims\]\] must be a table",
    ),
    ('text = "order"\nwhere = { setting = "same" }', 'text = "order"\nwhere = { x = "y" }', r"axis of \[\[claims\]\]"),
    ('higher = ["mean()"]', 'higher = "mean()"', r"higher of \[\[claims\]\] must be a list of at least one row"),
    ('higher = ["mean()"]', "higher = [1]", "are texts; got 1: put it in quotes"),
    ("by = 1.0", "by = -1", r"by of \[\[claims\]\] must be a finite number and >= 0; got by of \[\[claims\]\]=-1"),
    ("within = 1.0", 'within = "x"', r"within of \[\[claims\]\] must be a finite number and >= 0"),
    ("within = 1.0", "agrees = 1.0", "or agrees; got agrees, rows in"),
    ('contrasts = 1.0\nagainst = "same"', "agrees = -1", r"agrees of \[\[claims\]\] must be a finite number and >= 0"),
    ('contrasts = 1.0\nagainst = "same"', "agrees = 1.0\nleast = 0", r"least of \[\[claims\]\] must be .* >= 1"),
    ("within = 1.0", "", "a claim must hold higher and lower, or rows and within, or contrasts"),
    (
        'contrasts = 1.0\nagainst = "same"',
        'contrasts = []\nagainst = "same"',
        r"contrasts of \[\[claims\]\] must be a finite",
    ),
    (
        'contrasts = 1.0\nagainst = "same"',
        "contrasts = 1.0\nagainst = 1",
        r"against of \[\[claims\]\] .*labels are texts; got 1",
    ),
    (
        'pairs = [["mean()", "median()"]]',
        'pairs = ["mean()"]',
        r"pairs of \[\[claims\]\] must be a list of pairs of rows",
    ),
    ('pairs = [["mean()", "median()"]]', 'pairs = [["mean()", "x"]]', r"row of \[\[claims\]\] .* 'x'; allowed: mean"),
    ('pairs = [["mean()", "median()"]]', "pair = []", r"key of \[\[claims\]\] .*'pair'. Did you mean 'pairs'"),
]


@pytest.mark.parametrize(("old", "new", "words"), WRONG, ids=range(len(WRONG)))
def test_every_wrong_value_is_one_sentence_that_names_the_key(tmp_path, old, new, words):
    assert old in WHOLE
    path = tmp_path / "wrong.toml"
    path.write_text(WHOLE.replace(old, new, 1))
    for verb in ("run", "report"):
        done = CliRunner().invoke(app, [verb, str(path), "--results", str(tmp_path)])
        assert done.exit_code == 2
        (sentence,) = done.output.splitlines()
        assert sentence.startswith("error: ")
        assert re.search(words, sentence), sentence


@pytest.mark.parametrize("text", ["", "[config]\n", "[config]\n[axes]\n"])
def test_without_an_axis_there_is_no_study(tmp_path, text):
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(FlwrRobustError, match=r"\[axes\] must hold at least one axis, a list of values; got none"):
        load_study(str(tmp_path / "wrong.toml"))


def paths(node, at=()):
    yield at
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from paths(value, (*at, key))


VALUES = [
    *(3, -1, "x", "", True, 1.5, float("nan"), 10**400, datetime.date(2020, 1, 1), "{", "{x}"),
    *([], {}, [1], [[]], [{}], ["x"], {"x": 1}, {"": ""}, {"label": []}, [{"label": "only"}]),
]


def test_no_value_anywhere_raises_anything_but_a_sentence(tmp_path, monkeypatch):
    whole, now = tomllib.loads(WHOLE), {}
    monkeypatch.setattr(study.tomllib, "loads", lambda text: copy.deepcopy(now["document"]))
    path = tmp_path / "any.toml"
    path.write_text("")
    refused = 0
    for at in paths({k: v for k, v in whole.items() if k != "axes"}):
        for value in VALUES if at else ():
            now["document"] = document = copy.deepcopy(whole)
            for key in at[:-1]:
                document = document[key]
            document[at[-1]] = value
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    load_study(str(path))
                except FlwrRobustError:
                    refused += 1
    assert refused > 500


ONE = """
title = "one axis"
question = "which?"
[axes]
defence = ["mean()", "median()"]
"""


@pytest.mark.parametrize("seeds", ["", "seed = [0, 1]\n"])
def test_a_study_of_one_axis_has_one_column(tmp_path, monkeypatch, seeds):
    def some(cells, workers, run):
        for cell in cells:
            accuracy = 0.75 if cell.labels["defence"] == "mean()" else 0.5
            yield cell, {**DONE, "curve": [{"round": 1, "accuracy": accuracy, "loss": 1.0}]}

    monkeypatch.setattr("flwr_robust.studies.runner._in_processes", some)
    (tmp_path / "one.toml").write_text(ONE + seeds)
    found = load_study(str(tmp_path / "one.toml"))
    assert (found.rows, found.axes[found.columns]) == ("defence", ("all",))
    assert all("all" not in cell.name for cell in found.cells)
    run_study(found, tmp_path / "one")
    (section,) = sheets.summarise(found, read_results(found, tmp_path / "one"))
    assert {place: len(group.values) for place, group in section.groups.items()} == {
        ("mean()", "all"): 2 if seeds else 1,
        ("median()", "all"): 2 if seeds else 1,
    }
    for path in (tmp_path / "one").glob("*.json"):  # results from before there was this axis
        document = json.loads(path.read_text())
        del document["labels"]["all runs"]
        path.write_text(json.dumps(document))
    done = CliRunner().invoke(app, ["report", str(tmp_path / "one.toml"), "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    table = [line for line in done.output.splitlines() if "mean()" in line and "75.0" in line]
    assert len(table) == 1
    assert table[0].count("│") == 3
    assert (tmp_path / "one" / "final.png").is_file()
    assert (tmp_path / "one" / "curves.png").is_file()


def test_seeds_may_be_shown_or_be_all_there_is(tmp_path):
    (tmp_path / "one.toml").write_text("[axes]\nseed = [0, 1]\n")
    found = load_study(str(tmp_path / "one.toml"))
    assert (found.rows, found.columns) == ("seed", "all runs")
    (tmp_path / "one.toml").write_text(ONE + 'seed = [0, 1]\n[report]\ncolumns = "seed"\n')
    found = load_study(str(tmp_path / "one.toml"))
    assert (found.rows, found.columns, list(found.axes)) == ("defence", "seed", ["defence", "seed"])
