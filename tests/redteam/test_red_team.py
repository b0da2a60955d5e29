"""The red team: what its numbers are, what it makes of strategies that die, and what its command answers."""

import dataclasses
import functools
import io
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp import strategy as flower
from rich.console import Console
from typer.testing import CliRunner

from flwr_robust.app.client import app as client_app
from flwr_robust.attacks.data.base import data_attacks
from flwr_robust.attacks.fault.base import faults
from flwr_robust.attacks.message.base import message_attacks
from flwr_robust.cli import app
from flwr_robust.cli.redteam import _stem
from flwr_robust.errors import ConfigurationError, FlwrRobustError, UnknownNameError
from flwr_robust.flower import AdversarialGrid, InProcessGrid, RobustStrategy
from flwr_robust.flower.wire import decode_record, encode_record
from flwr_robust.redteam import report as red_report
from flwr_robust.redteam import run as module
from flwr_robust.redteam.battery import BATTERY, HONEST_MEAN, NO_ATTACK, REVIEW, Attack, choose
from flwr_robust.redteam.run import RedTeam, Run, Setting, read_red_team, red_team
from flwr_robust.round_seeds import FixedSeed
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.results import evaluator
from tests.apps import run as run_app

DOCS = Path(__file__).resolve().parents[2] / "docs"
SILENT = Console(quiet=True)
SMALL = {"clients": 6, "rounds": 2, "partition": "iid", "model": "softmax", "console": SILENT}


def trimmed():
    return RobustStrategy("trimmed_mean(f=1)", fraction_evaluate=0.0)


def fed_avg():
    return flower.FedAvg(fraction_evaluate=0.0)


def small(make=trimmed, attacks=("sign_flip(c=10.0)",), **options):
    return red_team(make, **{"name": "it", "attacks": choose(attacks), **SMALL, **options})


def invoke(*arguments):
    return CliRunner().invoke(app, ["red-team", *map(str, arguments)])


def said(done):
    """The output on one line."""
    return re.sub(r"\s+", " ", done.output)


# -- the battery -----------------------------------------------------------------------------------


def test_the_battery_holds_every_attack_and_the_review():
    everything = {*data_attacks.members(), *message_attacks.members(), *faults.members()}
    assert set().union(*(attack.names for attack in BATTERY)) == everything
    assert tuple(dict.fromkeys(attack.family for attack in BATTERY))[: len(REVIEW)] == REVIEW
    assert len({attack.label for attack in BATTERY}) == len(BATTERY)
    assert {a.label for a in BATTERY if a.knows_defence} == {a.label for a in BATTERY if a.family.startswith("knowing")}
    for attack in BATTERY:
        for f in (1, 3):
            assert attack.on_data(f) or attack.on_messages(f)
        assert attack.targeted == ("backdoor" in attack.label or "targeted" in attack.label)


def test_attacks_are_chosen_by_family_name_label_or_text():
    assert choose([]) == BATTERY
    assert [a.label for a in choose(["alie", "scaled updates"])] == [
        "scale(c=10.0)",
        "scale(c=1000.0)",
        "alie()",
        "alie(z=3.0)",
    ]
    assert [a.label for a in choose(["alie(z=2.0)", "label_flip()"])] == ["label_flip()", "alie(z=2.0)"]
    assert choose(["backdoor(target=3)"])[0].data == "backdoor(target=3)"
    assert str(choose(["sybil(k={f})"])[0].on_messages(3)) == "sybil(k=3)"
    with pytest.raises(UnknownNameError, match=r"unknown attack or family of attacks 'aile'\. Did you mean 'alie'\?"):
        choose(["aile"])
    with pytest.raises(ConfigurationError, match="epsilon must be given"):
        choose(["ipm()"])


# -- the numbers -----------------------------------------------------------------------------------


class HonestOnly(RobustStrategy):
    """Knows that the last two clients are none of the honest."""

    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, [r for r in replies if r.metadata.src_node_id < 2 + 4])


