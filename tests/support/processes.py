"""Processes of this machine, and waits for what others do. Each wait has a deadline."""

import time

import psutil

DEADLINE = 120


def wait_until(condition, seconds=DEADLINE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children_of(pid):
    """What descends from a process."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
