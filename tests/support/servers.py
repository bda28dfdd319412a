"""Rehearsal servers and IBM's real client connected to them."""

import numpy as np
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, transpile
from qiskit.circuit import Parameter

from qailab.rehearsal import Fault, FaultPlan, RehearsalServer
from tests.support import client, oracles
from tests.support.processes import DEADLINE

A, B = Parameter("a"), Parameter("b")


def server_with(*backends, faults=(), **options):
    """A server that was started, with a list of faults or a plan."""
    plan = faults if isinstance(faults, FaultPlan) else FaultPlan(faults)
    return RehearsalServer(backends or ("manila",), faults=plan, **options).start()


def on(kind, where="POST /jobs", **options):
    return Fault(kind, where, **options)


def connect(server):
    environment = server.environment
    return client.loaded().QiskitRuntimeService(
        channel="ibm_quantum_platform",
        token=environment["QISKIT_IBM_TOKEN"],
        url=environment["QISKIT_IBM_URL"],
        instance=environment["QISKIT_IBM_INSTANCE"],
    )


class Rehearsal:
    """A server, and the client connected to it."""

    def __init__(self, server):
        self.server = server
        self.service = connect(server)
        self.backend = self.service.backend(server.backends[0])
        self.isa = isa_circuit(self.backend)

    def run(self, values=((0.3, 0.2),), *, mode=None, shots=64, tags=("test",), **options):
        sampler = client.loaded().executor_sampler.Sampler(
            mode=mode or self.backend,
            options={"environment": {"job_tags": list(tags)}, **options},
        )
        return sampler.run([(self.isa, np.asarray(values, dtype=float))], shots=shots)

    def result(self, job):
        return job.result(timeout=DEADLINE, poll_interval=0.1)[0]


def logical_circuit():
    """Two registers, bits in another order than qubits, an angle that is not affine."""
    qubits = QuantumRegister(3, "q")
    low, high = ClassicalRegister(2, "low"), ClassicalRegister(1, "high")
    circuit = QuantumCircuit(qubits, low, high)
    circuit.ry(A, 0)
    circuit.crx(2 * A + B * B, 0, 1)
    circuit.x(2)
    circuit.measure(0, low[1])
    circuit.measure(2, low[0])
    circuit.measure(1, high[0])
    return circuit


def isa_circuit(backend):
    return transpile(logical_circuit(), backend, seed_transpiler=1, optimization_level=1)


def exact(values):
    """Probabilities of the logical circuit, shape (n, 8); bit 0 is low[0]."""
    return np.array([oracles.probabilities(logical_circuit(), [A, B], row) for row in values])


def frequencies(bit_array):
    """Of outcomes, shape (n, 2**bits)."""
    outcomes = bit_array.array[..., 0]
    kinds = np.arange(1 << bit_array.num_bits)
    return (outcomes[..., None] == kinds).mean(axis=-2)
