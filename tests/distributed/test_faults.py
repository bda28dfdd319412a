"""What may happen to a pool on a real Ray: kills, hangs, full machines, several users."""

import json
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
import ray

from qailab.backends import AerBackend, RehearsalBackend
from qailab.distributed import LauncherPool, tail
from qailab.errors import (
    EvaluationError,
    InputError,
    PoolClosedError,
    PoolError,
    TransientBackendError,
)
from tests.distributed.conftest import DEADLINE, SMALL, actor_handles, actor_pids, wait_until
from tests.support.contracts import backward_batch, model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

_, CANONICAL, ANGLE_MAP, VALUES = model()
BATCH = backward_batch(CANONICAL, ANGLE_MAP, VALUES, shots=50)
EXPECTED = AerBackend().evaluate(CANONICAL, BATCH)


def assert_runs(pool):
    np.testing.assert_array_equal(pool.submit(CANONICAL, BATCH).result(DEADLINE), EXPECTED)


class Slow(AerBackend):
    """Takes a while for each chunk."""

    def outcomes(self, circuit, batch):
        time.sleep(0.1)
        return super().outcomes(circuit, batch)


class HangsOnce(AerBackend):
    """Never ends what it is given first; what it is given later, in any process, it does."""

    def __init__(self, flag):
        super().__init__()
        self.flag = str(flag)

    def outcomes(self, circuit, batch):
        try:
            os.mkdir(self.flag)  # whoever is first
        except FileExistsError:
            return super().outcomes(circuit, batch)
        time.sleep(3600)
        raise AssertionError("nobody waits so long")


def test_before_a_chunk_and_after_it_an_actor_may_die_too(caplog):
    with LauncherPool([AerBackend()] * 2, actor_options=SMALL) as pool:
        pool.wait()
        for victim in (0, 1):  # before anything ran, and after
            before = actor_pids(pool)
            os.kill(before[victim], signal.SIGKILL)
            wait_until(lambda: pool.stats()["actors"][victim]["replaced"] == 1)  # noqa: B023
            assert_runs(pool)
        pool.wait()
        assert pool.stats()["rows"] == 2 * BATCH.num_rows
    lost = [record for record in caplog.records if "was lost" in record.getMessage()]
    assert len(lost) == 2  # a line for each
    assert all("\n" not in record.getMessage() for record in lost)


def test_all_actors_at_once():
    with LauncherPool([Slow()] * 3, chunk_rows=4, actor_options=SMALL) as pool:
        pool.wait()
        future = pool.submit(CANONICAL, BATCH)
        time.sleep(0.3)
        for pid in actor_pids(pool):
            os.kill(pid, signal.SIGKILL)
        np.testing.assert_array_equal(future.result(DEADLINE), EXPECTED)
        stats = pool.stats()
    assert stats["rows"] == BATCH.num_rows
    assert [actor["replaced"] for actor in stats["actors"]] == [1, 1, 1]


def test_an_actor_that_hangs_is_replaced(tmp_path, caplog):
    pool = LauncherPool([HangsOnce(tmp_path / "flag")], chunk_timeout=4.0, actor_options=SMALL)
    with pool:
        victims = actor_pids(pool)
        assert_runs(pool)
        assert pool.stats()["actors"][0]["replaced"] >= 1
        wait_until(lambda: not os.path.exists(f"/proc/{victims[0]}"))  # it is ended
    assert "it hangs: no answer for" in caplog.text


def test_a_process_that_stands_still_is_replaced(monkeypatch):
    monkeypatch.setattr(tail, "INQUIRY_SECONDS", 2.0)
    with LauncherPool([Slow()], chunk_timeout=4.0, chunk_rows=4, actor_options=SMALL) as pool:
        future = pool.submit(CANONICAL, BATCH)
        (victim,) = actor_pids(pool)
        time.sleep(0.3)
        os.kill(victim, signal.SIGSTOP)
        np.testing.assert_array_equal(future.result(DEADLINE), EXPECTED)
        assert pool.stats()["actors"][0]["replaced"] >= 1
        wait_until(lambda: not os.path.exists(f"/proc/{victim}"))


def test_nobody_waits_for_a_hanging_actor_while_another_is_idle(tmp_path):
    backends = [HangsOnce(tmp_path / "flag")] * 2
    with LauncherPool(backends, chunk_rows=6, max_in_flight=1, actor_options=SMALL) as pool:
        pool.wait()
        assert_runs(pool)
        stats = pool.stats()
    assert stats["races"] >= 1
    assert sum(actor["replaced"] for actor in stats["actors"]) == 0  # its time is not up yet


