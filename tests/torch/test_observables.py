"""`ObservableQLayer`: exact values and gradients, shot noise, cost, and what is refused."""

import copy
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import Pauli, SparsePauliOp
from qiskit_aer.noise import NoiseModel, depolarizing_error
from torch import nn

from qailab.backends import AerBackend, EmulatedBackend, IBMBackend
from qailab.errors import BackendError, CircuitError, InputError
from qailab.launchers import BackwardPass, CircuitProblem, ForwardPass, QuantumLauncher
from qailab.torch import ExpVQCFunction, ObservableQLayer, QLayer, estimate_cost
from tests.gradients.test_observables import operators
from tests.support import oracles
from tests.support.circuits import circuits
from tests.support.circuits import ry_ansatz as circuit

HEISENBERG = SparsePauliOp.from_sparse_list(
    [(letter * 2, pair, 0.3) for letter in "XYZ" for pair in [(0, 1), (1, 2), (2, 3), (3, 0)]],
    num_qubits=4,
)


def bare(measured):
    return measured.remove_final_measurements(inplace=False)


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")  # Qiskit's, of powers
@settings(max_examples=20)
@given(
    st.integers(2, 6).flatmap(
        lambda n: st.tuples(circuits(n, 5), st.lists(operators(n), min_size=1, max_size=3))
    )
)
def test_exact_values_and_gradients_of_any_circuit_and_observables(drawn):
    measured, observables = drawn
    parameters = list(measured.parameters)
    half = len(parameters) // 2
    problem = CircuitProblem(
        measured, parameters[:half], parameters[half:], observables=observables
    )
    values = np.random.default_rng(1).uniform(0.2, 1.0, len(parameters))
    vector = np.random.default_rng(2).normal(size=len(observables))
    inputs, weights = values[:half], values[half:]
    forward = QuantumLauncher(problem, ForwardPass(None), AerBackend())
    backward = QuantumLauncher(problem, BackwardPass(shots=None), AerBackend())
    outputs = oracles.expectations_of(measured, parameters, observables)
    np.testing.assert_allclose(forward.run(inputs, weights), outputs(values), atol=1e-9)
    points, differences = oracles.difference_points(values)
    expected = differences @ [outputs(point) @ vector for point in points]
    found = backward.run(inputs, weights, vector)
    scale = max(1.0, *(np.abs(one.coeffs).sum() for one in observables))
    gradient = np.concatenate([found.inputs, found.weights])
    np.testing.assert_allclose(gradient, expected, atol=1e-9 * scale)


# With shots.


def test_values_are_unbiased_with_the_spread_of_their_shots():
    together = SparsePauliOp(["ZZ", "IZ", "XX", "YY"], [0.5, -1.0, 0.7, 0.3])
    layers = [
        ObservableQLayer(circuit(), observables=["ZZ", "XY", together], shots=100, seed=3),
        QLayer(circuit(), shots=100, seed=3),
    ]
    x = torch.tensor([[0.3, 1.2]], dtype=torch.float64)
    for layer in layers:
        layer.double().weight.data.copy_(torch.linspace(0.3, 1.0, 4))
        assert layer.output_std_error is None
        layer.tracks_output_std_error = True
        found = layer(x.expand(2000, 2)).detach().numpy()
        errors = layer.output_std_error.numpy()
        layer.shots = None
        value = layer(x).detach().numpy()[0]
        assert not layer.output_std_error.any()
        if layer is layers[0]:
            spread = np.sqrt((1 - value[:2] ** 2) / 100)  # of a mean of signs
            np.testing.assert_allclose(errors[:, :2].mean(axis=0), spread, rtol=0.02)
            # Bases have shots of their own.
            assert abs(np.corrcoef(found.T)[0, 1]) < 4.5 / np.sqrt(2000)
        assert np.abs(found.mean(axis=0) - value).max() < 4.5 * errors.max() / np.sqrt(2000)
        variances = found.var(axis=0) / (errors**2).mean(axis=0)
        assert np.abs(variances - 1).max() < 4.5 * np.sqrt(2 / 2000)


