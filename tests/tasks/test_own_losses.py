"""The page on losses and metrics of a user's own: its examples run, are learnt, and are shown."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flwr_robust.cli import app
from flwr_robust.core import spec
from flwr_robust.studies.runner import read_results, run_study
from flwr_robust.studies.study import load_study
from flwr_robust.tasks import LOSSES, TARGETS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-losses.md"
FILES = ("houses.py", "films.py", "letters.py")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write the files of an example, and return its study."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spec.sys, "path", [*spec.sys.path])
    monkeypatch.setenv(spec.PLUGINS, "")
    blocks = {kind: re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL) for kind in ("toml", "python")}
    assert len(blocks["toml"]) == len(blocks["python"]) == len(FILES)

    def write(file):
        Path(file).write_text(blocks["python"][FILES.index(file)])
        Path("study.toml").write_text(blocks["toml"][FILES.index(file)])
        return "study.toml"

    yield write
    for file in FILES:
        spec.sys.modules.pop(Path(file).stem, None)


def finals(study, folder):
    run_study(study, folder, engine="fast", workers=1)
    return {document["labels"]["defence"]: document["final"] for document in read_results(study, folder)}


def test_the_regression_is_run_and_shown_by_the_command(written, tmp_path):
    found = finals(load_study(written("houses.py")), tmp_path / "results" / "study")
    assert set(found["mean()"]) == {*TARGETS["values"].metrics, "covered"}
    # Two-sided: the rule finds the quantile 0.9 under attack, and the mean does not.
    assert abs(found["trimmed_mean(f=1)"]["covered"] - 0.9) < 0.1
    assert abs(found["mean()"]["covered"] - 0.9) > 0.2
    shown = CliRunner().invoke(app, ["report", "study.toml", "--results", "results"])
    assert shown.exit_code == 0, shown.output
    assert "covered" in shown.output


def test_several_labels_are_learnt(written, tmp_path):
    found = finals(load_study(written("films.py")), tmp_path / "out")
    for final in found.values():
        assert set(final) == {*TARGETS["labels"].metrics, "worst_client", "ranking"}
        assert 0.8 < final["macro_f1"] < 1
        assert 0.5 < final["worst_client"] < 1


def test_the_next_token_is_learnt(written, tmp_path):
    study = load_study(written("letters.py"))
    found = finals(study, tmp_path / "out")
    for document in read_results(study, tmp_path / "out"):
        first, last = document["curve"][0], document["curve"][-1]
        assert first["perplexity"] > 15 > 1.5 * last["perplexity"]
        assert document["best_accuracy"] >= last["accuracy"] > first["accuracy"]
    assert set(found["median()"]) == {*TARGETS["tokens"].metrics, "last"}


def test_the_page_names_every_target_loss_and_metric():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (`.*) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert {name: (losses, metrics) for name, losses, metrics in rows} == {
        name: (", ".join(f"`{loss}`" for loss in target.losses), ", ".join(target.metrics))
        for name, target in TARGETS.items()
    }
    assert all(loss in PAGE.read_text() for loss in LOSSES)