def test_what_is_cancelled_stops_in_the_actor():
    """Also what runs: a simulated device of an hour is free at once."""
    backend = RehearsalBackend(latency=3600.0)
    with LauncherPool([backend], actor_options=SMALL) as pool:
        future = pool.submit(CANONICAL, BATCH)
        time.sleep(1.0)
        future.cancel()
        wait_until(lambda: pool._dispatcher.slots[0].chunks_in_flight == 0)
        assert pool.stats()["actors"][0]["replaced"] == 0


def test_transient_faults_cost_only_their_rows():
    faulty = RehearsalBackend(latency=0.001, failure_rate=0.2, seed=4)
    with LauncherPool([faulty] * 3, chunk_rows=2, actor_options=SMALL) as pool:
        for _ in range(3):
            assert_runs(pool)
        stats = pool.stats()
    assert stats["rows"] == 3 * BATCH.num_rows
    assert stats["retries"] > 0
    assert stats["rows_again"] >= 2 * stats["retries"] - 2 * stats["races"]
    assert stats["jobs"] >= stats["chunks"] + stats["retries"]
    assert stats["qpu_seconds"] > 0


def test_two_processes_share_a_pool_and_one_owner_replaces_its_actors():
    @ray.remote(num_cpus=0)
    def work(handle, seconds):
        end = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < end:
            assert_runs(handle)
            rounds += 1
        return rounds, [actor["replaced"] for actor in handle.stats()["actors"]]

    with LauncherPool([Slow()] * 2, chunk_rows=6, actor_options=SMALL) as pool:
        pool.wait()
        elsewhere = work.remote(pool, 6.0)
        assert_runs(pool)
        for index in (0, 1, 0):
            time.sleep(1.0)
            pool.wait()
            os.kill(actor_pids(pool)[index], signal.SIGKILL)
            assert_runs(pool)
        rounds, _ = ray.get(elsewhere, timeout=DEADLINE)
        assert rounds > 0
        assert [actor["replaced"] for actor in pool.stats()["actors"]] == [2, 1]
        names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
        assert len([name for name in names if name.startswith(pool._name)]) == 2


def test_a_handle_without_an_owner_says_so():
    pool = LauncherPool([AerBackend()], actor_options=SMALL, start_timeout=10.0)
    handle = pickle.loads(pickle.dumps(pool))
    assert_runs(handle)
    pool.close()
    with pytest.raises(PoolError, match="made this pool"):
        handle.submit(CANONICAL, BATCH).result(DEADLINE)
    handle.close()
    with pytest.raises(PoolClosedError):
        handle.stats()


def test_a_pool_may_be_used_where_actors_have_taken_all_cpus():
    @ray.remote(num_cpus=0)
    def work(handle):
        assert_runs(handle)
        return True

    with LauncherPool([AerBackend()] * 4, actor_options={"num_cpus": 1}) as pool:
        pool.wait()
        assert ray.get(work.remote(pool), timeout=DEADLINE)


def test_a_task_with_all_cpus_lends_them_to_the_pool_it_makes():
    @ray.remote(num_cpus=4)
    def work():
        with LauncherPool([AerBackend()], start_timeout=30.0) as own:
            assert_runs(own)
        return True

    assert ray.get(work.remote(), timeout=DEADLINE)


def test_an_unknown_circuit_is_sent_again():
    with LauncherPool([AerBackend()], actor_options=SMALL) as pool:
        assert_runs(pool)
        (actor,) = actor_handles(pool)
        ray.get(actor.__ray_call__.remote(lambda self: self._circuits.clear()), timeout=DEADLINE)
        assert_runs(pool)


def test_a_full_store_passes():
    """Ray's error for a store that is full, where the call is made."""
    with LauncherPool([AerBackend()], actor_options=SMALL) as pool:
        workers = pool._dispatcher._workers
        original, refusals = workers._actors[0], []

        class Full:
            def __getattr__(self, name):
                if name == "run" and len(refusals) < 3:
                    return self
                return getattr(original, name)

            def remote(self, *_):
                refusals.append(1)
                raise ray.exceptions.ObjectStoreFullError("no room")

        workers._actors[0] = Full()
        assert_runs(pool)
        workers._actors[0] = original
        assert len(refusals) == 3
        assert pool.stats()["retries"] == 3


class OddError(TransientBackendError):
    """An error class as others write them: it cannot be made from its text."""

    def __init__(self, code, reason):
        super().__init__(f"{reason} ({code})")


