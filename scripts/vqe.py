"""Find a ground energy with the variational quantum eigensolver: a layer and torch's Adam.

  scripts/vqe                                         H2 with exact energies
  scripts/vqe --shots 16384                           the same, from shots
  scripts/vqe --hamiltonian heisenberg --shots 4096 --backend aer

Draws the energy of each step, with error bars, to runs/vqe-<hamiltonian>.png.

References:
    Peruzzo et al., Nature Communications 5, 4213 (2014), doi 10.1038/ncomms5213: the algorithm.
    Wiersema et al., PRX Quantum 1, 020319 (2020), doi 10.1103/PRXQuantum.1.020319: the circuit of
    the Heisenberg square.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from training.options import EXACT, number_or_exact, positive

from qailab.backends import AerBackend, Backend, StatevectorBackend
from qailab.circuit import RealAmplitudesBlock, build_circuit
from qailab.errors import QailabError
from qailab.torch import ObservableQLayer

if TYPE_CHECKING:  # slow to import, and not needed before the end
    from matplotlib.figure import Figure

BACKENDS = {"statevector": StatevectorBackend, "aer": AerBackend}


def h2() -> tuple[SparsePauliOp, QuantumCircuit]:
    """H2 at 0.735 angstrom (STO-3G, parity mapping, two-qubit reduction) and a circuit, in hartree.

    The coefficients of qiskit-algorithms' tests and tutorials of VQE. The repulsion of the nuclei,
    0.719969 Ha, is left out.
    """
    terms = [("II", -1.052373245772859), ("IZ", 0.39793742484318045), ("ZI", -0.39793742484318045),
             ("ZZ", -0.01128010425623538), ("XX", 0.18093119978423156)]  # fmt: skip
    return SparsePauliOp.from_list(terms), build_circuit(2, [RealAmplitudesBlock("weight", reps=1)])


def heisenberg() -> tuple[SparsePauliOp, QuantumCircuit]:
    """XX + YY + ZZ on the edges of a square, and a circuit that rotates by them; energies in J.

    It starts with singlets on two edges. The edges of each pair share an angle.
    """
    pairs = [((1, 2), (3, 0)), ((0, 1), (2, 3))]
    terms = [(pauli, edge, 1.0) for pair in pairs for edge in pair for pauli in ("XX", "YY", "ZZ")]
    circuit = QuantumCircuit(4)
    for one, other in pairs[1]:
        circuit.x([one, other])
        circuit.h(one)
        circuit.cx(one, other)
    for angle, pair in zip(ParameterVector("weight", 2), pairs, strict=True):
        for edge in pair:
            circuit.rxx(angle, *edge)
            circuit.ryy(angle, *edge)
            circuit.rzz(angle, *edge)
    return SparsePauliOp.from_sparse_list(terms, num_qubits=4), circuit


HAMILTONIANS = {"h2": (h2, "Ha"), "heisenberg": (heisenberg, "J")}


def minimize(
    hamiltonian: SparsePauliOp, circuit: QuantumCircuit, backend: Backend, shots: int | None,
    steps: int, seed: int,
) -> NDArray[np.float64]:  # fmt: skip
    """The energy before each step and its standard error (0 without shots), shape ``(steps, 2)``.

    ``shots`` are of each row in each basis.
    """
    torch.manual_seed(seed)
    layer = ObservableQLayer(
        circuit, observables=hamiltonian, backend=backend, shots=shots, seed=seed
    ).double()
    layer.tracks_output_std_error = True
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    no_inputs = torch.empty(0, dtype=torch.float64)
    curve = np.zeros((steps, 2))
    for step in range(steps):
        energy = layer(no_inputs)
        optimizer.zero_grad()
        energy.sum().backward()
        optimizer.step()
        curve[step] = energy.item(), layer.output_std_error.item()
    return curve


def draw(curve: NDArray[np.float64], exact: float, unit: str) -> Figure:
    """The energies of all steps, and of the second half, with standard errors, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, first in zip(figure.subplots(1, 2), (0, len(curve) // 2), strict=True):
        axes.errorbar(range(first, len(curve)), *curve[first:].T, fmt=".", color="#c8102e",
                      ecolor="#7a8ca3", label="energy and its standard error")  # fmt: skip
        axes.axhline(exact, color="#22303f", linestyle="--", label=f"exact: {exact:.6f} {unit}")
        axes.set_xlabel("step of Adam")
        axes.set_ylabel(f"energy ({unit})")
        axes.ticklabel_format(useOffset=False)
        axes.grid(color="#d9dfe6", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    keep_lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("vqe", None, __doc__, formatter_class=keep_lines)
    add = parser.add_argument
    add("--hamiltonian", choices=HAMILTONIANS, default="h2", help="what to find it of (h2)")
    add("--shots", metavar="N", type=number_or_exact, default=EXACT,
        help="of each row in each basis; or 'exact' (exact)")  # fmt: skip
    add("--steps", metavar="N", type=positive, default=100, help="of the optimizer (100)")
    add("--backend", choices=BACKENDS, default="statevector", help="simulator (statevector)")
    add("--seed", metavar="N", type=int, default=7, help="of angles and shot noise (7)")
    options = parser.parse_args(arguments)
    make, unit = HAMILTONIANS[options.hamiltonian]
    hamiltonian, circuit = make()
    exact = float(np.linalg.eigvalsh(hamiltonian.to_matrix())[0])
    shots = None if options.shots == EXACT else options.shots
    backend = BACKENDS[options.backend]()
    try:
        curve = minimize(hamiltonian, circuit, backend, shots, options.steps, options.seed)
    except QailabError as error:
        print(f"vqe: error: {error}", file=sys.stderr)
        return 2
    picture = Path("runs", f"vqe-{options.hamiltonian}.png")
    picture.parent.mkdir(exist_ok=True)
    draw(curve, exact, unit).savefig(picture, dpi=150)
    energy, error = curve[-1]
    bar = f" +- {error:.6f}" if shots else ""
    print(f"Energy {energy:.6f}{bar} {unit}; exact {exact:.6f}. See {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
