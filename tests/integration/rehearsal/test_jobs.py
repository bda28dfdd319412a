import datetime

import numpy as np
import pytest
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister

from qailab.backends.budget import EXECUTION_SECONDS, JOB_SECONDS
from qailab.rehearsal import Limits
from tests.support import client
from tests.support.processes import DEADLINE, wait_until
from tests.support.servers import connect, exact, frequencies

VALUES = np.random.default_rng(5).uniform(-2, 2, (4, 2))


def test_shots_follow_the_exact_distribution_with_bits_in_order(rehearse):
    rehearsal = rehearse(seed=11)
    shots = 20_000
    both = [(rehearsal.isa, VALUES), (rehearsal.isa, VALUES[:2].reshape(2, 1, 2))]
    sampler = client.loaded().executor_sampler.Sampler(mode=rehearsal.backend)
    job = sampler.run(both, shots=shots)
    first, second = job.result(timeout=DEADLINE)
    found = frequencies(first.join_data(["low", "high"]))
    distance = np.abs(found - exact(VALUES)).sum(axis=1) / 2
    assert distance.max() < 8 * 4 * np.sqrt(0.25 / shots) / 2  # four standard errors an outcome
    assert (first.data.low.num_bits, first.data.high.num_bits) == (2, 1)
    high = frequencies(first.data.high)[:, 1]
    np.testing.assert_allclose(high, exact(VALUES)[:, 4:].sum(axis=1), atol=0.02)
    assert second.data.low.shape == (2, 1)
    again = frequencies(second.join_data(["low", "high"]))[:, 0]
    np.testing.assert_allclose(again, exact(VALUES[:2]), atol=0.02)
    (record,) = rehearsal.server.jobs
    assert (record.rows, record.shots, record.executions) == (6, shots, 6 * shots)
    order = first.data.low.array[0, :, 0]
    assert (np.diff(order.astype(int)) < 0).any()  # shots are not sorted


def test_circuits_of_other_shapes(rehearse):
    """Without parameters, without measurement, with control flow, with bits not measured."""
    rehearsal = rehearse(seed=3)
    fixed = QuantumCircuit(2, 3)
    fixed.x(0)
    fixed.measure([0, 1], [2, 0])
    nothing = QuantumCircuit(1, 1)
    dynamic = QuantumCircuit(QuantumRegister(2), ClassicalRegister(1, "a"))
    dynamic.add_register(ClassicalRegister(1, "b"))
    dynamic.sx(0)
    dynamic.measure(0, 0)
    with dynamic.if_test((dynamic.clbits[0], 1)):
        dynamic.x(1)
    dynamic.measure(1, 1)
    sampler = client.loaded().executor_sampler.Sampler(mode=rehearsal.backend)
    job = sampler.run([fixed, (nothing, None), dynamic], shots=400)
    one, two, three = job.result(timeout=DEADLINE)
    assert one.data.c.get_counts() == {"100": 400}
    assert two.data.c.get_counts() == {"0": 400}
    assert (three.data.a.array == three.data.b.array).all()
    assert 120 < three.data.a.get_counts()["1"] < 280


def test_twirling(rehearse):
    rehearsal = rehearse(seed=2)
    twirling = {"enable_gates": True, "enable_measure": True, "num_randomizations": 8}
    job = rehearsal.run(VALUES, shots=8000, twirling=twirling)
    found = frequencies(rehearsal.result(job).join_data(["low", "high"]))
    np.testing.assert_allclose(found, exact(VALUES), atol=0.04)
    (record,) = rehearsal.server.jobs
    assert record.executions == 4 * 8000


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
    assert (record.tags, record.id, record.program) == (("test",), job.job_id(), "executor")
    assert (record.state, record.is_final, record.answered) == ("Completed", True, True)
    assert record.created <= record.started <= record.ended
    assert job.usage() == job.usage_estimation["quantum_seconds"] == record.qpu_seconds
    assert record.qpu_seconds == pytest.approx(JOB_SECONDS + 64 * EXECUTION_SECONDS)
    assert job.metrics()["usage"]["quantum_seconds"] == record.qpu_seconds
    assert job.metrics()["timestamps"]["running"]
    assert job.logs() == ""
    if kind:
        mode.close()
        assert mode.status() == "Closed"
        assert mode.usage() >= 0


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
    assert first.server.report().as_dict()["duplicates"] == []  # equal, but not sent again