class Odd(AerBackend):
    """Fails in a way of its own, once: in ``open``, and for its first rows."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def fail_once(self, where):
        try:
            os.mkdir(os.path.join(self.folder, where))
        except FileExistsError:
            return
        raise OddError(503, f"no network in {where}")

    def open(self):
        self.fail_once("open")
        super().open()

    def outcomes(self, circuit, batch):
        self.fail_once("outcomes")
        return super().outcomes(circuit, batch)


def test_transient_faults_may_have_classes_of_their_own_and_happen_in_open(tmp_path, caplog):
    with LauncherPool([Odd(str(tmp_path))], actor_options=SMALL) as pool:
        assert_runs(pool)
        assert pool.stats()["retries"] == 1
        assert pool.stats()["actors"][0]["replaced"] == 1
    assert "no network in open (503)" in caplog.text


def test_an_actor_that_takes_no_calls_does_not_stop_the_dispatcher():
    with LauncherPool([Slow()], chunk_rows=4, actor_options=SMALL) as pool:
        workers = pool._dispatcher._workers

        class Deaf:
            def __getattr__(self, name):
                raise ray.exceptions.PendingCallsLimitExceeded(name)

        first, second = (pool.submit(CANONICAL, BATCH) for _ in range(2))
        time.sleep(0.5)
        actor, workers._actors[0] = workers._actors[0], Deaf()
        first.cancel()
        time.sleep(0.5)
        workers._actors[0] = actor
        np.testing.assert_array_equal(second.result(DEADLINE), EXPECTED)
        assert_runs(pool)


@pytest.mark.parametrize("name", ["lifetime", "max_concurrency", "name", "max_restarts"])
def test_options_that_are_the_pools_own(name):
    with pytest.raises(InputError, match=f"must not set {name}"):
        LauncherPool([AerBackend()], actor_options={name: 1})


def test_per_actor_options():
    options = [{"num_cpus": 0.25, "scheduling_strategy": "SPREAD"}, {"num_cpus": 0}]
    with LauncherPool([AerBackend()] * 2, actor_options=options) as pool:
        pool.wait()
        assert_runs(pool)
        free = ray.available_resources()["CPU"]
    wait_until(lambda: ray.available_resources()["CPU"] == free + 0.25)


def test_the_trace_shows_every_chunk(tmp_path):
    with LauncherPool([AerBackend()] * 2, chunk_rows=6, actor_options=SMALL) as pool:
        pool.wait()
        assert_runs(pool)
        os.kill(actor_pids(pool)[0], signal.SIGKILL)
        wait_until(lambda: pool.stats()["actors"][0]["replaced"] == 1)
        pool.trace(tmp_path / "trace.json")
        stats = pool.stats()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    chunks = [event for event in events if event["ph"] == "X"]
    chunks = [chunk for chunk in chunks if "error" not in chunk["args"]]  # a race that was lost
    assert len(chunks) >= stats["chunks"]
    rows = [row for e in chunks for row in range(e["args"]["first_row"], e["args"]["last_row"] + 1)]
    assert set(rows) == set(range(BATCH.num_rows))
    assert {event["tid"] for event in chunks} <= {0, 1}
    assert all(event["ts"] >= 0 and event["dur"] > 0 for event in chunks)
    assert sum(event["dur"] for event in chunks) >= 0.999 * stats["seconds"] * 1e6
    assert [e["name"] for e in events if e["ph"] == "i" and e["name"] != "race"] == ["lost"]
    names = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert names == ["actor 0: AerBackend()", "actor 1: AerBackend()"]


def test_threads_share_a_pool_while_actors_die():
    errors = []

    def work():
        try:
            for _ in range(6):
                assert_runs(pool)
        except BaseException as error:
            errors.append(error)

    with LauncherPool([Slow()] * 2, chunk_rows=12, actor_options=SMALL) as pool:
        pool.wait()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        os.kill(actor_pids(pool)[1], signal.SIGKILL)
        for thread in threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in threads)
        assert not errors
        assert pool.stats()["rows"] == 24 * BATCH.num_rows


class TooMuch(AerBackend):
    """Fails for one row."""

    def outcomes(self, circuit, batch):
        if batch.rows.start <= 31 < batch.rows.stop:
            raise OverflowError("an angle is too large")
        return super().outcomes(circuit, batch)


def test_one_bad_row_is_named_and_raised_once():
    with LauncherPool([TooMuch()] * 2, actor_options=SMALL) as pool:
        with pytest.raises(EvaluationError) as caught:
            pool.submit(CANONICAL, BATCH).result(DEADLINE)
        text = str(caught.value)
        assert "OverflowError: an angle is too large [rows 30 to 31, the first being" in text
        assert "row 30 (sample" in text
        assert "shifted by" in text
        assert pool.stats()["retries"] == 0
