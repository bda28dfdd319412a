"""The injector: makes a schedule's faults happen while a pool works."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import ray

from chaos_runs.arena import Arena
from chaos_runs.processes import Process, descendant
from chaos_runs.schedule import Fault, Schedule
from chaos_runs.workload import CountingPool

_LOOK_SECONDS = 0.01
_LONGEST_ABSENCE_SECONDS = 15.0  # of a node, where the work stands still meanwhile


@dataclass(frozen=True)
class Event:
    """A fault that happened.

    Args:
        kind: what.
        share: of the rows, answered by then.
        seconds: since the run began.
        pids: the processes that were hit.
    """

    kind: str
    share: float
    seconds: float
    pids: tuple[int, ...] = ()


class Injector:
    """Watches a pool's progress, and makes faults happen.

    Args:
        schedule: what is to happen.
        pool: whom it happens to.
        arena: where.
        rows: how many rows the run has.

    Attributes:
        events: what has happened.
        stopped: the processes that were stopped, and are for the pool to end.
        seen: all processes that the pool was seen to use.
    """

    def __init__(self, schedule: Schedule, pool: CountingPool, arena: Arena, rows: int) -> None:
        self.events: list[Event] = []
        self.stopped: list[Process] = []
        self.seen: dict[int, Process] = {}
        self._todo = list(schedule.faults)
        self._pool = pool
        self._arena = arena
        self._rows = rows
        self._began = time.monotonic()

    def look(self) -> list[int]:
        """The pids of the pool's actors now, 0 where there is none."""
        pids = [actor["pid"] for actor in self._pool.stats()["actors"]]
        for pid in pids:
            if pid and (pid not in self.seen or not self.seen[pid].alive):
                process = descendant(pid)
                if process is not None:
                    self.seen[pid] = process
        return pids

    def run(self, until: Callable[[], bool]) -> None:
        """Make faults happen until the work is done.

        It runs in the main thread: to start a node, Ray sets signal handlers.

        Args:
            until: whether the work is done.
        """
        self._began = time.monotonic()
        while not until():
            pids = self.look()
            while self._todo and self._is_due(self._todo[0]):
                if not self._happens(self._todo[0], pids):
                    break
                del self._todo[0]
            time.sleep(_LOOK_SECONDS)
        for fault in self._todo:  # nodes that are to come back do so
            if fault.kind == "join":
                self._happens(fault, [])

    def _share(self) -> float:
        return self._pool.stats()["rows"] / self._rows

    def _is_due(self, fault: Fault) -> bool:
        if self._share() >= fault.at:
            return True
        since = time.monotonic() - max([self._began, *self._times("node")])
        return fault.kind == "join" and since > _LONGEST_ABSENCE_SECONDS

    def _times(self, kind: str) -> list[float]:
        return [self._began + event.seconds for event in self.events if event.kind == kind]

    def _happens(self, fault: Fault, pids: list[int]) -> bool:
        """Make a fault happen, if there is somebody it can happen to; whether it did."""
        share, seconds = self._share(), time.monotonic() - self._began
        hit = self._hit(fault, pids)
        if hit is None:
            return False
        self.events.append(Event(fault.kind, share, seconds, hit))
        return True

    def _hit(self, fault: Fault, pids: list[int]) -> tuple[int, ...] | None:
        if fault.kind == "join":
            self._arena.join()
            return ()
        if fault.kind == "node":
            self._arena.remove(fault.victim)
            return ()
        stopped = {process.pid for process in self.stopped if process.alive}
        victims = [place for place, pid in enumerate(pids) if pid and pid not in stopped]
        if not victims:
            return None
        place = victims[fault.victim % len(victims)]
        if fault.kind == "raykill":
            return (pids[place],) if _ray_kill(place) else None
        if fault.kind == "all":
            return self._signal([pid for pid in pids if pid], signal.SIGKILL)
        if fault.kind == "sigkill":
            return self._signal([pids[place]], signal.SIGKILL)
        hit = self._signal([pids[place]], signal.SIGSTOP)
        if hit is not None:
            self.stopped.append(self.seen[hit[0]])
        return hit

    def _signal(self, pids: list[int], number: signal.Signals) -> tuple[int, ...] | None:
        """Signal processes, but only those that descend from this one."""
        assert os.getpid() not in pids
        known = [self.seen[pid] for pid in pids if pid in self.seen]
        hit = tuple(process.pid for process in known if process.send(number))
        return hit or None


def _ray_kill(place: int) -> bool:
    """End the actor of a slot through Ray; whether it was there.

    The arena has one pool, whose actors are called ``<pool>-<slot>-<generation>``.
    """
    named = ray.util.list_named_actors(all_namespaces=True)
    of_slot = [actor for actor in named if actor["name"].rsplit("-", 2)[1:2] == [str(place)]]
    if not of_slot:
        return False
    latest = max(of_slot, key=lambda actor: int(actor["name"].rpartition("-")[2]))
    with suppress(ValueError):  # Ray's word for "no such actor"
        ray.kill(ray.get_actor(latest["name"], namespace=latest["namespace"]))
        return True
    return False
