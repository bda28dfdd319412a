"""What holds an evaluation up: chunks that idle actors would answer sooner, actors that hang."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qailab.distributed.actors import Actor, Sent, expected_seconds
from qailab.distributed.options import Auto

# A speculative copy is worth it if the first would still take this many times as long, and this
# much on top: a call takes milliseconds, and estimates are rough.
COPY_FACTOR, COPY_SECONDS = 2.0, 0.05
MAX_COPIES = 3  # of one chunk: where these fail as well, it is left to the first
# Where nobody knows how long rows take: when to copy those that only wait, and those that run.
QUEUED_SECONDS, RUNNING_SECONDS = 0.5, 5.0
# A chunk that takes this many times as long as expected is taken to hang, but never before so many
# seconds: machines stall, and a false alarm costs a process.
HANG_FACTOR, HANG_SECONDS = 20.0, 30.0
UNKNOWN_SECONDS = 900.0  # while nobody has answered such rows yet: circuits may take minutes
INQUIRY_SECONDS = 10.0  # a process that does not say what it is doing for so long hangs
PULSE_SECONDS = 60.0
"""How often a process is asked whose calls may last days; it hangs if it says nothing for
`UNKNOWN_SECONDS`, as a simulator in IBM's local mode holds Python's lock while it runs."""


def speculative_copies(
    idle: Sequence[Actor], ready: Sequence[Actor], now: float
) -> Iterator[tuple[Actor, Sent]]:
    """Yield idle actors, each with a chunk that it would answer much sooner than who has it.

    What is waited for longest comes first.
    """
    helpers = [actor for actor in idle if actor.backend.traits.idempotent]
    held = [
        (left, place, sent)
        for other in (ready if helpers else ())
        if other.backend.traits.idempotent
        for place, (sent, left) in enumerate(_remaining_seconds(other, ready, now))
        if sent.chunk.copies == 1 and sent.chunk.speculative < MAX_COPIES and not sent.chunk.done
    ]
    held.sort(key=lambda one: one[:2], reverse=True)
    for left, place, sent in held:
        if not helpers:
            return
        own = expected_seconds(helpers[-1], ready, sent.pace, sent.calls, sent.chunk.num_rows)
        if own is not None:
            least = COPY_FACTOR * own + COPY_SECONDS
        else:
            least = QUEUED_SECONDS if place else RUNNING_SECONDS
        if left >= least:
            yield helpers.pop(), sent


def _remaining_seconds(
    actor: Actor, actors: Sequence[Actor], now: float
) -> Iterator[tuple[Sent, float]]:
    """Yield what an actor has, in the order it runs, and in how many seconds it will be answered.

    A chunk that is overdue, or of which nothing is known, is expected to take as long again as it
    has taken already.
    """
    running = max(0.0, now - actor.in_flight.running_since)
    ahead = 0.0
    for place, sent in enumerate(actor.in_flight):
        seconds = expected_seconds(actor, actors, sent.pace, sent.calls, sent.chunk.num_rows)
        if place > 0:
            ahead += seconds or 0.0
        elif seconds is not None and running < seconds:
            ahead = seconds - running
        else:
            ahead = running
        yield sent, ahead


@dataclass
class _Watch:
    """The chunk that runs, until when it has time, and since when its actor was asked about it."""

    chunk: tuple[int, float]  # its ticket, and since when it runs
    until: float
    asked: float | None = None


class HangDetector:
    """Finds actors that hang: those that take too long are asked what they are doing.

    They are asked first because chunks of other programs that share the actors may be ahead. Where
    calls may last days (``detect_hangs`` is False), only an actor that does not answer hangs.

    Args:
        actors: the pool's actors.
        chunk_timeout: seconds that the user allows for a call; "auto" goes by what was observed.
    """

    def __init__(self, actors: Sequence[Actor], chunk_timeout: float | Auto) -> None:
        self._actors = tuple(actors)
        self._chunk_timeout = chunk_timeout
        self._watches: dict[int, _Watch] = {}

    def look(self, now: float) -> tuple[list[Actor], list[Actor]]:
        """Return the actors to ask, and those that hang."""
        ask, hung = [], []
        for actor in self._actors:
            sent = next(iter(actor.in_flight), None)
            if sent is None:
                continue
            chunk = sent.ticket, actor.in_flight.running_since
            watch = self._watches.get(actor.index)
            if watch is None or watch.chunk != chunk:
                detects = actor.backend.traits.detect_hangs
                time = self._limit(actor, sent) if detects else PULSE_SECONDS
                watch = self._watches[actor.index] = _Watch(chunk, chunk[1] + time)
            if watch.asked is None and now > watch.until:
                watch.asked = now
                ask.append(actor)
            elif watch.asked is not None and now - watch.asked > self._silence(actor, sent):
                hung.append(actor)
        return ask, hung

    def busy(self, actor: Actor, seconds: float, others: float, now: float) -> bool:
        """Return whether an actor hangs that says how long a call has run: ours, or another's."""
        watch, sent = self._watches.get(actor.index), next(iter(actor.in_flight), None)
        if watch is None or watch.asked is None or sent is None or sent.ticket != watch.chunk[0]:
            return False  # it has answered meanwhile
        watch.asked = None
        if not actor.backend.traits.detect_hangs:
            watch.until = now + PULSE_SECONDS
            return False
        limit = self._limit(actor, sent)
        watch.until = now + limit - seconds
        return seconds > limit or others > max(UNKNOWN_SECONDS, limit)

    def _silence(self, actor: Actor, sent: Sent) -> float:
        """Return how long an actor that was asked may say nothing."""
        if not actor.backend.traits.detect_hangs:
            return UNKNOWN_SECONDS
        # As long again: Aer holds Python's lock while it runs, and answers only then.
        return max(INQUIRY_SECONDS, self._limit(actor, sent))

    def _limit(self, actor: Actor, sent: Sent) -> float:
        """Return how long a chunk may take before its actor is taken to hang."""
        if self._chunk_timeout != "auto":
            return self._chunk_timeout * sent.calls
        rows = sent.chunk.num_rows
        seconds = expected_seconds(actor, self._actors, sent.pace, sent.calls, rows)
        if seconds is not None and not actor.throughput.has_compiled(sent.pace):
            first = max(other.throughput.first_seconds(sent.pace) for other in self._actors)
            seconds = seconds + first if first else None
        if seconds is None:
            return max(UNKNOWN_SECONDS, HANG_FACTOR * actor.throughput.overhead)
        return max(HANG_SECONDS, HANG_FACTOR * seconds)
