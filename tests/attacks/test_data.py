"""Data attacks: which labels they put, how often, and what they look at."""

from __future__ import annotations

import pytest
import torch

from flwr_robust import ConfigurationError
from flwr_robust.attacks.data import Backdoor, DynamicLabelFlip, LabelFlip, RandomLabel, TargetedFlip
from flwr_robust.attacks.data.base import ClientView, data_attacks
from flwr_robust.tasks import Task, load_task


def never():
    raise AssertionError("the attack looked at the model")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labels_of(n=1000, classes=10, seed=0):
    return torch.randint(classes, (n,), generator=generator(seed))


def apply(attack, labels, *, classes=10, seed=0, scores=never):
    """Labels after a label attack, which returns the very inputs it is given."""
    x = torch.zeros(len(labels), 2)
    inputs, found = attack(x, labels, ClientView(classes, generator(seed), scores))
    assert inputs is x
    return found


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


def test_random_label_takes_each_other_class_equally_often():
    labels = labels_of(30_000, classes=4)
    found = apply(RandomLabel(), labels, classes=4)
    assert bool((found != labels).all())
    for true in range(4):
        shares = torch.bincount(found[labels == true], minlength=4).double() / int((labels == true).sum())
        assert shares[true] == 0
        # Four standard deviations of a third of some 7,500 labels.
        assert shares[torch.arange(4) != true].tolist() == pytest.approx([1 / 3] * 3, abs=0.022)


def test_random_label_with_two_classes_is_the_other_one():
    assert apply(RandomLabel(), torch.tensor([0, 1, 1]), classes=2).tolist() == [1, 0, 0]


def test_targeted_flip_leaves_all_other_classes_alone():
    attack = TargetedFlip(source=1, target=7)
    assert apply(attack, torch.tensor([0, 1, 7, 1, 9])).tolist() == [0, 7, 7, 7, 9]
    assert apply(TargetedFlip(source=7, target=1), torch.tensor([0, 1, 7])).tolist() == [0, 1, 1]
    labels = labels_of(20_000)
    half = apply(TargetedFlip(source=1, target=7, p=0.5), labels)
    assert set(labels[half != labels].tolist()) == {1}
    assert float((half[labels == 1] == 7).double().mean()) == pytest.approx(0.5, abs=0.05)


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
        _, result = attack(torch.zeros(32, 2), labels, ClientView(10, shared, never))
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
    batches = [attack(torch.zeros(1000, 2), labels, ClientView(10, shared, never))[1] for _ in range(2)]
    assert torch.equal(batches[0], first)
    assert not torch.equal(batches[0], batches[1])


# -- what it touches -----------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("per", ["label", "batch"])
@pytest.mark.parametrize("kind", [LabelFlip, DynamicLabelFlip, RandomLabel])
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


# -- backdoors -----------------------------------------------------------------------------------


def stamped(attack, x, labels, *, span=(0.0, 1.0), rank=0, seed=0):
    return attack(x, labels, ClientView(10, generator(seed), never, span, rank))


CORNERS = {
    "top_left": [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]],
    "top_right": [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]],
    "bottom_left": [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]],
    "bottom_right": [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
}


@pytest.mark.parametrize("position", CORNERS)
def test_the_trigger_is_a_square_in_a_corner_of_every_channel(position):
    attack = Backdoor(target=4, size=2, position=position, p=1.0)
    x, labels = torch.zeros(2, 3, 3, 4), torch.tensor([7, 4])
    inputs, found = stamped(attack, x, labels)
    assert inputs.tolist() == [[CORNERS[position]] * 3] * 2
    assert found.tolist() == [4, 4]
    assert stamped(attack, x[:, 0], labels)[0].tolist() == [CORNERS[position]] * 2  # images without channels


@pytest.mark.parametrize(("position", "row"), [("bottom_right", [0, 0, 0, 1, 1]), ("top_left", [1, 1, 0, 0, 0])])
def test_the_trigger_of_a_row_of_features_is_at_its_end_or_start(position, row):
    inputs, _ = stamped(Backdoor(target=0, size=2, position=position, p=1.0), torch.zeros(1, 5), torch.tensor([3]))
    assert inputs.tolist() == [row]


@pytest.mark.parametrize(("value", "pixel"), [(0.0, -1.0), (0.5, 0.0), (0.75, 0.5), (1.0, 1.0)])
def test_the_trigger_s_value_is_a_place_in_the_task_s_span(value, pixel):
    attack = Backdoor(target=0, size=1, value=value, p=1.0)
    inputs, _ = stamped(attack, torch.full((1, 1, 2, 2), 0.25), torch.tensor([3]), span=(-1.0, 1.0))
    assert inputs.tolist() == [[[[0.25, 0.25], [0.25, pixel]]]]


