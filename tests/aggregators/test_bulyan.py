"""bulyan: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flwr_robust import InfeasibleError, Rows, aggregate, parse
from flwr_robust.aggregators.generalised_krum import squared_lp_distances
from flwr_robust.core.segments import Segments
from tests.aggregators.problems import assert_value, column, matrices
from tests.oracles import selections

quick = settings(deadline=None, max_examples=80)


@quick
@given(st.data(), st.sampled_from(["krum", "multi_krum", "faba", "median"]))
def test_bulyan_like_oracle(data, selection):
    x, _ = data.draw(matrices(3, 16, grid=False))
    f = data.draw(st.integers(0, (len(x) - 3) // 4))
    result = aggregate(torch.from_numpy(x), f"bulyan(f={f}, selection={selection!r})")
    chosen = selections.bulyan_selection(x, f, selection)
    # In few columns and with few neighbours two rows can tie on paper and be told apart by rounding.
    assume(result.stats["selected"] == chosen or x.shape[1] > 2)
    assert result.stats["selected"] == chosen
    assert_value(result, selections.bulyan(x, f, selection)[0], x)
    assert set(result.weights.nonzero().flatten().tolist()) <= set(chosen)


@quick
@given(matrices(7, 16, grid=True))
def test_bulyan_breaks_ties_like_oracle(problem):
    x, _ = problem
    f = (len(x) - 3) // 4
    result = aggregate(torch.from_numpy(x), f"bulyan(f={f})")
    assert result.stats["selected"] == selections.bulyan_selection(x, f)
    assert_value(result, selections.bulyan(x, f)[0], x)


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
    monkeypatch.setattr("flwr_robust.core.segments.BLOCK_ELEMENTS", 1)
    passes = []
    read = Segments.blocks

    def counted(self):
        passes.append(self.n)
        return read(self)

    monkeypatch.setattr(Segments, "blocks", counted)
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
    chosen = selections.bulyan_selection(x, f, selection)
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
