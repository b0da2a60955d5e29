"""The corruptions of RFA that were not there before: inputs, and the mean turned around."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from flwr_robust import ConfigurationError, Rows, parse
from flwr_robust.attacks.data import PixelInvert, PixelNoise
from flwr_robust.attacks.data.base import ClientView, data_attacks
from flwr_robust.attacks.message.base import Knowledge, View, message_attacks
from flwr_robust.seeds import torch_generator
from tests.oracles import basic as oracles


def never():
    raise AssertionError("the attack looked at the model")


def poisoned(attack, x, *, span=(0.0, 1.0), seed=0):
    """Inputs after an attack that leaves the labels alone."""
    labels = torch.arange(len(x)) % 10
    inputs, found = attack(x, labels, ClientView(10, torch.Generator().manual_seed(seed), never, span))
    assert torch.equal(found, labels)
    assert found is not labels
    return inputs


# -- inputs ------------------------------------------------------------------------------------------


def test_pixel_invert_mirrors_inputs_in_their_span():
    x = torch.tensor([[[[-1.0, -0.5], [0.0, 1.0]]]])
    assert poisoned(PixelInvert(), x, span=(-1.0, 1.0)).tolist() == [[[[1.0, 0.5], [0.0, -1.0]]]]
    assert poisoned(PixelInvert(), torch.tensor([[2.0, 5.0]]), span=(2.0, 8.0)).tolist() == [[8.0, 5.0]]
    kept = torch.rand(20, 1, 4, 4)
    x = kept.clone()
    twice = poisoned(PixelInvert(), poisoned(PixelInvert(), x))
    torch.testing.assert_close(twice, kept)
    assert torch.equal(x, kept)


def test_pixel_noise_has_the_spread_asked_for_and_stays_in_the_span():
    x = torch.full((400, 1, 5, 5), 3.0)
    inputs = poisoned(PixelNoise(sigma=0.1), x, span=(1.0, 5.0))
    assert float(inputs.std()) == pytest.approx(0.4, abs=0.012)  # three standard deviations of 10,000 draws
    assert float(inputs.mean()) == pytest.approx(3.0, abs=0.012)
    pairs = (inputs - 3).flatten(1)
    assert abs(float(torch.corrcoef(pairs[:, :2].T)[0, 1])) < 0.2  # each pixel draws for itself
    loud = poisoned(PixelNoise(sigma=5.0), x, span=(1.0, 5.0))
    assert (float(loud.min()), float(loud.max())) == (1.0, 5.0)
    assert bool((x == 3).all())
    assert not torch.equal(inputs, poisoned(PixelNoise(sigma=0.1), x, span=(1.0, 5.0), seed=1))
    assert torch.equal(inputs, poisoned(PixelNoise(sigma=0.1), x, span=(1.0, 5.0)))


@pytest.mark.parametrize("kind", [PixelInvert, PixelNoise])
def test_corrupted_inputs_are_as_many_as_p_says(kind):
    x = torch.full((4000, 1, 2, 2), 0.25)
    changed = (poisoned(kind(p=0.3), x) != x).flatten(1).any(1)
    assert float(changed.double().mean()) == pytest.approx(0.3, abs=0.03)
    assert poisoned(kind(p=0.0), x) is x
    assert kind().check(10, (3,)) is None
    assert kind().trial(x, torch.zeros(4000, dtype=torch.int64), (0.0, 1.0)) is None


def test_noise_without_a_spread_is_refused():
    with pytest.raises(ConfigurationError, match="pixel_noise: sigma must be a finite number and > 0; got sigma=0"):
        data_attacks.parse("pixel_noise(sigma=0)")


# -- the mean turned around --------------------------------------------------------------------------


def reversed_mean(honest, own, text="mean_reversal()", counts=None, granted=Knowledge.OMNISCIENT, **more):
    """Return what the attackers send."""
    held = (None, None) if counts is None else (counts[: len(honest)], counts[len(honest) :])
    parts = [Rows.from_tensor(torch.from_numpy(x), counts=c) for x, c in zip((honest, own), held, strict=True)]
    view = View(granted, honest=parts[0], own=parts[1], **more)
    attack = message_attacks.parse(text)
    crafted, state = attack.craft(view, attack.init(), torch_generator(0))
    assert float(state["strength"]) == attack.c
    return crafted.slice(0, crafted.d).numpy()


@settings(max_examples=40, deadline=None)
@given(
    some.integers(1, 6), some.integers(1, 6), some.integers(0, 99), some.sampled_from([0.5, 1.0, 3.0]), some.booleans()
)
def test_the_mean_becomes_the_opposite_of_what_it_would_have_been(n, f, seed, c, weighted):
    rng = np.random.default_rng(seed)
    honest, own = rng.standard_normal((n, 5)) + 1, rng.standard_normal((f, 5))
    counts = 10.0 ** rng.uniform(0, 3, n + f)
    text = f"mean_reversal(c={c}, weighted={weighted}, clamp=1.5)"
    crafted = reversed_mean(honest, own, text, counts)
    assert (crafted == crafted[0]).all()
    fields = {"weighted": weighted, "clamp": 1.5, "counts": counts}
    would, _ = oracles.mean(np.vstack([honest, own]), **fields)
    becomes, _ = oracles.mean(np.vstack([honest, crafted]), **fields)
    np.testing.assert_allclose(becomes, -c * would, rtol=1e-9, atol=1e-9 * np.abs(crafted).max())
    # So it does under the rule; and the other mean does something else.
    rule = parse(f"mean(weighted={weighted}, clamp=1.5)")
    everybody = Rows.from_tensor(torch.from_numpy(np.vstack([honest, crafted])), counts=counts)
    np.testing.assert_allclose(rule(everybody)[0].value, -c * would, rtol=1e-9, atol=1e-9 * np.abs(crafted).max())
    if n > 1:
        other, _ = oracles.mean(np.vstack([honest, crafted]), weighted=not weighted, clamp=1.5, counts=counts)
        assert np.abs(other + c * would).max() > 1e-6


def test_it_is_ipm_at_one_strength_where_all_messages_are_alike():
    honest = np.tile([1.0, -2.0], (6, 1))
    crafted = reversed_mean(honest, honest[:2])
    # (c n + n - f) / f = (8 + 6) / 2 = 7.
    np.testing.assert_allclose(crafted, -7 * honest[:2])
    ipm = message_attacks.parse("ipm(epsilon=7.0)")
    view = View(Knowledge.OMNISCIENT, honest=Rows.from_tensor(torch.from_numpy(honest)),
                own=Rows.from_tensor(torch.from_numpy(honest[:2])))  # fmt: skip
    np.testing.assert_allclose(ipm.craft(view, {}, torch_generator(0))[0].slice(0, 2), crafted)


def test_a_median_does_not_turn_around():
    rng = np.random.default_rng(0)
    honest, own = rng.standard_normal((15, 8)) * 0.1 + 1, rng.standard_normal((5, 8)) * 0.1 + 1
    everybody = torch.from_numpy(np.vstack([honest, reversed_mean(honest, own)]))
    for rule, near in (("mean()", -1.0), ("geometric_median(f=5)", 1.0), ("median(f=5)", 1.0)):
        value = parse(rule)(Rows.from_tensor(everybody))[0].value
        assert float(value.mean()) == pytest.approx(near, abs=0.15)


@pytest.mark.parametrize(("known", "granted"), [("2", Knowledge.PARTIAL), ("'own'", Knowledge.OWN)])
def test_what_is_not_seen_is_taken_to_be_as_the_rest(known, granted):
    rng = np.random.default_rng(1)
    honest, own = rng.standard_normal((6, 4)) + 2, rng.standard_normal((3, 4)) + 2
    text = f"mean_reversal(known={known})"
    crafted = reversed_mean(honest, own, text, granted=granted, known=2 if known == "2" else None)
    seen = honest[:2] if known == "2" else own
    # With all six as the mean of those seen, the mean would turn around.
    guessed = np.tile(seen.mean(0), (6, 1))
    expected, _ = oracles.mean(np.vstack([guessed, own]))
    np.testing.assert_allclose(oracles.mean(np.vstack([guessed, crafted]))[0], -expected, rtol=1e-9)
    # It cannot depend on what it does not see.
    other = honest.copy()
    other[2:] += 50
    more = {"granted": granted, "known": 2 if known == "2" else None}
    np.testing.assert_array_equal(reversed_mean(other, own, text, **more), crafted)
    assert not np.array_equal(reversed_mean(other, own), reversed_mean(honest, own))


def test_without_numbers_of_examples_all_weigh_the_same():
    honest, own = np.ones((4, 2)), np.ones((1, 2))
    np.testing.assert_array_equal(
        reversed_mean(honest, own, "mean_reversal(weighted=True)"), reversed_mean(honest, own)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mean_reversal(c=0)", "mean_reversal: c must be a finite number and > 0; got c=0"),
        ("mean_reversal(clamp=0.5)", "mean_reversal: clamp must be a finite number and >= 1; got clamp=0.5"),
        ("mean_reversal(weighted=1)", "mean_reversal: weighted must be True or False; got weighted=1"),
        ("mean_reversal(known=0)", "mean_reversal: known"),
    ],
)
def test_fields_outside_their_bounds_are_refused(text, words):
    with pytest.raises(ConfigurationError, match=words):
        message_attacks.parse(text)
