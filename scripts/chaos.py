"""Chaos: train while everything fails that can fail; weights must be the same bits, no row lost.

::

    scripts/chaos pool                        10 runs, seeds 0 to 9, about 6 minutes
    scripts/chaos pool --seeds 50 --first 100 seeds 100 to 149
    scripts/chaos pool --faults node late     only nodes that go, come back, or come late
    scripts/chaos hardware                    all kinds; about 20 minutes
    scripts/chaos hardware --kinds faults --seeds 100
    scripts/chaos hardware --kinds kills --seeds 1 --first 17     seed 17 again

The seed decides what is asked for and what goes wrong, but not where each process and thread is at
that moment. Each run has a process of its own, and a deadline.

*pool*: a training on a `LauncherPool` whose actors live on two nodes of a private Ray cluster:

=========  =========================================================================
sigkill    an actor's process is killed
raykill    the same by ``ray.kill``
hang       an actor's process is stopped (SIGSTOP); the pool has to find and end it
all        all actors' processes are killed at once
node       a node is killed, with half of the actors; later a new one joins
transient  2 to 10 % of the calls fail, in this run and in the calm one
late       one of the two nodes joins only while the training runs
=========  =========================================================================

Weights and the hash of all gradients equal those of a run in process without Ray, bit for bit; each
row is answered exactly once; all actors come back, and train the same again undisturbed; the pool
logs no error, and leaves no process.

*hardware*: `IBMBackend` and its journal, through IBM's real client, against a rehearsal server:

========  ==========================================================================================
faults    a gradient on one or two devices at once, in session, batch or job mode, in one job or
          several, with a journal or without, while requests, jobs and sessions fail in ways that
          pass. It must equal the one without faults: bit for bit where the rows were cut into the
          same jobs, else within 6 standard errors. Every tenth runs through a LauncherPool
          (``--pool-every``), and of these every third loses an actor.
hopeless  faults that do not pass: an error of the right class, before its deadline.
late      a job that arrives when nobody waits for it any more: it must be found, and not be sent
          again; if it comes too late for that, it must be cancelled before it runs, or reported.
kills     a training of 10 steps with a journal, whose driver is killed (SIGKILL) up to 4 times at
          random moments and started again until it ends: the weights, bit for bit, and the jobs at
          the server are those of an undisturbed one. Every tenth driver has a pool.
budget    a training with a budget: by the server's figures it is passed by one job at most.
========  ==========================================================================================

In all of them: no two jobs at the server have the same rows, unless one of them failed or was
cancelled; each row is answered once; no job is left running and no session open; the journal
agrees with the server on jobs, states and QPU seconds; and nothing takes longer than its deadline.

A line is printed for each run; the run folder has ``<kind>-<seed>.json``, and after a run that
failed its log and Ray's. Exit status: 0 if all holds, 1 if not, 130 after Ctrl-C and 143 after
SIGTERM; everything that was started is ended then.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

_HARDWARE = {"faults": 200, "hopeless": 14, "late": 10, "kills": 8, "budget": 20}
_POOL_FAULTS = ("sigkill", "raykill", "hang", "all", "node", "transient", "late")
_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: listen on 127.0.0.1 only
    "RAY_worker_niceness": "0",  # at nice 15, its default, a busy machine looks like a hang
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_health_check_initial_delay_ms": "0",  # a node's death is seen within 2 s, not 12
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "OMP_NUM_THREADS": "1",
    "USAGE_DATA_OPT_OUT": "True",
    "PYTHONWARNINGS": "ignore",
}
"""What libraries read when they are first imported, in the processes that run the trials."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--first", type=_number, default=0, help="the first seed (0)")
    shared.add_argument("--steps", type=_number, help="of a training (pool 8, kills 10)")
    shared.add_argument("--deadline", type=float, default=180.0, help="seconds for a run (180)")
    shared.add_argument("--out", type=Path, help="folder (runs/chaos-<command>-<date>-<time>)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="pool | hardware")
    pool = commands.add_parser("pool", parents=[shared], help="actors and nodes fail")
    pool.add_argument("--seeds", type=_number, default=10, help="how many runs (10)")
    pool.add_argument("--actors", type=_several, default=4, help="actors of the pool (4)")
    pool.add_argument(
        "--faults", choices=_POOL_FAULTS, nargs="+", default=_POOL_FAULTS, help="to draw from (all)"
    )
    pool.add_argument(
        "--chunk-timeout", type=float, default=5.0,
        help="the pool's chunk_timeout (5 s); where machines are so busy that a new process takes "
        "longer to answer its first chunk, the pool rightly gives it up",
    )  # fmt: skip
    hardware = commands.add_parser("hardware", parents=[shared], help="requests and jobs fail")
    hardware.add_argument(
        "--seeds", type=_number,
        help="runs of each kind (" + ", ".join(f"{k} {n}" for k, n in _HARDWARE.items()) + ")",
    )  # fmt: skip
    hardware.add_argument(
        "--kinds", choices=_HARDWARE, nargs="+", default=list(_HARDWARE), help="(all)"
    )
    hardware.add_argument(
        "--pool-every", type=_number, default=10, help="how often there is a pool (10; 0: never)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; the exit status."""
    options = parse(arguments)
    name = time.strftime(f"chaos-{options.command}-%Y%m%d-%H%M%S")
    folder = (options.out or Path("runs") / name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as home:
        # IBM's client reads accounts at HOME; RAY_TMPDIR has also the file of where a cluster is.
        os.environ |= {**_ENVIRONMENT, "HOME": home, "RAY_TMPDIR": home}
        os.environ.pop("RAY_ADDRESS", None)
        return _run(options, folder)


def _run(options: argparse.Namespace, folder: Path) -> int:
    from chaos_runs import pool, scenario
    from chaos_runs.harness import Report, run_trials, summary
    from tables import Column, Table

    figures = pool.FIGURES if options.command == "pool" else scenario.FIGURES
    columns = [Column("kind", width=8), Column("seed"), Column("ok"), Column("s", ".1f", 5)]
    table = Table([*columns, *(Column(name, "g", 5) for name in figures), Column("what", width=20)])
    reports: list[Report] = []
    status = None
    try:
        for report in run_trials(_trials(options), folder):
            reports.append(report)
            table.add(report.row())
            for problem in report.problems:
                print(f"    {problem}", flush=True)
    except KeyboardInterrupt as interrupt:
        status = 128 + interrupt.args[0]  # as shells have it
        print(f"\nstopped after {len(reports)} runs", file=sys.stderr)
    print(f"\n{summary(reports)}\nreports are in {folder}")
    bad = not reports or any(report.problems for report in reports)
    return int(bad) if status is None else status


def _trials(options: argparse.Namespace) -> Iterator[Any]:
    from chaos_runs import hardware, kills, pool
    from chaos_runs.harness import Trial

    if options.command == "pool":
        given: dict[str, Any] = {
            "actors": options.actors,
            "steps": options.steps or 8,
            "kinds": options.faults,
            "chunk_timeout": options.chunk_timeout,
        }
        for seed in range(options.first, options.first + options.seeds):
            yield Trial(pool.run, "pool", seed, options.deadline, given)
        return
    runs = {
        "faults": hardware.run_faults,
        "hopeless": hardware.run_hopeless,
        "late": hardware.run_late,
        "kills": kills.run,
        "budget": hardware.run_budget,
    }
    given = {"pool_every": options.pool_every, "steps": options.steps or 10}
    for kind in options.kinds:
        count = _HARDWARE[kind] if options.seeds is None else options.seeds
        for seed in range(options.first, options.first + count):
            yield Trial(runs[kind], kind, seed, options.deadline, given)


def _stop(number: int, _: FrameType | None) -> None:
    """End once: a second Ctrl-C must not keep what was started from being ended."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def _several(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"two nodes need at least 2 actors, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
