"""Settings of all tests: Ray's environment, hypothesis, markers and groups by folder."""

import gc
import os
import signal

# Ray's settings must be in place before anything imports ray.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listen on 127.0.0.1 only
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
# Its daemons look at all logs and processes every second or less: a tenth of two cores.
os.environ["RAY_LOG_MONITOR_MANY_FILES_THRESHOLD"] = "1"
os.environ["REPORTER_UPDATE_INTERVAL_MS"] = "60000"
os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in a shell's background: programs that the tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path

import hypothesis
import pytest

INTEGRATION = Path(__file__).parent / "integration"

gc.disable()  # what is imported meanwhile stays; see `pytest_collection_finish`

# Deterministic and without a deadline of its own: no test depends on the machine's speed.
hypothesis.settings.register_profile(
    "qailab", deadline=None, derandomize=True, max_examples=60, print_blob=True
)
hypothesis.settings.load_profile("qailab")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Mark by folder and fixture, and sort: what takes long begins, and small tests fill the rest.

    One process has all tests of the cluster with a token, which takes long to make.
    """

    def integration(item):
        return item.path.is_relative_to(INTEGRATION)

    def clustered(item):
        return integration(item) and "cluster" in item.fixturenames

    for item in items:
        if integration(item):
            item.add_marker(pytest.mark.integration)
        if "ray_cluster" in item.fixturenames:
            item.add_marker(pytest.mark.ray)
        if clustered(item):
            item.add_marker(pytest.mark.xdist_group("cluster"))
    items.sort(key=lambda item: (not integration(item), not clustered(item)))


def pytest_collection_finish():
    """Leave modules and tests out of garbage collections, which would take a tenth of the time."""
    gc.freeze()
    gc.enable()
