"""The scheduler in simulated time: nothing lost, nothing doubled, the same bits, no hang."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qailab.circuit import RotationalEncoder, build_circuit
from qailab.distributed import actors, stragglers, supervisor
from qailab.distributed import scheduler as scheduling
from qailab.distributed.transport import Missing, NoRoom
from qailab.errors import (
    BackendBuildError,
    BudgetExceededError,
    EvaluationError,
    PoolClosedError,
    PoolError,
    PoolExhaustedError,
)
from qailab.gradients import NoiseStream, RowBatch, ShiftedRows, canonicalize
from tests.support.circuits import ry_ansatz
from tests.support.contracts import answers as answers_of
from tests.support.simulated_time import (
    FastBackend,
    Fault,
    SimulatedPool,
    SimulatedTransport,
)

CIRCUIT = ry_ansatz()
CANONICAL, _ = canonicalize(CIRCUIT, CIRCUIT.parameters)
ANGLES = len(CANONICAL.angles)
BACKEND = FastBackend()


def batch_of(samples, seed=3):
    angles = np.random.default_rng(seed).uniform(-3, 3, (samples, ANGLES))
    cotangents = np.random.default_rng(seed + 1).normal(size=(samples, 4))
    rows = ShiftedRows(base=angles, columns=np.arange(ANGLES))
    return RowBatch(rows, None, NoiseStream(seed), cotangents)


def pool_of(speeds, faults=(), *, backends=None, settings=None, **world):
    transport = SimulatedTransport(speeds, faults, **world)
    return SimulatedPool(backends or [BACKEND] * len(speeds), transport, **(settings or {}))


def evaluate(pool, batch):
    answers = pool.submit(CANONICAL, batch).result(0)
    np.testing.assert_array_equal(answers, answers_of(BACKEND, CANONICAL, batch))
    return answers


class Changed(FastBackend):
    """Other traits."""

    def __init__(self, **traits):
        self.traits = dataclasses.replace(FastBackend.traits, **traits)


LETHAL = ("kill", "hang", "mute")
KINDS = [*LETHAL, "fail", "forget", "slow"]
faults = st.lists(
    st.builds(Fault, at=st.floats(0, 20), actor=st.integers(0, 5), kind=st.sampled_from(KINDS)),
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
                "max_in_flight": st.one_of(st.just("auto"), st.integers(1, 4)),
                "chunk_timeout": st.sampled_from(["auto", 40.0]),
            }
        ),
    }
)


@given(worlds, st.integers(0, 40))
def test_every_row_is_answered_once_whatever_happens(world, samples):
    pool, batch = pool_of(**world), batch_of(samples)
    future = pool.submit(CANONICAL, batch)
    lethal = sum(fault.kind in LETHAL for fault in world["faults"])
    # With more, the rows may rightly be taken to be the cause.
    if lethal < scheduling.MAX_CRASHES or future.exception(0) is None:
        np.testing.assert_array_equal(future.result(0), answers_of(BACKEND, CANONICAL, batch))
    else:
        assert isinstance(future.exception(0), EvaluationError | PoolExhaustedError)
        return
    stats = pool.stats()
    assert stats["rows"] == sum(actor["rows"] for actor in stats["actors"]) == batch.num_rows
    sent = sum(rows for _, rows, _ in pool.transport.sends)
    assert sent == batch.num_rows + stats["rows_again"]
    # The pool goes on as if nothing had been.
    evaluate(pool, batch_of(3, seed=8))


@given(worlds, st.lists(st.integers(1, 15), min_size=2, max_size=5), st.data())
def test_evaluations_do_not_disturb_each_other(world, sizes, data):
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
        np.testing.assert_array_equal(future.result(0), answers_of(BACKEND, CANONICAL, batch))


# Lost actors.


def test_a_lost_process_costs_at_most_what_it_had_in_flight():
    pool = pool_of([500.0] * 4, [Fault(3.0, 2, "kill")], settings={"chunk_rows": 100})
    in_flight = []
    pool.transport.at(2.999, lambda: in_flight.append(len(pool.actors[2].in_flight)))
    evaluate(pool, batch_of(400))
    assert 0 < pool.stats()["retries"] <= in_flight[0]
    assert pool.replaced() == [0, 0, 1, 0]


def test_a_late_process_starts_to_pull_work():
    pool = pool_of([200.0, 200.0], late={1: 5.0})
    evaluate(pool, batch_of(400))
    assert pool.stats()["actors"][1]["rows"] > 0
    assert pool.transport.now < 5 + 0.7 * 400 * 2 * ANGLES / 200


def test_a_process_that_dies_again_and_again_is_left_alone_for_a_while():
    pool = pool_of([500.0, 500.0], [Fault(at, 0, "kill") for at in np.arange(0.5, 60, 0.5)])
    evaluate(pool, batch_of(2000))
    assert pool.replaced()[0] <= 2 * supervisor.MAX_LOSSES


def test_a_handle_waits_for_the_owner_to_replace_a_process():
    pool = pool_of([500.0, 500.0])
    evaluate(pool, batch_of(10))
    transport, missing = pool.transport, []
    original = transport.start

    def start(actor):
        if len(missing) < 5:
            missing.append(actor.index)
            event = Missing(actor.index, actor.health.generation)
            transport.after(0, lambda: transport.report(event))
        else:
            original(actor)

    transport.start = start
    transport.strike(Fault(0, 0, "kill"))
    evaluate(pool, batch_of(800))
    assert missing == [0] * 5
    assert pool.replaced()[0] == 1  # looking for it is no loss
    pool.run_until(lambda: pool.state(0) == "ready")


def test_a_handle_whose_owner_is_gone_says_that_only_a_new_pool_helps():
    pool = pool_of([500.0])
    evaluate(pool, batch_of(10))
    transport = pool.transport
    transport.start = lambda actor: transport.after(
        0, lambda: transport.report(Missing(actor.index, actor.health.generation))
    )
    transport.strike(Fault(0, 0, "kill"))
    with pytest.raises(PoolClosedError, match="make a new LauncherPool") as caught:
        evaluate(pool, batch_of(800))
    assert "submit again" not in str(caught.value)


# Rows that kill actors, and rows that do not.


def kills_with(pool, *deadly):
    """Kill every process that runs one of some rows; return how to stop that."""
    transport = pool.transport
    original = transport.ended

    def ended(process):
        rows = process.queue[0][1].rows
        if process.alive and any(rows.start <= row < rows.stop for row in deadly):
            transport.kill(process)
        else:
            original(process)

    transport.ended = ended
    return lambda: setattr(transport, "ended", original)


def test_rows_that_kill_actors_are_found_and_named():
    pool = pool_of([1e3] * 2, settings={"chunk_rows": 30})
    stop = kills_with(pool, 100)
    with pytest.raises(EvaluationError, match=r"rows .* lost their actor 4 times") as caught:
        pool.submit(CANONICAL, batch_of(30)).result(0)
    first, last = map(int, re.findall(r"rows (\d+) to (\d+)", str(caught.value))[0])
    assert first <= 100 <= last < first + 16  # halved, to hit small chunks less often
    stop()
    evaluate(pool, batch_of(5))


def test_an_evaluation_whose_rows_all_kill_ends_before_the_actor_is_given_up():
    pool = pool_of([1e3], settings={"chunk_rows": 12})
    stop = kills_with(pool, *range(24))
    future = pool.begin(CANONICAL, batch_of(2))
    innocent = pool.begin(
        CANONICAL, dataclasses.replace(batch_of(2), rows=batch_of(4).rows.part(24, 48))
    )
    pool.run_until(lambda: future.done() and innocent.done())
    with pytest.raises(EvaluationError, match=r"lost their actor 4 times"):
        future.result(0)
    assert innocent.result(0).shape == (24, 2)
    stop()
    evaluate(pool, batch_of(5))


def test_rows_are_not_blamed_where_processes_die_all_the_time():
    rng = np.random.default_rng(1)
    faults = [Fault(at, int(rng.integers(4)), "kill") for at in np.arange(1.0, 200.0, 0.7)]
    pool = pool_of([300.0] * 4, faults, settings={"chunk_rows": 60})
    evaluate(pool, batch_of(3000))
    assert sum(pool.replaced()) > 50


def test_rows_are_not_blamed_where_everything_is_killed_together():
    """Again and again, in the middle of the same long chunks: as when a machine is full."""
    together = [Fault(at, actor, "kill") for at in (4.0, 9.0, 16.0, 25.0) for actor in (0, 1, 2)]
    pool = pool_of([10.0] * 3, together, backends=[Changed(idempotent=False)] * 3,
                   settings={"chunk_rows": 240, "max_in_flight": 1})  # fmt: skip
    evaluate(pool, batch_of(60))
    assert pool.replaced() == [4, 4, 4]


def test_a_row_with_an_error_ends_its_evaluation_at_once_and_is_named():
    class Breaking(FastBackend):
        def probabilities(self, circuit, batch, stop):
            if batch.rows.start <= 57 < batch.rows.stop:
                raise ZeroDivisionError("a bad angle")
            return super().probabilities(circuit, batch, stop)

    pool = pool_of([1e3] * 2, backends=[Breaking()] * 2)
    with pytest.raises(EvaluationError, match=r"a bad angle \[rows 56 to 57") as caught:
        pool.submit(CANONICAL, batch_of(30)).result(0)
    assert "sample 4, angle 4" in str(caught.value)
    assert pool.stats()["retries"] == 0


def test_jobs_that_are_paid_for_may_end_when_the_budget_is_spent():
    class Spent(FastBackend):
        def probabilities(self, circuit, batch, stop):
            raise BudgetExceededError("no more seconds")

    pool = pool_of([1e3, 10.0], backends=[Spent(), FastBackend()],
                   settings={"chunk_rows": 30, "max_in_flight": 1})  # fmt: skip
    with pytest.raises(BudgetExceededError, match=r"no more seconds\n\(on .*Spent.*of 360\)$"):
        pool.submit(CANONICAL, batch_of(30)).result(0)
    assert pool.stats()["rows"] == 30  # the other's


# Hangs and stragglers.


@pytest.mark.parametrize("kind", ["hang", "mute"])
def test_a_process_that_hangs_is_replaced(kind, caplog):
    pool = pool_of([500.0], [Fault(2.0, 0, kind)])
    evaluate(pool, batch_of(300))
    assert pool.replaced() == [1]
    assert pool.transport.now > stragglers.HANG_SECONDS  # a slow machine is not taken for a hang
    assert "it hangs: no answer for" in caplog.text


def test_nobody_waits_for_one_that_hangs_while_others_are_idle():
    pool = pool_of([500.0] * 2, [Fault(3.0, 0, "hang")])
    evaluate(pool, batch_of(200))
    assert pool.transport.now < 15  # long before its deadline
    assert pool.stats()["races"] > 0
    pool.run_for(1.0)
    evaluate(pool, batch_of(20))


def test_a_queue_of_hours_is_no_hang_but_a_device_that_does_not_respond_is():
    backend = Changed(detect_hangs=False)
    pool = pool_of([0.01], backends=[backend], settings={"chunk_rows": 60})
    evaluate(pool, batch_of(5))
    assert pool.transport.now > 6000
    assert pool.replaced() == [0]
    stopped = pool_of([0.1], [Fault(500.0, 0, "mute")], backends=[backend],
                      settings={"chunk_rows": 60})  # fmt: skip
    evaluate(stopped, batch_of(5))
    assert stopped.replaced() == [1]


def test_a_slow_process_at_the_end_is_overtaken():
    pool = pool_of([1000.0, 20.0], settings={"chunk_rows": 60})
    evaluate(pool, batch_of(20))  # speeds become known
    before = pool.transport.now
    evaluate(pool, batch_of(100))
    assert pool.transport.now - before < 1.2 * 100 * 2 * ANGLES / 1000
    assert pool.stats()["races"] > 0
    assert pool.stats()["rows_again"] > 0


def test_rows_that_cost_money_are_sent_once():
    pool = pool_of([1000.0, 20.0], backends=[Changed(idempotent=False)] * 2,
                   settings={"chunk_rows": 60})  # fmt: skip
    evaluate(pool, batch_of(20))
    evaluate(pool, batch_of(60))
    assert pool.stats()["rows_again"] == 0


def test_speculative_copies_that_fail_are_not_sent_for_ever():
    faults = [Fault(1.01, 0, "hang"), *[Fault(6.0, 1, "fail")] * 1000]
    pool = pool_of([1e3] * 2, faults, late={1: 4.0})
    future = pool.begin(CANONICAL, batch_of(3))
    pool.run_for(600.0)
    assert pool.stats()["races"] <= 2 * stragglers.MAX_COPIES
    assert not future.done()
    pool.run_until(future.done)  # the first is taken to hang in the end


def test_rows_that_take_longer_for_more_shots_are_no_hang():
    pool = pool_of([1e4] * 2)
    evaluate(pool, batch_of(500))
    pool.transport.speeds = [50.0] * 2  # 200 times slower
    batch = dataclasses.replace(batch_of(500), shots=1_000_000)
    answers = pool.submit(CANONICAL, batch).result(0)
    np.testing.assert_array_equal(answers, answers_of(BACKEND, CANONICAL, batch))
    assert pool.replaced() == [0, 0]


def test_chunks_of_another_program_are_not_held_against_a_process():
    pool = pool_of([500.0], [Fault(3.0, 0, "foreign")])
    evaluate(pool, batch_of(200))
    assert pool.transport.now > 100
    assert pool.replaced() == [0]


# How much an actor gets.


def test_chunks_of_a_small_fixed_size_are_made_larger_and_small_at_the_end():
    pool = pool_of([1e4] * 2, settings={"chunk_rows": 12})
    evaluate(pool, batch_of(20))
    pool.transport.sends.clear()
    evaluate(pool, batch_of(2000))
    calls = [count for _, _, count in pool.transport.sends]
    assert max(calls) > 50
    assert calls[-1] == 1
    assert len(calls) < sum(calls) / 20
    assert pool.stats()["chunks"] == 2020 * 2 * ANGLES / 12  # each call to the backend is counted


def test_a_fixed_bound_is_a_bound_of_calls():
    pool = pool_of([1e4] * 2, settings={"chunk_rows": 12, "max_in_flight": 3})
    seen = []
    original = pool.transport.send

    def send(actor, call):
        original(actor, call)
        seen.append(len(actor.in_flight) + 1)  # it is noted after it was sent

    pool.transport.send = send
    evaluate(pool, batch_of(100))
    assert max(seen) == 3
    assert {calls for _, _, calls in pool.transport.sends} == {1}


def test_fast_processes_get_more():
    pool = pool_of([800.0, 400.0, 200.0, 100.0])
    evaluate(pool, batch_of(100))
    before, rows = pool.transport.now, [actor["rows"] for actor in pool.stats()["actors"]]
    evaluate(pool, batch_of(3000))
    after = [actor["rows"] for actor in pool.stats()["actors"]]
    gained = [new - old for new, old in zip(after, rows, strict=True)]
    assert gained == sorted(gained, reverse=True)
    ideal = 3000 * 2 * ANGLES / 1500
    assert ideal / (pool.transport.now - before) > 0.9


def test_a_device_that_packs_jobs_gets_one_chunk_however_many_actors_use_it():
    one = Changed(packs_jobs=True, queue_name="lagos")
    other = Changed(packs_jobs=True, queue_name="nairobi")
    pool = pool_of([1e3] * 3, backends=[one, one, other])
    pool.run_for(2.0)
    evaluate(pool, batch_of(40))
    assert [(actor, rows) for actor, rows, _ in pool.transport.sends] == [(0, 240), (2, 240)]


# Transient faults.


def test_transient_faults_cool_an_actor_down_and_in_the_end_quarantine_it(caplog):
    many = [Fault(1.5, 0, "fail")] * 100
    pool = pool_of([500.0, 500.0], many, settings={"chunk_rows": 12, "max_in_flight": 1})
    evaluate(pool, batch_of(600))
    assert pool.state(0) == "quarantined"
    assert supervisor.MAX_FAULTS <= pool.stats()["retries"] < 2 * supervisor.MAX_FAULTS
    assert "is quarantined: struck" in caplog.text
    pool.run_for(supervisor.QUARANTINE_SECONDS)
    evaluate(pool, batch_of(600))  # it gets another chance
    assert pool.state(0) == "ready"


def test_transient_faults_everywhere_end_in_an_error():
    pool = pool_of([500.0], [Fault(1.5, 0, "fail")] * 100, settings={"chunk_rows": 12})
    future = pool.submit(CANONICAL, batch_of(200))
    with pytest.raises(PoolExhaustedError, match=r"struck\n\d+ of 2400 rows were done"):
        future.result(0)


def test_a_machine_without_room_only_cools_down():
    pool = pool_of([1e4], settings={"chunk_rows": 12, "max_in_flight": 1})
    original, refusals = pool.transport.send, []

    def send(actor, call):
        if len(refusals) < 2 * supervisor.MAX_FAULTS:
            refusals.append(1)
            raise NoRoom("the object store is full")
        original(actor, call)

    pool.transport.send = send
    evaluate(pool, batch_of(10))
    assert pool.state(0) == "ready"


# Starting.


def test_others_go_on_where_a_backend_cannot_be_built(caplog):
    pool = pool_of([500.0, 500.0], unbuildable=[0])
    evaluate(pool, batch_of(100))
    assert pool.state(0) == "quarantined"
    assert "is quarantined: no such device" in caplog.text


def test_nowhere_can_it_be_built():
    pool = pool_of([500.0, 500.0], unbuildable=[0, 1])
    with pytest.raises(BackendBuildError, match="no such device"):
        pool.submit(CANONICAL, batch_of(10)).result(0)


def test_a_start_that_never_ends_is_given_up_with_what_is_missing(caplog):
    pool = pool_of([500.0], late={0: 1e9})
    with pytest.raises(PoolError, match=r"could start within 10. s; .* needs 1 CPU.*nothing"):
        pool.submit(CANONICAL, batch_of(10)).result(0)
    assert "1 of 1 actors have been starting for 20 s" in caplog.text
    pool.transport.free = ""
    with pytest.raises(PoolError, match="no machine is left in its Ray") as caught:
        pool.submit(CANONICAL, batch_of(10)).result(0)
    assert "Close what holds" not in str(caught.value)


def test_processes_that_are_killed_while_they_start_cost_time_where_there_is_room_for_them():
    """Ray notices each after 60 s, and says nothing of it."""
    pool = pool_of([500.0], late={0: 200.0})
    pool.transport.room = True
    evaluate(pool, batch_of(10))
    pool = pool_of([500.0], late={0: 1e9})
    pool.transport.room = True
    with pytest.raises(PoolError, match=r"within 30. s; the cluster has room .* killed while") as e:
        pool.submit(CANONICAL, batch_of(10)).result(0)
    assert "Close what holds" not in str(e.value)


# Ending.


def test_cancelling_stops_what_is_in_flight():
    pool = pool_of([100.0] * 2)
    pool.run_for(2.0)
    future = pool.begin(CANONICAL, batch_of(100))
    pool.run_for(0.5)
    in_flight = {sent.ticket for actor in pool.actors for sent in actor.in_flight}
    assert future.cancel()
    cancelled = set().union(*(p.cancelled for p in pool.transport.processes.values()))
    assert in_flight
    assert in_flight <= cancelled
    evaluate(pool, batch_of(10))


def test_known_circuits_are_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr(actors, "KNOWN_CIRCUITS", 3)
    pool = pool_of([500.0])
    keys = []
    for qubits in range(1, 7):
        circuit = build_circuit(qubits, [RotationalEncoder("y", "input")])
        canonical, _ = canonicalize(circuit, circuit.parameters)
        keys.append(canonical.key)
        rows = ShiftedRows(base=np.zeros((2, qubits)), columns=np.arange(qubits))
        batch = RowBatch(rows, None, NoiseStream(0), np.ones((2, 2**qubits)))
        answers = pool.submit(canonical, batch).result(0)
        np.testing.assert_array_equal(answers, answers_of(BACKEND, canonical, batch))
    assert [pool.actors[0].in_flight.knows(key) for key in keys] == [False] * 3 + [True] * 3
