"""The robustness card: what it states, where from, and that it invents nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from flwr_robust.audit import AuditedRun, AuditLog, RunEnded, RunStarted, config_sha256, model_sha256, rollback
from flwr_robust.audit.card import SCHEMA_FILE, _client_states, _limits, make_card, write_card
from flwr_robust.audit.events import SAMPLING_RISK, STATEMENTS, CheckpointWritten, ClientStatesKept, Event, Measured
from flwr_robust.audit.history import clients, counting, find_client, partitions_are_claims, visits
from flwr_robust.audit.history import rounds as round_summaries
from flwr_robust.audit.log import Record, read_log
from flwr_robust.audit.red_team_file import REVIEW, RedTeamFile
from flwr_robust.audit.run import log_file
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rule import aggregators, preaggregators
from flwr_robust.errors import AuditError, UnknownNameError
from flwr_robust.redteam.run import read_red_team
from tests.audit_runs import CONFIG, LIAR, NODES, SILENT, make, rounds

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads(SCHEMA_FILE.read_text())
PARTS = ("claim", "threat", "accountability", "deployment")
NOT_STATED = {"value": None, "source": "not stated"}


def valid(card):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(card, SCHEMA, cls=jsonschema.Draft202012Validator)
    return card


def minimal(folder, config=None, rule="", **started):
    """A run of which nothing is known but that it began."""
    folder.mkdir(exist_ok=True)
    with AuditLog(log_file(folder), sync=False) as log:
        log.append(RunStarted(config or {}, config_sha256(config or {}), rule, **started))
    return folder


def test_a_card_states_what_the_log_says(tmp_path):
    statements = {"authentication": "SuperNode keys, P-384", "tls": "from our own authority"}
    card = valid(make_card(make(tmp_path, statements=statements)))
    claim, deployment = card["claim"], card["deployment"]
    assert claim["rule"] == {"value": "clip(c=2.0) | trimmed_mean(f=1)", "source": "log"}
    assert claim["clients_asked"]["value"] == {"least": 5, "most": 5}
    assert claim["clients_admitted"]["value"] == {"least": 3, "most": 3}
    assert (claim["declared_f"]["value"], claim["declared_fraction"]["value"]) == (1, 0.2)
    assert claim["sampling"] == {"value": {"fraction-train": 1.0, "clients": 5, "seed": 0}, "source": "configuration"}
    assert claim["heterogeneity"]["value"][0]["quantity"] == "xi"
    assert claim["metric"]["value"] == {"round": 3, "measured_by": "clients", "accuracy": 0.8, "<i>metric</i>": 1}
    assert claim["data_assumption"] == card["threat"]["attack_model"] == NOT_STATED
    assert deployment["authentication"] == {"value": "SuperNode keys, P-384", "source": "operator"}
    assert deployment["update_bounds"] == {"value": "clip(c=2.0)", "source": "rule"}
    assert deployment["sybil_resistance"] == deployment["secure_aggregation"] == NOT_STATED
    assert deployment["red_team"]["value"][0]["attack"] == "ipm(epsilon=0.5)"
    assert deployment["refusals"]["value"] == {"NOT_FINITE": 3}
    assert deployment["quarantined"]["value"] == 2
    evidence = deployment["evidence"]["value"]
    assert (evidence["log_intact"], evidence["checkpoints_written"], evidence["raw_updates"]) == (True, 3, "not kept")
    assert evidence["log_lines"] == len(read_log(log_file(tmp_path)))
    assert (card["run"]["rounds"], card["run"]["outcome"], card["run"]["outcomes"]) == (3, "finished", {"OK": 3})
    assert card["run"]["model"] == model_sha256({"w": np.full(3, 3, np.float32)})


def test_what_nobody_said_is_not_stated(tmp_path):
    card = valid(make_card(minimal(tmp_path)))
    stated = {key for part in PARTS for key, fact in card[part].items() if fact != NOT_STATED}
    # Of these the log says that there were none; and that the run trains.
    assert stated == {"stage_of_learning", "refusals", "quarantined", "banned", "evidence", "abstentions"}
    assert card["limits"]["rule"] == []
    assert card["run"]["outcome"] == "not ended"
    for path in write_card(tmp_path, html=True):
        text = path.read_text()
        assert "not stated" in text.lower()
        assert "None" not in text


@pytest.mark.parametrize("key", STATEMENTS)
def test_every_statement_is_shown_as_the_operators(tmp_path, key):
    make(tmp_path, statements={key: "as the log has it"})
    for given, text in ((None, "as the log has it"), ({key: "as said now"}, "as said now")):
        card = valid(make_card(tmp_path, given))
        if key == "mitigation":
            mitigation = {"Byzantine-resilient aggregation": CONFIG["defence"], "stated by the operator": text}
            assert card["threat"]["mitigation"] == {"value": mitigation, "source": "operator and log"}
        else:
            facts = [fact for part in PARTS for fact in card[part].values()]
            assert {"value": text, "source": "operator"} in facts


def test_whether_nodes_were_authenticated_is_flowers_word_or_the_operators(tmp_path):
    said = {"node_authentication": "on, keys of P-384"}

    def fact(name, config=None, **started):
        folder = tmp_path / name
        return valid(make_card(minimal(folder, config, **started), said if "said" in name else None))["deployment"][
            "node_authentication"
        ]

    assert fact("untold") == NOT_STATED
    assert fact("said") == {"value": "on, keys of P-384", "source": "operator"}
    for name in ("told", "told and said"):
        assert fact(name, registered_nodes=True)["source"] == "log"
    simulated = fact("simulated", {"by-partition": True})
    assert simulated == {"value": "none: partitions identify nodes, as in a simulation", "source": "log"}
    assert fact("deployed", {"by-partition": False}) == NOT_STATED


def test_a_statement_of_another_name_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown statement 'tsl'"):
        make_card(make(tmp_path), {"tsl": "yes"})


def test_a_configured_attack_and_partition_are_stated(tmp_path):
    config = {"partition": "dirichlet(beta=0.1)", "task": "digits", "attack": "label_flip()", "attackers": 2}
    card = valid(make_card(minimal(tmp_path / "a", config)))
    claim, threat = card["claim"], card["threat"]
    assert claim["data_assumption"]["value"] == {"partition": "dirichlet(beta=0.1)", "task": "digits"}
    assert threat["attack_model"] == {"value": {"attack": "label_flip()", "attackers": 2}, "source": "configuration"}
    assert make_card(minimal(tmp_path / "b", {"attack": "none"}))["threat"]["attack_model"] == NOT_STATED


@pytest.mark.parametrize(
    ("attack", "capability"),
    [
        ("label_flip()", "training data control"),
        ("alie()", "model control, of the attackers' own updates"),
        ("crash()", "none: clients fail or answer late"),
        ("unheard_of()", None),
    ],
)
@pytest.mark.parametrize(
    ("knowledge", "box"), [("nothing", "black-box"), ("own", "gray-box"), ("defence", "white-box")]
)
def test_the_threat_is_told_in_the_taxonomys_terms(tmp_path, attack, capability, knowledge, box):
    threat = valid(make_card(minimal(tmp_path, {"attack": attack, "attackers": 1, "knowledge": knowledge})))["threat"]
    stated = {"value": capability, "source": "configuration"} if capability else NOT_STATED
    assert threat["attacker_capability"] == stated
    assert threat["attacker_knowledge"]["value"].partition(":")[0] == box
    assert threat["attacker_goal"] == NOT_STATED  # no setting tells it
    assert threat["stage_of_learning"] == {"value": "training", "source": "log"}


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("krum(f=2)", "Byzantine-resilient aggregation"),
        ("trimmed_mean(fraction=0.2)", "Byzantine-resilient aggregation"),
        ("mean()", "aggregation that declares no f"),
        ("trimmed_mean(f=0)", "aggregation that declares no f"),
    ],
)
def test_the_mean_is_no_mitigation(tmp_path, rule, named):
    threat = valid(make_card(minimal(tmp_path, rule=rule)))["threat"]
    assert threat["mitigation"] == {"value": {named: rule}, "source": "log"}


def test_what_nobody_said_of_threat_and_accountability_is_not_stated(tmp_path):
    card = valid(make_card(minimal(tmp_path)))
    assert set(map(str, card["accountability"].values())) == {str(NOT_STATED)}
    assert {key for key, fact in card["threat"].items() if fact != NOT_STATED} == {"stage_of_learning"}
    assert card["claim"]["sampling_risk"] == NOT_STATED


def test_the_sampling_risk_is_stated_where_it_was_measured(tmp_path):
    with AuditLog(log_file(minimal(tmp_path)), sync=False) as log:
        log.append(Measured(0, SAMPLING_RISK, 0.0041, "hypergeometric: 20 of 100 asked, 10 faulty, f = 5"))
    claim = valid(make_card(tmp_path))["claim"]
    assert claim["sampling_risk"]["value"]["value"] == 0.0041
    assert claim["heterogeneity"] == NOT_STATED


@pytest.mark.parametrize("name", sorted({**aggregators.members(), **preaggregators.members()}))
def test_limits_of_every_rule_come_from_its_own_file(tmp_path, name):
    module = __import__(type_of(name).__module__, fromlist=["CASES"])
    text = next(case.rule for case in module.CASES)
    limits = valid(make_card(minimal(tmp_path, rule=text)))["limits"]["rule"]
    part = next(part for part in limits if part["part"].startswith(f"{name}("))
    assert part["condition"] == " ".join(module.__doc__.partition("\nCondition:")[2].partition("\n\n")[0].split()) != ""
    assert part["description"].splitlines()[0] == module.__doc__.splitlines()[0]
    expected = {(prop, reason, case.rule) for case in module.CASES for prop, reason in case.lacks.items()}
    assert {(each["property"], each["reason"], case) for each in part["lacks"] for case in each["cases"]} == expected
    write_card(tmp_path, html=True)


def test_a_rule_without_a_stated_condition_is_held_to_its_check(monkeypatch):
    module = sys.modules[type_of("trimmed_mean").__module__]
    monkeypatch.setattr(module, "__doc__", "Trimmed mean, without a word on n and f.")
    assert _limits(parse("trimmed_mean(f=2)"))["condition"] == "n >= 5 (by its check; its file states none)"


def type_of(name):
    return {**aggregators.members(), **preaggregators.members()}[name]


def test_a_rule_that_is_none_of_ours_has_no_limits_stated(tmp_path):
    card = valid(make_card(minimal(tmp_path, rule="flwr.serverapp.strategy.Krum")))
    assert card["claim"]["rule"]["value"] == "flwr.serverapp.strategy.Krum"
    assert card["limits"]["rule"] == []
    assert card["claim"]["declared_f"] == NOT_STATED


def test_rounds_that_were_undone_do_not_count(tmp_path):
    make(tmp_path)
    rollback(tmp_path, 1, reason="a backdoor", sync=False)
    card = valid(make_card(tmp_path))
    assert (card["run"]["rounds"], card["run"]["outcome"]) == (1, "not ended")
    assert card["run"]["rolled_back"] == [{"from": 3, "to": 1, "reason": "a backdoor"}]
    assert card["run"]["model"] == model_sha256({"w": np.full(3, 1, np.float32)})
    assert card["claim"]["metric"]["value"]["round"] == 1
    assert card["deployment"]["refusals"]["value"] == {"NOT_FINITE": 3}  # this stays true


def test_a_log_that_is_not_intact_is_stated(tmp_path):
    log = log_file(make(tmp_path))
    log.write_bytes(log.read_bytes().replace(b'"NOT_FINITE"', b'"NOT_FUNNY"', 1))
    evidence = valid(make_card(tmp_path))["deployment"]["evidence"]["value"]
    assert not evidence["log_intact"]
    assert "was changed" in evidence["findings"][0]


def test_there_is_no_card_without_a_run(tmp_path):
    with pytest.raises(AuditError, match="there is no file"):
        make_card(tmp_path)
    with AuditLog(log_file(tmp_path), sync=False) as log:
        log.append(RunEnded(1, "finished"))
    with pytest.raises(AuditError, match="does not say that a run started"):
        make_card(tmp_path)


def test_the_files_hold_the_card_and_obey_nobody(tmp_path):
    evil = "<script>alert(1)</script> [x](http://evil) `code`\n# heading \x1b[31m"
    make(tmp_path, statements={"tls": evil})
    paths = write_card(tmp_path, html=True)
    assert [path.name for path in paths] == ["card.json", "card.md", "card.html"]
    card = valid(json.loads(paths[0].read_text()))
    assert card["deployment"]["tls"]["value"] == evil
    text, page = paths[1].read_text(), paths[2].read_text()
    assert "\\<script>" in text
    assert "\n# heading" not in text
    assert "\\[x](http" in text
    assert "\\<i>metric" in text
    assert html.escape("<script>alert(1)</script>") in page
    assert "<script" not in page
    assert "<i>" not in page
    for rendered in (text, page):
        assert "\x1b" not in rendered
        assert "http" not in rendered.replace("http://evil", "")
        for limit in card["limits"]["general"]:
            assert limit in html.unescape(rendered)
        assert "a coordinate rule is no combination of whole rows" in rendered
    assert write_card(tmp_path)[-1].name == "card.md"


# -- what a red team found out -----------------------------------------------------------------------


def red_team_file(folder, subject=CONFIG["defence"], **changes):
    """A file as flwr_robust/redteam/run.py writes it: two seeds, one of which each attack hurts more."""

    def runs(attack, real_f, accuracy, success=None):
        return [
            {"attack": attack, "real_f": real_f, "seed": seed, "accuracy": accuracy - seed / 50, "success": success}
            for seed in range(2)
        ]

    document = {
        "schema": 1,
        "setting": {"name": "mine", "subject": subject, "declared_f": 1, "clients": 5, "task": "digits"},
        "families": {
            "sign_flip()": "inverted signs",
            "zero()": "inverted signs",
            "backdoor(target=0)": "backdoor triggers",
            "nan()": "faults",
        },
        "runs": [
            *runs("no attack", 0, 0.91),
            *runs("mean of the honest", 1, 0.9),
            *runs("sign_flip()", 1, 0.81),
            *runs("zero()", 1, 0.71),
            *runs("sign_flip()", 2, 0.11),
            *runs("backdoor(target=0)", 1, 0.88, 0.25),
        ],
        **changes,
    }
    path = folder / "red <b>.json"
    path.write_text(json.dumps(document))
    return path


def test_a_red_teams_results_can_be_attached(tmp_path):
    make(tmp_path)
    path = red_team_file(tmp_path)
    card = valid(make_card(tmp_path, red_team=path))["deployment"]
    assert {fact["source"] for key, fact in card.items() if key in ("red_team", "red_team_subject", "review")} == {
        "red team"
    }
    logged, *tests = card["red_team"]["value"]
    assert logged["attack"] == "ipm(epsilon=0.5)"  # on record in the log
    found = [(t["family"], t["attack"], t["attackers"], t["metric"], t["attacked"]) for t in tests]
    assert found == [
        ("inverted signs", "zero()", 1, "accuracy", pytest.approx(0.70)),
        ("inverted signs", "sign_flip()", 2, "accuracy", pytest.approx(0.10)),
        ("backdoor triggers", "backdoor(target=0)", 1, "accuracy", pytest.approx(0.87)),
        ("backdoor triggers", "backdoor(target=0)", 1, "success of the attack", pytest.approx(0.25)),
    ]
    assert [t["honest"] for t in tests] == [pytest.approx(0.9)] * 3 + [None]
    subject = card["red_team_subject"]["value"]
    assert (subject["same_rule_as_the_run"], subject["file"]) == ("yes", "red <b>.json")
    assert subject["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["review"]["value"] == {
        "scaled updates": "not tested",
        "inverted signs": "tested",
        "sybils": "not tested",
        "backdoor triggers": "tested",
        "mislabelled data": "not tested",
    }
    for made in write_card(tmp_path, html=True, red_team=path)[1:]:
        text = made.read_text()
        assert "family: backdoor triggers" in text
        assert "<b>" not in text.replace("\\<b>", "")


@pytest.mark.parametrize(
    ("rule", "subject", "same"),
    [
        ("krum(f=2)", "krum( f = 2 )", "yes"),
        ("krum(f=2)", 'krum(f=2) {"fraction_evaluate": 0.0}', "yes"),
        ("krum(f=2)", "krum(f=1)", "no"),
        ("krum(f=2)", "flwr.serverapp.strategy:Krum", "no"),
        ("", "flwr.serverapp.strategy:Krum", "not known"),
    ],
)
def test_whether_the_red_team_tested_this_rule_is_stated(tmp_path, rule, subject, same):
    minimal(tmp_path, rule=rule)
    card = valid(make_card(tmp_path, red_team=red_team_file(tmp_path, subject)))
    assert card["deployment"]["red_team_subject"]["value"]["same_rule_as_the_run"] == same


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"\xff"),
        lambda path: path.write_text(path.read_text().replace('"schema": 1', '"schema": 2')),
        lambda path: path.write_text(path.read_text().replace('"no attack"', '"none"')),
        lambda path: path.write_text(path.read_text().replace('"declared_f": 1', '"declared_f": "x"')),
    ],
)
def test_a_file_that_is_none_of_a_red_team_is_refused(tmp_path, spoil):
    make(tmp_path)
    spoil(red_team_file(tmp_path))
    with pytest.raises(AuditError, match=r"red <b>\.json.*; name the JSON"):
        make_card(tmp_path, red_team=tmp_path / "red <b>.json")


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "red-team").glob("*.json")), ids=lambda path: path.stem)
def test_the_files_in_the_docs_can_be_attached(tmp_path, path):
    found = RedTeamFile.read(path)
    assert set(REVIEW) <= set(found.families)
    told = read_red_team(path)  # what the experiments make of the same file
    worst = min(test["attacked"] for test in found.worst() if test["metric"] == "accuracy")
    assert worst == pytest.approx(min(told.bottom[0], told.alone) if told.bottom[1] != "no attack" else worst)


# -- histories --------------------------------------------------------------------------------------


def test_what_clients_keep_is_that_of_the_latest_checkpoint():
    def told(*events: Event):
        return _client_states([Record(i + 1, i, "", "", event) for i, event in enumerate(events)])

    written = [CheckpointWritten(r, f"round-{r}", "0" * 64, 9) for r in range(3)]
    kept = [ClientStatesKept(r, 5 + r) for r in range(3)]
    assert told(written[0]) == "not kept"
    assert told(kept[1], written[1], kept[2], written[2]) == "of 7 clients, in the latest checkpoint"
    assert told(kept[1], written[1], kept[2], kept[2], written[2]) == "of 7 clients, in the latest checkpoint"
    assert told(kept[1], written[1], written[2]) == "not in the latest checkpoint"
    again = ClientStatesKept(1, 9)  # round 1 was done again after a rollback
    assert told(kept[1], written[1], again, written[1]) == "of 9 clients, in the latest checkpoint"


def test_clients_are_summarised(tmp_path):
    records = read_log(log_file(make(tmp_path)))
    found = {summary.node: summary for summary in clients(records)}
    assert list(found) == [*NODES[:3], LIAR, SILENT]  # by partition; that of the silent one is not known
    assert (found[LIAR].asked, found[LIAR].refused, found[LIAR].reasons) == (3, 3, (("NOT_FINITE", 3),))
    assert (found[SILENT].silent, found[SILENT].weight, found[SILENT].partition) == (3, 0.0, None)
    assert (found[NODES[2]].admitted, found[NODES[2]].weight, found[NODES[2]].distance) == (3, 0.5, 1e-5)
    assert found[NODES[0]].asked == found[NODES[0]].admitted == 6  # evaluation, too
    assert [summary.node for summary in found.values() if summary.quarantined] == [LIAR]
    assert [find_client(records, client) for client in (0, 4, SILENT)] == [NODES[0], LIAR, SILENT]
    with pytest.raises(AuditError, match="client 3 is neither a node nor the partition of one: no node has it"):
        find_client(records, 3)


def test_a_claimed_partition_names_nobody(tmp_path):
    """Who claims another's partition must not be looked up, banned or released in its place."""
    records = read_log(log_file(make(tmp_path)))
    start = records[0].event
    deployed = dataclasses.replace(start, config={**start.config, "by-partition": False})
    records[0] = dataclasses.replace(records[0], event=deployed)
    assert partitions_are_claims(records)
    assert find_client(records, LIAR) == LIAR
    with pytest.raises(AuditError, match="client 0 is no node of this run; in a deployment a partition is what a node"):
        find_client(records, 0)


