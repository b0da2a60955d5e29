"""The named strategies: signatures are the rules' fields, type checkers refuse mistakes, and users subclass them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
import typing

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Result

from flwr_robust import ConfigurationError, Outcome, UnknownNameError, aggregators, flower
from flwr_robust.audit import Aggregated, read_log
from flwr_robust.audit.run import log_file
from flwr_robust.core.rule import aggregators as registry
from flwr_robust.flower import DeSGD, Guarded, InProcessGrid, Krum, Mean, Median, RobustStrategy
from flwr_robust.flower import strategies as named
from flwr_robust.protocol.classes import answer_names
from flwr_robust.round_seeds import FixedSeed
from tests.flower_helpers import client_app, content, drive, values
from tests.house import ROOT

SILENT = {"fraction_evaluate": 0.0}
NAMES = named.__all__
REQUIRED = {"f": 1, "c": 1.0, "tau": 1.0}


def trusted(server_round, arrays):
    return [value + 1 for value in values(arrays).values()]


def needed(name):
    """Return what a named strategy cannot do without."""
    fields = dataclasses.fields(getattr(aggregators, name))
    given = {f.name: REQUIRED[f.name] for f in fields if f.default is dataclasses.MISSING}
    if name == "TrimmedMean":
        given["f"] = 1
    return {**given, "trusted_fn": trusted} if name in ("FLTrust", "Monna") else given


# -- signatures --------------------------------------------------------------------------------------


def test_there_is_one_strategy_for_every_rule():
    assert set(NAMES) == set(aggregators.__all__)
    assert set(NAMES) < set(flower.__all__)
    assert len(registry.members()) >= len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_signature_is_the_rules_fields_with_their_defaults(name):
    parameters = dict(inspect.signature(getattr(named, name)).parameters)
    options = parameters.pop("options")
    assert options.kind is inspect.Parameter.VAR_KEYWORD
    fields = [field for field in dataclasses.fields(getattr(aggregators, name)) if field.name != "seed"]
    assert list(parameters) == [field.name for field in fields]
    for field in fields:
        parameter = parameters[field.name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if field.default is dataclasses.MISSING:
            assert parameter.default is inspect.Parameter.empty
        else:
            assert type(parameter.default) is type(field.default)
            assert parameter.default == field.default


@pytest.mark.parametrize("name", NAMES)
def test_annotations_hold_the_defaults_and_the_choices(name):
    hints = typing.get_type_hints(getattr(named, name).__init__)
    assert hints.pop("return") is type(None)
    taken = typing.get_args(hints.pop("options"))[0].__annotations__
    assert not set(hints) & set(taken)  # type checkers refuse a name that stands in both
    made = getattr(aggregators, name)(**{k: v for k, v in needed(name).items() if k != "trusted_fn"})
    if name == "GeometricMedian":  # two of its starts want a number of steps
        made = dataclasses.replace(made, iterations=3)
    for field, hint in hints.items():
        allowed = [a for each in (typing.get_args(hint) or (hint,)) for a in (typing.get_args(each) or (each,))]
        words = [choice for choice in allowed if isinstance(choice, str)]
        for word in words:  # each word that the type allows, the rule allows
            assert getattr(dataclasses.replace(made, **{field: word}), field) == word


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_documented_and_reaches_the_rule(name):
    strategy = getattr(named, name)
    text = inspect.getdoc(strategy)
    for field in dataclasses.fields(getattr(aggregators, name)):
        assert bool(re.search(rf"^{field.name} : ", text, re.MULTILINE)) == (field.name != "seed"), field.name
    assert "It needs " in text
    assert ">>> " in text
    own = {k: v for k, v in needed(name).items() if k != "trusted_fn"}
    assert strategy(**needed(name)).rule == getattr(aggregators, name)(**own)


def test_a_strategy_has_one_seed_for_its_samples_and_its_rule():
    for strategy in (named.DnC(f=1, seed=5), Median(seed=5)):
        assert (str(strategy.rule).count("seed"), strategy.guard.seeds) == (0, FixedSeed(5))
    assert named.DnC(f=1).settings().keys() == named.DnC(f=1, seed=5).settings().keys()
    assert named.DnC(f=1).guard.settings()["seed"] == "secret"
    assert RobustStrategy("dnc(f=1, seed=5)").rule.seed == 5  # a rule may have its own


# -- type checkers -----------------------------------------------------------------------------------

RIGHT = """
from typing import assert_type
from flwr_robust.aggregators import Krum as Rule
from flwr_robust.flower import CenteredClipping, DeSGD, Guarded, Krum, Mean, MixTailor, RobustStrategy, TrimmedMean
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from collections.abc import Iterable

