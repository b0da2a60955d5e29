"""The objective: losses and metrics against scikit-learn and numpy in float64, and functions of a user's own."""

import math
import re

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from flwr_robust.core import spec
from flwr_robust.errors import ConfigurationError, UnknownNameError
from flwr_robust.tasks.objective import CLASSES, LOSSES, Loss, Objective, OwnMetric, load_loss, load_metrics
from flwr_robust.tasks.targets import IGNORED, TARGETS

DRAW = np.random.default_rng(3)


def objective(target, loss="", own=()):
    name = loss or TARGETS[target].losses[0]
    return Objective(target, Loss(name, LOSSES[name]), tuple(own))


def measured(target, scores, y, **options):
    """Measure scores that are the inputs themselves."""
    return objective(target, **options).evaluate(lambda x: x, torch.as_tensor(scores), torch.as_tensor(y))


def softmax(scores):
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


# -- classes -----------------------------------------------------------------------------------------


def drawn_classes(n, classes, occurring):
    """Return scores that often are right, and labels of which some classes never occur."""
    y = DRAW.integers(0, occurring, n)
    scores = DRAW.normal(size=(n, classes)).astype(np.float32)
    scores[np.arange(n), y] += 1.5
    return scores, y


def binned_error(scores, y, bins=15):
    """Compute the calibration error bin by bin, as the paper writes it."""
    sure, right = softmax(scores.astype(np.float64)).max(1), scores.argmax(1) == y
    total = 0.0
    for m in range(bins):
        inside = (sure > m / bins) & (sure <= (m + 1) / bins)
        if inside.any():
            total += inside.sum() / len(y) * abs(right[inside].mean() - sure[inside].mean())
    return total


@pytest.mark.parametrize(("n", "classes", "occurring"), [(1, 3, 3), (300, 4, 4), (2500, 10, 7), (999, 2, 2)])
def test_metrics_of_classes(n, classes, occurring):
    scores, y = drawn_classes(n, classes, occurring)
    found, predicted = measured("class", scores, y), scores.argmax(1)
    recalls = sk.recall_score(y, predicted, labels=np.unique(y), average=None, zero_division=0)
    assert found == {
        "loss": pytest.approx(sk.log_loss(y, softmax(scores.astype(float)), labels=range(classes)), rel=1e-9),
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": pytest.approx(recalls.mean(), abs=1e-12),
        "macro_f1": pytest.approx(sk.f1_score(y, predicted, average="macro", zero_division=0), abs=1e-12),
        "worst_class": pytest.approx(recalls.min(), abs=1e-12),
        "calibration_error": pytest.approx(binned_error(scores, y), abs=1e-9),
    }
    assert tuple(found) == TARGETS["class"].metrics


def test_loss_and_accuracy_keep_their_bits():
    # As they were before there were other metrics: recorded results hold them.
    scores, y = (torch.as_tensor(part) for part in drawn_classes(2500, 10, 10))
    loss, right = 0.0, 0
    for some, labels in zip(torch.split(scores, 1000), torch.split(y, 1000), strict=True):
        loss += float(nn.functional.cross_entropy(some.double(), labels, reduction="sum"))
        right += int((some.argmax(1) == labels).sum())
    found = CLASSES.evaluate(lambda x: x, scores, y)
    assert (found["loss"], found["accuracy"]) == (loss / 2500, right / 2500)


