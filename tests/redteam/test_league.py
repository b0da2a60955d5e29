"""The league: what is in it, that its record repeats to the bit, and that its page says what the record holds."""

import dataclasses
import json
import random
import statistics

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flwr_robust.aggregators import Mean
from flwr_robust.cli.main import app
from flwr_robust.core.rule import aggregators
from flwr_robust.errors import ConfigurationError, FlwrRobustError
from flwr_robust.redteam import league as module
from flwr_robust.redteam.battery import BATTERY
from flwr_robust.redteam.league import (
    ATTACKERS,
    BEHIND,
    CLIENTS,
    DATA_SETS,
    NONE,
    PARTITIONS,
    RECORD,
    SEARCHES,
    SEEDS,
    Cell,
    Choice,
    Entry,
    League,
    attacks,
    choose_for,
    entries,
    entry_of,
    left_out,
    lowest_class,
    measure_cost,
    read_league,
    run_group,
    run_league,
    small_fashion_mnist,
    waiting,
    without_entry,
)
from flwr_robust.redteam.league_page import findings, lacking, page, standing, standings
from flwr_robust.tasks import task_of
from tests.house import ROOT

PAGE = ROOT / "docs" / "league.md"


@pytest.fixture
def added():
    """A registered rule of a user's own, which is gone after the test."""

    @aggregators.register("mean_of_a_user")
    @dataclasses.dataclass(frozen=True)
    class MeanOfAUser(Mean):
        pass

    yield "mean_of_a_user"
    del aggregators._members["mean_of_a_user"]


def made(accuracy, worst=0.5):
    """Return a cell whose seeds differ by a hundredth."""
    return Cell((accuracy, accuracy + 0.01, accuracy - 0.01), (worst,) * 3, (4, 4, 2), "0" * 12)


def filled(rules, data="digits"):
    """Return a record with complete rows: by rule the accuracy without attack, and under the worst one."""
    found = League()
    for rule, (calm, worst) in rules.items():
        for partition in PARTITIONS:
            cells = {label: made((calm + worst) / 2) for label in attacks()}
            found.groups[data, rule, partition] = {**cells, NONE: made(calm, 0.7), "alie()": made(worst, 0.1)}
    return found


# -- what there is --------------------------------------------------------------------------------


def test_every_rule_has_a_row_or_a_reason():
    rows, reasons = entries(), without_entry()
    alone = {entry.candidates[0].partition("(")[0] for entry in rows if not entry.before}
    assert alone | {*reasons} >= {*aggregators.members()}
    assert not alone & {*reasons}
    assert {"fltrust", "monna"} <= {*reasons}
    behind = {entry.text(entry.key) for entry in rows if entry.before}
    assert {f"{before} | mean()" for before in BEHIND} <= behind
    for entry in rows:
        if not entry.before:
            assert (f"{entry.key} behind nnm or arc" in reasons) != (f"{BEHIND[0]} | {entry.key}" in behind)


def test_a_registered_rule_enters_by_itself(added):
    assert Entry(("mean_of_a_user()",), name=added) in entries()
    assert "mean_of_a_user()" in lacking(League(), "digits")


def test_without_it_the_rule_is_not_there():
    assert "mean_of_a_user()" not in lacking(League(), "digits")


def test_every_attack_of_the_battery_is_there_or_has_a_reason():
    labels = {attack.label for attack in BATTERY}
    assert {*attacks()} - {NONE} | {*left_out()} == labels
    assert not {*attacks()} & {*left_out()}
    kept = {attack.family for attack in BATTERY if attack.label in attacks()}
    assert {attack.family for attack in BATTERY} - kept == {"backdoor triggers", "faults"}
    assert module._LEFT_OUT.keys() <= labels, "a reason for an attack that the battery lacks"


def test_texts_name_the_attackers_and_the_searches():
    assert all("{f}" not in text for text in attacks().values())
    assert attacks()["optimised(base='alie()')"] == f"optimised(base='alie()', budget={SEARCHES})"
    assert attacks()["alie()"] == "alie()"


def test_a_rule_that_declares_too_large_an_f_is_refused_in_one_sentence():
    with pytest.raises(FlwrRobustError, match=r"krum needs n >= 2f \+ 3; got n=15, f=7"):
        entry_of(["krum(f=7)"])
    assert entry_of(["krum(f=6)"]).candidates == ("krum(f=6)",)


