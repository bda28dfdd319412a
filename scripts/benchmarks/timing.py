"""Timing: every mode and the bound in turn, round after round, and the medians of their times.

Machines are noisy, and slow down for seconds at a time: what is compared must run side by side.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.memory import peak_mib, reset_peaks
from benchmarks.modes import Mode
from benchmarks.workload import Case, Gradients, RawAer, Workload

MOST_BOUND_SECONDS = 5.0
"""Of one run of the bound; beyond, a stretch of its rows is run and its time scaled up."""

_WARM_UP_SECONDS = 1.0  # work that takes longer is not run an extra time to warm up
_SMALL_SECONDS = 1.5  # of all rounds of a case, if it needs no more than that
_MOST_ROUNDS = 25


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        mode: where the rows ran, or whose library ran them.
        case: the size of the work.
        rows: circuit evaluations of a backward pass, 2 * angles * batch.
        seconds: median time of a backward pass.
        fastest: shortest time, of the round that other processes disturbed least.
        rounds: how many times were measured.
        bound_seconds: median time of raw Aer on the same rows, in the same rounds.
        bound_scaled: whether that was measured on a stretch of the rows and scaled up.
        in_process_seconds: median time of qailab in this process, in the same rounds.
        bytes_per_row: bytes over the wire, both ways; None without a wire.
        driver_mib: peak resident memory of this process meanwhile, MiB.
        actor_mib: the largest peak of an actor meanwhile, MiB; None without actors.
    """

    mode: str
    case: Case
    rows: int
    seconds: float
    fastest: float
    rounds: int
    bound_seconds: float | None = None
    bound_scaled: bool = False
    in_process_seconds: float | None = None
    bytes_per_row: float | None = None
    driver_mib: float | None = None
    actor_mib: float | None = None

    @property
    def rows_per_second(self) -> float:
        """Rows answered in a second."""
        return self.rows / self.seconds


@dataclass
class Series:
    """The measurements of one mode, as they come in."""

    mode: Mode
    run: Callable[[], Gradients]
    seconds: list[float] = field(default_factory=list)
    driver_mib: list[float | None] = field(default_factory=list)
    actor_mib: list[float | None] = field(default_factory=list)

    def measure(self) -> None:
        """Run once, and note time and memory."""
        watched = {os.getpid(), *self.mode.actors}
        reset_peaks(watched)
        began = time.perf_counter()
        self.run()
        self.seconds.append(time.perf_counter() - began)
        self.driver_mib.append(peak_mib([os.getpid()]))
        self.actor_mib.append(peak_mib(self.mode.actors))


def measure_case(
    case: Case, modes: Sequence[Mode], *, rounds: int | None = None, with_bound: bool = True
) -> list[Figure]:
    """Measure a case in every mode.

    Args:
        case: what to run.
        modes: where.
        rounds: how often; by default 5 to 25 times if it is fast, 3 times if it is slow.
        with_bound: whether to measure the bound as well.

    Returns:
        One figure for each mode.
    """
    work = Workload(case)
    rows = work.shifted_rows().num_rows
    series = [Series(mode, work.backward(work.layer(mode.backend))) for mode in modes]
    bound = RawAer(work, MOST_BOUND_SECONDS) if with_bound else None
    bound_seconds: list[float] = []
    expected = _warm_up(series, case, modes) * (len(series) + with_bound)
    if rounds is None:
        rounds = min(_MOST_ROUNDS, max(5, int(_SMALL_SECONDS / expected))) if expected < 4 else 3
    sent = [each.mode.wire_bytes() for each in series]
    for _ in range(rounds):
        for each in series:
            each.measure()
        if bound is not None:
            bound_seconds.append(bound.seconds())
    return [
        Figure(
            mode=each.mode.name,
            case=case,
            rows=rows,
            seconds=statistics.median(each.seconds),
            fastest=min(each.seconds),
            rounds=rounds,
            bound_seconds=statistics.median(bound_seconds) if bound_seconds else None,
            bound_scaled=bound is not None and bound.scaled,
            in_process_seconds=statistics.median(series[0].seconds),
            bytes_per_row=(
                (each.mode.wire_bytes() - before) / rows / rounds if each.mode.actors else None
            ),
            driver_mib=_largest(each.driver_mib),
            actor_mib=_largest(each.actor_mib),
        )
        for each, before in zip(series, sent, strict=True)
    ]


def _warm_up(series: Sequence[Series], case: Case, modes: Sequence[Mode]) -> float:
    """Compile the circuit everywhere, let pools learn its speed; the seconds a run may take."""
    small = Workload(Case(case.qubits, min(2, case.batch), case.shots, case.seed, case.for_inputs))
    for mode in modes:
        run = small.backward(small.layer(mode.backend))
        run()  # compiles, which says nothing about speed
        for _ in range(2):
            began = time.perf_counter()
            run()
            seconds = (time.perf_counter() - began) * case.batch / small.case.batch
    began = time.perf_counter()
    if seconds < _WARM_UP_SECONDS:
        for each in series:
            each.run()
        return (time.perf_counter() - began) / len(series)
    return seconds


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
