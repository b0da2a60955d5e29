"""What papers report beside what is measured: claims, recorded results, the pages of papers."""

import json
import math

import pytest

from flwr_robust.errors import ConfigurationError, FlwrRobustError, UnknownNameError
from flwr_robust.studies import report, sheets
from flwr_robust.studies.claims import judge
from flwr_robust.studies.groups import gather
from flwr_robust.studies.page import write_page
from flwr_robust.studies.paper import PAPERS, Paper, load_paper
from flwr_robust.studies.plots import draw
from flwr_robust.studies.recorded import RECORDED, read_recorded, record
from flwr_robust.studies.runner import read_results, run_study
from flwr_robust.studies.study import STUDIES, load_study
from tests.studies.test_studies import documents_of, invoke

STUDY = """
title = "Two rules, two attacks"
question = "Which?"
[config]
task = "digits"
clients = 4
rounds = 3
evaluate-every = 2
[axes]
defence = ["mean()", "median()"]
attack = [{ label = "none", attack = "none" }, { label = "flip", attack = "label_flip()", attackers = 1 }]
setting = [{ label = "same", partition = "iid" }, { label = "apart", partition = "by_label" }]
seed = [0, 1]
[report]
rows = "defence"
columns = "attack"
baseline = "mean()"
"""
MEASURED = {  # defence, attack, setting: percent
    ("mean()", "none", "same"): 90.0,
    ("mean()", "flip", "same"): 70.0,
    ("median()", "none", "same"): 89.0,
    ("median()", "flip", "same"): 88.0,
    ("mean()", "none", "apart"): 85.0,
    ("mean()", "flip", "apart"): 80.0,
    ("median()", "none", "apart"): 60.0,
    ("median()", "flip", "apart"): 50.0,
}
REPORTED = """
[[reported]]
source = "Table 1"
where = { setting = "same" }
values = { "mean()" = [91.5, 60.0], "median()" = [nan, 88.5] }
"""


@pytest.fixture
def make(tmp_path):
    def load(more="", study=STUDY):
        path = tmp_path / "study.toml"
        path.write_text(study + more)
        return load_study(str(path))

    return load


def measured(study, figures=MEASURED):
    def accuracy(labels):
        value = figures[labels["defence"], labels["attack"], labels["setting"]]
        return value / 100 + (0.01 if labels["seed"] == "1" else -0.01)

    return documents_of(study, accuracy)


def verdict(make, claim, figures=MEASURED, missing=0):
    study = make(f'{REPORTED}\n[[claims]]\ntext = "So it is"\n{claim}\n')
    documents = measured(study, figures)
    (found,) = judge(study, gather(study, documents[missing:]))
    assert found.text == "So it is"
    return found


CLAIMS = [
    # order, with the row's label alone, at every combination of what is left open
    ('where = { setting = "apart" }\nhigher = ["mean()"]\nlower = ["median()"]', True, "+25.0"),
    (
        'higher = ["mean()"]\nlower = ["median()"]',
        False,
        "smallest margin -18.0: 70.0 (mean(), flip, same), 88.0 (median(), flip, same)",
    ),
    ('where = { setting = "apart" }\nhigher = ["mean()"]\nlower = ["median()"]\nby = 25.5', False, "asked for 25.5"),
    # order of places that differ in more than the row
    (
        'where = { setting = "same" }\nhigher = [{ defence = "median()", attack = "flip" }]\n'
        'lower = [{ defence = "mean()", attack = "flip" }]\nby = 17.9',
        True,
        "smallest margin +18.0, asked for 17.9: 88.0 (median(), flip, same), 70.0 (mean(), flip, same)",
    ),
    # closeness
    ('where = { attack = "none", setting = "same" }\nrows = ["mean()", "median()"]\nwithin = 1.001', True, "range 1.0"),
    ('where = { attack = "none" }\nrows = ["mean()", "median()"]\nwithin = 1.001', False, "range 25.0, asked for 1.0"),
    # contrasts: there 31.5 for the mean, nothing for the median, whose number is not reported
    ('contrasts = 10.0\nagainst = "none"\nwhere = { setting = "same" }', True, "1 of 1"),
    ('contrasts = 25.0\nagainst = "none"\nwhere = { setting = "same" }', False, "(31.5 there, 20.0 here)"),
    ('contrasts = 10.0\npairs = [["median()", "mean()"]]\nwhere = { setting = "same" }', True, "1 of 1"),
    # agreement: three places are reported; two differ by 1.5 and 0.5, one by 10
    ("agrees = 1.6\nleast = 2", True, "2 of 3 agree within 1.6, asked for 2; farthest apart: mean(), flip, same (60.0"),
    ("agrees = 1.6", False, "2 of 3 agree within 1.6, asked for 3"),
    ("agrees = 1.4\nleast = 2", False, "1 of 3 agree within 1.4, asked for 2"),
    ('agrees = 1.4\nwhere = { defence = "median()" }', True, "1 of 1 agree"),
]


