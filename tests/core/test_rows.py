"""Rows over a storage of somebody's own; distances of mixed rows; what Rows refuses and how it reads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flwr_robust import ConfigurationError, Layer, Rows, Shard, aggregate
from flwr_robust.core.storage import Storage


class Chunks(Storage):
    """A storage with the least that one must have: float64 rows, handed out three columns at a time."""

    def __init__(self, x):
        super().__init__(*x.shape)
        self.x = x

    def blocks(self):
        for start in range(0, self.d, 3):
            yield start, self.x[:, start : start + 3]

    def slice(self, start, stop, mixing=None):
        cut = self.x[:, start:stop]
        return cut if mixing is None else mixing @ cut

    def subset(self, keep):
        return Chunks(self.x[keep])

    def with_row(self, row):
        return Chunks(torch.cat([self.x, row[None].double()]))


@pytest.mark.parametrize(
    "rule",
    [
        "mean",
        "krum(f=2)",
        "median",
        "meamed(f=2)",
        "signguard",
        "geometric_median()",
        "centered_clipping(tau=1.0)",
        "monna(f=2)",
        "nnm(f=2) | trimmed_mean(f=2)",
        "clip(c=0.5) | krum(f=2)",
    ],
)
def test_rules_read_any_storage(rule):
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[3] = math.nan
    x[4] = x[5]
    trusted = x[0] / 2
    result = aggregate(Rows(Chunks(x), torch.float64, trusted=trusted, seed=0), rule)
    whole = aggregate(x, rule, trusted=trusted, seed=0)
    np.testing.assert_allclose(result.value, whole.value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.weights, whole.weights, rtol=1e-9, atol=1e-12)
    assert result.stats["not_finite"] == [3]


def test_every_question_has_the_answer_that_segments_give():
    x = torch.randn(6, 25, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mixing = torch.rand(4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for matrix in (None, mixing):
        plain, own = Rows.from_tensor(x), Rows(Chunks(x), torch.float64)
        one, two = (plain, own) if matrix is None else (plain.mixed(matrix), own.mixed(matrix))
        assert one.n == two.n == (6 if matrix is None else 4)
        for ask in (
            lambda r: r.spread(),
            lambda r: r.squared_norms,
            lambda r: r.squared_distances,
            lambda r: r.against(x[0]),
            lambda r: r.window_mean(1, 3)[0],
            lambda r: r.window_mean(1, 3, 2)[1],
            lambda r: r.slice(4, 9),
            lambda r: r.mix(torch.arange(r.n, dtype=torch.float64)),
            lambda r: r.with_row(x[1]).squared_norms,
        ):
            torch.testing.assert_close(ask(one), ask(two))
        built = Rows(Chunks(x), torch.float64, mixing=matrix)
        torch.testing.assert_close(built.squared_distances, two.squared_distances)


def test_saturation_is_everywhere_the_same():
    x = torch.full((3, 4), 1e300, dtype=torch.float64)
    rows = Rows(Chunks(x), torch.float32)
    assert rows.mix(torch.full((3,), 1 / 3, dtype=torch.float64)).tolist() == [torch.finfo(torch.float32).max] * 4


def test_distances_of_mixed_rows_keep_their_digits_when_their_products_cancel():
    # Rows 0 to 2 are scaled to one another but for 1e-9 in one coordinate. Their products about row 0 are nothing but
    # the rounding of the large products that they are sums of, in which the true distance 1e-18 has no digit.
    base = np.random.default_rng(3).standard_normal(50)
    for far in (1.0, 1e3):
        x = torch.from_numpy(np.vstack([base, 3 * base, 0.1 * base, far * base[::-1]]))
        x[1, 7] += 3e-9
        scaled = Rows.from_tensor(x).mixed(torch.diag(torch.tensor([1, 1 / 3, 10, 1 / far], dtype=torch.float64)))
        found = scaled.squared_distances
        assert float(found[0, 1]) == pytest.approx(1e-18, rel=1e-5)
        assert float(found[1, 2]) == pytest.approx(1e-18, rel=1e-5)
        assert float(found[0, 2]) < 1e-28
        assert float(found[0, 3]) == pytest.approx(float(np.sum((base - base[::-1]) ** 2)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"counts": ["1", "2"]}, "counts must be numbers, one per row; got list"),
        ({"counts": "12"}, "counts must be numbers, one per row; got str '12'"),
        ({"counts": [None, 1]}, "counts must be numbers"),
        ({"counts": [[1], [1, 2]]}, "counts must be numbers"),
        ({"counts": [True, False]}, "counts must be numbers"),
        ({"counts": torch.ones(2, dtype=torch.complex64)}, "counts must be numbers.* got a tensor of torch.complex64"),
        ({"counts": torch.ones(2).to_sparse()}, "counts must be numbers"),
        ({"counts": [1.0]}, r"counts must hold one number per row, 2; got shape \(1,\)"),
        ({"asked": "3"}, "asked must be an integer, at least the number of rows, 2; got asked='3'"),
        ({"asked": 1}, "got asked=1"),
        ({"asked": True}, "got asked=True"),
        ({"asked": 2.5}, "got asked=2.5"),
        ({"trusted": [1.0, 2.0, 3.0]}, r"trusted row must be a floating-point tensor of shape \(3,\); got list"),
        ({"trusted": torch.ones(3).to_sparse()}, "got a tensor of layout sparse_coo: pass x.to_dense"),
    ],
)
def test_what_goes_with_rows_is_checked(given, words):
    with pytest.raises(ConfigurationError, match=words):
        Rows.from_tensor(torch.zeros(2, 3), **given)


@pytest.mark.parametrize("counts", [[1, 2], (1.0, 2.0), np.array([1, 2], dtype=np.uint8), torch.tensor([1, 2])])
def test_counts_of_any_numbers(counts):
    rows = Rows.from_tensor(torch.zeros(2, 3), counts=counts, asked=np.int64(4))
    assert rows.counts.dtype == torch.float64
    assert rows.counts.tolist() == [1, 2]
    assert rows.asked == 4


def test_repr_is_one_short_line():
    rows = Rows.from_tensor(torch.zeros(5, 7000), asked=6, counts=[1] * 5, layout=[Layer("w", (70, 100))])
    assert repr(rows) == "Rows(n=5, d=7000, float32, asked=6, layers=1, counted)"
    assert repr(rows.mixed(torch.ones(2, 5, dtype=torch.float64))).count("mixed from 5") == 1


def test_mixed_rows_are_no_shard():
    rows = Rows.from_tensor(torch.ones(3, 4))
    assert Shard(rows).describe() == (3, 4, torch.float32)
    with pytest.raises(ConfigurationError, match="rows must be unmixed; got Rows"):
        Shard(rows.mixed(torch.ones(1, 3, dtype=torch.float64)))


@pytest.mark.parametrize(("row", "found"), [(torch.ones(2), r"shape \(2,\)"), ([1.0, 2.0, 3.0], "list")])
def test_a_row_that_is_added_must_fit(row, found):
    with pytest.raises(ConfigurationError, match=rf"must be a tensor of shape \(3,\); got {found}"):
        Rows.from_tensor(torch.ones(2, 3)).with_row(row)
    assert Rows.from_tensor(torch.ones(2, 3)).with_row(torch.zeros(3)).n == 3


def test_the_seed_goes_along():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = Rows.from_tensor(x, seed=7)
    made = [rows.mixed(torch.eye(5, dtype=torch.float64)), rows.subset(torch.arange(5) < 3), rows.with_row(x[0])]
    made += [rows.embedded(), rows.renewed(), Rows.from_layers(list(x[:, None]), seed=7), Rows.from_stacks([x], seed=7)]
    assert [each.seed for each in made] == [7] * 7
    assert Rows.from_tensor(x).seed is None
