"""Four hospitals: the counts that FLamby states, and a run that learns."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate
from flwr_robust.studies.recorded import read_recorded
from flwr_robust.studies.study import load_study
from flwr_robust.tasks import load_task
from flwr_robust.tasks.data import ARCHIVES, data_folder
from flwr_robust.tasks.heart_disease import HOSPITALS

real = pytest.mark.skipif(not (data_folder() / ARCHIVES["heart_disease"]).is_file(), reason="needs the package's file")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-data.md"
ALL = (303, 261, 46, 130)


@real
def test_the_patients_are_those_of_flamby():
    task = load_task("heart_disease")
    assert (task.shape, task.labels) == ((13,), ("disease", "no disease"))
    assert len(task.y_train) + len(task.y_test) == sum(ALL) == 740
    held = torch.bincount(task.owners).tolist()
    assert held == [203, 175, 31, 88]
    assert len(HOSPITALS) == len(held)
    assert all(abs(count - 0.66 * patients) < 4 for count, patients in zip(held, ALL, strict=True))
    torch.testing.assert_close(task.x_train.mean(0), torch.zeros(13), atol=1e-5, rtol=0)
    torch.testing.assert_close(task.x_train.std(0, correction=0), torch.ones(13))
    ill = [float((task.y_train[task.owners == hospital] == 0).double().mean()) for hospital in range(4)]
    assert [round(share, 2) for share in ill] == [0.46, 0.38, 0.97, 0.77]


@real
def test_its_hospitals_learn_together():
    config = RunConfig(
        task="heart_disease",
        partition="natural",
        clients=4,
        message="delta",
        local_steps=5,
        rounds=40,
        evaluate_every=40,
    )
    assert [len(part) for part in config.samples] == [203, 175, 31, 88]
    accuracy = simulate(config)["curve"][-1]["accuracy"]
    assert 0.76 < accuracy < 0.9  # as a logistic regression of all data together has


def test_the_table_of_the_page_is_what_was_recorded():
    found: dict[tuple[str, str], list[float]] = {}
    for document in read_recorded(load_study("four_hospitals")):
        labels = document["labels"]
        found.setdefault((labels["defence"], labels["attack"]), []).append(100 * document["curve"][-1]["accuracy"])
    assert all(len(values) == 3 for values in found.values())
    page = PAGE.read_text().replace("\\|", "!")
    head, _, *lines = page[page.index("| defence |") :].split("\n\n")[0].splitlines()
    attacks = [cell.strip() for cell in head.strip("|").split("|")[1:]]
    shown = {}
    for line in lines:
        rule, *cells = [cell.strip().replace("!", "|").strip("`") for cell in line.strip("|").split("|")]
        shown |= {(rule, attack): cell for attack, cell in zip(attacks, cells, strict=True)}
    assert shown == {place: f"{statistics.mean(values):.1f}" for place, values in found.items()}
    for attack in attacks[1:]:
        drops = {rule: statistics.mean(found[rule, "none"]) - statistics.mean(found[rule, attack]) for rule, _ in found}
        assert min(drops, key=drops.get) == "geometric_median()"
        assert drops["mean()"] > 5