@pytest.mark.parametrize("shots", [200, None])
def test_under_noise_like_aer_itself(shots):
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.05, 2), ["cx"])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.02, 1), ["ry", "rz"])
    made = circuit(2)
    observables = ["ZZ", "XY", SparsePauliOp(["YX", "IZ"], [0.5, 2.0])]
    backend = AerBackend(noise_model=noise)
    layer = ObservableQLayer(made, observables=observables, shots=shots, backend=backend, seed=1)
    layer.double()
    x = torch.tensor([[0.3, 1.2]], dtype=torch.float64, requires_grad=True)
    values = layer(x)
    problem = layer.problem
    expected = problem.observables.constants.copy()
    order = (*problem.input_parameters, *problem.weight_parameters)
    point = np.concatenate([x.detach().numpy()[0], layer.weight.detach().numpy()])
    for basis, angles in enumerate(problem.bases):  # the circuit of a basis, under Aer's noise
        turned = bare(made)
        for (gate, qubit), angle in zip(problem.observables.turns, angles, strict=True):
            getattr(turned, gate)(angle, qubit)
        turned.measure_all()
        table = oracles.noisy_probabilities(turned, order, point, noise)
        expected += problem.observables.of_probabilities(basis, table[None])[0]
    tolerance = 1e-9 if shots is None else 5 * 2.5 / np.sqrt(shots)
    np.testing.assert_allclose(values.detach().numpy()[0], expected, atol=tolerance)
    assert torch.isfinite(torch.autograd.grad(values.sum(), x)[0]).all()
    if shots is None:
        assert torch.autograd.gradcheck(layer, (x,))


# What runs.


class Counting(AerBackend):
    """Counts rows times bases, forward and backward."""

    def __init__(self):
        super().__init__()
        self.rows = {"forward": 0, "backward": 0}

    def expectations(self, circuit, batch, stop):
        self.rows["forward" if batch.cotangents is None else "backward"] += batch.num_rows
        return super().expectations(circuit, batch, stop)


@pytest.mark.parametrize(
    ("observables", "bases"), [("ZIIIII", 1), ("Z", 1), (["XXIIII", "IIZZYY", "YIIIII"], 2)]
)
def test_the_executions_are_those_of_one_observable(observables, bases):
    backend = Counting()
    made = circuit(6, reps=2)
    layer = ObservableQLayer(made, observables=observables, shots=1024, backend=backend)
    x = torch.rand(2, 6, requires_grad=True)
    layer(x).sum().backward()
    angles = 6 + 18
    # One observable's light cone may be smaller.
    columns = layer.problem.angle_map.reached_by(np.ones(angles, dtype=bool), noiseless=True)
    assert len(columns) <= angles
    expected = {"forward": 2 * bases, "backward": 2 * 2 * len(columns) * bases}
    assert backend.rows == expected
    told = estimate_cost(nn.Sequential(nn.Linear(6, 6), layer), 2, show=False).methods[0]
    assert told.forward_rows == 2 * bases
    assert told.backward_rows == 2 * 2 * angles * bases
    assert told.step.shots == 1024 * (told.forward_rows + told.backward_rows)


def test_all_bases_of_an_emulated_device_are_one_job():
    device = EmulatedBackend(AerBackend(), latency=0.001)
    used = []
    device_expectations = device.expectations

    def counting(*arguments):
        found = device_expectations(*arguments)
        used.append(found.usage.jobs)
        return found

    device.expectations = counting
    outputs = {}
    for name, backend in (("device", device), ("inner", AerBackend())):
        layer = ObservableQLayer(circuit(4), observables=HEISENBERG, backend=backend, seed=1)
        layer.weight.data.fill_(0.4)
        x = torch.full((2, 4), 0.3, requires_grad=True)
        layer(x).sum().backward()
        outputs[name] = x.grad
    torch.testing.assert_close(outputs["device"], outputs["inner"], rtol=0, atol=0)
    assert used == [1, 1]


