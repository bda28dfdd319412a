import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.distributed.chunks import (
    MAX_INLINE_BYTES,
    MIN_CHUNK_SECONDS,
    ChunkSizer,
    estimated_row_seconds,
)
from qailab.gradients import NoiseStream, PointRows, RowBatch, ShiftedRows, canonicalize


def batch_of(samples, columns):
    rows = ShiftedRows(base=np.zeros((samples, columns)), columns=np.arange(columns))
    return RowBatch(rows, 10, NoiseStream(0), np.zeros((samples, 4)))


def cut(batch, *, actors, seconds_per_row=1e-4, chunk_rows="auto", answer_bytes=16, speeds=(1.0,)):
    """All chunks of a batch, as (start, stop)."""
    sizer = ChunkSizer(batch, answer_bytes, chunk_rows)
    chunks, start = [], batch.rows.start
    while start < batch.rows.stop:
        stop = sizer.end_of_chunk(
            start,
            actors=actors,
            seconds_per_row=seconds_per_row,
            relative_speed=speeds[len(chunks) % len(speeds)],
        )
        chunks.append((start, stop))
        start = stop
    return chunks


@given(
    samples=st.integers(1, 40),
    columns=st.integers(1, 30),
    actors=st.integers(1, 64),
    seconds=st.floats(1e-6, 1.0),
    chunk_rows=st.one_of(st.just("auto"), st.integers(1, 500)),
    speeds=st.lists(st.floats(0.1, 10), min_size=1, max_size=5),
    window=st.tuples(st.integers(0, 50), st.integers(1, 50)),
)
def test_chunks_cover_every_row_once_and_never_split_a_pair(
    samples, columns, actors, seconds, chunk_rows, speeds, window
):
    batch = batch_of(samples, columns)
    first = min(2 * window[0], batch.num_rows - 2)
    batch = batch.part(first, min(first + 2 * window[1], batch.rows.stop))
    chunks = cut(
        batch, actors=actors, seconds_per_row=seconds, chunk_rows=chunk_rows, speeds=speeds
    )
    assert chunks[0][0] == batch.rows.start
    assert chunks[-1][1] == batch.rows.stop
    for (start, stop), following in zip(chunks, [*chunks[1:], None], strict=True):
        assert stop > start
        assert start % 2 == 0
        assert following is None or following[0] == stop


def test_work_worth_it_is_shared_equally_and_ends_small():
    chunks = cut(batch_of(64, 50), actors=2, seconds_per_row=3e-4)
    sizes = [stop - start for start, stop in chunks]
    assert sizes[0] == max(sizes) == sizes[1]
    assert sizes[-1] * 3e-4 < 4 * MIN_CHUNK_SECONDS
    halves = [sum(sizes[i::2]) for i in (0, 1)]
    assert abs(halves[0] - halves[1]) <= max(sizes[-1], 100)


def test_small_work_is_one_chunk_for_each_actor_or_one_call():
    assert len(cut(batch_of(16, 30), actors=2, seconds_per_row=4e-5)) == 2
    assert len(cut(batch_of(1, 16), actors=2, seconds_per_row=1e-5)) == 1


def test_whole_samples_travel_where_there_are_enough():
    for start, stop in cut(batch_of(16, 50), actors=2, seconds_per_row=2e-4):
        assert start % 100 == stop % 100 == 0


def test_one_sample_is_shared_by_all_actors():
    assert len(cut(batch_of(1, 1000), actors=4, seconds_per_row=1e-3)) >= 4


def test_fast_actors_get_more():
    first, second = cut(batch_of(100, 10), actors=2, speeds=(1.6, 0.4))[:2]
    assert first[1] - first[0] == 4 * (second[1] - second[0])


def test_answers_stay_small_enough_to_travel_inline():
    for start, stop in cut(batch_of(1000, 50), actors=1, seconds_per_row=1e-6):
        assert (stop - start) * 16 <= MAX_INLINE_BYTES + 100 * 16  # up to one sample more


def test_a_fixed_size_is_kept_up_to_pairs():
    assert cut(batch_of(1, 5), actors=3, chunk_rows=4) == [(0, 4), (4, 8), (8, 10)]
    assert cut(batch_of(1, 2), actors=3, chunk_rows=1) == [(0, 2), (2, 4)]
    points = RowBatch(PointRows(base=np.zeros((3, 1, 2))), 10, NoiseStream(0))
    assert cut(points, actors=3, chunk_rows=1) == [(0, 1), (1, 2), (2, 3)]


def test_larger_circuits_are_estimated_slower():
    blocks = [RotationalEncoder(), RealAmplitudesBlock()]
    estimates = []
    for qubits in (4, 8, 12):
        circuit = build_circuit(qubits, blocks)
        estimates.append(estimated_row_seconds(canonicalize(circuit, circuit.parameters)[0]))
    assert estimates == sorted(estimates)
