"""A pool in simulated time: the real scheduler, processes that exist only in a heap of events.

Hours of faults pass in milliseconds, and the same schedule always gives the same course.
"""

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np

from qailab.backends import Backend, BackendTraits, Probabilities, Usage
from qailab.backends.base import RowFuture
from qailab.distributed.actors import Actor
from qailab.distributed.options import Settings
from qailab.distributed.scheduler import Scheduler
from qailab.distributed.telemetry import PoolMetrics, Progress, Telemetry
from qailab.distributed.transport import (
    BuildFailed,
    Busy,
    Cancelled,
    Lost,
    Opened,
    Replied,
    Reply,
    UnknownCircuit,
)
from qailab.distributed.wire import decode_batch, encode_answers
from qailab.errors import QailabError, TransientBackendError
from tests.support.contracts import answers

MAX_STEPS = 200_000
CALL_SECONDS = 0.001


class FastBackend(Backend):
    """Answers at once, with numbers that depend on every angle, row and noise stream."""

    traits = BackendTraits(supports_exact=True, idempotent=True, call_overhead_seconds=CALL_SECONDS)

    def open(self):
        pass

    def probabilities(self, circuit, batch, stop):
        rows = np.arange(batch.rows.start, batch.rows.stop)[:, None]
        outcome = np.arange(circuit.num_outcomes)
        phase = batch.rows.angles().sum(axis=1, keepdims=True) + rows + batch.noise.seed % 97
        weights = 1.5 + np.cos(phase * (outcome + 1) + batch.noise.step)
        return Probabilities(weights / weights.sum(axis=1, keepdims=True))

    def max_rows_per_call(self, circuit, shots):
        return 64


@dataclass
class Process:
    """One simulated process."""

    actor: Actor
    generation: int
    queue: list = field(default_factory=list)
    running_since: float | None = None
    alive: bool = True
    hangs: bool = False  # what it runs never ends
    mute: bool = False  # nor does it answer to inquiries
    circuits: set = field(default_factory=set)
    compiled: set = field(default_factory=set)
    cancelled: set = field(default_factory=set)
    foreign: bool = False  # what runs was sent by another program
    failures: int = 0  # chunks that will fail for transient reasons


@dataclass(frozen=True)
class Fault:
    """Something that happens to an actor's process at a time.

    Kinds: kill, hang, mute (hangs as a whole), fail (the next chunk), forget (its circuits), slow,
    foreign (another program's chunk goes before).
    """

    at: float
    actor: int
    kind: str


