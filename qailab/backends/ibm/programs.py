"""From canonical circuits to what a device runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit.transpiler.preset_passmanagers import generate_preset_pass_manager

from qailab.errors import BackendError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray


@dataclass(frozen=True)
class Program:
    """A circuit in a device's gates, on its qubits.

    Args:
        circuit: the ISA circuit.
        columns: which angles of a row it takes, in the order of ``circuit.parameters``.
        num_bits: measured bits.
    """

    circuit: QuantumCircuit
    columns: NDArray[np.int64]
    num_bits: int

    def pubs(self, angles: FloatArray) -> list[Any]:
        """PUBs (primitive unified blocs) of rows of angles, shape ``(n, A)``."""
        if len(self.columns):
            return [(self.circuit, angles[:, self.columns])]
        return [(self.circuit,)] * len(angles)  # nothing to bind: one for each row


def compile_program(
    canonical: CanonicalCircuit, device: Any, *, optimization_level: int, seed: int
) -> Program:
    """Lay a circuit out on a device and write it in its gates.

    Args:
        canonical: the circuit.
        device: a Qiskit ``BackendV2``.
        optimization_level: of Qiskit's transpiler; from level 2 on it may find that an angle does
            not matter, and leave it out.
        seed: of the transpiler, so that all processes lay it out alike.

    Raises:
        BackendError: if the device cannot run it.
    """
    from qiskit_ibm_runtime.exceptions import IBMInputValueError
    from qiskit_ibm_runtime.utils import validate_isa_circuits

    manager = generate_preset_pass_manager(
        optimization_level=optimization_level, backend=device, seed_transpiler=seed
    )
    isa = manager.run(canonical.circuit)
    isa.global_phase = 0  # a symbolic one slows binding down, and changes no outcome
    isa.metadata = {}
    try:
        validate_isa_circuits([isa], device.target)
    except (IBMInputValueError, ValueError) as error:
        raise BackendError(f"the circuit does not fit {device.name}: {error}") from error
    column_of = {angle.name: column for column, angle in enumerate(canonical.angles)}
    columns = [column_of[parameter.name] for parameter in isa.parameters]
    return Program(isa, np.array(columns, dtype=np.int64), len(canonical.measured_qubits))
