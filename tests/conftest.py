"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Threads that wait for each other on a busy machine cost more than these small arrays take."""
    torch.set_num_threads(1)