@pytest.mark.parametrize(("claim", "holds", "words"), CLAIMS)
def test_claims_are_judged_by_the_numbers(make, claim, holds, words):
    found = verdict(make, claim)
    assert found.holds is holds, found
    assert words in found.detail
    assert found.word == ("holds" if holds else "does not hold")


@pytest.mark.parametrize(
    "claim",
    [
        'higher = ["mean()"]\nlower = ["median()"]',
        'rows = ["mean()", "median()"]\nwithin = 1.0',
        'contrasts = 1.0\nagainst = "none"',
        "agrees = 1.6\nleast = 2",
    ],
)
def test_a_claim_without_all_its_results_cannot_be_told(make, claim):
    found = verdict(make, claim, missing=14)
    assert found.holds is None
    assert "missing" in found.detail
    assert found.word == "cannot be told yet"


def test_agreement_is_told_before_all_results_are_in(make):
    enough = verdict(make, "agrees = 1.6\nleast = 1", missing=4)
    assert (enough.holds, enough.detail[:6]) == (True, "1 of 3"), enough
    assert "2 are missing" in enough.detail or "1 are missing" in enough.detail
    assert verdict(make, "agrees = 0.1\nleast = 3", missing=8).holds is False
    nothing = verdict(make, 'agrees = 1.0\nwhere = { setting = "apart" }')
    assert (nothing.holds, nothing.detail) == (None, "nothing is reported")


def test_what_is_there_may_refute_a_claim_that_lacks_results(make):
    """Those left refute the one claim, 89 to 90, and bear out the other, but what is missing may yet refute that."""
    study = make(
        f'{REPORTED}[[claims]]\ntext = "a"\nhigher = ["median()"]\nlower = ["mean()"]\nwhere = {{ attack = "none" }}\n'
        '[[claims]]\ntext = "b"\nhigher = ["mean()"]\nlower = ["median()"]\nwhere = { attack = "none" }\n'
        '[[claims]]\ntext = "c"\nrows = ["mean()", "median()"]\nwithin = 0.5\nwhere = { attack = "none" }\n'
    )
    gone = {"defence": "mean()", "attack": "none", "setting": "apart"}
    left = [d for d in measured(study) if not gone.items() <= d["labels"].items()]
    refuted, open_, wide = judge(study, gather(study, left))
    assert (refuted.holds, wide.holds, open_.holds) == (False, False, None)
    assert refuted.detail.startswith("smallest margin -1.0: 89.0 (median(), none, same)")
    assert open_.detail.startswith("mean(), none, apart is missing; so far smallest margin +1.0: ")
    assert wide.detail.startswith("widest range 1.0, asked for 0.5: ")


def test_a_verdict_says_where_repetitions_are_missing_and_whose_the_claim_is(make):
    claim = '[[claims]]\ntext = "So it is"\nhigher = ["mean()"]\nlower = ["median()"]\nours = true\n'
    study = make(f'{claim}where = {{ setting = "apart", attack = "none" }}')
    documents = measured(study)
    (whole,) = judge(study, gather(study, documents))
    assert (whole.word, whole.partial, whole.claim) == ("holds", False, "So it is (ours)")
    assert "seeds" not in whole.detail
    one = [d for d in documents if (d["labels"]["seed"], d["labels"]["defence"]) != ("1", "mean()")]
    (part,) = judge(study, gather(study, one))
    assert (part.holds, part.partial, part.word) == (True, True, "holds, repetitions are missing")
    assert part.detail.endswith("; 1 of the 2 places read have 1 of 2 seeds")


