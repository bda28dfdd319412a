"""One evaluation: the rows of a pass, cut into chunks, and their answers in any order.

Every row is in exactly one of four places: not handed out yet, returned (its actor was lost), in
flight (perhaps in two copies), answered.

Chunk sizes follow factoring: rows are handed out in rounds of one chunk for each actor; a round is
most of what is left, so chunks are large first and small at the end, and all actors end together.
No chunk is so small that its call costs more than its rows, so that small work is one round. The
first chunk that a process gets of a circuit is as small as can be: while it compiles, others work.

References:
    S. F. Hummel, E. Schonberg, L. E. Flynn, Factoring: a method for scheduling parallel loops,
    Commun. ACM 35(8), 90 (1992), doi:10.1145/135226.135232.
"""

from __future__ import annotations

import math
import pickle
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Final

import numpy as np

from qailab.backends.answers import answer_width
from qailab.backends.base import RowFuture
from qailab.distributed.actors import Actor, Chunk, Pace, Pass, average_speed, expected_seconds
from qailab.distributed.options import Settings
from qailab.errors import QailabError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray, RowBatch, SlopeRows

HOP_SECONDS = 0.002  # to an actor and back, whatever its rows and backend: 1.2 ms on idle cores
MIN_CALL_SHARE = 4.0
"""A chunk's rows take at least this many times what its call takes whatever its rows: 20 ms on Aer,
seconds where a device has a queue. Half of that is enough where an actor would be idle instead."""
ROUND_SHARE = 0.7
"""Of what is left, in a round. Speeds are known to a tenth or so: the rest makes up for that."""
WHOLE_SAMPLES = 8
"""Chunks of so many samples end with one, so that no cotangents are sent twice. Rounding smaller
ones would make some actors wait for others: by 80 rows of 640, of a batch of 16 on two."""
CALL_SECONDS = 0.25
"""Chunks with a shorter fixed size are made several times as large, up to this: a call costs 0.7 to
1 ms of the driver, so one core of it feeds about 250 actors at this length. The actor still
evaluates ``chunk_rows`` rows at once."""
PROBE_SECONDS = 0.25  # of a chunk for an actor whose own speed is not known yet
MAX_CHUNK_SECONDS = 2.0  # what a dead actor may cost, and how long a cancel may take
MAX_INLINE_BYTES = 64 << 10
"""Answers of at most 100 kB travel inside Ray's reply; larger ones stay in the object store of the
actor's node, and are lost with it. Backward answers (two floats a row) are kept below."""
MAX_PROBABILITY_BYTES = 4 << 20  # forward answers (K or O floats a row) cannot be small
MAX_SHARE_BYTES = 256 << 20  # answers of a device's whole share: jobs are few, and must stay so


_OTHER_PASS: Final[dict[Pass, Pass]] = {"forward": "backward", "backward": "forward"}
"""A pass whose speed is a good guess."""


