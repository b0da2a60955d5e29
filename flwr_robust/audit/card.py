"""The robustness card of a run: the facts that a claim of robustness must state.

Every fact on the card has a source: the audit log, the configuration in it, the rule's own file, or the operator's
statement. A fact without a source is "not stated". Terms follow NIST AI 100-2e2025.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from flwr_robust.attacks.data.base import DataAttack
from flwr_robust.attacks.fault.base import Fault as ClientFault
from flwr_robust.attacks.registry import all_attacks
from flwr_robust.audit.card_templates import TEMPLATES
from flwr_robust.audit.contents import KeptUpdates, log_file, verify_run
from flwr_robust.audit.events import (
    SAMPLING_RISK,
    Aggregated,
    CheckpointWritten,
    ClientStatesKept,
    Evaluated,
    Event,
    Measured,
    Quarantined,
    RedTeamed,
    ReplyAbstained,
    ReplyAdmitted,
    ReplyRefused,
    Resumed,
    RolledBack,
    RoundConfigured,
    RunEnded,
    RunStarted,
    Suspected,
    check_statements,
)
from flwr_robust.audit.history import banned, counting
from flwr_robust.audit.log import UNCHECKED, Fault, Record, Verdict, read_log
from flwr_robust.audit.red_team_file import REVIEW, RedTeamFile
from flwr_robust.audit.signs import DUPLICATE, REPLAY
from flwr_robust.core.pipeline import Pipeline, parse
from flwr_robust.core.rule import PreAggregator, Rule
from flwr_robust.core.spec import Component
from flwr_robust.errors import AuditError, FlwrRobustError
from flwr_robust.files import write_atomically
from flwr_robust.printing import html_block, html_table, printable

__all__ = ["SCHEMA_FILE", "Card", "make_card", "render_card", "write_card"]

VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("card.schema.json")

_BOUNDING = {"arc", "centered_clipping", "clip", "clip_mean", "norm_bound"}  # parts that shorten long updates
_NOT_STATED = {"value": None, "source": "not stated"}
_KNOWLEDGE = {  # what the run config's key `knowledge` grants, in the terms of NIST AI 100-2
    "nothing": "black-box",
    "own": "gray-box: the attackers' own data and the model",
    "partial": "gray-box: the attackers' own data, the model and some honest updates",
    "omniscient": "white-box but for the defence: the model and all honest updates",
    "defence": "white-box: the model, all honest updates and the defence with its state",
}
_TRIED = (10, 100, 1000)  # numbers of clients; a rule may declare f as a share of them
_LIMITS = (
    "Nothing is promised against more faulty clients than the declared f.",
    "An adaptive attack, made against this very rule, can do more harm than those tested.",
    "Honest clients whose data are unlike the others' look like outliers, and a robust rule may leave them out.",
    "One party that runs many clients (sybils) is counted as many; no rule here stops that.",
    "A backdoor can be learnt while the mean accuracy stays high; accuracy does not show it.",
    "Secure aggregation hides from the server what a filter needs to see.",
)

_CONTENTS = (Fault.CHECKPOINT, Fault.GONE, Fault.LINK, Fault.UPDATE, Fault.MODEL)  # not of the log's own lines
_ACTIVE = re.compile(r"[\\`*<\[|]")  # characters with a meaning in Markdown

E = TypeVar("E", bound=Event)
Fact = Mapping[str, Any]


class Card(dict[str, Any]):
    """A card: the mapping that ``card.schema.json`` describes, which a notebook shows as tables."""

    def __repr__(self) -> str:
        """Return one line with the rule, the rounds and the state of the evidence."""
        evidence = self["deployment"]["evidence"]["value"]
        return (
            f"Card(rule={_words(self['claim']['rule']['value'])}, rounds={self['run']['rounds']}, "
            f"outcome={self['run']['outcome']}, log intact: {_words(evidence['log_intact'])})"
        )

    def _repr_html_(self) -> str:
        """Return the facts of each section, with their sources."""
        tables = [html_table(["run", ""], [(_heading(key), _words(value)) for key, value in self["run"].items()])]
        for section in ("claim", "threat", "accountability", "deployment"):
            facts = [
                (_heading(key), _words(fact["value"]), "" if fact["source"] == "not stated" else fact["source"])
                for key, fact in self[section].items()
            ]
            tables.append(html_table([section, "", "source"], facts))
        parts = [(part["part"], _words(part["condition"])) for part in self["limits"]["rule"]]
        tables.append(html_table(["limits of the rule", "condition"], parts))
        tables.append(html_table(["limits of every rule"], [(limit,) for limit in self["limits"]["general"]]))
        return html_block("Robustness card", *tables, line=f"Terms follow {self['vocabulary']}. Made {self['made']}.")


def make_card(
    folder: Path | str,
    statements: Mapping[str, str] | None = None,
    key: bytes | None = None,
    red_team: Path | str | None = None,
    verdict: Verdict | None = None,
    public_key: str | None = None,
) -> Card:
    """Collect the facts of a run's card.

    Parameters
    ----------
    folder : Path
        The run's folder.
    statements : mapping, optional
        Statements that the operator makes now; the keys are those of `STATEMENTS`. They override statements made at the
        start of the run.
    key : bytes, optional
        The key of the audit log.
    red_team : Path, optional
        The file that ``flwr-robust red-team`` wrote for this strategy; see `RedTeamFile`.
    verdict : Verdict, optional
        The result of `verify_run` for the folder, with this key; when not given, it is computed.
    public_key : str, optional
        The public key that must have signed the log's heads, in hexadecimal; see `verify`.

    Returns
    -------
    Card
        A mapping, as ``card.schema.json`` describes it.

    Raises
    ------
    AuditError
        If there is no log, or the red team's file cannot be read.
    UnknownNameError
        If the key of a statement is unknown.
    """
    check_statements(statements or ())
    log, tried = log_file(folder), None if red_team is None else RedTeamFile.read(red_team)
    verdict = verify_run(folder, key=key, public_key=public_key) if verdict is None else verdict
    everything = read_log(log)
    starts = _of(everything, RunStarted)
    if not starts:
        raise AuditError(f"card: {log} does not say that a run started")
    start, records = starts[0], counting(everything)
    stated = {**start.statements, **(statements or {})}
    rule = _rule(start.rule)
    return Card(
        {
            "version": VERSION,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "vocabulary": "NIST AI 100-2e2025",
            "run": _run(everything, records, start),
            "claim": _claim(records, start, rule, stated),
            "threat": _threat(start, rule, stated),
            "accountability": {key: _stated(stated, key) for key in ("owner", "legal_basis", "notice")},
            "deployment": {
                **_deployment(everything, start, rule, stated, _evidence(verdict, start, key, public_key)),
                **_suspicions(records),
                **_tested(everything, start, tried),
            },
            "limits": {
                "rule": [] if rule is None else [_limits(part) for part in _parts(rule)],
                "general": list(_LIMITS),
            },
        }
    )


def _of(records: Sequence[Record], kind: type[E]) -> list[E]:
    return [record.event for record in records if isinstance(record.event, kind)]


def _fact(value: Any, source: str) -> Fact:
    return {"value": value, "source": source}


def _stated(stated: Mapping[str, str], key: str) -> Fact:
    return _fact(stated[key], "operator") if key in stated else _NOT_STATED


def _rule(text: str) -> Rule | None:
    """Return the recorded rule, or None if it is not one of this project."""
    try:
        return parse(text)
    except FlwrRobustError:
        return None


def _parts(rule: Rule) -> list[Component]:
    return [*rule.stages, rule.rule] if isinstance(rule, Pipeline) else [rule]


def _spread(counts: Sequence[int]) -> dict[str, int] | None:
    return {"least": min(counts), "most": max(counts)} if counts else None


def _run(everything: Sequence[Record], records: Sequence[Record], start: RunStarted) -> dict[str, Any]:
    ends, rounds = _of(everything, RunEnded), _of(records, Aggregated)
    return {
        "started": everything[0].time,
        "last_event": everything[-1].time,
        "outcome": ends[-1].outcome if ends and isinstance(everything[-1].event, RunEnded) else "not ended",
        "rounds": len(rounds),
        "outcomes": dict(sorted(Counter(event.outcome for event in rounds).items())),
        "resumed": len(_of(everything, Resumed)),
        "rolled_back": [
            {"from": event.from_round, "to": event.to_round, "reason": event.reason}
            for event in _of(everything, RolledBack)
        ],
        "strategy": start.strategy,
        "software": dict(start.software),
        "config_sha256": start.config_sha256,
        "model": rounds[-1].model_after if rounds else "",
    }


def _claim(
    records: Sequence[Record], start: RunStarted, rule: Rule | None, stated: Mapping[str, str]
) -> dict[str, Fact]:
    asked = [event for event in _of(records, RoundConfigured) if event.phase == "train"]
    answering = Counter(event.round for event in _of(records, ReplyAdmitted) if event.phase == "train")
    abstained = Counter(event.round for event in _of(records, ReplyAbstained))
    sizes = [len(event.asked) for event in asked]
    voting = min((len(event.asked) - abstained[event.round] for event in asked), default=0)
    f = None if rule is None or voting == 0 else rule.declared(voting)
    evaluated = _of(records, Evaluated)
    measured = [event for event in _of(records, Measured) if event.quantity != SAMPLING_RISK]
    config = start.config
    return {
        "rule": _fact(start.rule, "log") if start.rule else _NOT_STATED,
        "clients_asked": _fact(_spread(sizes), "log") if sizes else _NOT_STATED,
        "clients_admitted": _fact(_spread([answering[event.round] for event in asked]), "log")
        if sizes
        else _NOT_STATED,
        "declared_f": _NOT_STATED if f is None else _fact(f, "rule"),
        "declared_fraction": _NOT_STATED if f is None else _fact(f / voting, "rule"),
        "abstentions": _fact(sum(abstained.values()), "log"),
        "aggregation": _configured(
            config,
            *("message", "server-learning-rate", "server-momentum", "buffers"),
            *("classes", "classes-per-round", "schedule", "gamma", "alpha", "buffer-fade"),
        ),
        "sampling": _first(
            _stated(stated, "sampling"),
            _configured(config, "fraction-train", "clients", "seed"),
        ),
        "sampling_risk": _sampling_risk(records),
        "data_assumption": _first(_stated(stated, "data_assumption"), _configured(config, "partition", "task")),
        "heterogeneity": _fact(
            [
                {"round": event.round, "quantity": event.quantity, "value": event.value, "method": event.method}
                for event in measured
            ],
            "log",
        )
        if measured
        else _NOT_STATED,
        "metric": _fact(
            {"round": evaluated[-1].round, "measured_by": evaluated[-1].source, **evaluated[-1].metrics}, "log"
        )
        if evaluated
        else _NOT_STATED,
    }


def _sampling_risk(records: Sequence[Record]) -> Fact:
    """Return the last measured probability that a round asks more faulty clients than the rule is made for."""
    found = [event for event in _of(records, Measured) if event.quantity == SAMPLING_RISK and event.value is not None]
    return _fact({"value": found[-1].value, "method": found[-1].method}, "log") if found else _NOT_STATED


def _threat(start: RunStarted, rule: Rule | None, stated: Mapping[str, str]) -> dict[str, Fact]:
    """Return the threat in the terms of NIST AI 100-2e2025, sections 2.1.1 to 2.1.4.

    An attack in the configuration tells the attackers' knowledge and capability, but not their goal. A run that trains
    is at the training stage, where the taxonomy's mitigation is a Byzantine-resilient aggregation. A rule that declares
    no f is not called so.
    """
    config = start.config
    attack = config.get("attack")
    attacked = isinstance(attack, str) and attack != "none"
    known = _KNOWLEDGE.get(str(config.get("knowledge"))) if attacked else None
    capability = _capability(str(attack)) if attacked else None
    resilient = rule is not None and any(rule.declared(n) for n in _TRIED)
    named = "Byzantine-resilient aggregation" if resilient else "aggregation that declares no f"
    mitigation = {named: start.rule} if start.rule else {}
    if "mitigation" in stated:
        mitigation["stated by the operator"] = stated["mitigation"]
    return {
        "attack_model": _first(
            _stated(stated, "attack_model"),
            _configured(config, "attack", "attackers") if attacked else _NOT_STATED,
        ),
        "attacker_goal": _stated(stated, "attacker_goal"),
        "attacker_knowledge": _first(
            _stated(stated, "attacker_knowledge"), _fact(known, "configuration") if known else _NOT_STATED
        ),
        "attacker_capability": _first(
            _stated(stated, "attacker_capability"), _fact(capability, "configuration") if capability else _NOT_STATED
        ),
        "stage_of_learning": _first(_stated(stated, "stage_of_learning"), _fact("training", "log")),
        "mitigation": _stated(stated, "mitigation")
        if not start.rule
        else _fact(mitigation, "operator and log" if "mitigation" in stated else "log"),
    }


def _capability(attack: str) -> str | None:
    """Return the capability that a configured attack needs; None if it is not one of this project."""
    try:
        found = all_attacks.parse(attack)
    except FlwrRobustError:
        return None
    if isinstance(found, ClientFault):
        return "none: clients fail or answer late"
    return "training data control" if isinstance(found, DataAttack) else "model control, of the attackers' own updates"


def _configured(config: Mapping[str, Any], *keys: str) -> Fact:
    """Return the given keys in a configuration; nothing if it lacks the first."""
    held = {key: config[key] for key in keys if key in config}
    return _fact(held, "configuration") if keys[0] in held else _NOT_STATED


def _first(*facts: Fact) -> Fact:
    return next((fact for fact in facts if fact["source"] != "not stated"), _NOT_STATED)


def _deployment(
    everything: Sequence[Record],
    start: RunStarted,
    rule: Rule | None,
    stated: Mapping[str, str],
    evidence: Mapping[str, Any],
) -> dict[str, Fact]:
    bounds = [str(part) for part in ([] if rule is None else _parts(rule)) if part.name in _BOUNDING]
    refused = Counter(event.reason for event in _of(everything, ReplyRefused))
    updates = KeptUpdates.of(everything)
    kept = sum(len(nodes) for nodes in updates.standing.values())
    deleted = sum(map(len, updates.deleted.values()))
    return {
        "authentication": _stated(stated, "authentication"),
        "node_authentication": _node_authentication(start, stated),
        "tls": _stated(stated, "tls"),
        "update_bounds": _first(
            _stated(stated, "update_bounds"), _fact(" | ".join(bounds), "rule") if bounds else _NOT_STATED
        ),
        "sybil_resistance": _stated(stated, "sybil_resistance"),
        "secure_aggregation": _stated(stated, "secure_aggregation"),
        "refusals": _fact(dict(refused.most_common()), "log"),
        "quarantined": _fact(len({event.node for event in _of(everything, Quarantined)}), "log"),
        "banned": _fact(len(banned(everything)), "log"),
        "evidence": _fact(
            {
                **evidence,
                "checkpoints_written": len(_of(everything, CheckpointWritten)),
                "raw_updates": f"{kept} kept, {deleted} deleted" if start.keeps_updates else "not kept",
                "client_states": _client_states(everything),
            },
            "log",
        ),
    }


def _node_authentication(start: RunStarted, stated: Mapping[str, str]) -> Fact:
    """Return whether nodes were authenticated: what Flower told the log, else the operator's statement."""
    if start.registered_nodes:
        return _fact("accounts had registered all nodes that were connected at the start", "log")
    simulated = start.config.get("by-partition") is True
    return _first(
        _stated(stated, "node_authentication"),
        _fact("none: partitions identify nodes, as in a simulation", "log") if simulated else _NOT_STATED,
    )