def test_metrics_of_classes_by_hand():
    # Class 0: 3 of 4 right. Class 1: 1 of 2 right. Class 2 does not occur, and is claimed once.
    scores = np.log([[0.8, 0.1, 0.1]] * 3 + [[0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])
    found = measured("class", scores.astype(np.float32), [0, 0, 0, 0, 1, 1])
    assert found["accuracy"] == 4 / 6
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["worst_class"] == 1 / 2
    assert found["macro_f1"] == pytest.approx((6 / 8 + 2 / 3 + 0) / 3)
    assert found["calibration_error"] == pytest.approx(0.8 - 4 / 6, abs=1e-6)


def test_certainty_that_is_right_is_calibrated_and_that_is_wrong_is_not():
    scores, y = np.eye(3, dtype=np.float32) * 100, np.arange(3)
    assert measured("class", scores, y)["calibration_error"] == pytest.approx(0, abs=1e-9)
    assert measured("class", scores, (y + 1) % 3)["calibration_error"] == pytest.approx(1, abs=1e-9)


def test_scores_that_are_no_numbers_are_measured_too():
    found = measured("class", np.full((4, 2), np.nan, np.float32), [0, 1, 0, 1])
    assert math.isnan(found["loss"])
    assert math.isnan(found["calibration_error"])
    assert 0 <= found["accuracy"] <= 1


# -- other targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 2300])
@pytest.mark.parametrize("outputs", [1, 3])
def test_metrics_of_values(n, outputs):
    y = DRAW.normal(2, 3, size=(n, outputs)).astype(np.float32)
    scores = (y + DRAW.normal(size=y.shape)).astype(np.float32)
    found = measured("values", scores, y)
    s, t = scores.astype(np.float64), y.astype(np.float64)
    assert found["loss"] == pytest.approx(sk.mean_squared_error(t, s), rel=1e-12)
    assert found["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error(t, s), rel=1e-12)
    assert found["root_mean_squared_error"] == pytest.approx(np.sqrt(sk.mean_squared_error(t, s)), rel=1e-12)
    if n > 1:
        assert found["r2"] == pytest.approx(sk.r2_score(t, s), rel=1e-9)
    assert tuple(found) == TARGETS["values"].metrics
    assert measured("values", scores, y, loss="absolute_error")["loss"] == found["mean_absolute_error"]
    error = np.abs(s - t)
    huber = np.where(error <= 1, error**2 / 2, error - 0.5).mean()
    assert measured("values", scores, y, loss="huber")["loss"] == pytest.approx(huber, rel=1e-9)


@pytest.mark.parametrize(
    ("scores", "y", "r2"), [([[1.0], [1.0]], [[1.0], [1.0]], 1), ([[1.0], [2.0]], [[1.0], [1.0]], 0)]
)
def test_equal_targets_are_explained_or_not(scores, y, r2):
    assert measured("values", scores, y)["r2"] == r2 == sk.r2_score(y, scores)


@pytest.mark.parametrize(("n", "labels"), [(1, 2), (1400, 5)])
def test_metrics_of_labels(n, labels):
    y = (DRAW.random((n, labels)) < 0.3).astype(np.float32)
    scores = (2 * y - 1 + 1.5 * DRAW.normal(size=y.shape)).astype(np.float32)
    found, predicted = measured("labels", scores, y), scores > 0
    used = (y.sum(0) + predicted.sum(0)) > 0
    each = sk.f1_score(y, predicted, average=None, zero_division=0)[used]
    chance = 1 / (1 + np.exp(-scores.astype(np.float64)))
    assert found == {
        "loss": pytest.approx(-np.log(np.where(y > 0, chance, 1 - chance)).mean(), rel=1e-9),
        "accuracy": pytest.approx((predicted == y).mean(), abs=1e-12),
        "macro_f1": pytest.approx(each.mean() if used.any() else 1.0, abs=1e-12),
        "exact_match": pytest.approx(sk.accuracy_score(y, predicted), abs=1e-12),
    }


def test_nothing_to_find_and_nothing_claimed_is_all_right():
    found = measured("labels", np.full((3, 2), -1, np.float32), np.zeros((3, 2), np.float32))
    assert (found["macro_f1"], found["exact_match"]) == (1, 1)
    assert measured("labels", np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32))["macro_f1"] == 0


def test_metrics_of_tokens_count_what_counts():
    y = DRAW.integers(0, 6, (700, 9))
    y[DRAW.random(y.shape) < 0.2] = IGNORED
    y[:, 0] = 3
    scores = DRAW.normal(size=(*y.shape, 6)).astype(np.float32)
    held = y != IGNORED
    logs = np.log(softmax(scores.astype(np.float64)))[held][np.arange(held.sum()), y[held]]
    assert measured("tokens", scores, y) == {
        "loss": pytest.approx(-logs.mean(), rel=1e-9),
        "accuracy": pytest.approx((scores.argmax(-1) == y)[held].mean(), abs=1e-12),
        "perplexity": pytest.approx(np.exp(-logs.mean()), rel=1e-9),
    }


def test_long_samples_are_scored_few_at_a_time():
    sizes = []

    def score(x):
        sizes.append(len(x))
        return torch.zeros(*x.shape, 4)

    objective("tokens").evaluate(score, torch.zeros(10, 400), torch.zeros(10, 400, dtype=torch.int64))
    assert sizes == [2] * 5
    huge = objective("tokens").evaluate(
        lambda x: torch.tensor([0.0, 1e9]).expand(*x.shape, 2), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    )
    assert huge["perplexity"] == math.inf


# -- a user's own ------------------------------------------------------------------------------------

FUNCTIONS = '''
import torch
from torch.nn.functional import cross_entropy

def weighted(scores, y):
    """A loss with weights in float32, as users write it."""
    return cross_entropy(scores, y, weight=torch.tensor([1.0, 5.0]))

def first(scores, y):
    return (scores.argmax(1) == y)[0]

def vector(scores, y):
    return (scores[:, 0] - y) ** 2

def number(scores, y):
    return 3.0

def infinite(scores, y):
    return scores.sum() * float("nan")

def constant(scores, y):
    return torch.tensor(2.0)

def raises(scores, y):
    raise RuntimeError("no such width")

def text(scores, y):
    return "good"

def accuracy(scores, y):
    return 0.5
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return how a configuration names one of the functions above."""
    monkeypatch.setattr(spec.sys, "path", [*spec.sys.path])
    monkeypatch.setenv(spec.PLUGINS, "")
    path = tmp_path / f"functions_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(FUNCTIONS)
    yield lambda function: f"{path}:{function}"
    spec.sys.modules.pop(path.stem, None)


def check(loss=CLASSES.loss, metrics=()):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 2))
    y = torch.tensor([0, 1])
    before = [array.clone() for array in model.state_dict().values()]
    Objective("class", loss, metrics).check(model, torch.zeros(2, 3), y, torch.tensor([0, 1, 1, 0, 1]))
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_an_own_loss_is_the_mean_over_parts_weighted_by_size(own):
    loss = load_loss(own("weighted"))
    check(loss)
    scores, y = drawn_classes(1300, 2, 2)
    found = Objective("class", loss).evaluate(lambda x: x, torch.as_tensor(scores), torch.as_tensor(y))
    each = -np.log(softmax(scores.astype(float)))[np.arange(1300), y]
    weights = np.array([1.0, 5.0])[y]
    parts = [np.average(each[part], weights=weights[part]) for part in (slice(1000), slice(1000, None))]
    assert found["loss"] == pytest.approx((1000 * parts[0] + 300 * parts[1]) / 1300, rel=1e-5)
    assert found["accuracy"] == measured("class", scores, y)["accuracy"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("vector", "got shape (2,): return the mean over the batch"),
        ("number", "as a tensor; got float"),
        ("infinite", "got nan"),
        ("constant", "got one that does not depend on the scores"),
        ("raises", "fails on scores (2, 2) and targets (2,) (RuntimeError: no such width)"),
    ],
)
def test_an_own_loss_that_does_not_fit_is_one_sentence(own, function, words):
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        check(load_loss(own(function)))


def test_own_metrics_see_all_samples_at_once(own):
    worst, (metric,) = load_metrics(f"worst_client, {own('first')}")
    assert worst
    check(metrics=(metric,))
    scores, y = drawn_classes(1500, 3, 3)
    seen = []
    spy = OwnMetric("spy", lambda s, t: seen.append((s.shape, t.shape, s.device.type)) or 7)
    found = measured("class", scores, y, own=[metric, spy])
    assert found["first"] == float(scores[0].argmax() == y[0])
    assert found["spy"] == 7.0
    assert seen == [((1500, 3), (1500,), "cpu")]
    assert tuple(found) == (*TARGETS["class"].metrics, "first", "spy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{raises}", "metric raises: its function fails on scores (5, 2) and targets (5,) (RuntimeError"),
        ("{text}", "let it return one number"),
    ],
)
def test_an_own_metric_that_does_not_fit_is_one_sentence(own, text, words):
    names = {name: own(name) for name in ("raises", "text")}
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        check(metrics=load_metrics(text.format(**names))[1])


def test_names_of_metrics_are_checked(own):
    with pytest.raises(UnknownNameError, match=r"unknown metric 'auc'.*worst_client"):
        load_metrics("auc")
    with pytest.raises(ConfigurationError, match="accuracy is the name of another number"):
        load_metrics(own("accuracy"))
    with pytest.raises(ConfigurationError, match="got first twice"):
        load_metrics(f"{own('first')},{own('first')}")
    with pytest.raises(ConfigurationError, match="has no function 'second'"):
        load_metrics(own("second"))
    assert load_metrics(" ") == (False, ())


def test_names_of_losses_are_checked():
    assert load_loss("auto") is None
    assert load_loss("huber") == Loss("huber", LOSSES["huber"])
    with pytest.raises(UnknownNameError, match=r"unknown loss 'hubert'\. Did you mean 'huber'"):
        load_loss("hubert")


def test_every_target_has_a_loss_and_metrics():
    assert {loss for target in TARGETS.values() for loss in target.losses} == {*LOSSES}
    assert all(target.metrics[0] == "loss" for target in TARGETS.values())