def by_hand(strategy, attack="none", attackers=0, on_messages=None, seed=0):
    """Accuracy after the rounds of SMALL, from the parts and not from the red team."""
    config = RunConfig(
        clients=6,
        attack=attack,
        attackers=attackers if attack != "none" else 0,
        message="parameters",
        local_steps=5,
        local_learning_rate=0.3,
        rounds=2,
        evaluate_every=2,
        seed=seed,
    )
    learner = config.learner()
    grid = InProcessGrid(client_app, 6, config.to_mapping())
    if on_messages:
        grid = AdversarialGrid(grid, on_messages, attackers, rule=strategy, knowledge="defence", seed=seed)
    initial = encode_record(dict(zip(learner.names, learner.arrays(), strict=True)))
    result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=2)
    return evaluator(config)(2, lambda: decode_record(result.arrays))


def test_the_runs_seed_decides_what_a_strategy_draws():
    made = []

    def drawing(seed=None):
        made.append(RobustStrategy("bucketing(s=2) | median(f=1)", fraction_evaluate=0.0, seed=seed))
        return made[-1]

    for make in (drawing, lambda: drawing(9)):
        small(make, attacks=("sign_flip(c=10.0)",), seeds=(4,), real_f=[1])
    used = [strategy.guard.seeds for strategy in made if strategy.history]
    assert FixedSeed(4) in used
    assert FixedSeed(9) in used
    assert set(used) == {FixedSeed(4), FixedSeed(9)}


def test_the_table_holds_what_runs_by_hand_give():
    logging.getLogger("flwr").setLevel(logging.ERROR)
    attacks = ("sign_flip(c=10.0)", "optimised(base='alie()')", "backdoor(target=0)")
    result = small(attacks=attacks, seeds=(0, 1))
    assert result.real_f == [1, 2]
    assert result.alone == np.mean([by_hand(trimmed(), seed=seed)["accuracy"] for seed in (0, 1)])
    for f in (1, 2):
        for label in attacks[:2]:
            hand = [by_hand(trimmed(), attackers=f, on_messages=label, seed=seed)["accuracy"] for seed in (0, 1)]
            assert result.accuracy(label, f) == np.mean(hand)
        hand = by_hand(trimmed(), "backdoor(target=0)", f, seed=1)
        assert result.runs["backdoor(target=0)", f, 1].accuracy == hand["accuracy"]
        assert result.runs["backdoor(target=0)", f, 1].success == hand["attack_success"]
    honest = by_hand(HonestOnly("mean()", fraction_evaluate=0.0))["accuracy"]
    assert result.runs[HONEST_MEAN.label, 2, 0].accuracy == honest
    assert result.honest(2) != result.honest(0)
    # Under a backdoor that nobody plants the model still takes some samples for the target, now and then.
    assert result.runs["backdoor(target=0)", 0, 0].success is not None
    assert result.success("sign_flip(c=10.0)", 1) is None


def test_poisoned_clients_are_those_of_the_app(tmp_path):
    options = {"clients": 6, "rounds": 2, "message": "parameters", "local_steps": 5, "local_learning_rate": 0.3}
    document, _ = run_app(
        tmp_path, attack="label_flip()", attackers=2, defence="median()", server_learning_rate=1.0, **options
    )
    result = small(functools.partial(RobustStrategy, "median()", fraction_evaluate=0.0), ("label_flip()",), f=1)
    assert result.accuracy("label_flip()", 2) == document["curve"][-1]["accuracy"]


def test_attackers_of_data_and_of_messages_may_be_one():
    both = small(fed_avg, ("label_flip() + sybil(k=f)", "label_flip()"), f=1, real_f=[2], rounds=4)
    plain, sybils = both.accuracy("label_flip()", 2), both.accuracy("label_flip() + sybil(k=f)", 2)
    assert sybils != plain
    alone = small(fed_avg, ("sybil(k={f})",), f=1, real_f=[1], rounds=4)
    assert alone.accuracy("sybil(k=f)", 1) == alone.alone  # one sybil of an honest client is that client


def test_strategies_of_flower_repeat_to_the_bit():
    make = functools.partial(flower.Krum, num_malicious_nodes=1, fraction_evaluate=0.0)
    first, second = (small(make, ("gaussian", "mimic"), f=1, real_f=[1]) for _ in range(2))
    assert first == second


def test_messages_are_those_the_strategy_asks_for():
    make = functools.partial(RobustStrategy, "median(f=1)", message="gradient", fraction_evaluate=0.0)
    result = small(make, ("sign_flip(c=10.0)",))
    assert result.setting.message == "gradient"
    assert result.alone > 0.15
    assert result.honest(1) > 0.15


