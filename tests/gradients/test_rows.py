import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qailab.gradients import (
    JoinedRows,
    NoiseStream,
    PointRows,
    RowBatch,
    ShiftedRows,
    SlopeRows,
)


@st.composite
def batches(draw):
    """A batch of any kind, with cotangents, and with bases or without."""
    samples, angles, outcomes = draw(st.integers(1, 4)), draw(st.integers(1, 5)), 4
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    bases = draw(st.sampled_from([None, rng.normal(size=(1, 2)), rng.normal(size=(3, 1))]))
    kind = draw(st.sampled_from([PointRows, ShiftedRows, SlopeRows]))
    if kind is not PointRows:
        columns = sorted(draw(st.sets(st.integers(0, angles - 1), min_size=1)))
        rows = kind(base=rng.normal(size=(samples, angles)), columns=np.array(columns), bases=bases)
    else:
        base = rng.normal(size=(samples, 2 * draw(st.integers(1, 2)), angles))
        rows = PointRows(base=base, pairs=True, bases=bases)
    return RowBatch(rows, 10, NoiseStream(1), rng.normal(size=(samples, outcomes)))


@st.composite
def joined(draw):
    """Rows of two passes over some samples."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    samples, first = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    bases = draw(st.sampled_from([None, rng.normal(size=(3, 2))]))
    base = rng.normal(size=(samples, 3))
    forward = PointRows.numbered(first, base[:, None], bases=bases)
    points = rng.normal(size=(samples, 4, 3))
    backward = draw(st.sampled_from([
        ShiftedRows.numbered(first, base, columns=np.array([0, 2]), bases=bases),
        PointRows.numbered(first, points, pairs=True, bases=bases),
    ]))  # fmt: skip
    return RowBatch(JoinedRows.of(forward, backward), 10, NoiseStream(1, 2, "both"))


@given(joined(), st.data())
def test_passes_that_are_joined_keep_their_rows_and_numbers(batch, data):
    rows, samples = batch.rows, len(batch.rows.base)
    start = data.draw(st.integers(0, samples - 1))
    stop = data.draw(st.integers(start + 1, samples))
    first = rows.first_sample
    part = batch.part(*((first + each) * rows.rows_per_sample for each in (start, stop)))
    whole = rows.angles().reshape(samples, rows.rows_per_sample, -1)
    np.testing.assert_array_equal(part.rows.angles(), whole[start:stop].reshape(part.num_rows, -1))
    np.testing.assert_array_equal(
        part.rows.samples(), np.repeat(np.arange(stop - start), rows.group)
    )
    forward, backward = part.passes()
    np.testing.assert_array_equal(
        part.rows.join(forward.rows.angles(), backward.rows.angles()), part.rows.angles()
    )
    for mine, each in zip(part.rows.split(part.rows.angles()), (forward, backward), strict=True):
        np.testing.assert_array_equal(mine, each.rows.angles())
        assert each.rows.start == (first + start) * each.rows.rows_per_sample
        assert each.rows.same_as(each.rows.part(each.rows.start, each.rows.stop))
        assert each.noise == NoiseStream(1, 2, each.noise.purpose)
    assert (forward.noise.purpose, backward.noise.purpose) == ("forward", "backward")
    assert (
        part.rows.name_of(part.rows.start).split("(")[1]
        == forward.rows.name_of(forward.rows.start).split("(")[1]
    )


@given(batches(), st.data())
def test_any_part_has_the_same_rows_with_the_same_numbers(batch, data):
    rows = batch.rows
    points = rows.num_rows // rows.num_bases
    start = data.draw(st.integers(0, points - 1)) * rows.num_bases
    stop = data.draw(st.integers(start // rows.num_bases + 1, points)) * rows.num_bases
    part = batch.part(start, stop)
    np.testing.assert_array_equal(part.rows.angles(), rows.angles()[start:stop])
    np.testing.assert_array_equal(
        part.cotangents[part.rows.samples()], batch.cotangents[rows.samples()[start:stop]]
    )
    # and a part of a part
    middle = (start + stop) // 2 // rows.num_bases * rows.num_bases
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


def test_all_bases_of_a_point_follow_each_other_and_their_answers_are_summed():
    base, bases = np.array([[0.0, 10.0], [100.0, 110.0]]), np.array([[0.0], [-1.0], [-2.0]])
    rows = ShiftedRows(base=base, columns=np.array([1]), bases=bases)
    half = np.pi / 2
    points = [[0, 10 + half], [0, 10 - half], [100, 110 + half], [100, 110 - half]]
    expected = [[*point, *setting] for point in points for setting in bases]
    np.testing.assert_allclose(rows.angles(), expected)
    assert (rows.num_rows, rows.group, rows.rows_per_sample) == (12, 6, 6)
    np.testing.assert_array_equal(rows.samples(), [0] * 6 + [1] * 6)
    assert rows.name_of(11) == "row 11 (sample 1, angle 1 shifted by -1.571, basis 2)"
    second = rows.part(6, 12).in_basis(1)
    np.testing.assert_allclose(second.angles(), np.array(expected)[[7, 10]])
    assert (second.start, second.stop) == (2, 4)
    answers = np.arange(24.0).reshape(12, 2)
    np.testing.assert_array_equal(rows.over_bases(answers), answers.reshape(4, 3, 2).sum(axis=1))
