"""Lanes in simulated time: the real schedule, and threads that exist only in a heap of events."""

import hashlib
import heapq
import itertools
import json
from collections import Counter
from dataclasses import dataclass, field

from qailab.training.schedule import Task

MAX_EVENTS = 20_000


def gradient_of(weights, task):
    """Tells all weights and tasks apart, as no real gradient could."""
    return hashlib.sha256(f"{weights} {task.batch} {task.attempt}".encode()).hexdigest()


@dataclass
class Run:
    """The owner of the weights, and lanes whose every batch takes a time of its own.

    ``fates`` gives each job's fate in turn: seconds, and whether it ``ends``, is ``lost`` (with its
    lane for a while), or ``hangs`` (its batch is doubted after 5 s, and its gradient comes after
    50 s all the same).
    """

    schedule: object
    lanes: int
    fates: object
    kill_after: int | None = None  # events after which the driver dies and goes on from its state
    now: float = 0.0
    weights: str = "start"
    log: list = field(default_factory=list)
    computed: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.snapshots, self.results, self.heap = {0: self.weights}, {}, []
        self.number = itertools.count()

    def at(self, seconds, what, *args):
        heapq.heappush(self.heap, (self.now + seconds, next(self.number), what, args))

    def take(self, lane):
        task = self.schedule.take()
        if task is None:
            self.at(0.25, self.take, lane)
            return
        assert task.version <= self.schedule.version
        self.computed[task] += 1
        gradient = gradient_of(self.snapshots[task.version], task)
        seconds, fate = next(self.fates)
        if fate == "lost":
            self.at(seconds, self.schedule.lose, task)
            self.at(seconds + 3.0, self.take, lane)
            return
        if fate == "hangs":
            self.at(5.0, self.schedule.doubt, task)
            seconds = 50.0
        self.at(seconds, self.arrive, lane, task, gradient)

    def arrive(self, lane, task, gradient):
        if not self.schedule.is_done(task.batch):
            self.results[task] = gradient
        self.schedule.arrive(task, lane, weight=1.0 - lane / 16)
        while (entry := self.schedule.next_entry()) is not None:
            self.log.append(entry)
            if entry.applied:
                found = self.results.pop(Task(entry.batch, entry.attempt, entry.version))
                step = f"{self.weights} {found} {entry.scale}"
                self.weights = hashlib.sha256(step.encode()).hexdigest()
                self.snapshots[self.schedule.version] = self.weights
        self.take(lane)

    def run(self, restore=None):
        for lane in range(self.lanes):
            self.take(lane)
        for event in range(MAX_EVENTS):
            if self.schedule.is_over:
                return self
            if event == self.kill_after:
                self.die(restore)
            self.now, _, what, args = heapq.heappop(self.heap)
            what(*args)
        raise AssertionError("it hangs")

    def die(self, restore):
        """What is saved as plain data is all that is left."""
        state = json.loads(json.dumps(self.schedule.state()))
        needed = {v: self.snapshots[v] for v in self.schedule.needed | {self.schedule.version}}
        self.schedule = restore()
        self.schedule.restore(state)
        self.snapshots, self.results, self.heap = needed, {}, []
        for lane in range(self.lanes):
            self.take(lane)
