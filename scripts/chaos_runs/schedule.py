"""The schedule of a run: which faults hit it, and when; a function of the seed alone.

Time is measured in rows: a fault comes when a share of the run's rows is answered, so that it hits
the same part of the work on fast and slow machines, and there is work for it to hit.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SUDDEN = ("sigkill", "raykill", "hang", "all", "node")
"""Faults that happen at a moment of the run."""
STANDING = ("transient", "late")
"""Faults that a run has from its beginning."""
KINDS = (*SUDDEN, *STANDING)

_FEWEST, _MOST = 2, 5  # sudden faults of a run
_MOST_HANGS = 2  # each takes the pool 13 s to be sure of
_FIRST, _LAST = 0.04, 0.85  # of the rows: later ones might find the work done
_GAP = 0.03  # less would hit the same rows again and again, which a pool holds to be their fault
_ABSENCE = (0.1, 0.3)  # share of the rows that are answered until a node is there again
_RATES = (0.02, 0.05, 0.1)
_CHUNK_ROWS: tuple[int | None, ...] = (None, None, 6, 30, 90)
_IN_FLIGHT: tuple[int | None, ...] = (None, None, 1, 3)


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run.

    Args:
        at: the share of the run's rows that are answered when it happens.
        kind: one of `SUDDEN`, or ``"join"``: a node joins.
        victim: which actor or node: this number modulo how many there are.
    """

    at: float
    kind: str
    victim: int = 0


@dataclass(frozen=True)
class Schedule:
    """All that the seed decides of a run beside its data.

    Args:
        seed: the seed.
        faults: what happens, in order.
        nodes: how many nodes there are at first, of two.
        failure_rate: share of the jobs that fail for a transient reason.
        chunk_rows: the pool's option; None for ``"auto"``.
        max_in_flight: the pool's option; None for ``"auto"``.
    """

    seed: int
    faults: tuple[Fault, ...]
    nodes: int
    failure_rate: float
    chunk_rows: int | None
    max_in_flight: int | None

    @property
    def planned(self) -> dict[str, int]:
        """How many faults of each kind; a node that comes back is part of the fault it mends."""
        counts = Counter(fault.kind for fault in self.faults if fault.kind != "join")
        counts["late"] = int(self.nodes < 2)
        counts["transient"] = int(self.failure_rate > 0)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}


def draw(seed: int, kinds: Sequence[str] = KINDS) -> Schedule:
    """The schedule of a seed.

    Args:
        seed: the seed.
        kinds: kinds of faults to draw from; see `KINDS`.
    """
    chance = random.Random(f"chaos {seed}")
    sudden = [kind for kind in SUDDEN if kind in kinds]
    late = "late" in kinds and (not sudden or chance.random() < 0.3)
    transient = "transient" in kinds and (not sudden or chance.random() < 0.5)
    rate = chance.choice(_RATES)
    whole_from = chance.uniform(*_ABSENCE) if late else 0.0  # when both nodes are there
    faults = [Fault(whole_from, "join")] if late else []
    for at in _times(chance) if sudden else ():
        hangs = sum(fault.kind == "hang" for fault in faults)
        possible = [
            kind for kind in sudden
            if not (kind == "node" and at < whole_from)
            and not (kind == "hang" and hangs >= _MOST_HANGS)
        ]  # fmt: skip
        if not possible:
            continue
        fault = Fault(at, chance.choice(possible), chance.randrange(1 << 16))
        faults.append(fault)
        if fault.kind == "node":
            whole_from = at + chance.uniform(*_ABSENCE)
            faults.append(Fault(whole_from, "join"))
    return Schedule(
        seed=seed,
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        nodes=1 if late else 2,
        failure_rate=rate if transient else 0.0,
        chunk_rows=chance.choice(_CHUNK_ROWS),
        max_in_flight=chance.choice(_IN_FLIGHT),
    )


def _times(chance: random.Random) -> list[float]:
    """Shares of the rows, in order, not too close to each other."""
    times = sorted(chance.uniform(_FIRST, _LAST) for _ in range(chance.randint(_FEWEST, _MOST)))
    apart = times[:1]
    for time in times[1:]:
        apart.append(max(time, apart[-1] + _GAP))
    return apart
