import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qailab.gradients import NoiseStream, PointRows, RowBatch, ShiftedRows, SlopeRows


@st.composite
def batches(draw):
    """A batch of any kind, with cotangents."""
    samples, angles, outcomes = draw(st.integers(1, 4)), draw(st.integers(1, 5)), 4
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from([PointRows, ShiftedRows, SlopeRows]))
    if kind is not PointRows:
        columns = sorted(draw(st.sets(st.integers(0, angles - 1), min_size=1)))
        rows = kind(base=rng.normal(size=(samples, angles)), columns=np.array(columns))
    else:
        base = rng.normal(size=(samples, 2 * draw(st.integers(1, 2)), angles))
        rows = PointRows(base=base, pairs=True)
    return RowBatch(rows, 10, NoiseStream(1), rng.normal(size=(samples, outcomes)))


@given(batches(), st.data())
def test_any_part_has_the_same_rows_with_the_same_numbers(batch, data):
    rows = batch.rows
    start = data.draw(st.integers(0, rows.num_rows - 1))
    stop = data.draw(st.integers(start + 1, rows.num_rows))
    part = batch.part(start, stop)
    np.testing.assert_array_equal(part.rows.angles(), rows.angles()[start:stop])
    np.testing.assert_array_equal(
        part.cotangents[part.rows.samples()], batch.cotangents[rows.samples()[start:stop]]
    )
    # and a part of a part
    middle = (start + stop) // 2
    if middle < stop:
        inner = part.part(middle, stop)
        np.testing.assert_array_equal(inner.rows.angles(), rows.angles()[middle:stop])


@given(batches(), st.data())
def test_a_part_carries_only_the_samples_it_touches(batch, data):
    sample = data.draw(st.integers(0, len(batch.rows.base) - 1))
    per_sample = batch.rows.rows_per_sample
    part = batch.part(sample * per_sample, (sample + 1) * per_sample)
    assert len(part.rows.base) == len(part.cotangents) == 1


def test_shifted_rows_are_ordered_sample_angle_term():
    base = np.array([[0.0, 10.0, 20.0], [100.0, 110.0, 120.0]])
    rows = ShiftedRows(base=base, columns=np.array([0, 2]))
    half = np.pi / 2
    expected = [
        [half, 10, 20], [-half, 10, 20], [0, 10, 20 + half], [0, 10, 20 - half],
        [100 + half, 110, 120], [100 - half, 110, 120],
        [100, 110, 120 + half], [100, 110, 120 - half],
    ]  # fmt: skip
    np.testing.assert_allclose(rows.angles(), expected)
    np.testing.assert_array_equal(rows.samples(), [0, 0, 0, 0, 1, 1, 1, 1])