def _suspicions(records: Sequence[Record]) -> dict[str, Fact]:
    """Return how often clients sent each other's or earlier updates, and the other suspicions.

    Without fingerprints in the log, nothing is known of sybils and replays.
    """
    found = _of(records, Suspected)
    looked = any(event.fingerprint for event in _of(records, ReplyAdmitted))
    counted = {
        sign: {
            "suspicions": sum(event.sign == sign for event in found),
            "clients": len({event.node for event in found if event.sign == sign}),
            "rounds": len({event.round for event in found if event.sign == sign}),
        }
        for sign in sorted({DUPLICATE, REPLAY, *(event.sign for event in found)})
    }
    duplicates, replays = counted.pop(DUPLICATE), counted.pop(REPLAY)
    return {
        "sybil_evidence": _fact({"identical updates in a round": duplicates}, "log")
        if looked or duplicates["suspicions"]
        else _NOT_STATED,
        "replay_evidence": _fact({"updates of an earlier round": replays}, "log")
        if looked or replays["suspicions"]
        else _NOT_STATED,
        "other_suspicions": _fact(counted, "log") if looked or counted else _NOT_STATED,
    }


def _client_states(everything: Sequence[Record]) -> str:
    """Return the fact that says for how many clients the latest checkpoint holds their state."""
    written, handed = _of(everything, CheckpointWritten), _of(everything, ClientStatesKept)
    if not handed:
        return "not kept"
    held = [event for event in handed if written and event.round == written[-1].round]
    return f"of {held[-1].clients} clients, in the latest checkpoint" if held else "not in the latest checkpoint"


