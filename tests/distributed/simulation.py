"""A pool in simulated time: the real scheduler, processes that exist only in a heap of events.

Hours of faults pass in milliseconds, and the same schedule always gives the same course.
"""

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np
from qailab.backends.future import RowFuture

from qailab.backends import Backend, Outcomes, Usage
from qailab.distributed.books import Books
from qailab.distributed.jobs import Job
from qailab.distributed.options import Settings
from qailab.distributed.scheduler import Scheduler
from qailab.distributed.slots import Slot
from qailab.distributed.wire import decode_batch, encode_answers
from qailab.distributed.workers import Cancelled, Place, Reply, UnknownCircuit
from qailab.errors import QailabError, TransientBackendError

MAX_STEPS = 200_000


class FastBackend(Backend):
    """Answers at once, with numbers that depend on every angle, row and noise stream."""

    supports_exact = True
    repeatable = True
    call_seconds = 0.001

    def open(self):
        pass

    def outcomes(self, circuit, batch):
        rows = np.arange(batch.rows.start, batch.rows.stop)[:, None]
        outcome = np.arange(circuit.num_outcomes)
        phase = batch.rows.angles().sum(axis=1, keepdims=True) + rows + batch.noise.seed % 97
        weights = 1.5 + np.cos(phase * (outcome + 1) + batch.noise.step)
        return Outcomes(weights / weights.sum(axis=1, keepdims=True))

    def rows_at_once(self, circuit):
        return 64


@dataclass
class Process:
    """One simulated process."""

    slot: Slot
    generation: int
    queue: list = field(default_factory=list)
    running_since: float | None = None
    alive: bool = True
    hangs: bool = False  # what it runs never ends
    mute: bool = False  # nor does it answer to inquiries
    circuits: dict = field(default_factory=dict)
    compiled: set = field(default_factory=set)
    cancelled: set = field(default_factory=set)
    foreign: bool = False  # what runs was sent by another program
    failures: int = 0  # chunks that will fail for transient reasons


@dataclass(frozen=True)
class Fault:
    """Something that happens to a slot's process at a time.

    Kinds: kill, hang, mute (hangs as a whole), fail (the next chunk), forget (its circuits), slow,
    refuse (the next parcel as a whole), foreign (another program's chunk goes before).
    """

    at: float
    slot: int
    kind: str


