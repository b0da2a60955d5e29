"""One suite for every rule: whatever stands in a module's CASES must have every property below.

A property that a case lists in `lacks` must fail, strictly, so that an exemption which is no longer needed shows up.
A case that lacks "resilience" is not asked for "huge", "multiples" and "scales", which are the same with other numbers.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pickle
import pkgutil

import numpy as np
import pytest
import torch

import flwr_robust.aggregators
import flwr_robust.preaggregators
from flwr_robust import InfeasibleError, Outcome, Rows, parse
from flwr_robust.core import segments
from flwr_robust.core.rows import Layer
from flwr_robust.core.rule import Case, aggregators, preaggregators
from flwr_robust.core.spec import parse_chain
from tests import oracles
from tests.oracles import basic

MODULES = [
    importlib.import_module(module.name)
    for package in (flwr_robust.aggregators, flwr_robust.preaggregators)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]
CASES = [case for module in MODULES for case in getattr(module, "CASES", ())]

# Where a rule stops at a tolerance or subtracts through the Gram matrix: its distance from the oracle, in spreads.
SLACK = {"geometric_median": 1e-4, "reweighted_geometric_median": 1e-4, "mixtailor": 1e-4, "centered_clipping": 1e-7}
EPSILON = {torch.float16: 1e-3, torch.float32: 1.2e-7, torch.float64: 1e-14}


# -- data and helpers ----------------------------------------------------------------------------


def columns(case: Case) -> int:
    return sum(math.prod(shape) for _, shape in case.layout) or 31


def sample(case: Case, seed: int = 0, n: int | None = None, offset: float = 0.3) -> np.ndarray:
    """Rows of norm 5 to 7, longer than every clipping radius of the cases."""
    rng = np.random.default_rng(seed)
    return offset + rng.standard_normal((case.n if n is None else n, columns(case)))


def claims(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 50, n).astype(float)


def wrap(case: Case, x, *, counts=None, layout=None, **more) -> Rows:
    layers = [Layer(name, tuple(shape)) for name, shape in (case.layout if layout is None else layout)]
    x, counts = torch.as_tensor(x), claims(len(x)) if counts is None else counts
    return trusting(Rows.from_tensor(x, layout=layers, counts=counts, seed=0, **more))


def trusting(rows: Rows) -> Rows:
    """Give rows the trusted row that the oracles take: the median of the finite ones."""
    x = rows.slice(0, rows.d)
    rows.trusted = x[torch.isfinite(x).all(1)].quantile(0.5, dim=0) if bool(torch.isfinite(x).all(1).any()) else None
    return rows


def run(case: Case, x, *, state=None, **more):
    return parse(case.rule)(wrap(case, x, **more), state)[0]


def spread_of(x) -> float:
    x = np.asarray(x, float)
    return float(np.linalg.norm(x - np.median(x, axis=0), axis=1).max())


def assert_close(case: Case, value: torch.Tensor, expected: np.ndarray, spread: float) -> None:
    slack = max([1e-9] + [SLACK[name] for name, _ in parse_chain(case.rule, "case") if name in SLACK])
    error = np.abs(value.double().numpy() - expected)
    allowed = EPSILON[value.dtype] * np.abs(expected) + slack * spread
    assert (error <= allowed).all(), f"off by {(error / allowed).max():.3g} times what is allowed"


def assert_like_oracle(case: Case, x: torch.Tensor, spread: float | None = None, *, stages=None, counts=None) -> None:
    counts = claims(len(x)) if counts is None else counts
    result = run(case, x, counts=counts)
    exact = x.double().numpy()
    stages = parse_chain(case.rule, "case") if stages is None else stages
    value, weights = oracles.aggregate(stages, exact, counts=counts, layout=case.layout)
    assert_close(case, result.value, value, spread_of(exact) if spread is None else spread)
    if weights is not None:
        np.testing.assert_allclose(result.weights, weights, atol=1e-3)  # the same rows were chosen


def declared(case: Case) -> int:
    """The faulty rows a case is tried with: its f, or all it says it tolerates; at least one."""
    rule = parse(case.rule)
    return max(1, min(rule.tolerated(case.n, case.n), (case.n - 1) // 2))


def honest_and_faulty(case: Case, arrangement: str, size: float):
    """Close rows near a point of norm 1.5, and f rows: all of one size, multiples of one, or of many sizes."""
    f, d = declared(case), columns(case)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = rng.standard_normal(d)
        centre = 1.5 * direction / np.linalg.norm(direction)
        x = centre + 0.005 / math.sqrt(d) * rng.standard_normal((case.n, d))
        faulty = rng.permutation(case.n)[:f]
        honest = np.setdiff1d(np.arange(case.n), faulty)
        x[faulty] = size
        if arrangement == "multiples":  # they add up to n times the first: the mean of all rows lies on it
            x[faulty] *= rng.standard_normal(d)
            x[faulty[-1]] *= case.n - f + 1
        elif arrangement == "scales":  # along the honest rows and against them, each of its own size
            x[faulty] = 10.0 ** (size * rng.uniform(1, 12, (f, 1))) * centre
            x[faulty[1::2]] *= -1
        elif arrangement == "alternating":
            x[faulty[::2]] *= -1
        elif arrangement == "random":
            x[faulty] *= rng.choice([-1.0, 1.0], (f, d))
        yield torch.from_numpy(x).float(), honest


def assert_stays_near_the_honest(case: Case, size: float, *arrangements: str) -> None:
    for arrangement in arrangements:
        for x, honest in honest_and_faulty(case, arrangement, size):
            value = run(case, x, counts=np.full(case.n, 20.0)).value.double().numpy()
            good = x[honest].double().numpy()
            spread = np.linalg.norm(good - good.mean(0), axis=1).max()
            away = np.linalg.norm(value - good.mean(0))
            assert away <= 3 * spread, f"{arrangement}: {away / spread:.3g} honest spreads from the honest mean"


# -- the properties ------------------------------------------------------------------------------


def shape(case: Case) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = torch.from_numpy(sample(case)).to(dtype)
        result = run(case, x)
        assert result.value.shape == (columns(case),)
        assert result.value.dtype == dtype
        assert bool(torch.isfinite(result.value).all())
        assert result.weights.shape == (case.n,)
        assert result.weights.dtype == torch.float64
        assert bool((result.weights >= -1e-12).all())
        assert float(result.weights.sum()) <= 1 + 1e-9
        assert result.outcome is Outcome.OK
        assert all(isinstance(key, str) for key in result.stats)


def oracle(case: Case) -> None:
    for seed in range(3):
        assert_like_oracle(case, torch.from_numpy(sample(case, seed)))


def half(case: Case) -> None:
    x = torch.from_numpy(sample(case))
    for dtype in (torch.float16, torch.float64):
        assert_like_oracle(case, x.to(dtype))
    # Beyond 256 the square leaves float16; sums of it must not.
    big = (1000 * x).half()
    stages = parse_chain(case.rule, "case")
    expected, _ = oracles.aggregate(stages, big.double().numpy(), counts=claims(case.n), layout=case.layout)
    assert_close(case, run(case, big).value, expected, spread_of(big))


def mix(case: Case) -> None:
    # From the second round on: a state that is not zero takes part.
    x = sample(case)
    _, state = parse(case.rule)(wrap(case, x), None)
    again = sample(case, 1)
    result = run(case, again, state=state)
    np.testing.assert_allclose(result.value, result.weights.numpy() @ again, rtol=1e-9, atol=1e-9)


def translation(case: Case) -> None:
    for seed in range(8):
        x = sample(case, seed)
        shift = 3 * np.random.default_rng(99).standard_normal(columns(case))
        np.testing.assert_allclose(run(case, x + shift).value, run(case, x).value.numpy() + shift, rtol=1e-5, atol=1e-5)


def scale(case: Case) -> None:
    x = sample(case)
    for factor in (1e-6, 0.25, 3.0, 1e6):
        expected = factor * run(case, x).value.numpy()
        np.testing.assert_allclose(run(case, factor * x).value, expected, rtol=1e-5, atol=1e-6 * factor)


def permutation(case: Case) -> None:
    for seed in range(3):
        x, counts = sample(case, seed), claims(case.n, seed)
        order = np.random.default_rng(seed).permutation(case.n)
        first, second = run(case, x, counts=counts), run(case, x[order], counts=counts[order])
        np.testing.assert_allclose(second.value, first.value, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(second.weights, first.weights[order], atol=1e-7)


def unanimity(case: Case) -> None:
    for row in (sample(case)[:1], 1e4 + sample(case, 1)[:1], 1e-3 * sample(case, 2)[:1]):
        for dtype in (torch.float32, torch.float64):
            x = torch.from_numpy(row).to(dtype).repeat(case.n, 1)
            torch.testing.assert_close(run(case, x).value, x[0], rtol=2 * EPSILON[dtype], atol=0)


def determinism(case: Case) -> None:
    x, counts = torch.from_numpy(sample(case)).float(), torch.from_numpy(claims(case.n))
    kept, kept_counts = x.clone(), counts.clone()
    first, second = run(case, x, counts=counts), run(case, x, counts=counts)
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.weights, second.weights)
    assert first.stats == second.stats
    assert torch.equal(x, kept)
    assert torch.equal(counts, kept_counts)


SIGNS = ("same", "alternating", "random")


def resilience(case: Case) -> None:
    assert_stays_near_the_honest(case, 1e8, *SIGNS)


def huge(case: Case) -> None:
    assert_stays_near_the_honest(case, 1e30, *SIGNS)


def multiples(case: Case) -> None:
    for size in (1e2, 1e8, 1e30):
        assert_stays_near_the_honest(case, size, "multiples")


def scales(case: Case) -> None:
    for power in (1, -1):  # longer and shorter than honest rows by factors of 10 to 10^12
        assert_stays_near_the_honest(case, power, "scales")


def with_f_lowered(case: Case, k: int):
    """The stages with every declared f less by k, as the definition of faulty rows has it."""
    stages = []
    for name, fields in parse_chain(case.rule, "case"):
        lowered = dict(fields)
        if "fraction" in lowered:
            lowered["f"] = math.floor(lowered.pop("fraction") * case.n + 1e-9)
        if lowered.get("f") is not None:
            lowered["f"] = max(lowered["f"] - k, 0)
        stages.append((name, lowered))
    return stages


def not_finite(case: Case) -> None:
    rule = parse(case.rule)
    allowed = rule.tolerated(case.n, case.n)
    counts = claims(case.n)
    poison = (math.nan, math.inf, -math.inf)
    for k in range(1, allowed + 1):
        x = sample(case)
        faulty = np.random.default_rng(k).permutation(case.n)[:k]
        for i, row in enumerate(faulty):
            x[row, i :: 1 + 29 * (i % 2)] = poison[i % 3]  # whole rows and single coordinates
        finite = np.setdiff1d(np.arange(case.n), faulty)
        result = run(case, x, counts=counts)
        expected, weights = oracles.aggregate(
            with_f_lowered(case, k), x[finite], counts=counts[finite], layout=case.layout
        )
        assert_close(case, result.value, expected, spread_of(x[finite]))
        assert bool((result.weights[faulty] == 0).all())
        if weights is not None:
            np.testing.assert_allclose(result.weights[finite], weights, atol=1e-3)
        assert result.stats["not_finite"] == sorted(faulty.tolist())
    x = sample(case)
    x[: allowed + 1, 0] = math.nan
    with pytest.raises(InfeasibleError, match=rf"{allowed + 1} of {case.n} rows are not finite, but only {allowed} "):
        run(case, x)


def few_rows(case: Case) -> None:
    """Below the smallest n: the sentence. From there on: a value."""
    rule, ran = parse(case.rule), 0
    for n in range(1, case.n + 1):
        x = sample(case, n=n)
        sentence = rule.check(n)
        if sentence is None:
            assert_like_oracle(case, torch.from_numpy(x))
            ran += 1
            continue
        assert ran == 0, "a rule that fits n rows fits n + 1"
        assert sentence.startswith(tuple(name for name, _ in parse_chain(case.rule, "case")))
        assert f"got n={n}" in sentence
        with pytest.raises(InfeasibleError) as caught:
            run(case, x)
        assert str(caught.value) == sentence
    assert ran > 0


def one_column(case: Case) -> None:
    if case.layout:
        pytest.skip("the layout fixes the columns")
    for seed in range(3):
        x = sample(case, seed)[:, :1]
        if "reweighted" in case.rule:  # of an odd number of rows the median is unique
            x = x[: case.n - 1 + case.n % 2]
        if "geometric_median" not in case.rule or "reweighted" in case.rule:
            assert_like_oracle(case, torch.from_numpy(x))
            continue
        # On a line the point is not unique for even n; its objective is.
        counts = claims(case.n)
        rule = parse(case.rule)
        alpha = rule.weighing(case.n).shares(torch.from_numpy(counts)).numpy()
        value = run(case, x, counts=counts).value.numpy()
        reached = basic.summed_distance(x, value, alpha)
        if rule.start == "medoid":
            # The optimum lies at a row.
            assert reached <= min(basic.summed_distance(x, row, alpha) for row in x) * (1 + 1e-12)
        else:
            expected, _ = basic.geometric_median(x, iterations=rule.iterations, start=rule.start)
            np.testing.assert_allclose(value, expected, atol=1e-12)


def as_layers(case: Case, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """Cut rows into layers: those of the layout, else three of different shapes."""
    shapes = [s for _, s in case.layout] or [(2, 5), (columns(case) - 11,), (1,)]
    layers = []
    for row in x:
        pieces = torch.split(row, [math.prod(s) for s in shapes])
        layers.append([piece.reshape(s) for piece, s in zip(pieces, shapes, strict=True)])
    return layers


def run_layers(case: Case, rows, **more):
    layers = [Layer(name, tuple(shape)) for name, shape in case.layout]
    made = Rows.from_layers(rows, layout=layers, counts=claims(len(rows)), seed=0, **more)
    return parse(case.rule)(trusting(made))[0]


def mixed_types(case: Case) -> None:
    x = torch.from_numpy(sample(case)).half().double()  # representable in every type
    kinds = (torch.float16, torch.float32, torch.float64, torch.bfloat16)
    rows = as_layers(case, x)
    for i, row in enumerate(rows):
        for j in range(len(row)):
            row[j] = row[j].to(kinds[(i + j) % 4])
    exact = torch.stack([torch.cat([piece.double().flatten() for piece in row]) for row in rows])
    result, expected = run_layers(case, rows), run(case, exact)
    torch.testing.assert_close(result.value, expected.value, rtol=1e-9, atol=1e-9)
    assert run_layers(case, rows, dtype=torch.float32).value.dtype == torch.float32


def layers(case: Case) -> None:
    x = torch.from_numpy(sample(case))
    expected = run(case, x)
    result = run_layers(case, as_layers(case, x))
    torch.testing.assert_close(result.value, expected.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.weights, expected.weights, rtol=1e-9, atol=1e-9)


def reference(case: Case) -> None:
    # Weights near 5 in float32 and small updates: the difference is taken in float64, after the fact.
    model = torch.from_numpy(5 + sample(case, 7, n=1)).float()
    sent = model + 0.3 * torch.from_numpy(sample(case)).float()
    exact = sent.double() - model.double()
    received, base = as_layers(case, sent), as_layers(case, model)[0]
    kept = [piece.clone() for piece in base]
    result, expected = run_layers(case, received, reference=base), run(case, exact)
    torch.testing.assert_close(result.value, expected.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.weights, expected.weights, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(base, kept, strict=True))
    assert torch.equal(torch.cat([p.flatten() for p in received[0]]), sent[0])


def offset(case: Case) -> None:
    for size in (1e-3, 1e-4):
        for seed in range(2):
            x = torch.from_numpy(1 + size * sample(case, seed)).float()
            assert_like_oracle(case, x)


def outlier(case: Case) -> None:
    # The spread is that of the others: the one far row must not cost them their digits.
    for at in (0, case.n - 1):
        for base in (0.0, 1.0):
            x = base + 1e-2 * sample(case, at)
            spread = spread_of(np.delete(x, at, 0))
            x[at] += 1e4
            assert_like_oracle(case, torch.from_numpy(x), spread)


def mirrored(case: Case) -> None:
    # One row points the other way and has the median length: a Gram matrix may be centred there, far from the others.
    x = 1 + 1e-4 * sample(case)
    others = np.delete(x, 1, 0)
    x[1] = -others.mean(0) / np.linalg.norm(others.mean(0)) * np.median(np.linalg.norm(others, axis=1))
    assert_like_oracle(case, torch.from_numpy(x), spread_of(others))


def ties(case: Case) -> None:
    # Small integers: sums and squares are exact, so a tie is a tie, in the oracle too.
    for seed in range(4):
        rng = np.random.default_rng(seed)
        few = rng.integers(-3, 4, (max(2, case.n // 3), columns(case))).astype(float)
        assert_like_oracle(case, torch.from_numpy(few[rng.integers(0, len(few), case.n)]).float())
    zeros = run(case, torch.zeros(case.n, columns(case)))
    assert torch.equal(zeros.value, torch.zeros(columns(case)))
    assert bool(torch.isfinite(zeros.weights).all())


def round_trip(case: Case) -> None:
    rule = parse(case.rule)
    assert parse(str(rule)) == rule
    assert str(parse(str(rule))) == str(rule)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert dataclasses.is_dataclass(rule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.f = 99


def blocks(case: Case) -> None:
    wide = [(name, (*shape[:-1], 40 * shape[-1])) for name, shape in case.layout] or [("w", (900,)), ("b", (37,))]
    rng = np.random.default_rng(5)
    x = 0.3 + rng.standard_normal((case.n, sum(math.prod(s) for _, s in wide)))
    x = torch.from_numpy(x) / math.sqrt(x.shape[1] / 31)
    whole = wrap(case, x, layout=wide)
    expected = parse(case.rule)(whole)[0]
    assert len(list(whole.blocks())) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "BLOCK_ELEMENTS", 1)
        cut = wrap(case, x, layout=wide)
        result = parse(case.rule)(cut)[0]
        assert len(list(cut.blocks())) > 2
    torch.testing.assert_close(result.value, expected.value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.weights, expected.weights, rtol=1e-7, atol=1e-9)


def state(case: Case) -> None:
    rule, x = parse(case.rule), wrap(case, sample(case))
    before = rule.init()
    _, first = rule(x, before)
    assert before == rule.init()
    kept = {key: value.clone() for key, value in first.items()}
    (one, after), (two, _) = rule(x, first), rule(x, first)
    assert torch.equal(one.value, two.value)
    assert first.keys() == kept.keys() == after.keys()
    assert all(torch.equal(first[key], kept[key]) for key in kept)
    if first:  # a memory that changes nothing would be none
        assert not torch.equal(one.value, rule(x)[0].value)
    assert vars(rule) == vars(parse(case.rule))


PROPERTIES = {
    check.__name__: check
    for check in (
        blocks,
        determinism,
        few_rows,
        half,
        huge,
        layers,
        mirrored,
        mix,
        mixed_types,
        multiples,
        not_finite,
        offset,
        one_column,
        oracle,
        outlier,
        permutation,
        reference,
        resilience,
        round_trip,
        scale,
        scales,
        shape,
        state,
        ties,
        translation,
        unanimity,
    )
}


def suite():
    for case in CASES:
        for name in PROPERTIES:
            if name in ("huge", "multiples", "scales") and "resilience" in case.lacks:
                continue
            reason = case.lacks.get(name)
            marks = [pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)] if reason else []
            yield pytest.param(case, name, id=f"{name}-{case.rule}", marks=marks)


@pytest.mark.parametrize(("case", "name"), list(suite()))
def test_conforms(case: Case, name: str) -> None:
    PROPERTIES[name](case)


# -- rules that see rows through inner products alone ----------------------------------------------


def turned(case: Case, seed: int):
    """What a rule makes of rows in its second round, and of rows, state and trusted row turned about the origin."""
    rule, turn = parse(case.rule), torch.linalg.qr(torch.from_numpy(sample(case, 99, n=columns(case), offset=0)))[0]
    first, second = wrap(case, sample(case, seed)), wrap(case, sample(case, seed + 1))
    state = rule(first)[1]
    again = {key: value @ turn if key in rule.located else value for key, value in state.items()}
    other = wrap(case, second.slice(0, second.d) @ turn)
    other.trusted = second.trusted @ turn
    return rule(second, state)[0], rule(other, again)[0], turn


def same_when_turned(case: Case, seed: int) -> bool:
    plain, other, turn = turned(case, seed)
    alike = torch.allclose(plain.weights, other.weights, atol=1e-6)
    return alike and torch.allclose(plain.value @ turn, other.value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_isometric_rules_turn_with_their_rows_and_others_do_not(case: Case) -> None:
    if parse(case.rule).isometric:
        assert all(same_when_turned(case, seed) for seed in range(5))
        return
    same = [same_when_turned(case, seed) for seed in range(20)]
    # Where nothing is left out, all coordinates or such a member are drawn, a rule might as well be.
    alike = ("bulyan(f=0)", "dnc(f=1)", "dnc(f=2, c=1.5, iterations=1)", "dnc(f=3)", "mixtailor(f=2, seed=0)")
    if case.rule in alike:
        assert all(same)
    else:
        assert not all(same)


# -- what is remembered -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_state_holds_what_its_rule_says_that_it_remembers(case: Case) -> None:
    rule, state = parse(case.rule), None
    for seed in range(3):
        state = rule(wrap(case, sample(case, seed)), state)[1]
        assert set(state) <= set(rule.remembered)
    assert set(rule.located) <= set(rule.remembered)


# -- the cases themselves ------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.removeprefix("flwr_robust."))
def test_every_module_has_cases(module) -> None:
    assert getattr(module, "CASES", ())


@pytest.mark.parametrize("name", sorted([*aggregators.members(), *preaggregators.members()]))
def test_every_component_is_in_a_case_and_has_an_oracle(name: str) -> None:
    assert any(name == stage for case in CASES for stage, _ in parse_chain(case.rule, "case"))
    assert name in oracles.RULES or name in oracles.MIXERS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_exemptions_name_a_property_and_a_reason(case: Case) -> None:
    assert set(case.lacks) <= set(PROPERTIES)
    assert all(len(reason.split()) >= 3 for reason in case.lacks.values())


def test_cases_differ() -> None:
    assert len({(case.rule, case.n) for case in CASES}) == len(CASES)
