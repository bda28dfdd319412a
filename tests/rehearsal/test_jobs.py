import datetime

import numpy as np
import pytest
from qiskit import QuantumCircuit

from qailab.rehearsal import Limits
from tests.rehearsal.conftest import DEADLINE, connect, exact, frequencies, wait_for

VALUES = np.random.default_rng(5).uniform(-2, 2, (4, 2))
OLDER = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the older primitives
SAMPLERS = [
    pytest.param("executor_sampler", "Sampler", id="executor"),
    pytest.param("sampler", "SamplerV2", marks=OLDER, id="sampler"),
]


def sampler_class(module, name):
    import importlib

    return getattr(importlib.import_module(f"qiskit_ibm_runtime.{module}"), name)


@pytest.mark.parametrize(("module", "name"), SAMPLERS)
def test_shots_follow_the_exact_distribution_with_bits_in_order(rehearse, module, name):
    rehearsal = rehearse(seed=11)
    shots = 20_000
    sampler = sampler_class(module, name)(mode=rehearsal.backend)
    both = [(rehearsal.isa, VALUES), (rehearsal.isa, VALUES[:2].reshape(2, 1, 2))]
    first, second = sampler.run(both, shots=shots).result(timeout=DEADLINE)
    found = frequencies(first.join_data(["low", "high"]))
    distance = np.abs(found - exact(VALUES)).sum(axis=1) / 2
    assert distance.max() < 8 * 4 * np.sqrt(0.25 / shots) / 2  # four standard errors an outcome
    assert (first.data.low.num_bits, first.data.high.num_bits) == (2, 1)
    high = frequencies(first.data.high)[:, 1]
    np.testing.assert_allclose(high, exact(VALUES)[:, 4:].sum(axis=1), atol=0.02)
    assert second.data.low.shape == (2, 1)
    again = frequencies(second.join_data(["low", "high"]))[:, 0]
    np.testing.assert_allclose(again, exact(VALUES[:2]), atol=0.02)
    (job,) = rehearsal.server.jobs
    assert (job.rows, job.shots, job.executions) == (6, shots, 6 * shots)
    assert job.program == ("executor" if name == "Sampler" else "sampler")
    order = first.data.low.array[0, :, 0]
    assert (np.diff(order.astype(int)) < 0).any()  # shots are not sorted


@pytest.mark.parametrize("kind", ["Session", "Batch", None])
def test_modes(rehearse, kind):
    import qiskit_ibm_runtime

    rehearsal = rehearse()
    mode = getattr(qiskit_ibm_runtime, kind)(rehearsal.backend, max_time="10m") if kind else None
    job = rehearsal.run(mode=mode)
    rehearsal.result(job)
    (record,) = rehearsal.server.jobs
    assert record.mode == (kind or "job").lower()
    assert record.session == (mode.session_id if kind else None)
    assert record.tags == ("test",)
    assert record.id == job.job_id()
    assert (record.state, record.is_final) == ("Completed", True)
    assert record.created <= record.started <= record.ended
    assert job.usage() == job.usage_estimation["quantum_seconds"] == record.qpu_seconds
    assert record.qpu_seconds == pytest.approx(2 + 64 * 250e-6)
    assert job.metrics()["usage"]["quantum_seconds"] == record.qpu_seconds
    assert job.logs() == ""
    if kind:
        mode.close()
        assert mode.status() == "Closed"


def test_seeds_and_content(rehearse):
    first, second = rehearse(seed=3), rehearse(seed=3)
    one = [first.result(first.run(VALUES + k)).data.low for k in (0, 1)]
    two = [second.result(second.run(VALUES + k)).data.low for k in (1, 0)]  # in another order
    assert (one[0].array == two[1].array).all()
    assert (one[1].array == two[0].array).all()
    contents = [job.content for job in first.server.jobs]
    assert contents == [job.content for job in reversed(second.server.jobs)]
    assert len(set(contents)) == 2
    assert first.server.duplicates() == []
    first.result(first.run(VALUES, tags=["other"]))
    ((old, new),) = first.server.duplicates()
    assert old.content == new.content
    assert old.tags != new.tags


