"""Reading and running of jobs, without a server."""

import json

import numpy as np
import pytest
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Parameter
from scipy import stats

from qailab.errors import InputError
from qailab.rehearsal.devices import load_devices
from qailab.rehearsal.sampler import DeviceSampler, circuit_text, read_submission
from tests.support import client
from tests.support.servers import exact, isa_circuit, logical_circuit

VALUES = np.random.default_rng(5).uniform(-2, 2, (3, 2))


@pytest.fixture(scope="module")
def manila():
    client.loaded()
    (device,) = load_devices(["manila"])
    return device


def params_of(circuit, values, shots):
    """What the client sends for one PUB."""
    client.loaded()
    from qiskit_ibm_runtime.options_models import ExecutorOptions
    from qiskit_ibm_runtime.quantum_program import QuantumProgram
    from qiskit_ibm_runtime.quantum_program.params_converters import (
        QUANTUM_PROGRAM_PARAMS_CONVERTERS,
    )

    program = QuantumProgram(shots=shots)
    program.append_circuit_item(circuit, circuit_arguments=values)
    encode = QUANTUM_PROGRAM_PARAMS_CONVERTERS["v2.0"].encoder
    return json.loads(encode(program, ExecutorOptions()).model_dump_json())


def sampled(device, circuit, values, shots=4000, seed=1, **options):
    """Bits of each register, lowest first."""
    from ibm_quantum_schemas.executor.version_2_0 import QuantumProgramResultModel

    sampler = DeviceSampler(device, **{"noise": False, "seed": seed, **options})
    result = sampler.run(read_submission("executor", params_of(circuit, values, shots)))
    (item,) = QuantumProgramResultModel.model_validate_json(result).data
    return {name: tensor.to_numpy() for name, tensor in item.results.items()}


def test_noise_is_near(manila):
    isa = isa_circuit(manila.fake_backend())
    bits = sampled(manila, isa, VALUES, noise=True)
    outcomes = bits["low"] @ [1, 2] + 4 * bits["high"][..., 0]
    found = np.array([np.bincount(row, minlength=8) for row in outcomes]) / 4000
    distance = np.abs(found - exact(VALUES)).sum(axis=1) / 2
    assert (distance > 0.02).all()
    assert (distance < 0.2).all()


@pytest.mark.parametrize("noise", [False, True])
def test_a_row_has_the_same_shots_in_whichever_job_it_comes(manila, noise):
    isa = isa_circuit(manila.fake_backend())
    rows = VALUES[[0, 1, 0, 2]]
    whole = sampled(manila, isa, rows, shots=100, noise=noise)["low"]
    parts = [
        sampled(manila, isa, rows[part], shots=100, noise=noise)["low"] for part in ([2], [1, 3])
    ]
    assert (whole[[0, 1, 3]] == np.concatenate(parts)).all()
    assert (whole[0] != whole[2]).any()  # the same row again has shots of its own
    other = sampled(manila, isa, rows, shots=100, noise=noise, seed=2)["low"]
    assert (whole != other).any()


def test_shots_are_of_the_exact_distribution(manila):
    isa = isa_circuit(manila.fake_backend())
    shots, expected = 20_000, exact(VALUES)
    bits = sampled(manila, isa, VALUES, shots=shots)
    outcomes = bits["low"] @ [1, 2] + 4 * bits["high"][..., 0]
    found = np.array([np.bincount(row, minlength=8) for row in outcomes])
    possible = expected > 1e-9
    assert (found[~possible] == 0).all()
    far = (found - shots * expected)[possible] ** 2 / (shots * expected[possible])
    assert stats.chi2.sf(far.sum(), possible.sum() - len(VALUES)) > 1e-3
    early, late = outcomes[:, : shots // 2], outcomes[:, shots // 2 :]
    assert (abs((early == 0).mean(axis=1) - (late == 0).mean(axis=1)) < 0.03).all()  # in no order


def test_many_bits_and_no_rows():
    (guadalupe,) = load_devices(["guadalupe"])
    wide = QuantumCircuit(16, 16)
    wide.sx(0)
    wide.x(range(1, 16, 2))
    wide.measure(range(16), range(15, -1, -1))
    bits = sampled(guadalupe, wide, np.zeros((1, 0)), shots=50)["c"]
    assert bits.shape == (1, 50, 16)
    assert 0 < bits[..., 15].mean() < 1
    assert (bits[0, :, 14::-1] == np.arange(1, 16) % 2).all()
    (manila,) = load_devices(["manila"])
    isa = isa_circuit(manila.fake_backend())
    assert sampled(manila, isa, np.zeros((0, 2)), shots=5)["low"].shape == (0, 5, 2)


def test_text_of_circuits_does_not_depend_on_who_built_them():
    first, second = logical_circuit(), logical_circuit()
    again = {old: Parameter(old.name) for old in second.parameters}
    assert circuit_text(first) == circuit_text(second.assign_parameters(again))
    second.x(0)
    assert circuit_text(first) != circuit_text(second)


def test_payloads_that_cannot_be_read(manila):
    isa = transpile(logical_circuit(), manila.fake_backend(), seed_transpiler=1)
    params = params_of(isa, VALUES, 64)
    submission = read_submission("executor", params)
    assert (submission.rows, submission.shots) == (3, 64)
    assert submission.content == read_submission("executor", params).content
    program = params["quantum_program"]
    for changes, message in [
        ({"meas_level": "kerneled"}, "meas_level"),
        ({"shots": 0}, "shots"),
        ({"items": []}, "cannot be read"),
        ({"circuits": {"b64_data": "????"}}, "cannot be read"),
    ]:
        changed = {**params, "quantum_program": {**program, **changes}}
        with pytest.raises(InputError, match=message):
            read_submission("executor", changed)
    with pytest.raises(InputError, match="'v9'"):
        read_submission("executor", {**params, "schema_version": "v9"})
    with pytest.raises(InputError, match="client-side Sampler"):
        read_submission("sampler", params)
    with pytest.raises(InputError, match="finite"):
        read_submission("executor", params_of(isa, VALUES * np.inf, 64))
