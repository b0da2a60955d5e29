"""MixTailor: the drawn member and nothing else, uniform draws, who leaves the pool, states, and what it is for."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from flwr_robust import ConfigurationError, InfeasibleError, Pipeline, Rows, UnknownNameError, aggregate, parse
from flwr_robust.aggregators import MixTailor
from flwr_robust.aggregators.mixtailor import paper_pool
from flwr_robust.core.rows import Layer
from flwr_robust.flower import InProcessGrid, RobustStrategy
from flwr_robust.flower import MixTailor as Strategy
from tests.flower_helpers import client_app, content, drive


def normal(n, d=31, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def play(rule, x, rounds, state=None):
    """Aggregate the same rows again and again; the members drawn, the results and the last state."""
    rule = parse(rule) if isinstance(rule, str) else rule
    rows, results = Rows.from_tensor(x), []
    for _ in range(rounds):
        result, state = rule(rows, state)
        results.append(result)
    return [result.stats["member"] for result in results], results, state


# -- the drawn member ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_is_the_drawn_members_to_the_bit(dtype):
    x = normal(12, dtype=dtype)
    drawn, results, _ = play("mixtailor(f=2, seed=7)", x, 40)
    assert {text.partition("(")[0] for text in drawn} == {"median", "generalised_krum", "geometric_median", "bulyan"}
    for text, result in zip(drawn, results, strict=True):
        alone = aggregate(x, text)
        assert torch.equal(result.value, alone.value)
        assert torch.equal(result.weights, alone.weights)
        assert result.outcome is alone.outcome
        assert result.stats == {"member": text, "fitting": 64, **alone.stats}


def test_members_may_be_pipelines():
    x = normal(9)
    pool = ["clip(c=1.0) | median", "nnm | krum", "mean"]
    drawn, results, _ = play(MixTailor(f=2, pool=pool, seed=1), x, 20)
    assert set(drawn) == {"clip(c=1.0) | median(f=2)", "nnm(f=2) | krum(f=2)", "mean()"}
    assert all(torch.equal(r.value, aggregate(x, t).value) for t, r in zip(drawn, results, strict=True))


def test_a_stage_may_come_before_it():
    x = normal(10)
    drawn, results, _ = play("clip(c=1.0) | mixtailor(f=2, pool=['median', 'krum'], seed=1)", x, 10)
    assert set(drawn) == {"median(f=2)", "krum(f=2)"}
    for text, result in zip(drawn, results, strict=True):
        assert torch.equal(result.value, aggregate(x, f"clip(c=1.0) | {text}").value)


def test_rows_that_are_not_finite_lower_every_members_f():
    x = normal(11)
    x[[2, 5], 3] = math.nan
    finite = [i for i in range(11) if i not in (2, 5)]
    rule = "mixtailor(f=3, pool=['krum', 'median', 'faba(f=1)', 'trimmed_mean(fraction=0.2)'], seed=0)"
    drawn, results, _ = play(rule, x, 30)
    # fraction=0.2 of 11 asked is 2 a side.
    assert set(drawn) == {"krum(f=1)", "median(f=1)", "faba(f=0)", "trimmed_mean(f=0)"}
    for text, result in zip(drawn, results, strict=True):
        assert torch.equal(result.value, aggregate(x[finite], text).value)
        assert result.stats["not_finite"] == [2, 5]
    x[:4, 0] = math.inf
    with pytest.raises(InfeasibleError, match="5 of 11 rows are not finite, but only 3 may be"):
        aggregate(x, rule)


# -- the paper's pool ----------------------------------------------------------------------------


def test_the_papers_pool():
    pool = paper_pool()
    assert len(pool) == 64
    assert Counter(text.partition("(")[0] for text in pool) == {
        "median": 16,
        "generalised_krum": 16,
        "geometric_median": 16,
        "bulyan": 16,
    }
    rule = MixTailor(f=2)
    assert rule == parse("mixtailor(f=2)") == MixTailor(f=2, pool="paper")
    assert [member.f for member in rule.members] == [2] * 64
    assert sorted(member.p for member in rule.members if member.name == "generalised_krum") == list(range(1, 17))
    # Every pair of phases once; the mean as the second one is Bulyan's own.
    bulyans = [member for member in rule.members if member.name == "bulyan"]
    phases = {(b.selection.partition("(")[0], (b.aggregation or "mean").partition("(")[0]) for b in bulyans}
    names = ("generalised_krum", "mean", "geometric_median", "median")
    assert phases == {(first, second) for first in names for second in names}
    assert len(set(rule.members)) == 1 + 16 + 1 + 16


# -- the draws -----------------------------------------------------------------------------------

MEANS = [f"norm_bound(c={c}.0)" for c in range(1, 9)]


def chi_square(counts, n, k):
    return sum((counts[key] - n / k) ** 2 for key in counts) / (n / k) + (k - len(counts)) * n / k


def test_draws_are_uniform():
    # 7 degrees of freedom: below 0.6 or above 24.3 once in a thousand each. Taking turns would give 0.
    drawn, _, state = play(MixTailor(f=0, pool=MEANS, seed=0), normal(3, 2), 2000)
    assert 0.6 < chi_square(Counter(drawn), 2000, 8) < 24.3
    assert int(state["draws"]) == 2000
    # One after the other, too: pairs are uniform, with 63 degrees of freedom.
    assert 31 < chi_square(Counter(zip(drawn[::2], drawn[1::2], strict=True)), 1000, 64) < 104


def test_draws_are_uniform_over_those_that_fit():
    drawn, results, _ = play("mixtailor(f=2, seed=0)", normal(8, 2), 600)
    classes = Counter(text.partition("(")[0] for text in drawn)
    assert set(classes) == {"median", "generalised_krum", "geometric_median"}
    assert 0.002 < chi_square(classes, 600, 3) < 13.8
    assert {result.stats["fitting"] for result in results} == {48}


def test_a_seed_makes_the_draws_repeat():
    x = normal(12, 5)
    first, _, _ = play("mixtailor(f=2, seed=3)", x, 30)
    assert play("mixtailor(f=2, seed=3)", x, 30)[0] == first
    assert play("mixtailor(f=2, seed=4)", x, 30)[0] != first
    # The state carries the count: 10 rounds and then 20 are 30.
    begun, _, state = play("mixtailor(f=2, seed=3)", x, 10)
    assert begun + play("mixtailor(f=2, seed=3)", x, 20, state)[0] == first


def test_without_a_seed_no_two_runs_are_alike():
    x = normal(12, 5)
    torch.manual_seed(0)
    first, _, state = play("mixtailor(f=2)", x, 60)
    torch.manual_seed(0)
    assert play("mixtailor(f=2)", x, 60)[0] != first
    assert state == {"draws": 60}  # nothing that tells the next draw


def test_without_a_seed_the_operating_system_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr("secrets.randbits", lambda bits: asked.append(bits) or 5)
    x = normal(8)
    result = aggregate(x, "mixtailor(f=2)")
    assert asked == [256]
    assert result.stats["member"] == aggregate(x, "mixtailor(f=2, seed=5)").stats["member"]
    assert result.stats["member"] == aggregate(x, "mixtailor(f=2)", seed=5).stats["member"]
    assert asked == [256]


def test_draws_leave_the_global_generators_alone():
    before, pythons = torch.get_rng_state(), random.getstate()
    play("mixtailor(f=2, seed=0)", normal(12, 3), 3)
    play("mixtailor(f=2)", normal(12, 3), 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == pythons


# -- who leaves the pool -------------------------------------------------------------------------


def test_members_that_do_not_fit_leave_and_are_named():
    rule = parse("mixtailor(f=4)")
    assert rule.check(12) is None
    reason = "bulyan needs n >= 4f + 3; got n=12, f=4: ask at least 19 clients or lower f"
    gone = rule.leaving(12)
    assert set(gone) == {str(member) for member in rule.members if member.name == "bulyan"}
    assert set(gone.values()) == {reason}
    assert rule.remark(12) == f"mixtailor: 16 of its 64 members leave the pool, 16 because {reason}"
    drawn, _, _ = play("mixtailor(f=4, seed=0)", normal(12, 3), 100)
    assert not set(drawn) & set(gone)
    # With enough clients nobody leaves, and nothing is said.
    assert rule.leaving(19) == {}
    assert rule.remark(19) is None
    drawn, _, _ = play("mixtailor(f=4, seed=0)", normal(19, 3), 100)
    assert set(drawn) & set(gone)


def test_when_nobody_fits_it_says_what_would():
    rule = parse("mixtailor(f=2)")
    sentence = (
        "mixtailor: none of its 64 members fits, not even the most modest: median needs n >= 2f + 1; got n=4, f=2: "
        "ask at least 5 clients or lower f"
    )
    assert rule.check(4) == sentence
    with pytest.raises(InfeasibleError) as caught:
        aggregate(normal(4), rule)
    assert str(caught.value) == sentence
    assert rule.check(5) is None
    assert "bulyan needs" in rule.remark(5)
    assert "generalised_krum needs" in rule.remark(5)


def test_several_reasons_are_one_sentence():
    rule = parse("mixtailor(f=1, pool=['krum', 'lfighter', 'median', 'krum'])")
    assert rule.remark(4, layout=[Layer("b", (3,))]) == (
        "mixtailor: 3 of its 4 members leave the pool, 2 because krum needs n >= 2f + 3; got n=4, f=1: ask at least 5 "
        "clients or lower f, and 1 because lfighter: head must name a matrix of the model (it has none); got head=None"
    )
    assert set(rule.leaving(4)) == {"krum(f=1)"}  # the model is not known yet


def test_members_that_do_not_fit_the_model_leave():
    rule = parse("mixtailor(f=1, pool=['lfighter', 'median'], seed=0)")
    matrix = [Layer("head", (2, 3))]
    assert rule.check_layout(matrix) is None
    assert rule.check_layout([Layer("b", (6,))]) is None
    x = normal(5, 6)
    names = {
        key: {rule(Rows.from_tensor(x, layout=layout), {"draws": torch.tensor(i)})[0].stats["member"] for i in range(9)}
        for key, layout in {"matrix": matrix, "none": [Layer("b", (6,))]}.items()
    }
    assert names == {"matrix": {"lfighter()", "median(f=1)"}, "none": {"median(f=1)"}}
    alone = parse("mixtailor(f=1, pool=['lfighter'])")
    assert alone.check_layout([Layer("b", (6,))]).startswith("mixtailor: none of its 1 members fits, not even")
    # One fits the rows, the other the model, none both.
    torn = parse("mixtailor(f=2, pool=['lfighter', 'krum'])")
    with pytest.raises(InfeasibleError, match=r"none of its 2 members fits, not even the most modest: lfighter"):
        aggregate(x, torn)


def test_a_member_that_needs_trust_makes_the_pool_need_it():
    assert not parse("mixtailor(f=1)").needs_trust
    rule = parse("mixtailor(f=1, pool=['median', 'monna'], seed=0)")
    assert rule.needs_trust
    x = normal(5)
    for draws in range(6):  # whichever is drawn
        with pytest.raises(
            ConfigurationError, match=r"mixtailor\(.*\): it compares rows with one that the server trusts"
        ):
            rule(Rows.from_tensor(x), {"draws": torch.tensor(draws)})
    drawn = {rule(Rows.from_tensor(x, trusted=x[0]), {"draws": torch.tensor(i)})[0].stats["member"] for i in range(9)}
    assert drawn == {"median(f=1)", "monna(f=1)"}
    with pytest.raises(ConfigurationError, match="pass trusted_fn"):
        RobustStrategy(rule)


# -- states --------------------------------------------------------------------------------------


def test_members_keep_states_of_their_own():
    pool = ("centered_clipping(tau=0.5)", "centered_clipping(tau=2.0)", "bucketing(s=2) | median", "median")
    rule, state, alone = MixTailor(f=1, pool=pool, seed=0), None, {}
    seen = Counter()
    for round_ in range(24):
        rows = Rows.from_tensor(normal(8, seed=round_), seed=0)
        result, state = rule(rows, state)
        member = result.stats["member"]
        expected, alone[member] = parse(member)(rows, alone.get(member))
        assert torch.equal(result.value, expected.value)
        seen[member] += 1
    assert len(seen) == 4
    assert state.keys() == {"draws", "0.centre", "1.centre", "2.0.draws"}
    # Each counts the rounds in which it was drawn.
    assert int(state["2.0.draws"]) == seen["bucketing(s=2) | median(f=1)"] > 1
    assert torch.equal(state["0.centre"], alone["centered_clipping(tau=0.5, f=1)"]["centre"])
    # Forgetting would show.
    assert not torch.equal(aggregate(normal(8), "centered_clipping(tau=0.5)").value, state["0.centre"])


def test_the_state_given_is_not_changed():
    rule = MixTailor(f=1, pool=["centered_clipping(tau=1.0)"], seed=0)
    rows = Rows.from_tensor(normal(5))
    _, first = rule(rows)
    kept = {key: value.clone() for key, value in first.items()}
    rule(rows, first)
    assert first.keys() == kept.keys()
    assert all(torch.equal(first[key], kept[key]) for key in kept)


# -- text and fields -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "mixtailor(f=2)",
        "mixtailor(f=2, seed=0)",
        "mixtailor(f=0, pool=('mean',))",
        "mixtailor(f=2, pool=('krum', \"bulyan(selection='median')\", 'clip(c=2.0) | nnm(f=1) | median'), seed=5)",
        "nnm(f=2) | mixtailor(f=2, pool=('krum', 'median'))",
        "mixtailor(f=1, pool=('mixtailor', 'mean'))",
    ],
)
def test_text_and_rule_are_one(text):
    rule = parse(text)
    assert str(rule) == text
    assert parse(str(rule)) == rule
    assert hash(parse(str(rule))) == hash(rule)
    if not isinstance(rule, Pipeline):
        # Lowered by faulty rows it still has a text.
        assert parse(str(rule.reduced(1, 12))) == rule.reduced(1, 12)
        assert len(rule.reduced(1, 12).members) == len(rule.members)


def test_a_list_is_a_tuple():
    assert parse("mixtailor(f=1, pool=['mean'])") == MixTailor(f=1, pool=("mean",)) == MixTailor(f=1, pool=["mean"])
    assert MixTailor(f=1, pool=["mean"]).pool == ("mean",)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("mixtailor", ConfigurationError, "mixtailor: f must be given"),
        ("mixtailor(f=-1)", ConfigurationError, "mixtailor: f must be an integer >= 0; got f=-1"),
        ("mixtailor(f=1, seed=-1)", ConfigurationError, "mixtailor: seed must be an integer >= 0; got seed=-1"),
        ("mixtailor(f=1, pool='krum')", ConfigurationError, r"pool must be 'paper', or a list.*; got pool='krum'"),
        ("mixtailor(f=1, pool=[])", ConfigurationError, r"got pool=\(\)"),
        ("mixtailor(f=1, pool=3)", ConfigurationError, "got pool=3"),
        ("mixtailor(f=1, pool=[3])", ConfigurationError, r"of: a defence string; got pool=\(3,\)"),
        ("mixtailor(f=1, pool=['crumb'])", UnknownNameError, "unknown aggregator 'crumb'"),
        ("mixtailor(f=1, pool=['krum(g=1)'])", UnknownNameError, "unknown field of krum 'g'"),
        ("mixtailor(f=1, pool=['clip(c=1.0)'])", UnknownNameError, "a pre-aggregator cannot come last"),
        ("mixtailor(f=1, pool=['krum', 'norm_bound'])", ConfigurationError, "norm_bound: c must be given"),
    ],
)
def test_fields_outside_their_bounds_are_refused(text, error, words):
    with pytest.raises(error, match=words):
        parse(text)


def test_members_get_f_unless_they_name_one():
    rule = parse("mixtailor(f=3, pool=['krum', 'krum(f=1)', 'mean', 'nnm | median', 'trimmed_mean(fraction=0.1)'])")
    assert [str(member) for member in rule.members] == [
        "krum(f=3)",
        "krum(f=1)",
        "mean()",
        "nnm(f=3) | median(f=3)",
        "trimmed_mean(fraction=0.1)",
    ]


# -- what it is for ------------------------------------------------------------------------------


def tailored(epsilon, seed):
    """Ten honest rows and two at -epsilon times their mean; and the mean.

    In every coordinate six honest rows say 1 and four -1.1: the mean is 0.16, and two more below are enough to turn the
    median, while two close to zero are not.
    """
    generator = torch.Generator().manual_seed(seed)
    against = torch.rand(10, 100, generator=generator).argsort(0) < 4
    honest = torch.where(against, -1.1, 1.0).double() + 0.01 * normal(10, 100, seed)
    mean = honest.mean(0)
    return torch.cat([honest, (-epsilon * mean).expand(2, 100)]), mean


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_attack_tailored_to_one_rule_does_not_turn_the_mixture(seed):
    expected = {}
    for epsilon, broken, whole in ((0.1, "generalised_krum", "median"), (10.0, "median", "generalised_krum")):
        x, mean = tailored(epsilon, seed)
        rule, rows = parse("mixtailor(f=2, seed=1)"), Rows.from_tensor(x)
        # How far each member goes along the honest mean: 1 is all of the way, below 0 is backwards.
        along = {member: float(member(rows)[0].value @ mean / (mean @ mean)) for member in set(rule.members)}
        assert all(value < 0 for member, value in along.items() if member.name == broken)
        assert all(value > 1 for member, value in along.items() if member.name == whole)
        expected[epsilon] = sum(along[member] for member in rule.members) / 64
        assert expected[epsilon] > 0.3
        # The rounds of a run do come to it: 400 draws of a deviation below 2.
        _, results, _ = play(rule, x, 400)
        average = torch.stack([result.value for result in results]).mean(0)
        assert float(average @ mean / (mean @ mean)) == pytest.approx(expected[epsilon], abs=0.4)
        # Alone the broken one never gets anywhere, however many rounds there are.
        alone, _ = parse(f"mixtailor(f=2, pool=[{broken!r}])")(rows)
        assert float(alone.value @ mean) < 0


# -- in a strategy -------------------------------------------------------------------------------

MODEL = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}


def moves(partition, model, config, context):
    rng = np.random.default_rng([partition, config["server-round"]])
    return {name: held + rng.standard_normal(held.shape).astype(np.float32) for name, held in model.items()}


class Listening(InProcessGrid):
    """A grid that keeps what it is given to send."""

    def __init__(self, app, nodes):
        super().__init__(app, nodes)
        self.sent = []

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.sent += messages
        return super().send_and_receive(messages, timeout=timeout)


def test_the_draw_is_in_the_history_and_never_sent():
    app = client_app(moves, lambda partition, model, config, context: content(loss=0.0))
    grid = Listening(app, 7)
    strategy = Strategy(f=1, min_train_nodes=7, min_evaluate_nodes=7)
    drive(strategy, app, MODEL, 7, rounds=4, grid=grid)
    drawn = [record.stats["member"] for record in strategy.history]
    assert len(drawn) == 4
    assert set(drawn) <= {str(member) for member in strategy.rule.members}
    # All that goes out, to train and to evaluate: the model, and the number of the round.
    assert len(grid.sent) == 4 * 7 * 2
    for message in grid.sent:
        assert set(message.content) == {"arrays", "config"}
        assert set(message.content["config"]) == {"server-round"}
        assert {name: array.shape for name, array in message.content["arrays"].items()} == {"w": (2, 3), "b": (2,)}


def test_the_strategy_says_who_leaves_before_the_first_round(monkeypatch):
    said = []
    for level in ("info", "warning"):
        monkeypatch.setattr(f"flwr_robust.flower.strategy.log.{level}", lambda text, *args: said.append(text % args))
    drive(Strategy(f=2, min_train_nodes=8, fraction_evaluate=0.0), client_app(moves), MODEL, 8, rounds=2)
    sentence = f"configure_train: {parse('mixtailor(f=2)').remark(8)}"
    assert said.count(sentence) == 1
    assert said.index(sentence) < next(i for i, text in enumerate(said) if text.startswith("aggregate_train"))
    said.clear()
    # Behind a stage too, where n is the number of rows that come out.
    rule = "bucketing(s=2) | mixtailor(f=1, pool=['median', 'krum'])"
    drive(RobustStrategy(rule, min_train_nodes=8, fraction_evaluate=0.0), client_app(moves), MODEL, 8)
    assert f"configure_train: {parse(rule).rule.remark(4)}" in said
    said.clear()
    drive(Strategy(f=2, min_train_nodes=11, fraction_evaluate=0.0), client_app(moves), MODEL, 11)
    assert not any("mixtailor:" in text for text in said)
