"""Models of a user's own: any layers, the same numbers from the same seed, and one sentence for what does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flwr_robust import ConfigurationError, UnknownNameError
from flwr_robust.core import spec
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate, unbatched
from flwr_robust.studies.runner import read_results, run_fast_cell, run_study
from flwr_robust.studies.study import load_study
from flwr_robust.tasks import MODELS, Grouped, Learner, build_model, model_outline
from tests.apps import run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-models.md"
SHOWN = ("resnet", "groupnorm_resnet", "Transformer", "Lstm")
SHAPE = (1, 8, 8)


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Write a file of models, and return how a configuration names one of them."""
    monkeypatch.setattr(spec.sys, "path", [*spec.sys.path])
    monkeypatch.setenv(spec.PLUGINS, "")  # and afterwards as it was
    made = []

    def write(code):
        path = tmp_path / f"own_models_{len(made)}_{tmp_path.name.replace('-', '_')}.py"
        path.write_text(code)
        made.append(path.stem)
        return lambda function: f"{path}:{function}"

    yield write
    for name in made:
        spec.sys.modules.pop(name, None)


@pytest.fixture
def shown(named):
    """The models of the page."""
    return named(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("model", SHOWN)
def test_the_shown_models_come_from_the_seed_alone(shown, model):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = build_model(shown(model), SHAPE, 10, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(first, build_model(shown(model), SHAPE, 10, seed=1))
    assert not same(first, build_model(shown(model), SHAPE, 10, seed=2))
    assert all(bool(array.isfinite().all()) for array in first.state_dict().values())


@pytest.mark.parametrize("layer", [nn.LayerNorm(64), nn.BatchNorm1d(64), nn.Bilinear(64, 64, 64)])
def test_a_layer_in_models_is_initialised_as_torch_does(monkeypatch, layer):
    """What is added to MODELS once was memory as it lay there, unless it was Linear or Conv2d."""

    class Own(nn.Module):
        def __init__(self, shape, classes):
            super().__init__()
            self.table = nn.Embedding(3, 64)
            self.bare = nn.Parameter(torch.full((64,), 0.5))
            self.layer = type(layer)(*([64, 64, 64] if isinstance(layer, nn.Bilinear) else [64]))
            self.head = nn.Linear(64, classes)

        def forward(self, x):
            x = x.flatten(1) * self.bare + self.table.weight[0]
            return self.head(self.layer(x, x) if isinstance(self.layer, nn.Bilinear) else self.layer(x))

    monkeypatch.setitem(MODELS, "own", Own)
    model = build_model("own", SHAPE, 10, seed=0)
    assert torch.equal(model.bare, torch.full((64,), 0.5))
    assert 0.5 < float(model.table.weight.detach().std()) < 1.5
    if not isinstance(layer, nn.Bilinear):
        assert torch.equal(model.layer.weight, torch.ones(64))
        assert torch.equal(model.layer.bias, torch.zeros(64))
    assert same(model, build_model("own", SHAPE, 10, seed=0))


def test_the_projects_own_models_keep_their_bits():
    # The sum of the first array, as it was before models of users could be built.
    assert float(build_model("softmax", (1, 28, 28), 10, 0).state_dict()["1.weight"].double().sum()) == pytest.approx(
        float(_oracle_first_array().double().sum()), abs=0
    )


def _oracle_first_array():
    from flwr_robust.seeds import torch_generator

    return torch.empty(10, 784).uniform_(-1 / 28, 1 / 28, generator=torch_generator(0, "model", "softmax"))


def test_a_learner_trains_in_training_mode_and_scores_in_evaluation_mode():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    learner = Learner(model)
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    assert torch.equal(learner.scores(x), learner.scores(x))
    assert torch.equal(model[1].running_mean, torch.zeros(4))  # scoring moves no statistics
    with learner.drawing(3):
        first = learner.gradient(x, y)
    assert not torch.equal(model[1].running_mean, torch.zeros(4))
    state = torch.random.get_rng_state()
    with learner.drawing(3):
        again = learner.gradient(x, y)
    with learner.drawing(4):
        other = learner.gradient(x, y)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_frozen_parameter_is_sent_and_stays():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[1].weight.requires_grad_(False)
    gradient = Learner(model, weight_decay=0.1).gradient(torch.randn(8, 4), torch.arange(8) % 2)
    assert [layer.shape for layer in gradient] == [p.shape for p in model.parameters()]
    assert not gradient[0].any()
    assert all(layer.any() for layer in gradient[1:])
    assert "frozen" in Grouped.check(model)
    shared = nn.Linear(4, 4)
    assert "shared" in Grouped.check(nn.Sequential(shared, nn.ReLU(), shared))


SETTING = {"rounds": 3, "clients": 3, "evaluate-every": 3, "message": "delta", "local-steps": 1, "defence": "median"}


@pytest.mark.parametrize("model", ["Transformer", "Lstm"])
def test_a_run_repeats_to_the_bit_and_says_how_it_was_computed(shown, model):
    values = {**RunConfig(**{k.replace("-", "_"): v for k, v in SETTING.items()}).to_mapping(), "model": shown(model)}
    first, again = run_fast_cell(values), run_fast_cell(values)
    assert first["model_sha256"] == again["model_sha256"]
    assert first["gradients"] == f"one client at a time: the model is a {model}, not a Sequential"
    assert np.isfinite(first["curve"][-1]["loss"])


def test_a_plain_sequential_runs_on_the_fast_engine(named):
    model = named(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, classes))\n"
    )("make")
    config = RunConfig(rounds=200, model=model, clients=4, evaluate_every=200)
    assert unbatched(config) is None
    assert Grouped.check(config.outline) is None
    assert same(model_outline(model, SHAPE, 10), build_model(model, SHAPE, 10, 0))
    assert run_fast_cell(config.to_mapping())["curve"][-1]["accuracy"] > 0.5