def test_lowest_class_agrees_with_a_count():
    draw = np.random.default_rng(0)
    scores, targets = draw.normal(size=(200, 5)), draw.choice([0, 1, 4], size=200)
    right = {k: np.mean(scores[targets == k].argmax(1) == k) for k in (0, 1, 4)}
    found = lowest_class(torch.tensor(scores), torch.tensor(targets))
    assert found == min(right, key=right.get)
    assert lowest_class(torch.eye(3), torch.tensor([0, 1, 2])) == 0


def test_small_images_are_means_of_four_pixels(monkeypatch, tmp_path):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, size=(6_100, 28, 28), dtype=np.uint8)
    y = np.arange(6_100) % 10
    monkeypatch.setattr(module, "load_task", lambda name, folder: task_of(name, x, y, x[:2_100], y[:2_100]))
    task = small_fashion_mnist(tmp_path)
    assert task.x_train.shape[0] == 6_000
    assert task.x_test.shape[0] == 2_000
    assert task.y_train.tolist() == y[:6_000].tolist()
    held = task.x_train[7].reshape(14, 14).double().numpy()
    exact = x[7].reshape(14, 2, 14, 2).astype(float).mean((1, 3))
    assert np.abs(held - exact).max() <= 0.5


# -- runs -----------------------------------------------------------------------------------------


def test_an_attack_breaks_the_mean_and_not_a_median():
    labels = [NONE, "sign_flip(c=10.0)"]
    mean, median = (run_group("digits", rule, "iid", labels) for rule in ("mean()", f"median(f={ATTACKERS})"))
    assert 0.85 < mean[NONE].mean < 0.99
    assert mean["sign_flip(c=10.0)"].mean < 0.3
    assert median["sign_flip(c=10.0)"].mean > 0.8


def test_a_recorded_cell_comes_out_again_to_the_bit():
    recorded = read_league()
    cheap = [NONE, "sign_flip()", "alie()", "label_flip()", "mimic()"]
    ours = sorted(group for group in recorded.groups if group[0] == "digits")
    for group in random.Random(0).sample(ours, 2):
        (label,) = random.Random(str(group)).sample(cheap, 1)
        assert run_group(*group, [label]) == {label: recorded.groups[group][label]}
    data, _, partition = ours[0]
    other = run_group(data, "mean()", partition, ["mimic()"])["mimic()"]
    assert other != recorded.groups[ours[0]]["mimic()"]


def test_the_choice_takes_the_best_worst_case_on_validation_samples():
    texts = ["centered_clipping(tau=10.0, f=3)", "centered_clipping(tau=1.0, f=3)"]
    found = choose_for("digits", texts)
    recorded = read_league().choices["digits", "centered_clipping"]
    assert found.values == {text: recorded.values[text] for text in texts}
    assert found.chosen == texts[1]
    assert Choice({"a": (0.5, "x"), "b": (0.5, "y")}).chosen == "a"


def test_cost_grows_with_the_work():
    assert 0 < measure_cost("mean()") < measure_cost("smea(f=3)")


def test_what_is_there_is_not_run_again(monkeypatch):
    monkeypatch.setattr(module, "attacks", lambda: {NONE: NONE, "zero()": "zero()"})
    monkeypatch.setattr(module, "PARTITIONS", ("iid",))
    record, rows = League(), [Entry(("mean()",))]
    assert waiting(record, rows, ["digits"]) == 1
    assert [group[:3] for group in run_league(record, rows, ["digits"])] == [("digits", "mean()", "iid")]
    first = dict(record.groups["digits", "mean()", "iid"])
    assert record.costs["mean()"] > 0
    assert record.where["versions"]
    assert waiting(record, rows, ["digits"]) == 0
    assert [*run_league(record, rows, ["digits"])] == []
    asked = []
    monkeypatch.setattr(
        module, "run_group", lambda *group: asked.append(group[3]) or {label: made(0.1) for label in group[3]}
    )
    monkeypatch.setattr(module, "attacks", lambda: {NONE: NONE, "zero()": "zero()", "alie()": "alie()"})
    assert len([*run_league(record, rows, ["digits"])]) == 1
    assert asked == [["alie()"]]
    assert record.groups["digits", "mean()", "iid"] == {**first, "alie()": made(0.1)}


def test_a_run_without_a_model_counts_as_nothing_right():
    found = module._cell([ConfigurationError("no round changed the model")] * 3)
    assert found.accuracy == (0, 0, 0)
    record = League({("digits", "mean()", "iid"): {"alie()": found}})
    assert "no round changed the model" in page(record)
    assert "no round changed the model" not in page(League())


def test_missing_data_are_one_sentence_that_names_a_way_out(tmp_path):
    with pytest.raises(FlwrRobustError, match=r"leave these data out, with --on"):
        next(run_league(League(), [Entry(("mean()",))], ["fashion_mnist"], str(tmp_path / "none")))