def test_a_verdict_on_best_values_says_how_often_was_looked(make):
    claim = '\n[[claims]]\ntext = "a"\nrows = ["mean()", "median()"]\nwithin = 50.0\n'
    best = make(claim, STUDY.replace("[report]", '[report]\ntake = "best_on_test"'))
    documents = [{**d, "curve": [{"round": at, "accuracy": 0.5} for at in (0, 5, 9)]} for d in measured(best)]
    (found,) = judge(best, gather(best, documents))
    assert found.detail.endswith("; each value, best of 3 looks at the test set")
    final = make(claim)
    (plain,) = judge(final, gather(final, documents))
    assert "looks" not in plain.detail


def test_a_margin_next_to_the_bound_has_the_digits_to_tell(make):
    claim = 'where = { attack = "none", setting = "same" }\nhigher = ["mean()"]\nlower = ["median()"]'
    assert "margin -0.03:" in verdict(make, claim, {**MEASURED, ("median()", "none", "same"): 90.03}).detail


WRONG = [
    (
        '[[claims]]\ntext = "a"\nours = "yes"\nrows = ["mean()"]\nwithin = 1.0\n',
        ConfigurationError,
        r"ours of \[\[claims\]\] must be",
    ),
    ('[[claims]]\ntext = "a"\n', ConfigurationError, "a claim must hold higher and lower, or rows and within"),
    ('[[claims]]\nrows = ["mean()"]\nwithin = 1.0\n', ConfigurationError, "must be a table with text"),
    ('[[claims]]\ntext = "a"\nhigher = ["mean()"]\n', ConfigurationError, "got higher in 'a'"),
    ('[[claims]]\ntext = "a"\nhigher = ["mean()"]\nwithin = 1\n', ConfigurationError, "got higher, within"),
    ('[[claims]]\ntext = "a"\nhigher = ["krum()"]\nlower = ["mean()"]\n', UnknownNameError, "label on axis defence"),
    (
        '[[claims]]\ntext = "a"\nrows = ["mean()"]\nwithin = 1\nbye = 3\n',
        UnknownNameError,
        r"'bye'\. Did you mean 'by'\? Allowed:.*by",
    ),
    ('[[claims]]\ntext = "a"\ncontrasts = 3.0\n', ConfigurationError, "contrasts with against or pairs"),
    ('[[claims]]\ntext = "a"\ncontrasts = 3.0\nagainst = "nil"\n', UnknownNameError, "against of .*'nil'"),
    ('[[claims]]\ntext = "a"\ncontrasts = 3.0\npairs = [["a", "b"]]\n', UnknownNameError, "row of .*'a'"),
    ('[[claims]]\ntext = "a"\nhigher = []\nlower = ["mean()"]\n', ConfigurationError, "higher .* at least one row"),
    ('[[claims]]\ntext = "a"\nhigher = "mean()"\nlower = ["mean()"]\n', ConfigurationError, "higher .* a list"),
    ('[[claims]]\ntext = "a"\nrows = ["mean()"]\nwithin = "2"\n', ConfigurationError, "within of .*number.*'2'"),
    ('[[claims]]\ntext = "a"\ncontrasts = 3.0\npairs = [["mean()"]]\n', ConfigurationError, "a list of pairs"),
    (
        '[[claims]]\ntext = "a"\nhigher = [{}]\nlower = ["mean()"]\n',
        ConfigurationError,
        "on the same axes, at least one",
    ),
    (
        '[[claims]]\ntext = "a"\nhigher = [{ setting = "same" }]\nlower = ["mean()"]\n',
        ConfigurationError,
        r"on the same axes.*got \['setting'\], \['defence'\]",
    ),
    (
        '[[claims]]\ntext = "a"\nwhere = { defence = "mean()" }\nrows = ["mean()"]\nwithin = 1\n',
        ConfigurationError,
        "none that where fixes",
    ),
    ('[[claims]]\ntext = "a"\nwhere = { seed = "0" }\nrows = ["mean()"]\nwithin = 1\n', UnknownNameError, "'seed'"),
    ('[[claims]]\ntext = "a"\nwhere = { setting = 1 }\nrows = ["mean()"]\nwithin = 1\n', ConfigurationError, "quotes"),
    ('[[reported]]\nsource = "T"\nwhere = { setting = "same" }\nvalues = 3\n', ConfigurationError, "must be a table"),
    ('[[reported]]\nsource = "T"\nvalues = { "mean()" = [1.0, 2.0] }\n', ConfigurationError, "must say the setting"),
    (
        '[[reported]]\nsource = "T"\nwhere = { setting = "same" }\nvalues = { "mean()" = [1.0] }\n',
        ConfigurationError,
        r"one finite number, or nan, per attack, 2; got mean\(\) = \[1.0\]",
    ),
    ('[[reported]]\nsource = "T"\nwhere = { setting = "sane" }\nvalues = {}\n', UnknownNameError, "'sane'.*same"),
    ('[[reported]]\nsource = "T"\nwhere = { attack = "none" }\nvalues = {}\n', UnknownNameError, "axis .*'attack'"),
]


