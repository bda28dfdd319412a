import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest

from qailab.backends import (
    AerBackend,
    Backend,
    EmulatedBackend,
    Probabilities,
    StatevectorBackend,
    Usage,
)
from qailab.backends.base import evaluate
from qailab.errors import (
    EvaluationError,
    InputError,
    InputTypeError,
    MemoryLimitError,
    TransientBackendError,
)
from tests.support.contracts import BackendContract, answers, backward_batch, model

_, CANONICAL, ANGLE_MAP, VALUES = model()
BATCH = backward_batch(CANONICAL, ANGLE_MAP, VALUES, shots=50)


class TestEmulated(BackendContract):
    def backend(self):
        return EmulatedBackend(StatevectorBackend(), latency=0.001, jitter=0.001)


def opened(**options):
    backend = EmulatedBackend(**options)
    backend.open()
    return backend


def test_answers_are_those_of_inner_after_the_latency():
    backend = opened(latency=0.05)
    answers(backend, CANONICAL, BATCH)  # compiled
    began = time.monotonic()
    delayed = answers(backend, CANONICAL, BATCH)
    assert time.monotonic() - began >= 0.049
    np.testing.assert_array_equal(delayed, answers(AerBackend(), CANONICAL, BATCH))


def usage_of(backend, batch=BATCH):
    return evaluate(backend, CANONICAL, batch, threading.Event()).usage


def test_it_tells_its_jobs_and_their_seconds():
    backend = opened(latency=0.01)
    assert usage_of(backend) == Usage(1, 0.01)
    assert usage_of(backend) + usage_of(backend) == Usage(2, 0.02)


def test_a_call_is_one_job_however_few_rows_inner_takes(monkeypatch):
    whole = answers(AerBackend(), CANONICAL, BATCH)
    monkeypatch.setattr(AerBackend, "max_rows_per_call", lambda self, circuit, shots: 4)
    backend = opened(latency=0.001)
    np.testing.assert_array_equal(answers(backend, CANONICAL, BATCH), whole)
    assert usage_of(backend).jobs == 1


def failures_of(backend, jobs=30):
    failed = []
    for job in range(jobs):
        try:
            answers(backend, CANONICAL, BATCH.part(2 * (job % 20), 2 * (job % 20) + 2))
        except TransientBackendError:
            failed.append(job)
    return failed


def test_faults_are_seeded_and_as_many_as_asked_for():
    first = failures_of(opened(failure_rate=0.3, seed=1))
    assert failures_of(opened(failure_rate=0.3, seed=1)) == first
    assert failures_of(opened(failure_rate=0.3, seed=2)) != first
    assert 0.1 < len(first) / 30 < 0.5
    assert failures_of(opened(failure_rate=1.0)) == list(range(30))
    assert failures_of(opened()) == []


def test_jitter_is_spread_evenly_around_the_latency():
    backend = opened(latency=0.004, jitter=0.004)
    seconds = []
    for _ in range(100):
        seconds.append(usage_of(backend, BATCH.part(0, 2)).qpu_seconds)
    assert 0 <= min(seconds) < 0.001
    assert 0.007 < max(seconds) <= 0.008
    assert abs(np.mean(seconds) - 0.004) < 0.001


def test_in_process_transient_faults_are_tried_again():
    backend = EmulatedBackend(failure_rate=0.5, seed=3)
    backend.open()
    found = backend.submit(CANONICAL, BATCH).result(60)
    np.testing.assert_array_equal(found, answers(AerBackend(), CANONICAL, BATCH))
    with pytest.raises(TransientBackendError, match=r"job 20 of .* as failure_rate asks for"):
        opened(failure_rate=1.0).submit(CANONICAL, BATCH).result(60)


def test_a_cancel_ends_the_wait():
    backend = opened(latency=3600.0)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(CancelledError):
        answers(backend, CANONICAL, BATCH, stop)


def test_it_is_as_its_inner_and_takes_no_cpu():
    class Hardware(Backend):
        def open(self):
            pass

        def probabilities(self, circuit, batch, stop):
            return Probabilities(np.full((batch.num_rows, circuit.num_outcomes), 0.125))

        def max_rows_per_call(self, circuit, shots):
            return 7

    assert EmulatedBackend().supports_exact
    assert EmulatedBackend().traits.idempotent
    assert not EmulatedBackend(Hardware()).supports_exact
    assert not EmulatedBackend(Hardware()).traits.idempotent
    assert EmulatedBackend(AerBackend(threads=2)).traits.resources.num_cpus == 0
    wide = model(qubits=17)[1]
    with pytest.raises(MemoryLimitError):
        EmulatedBackend(AerBackend(max_memory_mb=1)).validate(wide, 50)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"latency": -1.0}, InputError, r"latency must be finite and not negative \(seconds\)"),
        ({"latency": float("nan")}, InputError, "latency must be finite"),
        ({"jitter": "much"}, InputTypeError, r"jitter must be a number \(seconds\), got 'much'"),
        ({"failure_rate": 1.5}, InputError, "failure_rate must be finite and between 0 and 1"),
        ({"seed": -1}, InputError, "seed must be an integer of at least 0"),
        ({"inner": "aer"}, InputTypeError, "inner must be a qailab backend, got 'aer'"),
    ],
)
def test_bad_options(options, error, says):
    with pytest.raises(error, match=says):
        EmulatedBackend(**options)


class Picky(AerBackend):
    """Fails for some rows."""

    bad = frozenset({31})
    calls = 0

    def probabilities(self, circuit, batch, stop):
        type(self).calls += 1
        if self.bad & set(range(batch.rows.start, batch.rows.stop)):
            raise ValueError("no such angle")
        return super().probabilities(circuit, batch, stop)


def test_the_row_that_an_error_is_about_is_found_by_halving():
    Picky.calls = 0
    with pytest.raises(
        EvaluationError, match=r"ValueError: no such angle \[rows 30 to 31"
    ) as error:
        Picky().submit(CANONICAL, BATCH).result(60)
    assert "(sample 1, angle" in str(error.value)
    assert isinstance(error.value.__cause__, ValueError)
    assert Picky.calls <= 1 + 2 * np.ceil(np.log2(BATCH.num_rows / 2))


def test_rows_that_cost_money_are_not_run_again_to_find_it():
    class Paid(Picky):
        def __init__(self):
            super().__init__()
            self.traits = replace(self.traits, idempotent=False)

    Paid.calls = 0
    with pytest.raises(EvaluationError, match=rf"\[rows 0 to {BATCH.num_rows - 1}, the first"):
        Paid().submit(CANONICAL, BATCH).result(60)
    assert Paid.calls == 1
