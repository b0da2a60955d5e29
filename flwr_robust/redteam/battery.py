"""The battery: all attacks and faults, in a weak and a strong form if they have a strength.

Its first five families are what a review of a deployment must test: scaled updates, inverted signs, sybils, backdoor
triggers and mislabelled data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flwr_robust.attacks.data.base import DataAttack, data_attacks
from flwr_robust.attacks.fault.base import Fault, faults
from flwr_robust.attacks.message.base import Knowledge, MessageAttack, message_attacks
from flwr_robust.audit.red_team_file import REVIEW
from flwr_robust.core.spec import parse_chain
from flwr_robust.errors import UnknownNameError
from flwr_robust.flower import parse_attack

__all__ = ["BATTERY", "HONEST_MEAN", "NO_ATTACK", "REVIEW", "Attack", "choose"]


@dataclass(frozen=True)
class Attack:
    """The attack of the compromised clients in one run.

    Attributes
    ----------
    family : str
        The family under which the attack is listed.
    data : str
        An attack on their training data; empty: none. ``{f}`` stands for their number.
    message : str
        A message attack or a fault that rewrites their replies; empty: none. ``{f}`` as above.
    title: str
        The name in tables; the attack's text if empty.
    """

    family: str
    data: str = ""
    message: str = ""
    title: str = ""

    @property
    def label(self) -> str:
        """The title, or the text if there is no title; ``f`` in it stands for the number of attackers."""
        return self.title or " + ".join(part for part in (self.data, self.message) if part).replace("{f}", "f")

    @property
    def names(self) -> set[str]:
        """The names of its attacks and faults."""
        return {parse_chain(part.replace("{f}", "1"), "attack")[0][0] for part in (self.data, self.message) if part}

    def on_data(self, f: int) -> DataAttack | None:
        """Return the attack of f attackers on their data."""
        return data_attacks.parse(self._at(self.data, f)) if self.data else None

    def on_messages(self, f: int) -> MessageAttack | Fault | None:
        """Return the attack of f attackers on their replies."""
        return parse_attack(self._at(self.message, f)) if self.message else None

    @property
    def targeted(self) -> bool:
        """Say whether the attack has a target label, so that its success can be measured."""
        attack = self.on_data(1)
        return attack is not None and type(attack).trial is not DataAttack.trial

    @property
    def knows_defence(self) -> bool:
        """Say whether the attack uses the rule of the strategy."""
        crafted = self.on_messages(1)
        return isinstance(crafted, MessageAttack) and crafted.knowledge == Knowledge.DEFENCE

    @staticmethod
    def _at(text: str, f: int) -> str:
        return text.replace("{f}", str(max(f, 1)))


NO_ATTACK = Attack("baseline", title="no attack")
"""The strategy with honest clients only."""

HONEST_MEAN = Attack("baseline", message="crash()", title="mean of the honest")
"""The mean of the honest clients: the result of an oracle that knows the attackers and leaves them out."""

BATTERY = (
    *(Attack("scaled updates", message=text) for text in ("scale(c=10.0)", "scale(c=1000.0)")),
    *(Attack("inverted signs", message=text) for text in ("sign_flip()", "sign_flip(c=10.0)")),
    Attack("sybils", message="sybil(k={f}, base='sign_flip(c=3.0)')"),
    Attack("sybils", message="sybil(k={f}, divide=True, base='sign_flip(c=10.0)')"),
    Attack("sybils", data="label_flip()", message="sybil(k={f})"),
    Attack("sybils", data="backdoor(target=0)", message="sybil(k={f})"),
    *(
        Attack("backdoor triggers", data=text)
        for text in ("backdoor(target=0)", "backdoor(target=0, scale=10.0)", "backdoor(target=0, parts={f})")
    ),
    *(
        Attack("mislabelled data", data=text)
        for text in (
            "label_flip(p=0.5)",
            "label_flip()",
            "label_flip(scale=10.0)",
            "dynamic_label_flip()",
            "random_label()",
            "targeted_flip(source=1, target=7)",
            "targeted_flip(source=1, target=7, scale=5.0)",
        )
    ),
    *(Attack("corrupted inputs", data=text) for text in ("pixel_invert()", "pixel_noise(sigma=0.5)")),
    Attack("against the mean", message="mean_reversal()"),
    *(Attack("multiples of one row", message=text) for text in ("multiples()", "multiples(c=1e-10)")),
    *(
        Attack("hidden among the honest", message=text)
        for text in (
            "ipm(epsilon=0.1)",
            "ipm(epsilon=10.0)",
            "tailored(epsilon=[0.1, 1.0, 10.0])",
            "alie()",
            "alie(z=3.0)",
            "mimic()",
            "min_max()",
            "min_max(deviation='std')",
            "min_sum()",
            "fang_krum()",
            "fang_trimmed_mean()",
            "fang_median(known='own')",
            "model_based(size=1.0)",
            "model_based(size=1.0, movement='past')",
            "pool(pool=['krum(f={f})', 'median()'])",
        )
    ),
    *(
        Attack("knowing the defence", message=text)
        for text in ("optimised(base='alie()')", "optimised(base='sign_flip()')", "tailored(epsilon='search')")
    ),
    *(
        Attack("noise and nonsense", message=text)
        for text in (
            "gaussian(sigma=0.1)",
            "gaussian(sigma=10.0)",
            "constant(c=0.1)",
            "constant(c=10.0)",
            "zero()",
            "nan()",
            "inf()",
        )
    ),
    *(
        Attack("faults", message=text)
        for text in (
            "crash(p=0.5)",
            "crash()",
            "crash(error=True)",
            "delay()",
            "delay(rounds=5)",
            "stale()",
            "stale(rounds=5)",
            "drop_layers()",
        )
    ),
)
"""The attacks that a red team runs by default."""


def choose(patterns: Sequence[str]) -> tuple[Attack, ...]:
    """Return the requested attacks, of the battery or given as text.

    Parameters
    ----------
    patterns : sequence of str
        Families, names (for all strengths), labels of the battery, or the text of any other attack. When not given, the
        whole battery.

    Raises
    ------
    ConfigurationError
        If a pattern is none of these.

    Examples
    --------
    >>> [attack.label for attack in choose(["inverted signs", "alie(z=2.0)"])]
    ['sign_flip()', 'sign_flip(c=10.0)', 'alie(z=2.0)']
    """
    if not patterns:
        return BATTERY
    found = [attack for attack in BATTERY if any(_matches(attack, pattern) for pattern in patterns)]
    further = [pattern for pattern in patterns if not any(_matches(attack, pattern) for attack in BATTERY)]
    return (*found, *map(_of_one_s_own, further))


def _matches(attack: Attack, pattern: str) -> bool:
    return pattern in (attack.family, attack.label) or pattern in attack.names


def _of_one_s_own(text: str) -> Attack:
    known = {*data_attacks.members(), *message_attacks.members(), *faults.members()}
    if (name := text.partition("(")[0].strip()) not in known:
        raise UnknownNameError("attack or family of attacks", name, sorted({*known, *(a.family for a in BATTERY)}))
    attack = Attack("further", data=text) if name in data_attacks.members() else Attack("further", message=text)
    _ = attack.on_data(1), attack.on_messages(1)  # to raise their errors
    return attack
