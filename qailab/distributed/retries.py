"""What becomes of chunks that came back without answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from qailab.backends.base import MAX_TRANSIENT_FAULTS
from qailab.distributed.books import Books
from qailab.distributed.jobs import Job
from qailab.distributed.slots import Chunk, Parcel, Slot
from qailab.distributed.workers import Cancelled, UnknownCircuit
from qailab.errors import (
    BudgetExceededError,
    EvaluationError,
    JournalError,
    QailabError,
    TransientBackendError,
    plain,
)

logger = logging.getLogger("qailab.distributed")

_SPEAKS_FOR_ITSELF = (BudgetExceededError, JournalError)

MAX_KILLS = 4
"""Processes that may be lost over the same rows before the rows are held to be the cause; fewer
than a slot may lose, so that they do not take the pool down. Where processes die of other causes,
chunks that were hit are halved, as small ones are hit less often, and nothing is blamed on them."""


class Retries:
    """Tells rows that are at fault from places that are, and gives the rows of these to others.

    Args:
        jobs: the unfinished jobs by number.
        books: where retries are noted.
        fail: takes a job and the error that ends it.
    """

    def __init__(
        self,
        jobs: Mapping[int, Job],
        books: Books,
        fail: Callable[[Job, QailabError], None],
    ) -> None:
        self._jobs = jobs
        self._books = books
        self._fail = fail

    def settle(self, slot: Slot, chunk: Chunk, error: QailabError, trace: str = "") -> bool:
        """Decide what an error means for a chunk: again, elsewhere, or never.

        Args:
            slot: where it happened.
            chunk: the chunk.
            error: what happened.
            trace: where, as text.

        Returns:
            Whether it is a transient fault of the slot.
        """
        job = self._jobs.get(chunk.job)
        if job is None or chunk.done:
            return False  # nobody waits for it
        if isinstance(error, TransientBackendError):
            self._transient(slot, job, chunk, error)
            return True
        if isinstance(error, Cancelled | UnknownCircuit):
            if isinstance(error, UnknownCircuit):
                slot.circuits.pop(job.circuit.key, None)
            if not chunk.copies:  # else another process still has it
                job.give_back(chunk)
        else:
            where = (
                f"(on {slot.backend!r}, actor {slot.index}, rows {chunk.start} to "
                f"{chunk.stop - 1} of {job.batch.num_rows})"
            )
            shown = "" if isinstance(error, _SPEAKS_FOR_ITSELF) else trace
            told = plain(error, f"{error}\n{where}\n{shown}".rstrip())
            if isinstance(error, BudgetExceededError):
                job.doomed_by = told  # others' jobs of it are sent and paid for: let them end
            else:
                self._fail(job, told)
        return False

    def _transient(self, slot: Slot, job: Job, chunk: Chunk, error: QailabError) -> None:
        chunk.faults += 1
        where = f"rows {chunk.start} to {chunk.stop - 1}"
        if chunk.faults >= MAX_TRANSIENT_FAULTS:
            text = f"{where} failed {chunk.faults} times, last on {slot.backend!r}: {error}"
            self._fail(job, EvaluationError(text))
            return
        logger.info("%s of actor %d (%r) are run again: %s", where, slot.index, slot.backend, error)
        self._books.retried(slot, "transient")
        if not chunk.copies:
            job.give_back(chunk)

    def give_back(self, slot: Slot, lost: list[Parcel], guilty: bool) -> None:
        """Chunks of a lost process go to others, unless they seem to be what kills processes.

        Args:
            slot: whose process.
            lost: the parcels it had in flight.
            guilty: whether what it was doing may be the cause.
        """
        for place, parcel in enumerate(lost):
            for chunk in parcel.chunks:
                chunk.copies -= 1
                job = self._jobs.get(chunk.job)
                if job is None or chunk.done:
                    continue
                if guilty and place == 0:  # it may have been running; others only waited
                    self._suspect(job, chunk)
                if chunk.copies:
                    continue
                self._books.retried(slot, "lost")
                if self._is_to_blame(job, chunk):
                    self._fail(job, _poisonous(slot, chunk))
                elif (
                    guilty
                    and place == 0
                    and len(parcel.chunks) == 1
                    and slot.backend.traits.idempotent
                ):
                    for half in chunk.halves(job.batch.rows.group):
                        job.give_back(half)
                else:
                    job.give_back(chunk)

    def _suspect(self, job: Job, chunk: Chunk) -> None:
        suspicion = chunk.suspicion
        if suspicion.kills == 0:
            suspicion.losses_before = self._books.losses - 1
            suspicion.answered_before = job.answered
        suspicion.kills += 1

    def _is_to_blame(self, job: Job, chunk: Chunk) -> bool:
        """Whether processes die of these rows: of no others at the same time, or of all."""
        suspicion = chunk.suspicion
        losses = self._books.losses - suspicion.losses_before
        alone = 2 * suspicion.kills >= losses
        return suspicion.kills >= MAX_KILLS and (alone or job.answered == suspicion.answered_before)


def _poisonous(slot: Slot, chunk: Chunk) -> EvaluationError:
    rows, kills = f"rows {chunk.start} to {chunk.stop - 1}", chunk.suspicion.kills
    return EvaluationError(
        f"{rows} lost their actor {kills} times, last on {slot.backend!r}: {slot.last_error}; if "
        "actors run out of memory, use a smaller circuit or chunk_rows; if they only need longer, "
        "a larger chunk_timeout"
    )