rule: Rule = Rule(f=2, variant="byzfl")
kind: type[Rule] = Rule
assert_type(Krum(f=2, variant="byzfl", strict=False, message="delta", fraction_train=0.5), Krum)
TrimmedMean(fraction=0.2, server_learning_rate=1.0, on_infeasible="stop", audit="run")
CenteredClipping(tau="median", steps=2, seed=3)
MixTailor(f=1, pool=["median", "krum"], seed=3)
RobustStrategy(rule, message="delta", min_train_nodes=3)
DeSGD("krum(f=2)", classes=10, quarantine_after=3)
Guarded(FedAvg(), least=3)

class Scheduled(Krum):
    def __init__(self, rate: float) -> None:
        super().__init__(f=1, server_learning_rate=rate)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["rate"] = 0.1
        return super().configure_train(server_round, arrays, config, grid)

Scheduled(0.5)
"""

WRONG = {
    'Krum(f="two")': "arg-type",
    "Krum(ff=2)": "call-arg",
    "Krum(2)": "call-arg",
    "Krum()": "call-arg",
    'Krum(f=2, variant="papre")': "arg-type",
    "TrimmedMean(f=2, sever_learning_rate=1.0)": "call-arg",
    'TrimmedMean(f=2, message="weights")': "arg-type",
    "Median(f=2, fraction_train='x')": "arg-type",
    "MixTailor(f=1, seed=1.5)": "arg-type",
    'CenteredClipping(tau="mean")': "arg-type",
    'GeometricMedian(start="one")': "arg-type",
    "DeSGD('krum(f=2)')": "call-arg",
    "DeSGD('krum(f=2)', classes=10, message='delta')": "call-arg",
    "Guarded('FedAvg')": "arg-type",
    'Rule(f="two")': "arg-type",
    "Rule(ff=2)": "call-arg",
}


def checked(tmp_path, text):
    """Return what mypy says of each line of a file."""
    (tmp_path / "lines.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file", ROOT / "pyproject.toml"]
    done = subprocess.run(
        [*command, "--cache-dir", ROOT / ".mypy_cache", tmp_path / "lines.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.stderr == ""
    own = [line.split(":", 3) for line in done.stdout.splitlines() if "lines.py" in line.split(":")[0]]
    return {int(at): said.strip() for _, at, kind, said in own if kind.strip() == "error"}


@pytest.mark.slow
def test_a_type_checker_takes_what_is_right_and_refuses_what_is_wrong(tmp_path):
    start = "from flwr_robust.aggregators import Krum as Rule\nfrom flwr_robust.flower import *\n"
    found = checked(tmp_path, start + "\n".join(WRONG))
    assert checked(tmp_path, RIGHT) == {}
    for at, (line, code) in enumerate(WRONG.items(), start=3):
        assert found.get(at, "nothing").endswith(f"[{code}]"), f"{line}: {found.get(at)}"
    assert len(found) == len(WRONG)


# -- how they are called -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Krum(1), "Krum: name the parameter: Krum(f=1)"),
        (lambda: Median(2, True), "Median: name the parameter: Median(f=2, weighted=True)"),
        (lambda: Krum(1, variant="byzfl"), "Krum: name the parameter: Krum(f=1)"),
        (lambda: RobustStrategy("median", "delta"), "name the parameter: RobustStrategy('median', message='delta')"),
        (lambda: DeSGD("median", 10), "name the parameter: DeSGD('median', classes=10)"),
        (lambda: Guarded(FedAvg(), 3), "name the parameter: Guarded(FedAvg(...), least=3)"),
    ],
)
def test_a_value_without_a_name_says_what_to_write(make, sentence):
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        make()


def test_a_parameter_left_out_is_named():
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'f'"):
        Krum()


@pytest.mark.parametrize(
    ("make", "unknown", "near"),
    [
        (lambda: Krum(ff=2), "option of Krum 'ff'", "f"),
        (lambda: Mean(fraction_trian=0.5), "option of Mean 'fraction_trian'", "fraction_train"),
        (lambda: RobustStrategy("median", bufers="keep"), "option of RobustStrategy 'bufers'", "buffers"),
        (lambda: DeSGD("median", classes=2, gama=0.1), "option of DeSGD 'gama'", "gamma"),
        (lambda: Guarded(FedAvg(), leest=1), "option of Guarded 'leest'", "least"),
    ],
)
def test_an_unknown_option_names_the_allowed_ones_and_the_nearest(make, unknown, near):
    with pytest.raises(UnknownNameError, match=f"unknown {unknown}") as caught:
        make()
    assert f"Did you mean '{near}'?" in str(caught.value)
    assert "observers" in str(caught.value)
    assert str(caught.value).count("observers") == 1


def test_what_a_rule_does_not_take_is_not_said_to_be_allowed():
    with pytest.raises(UnknownNameError) as caught:
        DeSGD("median", classes=2, message="delta")
    assert "message" not in str(caught.value).partition("allowed:")[2]


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        (lambda: Krum(f=2, message="delta"), "Krum(f=2, message='delta')"),
        (lambda: Krum(variant="paper", f=2, message="parameters", strict=True), "Krum(f=2)"),
        (
            lambda: Krum(f=2, min_train_nodes=2, min_available_nodes=9),
            "Krum(f=2, min_train_nodes=2, min_available_nodes=9)",
        ),
        (lambda: Median(f=np.int64(2), server_momentum=np.float32(0.5)), "Median(f=2, server_momentum=0.5)"),
        (lambda: flower.FLTrust(trusted_fn=trusted), "FLTrust(trusted_fn=trusted)"),
        (lambda: RobustStrategy(aggregators.Krum(f=2)), "RobustStrategy('krum(f=2)')"),
        (lambda: Guarded(FedAvg(), least=3), "Guarded(FedAvg(...), least=3)"),
        (lambda: Guarded(FedAvg(), clamp=2.0), "Guarded(FedAvg(...))"),
        (lambda: DeSGD("median", classes=3, seed=None), "DeSGD('median', classes=3)"),
        (
            lambda: named.MixTailor(f=1, pool=["median"] * 20),
            f"MixTailor(f=1, pool=[{', '.join(['median'.__repr__()] * 8)}, ...])",
        ),
        (lambda: Mean(weighted_by_key="x" * 500), "Mean(weighted_by_key='" + "x" * 76 + "...)"),
    ],
)
def test_a_strategys_text_is_the_call_on_one_line(strategy, text):
    made = strategy()
    assert repr(made) == str(made) == text
    assert "\n" not in text


def test_a_strategy_and_its_text_outlive_copies():
    assert repr(copy.deepcopy(Krum(f=2, trusted_fn=trusted))) == "Krum(f=2, trusted_fn=trusted)"
    assert repr(pickle.loads(pickle.dumps(Krum(f=2, buffers="keep")))) == "Krum(f=2, buffers='keep')"


# -- subclasses --------------------------------------------------------------------------------------


MODEL = {"w": np.zeros((3, 2), np.float32)}
MOVES = np.random.default_rng(0).standard_normal((7, 3, 2)).astype(np.float32)


def moving(sent=None):
    """Clients that move the model, each its own way, by the rate that the server's config names."""

    def train(i, model, config, context):
        if sent is not None:
            sent.append((config["server-round"], config["rate"]))
        return content({"w": model["w"] + np.float32(config["rate"]) * MOVES[i]}, partition_id=i)

    return client_app(train, lambda i, model, config, context: content(None, loss=1.0, partition_id=i))