@pytest.mark.parametrize(("text", "kind", "words"), WRONG)
def test_wrong_claims_and_numbers_are_one_sentence(make, text, kind, words):
    with pytest.raises(kind, match=words):
        make(text)


def test_reported_numbers_stand_beside_the_measured(make):
    study = make(REPORTED)
    same, apart = sheets.summarise(study, measured(study))
    shown = {sheet.caption.partition(" (")[0].partition(";")[0]: sheet.rows for sheet in sheets.sheets(study, same)}
    assert shown["reported, %: Table 1"] == (("mean()", "91.5", "60.0"), ("median()", "-", "88.5"))
    assert shown["measured minus reported, points"] == (("mean()", "-1.5", "+10.0"), ("median()", "-", "-0.5"))
    assert [sheet.kind for sheet in sheets.sheets(study, apart)] == ["measured", "difference"]


def test_drops_are_from_the_column_named(make):
    study = make(study=STUDY.replace('baseline = "mean()"', 'against = "none"'))
    same, _ = sheets.summarise(study, measured(study))
    _, drops = sheets.sheets(study, same)
    assert drops.rows == (("mean()", "-", "20.0"), ("median()", "-", "1.0"))
    assert sheets.conclude(study, same) == ""


def test_reported_drops_stand_beside_the_measured(make):
    drops = REPORTED.replace("[91.5, 60.0]", "[nan, 31.5]").replace("[nan, 88.5]", "[nan, nan]") + "drops = true\n"
    study = make(drops, study=STUDY.replace('baseline = "mean()"', 'against = "none"'))
    same, apart = sheets.summarise(study, measured(study))
    _, _, reported, difference = sheets.sheets(study, same)
    assert reported.caption == "reported drop, points: Table 1 (setting same)"
    assert reported.rows == (("mean()", "-", "31.5"), ("median()", "-", "-"))
    assert difference.rows == (("mean()", "-", "-11.5"), ("median()", "-", "-"))
    assert len(list(sheets.sheets(study, apart))) == 2
    with pytest.raises(ConfigurationError, match="drops are reported from a column; name it as against"):
        make(drops)


def test_the_best_of_a_curve_is_not_its_end(make):
    best = make(study=STUDY + 'take = "best_on_test"\n')
    documents = measured(best, dict.fromkeys(MEASURED, 5.0))  # it begins at 10 %
    assert {round(100 * group.mean, 6) for group in gather(best, documents).values()} == {10.0}
    final = make()
    assert {round(100 * group.mean, 6) for group in gather(final, documents).values()} == {5.0}


def test_a_contest_names_the_winner(make):
    study = make(
        study=STUDY.replace('rows = "defence"', 'rows = "setting"').replace(
            'baseline = "mean()"', 'contest = "defence"'
        )
        + 'plots = ["winners"]\n'
    )
    documents = measured(study)
    (section,) = sheets.summarise(study, documents)
    sheet = next(sheets.sheets(study, section, spreads=False))
    assert sheet.rows == (("same", "90.0 mean()", "88.0 median()"), ("apart", "85.0 mean()", "80.0 mean()"))
    # One seed in which the median does much better: the mean stays ahead on average, and the winner is open.
    open_ones = [
        {**d, "final": {**d["final"], "accuracy": d["final"]["accuracy"] + 0.01}}
        if (d["labels"]["defence"], d["labels"]["seed"]) == ("median()", "1")
        else d
        for d in documents
    ]
    (section,) = sheets.summarise(study, open_ones)
    sheet = next(sheets.sheets(study, section, spreads=False))
    assert sheet.rows[0] == ("same", "90.0 mean() (level: median())", "88.5 median()")


