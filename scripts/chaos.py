"""Chaos: train while actors die, hang and nodes come and go; the weights must be the same bits.

::

    scripts/chaos                            10 runs with seeds 0 to 9, about 5 minutes
    scripts/chaos --seed 17                  one run, with the faults of seed 17
    scripts/chaos --seed 100 --runs 50       seeds 100 to 149
    scripts/chaos --faults node late         only nodes that go, come back, or come late

A run trains a small hybrid model on a `LauncherPool` whose actors live on two nodes of a private
Ray cluster on 127.0.0.1, while faults hit it. Which, whom and when is a function of the seed; when
means at which share of the rows. (Not repeatable is where each process is at that moment.)

=========  =========================================================================
sigkill    an actor's process is killed
raykill    the same by ``ray.kill``
hang       an actor's process is stopped (SIGSTOP); the pool has to find and end it
all        all actors' processes are killed at once
node       a node is killed, with half of the actors; later a new one joins
transient  2 to 10 % of the jobs fail, in this run and in the calm one
late       one of the two nodes joins only while the training runs
=========  =========================================================================

The seed also draws the pool's ``chunk_rows`` and ``max_in_flight``. Then the pool has to get all
its actors back and trains the same again undisturbed, which gives the time that was lost. A row
takes 2 ms more than simulating it does, without keeping a core busy.

What must hold, in each run: weights and the hash of all gradients equal those of a run in process
without Ray, bit for bit; each row is answered exactly once; all actors come back; the pool logs no
error; no process of it is left after `close`; and the run ends within ``--deadline`` seconds. A
run that does not is ended with all its processes, and reported with the stacks of its threads.

The run folder holds ``seed-<seed>.json`` for each run, ``table.txt``, ``reports.json``,
``worker.log``, all that Ray and the pool said, and after a run that failed Ray's own logs, in
``ray-seed-<seed>``.

Exit status: 0 if all holds, 1 if not, 130 after Ctrl-C and 143 after SIGTERM; everything that was
started is ended then.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from chaos_runs import report as reporting
from chaos_runs.report import Report
from chaos_runs.schedule import KINDS, draw
from chaos_runs.supervisor import Supervisor

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: listen on 127.0.0.1 only
    "RAY_worker_niceness": "0",  # at nice 15, its default, a busy machine looks like a hang
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}
"""What Ray reads when it is first imported, in the process that runs the trials."""
_RUNS = 10


@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        seeds: the seeds of the runs.
        settings: the fields of `chaos_runs.trial.Settings`.
        folder: where files go.
    """

    seeds: tuple[int, ...]
    settings: dict[str, Any]
    folder: Path


def parse_plan(arguments: Sequence[str] | None = None) -> Plan:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="the first seed (0); alone: only this one")
    which.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="these seeds")
    parser.add_argument("--runs", type=_positive, help=f"how many seeds from --seed on ({_RUNS})")
    parser.add_argument("--actors", type=_several, default=4, help="actors of the pool (4)")
    parser.add_argument("--steps", type=_positive, default=8, help="optimizer steps (8)")
    parser.add_argument(
        "--faults", choices=KINDS, nargs="+", default=list(KINDS), help="kinds to draw from (all)"
    )
    parser.add_argument(
        "--deadline", type=float, default=180.0, help="seconds that a run may take (180)"
    )
    parser.add_argument(
        "--chunk-timeout",
        type=float,
        default=5.0,
        help="the pool's chunk_timeout (5 s); where machines are so busy that a new process takes "
        "longer to answer its first chunk, the pool rightly gives it up",
    )
    parser.add_argument("--out", type=Path, help="folder for the files (runs/chaos-<date>-<time>)")
    options = parser.parse_args(arguments)
    if options.seeds and options.runs:
        parser.error("--runs counts from --seed on; with --seeds there is nothing to count")
    runs = options.runs or (_RUNS if options.seed is None else 1)
    first = options.seed or 0
    return Plan(
        seeds=tuple(options.seeds or range(first, first + runs)),
        settings={
            "actors": options.actors,
            "steps": options.steps,
            "kinds": options.faults,
            "deadline": options.deadline,
            "chunk_timeout": options.chunk_timeout,
        },
        folder=options.out or Path("runs") / time.strftime("chaos-%Y%m%d-%H%M%S"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; the exit status."""
    plan = parse_plan(arguments)
    plan.folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    reports: list[Report] = []
    kinds = plan.settings["kinds"]
    status = None
    try:
        with Supervisor(plan.settings, ENVIRONMENT, plan.folder) as supervisor:
            for report in supervisor.run(plan.seeds, lambda seed: draw(seed, kinds).planned):
                reports.append(report)
                reporting.write(plan.folder, report)
                print(reporting.line(report), flush=True)
    except KeyboardInterrupt as interrupt:
        status = 128 + interrupt.args[0]  # as shells have it
        print(f"\nstopped after {len(reports)} of {len(plan.seeds)} runs", file=sys.stderr)
    if reports:
        reporting.write_all(plan.folder, reports)
        print(
            f"\n{reporting.table(reports)}\n\n{reporting.FOOTNOTE}\n\n{reporting.summary(reports)}"
        )
    print(f"reports and logs are in {plan.folder}")
    return reporting.exit_code(reports) if status is None else status


def _stop(number: int, _: FrameType | None) -> None:
    """End once: a second Ctrl-C must not keep what was started from being ended."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _several(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"two nodes need at least 2 actors, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
