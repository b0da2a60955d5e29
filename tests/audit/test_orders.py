"""Orders: recorded at once where nobody has the log open, else left for the writer; files that are none are refused."""

from __future__ import annotations

import json

import pytest

from flwr_robust.audit import AuditLog, Banned, Released, Replayed, UpdatesDeleted, read_log, verify_run
from flwr_robust.audit.history import banned, clients
from flwr_robust.audit.order_files import pending
from flwr_robust.audit.orders import give_order
from flwr_robust.audit.run import log_file
from flwr_robust.errors import AuditError
from tests.audit_runs import NODES, make

NODE = NODES[1]


def test_an_order_is_recorded_where_no_run_is_in_progress(tmp_path):
    make(tmp_path)
    assert give_order(tmp_path, Banned(0, NODE, "because"), sync=False) is None
    records = read_log(log_file(tmp_path))
    assert records[-1].event == Banned(3, NODE, "because")
    assert banned(records) == {NODE}
    assert [each.node for each in clients(records) if each.banned] == [NODE]
    give_order(tmp_path, Released(0, NODE, None, "over"), sync=False)
    assert banned(read_log(log_file(tmp_path))) == set()
    assert verify_run(tmp_path).intact


def test_an_order_waits_for_the_process_that_has_the_log_open(tmp_path):
    make(tmp_path)
    with AuditLog(log_file(tmp_path), sync=False):
        first = give_order(tmp_path, Banned(0, NODE), sync=False)
        second = give_order(tmp_path, Banned(0, NODES[2]), sync=False)
    assert [path for path, _ in pending(tmp_path)] == [first, second]
    assert banned(read_log(log_file(tmp_path))) == set()
    with pytest.raises(AuditError, match=r"banned: nothing is done, because other orders wait in .*; give --pending"):
        give_order(tmp_path, Banned(0, NODES[0]), sync=False)  # the run has ended without looking
    assert banned(read_log(log_file(tmp_path))) == set()
    seen = []
    give_order(tmp_path, Banned(0, NODES[0]), sync=False, earlier=lambda path, order: seen.append(order.node))
    assert seen == [NODE, NODES[2]]
    assert [record.event.node for record in read_log(log_file(tmp_path))[-3:]] == [NODE, NODES[2], NODES[0]]
    assert not list(pending(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"kind":"banned"}',
        '{"kind":"banned","round":0,"node":"5","reason":""}',
        '{"kind":"rolled_back","from_round":3,"to_round":0,"reason":"","set_aside":[]}',
        "[" * 10_000,
        json.dumps({"kind": "banned", "round": 0, "node": 5, "reason": "x" * 70_000}),
    ],
    ids=["empty", "list", "no kind", "no fields", "type", "another kind", "deep", "long"],
)
def test_a_file_that_is_no_order_is_set_aside(tmp_path, text):
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "1-1.json").write_text(text)
    assert not list(pending(tmp_path))
    assert [path.name for path in (tmp_path / "orders").iterdir()] == ["1-1.refused"]


def test_a_link_is_no_order(tmp_path):
    (tmp_path / "orders").mkdir()
    (tmp_path / "elsewhere").write_text(json.dumps({"kind": "banned", **Banned(0, 5).to_fields()}))
    (tmp_path / "orders" / "1-1.json").symlink_to(tmp_path / "elsewhere")
    assert not list(pending(tmp_path))


def test_an_order_needs_a_run(tmp_path):
    with pytest.raises(AuditError, match=r"banned: .* holds no run: there is no audit\.jsonl; name its folder"):
        give_order(tmp_path, Banned(0, 5))


def test_deleting_updates_of_a_run_that_kept_none_is_on_record(tmp_path):
    make(tmp_path)
    give_order(tmp_path, UpdatesDeleted(0, (), (NODE,), "asked for"), sync=False)
    assert read_log(log_file(tmp_path))[-1].event == UpdatesDeleted(3, (), (NODE,), "asked for")
    assert verify_run(tmp_path).intact


def test_a_question_about_a_folder_does_not_carry_out_what_somebody_put_there(tmp_path):
    """A folder that an auditor is sent may hold an order to delete the evidence in it."""
    make(tmp_path)
    (tmp_path / "orders").mkdir()
    path = tmp_path / "orders" / "1-1.json"
    path.write_text(json.dumps({"kind": "updates_deleted", **UpdatesDeleted(0).to_fields()}))
    give_order(tmp_path, Replayed(0, (), (), ()), sync=False)
    assert path.exists()
    kinds = [record.event.kind for record in read_log(log_file(tmp_path))]
    assert kinds[-1] == "replayed"
    assert "updates_deleted" not in kinds
