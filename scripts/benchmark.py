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
(reps=3). Its sections: ``small``, 20 rows of 5 qubits, where the pool's own time shows; ``memory``,
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
from typing import Any

from training.options import positive

_SECTIONS: dict[str, list[str]] = {
    "gradients": ["small", "memory", "grid", "steps", "exact", "observables"],
    "scale": ["efficiency", "kills", "rows"],
    "hardware": [],
    "async": ["queue", "fleet", "eqc"],
}


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar=" | ".join(_SECTIONS))
    gradients, scale, hardware, lanes = made = list(map(commands.add_parser, _SECTIONS))
    for command, only in zip(made, _SECTIONS.values(), strict=True):
        command.add_argument("--shots", type=positive, default=1024, help="of each row (1024)")
        command.add_argument("--seed", type=int, default=7, help="of values, noise and kills (7)")
        command.add_argument("--out", type=Path, help="folder (runs/<subcommand>-<date>-<time>)")
        if only:
            command.add_argument("--only", nargs="+", choices=only, default=only, help="sections")
    several: dict[str, Any] = {"type": positive, "nargs": "+", "metavar": "N"}
    gradients.add_argument("--actors", **several, default=[1, 2], help="of each pool (1 2)")
    gradients.add_argument("--qubits", **several, help="(4 6 8 10 12; of the peers 6 10)")
    gradients.add_argument("--batch", **several, help="(1 16 64; of the peers 16)")
    gradients.add_argument("--rounds", type=positive, help="(3 to 25, by time; of 'small' 200)")
    gradients.add_argument("--peers", action="store_true", help="measure other libraries too")
    scale.add_argument("--actors", **several, default=[8, 32], help="of each pool (8 32)")
    scale.add_argument("--latencies", **several | {"type": float}, default=[50.0, 200.0],
                       help="ms of a chunk (50 200)")  # fmt: skip
    scale.add_argument("--seconds", type=float, help="of a run (3; with kills 12)")
    scale.add_argument("--rows", type=positive, default=1_000_000, help="of 'rows' (1000000)")
    hardware.add_argument("--samples", type=positive, default=32, help="of a step (32)")
    hardware.add_argument("--steps", type=positive, default=6, help="that count (6)")
    hardware.add_argument("--queue-seconds", type=float, default=2.0, help="of a job (2)")
    lanes.add_argument("--seeds", type=positive, default=5, help="how many, from --seed on (5)")
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


if __name__ == "__main__":
    sys.exit(main())
