"""The owner of the weights in simulated time: lanes are slow, hang, are lost; the driver dies."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qailab.errors import InputError
from qailab.training.log import Entry
from qailab.training.schedule import LiveSchedule, ReplaySchedule, Task
from tests.support.lanes import Run

BATCHES = 40


def fates(seed, trouble):
    chance = random.Random(seed)
    speeds = [10 ** chance.uniform(-1, 1) for _ in range(7)]
    while True:
        fate = "ends" if chance.random() > trouble else chance.choice(["lost", "hangs"])
        yield chance.choice(speeds) * chance.expovariate(1.0), fate


def live(max_staleness, staleness="drop"):
    schedule = LiveSchedule(max_staleness, staleness)
    schedule.batches = BATCHES
    return schedule


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    lanes=st.integers(1, 9),
    max_staleness=st.integers(0, 12),
    staleness=st.sampled_from(["drop", "scale"]),
    trouble=st.sampled_from([0.0, 0.05, 0.4]),
    kill_after=st.none() | st.integers(0, 80),
    other_lanes=st.integers(1, 9),
)
def test_each_batch_counts_once_and_a_replay_is_the_same_run(
    seed, lanes, max_staleness, staleness, trouble, kill_after, other_lanes
):
    def new():
        return live(max_staleness, staleness)

    ran = Run(new(), lanes, fates(seed, trouble), kill_after).run(new)
    applied = [entry for entry in ran.log if entry.applied]
    assert sorted(entry.batch for entry in applied) == list(range(BATCHES))
    assert ran.schedule.version == ran.schedule.finished == BATCHES
    for version, entry in enumerate(applied):
        late = version - entry.version
        assert 0 <= late <= (max_staleness if staleness == "drop" else BATCHES)
        weight = 1.0 - entry.lane / 16
        assert entry.scale == (weight / (1 + late) if late > max_staleness else weight)
    tries = [(entry.batch, entry.attempt) for entry in ran.log]
    assert len(set(tries)) == len(tries)  # no two gradients with the same noise

    def again():
        return ReplaySchedule(ran.log)

    replay = Run(again(), other_lanes, fates(seed + 1, trouble), kill_after).run(again)
    assert replay.weights == ran.weights
    assert replay.log == ran.log


def test_one_lane_without_trouble_is_the_ordinary_loop():
    ran = Run(live(0), 1, fates(7, 0.0)).run()
    assert ran.log == [Entry(0, n, 0, n, True, 1.0) for n in range(BATCHES)]


def test_a_batch_that_a_hanging_lane_holds_goes_to_others_when_its_gradient_would_be_dropped():
    schedule = live(1)
    held, *others = [schedule.take() for _ in range(3)]
    for number, task in enumerate(others):
        schedule.arrive(task, 1)
        assert schedule.next_entry().applied
        if number == 0:
            assert schedule.take() == Task(3, 0, 1)  # a gradient of version 0 would still do
    assert schedule.take() == Task(0, 1, 2)
    schedule.arrive(held, 0)
    assert schedule.next_entry() == Entry(0, 0, 0, 0, False, 1.0)
    assert schedule.take() == Task(4, 0, 2)  # and is not taken a third time


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(0, 0, 0, 1, True, 1.0)],  # weights that there were not yet
        [Entry(0, 0, 0, -1, True, 1.0)],
        [Entry(0, 0, 0, 0, True, 1.0), Entry(0, 0, 1, 0, True, 1.0)],  # one batch twice
    ],
)
def test_a_log_that_cannot_be_is_refused(entries):
    with pytest.raises(InputError, match="contradicts"):
        ReplaySchedule(entries)
