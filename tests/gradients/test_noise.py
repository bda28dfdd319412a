import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qailab.errors import InputError, InputTypeError
from qailab.gradients.noise import NoiseStream, check_seed


def draws(stream, first, count):
    return [generator.random(5).tolist() for generator in stream.generators(first, count)]


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**9), st.integers(0, 2**40), st.integers(1, 5))
def test_the_noise_of_a_row_does_not_depend_on_where_one_begins(seed, step, first, count):
    stream = NoiseStream(seed, step)
    whole = draws(stream, first, count)
    for offset in range(count):
        assert draws(stream, first + offset, 1) == whole[offset : offset + 1]


def test_rows_steps_seeds_and_purposes_differ():
    streams = [
        NoiseStream(s, t, p) for s in (0, 1) for t in (0, 1) for p in ("forward", "backward")
    ]
    values = {tuple(row) for stream in streams for row in draws(stream, 0, 3)}
    assert len(values) == 3 * len(streams)


def test_streams_of_other_things_differ_and_known_ones_do_not_change():
    streams = [NoiseStream.of(what, s, 0, "forward") for what in "ab" for s in (0, 1, 2**63 - 1)]
    assert len({stream.seed for stream in streams}) == 6
    assert all(0 <= stream.seed < 2**63 for stream in streams)
    known = NoiseStream.of("circuit", 7, 3, "backward")
    assert known == NoiseStream(7028342506769288429, 3, "backward")


def test_rows_are_independent():
    values = np.array([g.random(200) for g in NoiseStream(3).generators(0, 200)])
    correlations = np.corrcoef(values)[~np.eye(200, dtype=bool)]
    assert abs(correlations.mean()) < 0.001  # 40,000 values of standard deviation 0.07
    assert correlations.std() == pytest.approx(1 / np.sqrt(200), rel=0.05)


def test_drawing_different_amounts_does_not_shift_later_rows():
    stream = NoiseStream(5)
    for row, generator in enumerate(stream.generators(0, 4)):
        generator.integers(0, 2, size=row, dtype=np.uint32)  # leaves half a word behind
    second = [g.random() for g in stream.generators(0, 4)]
    assert second == [g.random() for g in stream.generators(0, 4)]
    for row in range(4):
        (value,) = (g.random() for g in stream.generators(row, 1))
        assert value == second[row]


def test_known_values_do_not_change():
    # A seed means the same tomorrow: these were drawn when the stream was defined.
    (row,) = draws(NoiseStream(7, 3, "backward"), 11, 1)
    assert row[:2] == pytest.approx([0.4472312081780846, 0.6086353799107286], abs=1e-15)


@pytest.mark.parametrize(("seed", "kind"), [(-1, InputError), (2**63, InputError)])
def test_seeds_out_of_range(seed, kind):
    with pytest.raises(kind, match=str(seed)):
        check_seed(seed)


@pytest.mark.parametrize("seed", [1.5, "7", True])
def test_seeds_are_integers(seed):
    with pytest.raises(InputTypeError, match="integer"):
        check_seed(seed)
