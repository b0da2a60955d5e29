"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Threads that wait for each other on a busy machine cost more than these small arrays take."""
    torch.set_num_threads(1)


@pytest.fixture
def in_this_process(monkeypatch):
    """Run a study's cells here, one after the other: a process of its own takes seconds to import torch."""

    def one_by_one(function, calls, workers):
        for key, arguments in calls:
            yield key, function(*arguments)

    monkeypatch.setattr("flwr_robust.studies.runner.side_by_side", one_by_one)


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))
