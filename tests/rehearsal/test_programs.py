"""Programs apart from HTTP: what is rarely submitted, and edges."""

import itertools
import json

import numpy as np
import pytest
from qiskit import ClassicalRegister, QuantumCircuit, transpile
from qiskit.circuit import Parameter
from qiskit.primitives.containers import BitArray
from qiskit.quantum_info import SparsePauliOp, Statevector

from qailab.rehearsal.circuits import circuit_text
from qailab.rehearsal.devices import load_device
from qailab.rehearsal.samples import BitSamples, OutcomeSamples
from qailab.rehearsal.simulation import Simulator
from qailab.rehearsal.submissions import PayloadError, SubmissionReader
from tests.rehearsal.conftest import DEADLINE, exact, frequencies, logical_circuit

VALUES = np.random.default_rng(5).uniform(-2, 2, (3, 2))
SEED = np.random.SeedSequence(1)


@pytest.mark.parametrize("bits", [1, 3, 6, 9, 12])
def test_packing(bits):
    rng = np.random.default_rng(bits)
    outcomes = rng.integers(2**bits, size=(3, 7)).astype(np.uint16)
    clbits = [int(bit) for bit in rng.permutation(bits + 1)[:bits]]  # one is not measured
    plain = np.zeros((3, 7, bits + 1), dtype=bool)
    for place, clbit in enumerate(clbits):
        plain[..., clbit] = outcomes >> place & 1
    for samples in (OutcomeSamples(outcomes, clbits), BitSamples(plain)):
        for size in range(1, bits + 1):
            some = [int(bit) for bit in rng.permutation(bits + 1)[:size]]
            expected = BitArray.from_bool_array(plain[..., some], order="little")
            assert (samples.words(some) == expected.array).all()
            stream = np.packbits(plain[..., some], bitorder="little").tobytes()
            assert samples.packed(some) == stream


def test_circuits_that_measure_and_go_on():
    angle = Parameter("t")
    circuit = QuantumCircuit(2, 3)
    circuit.rx(angle, 0)
    circuit.measure(0, 0)
    with circuit.if_test((0, 1)):
        circuit.x(1)
    circuit.reset(0)
    circuit.measure(0, 1)
    circuit.measure(1, 2)
    simulator = Simulator(load_device("manila"), noise=False)
    values = np.array([[0.0], [np.pi], [np.pi / 2]])
    samples = simulator.sample(circuit, values, 500, SEED)
    words = samples.words([0, 1, 2])[..., 0]
    assert (words[0] == 0).all()
    assert (words[1] == 0b101).all()
    assert 0.4 < (words[2] == 0b101).mean() < 0.6
    assert set(np.unique(words[2])) == {0, 0b101}


def test_noise_and_many_bits():
    device = load_device("manila")
    isa = transpile(logical_circuit(), device.fake_backend(), seed_transpiler=1)
    samples = Simulator(device, noise=True).sample(isa, VALUES, 4000, SEED)
    found = np.array([np.bincount(row, minlength=8) for row in samples.words([0, 1, 2])[..., 0]])
    distance = np.abs(found / 4000 - exact(VALUES)).sum(axis=1) / 2
    assert (distance > 0.02).all()
    assert (distance < 0.2).all()

    wide = QuantumCircuit(18, 18)
    wide.h(0)
    wide.x(range(1, 18, 2))
    wide.measure(range(18), range(17, -1, -1))
    samples = Simulator(device, noise=False).sample(wide, np.zeros((1, 0)), 50, SEED)
    words = samples.words(range(18))
    assert words.shape == (1, 50, 3)
    bits = np.unpackbits(words, axis=-1)[0, :, -18:]  # the highest first: qubit 0
    assert 0 < bits[:, 0].mean() < 1
    assert (bits[:, 1:] == np.arange(1, 18) % 2).all()


def test_circuits_without_rows_parameters_or_measurements():
    simulator = Simulator(load_device("manila"), noise=False)
    circuit = logical_circuit()
    assert simulator.sample(circuit, np.zeros((0, 2)), 10, SEED).words([0]).shape == (0, 10, 1)
    bound = circuit.assign_parameters(dict(zip(circuit.parameters, (0.0, 0.0), strict=True)))
    samples = simulator.sample(bound, np.zeros((4, 0)), 10, SEED)
    assert (samples.words([0, 1, 2]) == 1).all()
    nothing = QuantumCircuit(1, 2)
    assert (simulator.sample(nothing, np.zeros((1, 0)), 5, SEED).words([0, 1]) == 0).all()


def test_text_of_circuits_does_not_depend_on_who_built_them():
    first, second = logical_circuit(), QuantumCircuit.copy(logical_circuit())
    again = {old: Parameter(old.name) for old in second.parameters}
    assert circuit_text(first) == circuit_text(second.assign_parameters(again))
    second.x(0)
    assert circuit_text(first) != circuit_text(second)


