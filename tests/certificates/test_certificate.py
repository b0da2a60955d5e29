"""Certificates: exact where the rule has a closed form, never above a proven bound, and shown by their witness."""

import json
import math

import pytest
import torch

from flwr_robust import Certificate, ConfigurationError, aggregate, certify, parse
from flwr_robust.certificates.measures import best_bound
from flwr_robust.certificates.table import rules
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rule import Aggregate, Rule
from flwr_robust.diagnostics.planning import price

SIZES = (5, 7, 10, 12, 20, 25)
EXACT = ("median", "trimmed_mean", "meamed", "phocas")
EVERY = [(text, n, f) for _, text in rules() for n in SIZES for f in range(1, (n + 1) // 2)]
FAST = {("krum", 7, 2), ("multi_krum", 10, 3), ("faba", 10, 2), ("minimum_diameter", 7, 2), ("smea", 7, 2),
        ("geometric_median", 5, 1), ("phocas", 20, 4), ("meamed", 25, 7), ("median", 12, 3), ("trimmed_mean", 10, 4),
        ("mean", 5, 1), ("dnc", 7, 2), ("monna", 5, 1), ("clip_mean", 7, 3)}  # fmt: skip


def made(text, n, f):
    """Return the rule, or None where n and f do not fit it or it reads layers."""
    rule = parse(text, f=f)
    return None if rule.check(n) or rule.check_layout(()) else rule


def held(rule, n, f, evaluations, **options):
    """Certify, check the witness by `aggregate` alone, and return the certificate."""
    found = certify(rule, n, f, evaluations=evaluations, **options)
    assert not found.contradicted, found.sentence
    assert found.witness.shape[0] == n
    assert found.witness.dtype == torch.float64
    if found.draws == 1 and math.isfinite(found.found):
        honest = found.witness[: n - f]
        trusted = {"trusted": honest[0]} if found.rule.needs_trust else {}
        off = aggregate(found.witness, found.rule, seed=0, **trusted).value - honest.mean(0)
        spread = (honest - honest.mean(0)).square().sum(1).mean()
        again = float(off.square().sum() / spread) if spread > 0 else 0.0
        assert again == pytest.approx(found.found, rel=1e-6)
    assert found.replay() == pytest.approx(found.found, rel=1e-6)
    return found


def whole(text, n, f, evaluations):
    rule = made(text, n, f)
    if rule is None:
        pytest.skip("n and f do not fit")
    found = held(rule, n, f, evaluations, seconds=20)
    if found.exact is not None and math.isfinite(found.exact):
        assert 0.99 * found.exact <= found.found <= found.exact * (1 + 1e-6)
        assert found.exact >= found.lower * (1 - 1e-9)


@pytest.mark.parametrize(("text", "n", "f"), [each for each in EVERY if each in FAST])
def test_nothing_is_found_above_what_is_proven(text, n, f):
    whole(text, n, f, 500)


@pytest.mark.slow
@pytest.mark.parametrize(("text", "n", "f"), [each for each in EVERY if each not in FAST and each[1] == 5])
def test_nothing_is_found_above_what_is_proven_for_five_rows(text, n, f):
    whole(text, n, f, 200)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("text", "n", "f"), [each for each in EVERY if each not in FAST and each[1] > 5])
def test_nothing_is_found_above_what_is_proven_over_the_registry(text, n, f):
    whole(text, n, f, 200)


def test_the_fast_cases_are_of_the_registry():
    assert set(EVERY) >= FAST


@pytest.mark.exhaustive
@pytest.mark.parametrize("text", ["nnm | median", "nnm | krum", "arc | trimmed_mean", "arc | krum", "nnm | phocas"])
@pytest.mark.parametrize(("n", "f"), [(7, 2), (10, 3), (20, 4)])
def test_nothing_is_found_above_the_bounds_of_pipelines(text, n, f):
    held(text, n, f, 2000, seconds=30)


@pytest.mark.parametrize("text", EXACT)
@pytest.mark.parametrize("measure", ["rho", "lambda"])
def test_what_kappa_says_of_the_other_measures_holds(text, measure):
    found = certify(text, 7, 2, measure, evaluations=800)
    assert found.found <= found.proven * (1 + 1e-9)
    assert found.source.startswith("from kappa: ")
    assert found.exact is None


@pytest.mark.parametrize(("n", "f", "declared"), [(20, 2, 4), (12, 1, 5), (9, 0, 2), (10, 3, 3)])
def test_a_trimmed_mean_that_declares_more_than_there_are_pays_its_price(n, f, declared):
    """Its kappa is f' / (n - f - f'), the number of arXiv 2510.04432."""
    found = held(f"trimmed_mean(f={declared})", n, f, 600)
    assert found.exact == price(n, declared, f)
    assert found.found == pytest.approx(found.exact, rel=1e-6)


def test_more_faulty_rows_than_declared_have_no_bound():
    found = held("trimmed_mean(f=1)", 9, 2, 600)
    assert found.found == found.exact == math.inf
    assert found.replay() == math.inf
    assert "unbounded" in found.sentence
    assert found.bounded is False


def test_the_trimmed_mean_is_optimal_and_phocas_has_four_times_as_much():
    trimmed, phocas = (held(text, 12, 3, 600) for text in ("trimmed_mean", "phocas"))
    assert trimmed.exact == trimmed.lower == 0.5
    assert "so this rule is optimal" in trimmed.sentence
    assert phocas.exact == 2.0
    assert "optimal" not in phocas.sentence


def test_a_rule_without_a_theorem_says_so():
    found = held("caf", 7, 2, 400)
    assert found.proven is None
    assert "no theorem is known" in found.sentence
    assert found.bounded is None


def test_a_rule_that_draws_has_an_error():
    found = held("bucketing(s=2) | median(f=1)", 10, 1, 150)
    assert found.draws > 1
    assert found.error > 0
    assert f"mean of {found.draws} draws" in found.sentence


class Nearest(Rule):
    """A rule of a user's own, without a name in the registry and without a theorem."""

    name = "nearest_to_first"

    def needs(self, asked):
        return 1, "n >= 1"

    def combine(self, rows, state):
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[0] = 1
        return Aggregate(rows.mix(weights), weights), state


class Boastful(Nearest):
    """The same with a claim that is false."""

    def bounds(self, n, f):
        return (Bound("kappa", 1.0, "a claim"),)


def test_a_rule_of_ones_own_is_searched():
    """The first of h honest rows may be sqrt(h - 1) standard deviations from their mean, and no more."""
    found = held(Nearest(), 7, 2, 1500)
    assert found.proven is None
    assert found.found == pytest.approx(4, rel=1e-6)


def test_a_false_bound_is_found_out():
    found = certify(Boastful(), 7, 2, evaluations=600)
    assert found.contradicted
    assert "found above the proven 1 (a claim): one of them is wrong" in found.sentence


def test_a_certificate_goes_through_json():
    found = held("krum", 7, 2, 400)
    again = Certificate.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.to_dict() == found.to_dict()
    assert again.replay() == pytest.approx(found.found, rel=1e-6)
    endless = certify("mean", 7, 2)
    assert Certificate.from_dict(json.loads(json.dumps(endless.to_dict(), allow_nan=False))).found == math.inf


def test_an_earlier_witness_is_a_start():
    better = held("krum", 12, 2, 600)
    again = certify("krum", 12, 2, evaluations=100, seconds=1e-6, first=[better.witness])
    assert again.found == pytest.approx(better.found, rel=1e-9)
    with pytest.raises(
        ConfigurationError, match=r"certify: first must hold finite tensors \(n, k\) with n=7; got shape"
    ):
        certify("krum", 7, 2, first=[better.witness])


def test_bounds_are_for_the_declared_f():
    for text in ("krum(f=2)", "multi_krum(f=2)", "faba(f=2)", "minimum_diameter(f=2)", "smea(f=2)", "phocas(f=2)"):
        assert parse(text).bounds(12, 2), text
        assert not parse(text).bounds(12, 1), text
    assert not parse("krum(f=2, variant='byzfl')").bounds(12, 2)
    assert not parse("trimmed_mean(f=2, weighted=True)").bounds(12, 2)
    assert not parse("nnm(f=2) | mean()").bounds(12, 2)
    (bound,) = parse("nnm(f=2) | trimmed_mean(f=2)").bounds(12, 2)
    assert bound.value == pytest.approx(8 * 2 / 10 * (2 / 8 + 1))
    assert best_bound(parse("krum(f=2)").bounds(12, 2), "rho", 12, 2).value == pytest.approx(
        math.sqrt(parse("krum(f=2)").bounds(12, 2)[0].value)
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("krum", 6, 2), r"certify: krum needs n >= 2f \+ 3; got n=6, f=2"),
        (("median", 6, 3), r"certify: f must be below n / 2, .*; got n=6, f=3"),
        (("mean", 6), r"certify: f must be given, for mean\(\) declares none; got f=None"),
        (("median", 6, -1), r"certify: f must be an integer >= 0; got f=-1"),
        (("median", 0, 0), r"certify: n must be an integer >= 1; got n=0"),
        (("median", 6, 1, "delta"), r"certify: measure must be one of kappa, lambda, rho; got measure='delta'"),
        (
            ("lfighter", 6, 1),
            r"certify: lfighter\(\) reads the layers of a model, so it has none of kappa, rho, lambda",
        ),
        (("medain", 6, 1), r"unknown aggregator 'medain'"),
        ((3, 6, 1), r"certify: rule must be a defence string or a Rule; got int"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(arguments, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as told:
        certify(*arguments)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("option", [{"evaluations": 10}, {"seconds": 0}, {"seed": -1}])
def test_the_search_is_checked_too(option):
    with pytest.raises(ConfigurationError, match=f"certify: {next(iter(option))} must be "):
        certify("median", 7, 2, **option)
