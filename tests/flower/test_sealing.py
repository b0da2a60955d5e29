"""Sealing: a state that only its owner can open, whoever keeps it."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from flwr_robust.errors import ConfigurationError
from flwr_robust.flower import serve
from flwr_robust.flower._compat import packed
from flwr_robust.flower.sealing import is_sealed, seal, unseal
from tests.flower_helpers import record

SECRET = b"known to one client"
STATE = RecordDict({"own": record({"w": np.arange(3.0)}), "told": ConfigRecord({"name": "a long enough name"})})


def test_a_sealed_state_is_opened_by_its_owner_alone():
    sealed = seal(STATE, SECRET)
    assert is_sealed(sealed)
    assert not is_sealed(STATE)
    assert packed(unseal(sealed, SECRET)) == packed(STATE)
    with pytest.raises(ValueError, match="sealed by another client, or changed"):
        unseal(sealed, b"of some other client")


def test_it_shows_neither_its_content_nor_that_it_is_the_same():
    one, other = (packed(seal(STATE, SECRET)) for _ in range(2))
    assert b"a long enough name" in packed(STATE)
    assert b"a long enough name" not in one
    assert one != other


@pytest.mark.parametrize("at", [0, 11, 12, 40, -1])
def test_it_cannot_be_changed(at):
    sealed = seal(STATE, SECRET)
    box = bytearray(sealed["sealed"]["box"])
    box[at] ^= 1
    with pytest.raises(ValueError, match="or changed"):
        unseal(RecordDict({"sealed": ConfigRecord({"box": bytes(box)})}), SECRET)


@pytest.mark.parametrize(
    "state",
    [
        RecordDict(),
        STATE,
        RecordDict({"sealed": MetricRecord({"box": 1})}),
        RecordDict({"sealed": ConfigRecord({"box": "text"})}),
        RecordDict({"sealed": ConfigRecord({"box": b"x"}), "more": ConfigRecord()}),
    ],
)
def test_what_is_not_sealed_is_not_taken(state):
    assert not is_sealed(state)
    with pytest.raises(ValueError, match="is not sealed"):
        unseal(state, SECRET)


def test_an_empty_box_is_not_taken():
    with pytest.raises(ValueError, match="or changed"):
        unseal(RecordDict({"sealed": ConfigRecord({"box": b""})}), SECRET)


@pytest.mark.parametrize("secret", [b"short", "a text of some length", None])
def test_a_secret_is_long_enough(secret):
    with pytest.raises(ConfigurationError, match="state_key must return at least 16 bytes, the client's secret; got"):
        seal(STATE, secret)


def test_a_key_goes_with_handing_over():
    for options in ({"state_key": lambda context: SECRET}, {"state_key": SECRET, "hand_over_state": True}):
        with pytest.raises(
            ConfigurationError, match=r"state_key must be a function \(Context\) -> bytes, with hand_over"
        ):
            serve(lambda context: None, **options)