@pytest.mark.parametrize("version", ["v0.1", "v0.2", "v1.0", "v1.1", "v2.0"])
def test_schemas_of_the_executor(rehearse, monkeypatch, version):
    rehearsal = rehearse(seed=2)
    monkeypatch.setattr("qiskit_ibm_runtime.executor.Executor._SCHEMA_VERSION", version)
    from qiskit_ibm_runtime.executor import Executor
    from qiskit_ibm_runtime.quantum_program import QuantumProgram

    program = QuantumProgram(shots=3000)
    program.append_circuit_item(rehearsal.isa, circuit_arguments=VALUES.reshape(3, 1, 2))
    job = Executor(rehearsal.backend).run(program)
    (item,) = job.result(timeout=DEADLINE)
    assert item["low"].shape == (3, 1, 3000, 2)
    assert item["low"].dtype == bool
    high = item["high"][:, 0, :, 0].mean(axis=1)
    np.testing.assert_allclose(high, exact(VALUES)[:, 4:].sum(axis=1), atol=0.05)


def test_twirling(rehearse):
    rehearsal = rehearse(seed=2)
    twirling = {"enable_gates": True, "enable_measure": True, "num_randomizations": 8}
    job = rehearsal.run(VALUES, shots=8000, twirling=twirling)
    found = frequencies(rehearsal.result(job).join_data(["low", "high"]))
    np.testing.assert_allclose(found, exact(VALUES), atol=0.04)
    (record,) = rehearsal.server.jobs
    assert record.executions == 3 * 8000


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_estimator(rehearse):
    from qiskit_ibm_runtime import EstimatorV2

    rehearsal = rehearse(seed=2)
    angles = [Parameter("a"), Parameter("b")]
    circuit = QuantumCircuit(2)
    circuit.ry(angles[0], 0)
    circuit.cx(0, 1)
    circuit.rx(angles[1], 1)
    isa = transpile(circuit, rehearsal.backend, seed_transpiler=1)
    observables = [
        SparsePauliOp(["ZX", "II"], [1.0, 0.5]),
        SparsePauliOp(["YY", "ZI", "XZ"], [1.0, -2.0, 0.25]),
    ]
    laid_out = [[observable.apply_layout(isa.layout)] for observable in observables]
    job = EstimatorV2(rehearsal.backend).run([(isa, laid_out, VALUES)], precision=0.02)
    data = job.result(timeout=DEADLINE)[0].data
    assert data.evs.shape == (2, 3)
    for (row, observable), (column, values) in itertools.product(
        enumerate(observables), enumerate(VALUES)
    ):
        state = Statevector(circuit.assign_parameters(dict(zip(angles, values, strict=True))))
        expected = state.expectation_value(observable).real
        error = data.stds[row, column]
        assert abs(data.evs[row, column] - expected) < 5 * error + 1e-9
        assert error <= 0.02 * 3.25
    assert rehearsal.server.jobs[0].shots == 2500


def test_payloads_that_cannot_be_read(rehearse):
    reader = SubmissionReader()
    rehearsal = rehearse()
    rehearsal.run(VALUES)
    params = json.loads(rehearsal.server._instance.jobs()[0].params)["params"]
    whole = reader.read("executor", params)
    assert whole.rows == 3
    program = params["quantum_program"]
    for changes, message in [
        ({"meas_level": "kerneled"}, "meas_level"),
        ({"shots": 0}, "shots"),
        ({"items": []}, "cannot be read"),
        ({"circuits": {"b64_data": "????"}}, "cannot be read"),
    ]:
        changed = {**params, "quantum_program": {**program, **changes}}
        with pytest.raises(PayloadError, match=message):
            reader.read("executor", changed)
    with pytest.raises(PayloadError, match="unknown schema_version 'v9'"):
        reader.read("executor", {**params, "schema_version": "v9"})
    with pytest.raises(PayloadError, match="at least one"):
        reader.read("sampler", {"pubs": []})
    with pytest.raises(PayloadError, match="object"):
        reader.read("sampler", [])


def test_registers_beside_each_other():
    circuit = QuantumCircuit(3)
    circuit.add_register(ClassicalRegister(3, "a"), ClassicalRegister(2, "b"))
    circuit.x([0, 2])
    circuit.measure([0, 1, 2], [4, 0, 1])
    samples = Simulator(load_device("manila"), noise=False).sample(
        circuit, np.zeros((1, 0)), 3, SEED
    )
    assert (samples.words([0, 1, 2]) == 0b010).all()
    assert (samples.words([3, 4]) == 0b10).all()
