"""Resumption where Flower's Ray engine runs the apps: nodes have other ids in every run, and servers can be killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from flwr_robust.audit import Quarantined, Resumed, RoundConfigured, read_log, verify
from flwr_robust.audit.run import checkpoint_folder, log_file
from flwr_robust.runs.config import RunConfig
from flwr_robust.studies.flower_run import FlowerRunError, FlowerRuns
from tests.apps import run
from tests.house import ROOT

# Clients and a rule that remember, a sample per round, and one node that is put away.
KEYS = {
    "message": "momentum",
    "defence": "centered_clipping(tau=0.05)",
    "attack": "nan()",
    "attackers": 1,
    "knowledge": "nothing",
    "quarantine_after": 2,
    "clients": 5,
    "fraction_train": 0.8,
    "evaluate_every": 1,
}
SAME = ("model_sha256", "curve", "mean_weights", "outcomes", "refused", "missing", "quarantined", "stopped")


def same(one, other):
    return {key: one[key] for key in SAME} == {key: other[key] for key in SAME}


def events(folder, kind):
    return [record.event for record in read_log(log_file(folder)) if isinstance(record.event, kind)]


# Personal heads, and an attack on messages that remembers.
ALSO_KEPT = {
    "message": "delta",
    "model": "mlp",
    "personal": "head.*",
    "local_steps": 2,
    "attack": "mimic(warmup=3)",
    "attackers": 1,
    "defence": "median()",
    "clients": 4,
    "evaluate_every": 1,
}


@pytest.mark.ray
def test_two_rounds_and_two_are_four_on_ray(tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    with FlowerRuns() as flower:
        flower.run(RunConfig(**KEYS, rounds=2, audit=str(folder)))
        resumed = flower.run(RunConfig(**KEYS, rounds=4, audit=str(folder), resume=True))
        flower.run(RunConfig(**ALSO_KEPT, rounds=2, audit=str(other)))
        also = flower.run(RunConfig(**ALSO_KEPT, rounds=4, audit=str(other), resume=True))
    assert same(also, run(tmp_path, **ALSO_KEPT, rounds=4)[0])
    whole, _ = run(tmp_path, **KEYS, rounds=4)
    assert same(resumed, whole)
    assert verify(log_file(folder)).intact
    assert [event.round for event in events(folder, Resumed)] == [2]
    # The nodes of the second run are others; what is known of the first ones is known of them.
    asked = [set(event.asked) | set(event.left_out) for event in events(folder, RoundConfigured)]
    assert not (asked[0] | asked[1]) & (asked[2] | asked[3])
    assert whole["quarantined"]


@pytest.mark.ray
def test_two_rounds_and_two_are_four_on_ray_with_secret_seeds(tmp_path):
    """Two secret runs, one that stops, and the same rounds in this process from what the log reveals."""
    code = textwrap.dedent(SECRETLY)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=540, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "same"


SECRETLY = """
    import sys
    import time
    import numpy as np
    from flwr.client import NumPyClient
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation
    from flwr_robust.audit import RunEnded, read_log, verify_run
    from flwr_robust.audit.run import log_file
    from flwr_robust.flower import Audit, InProcessGrid, RobustStrategy, discover, serve
    from tests.flower_helpers import record, same_bits, values

    N, FOLDER, found = 6, sys.argv[1], []

    class Client(NumPyClient):
        def __init__(self, place):
            self.place = place

        def fit(self, parameters, config):
            draw = np.random.default_rng((self.place, int(config["server-round"])))
            return [parameters[0] + draw.standard_normal(20)], 10, {}

    clients = serve(lambda context: Client(context.node_config["partition-id"]).to_client())

    def go(grid, rounds, seed, audit):
        while len(nodes := list(grid.get_node_ids())) < N:
            time.sleep(0.1)
        options = {"fraction_train": 0.7, "fraction_evaluate": 0.0, "min_available_nodes": N, "spares": 0}
        options |= {"min_train_nodes": 4, "seed": seed, "audit": audit}
        strategy = RobustStrategy("dnc(f=1, sub_dimension=5, iterations=2)", **options)
        strategy.identify(discover(grid, nodes))
        result = strategy.start(grid, record({"w": np.zeros(20)}), rounds)
        found.append((values(result.arrays), [each.partitions for each in strategy.history]))

    def on_ray(rounds, resume):
        server = ServerApp()

        @server.main()
        def main(grid, context):
            go(grid, rounds, None, Audit(FOLDER, sync=False, resume=resume))

        run_simulation(server, clients, N)

    on_ray(2, False)
    on_ray(4, True)
    ended = [each.event for each in read_log(log_file(FOLDER)) if isinstance(each.event, RunEnded)]
    go(InProcessGrid(clients, N), 4, ended[-1].seed_revealed, None)
    assert same_bits(found[1][0], found[2][0]), found
    assert found[1][1] == found[2][1], found
    assert len(found[1][1]) == 4, found
    assert verify_run(FOLDER).intact
    print("same")
"""


@pytest.mark.ray
def test_kill_9_of_the_server_on_ray_loses_at_most_the_running_round(tmp_path):
    folder, rounds = tmp_path / "run", 60
    config = RunConfig(**KEYS, rounds=rounds, audit=str(folder), resume=True)
    killed, fate = [], []
    with FlowerRuns() as flower:
        for at in (4, 15):

            def start():
                try:
                    flower.run(config)
                    fate.append("finished")
                except FlowerRunError:
                    fate.append("killed")

            runner = threading.Thread(target=start)
            runner.start()
            due = checkpoint_folder(folder) / f"round-{at:08}"
            deadline = time.monotonic() + 120
            while not due.exists() and runner.is_alive() and time.monotonic() < deadline:
                time.sleep(0.005)
            reached = max(event.round for event in events(folder, RoundConfigured))
            for process in servers(flower):
                process.kill()
                killed.append(reached)
            runner.join(120)
            assert not runner.is_alive()
        assert fate == ["killed", "killed"]
        assert len(killed) == 2
        found = flower.run(config)
    whole, _ = run(tmp_path, **KEYS, rounds=rounds)
    assert same(found, whole)
    assert verify(log_file(folder)).intact
    # Every resumption goes on at the round that was running, or behind it.
    resumed = [event.round for event in events(folder, Resumed)]
    assert len(resumed) == 2
    assert all(at - 1 <= again < rounds for at, again in zip(killed, resumed, strict=True))
    assert len(events(folder, Quarantined)) >= 1


def servers(flower):
    """The processes that run the ServerApp, and Ray's driver with it."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if any("flwr-simulation" in part for part in line) and str(flower.home) in " ".join(environment(process)):
            found.append(process)
    return found


def environment(process):
    try:
        return process.environ().values()
    except psutil.Error:
        return []
