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

Work is pulled: an actor gets its next chunk when it has room for it. What comes back is settled by
`decide`: the answers are accepted, the chunk is retried, the evaluation fails, or nobody cares.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qailab.backends.base import MAX_TRANSIENT_FAULTS, RowFuture
from qailab.distributed import transport as events
from qailab.distributed.actors import Actor, Chunk, Sent
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
CHUNKS_IN_FLIGHT = (
    2  # an actor runs one, and has the next at hand: that hides the way there and back
)
_TICK_SECONDS = 1.0  # how often waiting work is looked at when nothing happens
_STRAGGLER_TICK_SECONDS = 0.05  # the same where idle actors may help out
_COPY_INTERVAL = 0.01  # looking at all that is in flight after every answer would cost more


@dataclass(frozen=True)
class Retry:
    """The rows must run again; ``fault``: that is held against the actor."""

    fault: bool


@dataclass(frozen=True)
class Fail:
    """The evaluation fails; ``now``, or once nothing that was paid for is in flight."""

    error: QailabError
    now: bool = True


def decide(
    actor: Actor, chunk: Chunk, error: QailabError, trace: str, num_rows: int
) -> Retry | Fail:
    """Tell rows that are at fault from places that are.

    Args:
        actor: where it happened.
        chunk: the chunk, with this fault counted.
        error: what happened.
        trace: where, as text.
        num_rows: rows of the whole evaluation.
    """
    rows = f"rows {chunk.start} to {chunk.stop - 1}"
    if isinstance(error, Cancelled | UnknownCircuit):
        return Retry(fault=False)
    if isinstance(error, TransientBackendError):
        if chunk.faults < MAX_TRANSIENT_FAULTS:
            return Retry(fault=True)
        text = f"{rows} failed {chunk.faults} times, last on {actor.backend!r}: {error}"
        return Fail(EvaluationError(text))
    where = f"(on {actor.backend!r}, actor {actor.index}, {rows} of {num_rows})"
    shown = "" if isinstance(error, BudgetExceededError | JournalError) else trace
    told = plain(error, f"{error}\n{where}\n{shown}".rstrip())
    # Other jobs of a budget are sent and paid for: they may end.
    return Fail(told, now=not isinstance(error, BudgetExceededError))


