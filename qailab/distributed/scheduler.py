"""The scheduler: which rows go where, and what becomes of them.

It knows no Ray and no clock: it is told events and the time, and waits for nothing, so that it runs
in any thread, or in simulated time. Calls go down, and decisions come back up::

    dispatcher (thread, clock) --add, handle, tick--> Scheduler --told what happens--> Telemetry
                                                        |
        +------------------+---------------------+------+------------+------------------+
        v                  v                     v                   v                  v
    Evaluation       ActorSupervisor       HangDetector     speculative_copies       Transport
    rows <-> chunks  start, replace,       whom to ask,     which chunk to which     send, cancel,
    and answers      quarantine            who hangs        idle actor as well       ask; events

Work is pulled: an actor gets its next chunk when it has room for it. A chunk that comes back
without answers is retried, or ends its evaluation: `decide` says which.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qailab.backends.base import MAX_TRANSIENT_FAULTS, RowFuture
from qailab.distributed import transport as events
from qailab.distributed.actors import Actor, Chunk, Crashes, Sent
from qailab.distributed.evaluation import Evaluation
from qailab.distributed.options import Settings
from qailab.distributed.stragglers import HangDetector, speculative_copies
from qailab.distributed.supervisor import ActorSupervisor
from qailab.distributed.telemetry import Depth, Telemetry
from qailab.distributed.transport import Call, Cancelled, NoRoom, Reply, Transport, UnknownCircuit
from qailab.distributed.wire import decode_answers, encode_batch
from qailab.errors import (
    BudgetExceededError,
    EvaluationError,
    JournalError,
    PoolClosedError,
    PoolError,
    QailabError,
    TransientBackendError,
    plain,
)
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import RowBatch

logger = logging.getLogger("qailab.distributed")
backend_logger = logging.getLogger("qailab.backends")

MAX_CRASHES = 4
"""Actors that may be lost over the same rows before the rows are taken to be the cause; fewer than
an actor may lose processes, so that they do not take the pool down."""
BURST_SECONDS = 2.0
"""Losses so soon after one another, over different rows, have a common cause, such as a lost node
or a full machine, and count as crashes of none of them."""
CHUNKS_IN_FLIGHT = 2  # one runs, and the next is at hand: that hides the way there and back
_TICK_SECONDS = 1.0  # how often waiting work is looked at when nothing happens
_STRAGGLER_TICK_SECONDS = 0.05  # the same where idle actors may help out
_COPY_INTERVAL = 0.01  # looking at all that is in flight after every answer would cost more


@dataclass(frozen=True)
class Retry:
    """The rows must run again."""


@dataclass(frozen=True)
class Fail:
    """The evaluation fails, ``at_once`` or when nothing of it is in flight any more."""

    error: QailabError
    at_once: bool = True


def decide(
    actor: Actor, chunk: Chunk, error: QailabError, trace: str, num_rows: int
) -> Retry | Fail:
    """Tell rows that are at fault from places that are; ``num_rows``: of the evaluation."""
    if isinstance(error, TransientBackendError) and chunk.faults >= MAX_TRANSIENT_FAULTS:
        text = f"{chunk} failed {chunk.faults} times, last on {actor.backend!r}: {error}"
        return Fail(EvaluationError(text))
    if isinstance(error, Cancelled | UnknownCircuit | TransientBackendError):
        return Retry()
    where = f"(on {actor.backend!r}, actor {actor.index}, {chunk} of {num_rows})"
    shown = "" if isinstance(error, BudgetExceededError | JournalError) else trace
    told = plain(error, f"{error}\n{where}\n{shown}".rstrip())
    # Other jobs of a budget are sent and paid for: they may end.
    return Fail(told, at_once=not isinstance(error, BudgetExceededError))


class Scheduler:
    """Runs evaluations on actors. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        actors: Sequence[Actor],
        transport: Transport,
        settings: Settings,
        telemetry: Telemetry,
    ) -> None:
        self._actors = tuple(actors)
        self._transport = transport
        self._settings = settings
        self._telemetry = telemetry
        self._supervisor = ActorSupervisor(actors, transport, settings.start_timeout)
        self._hangs = HangDetector(actors, settings.chunk_timeout)
        self._evaluations: dict[int, Evaluation] = {}  # the one that waits longest first
        self._next_evaluation = self._next_ticket = 0
        self._next_copies = 0.0
        # When an actor was lost, which, and what that was counted as a crash of.
        self._last_loss: tuple[float, Actor | None, set[Crashes]] = (float("-inf"), None, set())

    def start(self, now: float) -> None:
        """Start all actors."""
        for actor in self._actors:
            self._supervisor.start(actor, now)

    def add(
        self, circuit: CanonicalCircuit, batch: RowBatch, future: RowFuture, now: float
    ) -> None:
        """Take on a batch of rows; its answers go to the future."""
        evaluation = Evaluation(self._next_evaluation, circuit, batch, future, self._settings)
        self._next_evaluation += 1
        if evaluation.complete:
            evaluation.finish()
            return
        self._supervisor.work_comes(now)
        self._evaluations[evaluation.number] = evaluation
        self._telemetry.began(evaluation.number, batch.num_rows, now)

    def cancel(self, future: RowFuture) -> None:
        """Stop the evaluation with this future, also what is in flight."""
        for evaluation in [each for each in self._evaluations.values() if each.future is future]:
            self._drop(evaluation)

    def fail_all(self, error: QailabError) -> None:
        """Deliver an error to everybody who waits."""
        for evaluation in list(self._evaluations.values()):
            self._fail(evaluation, error)

    def end(self) -> None:
        """Fail what is unfinished and let go of all actors."""
        self.fail_all(PoolClosedError("the pool was closed while rows were being evaluated"))
        self._supervisor.end()

    def too_few(self, count: int, waited: float, most: float | None) -> QailabError | None:
        """Return why ``count`` actors will not come, or have not in the seconds that were waited.

        ``most`` is how many may be; None for what work waits for a first actor.
        """
        in_time = self._supervisor.may_start(waited) if most is None else waited <= most
        late = None if in_time else self._supervisor.starting_error(count, waited)
        return self._supervisor.too_few(count) or late

    def depth(self) -> Depth:
        """Return how things stand."""
        return Depth(
            waiting_rows=sum(each.waiting_rows for each in self._evaluations.values()),
            chunks_in_flight=sum(len(actor.in_flight) for actor in self._actors),
            actors_ready=sum(actor.is_ready() for actor in self._actors),
            actors=len(self._actors),
        )

    # Time.

    def tick(self, now: float) -> None:
        """Do what is due now, and hand out work."""
        error = self._supervisor.tick(now, waiting=bool(self._evaluations))
        if error is not None:
            rows = sum(each.batch.num_rows for each in self._evaluations.values())
            done = sum(each.answered for each in self._evaluations.values())
            text = f"{error}\n{done} of {rows} rows were done."
            if not isinstance(error, PoolClosedError):
                text += " Remove the cause and submit again: the pool starts its actors anew"
            self.fail_all(type(error)(text))
        ask, hung = self._hangs.look(now)
        for actor in ask:
            self._transport.inquire(actor)
        for actor in hung:
            self._lose_hanging(actor, now - actor.in_flight.running_since, now)
        if self._evaluations:
            self._assign(now)

    def seconds_to_next_tick(self, now: float) -> float:
        """Return when `tick` has something to do although nothing happens; infinity if never."""
        due = self._supervisor.next_start(now) - now
        if self._evaluations:
            idle = any(actor.is_ready() and not len(actor.in_flight) for actor in self._actors)
            due = min(due, _STRAGGLER_TICK_SECONDS if idle else _TICK_SECONDS)
        return max(due, 0.0)

    # What happens to actors.

    def handle(self, event: events.Event, now: float) -> None:
        """React to an event of the transport."""
        actor = self._actors[event.actor]
        if event.generation != actor.health.generation:
            return  # of a process that was given up meanwhile
        match event:
            case events.Opened():
                self._supervisor.opened(actor, event)
                self._telemetry.opened(actor, now)
            case events.BuildFailed():
                self._supervisor.build_failed(actor, event.reason, now)
            case events.Missing():
                self._supervisor.missing(actor, now)
            case events.Lost():
                self._lose(actor, event.reason, now)
            case events.Busy():
                if self._hangs.busy(actor, event.seconds, event.others, now):
                    self._lose_hanging(actor, max(event.seconds, event.others), now)
            case events.Replied():
                self._take_in(actor, actor.in_flight.remove(event.ticket, now), event.reply, now)

    def _take_in(self, actor: Actor, sent: Sent, reply: Reply, now: float) -> None:
        chunk = sent.chunk
        chunk.copies -= 1
        self._telemetry.replied(actor, chunk, reply, now)
        for text in reply.warnings:
            backend_logger.warning("%s [actor %d]", text, actor.index)
        if reply.answer is not None:
            actor.throughput.learn(sent.pace, sent.calls, chunk.num_rows, reply.seconds)
            self._supervisor.answered(actor)
        evaluation = self._evaluations.get(chunk.evaluation)
        if evaluation is None or chunk.done:
            return  # nobody waits for it
        evaluation.future.usage += reply.usage
        if reply.answer is not None:
            self._accept(actor, evaluation, sent, reply)
        else:
            assert reply.error is not None
            self._settle(actor, evaluation, chunk, reply.error, reply.traceback, now)

    def _accept(self, actor: Actor, evaluation: Evaluation, sent: Sent, reply: Reply) -> None:
        chunk = sent.chunk
        try:
            evaluation.accept(chunk, decode_answers(reply.answer or b"", chunk.num_rows))
        except ValueError as error:
            text = f"{actor.backend!r} answered in another form: {error}"
            self._fail(evaluation, EvaluationError(text))
            return
        self._telemetry.accepted(actor, chunk, sent.calls, reply.seconds)
        if chunk.copies:
            self._cancel(lambda other: other.chunk is chunk)
        if evaluation.complete:
            self._drop(evaluation)
            evaluation.finish()
        else:
            self._fail_if_nothing_is_left(evaluation)

    def _settle(
        self, actor: Actor, evaluation: Evaluation, chunk: Chunk, error: QailabError,
        trace: str, now: float,
    ) -> None:  # fmt: skip
        """Carry out what an error means for a chunk, its evaluation and its actor."""
        transient = isinstance(error, TransientBackendError)
        chunk.faults += transient
        decision = decide(actor, chunk, error, trace, evaluation.batch.num_rows)
        if isinstance(decision, Retry):
            if not chunk.copies:  # else another actor still has it
                evaluation.give_back(chunk, faulty=transient)
            if isinstance(error, UnknownCircuit):
                actor.in_flight.forget_circuit(evaluation.circuit.key)
        elif decision.at_once:
            self._fail(evaluation, decision.error)
        else:
            evaluation.ends_with = decision.error
        if transient:
            logger.info("%s of %s are run again: %s", chunk, actor, error)
            self._telemetry.retried(actor, "transient")
            if self._supervisor.fault(actor, str(error), now, full=isinstance(error, NoRoom)):
                self._take_back(actor, now, crashed=False)
        self._fail_if_nothing_is_left(evaluation)

    def _lose_hanging(self, actor: Actor, seconds: float, now: float) -> None:
        self._lose(actor, f"it hangs: no answer for {seconds:.1f} s", now, hangs=True)

    def _lose(self, actor: Actor, reason: str, now: float, *, hangs: bool = False) -> None:
        self._telemetry.lost(actor, reason, now)
        self._supervisor.lose(actor, reason, now, hangs=hangs)
        self._take_back(actor, now, crashed=True)

    def _take_back(self, actor: Actor, now: float, *, crashed: bool) -> None:
        """Give what an actor had to others, unless its rows seem to be what kills actors."""
        self._telemetry.retired(actor, now)
        actor.throughput.start_anew()
        traits = actor.backend.traits
        chunks = [sent.chunk for sent in actor.in_flight.take_all()]
        ran = chunks[: traits.max_concurrency] if crashed else []  # the others only waited
        if crashed:
            self._charge(actor, {chunk.crashes for chunk in ran}, now)
        for chunk in chunks:
            chunk.copies -= 1
            chunk.faults += chunk in ran
            evaluation = self._evaluations.get(chunk.evaluation)
            if evaluation is None or chunk.done or chunk.copies:
                continue
            self._telemetry.retried(actor, "lost")
            if chunk.crashes.count >= MAX_CRASHES or chunk.faults >= MAX_TRANSIENT_FAULTS:
                self._fail(evaluation, _deadly(actor, chunk))
                continue
            halved = chunk in ran and traits.idempotent  # small chunks are hit less often
            for part in chunk.halves(evaluation.batch.rows.group) if halved else [chunk]:
                evaluation.give_back(part)

    def _charge(self, actor: Actor, ran: set[Crashes], now: float) -> None:
        """Hold a loss against the rows that ran, as far as one can tell by now.

        Several actors that are lost at once, over different rows, have a common cause; then the
        first loss is not held against its rows any more.
        """
        when, last, charged = self._last_loss
        if now - when <= BURST_SECONDS and actor is not last and not ran & charged:
            for crashes in charged:
                crashes.count -= crashes.count > 0
            ran = set()
        for crashes in ran:
            crashes.count += 1
        self._last_loss = now, actor, ran

    # Handing out.

    def _assign(self, now: float) -> None:
        """Hand out chunks: one to each actor, then the second to each, and so on."""
        sharing = self._supervisor.sharing()
        ready = _queues_in_turn([a for a in sharing if self._supervisor.can_work(a, now)])
        most = {actor.index: self._most_chunks(actor) for actor in ready}
        for depth in range(max(most.values(), default=0)):
            for actor in ready:
                has_room = len(actor.in_flight) <= depth < most[actor.index]
                if not has_room or not self._supervisor.can_work(actor, now):
                    continue
                taken = self._next_chunk(actor, sharing)
                if taken is None:
                    self._copy_stragglers(ready, now)
                    return
                self._send(actor, *taken, now)

    def _most_chunks(self, actor: Actor) -> int:
        if self._settings.max_in_flight != "auto":
            return self._settings.max_in_flight
        return max(CHUNKS_IN_FLIGHT, actor.backend.traits.max_concurrency)

    def _next_chunk(self, actor: Actor, sharing: list[Actor]) -> tuple[Evaluation, Chunk] | None:
        """Cut the next chunk for an actor, from each evaluation in turn."""
        for number in list(self._evaluations):
            evaluation = self._evaluations.pop(number)
            self._evaluations[number] = evaluation  # to the end of the line
            chunk = evaluation.take(actor, sharing)
            if chunk is not None:
                return evaluation, chunk
        return None

    def _copy_stragglers(self, ready: list[Actor], now: float) -> None:
        """Everything is handed out: let idle actors answer what others would take longer for."""
        idle = [a for a in ready if not len(a.in_flight) and self._supervisor.can_work(a, now)]
        if not idle or now < self._next_copies:
            return
        self._next_copies = now + _COPY_INTERVAL
        for actor, sent in list(speculative_copies(idle, ready, now)):
            evaluation = self._evaluations.get(sent.chunk.evaluation)
            if evaluation is not None:
                sent.chunk.speculative += 1
                self._send(actor, evaluation, sent.chunk, now)

    def _send(self, actor: Actor, evaluation: Evaluation, chunk: Chunk, now: float) -> None:
        key = evaluation.circuit.key
        part = evaluation.batch.part(chunk.start, chunk.stop)
        part = replace(part, resent=chunk.sent > 0, evaluation=evaluation.name)
        sent = Sent(self._next_ticket, chunk, evaluation.pace, evaluation.calls(chunk))
        self._next_ticket += 1
        try:
            message = encode_batch(part)
            circuit = None if actor.in_flight.knows(key) else evaluation.pickled_circuit
            call = Call(sent.ticket, key, circuit, message, evaluation.rows_per_call)
            self._transport.send(actor, call)
        except PoolError as error:
            self._fail(evaluation, error)
        except TransientBackendError as error:
            self._settle(actor, evaluation, chunk, error, "", now)
        except Exception as error:  # rows without a form on the wire, say
            logger.exception("%s could not be sent", chunk)
            self._fail(evaluation, EvaluationError(f"{chunk} could not be sent: {error!r}"))
        else:
            actor.in_flight.note_circuit(key)
            actor.in_flight.add(sent, now)
            self._telemetry.sent(actor, chunk, len(message), now)
            chunk.copies += 1
            chunk.sent += 1

    # Ending.

    def _fail(self, evaluation: Evaluation, error: BaseException) -> None:
        evaluation.finish(error)
        self._drop(evaluation)

    def _drop(self, evaluation: Evaluation) -> None:
        """Forget an evaluation, and stop what is in flight of it."""
        if self._evaluations.pop(evaluation.number, None) is not None:
            self._telemetry.ended(evaluation.number)
            self._cancel(lambda sent: sent.chunk.evaluation == evaluation.number)

    def _cancel(self, unwanted: Callable[[Sent], bool]) -> None:
        for actor in self._actors:
            tickets = [sent.ticket for sent in actor.in_flight if unwanted(sent)]
            if tickets:
                self._transport.cancel(actor, tickets)

    def _fail_if_nothing_is_left(self, evaluation: Evaluation) -> None:
        """End an evaluation that must fail, once nothing that was paid for is in flight."""
        number = evaluation.number
        sent = [sent for actor in self._actors for sent in actor.in_flight]
        if evaluation.ends_with is not None and not any(
            each.chunk.evaluation == number and not each.chunk.done for each in sent
        ):
            self._fail(evaluation, evaluation.ends_with)


def _queues_in_turn(actors: list[Actor]) -> list[Actor]:
    """Order actors so that each device comes once before one comes a second time."""
    seen: dict[object, int] = {}
    turns = {}
    for actor in actors:
        queue = actor.backend.traits.queue_name or actor.index
        turns[actor.index] = seen[queue] = seen.get(queue, -1) + 1
    return sorted(actors, key=lambda actor: turns[actor.index])


def _deadly(actor: Actor, chunk: Chunk) -> EvaluationError:
    times = chunk.crashes.count if chunk.crashes.count >= MAX_CRASHES else chunk.faults
    return EvaluationError(
        f"{chunk} lost their actor {times} times, last on {actor.backend!r}: "
        f"{actor.health.last_error}; if actors run out of memory, use a smaller circuit or "
        "chunk_rows; if they only need longer, a larger chunk_timeout"
    )
