"""DnC: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flwr_robust import InfeasibleError, Rows, aggregate, parse
from flwr_robust.aggregators.dnc import draw_coordinates
from flwr_robust.seeds import torch_generator
from tests.aggregators.problems import assert_value, matrices, rows
from tests.oracles import selections

quick = settings(deadline=None, max_examples=80)


@quick
@given(st.data(), st.sampled_from([1.0, 0.5, 1.7]), st.integers(1, 4), st.sampled_from([3, 7, 10_000]))
def test_dnc_like_oracle(data, c, iterations, b):
    x, _ = data.draw(matrices(3, 20, grid=False))
    f = data.draw(st.integers(0, (len(x) - 1) // 2))
    if int(c * f + 1e-9) >= len(x) or (f and c * f < 1):
        return
    assume(x.shape[1] > 1)
    rule = f"dnc(f={f}, c={c}, iterations={iterations}, sub_dimension={b}, seed=5)"
    value, weights = selections.dnc(x, f, c, iterations, b, seed=5)
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
    with pytest.raises(InfeasibleError, match=r"got n=5, f=1, c=0\.9: raise c to 1"):
        aggregate(x, "dnc(f=1, c=0.9)")


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
    x = Rows.from_tensor(torch.randn(9, 50, generator=torch.Generator().manual_seed(0)), seed=0)
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
    result = aggregate(x, rule, seed=0)
    assert result.stats["fallback"] is True
    assert 0 < len(result.stats["kept"]) < 5  # not a silent mean
    np.testing.assert_allclose(result.weights, selections.dnc(x.numpy(), 2, 1.0, 60, 2)[1])
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


def test_dnc_above_its_default_number_of_coordinates():
    x = np.random.default_rng(3).standard_normal((9, 12_500))
    x[7:] += 0.5
    for draw in (0, 1):
        value, weights = selections.dnc(x, 2, seed=11, draw=draw)
        rows = Rows.from_tensor(torch.from_numpy(x), seed=11)
        result, state = parse("dnc(f=2)")(rows, {"draws": torch.tensor(draw)})
        np.testing.assert_allclose(result.weights, weights)
        np.testing.assert_allclose(result.value, value, atol=1e-12)
        assert int(state["draws"]) == draw + 1


def test_dnc_without_a_seed_looks_elsewhere_in_every_call():
    x = np.random.default_rng(0).standard_normal((9, 400))
    results = [aggregate(torch.from_numpy(x), "dnc(f=2, iterations=1, sub_dimension=5)") for _ in range(20)]
    assert len({tuple(result.stats["kept"]) for result in results}) > 3
