"""Timing: what is compared takes turns, round after round, and the medians count.

Machines are noisy and slow down for seconds at a time, so ratios mean something within one run
only, between things that ran side by side.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

_ENOUGH = ((25, 0.0), (5, 1.5), (3, 12.0))  # rounds, if they took at least so many seconds


def interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int | None = None
) -> dict[str, list[float]]:
    """Time several things in turn.

    Args:
        runs: what to time, by name.
        rounds: how often; None for 3 to 25 times, by how long it takes.

    Returns:
        The seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    enough = _ENOUGH if rounds is None else ((rounds, 0.0),)
    began, done = time.perf_counter(), 0
    while not any(done >= n and time.perf_counter() - began >= least for n, least in enough):
        for name, run in runs.items():
            before = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - before)
        done += 1
    return seconds


def milliseconds(
    runs: Mapping[str, Callable[[], object]], rounds: int | None = None, *, warm_up: int = 2
) -> dict[str, float]:
    """The median time of each, after some rounds that do not count: the first ones compile."""
    if warm_up:
        interleaved(runs, warm_up)
    seconds = interleaved(runs, rounds)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def machine() -> str:
    """How busy the machine is: times from one that has other work mean little."""
    return f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"


def reset_peaks(pids: Iterable[int]) -> None:
    """Let the peaks of resident memory begin anew, where the kernel lets us."""
    for pid in pids:
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc_pid_clear_refs(5)


def memory_mib(pids: Iterable[int], field: str = "VmHWM") -> float | None:
    """The largest resident memory of some processes: its peak, or ``VmRSS`` for now."""
    sizes = []
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            sizes += [int(line.split()[1]) / 1024 for line in lines if line.startswith(field)]
    return max(sizes, default=None)
