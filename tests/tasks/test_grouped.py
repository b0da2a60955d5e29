"""Grouped: every layer that it knows gives autograd's bits, and every other model is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from flwr_robust.tasks import Grouped, Learner, grouped

CLIENTS, BATCH, SIDE, CLASSES = 3, 5, 8, 10


def dense(*layers, width=13):
    """A model of odd widths, so that numbers of several clients do not lie as those of one."""
    first, last = nn.Linear(SIDE * SIDE, width), nn.Linear(width, CLASSES)
    return nn.Sequential(nn.Flatten(), first, *layers, last)


def convolutional(*layers):
    first, second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3, padding=1)
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 3, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, CLASSES))
    return nn.Sequential(first, nn.ReLU(), second, *layers, nn.MaxPool2d(2), head)


MODELS = {
    "tanh": lambda: dense(nn.Tanh()),
    "sigmoid": lambda: dense(nn.Sigmoid()),
    "gelu": lambda: dense(nn.GELU()),
    "gelu by tanh": lambda: dense(nn.GELU(approximate="tanh")),
    "identity": lambda: dense(nn.Identity(), nn.ReLU(), nn.Identity()),
    "activations in a row": lambda: dense(nn.Tanh(), nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.Tanh()),
    "nested": lambda: dense(nn.Sequential(nn.Tanh(), nn.Sequential(nn.Linear(13, 13)), nn.ReLU())),
    "dropout": lambda: dense(nn.ReLU(), nn.Dropout(0.3)),
    "dropout before relu": lambda: dense(nn.Dropout(0.3), nn.ReLU(), nn.Dropout(0.6)),
    "dropout of inputs and scores": lambda: nn.Sequential(nn.Dropout(0.2), dense(nn.Tanh()), nn.Dropout(0.1)),
    "dropout of none": lambda: dense(nn.Dropout(0.0), nn.Tanh(), nn.Dropout(0.2)),
    "dropout of one unit": lambda: dense(nn.Dropout(0.5), width=1),
    "dropout of units as channels": lambda: dense(nn.Dropout2d(0.3), nn.ReLU()),
    "convolutions": lambda: convolutional(nn.Tanh()),
    "convolutions with a relu before the pooling": lambda: convolutional(nn.ReLU()),
    "convolutions with a relu, dropout and the pooling": lambda: convolutional(nn.ReLU(), nn.Dropout(0.2)),
    "convolutions with dropout of channels": lambda: convolutional(nn.Dropout2d(0.4)),
    "convolutions with gelu and dropout": lambda: convolutional(nn.GELU(), nn.Dropout(0.25)),
}
QUIET = pytest.mark.filterwarnings("ignore:dropout2d")


def steps(model, models, seeds, count=3, batch=BATCH):
    """Return the inputs, labels and gradients (n, d) of several batches of each client, by autograd."""
    learner = Learner(model, weight_decay=0.01)
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(count, CLIENTS, batch, 1, SIDE, SIDE, generator=draw) - 0.3
    y = torch.randint(CLASSES, (count, CLIENTS, batch), generator=draw)
    found = torch.empty(count, CLIENTS, sum(p.numel() for p in learner.parameters))
    for client, seed in enumerate(seeds):
        for parameter, held in zip(learner.parameters, models, strict=True):
            parameter.detach().copy_(held[client if len(held) > 1 else 0])
        with learner.drawing(seed):
            for step in range(count):
                gradient = learner.gradient(x[step, client].clone(), y[step, client])
                found[step, client] = torch.cat([part.reshape(-1) for part in gradient])
    return x, y, found


@QUIET
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_layer_gives_autograds_gradients_to_the_bit_step_after_step(name, shared, prepared):
    torch.manual_seed(0)
    model = MODELS[name]()
    assert Grouped.check(model) is None
    walk = Grouped(Learner(model, weight_decay=0.01))
    models = walk.models(1 if shared else CLIENTS)
    for held, parameter in zip(models, walk.learner.parameters, strict=True):
        scales = torch.arange(1.0, 1 + len(held)).view(-1, *[1] * parameter.dim())
        held.copy_(parameter.detach() * scales)
    seeds = [7, 2**62 + 1, 9]
    x, y, expected = steps(model, models, seeds)
    assert Grouped.draws(model) == ("dropout" in name or "convolutions" in name)
    found, inputs, labels = torch.empty_like(expected[0]), torch.empty_like(x[0]), torch.empty_like(y[0])
    call = walk.prepared(models, inputs, labels, walk.layers(found)) if prepared else None
    for _ in range(2):  # a round draws from its seeds anew
        walk.seed(seeds)
        for step in range(len(x)):
            inputs.copy_(x[step])
            labels.copy_(y[step])
            if call is None:
                walk.gradients(models, inputs, labels, walk.layers(found))
            else:
                call()
            assert torch.equal(found, expected[step])
    assert bool((expected[0] != expected[1]).any())


@QUIET
@pytest.mark.parametrize("name", MODELS)
def test_all_clients_at_once_as_on_a_gpu_give_the_same_to_rounding(name, monkeypatch):
    torch.manual_seed(0)
    model = MODELS[name]()
    walk = Grouped(Learner(model, weight_decay=0.01))
    models = walk.models(1)
    for held, parameter in zip(models, walk.learner.parameters, strict=True):
        held.copy_(parameter.detach()[None])
    x, y, expected = steps(model, models, [1, 2, 3], count=1, batch=16)
    monkeypatch.setattr(grouped, "_apart", lambda tensor: False)
    walk.seed([1, 2, 3])
    found = torch.empty_like(expected[0])
    walk.gradients(models, x[0], y[0], walk.layers(found))
    torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
def test_pooling_by_torch_gives_the_same_where_compiled_code_cannot(compiled, monkeypatch):
    torch.manual_seed(0)
    model = MODELS["convolutions with a relu before the pooling"]()
    walk = Grouped(Learner(model, weight_decay=0.01))
    models = [parameter.detach()[None].clone() for parameter in model.parameters()]
    if not compiled:
        monkeypatch.setattr(grouped, "pool_squares", lambda images, rectified: None)
    x, y, expected = steps(model, models, [1, 2, 3], count=1)
    x[0, 1, 0, 0, 0, 0] = torch.nan  # compiled code gives up at the second client
    walk.seed([1, 2, 3])
    found = torch.empty_like(expected[0])
    walk.gradients(models, x[0], y[0], walk.layers(found))
    assert torch.equal(found[[0, 2]], expected[0, [0, 2]])
    assert bool(found[1].isnan().any())


@pytest.mark.parametrize("name", ["dropout", "convolutions"])
def test_other_seeds_draw_other_units(name):
    model = MODELS[name]()
    models = [parameter.detach()[None].clone() for parameter in model.parameters()]
    first, again, other = (steps(model, models, seeds)[2] for seeds in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    assert torch.equal(first, again)
    assert torch.equal(first[:, :2], other[:, :2])
    assert bool((first[:, 2] != other[:, 2]).any())


class Twice(nn.Sequential):
    """A Sequential that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    model = dense(nn.ReLU())
    model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def replaced():
    model = dense(nn.ReLU())
    model[1].forward = lambda x: x[:, :13]
    return model


