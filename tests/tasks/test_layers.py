"""Layers in a row: scores in parts are those of the model, and only what is known is joined."""

import pytest
import torch
from torch import nn

from flwr_robust.tasks import Learner, build_model
from flwr_robust.tasks.layers import is_changed, joined, layers_of, pools_squares, scorer

SHAPE = (1, 8, 8)


def images(count, shape=SHAPE):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) - 0.5


def of_images(*layers):
    """A model that begins with a convolution and some layers."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Flatten(), nn.LazyLinear(3))


MODELS = {
    "small_cnn": lambda: build_model("small_cnn", SHAPE, 10, seed=0),
    "cnn": lambda: build_model("cnn", SHAPE, 10, seed=0),
    "tanh": lambda: of_images(nn.Tanh(), nn.MaxPool2d(2)),
    "dropout": lambda: of_images(nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.5)),
    "a norm": lambda: of_images(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
    "three by three": lambda: of_images(nn.ReLU(), nn.MaxPool2d(3)),
    "nested": lambda: of_images(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), nn.GELU()),
    "relu first": lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), *of_images(nn.ReLU())),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [1, 100, 250])
def test_scores_in_parts_are_the_models(name, count):
    torch.manual_seed(0)
    model, x = MODELS[name](), images(count)
    model.eval()(x[:1])  # makes lazy layers
    learner = Learner(model)
    before = x.clone()
    with torch.no_grad():
        expected = model.eval()(x)
    torch.testing.assert_close(learner.scores(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, before)
    assert bool((learner.scores(-x) != expected).any())


def test_a_convolutional_model_is_computed_in_parts_and_no_other_one():
    seen = []
    model = MODELS["small_cnn"]()
    score = scorer(model)
    model[0].forward = lambda x: (seen.append(len(x)), nn.Conv2d.forward(model[0], x))[1]
    with torch.no_grad():
        score(images(250))
    assert seen == [100, 100, 50]
    assert scorer(model) is model  # now it has a forward of its own
    for other in (build_model("mlp", SHAPE, 10, seed=0), nn.Conv2d(1, 1, 3), nn.Sequential(nn.Flatten(), nn.ReLU())):
        assert scorer(other) is other


def test_a_relu_is_joined_with_the_pooling_of_squares_behind_it_alone():
    relu, pool, wide, tanh = nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(3), nn.Tanh()
    assert list(joined([relu, pool, relu, wide, tanh, pool, relu])) == [
        (pool, True),
        *((layer, False) for layer in (relu, wide, tanh, pool, relu)),
    ]


@pytest.mark.parametrize(
    ("layer", "squares"),
    [
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d((2, 2), (2, 2), (0, 0), (1, 1)), True),
        (nn.MaxPool2d(2, stride=1), False),
        (nn.MaxPool2d(2, padding=1), False),
        (nn.MaxPool2d(2, dilation=2), False),
        (nn.MaxPool2d((2, 3)), False),
        (nn.MaxPool2d(2, ceil_mode=True), False),
        (nn.MaxPool2d(2, return_indices=True), False),
        (nn.AvgPool2d(2), False),
    ],
)
def test_squares_side_by_side_are_known(layer, squares):
    assert pools_squares(layer) is squares


def test_layers_come_in_their_order_and_changes_are_seen():
    model = nn.Sequential(nn.Tanh(), nn.Sequential(nn.ReLU(), nn.Sequential(nn.Flatten())))
    assert [type(layer) for layer in layers_of(model)] == [nn.Tanh, nn.ReLU, nn.Flatten]
    assert not is_changed(model[0])
    model[0].register_forward_hook(lambda *_: None)
    assert is_changed(model[0])
