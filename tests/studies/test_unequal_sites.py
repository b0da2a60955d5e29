"""The page on clients of unequal size: its tables, its sentences and its example say what was recorded and computed."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
import torch

from flwr_robust import aggregate
from flwr_robust.studies.recorded import read_recorded
from flwr_robust.studies.study import load_study

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "unequal-clients.md").read_text(encoding="utf-8")
SIZES = [51.7, 21.3, 10.2, 7.4, 4.6, 2.9, 1.3, 0.6]


def table(first: str) -> dict[str, list[str]]:
    """The cells of the page's table whose head begins with a text, by the first cell of their row."""
    lines = PAGE[PAGE.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cells[0]: cells[1:] for cells in (split[0], *split[2:])}


@pytest.fixture(scope="module")
def accuracy():
    study = load_study("unequal_sites")
    found: dict[tuple[str, str], list[float]] = {}
    for document in read_recorded(study):
        labels = document["labels"]
        found.setdefault((labels["defence"], labels["site"]), []).append(100 * document["curve"][-1]["accuracy"])
    assert all(len(values) == 3 for values in found.values())
    return {place: statistics.mean(values) for place, values in found.items()}


def test_the_table_is_what_was_recorded(accuracy):
    shown = table("defence")
    sites = shown.pop("defence")
    assert {(row, site): value for row, cells in shown.items() for site, value in zip(sites, cells, strict=True)} == {
        place: f"{value:.1f}" for place, value in accuracy.items()
    }


def test_the_sentences_hold(accuracy):
    quiet, last = "nobody lies", "largest, x -1000"
    pairs = [
        ("mean", "weighted mean, most 0.3"),
        ("median", "weighted median, most 0.3"),
        ("trimmed mean", "weighted trimmed mean, most 0.3"),
        ("multi-Krum", "weighted multi-Krum, most 0.3"),
        ("FABA", "weighted FABA, most 0.3"),
        ("NNM, trimmed mean", "weighted NNM, weighted trimmed mean, most 0.3"),
        ("centered clipping", "weighted centered clipping, most 0.3"),
        ("clip to the median, mean", "clip to the median, weighted mean, most 0.3"),
    ]
    gains = [accuracy[weighted, quiet] - accuracy[plain, quiet] for plain, weighted in pairs]
    assert all(0.3 < gain <= 1.1 for gain in gains)
    assert 0.3 < statistics.median(gains) < 0.9
    leaving_out = [weighted for _, weighted in pairs[2:6]]
    sites = {site for _, site in accuracy}
    assert min(accuracy[row, site] for row in leaving_out for site in sites) >= 90.95
    for row, value in (
        ("clip to the median, weighted mean", "10.0"),
        ("clip to the median, weighted mean, most 0.3", "75.4"),
        ("clip to the median, mean", "87.8"),
        ("weighted centered clipping, most 0.3", "82.2"),
        ("centered clipping", "89.9"),
    ):
        assert f"{accuracy[row, last]:.1f}" == value
        assert value in PAGE[PAGE.index("What it says:") :]
    assert max(accuracy["weighted mean", last], accuracy["weighted mean, most 0.3", last]) < 11
    assert min(accuracy["weighted geometric median", site] for site in sites) > 90


def test_the_shares_are_what_the_rule_computes():
    shown = table("weights")
    assert shown.pop("weights")[0] == "largest site"
    for row, cells in shown.items():
        fields = {"equal": "", "as claimed": "weighted=True, clamp=1e12"}.get(row, f"weighted=True, {row.strip('`')}")
        found = []
        for counts in (SIZES, [*SIZES[:-1], 1e9]):
            weights = aggregate(torch.eye(8), f"mean({fields})", counts=counts).weights
            found += [f"{100 * float(weights[0]):.1f}", f"{100 * float(weights[-1]):.1f}"]
        assert cells == found, row


def test_the_example_runs():
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "unequal-clients.md", "exec"), {})