def _evidence(verdict: Verdict, start: RunStarted, key: bytes | None, public_key: str | None) -> dict[str, Any]:
    """Return the facts about the log and the files that it names."""
    contents = [finding for finding in verdict.findings if finding.fault in _CONTENTS]
    macs = "none"
    if UNCHECKED in verdict.remarks:
        macs = "not checked: the log was written with a key, and read without"
    elif key is not None:
        macs = "checked with the key"
    signatures = "none"
    if start.public_key:
        signatures = f"checked with {'the key that the log names' if public_key is None else 'the given public key'}"
    return {
        "log_lines": verdict.lines,
        "log_head": verdict.head,
        "log_intact": len(contents) == len(verdict.findings),
        "files_intact": not contents,
        "findings": [str(finding) for finding in verdict.findings],
        "macs": macs,
        "signatures": signatures,
    }


def _tested(everything: Sequence[Record], start: RunStarted, tried: RedTeamFile | None) -> dict[str, Fact]:
    """Return the attacks that were tested: in this run, or in the given red team's file."""
    tests: list[dict[str, Any]] = [
        {
            "attack": event.attack,
            "attackers": event.attackers,
            "clients": event.clients,
            "metric": event.metric,
            "honest": event.honest,
            "attacked": event.attacked,
            "evidence": event.source,
        }
        for event in _of(everything, RedTeamed)
    ]
    source = "log"
    if tried is not None:
        tests, source = [*tests, *tried.worst()], "red team"
    return {
        "red_team": _fact(tests, source) if tests else _NOT_STATED,
        "red_team_subject": _NOT_STATED
        if tried is None
        else _fact({**tried.subject, "same_rule_as_the_run": tried.tests(start.rule)}, source),
        "review": _NOT_STATED
        if tried is None
        else _fact({family: "tested" if family in tried.families else "not tested" for family in REVIEW}, source),
    }


