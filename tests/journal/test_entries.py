from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qailab.errors import InputError, InputTypeError
from qailab.journal.record import cuts
from tests.support.journal import work


def test_tags_and_keys_differ_by_whatever_differs():
    base = work()
    others = [
        replace(base, circuit="c2"), replace(base, shots=101), replace(base, seed=8),
        replace(base, step=1), replace(base, purpose="forward"),
    ]  # fmt: skip
    assert len({base.key, *(other.key for other in others)}) == 6
    same_key = [work(data=1), work(stop=11), work(1, 10)]
    assert {other.key for other in same_key} == {base.key}
    tags = {
        base.tag(),
        base.tag(attempt=1),
        base.tag("a journal"),
        *(other.tag() for other in [*others, *same_key]),
    }
    assert len(tags) == 11
    assert work(0, 3).tag("r", 1) == "qailab-03d06936fa30cd13fd830860"  # in every process, for ever
    assert all(len(tag) == 31 and tag.startswith("qailab-") for tag in tags)


def test_numpy_integers_name_the_same_rows():
    same = replace(work(), start=np.int64(0), stop=np.int64(10), step=np.uint8(0))
    assert same.tag() == work().tag()
    assert type(same.start) is int


def test_a_part_has_its_own_digests():
    assert work(0, 10).part(3, 7) == work(3, 7)
    for start, stop in ((-1, 5), (5, 5), (5, 11), (7, 3)):
        with pytest.raises(InputError, match=r"rows 0 \.\. 9"):
            work().part(start, stop)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"digests": b"1234"}, InputError, "8 bytes for each of the 10 rows.*got 4 in all"),
        ({"stop": 0}, InputError, "stop must be .*got 0"),
        ({"start": -1}, InputError, "start must be .*got -1"),
        ({"shots": 0}, InputError, "shots must be a positive integer"),
        ({"shots": None}, InputTypeError, "shots must be a positive integer"),
        ({"seed": 2**63}, InputError, "seed must be"),
        ({"step": 1.5}, InputTypeError, "step must be"),
        ({"purpose": "sideways"}, InputError, "purpose must be one of 'forward', 'backward'"),
    ],
)
def test_what_is_no_work(wrong, kind, message):
    with pytest.raises(kind, match=message):
        replace(work(), **wrong)


@given(st.integers(0, 50), st.integers(1, 200), st.integers(1, 7), st.integers(0, 60))
def test_pieces_are_as_few_and_as_equal_as_can_be(start, num_rows, group, spare):
    most, stop = group + spare, start + num_rows
    pieces = cuts(start, stop, most=most, group=group)
    assert [first for first, _ in pieces] == [start, *(last for _, last in pieces[:-1])]
    assert pieces[-1][1] == stop
    assert all(first < last <= first + most for first, last in pieces)
    assert all(first % group == 0 for first, _ in pieces[1:])

    greedy, at = 0, start  # each piece as far as it may go: there is no way with fewer
    while at < stop:
        at = stop if stop - at <= most else (at + most) // group * group
        greedy += 1
    assert len(pieces) == greedy
    if start % group == 0 and num_rows % group == 0 and most % group == 0:
        sizes = [last - first for first, last in pieces]
        assert max(sizes) - min(sizes) <= group