def test_rounds_done_twice_count_once(tmp_path):
    make(tmp_path)
    rollback(tmp_path, 1, sync=False)
    with AuditedRun(tmp_path, CONFIG, resume=True, sync=False) as run:
        rounds(run, 2, 2)
    records = read_log(log_file(tmp_path))
    summaries = round_summaries(records)
    assert [(each.round, each.undone) for each in summaries] == [(1, False), (2, True), (3, True), (2, False)]
    assert {(each.asked, each.admitted, each.refused, each.silent, each.heaviest) for each in summaries} == {
        (5, 3, 1, 1, 0.5)
    }
    assert sum(visit.undone for visit in visits(records)) == 14
    counted = round_summaries(counting(records))
    assert [each.round for each in counted if each.asked] == [1, 2]
    summary = next(each for each in clients(records) if each.node == LIAR)
    assert (summary.refused, summary.weight) == (4, 0.0)


def test_a_notebook_shows_the_history_and_the_card_with_all_text_escaped(tmp_path):
    records = read_log(log_file(make(tmp_path, statements={"owner": "<script>x</script>"})))
    shown = visits(records)._repr_html_()
    assert "w \\x1b[31m[bold]&lt;b&gt;`x`|" in shown
    assert "<b>" not in shown
    assert shown.count("px;height") == len(visits(records))
    assert "NOT_FINITE 3" in clients(records)._repr_html_()
    assert round_summaries(records)._repr_html_().count("<tr>") == 1 + len(round_summaries(records))
    card = make_card(tmp_path)
    shown = card._repr_html_()
    assert "&lt;script&gt;x&lt;/script&gt;" in shown
    assert "<script>" not in shown
    assert "clip(c=2.0) | trimmed_mean(f=1)" in shown
    assert all(limit[:20] in shown for limit in card["limits"]["general"])
    assert repr(card) == ("Card(rule=clip(c=2.0) | trimmed_mean(f=1), rounds=3, outcome=finished, log intact: yes)")
    assert json.loads(json.dumps(card)) == card
