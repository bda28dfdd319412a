"""Jobs: evaluations that are being answered, chunk by chunk, in any order."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress

import numpy as np

from qailab.backends.base import RowFuture
from qailab.distributed.chunks import ChunkRows, ChunkSizer, estimated_row_seconds
from qailab.distributed.slots import Chunk, Pace, Slot, average_speed
from qailab.errors import QailabError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray, RowBatch


class Job:
    """All rows of one evaluation: who has them, and the answers so far.

    Every row is with exactly one of: not handed out yet, returned (its process was lost), in
    flight (perhaps in two copies), answered.

    Attributes:
        doomed_by: an error that it will end with, once nothing of it is in flight.

    Args:
        number: the job's number in its scheduler.
        circuit: the circuit.
        batch: the rows.
        future: where the answers go.
        chunk_rows: a fixed chunk size, or ``"auto"``.
        began: when it was submitted.
    """

    def __init__(
        self,
        number: int,
        circuit: CanonicalCircuit,
        batch: RowBatch,
        future: RowFuture,
        chunk_rows: ChunkRows,
        began: float = 0.0,
    ) -> None:
        self.number = number
        self.name = uuid.uuid4().hex[:16]  # in all places, unlike its number
        self.circuit = circuit
        self.batch = batch
        self.future = future
        self.began = began
        self.answered = 0
        self.doomed_by: QailabError | None = None
        self.pace: Pace = (circuit.key, batch.shots, batch.cotangents is None)
        self.answer_bytes = 8 * batch.answer_width(circuit.num_outcomes)
        self._answers = np.empty((batch.num_rows, self.answer_bytes // 8))
        self._chunk_rows = chunk_rows
        self._sizer = ChunkSizer(batch, self.answer_bytes, chunk_rows)
        self._next_row = batch.rows.start
        self._returned: deque[Chunk] = deque()
        self._guess = estimated_row_seconds(circuit)

    @property
    def complete(self) -> bool:
        """Whether all rows are answered."""
        return self.answered == self.batch.num_rows

    @property
    def waiting_rows(self) -> int:
        """Rows that nobody has."""
        returned = sum(chunk.num_rows for chunk in self._returned)
        return self.batch.rows.stop - self._next_row + returned

    def take(self, slot: Slot, sharing: Sequence[Slot]) -> Chunk | None:
        """The next chunk for a slot, or None if all rows are handed out.

        Args:
            slot: the slot that asks.
            sharing: all slots that share the work.
        """
        if self.doomed_by is not None:
            return None
        if self._returned:
            return self._returned.popleft()
        if self._next_row >= self.batch.rows.stop:
            return None
        if self._chunk_rows != "auto":  # no need to look at all the others' speeds
            return self._cut(
                self._sizer.end_of_chunk(self._next_row, actors=1, seconds_per_row=1.0)
            )
        if all(other.backend.traits.packs_jobs for other in sharing):
            return self._cut(self._sizer.end_of_share(self._next_row, _devices(sharing)))
        average = average_speed(self.pace, sharing) or 1.0 / self._guess
        own = slot.speeds.get(self.pace)
        end = self._sizer.end_of_chunk(
            self._next_row,
            actors=len(sharing),
            seconds_per_row=1.0 / average,
            relative_speed=None if own is None else own / average,
            call_seconds=sum(other.backend.traits.call_overhead_seconds for other in sharing)
            / len(sharing),
        )
        return self._cut(end)

    def _cut(self, end: int) -> Chunk:
        chunk = Chunk(self.number, self._next_row, end)
        self._next_row = end
        return chunk

    def give_back(self, chunk: Chunk) -> None:
        """Take back a chunk that nobody has any more."""
        self._returned.append(chunk)

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
        chunk.suspicion.kills = 0

    def finish(self) -> None:
        """Deliver the answers."""
        with suppress(InvalidStateError):  # cancelled meanwhile
            self.future.set_result(self._answers)

    def fail(self, error: BaseException) -> None:
        """Deliver an error."""
        with suppress(InvalidStateError):  # cancelled meanwhile
            self.future.set_exception(error)


def _devices(slots: Sequence[Slot]) -> int:
    """How many devices there are: rows of one are not split among the processes that use it."""
    return len({slot.backend.traits.queue_name or slot.index for slot in slots})
