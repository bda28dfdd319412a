"""What may happen to a pool on a real Ray: kills, hangs, full machines, several users."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import ray

from qailab.backends import AerBackend, EmulatedBackend
from qailab.distributed import LauncherPool, stragglers
from qailab.errors import EvaluationError, TransientBackendError
from tests.support.contracts import answers, backward_batch, forward_batch, model
from tests.support.pools import SMALL, actor_handles, actor_pids
from tests.support.processes import DEADLINE, is_alive, wait_until

pytestmark = pytest.mark.usefixtures("ray_cluster")

_, CANONICAL, ANGLE_MAP, VALUES = model()
BATCH = backward_batch(CANONICAL, ANGLE_MAP, VALUES, shots=50)
EXPECTED = answers(AerBackend(), CANONICAL, BATCH)


def assert_runs(pool):
    np.testing.assert_array_equal(pool.submit(CANONICAL, BATCH).result(DEADLINE), EXPECTED)


class Slow(AerBackend):
    """Takes a while for each call."""

    def probabilities(self, circuit, batch, stop):
        time.sleep(0.1)
        return super().probabilities(circuit, batch, stop)


class WaitsOnce(AerBackend):
    """Takes an hour for what it is given first; what it is given later, in any process, it does."""

    def __init__(self, flag, until_stopped=False):
        super().__init__()
        self.flag = str(flag)
        self.until_stopped = until_stopped

    def probabilities(self, circuit, batch, stop):
        try:
            os.mkdir(self.flag)  # whoever is first
        except FileExistsError:
            return super().probabilities(circuit, batch, stop)
        (stop if self.until_stopped else threading.Event()).wait(3600)
        return super().probabilities(circuit, batch, stop)


def test_a_dead_actor_is_replaced_and_only_its_rows_run_again(caplog):
    with LauncherPool([Slow()] * 2, chunk_rows=6, max_in_flight=2, actor_options=SMALL) as pool:
        for deaths, how in enumerate(("SIGKILL", "ray.kill"), 1):
            pool.wait()
            (victim, _), (handle, _) = actor_pids(pool), actor_handles(pool)
            future = pool.submit(CANONICAL, BATCH)
            time.sleep(0.2)
            if how == "SIGKILL":
                os.kill(victim, signal.SIGKILL)
            else:
                ray.kill(handle)
            np.testing.assert_array_equal(future.result(DEADLINE), EXPECTED)
            stats = pool.stats()
            assert stats["rows"] == deaths * BATCH.num_rows  # every row answered once
            assert deaths <= stats["retries"] <= 2 * deaths  # what it had in flight
            assert [actor["replaced"] for actor in stats["actors"]] == [deaths, 0]
            pool.wait()
            assert victim not in actor_pids(pool)
        assert_runs(pool)
    lost = [record for record in caplog.records if "was lost" in record.getMessage()]
    assert len(lost) == 2
    assert "\n" not in lost[0].getMessage()


def test_all_actors_at_once_while_threads_share_the_pool():
    errors = []

    def work():
        try:
            for _ in range(4):
                assert_runs(pool)
        except BaseException as error:
            errors.append(error)

    with LauncherPool([Slow()] * 3, chunk_rows=12, actor_options=SMALL) as pool:
        pool.wait()
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        for pid in actor_pids(pool):
            os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in threads)
        assert not errors
        stats = pool.stats()
    assert stats["rows"] == 12 * BATCH.num_rows
    assert [actor["replaced"] for actor in stats["actors"]] == [1, 1, 1]


class DeadlyShots(AerBackend):
    """Kills its process for one number of shots."""

    def probabilities(self, circuit, batch, stop):
        if batch.shots == 13:
            os._exit(1)
        return super().probabilities(circuit, batch, stop)


def test_rows_that_kill_actors_take_no_other_evaluation_down(caplog):
    deadly = forward_batch(ANGLE_MAP, VALUES, shots=13)
    with LauncherPool([DeadlyShots()], actor_options=SMALL) as pool:
        futures = [pool.submit(CANONICAL, batch) for batch in (deadly, BATCH)]
        with pytest.raises(EvaluationError, match=r"lost their actor 4 times.*AerBackend\(\)"):
            futures[0].result(DEADLINE)
        np.testing.assert_array_equal(futures[1].result(DEADLINE), EXPECTED)
    assert "was lost" in caplog.text


def test_an_actor_that_hangs_is_replaced(tmp_path, caplog):
    backend = WaitsOnce(tmp_path / "flag")
    with LauncherPool([backend], chunk_timeout=4.0, actor_options=SMALL) as pool:
        (victim,) = actor_pids(pool)
        assert_runs(pool)
        assert pool.stats()["actors"][0]["replaced"] >= 1
        wait_until(lambda: not is_alive(victim))
    assert "it hangs: no answer for" in caplog.text


def test_a_process_that_stands_still_is_replaced(monkeypatch):
    monkeypatch.setattr(stragglers, "INQUIRY_SECONDS", 2.0)
    with LauncherPool([Slow()], chunk_timeout=4.0, chunk_rows=4, actor_options=SMALL) as pool:
        future = pool.submit(CANONICAL, BATCH)
        (victim,) = actor_pids(pool)
        time.sleep(0.3)
        os.kill(victim, signal.SIGSTOP)
        np.testing.assert_array_equal(future.result(DEADLINE), EXPECTED)
        assert pool.stats()["actors"][0]["replaced"] >= 1
        wait_until(lambda: not is_alive(victim))


def test_what_is_cancelled_stops_in_the_actor(tmp_path):
    """Also what runs: a call of an hour."""
    backend = WaitsOnce(tmp_path / "flag", until_stopped=True)
    with LauncherPool([backend], actor_options=SMALL) as pool:
        future = pool.submit(CANONICAL, BATCH)
        wait_until((tmp_path / "flag").exists)
        future.cancel()
        assert_runs(pool)
        assert pool.stats()["actors"][0]["replaced"] == 0


def test_transient_faults_cost_only_their_rows():
    faulty = EmulatedBackend(latency=0.001, failure_rate=0.2, seed=4)
    with LauncherPool([faulty] * 2, chunk_rows=2, actor_options=SMALL) as pool:
        for _ in range(3):
            assert_runs(pool)
        stats = pool.stats()
    assert stats["rows"] == 3 * BATCH.num_rows
    assert stats["retries"] > 0
    assert stats["rows_again"] >= 2 * stats["retries"] - 2 * stats["races"]
    assert stats["jobs"] >= stats["chunks"]
    assert stats["qpu_seconds"] > 0


def test_two_processes_share_a_pool_and_one_owner_replaces_its_actors():
    @ray.remote(num_cpus=0)
    def work(handle, seconds):
        end = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < end:
            assert_runs(handle)
            rounds += 1
        return rounds

    with LauncherPool([Slow()] * 2, chunk_rows=6, actor_options=SMALL) as pool:
        pool.wait()
        elsewhere = work.remote(pool, 4.0)
        assert_runs(pool)
        for index in (0, 1, 0):
            time.sleep(0.5)
            pool.wait()
            os.kill(actor_pids(pool)[index], signal.SIGKILL)
            assert_runs(pool)
        assert ray.get(elsewhere, timeout=DEADLINE) > 0
        wait_until(lambda: [a["replaced"] for a in pool.stats()["actors"]] == [2, 1])
        pool.wait()
        assert len(actor_handles(pool)) == 2


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

    def probabilities(self, circuit, batch, stop):
        self.fail_once("probabilities")
        return super().probabilities(circuit, batch, stop)


def test_transient_faults_may_have_classes_of_their_own_and_happen_in_open(tmp_path, caplog):
    with LauncherPool([Odd(str(tmp_path))], actor_options=SMALL) as pool:
        assert_runs(pool)
        assert pool.stats()["retries"] == 1
        assert pool.stats()["actors"][0]["replaced"] == 1
    assert "no network in open (503)" in caplog.text


def test_a_machine_that_takes_no_calls_for_a_while():
    """Ray's errors where a call is made: rows wait, and what helps only is left out."""
    full, busy = ray.exceptions.ObjectStoreFullError, ray.exceptions.PendingCallsLimitExceeded
    refusals = [full, busy, full, busy]

    class Refusing:
        def __init__(self, actor):
            self.actor = actor

        def __getattr__(self, name):
            if refusals and name in ("run", "cancel"):
                raise refusals.pop()("no room")
            return getattr(self.actor, name)

    with LauncherPool([Slow()], chunk_rows=6, actor_options=SMALL) as pool:
        handles = pool._dispatcher._transport._actors  # there is no other way to fill Ray up
        actor = handles[0]
        handles[0] = Refusing(actor)
        first, second = (pool.submit(CANONICAL, BATCH) for _ in range(2))
        first.cancel()
        np.testing.assert_array_equal(second.result(DEADLINE), EXPECTED)
        handles[0] = actor
    assert not refusals


def test_a_pool_may_be_used_where_actors_have_taken_all_cpus():
    @ray.remote(num_cpus=0)
    def work(handle):
        return handle.run(CANONICAL, BATCH)

    with LauncherPool([AerBackend()] * 4, actor_options={"num_cpus": 1}) as own:
        own.wait()
        found = ray.get(work.remote(own), timeout=DEADLINE)
    np.testing.assert_array_equal(found, EXPECTED)


def test_a_task_with_all_cpus_lends_them_to_the_pool_it_makes():
    @ray.remote(num_cpus=4)
    def work():
        with LauncherPool([AerBackend()], start_timeout=60.0) as own:
            return own.run(CANONICAL, BATCH)

    np.testing.assert_array_equal(ray.get(work.remote(), timeout=DEADLINE), EXPECTED)
