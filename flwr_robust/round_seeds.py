"""Seeds of rounds: one integer for all rounds, or the keys of a secret chain, whose later ones stay unknown.

    k_L = 32 bytes of the operating system's entropy
    k_i = SHA-256(domain || k_(i+1)),   i = L - 1, ..., 0

k_r is the key of round r. k_0 is the commitment, which is published before the first round. Who knows k_r can compute
all earlier keys, and compare k_0 with the commitment. Nobody can compute a later key from it, so the keys of finished
rounds may be revealed while the run can still be continued.

A run may have several chains. It gets a new one when it is continued before a round whose key was revealed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Protocol, Self

from flwr_robust.errors import ConfigurationError, check_integer

__all__ = ["LENGTH", "SECRET", "Chain", "FixedSeed", "RevealedSeed", "RoundSeeds", "SecretSeed", "round_seeds"]

LENGTH = 2**16
"""L, the largest number of rounds with secret seeds."""

SECRET = "secret"
"""What a run's settings say of a secret seed."""

_DOMAIN = b"flwr-robust round seeds 1\0"
_LASTING = b"flwr-robust lasting seed 1\0"
_SIZE = 32  # bytes of a key
_STEP = 256  # every key of a round that is divided by this is kept, so that a round costs few hashes
_PART = re.compile(r"([1-9][0-9]*):([0-9a-f]{64})")


