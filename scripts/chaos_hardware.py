"""Chaos on hardware: what `IBMBackend` and its journal do when requests, jobs and drivers fail.

::

    scripts/chaos_hardware                          all: 200 schedules of faults, 14 that are
                                                    hopeless, 10 late jobs, 20 kills, 20 budgets
    scripts/chaos_hardware --faults 50 --seed 100   only faults, seeds 100 to 149
    scripts/chaos_hardware --kills 20               only kills
    scripts/chaos_hardware --faults 1 --only 17     seed 17 again

Each run has a rehearsal server of its own on 127.0.0.1, reached by the real client; the seed
decides what is asked for and what goes wrong, but not where each thread is at that moment.

========  ==========================================================================================
faults    a gradient on one or two devices at once, in session, batch or job mode, by either
          Sampler, in one job or several, with a journal or without, while requests, jobs and
          sessions fail in ways that pass. It must equal the one without faults: bit for bit where
          the rows were cut into the same jobs, else within 6 standard errors. Every tenth
          (``--pool-every``) runs through a LauncherPool, and of these every third loses an actor.
hopeless  faults that do not pass: an error of the right class, before its deadline.
late      a job that arrives when nobody waits for it any more: it must be found, and not be sent
          again; if it comes too late for that, it must be cancelled before it runs, or reported.
kills     a training of 10 steps with a journal, whose driver is killed (SIGKILL) at random moments
          and started again until it ends: the weights, bit for bit, and the jobs at the server are
          those of an undisturbed one. Every tenth kill (``--pool-every``) is of a driver with a
          pool.
budget    a training with a budget: by the server's figures it is passed by one job at most.
========  ==========================================================================================

In all of them: no two jobs at the server have the same rows, unless one of them failed or was
cancelled; each row is answered once; no job is left running and no session open; the journal
agrees with the server on jobs, states and QPU seconds; and nothing takes longer than its deadline.

A line is printed for each run; ``<kind>-<seed>.json`` in the run folder has the rest. Exit status:
0 if all holds, 1 if not.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {
    "USAGE_DATA_OPT_OUT": "True",
    "OMP_NUM_THREADS": "1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: listen on 127.0.0.1 only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""What libraries read when they are first imported."""
_DEFAULTS = {"faults": 200, "hopeless": 14, "late": 10, "kills": 20, "budgets": 20}
_DEADLINE = 60.0
_MOST_KILLS = 4  # of one training


@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        counts: how many of each kind.
        first: the first seed.
        only: the one seed to run, if so.
        pool_every: every so many runs there is a pool; 0 for never.
        steps: of a training that is killed.
        deadline: seconds that a run may take.
        folder: where files go.
    """

    counts: dict[str, int]
    first: int
    only: int | None
    pool_every: int
    steps: int
    deadline: float
    folder: Path

    def seeds(self, kind: str) -> Sequence[int]:
        """The seeds of a kind."""
        if self.only is not None:
            return [self.only] if self.counts[kind] else []
        return range(self.first, self.first + self.counts[kind])


def parse_plan(arguments: Sequence[str] | None = None) -> Plan:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind, count in _DEFAULTS.items():
        text = f"how many of these; {count} where no kind is given, else 0"
        parser.add_argument(f"--{kind}", type=_natural, metavar="N", help=text)
    parser.add_argument("--seed", type=_natural, default=0, help="the first seed (0)")
    parser.add_argument("--only", type=_natural, metavar="SEED", help="only this seed")
    parser.add_argument(
        "--pool-every", type=_natural, default=10, help="how often there is a pool (10); 0: never"
    )
    parser.add_argument("--steps", type=_natural, default=10, help="of killed trainings (10)")
    parser.add_argument(
        "--deadline", type=float, default=_DEADLINE, help=f"seconds for a run ({_DEADLINE:g})"
    )
    parser.add_argument("--out", type=Path, help="folder (runs/chaos-hardware-<date>-<time>)")
    options = parser.parse_args(arguments)
    given = {kind: getattr(options, kind) for kind in _DEFAULTS}
    counts = {kind: count or 0 for kind, count in given.items()}
    return Plan(
        counts=counts if any(value is not None for value in given.values()) else _DEFAULTS,
        first=options.seed,
        only=options.only,
        pool_every=options.pool_every,
        steps=options.steps,
        deadline=options.deadline,
        folder=options.out or Path("runs") / time.strftime("chaos-hardware-%Y%m%d-%H%M%S"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; the exit status."""
    plan = parse_plan(arguments)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        # The client reads accounts there, and makes the file if there is none.
        os.environ |= {**ENVIRONMENT, "HOME": home}
        warnings.simplefilter("ignore")
        logging.getLogger("qailab").addHandler(logging.FileHandler(plan.folder / "qailab.log"))
        logging.getLogger("qailab").propagate = False
        from hardware_runs import report as reporting

        reports = []
        for report in _runs(plan):
            reports.append(report)
            reporting.write(plan.folder, report)
            print(reporting.line(report), flush=True)
        print(f"\n{reporting.summary(reports)}\nreports are in {plan.folder}")
        return reporting.exit_code(reports)


def _runs(plan: Plan) -> Iterator[object]:
    from hardware_runs import budgets, faults, hopeless, late
    from hardware_runs.scenario import draw

    for seed in plan.seeds("faults"):
        yield faults.run(draw(seed, _where(seed, plan.pool_every)), plan.deadline)
    for seed in plan.seeds("hopeless"):
        yield hopeless.run(seed)
    for seed in plan.seeds("late"):
        yield late.run(seed, plan.deadline)
    yield from _kills(plan)
    for seed in plan.seeds("budgets"):
        yield budgets.run(seed, plan.deadline)


def _where(seed: int, pool_every: int) -> str:
    if not pool_every or seed % pool_every != pool_every - 1:
        return "process"
    return "killed actor" if seed // pool_every % 3 == 2 else "pool"


def _kills(plan: Plan) -> Iterator[object]:
    """Trainings until there were so many kills."""
    left = plan.counts["kills"]
    if not left:
        return
    from hardware_runs import kills

    drivers, seed = kills.Drivers(), plan.first if plan.only is None else plan.only
    while left > 0:
        ray = bool(plan.pool_every) and seed % plan.pool_every == plan.pool_every - 1
        most = min(left, 2 if ray else _MOST_KILLS)
        report = kills.run(seed, drivers, plan.deadline, most=most, steps=plan.steps, ray=ray)
        yield report
        if plan.only is not None:
            return
        left -= int(report.figures.get("kills", most))
        seed += 1


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
