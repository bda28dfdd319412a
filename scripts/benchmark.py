"""Benchmarks: what qailab costs and gains on this machine.

::

    scripts/benchmark gradients              backward in process and on 1 and 2 actors, against raw
                                             Aer: times, bytes, memory; about 5 minutes
    scripts/benchmark gradients --peers      also PennyLane and qiskit-machine-learning
    scripts/benchmark gradients --only grid --qubits 6 10 12 --batch 16
    scripts/benchmark scale                  pools of 1 to 64 actors; about 9 minutes
    scripts/benchmark scale --only efficiency kills --actors 32 --latencies 50 200
    scripts/benchmark hardware               jobs and overhead of a step on a rehearsal server

*gradients*: one backward pass, for inputs and weights, of an RY encoder followed by RealAmplitudes
(reps=3). Its sections: ``small``, 20 rows of 4 qubits, where the pool's own time shows; ``memory``,
25,600 rows; ``grid``, all sizes; ``peers``, with ``--peers``. The bound is raw Aer: the same rows
with ``save_probabilities``, all bindings in one call, one thread, then numpy's multinomial; where
it would take more than 5 s, a stretch of the rows is run and scaled. (qailab can be faster: of the
two shifts of an angle it simulates one.) All gradients are compared: bit for bit, or with those of
the peers within 6 standard errors.

*scale*: actors that sleep as long as a device would take. Its sections: ``efficiency``, with equal
speeds and 1:2:4:8; ``kills``, one of 8 actors killed every second; ``rows``, a million rows on 2
actors that compute next to nothing; ``small``, as above.

*hardware*: a forward and a backward pass of 6 qubits through IBM's real client, with and without a
journal, against a rehearsal server without latency.

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
    "gradients": ["small", "memory", "grid", "peers"],
    "scale": ["efficiency", "kills", "rows", "small"],
}


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--shots", type=_count, default=1024, help="shots for each row (1024)")
    shared.add_argument("--seed", type=int, default=7, help="seed of values, noise and kills (7)")
    shared.add_argument("--out", type=Path, help="folder (runs/<subcommand>-<date>-<time>)")
    commands = parser.add_subparsers(dest="command", metavar="gradients | scale | hardware")
    gradients, scale, hardware = (
        commands.add_parser(name, parents=[shared]) for name in ("gradients", "scale", "hardware")
    )
    for name, command in (("gradients", gradients), ("scale", scale)):
        sections = _SECTIONS[name]
        command.add_argument(
            "--only", nargs="+", choices=sections, default=sections, help="only these sections"
        )
        command.add_argument("--repetitions", type=_count, default=200, help="of the 20 rows (200)")
    gradients.add_argument(
        "--qubits", type=_count, nargs="+", metavar="N",
        help="circuit sizes (4 6 8 10 12; of the peers 6 10)",
    )  # fmt: skip
    gradients.add_argument(
        "--batch",
        type=_count,
        nargs="+",
        metavar="B",
        help="batch sizes (1 16 64; of the peers 16)",
    )
    gradients.add_argument(
        "--actors", type=_count, nargs="+", default=[1, 2], metavar="A", help="pools (1 2)"
    )
    gradients.add_argument("--rounds", type=_count, help="of each size (3 to 25, by its time)")
    gradients.add_argument("--peers", action="store_true", help="measure other libraries too")
    scale.add_argument(
        "--actors", type=_count, nargs="+", metavar="A", default=[1, 2, 4, 8, 16, 32, 64],
        help="pools (1 2 4 8 16 32 64)",
    )  # fmt: skip
    scale.add_argument(
        "--latencies", type=_time, nargs="+", metavar="MS", default=[0.0, 1.0, 10.0, 50.0, 200.0],
        help="ms of a chunk (0 1 10 50 200); kills at those of 50 and 200",
    )  # fmt: skip
    scale.add_argument("--seconds", type=_time, help="of a run (3; with kills 12)")
    scale.add_argument("--rounds", type=_count, default=1, help="runs, the median counts (1)")
    scale.add_argument("--rows", type=_count, default=1_000_000, help="of ``rows`` (1000000)")
    hardware.add_argument("--samples", type=_count, default=32, help="of a step (32)")
    hardware.add_argument("--steps", type=_count, default=6, help="that count (6)")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit status."""
    parser, options = parse(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    _quieten()
    command = importlib.import_module(f"benchmarks.{options.command}")
    from benchmarks.report import Report

    folder = options.out or Path("runs") / time.strftime(f"{options.command}-%Y%m%d-%H%M%S")
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


def _time(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be finite and not negative, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