COUNTED = """
from torch import nn
built = []
class Uncopied(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(64, classes)
    def forward(self, x): return self.head(x.flatten(1))
    def __deepcopy__(self, memo): raise TypeError("no")
def plain(shape, classes):
    built.append(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
def uncopied(shape, classes):
    built.append(shape)
    return Uncopied(classes)
"""


@pytest.mark.parametrize(("function", "times"), [("plain", 1), ("uncopied", 5)])
def test_a_process_builds_a_model_once_for_a_configuration_if_it_can_be_copied(named, function, times):
    model = named(COUNTED)(function)
    config = RunConfig(model=model, seed=4)
    first, again = config.learner(), config.learner()
    with torch.no_grad():
        first.parameters[0].zero_()  # which no other learner sees
    assert unbatched(config) is None
    assert not same(first.model, again.model)
    assert same(again.model, config.outline)
    assert len(spec.sys.modules[Path(model.partition(":")[0]).stem].built) == times
    assert not same(again.model, RunConfig(model=model, seed=5).learner().model)


def test_the_same_function_in_another_file_is_the_same_model(named):
    code = (
        "from torch import nn\ndef make(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    assert same(*(build_model(named(code)("make"), SHAPE, 10, seed=3) for _ in range(2)))


def test_statistics_need_a_message_that_carries_them(shown):
    with pytest.raises(ConfigurationError, match=r"running_mean.*'parameters' or 'delta', or layers without"):
        RunConfig(model=shown("resnet"), message="momentum").learner()
    RunConfig(model=shown("resnet"), message="parameters").learner()
    RunConfig(model=shown("groupnorm_resnet"), message="momentum").learner()


WRONG = """
import torch
from torch import nn
def raises(shape, classes): raise ValueError("no such width")
def nothing(shape, classes): return 3
def narrow(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes - 1))
def large(shape, classes): return nn.Linear(7, classes)
def frozen(shape, classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    return model.requires_grad_(False)
def infinite(shape, classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    nn.init.constant_(model[1].bias, float("inf"))
    return model
number = 3
"""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("raises", "making it for inputs (1, 8, 8) and 10 classes fails (ValueError: no such width)"),
        ("nothing", "must return an nn.Module; got int"),
        ("narrow", "scores of shape (2, 10); got shape (2, 9)"),
        ("large", "it fails on inputs of shape (2, 1, 8, 8)"),
        ("frozen", "no trainable parameter"),
        ("infinite", "1.bias holds NaN or Inf"),
        ("number", "has no function 'number'"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_what_does_not_fit_is_named(named, function, words):
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        build_model(named(WRONG)(function), SHAPE, 10, seed=0)


TOKENS = """
import numpy as np
from torch import nn
from flwr_robust.tasks import task_of
def words(folder):
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 400)
    x = draw.integers(0, 6, (400, 7)) + 6 * (y[:, None] ^ (draw.random((400, 7)) < 0.2))
    return task_of("words", x[:300], y[:300], x[300:], y[300:], tokens=True)
def numbers(folder):
    task = words(folder)
    return task_of("numbers", task.x_train.numpy(), task.y_train.numpy(), task.x_test.numpy(), task.y_test.numpy())
def fixed(shape, classes):
    return nn.Sequential(nn.Embedding(12, 4), nn.Flatten(), nn.Linear(4 * shape[0], classes))
def linear(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], classes))
""" + re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


@pytest.mark.parametrize("model", ["BagOfWords", "fixed"])
def test_tokens_reach_a_model_that_embeds_them(named, model):
    function = named(TOKENS)
    values = {
        **{key: value for key, value in SETTING.items() if key != "defence"},
        "rounds": 30,
        "local-steps": 5,
        "evaluate-every": 30,
        "defence": "mean",
        "task": function("words"),
        "model": function(model),
    }
    config = RunConfig.from_mapping(values)
    model = config.learner().model
    (words,) = (module for module in model.modules() if isinstance(module, nn.Embedding))
    assert words.num_embeddings == config.data_set.vocabulary == 12
    curve = run_fast_cell(values)["curve"]
    assert curve[-1]["accuracy"] > 0.8 > 0.7 > curve[0]["accuracy"]


def test_tokens_run_alike_on_both_engines(named, tmp_path):
    function = named(TOKENS)
    keys = {
        "task": function("words"),
        "model": function("BagOfWords"),
        "rounds": 3,
        "evaluate_every": 3,
        "clients": 3,
        "attack": "label_flip()",
        "attackers": 1,
        "defence": "median()",
    }
    slow, expected = run(tmp_path, **keys)
    quick = simulate(RunConfig.from_mapping(keys))
    assert quick["model_sha256"] == slow["model_sha256"]
    assert quick["curve"] == slow["curve"]
    assert expected["words.weight"].shape == (12, 16)


@pytest.mark.parametrize(
    ("task", "model", "words"),
    [
        (
            "words",
            "softmax",
            "model softmax computes with real numbers, and the task's inputs are token numbers below 12",
        ),
        ("words", "linear", "it fails on token numbers (int64) of shape (2, 7)"),
        ("numbers", "BagOfWords", "embeds token numbers, and the task's inputs are real numbers"),
        ("numbers", "fixed", "it fails on inputs of shape (2, 7)"),
    ],
)
def test_tokens_and_numbers_are_told_apart(named, task, model, words):
    function = named(TOKENS)
    config = RunConfig(task=function(task), model=model if model == "softmax" else function(model), clients=3)
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        config.learner()


@pytest.mark.parametrize(
    ("attack", "refused"),
    [("pixel_invert()", True), ("pixel_noise()", True), ("backdoor(target=0)", True), ("label_flip()", False)],
)
def test_attacks_on_pixels_refuse_tokens(named, attack, refused):
    config = RunConfig(task=named(TOKENS)("words"), clients=3, attack=attack, attackers=1)
    if not refused:
        assert config.data_set.tokens
        return
    name = attack.partition("(")[0]
    with pytest.raises(ConfigurationError, match=f"^{name} changes inputs that are real numbers; .* are token numbers"):
        _ = config.data_set


def test_a_model_that_is_nowhere_is_refused_before_the_run():
    with pytest.raises(UnknownNameError, match="<module>:<function>"):
        RunConfig(model="softmix")
    with pytest.raises(ConfigurationError, match="there is no module 'nowhere'"):
        RunConfig(model="nowhere:make")
    with pytest.raises(ConfigurationError, match="expected 'module:function'"):
        RunConfig(model=":make")


@pytest.mark.parametrize(("page", "file"), [("own-models.md", "models.py"), ("own-data.md", "patients.py")])
def test_the_studies_of_the_pages_run(page, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spec.sys, "path", [*spec.sys.path])
    monkeypatch.setenv(spec.PLUGINS, "")
    text = (PAGE.parent / page).read_text()
    for kind, name in (("python", file), ("toml", "study.toml")):
        Path(name).write_text(re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1])
    try:
        study = load_study("study.toml", {"rounds": 2, "evaluate-every": 2})
        run_study(study, tmp_path / "out", engine="fast", workers=1)
        assert len(read_results(study, tmp_path / "out")) == 2
    finally:
        spec.sys.modules.pop(Path(file).stem, None)
