"""The page on choosing hyper-parameters: its table says what was recorded, and its example is a study."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

from flwr_robust.studies.choose import choose
from flwr_robust.studies.recorded import read_recorded
from flwr_robust.studies.study import load_study

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def recorded():
    study = load_study("choose")
    documents = read_recorded(study)
    assert len(documents) == len(study.cells) == 144
    return study, documents


def worst_on_test(documents, defence, candidate):
    """The worst final test accuracy of a candidate over the attacks, mean over seeds, in percent."""
    found: dict[str, list[float]] = {}
    for document in documents:
        labels = document["labels"]
        if (labels["defence"], labels["candidate"]) == (defence, candidate):
            found.setdefault(labels["attack"], []).append(100 * document["final"]["accuracy"])
    assert [len(values) for values in found.values()] == [3] * 4
    return min(map(statistics.fmean, found.values()))


def test_the_table_is_what_was_recorded(recorded):
    study, documents = recorded
    lines = []
    for choice in choose(study, documents).choices:
        chosen, second = choice.ranking[:2]
        on_test = {str(each): worst_on_test(documents, choice.title, str(each)) for each in choice.ranking}
        highest = max(on_test, key=lambda name: on_test[name])
        lines.append(
            f"| {choice.title} | {chosen} | {100 * chosen.value:.1f} under {chosen.at} | {second}: "
            f"{100 * second.value:.1f} | {on_test[str(chosen)]:.1f} | {highest}: {on_test[highest]:.1f} |"
        )
    assert "\n".join(lines) in PAGE, "\n".join(lines)


def test_the_example_is_a_study(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "example.toml"
    path.write_text(text.replace("[config]", "[config]\nattackers = 2\nclients = 7"))
    study = load_study(str(path))
    assert len(study.cells) == 27
    assert study.select.across == ("attack",)
