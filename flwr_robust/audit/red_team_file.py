"""The results of a red team, read from the file that ``flwr-robust red-team`` wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flwr_robust.core.pipeline import parse
from flwr_robust.errors import AuditError, FlwrRobustError
from flwr_robust.files import file_sha256, read_plain

__all__ = ["REVIEW", "RedTeamFile"]

REVIEW = ("scaled updates", "inverted signs", "sybils", "backdoor triggers", "mislabelled data")
"""The families of attacks that a review of a deployment must test."""

_SCHEMA = 1
_LONGEST = 1 << 26  # bytes of a file
_NO_ATTACK = "no attack"


@dataclass(frozen=True)
class RedTeamFile:
    """A red team's results.

    Attributes
    ----------
    name, sha256 : str
        The file's name and the hash of its content.
    setting : mapping
        The strategy and the settings of the attack.
    families : mapping of str to tuple of str
        The attacks that were run, by family.
    found : mapping of (str, int) to (float, float or None)
        Accuracy in [0, 1] and success, means over the seeds, by attack and number of attackers.
    """

    name: str
    sha256: str
    setting: Mapping[str, Any]
    families: Mapping[str, Sequence[str]]
    found: Mapping[tuple[str, int], tuple[float, float | None]]

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a file.

        Raises
        ------
        AuditError
            If there is no such file, or it holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise AuditError(f"card: there is no file {path}; name the JSON that flwr-robust red-team wrote")
        try:
            document = json.loads(read_plain(path, _LONGEST))
            if document["schema"] != _SCHEMA:
                raise ValueError(f"schema {document['schema']}")
            setting = {"name": "", **document["setting"]}
            _ = int(setting["declared_f"]), int(setting["clients"]), str(setting["subject"])
            found = _means(document["runs"])
            if (_NO_ATTACK, 0) not in found:
                raise ValueError("no run without attack")
            families: dict[str, list[str]] = {}
            for label, family in document["families"].items():
                if any(attack == label for attack, _ in found):
                    families.setdefault(str(family), []).append(label)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise AuditError(f"card: {path} holds no results of a red team; name the JSON that it wrote") from None
        return cls(path.name, file_sha256(path), setting, families, found)

    @property
    def subject(self) -> dict[str, Any]:
        """The attacked strategy, as described in the file."""
        keys = ("subject", "declared_f", "clients", "rounds", "task", "partition", "model", "message")
        return {key: self.setting[key] for key in keys if key in self.setting} | {
            "file": self.name,
            "sha256": self.sha256,
        }

    def tests(self, rule: str) -> str:
        """Say whether the attacked strategy has the rule of this defence string: yes, no, or not known."""
        if not rule:
            return "not known"
        try:
            return "yes" if str(parse(str(self.setting["subject"]).partition(" {")[0])) == rule else "no"
        except FlwrRobustError:
            return "no"

    def worst(self) -> list[dict[str, Any]]:
        """Return the worst attack of every family, with at most the declared f attackers and with more.

        The worst is that of least accuracy; for attacks with a target, also that of greatest success.
        """
        f = int(self.setting["declared_f"])
        tests = []
        for family, labels in self.families.items():
            for more in (False, True):
                tried = {
                    key: value
                    for key, value in self.found.items()
                    if key[0] in labels and key[1] > 0 and (key[1] > f) is more
                }
                if tried:
                    worst = min(tried, key=lambda key: tried[key][0])
                    tests.append(self._test(family, worst, "accuracy", 0))
                wanted = {key: value[1] for key, value in tried.items() if value[1] is not None}
                if wanted:
                    tests.append(self._test(family, max(wanted, key=wanted.__getitem__), "success of the attack", 1))
        return tests

    def _test(self, family: str, key: tuple[str, int], metric: str, at: int) -> dict[str, Any]:
        return {
            "family": family,
            "attack": key[0],
            "attackers": key[1],
            "clients": int(self.setting["clients"]),
            "metric": metric,
            "honest": self.found[_NO_ATTACK, 0][0] if at == 0 else None,
            "attacked": self.found[key][at],
            "evidence": self.name,
        }


def _means(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], tuple[float, float | None]]:
    """Return the means over seeds of accuracy and success, by attack and number of attackers."""
    kinds: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for run in runs:
        kinds.setdefault((str(run["attack"]), int(run["real_f"])), []).append(run)
    found: dict[tuple[str, int], tuple[float, float | None]] = {}
    for key, each in kinds.items():
        wanted = [float(run["success"]) for run in each if run["success"] is not None]
        accuracy = statistics.fmean(float(run["accuracy"]) for run in each)
        found[key] = accuracy, statistics.fmean(wanted) if wanted else None
    return found
