"""IBMBackend against a rehearsal server, through the real client. Every wait has a deadline."""

from contextlib import ExitStack

import pytest

from tests.support import client
from tests.support.ibm import rehearsed


@pytest.fixture
def rehearse(monkeypatch, tmp_path):
    """Starts servers, and points the client of this process at the last one."""
    client.loaded()
    monkeypatch.setenv("HOME", str(tmp_path))
    with ExitStack() as stack:
        yield lambda *backends, **options: stack.enter_context(rehearsed(*backends, **options))
