"""Devices in Ray actors: two in one gradient, dead actors, cancelled work, secrets."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from qailab.backends import AerBackend, Budget, IBMTimeouts
from qailab.distributed import LauncherPool, stragglers
from qailab.errors import BackendBuildError, BudgetExceededError, PoolError, PoolExhaustedError
from tests.support.contracts import answers
from tests.support.ibm import gradient_rows, live_jobs
from tests.support.ibm import patient_device as device
from tests.support.processes import DEADLINE, is_alive, wait_until
from tests.support.servers import on


def pool(server, *backends, **options):
    """A pool of a Ray that was started before the server, so its actors must be told of it."""
    where = {"runtime_env": {"env_vars": server.environment}}
    return LauncherPool(list(backends), actor_options=where, start_timeout=DEADLINE, **options)


def test_two_devices_in_one_gradient(ray_cluster, rehearse, tmp_path):
    server = rehearse("manila", "lagos")
    canonical, rows = gradient_rows()
    journal = tmp_path / "journal.sqlite"
    names = ("ibmq_manila", "ibmq_manila", "ibm_lagos")  # two actors share the first
    with pool(server, *(device(name, journal=journal) for name in names)) as fleet:
        fleet.wait(timeout=DEADLINE)
        assert server.sessions == []
        found = fleet.run(canonical, rows)
        exact = answers(AerBackend(), canonical, rows)
        assert (np.abs(found - exact)[:, 0] / np.sqrt(exact[:, 1] + 1e-6)).max() < 6
        # One job for each device, however many actors it has.
        assert sorted((job.backend, job.rows) for job in server.jobs) == [
            ("ibm_lagos", 18), ("ibmq_manila", 18)]  # fmt: skip
        np.testing.assert_array_equal(fleet.run(canonical, rows), found)
        assert len(server.jobs) == 2
        assert fleet.stats()["jobs"] == 2
        assert {session.state for session in server.sessions} == {"active"}
    assert {session.state for session in server.sessions} == {"closed"}
    assert len(server.sessions) == 2


@pytest.mark.parametrize("with_journal", [True, False])
def test_a_dead_actors_job_is_taken_up(ray_cluster, rehearse, tmp_path, with_journal):
    server = rehearse(queue_seconds=2.0)
    canonical, rows = gradient_rows()
    journal = tmp_path / "journal.sqlite" if with_journal else None
    with pool(server, device(mode="job", journal=journal)) as fleet:
        future = fleet.submit(canonical, rows)
        wait_until(lambda: server.jobs)
        os.kill(fleet.stats()["actors"][0]["pid"], signal.SIGKILL)
        assert future.result(DEADLINE).shape == (rows.num_rows, 2)
    assert len(server.jobs) == 1


def test_a_stopped_actor_is_replaced_and_its_job_taken_up(
    ray_cluster, rehearse, tmp_path, monkeypatch
):
    """All its own deadlines stand still with it: it is watched from outside."""
    monkeypatch.setattr(stragglers, "PULSE_SECONDS", 1.0)
    monkeypatch.setattr(stragglers, "UNKNOWN_SECONDS", 10.0)
    server = rehearse(queue_seconds=2.0)
    canonical, rows = gradient_rows()
    with pool(server, device(journal=tmp_path / "journal.sqlite")) as fleet:
        future = fleet.submit(canonical, rows)
        wait_until(lambda: server.jobs)
        stopped = fleet.stats()["actors"][0]["pid"]
        os.kill(stopped, signal.SIGSTOP)
        assert future.result(DEADLINE).shape == (rows.num_rows, 2)
        assert fleet.stats()["actors"][0]["pid"] != stopped
        wait_until(lambda: not is_alive(stopped))
    assert len(server.jobs) == 1
    assert [session.state for session in server.sessions] == ["closed"]


def test_evaluations_of_many_threads_are_in_flight_together(ray_cluster, rehearse):
    server = rehearse(queue_seconds=1.0)
    canonical, rows = gradient_rows()
    with pool(server, device()) as fleet:
        fleet.run(canonical, rows)
        futures = [fleet.submit(canonical, rows) for _ in range(4)]
        wait_until(lambda: len(server.jobs) == 5)
        for future in futures:
            future.result(DEADLINE)
    assert all(job.rows == rows.num_rows for job in server.jobs)
    assert len(server.sessions) == 1


def test_cancelling_cancels_at_the_device(ray_cluster, rehearse):
    server = rehearse(faults=[on("job-stuck", times=2)])
    canonical, rows = gradient_rows()
    with pool(server, device()) as fleet:
        future = fleet.submit(canonical, rows)
        wait_until(lambda: server.jobs)
        future.cancel()
        wait_until(lambda: server.jobs[0].state == "Cancelled")
        fleet.submit(canonical, rows)
        wait_until(lambda: len(server.jobs) == 2)
    # Closing the pool cancels what runs, and closes the session.
    assert [job.state for job in server.jobs] == ["Cancelled"] * 2
    assert [session.state for session in server.sessions] == ["closed"]


def test_one_budget_for_all_actors(ray_cluster, rehearse):
    server = rehearse("manila", "lagos")
    canonical, rows = gradient_rows()
    budget = Budget(jobs=5)
    devices = [device(name, budget=budget) for name in ("ibmq_manila", "ibm_lagos")]
    with pool(server, *devices) as fleet:
        fleet.run(canonical, rows)
        fleet.run(canonical, rows)
        with pytest.raises(BudgetExceededError, match=r"jobs: [45] of 5 spent"):
            fleet.run(canonical, rows)
    assert len(live_jobs(server)) <= 5


def test_an_actor_without_account_says_so(ray_cluster, rehearse):
    server = rehearse()
    where = {"runtime_env": {"env_vars": {**server.environment, "QISKIT_IBM_TOKEN": "wrong-key"}}}
    with pytest.raises(BackendBuildError, match="refuses the API key") as caught:
        LauncherPool([device()], actor_options=where, start_timeout=DEADLINE)
    assert "wrong-key" not in str(caught.value)


def test_the_resource_is_asked_for_where_a_node_has_it(ray_cluster, monkeypatch):
    from qailab.distributed import pool as module

    monkeypatch.setattr(module, "undeclared", lambda names: set())  # as in a cluster
    with pytest.raises(PoolError, match=r"1 qpu_session.* no qpu_session on any node"):
        LauncherPool([device()], start_timeout=1.5)


def test_a_spent_budget_cancels_nothing_that_was_sent(ray_cluster, rehearse, tmp_path, caplog):
    server = rehearse("manila", "lagos", plan="open", queue_seconds=1.0)
    canonical, rows = gradient_rows()
    options = {"budget": Budget(jobs=1), "journal": tmp_path / "journal.sqlite"}
    with pool(server, device("ibmq_manila", **options), device("ibm_lagos", **options)) as fleet:
        fleet.wait(timeout=DEADLINE)
        with pytest.raises(BudgetExceededError):
            fleet.run(canonical, rows)
        fleet.stats()
    assert [job.state for job in server.jobs] == ["Completed"]
    assert "this plan has no mode 'session'" in caplog.text  # an actor's warning, heard here


def test_a_device_that_is_set_aside_has_its_session_closed(ray_cluster, rehearse):
    server = rehearse("manila", "lagos", faults=[on("http", status=503, after=4, times=200)])
    canonical, rows = gradient_rows()
    impatient = IBMTimeouts(request_seconds=30.0, retry_seconds=0.3, settle_seconds=0.1)
    names = ("ibmq_manila", "ibm_lagos")
    with pool(server, *(device(name, timeouts=impatient) for name in names)) as fleet:
        fleet.wait(timeout=DEADLINE)
        fleet.run(canonical, rows)
        fleet.run(canonical, rows)
        with pytest.raises(PoolExhaustedError, match="503"):
            fleet.run(canonical, rows)
    assert {session.state for session in server.sessions} == {"closed"}
    assert len(server.sessions) == 2


def test_sessions_that_stay_open_are_named_when_a_pool_is_closed(ray_cluster, rehearse, caplog):
    """By the program, as nobody reads what an actor logs; one of two actors cannot even try."""
    server = rehearse(
        "manila", "lagos", faults=[on("http", "PATCH /sessions/ID", status=503, times=0)]
    )
    canonical, rows = gradient_rows()
    with pool(server, device("ibmq_manila"), device("ibm_lagos")) as fleet:
        fleet.wait(timeout=DEADLINE)
        fleet.run(canonical, rows)
        stopped = fleet.stats()["actors"][1]["pid"]
        os.kill(stopped, signal.SIGSTOP)
    manila = next(one for one in server.sessions if one.backend == "ibmq_manila")
    assert f"session {manila.id} could not be closed" in caplog.text
    assert "IBMBackend('ibm_lagos', mode='session') was not closed" in caplog.text
    wait_until(lambda: not is_alive(stopped))


FORGETFUL = """
import sys
import torch
from qailab.distributed import LauncherPool, stragglers
from tests.support.contracts import answers
from tests.support.ibm import gradient_rows, patient_device

pool = LauncherPool([patient_device()])
pool.run(*gradient_rows())
sys.exit(3)
"""


def test_a_program_that_ends_without_closing_leaves_no_session(rehearse):
    server = rehearse()
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL], timeout=DEADLINE, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == 3
    assert [session.state for session in server.sessions] == ["closed"]