def _limits(part: Component) -> dict[str, Any]:
    """Return the limits that a rule's own file states, and the properties that its cases are known not to have."""
    module = importlib.import_module(type(part).__module__)
    text = inspect.getdoc(module) or ""
    conditions = [paragraph for paragraph in text.split("\n\n") if paragraph.startswith("Condition:")]
    lacks: dict[tuple[str, str], list[str]] = {}
    for case in getattr(module, "CASES", ()):
        for lack in case.lacks.items():
            lacks.setdefault(lack, []).append(case.rule)
    return {
        "part": str(part),
        "condition": " ".join(conditions[0].removeprefix("Condition:").split()) if conditions else _least(part),
        "lacks": [{"property": name, "reason": why, "cases": cases} for (name, why), cases in lacks.items()],
        "description": text,
    }


def _least(part: Component) -> str:
    """Return the condition of a rule according to its check, if its file does not state one."""
    if not isinstance(part, Rule | PreAggregator):
        return "not stated"
    least = next((n for n in range(1, 1000) if part.check(n) is None), None)
    return "not stated" if least is None else f"n >= {least} (by its check; its file states none)"


def render_card(card: Mapping[str, Any], kind: str) -> str:
    """Render a card.

    Parameters
    ----------
    card : mapping
        The result of `make_card`.
    kind : str
        ``md`` or ``html``.
    """
    import jinja2  # imported here, because the rest of this room needs only torch and numpy

    environment = jinja2.Environment(
        loader=jinja2.DictLoader(dict(TEMPLATES)),
        autoescape=kind == "html",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["words"] = _words if kind == "html" else lambda value: _ACTIVE.sub(r"\\\g<0>", _words(value))
    environment.filters["listed"] = lambda value: isinstance(value, list) and len(value) > 1
    environment.filters["heading"] = _heading
    return environment.get_template(kind).render(card=card)


def _heading(key: str) -> str:
    return key.replace("_", " ").replace("tls", "TLS")


def _words(value: Any) -> str:
    """Return a fact's value on one line, safe for Markdown and terminals."""
    if value is None:
        return "not stated"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)}: {_words(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "; ".join(_words(each) for each in value) or "none"
    return printable(" ".join(str(value).split()))


def write_card(
    folder: Path | str,
    *,
    html: bool = False,
    statements: Mapping[str, str] | None = None,
    key: bytes | None = None,
    red_team: Path | str | None = None,
    verdict: Verdict | None = None,
    public_key: str | None = None,
) -> list[Path]:
    """Write ``card.json`` and ``card.md``, and ``card.html`` if asked, into a run's folder.

    Parameters
    ----------
    folder : Path
        The run's folder.
    html : bool
        Whether to write ``card.html`` as well.
    statements, key, red_team, verdict, public_key
        As for `make_card`.

    Returns
    -------
    list of Path
        The written files.
    """
    card = make_card(folder, statements, key, red_team, verdict, public_key)
    texts = {"json": json.dumps(card, indent=1) + "\n", "md": render_card(card, "md")}
    if html:
        texts["html"] = render_card(card, "html")
    return [_write(Path(folder) / f"card.{kind}", text) for kind, text in texts.items()]


def _write(path: Path, text: str) -> Path:
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda file: file.write(data))
    return path
