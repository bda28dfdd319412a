"""`RayState`: what all processes of a cluster agree on, also after its actor was killed."""

import os
import signal
import time

import pytest
import ray

from qailab.backends import AerBackend
from qailab.distributed import LauncherPool
from qailab.distributed.connection import NAMESPACE
from qailab.distributed.shared_state import STATE_NAME, RayState, StateActor
from tests.support.pools import SMALL
from tests.support.processes import DEADLINE, is_alive, wait_until

pytestmark = pytest.mark.usefixtures("ray_cluster")


def pid_of(actor):
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=DEADLINE)


def test_a_value_changes_only_for_who_has_read_it():
    state = RayState("qailab-a")
    assert state.get("a/session") == (0, None)
    assert state.put("a/session", 0, b"opening")
    assert not state.put("a/session", 0, b"opening")
    assert RayState("qailab-b").get("a/session") == (1, b"opening")  # names are the cluster's
    assert state.put("a/session", 1, b"open")
    actor = ray.get_actor(STATE_NAME, NAMESPACE)
    again = [actor.put.remote("a/lost", 0, b"1", "this call") for _ in range(2)]
    assert ray.get(again, timeout=DEADLINE) == [True, True]  # as the first answer was lost
    assert state.get("a/session") == (2, b"open")


def test_it_is_killed_while_many_count_and_nothing_is_lost_or_doubled():
    @ray.remote(num_cpus=0)
    def count(state, times):
        for i in range(times):
            while True:
                version, value = state.get("count")
                entries = (value or b"") + f"{os.getpid()}:{i} ".encode()
                if state.put("count", version, entries):
                    break
        return os.getpid()

    state = RayState("qailab-count")
    state.get("count")
    counting = [count.remote(state, 40) for _ in range(3)]
    actor = ray.get_actor(STATE_NAME, NAMESPACE)

    killed = []
    for kills in (1, 2):
        wait_until(lambda: state.get("count")[0] > 20 * kills)  # noqa: B023
        killed.append(pid_of(actor))
        os.kill(killed[-1], signal.SIGKILL)
    pids = ray.get(counting, timeout=DEADLINE)
    version, value = state.get("count")
    assert version == 120
    assert sorted(value.split()) == sorted(f"{p}:{i}".encode() for p in pids for i in range(40))
    assert pid_of(actor) not in killed
    assert len(set(killed)) == 2


class Agreeing(AerBackend):
    """Takes the next number of its pool when it is opened."""

    def share(self, state):
        self._live_state = state

    def open(self):
        super().open()
        name, version = f"{self._live_state.group}/number", 0
        while not self._live_state.put(name, version, str(version + 1).encode()):
            version, _ = self._live_state.get(name)


def test_backends_in_actors_share_it():
    with LauncherPool([Agreeing()] * 3, actor_options=SMALL) as pool:
        pool.wait()
        assert RayState("any").get(f"{pool._name}/number") == (3, b"3")


def test_it_ends_after_the_last_pool_and_its_values_stay(tmp_path):
    def start():
        return ray.remote(num_cpus=0)(StateActor).remote(str(tmp_path / "state.json"), 0.5)

    with LauncherPool([AerBackend()], actor_options=SMALL):
        actor = start()
        assert ray.get(actor.put.remote("budget", 0, b"7", ""), timeout=DEADLINE)
        time.sleep(2.0)
        assert ray.get(actor.get.remote("budget"), timeout=DEADLINE) == (1, b"7")
    pid = pid_of(actor)
    wait_until(lambda: not is_alive(pid))
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.get.remote("budget"), timeout=DEADLINE)
    assert ray.get(start().get.remote("budget"), timeout=DEADLINE) == (1, b"7")
