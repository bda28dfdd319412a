"""Jobs of the client-side Sampler: read, run and answered in the executor's schema v2.0.

Ideal circuits that measure at their end run on qailab's own `AerBackend`, ten times faster than
Aer draws shots. All others (with noise, with measurements in between, with control flow, or with
too many outcomes for a table) run on Aer as they are, row by row.

A row's shots are seeded by what it runs, so that it has the same ones in whichever job it comes:
two jobs of one pass each measure what one job of both does. (Of rows that are the same, the second
one of a job has other shots.)
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import secrets
import threading
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qailab.errors import BackendError, CircuitError, InputError
from qailab.rehearsal.account import ApiError
from qailab.rehearsal.devices import Device

PROGRAM, SCHEMA = "executor", "v2.0"
"""What the client-side Sampler asks for, since qiskit-ibm-runtime 0.50."""

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Seed = np.random.SeedSequence


@dataclass(frozen=True)
class Submission:
    """What a job runs."""

    program: str
    items: tuple[Any, ...]  # a circuit each with the values of its rows, of the client's classes
    shots: int  # of each row
    content: str  # hash of circuits, parameter values and shots
    echo: dict[str, Any]  # what is passed through to the result

    @property
    def rows(self) -> int:
        """Circuits with all parameters bound, over all items."""
        return sum(math.prod(item.shape) for item in self.items)


def read_submission(program: str, params: dict[str, Any]) -> Submission:
    """Decode the parameters of a job.

    Raises:
        InputError: if they are not what the Sampler sends.
    """
    from qiskit_ibm_runtime.quantum_program.params_converters import (
        QUANTUM_PROGRAM_PARAMS_CONVERTERS as CONVERTERS,
    )

    if (program, params.get("schema_version")) != (PROGRAM, SCHEMA):
        raise InputError(
            f"only program {PROGRAM!r} with schema_version {SCHEMA!r} can be rehearsed, got "
            f"{program!r} with {params.get('schema_version')!r}; use the client-side Sampler, "
            "qiskit_ibm_runtime.executor_sampler, of qiskit-ibm-runtime 0.50 or later"
        )
    try:
        decoded, _ = CONVERTERS[SCHEMA].decoder(CONVERTERS[SCHEMA].model(**params))
    except Exception as error:  # of pydantic, zlib, base64, QPY or samplomatic
        text = f"the parameters of {program} cannot be read: {type(error).__name__}: {error}"
        raise InputError(text) from error
    if decoded.meas_level != "classified":
        raise InputError(f"meas_level {decoded.meas_level!r} cannot be rehearsed")
    given = params["quantum_program"]
    content = hashlib.sha256(f"{decoded.shots}".encode())
    for item, sent in zip(decoded.items, given["items"], strict=True):
        values = sent.get("circuit_arguments") or [sent["samplex_arguments"], sent["shape"]]
        content.update(f"{circuit_text(item.circuit)}|{json.dumps(values)}".encode())
        if not np.isfinite(getattr(item, "circuit_arguments", 0.0)).all():
            raise InputError("parameter values must be finite")
    echo = {key: given[key] for key in ("passthrough_data", "semantic_role") if key in given}
    return Submission(program, tuple(decoded.items), decoded.shots, content.hexdigest()[:32], echo)


def circuit_text(circuit: Any) -> str:
    """A circuit as text that is the same for equal circuits, whoever built them and when.

    QPY files of equal circuits differ, as every parameter has a random identifier.
    """
    registers = [f"{register.name}:{len(register)}" for register in circuit.cregs]
    lines = [f"{circuit.num_qubits};{circuit.num_clbits};{registers}"]
    for instruction in circuit.data:
        operation = instruction.operation
        bits = [circuit.find_bit(b).index for b in (*instruction.qubits, *instruction.clbits)]
        params = [circuit_text(p) if hasattr(p, "find_bit") else str(p) for p in operation.params]
        condition = getattr(operation, "condition", None)
        lines.append(f"{operation.name}{params}{bits}{condition}")
    return "\n".join(lines)


class DeviceSampler:
    """Runs the jobs of one device.

    Args:
        device: the device.
        noise: whether shots have its noise.
        seed: of the shots; a row's shots depend on it, on its circuit and values, and on how many
            rows of its job before it are the same, not on the order in which jobs arrive. ``None``
            for other shots every time.
    """

    def __init__(self, device: Device, *, noise: bool, seed: int | None) -> None:
        self._device = device
        self._noise = noise
        self._seed = seed

    @cached_property
    def _ideal(self) -> Any:
        from qailab.backends import AerBackend

        backend = AerBackend()
        backend.open()
        return backend

    @cached_property
    def _fake(self) -> Any:
        return self._device.fake_backend()

    @cached_property
    def _aer(self) -> Any:
        from qiskit_aer import AerSimulator

        options = {"max_parallel_threads": 1}  # more of them fight over the cores
        if self._noise:
            return AerSimulator.from_backend(self._fake, **options)
        return AerSimulator(**options)

    def run(self, submission: Submission) -> bytes:
        """Run a job; its result as ``GET /jobs/ID/results`` answers it.

        Raises:
            ApiError: if it cannot run.
        """
        started = datetime.now(UTC)
        digest = hashlib.sha256(f"{self._seed}|{submission.content}".encode()).digest()
        sequence = Seed() if self._seed is None else Seed(list(digest))
        data, parts = [], []
        seen: Counter[bytes] = Counter()
        for number, item in enumerate(submission.items):
            self._check_isa(item.circuit)
            twirl, size = sequence.spawn(1)[0], math.prod(item.shape)
            drawn, values = _values_of(item, twirl)
            seeds = self._seeds(item.circuit, values, submission.shots, seen)
            bits = self._sample(item.circuit, values, submission.shots, seeds)
            shaped = {name: b.reshape(*item.shape, *b.shape[1:]) for name, b in bits.items()}
            results = {name: _tensor(array) for name, array in (drawn | shaped).items()}
            data.append({"results": results, "metadata": {}})
            order = {"permutation": list(range(len(item.shape))), "element_range": [0, size, 1]}
            parts.append({"idx_item": number, "size": size, **order})
        span = {"start": started.isoformat(), "stop": datetime.now(UTC).isoformat()}
        metadata = {"chunk_timing": [{**span, "parts": parts}]}
        result = {"schema_version": SCHEMA, "data": data, "metadata": metadata, **submission.echo}
        return json.dumps(result).encode()

    def _check_isa(self, circuit: Any) -> None:
        from qiskit_ibm_runtime.utils.utils import is_isa_circuit

        problem = is_isa_circuit(circuit, self._fake.target)
        if problem:
            text = f"{problem} Circuits that do not match {self._device.name}'s target hardware "
            raise ApiError(400, 1517, text + "definition are not supported: transpile them.")

    def _seeds(
        self, circuit: Any, values: FloatArray, shots: int, seen: Counter[bytes]
    ) -> list[bytes]:
        """A seed for each row, 16 bytes; ``seen`` counts the rows of the job that are the same."""
        if self._seed is None:
            return [secrets.token_bytes(16) for _ in values]
        what = f"{self._seed}|{shots}|{circuit_text(circuit)}".encode()
        common, seeds = hashlib.blake2b(what, digest_size=16), []
        for row in np.ascontiguousarray(values):
            digest = common.copy()
            digest.update(row.tobytes())
            same = digest.digest()
            digest.update(seen[same].to_bytes(8))
            seen[same] += 1
            seeds.append(digest.digest())
        return seeds

    def _sample(
        self, circuit: Any, values: FloatArray, shots: int, seeds: list[bytes]
    ) -> dict[str, BoolArray]:
        """Draw the bits of each register, shape ``(n, shots, size)``, lowest bit first."""
        from qailab.backends.sampling import is_wide
        from qailab.gradients.canonical import canonicalize

        try:
            canonical, angle_map = canonicalize(circuit, tuple(circuit.parameters))
            self._ideal.validate(canonical, None)
        except (CircuitError, BackendError):  # it measures and goes on, or is too large
            return self._sample_row_by_row(circuit, values, shots, seeds)
        if self._noise or is_wide(canonical):
            return self._sample_row_by_row(circuit, values, shots, seeds)
        outcomes = self._outcomes(canonical, angle_map.values(values), shots, seeds)
        measures = [one for one in circuit.data if one.operation.name == "measure"]
        measured = sorted(circuit.find_bit(one.clbits[0]).index for one in measures)
        numbers = np.arange(canonical.num_outcomes)
        tables = {r.name: np.zeros((len(numbers), len(r)), np.bool_) for r in circuit.cregs}
        for place, clbit in enumerate(measured):
            for register, column in circuit.find_bit(circuit.clbits[clbit]).registers:
                tables[register.name][:, column] = numbers >> place & 1
        return {name: table[outcomes] for name, table in tables.items()}

    def _outcomes(
        self, canonical: Any, angles: FloatArray, shots: int, seeds: list[bytes]
    ) -> NDArray[np.uint16]:
        """Draw the outcome of each shot, shape ``(n, shots)``."""
        from qailab.gradients.noise import NoiseStream
        from qailab.gradients.rows import PointRows, RowBatch

        outcomes = np.empty((len(angles), shots), dtype=np.uint16)
        step = self._ideal.max_rows_per_call(canonical, None)
        for first in range(0, len(angles), step):
            rows = PointRows.numbered(first, angles[first : first + step, None])
            batch = RowBatch(rows, None, NoiseStream(0))
            exact = self._ideal.probabilities(canonical, batch, threading.Event()).sampled
            below = np.cumsum(exact, axis=1)
            for row, summed in enumerate(below, first):
                uniform = np.random.Generator(_bits(seeds[row])).random(shots)
                outcomes[row] = np.searchsorted(summed, uniform * summed[-1], side="right")
        return outcomes

    def _sample_row_by_row(
        self, circuit: Any, values: FloatArray, shots: int, seeds: list[bytes]
    ) -> dict[str, BoolArray]:
        # Each row has a seed of its own: Aer seeds the i-th circuit of a run with seed + 2113 i
        # and, shot by shot, each shot with one more, so that rows would share noise.
        from qiskit_aer.primitives import SamplerV2

        circuit = circuit.copy()
        circuit.global_phase = 0  # nothing sees it, and a symbolic one takes ages to bind
        shape = (len(values), shots)
        bits = {r.name: np.zeros((*shape, len(r)), np.bool_) for r in circuit.cregs}
        for row, (angles, seed) in enumerate(zip(values, seeds, strict=True)):
            number = int.from_bytes(seed) % 2**31
            sampler = SamplerV2.from_backend(self._aer, seed=number)
            job = sampler.run([circuit.assign_parameters(angles)], shots=shots)
            for name, array in job.result()[0].data.items():
                bits[name][row] = array.to_bool_array(order="little")
        return bits


def _bits(seed: bytes) -> np.random.BitGenerator:
    return np.random.Philox(key=int.from_bytes(seed))


def _values_of(item: Any, seed: Seed) -> tuple[dict[str, Any], FloatArray]:
    """What a twirled item draws beside parameter values, and the values of all rows ``(n, P)``."""
    drawn: dict[str, Any] = {}
    if hasattr(item, "samplex"):
        from qiskit_ibm_runtime.fake_provider.executor.broadcast_sample import broadcast_sample

        item.samplex.finalize()
        rng = np.random.default_rng(seed.spawn(1)[0])
        drawn = dict(broadcast_sample(item.samplex, item.samplex_arguments, item.shape, rng))
        values = drawn.pop("parameter_values", np.zeros((*item.shape, 0)))
    else:
        values = item.circuit_arguments
    shape = (math.prod(item.shape), item.circuit.num_parameters)
    return drawn, np.asarray(values, dtype=np.float64).reshape(shape)


def _tensor(bits: BoolArray) -> dict[str, Any]:
    """Bits as the schema has them: wrapped, as random shots do not compress and it takes long."""
    packed = zlib.compress(np.packbits(bits, bitorder="little").tobytes(), 0)
    data = base64.b64encode(packed).decode()
    return {"data": data, "shape": list(bits.shape), "dtype": "bool"}