def test_a_broken_strategy_falls_where_a_robust_one_holds():
    attacks = ("scale(c=1000.0)", "sign_flip(c=10.0)")
    options = {"model": "mlp", "rounds": 12, "real_f": [1], "f": 1}
    broken, robust = (small(make, attacks, **options) for make in (fed_avg, trimmed))
    assert broken.alone > 0.75
    assert robust.alone > 0.75
    assert broken.bottom[0] < 0.3
    assert robust.bottom[0] > 0.7
    assert (broken.holds(70), robust.holds(70)) == (False, True)


def test_a_strategy_that_dies_is_a_result():
    result = small(fed_avg, ("drop_layers", "nan", "crash()"), f=1)
    for seed_run in result.of("drop_layers()", 1):
        assert (seed_run.accuracy, seed_run.success, seed_run.finite) == (0.0, None, True)
        assert seed_run.died.startswith("in round 1: InconsistentMessageReplies: All ArrayRecords must have")
    assert [(run.accuracy, run.finite, run.died) for run in result.of("nan()", 2)] == [(0.0, False, "")]
    assert result.accuracy("crash()", 1) > 0.15
    assert result.bottom[0] == 0
    notes = " ".join(red_report.footnotes(result))
    assert "Died, which counts as 0, under drop_layers(): in round 1: Inconsistent" in notes
    assert "Died, which counts as 0, under nan(): the model is not finite (NaN), without an error" in notes
    assert [result.died(label, 1) for label in ("drop_layers()", "nan()", "crash()")] == [True, True, False]
    assert not result.holds(0)


class LateDeath(flower.FedAvg):
    """Raises in round 2 for any reply that has moved far."""

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round == 2 and any(np.abs(values.numpy()).max() > 5 for values in arrays.values()):
            raise ZeroDivisionError("far too far")
        return arrays, metrics


class NoModel(flower.FedAvg):
    """Gives a model of other shapes."""

    def aggregate_train(self, server_round, replies):
        super().aggregate_train(server_round, replies)
        return ArrayRecord([np.zeros(3)]), None


def test_the_round_of_a_death_is_counted():
    make = functools.partial(LateDeath, fraction_evaluate=0.0)
    result = small(make, ("gaussian(sigma=100.0)",), f=1, real_f=[1])
    assert result.of("gaussian(sigma=100.0)", 1)[0].died == "in round 2: ZeroDivisionError: far too far"
    with pytest.raises(FlwrRobustError, match="it cannot train even without an attacker: in round 2: ValueError"):
        small(functools.partial(NoModel, fraction_evaluate=0.0), f=1)


# -- knowledge -------------------------------------------------------------------------------------


def moved(model):
    """A model a little away, in a direction in which some replies point as well."""
    noise = np.random.default_rng(0)
    return [array + 0.01 * noise.standard_normal(array.shape, dtype=np.float32) for array in model.to_numpy_ndarrays()]


