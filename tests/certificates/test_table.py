"""The table of all rules: which there are, its document and its Markdown, and that the committed one holds."""

import json
import math
import pickle

import pytest

from flwr_robust import Certificate, ConfigurationError, parse
from flwr_robust.certificates import table
from flwr_robust.certificates.table import Row, certify_all, document_of, markdown_of, rules
from flwr_robust.core.rule import aggregators
from tests.house import ROOT

PAGE = ROOT / "docs" / "certified.md"
DOCUMENT = json.loads((ROOT / "docs" / "certified.json").read_text(encoding="utf-8"))
HELD = {f"{row['stage']} | {row['name']}": row["certificate"] for row in DOCUMENT["rows"] if row["certificate"]}
SAMPLED = sorted(HELD)[::9]


def test_every_rule_has_a_text():
    found = dict(rules())
    assert set(found) == set(aggregators.members())
    for name, text in found.items():
        assert parse(text, f=2).name == name


@pytest.fixture
def few(monkeypatch):
    texts = [("trimmed_mean", "trimmed_mean"), ("mean", "mean"), ("bulyan", "bulyan"), ("lfighter", "lfighter")]
    monkeypatch.setattr(table, "rules", lambda: texts)
    monkeypatch.setattr(table, "STAGES", ("", "nnm"))


def test_a_table_has_a_row_for_each_rule_and_stage(few):
    told = []
    rows = certify_all(8, 2, evaluations=150, seconds=20, told=told.append)
    assert [(row.rule, row.stage) for row in rows] == [
        (name, stage) for name in ("trimmed_mean", "mean", "bulyan", "lfighter") for stage in ("", "nnm")
    ]
    assert told == rows
    assert rows[0].certificate.exact == pytest.approx(0.5)
    assert rows[1].certificate.proven == pytest.approx(8 * 2 / 6 * 1.5)
    assert rows[2].certificate.found == math.inf
    assert rows[4].reason.startswith("bulyan needs n >= 4f + 3; got n=8, f=2")
    assert rows[6].reason.startswith("lfighter() reads the layers of a model")
    document = json.loads(json.dumps(document_of(rows, 8, 2, "kappa"), allow_nan=False))
    lines = markdown_of(document).splitlines()
    assert lines[0] == "| rule | alone | `nnm` | proven, alone |"
    assert lines[2].startswith("| `trimmed_mean` | = 0.500 | >= ")
    assert lines[3].startswith("| `mean` | unbounded | ")
    assert lines[4].startswith("| `bulyan` | - | - | bulyan needs n >= 4f + 3")


def test_a_row_is_made_from_what_can_be_sent_to_a_process():
    task = table._Task("krum", "", "krum", 7, 2, "kappa", 200, 60.0, 0, ())
    row = table._row(task)
    assert isinstance(row, Row)
    assert pickle.loads(pickle.dumps(task)) == task
    assert row.certificate.replay() == pytest.approx(row.certificate.found)


def test_an_earlier_table_is_where_searches_begin(few):
    """A tiny search alone finds less than one that begins where a longer one ended."""
    first = document_of(certify_all(8, 2, evaluations=1000, seconds=60), 8, 2, "kappa")
    again = certify_all(8, 2, evaluations=100, seconds=1e-3, earlier=json.loads(json.dumps(first)))
    for before, row in zip(first["rows"], again, strict=True):
        if before["certificate"] is not None and before["certificate"]["found"] != "unbounded":
            assert row.certificate.found >= before["certificate"]["found"] * (1 - 1e-9)
    with pytest.raises(ConfigurationError, match=r"certify: an earlier table must be what certify --all wrote"):
        certify_all(8, 2, earlier={"rows": [{}]})


def test_a_wrong_number_is_an_error_before_the_work():
    with pytest.raises(ConfigurationError, match=r"certify: f must be below n / 2"):
        certify_all(8, 4)
    with pytest.raises(ConfigurationError, match=r"certify: workers must be an integer >= 1"):
        certify_all(8, 2, workers=0)


@pytest.mark.parametrize("key", SAMPLED)
def test_a_row_of_the_committed_table_replays(key):
    certificate = Certificate.from_dict(HELD[key])
    assert certificate.n == DOCUMENT["n"] == 20
    assert certificate.f == DOCUMENT["f"] == 4
    assert certificate.replay() == pytest.approx(certificate.found, rel=1e-6)
    assert not certificate.contradicted


def test_the_committed_table_has_every_rule_and_stage():
    assert {(row["name"], row["stage"]) for row in DOCUMENT["rows"]} == {
        (name, stage) for name in aggregators.members() for stage in table.STAGES
    }
    for row in DOCUMENT["rows"]:
        assert (row["certificate"] is None) == bool(row["reason"])


def test_the_committed_bounds_are_those_of_the_rules_today():
    for held in HELD.values():
        stated = Certificate.from_dict(held)
        if stated.exact is not None and math.isfinite(stated.exact):
            (bound,) = stated.rule.bounds(20, 4)
            assert bound.value == pytest.approx(stated.exact, rel=1e-12)
            assert 0.99 * stated.exact <= stated.found <= stated.exact * (1 + 1e-6)


def test_the_page_shows_the_committed_table():
    text = PAGE.read_text(encoding="utf-8")
    assert markdown_of(DOCUMENT) in text
