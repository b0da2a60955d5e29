"""A poison changes batches, and scales a message as its kind says."""

import numpy as np
import pytest
import torch

from flwr_robust.attacks.data import Backdoor, DynamicLabelFlip, LabelFlip
from flwr_robust.attacks.poison import Poison
from flwr_robust.protocol.messages import MESSAGE_KINDS, message_kind


def poison(attack, name="momentum", scores=None):
    scores = scores or (lambda x: torch.eye(3)[: len(x)])
    return Poison(attack, 3, (0.0, 1.0), message_kind(name), 0, torch.Generator().manual_seed(0), scores)


@pytest.mark.parametrize("name", MESSAGE_KINDS)
def test_only_a_model_is_scaled_relative_to_the_one_that_was_sent(name):
    arrays, sent = [np.array([3.0, 5.0])], [np.array([1.0, 1.0])]
    found = poison(LabelFlip(scale=2.0), name).scaled(arrays, sent)
    assert found[0].tolist() == ([5.0, 9.0] if name == "parameters" else [6.0, 10.0])
    assert poison(LabelFlip(), name).scaled(arrays, sent)[0] is arrays[0]
    assert arrays[0].tolist() == [3.0, 5.0]


@pytest.mark.parametrize("name", MESSAGE_KINDS)
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_counters_and_masks_are_not_scaled_because_fractions_are_refused(name, kind):
    arrays, sent = [kind([3.0]), kind([7]), kind([True])], [kind([1.0]), kind([2]), kind([False])]
    found = poison(LabelFlip(scale=2.5), name).scaled(arrays, sent)
    assert float(found[0][0]) == (6.0 if name == "parameters" else 7.5)
    assert found[1] is arrays[1]
    assert found[2] is arrays[2]


def test_a_batch_is_poisoned_and_not_changed():
    x, y = torch.zeros(3, 1, 4, 4), torch.tensor([0, 1, 2])
    assert poison(LabelFlip()).batch(x, y)[1].tolist() == [2, 1, 0]
    inputs, labels = poison(Backdoor(target=0, p=1.0)).batch(x, y)
    assert labels.tolist() == [0, 0, 0]
    assert float(inputs.max()) == 1.0  # the largest input of the task
    assert (float(x.max()), y.tolist()) == (0.0, [0, 1, 2])


def test_an_attack_that_looks_sees_the_scores_of_its_batch():
    seen = []

    def scores(x):
        seen.append(x)
        return torch.tensor([[0.0, 1.0, 2.0]] * len(x))

    x, y = torch.zeros(3, 1), torch.tensor([0, 1, 2])
    assert poison(DynamicLabelFlip(), scores=scores).batch(x, y)[1].tolist() == [0, 0, 0]
    assert seen[0] is x
    poison(LabelFlip(), scores=scores).batch(x, y)
    assert len(seen) == 1