def of_classes(sent=None):
    """Clients of DeSGD that hold every class."""

    def train(i, model, config, context):
        if sent is not None:
            sent.append((config["server-round"], config["rate"]))
        names = answer_names(["w"], config["classes"], config["classes"])
        return content({names[0]: np.float32(config["rate"]) * MOVES[i]}, partition_id=i)

    return client_app(train)


def bases():
    robust = {n: getattr(flower, n) for n in flower.__all__ if inspect.isclass(getattr(flower, n))}
    return {n: kind for n, kind in robust.items() if issubclass(kind, RobustStrategy | Guarded)}


def test_the_table_of_bases_is_complete():
    assert set(bases()) == {*NAMES, "RobustStrategy", "DeSGD", "Guarded"}


def arguments(name):
    options = {"min_train_nodes": 7, "min_available_nodes": 7, **SILENT}
    if name == "Guarded":
        return (FedAvg(**options),), {}
    if name == "RobustStrategy":
        return ("median",), options
    if name == "DeSGD":
        return ("median",), {"classes": 3, **options}
    return (), {**needed(name), **options}


def app_for(name, sent=None):
    return of_classes(sent) if name == "DeSGD" else moving(sent)


class HoldsTheLoop:
    """A start() that holds the loop over the rounds itself."""

    def start(self, grid, initial_arrays, num_rounds=3, **options):
        self.asked = []
        for at in range(1, num_rounds + 1):
            messages = list(self.configure_train(at, initial_arrays, ConfigRecord({"rate": 1.0}), grid))
            replies = list(grid.send_and_receive(messages))
            arrays, _ = self.aggregate_train(at, replies)
            initial_arrays = initial_arrays if arrays is None else arrays
            asked = list(self.configure_evaluate(at, initial_arrays, ConfigRecord(), grid))
            self.aggregate_evaluate(at, grid.send_and_receive(asked))
            self.asked.append((len(messages), len(asked)))
        return Result(arrays=initial_arrays)


