"""The scheduler in simulated time: nothing lost, nothing doubled, the same bits, no hang."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.distributed import fleet, retries, tail
from qailab.distributed.workers import NoRoom
from qailab.errors import (
    BackendBuildError,
    EvaluationError,
    PoolClosedError,
    PoolError,
    PoolExhaustedError,
    QailabError,
)
from qailab.gradients import NoiseStream, RowBatch, ShiftedRows, canonicalize
from qailab.launchers import BackwardPass, CircuitProblem, QuantumLauncher
from tests.distributed.simulation import FastBackend, Fault, SimulatedPool, SimulatedWorkers

CIRCUIT = build_circuit(2, [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=1)])
PROBLEM = CircuitProblem(CIRCUIT)
CANONICAL, _ = canonicalize(CIRCUIT, CIRCUIT.parameters)
ANGLES = len(CANONICAL.angles)
BACKEND = FastBackend()


def batch_of(samples, seed=3):
    angles = np.random.default_rng(seed).uniform(-3, 3, (samples, ANGLES))
    vectors = np.random.default_rng(seed + 1).normal(size=(samples, 4))
    rows = ShiftedRows(base=angles, columns=np.arange(ANGLES))
    return RowBatch(rows, None, NoiseStream(seed), vectors)


def pool_of(speeds, faults=(), *, backends=None, settings=None, **world):
    workers = SimulatedWorkers(speeds, faults, **world)
    return SimulatedPool(backends or [BACKEND] * len(speeds), workers, **(settings or {}))


def evaluate(pool, batch):
    answers = pool.submit(CANONICAL, batch).result(0)
    np.testing.assert_array_equal(answers, BACKEND.evaluate(CANONICAL, batch))
    return answers


faults = st.lists(
    st.builds(
        Fault,
        at=st.floats(0, 20),
        slot=st.integers(0, 5),
        kind=st.sampled_from(["kill", "hang", "mute", "fail", "forget", "slow", "refuse"]),
    ),
    max_size=8,
)
worlds = st.fixed_dictionaries(
    {
        "speeds": st.lists(st.sampled_from([100.0, 450.0, 3e3, 1e5]), min_size=1, max_size=6),
        "faults": faults,
        "start_seconds": st.sampled_from([0.01, 1.0, 3.0]),
        "delay": st.sampled_from([0.0, 0.002, 0.3]),
        "settings": st.fixed_dictionaries(
            {
                "chunk_rows": st.one_of(st.just("auto"), st.integers(1, 200)),
                "max_in_flight": st.one_of(st.none(), st.integers(1, 4)),
                "chunk_timeout": st.sampled_from([None, 40.0]),
            }
        ),
    }
)


@given(worlds, st.integers(0, 40))
def test_every_row_is_answered_once_whatever_happens(world, samples):
    pool, batch = pool_of(**world), batch_of(samples)
    future = pool.submit(CANONICAL, batch)
    lethal = sum(fault.kind in ("kill", "hang", "mute") for fault in world["faults"])
    # With more, the rows may rightly be held to be the cause.
    if lethal < retries.MAX_KILLS or future.exception(0) is None:
        np.testing.assert_array_equal(future.result(0), BACKEND.evaluate(CANONICAL, batch))
    else:
        assert isinstance(future.exception(0), EvaluationError | PoolExhaustedError)
        return
    stats = pool.books.stats(pool.slots)
    assert stats["rows"] == sum(actor["rows"] for actor in stats["actors"]) == batch.num_rows
    sent = sum(rows for _, _, rows in pool.workers.sends)
    assert sent == batch.num_rows + stats["rows_again"]
    # The pool goes on as if nothing had been.
    evaluate(pool, batch_of(3, seed=8))


@given(worlds, st.integers(1, 12), st.integers(0, 5))
def test_gradients_are_the_same_bits_whatever_happens(world, samples, step):
    world["faults"] = [
        fault for fault in world["faults"] if fault.kind not in ("kill", "hang", "mute")
    ] + [fault for fault in world["faults"] if fault.kind in ("kill", "hang", "mute")][:3]
    rng = np.random.default_rng(samples)
    inputs, weights = rng.uniform(size=(samples, 2)), rng.uniform(size=4)
    grad_output = rng.normal(size=(samples, 4))

    def gradient(backend):
        launcher = QuantumLauncher(PROBLEM, BackwardPass(shots=None, seed=5), backend, step=step)
        return launcher.run(inputs, weights, grad_output)

    expected, got = gradient(BACKEND), gradient(pool_of(**world))
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(getattr(got, field.name), getattr(expected, field.name))


@given(worlds, st.lists(st.integers(1, 15), min_size=2, max_size=5), st.data())
def test_jobs_do_not_disturb_each_other(world, sizes, data):
    world["faults"] = [fault for fault in world["faults"] if fault.kind in ("fail", "slow")]
    pool = pool_of(**world)
    batches = [batch_of(samples, seed=samples) for samples in sizes]
    futures = [pool.begin(CANONICAL, batch) for batch in batches]
    dropped = data.draw(st.integers(0, len(sizes) - 1))
    pool.run_for(data.draw(st.sampled_from([0.0, 1.5, 4.0])))
    if futures[dropped].cancel():
        del futures[dropped], batches[dropped]
    pool.run_until(lambda: all(future.done() for future in futures))
    for future, batch in zip(futures, batches, strict=True):
        np.testing.assert_array_equal(future.result(0), BACKEND.evaluate(CANONICAL, batch))


def test_a_lost_process_costs_at_most_what_it_had_in_flight():
    pool = pool_of([500.0] * 4, [Fault(3.0, 2, "kill")], settings={"chunk_rows": 100})
    in_flight = []
    pool.workers.at(2.999, lambda: in_flight.extend(pool.slots[2].in_flight.values()))
    evaluate(pool, batch_of(400))
    stats = pool.books.stats(pool.slots)
    assert 0 < stats["retries"] <= sum(len(parcel.chunks) for parcel in in_flight)
    assert stats["actors"][2]["replaced"] == 1


def test_all_processes_at_once_and_back():
    pool = pool_of([500.0] * 3, [Fault(2.0, slot, "kill") for slot in range(3)])
    evaluate(pool, batch_of(200))
    assert [actor["replaced"] for actor in pool.books.stats(pool.slots)["actors"]] == [1, 1, 1]


def test_a_late_process_starts_to_pull_work():
    pool = pool_of([200.0, 200.0], late={1: 5.0})
    evaluate(pool, batch_of(400))
    _, second = pool.books.stats(pool.slots)["actors"]
    assert second["rows"] > 0
    assert pool.workers.now < 5 + 0.7 * 400 * 2 * ANGLES / 200


@pytest.mark.parametrize("kind", ["hang", "mute"])
def test_a_process_that_hangs_is_replaced(kind, caplog):
    pool = pool_of([500.0], [Fault(2.0, 0, kind)])
    evaluate(pool, batch_of(300))
    assert pool.slots[0].replaced == 1
    assert pool.workers.now > tail.HANG_SECONDS  # a slow machine is not mistaken for a hang
    assert "it hangs: no answer for" in caplog.text


def test_nobody_waits_for_one_that_hangs_while_others_are_idle():
    pool = pool_of([500.0] * 2, [Fault(3.0, 0, "hang")])
    evaluate(pool, batch_of(200))
    stats = pool.books.stats(pool.slots)
    assert pool.workers.now < 15  # long before its deadline
    assert stats["races"] > 0
    pool.run_for(1.0)
    evaluate(pool, batch_of(20))


def test_a_slow_process_at_the_tail_is_raced():
    alone = pool_of([1000.0], settings={"chunk_rows": 60})
    evaluate(alone, batch_of(100))
    pool = pool_of([1000.0, 20.0], settings={"chunk_rows": 60})
    evaluate(pool, batch_of(20))  # speeds become known
    before = pool.workers.now
    evaluate(pool, batch_of(100))
    assert pool.workers.now - before < 1.2 * 100 * 2 * ANGLES / 1000
    stats = pool.books.stats(pool.slots)
    assert stats["races"] > 0
    assert stats["rows_again"] > 0


def test_rows_that_cost_money_are_not_raced():
    class Paid(FastBackend):
        repeatable = False

    pool = pool_of([1000.0, 20.0], backends=[Paid(), Paid()], settings={"chunk_rows": 60})
    evaluate(pool, batch_of(20))
    evaluate(pool, batch_of(60))
    assert pool.books.stats(pool.slots)["rows_again"] == 0


def test_a_queue_of_hours_is_no_hang_for_who_watches_itself():
    class Queued(FastBackend):
        watched = False

    pool = pool_of([0.01], backends=[Queued()], settings={"chunk_rows": 60})
    evaluate(pool, batch_of(5))
    assert pool.workers.now > 6000
    assert pool.slots[0].replaced == 0


def test_short_chunks_travel_together_and_alone_at_the_tail():
    pool = pool_of([1e4] * 2, settings={"chunk_rows": 12})
    evaluate(pool, batch_of(20))
    pool.workers.sends.clear()
    evaluate(pool, batch_of(2000))
    chunks = [count for _, count, _ in pool.workers.sends]
    assert max(chunks) > 50
    assert chunks[-1] == 1
    assert len(chunks) < sum(chunks) / 20


def test_a_fixed_bound_is_a_bound_of_chunks():
    pool = pool_of([1e4] * 2, settings={"chunk_rows": 12, "max_in_flight": 3})
    seen = []
    original = pool.workers.send

    def send(slot, *what):
        original(slot, *what)
        seen.append(slot.chunks_in_flight + 1)  # the parcel is noted after it was sent

    pool.workers.send = send
    evaluate(pool, batch_of(100))
    assert max(seen) == 3


def test_fast_processes_get_more():
    pool = pool_of([800.0, 400.0, 200.0, 100.0])
    evaluate(pool, batch_of(100))
    before, rows = pool.workers.now, [slot.rows for slot in pool.slots]
    evaluate(pool, batch_of(3000))
    gained = [slot.rows - old for slot, old in zip(pool.slots, rows, strict=True)]
    assert gained == sorted(gained, reverse=True)
    ideal = 3000 * 2 * ANGLES / 1500
    assert ideal / (pool.workers.now - before) > 0.9


def test_rows_that_kill_processes_are_found_and_named():
    class Deadly(FastBackend):
        """Kills its process when row 100 runs."""

    workers = SimulatedWorkers([1e3] * 2)
    pool = SimulatedPool([Deadly()] * 2, workers, chunk_rows=30)
    original = workers.ended

    def ended(process):
        if process.alive and any(c.start <= 100 < c.stop for c in process.queue[0][0].chunks):
            process.alive = False
            workers.tell_lost(process)
        else:
            original(process)

    workers.ended = ended
    with pytest.raises(EvaluationError, match=r"rows .* lost their actor 4 times") as caught:
        pool.submit(CANONICAL, batch_of(30)).result(0)
    first, last = map(int, re.findall(r"rows (\d+) to (\d+)", str(caught.value))[0])
    assert first <= 100 <= last < first + 16  # halved, to hit small chunks less often
    workers.ended = original
    evaluate(pool, batch_of(5))


def test_rows_are_not_blamed_where_processes_die_all_the_time():
    rng = np.random.default_rng(1)
    faults = [Fault(at, int(rng.integers(4)), "kill") for at in np.arange(1.0, 200.0, 0.7)]
    pool = pool_of([300.0] * 4, faults, settings={"chunk_rows": 60})
    evaluate(pool, batch_of(3000))
    assert pool.books.losses > 50


def test_a_row_with_an_error_ends_its_job_at_once_and_is_named():
    class Breaking(FastBackend):
        def outcomes(self, circuit, batch):
            if batch.rows.start <= 57 < batch.rows.stop:
                raise ZeroDivisionError("a bad angle")
            return super().outcomes(circuit, batch)

    pool = pool_of([1e3] * 2, backends=[Breaking()] * 2)
    with pytest.raises(EvaluationError, match=r"a bad angle \[rows 56 to 57") as caught:
        pool.submit(CANONICAL, batch_of(30)).result(0)
    assert "sample 4, angle 4" in str(caught.value)
    assert pool.books.stats(pool.slots)["retries"] == 0


def test_transient_faults_pause_a_slot_and_in_the_end_set_it_aside(caplog):
    many = [Fault(1.5, 0, "fail")] * 100
    pool = pool_of([500.0, 500.0], many, settings={"chunk_rows": 12, "max_in_flight": 1})
    evaluate(pool, batch_of(600))
    stats = pool.books.stats(pool.slots)
    assert stats["actors"][0]["state"] == "aside"
    assert fleet.MAX_FAULTS <= stats["retries"] < 2 * fleet.MAX_FAULTS
    assert "is set aside: struck" in caplog.text
    pool.run_for(fleet.REST_SECONDS)
    evaluate(pool, batch_of(600))  # it gets another chance
    assert pool.slots[0].state == "ready"


def test_transient_faults_everywhere_end_in_an_error():
    pool = pool_of([500.0], [Fault(1.5, 0, "fail")] * 100, settings={"chunk_rows": 12})
    future = pool.submit(CANONICAL, batch_of(200))
    with pytest.raises(PoolExhaustedError, match=r"struck\n\d+ of 2400 rows were done"):
        future.result(0)


def test_others_go_on_where_a_backend_cannot_be_built(caplog):
    pool = pool_of([500.0, 500.0], unbuildable=[0])
    evaluate(pool, batch_of(100))
    assert pool.books.stats(pool.slots)["actors"][0]["state"] == "aside"
    assert "is set aside: no such device" in caplog.text


def test_nowhere_can_it_be_built():
    pool = pool_of([500.0, 500.0], unbuildable=[0, 1])
    with pytest.raises(BackendBuildError, match="no such device"):
        pool.submit(CANONICAL, batch_of(10)).result(0)


def test_a_start_that_never_ends_is_given_up_with_what_is_missing(caplog):
    pool = pool_of([500.0], late={0: 1e9})
    with pytest.raises(PoolError, match=r"could start within 60 s; .* needs 1 CPU.*nothing"):
        pool.submit(CANONICAL, batch_of(10)).result(0)
    assert "1 of 1 actors have been starting for 20 s" in caplog.text


def test_a_process_that_dies_again_and_again_is_left_alone_for_a_while():
    pool = pool_of([500.0, 500.0], [Fault(at, 0, "kill") for at in np.arange(0.5, 60, 0.5)])
    evaluate(pool, batch_of(2000))
    assert pool.slots[0].replaced <= 2 * fleet.MAX_LOSSES


def test_a_handle_waits_for_the_owner_to_replace_a_process():
    workers = SimulatedWorkers([500.0, 500.0])
    pool = SimulatedPool([BACKEND] * 2, workers)
    evaluate(pool, batch_of(10))
    original, missing = workers.start, []

    def start(slot):
        if len(missing) < 5:
            missing.append(slot.index)
            workers.after(0, lambda: workers.scheduler.missing(slot))
        else:
            original(slot)

    workers.start = start
    workers.strike(Fault(0, 0, "kill"))
    evaluate(pool, batch_of(800))
    assert missing == [0] * 5
    assert pool.slots[0].replaced == 1  # looking for it is no loss
    pool.run_until(lambda: pool.slots[0].state == "ready")


def test_a_replaced_process_may_compile_again():
    pool = pool_of([500.0], [Fault(200.0, 0, "kill")], compile_seconds=150.0)
    evaluate(pool, batch_of(4000))
    assert pool.slots[0].replaced == 1


def test_rows_that_take_longer_for_more_shots_are_no_hang():
    pool = pool_of([1e4] * 2)
    evaluate(pool, batch_of(500))
    pool.workers.speeds = [50.0] * 2  # 200 times slower
    batch = dataclasses.replace(batch_of(500), shots=1_000_000)
    answers = pool.submit(CANONICAL, batch).result(0)
    np.testing.assert_array_equal(answers, BACKEND.evaluate(CANONICAL, batch))
    assert [slot.replaced for slot in pool.slots] == [0, 0]


def test_chunks_of_another_program_are_not_held_against_a_process():
    pool = pool_of([500.0], [Fault(3.0, 0, "foreign")])
    evaluate(pool, batch_of(200))
    assert pool.workers.now > 100
    assert pool.slots[0].replaced == 0


def test_a_parcel_that_is_refused_is_one_fault_however_many_chunks_it_has():
    pool = pool_of([1e4] * 2, [Fault(1.5, slot, "refuse") for slot in (0, 1)] * 2,
                   settings={"chunk_rows": 12})  # fmt: skip
    evaluate(pool, batch_of(3000))
    assert pool.books.retries > fleet.MAX_FAULTS
    assert all(slot.state == "ready" for slot in pool.slots)


def test_a_machine_without_room_only_pauses():
    pool = pool_of([1e4], settings={"chunk_rows": 12, "max_in_flight": 1})
    original, refusals = pool.workers.send, []

    def send(slot, *what):
        if len(refusals) < 2 * fleet.MAX_FAULTS:
            refusals.append(1)
            raise NoRoom("the object store is full")
        original(slot, *what)

    pool.workers.send = send
    evaluate(pool, batch_of(10))
    assert pool.slots[0].state == "ready"


def test_an_error_of_a_row_is_raised_by_whoever_meets_it_first():
    class Breaking(FastBackend):
        def outcomes(self, circuit, batch):
            raise ZeroDivisionError("a bad angle")

    pool = pool_of([1e3] * 2, backends=[FastBackend(), Breaking()], late={1: 5.0},
                   faults=[Fault(1.01, 0, "hang")])  # fmt: skip
    with pytest.raises(EvaluationError, match="a bad angle"):
        pool.submit(CANONICAL, batch_of(30)).result(0)
    assert pool.workers.now < 20


def test_second_copies_that_fail_are_not_sent_for_ever():
    faults = [Fault(1.01, 0, "hang"), *[Fault(6.0, 1, "fail")] * 1000]
    pool = pool_of([1e3] * 2, faults, late={1: 4.0})
    future = pool.begin(CANONICAL, batch_of(3))
    pool.run_for(600.0)
    assert pool.books.stats(pool.slots)["races"] <= 2 * tail.MAX_RACES
    assert not future.done()
    pool.run_until(future.done)  # the first is held to hang in the end


def test_cancelling_stops_what_is_in_flight():
    pool = pool_of([100.0] * 2)
    pool.run_for(2.0)
    future = pool.begin(CANONICAL, batch_of(100))
    pool.run_for(0.5)
    in_flight = {
        parcel.number + place
        for slot in pool.slots
        for parcel in slot.in_flight.values()
        for place in range(len(parcel.chunks))
    }
    assert future.cancel()
    cancelled = set().union(*(p.cancelled for p in pool.workers.processes.values()))
    assert in_flight
    assert in_flight <= cancelled
    evaluate(pool, batch_of(10))


def test_the_end_fails_what_is_unfinished():
    pool = pool_of([100.0])
    future = pool.begin(CANONICAL, batch_of(100))
    pool.run_for(2.0)
    pool.scheduler.end()
    assert isinstance(future.exception(0), PoolClosedError)


def test_known_circuits_are_forgotten_in_the_end(monkeypatch):
    from qailab.distributed import outbox, slots

    monkeypatch.setattr(slots, "KNOWN_CIRCUITS", 3)
    monkeypatch.setattr(outbox, "KNOWN_CIRCUITS", 3)
    pool = pool_of([500.0])
    for qubits in range(1, 7):
        circuit = build_circuit(qubits, [RotationalEncoder("y", "input")])
        canonical, _ = canonicalize(circuit, circuit.parameters)
        rows = ShiftedRows(base=np.zeros((2, qubits)), columns=np.arange(qubits))
        batch = RowBatch(rows, None, NoiseStream(0), np.ones((2, 2**qubits)))
        answers = pool.submit(canonical, batch).result(0)
        np.testing.assert_array_equal(answers, BACKEND.evaluate(canonical, batch))
    assert len(pool.slots[0].circuits) == 3
    assert len(pool.scheduler._outbox._circuits) == 3


def test_errors_of_the_pool_survive_the_way_between_processes():
    import pickle

    for kind in (EvaluationError, PoolError, PoolExhaustedError, QailabError):
        assert str(pickle.loads(pickle.dumps(kind("text")))) == "text"
