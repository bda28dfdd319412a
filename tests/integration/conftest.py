"""Fixtures of the tests that start Ray, servers or processes."""

import threading
from collections.abc import Iterator

import pytest

RAY_CPUS = 4


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests of a process that need it."""
    import ray

    ray.init(
        address="local",
        num_cpus=RAY_CPUS,
        resources={"trainer": 2},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=80 << 20,
    )
    yield
    ray.shutdown()


@pytest.fixture
def shared_ray(ray_cluster) -> dict[str, str]:
    """The environment of programs that use that Ray: to start another takes them 14 CPU seconds."""
    import ray

    return {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
    }


@pytest.fixture
def start_server(monkeypatch, tmp_path):
    """Starts rehearsal servers, and points the client of this process at the last one."""
    from tests.support.servers import server_with

    running = []

    def start(*backends, **options):
        server = server_with(*backends, **options)
        running.append(server)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        return server

    monkeypatch.setenv("HOME", str(tmp_path))
    yield start
    for server in running:
        server.stop()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("rehearsal-")], names


@pytest.fixture
def rehearse(start_server):
    """Starts servers with the client connected to them."""
    from tests.support.servers import Rehearsal

    return lambda *backends, **options: Rehearsal(start_server(*backends, **options))
