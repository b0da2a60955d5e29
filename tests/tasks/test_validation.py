"""Validation samples: who holds out how many, of which classes, and that the rest stays as it was."""

import math

import numpy as np
import pytest

from flwr_robust.tasks.validation import hold_out

LABELS = np.arange(300) % 3


def dealt(*sizes):
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_every_class_of_a_client_gives_its_share(share):
    training, validation = hold_out(LABELS, dealt(120, 60, 7, 1), share, seed=3)
    for own, kept, held in zip(dealt(120, 60, 7, 1), training, validation, strict=True):
        assert np.array_equal(np.sort(np.concatenate([kept, held])), own)
        assert len(held) == min(math.floor(share * len(own) + 0.5), len(own) - 1)
        for k in range(3):
            exact = share * (LABELS[own] == k).sum()
            assert abs((LABELS[held] == k).sum() - exact) <= 1
    assert len(training[3]) == 1


def test_nothing_is_held_out_with_a_share_of_zero():
    own = dealt(10, 5)
    training, validation = hold_out(LABELS, own, 0.0, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(training, own, strict=True))
    assert [held.tolist() for held in validation] == [[], []]


def test_a_share_next_to_one_leaves_a_sample():
    training, validation = hold_out(LABELS, dealt(30, 2, 1), math.nextafter(1.0, 0.0), seed=0)
    assert [len(kept) for kept in training] == [1, 1, 1]
    assert [len(held) for held in validation] == [29, 1, 0]


def test_the_order_of_the_partition_stays():
    shuffled = np.random.default_rng(0).permutation(40)
    (kept,), (held,) = hold_out(LABELS, [shuffled], 0.3, seed=0)
    assert [index for index in shuffled if index in set(held.tolist())] == held.tolist()
    assert [index for index in shuffled if index not in set(held.tolist())] == kept.tolist()


def test_the_draw_is_of_the_seed_and_the_client():
    own = dealt(60, 60)
    first, again, other = (hold_out(LABELS, own, 0.2, seed=seed)[1] for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[1] - 60)  # same classes in the same order


def test_ties_between_classes_are_drawn():
    """Each client has one sample too few for all classes; over clients each class gives about as many."""
    _, validation = hold_out(LABELS, dealt(*[6] * 50), 0.25, seed=0)
    counts = np.bincount(LABELS[np.concatenate(validation)])
    assert counts.sum() == 100  # two of six at each
    assert counts.min() >= 20


@pytest.mark.parametrize("labels", [np.linspace(0, 1, 300), np.zeros((300, 4), dtype=np.int64)])
def test_labels_that_are_no_classes_are_not_looked_at(labels):
    _, (held,) = hold_out(labels, dealt(100), 0.2, seed=0)
    assert len(held) == 20
