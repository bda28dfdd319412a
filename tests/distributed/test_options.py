"""Options are checked before a pool connects to anything."""

import pytest

from qailab.backends import AerBackend, IBMBackend
from qailab.distributed import LauncherPool
from qailab.distributed.options import checked_actor_options
from qailab.errors import InputError, InputTypeError


@pytest.mark.parametrize(
    ("backends", "options", "says"),
    [
        ([], {}, "at least one"),
        ("aer", {}, r"backends\[0\].*'a'"),
        (AerBackend(), {}, r"must be a list of backends.*write \[AerBackend\(\)\] \* 4"),
        (["aer"], {}, r"backends\[0\].*'aer'; write AerBackend\(\)"),
        ([AerBackend], {}, r"backends\[0\].*write AerBackend\(\), with parentheses"),
        ([AerBackend()], {"address": 6379}, "address must be 'HOST:PORT', as '127.0.0.1:6379'"),
        ([AerBackend()], {"address": "6379"}, "address must be 'HOST:PORT', as '127.0.0.1:6379'"),
        (
            [AerBackend()],
            {"address": "http://10.0.0.5:8265"},
            r"of a dashboard.*scripts/submit --address http://10.0.0.5:8265.*'HOST:6379'",
        ),
        ([AerBackend()], {"max_in_flight": 0}, "max_in_flight must be a positive integer"),
        ([AerBackend()], {"chunk_rows": 0}, "positive integer or 'auto', got 0"),
        ([AerBackend()], {"chunk_rows": "large"}, "'auto', got 'large'"),
        ([AerBackend()], {"chunk_timeout": -1}, "chunk_timeout must be a positive number"),
        ([AerBackend()], {"start_timeout": float("inf")}, "start_timeout must be a positive"),
        ([AerBackend()], {"progress": 1}, "progress must be True or False"),
        ([AerBackend()], {"actor_options": "many"}, "must be a mapping"),
        ([AerBackend()], {"actor_options": [{}, {}]}, "each of 1 backends; got 2"),
        ([AerBackend()], {"actor_options": {"num_cpus": "2"}}, "must be a number of CPUs"),
        *(
            ([AerBackend()], {"actor_options": {name: 1}}, f"must not set {name}")
            for name in ("lifetime", "max_concurrency", "name", "max_restarts")
        ),
    ],
)
def test_bad_options(backends, options, says):
    with pytest.raises((InputError, InputTypeError), match=says):
        LauncherPool(backends, **options)


def test_simulators_are_started_without_the_ibm_token(monkeypatch):
    """Devices have it, if it is there; other variables stay."""
    backends, given = [AerBackend(), IBMBackend("ibm_fez")], {"runtime_env": {"pip": ["x"]}}
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    assert "runtime_env" not in checked_actor_options(None, backends)[0]
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "s3cret")
    simulator, device = checked_actor_options(given, backends)
    assert simulator["runtime_env"] == {"pip": ["x"], "env_vars": {"QISKIT_IBM_TOKEN": ""}}
    assert device["runtime_env"] == given["runtime_env"]
