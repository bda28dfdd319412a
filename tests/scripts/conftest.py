"""Fixtures for the tests of ``scripts/train.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# First: it puts scripts/ on the path, as Python does for a script.
from tests.scripts.training_runs import Checkpoint, InProcessPool, make_trainer


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The run that nothing happened to."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    trainer.run()
    return trainer.checkpoint


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Runs without Ray in an empty folder; what the program sets for its process is undone."""
    monkeypatch.setattr("training.session.LauncherPool", InProcessPool)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
