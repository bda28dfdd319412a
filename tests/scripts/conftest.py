"""Fixtures for the tests of the trainer."""

import pytest
import torch

from tests.support.training import TINY, trained


@pytest.fixture(scope="session")
def whole():
    """The run that nothing happened to."""
    return trained(TINY)


@pytest.fixture(autouse=True)
def own_threads():
    """What the trainer sets for its process is undone."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
