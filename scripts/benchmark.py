"""Benchmarks: what qailab costs and gains on this machine.

::

    scripts/benchmark gradients              backward in process and on 1 and 2 actors, against raw
                                             Aer: times, bytes, memory; about 5 minutes
    scripts/benchmark gradients --peers      also PennyLane and qiskit-machine-learning
    scripts/benchmark gradients --only grid --qubits 6 10 12 --batch 16
    scripts/benchmark scale                  pools of 8 and 32 actors; about 5 minutes
    scripts/benchmark scale --only efficiency --actors 1 4 16 64 --latencies 1 10
    scripts/benchmark hardware               jobs and overhead of a step on a rehearsal server
    scripts/benchmark async                  asynchronous training on simulated latencies; 6 minutes

*gradients*: one backward pass, for inputs and weights, of an RY encoder followed by RealAmplitudes
(reps=3). Its sections: ``small``, 20 rows of 4 qubits, where the pool's own time shows; ``memory``,
25,600 rows; ``grid``, all sizes; ``steps``, two actors from a training's first step on, beside two
plain processes; ``exact``, every backend beside PennyLane's exact methods, which need
``pip install .[bench]``; ``observables``, <Z> of each qubit beside the probabilities and beside
EstimatorQNN (with ``.[bench]``); and the peers with ``--peers``. The bound is raw Aer: the same
rows with ``save_probabilities``, all bindings in one call, one thread, then numpy's multinomial.
(qailab can be faster: of the two shifts of an angle it simulates one.) All gradients are compared:
bit for bit, or with those of the peers within 6 standard errors.

*scale*: actors that sleep as long as a device would take. Its sections: ``efficiency``, with equal
speeds and 1:2:4:8; ``kills``, one of 8 actors killed every second; ``rows``, a million rows on 2
actors that compute next to nothing.

*hardware*: a forward and a backward pass of 6 qubits through IBM's real client, against a rehearsal
server: with and without a journal; with a queue, with and without prefetching; and layers side by
side on emulated devices.

*async*: asynchronous training beside the ordinary loop, and beside EQC's rule on EQC's own work, on
devices that take 0.05 to 4 s for a job. Its sections: ``queue``, one device that takes 5 jobs at
once; ``fleet``, ten devices; ``eqc``.

What is compared takes turns, and medians count: machines are noisy. The run folder holds
``figures.json`` and the plots. Without a subcommand this help is printed.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_SECTIONS = {
    "gradients": ["small", "memory", "grid", "steps", "exact", "observables"],
    "scale": ["efficiency", "kills", "rows"],
    "async": ["queue", "fleet", "eqc"],
}
_ACTORS = {"gradients": [1, 2], "scale": [8, 32]}


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="gradients | scale | hardware | async")
    names = ("gradients", "scale", "hardware", "async")
    gradients, scale, hardware, lanes = map(commands.add_parser, names)
    for command in (gradients, scale, hardware, lanes):
        command.add_argument("--shots", type=_count, default=1024, help="of each row (1024)")
        command.add_argument("--seed", type=int, default=7, help="of values, noise and kills (7)")
        command.add_argument("--out", type=Path, help="folder (runs/<subcommand>-<date>-<time>)")
    for name, command in (("gradients", gradients), ("scale", scale)):
        only, actors = _SECTIONS[name], _ACTORS[name]
        command.add_argument("--only", nargs="+", choices=only, default=only, help="sections")
        command.add_argument(
            "--actors", type=_count, nargs="+", default=actors, metavar="A", help=f"pools {actors}"
        )
    gradients.add_argument("--repetitions", type=_count, default=200, help="of 20 rows (200)")
    own = _SECTIONS["async"]
    lanes.add_argument("--only", nargs="+", choices=own, default=own, help="sections")
    lanes.add_argument("--seeds", type=_count, default=5, help="how many, from --seed on (5)")
    sizes = {"type": _count, "nargs": "+", "metavar": "N"}
    gradients.add_argument("--qubits", **sizes, help="(4 6 8 10 12; of the peers 6 10)")
    gradients.add_argument("--batch", **sizes, help="(1 16 64; of the peers 16)")
    gradients.add_argument("--rounds", type=_count, help="of each size (3 to 25, by its time)")
    gradients.add_argument("--peers", action="store_true", help="measure other libraries too")
    scale.add_argument(
        "--latencies", type=_positive, nargs="+", metavar="MS", default=[50.0, 200.0],
        help="ms of a chunk (50 200); with kills of these two",
    )  # fmt: skip
    scale.add_argument("--seconds", type=_positive, help="of a run (3; with kills 12)")
    scale.add_argument("--rows", type=_count, default=1_000_000, help="of 'rows' (1000000)")
    hardware.add_argument("--samples", type=_count, default=32, help="of a step (32)")
    hardware.add_argument("--steps", type=_count, default=6, help="that count (6)")
    hardware.add_argument("--queue-seconds", type=float, default=2.0, help="of a job (2)")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit status."""
    parser, options = parse(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    _quieten()
    folder = options.out or Path("runs") / time.strftime(f"{options.command}-%Y%m%d-%H%M%S")
    print(f"Benchmark {folder}: starting ...", flush=True)
    module = {"async": "lanes"}.get(options.command, options.command)
    command = importlib.import_module(f"benchmarks.{module}")
    from benchmarks.report import Report

    report = Report(folder)
    command.run(options, report)
    report.write()
    return 0


def _quieten() -> None:
    """Keep what is expected here out of the tables: many processes, and killed ones."""
    # Lines of Ray that are not printed (see its guide on logging); read when Ray is imported.
    os.environ.setdefault(
        "RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started|worker died or was killed"
    )
    logging.getLogger("qailab.distributed").setLevel(logging.ERROR)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