@pytest.mark.usefixtures("in_this_process")
def test_recorded_results_say_what_the_results_say(make, tmp_path):
    study = make()
    run_study(study, tmp_path / "results", workers=2, engine="fast")
    documents = read_results(study, tmp_path / "results")
    folder = tmp_path / "recorded"
    record(study, documents[:3], folder)
    record(study, documents[2:], folder)  # what is there stays
    found = read_recorded(study, folder)
    assert len(found) == len(study.cells)
    for new, old in zip(found, documents, strict=True):
        for key in ("labels", "config", "config_digest", "declared_f", "real_f", "engine", "model_sha256", "outcomes"):
            assert new[key] == old[key], key
        for a, b in zip(new["curve"], old["curve"], strict=True):
            assert a == pytest.approx(b, rel=1e-5)
        assert new["final"] == pytest.approx(old["final"], rel=1e-5)
        assert new["attackers_weight"] == pytest.approx(old["attackers_weight"], rel=1e-5)
        assert new["machine"] == old["machine"]
    again = record(study, found, folder).read_text()
    assert read_recorded(study, folder) == found
    assert max(map(len, again.splitlines())) < 2000
    assert list(read_recorded(make(study=STUDY.replace("rounds = 3", "rounds = 4")), folder)) == []


def test_damaged_records_are_named(make, tmp_path):
    study = make()
    path = record(study, measured(study), tmp_path)
    sound = path.read_text()
    for text in ("{", "[]", '{"cells": [{}]}', sound.replace('"clients": 4', '"clients": 5')):
        path.write_text(text)
        with pytest.raises(FlwrRobustError, match="cannot be read"):
            read_recorded(study, tmp_path)


def test_a_page_holds_tables_claims_and_notes(make, tmp_path):
    study = make(f'{REPORTED}\n[[claims]]\ntext = "It falls | far"\ncontrasts = 10.0\nagainst = "none"\n')
    paper = Paper("p", "Title", "Somebody: Something.", "It claims.", (study,), {"": ("Whole.",), "study": ("Part.",)})
    rendered = report.render(study, measured(study), tmp_path / "study")
    path = write_page(paper, {"study": rendered}, tmp_path, "python -m this")
    text = path.read_text()
    for words in ("# Title", "It falls \\| far", "| holds | 1 of 1 |", "| mean() | -1.5 | +10.0 |", "Whole.", "Part."):
        assert words in text, words
    images = [line[line.index("(") + 1 : -1] for line in text.splitlines() if line.startswith("![")]
    assert len(images) == 4
    assert all((tmp_path / image).read_bytes().startswith(b"\x89PNG") for image in images)
    assert "`python -m this` makes this page" in text
    assert "Set otherwise" not in text
    empty = write_page(paper, {}, tmp_path, "this", "rounds=5").read_text()
    assert "**Set otherwise than the studies below say: rounds=5.**" in empty
    assert "No cell has been run yet." in empty


def test_every_paper_of_the_project_is_sound():
    named = set()
    for path in PAPERS.glob("*.toml"):
        paper = load_paper(path.stem)
        assert paper.title
        assert paper.citation
        assert paper.summary
        named |= {study.name for study in paper.studies}
        for study in paper.studies:
            assert study.claims or study.reported or study.report.metrics, study.name
    assert named <= {path.stem for path in STUDIES.glob("*.toml")}


def test_every_record_of_the_project_fits_its_study():
    for path in RECORDED.glob("*.json"):
        study = load_study(path.stem)
        lines = json.loads(path.read_text())["cells"]
        found = read_recorded(study)
        digests = [line["config_digest"] for line in lines]
        assert len(set(digests)) == len(digests)
        assert set(digests) == {d["config_digest"] for d in found}, f"{path.name} holds cells of another study"
        assert all(math.isfinite(d["final"]["accuracy"]) for d in found)