class Scheduler:
    """Runs evaluations on actors. Not thread-safe: one thread calls it.

    Args:
        actors: where rows run.
        transport: the processes behind the actors.
        settings: how to schedule.
        telemetry: is told what happens.
    """

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
        self._next_evaluation = 0
        self._next_ticket = 0
        self._next_copies = 0.0
        self._last_loss: tuple[float, list[Chunk]] = (float("-inf"), [])  # when, and what ran
        self._charged: list[Chunk] = []  # chunks that it counts as a crash of

    # What others want.

    def start(self, now: float) -> None:
        """Start all actors."""
        for actor in self._actors:
            self._supervisor.start(actor, now)

    def add(
        self, circuit: CanonicalCircuit, batch: RowBatch, future: RowFuture, now: float
    ) -> None:
        """Take on a batch of rows; its answers go to the future."""
        number = self._next_evaluation
        evaluation = Evaluation(number, circuit, batch, future, self._settings)
        self._next_evaluation += 1
        if evaluation.complete:
            evaluation.finish()
            return
        self._supervisor.work_comes(now)
        self._evaluations[number] = evaluation
        self._telemetry.began(number, batch.num_rows, now)

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

    def too_few(self, count: int, waited: float | None) -> QailabError | None:
        """Return the error of those who wait for actors; None if they may come.

        Args:
            count: how many are waited for.
            waited: the seconds after which nobody waits any more; None if they are not over.
        """
        if (error := self._supervisor.too_few(count)) is not None or waited is None:
            return error
        return self._supervisor.starting_error(count, waited)

    def depth(self) -> Depth:
        """Return how things stand."""
        return Depth(
            waiting_rows=sum(each.waiting_rows for each in self._evaluations.values()),
            chunks_in_flight=sum(len(actor.in_flight) for actor in self._actors),
            actors_ready=sum(actor.health.state == "ready" for actor in self._actors),
            actors=len(self._actors),
        )

    # Time.

    def tick(self, now: float) -> None:
        """Do what is due now, and hand out work."""
        error = self._supervisor.tick(now, waiting=bool(self._evaluations))
        if error is not None:
            rows = sum(each.batch.num_rows for each in self._evaluations.values())
            done = sum(each.answered for each in self._evaluations.values())
            self.fail_all(
                type(error)(
                    f"{error}\n{done} of {rows} rows were done. Remove the cause and submit again: "
                    "the pool starts its actors anew"
                )
            )
        ask, hung = self._hangs.look(now)
        for actor in ask:
            self._transport.inquire(actor)
        for actor in hung:
            self._lose_hanging(actor, now - actor.in_flight.running_since, now)
        if self._evaluations:
            self._assign(now)

    def seconds_to_next_tick(self, now: float) -> float | None:
        """Return when `tick` has something to do although nothing happens; None if never."""
        due = self._supervisor.next_start(now)
        waits = [] if due is None else [max(0.0, due - now)]
        if self._evaluations:
            idle = any(a.health.state == "ready" and not len(a.in_flight) for a in self._actors)
            waits.append(_STRAGGLER_TICK_SECONDS if idle else _TICK_SECONDS)
        return min(waits, default=None)

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
            case events.BuildFailed(reason=reason):
                self._supervisor.build_failed(actor, reason, now)
            case events.Missing():
                self._supervisor.missing(actor, now)
            case events.Lost(reason=reason):
                self._lose(actor, reason, now)
            case events.Busy(seconds=seconds, others=others):
                if self._hangs.busy(actor, seconds, others, now):
                    self._lose_hanging(actor, max(seconds, others), now)
            case events.Replied(ticket=ticket, reply=reply):
                self._take_in(actor, actor.in_flight.remove(ticket, now), reply, now)

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
        if reply.error is None:
            self._accept(actor, evaluation, chunk, reply)
        else:
            self._settle(actor, evaluation, chunk, reply.error, reply.traceback, now)

    def _accept(self, actor: Actor, evaluation: Evaluation, chunk: Chunk, reply: Reply) -> None:
        assert reply.answer is not None
        try:
            evaluation.accept(chunk, decode_answers(reply.answer, chunk.num_rows))
        except ValueError as error:
            text = f"{actor.backend!r} answered in another form: {error}"
            self._fail(evaluation, EvaluationError(text))
            return
        self._telemetry.accepted(actor, chunk, evaluation.calls(chunk), reply.seconds)
        if chunk.copies:
            self._cancel(lambda sent: sent.chunk is chunk)
        if evaluation.complete:
            del self._evaluations[evaluation.number]
            self._telemetry.ended(evaluation.number)
            evaluation.finish()
        else:
            self._fail_if_nothing_is_left(evaluation)

    def _settle(
        self, actor: Actor, evaluation: Evaluation, chunk: Chunk, error: QailabError,
        trace: str, now: float,
    ) -> None:  # fmt: skip
        """Carry out what an error means for a chunk."""
        chunk.faults += isinstance(error, TransientBackendError)
        decision = decide(actor, chunk, error, trace, evaluation.batch.num_rows)
        if isinstance(decision, Fail):
            if decision.now:
                self._fail(evaluation, decision.error)
            else:
                evaluation.ends_with = decision.error
        elif isinstance(error, UnknownCircuit):
            actor.in_flight.forget_circuit(evaluation.circuit.key)
        if isinstance(decision, Retry) and not chunk.copies:  # else another actor still has it
            evaluation.give_back(chunk)
        if isinstance(error, TransientBackendError):
            rows = f"rows {chunk.start} to {chunk.stop - 1}"
            logger.info("%s of %s are run again: %s", rows, actor, error)
            self._telemetry.retried(actor, "transient")
            if self._supervisor.fault(actor, str(error), now, full=isinstance(error, NoRoom)):
                self._take_back(actor, now, crashed=False)
        self._fail_if_nothing_is_left(evaluation)

    def _lose_hanging(self, actor: Actor, seconds: float, now: float) -> None:
        self._lose(actor, f"it hangs: no answer for {seconds:.1f} s", now, hangs=True)

    def _lose(self, actor: Actor, reason: str, now: float, *, hangs: bool = False) -> None:
        self._telemetry.lost(actor, reason, now)
        chunks = len(actor.in_flight)
        self._supervisor.lose(actor, reason, now, chunks=chunks, hangs=hangs)
        self._take_back(actor, now, crashed=True)

    def _take_back(self, actor: Actor, now: float, *, crashed: bool) -> None:
        """Give what an actor had to others, unless its rows seem to be what kills actors."""
        self._telemetry.retired(actor, now)
        actor.throughput.start_anew()
        traits = actor.backend.traits
        chunks = [sent.chunk for sent in actor.in_flight.clear()]
        ran = chunks[: traits.max_concurrency] if crashed else []  # the others only waited
        charged = crashed and self._is_their_own_crash(ran, now)
        for chunk in chunks:
            chunk.copies -= 1
            chunk.crashes += charged and chunk in ran
            evaluation = self._evaluations.get(chunk.evaluation)
            if evaluation is None or chunk.done or chunk.copies:
                continue
            self._telemetry.retried(actor, "lost")
            if chunk.crashes >= MAX_CRASHES:
                self._fail(evaluation, _deadly(actor, chunk))
                continue
            parts = [chunk]
            if chunk in ran and traits.idempotent:  # small chunks are hit less often
                parts = chunk.halves(evaluation.batch.rows.group)
            for part in parts:
                evaluation.give_back(part)
            self._charged += parts if charged and chunk in ran else []

    def _is_their_own_crash(self, ran: list[Chunk], now: float) -> bool:
        """Return whether an actor was lost over its rows, as far as one can tell by now.

        Several losses at once, over different rows, have a common cause; then the first of them is
        not held against its rows any more.
        """
        last, self._last_loss = self._last_loss, (now, ran)
        alone = now - last[0] > BURST_SECONDS
        if alone or (ran and any(before.contains(ran[0]) for before in last[1])):
            self._charged = []
            return True
        for chunk in self._charged:
            chunk.crashes -= 1
        self._charged = []
        return False

    # Handing out.

    def _assign(self, now: float) -> None:
        """Hand out chunks: one to each actor, then the second to each, and so on."""
        sharing = self._supervisor.sharing()
        ready = _queues_in_turn([a for a in sharing if self._supervisor.can_work(a, now)])
        most = {actor.index: self._most_chunks(actor) for actor in ready}
        for depth in range(max(most.values(), default=0)):
            for actor in ready:
                if not len(actor.in_flight) <= depth < most[actor.index]:
                    continue
                if not self._supervisor.can_work(actor, now):
                    continue  # it had no room a moment ago
                taken = self._next_chunk(actor, sharing)
                if taken is None:
                    self._copy_stragglers(ready, now)
                    return
                self._send(actor, *taken, now)

    def _most_chunks(self, actor: Actor) -> int:
        fixed = self._settings.max_in_flight
        return fixed or max(CHUNKS_IN_FLIGHT, actor.backend.traits.max_concurrency)

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
            logger.exception("rows %d to %d could not be sent", chunk.start, chunk.stop - 1)
            text = f"rows could not be sent to an actor: {error!r}"
            self._fail(evaluation, EvaluationError(text))
        else:
            actor.in_flight.note_circuit(key)
            actor.in_flight.add(sent, now)
            self._telemetry.sent(actor, chunk, len(message), now)
            chunk.copies += 1
            chunk.sent += 1

    # Ending.

    def _fail(self, evaluation: Evaluation, error: BaseException) -> None:
        evaluation.fail(error)
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
        if evaluation.ends_with is not None and not any(
            sent.chunk.evaluation == evaluation.number and not sent.chunk.done
            for actor in self._actors
            for sent in actor.in_flight
        ):
            self._fail(evaluation, evaluation.ends_with)


def _queues_in_turn(actors: list[Actor]) -> list[Actor]:
    """Order actors so that each device comes once before one comes a second time."""
    if not any(actor.backend.traits.queue_name for actor in actors):
        return actors
    seen: dict[object, int] = {}
    turns = {}
    for actor in actors:
        queue = actor.backend.traits.queue_name or actor.index
        turns[actor.index] = seen[queue] = seen.get(queue, -1) + 1
    return sorted(actors, key=lambda actor: turns[actor.index])


def _deadly(actor: Actor, chunk: Chunk) -> EvaluationError:
    return EvaluationError(
        f"rows {chunk.start} to {chunk.stop - 1} lost their actor {chunk.crashes} times, last on "
        f"{actor.backend!r}: {actor.health.last_error}; if actors run out of memory, use a smaller "
        "circuit or chunk_rows; if they only need longer, a larger chunk_timeout"
    )