class Chain:
    """The keys k_0 .. k_last of a chain.

    Parameters
    ----------
    last : int
        The number of the last key, >= 1.
    key : bytes
        That key.

    Examples
    --------
    >>> chain = Chain(2, bytes(32))
    >>> Chain(1, chain.key(1)).key(0) == chain.key(0)
    True
    """

    def __init__(self, last: int, key: bytes) -> None:
        self.last, self._last_key = last, key
        self._kept: dict[int, bytes] = {}

    @classmethod
    def new(cls) -> Self:
        """Draw a secret chain."""
        return cls(LENGTH, secrets.token_bytes(_SIZE))

    @property
    def secret(self) -> bytes:
        """The last key, from which all others follow."""
        return self._last_key

    @property
    def commitment(self) -> str:
        """The key k_0, in hexadecimal."""
        return self.key(0).hex()

    def key(self, number: int) -> bytes:
        """Return a key; 0 <= number <= last."""
        if not self._kept:
            self._kept[self.last] = key = self._last_key
            for at in range(self.last - 1, -1, -1):
                key = _hashed(key)
                if at % _STEP == 0:
                    self._kept[at] = key
        above = min(self.last, -(-number // _STEP) * _STEP)
        key = self._kept[above]
        for _ in range(above - number):
            key = _hashed(key)
        return key

    def __repr__(self) -> str:
        """Return a text without keys."""
        return f"Chain({self.last})"


def _hashed(key: bytes) -> bytes:
    return hashlib.sha256(_DOMAIN + key).digest()


class RoundSeeds(Protocol):
    """The seeds of a run's rounds: `FixedSeed`, `SecretSeed` or `RevealedSeed`."""

    @property
    def told(self) -> int | str:
        """What the run's settings say; never a secret."""
        ...

    def of(self, server_round: int) -> int:
        """Return the seed of a round, from 1."""
        ...

    @property
    def lasting(self) -> int:
        """The seed of what stays the same in all rounds; that of a secret is never revealed."""
        ...

    def check(self, rounds: int) -> None:
        """Raise ConfigurationError if a run of this many rounds needs a seed that there is not."""
        ...

    def fresh(self) -> RoundSeeds:
        """Return the seeds of another run of the same settings; a secret is drawn anew."""
        ...


@dataclass(frozen=True)
class FixedSeed:
    """One integer, the seed of every round. Who knows it can predict all draws.

    Attributes
    ----------
    seed : int
        The seed, >= 0.
    """

    seed: int

    @property
    def told(self) -> int:
        """The seed."""
        return self.seed

    def of(self, server_round: int) -> int:
        """Return the seed."""
        return self.seed

    @property
    def lasting(self) -> int:
        """The seed."""
        return self.seed

    def check(self, rounds: int) -> None:
        """Accept any number of rounds."""

    def fresh(self) -> FixedSeed:
        """Return the same seed."""
        return self


@dataclass(frozen=True)
class _Chained:
    """Chains, and the round after which each one begins; the first begins after round 0."""

    parts: tuple[tuple[int, Chain], ...]

    def of(self, server_round: int) -> int:
        """Return the key of a round as a number."""
        chain = next(chain for start, chain in reversed(self.parts) if start < server_round)
        return int.from_bytes(chain.key(server_round), "big")

    @property
    def lasting(self) -> int:
        """A number that no key of a finished round tells."""
        return int.from_bytes(hashlib.sha256(_LASTING + self.parts[0][1].secret).digest(), "big")

    def commitments(self, before: int) -> tuple[tuple[int, str], ...]:
        """Return the commitments of the chains that begin before a round, each with the round after which it does."""
        return tuple((start, chain.commitment) for start, chain in self.parts if start < before)


@dataclass(frozen=True)
class SecretSeed(_Chained):
    """Keys of secret chains.

    Attributes
    ----------
    parts : tuple of (int, Chain)
        The chains, each with the round after which it begins; a new chain when not given.

    Examples
    --------
    >>> seeds = SecretSeed()
    >>> revealed = RevealedSeed.parse(seeds.reveal(3))
    >>> revealed.of(2) == seeds.of(2), revealed.commitments(3) == seeds.commitments(3)
    (True, True)
    """

    parts: tuple[tuple[int, Chain], ...] = field(default_factory=lambda: ((0, Chain.new()),))

    @property
    def told(self) -> str:
        """The word that stands for a secret seed."""
        return SECRET

    @property
    def commitment(self) -> str:
        """The commitment of the chain in use, in hexadecimal."""
        return self.parts[-1][1].commitment

    def check(self, rounds: int) -> None:
        """Raise if the chain is too short."""
        if rounds > LENGTH:
            raise ConfigurationError(
                f"strategy: num_rounds must be at most {LENGTH} with secret seeds; got num_rounds={rounds}: ask for "
                f"fewer, or start another run from the model"
            )

    def fresh(self) -> SecretSeed:
        """Return a new secret."""
        return SecretSeed()

    def restarted(self, after: int) -> SecretSeed:
        """Return seeds that are the same up to a round, and secret anew after it."""
        return SecretSeed((*(part for part in self.parts if part[0] < after), (after, Chain.new())))

    def reveal(self, server_round: int) -> str:
        """Return the text from which `RevealedSeed.parse` makes the seeds up to a round; empty before round 1."""
        parts = [part for part in self.parts if part[0] < server_round]
        ends = [*(start for start, _ in parts[1:]), server_round][: len(parts)]
        return ",".join(f"{end}:{chain.key(end).hex()}" for end, (_, chain) in zip(ends, parts, strict=True))


@dataclass(frozen=True)
class RevealedSeed(_Chained):
    """Keys of finished rounds that an earlier run has revealed, to repeat it.

    Attributes
    ----------
    parts : tuple of (int, Chain)
        The chains up to the last round that was revealed.
    """

    @classmethod
    def parse(cls, text: str) -> RevealedSeed:
        """Read what `SecretSeed.reveal` returns.

        Raises
        ------
        ConfigurationError
            If the text is not of this form.
        """
        matches = [_PART.fullmatch(part) for part in text.split(",")]
        found = [(int(match[1]), bytes.fromhex(match[2])) for match in matches if match and len(match[1]) < _LONGEST]
        rounds = [number for number, _ in found]
        if len(found) < len(matches) or sorted(set(rounds)) != rounds or rounds[-1] > LENGTH:
            raise ConfigurationError(
                f"strategy: a text as seed must be what a log reveals: a round, a colon and 64 digits 0-9a-f, several "
                f"joined by commas; got seed={text!r:.100}: copy it from the log, or pass an integer or None"
            )
        return cls(tuple((start, Chain(*part)) for start, part in zip([0, *rounds], found, strict=False)))

    @property
    def last(self) -> int:
        """The last round whose key is known."""
        return self.parts[-1][1].last

    @property
    def told(self) -> str:
        """The text that was parsed."""
        return ",".join(f"{chain.last}:{chain.secret.hex()}" for _, chain in self.parts)

    def check(self, rounds: int) -> None:
        """Raise if the rounds go beyond those revealed."""
        if rounds > self.last:
            raise ConfigurationError(
                f"strategy: num_rounds must be at most {self.last}, the last round that the seed reveals; got "
                f"num_rounds={rounds}: ask for fewer, or continue the run that has the secret"
            )

    def fresh(self) -> RevealedSeed:
        """Return the same keys."""
        return self


_LONGEST = 10  # digits of a round


def round_seeds(seed: int | str | None) -> RoundSeeds:
    """Return the seeds of rounds that an option ``seed`` asks for.

    Parameters
    ----------
    seed : int, str or None
        None or ``secret``: a secret. An integer >= 0: the seed of every round. Another text: what a log reveals.

    Raises
    ------
    ConfigurationError
        If it is none of these.
    """
    if seed is None or seed == SECRET:
        return SecretSeed()
    if isinstance(seed, str):
        return RevealedSeed.parse(seed)
    check_integer("strategy", "seed", seed, 0)
    return FixedSeed(seed)