class ChunkSizer:
    """Decides where the chunks of a batch end, one after the other."""

    def __init__(self, batch: RowBatch, answer_bytes: int) -> None:
        self._rows = batch.rows
        limit = MAX_PROBABILITY_BYTES if batch.cotangents is None else MAX_INLINE_BYTES
        self._most_rows = max(1, limit // answer_bytes)
        self._most_rows_of_share = max(1, MAX_SHARE_BYTES // answer_bytes)
        self._size = 0.0  # rows of a chunk of this round, for an actor of average speed
        self._left = 0  # chunks of this round still to be handed out

    def end_of_chunk(
        self,
        next_row: int,
        *,
        actors: int,
        seconds_per_row: float,
        relative_speed: float | None = 1.0,
        call_seconds: float = 0.0,
    ) -> int:
        """Return where the chunk that begins at ``next_row`` ends.

        Args:
            next_row: the first row that nobody has yet.
            actors: how many actors share the rows.
            seconds_per_row: time of a row on an actor of average speed.
            relative_speed: speed of the actor that asks, over the average; None if not known.
            call_seconds: what a chunk takes whatever its rows.
        """
        rows, group = self._rows, self._rows.group
        if self._left <= 0:
            fewest = MIN_CALL_SHARE * (HOP_SECONDS + call_seconds) / seconds_per_row
            remaining = rows.stop - next_row
            self._left, self._size = actors, ROUND_SHARE * remaining / actors
            if remaining / actors - self._size < fewest:  # the last round: equal chunks
                self._left = min(actors, math.ceil(2 * remaining / fewest))
                self._size = remaining / self._left
        self._left -= 1
        longest = MAX_CHUNK_SECONDS if relative_speed is not None else PROBE_SECONDS
        longest = max(longest, 2 * MIN_CALL_SHARE * call_seconds) / seconds_per_row
        size = min(min(self._size, longest) * (relative_speed or 1.0), self._most_rows)
        if size >= WHOLE_SAMPLES * rows.rows_per_sample:
            group = rows.rows_per_sample
        return self._end(next_row, in_groups(size, group), group)

    def end_of_first(self, next_row: int) -> int:
        """Return where the first chunk ends that a process gets of a circuit."""
        return self._end(next_row, self._rows.group, self._rows.group)

    def end_of_share(self, next_row: int, devices: int) -> int:
        """Return where the share of a device ends: all get the same, whatever their speed.

        How long a job takes is mostly how long it waits, which says nothing about the next one's
        wait; and more jobs than devices cost more, or wait longer.
        """
        group = self._rows.group
        self._left = devices if self._left <= 0 else self._left
        share = -(-(self._rows.stop - next_row) // (self._left * group)) * group
        self._left -= 1
        most = max(group, self._most_rows_of_share // group * group)
        return self._end(next_row, min(share, most), group)

    def end_of_calls(self, next_row: int, size: int, calls: float) -> int:
        """Return where a chunk of so many calls of a fixed size ends, within bounded answers."""
        calls = max(1, int(min(calls, self._most_rows / size)))
        return self._end(next_row, calls * size, self._rows.group)

    def _end(self, next_row: int, size: int, group: int) -> int:
        return min(self._rows.stop, next_row - next_row % group + size)


class Evaluation:
    """All rows of one pass, who has them, and the answers so far, which ``future`` gets."""

    def __init__(
        self,
        number: int,
        circuit: CanonicalCircuit,
        batch: RowBatch,
        future: RowFuture,
        settings: Settings,
    ) -> None:
        self.number = number
        self.name = uuid.uuid4().hex[:16]  # in all programs, unlike its number
        self.circuit = circuit
        self.batch = batch
        self.future = future
        self.answered = 0
        self.ends_with: QailabError | None = None  # once nothing of it is in flight
        kind: Pass = "forward" if batch.cotangents is None else "backward"
        kind = "slopes" if isinstance(batch.rows, SlopeRows) else kind
        self.pace: Pace = (circuit.key, batch.shots, kind)
        self.rows_per_call: int | None = None
        if settings.chunk_rows != "auto":
            self.rows_per_call = in_groups(settings.chunk_rows, batch.rows.group)
        self._one_call = settings.max_in_flight != "auto"  # a fixed bound counts calls
        width = answer_width(circuit, batch)
        self._answers = np.empty((batch.num_rows, width))
        self._sizer = ChunkSizer(batch, 8 * width)
        self._next_row = batch.rows.start
        self._returned: deque[Chunk] = deque()

    @property
    def complete(self) -> bool:
        return self.answered == self.batch.num_rows

    @property
    def waiting_rows(self) -> int:
        """How many rows no actor has."""
        returned = sum(chunk.num_rows for chunk in self._returned)
        return self.batch.rows.stop - self._next_row + returned

    @cached_property
    def pickled_circuit(self) -> bytes:
        return pickle.dumps(self.circuit)

    def calls(self, chunk: Chunk) -> int:
        """Return how many calls to the backend a chunk takes."""
        return 1 if self.rows_per_call is None else -(-chunk.num_rows // self.rows_per_call)

    def take(self, actor: Actor, sharing: Sequence[Actor]) -> Chunk | None:
        """Cut the next chunk for one of the actors that share the work; None if none is left."""
        if self.ends_with is not None:
            return None
        if self._returned:
            return self._returned.popleft()
        if self._next_row >= self.batch.rows.stop:
            return None
        start, self._next_row = self._next_row, self._end_of_next(actor, sharing)
        return Chunk(self.number, start, self._next_row)

    def _end_of_next(self, actor: Actor, sharing: Sequence[Actor]) -> int:
        if self.rows_per_call is not None:
            calls = self._calls_for(actor, sharing, self.rows_per_call)
            return self._sizer.end_of_calls(self._next_row, self.rows_per_call, calls)
        traits = [other.backend.traits for other in sharing]
        if all(each.packs_jobs for each in traits):
            # Rows of one device are not split among the actors that use it.
            devices = {other.backend.traits.queue_name or other.index for other in sharing}
            return self._sizer.end_of_share(self._next_row, len(devices))
        sent = [each.pace for each in actor.in_flight]
        if self.pace not in sent and not actor.throughput.has_compiled(self.pace):
            return self._sizer.end_of_first(self._next_row)
        key, shots, kind = self.pace
        other = _OTHER_PASS.get(kind, kind)
        average = (
            average_speed(self.pace, sharing)
            or average_speed((key, shots, other), sharing)
            or 1.0 / guessed_row_seconds(self.circuit)
        )
        own = actor.throughput.speed(self.pace)
        return self._sizer.end_of_chunk(
            self._next_row,
            actors=len(sharing),
            seconds_per_row=1.0 / average,
            relative_speed=None if own is None else own / average,
            call_seconds=sum(each.call_overhead_seconds for each in traits) / len(traits),
        )

    def _calls_for(self, actor: Actor, sharing: Sequence[Actor], size: int) -> float:
        """Return how many calls of a fixed size go into one chunk."""
        seconds = expected_seconds(actor, sharing, self.pace, 1, size)
        if self._one_call or seconds is None:
            return 1
        share = (self.batch.rows.stop - self._next_row) / size / (2 * len(sharing))
        return min(CALL_SECONDS / seconds, share)

    def give_back(self, chunk: Chunk, *, faulty: bool = False) -> None:
        """Take back a chunk that no actor has any more.

        Args:
            chunk: the chunk.
            faulty: one of its calls failed. From now on each call is a chunk of its own: of many
                calls one would fail nearly always, and all run again.
        """
        self._one_call = self._one_call or faulty
        size = self.rows_per_call if faulty else None
        cuts = range(chunk.start, chunk.stop, size or chunk.num_rows)
        self._returned += [
            replace(chunk, start=start, stop=min(start + cuts.step, chunk.stop)) for start in cuts
        ]

    def accept(self, chunk: Chunk, answers: FloatArray) -> None:
        """Put a chunk's answers, shape ``(rows, width)``, where they belong.

        Raises:
            ValueError: if they have another shape.
        """
        expected = (chunk.num_rows, self._answers.shape[1])
        if answers.shape != expected:
            raise ValueError(f"shape {answers.shape} instead of {expected}")
        assert not chunk.done, "the answers of a chunk are accepted once"
        first = chunk.start - self.batch.rows.start
        self._answers[first : first + len(answers)] = answers
        self.answered += len(answers)
        chunk.done = True
        chunk.crashes.count = 0

    def finish(self, error: BaseException | None = None) -> None:
        """Deliver the answers, or an error."""
        with suppress(InvalidStateError):  # cancelled meanwhile
            if error is None:
                self.future.set_result(self._answers)
            else:
                self.future.set_exception(error)


def in_groups(rows: float, group: int) -> int:
    """Round a number of rows to whole groups of rows that belong together; at least one."""
    return max(1, int(rows / group + 0.5)) * group


def guessed_row_seconds(circuit: CanonicalCircuit) -> float:
    """Guess the time of a row, until one is measured.

    Aer on one core takes about 1 microsecond for each gate and 1.5 ns for each gate and amplitude.
    """
    amplitudes: float = 2.0 ** min(circuit.circuit.num_qubits, 40)
    return len(circuit.circuit.data) * (1.0e-6 + 1.5e-9 * amplitudes)
