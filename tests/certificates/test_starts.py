"""Starts of the search: shapes, the honest rows first, the families and attacks that must be among them."""

import numpy as np
import pytest

from flwr_robust import parse
from flwr_robust.attacks.message.base import message_attacks
from flwr_robust.certificates import starts
from flwr_robust.certificates.starts import agreeing, attacked, clustered


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_all_starts_are_finite_rows(k):
    rng = np.random.default_rng(0)
    found = [*agreeing(10, 2, k), *clustered(10, 2, k, rng), *attacked(parse("krum(f=2)"), 10, 2, k, rng)]
    assert len(found) > 100
    assert all(rows.shape == (10, k) and np.isfinite(rows).all() for rows in found)


def test_where_honest_rows_agree_some_faulty_one_differs():
    for rows in agreeing(9, 2, 2):
        assert (rows[:7] == rows[0]).all()
        assert (rows[7:] != rows[0]).any()


def test_the_worst_cases_of_the_proofs_are_among_them():
    """Two clusters for the trimmed mean; three with a mirror image for the mean around a centre."""
    n, f = 20, 4
    found = list(clustered(n, f, 1, np.random.default_rng(0)))
    assert found[0][:, 0].tolist() == [0.0] * 12 + [1.0] * 4 + [0.0] * 4  # what no rule escapes
    two = np.array([[0.0]] * f + [[1.0]] * (n - f))
    assert any((rows == two).all() for rows in found)
    y = f / (n - 2 * f)
    three = np.array([[-1.0]] * f + [[y]] * (n - 2 * f) + [[2 * y + 1]] * f)
    assert any(np.allclose(rows, three, atol=1e-6) for rows in found)


def test_every_attack_on_messages_is_tried():
    names = {type(attack).name for attack in starts._attacks()}
    assert names == set(message_attacks.members())
