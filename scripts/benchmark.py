"""Benchmark: gradients by qailab against the simulator's own speed, and against other libraries.

::

    scripts/benchmark                        about 4 minutes
    scripts/benchmark --quick                under a minute: n = 4, 6 and batch 1, 16
    scripts/benchmark --peers                also PennyLane and qiskit-machine-learning
    scripts/benchmark --qubits 6 10 --batch 16 --actors 1 2 4

The work is one backward pass, for inputs and weights, of an RY encoder followed by RealAmplitudes
(reps=3): with n qubits and batch B, 10 * n * B rows (two shifts for each angle of each sample).
It runs in this process and on pools of Ray actors on this machine. Beside each figure stands the
bound: the same rows on raw Aer in this process (``save_probabilities``, all bindings in one call,
one thread, then numpy's multinomial), and the ratio of the two. (It can be below 1: of the two
shifts of an angle, qailab simulates one, and gets the other from the state they share.) All modes
and the bound take turns, since machines are noisy; what counts is the median of several rounds.

Where the bound would take more than 5 s it is measured on a stretch of the rows and scaled.
Bytes are messages both ways, without Ray's framing. Peak memory is the resident set's.

``--peers`` adds, for n = 6 and 10 and batch 16 (or ``--qubits`` and ``--batch``, if given),
parameter shifts by PennyLane's lightning.qubit and default.qubit and by qiskit-machine-learning's
TorchConnector on Aer: same circuit, values, shots and ``grad_output``, in the same run. See
``benchmarks/peers.py`` for how each is used, and for the check that all gradients agree. The peers
run in one process, as they do for their users; qailab is shown in-process and with actors.

The last section says plainly what must hold, and whether it does. The run folder holds
``figures.csv``, ``must_hold.csv`` and ``benchmark.png``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import claims, report
from benchmarks.modes import IN_PROCESS, Mode, open_modes
from benchmarks.peers import all_peers, measure_peers
from benchmarks.timing import Figure, measure_case
from benchmarks.workload import Case, Workload

_QUICK_ROUNDS = 2


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        qubits: circuit sizes.
        batches: batch sizes.
        shots: shots for each row.
        actors: sizes of pools.
        seed: seed of values and shot noise.
        quick: few rounds, and nothing big.
        peer_cases: sizes at which other libraries are measured.
        folder: where files go.
    """

    qubits: tuple[int, ...]
    batches: tuple[int, ...]
    shots: int
    actors: tuple[int, ...]
    seed: int
    quick: bool
    peer_cases: tuple[Case, ...]
    folder: Path

    def case(self, qubits: int, batch: int, *, for_inputs: bool = True) -> Case:
        """A size of work with this plan's shots and seed."""
        return Case(qubits, batch, self.shots, self.seed, for_inputs)

    @property
    def rounds(self) -> int | None:
        """How often to measure; None goes by the time it takes."""
        return _QUICK_ROUNDS if self.quick else None


def parse_plan(arguments: Sequence[str] | None = None) -> Plan:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--qubits", type=_positive, nargs="+", metavar="N", help="circuit sizes (4 6 8 10 12)"
    )
    parser.add_argument(
        "--batch", type=_positive, nargs="+", metavar="B", help="batch sizes (1 16 64)"
    )
    parser.add_argument("--shots", type=_positive, default=1024, help="shots a row (1024)")
    parser.add_argument(
        "--actors", type=_positive, nargs="+", default=[1, 2], metavar="A", help="pools (1 2)"
    )
    parser.add_argument("--peers", action="store_true", help="measure other libraries too")
    parser.add_argument(
        "--quick", action="store_true", help="n 4 6, batch 1 16, 2 rounds, no memory check"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the files (runs/benchmark-<date>-<time>)"
    )
    parser.add_argument("--seed", type=int, default=7, help="seed of values and noise (7)")
    options = parser.parse_args(arguments)
    peer_qubits = options.qubits or ([6] if options.quick else [6, 10])
    return Plan(
        qubits=tuple(sorted(set(options.qubits or ([4, 6] if options.quick else range(4, 13, 2))))),
        batches=tuple(sorted(set(options.batch or ([1, 16] if options.quick else [1, 16, 64])))),
        shots=options.shots,
        actors=tuple(sorted(set(options.actors))),
        seed=options.seed,
        quick=options.quick,
        peer_cases=tuple(
            Case(qubits, batch, options.shots, options.seed)
            for qubits in peer_qubits
            for batch in options.batch or [16]
        )
        if options.peers
        else (),
        folder=options.out or Path("runs") / time.strftime("benchmark-%Y%m%d-%H%M%S"),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    plan = parse_plan(arguments)
    peers = all_peers() if plan.peer_cases else ()
    plan.folder.mkdir(parents=True, exist_ok=True)
    print(f"{_machine()}, {plan.shots} shots, seed {plan.seed}")
    held = [claims.import_claim(1 if plan.quick else 3)]
    with ExitStack() as stack:
        modes = open_modes(plan.actors, stack)
        held.append(claims.idle_actor_claim(modes))
        held.extend(claims.memory_claims(_measure_memory(plan, modes)))  # before the bound runs
        table = report.Table(mode.name for mode in modes)
        table.heading()
        figures: list[Figure] = []
        for qubits in plan.qubits:
            for batch in plan.batches:
                measured = measure_case(plan.case(qubits, batch), modes, rounds=plan.rounds)
                table.add(measured)
                figures.extend(measured)
        print(report.FOOTNOTE)
        latency = measure_case(
            plan.case(4, 1, for_inputs=False), modes, rounds=plan.rounds, with_bound=False
        )
        compared: list[Figure] = []
        if peers:
            print("\nPeers: first whether their gradients are the same")
            for case in plan.peer_cases:
                compared.extend(measure_peers(Workload(case), modes, peers))
            print()
            table = report.Table(figure.mode for figure in compared)
            table.heading()
            table.add(compared)
    held = [
        *claims.speed_claims(figures),
        claims.latency_claim(latency),
        *claims.wire_claims(figures),
        *claims.peer_claims(compared),
        *held,
    ]
    report.print_claims(held)
    print(f"\nat the end: {_machine()} (this run's own part is 1 to {max(plan.actors)})")
    _write(plan.folder, figures, latency, compared, held)


def _machine() -> str:
    """How busy the machine is: times from one that has other work mean little."""
    return f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"


def _measure_memory(plan: Plan, modes: Sequence[Mode]) -> list[Figure]:
    if plan.quick:
        return []
    case = plan.case(claims.MEMORY_QUBITS, claims.MEMORY_BATCH)
    # The largest pool shares the rows as users' pools do; in-process, the driver has them all.
    chosen = [mode for mode in modes if mode.name == IN_PROCESS or mode is modes[-1]]
    return measure_case(case, chosen, rounds=1, with_bound=False)


def _write(
    folder: Path,
    figures: Sequence[Figure],
    latency: Sequence[Figure],
    compared: Sequence[Figure],
    held: Sequence[claims.Claim],
) -> None:
    from benchmarks.plot import plot  # matplotlib would add to the memory that is measured

    report.write_figures(folder / "figures.csv", [*figures, *latency, *compared])
    report.write_claims(folder / "must_hold.csv", held)
    plot(folder / "benchmark.png", figures, compared)
    print(f"figures.csv, must_hold.csv and benchmark.png are in {folder}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


if __name__ == "__main__":
    main()
