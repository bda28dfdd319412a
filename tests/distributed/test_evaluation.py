"""How rows are cut into chunks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qailab.backends.base import RowFuture
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.distributed.actors import Actor, Chunk
from qailab.distributed.evaluation import (
    MAX_INLINE_BYTES,
    ROUND_SHARE,
    ChunkSizer,
    Evaluation,
    guessed_row_seconds,
)
from qailab.distributed.options import Settings
from qailab.gradients import NoiseStream, PointRows, RowBatch, ShiftedRows, canonicalize
from tests.support.simulated_time import FastBackend


def batch_of(samples, columns):
    rows = ShiftedRows(base=np.zeros((samples, columns)), columns=np.arange(columns))
    return RowBatch(rows, 10, NoiseStream(0), np.zeros((samples, 4)))


def cut(batch, *, actors, seconds_per_row=1e-4, answer_bytes=16, speeds=(1.0,)):
    """All chunks of a batch, as (start, stop)."""
    sizer = ChunkSizer(batch, answer_bytes)
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


def taken(batch, settings, speed=None, actors=1):
    """All chunks that an evaluation gives to actors of one speed."""
    circuit = build_circuit(2, [RotationalEncoder("y", "input")])
    canonical, _ = canonicalize(circuit, circuit.parameters)
    evaluation = Evaluation(0, canonical, batch, RowFuture(lambda: None), settings)
    everybody = [Actor(index, FastBackend()) for index in range(actors)]
    for actor in everybody if speed else ():
        for _ in range(2):
            actor.throughput.learn(evaluation.pace, 0, speed, 1.0)
    chunks = []
    while (chunk := evaluation.take(everybody[0], everybody)) is not None:
        chunks.append((chunk.start, chunk.stop, evaluation.calls(chunk)))
    return chunks


@given(
    samples=st.integers(1, 40),
    columns=st.integers(1, 30),
    actors=st.integers(1, 64),
    seconds=st.floats(1e-6, 1.0),
    speeds=st.lists(st.floats(0.1, 10), min_size=1, max_size=5),
    window=st.tuples(st.integers(0, 50), st.integers(1, 50)),
)
def test_chunks_cover_every_row_once_and_never_split_a_pair(
    samples, columns, actors, seconds, speeds, window
):
    batch = batch_of(samples, columns)
    first = min(2 * window[0], batch.num_rows - 2)
    batch = batch.part(first, min(first + 2 * window[1], batch.rows.stop))
    chunks = cut(batch, actors=actors, seconds_per_row=seconds, speeds=speeds)
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
    assert sizes[-1] < sizes[0] / 4
    assert sizes[0] < ROUND_SHARE * sum(sizes) / 2 + 100
    halves = [sum(sizes[i::2]) for i in (0, 1)]
    assert abs(halves[0] - halves[1]) <= max(sizes[-1], 100)


def test_small_work_is_one_chunk_for_each_actor_or_one_call():
    assert len(cut(batch_of(16, 30), actors=2, seconds_per_row=4e-5)) == 2
    assert len(cut(batch_of(1, 16), actors=2, seconds_per_row=1e-5)) == 1


def test_whole_samples_travel_where_rounding_to_them_leaves_no_actor_waiting():
    (_, stop), *_ = cut(batch_of(64, 50), actors=2, seconds_per_row=2e-4)
    assert stop % 100 == 0
    loads = [stop - start for start, stop in cut(batch_of(5, 50), actors=2, seconds_per_row=1e-4)]
    assert loads == [250, 250]


def test_a_process_compiles_with_as_few_rows_as_can_be():
    (_, first, _), *_ = taken(batch_of(3, 50), Settings())
    assert first == 2
    (_, first, _), *_ = taken(batch_of(3, 50), Settings(), speed=10_000)
    assert first > 100


def test_a_pass_begins_with_the_speed_of_the_other_pass():
    actor, batch = Actor(0, FastBackend()), batch_of(1, 100)
    circuit = build_circuit(2, [RotationalEncoder("y", "input")])
    canonical, _ = canonicalize(circuit, circuit.parameters)
    for _ in range(2):
        actor.throughput.learn(
            (canonical.key, batch.shots, "forward"), 1, 20, 1.0
        )  # a forward pass
    actor.throughput.learn((canonical.key, batch.shots, "backward"), 1, 2, 1.0)  # compiled
    evaluation = Evaluation(0, canonical, batch, RowFuture(lambda: None), Settings())
    assert evaluation.take(actor, [actor]).num_rows == 6  # a quarter of a second


def test_one_sample_is_shared_by_all_actors():
    assert len(cut(batch_of(1, 1000), actors=4, seconds_per_row=1e-3)) >= 4


def test_fast_actors_get_more():
    first, second = cut(batch_of(100, 10), actors=2, speeds=(1.6, 0.4))[:2]
    assert first[1] - first[0] == 4 * (second[1] - second[0])


def test_answers_stay_small_enough_to_travel_inline():
    for start, stop in cut(batch_of(1000, 50), actors=1, seconds_per_row=1e-6):
        assert (stop - start) * 16 <= MAX_INLINE_BYTES + 100 * 16  # up to one sample more


def test_a_fixed_size_is_kept_up_to_pairs():
    of_four, of_one = Settings(chunk_rows=4), Settings(chunk_rows=1)
    assert taken(batch_of(1, 5), of_four) == [(0, 4, 1), (4, 8, 1), (8, 10, 1)]
    assert taken(batch_of(1, 2), of_one) == [(0, 2, 1), (2, 4, 1)]
    points = RowBatch(PointRows(base=np.zeros((3, 1, 2))), 10, NoiseStream(0))
    assert taken(points, of_one) == [(0, 1, 1), (1, 2, 1), (2, 3, 1)]


@given(
    rows=st.integers(1, 40),
    samples=st.integers(1, 500),
    speed=st.sampled_from([None, 10, 10_000]),
    actors=st.integers(1, 5),
    bound=st.sampled_from(["auto", 3]),
)
def test_chunks_of_several_calls_cover_every_row_once(rows, samples, speed, actors, bound):
    settings = Settings(chunk_rows=rows, max_in_flight=bound)
    chunks = taken(batch_of(samples, 3), settings, speed, actors)
    starts, stops, calls = zip(*chunks, strict=True)
    assert starts == (0, *stops[:-1])
    assert stops[-1] == 6 * samples
    # Larger than one call only where they are fast and many, and nobody bounds their number.
    assert bound == "auto" or set(calls) == {1}
    assert speed == 10_000 or max(calls) <= max(1, 10 // rows)
    if (speed, bound) == (10_000, "auto") and rows <= 20 and samples > 300 * actors:
        assert max(calls) > 1


@given(start=st.integers(0, 9), pairs=st.integers(1, 9))
def test_halves_of_a_chunk_are_its_rows_and_no_pair_is_split(start, pairs):
    chunk = Chunk(0, 2 * start, 2 * (start + pairs), faults=2)
    halves = chunk.halves(2)
    rows = [row for half in halves for row in range(half.start, half.stop)]
    assert rows == list(range(chunk.start, chunk.stop))
    assert all(half.start % 2 == 0 and half.faults == 2 for half in halves)
    assert {half.crashes for half in halves} == {chunk.crashes}
    assert len(halves) == min(2, pairs)


def test_larger_circuits_are_estimated_slower():
    blocks = [RotationalEncoder(), RealAmplitudesBlock()]
    estimates = []
    for qubits in (4, 8, 12):
        circuit = build_circuit(qubits, blocks)
        estimates.append(guessed_row_seconds(canonicalize(circuit, circuit.parameters)[0]))
    assert estimates == sorted(estimates)
