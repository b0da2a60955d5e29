"""phocas: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

from flwr_robust import aggregate
from tests.aggregators.problems import column


def test_phocas_by_hand():
    # Sorted 0, 1, 2, 12, 20: the trimmed mean of f = 1 is (1 + 2 + 12) / 3 = 5; the distances from it are
    # 5, 4, 3, 7, 15, so 20 goes: 15 / 4.
    x = column(2, 20, 0, 12, 1)
    assert float(aggregate(x, "phocas(f=1)").value) == 3.75
    # f = 2: the centre is the median 2; the three nearest are 0, 1, 2.
    assert float(aggregate(x, "phocas(f=2)").value) == 1
