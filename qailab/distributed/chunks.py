"""How many rows go into the next chunk: pure arithmetic.

Factoring: the rows are handed out in rounds of one chunk for each actor; a round is half of what
is left, so chunks are large first and small at the tail, and all actors end together. No chunk is
so small that its call costs more than its rows.

References:
    S. F. Hummel, E. Schonberg, L. E. Flynn, Factoring: a method for scheduling parallel loops,
    Commun. ACM 35(8), 90 (1992), doi:10.1145/135226.135232.
"""

from __future__ import annotations

from typing import Literal

from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import RowBatch

ChunkRows = int | Literal["auto"]

MIN_CHUNK_SECONDS = 0.0125  # a call costs 1 ms of the driver
MIN_SPLIT_SECONDS = 0.05
"""The same where samples are fewer than actors: each part of a sample takes the sample's whole
vector along."""
MIN_CALL_SHARE = 4.0
"""A chunk's rows take at least this many times what its call takes whatever its rows: 3 ms on Aer,
seconds where a device has a queue."""
PARCEL_SECONDS = 0.25
"""Chunks that are fixed to be shorter travel together up to this: a call costs 0.7 to 1 ms of the
driver, so one core of it feeds about 250 actors at this length."""
PROBE_SECONDS = 0.25
"""What an actor is given, by guess or by others' speed, before its own speed is known."""
MAX_CHUNK_SECONDS = 2.0  # what a dead actor may cost, and how long a cancel may take
MAX_INLINE_BYTES = 64 << 10
"""Answers of at most 100 kB travel inside Ray's reply; larger ones stay in the object store of the
actor's node, and are lost with it. Backward answers (two floats a row) are kept below."""
MAX_PROBABILITY_BYTES = 4 << 20  # forward answers (K floats a row) cannot be small
MAX_SHARE_BYTES = 256 << 20  # answers of a device's whole share: jobs are few, and must stay so


def estimated_row_seconds(circuit: CanonicalCircuit) -> float:
    """A first guess of the time one row takes, until there is a measured one.

    Aer on one core takes about 1 microsecond for each gate and 1.5 ns for each gate and amplitude.
    """
    gates = len(circuit.circuit.data)
    amplitudes: float = 2.0 ** min(circuit.circuit.num_qubits, 40)
    return gates * (1.0e-6 + 1.5e-9 * amplitudes)


class ChunkSizer:
    """Cuts the rows of one evaluation into chunks, one after the other.

    Args:
        batch: all rows of the evaluation.
        answer_bytes: bytes of one row's answer.
        chunk_rows: a fixed number of rows, or ``"auto"``.
    """

    def __init__(self, batch: RowBatch, answer_bytes: int, chunk_rows: ChunkRows) -> None:
        self._rows = batch.rows
        self._chunk_rows = chunk_rows
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
        """Where the chunk that begins at ``next_row`` ends.

        Args:
            next_row: the first row that nobody has yet.
            actors: how many actors share the rows.
            seconds_per_row: time of a row on an actor of average speed.
            relative_speed: speed of the actor that asks, over the average; None if not known.
            call_seconds: what a chunk takes whatever its rows.

        Returns:
            One past the last row of the chunk; rows that belong together are not separated.
        """
        rows, group = self._rows, self._rows.group
        remaining = rows.stop - next_row
        samples = rows.num_rows / rows.rows_per_sample
        if self._chunk_rows != "auto":
            size = float(self._chunk_rows)
        else:
            if self._left <= 0:
                least = MIN_CHUNK_SECONDS if samples >= actors else MIN_SPLIT_SECONDS
                least = max(least, MIN_CALL_SHARE * call_seconds)
                self._begin_round(remaining, actors, least / seconds_per_row)
            self._left -= 1
            longest = MAX_CHUNK_SECONDS if relative_speed is not None else PROBE_SECONDS
            longest = max(longest, 2 * MIN_CALL_SHARE * call_seconds) / seconds_per_row
            size = min(min(self._size, longest) * (relative_speed or 1.0), self._most_rows)
            if samples >= 2 * actors:  # enough to go round: no sample's vector is sent twice
                group = rows.rows_per_sample
        groups = max(1, int(size / group + 0.5))
        return min(rows.stop, next_row - next_row % group + groups * group)

    def end_of_share(self, next_row: int, devices: int) -> int:
        """Where the share of a device ends: all get the same, whatever their speed.

        How long a job takes is mostly how long it waits, which says nothing about the next one's
        wait; and more jobs than devices cost more, or wait longer.

        Args:
            next_row: the first row that nobody has yet.
            devices: how many devices share the rows.
        """
        rows = self._rows
        if self._left <= 0:
            self._left = devices
        share = -(-(rows.stop - next_row) // (self._left * rows.group)) * rows.group
        self._left -= 1
        most = max(rows.group, self._most_rows_of_share // rows.group * rows.group)
        return min(rows.stop, next_row - next_row % rows.group + min(share, most))

    def _begin_round(self, remaining: int, actors: int, fewest: float) -> None:
        share = remaining / actors
        if share / 2 >= fewest:
            self._size, self._left = share / 2, actors
        else:  # the last round: equal chunks, for as many actors as are worth a call
            self._left = max(1, min(actors, round(remaining / fewest)))
            self._size = remaining / self._left
