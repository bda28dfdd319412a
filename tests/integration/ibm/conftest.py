"""IBMBackend against a rehearsal server, through the real client. Every wait has a deadline."""

import warnings
from contextlib import ExitStack

import pytest

from tests.support.ibm import rehearsed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the client's dependencies warn of while they load
    import qiskit_ibm_runtime  # noqa: F401


@pytest.fixture
def rehearse(monkeypatch, tmp_path):
    """Starts servers, and points the client of this process at the last one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with ExitStack() as stack:
        yield lambda *backends, **options: stack.enter_context(rehearsed(*backends, **options))
