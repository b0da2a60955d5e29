"""Results as data frames, tables as Markdown, LaTeX and CSV, plots as PDF and SVG."""

from __future__ import annotations

import json
import re
import statistics

import pandas
import pytest
from typer.testing import CliRunner

from flwr_robust import ConfigurationError, FlwrRobustError, studies
from flwr_robust.cli import app
from flwr_robust.studies import export, report, sheets
from flwr_robust.studies.plots import setting
from flwr_robust.studies.recorded import read_recorded
from flwr_robust.studies.study import load_study


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    study = load_study("rfa_tail")
    return report.render(study, read_recorded(study), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def folder(rendered, tmp_path_factory):
    """All formats, and a folder of results as `run` writes them."""
    there = tmp_path_factory.mktemp("exported")
    export.export(rendered, there, export.FORMATS)
    (there / "results").mkdir()
    for number, document in enumerate(rendered.documents):
        (there / "results" / f"{number}.json").write_text(json.dumps({"study": "rfa_tail", **document}))
    return there


def test_the_tables_say_the_same_in_all_formats(rendered, folder):
    found = list(sheets.sheets(rendered.study, rendered.sections[0][0]))
    markdown, latex = (folder / "tables.md").read_text(), (folder / "tables.tex").read_text()
    for sheet in found:
        for place, row in enumerate(sheet.rows):
            for column, cell in enumerate(row[1:]):
                texted = cell.replace("±", r"$\pm$")
                starred = cell.replace("*", r"\*")
                assert (f"**{starred}**" if (place, column) in sheet.best else f" {starred} ") in markdown
                assert (f"\\textbf{{{texted}}}" if (place, column) in sheet.best else f" {texted} ") in latex
    assert "n = 3 seeds" in markdown
    assert "n = 3 seeds" in latex
    assert latex.count("\\begin{tabular}") == markdown.count("|---|") == len(found) == 2


def test_csv_holds_numbers_in_columns_of_their_own(rendered, folder):
    read = pandas.read_csv(folder / "tables.csv")
    numbers = ["mean", "low", "high", "deviation", "n", "failed"]
    assert [*read.columns] == ["table", "metric", "unit", "method", "corruption", *numbers, "worst_under"]
    assert all(pandas.api.types.is_numeric_dtype(read[name]) for name in numbers)
    place = {"method": "mean", "corruption": "labels, 25 %"}
    values = [100 * d["final"]["accuracy"] for d in rendered.documents if place.items() <= d["labels"].items()]
    line = read[(read.table == "measured") & (read.method == "mean") & (read.corruption == "labels, 25 %")].iloc[0]
    half = 4.302653 * statistics.stdev(values) / 3**0.5
    assert line["n"] == len(values) == 3
    assert line["mean"] == pytest.approx(statistics.fmean(values), rel=1e-5)
    assert line["high"] - line["mean"] == pytest.approx(half, rel=1e-3)
    assert line["mean"] - line["low"] == pytest.approx(half, rel=1e-3)
    assert line["unit"] == "%"
    difference = read[read.table == "difference"]
    assert set(difference.unit) == {"points"}
    assert set(difference.method) == set(rendered.study.axes["method"]) - {"geometric_median"}


SPECIAL = r"100 % of a_b & c # {d} ~ e ^ f \ g $ h | < > ±"


def test_latex_gives_no_letter_a_meaning():
    sheet = sheets.Sheet(SPECIAL, ("x", SPECIAL), ((SPECIAL, SPECIAL),), frozenset({(0, 0)}))
    text = export._latex(sheet)
    for word in (
        r"100 \% of a\_b \& c \# \{d\}",
        r"\textasciitilde{} e",
        r"\textasciicircum{} f",
        r"\textbackslash{} g",
    ):
        assert text.count(word) == 4
    assert text.count(r"\$ h \textbar{} \textless{} \textgreater{} $\pm$") == 4
    # What is left without its backslash is the syntax of the table alone: two separators, its braces in pairs.
    plain = re.sub(r"\\[%_&#{}$]", "", text)
    assert plain.count("&") == 2
    assert not re.search(r"[%_#~^]", plain)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0


def test_the_plots_are_vectors_that_state_their_setting(rendered, folder):
    kinds = [path.stem for path in folder.glob("*.pdf")]
    assert sorted(kinds) == sorted(path.stem for path in folder.glob("*.svg")) != []
    for kind in kinds:
        assert (folder / f"{kind}.pdf").read_bytes().startswith(b"%PDF")
        assert "<svg" in (folder / f"{kind}.svg").read_text()
    said = setting(rendered.documents)
    assert f"rounds {rendered.documents[0]['config']['rounds']}" in said
    assert f"clients {rendered.documents[0]['config']['clients']}" in said
    again = folder / "again"
    export.export(rendered, again, ["svg", "pdf"])
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in again.iterdir())


def test_results_are_a_data_frame(rendered, folder):
    table = studies.load(folder / "results")
    assert len(table) == len(rendered.documents)
    for document, (_, line) in zip(rendered.documents, table.iterrows(), strict=False):
        twin = table[table["model_sha256"] == document["model_sha256"]].iloc[0]
        assert twin["accuracy"] == document["final"]["accuracy"]
        assert all(twin[axis] == label for axis, label in document["labels"].items())
        assert line["study"] == "rfa_tail"


def test_what_is_no_result_is_left_out_or_named(tmp_path):
    with pytest.raises(ConfigurationError, match="holds no result of a study"):
        export.load(tmp_path)
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(ConfigurationError, match="holds no result of a study"):
        export.load(tmp_path)
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(FlwrRobustError, match=r"torn\.json cannot be read"):
        export.load(tmp_path)


def test_the_command_writes_them(tmp_path):
    call = ["report", "rfa_tail", "--recorded", "--results", str(tmp_path), "--export", "latex", "--export", "svg"]
    done = CliRunner().invoke(app, [*call, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [path.rpartition(".")[2] for path in document["exported"]][:2] == ["tex", "svg"]
    assert all((tmp_path / "rfa_tail" / path.rpartition("/")[2]).is_file() for path in document["exported"])
    wrong = CliRunner().invoke(app, [*call[:-1], "docx"])
    assert wrong.exit_code == 2
    assert "--export must be one of csv, latex, md, pdf, svg; got --export='docx'" in wrong.output.replace("\n", " ")