def test_find_list_and_change_jobs(rehearse):
    rehearsal = rehearse("manila", "lagos")
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
    from qiskit_ibm_runtime.exceptions import RuntimeJobNotFound

    with pytest.raises(RuntimeJobNotFound):
        service.job("unknown")


def test_queue_cancel_and_one_at_a_time(rehearse):
    from qiskit_ibm_runtime import Session
    from qiskit_ibm_runtime.exceptions import RuntimeInvalidStateError

    rehearsal = rehearse(queue_seconds=0.6)
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
    assert one.started - one.created >= 0.59
    assert two.started >= one.ended
    assert two.started - one.ended < 0.5  # only the first of a session waits
    assert (three.state, three.started, three.qpu_seconds) == ("Cancelled", None, 0)


def test_realtime_holds_the_device(rehearse, monkeypatch):
    monkeypatch.setattr("qailab.rehearsal.instance.JOB_SECONDS", 0.5)
    rehearsal = rehearse(realtime=True)
    rehearsal.result(rehearsal.run())
    (job,) = rehearsal.server.jobs
    assert job.ended - job.started >= 0.5


def test_circuits_the_device_cannot_run_fail(rehearse):
    from qiskit_ibm_runtime.exceptions import RuntimeJobFailureError

    rehearsal = rehearse()
    circuit = QuantumCircuit(5)
    circuit.cx(0, 4)
    circuit.measure_all()
    rehearsal.isa = circuit
    job = rehearsal.run(np.zeros((1, 0)))
    with pytest.raises(RuntimeJobFailureError, match=r"cx on qubits \(0, 4\)"):
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


@pytest.mark.filterwarnings("ignore:.*usage limit")
def test_open_plan(rehearse):
    from qiskit_ibm_runtime import Batch, Session
    from qiskit_ibm_runtime.api.exceptions import RequestsApiError
    from qiskit_ibm_runtime.exceptions import IBMRuntimeError

    rehearsal = rehearse(plan="open", queue_seconds=0.3)
    with pytest.raises(RequestsApiError, match="not authorized to run a session"):
        Session(rehearsal.backend, max_time=60)
    batch = Batch(rehearsal.backend, max_time=60)
    jobs = [rehearsal.run([[0, k]], mode=batch) for k in range(3)]
    with pytest.raises(IBMRuntimeError, match=r"3458.*limit of 3 pending jobs"):
        rehearsal.run()
    jobs[0].cancel()
    rehearsal.result(rehearsal.run(shots=1_800_000))  # 632 seconds
    wait_until(lambda: all(job.is_final for job in rehearsal.server.jobs))
    assert rehearsal.service.usage()["usage_limit_reached"]
    with pytest.raises(IBMRuntimeError, match="4317"):
        rehearsal.run()
    assert rehearsal.server.report().sums()["cost_usd"] == 0


def test_a_minute_has_five_jobs_on_the_open_plan(rehearse):
    from qiskit_ibm_runtime.exceptions import IBMRuntimeError

    rehearsal = rehearse(plan="open", limits=Limits(pending_jobs=100))
    for _ in range(5):
        rehearsal.run()
    with pytest.raises(IBMRuntimeError, match="Too Many Requests: the limit is 5 a minute"):
        rehearsal.run()
    assert rehearsal.server.requests[-1].status == 429
    assert all(job.id.startswith("rehearsal-") for job in rehearsal.server.jobs)
    assert len(rehearsal.server.jobs) == 5
