"""Tables: the worst case over an axis, further metrics and their direction, failed runs apart from missing ones."""

import html
import math
import re

import pytest

from flwr_robust.errors import ConfigurationError, UnknownNameError
from flwr_robust.studies import report, sheets
from flwr_robust.studies.claims import judge
from flwr_robust.studies.groups import gather, with_worst
from flwr_robust.studies.plots import draw
from flwr_robust.studies.showing import Report
from flwr_robust.studies.study import load_study
from tests.studies.test_studies import documents_of

STUDY = """
title = "Two rules, three attacks"
question = "Which?"
[config]
task = "digits"
clients = 4
rounds = 3
attackers = 1
[axes]
defence = ["mean()", "median()"]
attack = [{ label = "none", attack = "none", attackers = 0 }, "label_flip()", "sign_flip()"]
partition = ["iid", "by_label"]
seed = [0, 1]
[report]
rows = "defence"
columns = "attack"
"""
# By defence, attack and seed, in percent. Under the mean another attack is the worst for each seed.
VALUES = {
    "mean()": {"none": (50, 60), "label_flip()": (70, 90), "sign_flip()": (80, 80)},
    "median()": {"none": (90, 90), "label_flip()": (85, 85), "sign_flip()": (85, 75)},
}


@pytest.fixture
def make(tmp_path):
    def load(more="", study=STUDY):
        path = tmp_path / "study.toml"
        path.write_text(study + more)
        return load_study(str(path))

    return load


def measured(study, apart=0.0):
    """Results of the values; those of the second partition lie below by ``apart``."""

    def accuracy(labels):
        lower = apart if labels.get("partition") == "by_label" else 0.0
        return VALUES[labels["defence"]][labels["attack"]][int(labels["seed"])] / 100 - lower

    documents = documents_of(study, accuracy)
    for document in documents:
        document["final"] |= {"loss": 2 - document["final"]["accuracy"], "worst_class": 0.5}
        for point in document["curve"]:
            point |= {"loss": 2 - point["accuracy"]}
    return documents


def column(sheet, name):
    at = sheet.columns.index(name)
    return [row[at] for row in sheet.rows]


# -- the worst case --------------------------------------------------------------------------------


def test_the_worst_case_is_taken_seed_by_seed_without_the_column_against(make):
    study = make('worst_over = "attack"\nagainst = "none"\nspread = "points"\n')
    first, second = sheets.summarise(study, measured(study, 0.1))
    sheet, drops = sheets.sheets(study, first)
    assert sheet.columns == ("defence", "none", "label_flip()", "sign_flip()", "worst")
    # Seed 0 falls most under the label flip, seed 1 under the sign flip: 70 and 80, below both means (80 and 80).
    assert column(sheet, "worst") == [
        "75.0 (70.0, 80.0) label_flip(), sign_flip()",
        "80.0 (85.0, 75.0) label_flip(), sign_flip()",
    ]
    assert sheet.under == {(0, 3): "label_flip(), sign_flip()", (1, 3): "label_flip(), sign_flip()"}
    assert column(drops, "worst") == ["-20.0", "10.0"]
    assert column(next(sheets.sheets(study, second)), "worst")[0].startswith("65.0 (60.0, 70.0)")
    with_none = make('worst_over = "attack"\nspread = "points"\n')
    sheet = next(sheets.sheets(with_none, sheets.summarise(with_none, measured(with_none))[0]))
    assert column(sheet, "worst")[0] == "55.0 (50.0, 60.0) none"


def test_the_worst_of_what_is_lower_better_is_the_largest(make):
    study = make('worst_over = "attack"\nagainst = "none"\nmetric = "loss"\nspread = "points"\n')
    section, _ = sheets.summarise(study, measured(study))
    sheet, rises = sheets.sheets(study, section)
    assert sheet.caption.startswith("final test loss, lower is better; ")
    assert column(sheet, "worst")[0] == "1.25 (1.30, 1.20) label_flip(), sign_flip()"
    assert sheet.best == {(1, 0), (1, 1), (0, 2), (1, 2), (1, 3)}
    assert rises.caption.startswith("rise from none")
    assert column(rises, "label_flip()") == ["-0.250", "0.0500"]


