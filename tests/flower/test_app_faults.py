"""App faults: told only where every answer is refused for one reason, with a remedy for each."""

from __future__ import annotations

import pytest

from flwr_robust.flower import Reason, Refusal
from flwr_robust.flower.app_faults import app_fault

ASKED = range(2, 8)


def all_of(reason, nodes=ASKED):
    return [Refusal(node, reason, "what was found") for node in nodes]


NOBODYS = (Reason.NOT_ASKED, Reason.DUPLICATE, Reason.BANNED)


@pytest.mark.parametrize("reason", [each for each in Reason if each not in NOBODYS])
def test_every_reason_has_its_remedy(reason):
    told = app_fault(ASKED, all_of(reason))
    assert told.startswith("all 6 nodes that answered were refused for one reason")
    assert f"{reason.value} (what was found); " in told
    assert len(told.rpartition("; ")[2]) > 20
    assert "\n" not in told


@pytest.mark.parametrize("reason", NOBODYS)
def test_what_says_nothing_of_the_app(reason):
    assert app_fault(ASKED, all_of(reason)) == ""


def test_one_other_answer_is_enough_to_doubt():
    assert app_fault(ASKED, [*all_of(Reason.NAMES, range(2, 7)), *all_of(Reason.SHAPE, [7])]) == ""
    assert app_fault(ASKED, []) == ""


def test_a_minority_that_answers_says_nothing_of_the_app():
    assert app_fault(ASKED, all_of(Reason.NAMES, range(2, 5))) == ""  # half of six
    assert "all 4 nodes" in app_fault(ASKED, all_of(Reason.NAMES, range(2, 6)))


def test_messages_that_answer_nothing_do_not_count():
    noise = [Refusal(3, Reason.DUPLICATE), Refusal(99, Reason.NOT_ASKED), Refusal(99, Reason.NAMES)]
    assert app_fault(ASKED, [*all_of(Reason.SHAPE), *noise]).startswith("all 6 nodes")
    assert app_fault(ASKED, noise * 9) == ""
    # An error in a node's name and then its own answer are two reasons.
    assert app_fault(ASKED, [*all_of(Reason.SHAPE), Refusal(2, Reason.ERROR)]) == ""
