"""Chaos: train while everything fails that can fail; weights must be the same bits, no row lost.

::

    scripts/chaos pool                        10 runs, seeds 0 to 9, about 6 minutes
    scripts/chaos pool --seeds 50 --first 100 seeds 100 to 149
    scripts/chaos pool --faults node late     only nodes that go, come back, or come late
    scripts/chaos soak                        2,000 steps and 200 circuits through one pool
    scripts/chaos lanes                       50 asynchronous trainings, about 5 minutes
    scripts/chaos hardware                    all kinds; about 20 minutes
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

*soak*: no faults; memory (MB), threads and descriptors of driver and actors stay level.

*lanes*: an `AsyncTrainer` whose lanes fail, hang, are slow, leave and join, and whose driver is
stopped and resumed: each batch counts once an epoch, and a replay is the same run, bit for bit.

*hardware*: `IBMBackend` and its journal, through IBM's real client, against a rehearsal server:

========  ==========================================================================================
faults    a gradient on one or two devices at once, in session, batch or job mode, in one job or
          several, with a journal or without, while requests, jobs and sessions fail in ways that
          pass. It must equal the one without faults: bit for bit where the rows were cut into the
          same jobs, else within 6 standard errors. Every tenth runs through a LauncherPool
          (``--pool-every``), and of these every third loses an actor.
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

A line is printed for each run; the run folder has ``<kind>-<seed>.json``, and Ray's logs of a run
that failed. Exit status: 0 if all holds, 1 if not, 130 after Ctrl-C and 143 after SIGTERM;
everything that was started is ended then.
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported when the environment is set
    from chaos_runs.harness import Report, Run

_HARDWARE = ("faults", "late", "kills", "budget")
_SEEDS = {"pool": 10, "soak": 1, "lanes": 50, "faults": 200, "late": 10, "kills": 8, "budget": 20}
_FAULTS = ("sigkill", "raykill", "hang", "all", "node", "transient", "late")
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
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="pool | lanes | hardware | soak"
    )
    names = ("pool", "lanes", "hardware", "soak")
    pool, _, hardware, soak = made = list(map(commands.add_parser, names))
    seeds = ", ".join(f"{kind} {count}" for kind, count in _SEEDS.items())
    for command in made:
        command.add_argument("--seeds", type=int, help=f"how many runs ({seeds})")
        command.add_argument("--first", type=int, default=0, help="the first seed (0)")
        command.add_argument("--steps", type=int, help="of pool 8, of kills 10, of soak 2000")
        command.add_argument("--deadline", type=float, default=180, help="seconds a run (180)")
        command.add_argument("--out", type=Path, help="folder (runs/chaos-<command>-<date>)")
    pool.add_argument("--faults", choices=_FAULTS, nargs="+", default=_FAULTS, help="(all)")
    pool.add_argument("--actors", type=int, default=4, help="at least 2 (4)")
    pool.add_argument(
        "--chunk-timeout", type=float, default=5.0,
        help="the pool's chunk_timeout (5 s); where machines are so busy that a new process takes "
        "longer to answer its first chunk, the pool rightly gives it up",
    )  # fmt: skip
    soak.add_argument("--actors", type=int, default=2, help="(2)")
    soak.add_argument("--circuits", type=int, default=200, help="(200)")
    soak.set_defaults(deadline=1800.0)
    hardware.add_argument("--kinds", choices=_HARDWARE, nargs="+", default=_HARDWARE, help="(all)")
    hardware.add_argument("--pool-every", type=int, default=10, help="(10; 0: never)")
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
    from chaos_runs.harness import run_trials, summary

    reports: list[Report] = []
    status = None
    try:
        for report in run_trials(_trials(options), vars(options), folder):
            reports.append(report)
            ok = "NO" if report.problems else "ok"
            line = f"{report.kind:7} {report.seed:6}  {ok}  {report.seconds:5.1f} s  {report.what}"
            print("\n    ".join([line[:100], *report.problems]), flush=True)
    except KeyboardInterrupt as interrupt:
        status = 128 + interrupt.args[0]  # as shells have it
        print(f"\nstopped after {len(reports)} runs", file=sys.stderr)
    print(f"\n{summary(reports)}\nreports are in {folder}")
    bad = not reports or any(report.problems for report in reports)
    return int(bad) if status is None else status


def _trials(options: argparse.Namespace) -> Iterator[tuple[Run, Report]]:
    from chaos_runs import hardware, kills, lanes, pool, soak
    from chaos_runs.harness import Report

    runs = hardware.TRIALS | {each.__name__.rpartition(".")[2]: each.run
                              for each in (kills, lanes, pool, soak)}  # fmt: skip
    for kind in options.kinds if options.command == "hardware" else [options.command]:
        count = _SEEDS[kind] if options.seeds is None else options.seeds
        for seed in range(options.first, options.first + count):
            yield runs[kind], Report(kind, seed)


def _stop(number: int, _: FrameType | None) -> None:
    """End once: a second Ctrl-C must not keep what was started from being ended."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
