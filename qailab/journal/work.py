"""What a journal records: rows of an evaluation, named by their content, and the job they went to.

::

    claim -> intended -> submitted -> done
                 |           |
                 |           +-> failed, cancelled
                 +-> withdrawn, failed, cancelled
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from qailab.arguments import check_choice, checked_integer
from qailab.errors import InputError, InputTypeError

DIGEST_BYTES = 8
"""A row's digest: 64 bits, so that a billion rows have one chance in forty of any two alike,
and those would have to bear the same number in the same evaluation to be taken for each other."""

PURPOSES = ("forward", "backward", "directions")

LIVE = ("done", "submitted", "intended")
"""States of entries that have, or may still get, a result; the surest first."""

ENDED = ("failed", "cancelled", "withdrawn")
"""States of entries that will have no result."""

_TAG_DIGITS = 24  # 96 bits; IBM allows tags of up to 86 characters
_LARGEST = 2**63 - 1  # SQLite's integers


@dataclass(frozen=True)
class Work:
    """The rows ``start .. stop - 1`` of an evaluation, named by what they hold.

    Args:
        circuit: content key of the canonical circuit.
        shots: shots for each row.
        seed: of the noise stream; with step and purpose it names the evaluation.
        step: the training step.
        purpose: "forward", "backward" or "directions".
        start: the number of the first row.
        stop: one past the number of the last row.
        digests: a hash of each row's angles, 8 bytes for each row, so that rows of other data or
            weights are never taken for these.

    Raises:
        InputError: if there are no rows, or not 8 bytes of digest for each.
    """

    circuit: str
    shots: int
    seed: int
    step: int
    purpose: str
    start: int
    stop: int
    digests: bytes

    def __post_init__(self) -> None:
        for name in ("circuit", "purpose"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputTypeError(f"{name} must be text, got {getattr(self, name)!r}")
        check_choice("purpose", self.purpose, PURPOSES)
        least = {"shots": 1, "seed": 0, "step": 0, "start": 0, "stop": self.start + 1}
        for name, smallest in least.items():
            # Numpy's integers would be stored as blobs.
            number = checked_integer(name, getattr(self, name), least=smallest, most=_LARGEST)
            object.__setattr__(self, name, number)
        if not isinstance(self.digests, bytes):
            raise InputTypeError(f"digests must be bytes, got {type(self.digests).__name__}")
        if len(self.digests) != DIGEST_BYTES * self.num_rows:
            raise InputError(
                f"digests must be {DIGEST_BYTES} bytes for each of the {self.num_rows} rows "
                f"{self.start} .. {self.stop - 1}: {DIGEST_BYTES * self.num_rows} in all, "
                f"got {len(self.digests)}"
            )

    @property
    def num_rows(self) -> int:
        """How many rows these are."""
        return self.stop - self.start

    @property
    def key(self) -> str:
        """Names the evaluation: the same for all its rows, whatever they hold."""
        parts = (self.circuit, self.shots, self.seed, self.step, self.purpose)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @property
    def tag(self) -> str:
        """Names these rows and what they hold, alike in every process and every run."""
        return self.tag_of(0)

    def tag_of(self, attempt: int) -> str:
        """The tag of a job for these rows.

        Args:
            attempt: how many jobs for them ended without a result before: their tags must not be
                this one's, or a search for it would find them.
        """
        text = json.dumps((self.key, self.start, self.stop, attempt)).encode()
        return "qailab-" + hashlib.sha256(text + self.digests).hexdigest()[:_TAG_DIGITS]

    def part(self, start: int, stop: int) -> Work:
        """The rows ``start .. stop - 1`` of these.

        Raises:
            InputError: if they are not among these.
        """
        if not self.start <= start < stop <= self.stop:
            raise InputError(
                f"part must be of the rows {self.start} .. {self.stop - 1}, "
                f"got {start} .. {stop - 1}"
            )
        first, last = (DIGEST_BYTES * (row - self.start) for row in (start, stop))
        return replace(self, start=start, stop=stop, digests=self.digests[first:last])


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a journal knows of one job, as of when it was read.

    Args:
        id: the entry's number.
        key: of the evaluation (`Work.key`).
        circuit: content key of the canonical circuit.
        shots: shots for each row.
        seed: of the noise stream.
        step: the training step.
        purpose: the pass.
        start: the number of the first row.
        stop: one past the number of the last row.
        tag: what the job is tagged with at the server.
        attempt: how many jobs for the very same rows ended without a result before this one.
        state: "intended" (recorded before it is sent), "submitted" (its job id is known), "done"
            (its result is stored); or "failed", "cancelled", "withdrawn" (never reached the
            server), which are without a result.
        job_id: the server's name for it, None until it is known.
        backend: where it runs.
        session: the session it runs in, None if in none.
        owner: the process that sends it (`qailab.journal.this_owner`).
        usage_seconds: QPU seconds, None until they are known.
        reason: why it ended without a result.
        created: when it was recorded, in seconds since 1970.
        updated: when anything about it last changed, in seconds since 1970.
        digests: 8 bytes for each row.
    """

    id: int
    key: str
    circuit: str
    shots: int
    seed: int
    step: int
    purpose: str
    start: int
    stop: int
    tag: str
    attempt: int
    state: str
    job_id: str | None
    backend: str
    session: str | None
    owner: str
    usage_seconds: float | None
    reason: str
    created: float
    updated: float
    digests: bytes

    @property
    def num_rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    @property
    def work(self) -> Work:
        """Its rows."""
        return Work(
            circuit=self.circuit,
            shots=self.shots,
            seed=self.seed,
            step=self.step,
            purpose=self.purpose,
            start=self.start,
            stop=self.stop,
            digests=self.digests,
        )