def test_attacks_that_know_the_defence_need_one():
    left = small(fed_avg, ("tailored(epsilon='search')", "sign_flip()"), f=1, real_f=[1])
    assert list(left.left_out) == ["tailored(epsilon='search')"]
    assert left.accuracy("tailored(epsilon='search')", 1) is None
    note = red_report.footnotes(left)[-1]
    assert note.startswith("Left out: tailored(epsilon='search'): the rule of this strategy is not known; give the one")
    assumed = small(fed_avg, ("tailored(epsilon='search')",), f=1, real_f=[1], rule="mean(weighted=True)")
    assert assumed.left_out == {}
    assert assumed.accuracy("tailored(epsilon='search')", 1) < assumed.alone
    trusting = functools.partial(
        RobustStrategy, "fltrust()", fraction_evaluate=0.0, trusted_fn=lambda r, model: moved(model)
    )
    result = small(trusting, ("tailored(epsilon='search')",), f=1, real_f=[1])
    assert "fltrust compares with an update of the server's own" in result.left_out["tailored(epsilon='search')"]


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (fed_avg, {}, "f must be given, as the strategy does not say"),
        (trimmed, {"f": 2}, "f must be the one that the rule declares, 1; got f=2"),
        (trimmed, {"real_f": [6]}, "an honest client beside real f=6 attackers; got clients=6"),
        (trimmed, {"clients": 2, "real_f": [1]}, r"trimmed_mean needs n >= 2f \+ 1; got n=2"),
        (trimmed, {"seeds": ()}, "seeds must hold at least one"),
        (trimmed, {"rounds": 0}, "rounds must be an integer >= 1"),
        (trimmed, {"partition": "iidd"}, "unknown partition 'iidd'"),
        (trimmed, {"model": "vit"}, "unknown model 'vit'; allowed: .*softmax"),
        (fed_avg, {"f": 1, "rule": "krum(f=2)"}, "krum needs n >= 2f"),
        (
            lambda: flower.FedAvg(min_available_nodes=7),
            {"f": 1},
            "waits for min_available_nodes=7 nodes, but there are",
        ),
        (lambda: trimmed(), {"workers": 2}, "with workers=2 the strategy is made in other processes"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(make, options, words, monkeypatch):
    monkeypatch.setattr(module, "run_once", lambda *_: pytest.fail("a run was started"))
    with pytest.raises(ConfigurationError, match=words):
        small(make, **options)


# -- files -----------------------------------------------------------------------------------------


def test_runs_are_kept_and_not_repeated(tmp_path, monkeypatch):
    path, calls = tmp_path / "it.json", []
    once = module.run_once

    def counted(make, setting, attack, real_f, seed):
        calls.append((attack.label, real_f, seed))
        if path.is_file():
            assert len(read_red_team(path).runs) == len(calls) - 1  # each is written at once
        return once(make, setting, attack, real_f, seed)

    monkeypatch.setattr(module, "run_once", counted)
    first = small(path=path, real_f=[1])
    assert calls == [
        ("no attack", 0, 0),
        ("mean of the honest", 0, 0),
        ("mean of the honest", 1, 0),
        ("sign_flip(c=10.0)", 1, 0),
    ]
    assert read_red_team(path) == first
    monkeypatch.setattr(module, "run_once", lambda *plan: (calls.append((plan[2].label, *plan[3:])), once(*plan))[1])
    calls.clear()
    assert small(path=path, real_f=[1]) == first
    assert calls == []
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"mean of the honest", "real_f": 1' not in line))
    assert small(path=path, real_f=[1]) == first
    assert calls == [("mean of the honest", 1, 0)]
    calls.clear()
    more = small(path=path, real_f=[1], attacks=("label_flip()",), seeds=(1,))
    assert {seed for _, _, seed in calls} == {1}
    assert set(more.families) == {"label_flip()"}
    held = read_red_team(path)
    assert list(held.families) == ["sign_flip(c=10.0)", "label_flip()"]
    assert {**first.runs, **more.runs} == dict(held.runs)
    json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "runs": [{"a": 1}]}'])
def test_damaged_files_are_named(tmp_path, text):
    (tmp_path / "it.json").write_text(text)
    with pytest.raises(FlwrRobustError, match=r"it\.json holds no result of a red team that can be read"):
        small(path=tmp_path / "it.json")


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(FlwrRobustError, match=r"^red team: there is no file .*nope\.json; name one of those"):
        read_red_team(tmp_path / "nope.json")


def test_a_file_of_another_setting_is_not_continued(tmp_path):
    small(path=tmp_path / "it.json", real_f=[1])
    with pytest.raises(ConfigurationError, match=r"it\.json holds results with rounds=2, not 3; name another file"):
        small(path=tmp_path / "it.json", rounds=3)


@pytest.mark.slow
def test_processes_give_the_same_numbers(tmp_path):
    attacks = ("sign_flip(c=10.0)", "gaussian", "label_flip()")
    assert small(attacks=attacks, workers=2, path=tmp_path / "it.json") == small(attacks=attacks)
    assert read_red_team(tmp_path / "it.json") == small(attacks=attacks)


# -- what is shown ---------------------------------------------------------------------------------

SETTING = Setting("it", "it", 1, clients=6, rounds=2)


def found(accuracies, *, name="it", left_out=(), success=None):
    """A result of two seeds, from accuracies by label and real f; "died" and "NaN" stand for themselves."""
    runs = [Run("no attack", 0, seed, 0.9) for seed in (0, 1)]
    for (label, f), value in accuracies.items():
        died, finite = "in round 1: Bad: thing" if value == "died" else "", value != "NaN"
        share = 0.0 if isinstance(value, str) else value
        runs += [Run(label, f, seed, share, success, died, finite) for seed in (0, 1)]
    for f in (0, 1, 2):
        runs += [Run("mean of the honest", f, seed, 0.9 - 0.1 * f) for seed in (0, 1)]
    families = {label: "crude" for label, _ in accuracies}
    setting = dataclasses.replace(SETTING, name=name)
    reasons = dict.fromkeys(left_out, "not known")
    return RedTeam(setting, {**families, **dict.fromkeys(left_out, "crude")}, {run.key: run for run in runs}, reasons)


