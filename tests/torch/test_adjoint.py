"""gradient="adjoint": which method is chosen, and that its gradient is the shift rule's."""

import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from qailab.backends import AerBackend, EmulatedBackend, StatevectorBackend
from qailab.circuit import AmplitudeEncoder, RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.errors import InputError
from qailab.launchers import BackwardPass, CircuitProblem, QuantumLauncher
from qailab.torch import ObservableQLayer, QLayer


def combined():
    """Shared, scaled and multiplied parameters, a controlled rotation, two measured qubits."""
    x, w = ParameterVector("input", 2), ParameterVector("weight", 3)
    circuit = QuantumCircuit(3, 2)
    circuit.ry(2 * x[0] + w[0], 0)
    circuit.crx(x[1] * w[1], 0, 1)
    circuit.rzz(w[2], 1, 2)
    circuit.h(2)
    circuit.rx(w[0].sin() + x[0], 2)
    circuit.measure([2, 0], [0, 1])
    return circuit


CIRCUITS = {
    "combined": combined(),
    "blocks": build_circuit(3, [RotationalEncoder(), RealAmplitudesBlock(reps=2)]),
    "amplitudes": build_circuit(2, [AmplitudeEncoder(), RealAmplitudesBlock(reps=1)]),
}


def gradients(kind, circuit, inputs, **options):
    layer = kind(circuit, seed=1, **options).double()
    torch.manual_seed(4)
    with torch.no_grad():
        layer.weight.uniform_(0.2, 1.2)
    inputs = inputs.clone().requires_grad_()
    outputs = layer(inputs)
    cotangents = torch.linspace(-1, 2, outputs.numel(), dtype=torch.float64).reshape(outputs.shape)
    outputs.backward(cotangents)
    return layer, outputs.detach(), torch.cat([inputs.grad.flatten(), layer.weight.grad])


@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("kind", [QLayer, ObservableQLayer])
def test_it_is_the_gradient_of_the_shift_rule(kind, name):
    circuit = CIRCUITS[name]
    size = sum(parameter.name.startswith("input") for parameter in circuit.parameters)
    inputs = torch.rand(2, 3, size, dtype=torch.float64, generator=torch.manual_seed(2)) + 0.1
    options = {}
    if kind is ObservableQLayer:
        letters = "XYZ" * circuit.num_qubits
        options["observables"] = ["Z" * circuit.num_qubits, letters[: circuit.num_qubits]]
    layer, values, adjoint = gradients(kind, circuit, inputs, shots=None, **options)
    assert layer.gradient == "adjoint"
    for other in (StatevectorBackend(), AerBackend()):
        options |= {"backend": other, "gradient": "param_shift", "shots": None}
        _, expected_values, expected = gradients(kind, circuit, inputs, **options)
        torch.testing.assert_close(values, expected_values, rtol=0, atol=1e-12)
        torch.testing.assert_close(adjoint, expected, rtol=0, atol=1e-10)


def test_what_is_chosen_follows_shots_and_backend():
    layer = QLayer(CIRCUITS["blocks"], shots=None)
    assert layer.gradient == "adjoint"
    layer.shots = 100
    assert layer.gradient == "param_shift"
    layer.shots = None
    layer.backend = AerBackend()
    assert layer.gradient == "param_shift"
    layer.backend = StatevectorBackend()
    assert "gradient='adjoint'" in repr(layer)
    assert QLayer(CIRCUITS["blocks"], shots=None, gradient="param_shift").gradient == "param_shift"


def test_with_shots_the_exact_distribution_is_differentiated():
    inputs = torch.rand(2, 3, dtype=torch.float64, generator=torch.manual_seed(3))
    circuit = CIRCUITS["blocks"]
    _, drawn, gradient = gradients(QLayer, circuit, inputs, shots=50, gradient="adjoint")
    _, exact, expected = gradients(QLayer, circuit, inputs, shots=None)
    torch.testing.assert_close(drawn * 50, (drawn * 50).round())
    assert not torch.equal(drawn, exact)
    assert torch.equal(gradient, expected)


def test_where_it_is_not_possible_an_error_says_so():
    with pytest.raises(InputError, match="shots=None, not 1024"):
        BackwardPass("adjoint")
    problem, algorithm = CircuitProblem(CIRCUITS["blocks"]), BackwardPass("adjoint", None)
    device = EmulatedBackend(StatevectorBackend(), latency=0.01)
    with pytest.raises(InputError, match=r"which EmulatedBackend\(StatevectorBackend\(\)"):
        QuantumLauncher(problem, algorithm, device)
    layer = QLayer(CIRCUITS["blocks"], gradient="adjoint")
    with pytest.raises(InputError, match=r"AerBackend\(\)"):
        layer.backend = AerBackend()
    assert isinstance(layer.backend, StatevectorBackend)  # nothing has changed