# -- the record -----------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = filled({"mean()": (0.9, 0.1)})
    record.choices["digits", "dnc"] = Choice({"dnc(f=3)": (0.5, "alie()")})
    record.costs["mean()"] = 0.5
    path = tmp_path / "new" / "league.json"
    record.write(path)
    assert read_league(path) == record
    assert read_league(tmp_path / "absent.json") == League()
    assert path.read_text() == record.text()


def test_records_of_other_terms_are_refused(tmp_path):
    path = tmp_path / "league.json"
    filled({"mean()": (0.9, 0.1)}).write(path)
    document = json.loads(path.read_text())
    document["terms"]["rounds"] = 26
    path.write_text(json.dumps(document))
    with pytest.raises(FlwrRobustError, match=r"other terms, rounds=26; now rounds=25"):
        read_league(path)
    path.write_text("{}")
    with pytest.raises(FlwrRobustError, match=r"cannot be read"):
        read_league(path)


def test_one_record_fills_the_gaps_of_another():
    first, second = filled({"mean()": (0.9, 0.1)}), filled({"mean()": (0.5, 0.5), "cge(f=3)": (0.8, 0.6)})
    group = "digits", "mean()", "iid"
    held = first.groups[group]["zero()"]
    del first.groups[group]["alie()"]
    first.add(second)
    assert first.groups[group]["zero()"] == held
    assert first.groups[group]["alie()"] == made(0.5, 0.1)
    assert ("digits", "cge(f=3)", "iid") in first.groups


def test_the_record_is_compact():
    assert RECORD.stat().st_size < 3_000_000
    assert read_league().groups


# -- standings ------------------------------------------------------------------------------------


def test_standings_agree_with_a_loop_over_the_record():
    document = json.loads(RECORD.read_text())
    rows = standings(read_league(), "digits")
    assert len(rows) >= 10
    for row in rows:
        per_seed = []
        for seed in range(len(SEEDS)):
            lows = []
            for line in document["groups"]:
                if (line["data"], line["rule"]) == ("digits", row.rule):
                    lows.append(min(cell[0][seed] for label, cell in line["attacks"].items() if label != "none"))
            assert len(lows) == 4
            per_seed.append(sum(lows) / 4)
        assert row.score.mean == pytest.approx(sum(per_seed) / len(per_seed), abs=1e-12)
    scores = [row.score.mean for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_the_better_worst_case_comes_first_whatever_the_price():
    record = filled({"mean()": (0.95, 0.1), "cge(f=3)": (0.6, 0.5), "krum(f=3)": (0.7, 0.4)})
    rows = standings(record, "digits")
    assert [row.rule for row in rows] == ["cge(f=3)", "krum(f=3)", "mean()"]
    assert rows[0].price == pytest.approx(0.35)
    assert rows[0].calm_class == pytest.approx(0.7)
    assert rows[0].worst["iid"].under == "alie()"
    assert rows[0].worst["iid"].lowest == 4
    assert rows[0].worst["iid"].class_accuracy == pytest.approx(0.1)
    assert not rows[0].level(rows[2])
    assert rows[0].sacrificed == (4, pytest.approx(2 / 3))
    (leads, *_) = findings(record)
    assert "`cge(f=3)` has the best worst case over all attacks of the 3 rows run so far, 50.0 %" in leads
    assert "the mean has 10.0 %" in leads


def test_rows_whose_seeds_overlap_are_level():
    record = filled({"mean()": (0.9, 0.3), "cge(f=3)": (0.9, 0.3)})
    noisy = Cell((0.2, 0.31, 0.38), (0.1,) * 3, (1, 1, 1), "1" * 12)
    for partition in PARTITIONS:
        record.groups["digits", "cge(f=3)", partition]["alie()"] = noisy
    first, second = standings(record, "digits")
    assert first.level(second)


def test_a_row_with_a_missing_cell_does_not_stand():
    record = filled({"mean()": (0.9, 0.3)})
    assert standing(record, "digits", "mean()")
    assert "mean()" not in lacking(record, "digits")
    del record.groups["digits", "mean()", "by_label"]["zero()"]
    assert standing(record, "digits", "mean()") is None
    assert "mean()" in lacking(record, "digits")
    assert "alone `bulyan(f=3)`" in page(record)


def test_what_a_step_before_helps_is_counted():
    record = filled({"mean()": (0.9, 0.1), "nnm(f=3) | mean()": (0.9, 0.4)})
    assert "nnm raises it for 1 of 1 rules, by 30.0 points in the median" in findings(record)[2]
    assert "arc" not in findings(record)[2]


def test_the_page_is_what_the_record_gives():
    assert PAGE.read_text() == page(read_league())


def test_the_page_names_all_and_its_prose_is_narrow():
    text = page(read_league())
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))
    assert all(f"`{name}`" in text for name in (*left_out(), *without_entry()))
    rows = standings(read_league(), "digits")
    assert statistics.fmean(rows[0].worst["iid"].values) > 0.5
    for row in rows:
        assert f"| `{row.rule.replace('|', chr(92) + '|')}` | **{100 * row.score.mean:.1f}** |" in text


