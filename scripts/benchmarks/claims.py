"""What must hold: each demand with what was required, what was measured, and whether it holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.memory import has_loaded, resident_mib
from benchmarks.modes import IN_PROCESS, Mode
from benchmarks.peers import LIGHTNING, TORCH_CONNECTOR
from benchmarks.timing import Figure

MEMORY_QUBITS, MEMORY_BATCH = 10, 256  # 25,600 rows
_LONG_SECONDS = 0.5  # work that is worth sharing
_IMPORT_PROGRAM = """
import sys, time
began = time.perf_counter()
import qailab.torch
print(time.perf_counter() - began, *{"ray", "qiskit_ibm_runtime"} & set(sys.modules))
"""


@dataclass(frozen=True)
class Claim:
    """One demand.

    Args:
        what: what is measured.
        required: what it must be.
        measured: what it is.
        holds: whether it is as required; None if it was not measured.
        detail: the numbers behind it.
    """

    what: str
    required: str
    measured: str = "not measured"
    holds: bool | None = None
    detail: str = ""

    @property
    def verdict(self) -> str:
        """``ok``, ``SHORT`` (of what is required), or ``-``."""
        return "-" if self.holds is None else "ok" if self.holds else "SHORT"


def speed_claims(figures: Sequence[Figure]) -> list[Claim]:
    """In-process against the bound, and pools against in-process."""
    small = _find(figures, IN_PROCESS, 6, 16)
    claims = [
        _at_most(
            "n=6 B=16: in-process / raw Aer",
            1.15,
            small.seconds / small.bound_seconds if small and small.bound_seconds else None,
            "x",
            small and f"{_ms(small.seconds)} / {_ms(small.bound_seconds)}",
        )
    ]
    long = [
        figure
        for figure in figures
        if figure.mode == "2 actors" and (figure.in_process_seconds or 0.0) >= _LONG_SECONDS
    ]
    worst = max(long, key=_of_in_process, default=None)
    alone = worst and _find(figures, IN_PROCESS, worst.case.qubits, worst.case.batch)
    detail = (
        f"{worst.case.name}: {_ms(worst.seconds)} / {_ms(alone.seconds)}, "
        f"best rounds {worst.fastest / alone.fastest:.2f}; "
        f"largest of {', '.join(f'{_of_in_process(figure):.2f}' for figure in long)}"
        if worst and alone
        else None
    )
    claims.append(
        _at_most(
            "2 actors / in-process, where that takes 0.5 s or more",
            0.6,
            _of_in_process(worst) if worst else None,
            "x",
            detail,
        )
    )
    return claims


def latency_claim(figures: Sequence[Figure]) -> Claim:
    """A small backward pass through a pool against in-process: the slowest pool counts."""
    what = "n=4 B=1, weights only: pool - in-process"
    delays = {
        figure.mode: 1e3 * (figure.seconds - figure.in_process_seconds)
        for figure in figures
        if figure.mode != IN_PROCESS and figure.in_process_seconds is not None
    }
    if not delays:
        return Claim(what, "at most 10 ms")
    slowest = max(delays, key=lambda mode: delays[mode])
    return _at_most(what, 10.0, delays[slowest], " ms", slowest)


def wire_claims(figures: Sequence[Figure]) -> list[Claim]:
    """Bytes for each row; the pool that needs most counts."""
    claims = []
    for qubits, limit in ((6, 40.0), (10, 128.0)):
        sizes = {
            figure.mode: figure.bytes_per_row
            for figure in figures
            if (figure.case.qubits, figure.case.batch) == (qubits, 16) and figure.bytes_per_row
        }
        most = max(sizes, key=lambda mode: sizes[mode], default=None)
        value = None if most is None else sizes[most]
        what = f"n={qubits} B=16: wire, for each row"
        claims.append(_at_most(what, limit, value, " bytes", most))
    return claims


def memory_claims(figures: Iterable[Figure]) -> list[Claim]:
    """Peak memory of a backward pass of many rows."""
    driver = {figure.mode: figure.driver_mib for figure in figures}
    actors = {figure.mode: figure.actor_mib for figure in figures if figure.actor_mib}
    what = f"n={MEMORY_QUBITS} B={MEMORY_BATCH}: peak memory of"
    claims = []
    for whose, peaks in (("the driver", driver), ("an actor", actors)):
        known = {mode: peak for mode, peak in peaks.items() if peak is not None}
        most = max(known, key=lambda mode: known[mode], default=None)
        peak = None if most is None else known[most]
        claims.append(_at_most(f"{what} {whose}", 1536.0, peak, " MiB", most))
    return claims


def peer_claims(figures: Sequence[Figure]) -> list[Claim]:
    """How many times faster than other libraries, on 2 actors; in-process is shown beside it."""
    claims = []
    for peer, qubits, least in (
        (LIGHTNING, 6, 20.0),
        (TORCH_CONNECTOR, 6, 50.0),
        (LIGHTNING, 10, 10.0),
    ):
        what = f"n={qubits} B=16: {peer} / 2 actors"
        theirs, ours = (_find(figures, mode, qubits, 16) for mode in (peer, "2 actors"))
        if theirs is None or ours is None or theirs.in_process_seconds is None:
            claims.append(Claim(what, f"at least {least:g}x", detail="needs --peers"))
            continue
        ratio = theirs.seconds / ours.seconds
        detail = (
            f"{_ms(theirs.seconds)} / {_ms(ours.seconds)}; "
            f"/ in-process: {theirs.seconds / theirs.in_process_seconds:.1f}x"
        )
        claims.append(Claim(what, f"at least {least:g}x", f"{ratio:.1f}x", ratio >= least, detail))
    return claims


def import_claim(tries: int) -> Claim:
    """Import ``qailab.torch`` in fresh processes; the best time counts."""
    seconds, loaded = [], set()
    for _ in range(tries):
        program = [sys.executable, "-c", _IMPORT_PROGRAM]
        answer = subprocess.run(program, check=True, capture_output=True, text=True).stdout.split()
        seconds.append(float(answer[0]))
        loaded.update(answer[1:])
    return Claim(
        "import qailab.torch",
        "under 3 s, no ray, no IBM",
        f"{min(seconds):.2f} s, {' and '.join(sorted(loaded)) or 'neither'}",
        min(seconds) < 3.0 and not loaded,
        f"a fresh process, best of {tries}",
    )


def idle_actor_claim(modes: Sequence[Mode]) -> Claim:
    """Look at actors that have not yet run anything."""
    what, required = "an idle Aer actor", "under 250 MiB, no torch"
    actors = [actor for mode in modes for actor in mode.actors]
    sizes = [size for actor in actors if (size := resident_mib(actor)) is not None]
    if not sizes:
        return Claim(what, required, detail="needs /proc")
    torch = any(has_loaded(actor, "libtorch") for actor in actors)
    measured = f"{max(sizes):.0f} MiB, {'' if torch else 'no '}torch"
    return Claim(what, required, measured, max(sizes) < 250.0 and not torch, "resident")


def _at_most(
    what: str, limit: float, value: float | None, unit: str, detail: str | None = None
) -> Claim:
    required = f"at most {limit:g}{unit}"
    if value is None:
        return Claim(what, required)
    digits = 2 if unit == "x" else 1
    return Claim(what, required, f"{value:.{digits}f}{unit}", value <= limit, detail or "")


def _find(figures: Iterable[Figure], mode: str, qubits: int, batch: int) -> Figure | None:
    for figure in figures:
        if (figure.mode, figure.case.qubits, figure.case.batch) == (mode, qubits, batch):
            return figure
    return None


def _of_in_process(figure: Figure) -> float:
    return figure.seconds / (figure.in_process_seconds or float("nan"))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.0f} ms"
