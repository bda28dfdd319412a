"""The state machine of a job, on a device whose requests and jobs fail as they are told to."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qailab.backends import Budget, IBMTimeouts, Usage
from qailab.backends.budget import BudgetGuard, UsageMeter
from qailab.backends.ibm.devices import Found, JobStatus
from qailab.backends.ibm.faults import Fault, FaultKind, RequestError
from qailab.backends.ibm.jobs import Jobs, Task
from qailab.backends.ibm.programs import Program
from qailab.backends.shared import LocalState
from qailab.errors import (
    BackendBuildError,
    BudgetExceededError,
    EvaluationError,
    JournalError,
    TransientBackendError,
)
from qailab.journal import Cause, Journal, MemoryRecord, State, this_owner
from qailab.journal.record import UNSENT
from tests.support.journal import reserve, submit, work

PROGRAM = Program(None, np.arange(1), num_bits=2)
TIMEOUTS = IBMTimeouts(retry_seconds=0.6, settle_seconds=0.01, first_poll_seconds=0.001)
DEADLINE = 30


@pytest.fixture(scope="module", autouse=True)
def short_pauses():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qailab.backends.ibm.limits._FIRST_PAUSE", 0.002)
        yield


def fault(status=None, kind=FaultKind.LOST, text="no answer", names=("ReadTimeout",)):
    return RequestError(Fault(kind, text, status, names=frozenset(names)))


@dataclass
class FakeJob:
    rows: tuple
    tag: str
    status: JobStatus = JobStatus.DONE
    reason: str = ""
    seconds: float | None = 1.0
    looks: int = 0


@dataclass
class FakeDevice:
    """What becomes of a request or a job is at the front of a list; an empty one is no trouble."""

    on_submit: list = field(default_factory=list)  # "lost", "accepted", "refused", None
    on_job: list = field(default_factory=list)  # a JobStatus, None
    on_status: list = field(default_factory=list)  # an error, None
    jobs: dict = field(default_factory=dict)
    cancelled: list = field(default_factory=list)
    numbers: Iterator = field(default_factory=itertools.count)
    name = "ibm_fake"
    target = None
    max_shots = None
    settle_seconds = 0.01

    def submit(self, program, angles, shots, *, tag, seed, mode):
        what = self.on_submit.pop(0) if self.on_submit else None
        if what == "lost":
            raise fault()
        if what == "refused":
            raise fault(400, FaultKind.REFUSED, "not valid")
        job_id = f"j{next(self.numbers)}"
        status = (self.on_job.pop(0) if self.on_job else None) or JobStatus.DONE
        first = int(angles[0, 0])
        self.jobs[job_id] = FakeJob((first, first + len(angles)), tag, status)
        if what == "accepted":
            raise fault()
        return job_id

    def status(self, job_id):
        if self.on_status and (error := self.on_status.pop(0)) is not None:
            raise error
        if job_id not in self.jobs:
            raise fault(404, FaultKind.REFUSED, "job not found")
        return self.jobs[job_id].status, self.jobs[job_id].reason

    def measured(self, job_id, program, num_rows, shots):
        first, last = self.jobs[job_id].rows
        assert last - first == num_rows
        return counts_at(first, last)

    def usage(self, job_id):
        return self.jobs[job_id].seconds

    def cancel(self, job_id):
        self.cancelled.append(job_id)
        job = self.jobs[job_id]
        if not job.status.is_final:
            job.status = JobStatus.CANCELLED

    def find(self, tag):
        found = [Found(name, job.status, None) for name, job in self.jobs.items() if job.tag == tag]
        return found[::-1]

    def forget(self, job_id):
        pass

    def completed(self):
        return sorted(job.rows for job in self.jobs.values() if job.status is JobStatus.DONE)


def counts_at(first, last):
    rows = np.arange(first, last)[:, None]
    return (rows * 7 + np.arange(4)).astype(np.uint32)


def jobs_on(device, record=None, *, meter=None, timeout=5.0, timeouts=TIMEOUTS):
    return Jobs(
        device, record or MemoryRecord(), None, meter or UsageMeter(None, None), timeouts,
        poll_seconds=0.01, timeout=timeout, pending_jobs=3,
    )  # fmt: skip


def task(rows=None, *, max_rows=100, stop=None, resent=False):
    rows = rows or work(0, 12)
    angles = np.arange(rows.start, rows.stop, dtype=float)[:, None]
    return Task(PROGRAM, rows, angles, 7, 2, max_rows, resent, stop or threading.Event())


@contextmanager
def running(device, jobs, task):
    """The future of a task whose first job was sent."""
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(jobs.run, task)
        while not device.jobs:
            pass
        yield future


def check(counts, rows=None):
    rows = rows or work(0, 12)
    np.testing.assert_array_equal(counts, counts_at(rows.start, rows.stop))


def test_rows_become_jobs_and_come_back_in_order():
    device, meter = FakeDevice(), UsageMeter(None, None)
    check(jobs_on(device, meter=meter).run(task(max_rows=5)))
    assert device.completed() == [(0, 4), (4, 8), (8, 12)]
    assert meter.take() == Usage(jobs=3, qpu_seconds=3.0)
    assert meter.take() == Usage()


@pytest.mark.parametrize(("what", "sent"), [("lost", 1), ("accepted", 1)])
def test_a_lost_answer_costs_nothing(what, sent):
    device = FakeDevice(on_submit=[what])
    check(jobs_on(device).run(task()))
    assert len(device.jobs) == sent
    assert device.cancelled == []


@pytest.mark.parametrize("status", [JobStatus.RUNNING, JobStatus.DONE])
def test_a_job_that_arrives_when_it_was_sent_again_is_cancelled_or_reported(status, caplog):
    device = FakeDevice(on_submit=["lost"])
    submit_again = device.submit

    def arrives_with_the_second(*arguments, tag, **options):
        job_id = submit_again(*arguments, tag=tag, **options)
        device.jobs["late"] = FakeJob((0, 12), tag, status)
        return job_id

    device.submit = arrives_with_the_second
    check(jobs_on(device).run(task()))
    assert device.cancelled == ["late"] * (status is JobStatus.RUNNING)
    assert ("both were paid for" in caplog.text) is (status is JobStatus.DONE)


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_job_without_a_result_is_sent_again_three_times_at_most(status):
    device = FakeDevice(on_job=[status, status])
    check(jobs_on(device).run(task()))
    assert len({job.tag for job in device.jobs.values()}) == 3
    device = FakeDevice(on_job=[status] * 3)
    with pytest.raises(EvaluationError, match=r"job j2 on ibm_fake \(rows 0 to 11\).*3 jobs"):
        jobs_on(device).run(task())


def test_a_job_that_is_too_long_is_sent_in_halves():
    device = FakeDevice(on_job=[JobStatus.TOO_LONG, JobStatus.TOO_LONG])
    check(jobs_on(device).run(task()))
    sizes = [last - first for first, last in device.completed()]
    assert sum(sizes) == 12
    assert all(size % 2 == 0 and size <= 6 for size in sizes)
    device, record = FakeDevice(on_job=[JobStatus.TOO_LONG]), MemoryRecord()
    check(jobs_on(device, record).run(task(work(0, 2))), work(0, 2))  # rather apart than not at all
    with pytest.raises(JournalError):
        record.entry(1)  # nor is the one that was too long kept for ever
    assert sorted(device.completed()) == [(0, 1), (1, 2)]
    with pytest.raises(EvaluationError, match="ran too long"):
        jobs_on(FakeDevice(on_job=[JobStatus.TOO_LONG] * 99)).run(task(work(0, 2)))


def test_a_job_that_hangs_is_cancelled_and_sent_again():
    device = FakeDevice(on_job=[JobStatus.RUNNING])
    check(jobs_on(device, timeout=0.05).run(task()))
    assert device.cancelled[0] == "j0"
    with pytest.raises(TransientBackendError, match=r"the time-out; raise timeout="):
        jobs_on(FakeDevice(on_job=[JobStatus.WAITING]), timeout=0.05).run(task())
    with pytest.raises(TransientBackendError, match="if jobs of this size run that long"):
        jobs_on(FakeDevice(on_job=[JobStatus.RUNNING] * 9), timeout=0.02).run(task())


def test_what_the_service_refuses_is_an_error_at_once():
    device, record = FakeDevice(on_submit=["refused"]), MemoryRecord()
    with pytest.raises(EvaluationError, match="not valid"):
        jobs_on(device, record).run(task())
    assert device.jobs == {}
    check(jobs_on(device, record).run(task()))  # nothing was left behind
    denied = fault(401, FaultKind.REFUSED, "who are you?")
    with pytest.raises(BackendBuildError, match="who are you"):
        jobs_on(FakeDevice(on_status=[denied])).run(task())


def test_faults_that_last_too_long_are_transient_and_the_job_is_taken_up_later():
    device, record = FakeDevice(on_status=[fault(503)] * 99), MemoryRecord()
    with pytest.raises(TransientBackendError, match="faults within"):
        jobs_on(device, record).run(task())
    device.on_status.clear()
    check(jobs_on(device, record).run(task()))
    assert len(device.jobs) == 1


def test_stopping_cancels_the_job():
    device, stop = FakeDevice(on_job=[JobStatus.RUNNING]), threading.Event()
    with running(device, jobs_on(device), task(stop=stop)) as future:
        stop.set()
        with pytest.raises(CancelledError):
            future.result(DEADLINE)
    assert device.jobs["j0"].status is JobStatus.CANCELLED


def test_a_result_that_comes_while_it_is_cancelled_is_kept():
    device, stop, record = FakeDevice(on_job=[JobStatus.RUNNING]), threading.Event(), MemoryRecord()

    def done_by_now(job_id):
        device.jobs[job_id].status = JobStatus.DONE

    device.cancel = done_by_now
    with running(device, jobs_on(device, record), task(stop=stop)) as future:
        stop.set()
        with pytest.raises(CancelledError):
            future.result(DEADLINE)
    check(jobs_on(device, record).run(task()))
    assert len(device.jobs) == 1


def test_if_one_job_fails_the_others_are_stopped():
    device, record = FakeDevice([None, "refused"], [JobStatus.RUNNING] * 2), MemoryRecord()
    with pytest.raises(EvaluationError, match="not valid"):
        jobs_on(device, record).run(task(max_rows=2))  # six jobs, three at a time
    assert not [job for job in device.jobs.values() if not job.status.is_final]
    for number in range(1, 7):  # nor is one left for others to wait for
        assert record.entry(number).state not in (*UNSENT, State.SUBMITTED)


# Jobs of others, who are gone


def sent_before(record, rows, device, *, state, owner="a/b/c/d/1/2", status=JobStatus.DONE):
    """An entry of a process that died, and its job if it has one."""
    (entry,) = reserve(record, rows, owner=owner)
    device.jobs["theirs"] = FakeJob((rows.start, rows.stop), entry.tag, status)
    if state is State.SUBMITTED:
        submit(record, entry, "theirs")
    elif state is State.UNCONFIRMED:
        record.unsent(entry, State.UNCONFIRMED, "")
    return record.entry(entry.id)


@pytest.mark.parametrize("state", [State.SUBMITTED, State.UNCONFIRMED])
def test_a_job_of_somebody_who_died_is_taken_up(state):
    device, record = FakeDevice(), MemoryRecord()
    sent_before(record, work(0, 12), device, state=state)
    check(jobs_on(device, record).run(task()))
    assert list(device.jobs) == ["theirs"]


def test_a_job_that_is_found_when_its_evaluation_is_stopped_is_cancelled():
    stop = threading.Event()

    class Stopped(FakeDevice):
        def find(self, tag):
            stop.set()
            return super().find(tag)

    device, record = Stopped(), MemoryRecord()
    device.jobs["theirs"] = FakeJob((0, 12), work(0, 12).tag(), JobStatus.RUNNING)
    with pytest.raises(CancelledError):
        jobs_on(device, record).run(task(resent=True, stop=stop))
    assert device.cancelled == ["theirs"]
    assert record.entry(1).cause is Cause.STOPPED


def test_an_entry_of_a_dead_process_is_looked_for_before_it_is_sent():
    dead = "/".join([*this_owner().split("/")[:-1], "1"])  # its number was used again
    for sent in (True, False):
        device, record = FakeDevice(), MemoryRecord()
        sent_before(record, work(0, 12), device, state=State.PENDING, owner=dead)
        if not sent:
            device.jobs.clear()
        check(jobs_on(device, record).run(task()))
        assert list(device.jobs) == (["theirs"] if sent else ["j0"])


def test_rows_that_were_cut_for_others_are_cut_anew():
    device, record = FakeDevice(), MemoryRecord()
    sent_before(record, work(8, 20), device, state=State.UNCONFIRMED)
    device.jobs.clear()
    check(jobs_on(device, record).run(task()))
    assert device.completed() == [(0, 8), (8, 12)]


def test_a_job_of_another_entry_is_not_taken_for_ones_own():
    device, record = FakeDevice(), MemoryRecord()
    (other,) = reserve(record, work(step=3))
    submit(record, other, "theirs")
    device.jobs["theirs"] = FakeJob((0, 10), work(0, 12).tag(), JobStatus.DONE)
    check(jobs_on(device, record).run(task(resent=True)))
    assert device.completed() == [(0, 10), (0, 12)]


def test_a_job_that_was_deleted_at_the_server_is_sent_again():
    device = FakeDevice(on_job=[JobStatus.RUNNING])
    with running(device, jobs_on(device), task()) as future:
        del device.jobs["j0"]
        check(future.result(DEADLINE))
    device = FakeDevice(on_status=[fault(404, FaultKind.REFUSED)] * 2)  # not visible yet
    check(jobs_on(device).run(task()))
    assert len(device.jobs) == 1


def test_a_job_that_this_account_does_not_see_needs_a_decision(tmp_path):
    device, path = FakeDevice(), tmp_path / "jobs.db"
    with Journal(path) as journal:
        entry = sent_before(journal, work(0, 12), device, state=State.SUBMITTED)
        device.jobs.clear()
        advice = rf"account that sent it.*python -m qailab.journal {path} --give-up {entry.id}"
        with pytest.raises(TransientBackendError, match=advice):
            jobs_on(device, journal).run(task())
        assert device.jobs == {}
        journal.give_up(entry.id, "it was deleted")
        check(jobs_on(device, journal).run(task()))
        assert journal.entry(entry.id).cause is Cause.DELETED


@pytest.mark.parametrize("other_process", [True, False])
@pytest.mark.parametrize("full", [("submitted",), ("submitted", "unsent")])
def test_a_job_that_cannot_be_noted_goes_on_and_is_found(monkeypatch, full, other_process):
    device, record = FakeDevice(on_job=[JobStatus.RUNNING]), MemoryRecord()
    jobs = jobs_on(device, record)

    def refuse(*_, **__):
        raise JournalError("disk full")

    with monkeypatch.context() as patch:
        for method in full:
            patch.setattr(record, method, refuse)
        with pytest.raises(JournalError, match="disk full"):
            jobs.run(task())
    assert device.cancelled == []
    device.jobs["j0"].status = JobStatus.DONE
    if other_process:
        monkeypatch.setattr("qailab.backends.ibm.jobs.this_owner", lambda: "another/process")
        jobs = jobs_on(device, record)
        if "unsent" in full:  # it waits for a process that lives, which is this one
            with pytest.raises(TransientBackendError, match="that still lives"):
                jobs.run(task())
            return
    check(jobs.run(task()))
    assert len(device.jobs) == 1


# Budgets


def test_the_budget_is_asked_before_anything_is_sent():
    device, guard = FakeDevice(), BudgetGuard(Budget(jobs=2), LocalState())
    jobs = jobs_on(device, meter=UsageMeter(guard, None))
    check(jobs.run(task(max_rows=6)))
    assert guard.spent.qpu_seconds == 2.0
    with pytest.raises(BudgetExceededError):
        jobs.run(task(work(0, 12, step=1)))
    assert len(device.jobs) == 2


def test_usage_that_the_service_does_not_tell_counts_as_was_expected():
    device, guard = FakeDevice(), BudgetGuard(Budget(qpu_seconds=60), LocalState())
    device.usage = lambda job_id: None
    check(jobs_on(device, meter=UsageMeter(guard, 5.0)).run(task()))
    assert guard.spent.qpu_seconds == pytest.approx(2 + 12 * 100 * 350e-6)
    assert guard.reserved.jobs == 0


def test_a_job_that_was_not_sent_gives_its_reservation_back():
    device, guard = FakeDevice(on_submit=["refused"]), BudgetGuard(Budget(jobs=1), LocalState())
    jobs = jobs_on(device, meter=UsageMeter(guard, None))
    with pytest.raises(EvaluationError):
        jobs.run(task())
    check(jobs.run(task()))
    assert (guard.spent.jobs, guard.reserved.jobs) == (1, 0)


@pytest.mark.parametrize(
    ("sent", "status", "state", "spent"),
    [
        ("accepted", JobStatus.RUNNING, State.CANCELLED, 1),
        ("accepted", JobStatus.DONE, State.DONE, 1),
        ("lost", None, State.WITHDRAWN, 0),
    ],
)
def test_a_job_whose_answer_was_lost_ends_with_its_evaluation(sent, status, state, spent):
    stop, guard = threading.Event(), BudgetGuard(Budget(jobs=2), LocalState())

    class Stopped(FakeDevice):
        def find(self, tag):
            if not stop.is_set():
                stop.set()
                raise fault(503)
            return super().find(tag)

    device, record = Stopped([sent], [status] * spent), MemoryRecord()
    once = replace(TIMEOUTS, job_failures=1)  # what was cancelled here is no failure
    jobs = jobs_on(device, record, meter=UsageMeter(guard, None), timeouts=once)
    with pytest.raises(CancelledError):
        jobs.run(task(stop=stop))
    assert all(job.status.is_final for job in device.jobs.values())
    assert record.entry(1).state is state
    assert (guard.spent.jobs, guard.reserved.jobs) == (spent, 0)
    check(jobs.run(task()))
    assert len(device.jobs) == spent + (state is not State.DONE)


# The promise: every row answered, none paid for twice, whatever happens

SENDS = st.lists(st.sampled_from([None, None, "lost", "accepted"]), max_size=5)
ENDS = st.lists(
    st.sampled_from([None, None, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TOO_LONG]),
    max_size=3,
).filter(lambda ends: ends.count(JobStatus.TOO_LONG) <= 2)  # in halves, one row must do
LOOKS = st.lists(st.sampled_from([None, None, 503, 404, 429]), max_size=5)


@settings(max_examples=40)
@given(SENDS, ENDS, LOOKS, st.integers(4, 12), st.booleans())
def test_each_row_is_answered_and_paid_for_once(sends, ends, looks, max_rows, resent):
    kinds = {503: FaultKind.LOST, 404: FaultKind.REFUSED, 429: FaultKind.BUSY}
    errors = [None if status is None else fault(status, kinds[status]) for status in looks]
    device = FakeDevice(list(sends), list(ends), errors)
    guard = BudgetGuard(Budget(jobs=100), LocalState())
    patient = replace(TIMEOUTS, retry_seconds=20.0, job_failures=99)
    jobs = jobs_on(device, meter=UsageMeter(guard, None), timeouts=patient)
    check(jobs.run(task(max_rows=max_rows, resent=resent)))
    rows = [row for first, last in device.completed() for row in range(first, last)]
    assert sorted(rows) == list(range(12))
    assert guard.reserved.jobs == 0
    assert guard.spent.jobs == len(device.jobs)