# -- the verb -------------------------------------------------------------------------------------


def league(*arguments):
    return CliRunner().invoke(app, ["league", *map(str, arguments)])


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Runs of a rule of one's own that are made up, and a folder without results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        module, "run_group", lambda data, rule, partition, labels, folder: {label: made(0.99) for label in labels}
    )
    monkeypatch.setattr(module, "measure_cost", lambda rule: 1.0)
    monkeypatch.setattr(module, "circumstances", dict)
    monkeypatch.setattr(
        module, "choose_for", lambda data, texts, folder: Choice({t: (len(t) / 100, NONE) for t in texts})
    )


def test_the_verb_shows_the_recorded_league(quick):
    done = league("--json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["clients"] == CLIENTS
    assert {*document["data"]} == {*DATA_SETS}
    (first, *_) = document["data"]["digits"]["standings"]
    assert first["rule"] == standings(read_league(), "digits")[0].rule
    assert len(first["partitions"]["iid"]["worst"]) == len(SEEDS)
    assert "own" not in document
    shown = league("--on", "digits")
    assert first["rule"].split("(")[0] in shown.stdout
    assert "fashion_mnist" not in shown.stdout


def test_a_rule_of_a_plugin_is_ranked_by_one_command(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_ROBUST_PLUGINS", "")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from flwr_robust.aggregators import Median\n"
        "from flwr_robust.core.rule import aggregators\n"
        "@aggregators.register('my_rule')\n"
        "@dataclass(frozen=True)\n"
        "class MyRule(Median):\n"
        "    pass\n"
    )
    try:
        done = league("--rule", "my_rule(f=3)", "--plugin", "mine.py", "--on", "digits", "--json")
        assert done.exit_code == 0, done.output
        document = json.loads(done.stdout)
        assert document["own"] == [
            {"rule": "my_rule(f=3)", "data": "digits", "rank": 1, "of": len(document["data"]["digits"]["standings"])}
        ]
        shown = league("--rule", "my_rule(f=3)", "--on", "digits").stdout
        assert "my_rule(f=3) has place 1 of" in shown
        several = league("--rule", "my_rule(f=2)", "--candidate", "my_rule(f=3) | ", "--on", "digits")
        assert several.exit_code == 2
        several = league("--rule", "mean()", "--candidate", "clip(c=1.0) | mean()", "--on", "digits", "--json")
        assert [each["rule"] for each in json.loads(several.stdout)["own"]] == ["clip(c=1.0) | mean()"]
    finally:
        aggregators._members.pop("my_rule", None)
    assert not (tmp_path / "results").exists()


def test_a_run_fills_the_record_with_what_was_registered_since(quick, added, tmp_path):
    path = tmp_path / "mine.json"
    there = standings(read_league(), "fashion_mnist")
    done = league("--run", "--on", "digits", "--results", path, "--page", tmp_path / "page.md")
    assert done.exit_code == 0, done.output
    assert lacking(read_league(path), "digits") == []
    assert "mean_of_a_user()" in [row.rule for row in standings(read_league(path), "digits")]
    assert standings(read_league(path), "fashion_mnist") == there
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("# The league")
    assert "`mean_of_a_user()`" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--candidate", "krum(f=3)"], "--candidate is a further setting of --rule"),
        (["--on", "mnist"], "must be one of digits, fashion_mnist"),
        (["--rule", "krum(f=7)"], "krum needs n >= 2f + 3"),
        (["--rule", "fltrust()"], "compares with an update of the server's own"),
        (["--rule", "crum(f=3)"], "unknown"),
        (["--rule", "krum(f=3)", "--run"], "leave one of them out"),
        (["--page", "no/such/folder/page.md"], "cannot be written"),
        (["--results", "."], "cannot be read"),
    ],
)
def test_wrong_input_is_one_sentence(quick, arguments, sentence):
    done = league(*arguments)
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
