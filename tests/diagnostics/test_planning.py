"""Plans: the hypergeometric tails against enumeration and scipy, the smallest f and sample against trying them all."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

import flwr_robust
from flwr_robust import ConfigurationError, parse, plan
from flwr_robust.diagnostics.planning import bounds_of_f, chances, hoeffding_sample, in_some_round, price

RULES = [None, "trimmed_mean", "krum", "bulyan", "median", "mean", "nnm | krum", "bucketing(s=2) | trimmed_mean(f=1)"]


def enumerated(clients, compromised, sample):
    """P(X > f) by looking at every sample there is."""
    counts = [sum(each < compromised for each in chosen) for chosen in itertools.combinations(range(clients), sample)]
    return [sum(count > f for count in counts) / len(counts) for f in range(sample + 1)]


@pytest.mark.parametrize("clients", [1, 2, 5, 9])
def test_the_chances_are_those_of_all_samples(clients):
    for compromised, sample in itertools.product(range(clients + 1), repeat=2):
        assert chances(clients, compromised, sample) == enumerated(clients, compromised, sample)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_chances_are_scipys(data):
    clients = data.draw(st.integers(1, 3000))
    compromised, sample = (data.draw(st.integers(0, clients)) for _ in range(2))
    expected = hypergeom.sf(range(sample + 1), clients, compromised, sample)
    assert chances(clients, compromised, sample) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_a_tail_that_scipy_cannot_tell_from_zero_keeps_its_digits():
    """More than 99 of 100 compromised in a sample of 100 out of 200: one sample of all."""
    assert chances(200, 100, 100)[99] == 1 / math.comb(200, 100)


def test_rounds_are_independent():
    assert in_some_round(0.1, 3) == pytest.approx(1 - 0.9**3)
    assert in_some_round(1e-18, 1000) == pytest.approx(1e-15)
    assert in_some_round(1.0, 5) == 1
    assert in_some_round(0.0, 5) == 0


def made(text, f):
    return None if text is None else parse(text, f=f)


def takes(text, sample, f):
    """Whether a rule takes what is left of a sample when f replies are refused, by its own check."""
    rule, left = made(text, f), sample - f
    if left < 1 or (rule is not None and rule.check(left, asked=sample)):
        return False
    declared = None if rule is None else rule.declared(sample)
    return (left >= 2 * f + 1) if declared is None else declared == f


def by_trying(clients, compromised, rounds, text, risk):
    """The smallest sample, and its smallest f, that fit the rule and keep the risk."""
    for sample in range(1, clients + 1):
        above = chances(clients, compromised, sample)
        for f in range(sample + 1):
            if takes(text, sample, f) and in_some_round(above[f], rounds) <= risk:
                return sample, f
    return None


@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize(("clients", "rounds", "risk"), [(24, 1, 0.05), (40, 50, 0.01), (30, 3, 0.6)])
def test_the_smallest_sample_is_that_of_trying_them_all(text, clients, rounds, risk):
    for compromised in range(0, clients // 2, 2):
        found = plan(clients, compromised, rounds=rounds, rule=text, risk=risk)
        expected = by_trying(clients, compromised, rounds, text, risk)
        assert (found.sample, found.f) == (expected or (None, found.f)), (compromised, expected)
        assert found.feasible == (expected is not None)
        assert found.least_sample == found.sample
        if expected is None:
            assert found.changes


@pytest.mark.parametrize("text", ["trimmed_mean", "krum", None])
def test_an_impossible_plan_names_a_number_that_makes_it_possible(text):
    found = plan(40, 18, rounds=20, rule=text)
    assert not found.feasible
    assert found.sentence.startswith("impossible: no sample of 40 clients fits ")
    (change,) = found.changes
    most = int(change.removeprefix("have at most ").removesuffix(" compromised clients"))
    assert plan(40, most, rounds=20, rule=text).feasible
    assert not plan(40, most + 1, rounds=20, rule=text).feasible


def test_a_sample_with_too_small_an_f_is_told_the_f_or_the_sample():
    found = plan(100, 10, sample=30, f=3, rounds=50, rule="trimmed_mean", risk=0.05)
    assert found.changes[0] == f"declare f = {found.least_f}"
    assert plan(100, 10, sample=30, f=found.least_f, rounds=50, rule="trimmed_mean", risk=0.05).feasible
    assert not plan(100, 10, sample=30, f=found.least_f - 1, rounds=50, rule="trimmed_mean", risk=0.05).feasible
    crowded = plan(20, 4, sample=10, f=4, rule="trimmed_mean")
    assert "does not fit if f of the 10 replies are refused, which leaves 6" in crowded.problem
    assert "ask 13 clients" in crowded.changes
    assert plan(20, 4, sample=13, f=4, rule="trimmed_mean").feasible
    few = plan(2, 0, rule="krum")
    assert few.changes == ("have at least 3 clients",)
    assert plan(3, 0, rule="krum").feasible


def test_many_clients_take_no_longer_than_few():
    found = plan(100_000, 10_000, rounds=1000, rule="krum")
    assert (found.sample, found.f) == (48, 15)
    assert found.over_rounds == pytest.approx(1 - hypergeom.cdf(15, 100_000, 10_000, 48) ** 1000, rel=1e-6)


def test_a_share_of_those_asked_is_an_f():
    found = plan(100, 10, rule="trimmed_mean(fraction=0.2)", rounds=10)
    assert found.f == found.sample // 5
    assert all(
        in_some_round(chances(100, 10, m)[m // 5], 10) > 0.01 or not takes("trimmed_mean(fraction=0.2)", m, m // 5)
        for m in range(1, found.sample)
    )


def test_the_other_results_stand_beside():
    found = plan(1000, 100, sample=60, f=15, rounds=200)
    assert found.hoeffding == math.ceil(math.log(200 / 0.01) / (2 * (0.25 - 0.1) ** 2))
    assert found.price == price(60, 15, 6) == 15 / 39
    assert found.least_price == 6 / 48
    assert hoeffding_sample(0.3, 0.3, 1, 0.1) is None
    assert price(10, 5, 5) == math.inf
    assert found.expected == 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"clients": 0, "compromised": 0}, r"plan: clients must be an integer >= 1; got clients=0"),
        ({"clients": 10, "compromised": 11}, r"plan: compromised must be at most the clients=10; got compromised=11"),
        ({"clients": 10, "compromised": -1}, r"plan: compromised must be an integer >= 0"),
        (
            {"clients": 10, "compromised": 1, "sample": 11},
            r"plan: sample must be at most the clients=10; got sample=11",
        ),
        (
            {"clients": 10, "compromised": 1, "sample": 5, "f": 6},
            r"plan: f must be at most the clients asked, 5; got f=6",
        ),
        ({"clients": 10, "compromised": 1, "rounds": 0}, r"plan: rounds must be an integer >= 1"),
        ({"clients": 10, "compromised": 1, "risk": 0}, r"plan: risk must be a finite number and > 0 and < 1"),
        ({"clients": 10, "compromised": 1, "rule": "krumm"}, r"unknown aggregator 'krumm'"),
        ({"clients": 10, "compromised": 1, "rule": 3}, r"plan: rule must be a defence string or a Rule; got int"),
        (
            {"clients": 10, "compromised": 1, "f": 2, "rule": "krum(f=1)"},
            r"plan: f must be given once; got f=2, and the rule krum\(f=1\) declares 1",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(arguments, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as told:
        plan(**arguments)
    assert "\n" not in str(told.value)


def test_a_plan_is_plain_values():
    found = plan(50, 5, rule=parse("krum(f=4)"), rounds=2)
    document = json.loads(json.dumps(found.to_dict()))
    assert document["rule"] == "krum(f=4)"
    assert document["sentence"] == found.sentence
    assert document["feasible"] is True
    assert isinstance(found, flwr_robust.Plan)


def test_the_bounds_of_f_are_those_of_single_plans():
    found = plan(60, 6, rule="krum", rounds=10)
    for sample, (low, high) in zip((5, 20, 60), bounds_of_f(found, (5, 20, 60)), strict=True):
        single = plan(60, 6, sample=sample, rule="krum", rounds=10)
        assert (low, high) == (single.least_f, single.most_f)
