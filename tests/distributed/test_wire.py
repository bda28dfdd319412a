import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qailab.distributed.wire import decode_answers, decode_batch, encode_answers, encode_batch
from qailab.gradients import NoiseStream, PointRows, RowBatch, ShiftedRows, ShiftRule
from tests.gradients.test_rows import batches, joined


@given(batches() | joined())
def test_a_batch_arrives_as_it_was_sent(batch):
    arrived = decode_batch(encode_batch(batch))
    assert type(arrived.rows) is type(batch.rows)
    assert (arrived.shots, arrived.noise) == (batch.shots, batch.noise)
    assert (arrived.rows.start, arrived.rows.stop) == (batch.rows.start, batch.rows.stop)
    np.testing.assert_array_equal(arrived.rows.angles(), batch.rows.angles())
    np.testing.assert_array_equal(arrived.rows.samples(), batch.rows.samples())
    if batch.cotangents is not None:
        np.testing.assert_array_equal(arrived.cotangents, batch.cotangents)


def test_other_rules_and_empty_angles():
    rule = ShiftRule((1.0, -1.0), (np.pi / 6, -np.pi / 6))
    rows = ShiftedRows(base=np.zeros((1, 2)), columns=np.array([1]), rule=rule)
    batch = RowBatch(rows, None, NoiseStream(0))
    assert decode_batch(encode_batch(batch)).rows.rule == rule
    empty = RowBatch(PointRows(base=np.zeros((3, 1, 0))), 5, NoiseStream(0))
    assert decode_batch(encode_batch(empty)).rows.angles().shape == (3, 0)


@given(st.sampled_from([None, 1, 7, 1000, 65_535, 65_536]), st.integers(0, 1000))
def test_answers_arrive_bit_by_bit_and_counts_in_two_bytes(shots, seed):
    rng = np.random.default_rng(seed)
    frequencies = rng.multinomial(shots or 10, np.full(4, 0.25), size=3) / (shots or 10)
    strange = rng.integers(0, 2**64, size=(3, 4), dtype=np.uint64).view(np.float64)
    zeros = np.array([[-0.0, 0.0]] * 3)  # bits of shots, say
    for answers in (frequencies, -frequencies, rng.normal(size=(3, 4)), strange, zeros):
        message = encode_answers(answers, shots)
        assert decode_answers(message, 3).tobytes() == answers.tobytes()
    small = shots is not None and shots < 2**16
    assert len(encode_answers(frequencies, shots)) == (3 * 4 * 2 + 2 if small else 3 * 4 * 8)


def test_a_samples_message_is_its_content_and_little_more():
    rows = ShiftedRows(base=np.zeros((1, 30)), columns=np.arange(30))
    batch = RowBatch(rows, 1024, NoiseStream(2**62, 10**6, "backward"), np.zeros((1, 64)))
    assert len(encode_batch(batch)) <= 30 * 8 + 64 * 8 + 30 * 4 + 150


def test_observables_take_at_most_40_bytes_a_row():
    qubits, bases = 10, np.zeros((3, 20))  # each qubit in X, Y and Z
    base, vectors = np.ones((16, 5 * qubits)), np.full((16, 10), 0.1)
    rows = ShiftedRows(base=base, columns=np.arange(5 * qubits), bases=bases)
    noise = NoiseStream(2**62, 10**6, "backward")
    for samples in (1, 16):  # in the smallest chunks, and as a whole
        batch = RowBatch(rows, 1024, noise, vectors).part(0, samples * rows.rows_per_sample)
        answers = encode_answers(np.ones((batch.num_rows, 2)))
        assert len(encode_batch(batch)) + len(answers) <= 40 * batch.num_rows
    plain = RowBatch(ShiftedRows(base=base, columns=np.arange(5 * qubits)), 1024, noise, vectors)
    for samples in (1, 16):
        batch = plain.part(0, samples * plain.rows.rows_per_sample)
        assert len(encode_batch(batch)) + 16 * batch.num_rows <= 40 * batch.num_rows