def test_spsa_takes_observables():
    layer = ObservableQLayer(circuit(4), observables=HEISENBERG, gradient="spsa", seed=1)
    layer(torch.rand(2, 4)).sum().backward()
    assert torch.isfinite(layer.weight.grad).all()
    assert layer.weight_std_error.shape == (8,)


# The layer.


def test_it_is_a_layer_like_the_others():
    torch.manual_seed(0)
    layer = ObservableQLayer(circuit(4), observables=[HEISENBERG, "ZIII"], seed=5)
    assert (layer.in_features, layer.out_features) == (4, 2)
    assert "out_features=2, qubits=4, weights=8" in repr(layer)
    assert repr(layer).endswith("bases=3)")
    x = torch.rand(3, 2, 4)
    assert layer(x).shape == (3, 2, 2)
    twin, again = (
        copy.deepcopy(layer),
        ObservableQLayer(circuit(4), observables=[HEISENBERG, "ZIII"]),
    )
    again.load_state_dict(layer.state_dict())
    expected = layer(x)
    for other in (twin, again):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    assert not torch.equal(layer(x), expected)
    assert layer(x[:0, 0]).shape == (0, 2)
    assert inspect.signature(ObservableQLayer).parameters.keys() == {
        "circuit", "observables", *inspect.signature(QLayer).parameters
    }  # fmt: skip


def test_constants_alone_and_circuits_without_measurements():
    made = QuantumCircuit(2)
    made.ry(Parameter("input"), 0)
    layer = ObservableQLayer(made, observables=[SparsePauliOp("II", 2.5), Pauli("IZ")], shots=None)
    x = torch.tensor([[0.3], [0.5]], requires_grad=True)
    torch.testing.assert_close(layer(x), torch.stack([torch.full((2,), 2.5), x[:, 0].cos()], 1))
    constant = ObservableQLayer(made, observables="II", shots=10)
    outputs = constant(x)
    torch.testing.assert_close(outputs, torch.ones(2, 1))
    assert torch.autograd.grad(outputs.sum(), x)[0].abs().max() == 0


def test_observables_of_more_qubits_than_there_are_tables_for():
    made = circuit(18, reps=1)
    with pytest.raises(BackendError, match=r"act on 18 qubits.*at most 16.*shots instead"):
        ObservableQLayer(made, shots=None, backend=AerBackend())
    layer = ObservableQLayer(made, observables="Z", shots=5, backend=AerBackend(), seed=1)
    assert layer(torch.rand(1, 18)).shape == (1, 18)
    exact = ObservableQLayer(made, observables="I" * 15 + "ZIX", shots=None)
    assert exact(torch.rand(1, 18)).shape == (1, 1)


def test_other_bad_input():
    middle = QuantumCircuit(2, 1)
    middle.measure(0, 0)
    middle.ry(Parameter("input"), 0)
    with pytest.raises(CircuitError, match="after it was measured"):
        ObservableQLayer(middle)
    with pytest.raises(TypeError, match="observables"):
        QLayer(circuit(), observables="Z")
    with pytest.raises(InputError, match="on 3 qubits, and the circuit has 2"):
        ObservableQLayer(circuit(), observables="ZZZ")
    asked = [CircuitProblem(circuit()), CircuitProblem(circuit(), observables="Z")]
    forward = QuantumLauncher(asked[0], ForwardPass(10), AerBackend())
    backward = QuantumLauncher(asked[1], BackwardPass(shots=10), AerBackend())
    x, weight = torch.rand(1, 2), torch.rand(4)
    with pytest.raises(
        InputError, match=r"different circuits or observables.*outcomes=4.*observables=2"
    ):
        ExpVQCFunction.apply(x, weight, forward, backward)
    with pytest.raises(InputError, match=r"grad_output must have shape \(1, 2\)"):
        backward.run(x.numpy(), weight.numpy(), np.ones((1, 4)))
    with pytest.raises(InputError, match="exact probabilities"):
        ObservableQLayer(circuit(), shots=None, backend=IBMBackend("ibm_fez"))