def test_reproduce_shows_what_is_recorded_and_runs_what_is_not(tmp_path):
    done = invoke("reproduce", "peng2025", "--recorded", "--study", "peng2025_softmax", "--results", tmp_path)
    assert done.exit_code == 0, done.output
    assert "One class per worker: the mean is first" in done.output
    assert max(map(len, done.output.splitlines()[:-2])) <= 100
    assert (tmp_path / "peng2025.md").is_file()
    assert not list((tmp_path / "peng2025_softmax").glob("*.json"))
    page = (tmp_path / "peng2025.md").read_text()
    assert "--study peng2025_softmax --recorded" in page
    assert "both were our split" in page  # a note on these very results
    assert "both were our split" in (tmp_path / "peng2025_softmax" / "report.html").read_text()
    none = invoke("reproduce", "peng2025", "--recorded", "--set", "rounds=7", "--results", tmp_path)
    assert none.exit_code == 2
    assert "no result is recorded of peng2025_softmax" in none.output.replace("\n", " ")


def test_what_is_said_of_recorded_results_is_not_said_of_others():
    assert "peng2025_softmax" in load_paper("peng2025").notes
    assert set(load_paper("peng2025", {"rounds": 7}).notes) == {""}
    assert [s.name for s in load_paper("peng2025", {"model": "mlp"}, ["peng2025_softmax"]).studies] == [
        "peng2025_softmax"
    ]


def test_a_contrast_looks_where_it_is_told_and_says_when_there_is_none(make):
    claim = 'contrasts = 10.0\nagainst = "none"\nwhere = { setting = "same", defence = "median()" }'
    found = verdict(make, claim)  # the mean's drop of 31.5 is not asked for
    assert (found.holds, found.detail) == (None, "nothing that is reported differs by more than 10.0")


def test_seeds_may_be_shown(make):
    study = make(study=STUDY.partition("[report]")[0].replace("setting = [", "#setting = ["))
    assert (study.rows, study.columns) == ("defence", "attack")
    plain = "[axes]\ndefence = ['mean()', 'median()']\nseed = [0, 1]\n"
    study = make(study=plain)
    (section,) = sheets.summarise(study, documents_of(study, lambda labels: 0.5 + 0.1 * int(labels["seed"])))
    assert {place: group.values for place, group in section.groups.items()} == {
        ("mean()", "all"): {"0": 0.5, "1": 0.6},
        ("median()", "all"): {"0": 0.5, "1": 0.6},
    }
    study = make(study=plain + "[report]\ncolumns = 'seed'\n")
    documents = documents_of(study, lambda labels: 0.5 + 0.1 * int(labels["seed"]))
    (section,) = sheets.summarise(study, documents)
    assert next(sheets.sheets(study, section)).rows == (("mean()", "50.0", "60.0"), ("median()", "50.0", "60.0"))


def test_repetitions_of_other_lengths_and_rows_that_are_missing_are_drawn(make):
    study = make()
    documents = measured(study)[1:]
    documents[2]["curve"] = documents[2]["curve"][:1]
    for section in sheets.summarise(study, documents):
        for _, figure in draw(study, section, documents):
            texts = [text.get_text() for text in figure.legends[0].get_texts()]
            assert texts == ["mean()", "median()"]


def test_wide_tables_are_cut_into_parts_that_fit(make):
    attack = '{{ label = "an attack of some length {0}", attack = "label_flip(p=0.{0})" }}'
    attacks = ", ".join(attack.format(i) for i in range(1, 9))
    head = '[config]\nattackers = 1\n[axes]\ndefence = ["mean()", "median()"]\n'
    study = make(study=f"{head}attack = [{attacks}]\n")
    (section,) = sheets.summarise(study, documents_of(study, lambda labels: 0.5))
    parts = list(sheets.tables(study, section))
    assert len(parts) > 1
    assert parts[1].title.plain.endswith(", continued")
    assert [c.header.plain for part in parts for c in part.columns[1:]] == list(study.axes["attack"])


def test_a_result_without_the_metric_is_one_sentence(make):
    study = make(study=STUDY + 'metric = "attack_success"\n')
    with pytest.raises(FlwrRobustError, match="has no attack_success; take another metric"):
        gather(study, measured(study))