@pytest.mark.parametrize("name", sorted(bases()))
def test_a_subclass_schedules_saves_the_best_and_wraps_start(name):
    base, (given, options) = bases()[name], arguments(name)

    class Mine(base):
        """A constructor of its own, by place; a schedule; the best model; a start around the parent's."""

        def __init__(self, rate, *, halve_after=1):
            super().__init__(*given, **options)
            self.rate, self.halve_after = rate, halve_after
            self.best, self.rounds = None, []

        def configure_train(self, server_round, arrays, config, grid):
            config["rate"] = self.rate / (2 if server_round > self.halve_after else 1)
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round, replies):
            self.best, metrics = super().aggregate_train(server_round, replies)
            self.rounds.append(server_round)
            return self.best, metrics

        def start(self, *args, **kwargs):
            result = super().start(*args, **kwargs)
            result.best = self.best
            return result

    sent = []
    strategy = Mine(1.0, halve_after=1)
    assert repr(strategy) == "Mine(1.0)"
    found, result = drive(strategy, app_for(name, sent), MODEL, 7, rounds=2)
    assert strategy.rounds == [1, 2]
    assert sorted(sent) == [(1, 1.0)] * 7 + [(2, 0.5)] * 7
    assert values(result.best)["w"].tolist() == found["w"].tolist()
    assert [(seen.outcome, len(seen.admitted)) for seen in strategy.history] == [(Outcome.OK, 7)] * 2
    assert found["w"].any()


@pytest.mark.parametrize("name", sorted(bases()))
def test_a_subclass_holds_the_loop_itself(name):
    base, (given, options) = bases()[name], arguments(name)

    class Mine(HoldsTheLoop, base):
        pass

    def run(kind):
        strategy = kind(*given, **options, seed=0)
        found, _ = drive(strategy, app_for(name), MODEL, 7, rounds=2, train_config=ConfigRecord({"rate": 1.0}))
        return strategy, found

    (held, found), (_, usual) = run(Mine), run(base)
    assert held.asked == [(7, 0)] * 2
    assert [seen.round for seen in held.history] == [1, 2]
    assert found["w"].tolist() == usual["w"].tolist()


# -- who holds the loop ------------------------------------------------------------------------------


