"""The layers of other libraries' first tutorials, and ours beside them in the README."""

import re
from pathlib import Path

import pytest
import torch

from qailab.circuit import CXEntangler, RotationalEncoder, build_circuit
from qailab.torch import ObservableQLayer

README = Path(__file__).parents[2] / "README.md"
INPUTS = torch.linspace(-1.0, 2.0, 8, dtype=torch.float64).reshape(4, 2)


def ours_of(library, **names):
    """The layer in the last cell of a library's line, without shots."""
    (line,) = re.findall(rf"^\| from {library}:.*$", README.read_text(), flags=re.MULTILINE)
    code = re.findall(r"`([^`]+)`", line.split("|")[2])
    for each in code[:-1]:
        exec(each, names)
    layer = eval(code[-1], names)
    assert isinstance(layer, ObservableQLayer)
    layer.shots = None
    return layer.double()


def assert_equal(theirs, ours, weight):
    """Assert equal outputs and gradients of the weights; ``weight`` is theirs."""
    outputs = [theirs(INPUTS), ours(INPUTS)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-9)
    vector = torch.linspace(1.0, 2.0, outputs[0].numel(), dtype=torch.float64)
    gradients = [
        torch.autograd.grad((out.flatten() * vector).sum(), by)[0].flatten()
        for out, by in zip(outputs, (weight, ours.weight), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)


def test_pennylane():
    qml = pytest.importorskip("pennylane")

    @qml.qnode(qml.device("default.qubit", wires=2))
    def qnode(inputs, weights):
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.BasicEntanglerLayers(weights, wires=range(2))
        return [qml.expval(qml.PauliZ(wires=i)) for i in range(2)]

    theirs = qml.qnn.TorchLayer(qnode, {"weights": (6, 2)}).double()
    ours = ours_of("PennyLane", build_circuit=build_circuit, ObservableQLayer=ObservableQLayer,
                   RotationalEncoder=RotationalEncoder, CXEntangler=CXEntangler)  # fmt: skip
    with torch.no_grad():
        ours.weight.copy_(theirs.weights.flatten())
    assert_equal(theirs, ours, theirs.weights)


def test_qiskit_machine_learning():
    networks = pytest.importorskip("qiskit_machine_learning.neural_networks")
    from qiskit.circuit.library import real_amplitudes, zz_feature_map
    from qiskit.primitives import StatevectorEstimator

    feature_map, ansatz = zz_feature_map(2), real_amplitudes(2)
    circuit = feature_map.compose(ansatz)
    qnn = networks.EstimatorQNN(
        circuit=circuit,
        input_params=feature_map.parameters,
        weight_params=ansatz.parameters,
        estimator=StatevectorEstimator(),
        default_precision=0.0,
    )
    ours = ours_of("qiskit-machine-learning", circuit=circuit, feature_map=feature_map,
                   ansatz=ansatz, ObservableQLayer=ObservableQLayer)  # fmt: skip
    weight = ours.weight.detach().numpy()
    outputs = ours(INPUTS)
    torch.testing.assert_close(
        outputs.detach(), torch.tensor(qnn.forward(INPUTS.numpy(), weight)), rtol=0, atol=1e-9
    )
    _, by_weight = qnn.backward(INPUTS.numpy(), weight)
    outputs.sum().backward()
    expected = torch.tensor(by_weight.sum(axis=(0, 1)))
    torch.testing.assert_close(ours.weight.grad, expected, rtol=0, atol=1e-9)
