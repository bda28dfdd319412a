"""From canonical circuits to what a device runs, and from what it measured to numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.transpiler.preset_passmanagers import generate_preset_pass_manager

from qailab.errors import BackendError, EvaluationError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray

Measured = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Program:
    """A circuit in a device's gates, on its qubits.

    Args:
        circuit: the ISA circuit.
        columns: which angles of a row it takes, in the order of ``circuit.parameters``.
        num_bits: measured bits.
        keeps_bits: whether the bits of each shot are wanted, or how often each outcome came.
        calibration: a circuit that measures the same qubits and does nothing before. Where it is
            given, rows have one more number, which is positive for those that it answers.
    """

    circuit: QuantumCircuit
    columns: NDArray[np.int64]
    num_bits: int
    keeps_bits: bool = False
    calibration: QuantumCircuit | None = None

    def pubs(self, angles: FloatArray) -> list[Any]:
        """PUBs (primitive unified blocs) of rows of angles, shape ``(n, A)``; calibration last."""
        rows, last = angles, []
        if self.calibration is not None:
            rows = angles[angles[:, -1] <= 0]
            last = [(self.calibration, np.zeros((len(angles) - len(rows), 1)))]
            last = last if len(rows) < len(angles) else []
        if len(rows) and len(self.columns):
            return [(self.circuit, rows[:, self.columns]), *last]
        return [(self.circuit,)] * len(rows) + last  # nothing to bind: one for each row

    def measured(self, result: Any, num_rows: int, shots: int) -> Measured:
        """What is wanted of a result, a line for each row: `counts_of` it, or its `bits_of`."""
        if self.keeps_bits:
            return bits_of(result, self.num_bits, num_rows, shots).reshape(num_rows, -1)
        return counts_of(result, self.num_bits, num_rows, shots)


def check_fits(circuit: CanonicalCircuit, shots: int, name: str, qubits: int, most: object) -> None:
    """Raise a `BackendError` if a device has too few qubits, or takes fewer shots."""
    needs = circuit.circuit.num_qubits
    if needs > qubits:
        raise BackendError(
            f"the circuit has {needs} qubits, and {name} has {qubits}; use a larger device, or "
            "fewer qubits"
        )
    if isinstance(most, int) and 0 < most < shots:
        raise BackendError(
            f"{shots:,} shots are more than {name} takes for a circuit ({most:,}); take at most "
            "that"
        )


def compile_program(
    canonical: CanonicalCircuit,
    device: Any,
    *,
    optimization_level: int,
    seed: int,
    calibrated: bool = False,
) -> Program:
    """Lay a circuit out on a device (a ``BackendV2``) and write it in its gates.

    From ``optimization_level`` 2 on, Qiskit may find that an angle does not matter, and leave it
    out. With one ``seed`` all processes lay it out alike. ``calibrated`` asks for a `calibration`.

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
    return Program(
        isa,
        np.array(columns, dtype=np.int64),
        len(canonical.measured_qubits),
        keeps_bits=canonical.observables is not None,
        calibration=_calibration_of(isa) if calibrated else None,
    )


def _calibration_of(isa: QuantumCircuit) -> QuantumCircuit:
    """The measurements of a circuit; an angle without effect lets all rows of it be one PUB."""
    measures = [one for one in isa.data if one.operation.name == "measure"]
    calibration = isa.copy_empty_like()
    calibration.rz(Parameter("nothing"), measures[0].qubits[0])
    for one in measures:
        calibration.append(one)
    return calibration


def counts_of(result: Any, num_bits: int, num_rows: int, shots: int) -> NDArray[np.uint32]:
    """Count how often each outcome came, shape ``(num_rows, 2**num_bits)``.

    Args:
        result: a Sampler's result, or the executor's plain one: one item of ``num_rows`` rows or
            that many of one.
        num_bits: measured bits of each shot.
        num_rows: how many rows were asked for.
        shots: how many shots of each were.

    Raises:
        EvaluationError: if it is not the result that was asked for.
    """
    packed = bits_of(result, num_bits, num_rows, shots)
    outcomes = 1 << num_bits
    measured = packed[..., 0].astype(np.min_scalar_type(outcomes - 1))
    for place in range(1, packed.shape[-1]):
        measured <<= 8
        measured |= packed[..., place]
    # One count for all rows: each has its own stretch of numbers.
    index = measured.astype(np.int64)
    index += (np.arange(num_rows, dtype=np.int64) * outcomes)[:, None]
    counted = np.bincount(index.ravel(), minlength=num_rows * outcomes)
    return counted.astype(np.uint32).reshape(num_rows, outcomes)


def bits_of(result: Any, num_bits: int, num_rows: int, shots: int) -> NDArray[np.uint8]:
    """The bits of each shot, ``(num_rows, shots or more, bytes)``, the most significant first.

    Twirling rounds shots up to whole randomizations. Arguments and errors are those of `counts_of`.
    """
    tables = [_packed(item, num_bits) for item in result]
    packed = tables[0] if len(tables) == 1 else np.concatenate(tables)
    beyond = packed.size and packed[..., 0].max() >> (num_bits - 1) % 8 + 1
    if len(packed) != num_rows or packed.shape[1] < shots or beyond:
        raise EvaluationError(
            f"the job answered outcomes of shape {packed.shape[:2]} (rows, shots), "
            f"{'with bits beyond, ' if beyond else ''}not {(num_rows, shots)} of {num_bits} bits"
        )
    return packed


def _packed(item: Any, num_bits: int) -> NDArray[np.uint8]:
    """The bits of each shot, shape ``(rows, shots, bytes)``, whatever the registers are called."""
    if isinstance(item, Mapping):  # the executor's
        measured = np.asarray(next(iter(item.values())))
    else:
        registers = list(item.data.values())
        measured = registers[0] if len(registers) == 1 else item.join_data()
    width = measured.shape[-1] if isinstance(measured, np.ndarray) else measured.num_bits
    if width != num_bits:
        raise EvaluationError(f"the job answered {width} bits a shot, not {num_bits}")
    if not isinstance(measured, np.ndarray):
        packed: NDArray[np.uint8] = measured.array.reshape(-1, *measured.array.shape[-2:])
        return packed
    # A bit for each place, the least significant first.
    bits = measured.reshape(-1, *measured.shape[-2:]).astype(np.bool_).view(np.uint8)
    packed = np.zeros((*bits.shape[:2], -(-width // 8)), dtype=np.uint8)
    for place in range(width):  # four times as fast as np.packbits along so short an axis
        packed[..., -1 - place // 8] |= bits[..., place] << np.uint8(place % 8)
    return packed


def measured_bits(job: Any) -> Any:
    """The result of a job of the client-side Sampler, downloaded once.

    Its bits as they came where they are all there is to do: the Sampler's own way to a `BitArray`
    takes longer than everything else on this side. Twirled ones and several registers need it.
    """
    from qiskit_ibm_runtime.decoders.executor.decoder import ExecutorResultDecoder
    from qiskit_ibm_runtime.decoders.executor_sampler.decoder import ClientSideSamplerResultDecoder

    plain = job.result(decoder=ExecutorResultDecoder)
    twirled = (plain.passthrough_data or {}).get("post_processor", {}).get("twirling", True)
    if twirled or any(len(item) != 1 for item in plain):
        return ClientSideSamplerResultDecoder.decode(plain)
    return plain
