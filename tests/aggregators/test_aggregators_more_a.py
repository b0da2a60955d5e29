"""Rules around a centre, selections, subsets, clipped means, votes, directions: against oracles, and solved by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError, InfeasibleError, Rows, aggregate, parse
from flwr_robust.aggregators.dnc import draw_coordinates
from flwr_robust.aggregators.generalised_krum import squared_lp_distances
from flwr_robust.aggregators.minimum_diameter import densest_subset
from flwr_robust.kernels.nearest import nearest, squared_distances_to
from flwr_robust.seeds import torch_generator
from tests import oracles
from tests import oracles_more_a as more
from tests.aggregators.test_aggregators import assert_value, choose, column, matrices, rows

quick = settings(deadline=None, max_examples=80)


# -- the kernel: values nearest to a centre ------------------------------------------------------


@quick
@given(matrices(most=20), st.integers(0, 2**32 - 1), st.data())
def test_nearest_like_sorting_by_distance(problem, seed, data):
    x, grid = problem
    m = data.draw(st.integers(1, len(x)))
    spread = np.abs(x).max() or 1.0
    rng = np.random.default_rng(seed)
    # Centres on grid points, between them, and outside of all values.
    centre = (
        x[rng.integers(0, len(x), x.shape[1]), np.arange(x.shape[1])] if grid else rng.normal(0, spread, x.shape[1])
    )
    ordered = torch.from_numpy(np.sort(x, axis=0))
    kept = nearest(ordered, torch.from_numpy(centre), m)
    for j in range(x.shape[1]):
        assert kept[:, j].tolist() == sorted(sorted(x[:, j], key=lambda v: (abs(v - centre[j]), v))[:m])


@pytest.mark.parametrize(
    ("centre", "m", "expected"),
    [
        (4.5, 2, [4, 5]),
        (4.5, 3, [0, 4, 5]),  # 0 and 9 tie for the third place: the smaller
        (4.6, 3, [4, 5, 9]),
        (-7.0, 1, [0]),  # a centre outside of the values
        (90.0, 2, [5, 9]),
        (4.5, 4, [0, 4, 5, 9]),
    ],
)
def test_nearest_by_hand(centre, m, expected):
    assert nearest(column(0, 4, 5, 9), torch.tensor([centre]), m)[:, 0].tolist() == expected


@quick
@given(matrices(), st.integers(0, 2**32 - 1))
def test_distances_to_a_point_like_numpy(problem, seed):
    x, _ = problem
    point = x.mean(0) + np.random.default_rng(seed).standard_normal(x.shape[1])
    found = squared_distances_to(Rows.from_tensor(torch.from_numpy(x)).blocks(), torch.from_numpy(point))
    np.testing.assert_allclose(found, ((x - point) ** 2).sum(1), rtol=1e-12)


# -- MeaMed and Phocas ---------------------------------------------------------------------------


@quick
@given(st.data(), st.sampled_from(["meamed", "phocas"]))
def test_means_around_a_centre_like_oracle(data, name):
    x, _, f = choose(data, 1)
    result = aggregate(torch.from_numpy(x), f"{name}(f={f})")
    assert_value(result, more.RULES[name](x, f)[0], x)
    assert float(result.weights.sum()) == pytest.approx(1)
    assert bool((result.weights >= 0).all())


def test_meamed_by_hand():
    # Column 1: the median of 0, 1, 2, 10, 30 is 2; the 4 nearest are 2, 1, 0 and 10: 13 / 4. With f = 2 it is 0, 1, 2.
    # Column 2: the median of -9, -2, 0, 1, 8 is 0; the farthest is -9: 7 / 4. With f = 2 -9 and 8 go: -1 / 3.
    x = rows([10, -9], [0, 8], [2, 0], [30, 1], [1, -2])
    assert aggregate(x, "meamed(f=1)").value.tolist() == [3.25, 1.75]
    assert aggregate(x, "meamed(f=2)").value.tolist() == pytest.approx([1, -1 / 3])
    # f = 0 keeps everything.
    assert aggregate(x, "meamed(f=0)").value.tolist() == pytest.approx([8.6, -0.4])


def test_meamed_centre_is_the_mean_of_the_middle_two():
    # 0, 4, 5, 9: from 4.5 the values 0 and 9 are equally far, the smaller stays: 0, 4, 5. From the lower middle 4,
    # 0 is nearer than 9 anyway; from the upper middle 5, 9 is nearer, and the value would be 6.
    assert float(aggregate(column(0, 4, 5, 9), "meamed(f=1)").value) == 3
    # 0, 4, 5, 8.9: now 8.9 is nearer to 4.5, but not to 4. The lower middle would still give 3.
    assert float(aggregate(column(0, 4, 5, 8.9), "meamed(f=1)").value) == pytest.approx(17.9 / 3)


def test_phocas_by_hand():
    # Sorted 0, 1, 2, 12, 20: the trimmed mean of f = 1 is (1 + 2 + 12) / 3 = 5; the distances from it are
    # 5, 4, 3, 7, 15, so 20 goes: 15 / 4.
    x = column(2, 20, 0, 12, 1)
    assert float(aggregate(x, "phocas(f=1)").value) == 3.75
    # f = 2: the centre is the median 2; the three nearest are 0, 1, 2.
    assert float(aggregate(x, "phocas(f=2)").value) == 1


def test_phocas_and_meamed_differ_and_agree():
    # The median is 2, and 30.5 is the farthest from it. The trimmed mean is (1 + 2 + 30) / 3 = 11, and -9 is.
    x = column(-9, 1, 2, 30, 30.5)
    assert float(aggregate(x, "meamed(f=1)").value) == 24 / 4
    assert float(aggregate(x, "phocas(f=1)").value) == 63.5 / 4
    # With n = 2f + 1 or 2f + 2 both centres are the median.
    y = torch.randn(7, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(aggregate(y, "meamed(f=3)").value, aggregate(y, "phocas(f=3)").value)
    torch.testing.assert_close(aggregate(y[:6], "meamed(f=2)").value, aggregate(y[:6], "phocas(f=2)").value)


@pytest.mark.parametrize("rule", ["meamed(f=2)", "phocas(f=2)", "bulyan(f=2)"])
@pytest.mark.parametrize("size", [1e4, 1e8, 1e30])
def test_rules_around_a_centre_survive_far_rows(rule, size):
    honest = 1 + 1e-4 * np.random.default_rng(0).standard_normal((9, 20))
    x = np.vstack([honest, np.full((2, 20), size)])
    x[-1] *= -1
    for dtype in (torch.float32, torch.float64):
        value = aggregate(torch.from_numpy(x).to(dtype), rule).value.double().numpy()
        assert (value >= honest.min(0) - 1e-6).all()
        assert (value <= honest.max(0) + 1e-6).all()


@pytest.mark.parametrize("rule", ["meamed(f=1)", "phocas(f=1)"])
def test_rules_around_a_centre_do_not_subtract_what_they_leave_out(rule):
    # A running sum that held 1e30 would have no digits left for the others.
    assert float(aggregate(column(1e30, 0.1, 0.2, 0.3), rule).value) == pytest.approx(0.2, abs=1e-16)


def test_weights_around_a_centre_are_the_kept_shares():
    # Column 1 leaves out row 3, column 2 row 0; three rows of every column are kept.
    result = aggregate(rows([0, 50], [1, 1], [2, 2], [60, 0]), "meamed(f=1)")
    assert result.value.tolist() == [1, 1]
    np.testing.assert_allclose(result.weights, [1 / 6, 1 / 3, 1 / 3, 1 / 6])


# -- generalised Krum ----------------------------------------------------------------------------

NORMS = [1, 1.5, 2, 3, 16, "inf"]


@quick
@given(st.data(), st.sampled_from(NORMS))
def test_generalised_krum_like_oracle(data, p):
    x, _, f = choose(data, 3)
    scores = more.lp_scores(x, f, p)
    result = aggregate(torch.from_numpy(x), f"generalised_krum(f={f}, p={p!r})")
    chosen = int(result.weights.argmax())
    assert result.weights.tolist() == [float(i == chosen) for i in range(len(x))]
    assert result.value.tolist() == x[chosen].tolist()
    assert scores[chosen] <= min(scores) * (1 + 1e-9)
    np.testing.assert_allclose(result.stats["scores"], scores, rtol=1e-9, atol=1e-300)


@quick
@given(st.data(), st.sampled_from([1, 2, "inf"]))
def test_generalised_krum_breaks_ties_like_oracle(data, p):
    x, _ = data.draw(matrices(3, 15, grid=True))
    f = data.draw(st.integers(0, (len(x) - 3) // 2))
    result = aggregate(torch.from_numpy(x), f"generalised_krum(f={f}, p={p!r})")
    np.testing.assert_array_equal(result.weights, more.generalised_krum(x, f, p)[1])


def test_generalised_krum_with_p_2_is_krum():
    x = torch.randn(11, 40, generator=torch.Generator().manual_seed(1))
    assert aggregate(x, "generalised_krum(f=3)").stats == aggregate(x, "krum(f=3)").stats
    assert torch.equal(aggregate(x, "generalised_krum(f=3, p=2)").value, aggregate(x, "krum(f=3)").value)


def test_generalised_krum_norms_choose_differently():
    y = rows([0, 0], [3, 0], [-3, 0], [2, 42], [0, 40], [-2, 42])
    # n = 6, f = 1: three neighbours count, of which the third is across: rows 0 to 2 see 40, 42, 42 in the maximum.
    scores = {p: aggregate(y, f"generalised_krum(f=1, p={p!r})").stats["scores"] for p in (1, "inf")}
    # Row 0: 3, 3 and 40 to row 4 in both norms.
    assert scores[1][0] == scores["inf"][0] == 9 + 9 + 1600
    # Row 4: 4, 4 (sum) or 2, 2 (maximum), and 40 to row 0.
    assert scores[1][4] == 16 + 16 + 1600
    assert scores["inf"][4] == 4 + 4 + 1600
    assert aggregate(y, "generalised_krum(f=1, p=1)").value.tolist() == [0, 0]
    assert aggregate(y, "generalised_krum(f=1, p='inf')").value.tolist() == [0, 40]


@pytest.mark.parametrize("p", [1, 3, 16, 100, "inf"])
@pytest.mark.parametrize("size", [1e-200, 1e-30, 1.0, 1e30, 1e100])
def test_lp_distances_stay_in_range(p, size):
    # (1, 2, 2) and 0: the p-norm is (1 + 2 * 2^p)^(1/p); 2^-100 of digits below the power must not matter.
    x = size * np.array([[0.0, 0, 0], [1, 2, 2]])
    expected = 2.0 if p == "inf" else 2 * (2 + 0.5**p) ** (1 / p)
    found = squared_lp_distances(Rows.from_tensor(torch.from_numpy(x)), p)
    if size == 1e-200:
        assert torch.equal(found, torch.zeros(2, 2, dtype=torch.float64))  # the square leaves float64, to 0
        return
    np.testing.assert_allclose(found, (size * expected) ** 2 * np.array([[0, 1], [1, 0]]), rtol=1e-12)


def test_lp_distances_of_near_rows_beside_a_far_one():
    x = np.array([[1.0, 1], [1 + 1e-4, 1], [1e30, -1e30]])
    found = squared_lp_distances(Rows.from_tensor(torch.from_numpy(x)), 16)
    assert float(found[0, 1].sqrt()) == pytest.approx((1 + 1e-4) - 1, rel=1e-12)


def test_lp_distances_over_many_blocks(monkeypatch):
    x = torch.randn(6, 3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr("flwr_robust.core.rows.BLOCK_ELEMENTS", 1)
    cut = Rows.from_tensor(x)
    assert len(list(cut.blocks())) > 5
    for p in (1, 3.5, "inf"):
        expected = torch.cdist(x, x, p=math.inf if p == "inf" else float(p)).square()
        torch.testing.assert_close(squared_lp_distances(cut, p), expected, rtol=1e-10, atol=0)


# -- Bulyan --------------------------------------------------------------------------------------


@quick
@given(st.data(), st.sampled_from(["krum", "multi_krum", "faba", "median"]))
def test_bulyan_like_oracle(data, selection):
    x, _ = data.draw(matrices(3, 16, grid=False))
    f = data.draw(st.integers(0, (len(x) - 3) // 4))
    result = aggregate(torch.from_numpy(x), f"bulyan(f={f}, selection={selection!r})")
    chosen = more.bulyan_selection(x, f, selection)
    # In few columns and with few neighbours two rows can tie on paper and be told apart by rounding.
    assume(result.stats["selected"] == chosen or x.shape[1] > 2)
    assert result.stats["selected"] == chosen
    assert_value(result, more.bulyan(x, f, selection)[0], x)
    assert set(result.weights.nonzero().flatten().tolist()) <= set(chosen)


@quick
@given(matrices(7, 16, grid=True))
def test_bulyan_breaks_ties_like_oracle(problem):
    x, _ = problem
    f = (len(x) - 3) // 4
    result = aggregate(torch.from_numpy(x), f"bulyan(f={f})")
    assert result.stats["selected"] == more.bulyan_selection(x, f)
    assert_value(result, more.bulyan(x, f)[0], x)


def test_bulyan_by_hand():
    # n = 7, f = 1: select 5, keep 3 around their median. Krum of f = 1 on 7 looks at 4 neighbours:
    #   0: 1 + 4 + 9 + 36 = 50     1: 1 + 1 + 4 + 25 = 31     2: 1 + 1 + 4 + 16 = 22      3: 1 + 4 + 9 + 9 = 23
    #   6: 9 + 16 + 25 + 36 = 86   90 and 100: far           so 2 goes first.
    # On 0, 1, 3, 6, 90, 100 three neighbours count: 0: 1 + 9 + 36 = 46, 1: 1 + 4 + 25 = 30, 3: 4 + 9 + 9 = 22: 3.
    # On 0, 1, 6, 90, 100 two: 0: 1 + 36 = 37, 1: 1 + 25 = 26, 6: 25 + 36 = 61: 1.
    # On 0, 6, 90, 100 f is lowered to 0, two neighbours: 0: 36 + 8100, 6: 36 + 7056, 90: 100 + 7056: 6.
    # On 0, 90, 100 one neighbour: 90 and 100 tie at 100 and 90 comes first. Median of 1, 2, 3, 6, 90: 3; keep 1, 2, 3.
    result = aggregate(column(0, 1, 2, 3, 6, 90, 100), "bulyan(f=1)")
    assert result.stats["selected"] == [2, 3, 1, 4, 5]
    assert float(result.value) == 2
    np.testing.assert_allclose(result.weights, [0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0])


def test_bulyan_selection_gets_f_unless_it_names_one():
    x = torch.randn(11, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plain = aggregate(x, "bulyan(f=2)")
    assert plain.stats == aggregate(x, "bulyan(f=2, selection='krum(f=2)')").stats
    assert plain.stats != aggregate(x, "bulyan(f=2, selection='krum(f=0)')").stats
    other = """bulyan(f=2, selection="krum(variant='byzantine_momentum')")"""
    assert str(parse(other)) == other
    assert aggregate(x, other).stats != plain.stats


@pytest.mark.parametrize("inner", ["median", "geometric_median", "clip(c=0.5) | krum", "multi_krum", "cge", "phocas"])
def test_bulyan_selects_the_row_nearest_to_the_rules_value(inner):
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    result = aggregate(x, f"bulyan(f=2, selection={inner!r})")
    rule = {"median": "median", "geometric_median": "geometric_median"}.get(inner, f"{inner}(f=2)")
    first = aggregate(x, rule).value
    assert result.stats["selected"][0] == int((x - first).norm(dim=1).argmin())
    assert len(set(result.stats["selected"])) == 8


def test_bulyan_does_not_read_the_rows_again_for_krum(monkeypatch):
    x = torch.randn(19, 3000, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr("flwr_robust.core.rows.BLOCK_ELEMENTS", 1)
    passes = []
    read = Rows._unmixed_blocks

    def counted(self):
        passes.append(self.n)
        return read(self)

    monkeypatch.setattr(Rows, "_unmixed_blocks", counted)
    rule = parse("bulyan(f=4)")
    rule(Rows.from_tensor(x))
    with_selection = len(passes)
    passes.clear()
    parse("krum(f=4)")(Rows.from_tensor(x))
    assert with_selection <= len(passes) + 1


def test_bulyan_keeps_half_precision_out_of_the_selection():
    # In float16 the mean 1000.25 of rows 0 and 1 would round to 1000 and name row 0; row 1 is nearer.
    x = torch.tensor([[1000.0], [1000.5], [1000.5], [1000.5]]).half()
    exact = aggregate(x.double(), "bulyan(f=0, selection='mean')")
    assert torch.equal(aggregate(x, "bulyan(f=0, selection='mean')").weights, exact.weights)
    y = torch.tensor([[1000.0], [1000.5], [1001.0], [1000.5], [1002.0], [1004.0], [1001.5]]).half()
    selected = [aggregate(z, "bulyan(f=1, selection='median')").stats["selected"] for z in (y, y.double())]
    assert selected[0] == selected[1]


def test_bulyan_hands_on_the_state_of_its_selection():
    rule = parse("bulyan(f=1, selection='centered_clipping(tau=1.0)')")
    x = Rows.from_tensor(torch.randn(9, 4, generator=torch.Generator().manual_seed(6)))
    _, state = rule(x, rule.init())
    assert state["0.centre"].shape == (4,)


@quick
@given(
    st.data(),
    st.sampled_from(["krum", "mean", "generalised_krum(p=3)"]),
    st.sampled_from(["krum", "median", "generalised_krum(p=4)", "geometric_median"]),
)
def test_bulyan_aggregates_by_another_rule_like_oracle(data, selection, aggregation):
    x, _ = data.draw(matrices(3, 16, grid=False))
    f = data.draw(st.integers(0, (len(x) - 3) // 4))
    result = aggregate(torch.from_numpy(x), f"bulyan(f={f}, selection={selection!r}, aggregation={aggregation!r})")
    chosen = more.bulyan_selection(x, f, selection)
    assume(result.stats["selected"] == chosen or x.shape[1] > 2)
    assert result.stats["selected"] == chosen
    # The second phase is the rule on the rows selected, and nothing else.
    alone = aggregate(torch.from_numpy(x[sorted(chosen)]), parse(aggregation, f=f))
    assert torch.equal(result.value, alone.value)
    assert torch.equal(result.weights[sorted(chosen)], alone.weights)


def test_bulyans_aggregation_matters_and_keeps_its_state():
    x = torch.randn(11, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plain, other = aggregate(x, "bulyan(f=2)"), aggregate(x, "bulyan(f=2, aggregation='median')")
    assert plain.stats["selected"] == other.stats["selected"]
    assert not torch.equal(plain.value, other.value)
    assert torch.equal(other.value, aggregate(x[sorted(other.stats["selected"])], "median").value)
    rule = parse("bulyan(f=1, selection='centered_clipping(tau=1.0)', aggregation='centered_clipping(tau=2.0)')")
    rows_ = Rows.from_tensor(x)
    first, state = rule(rows_, rule.init())
    assert state.keys() == {"0.centre", "1.centre"}
    second, _ = rule(rows_, state)
    assert not torch.equal(first.value, second.value)


BULYAN_OF_NORM_3 = "bulyan(f=2, selection='generalised_krum(p=3)')"


def test_bulyan_reads_the_rows_once_for_a_krum_of_another_norm(monkeypatch):
    calls = []
    real = squared_lp_distances
    monkeypatch.setattr(
        "flwr_robust.aggregators.bulyan.squared_lp_distances", lambda rows, p: calls.append(p) or real(rows, p)
    )
    aggregate(torch.randn(11, 6, generator=torch.Generator().manual_seed(3)), BULYAN_OF_NORM_3)
    assert calls == [3]


def test_bulyan_passes_on_what_its_rules_need():
    assert not parse("bulyan(f=1)").needs_trust
    assert parse("bulyan(f=1, selection='monna')").needs_trust
    assert parse("bulyan(f=1, aggregation='monna')").needs_trust
    assert parse("bulyan(f=1)").check_layout([]) is None
    for phase in ("selection", "aggregation"):
        assert parse(f"bulyan(f=1, {phase}='lfighter')").check_layout([]).startswith("lfighter needs to know")


# -- minimum diameter ----------------------------------------------------------------------------


@quick
@given(matrices(1, 11), st.data())
def test_minimum_diameter_like_oracle(problem, data):
    x, _ = problem
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    result = aggregate(torch.from_numpy(x), f"minimum_diameter(f={f})")
    value, weights = more.minimum_diameter(x, f)
    kept = weights.nonzero()[0].tolist()
    assert result.stats["diameter"] ** 2 == pytest.approx(more.diameter(x, kept), rel=1e-9)
    if result.stats["kept"] != kept:  # rounding may tell two subsets apart whose diameters agree on paper
        assert x.shape[1] < 3
        return
    assert_value(result, value, x)
    np.testing.assert_allclose(result.weights, weights)


@quick
@given(matrices(1, 11, grid=True), st.data())
def test_minimum_diameter_breaks_ties_like_oracle(problem, data):
    x, _ = problem
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    result = aggregate(torch.from_numpy(x), f"minimum_diameter(f={f})")
    assert result.stats["kept"] == more.minimum_diameter(x, f)[1].nonzero()[0].tolist()


def test_minimum_diameter_by_hand():
    # Triples of 0, 1, 4, 5, 7: {4, 5, 7} spans 3, all others at least 4.
    result = aggregate(column(0, 1, 4, 5, 7), "minimum_diameter(f=2)")
    assert result.stats == {"kept": [2, 3, 4], "diameter": 3}
    assert float(result.value) == pytest.approx(16 / 3)
    # Quadruples: {0, 1, 4, 5} spans 5, {1, 4, 5, 7} spans 6.
    assert aggregate(column(0, 1, 4, 5, 7), "minimum_diameter(f=1)").stats["kept"] == [0, 1, 2, 3]
    assert float(aggregate(column(0, 1, 4, 5, 7), "minimum_diameter(f=0)").value) == pytest.approx(3.4)


def test_minimum_diameter_gives_ties_to_the_lowest_indices():
    # {0, 1, 2}, {1, 2, 3}, {2, 3, 4} all span 2. Reversed it is another subset, and another value.
    assert aggregate(column(0, 1, 2, 3, 4), "minimum_diameter(f=2)").stats["kept"] == [0, 1, 2]
    assert float(aggregate(column(0, 1, 2, 3, 4), "minimum_diameter(f=2)").value) == pytest.approx(1)
    assert float(aggregate(column(4, 3, 2, 1, 0), "minimum_diameter(f=2)").value) == pytest.approx(3)


@pytest.mark.parametrize(("n", "f"), [(41, 20), (60, 20), (300, 10), (1000, 3)])
def test_minimum_diameter_search_is_quick(n, f):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 8))
    x[:f] += 3  # colluders on the rim: the hardest to tell
    squared = torch.cdist(torch.from_numpy(x), torch.from_numpy(x)).square().fill_diagonal_(0)
    kept, spread = densest_subset((squared + squared.T) / 2, n - f)
    assert len(kept) == n - f
    assert spread <= float(squared[f:, f:].max().sqrt()) + 1e-12
    assert spread == pytest.approx(float(squared[kept][:, kept].max().sqrt()))


def test_minimum_diameter_refuses_a_search_that_may_not_end():
    rule = parse("minimum_diameter(f=21)")
    sentence = rule.check(100)
    assert sentence == (
        "minimum_diameter searches up to 2^f subsets, and maximum_subsets=1048576 allows f <= 20; got n=100, f=21: "
        "lower f, raise maximum_subsets, or take a rule without a search, such as faba"
    )
    with pytest.raises(InfeasibleError, match="maximum_subsets"):
        aggregate(torch.zeros(100, 2), rule)
    assert parse("minimum_diameter(f=20)").check(100) is None
    assert parse("minimum_diameter(f=21, maximum_subsets=2097152)").check(100) is None
    assert parse("minimum_diameter(f=3, maximum_subsets=7)").check(9).startswith("minimum_diameter searches")
    # Too few rows come first.
    assert "n >= 2f + 1; got n=42, f=21" in rule.check(42)


# -- MoNNA ---------------------------------------------------------------------------------------


@quick
@given(st.data(), st.integers(0, 2**32 - 1))
def test_monna_like_oracle(data, seed):
    x, _, f = choose(data, 1)
    trusted = x[0] + np.random.default_rng(seed).integers(-2, 3, x.shape[1]) * (np.abs(x).max() or 1)
    result = aggregate(torch.from_numpy(x), f"monna(f={f})", trusted=torch.from_numpy(trusted))
    value, weights = more.monna(x, f, trusted)
    away = np.sort(((x - trusted) ** 2).sum(1))
    assume(f == 0 or away[-f] > away[-f - 1] * (1 + 1e-12))  # ties have their own test
    np.testing.assert_allclose(result.weights, weights)
    assert_value(result, value, x)


def test_monna_by_hand():
    # From 3: distances 3, 1, 2, 4, 17. The mean of the nearest three: (0 + 2 + 5) / 3.
    x = column(0, 2, 5, 7, 20)
    near = aggregate(x, "monna(f=2)", trusted=torch.tensor([3.0]))
    assert float(near.value) == pytest.approx(7 / 3)
    assert near.stats["kept"] == [0, 1, 2]
    assert near.stats["distances"] == [3, 1, 2, 4, 17]
    # From 20 it follows the trusted row, however lonely.
    assert float(aggregate(x, "monna(f=2)", trusted=torch.tensor([20.0])).value) == pytest.approx(32 / 3)
    # From 3.5: 0 and 7 tie for the third place; the lower index stays.
    assert aggregate(x, "monna(f=2)", trusted=torch.tensor([3.5])).stats["kept"] == [0, 1, 2]
    # Row 0 as its own pivot, as every node does it in the paper.
    assert aggregate(x, "monna(f=2)", trusted=x[0]).stats["kept"] == [0, 1, 2]


def test_monna_says_what_it_needs():
    with pytest.raises(ConfigurationError, match=r"pass trusted=\.\.\., .* of shape \(2,\)"):
        aggregate(torch.zeros(3, 2), "monna(f=1)")
    with pytest.raises(ConfigurationError, match="finite"):
        aggregate(torch.zeros(3, 2), "monna(f=1)", trusted=torch.tensor([0, math.nan]))
    with pytest.raises(ConfigurationError, match=r"shape \(2,\); got \(3,\)"):
        aggregate(torch.zeros(3, 2), "monna(f=1)", trusted=torch.zeros(3))


def test_monna_keeps_the_trusted_row_when_others_are_left_out():
    x = rows([0, 0], [1, 1], [math.nan, 0], [50, 50], [2, 2])
    result = aggregate(x, "monna(f=2)", trusted=torch.tensor([1.0, 1.0]))
    assert result.value.tolist() == [1, 1]
    np.testing.assert_allclose(result.weights, [1 / 3, 1 / 3, 0, 0, 1 / 3])


# -- clipped means -------------------------------------------------------------------------------


@quick
@given(matrices(), st.sampled_from([0.01, 0.7, 5.0]))
def test_clipped_means_like_oracle(problem, c):
    x, _ = problem
    c *= float(np.linalg.norm(x, axis=1).max()) or 1.0
    for rule, (value, weights) in {
        f"norm_bound(c={c!r})": more.norm_bound(x, c),
        "clip_mean": more.clip_mean(x),
    }.items():
        result = aggregate(torch.from_numpy(x), rule)
        assert_value(result, value, x)
        np.testing.assert_allclose(result.weights, weights, rtol=1e-9)
    bounded = aggregate(torch.from_numpy(x), f"clip(c={c!r}) | mean")
    torch.testing.assert_close(aggregate(torch.from_numpy(x), f"norm_bound(c={c!r})").value, bounded.value)


def test_clip_mean_by_hand():
    # Norms 5, 1, 2: the median is 2, so (3, 4) becomes (1.2, 1.6).
    result = aggregate(rows([3, 4], [0, 1], [-2, 0]), "clip_mean")
    np.testing.assert_allclose(result.value, [-0.8 / 3, 2.6 / 3])
    np.testing.assert_allclose(result.weights, [0.4 / 3, 1 / 3, 1 / 3])
    assert result.stats == {"bound": 2, "clipped": [0]}
    # Norms 5, 1, 2, 0: the mean of the middle two, 1.5; the zero row stays what it is.
    result = aggregate(rows([3, 4], [0, 1], [-2, 0], [0, 0]), "clip_mean")
    np.testing.assert_allclose(result.value, [(0.9 - 1.5) / 4, 2.2 / 4])
    # When the median is zero nothing is left of the others.
    assert aggregate(rows([3, 4], [0, 0], [0, 0]), "clip_mean").value.tolist() == [0, 0]


def test_norm_bound_by_hand():
    result = aggregate(rows([3, 4], [0, 1], [-2, 0]), "norm_bound(c=1.0)")
    np.testing.assert_allclose(result.value, [(0.6 - 1) / 3, 1.8 / 3])
    assert result.stats == {"bound": 1, "clipped": [0, 2]}


@pytest.mark.parametrize("rule", ["clip_mean", "norm_bound(c=1.5)"])
@pytest.mark.parametrize("size", [1e8, 1e30])
def test_clipped_means_bound_what_far_rows_do(rule, size):
    # Three of ten rows have at most 3/10 of the clipped length; the plain mean is carried away.
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((7, 30))
    honest /= np.linalg.norm(honest, axis=1, keepdims=True)
    x = np.vstack([honest, np.full((3, 30), size)])
    limit = 1.0 if rule == "clip_mean" else 1.5
    moved = aggregate(torch.from_numpy(x), rule).value.numpy() - honest.sum(0) / 10
    assert np.linalg.norm(moved) == pytest.approx(0.3 * limit)
    assert float(aggregate(torch.from_numpy(x), "mean").value.norm()) > 1e7


# -- comparative gradient elimination ------------------------------------------------------------


@quick
@given(st.data())
def test_cge_like_oracle(data):
    x, _, f = choose(data, 1)
    lengths = np.sort((x**2).sum(1))
    assume(f == 0 or lengths[-f] > lengths[-f - 1] * (1 + 1e-12) or lengths[-f] == lengths[-f - 1])
    result = aggregate(torch.from_numpy(x), f"cge(f={f})")
    value, weights = more.cge(x, f)
    np.testing.assert_allclose(result.weights, weights)
    assert_value(result, value, x)


def test_cge_by_hand():
    # Norms 5, 1, 2, 3, 13.
    x = rows([3, 4], [0, 1], [-2, 0], [0, -3], [5, 12])
    assert aggregate(x, "cge(f=1)").value.tolist() == [0.25, 0.5]
    result = aggregate(x, "cge(f=2)")
    np.testing.assert_allclose(result.value, [-2 / 3, -2 / 3])
    assert result.stats["kept"] == [1, 2, 3]
    # Equal norms: the highest index goes.
    assert aggregate(rows([1, 0], [0, 1], [-1, 0]), "cge(f=1)").stats["kept"] == [0, 1]


def test_cge_does_not_see_directions():
    # What the docstring admits: a short row is kept, wherever it points; Krum-like rules would drop it.
    x = column(1, 1.1, 1.2, -0.9, 1.3)
    assert float(aggregate(x, "cge(f=1)").value) == pytest.approx((1 + 1.1 + 1.2 - 0.9) / 4)
    assert float(aggregate(x, "faba(f=1)").value) == pytest.approx(1.15)


# -- majority of signs ---------------------------------------------------------------------------


@quick
@given(matrices(), st.sampled_from([1.0, 0.125, 1e-3]))
def test_sign_majority_like_oracle(problem, scale):
    x, _ = problem
    result = aggregate(torch.from_numpy(x), f"sign_majority(scale={scale})")
    np.testing.assert_array_equal(result.value, more.sign_majority(x, scale)[0])
    assert float(result.weights.sum()) == pytest.approx(1)


def test_sign_majority_by_hand():
    # Column 1: two against one. 2: one each, and an abstention: 0. 3: a zero abstains, one vote decides. 4: all zero.
    x = rows([1e30, 5, 0, 0], [-0.1, -7, 0, 0], [-1e-30, 0, -3, 0])
    result = aggregate(x, "sign_majority(scale=0.5)")
    assert result.value.tolist() == [-0.5, 0, -0.5, 0]
    # Column 1 is shared by rows 1 and 2, column 3 is row 2's, columns 2 and 4 are everybody's.
    np.testing.assert_allclose(result.weights, [(2 / 3) / 4, (1 / 2 + 2 / 3) / 4, (1 / 2 + 1 + 2 / 3) / 4])


def test_sign_majority_does_not_see_lengths():
    honest = np.full((6, 5), 1e-4)
    x = torch.from_numpy(np.vstack([honest, np.full((5, 5), -1e30)]))
    assert aggregate(x, "sign_majority").value.tolist() == [1.0] * 5
    assert aggregate(torch.cat([x, x[-1:], x[-1:]]), "sign_majority").value.tolist() == [-1.0] * 5


# -- divide and conquer --------------------------------------------------------------------------


@quick
@given(st.data(), st.sampled_from([1.0, 0.5, 1.7]), st.integers(1, 4), st.sampled_from([3, 7, 10_000]))
def test_dnc_like_oracle(data, c, iterations, b):
    x, _ = data.draw(matrices(3, 20, grid=False))
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    if int(c * f + 1e-9) >= len(x):
        return
    assume(x.shape[1] > 1)
    rule = f"dnc(f={f}, c={c}, iterations={iterations}, sub_dimension={b}, seed=5)"
    value, weights = more.dnc(x, f, c, iterations, b, seed=5)
    result = aggregate(torch.from_numpy(x), rule)
    np.testing.assert_allclose(result.weights, weights)
    assert_value(result, value, x)


def test_dnc_by_hand():
    # The mean is (0, 1); minus it the rows are (3, 0), (-3, 0), (1, -1), (-1, 1), (0, 0). Their scatter is
    # [[20, -2], [-2, 2]], the top direction nearly the first axis: rows 0 and 1 go, whatever c f up to 2 drops first.
    x = rows([3, 1], [-3, 1], [1, 0], [-1, 2], [0, 1])
    result = aggregate(x, "dnc(f=2)")
    assert result.stats == {"kept": [2, 3, 4], "fallback": False}
    np.testing.assert_allclose(result.value, [0, 1], atol=1e-15)
    # c = 0.5 drops one of the two, which tie: the higher index goes.
    assert aggregate(x, "dnc(f=2, c=0.5)").stats["kept"] == [0, 2, 3, 4]
    # c f = 1.9 is floored.
    assert aggregate(x, "dnc(f=1, c=1.9)").stats["kept"] == [0, 2, 3, 4]
    assert aggregate(x, "dnc(f=1, c=0.9)").stats["kept"] == [0, 1, 2, 3, 4]


def test_dnc_scores_are_the_squared_projections():
    x = np.random.default_rng(1).standard_normal((9, 40))
    y = x - x.mean(0)
    direction = np.linalg.svd(y, full_matrices=False)[2][0]
    expected = sorted(np.argsort((y @ direction) ** 2)[:6].tolist())
    assert aggregate(torch.from_numpy(x), "dnc(f=3)").stats["kept"] == expected


def test_dnc_finds_colluders_that_no_coordinate_shows():
    # Each coordinate of the three is less than two deviations off; along their common direction they are far out.
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((17, 500))
    x = np.vstack([honest, honest.mean(0) - 1.5 * honest.std(0) + 0.01 * rng.standard_normal((3, 500))])
    assert aggregate(torch.from_numpy(x), "dnc(f=3)").stats["kept"] == list(range(17))
    assert aggregate(torch.from_numpy(x), "dnc(f=3, sub_dimension=100)").stats["kept"] == list(range(17))


def test_dnc_draws_afresh_every_round_and_repeats():
    x = Rows.from_tensor(torch.randn(9, 50, generator=torch.Generator().manual_seed(0)))
    rule = parse("dnc(f=2, iterations=1, sub_dimension=5)")
    first, state = rule(x, rule.init())
    again, _ = rule(x, rule.init())
    assert first.stats == again.stats
    kept = [first.stats["kept"]]
    for _ in range(5):
        result, state = rule(x, state)
        kept.append(result.stats["kept"])
    assert int(state["draws"]) == 6
    assert len({tuple(k) for k in kept}) > 1
    other = parse("dnc(f=2, iterations=1, sub_dimension=5, seed=1)")
    assert len({tuple(r(x)[0].stats["kept"]) for r in (rule, other)}) == 2
    # All coordinates: nothing is drawn, nothing is counted.
    assert parse("dnc(f=2)")(x)[1] == {}


def test_dnc_says_when_no_row_is_kept_every_time():
    # Every coordinate belongs to one row; which rows stand out depends on the coordinates drawn.
    x = torch.diag(torch.arange(10.0, 15.0, dtype=torch.float64))
    rule = "dnc(f=2, iterations=60, sub_dimension=2)"
    result = aggregate(x, rule)
    assert result.stats["fallback"] is True
    assert 0 < len(result.stats["kept"]) < 5  # not a silent mean
    np.testing.assert_allclose(result.weights, more.dnc(x.numpy(), 2, 1.0, 60, 2)[1])
    assert aggregate(x, "dnc(f=2, iterations=1, sub_dimension=2)").stats["fallback"] is False


@pytest.mark.parametrize(("d", "b"), [(10, 10), (10, 3), (100, 5), (10**12, 40), (21, 5), (20, 5)])
def test_drawn_coordinates_are_distinct_and_ascending(d, b):
    drawn = draw_coordinates(torch_generator(0, "test"), d, b).tolist()
    assert len(drawn) == b
    assert drawn == sorted(set(drawn))
    assert 0 <= drawn[0] <= drawn[-1] < d


def test_drawn_coordinates_are_uniform():
    generator, counts = torch_generator(0, "test"), torch.zeros(21)
    for _ in range(4000):
        counts[draw_coordinates(generator, 21, 5)] += 1
    # 4000 * 5 / 21 = 952 each, with a deviation of 27.
    assert float((counts - 4000 * 5 / 21).abs().max()) < 5 * 27


@pytest.mark.parametrize("size", [1e8, 1e30])
def test_dnc_drops_far_rows(size):
    honest = 1 + 1e-3 * np.random.default_rng(0).standard_normal((7, 40))
    x = np.vstack([honest, np.full((2, 40), size)])
    for rule in ("dnc(f=2)", "dnc(f=2, sub_dimension=8)"):
        result = aggregate(torch.from_numpy(x), rule)
        assert result.stats["kept"] == list(range(7))
        np.testing.assert_allclose(result.value, honest.mean(0))


# -- the fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bulyan(f=-1)", "bulyan: f must be an integer >= 0; got f=-1"),
        ("bulyan(f=1, selection='crumb')", "unknown aggregator 'crumb'"),
        ("bulyan(f=1, selection='krum(g=1)')", "unknown field of krum 'g'"),
        ("bulyan(f=1, selection='krum | clip(c=1.0)')", "pre-aggregator"),
        ("bulyan(f=1, selection='')", "bulyan: selection must be a defence string; got selection=3"),
        ("bulyan(f=1, selection=3)", "bulyan: selection must be a defence string; got selection=3"),
        ("bulyan(f=1, selection='norm_bound')", "norm_bound: c must be given"),
        ("bulyan(f=1, aggregation='crumb')", "unknown aggregator 'crumb'"),
        ("bulyan(f=1, aggregation='')", "bulyan's aggregation: expected text"),
        ("cge(f=0.5)", "cge: f must be an integer >= 0; got f=0.5"),
        ("clip_mean(f=-2)", "clip_mean: f must be"),
        ("dnc(f=-1)", "dnc: f must be"),
        ("dnc(f=1, c=0)", "dnc: c must be a finite number and > 0; got c=0"),
        ("dnc(f=1, iterations=0)", "iterations must be an integer >= 1"),
        ("dnc(f=1, sub_dimension=0)", "sub_dimension must be an integer >= 1"),
        ("dnc(f=1, seed=-1)", "seed must be an integer >= 0"),
        ("generalised_krum(f=-1)", "generalised_krum: f must be"),
        ("generalised_krum(f=1, p=0.5)", "p must be 'inf' or a finite number and >= 1 and <= 100; got p=0.5"),
        ("generalised_krum(f=1, p=1e999)", "finite"),
        ("generalised_krum(f=1, p='max')", "'inf'.*got .*'max'"),
        ("meamed(f=True)", "meamed: f must be an integer"),
        ("minimum_diameter(f=-1)", "minimum_diameter: f must be"),
        ("minimum_diameter(f=1, maximum_subsets=0)", "maximum_subsets must be an integer >= 1"),
        ("monna(f='1')", "monna: f must be"),
        ("norm_bound(c=0)", "norm_bound: c must be a finite number and > 0; got c=0"),
        ("norm_bound(c=1.0, f=-1)", "norm_bound: f must be"),
        ("norm_bound", "norm_bound: c must be given"),
        ("phocas(f=-1)", "phocas: f must be"),
        ("sign_majority(scale=-1)", "sign_majority: scale must be a finite number and > 0"),
        ("sign_majority(f=-1)", "sign_majority: f must be"),
    ],
)
def test_fields_outside_their_bounds_are_refused(text, words):
    with pytest.raises(ConfigurationError, match=words):
        parse(text)


@pytest.mark.parametrize(
    ("text", "smallest", "condition"),
    [
        ("meamed(f=2)", 5, r"n >= 2f \+ 1"),
        ("phocas(f=2)", 5, r"n >= 2f \+ 1"),
        ("generalised_krum(f=2, p=3)", 7, r"n >= 2f \+ 3"),
        ("bulyan(f=2)", 11, r"n >= 4f \+ 3"),
        ("bulyan(f=1, selection='multi_krum')", 7, r"n >= 4f \+ 3"),
        ("minimum_diameter(f=2)", 5, r"n >= 2f \+ 1"),
        ("monna(f=2)", 5, r"n >= 2f \+ 1"),
        ("clip_mean(f=2)", 5, r"n >= 2f \+ 1"),
        ("norm_bound(c=1.0, f=2)", 5, r"n >= 2f \+ 1"),
        ("cge(f=2)", 5, r"n >= 2f \+ 1"),
        ("sign_majority(f=2)", 5, r"n >= 2f \+ 1"),
        ("dnc(f=2)", 5, r"n >= 2f \+ 1"),
        ("dnc(f=2, c=3.0)", 7, "n > c f"),
    ],
)
def test_smallest_number_of_rows(text, smallest, condition):
    rule, trusted = parse(text), torch.zeros(3)
    assert rule.check(smallest) is None
    aggregate(torch.randn(smallest, 3, generator=torch.Generator().manual_seed(0)), rule, trusted=trusted)
    assert f"got n={smallest - 1}" in rule.check(smallest - 1)
    with pytest.raises(InfeasibleError, match=condition):
        aggregate(torch.zeros(smallest - 1, 3), rule, trusted=trusted)


def test_bulyan_says_that_its_selection_does_not_fit():
    sentence = parse("bulyan(f=1, selection='multi_krum(m=4)')").check(9)
    assert sentence.startswith(
        "bulyan: its selection rule selects from as few as 2f + 1 = 3 rows, but multi_krum needs"
    )
    with pytest.raises(InfeasibleError, match="multi_krum"):
        aggregate(torch.zeros(9, 2), "bulyan(f=1, selection='multi_krum(m=4)')")


def test_bulyan_says_that_its_aggregation_does_not_fit():
    sentence = parse("bulyan(f=1, aggregation='krum(f=3)')").check(9)
    assert sentence.startswith(
        "bulyan: its aggregation rule gets the n - 2f = 7 rows selected, but krum needs n >= 2f + 3; got n=7, f=3"
    )
    assert parse("bulyan(f=1, aggregation='krum(f=2)')").check(9) is None


def test_oracles_agree_with_the_first_ones():
    # The two sets of oracles meet where the definitions do.
    x = np.random.default_rng(0).standard_normal((9, 5))
    np.testing.assert_allclose(more.meamed(x, 0)[0], oracles.mean(x)[0])
    np.testing.assert_allclose(more.phocas(x, 0)[0], oracles.mean(x)[0])
    np.testing.assert_allclose(more.norm_bound(x, 1e9)[0], oracles.mean(x)[0])
    for f, p in itertools.product((0, 2), (2, 2.0)):
        np.testing.assert_allclose(more.generalised_krum(x, f, p)[0], oracles.krum(x, f)[0])
        assert best_of(more.lp_scores(x, f, 2)) == best_of(oracles.krum_scores(x, f))


def best_of(scores):
    return scores.index(min(scores))