class SimulatedWorkers:
    """`Workers` in simulated time."""

    def __init__(
        self,
        speeds,
        faults=(),
        start_seconds=1.0,
        unbuildable=(),
        late=None,
        delay=0.0,
        compile_seconds=0.0,
    ):
        self.now = 0.0
        self.speeds = list(speeds)  # rows a second
        self.start_seconds = start_seconds
        self.unbuildable = set(unbuildable)
        self.late = dict(late or {})  # slots whose first process takes so much longer to start
        self.delay = delay  # of every answer on its way
        self.compile_seconds = compile_seconds  # of a process's first rows of a circuit
        self.heap = []
        self.order = itertools.count()
        self.processes = {}
        self.sends = []  # (slot, number of chunks, number of rows)
        self.refusals = set()
        self.slowed = set()
        self.scheduler = None
        for fault in faults:
            self.at(fault.at, lambda fault=fault: self.strike(fault))

    def at(self, when, do):
        heapq.heappush(self.heap, (when, next(self.order), do))

    def after(self, seconds, do):
        self.at(self.now + seconds, do)

    def strike(self, fault):
        process = self.processes.get(fault.slot)
        if process is None or not process.alive:
            return
        if fault.kind == "kill":
            process.alive = False
            self.after(0.1, lambda: self.tell_lost(process))
        elif fault.kind == "fail":
            process.failures += 1
        elif fault.kind == "forget":
            process.circuits.clear()
        elif fault.kind == "slow":
            if fault.slot not in self.slowed:  # well below what is held to be a hang
                self.slowed.add(fault.slot)
                self.speeds[fault.slot] /= 10
        elif fault.kind == "refuse":
            self.refusals.add(fault.slot)
        elif fault.kind == "foreign":  # another program's chunk of 100 s comes first
            process.foreign = True
            self.after(100.0, lambda: self.own_turn(process))
        else:
            process.hangs = True
            process.mute = fault.kind == "mute"

    def own_turn(self, process):
        process.foreign = False
        if process.alive:
            self.run_next(process)

    def tell_lost(self, process):
        self.scheduler.lost(process.slot, process.generation, "ActorDiedError: struck")

    # What the scheduler asks for.

    def start(self, slot):
        process = Process(slot, slot.generation)
        self.processes[slot.index] = process
        seconds = self.start_seconds + self.late.pop(slot.index, 0.0)

        def opened():
            if not process.alive:
                return
            if slot.index in self.unbuildable:
                self.scheduler.unbuildable(slot, process.generation, "no such device")
            else:
                self.scheduler.opened(slot, process.generation, Place(slot.index + 1, "here"))

        self.after(seconds, opened)

    def send(self, slot, parcel, circuits, messages):
        process = self.processes[slot.index]
        assert process.generation == slot.generation
        assert slot.state == "ready"
        process.circuits.update(circuits)
        process.queue.append((parcel, messages))
        self.sends.append((slot.index, len(parcel.chunks), parcel.num_rows))
        if process.alive and process.running_since is None:
            self.run_next(process)

    def run_next(self, process):
        if not process.queue:
            process.running_since = None
            return
        process.running_since = self.now
        parcel, _ = process.queue[0]
        seconds = sum(
            0.001 + chunk.num_rows / self.speeds[process.slot.index]
            for place, chunk in enumerate(parcel.chunks)
            if parcel.number + place not in process.cancelled
        )
        if parcel.key not in process.compiled:
            process.compiled.add(parcel.key)
            seconds += self.compile_seconds
        self.after(seconds, lambda: self.ended(process))

    def ended(self, process):
        if not process.alive or process.hangs or process.foreign:
            return
        parcel, messages = process.queue.pop(0)
        index = process.slot.index
        if index in self.refusals:
            self.refusals.discard(index)
            error = TransientBackendError("no room")
            self.scheduler.refused(process.slot, process.generation, parcel, error)
        else:
            replies = [
                self.reply(process, parcel, place, message)
                for place, message in enumerate(messages)
            ]
            self.after(self.delay, lambda: self.arrive(process, parcel, replies))
        self.run_next(process)

    def arrive(self, process, parcel, replies):
        if process.alive:
            self.scheduler.answered(process.slot, process.generation, parcel, replies)

    def reply(self, process, parcel, place, message):
        if parcel.number + place in process.cancelled:
            return Reply(error=Cancelled("cancelled"))
        if parcel.key not in process.circuits:
            return Reply(error=UnknownCircuit("unknown"))
        if process.failures:
            process.failures -= 1
            return Reply(error=TransientBackendError("struck"), seconds=0.001)
        backend = process.slot.backend
        circuit = self.circuits[parcel.key]
        chunk = parcel.chunks[place]
        seconds = 0.001 + chunk.num_rows / self.speeds[process.slot.index]
        try:
            answers = backend.answer(circuit, decode_batch(message))
        except QailabError as error:
            return Reply(error=error, seconds=seconds)
        return Reply(encode_answers(answers), seconds=seconds, usage=Usage(1, seconds))

    def cancel(self, slot, tickets):
        self.processes[slot.index].cancelled.update(tickets)

    def inquire(self, slot):
        process = self.processes[slot.index]
        if process.alive and not process.mute:
            running = 0.0 if process.running_since is None else self.now - process.running_since
            own, others = (0.0, running) if process.foreign else (running, 0.0)
            self.after(0.001, lambda: self.scheduler.busy(slot, process.generation, own, others))

    def stop(self, slot, *, hangs=False, gently=False):
        process = self.processes.pop(slot.index, None)
        if process is not None:
            process.alive = False

    def end(self, slots):
        pass

    def free_resources(self, needs):
        return "nothing"


class SimulatedPool:
    """What a launcher takes for a pool: each evaluation runs in simulated time."""

    supports_exact = True

    def __init__(self, backends, workers, **settings):
        self.workers = workers
        self.settings = Settings(**settings)
        self.slots = [Slot(index, backend, "1 CPU") for index, backend in enumerate(backends)]
        self.books = Books(lambda: workers.now)
        self.scheduler = Scheduler(
            self.slots, workers, self.settings, self.books, lambda: workers.now
        )
        workers.scheduler = self.scheduler
        workers.circuits = {}
        self.scheduler.start()

    def validate(self, circuit, shots, num_rows=1):
        pass

    def submit(self, circuit, batch):
        future = self.begin(circuit, batch)
        self.run_until(future.done)
        return future

    def begin(self, circuit, batch):
        self.workers.circuits[circuit.key] = circuit
        future = RowFuture(on_cancel=lambda: self.scheduler.cancel(future))
        self.scheduler.add(
            lambda number, now: Job(number, circuit, batch, future, self.settings.chunk_rows, now)
        )
        self.scheduler.tick()
        return future

    def run_until(self, condition):
        for _ in range(MAX_STEPS):
            if condition():
                return
            self.step()
        raise AssertionError(f"nothing came of it by {self.workers.now:.1f} s: it hangs")

    def run_for(self, seconds):
        end = self.workers.now + seconds
        self.workers.at(end, lambda: None)
        self.run_until(lambda: self.workers.now >= end)

    def step(self):
        """To the next event, or the next tick, whichever comes first."""
        workers = self.workers
        wait = self.scheduler.seconds_to_next_tick()
        tick = np.inf if wait is None else workers.now + max(wait, 1e-4)
        assert workers.heap or np.isfinite(tick), "nothing will ever happen again"
        if workers.heap and workers.heap[0][0] <= tick:
            when, _, do = heapq.heappop(workers.heap)
            workers.now = max(workers.now, when)
            do()
        else:
            workers.now = tick
        self.scheduler.tick()
