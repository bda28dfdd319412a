"""Fixtures for all tests. Ray's settings must be in place before anything imports ray."""

import os
import signal

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listen on 127.0.0.1 only
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in a shell's background: programs that the tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterator

import hypothesis
import pytest

# Deterministic and without a deadline of its own: no test depends on the machine's speed.
hypothesis.settings.register_profile(
    "qailab", deadline=None, derandomize=True, max_examples=60, print_blob=True
)
hypothesis.settings.load_profile("qailab")

RAY_CPUS = 4


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """One process has all tests that share a Ray, and a file of programs shares its fixtures."""
    for item in items:
        if "ray_cluster" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif item.get_closest_marker("integration"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests that need it."""
    import ray

    ray.init(
        address="local",
        num_cpus=RAY_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=80 << 20,
    )
    yield
    ray.shutdown()