def test_without_all_its_runs_nothing_is_the_worst(make):
    study = make('worst_over = "attack"\nagainst = "none"\n')
    documents = [d for d in measured(study) if d["labels"]["attack"] != "sign_flip()" or d["labels"]["seed"] == "1"]
    section, _ = sheets.summarise(study, documents)
    assert column(next(sheets.sheets(study, section)), "worst") == [
        "80.0 (n = 1) sign_flip()",
        "75.0 (n = 1) sign_flip()",
    ]
    none = [d for d in documents if d["labels"]["attack"] != "sign_flip()"]
    assert column(next(sheets.sheets(study, sheets.summarise(study, none)[0])), "worst") == ["-", "-"]


def test_a_run_that_is_not_a_number_is_the_worst(make):
    study = make('worst_over = "attack"\n')
    documents = measured(study)
    documents[-1]["final"]["accuracy"] = math.nan
    worst = [d for d in with_worst(study, documents) if d["labels"]["attack"] == "worst"]
    assert [d["worst_under"] for d in worst if d["labels"]["defence"] == "median()"][-1] == "sign_flip()"
    assert math.isnan(worst[-1]["final"]["accuracy"])


def test_the_worst_over_rows_is_a_row_and_over_a_further_axis_a_section(make):
    rows = make('worst_over = "defence"\nspread = "points"\n')
    section, _ = sheets.summarise(rows, measured(rows))
    sheet = next(sheets.sheets(rows, section))
    assert sheet.rows[-1] == (
        "worst",
        "55.0 (50.0, 60.0) mean()",
        "77.5 (70.0, 85.0) mean(), median()",
        "77.5 (80.0, 75.0) mean(), median()",
    )
    assert max(row for row, _ in sheet.best) == 1  # the row of the worst does not compete
    further = make('worst_over = "partition"\n')
    sections = sheets.summarise(further, measured(further, 0.1))
    assert [section.title for section in sections] == ["partition iid", "partition by_label", "partition worst"]
    assert sections[2].groups["mean()", "none"].mean == pytest.approx(0.45)
    assert sections[2].groups["mean()", "none"].ranked == ["by_label"]


def test_a_claim_may_name_the_worst_case(make):
    claim = (
        '[[claims]]\ntext = "a"\nwhere = {{ attack = "worst" }}\nhigher = ["median()"]\nlower = ["mean()"]\nby = {}\n'
    )
    for by, holds in ((4.9, True), (5.1, False)):
        study = make('worst_over = "attack"\nagainst = "none"\n' + claim.format(by))
        (verdict,) = judge(study, gather(study, with_worst(study, measured(study))))
        assert verdict.holds is holds, verdict
    with pytest.raises(UnknownNameError, match="'worst'"):
        make(claim.format(1))


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ('worst_over = "atack"', UnknownNameError, "axis of study .*'atack'.*Did you mean 'attack'"),
        ('worst_over = "seed"', ConfigurationError, "worst_over must be an axis other than seed and contest; got seed"),
        ('spread = "range"', ConfigurationError, "spread must be one of deviation, interval, points"),
        ('better = "less"', ConfigurationError, "better must be one of higher, lower"),
        ('metric = "acuracy"', ConfigurationError, "metric must be one of .*'acuracy'"),
        ('tables = ["gini"]', ConfigurationError, "tables must be one of .*'gini'"),
        ('tables = ["accuracy"]', ConfigurationError, "name metrics once each, and not metric=accuracy"),
        ('tables = ["loss", "loss"]', ConfigurationError, "name metrics once each"),
    ],
)
def test_what_cannot_be_shown_is_said_before_a_run(make, more, kind, words):
    with pytest.raises(kind, match=words):
        make(more + "\n")


def test_an_axis_with_a_label_worst_is_refused(make):
    with pytest.raises(ConfigurationError, match="has a label 'worst', the name of the worst case: rename"):
        make('worst_over = "attack"\n', STUDY.replace('label = "none"', 'label = "worst"'))


# -- metrics ---------------------------------------------------------------------------------------


def test_each_further_metric_has_a_table_with_its_direction(make):
    study = make('tables = ["loss", "worst_class"]\nworst_over = "attack"\n')
    section, _ = sheets.summarise(study, measured(study))
    _, loss, worst_class = sheets.sheets(study, section)
    assert loss.caption.startswith("final test loss, lower is better; ")
    assert column(loss, "none") == ["1.45 ± 0.64", "1.10 ± 0.0"]
    assert column(loss, "worst")[0] == "1.45 ± 0.64 none"  # by the loss itself
    assert (1, 0) in loss.best
    assert (0, 0) not in loss.best
    assert worst_class.caption.startswith("final test worst class, %, higher is better; ")
    assert column(worst_class, "none") == ["50.0 ± 0.0"] * 2
    assert [sheet.unit for sheet in (loss, worst_class)] == ["", "%"]