class SimulatedTransport:
    """`Transport` in simulated time."""

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
        self.late = dict(late or {})  # actors whose first process takes so much longer to start
        self.delay = delay  # of every answer on its way
        self.compile_seconds = compile_seconds  # of a process's first rows of a circuit
        self.heap = []
        self.order = itertools.count()
        self.processes = {}
        self.sends = []  # (actor, rows, calls)
        self.slowed = set()
        self.circuits = {}
        self.report = None  # takes an event
        self.free = "nothing"  # that the machines have left
        self.room = False
        for fault in faults:
            self.at(fault.at, lambda fault=fault: self.strike(fault))

    def at(self, when, do):
        heapq.heappush(self.heap, (when, next(self.order), do))

    def after(self, seconds, do):
        self.at(self.now + seconds, do)

    def strike(self, fault):
        process = self.processes.get(fault.actor)
        if process is None or not process.alive:
            return
        if fault.kind == "kill":
            self.kill(process, 0.1)
        elif fault.kind == "fail":
            process.failures += 1
        elif fault.kind == "forget":
            process.circuits.clear()
        elif fault.kind == "slow":
            if fault.actor not in self.slowed:  # well below what is taken for a hang
                self.slowed.add(fault.actor)
                self.speeds[fault.actor] /= 10
        elif fault.kind == "foreign":  # another program's chunk of 100 s comes first
            process.foreign = True
            self.after(100.0, lambda: self.own_turn(process))
        else:
            process.hangs = True
            process.mute = fault.kind == "mute"

    def kill(self, process, notice=0.0):
        process.alive = False
        lost = Lost(process.actor.index, process.generation, "ActorDiedError: struck")
        self.after(notice, lambda: self.report(lost))

    def own_turn(self, process):
        process.foreign = False
        if process.alive:
            self.run_next(process)

    # What the scheduler asks for.

    def start(self, actor):
        process = Process(actor, actor.health.generation)
        self.processes[actor.index] = process
        seconds = self.start_seconds + self.late.pop(actor.index, 0.0)

        def opened():
            if not process.alive:
                return
            about = actor.index, process.generation
            if actor.index in self.unbuildable:
                self.report(BuildFailed(*about, "no such device"))
            else:
                self.report(Opened(*about, actor.index + 1, "here"))

        self.after(seconds, opened)

    def send(self, actor, call):
        process = self.processes[actor.index]
        assert process.generation == actor.health.generation
        assert actor.health.state == "ready"
        if call.circuit is not None:
            process.circuits.add(call.key)
        batch = decode_batch(call.message)
        calls = -(-batch.num_rows // (call.rows_per_call or batch.num_rows))
        process.queue.append((call, batch, calls))
        self.sends.append((actor.index, batch.num_rows, calls))
        if process.alive and process.running_since is None:
            self.run_next(process)

    def run_next(self, process):
        if not process.queue:
            process.running_since = None
            return
        process.running_since = self.now
        call, batch, calls = process.queue[0]
        seconds = self.seconds(process, batch, calls)
        if call.ticket in process.cancelled:
            seconds = 0.0
        elif call.key not in process.compiled:
            process.compiled.add(call.key)
            seconds += self.compile_seconds
        self.after(seconds, lambda: self.ended(process))

    def seconds(self, process, batch, calls):
        return calls * CALL_SECONDS + batch.num_rows / self.speeds[process.actor.index]

    def ended(self, process):
        if not process.alive or process.hangs or process.foreign:
            return
        call, batch, calls = process.queue.pop(0)
        reply = self.reply(process, call, batch, calls)
        event = Replied(process.actor.index, process.generation, call.ticket, reply)
        self.after(self.delay, lambda: process.alive and self.report(event))
        self.run_next(process)

    def reply(self, process, call, batch, calls):
        if call.ticket in process.cancelled:
            return Reply(error=Cancelled("cancelled"))
        if call.key not in process.circuits:
            return Reply(error=UnknownCircuit("unknown"))
        if process.failures:
            process.failures -= 1
            return Reply(error=TransientBackendError("struck"), seconds=CALL_SECONDS)
        seconds = self.seconds(process, batch, calls)
        try:
            found = answers(process.actor.backend, self.circuits[call.key], batch)
        except QailabError as error:
            return Reply(error=error, seconds=seconds)
        return Reply(encode_answers(found), seconds=seconds, usage=Usage(1, seconds))

    def cancel(self, actor, tickets):
        self.processes[actor.index].cancelled.update(tickets)

    def inquire(self, actor):
        process = self.processes[actor.index]
        if process.alive and not process.mute:
            running = 0.0 if process.running_since is None else self.now - process.running_since
            own, others = (0.0, running) if process.foreign else (running, 0.0)
            event = Busy(actor.index, process.generation, own, others)
            self.after(0.001, lambda: self.report(event))

    def stop(self, actor, *, hangs=False, gently=False):
        process = self.processes.pop(actor.index, None)
        if process is not None:
            process.alive = False

    def close(self, actors):
        pass

    def has_room(self, actor):
        return self.room

    def free_resources(self, needs):
        return self.free


class SimulatedPool:
    """What a launcher takes for a pool: each evaluation runs in simulated time."""

    supports_exact = True
    noiseless = True

    def __init__(self, backends, transport, **settings):
        self.transport = transport
        self.actors = [Actor(index, backend, "1 CPU") for index, backend in enumerate(backends)]
        self.telemetry = Telemetry(self.actors, 0.0, PoolMetrics("simulated"), Progress())
        self.scheduler = Scheduler(self.actors, transport, Settings(**settings), self.telemetry)
        transport.report = lambda event: self.scheduler.handle(event, transport.now)
        self.scheduler.start(0.0)

    def validate(self, circuit, shots):
        pass

    def submit(self, circuit, batch):
        future = self.begin(circuit, batch)
        self.run_until(future.done)
        return future

    def begin(self, circuit, batch):
        self.transport.circuits[circuit.key] = circuit
        future = RowFuture(on_cancel=lambda: self.scheduler.cancel(future))
        self.scheduler.add(circuit, batch, future, self.transport.now)
        self.scheduler.tick(self.transport.now)
        return future

    def stats(self):
        return self.telemetry.stats(self.transport.now)

    def state(self, actor):
        return self.stats()["actors"][actor]["state"]

    def replaced(self):
        return [actor["replaced"] for actor in self.stats()["actors"]]

    def run_until(self, condition):
        for _ in range(MAX_STEPS):
            if condition():
                return
            self.step()
        raise AssertionError(f"nothing came of it by {self.transport.now:.1f} s: it hangs")

    def run_for(self, seconds):
        end = self.transport.now + seconds
        self.transport.at(end, lambda: None)
        self.run_until(lambda: self.transport.now >= end)

    def step(self):
        """To the next event, or the next tick, whichever comes first."""
        transport = self.transport
        wait = self.scheduler.seconds_to_next_tick(transport.now)
        tick = transport.now + max(wait, 1e-4)
        assert transport.heap or np.isfinite(tick), "nothing will ever happen again"
        if transport.heap and transport.heap[0][0] <= tick:
            when, _, do = heapq.heappop(transport.heap)
            transport.now = max(transport.now, when)
            do()
        else:
            transport.now = tick
        self.scheduler.tick(transport.now)
