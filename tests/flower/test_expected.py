"""The model that is sent: which can be, and what it demands of replies."""

from __future__ import annotations

import numpy as np
import pytest

from flwr_robust import ConfigurationError
from flwr_robust.flower.expected import SentModel, idle_patterns
from flwr_robust.protocol.buffers import STATISTICS
from tests.flower_helpers import record

MODEL = {"weight": np.zeros((2, 3), np.float32), "bias": np.array([1.0, -1.0], np.float32), "steps": np.int64(5)}

UNUSABLE = {
    "complex": (np.zeros(2, np.complex64), "must hold float16/32/64"),
    "longdouble": (np.zeros(2, np.longdouble), "must hold float16/32/64"),
    "big-endian": (np.zeros(2, ">f4"), "must hold float16/32/64"),
    "big-endian integers": (np.zeros(2, ">i8"), "must hold float16/32/64"),
    "text": (np.array(["a", "b"]), "cannot be used"),
}


@pytest.mark.parametrize(("values", "sentence"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_model_of_other_numbers_cannot_be_sent(values, sentence):
    with pytest.raises(ConfigurationError, match=f"'odd'.*{sentence}|{sentence}.*'odd'"):
        SentModel(record({"fine": np.zeros(2, np.float32), "odd": values}))


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"steps": np.zeros(3, np.int64)},
        {"mask": np.zeros(3, bool), "steps": np.int32(1)},
        {"empty": np.zeros((0, 3), np.float32)},
    ],
    ids=["empty", "integers", "integers and booleans", "float but no element"],
)
def test_a_model_without_floating_point_numbers_cannot_be_sent(model):
    with pytest.raises(ConfigurationError, match="at least one floating-point array"):
        SentModel(record(model))


def test_a_model_that_cannot_be_read_cannot_be_sent():
    broken = record(MODEL)
    broken["bias"].data += b"\0"
    with pytest.raises(ConfigurationError, match=r"'bias' cannot be used: it holds 9 bytes"):
        SentModel(broken)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_model_of_ordinary_numbers_can_be_sent(dtype):
    model = {"w": np.zeros((2, 2), dtype), "n": np.uint8(3), "m": np.zeros(2, bool), "e": np.zeros((0, 1), dtype)}
    sent = SentModel(record(model))
    assert list(sent.arrays) == list(model)
    assert sent.arrays["w"].dtype == dtype


def test_a_model_that_is_not_finite_is_refused_before_it_is_sent():
    with pytest.raises(ConfigurationError, match="'w' must be finite"):
        SentModel(record({"w": np.array([1, np.nan], np.float32)}))


def test_a_model_demands_its_arrays_whatever_a_reply_holds_and_no_abstention():
    sent = SentModel(record(MODEL))
    for names in ([], ["bias"], ["other"]):
        assert list(sent.demanded(names)) == list(MODEL)
    assert not sent.may_abstain


def test_the_model_stays_what_others_do_to_their_record():
    theirs = record(MODEL)
    sent = SentModel(theirs)
    del theirs["bias"]
    assert list(sent.record) == list(sent.arrays) == list(MODEL)


def test_the_model_knows_which_of_its_arrays_are_learnt():
    model = {
        "a": np.zeros(2),
        "n.running_var": np.zeros(2),
        "dense/kernel": np.zeros(2),
        "norm/moving_mean": np.zeros(2),
    }
    assert SentModel(record(model)).learnt == (0, 2, 3)
    assert SentModel(record(model), ("*/moving_*",)).learnt == (0, 1, 2)


def test_patterns_that_match_nothing_are_found():
    assert idle_patterns(["w", "b"], STATISTICS) == []  # most models have no BatchNorm
    assert idle_patterns(["w", "a/moving_mean"], ("*/moving_mean", "*/moving_var", *STATISTICS)) == ["*/moving_var"]