def test_find_list_and_change_jobs(rehearse):
    rehearsal = rehearse(["manila", "lagos"])
    service = rehearsal.service
    before = datetime.datetime.now(datetime.UTC).astimezone()
    jobs = [rehearsal.run([[0.1, k]], tags=["all", f"number{k}"]) for k in range(3)]
    for job in jobs:
        rehearsal.result(job)
    ids = [job.job_id() for job in jobs]

    def listed(**options):
        return [job.job_id() for job in service.jobs(limit=None, **options)]

    assert listed() == ids[::-1]
    assert listed(descending=False) == ids
    assert listed(job_tags=["all", "number1"]) == [ids[1]]
    assert listed(job_tags=["number0", "number1"]) == []
    assert listed(pending=True) == []
    assert listed(pending=False, backend_name="ibmq_manila", program_id="executor") == ids[::-1]
    assert listed(backend_name="ibm_lagos") == listed(program_id="sampler") == []
    assert listed(session_id="unknown") == []
    assert listed(created_after=before) == ids[::-1]
    assert listed(created_before=before) == []
    assert [job.job_id() for job in service.jobs(limit=1, skip=1)] == [ids[1]]

    other = connect(rehearsal.server).job(ids[0])  # as after a crash
    assert other.tags == ["all", "number0"]
    assert other.result(timeout=DEADLINE)[0].data.low.shape == (1,)
    assert other.inputs["quantum_program"].shots == 64
    assert other.update_tags(["changed"]) == ["changed"]
    assert listed(job_tags=["changed"]) == [ids[0]]
    service.delete_job(ids[0])
    from qiskit_ibm_runtime.exceptions import RuntimeJobNotFound

    with pytest.raises(RuntimeJobNotFound):
        service.job(ids[0])
    assert len(rehearsal.server.jobs) == 3  # records stay


def test_queue_cancel_and_one_at_a_time(rehearse):
    from qiskit_ibm_runtime import Session
    from qiskit_ibm_runtime.exceptions import RuntimeInvalidStateError

    rehearsal = rehearse(queue_seconds=0.4)
    session = Session(rehearsal.backend, max_time=60)
    first, second = (rehearsal.run([[0.1, k]], mode=session) for k in range(2))
    dropped = rehearsal.run([[0.2, 0.2]])
    assert dropped.status() == "QUEUED"
    assert rehearsal.backend.status().pending_jobs == 3
    dropped.cancel()
    assert rehearsal.service.job(dropped.job_id()).status() == "CANCELLED"
    with pytest.raises(RuntimeInvalidStateError):
        rehearsal.result(dropped)
    for job in (first, second):
        rehearsal.result(job)
    with pytest.raises(RuntimeInvalidStateError, match="cannot be cancelled"):
        first.cancel()
    one, two, three = rehearsal.server.jobs
    assert one.started - one.created >= 0.39
    assert two.started >= one.ended
    assert two.started - one.ended < 0.3  # only the first of a session waits
    assert (three.state, three.started, three.qpu_seconds) == ("Cancelled", None, 0)


def test_realtime_holds_the_device(rehearse, monkeypatch):
    monkeypatch.setattr("qailab.rehearsal.limits.JOB_OVERHEAD_SECONDS", 0.3)
    rehearsal = rehearse(realtime=True)
    rehearsal.result(rehearsal.run())
    (job,) = rehearsal.server.jobs
    assert job.ended - job.started >= 0.3 > job.run_seconds


def test_circuits_the_device_cannot_run_fail(rehearse):
    from qiskit_ibm_runtime.exceptions import RuntimeJobFailureError

    rehearsal = rehearse()
    circuit = QuantumCircuit(5)
    circuit.cx(0, 4)
    circuit.measure_all()
    rehearsal.isa = circuit
    job = rehearsal.run(np.zeros((1, 0)))
    with pytest.raises(RuntimeJobFailureError, match=r"1517.*cx on qubits \(0, 4\)"):
        rehearsal.result(job)
    assert job.error_message()
    assert rehearsal.server.jobs[0].qpu_seconds == 0


def test_limits(rehearse):
    from qiskit_ibm_runtime.exceptions import IBMRuntimeError, RuntimeJobMaxTimeoutError

    rehearsal = rehearse(limits=Limits(executions=100))
    with pytest.raises(IBMRuntimeError, match="maximum of 100"):
        rehearsal.run([[0, 0], [1, 1]], shots=64)
    rehearsal.result(rehearsal.run(shots=64))
    job = rehearsal.run(shots=65, max_execution_time=1)
    with pytest.raises(RuntimeJobMaxTimeoutError):
        rehearsal.result(job)
    first, last = rehearsal.server.jobs
    assert (first.state, last.state) == ("Completed", "Cancelled - Ran too long")
    assert last.qpu_seconds == 1


def test_open_plan(rehearse):
    from qiskit_ibm_runtime import Batch, Session
    from qiskit_ibm_runtime.api.exceptions import RequestsApiError
    from qiskit_ibm_runtime.exceptions import IBMRuntimeError

    rehearsal = rehearse(plan="open", queue_seconds=60)
    with pytest.raises(
        RequestsApiError, match="not authorized to run a session when using the ope"
    ):
        Session(rehearsal.backend, max_time=60)
    batch = Batch(rehearsal.backend, max_time=60)
    jobs = [rehearsal.run([[0, k]], mode=batch) for k in range(3)]
    with pytest.raises(IBMRuntimeError, match=r"3458.*limit of 3 pending jobs"):
        rehearsal.run()
    jobs[0].cancel()
    rehearsal.run()
    wait_for(lambda: len(rehearsal.server.jobs) == 4)