def test_the_direction_of_a_metric_of_one_s_own_is_what_better_says():
    lower = Report("defence", "attack", better="lower")
    assert (lower.higher("gini"), Report("defence", "attack").higher("gini")) == (False, True)
    assert (lower.higher("accuracy"), lower.higher("validation_loss")) == (True, False)


def test_a_metric_that_no_result_holds_has_no_table(make):
    study = make('tables = ["macro_f1"]\n')
    section, _ = sheets.summarise(study, measured(study))
    assert [sheet.metric for sheet in sheets.sheets(study, section)] == ["accuracy"]


# -- failed and missing ----------------------------------------------------------------------------


def test_failed_is_no_dash_and_missing_is_no_failure(make, tmp_path):
    study = make('worst_over = "attack"\nplots = ["bars", "curves", "heatmap"]\n')
    documents = measured(study)
    lost = [("mean()", "label_flip()", "iid", "0"), ("mean()", "label_flip()", "iid", "1"),
            ("median()", "none", "iid", "1")]  # fmt: skip
    failures = dict.fromkeys(lost, "RuntimeError: <b>out of luck</b>")
    left = [d for d in documents if tuple(d["labels"].values()) not in failures]
    left = [d for d in left if (d["labels"]["defence"], d["labels"]["attack"]) != ("median()", "sign_flip()")]
    section, other = sheets.summarise(study, left, failures)
    sheet = next(sheets.sheets(study, section))
    assert column(sheet, "label_flip()")[0] == "failed"
    assert column(sheet, "none")[1] == "90.0 (n = 1, 1 failed)"
    assert column(sheet, "sign_flip()")[1] == "-"
    assert column(sheet, "worst") == ["failed", "failed"]
    assert sheet.failed == {(0, 1): 2, (1, 0): 1, (0, 3): 2, (1, 3): 1}
    assert other.failed == {}
    rendered = report.render(study, left, tmp_path, failures)
    page = report.write_report(rendered, "run").read_text()
    assert page.count("RuntimeError: &lt;b&gt;out of luck&lt;/b&gt;") == 3
    assert "<td>mean(), label_flip(), iid, 0</td>" in page
    shown = rendered._repr_html_()  # in a notebook
    assert shown.count("RuntimeError: &lt;b&gt;out of luck&lt;/b&gt;") == 3
    assert shown.count('src="data:image/png;base64,iVBOR') == sum(len(images) for _, images in rendered.sections) > 0
    assert all(html.escape(each.caption) in shown for each in sheets.sheets(study, section))
    assert {row[0] for row in sheet.rows} <= {*re.findall(r"<td [^>]*>([^<]*)</td>", shown)}
    assert len(sheet.best) > 0
    assert all(f"<strong>{sheet.rows[row][at + 1]}</strong>" in shown for row, at in sheet.best)
    assert repr(rendered) == f"Rendered({study.name}: {len(left)} of {len(study.cells)} cells finished, 3 failed)"
    bars, curves, heatmap = (figure for _, figure in draw(study, section, left))
    assert "failed" in {text.get_text() for text in bars.legends[0].get_texts()}
    assert "failed: mean()" in {text.get_text() for axis in curves.axes for text in axis.texts}
    assert {text.get_text() for text in heatmap.legends[0].get_texts()} == {"failed", "- not run"}
    hatched = [patch for patch in heatmap.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == 3
    whole = [figure for _, figure in draw(study, other, left)][2]
    assert not any(patch.get_hatch() for patch in whole.axes[0].patches)


def test_a_section_of_failed_runs_alone_has_a_table(make):
    study = make()
    documents = [d for d in measured(study) if d["labels"]["partition"] == "iid"]
    keys = [tuple(cell.labels.values()) for cell in study.cells if cell.labels["partition"] == "by_label"]
    _, lost = sheets.summarise(study, documents, dict.fromkeys(keys, "boom"))
    assert lost.title == "partition by_label"
    assert {cell for row in next(sheets.sheets(study, lost)).rows for cell in row[1:]} == {"failed"}
