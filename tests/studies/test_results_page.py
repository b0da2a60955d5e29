"""The page on results: its study runs, and its Python examples do what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flwr_robust.core import spec
from flwr_robust.studies.report import render, write_report
from flwr_robust.studies.runner import read_results, run_study
from flwr_robust.studies.study import load_study

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The finished study of the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(spec.PLUGINS, "")
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    Path("small.toml").write_text(text)
    study = load_study("small.toml")
    run_study(study, tmp_path / "results" / "small", engine="fast", workers=1)
    return study


def test_the_examples_run_in_their_order(example, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "results.md", "exec"), names)
    printed = capsys.readouterr().out.split("\n")
    assert [line.split()[0] for line in printed if "()" in line] == ["mean()", "median()"]
    assert len(names["table"]) == len(example.cells) == 4
    assert {"study", "defence", "attack", "rounds", "accuracy", "worst_class", "validation_loss"} <= {*names["table"]}

    folder = Path("results/small")
    assert {path.name for path in folder.iterdir()} >= {"tables.tex", "tables.csv", "final.png", "curves.png"}
    assert {cell.name + ".json" for cell in example.cells} == {path.name for path in folder.glob("*.json")}
    assert repr(names["rendered"]) == "Rendered(small: 4 of 4 cells finished, 0 failed)"
    shown = names["rendered"]._repr_html_()
    assert "worst" in shown
    assert shown.count("data:image/png") == 2
    assert write_report(names["rendered"], "flwr-robust run small.toml") == folder / "report.html"

    weights = names["result"].weights
    assert weights[4] == 0 < weights[:4].min()
    assert re.findall(r"width:(\d+)px;height", names["result"]._repr_html_()) == ["80", "80", "80", "80", "0"]

    text = Path("small.toml").read_text()
    Path("small.toml").write_text(text.replace('take = "final"', 'take = "best"'))
    changed = load_study("small.toml")
    best = render(changed, read_results(changed, folder), folder)  # the same results stay valid
    assert "rounds on validation samples" in best._repr_html_()
    assert "rounds on validation samples" not in shown
