"""What the tests of real pools share."""

import os
import time

import ray

from qailab.distributed.connection import NAMESPACE

DEADLINE = 120
SMALL = {"num_cpus": 0.5}  # eight actors fit the test cluster


def wait_until(condition, what="it"):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        time.sleep(0.05)


def actor_pids(pool):
    return [actor["pid"] for actor in pool.stats()["actors"]]


def actor_handles(pool):
    """Ray's handles of a pool's actors, in the pool's order, when all are ready."""
    named = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    handles = [ray.get_actor(name, NAMESPACE) for name in named if name.startswith("qailab-")]
    places = ray.get([handle.open.remote() for handle in handles], timeout=DEADLINE)
    by_pid = {pid: handle for (pid, _), handle in zip(places, handles, strict=True)}
    return [by_pid[pid] for pid in actor_pids(pool)]


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid):
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                parent = int(stat.read().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found += [int(entry), *children_of(int(entry))]
    return found


def marked(mark):
    """Processes with a certain text in the environment that they were started with."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environment:
                if mark.encode() in environment.read() and is_alive(pid):
                    found.append(pid)
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found