def printed(result):
    console = Console(width=100, file=io.StringIO(), record=True)
    for table in red_report.red_tables(result):
        console.print(table)
    return console.export_text()


def test_tables_show_both_changes_and_mark_the_worst():
    result = found({("a()", 1): 0.5, ("a()", 2): 0.4, ("b()", 1): "died", ("b()", 2): 0.3, ("c()", 2): "NaN"})
    table = next(red_report.red_tables(result))
    cells = ([getattr(cell, "markup", cell) for cell in column.cells] for column in table.columns)
    rows = {name: row for name, *row in zip(*cells, strict=True)}
    assert [cell.strip() for cell in rows["no attack, f = 0"]] == ["90.0", "90.0"]
    assert rows["mean of the honest"] == ["80.0  -10.0   +0.0", "70.0  -20.0   +0.0"]
    assert rows["a()"] == ["50.0  -40.0  -30.0", "40.0  -50.0  -30.0"]
    assert [cell.strip() for cell in rows["b()"]] == [f"[bold]died{' ' * 14}[/bold]", "30.0  -60.0  -40.0"]
    assert rows["c()"] == ["-", f"[bold]died{' ' * 14}[/bold]"]
    assert [*rows][:: len(rows) - 1] == ["no attack, f = 0", "worst"]
    assert rows["worst"] == [f"[bold]died{' ' * 14}\nb()[/bold]", f"[bold]died{' ' * 14}\nc()[/bold]"]
    assert [str(column.header) for column in table.columns] == ["attack", "f = 1", "f = 2 (> declared)"]
    assert result.bottom == (0.0, "b()", 1)
    sentence = "Worst with real f <= declared f = 1: died, as 0 %, under b() with f = 1"
    assert sentence in red_report.conclude_red_team(result)


def test_a_seed_that_died_is_marked():
    result = found({("a()", 1): 0.5})
    one = dataclasses.replace(result.runs["a()", 1, 0], accuracy=0.0, died="in round 2: Bad: luck")
    result = dataclasses.replace(result, runs={**result.runs, one.key: one})
    assert "25.0†" in printed(result)
    assert "†: the runs of some seeds died." in red_report.footnotes(result)
    assert not result.died("a()", 1)


def test_low_accuracy_is_not_death_and_death_is_worse_than_zero():
    low = found({("a()", 1): 0.0, ("b()", 1): 0.5})
    assert low.bottom == (0.0, "a()", 1)
    assert "died" not in printed(low)
    assert ": 0.00 % under a() with f = 1" in red_report.conclude_red_team(low)
    assert "Died" not in " ".join(red_report.footnotes(low))
    dead = found({("a()", 1): 0.0, ("b()", 1): "died"})
    assert dead.bottom == (0.0, "b()", 1)
    assert re.search(r"a\(\) +│ +0\.0  -90\.0  -80\.0", printed(dead))
    assert "| **worst** | died `b()` |" in red_report.compare([dead])
    assert "| **worst** | 0.0 `a()` |" in red_report.compare([low])


def test_the_worst_may_be_no_attack():
    result = found({("a()", 1): 0.95, ("a()", 2): 0.95})
    text = red_report.compare([result])
    assert "| no attack | **90.0** |" in text
    assert "| **worst** | 90.0 `no attack` |" in text
    assert "**95.0**" not in text
    table = next(red_report.red_tables(result))
    assert [str([*column.cells][-1]) for column in table.columns] == [
        "worst",
        "90.0   +0.0  +10.0\nno attack",
        "90.0   +0.0  +20.0\nno attack",
    ]


def test_a_run_in_which_no_round_changes_the_model_died():
    # Two replies of six fit in each round, which is too few for Krum.
    make = functools.partial(RobustStrategy, "krum(f=1)", fraction_evaluate=0.0)
    result = small(make, ("drop_layers()",), real_f=[1, 4])
    assert not result.died("drop_layers()", 1)
    (run,) = result.of("drop_layers()", 4)
    assert (run.accuracy, run.finite) == (0.0, True)
    assert "UntrainedError: run: 0 of 2 rounds changed the model" in run.died


