"""meamed: against its oracle on random shapes, and on small cases solved by hand."""

from __future__ import annotations

import pytest

from flwr_robust import aggregate
from tests.aggregators.problems import column, rows


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
