"""What the tests of a real pool share."""

import time

DEADLINE = 120
SMALL = {"num_cpus": 0.5}  # eight actors fit the test cluster


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def actor_pids(pool):
    return [actor["pid"] for actor in pool.stats()["actors"]]


def actor_handles(pool):
    return [pool._dispatcher._workers._actors[slot.index] for slot in pool._dispatcher.slots]