def test_the_floor_is_of_the_attackers_declared():
    result = found({("a()", 1): 0.5, ("a()", 2): 0.1})
    assert (result.holds(50), result.holds(50.1)) == (True, False)
    assert red_report.conclude_red_team(result, 50).endswith("without attackers 90.00 %. The floor of 50 % held.")
    assert red_report.conclude_red_team(result, 51).endswith("The floor of 51 % did not hold.")
    assert not found({("a()", 2): 0.95}).holds(90.1)  # without attackers it counts, too


def test_no_floor_is_held_by_what_was_not_tried_or_died():
    untried = small(fed_avg, attacks=("optimised",), f=1, rounds=1)
    assert not untried.holds(0)
    assert red_report.conclude_red_team(untried, 0).endswith("is not held: no attack was tried.")
    assert not small(fed_avg, attacks=("drop_layers",), f=1, rounds=1).holds(0)
    assert small(attacks=("drop_layers",), rounds=1).holds(0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "krum(f=1)"}, "whose rule is not known; this one's is trimmed_mean"),
        ({"f": 2}, "f must be the one that the rule declares, 1"),
    ],
)
def test_what_a_strategy_of_ours_says_itself_is_not_contradicted(options, words):
    with pytest.raises(ConfigurationError, match=words):
        small(**options)


def test_everything_fits_a_hundred_columns():
    accuracies = {(attack.label, f): 0.5 for attack in BATTERY for f in range(1, 6)}
    result = found(accuracies, success=0.25)
    result = dataclasses.replace(result, families={attack.label: attack.family for attack in BATTERY})
    text = printed(result)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("accuracy, %") == 2  # three columns of three numbers each
    assert "sybils (review)" in text
    assert "25.0" in text.partition("success of the attack")[2]
    assert text.count("worst") == 2
    assert "alie" not in text.partition("worst")[2].partition("accuracy")[0]


def test_strategies_stand_side_by_side():
    one = found({("a()", 1): 0.5, ("b(x='c | d')", 1): "died"}, name="one", success=0.25)
    two = found({("a()", 1): 0.6, ("b(x='c | d')", 1): 0.7}, name="two")
    text = red_report.compare([one, two])
    assert "| attack | one | two |" in text
    assert "| no attack | 90.0 | 90.0 |" in text
    assert "| mean of the honest (omniscient) | 80.0 | 80.0 |" in text
    assert "| `a()` | 50.0 | **60.0** |" in text
    assert "| `b(x='c \\| d')` | **died** | 70.0 |" in text
    assert text.index("| no attack |") < text.index("| `a()` |") < text.index("| **worst** |")
    assert "| **worst** | died `b(x='c \\| d')` | 60.0 `a()` |" in text
    assert "| one | 90.0 | died `b(x='c \\| d')` | died | 50.0 `a()` | -40.0 |" in text
    assert "| two | 90.0 | 60.0 `a()` | -30.0 | 60.0 `a()` | -30.0 |" in text
    assert text.endswith("What they died of:\n\n- one, under `b(x='c | d')`: in round 1: Bad: thing\n")
    assert "| one | `it` | its own |" in text
    assert "real f = declared f = 1: 6 clients" in text
    other = dataclasses.replace(two, setting=dataclasses.replace(two.setting, rounds=3))
    with pytest.raises(ConfigurationError, match="attacked alike; one has rounds=2, two rounds=3"):
        red_report.compare([one, other])
    fewer = dataclasses.replace(two, runs={key: run for key, run in two.runs.items() if key[2] == 0})
    with pytest.raises(ConfigurationError, match=r"one has seeds \[0, 1\], two \[0\]"):
        red_report.compare([one, fewer])
    with pytest.raises(ConfigurationError, match="at least one"):
        red_report.compare([])
    with pytest.raises(ConfigurationError, match="two must have been attacked by real f=1 attackers"):
        red_report.compare([one, found({("a()", 2): 0.5}, name="two")])
    assert "What they died of" not in red_report.compare([two])