def test_numbers_that_are_none_are_shown_as_such(make):
    study = make()
    documents = documents_of(study, lambda labels: math.nan)
    measured, difference = sheets.sheets(study, sheets.summarise(study, documents)[0])
    assert measured.rows[0][1] == "NaN ± NaN"
    assert measured.best == frozenset()
    assert difference.rows[0][1] == "NaN ± NaN"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reproduce", "peng"], "unknown paper 'peng'"),
        (["reproduce", "peng2025", "--study", "demo"], "study must be one of"),
        (["reproduce", "peng2025", "--engine", "slow"], "--engine must be one of"),
        (["record", "demo"], "holds no result"),
        (["report", "demo", "--recorded"], "no result of study demo is recorded"),
        (["record", "mine.toml"], "only studies of the project are recorded"),
    ],
)
def test_bad_calls_say_one_sentence(arguments, words, tmp_path):
    done = invoke(*arguments, "--results", tmp_path)
    assert done.exit_code == 2
    assert words in done.output.replace("\n", " ")
    assert "Traceback" not in done.output


# -- papers' files -----------------------------------------------------------------------------------

PAPER = 'title = "T"\ncitation = "C"\nsummary = "S"\nstudies = ["demo"]\n'
WRONG_PAPERS = [
    ("title = \n", ConfigurationError, "paper mine: it is no TOML file"),
    (PAPER.replace('citation = "C"\n', ""), ConfigurationError, "citation must be a text; got None"),
    (PAPER.replace('["demo"]', '"demo"'), ConfigurationError, "studies must be a list of names; got 'demo'"),
    (PAPER + 'notes = "hello"\n', ConfigurationError, r"each under \[\[notes\]\]; got 'hello'"),
    (PAPER + '[[note]]\ntext = "a"\n', UnknownNameError, "unknown key of paper mine 'note'"),
    (
        PAPER + '[[notes]]\nabuot = "demo"\ntext = "a"\n',
        UnknownNameError,
        r"'abuot'\. Did you mean 'about'\? Allowed: about, text",
    ),
    (PAPER + '[[notes]]\nabout = "demo"\n', ConfigurationError, "must hold a text, and may name about"),
    (PAPER + '[[notes]]\nabout = "dmeo"\ntext = "a"\n', UnknownNameError, "study of a note in paper mine 'dmeo'"),
]


@pytest.mark.parametrize(("text", "kind", "words"), WRONG_PAPERS)
def test_wrong_papers_are_one_sentence(tmp_path, monkeypatch, text, kind, words):
    monkeypatch.setattr("flwr_robust.studies.paper.PAPERS", tmp_path)
    (tmp_path / "mine.toml").write_text(PAPER)
    assert load_paper("mine").title == "T"
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(kind, match=words):
        load_paper("mine")


def test_the_pages_show_what_is_recorded():
    """`make pages` was called after the last record: every study's cells are counted on its paper's page."""
    for path in PAPERS.glob("*.toml"):
        page = (RECORDED.parent.parent / "docs" / "reproductions" / f"{path.stem}.md").read_text()
        paper = load_paper(path.stem)
        parts = dict(zip((study.name for study in paper.studies), page.split("\n## ")[1:], strict=True))
        for study in paper.studies:
            count = len(read_recorded(study))
            words = f"{count} of {len(study.cells)} cells" if count else "No cell has been run yet."
            assert words in parts[study.name], study.name
            assert study.question in parts[study.name]
        assert all(note in page for notes in paper.notes.values() for note in notes)


def test_plots_that_a_study_no_longer_shows_are_gone(make, tmp_path):
    study = make()
    folder = tmp_path / "shown"
    report.render(study, measured(study), folder)
    (folder / "older.png").write_bytes(b"")
    shown = {path.name for path in folder.glob("*.png")} - {"older.png"}
    report.render(study, measured(study), folder)
    assert {path.name for path in folder.glob("*.png")} == shown


def test_runs_of_one_configuration_took_their_time_once(make):
    documents = measured(make())
    for document in documents:
        document["seconds"] = 2.0
    assert report.computed([*documents, *documents]) == 2.0 * len({d["config_digest"] for d in documents})
