"""Seeds of rounds: one integer, a secret chain that commits to itself, and what is revealed of one."""

from __future__ import annotations

import hashlib

import pytest

from flwr_robust.errors import ConfigurationError
from flwr_robust.round_seeds import LENGTH, Chain, FixedSeed, RevealedSeed, SecretSeed, round_seeds

DOMAIN = b"flwr-robust round seeds 1\0"


def naive(last, key):
    """All keys of a chain, the last one first computed."""
    keys = [key]
    for _ in range(last):
        keys.append(hashlib.sha256(DOMAIN + keys[-1]).digest())
    return keys[::-1]


@pytest.mark.parametrize("last", [1, 2, 255, 256, 257, 1000])
def test_a_chain_hashes_downwards(last):
    expected = naive(last, b"k" * 32)
    chain = Chain(last, b"k" * 32)
    assert [chain.key(i) for i in range(last + 1)] == expected
    assert (chain.commitment, chain.secret) == (expected[0].hex(), b"k" * 32)
    assert repr(chain) == f"Chain({last})"


def test_a_secret_is_another_one_each_time_and_shown_nowhere():
    first, second = SecretSeed(), SecretSeed()
    assert first.commitment != second.commitment
    assert len({seeds.of(r) for seeds in (first, second, first.fresh()) for r in (1, 2, 3)}) == 9
    assert max(first.of(r) for r in range(1, 20)).bit_length() > 240
    shown = f"{first!r} {first.told} {round_seeds(None)!r}"
    assert first.parts[0][1].secret.hex() not in shown
    assert first.told == "secret"


def test_what_is_revealed_tells_the_rounds_so_far_and_no_more():
    seeds = SecretSeed()
    revealed = RevealedSeed.parse(seeds.reveal(5))
    assert [revealed.of(r) for r in range(1, 6)] == [seeds.of(r) for r in range(1, 6)]
    assert (revealed.last, revealed.told) == (5, seeds.reveal(5))
    assert revealed.parts[0][1].commitment == seeds.commitment
    assert seeds.reveal(0) == ""
    revealed.check(5)
    with pytest.raises(ConfigurationError, match=r"num_rounds must be at most 5, .*; got num_rounds=6: ask for fewer"):
        revealed.check(6)
    # Nothing that later rounds draw is among what follows from the revealed keys.
    known = {int.from_bytes(key, "big") for key in naive(5, revealed.parts[0][1].secret)}
    assert not known & {seeds.of(r) for r in range(6, 40)} | ({seeds.lasting} & known)


def test_a_run_that_goes_back_before_a_revealed_round_draws_anew_there():
    seeds = SecretSeed()
    again = seeds.restarted(3)
    assert [again.of(r) for r in (1, 2, 3)] == [seeds.of(r) for r in (1, 2, 3)]
    assert {again.of(r) for r in range(4, 9)}.isdisjoint(seeds.of(r) for r in range(4, 9))
    assert again.lasting == seeds.lasting
    revealed = RevealedSeed.parse(again.reveal(6))
    assert [revealed.of(r) for r in range(1, 7)] == [again.of(r) for r in range(1, 7)]
    assert again.reveal(2) == seeds.reveal(2)
    assert again.reveal(3) == seeds.reveal(3)
    # Back before the second chain: it is gone.
    third = again.restarted(2)
    assert [start for start, _ in third.parts] == [0, 2]
    assert [third.of(r) for r in (1, 2)] == [seeds.of(r) for r in (1, 2)]
    assert seeds.restarted(0).parts[0][1] is not seeds.parts[0][1]


def test_the_last_round_of_a_chain():
    seeds = SecretSeed()
    seeds.check(LENGTH)
    assert seeds.of(LENGTH) == int.from_bytes(seeds.parts[0][1].secret, "big")
    with pytest.raises(ConfigurationError, match=rf"at most {LENGTH} with secret seeds; got num_rounds={LENGTH + 1}"):
        seeds.check(LENGTH + 1)


def test_an_integer_is_the_seed_of_every_round():
    seeds = round_seeds(7)
    assert seeds == FixedSeed(7)
    assert (seeds.of(1), seeds.of(10**6), seeds.lasting, seeds.told, seeds.fresh()) == (7, 7, 7, 7, seeds)
    seeds.check(10**9)


def test_what_an_option_may_be():
    assert isinstance(round_seeds(None), SecretSeed)
    assert isinstance(round_seeds("secret"), SecretSeed)
    text = SecretSeed().reveal(2)
    assert round_seeds(text).told == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "4", "4:", ":ab", f"4:{'a' * 63}", f"4:{'A' * 64}", f"0:{'a' * 64}", f"-1:{'a' * 64}", f"4:{'a' * 64},"),
        *(f"4:{'a' * 64},3:{'b' * 64}", f"4:{'a' * 64},4:{'b' * 64}", f"{LENGTH + 1}:{'a' * 64}"),
        *(f"{'9' * 5000}:{'a' * 64}", f"4:{'a' * 64} ", f"\N{ARABIC-INDIC DIGIT FOUR}:{'a' * 64}", "Secret"),
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigurationError, match="a text as seed must be what a log reveals"):
        round_seeds(text)


@pytest.mark.parametrize("seed", [-1, 1.0, True, [1], b"secret"])
def test_other_values_are_refused(seed):
    with pytest.raises(ConfigurationError, match="strategy: seed must be an integer >= 0"):
        round_seeds(seed)