def test_a_task_s_span_is_that_of_its_training_inputs_as_a_model_sees_them():
    assert load_task("digits").span == (0.0, 1.0)
    x = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)
    y = torch.tensor([0])
    assert Task("some", x, y, x // 2, y, 2, 1 / 127.5, -1.0).span == pytest.approx((-1.0, 1.0))
    table = torch.tensor([[-3.0, 2.0], [0.5, 8.0]])
    assert Task("table", table, y, 10 * table, y, 2).span == (-3.0, 8.0)


@pytest.mark.parametrize(
    ("shape", "size", "parts"), [((1, 8, 8), 4, 4), ((1, 8, 8), 3, 2), ((3, 5, 4), 3, 9), ((2, 2), 2, 3), ((9,), 5, 2)]
)
def test_the_parts_make_the_whole_trigger_and_do_not_overlap(shape, size, parts):
    attack = Backdoor(target=0, size=size, parts=parts)
    pieces = [attack.trigger(shape, rank).int() for rank in range(parts)]
    assert torch.equal(sum(pieces), attack.trigger(shape).int())
    counts = [int(piece.sum()) for piece in pieces]
    assert min(counts) >= 1
    assert max(counts) - min(counts) <= 1
    assert torch.equal(attack.trigger(shape, parts + 1), attack.trigger(shape, 1))  # more attackers start again
    # One part is the whole.
    assert torch.equal(Backdoor(target=0, size=size).trigger(shape, 3), attack.trigger(shape))


def test_four_parts_of_size_four_are_bars():
    attack = Backdoor(target=0, size=4, parts=4, p=1.0)
    for rank in range(4):
        inputs, _ = stamped(attack, torch.zeros(1, 1, 8, 8), torch.tensor([3]), rank=rank)
        bar = torch.zeros(8, 8)
        bar[4 + rank, 4:] = 1
        assert torch.equal(inputs[0, 0], bar)


@pytest.mark.parametrize("per", ["label", "batch"])
def test_p_of_a_backdoor_is_the_share_of_stamped_samples(per):
    x, labels = torch.rand(2000, 1, 4, 4, generator=generator(3)) / 2, labels_of(2000)
    kept = x.clone(), labels.clone()
    shares = []
    for seed in range(20 if per == "batch" else 3):
        inputs, found = stamped(Backdoor(target=0, p=0.25, size=2, per=per), x, labels, seed=seed)
        shown = (inputs[..., 2:, 2:] == 1).flatten(1).all(1)
        # What is stamped has the target's label; the rest is what it was.
        assert bool((found[shown] == 0).all())
        assert torch.equal(inputs[~shown], x[~shown])
        assert torch.equal(found[~shown], labels[~shown])
        outside = inputs.clone()
        outside[..., 2:, 2:] = x[..., 2:, 2:]
        assert torch.equal(outside, x)
        shares.append(float(shown.double().mean()))
        assert torch.equal(x, kept[0])  # the batch itself is only read
        assert torch.equal(labels, kept[1])
    if per == "batch":
        assert set(shares) == {0.0, 1.0}
        assert 1 <= sum(shares) <= 11
    else:
        assert shares == pytest.approx([0.25] * 3, abs=0.04)
        assert len(set(shares)) > 1


def test_a_backdoor_with_p_0_changes_nothing_and_with_p_1_everything():
    x, labels = torch.zeros(50, 1, 4, 4), labels_of(50)
    inputs, found = stamped(Backdoor(target=0, p=0.0), x, labels)
    assert inputs is x
    assert torch.equal(found, labels)
    inputs, found = stamped(Backdoor(target=0, p=1.0), x, labels)
    assert bool((inputs[..., 1:, 1:] == 1).all())
    assert not bool(found.any())
    for per in ("label", "batch"):
        empty = stamped(Backdoor(target=0, p=1.0, per=per), x[:0], labels[:0])
        assert [len(part) for part in empty] == [0, 0]


# -- success -------------------------------------------------------------------------------------


def test_a_backdoor_is_tried_with_the_whole_trigger_on_the_other_classes():
    x, labels = torch.zeros(4, 1, 3, 3), torch.tensor([2, 0, 1, 2])
    inputs, wanted = Backdoor(target=2, size=2, parts=4, p=0.0).trial(x, labels, (0.0, 1.0))
    assert inputs[:, 0].tolist() == [[[0, 0, 0], [0, 1, 1], [0, 1, 1]]] * 2
    assert wanted.tolist() == [2, 2]
    assert not bool(x.any())


def test_a_targeted_flip_is_tried_on_the_source():
    x = torch.arange(4.0)[:, None]
    inputs, wanted = TargetedFlip(source=1, target=7).trial(x, torch.tensor([1, 7, 0, 1]), (0.0, 1.0))
    assert inputs.tolist() == [[0], [3]]
    assert wanted.tolist() == [7, 7]
    assert wanted.dtype == torch.int64


@pytest.mark.parametrize("attack", [LabelFlip(), DynamicLabelFlip(), RandomLabel()])
def test_other_attacks_want_no_label_in_particular(attack):
    assert attack.trial(torch.zeros(3, 2), torch.tensor([0, 1, 2]), (0.0, 1.0)) is None


@pytest.mark.parametrize(
    ("attack", "shape", "words"),
    [
        (Backdoor(target=10), (1, 8, 8), "backdoor: target must be below the task's 10 classes; got 10"),
        (Backdoor(target=0, size=9), (1, 8, 8), "size must fit into inputs of shape (1, 8, 8); got size=9"),
        (Backdoor(target=0, size=6), (5,), "size must fit into inputs of shape (5,); got size=6"),
        (Backdoor(target=0, size=2, parts=3), (5,), "parts must be at most the trigger's 2 features; got parts=3"),
        (TargetedFlip(source=10, target=0), (5,), "source must be below the task's 10 classes; got 10"),
        (TargetedFlip(source=0, target=12), (5,), "target must be below the task's 10 classes; got 12"),
    ],
)
def test_attacks_that_do_not_fit_the_task_say_so(attack, shape, words):
    assert words in attack.check(10, shape)
    assert attack.check(20, (9, 9)) is None


def test_a_task_of_one_class_has_no_other_label():
    assert RandomLabel().check(2, (3,)) is None
    assert RandomLabel().check(1, (3,)) == "random_label: the task must have at least 2 classes; it has 1"


# -- text ----------------------------------------------------------------------------------------


def test_attacks_are_found_and_round_trip():
    assert set(data_attacks.members()) == {
        *("backdoor", "dynamic_label_flip", "label_flip", "pixel_invert", "pixel_noise", "random_label"),
        "targeted_flip",
    }
    needed = {"backdoor": "target=0", "targeted_flip": "source=1, target=7"}
    for name in data_attacks.members():
        for fields in ("p=0.25", "p=0, per='batch'", "scale=10"):
            attack = data_attacks.parse(f"{name}({needed.get(name, 'p=1.0')}, {fields})".replace("p=1.0, p", "p"))
            assert data_attacks.parse(str(attack)) == attack
    assert data_attacks.parse("label_flip").p == 1.0
    assert data_attacks.parse("backdoor(target=3)").p == 0.5
    assert str(Backdoor(target=3, parts=2)) == "backdoor(target=3, parts=2)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label_flip(p=-0.1)", "label_flip: p must be a finite number and >= 0 and <= 1; got p=-0.1"),
        ("label_flip(p=1.5)", "p must be"),
        ("label_flip(p='half')", "p must be"),
        ("dynamic_label_flip(p=2)", "dynamic_label_flip: p must be"),
        ("label_flip(per='sample')", "per must be one of batch, label; got per='sample'"),
        ("label_flip(q=1)", "allowed: p, per, scale"),
        ("label_flip(scale=0)", "label_flip: scale must be a finite number and > 0; got scale=0"),
        ("targeted_flip(source=1)", "targeted_flip: target must be given"),
        ("targeted_flip(source=3, target=3)", "source and target must differ; got 3 for both"),
        ("targeted_flip(source=-1, target=3)", "source must be an integer >= 0; got source=-1"),
        ("backdoor", "backdoor: target must be given"),
        ("backdoor(target='seven')", "target must be an integer"),
        ("backdoor(target=0, size=0)", "size must be an integer >= 1"),
        ("backdoor(target=0, value=255)", "value must be a finite number and >= 0 and <= 1; got value=255"),
        ("backdoor(target=0, position='middle')", "position must be one of bottom_left, bottom_right, top_left, top_r"),
        ("backdoor(target=0, size=2, parts=5)", "parts must be at most the trigger's 4 pixels; got parts=5"),
    ],
)
def test_fields_outside_their_bounds_are_refused(text, words):
    with pytest.raises(ConfigurationError, match=words):
        data_attacks.parse(text)
