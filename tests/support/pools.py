"""What the tests of real pools share."""

import ray

from qailab.distributed.connection import NAMESPACE
from tests.support.processes import DEADLINE

SMALL = {"num_cpus": 0.5}  # eight actors fit the test cluster


def actor_pids(pool):
    return [actor["pid"] for actor in pool.stats()["actors"]]


def actor_handles(pool):
    """Ray's handles of a pool's actors, in the pool's order, when all are ready."""
    named = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    handles = [ray.get_actor(name, NAMESPACE) for name in named if name.startswith("qailab-")]
    places = ray.get([handle.open.remote() for handle in handles], timeout=DEADLINE)
    by_pid = {pid: handle for (pid, _), handle in zip(places, handles, strict=True)}
    return [by_pid[pid] for pid in actor_pids(pool)]