def wrapped(strategy):
    """Put Flower's differential privacy around a strategy, with a bound that changes nothing."""
    return DifferentialPrivacyServerSideFixedClipping(strategy, 0.0, 1e9, 3)


class OwnMedian(HoldsTheLoop, Median):
    pass


class OwnGuarded(HoldsTheLoop, Guarded):
    pass


def failing_from(at):
    def train(i, model, config, context):
        # Differential privacy drops a round in which a client fails, so the clients answer, but nothing of use.
        move = np.nan if config["server-round"] >= at else 1
        return content({"w": model["w"] + np.float32(move)}, partition_id=i)

    return client_app(train, lambda i, model, config, context: content(None, loss=1.0, partition_id=i))


THREE = {"min_train_nodes": 3, "min_evaluate_nodes": 3, "min_available_nodes": 3}
HOLDERS = {
    "differential privacy": (lambda **o: Median(**THREE, **o), wrapped),
    "differential privacy around Guarded": (lambda **o: Guarded(FedAvg(**THREE), **o), wrapped),
    "own start": (lambda **o: OwnMedian(**THREE, **o), lambda strategy: strategy),
    "own start of Guarded": (lambda **o: OwnGuarded(FedAvg(**THREE), **o), lambda strategy: strategy),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_audit_is_refused_before_round_1_where_another_holds_the_loop(holder, tmp_path):
    make, around = HOLDERS[holder]
    seen = []
    app = client_app(lambda i, model, config, context: seen.append(i) or content(model, partition_id=i))
    with pytest.raises(
        ConfigurationError, match=r"^audit: a run is recorded within .*Guarded\(outermost_strategy, audit="
    ) as told:
        drive(around(make(audit=tmp_path / "run")), app, MODEL, 3)
    assert "\n" not in str(told.value)
    assert seen == []
    assert not (tmp_path / "run").exists()
    found, _ = drive(around(make()), failing_from(9), MODEL, 3, rounds=2)  # without one it runs
    assert np.allclose(found["w"], 2)


@pytest.mark.parametrize(
    "inside",
    [lambda: wrapped(Median(**THREE)), lambda: wrapped(FedAvg(**THREE)), lambda: OwnMedian(**THREE)],
    ids=["ours", "flowers", "own start"],
)
def test_what_the_refusal_says_to_write_works(inside, tmp_path):
    found, _ = drive(Guarded(inside(), audit=tmp_path / "run"), failing_from(9), MODEL, 3, rounds=2)
    assert np.allclose(found["w"], 2)
    events = [entry.event for entry in read_log(log_file(tmp_path / "run"))]
    assert [event.round for event in events if isinstance(event, Aggregated)] == [1, 2]
    assert (events[-1].round, events[-1].outcome) == (2, "finished")


@pytest.mark.parametrize("holder", HOLDERS)
def test_stop_asks_nobody_any_more_where_another_holds_the_loop(holder):
    make, around = HOLDERS[holder]
    stopping, going = make(on_infeasible="stop"), make()
    grids = [Counting(failing_from(2), 3) for _ in range(2)]
    for strategy, grid in zip((stopping, going), grids, strict=True):
        found, _ = drive(around(strategy), None, MODEL, 3, rounds=5, grid=grid)
        assert np.allclose(found["w"], 1)
    assert [seen.round for seen in stopping.history] == [1, 2]
    assert [seen.round for seen in stopping.evaluations] == [1, 2]  # the round is finished, and none follows
    assert grids[0].sent == [3, 3, 3, 3] + [0] * 6
    assert grids[1].sent == [3] * 10
    # Where the rounds are counted anew, another run begins.
    again = Counting(failing_from(9), 3)
    found, _ = drive(around(stopping), None, MODEL, 3, rounds=2, grid=again)
    assert again.sent == [3] * 4
    assert np.allclose(found["w"], 2)


class Counting(InProcessGrid):
    """A grid that counts the messages of every call."""

    def __init__(self, app, nodes):
        super().__init__(app, nodes)
        self.sent = []

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.sent.append(len(messages))
        return super().send_and_receive(messages, timeout=timeout)
