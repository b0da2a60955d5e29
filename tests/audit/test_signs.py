"""Signs of an attack in the events of a log: what is found, what is not, and how often chance alone is suspected."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flwr_robust.audit import Aggregated, ReplyAbstained, ReplyAdmitted, ReplyRefused, RoundConfigured
from flwr_robust.audit.digest import Fingerprints
from flwr_robust.audit.signs import DRIFT, DUPLICATE, FAILING, REPLAY, Signs


def a_round(number, prints=None, *, asked=None, refused=(), abstained=(), angles=None):
    """The events of a round, in the order of a log."""
    prints = prints or {}
    nodes = tuple(angles if angles is not None else prints)
    yield RoundConfigured(number, "train", tuple(asked or (*nodes, *refused, *abstained)))
    for node in nodes:
        yield ReplyAdmitted(number, "train", node, fingerprint=prints.get(node, ""))
    for node in refused:
        yield ReplyRefused(number, "train", node, None, "ERROR")
    for node in abstained:
        yield ReplyAbstained(number, "train", node)
    yield Aggregated(number, "OK", "", "", "", nodes, angles=tuple((angles or {}).values()))


def fingerprint(update, sent, seed):
    return Fingerprints(sent, seed).of(update)


def found(signs, events):
    return [(each.round, each.node, each.sign) for event in events for each in signs.take(event)]


def test_identical_updates_of_a_round_and_of_earlier_ones_are_found():
    signs = Signs()
    assert found(signs, a_round(1, {5: "a", 6: "a", 7: "b", 8: "", 9: ""})) == [(1, 5, DUPLICATE), (1, 6, DUPLICATE)]
    assert found(signs, a_round(2, {5: "c", 6: "d"})) == []
    assert found(signs, a_round(3, {5: "c", 8: "b"})) == [(3, 5, REPLAY), (3, 8, REPLAY)]


def test_a_fingerprint_is_forgotten_after_a_hundred_rounds():
    for gap, expected in ((100, [REPLAY]), (101, [])):
        signs = Signs()
        found(signs, a_round(1, {5: "a"}))
        for number in range(2, 1 + gap):
            assert found(signs, a_round(number, {5: f"b{number}"})) == []
        assert [sign for *_, sign in found(signs, a_round(1 + gap, {6: "a"}))] == expected
    assert len(signs._first) <= 100 + 1


def test_errors_and_silence_in_a_row_are_found_at_three_and_every_doubling():
    signs, told = Signs(), []
    for number in range(1, 14):
        told += found(signs, a_round(number, {5: f"{number}"}, asked=(5, 6, 7, 8), refused=(6,), abstained=(8,)))
    assert told == [(number, node, FAILING) for number in (3, 6, 12) for node in (6, 7)]
    found(signs, a_round(14, {6: "back"}))
    assert found(signs, a_round(15, {}, refused=(6,))) == []


def test_what_a_strategy_asks_for_in_evaluation_is_no_sign():
    signs = Signs()
    for number in range(1, 9):
        events = [RoundConfigured(number, "evaluate", (5, 6)), ReplyRefused(number, "evaluate", 5, None, "ERROR")]
        assert found(signs, events) == []


def angles_of(cosines):
    return {node: math.degrees(math.acos(cosine)) for node, cosine in enumerate(cosines)}


def test_a_client_that_is_always_on_one_side_is_suspected_after_24_rounds():
    draws, signs, told = np.random.default_rng(0), Signs(), []
    for number in range(1, 60):
        cosines = [*draws.uniform(0.3, 0.9, 9), 0.1]
        told += found(signs, a_round(number, angles=angles_of(cosines)))
    assert told == [(24, 9, DRIFT), (48, 9, DRIFT)]


def test_clients_that_differ_among_each_other_all_the_time_are_not_suspected():
    draws, signs = np.random.default_rng(1), Signs()
    for number in range(1, 200):
        cosines = np.linspace(0.1, 0.9, 10) + draws.uniform(0, 0.01, 10)
        assert found(signs, a_round(number, angles=angles_of(cosines))) == []


def test_clients_that_drift_one_after_the_other_are_suspected_up_to_a_quarter():
    """Beyond that it is the data: the old way suspected every one of them in the end."""
    draws, signs, told = np.random.default_rng(7), Signs(), []
    for number in range(1, 400):
        cosines = draws.uniform(0.3, 0.9, 10)
        cosines[: number // 60] = 0.1  # one client more in every 60 rounds
        told += found(signs, a_round(number, angles=angles_of(cosines)))
    assert {node for _, node, _ in told} == {0, 1}


def test_chance_alone_is_suspected_as_rarely_as_the_bound_says():
    """400,000 rounds of clients; the mean number to a false alarm is at least 500,000, so at most 0.8 are expected."""
    draws, signs, told = np.random.default_rng(2), Signs(), []
    for number in range(1, 4_001):
        told += found(signs, a_round(number, angles=angles_of(draws.uniform(-0.2, 0.9, 100))))
    assert len(told) <= 4


def test_a_drift_is_found_although_the_aggregate_is_unknown_in_some_rounds():
    draws, signs, told = np.random.default_rng(6), Signs(), []
    for number in range(1, 60):
        angles = angles_of([*draws.uniform(0.3, 0.9, 4), 0.1])
        told += found(signs, a_round(number, angles=angles if number % 3 else dict.fromkeys(angles)))
    assert {node for _, node, _ in told} == {4}


@pytest.mark.parametrize("size", [3, 1 << 14, (1 << 14) + 1, 100_000])
def test_a_fingerprint_is_that_of_identical_updates_alone(size):
    draws = np.random.default_rng(3)
    sent = {"a": np.zeros(7, np.float32), "w": draws.standard_normal(size).astype(np.float32)}
    update = {name: values + np.float32(1) for name, values in sent.items()}
    own = fingerprint(update, sent, 0)
    assert len(own) == 32
    assert fingerprint({name: values.copy() for name, values in update.items()}, sent, 0) == own
    noisy = {name: values + draws.standard_normal(values.shape).astype(np.float32) for name, values in sent.items()}
    assert fingerprint(noisy, sent, 0) != own


def test_the_order_in_memory_does_not_change_a_fingerprint():
    values = np.random.default_rng(4).standard_normal((300, 200)).astype(np.float32)
    assert fingerprint({"w": np.asfortranarray(values)}, {}, 0) == fingerprint({"w": values}, {}, 0)


@pytest.mark.parametrize("size", [5, 100_000])
def test_zeros_and_unchanged_models_have_no_fingerprint(size):
    sent = {"w": np.random.default_rng(5).standard_normal(size).astype(np.float32)}
    assert fingerprint(sent, sent, 0) == fingerprint({"w": np.zeros(size, np.float32)}, sent, 0) == ""
    assert fingerprint({"1/w": sent["w"]}, sent, 0)


def test_a_large_update_is_read_at_places_that_the_seed_decides():
    update = {"w": np.zeros(1_000_000, np.float32)}
    update["w"][::50_000] = 1
    prints = {fingerprint(update, {}, seed) for seed in range(200)}
    assert len(prints) > 20
    assert fingerprint(update, {}, 3) == fingerprint(update, {}, 3)
