"""The parts of Byz-DeSGD: schedules, batches, momenta and the server's buffer, against naive numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust.protocol.classes import (
    answer_names,
    answers,
    by_label,
    class_momenta,
    classes_of_round,
    compensated,
    held_classes,
    part_sizes,
    updated_buffer,
)
from tests.oracles.classes import server_oracle


@pytest.mark.parametrize(("classes", "count"), [(10, 1), (10, 3), (3, 2), (4, 4), (1, 1)])
def test_the_cyclic_schedule_asks_for_all_classes_in_turn(classes, count):
    asked = [classes_of_round("cyclic", t, classes, count) for t in range(1, 2 * classes + 1)]
    assert asked[0] == tuple(range(count))
    flat = [(t * count + step) % classes for t in range(2 * classes) for step in range(count)]
    assert asked == [tuple(sorted(flat[t * count : (t + 1) * count])) for t in range(2 * classes)]
    assert {sum(k in one for one in asked) for k in range(classes)} == {2 * count}
    assert asked[0] == classes_of_round("cyclic", 1, classes, count, seed=9)


def test_the_random_schedule_is_drawn_from_the_seed_without_repetition():
    def drawn(seed, count=2):
        return [classes_of_round("random", t, 5, count, seed) for t in range(1, 401)]

    found = drawn(0)
    assert found == drawn(0)
    assert found != drawn(1)
    assert all(len(set(one)) == 2 and list(one) == sorted(one) for one in found)
    counts = [sum(k in one for one in found) for k in range(5)]
    assert sum(counts) == 800
    assert min(counts) > 120  # 160 expected, standard deviation 10
    assert drawn(0, 5) == [(0, 1, 2, 3, 4)] * 400


@given(st.integers(1, 300), st.integers(1, 40))
def test_a_batch_is_split_evenly(batch, parts):
    sizes = part_sizes(batch, parts)
    assert len(sizes) == parts
    assert sum(sizes) == max(batch, parts)
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_samples_by_class():
    labels = torch.tensor([3, 1, 3, 0, 1, 3])
    found = held_classes(labels, torch.tensor([0, 1, 2, 4]))
    assert {k: places.tolist() for k, places in found.items()} == {1: [1, 4], 3: [0, 2]}
    assert list(found) == [1, 3]


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 1), st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=8), st.integers(0, 2**31))
def test_momenta_like_oracle(alpha, held, seed):
    rng = np.random.default_rng(seed)
    momenta, expected = {}, {}
    for classes in held:
        gradients = {k: rng.normal(size=3) for k in classes}
        before = {k: m.clone() for k, m in momenta.items()}
        following = class_momenta(momenta, {k: torch.from_numpy(g) for k, g in gradients.items()}, alpha)
        assert all(torch.equal(momenta[k], before[k]) for k in before)  # arguments stay
        momenta = following
        for k, g in gradients.items():
            expected[k] = g if k not in expected else (1 - alpha) * expected[k] + alpha * g
        assert momenta.keys() == expected.keys()
        for k, m in momenta.items():
            np.testing.assert_allclose(m, expected[k], rtol=1e-12, atol=1e-12)


@given(st.floats(0, 1), st.floats(0.01, 1), st.integers(1, 4), st.integers(0, 2**31))
def test_the_buffer_like_oracle(gamma, beta, count, seed):
    rng = np.random.default_rng(seed)
    rounds = [{k: rng.normal(size=3) for k in classes_of_round("random", t, 4, count, seed)} for t in range(1, 8)]
    buffer, x = torch.zeros(4, 3, dtype=torch.float64), np.zeros(3)
    for fresh in rounds:
        tensors = {k: torch.from_numpy(value) for k, value in fresh.items()}
        held = buffer.clone()
        following = updated_buffer(buffer, tensors, beta)
        assert torch.equal(buffer, held)
        buffer = following
        x = x - 0.3 * compensated(tensors, buffer, gamma).numpy()
    np.testing.assert_allclose(x, server_oracle(np.zeros(3), rounds, 4, 0.3, gamma, beta), rtol=1e-9, atol=1e-12)


def test_names_of_answers():
    assert answer_names(["w", "b"], [3], [3]) == ["w", "b"]
    assert answer_names(["w", "b"], [1, 3], [1, 2, 3]) == ["1/w", "1/b", "3/w", "3/b"]
    assert answer_names(["w"], [], [1, 2]) == []


def test_who_claims_answers_for_everything():
    momenta = {1: torch.tensor([2.0]), 4: torch.tensor([6.0])}
    assert answers(momenta, [0, 1, 2], False).keys() == {1}
    assert {k: float(m) for k, m in answers(momenta, [0, 1, 2], True).items()} == {0: 4.0, 1: 2.0, 2: 4.0}
    assert answers(momenta, [0], False) == {}


def test_by_label_keeps_the_order():
    x, y = torch.arange(5.0)[:, None], torch.tensor([2, 0, 2, 1, 0])
    assert {k: part.flatten().tolist() for k, (part, _) in by_label(x, y).items()} == {0: [1, 4], 1: [3], 2: [0, 2]}