def test_a_page_takes_the_tables_between_its_marks(tmp_path):
    page, file = tmp_path / "page.md", tmp_path / "it.json"
    small(path=file, real_f=[1])
    page.write_text("# Before\n\n<!-- begin: generated -->\nold\n<!-- end: generated -->\n\nafter\n")
    done = CliRunner().invoke(app, ["red-team", "compare", str(file), "--page", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert text.startswith("# Before\n\n<!-- begin: generated -->\n\nFinal test accuracy")
    assert text.endswith("<!-- end: generated -->\n\nafter\n")
    assert "outdated" not in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "| `sign_flip(c=10.0)` |" in CliRunner().invoke(app, ["red-team", "compare", str(file)]).output
    page.write_text("nothing")
    done = CliRunner().invoke(app, ["red-team", "compare", str(file), "--page", str(page)])
    assert done.exit_code == 2
    assert "must hold the lines <!-- begin: generated -->" in said(done)
    done = CliRunner().invoke(app, ["red-team", "compare", str(tmp_path / "gone.json")])
    assert (done.exit_code, "there is no file" in said(done)) == (2, True)


def test_the_page_of_the_project_is_made_from_its_files():
    files = sorted((DOCS / "red-team").glob("*.json"))
    assert len(files) >= 10
    page = DOCS / "red-team.md"
    assert red_report.into_page(page, red_report.compare([read_red_team(path) for path in files])) == page.read_text()


# -- the command -----------------------------------------------------------------------------------

QUICK = ("--clients", 6, "--rounds", 8, "--partition", "iid", "--workers", 1, "--real-f", 1, "--attacks", "scale")


def test_the_floor_decides_the_exit_status(tmp_path):
    broken = ("--strategy", "flwr.serverapp.strategy:FedAvg", "--kwargs", '{"fraction_evaluate": 0.0}', "--f", 1)
    robust = ("--defence", "trimmed_mean(f=1)")
    floor = ("--floor", 50, "--results", tmp_path)
    done = invoke(*broken, *QUICK, *floor)
    assert done.exit_code == 1, done.output
    assert "under scale(c=1000.0) with f = 1" in said(done)
    assert "The floor of 50 % did not hold." in said(done)
    assert invoke(*broken, *QUICK, "--results", tmp_path).exit_code == 0  # no floor, and nothing is run again
    done = invoke(*robust, *QUICK, *floor)
    assert done.exit_code == 0, done.output
    assert "The floor of 50 % held." in said(done)
    assert max(map(len, [line for line in done.output.splitlines() if not line.startswith("results: ")])) <= 100
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.png"))) == 2
    named = next(tmp_path.glob("FedAvg-*.json"))
    assert json.loads(named.read_text())["setting"]["subject"] == (
        'flwr.serverapp.strategy:FedAvg {"fraction_evaluate": 0.0}'
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either --strategy or --defence"),
        (["--strategy", "a:B", "--defence", "mean()"], "give either --strategy or --defence"),
        (["--strategy", "krum(f=2)"], "--strategy must be package.module:Class; got 'krum(f=2)'; for a defence string"),
        (["--strategy", "no.such:Thing"], "module no.such of --strategy cannot be imported: ModuleNotFoundError"),
        (
            ["--strategy", "os:path"],
            "such as flwr.serverapp.strategy:Krum; got 'os:path', and there is no strategy in os",
        ),
        (["--strategy", "flwr.serverapp.strategy:Kurm"], "unknown strategy in flwr.serverapp.strategy 'Kurm'"),
        (["--strategy", "flwr.serverapp.strategy:Krum", "--kwargs", "{f: 2}"], "--kwargs must be a JSON object; got"),
        (
            ["--strategy", "flwr.serverapp.strategy:Krum", "--kwargs", "[2]"],
            "--kwargs must be a JSON object; got '[2]'",
        ),
        (
            ["--strategy", "flwr.serverapp.strategy:Krum", "--kwargs", '{"g": 2}'],
            "Krum cannot be made with {\"g\": 2}: TypeError: Krum.__init__() got an unexpected keyword argument 'g'",
        ),
        (["--strategy", "flwr_robust.flower:Krum", "--kwargs", '{"f": -1}'], "krum: f must be an integer >= 0"),
        (["--strategy", "pathlib:Path"], "pathlib:Path must be a flwr.serverapp.strategy.Strategy; it is none"),
        (["--strategy", "flwr.serverapp.strategy:FedAvg", "--message", "delta"], "--message goes with --defence"),
        (["--strategy", "flwr.serverapp.strategy:FedAvg"], "f must be given"),
        (["--defence", "kurm(f=2)"], "unknown aggregator 'kurm'"),
        (["--defence", "krum(f=2)", "--message", "weights"], "message must be one of"),
        (["--defence", "krum(f=2)", "--attacks", "aile"], "unknown attack or family of attacks 'aile'"),
        (["--defence", "krum(f=2)", "--floor", "101"], "--floor must be a finite number and >= 0 and <= 100"),
        (["--defence", "krum(f=9)"], "krum needs n >= 2f + 3; got n=12"),
        (["--defence", "fltrust()"], "pass trusted_fn"),
        (["--defence", "median(f=1)", "--candidate", "krum(f=1)"], "--candidate needs --validation, the share"),
        (["--defence", "median(f=1)", "--validation", "1"], "--validation must be a finite number and >= 0 and < 1"),
        (["--defence", "median(f=1)", "--by", "best"], "--by must be one of mean, worst case"),
        (
            ["--defence", "median(f=1)", "--candidate", "median(f=1)", "--validation", "0.1"],
            "--candidate must differ from all other candidates; got median(f=1)",
        ),
        (
            ["--defence", "median(f=1)", "--candidate", "kurm(f=1)", "--validation", "0.1"],
            "unknown aggregator 'kurm'",
        ),
    ],
)
def test_wrong_input_is_one_sentence(arguments, words, tmp_path):
    done = invoke(*arguments, "--results", tmp_path)
    assert done.exit_code == 2
    assert words in said(done)
    assert "Traceback" not in done.output
    assert len([line for line in done.output.splitlines() if line.startswith("error: ")]) == 1
    assert not list(tmp_path.glob("*.json"))


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    done = invoke("--defence", "krum(f=2)", "--results", tmp_path / "file" / "folder")
    assert (done.exit_code, "cannot be written to (Not a directory)" in said(done)) == (2, True)


def test_other_settings_have_other_files(tmp_path):
    common = ("--defence", "median(f=1)", "--clients", 6, "--partition", "iid", "--workers", 1, "--real-f", 1)
    for rounds in (1, 2):
        done = invoke(*common, "--rounds", rounds, "--attacks", "zero", "--results", tmp_path)
        assert done.exit_code == 0, done.output
    assert len(list(tmp_path.glob("median_f_1-*.json"))) == 2


def test_the_name_of_a_file_depends_on_the_setting_alone():
    fixed = {field.name: 1 for field in dataclasses.fields(Setting) if field.default is not dataclasses.MISSING}
    del fixed["validation"]  # younger than the files of earlier red teams, and left out of their names without it
    assert _stem({**fixed, "name": "FedAvg (mine)"}) == "FedAvg_mine-942df816"
    assert _stem({**fixed, "name": "FedAvg (mine)", "rounds": 2}) != "FedAvg_mine-942df816"
    assert _stem({**fixed, "name": "FedAvg (mine)", "validation": 0.1}) != "FedAvg_mine-942df816"


def test_baselines_are_no_attacks():
    assert NO_ATTACK not in BATTERY
    assert HONEST_MEAN not in BATTERY
    assert Attack("x").on_data(1) is None
    assert Attack("x").on_messages(1) is None


def test_a_notebook_shows_accuracies_with_bars_and_the_worst_in_bold():
    result = found(
        {("<i>()", 1): 0.45, ("<i>()", 2): 0.4, ("b()", 1): "died", ("b()", 2): 0.3, ("c()", 2): "NaN"},
        left_out=["d()"],
    )
    shown = result._repr_html_()
    rows = [re.findall(r"<td [^>]*>(.*?)(?:<span|</td>)", row) for row in shown.split("<tr>")[2:]]
    assert [row[0] for row in rows] == ["no attack", "mean of the honest", "&lt;i&gt;()", "b()", "c()"]
    assert rows[2] == ["&lt;i&gt;()", "crude", "45", "40"]
    assert rows[3][2:] == ["<strong>died</strong>", "30"]
    assert rows[4][2:] == ["-", "<strong>died</strong>"]
    assert re.findall(r"width:(\d+)px;height", shown)[4:8] == ["40", "36", "0", "27"]
    assert "worst 0.0 % under b() with f = 1, alone 90.0 %" in shown
    assert repr(result) == "RedTeam(it: 18 runs, worst 0.0 % under b() with f = 1, alone 90.0 %)"