def with_a_buffer():
    model = dense(nn.ReLU())
    model.register_buffer("count", torch.tensor(0))
    return model


def with_a_parameter():
    model = dense(nn.ReLU())
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    return model


def tied():
    model = dense(nn.Linear(13, 13), nn.ReLU(), nn.Linear(13, 13))
    model[4].weight = model[2].weight
    return model


def frozen():
    model = dense(nn.ReLU())
    model[1].bias.requires_grad_(False)
    return model


def in_two_places():
    layer = nn.Linear(13, 13)
    return dense(layer, nn.Sequential(nn.ReLU(), layer))


REFUSED = {
    "another class": (lambda: Twice(*dense(nn.ReLU())), "a Twice, not a Sequential"),
    "one layer": (lambda: nn.Linear(4, 2), "a Linear, not a Sequential"),
    "hooks": (hooked, "hooks, buffers or a forward of its own"),
    "a forward": (replaced, "hooks, buffers or a forward of its own"),
    "a buffer": (with_a_buffer, "hooks, buffers or a forward of its own"),
    "a parameter": (with_a_parameter, "shared layers or parameters"),
    "tied": (tied, "shared layers or parameters"),
    "in two places": (in_two_places, "shared layers or parameters"),
    "frozen": (frozen, "frozen parameters"),
    "a norm": (lambda: dense(nn.LayerNorm(13)), "holds LayerNorm((13,)"),
    "no bias": (lambda: dense(nn.Linear(13, 13, bias=False)), "holds Linear("),
    "a branch": (lambda: dense(nn.TransformerEncoderLayer(13, 1, 4)), "holds TransformerEncoderLayer"),
    "dropout of all": (lambda: dense(nn.Dropout(1.0)), "holds Dropout(p=1.0"),
    "another dropout": (lambda: dense(nn.AlphaDropout()), "holds AlphaDropout("),
    "parametrised": (lambda: dense(parametrizations.weight_norm(nn.Linear(13, 13))), "the model "),
    "flat from elsewhere": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(4, 2)), "holds Flatten("),
    "padding by name": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten()), "holds Conv2d("),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_computes_anything_else_is_named(name):
    make, words = REFUSED[name]
    sentence = Grouped.check(make())
    assert words in sentence
    assert "\n" not in sentence
