"""Targets: arrays of each kind become tensors of one form, and what does not fit is one sentence."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from flwr_robust.errors import ConfigurationError
from flwr_robust.tasks import Task, data, load_task, task_of
from flwr_robust.tasks.targets import IGNORED, TARGETS

X = np.arange(18, dtype=np.float32).reshape(6, 3) / 20
GOOD = {
    "class": (np.array([0, 1, 2, 0, 1, 2]), np.array([2, 0])),
    "values": (np.linspace(-1, 1, 6), np.array([0.5, 2.0])),
    "labels": (np.eye(6)[:, :4], np.array([[1, 1, 0, 0], [0, 0, 0, 0]])),
    "tokens": (np.arange(24).reshape(6, 4) % 7, np.array([[9, 1, IGNORED, IGNORED], [0, 0, 0, 0]])),
}


def made(kind, y_train=None, y_test=None):
    good_train, good_test = GOOD[kind]
    return task_of(
        "own",
        X,
        good_train if y_train is None else y_train,
        X[:2],
        good_test if y_test is None else y_test,
        target=kind,
    )


@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "classes", "scores"),
    [
        ("class", (6,), torch.int64, 3, (3,)),
        ("values", (6, 1), torch.float32, 1, (1,)),
        ("labels", (6, 4), torch.float32, 4, (4,)),
        ("tokens", (6, 4), torch.int64, 10, (4, 10)),
    ],
)
def test_each_kind_has_one_form(kind, shape, dtype, classes, scores):
    task = made(kind)
    assert (task.target, tuple(task.y_train.shape), task.y_train.dtype) == (kind, shape, dtype)
    assert (task.classes, task.scores) == (classes, scores)
    assert task.y_test.dtype == dtype
    np.testing.assert_allclose(task.y_train.reshape(GOOD[kind][0].shape), GOOD[kind][0], rtol=1e-6)
    numbers = task.class_numbers(task.y_train)
    assert numbers.tolist() == (GOOD["class"][0].tolist() if kind == "class" else [0] * 6)


def test_several_values_and_integers_are_values():
    task = made("values", np.arange(12).reshape(6, 2), np.zeros((2, 2), np.uint8))
    assert (task.classes, tuple(task.y_test.shape), task.y_train.dtype) == (2, (2, 2), torch.float32)


@pytest.mark.parametrize(
    ("kind", "y_train", "y_test", "words"),
    [
        ("class", np.eye(6), None, "pass y.argmax(1); if several labels may hold at once, say target='labels'"),
        ("class", np.linspace(0, 1, 6), None, "for real numbers say target='values'"),
        ("values", np.array(list("abcdef")), None, "finite real numbers (N,) or (N, K) with target='values'; got <U1"),
        ("values", np.array([0, 1, 2, 3, 4, np.nan]), None, "with NaN, Inf, or numbers beyond float32"),
        ("values", np.array([0, 1, 2, 3, 4, 1e300]), None, "with NaN, Inf, or numbers beyond float32"),
        ("values", np.zeros((6, 2, 2)), None, "of shape (6, 2, 2)"),
        ("values", np.zeros((6, 2)), None, "targets of one shape; got (6, 2) and (2,)"),
        ("labels", np.arange(6), None, "0 or 1 for each of K labels, shape (N, K)"),
        ("labels", np.full((6, 4), 0.5), None, "got float64 of shape (6, 4) with other numbers"),
        ("labels", None, np.zeros((2, 3)), "targets of one shape; got (6, 4) and (2, 3)"),
        ("tokens", np.zeros((6, 4)), None, "integers (N, T), tokens from 0 or -100"),
        ("tokens", np.full((6, 4), -1), None, "down to -1"),
        ("tokens", None, np.array([[0, 1, 2, 3], [IGNORED] * 4]), "sample 1 holds -100 alone: leave it out"),
        ("tokens", np.zeros(6, int), None, "of shape (6,)"),
        ("values", np.zeros(5), None, "x_train and y_train must have the same number of rows"),
    ],
)
def test_what_does_not_fit_is_one_sentence(kind, y_train, y_test, words):
    with pytest.raises(ConfigurationError, match=re.escape(words)) as error:
        made(kind, y_train, y_test)
    assert "task own: " in str(error.value)


def test_a_kind_that_does_not_exist_is_named():
    with pytest.raises(ConfigurationError, match="target must be one of class, labels, tokens, values; got target='v'"):
        task_of("own", X, X[:, 0], X, X[:, 0], target="v")


def test_a_file_says_its_kind(tmp_path):
    path = tmp_path / "houses.npz"
    np.savez(path, x_train=X, y_train=GOOD["values"][0], x_test=X[:2], y_test=GOOD["values"][1], target="values")
    assert (load_task(str(path)).target, load_task(str(path)).classes) == ("values", 1)
    np.savez(path, x_train=X, y_train=GOOD["class"][0], x_test=X[:2], y_test=GOOD["class"][1], target=np.zeros(2))
    with pytest.raises(ConfigurationError, match="target must be one of class"):
        load_task(str(path))


@pytest.mark.parametrize("kind", TARGETS)
def test_data_sets_of_torch_say_their_kind(kind):
    y_train, y_test = (torch.as_tensor(part) for part in GOOD[kind])
    parts = TensorDataset(torch.as_tensor(X), y_train), TensorDataset(torch.as_tensor(X[:2]), y_test)
    task = data._of_a_user("own", (*parts, kind))
    assert task.target == kind
    assert torch.equal(task.y_train, made(kind).y_train)
    if kind == "class":
        assert data._of_a_user("own", parts).target == "class"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"y_train": torch.zeros(6), "y_test": torch.zeros(2)},
            "y_train must be a tensor (N, K) of float32 with target='values'",
        ),
        ({"y_test": torch.zeros(2, 1, dtype=torch.float64)}, "y_test must be a tensor (N, K) of float32"),
        ({"classes": 4}, "classes must be the number of columns in y_train, 1; got classes=4"),
        ({"y_train": torch.full((6, 1), torch.inf)}, "with NaN, Inf"),
        ({"target": "numbers"}, "target must be one of"),
    ],
)
def test_a_task_of_ones_own_that_does_not_fit(changes, words):
    task = made("values")
    held = {key: getattr(task, key) for key in ("x_train", "y_train", "x_test", "y_test", "classes", "target")}
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        data._of_a_user("own", Task("own", **{**held, **changes}))


def test_tokens_may_be_more_than_the_targets_hold():
    task = made("tokens")
    held = {key: getattr(task, key) for key in ("x_train", "y_train", "x_test", "y_test", "target")}
    assert data._of_a_user("own", Task("own", **held, classes=50)).scores == (4, 50)
    with pytest.raises(ConfigurationError, match="classes must be the number of tokens"):
        data._of_a_user("own", Task("own", **held, classes=9))
