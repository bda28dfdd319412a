import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

from qailab.backends import AerBackend, Backend, Outcomes, RehearsalBackend, Usage
from qailab.errors import (
    EvaluationError,
    InputError,
    InputTypeError,
    MemoryLimitError,
    TransientBackendError,
)
from tests.backends.contract import BackendContract, backward_batch, model

_, CANONICAL, ANGLE_MAP, VALUES = model()
BATCH = backward_batch(CANONICAL, ANGLE_MAP, VALUES, shots=50)


class TestRehearsal(BackendContract):
    def backend(self):
        return RehearsalBackend(AerBackend(), latency=0.001, jitter=0.001)


def opened(**options):
    backend = RehearsalBackend(**options)
    backend.open()
    return backend


def test_answers_are_those_of_inner_after_the_latency():
    backend = opened(latency=0.3)
    backend.evaluate(CANONICAL, BATCH)  # compiled
    began = time.monotonic()
    answers = backend.evaluate(CANONICAL, BATCH)
    assert time.monotonic() - began >= 0.29
    np.testing.assert_array_equal(answers, AerBackend().evaluate(CANONICAL, BATCH))


def test_it_counts_its_jobs_and_their_seconds():
    backend = opened(latency=0.01)
    for _ in range(3):
        backend.evaluate(CANONICAL, BATCH)
    assert backend.usage == Usage(3, pytest.approx(0.03))
    backend.open()
    assert backend.usage == Usage()


def outcomes_of(backend, jobs=60):
    failed = []
    for job in range(jobs):
        try:
            backend.evaluate(CANONICAL, BATCH.part(2 * (job % 20), 2 * (job % 20) + 2))
        except TransientBackendError:
            failed.append(job)
    return failed


def test_faults_are_seeded_and_as_many_as_asked_for():
    first = outcomes_of(opened(failure_rate=0.3, seed=1))
    assert outcomes_of(opened(failure_rate=0.3, seed=1)) == first
    assert outcomes_of(opened(failure_rate=0.3, seed=2)) != first
    assert 0.1 < len(first) / 60 < 0.5
    assert outcomes_of(opened(failure_rate=1.0)) == list(range(60))
    assert outcomes_of(opened()) == []


def test_jitter_is_spread_evenly_around_the_latency():
    backend = opened(latency=0.004, jitter=0.004)
    seconds = []
    for _ in range(100):
        before = backend.usage
        backend.evaluate(CANONICAL, BATCH.part(0, 2))
        seconds.append(backend.usage.since(before).qpu_seconds)
    assert 0 <= min(seconds) < 0.001
    assert 0.007 < max(seconds) <= 0.008
    assert abs(np.mean(seconds) - 0.004) < 0.001


def test_in_process_transient_faults_are_tried_again():
    backend = RehearsalBackend(failure_rate=0.5, seed=3)
    backend.open()
    answers = backend.submit(CANONICAL, BATCH).result(60)
    np.testing.assert_array_equal(answers, AerBackend().evaluate(CANONICAL, BATCH))
    hopeless = RehearsalBackend(failure_rate=1.0)
    hopeless.open()
    with pytest.raises(TransientBackendError, match="as failure_rate asks for"):
        hopeless.submit(CANONICAL, BATCH).result(60)
    assert hopeless.usage.jobs == 20


def test_a_cancel_ends_the_wait():
    backend = opened(latency=3600.0)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(CancelledError):
        backend.evaluate(CANONICAL, BATCH, stop)


def test_it_is_as_its_inner_and_takes_no_cpu():
    class Hardware(Backend):
        def open(self):
            pass

        def outcomes(self, circuit, batch):
            return Outcomes(np.full((batch.num_rows, circuit.num_outcomes), 0.125))

        def rows_at_once(self, circuit):
            return 7

    assert RehearsalBackend().supports_exact
    assert RehearsalBackend().repeatable
    assert not RehearsalBackend(Hardware()).supports_exact
    assert not RehearsalBackend(Hardware()).repeatable
    assert RehearsalBackend(AerBackend(threads=2)).resources.num_cpus == 0
    wide = model(qubits=17)[1]
    with pytest.raises(MemoryLimitError):
        RehearsalBackend(AerBackend(max_memory_mb=1)).validate(wide, 50)


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
        RehearsalBackend(**options)


class Picky(AerBackend):
    """Fails for some rows."""

    bad = frozenset({31})
    calls = 0

    def outcomes(self, circuit, batch):
        type(self).calls += 1
        if self.bad & set(range(batch.rows.start, batch.rows.stop)):
            raise ValueError("no such angle")
        return super().outcomes(circuit, batch)


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
        repeatable = False

    Paid.calls = 0
    with pytest.raises(EvaluationError, match=rf"\[rows 0 to {BATCH.num_rows - 1}, the first"):
        Paid().submit(CANONICAL, BATCH).result(60)
    assert Paid.calls == 1
