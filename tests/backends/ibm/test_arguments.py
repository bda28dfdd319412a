"""What an IBMBackend refuses before anything is looked for."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qailab.backends import Budget, IBMBackend, IBMLimits, IBMTimeouts, IBMWaits
from qailab.backends.ibm.backend import seconds_of
from qailab.circuit import build_circuit
from qailab.errors import InputError, InputTypeError
from qailab.launchers import CircuitProblem, ForwardPass, QuantumLauncher
from tests.support.client import fake_manila


@pytest.mark.parametrize("given", ["300", "", "an hour", "1h1d", "-5m", 0, -1, True, 1.5, None])
def test_times_that_are_none(given):
    with pytest.raises(InputError, match="max_time must be"):
        IBMBackend("ibm_fez", max_time=given)


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99), st.integers(1, 99))
def test_all_times_are_understood(days, hours, minutes, seconds):
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert seconds_of(f"{days}d {hours}h {minutes}m {seconds}s") == expected
    assert seconds_of(f"{hours + 1}h") == seconds_of(3600 * (hours + 1)) == 3600 * (hours + 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "dedicated"}, InputError, "mode"),
        ({"mode": "job", "session_id": "abc"}, InputError, "has no session"),
        ({"session_id": 7}, InputTypeError, "session_id must be text"),
        ({"account": ""}, InputTypeError, "account must be text"),
        ({"optimization_level": 4}, InputError, "optimization_level"),
        ({"seed_transpiler": -1}, InputError, "seed_transpiler"),
        ({"poll_interval": 0}, InputError, "poll_interval must be positive"),
        ({"timeout": float("inf")}, InputError, "timeout must be positive and finite"),
        ({"timeout": "1h"}, InputTypeError, "timeout must be a number of seconds"),
        ({"budget": 600}, InputTypeError, "budget must be of Budget"),
        ({"limits": {}}, InputTypeError, "limits must be of IBMLimits"),
        ({"timeouts": 3}, InputTypeError, "timeouts must be of IBMTimeouts"),
        ({"options": {"twirl": True}}, InputError, "not valid for IBM's Sampler"),
        ({"options": {"max_execution_time": "long"}}, InputError, "max_execution_time"),
    ],
)
def test_options_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        IBMBackend("ibm_fez", **options)


@pytest.mark.parametrize("name", [7, "", object()])
def test_names_that_are_none(name):
    with pytest.raises(InputTypeError, match="name must be a backend's name"):
        IBMBackend(name)


def test_a_live_backend_is_refused():
    live = fake_manila()
    live.service = object()
    with pytest.raises(InputError, match="give the backend's name, 'fake_manila'"):
        IBMBackend(live)


@pytest.mark.parametrize("wrong", [{"request_seconds": 0}, {"job_failures": -1}])
def test_timeouts_of_nothing(wrong):
    with pytest.raises(InputError, match="must be positive"):
        IBMTimeouts(**wrong)


def test_names_of_before():
    with pytest.warns(DeprecationWarning, match="IBMTimeouts"):
        waits = IBMWaits(patience_seconds=3.0, settle_seconds=1.0)
    assert waits == IBMTimeouts(retry_seconds=3.0, settle_seconds=1.0)
    with pytest.warns(DeprecationWarning, match="timeouts"):
        assert IBMBackend("ibm_fez", waits=waits).config.timeouts is waits


def test_exact_probabilities_are_refused_before_anything_is_looked_for():
    problem = CircuitProblem(build_circuit(2, []))
    with pytest.raises(InputError, match="shots=None"):
        QuantumLauncher(problem, ForwardPass(shots=None), IBMBackend("ibm_fez"))


def test_it_is_a_recipe():
    backend = IBMBackend(
        "ibm_fez", options={"twirling": {"enable_gates": True}}, journal="jobs.sqlite",
        budget=Budget(jobs=3), limits=IBMLimits(pending_jobs=2),
    )  # fmt: skip
    content = pickle.dumps(backend)
    assert len(content) < 2000
    copy = pickle.loads(content)
    assert repr(copy) == repr(backend) == "IBMBackend('ibm_fez', mode='session')"
    assert copy.budget == backend.budget
    assert copy.journal == backend.journal
    assert copy.journal.startswith("/")  # an actor has another working directory


def test_a_device_and_a_simulator_differ_in_their_traits():
    device, simulator = IBMBackend("ibm_fez").traits, IBMBackend(fake_manila()).traits
    assert (device.packs_jobs, device.idempotent, device.detect_hangs) == (True, False, False)
    assert (device.queue_name, device.resources.num_cpus) == ("ibm_fez", 0)
    assert device.resources.custom == {"qpu_session": 1}
    assert (simulator.packs_jobs, simulator.idempotent, simulator.detect_hangs) == (
        False, True, True)  # fmt: skip
    assert simulator.resources.num_cpus == 1
