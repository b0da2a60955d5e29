"""Data attacks: which labels they put, how often, and what they look at."""

from __future__ import annotations

import pytest
import torch

from flwr_robust import ConfigurationError
from flwr_robust.attack import data_attacks
from flwr_robust.attacks.data.dynamic_label_flip import DynamicLabelFlip
from flwr_robust.attacks.data.label_flip import LabelFlip


def never():
    raise AssertionError("the attack looked at the model")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labels_of(n=1000, classes=10, seed=0):
    return torch.randint(classes, (n,), generator=generator(seed))


def apply(attack, labels, *, classes=10, seed=0, scores=never):
    return attack(labels, classes=classes, generator=generator(seed), scores=scores)


def least_likely(label, n, classes=10):
    """Scores that make one class the least likely for everybody."""
    scores = torch.ones(n, classes)
    scores[:, label] = -1
    return lambda: scores


# -- which label ---------------------------------------------------------------------------------


def test_label_flip_mirrors_the_classes():
    assert apply(LabelFlip(), torch.tensor([0, 1, 4, 5, 9])).tolist() == [9, 8, 5, 4, 0]
    # With an odd number of classes the middle one stays.
    assert apply(LabelFlip(), torch.tensor([0, 1, 2]), classes=3).tolist() == [2, 1, 0]


def test_label_flip_twice_is_none():
    labels = labels_of()
    flipped = apply(LabelFlip(), labels)
    assert bool((flipped != labels).all())
    assert torch.equal(apply(LabelFlip(), flipped), labels)


def test_dynamic_label_flip_takes_the_least_likely_class():
    scores = torch.tensor([[0.3, -1.0, 0.7], [5.0, 4.0, 3.0], [-2.0, 9.0, 9.0]])
    assert apply(DynamicLabelFlip(), torch.tensor([0, 1, 2]), classes=3, scores=lambda: scores).tolist() == [1, 2, 0]
    # It may be the true one.
    assert apply(DynamicLabelFlip(), torch.tensor([1, 2, 0]), classes=3, scores=lambda: scores).tolist() == [1, 2, 0]


def test_dynamic_label_flip_gives_a_tie_to_the_lowest_class():
    scores = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 1.0, 1.0]])
    labels = torch.tensor([3, 3, 3])
    assert apply(DynamicLabelFlip(), labels, classes=4, scores=lambda: scores).tolist() == [1, 0, 2]


# -- how often -----------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["label", "batch"])
@pytest.mark.parametrize("kind", [LabelFlip, DynamicLabelFlip])
def test_probability_zero_and_one(kind, per):
    labels = labels_of()
    for seed in range(20):
        never_flips = apply(kind(p=0.0, per=per), labels, seed=seed)
        assert torch.equal(never_flips, labels)
        assert never_flips is not labels
        always = apply(kind(p=1.0, per=per), labels, seed=seed, scores=least_likely(7, len(labels)))
        expected = 9 - labels if kind is LabelFlip else torch.full_like(labels, 7)
        assert torch.equal(always, expected)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_each_label_draws_for_itself(p):
    labels = labels_of(20_000)
    flipped = apply(LabelFlip(p=p), labels) != labels
    # Four standard deviations.
    assert float(flipped.double().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / 20_000) ** 0.5)
    # Neighbours are independent.
    both = (flipped[:-1] & flipped[1:]).double().mean()
    assert float(both) == pytest.approx(p * p, abs=0.02)
    # Whether a label is flipped does not depend on what it is.
    for label in (0, 9):
        assert float(flipped[labels == label].double().mean()) == pytest.approx(p, abs=0.06)


@pytest.mark.parametrize("p", [0.2, 0.8])
def test_one_draw_decides_for_a_batch(p):
    labels, attack, shared = labels_of(32), LabelFlip(p=p, per="batch"), generator()
    batches = 2000
    flipped = 0
    for _ in range(batches):
        result = attack(labels, classes=10, generator=shared, scores=never)
        changed = result != labels
        assert bool(changed.all()) or not bool(changed.any())
        flipped += bool(changed.any())
    assert flipped / batches == pytest.approx(p, abs=4 * (p * (1 - p) / batches) ** 0.5)


def test_draws_come_from_the_generator_and_nowhere_else():
    labels, attack = labels_of(), LabelFlip(p=0.5)
    state = torch.get_rng_state()
    first, again, other = (apply(attack, labels, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    # A second batch is another draw.
    shared = generator(1)
    batches = [attack(labels, classes=10, generator=shared, scores=never) for _ in range(2)]
    assert torch.equal(batches[0], first)
    assert not torch.equal(batches[0], batches[1])


# -- what it touches -----------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("per", ["label", "batch"])
@pytest.mark.parametrize("kind", [LabelFlip, DynamicLabelFlip])
def test_labels_are_not_changed(kind, per, p):
    labels = labels_of(64)
    kept = labels.clone()
    for seed in range(5):
        result = apply(kind(p=p, per=per), labels, seed=seed, scores=least_likely(3, 64))
        result += 1  # nor is a part of them returned
        assert torch.equal(labels, kept)
        assert result.dtype == torch.int64
        assert result.shape == labels.shape


def test_scores_are_asked_for_once_and_only_when_needed():
    calls = []

    def scores():
        calls.append(1)
        return torch.zeros(4, 10)

    labels = torch.tensor([1, 2, 3, 4])
    apply(LabelFlip(), labels, scores=scores)
    apply(DynamicLabelFlip(p=0.0), labels, scores=scores)
    assert calls == []
    apply(DynamicLabelFlip(), labels, scores=scores)
    assert calls == [1]


@pytest.mark.parametrize("kind", [LabelFlip, DynamicLabelFlip])
def test_an_empty_batch_stays_empty(kind):
    assert apply(kind(), torch.zeros(0, dtype=torch.int64), scores=lambda: torch.zeros(0, 10)).shape == (0,)


# -- text ----------------------------------------------------------------------------------------


def test_attacks_are_found_and_round_trip():
    assert {"label_flip", "dynamic_label_flip"} <= set(data_attacks.members())
    for name in data_attacks.members():
        for text in (name, f"{name}(p=0.25)", f"{name}(p=0, per='batch')"):
            attack = data_attacks.parse(text)
            assert data_attacks.parse(str(attack)) == attack
    assert data_attacks.parse("label_flip").p == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label_flip(p=-0.1)", "label_flip: p must be a finite number and >= 0 and <= 1; got p=-0.1"),
        ("label_flip(p=1.5)", "p must be"),
        ("label_flip(p='half')", "p must be"),
        ("dynamic_label_flip(p=2)", "dynamic_label_flip: p must be"),
        ("label_flip(per='sample')", "per must be one of batch, label; got per='sample'"),
        ("label_flip(q=1)", "allowed: p, per"),
    ],
)
def test_fields_outside_their_bounds_are_refused(text, words):
    with pytest.raises(ConfigurationError, match=words):
        data_attacks.parse(text)
