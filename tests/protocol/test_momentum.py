"""The momentum message: the recursion, and nothing changed on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError
from flwr_robust.aggregators import Mean, TrimmedMean
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Outcome
from flwr_robust.protocol.messages import message_kind
from flwr_robust.protocol.momentum import HeavyBall, check_alpha, heavy_ball, momentum_step
from flwr_robust.protocol.rounds import ServerStep, settle_round
from flwr_robust.runs.config import RunConfig


def test_the_first_step_is_the_gradient_and_a_copy():
    gradient = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    first = momentum_step(None, gradient, 0.1)
    assert all(torch.equal(m, g) for m, g in zip(first, gradient, strict=True))
    gradient[0].zero_()
    assert first[0].tolist() == [1, 2]


def test_three_steps_by_hand():
    # m0 = 8; m1 = 0.75 * 8 + 0.25 * 0 = 6; m2 = 0.75 * 6 + 0.25 * 4 = 5.5
    momentum = None
    seen = []
    for gradient in (8.0, 0.0, 4.0):
        momentum = momentum_step(momentum, [torch.tensor([gradient])], 0.25)
        seen.append(float(momentum[0]))
    assert seen == [8, 6, 5.5]


def test_alpha_one_sends_gradients():
    gradient = [torch.tensor([0.1, -7.0])]
    assert torch.equal(momentum_step([torch.tensor([5.0, 5.0])], gradient, 1.0)[0], gradient[0])


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 1.0), st.integers(1, 12), st.integers(0, 10**6))
def test_steps_are_the_weighted_sum(alpha, rounds, seed):
    # m_t = (1 - alpha)^t g_0 + alpha sum_s (1 - alpha)^(t - s) g_s
    gradients = torch.randn(rounds, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    momentum = None
    for gradient in gradients:
        momentum = momentum_step(momentum, [gradient], alpha)
    t = rounds - 1
    expected = (1 - alpha) ** t * gradients[0]
    for s in range(1, rounds):
        expected = expected + alpha * (1 - alpha) ** (t - s) * gradients[s]
    torch.testing.assert_close(momentum[0], expected)


def test_arguments_are_not_changed():
    previous, gradient = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])]
    momentum_step(previous, gradient, 0.5)[0].zero_()
    assert previous[0].tolist() == [1, 2]
    assert gradient[0].tolist() == [3, 4]


def test_layers_must_match():
    with pytest.raises(ValueError, match="zip"):
        momentum_step([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)], 0.5)


@pytest.mark.parametrize("alpha", [1e-9, 0.1, 1, 1.0])
def test_alpha_inside_its_bounds(alpha):
    check_alpha(alpha)


@pytest.mark.parametrize("alpha", [0, 0.0, -0.1, 1.0001, float("nan"), float("inf"), "0.1", None, True])
def test_alpha_outside_its_bounds(alpha):
    with pytest.raises(ConfigurationError, match=r"momentum: alpha must be a finite number and > 0 and <= 1; got"):
        check_alpha(alpha)


# -- the server's ------------------------------------------------------------------------------------


def test_the_servers_three_steps_by_hand():
    # v0 = 8; v1 = 0.5 * 8 + 0 = 4; v2 = 0.5 * 4 + 4 = 6
    velocity, seen = None, []
    for aggregate in (8.0, 0.0, 4.0):
        velocity = heavy_ball(velocity, torch.tensor([aggregate]), 0.5)
        seen.append(float(velocity[0]))
    assert seen == [8, 4, 6]


def test_a_constant_aggregate_is_stepped_along_farther_and_farther():
    velocity, aggregate = None, torch.tensor([1.0, -3.0], dtype=torch.float64)
    for _ in range(400):
        velocity = heavy_ball(velocity, aggregate, 0.9)
    torch.testing.assert_close(velocity, aggregate / (1 - 0.9))
    assert aggregate.tolist() == [1, -3]
    assert heavy_ball(None, aggregate, 0.9).data_ptr() != aggregate.data_ptr()


def settled(state, momentum, value=1.0, rule=None):
    rows = Rows.from_layers([[torch.full((2,), value, dtype=torch.float64)]] * 3)
    step = ServerStep(message_kind("delta"), 1.0, HeavyBall(momentum))
    return settle_round(rule or Mean(), {None: rows}, state, step)


def test_the_velocity_lasts_from_round_to_round_and_without_momentum_there_is_none():
    first = settled(Mean().init(), 0.5)
    second = settled(first.state, 0.5, 4.0)
    assert first.change.tolist() == [1, 1]
    assert second.change.tolist() == [4.5, 4.5]
    assert second.aggregate.value.tolist() == [4, 4]
    plain = settled(Mean().init(), 0.0)
    assert (plain.change.tolist(), plain.state) == ([1, 1], {})


def test_the_velocity_of_the_largest_rows_is_finite():
    largest, state = 5e152, Mean().init()
    for _ in range(20):
        found = settled(state, 1 - 2**-53, largest)
        state = found.state
    assert found.outcome is Outcome.OK
    assert np.isfinite(found.change).all()


def test_an_infeasible_round_keeps_the_velocity():
    first = settled(Mean().init(), 0.5)
    found = settled(first.state, 0.5, rule=TrimmedMean(f=2))
    assert found.change is None
    assert found.state is first.state


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"server-momentum": 1.0}, r"server-momentum must be a finite number >= 0 and < 1; got server-momentum=1"),
        ({"server-momentum": -0.1}, r"server-momentum must be a finite number >= 0 and < 1"),
        (
            {"server-momentum": 0.5, "message": "class_momentum"},
            "server-momentum=0.5 changes nothing .*leave server-momentum out",
        ),
    ],
)
def test_a_wrong_server_momentum_is_refused(keys, words):
    with pytest.raises(ConfigurationError, match=words):
        RunConfig.from_mapping(keys)
