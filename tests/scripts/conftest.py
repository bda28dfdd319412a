"""Fixtures for the tests of ``scripts/train.py``."""

from __future__ import annotations

import pytest

# First: it puts scripts/ on the path, as Python does for a script.
from tests.scripts.training_runs import Checkpoint, make_trainer


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The run that nothing happened to."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    trainer.run()
    return trainer.checkpoint
