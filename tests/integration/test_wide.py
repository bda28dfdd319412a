"""Observables on circuits too wide for any table of outcomes, in a process of bounded memory."""

import subprocess
import sys

import numpy as np
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from qailab.backends import AerBackend
from qailab.torch import ObservableQLayer

MPS = AerBackend(method="matrix_product_state")

TRAINING = """
import resource
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qailab.backends import AerBackend
from qailab.torch import ObservableQLayer

n = 40
inputs, weights = ParameterVector("input", n), ParameterVector("weight", n)
circuit = QuantumCircuit(n)
for qubit in range(n):
    circuit.ry(inputs[qubit], qubit)
for qubit in range(n):
    circuit.cx(qubit, (qubit + 1) % n)
for qubit in range(n):
    circuit.ry(weights[qubit], qubit)

def label(*qubits):
    return "".join("Z" if n - 1 - place in qubits else "I" for place in range(n))

observables = [label(q) for q in range(n)] + [label(q, (q + 1) % n) for q in range(n)]
torch.manual_seed(0)
layer = ObservableQLayer(
    circuit,
    observables=observables,
    shots=10,
    seed=1,
    backend=AerBackend(method="matrix_product_state"),
)
model = torch.nn.Sequential(torch.nn.Linear(3, n), layer, torch.nn.Linear(2 * n, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
x, y = torch.rand(4, 3), torch.rand(4, 1)
for _ in range(3):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x), y).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB
"""


def test_40_qubits_and_80_observables_train_under_a_gibibyte():
    done = subprocess.run(
        [sys.executable, "-c", TRAINING], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1 << 20


def test_120_qubits_of_a_product_circuit_like_its_closed_form():
    n, shots = 120, 100
    inputs, weights = ParameterVector("input", n), ParameterVector("weight", 1)
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(inputs[qubit], qubit)
    circuit.rx(weights[0], n - 1)
    pair = "ZX" + "I" * (n - 2)
    layer = ObservableQLayer(
        circuit, observables=["I" * 119 + "Z", "Z" + "I" * 119, pair], shots=shots, seed=1,
        backend=MPS,
    ).double()  # fmt: skip
    layer.weight.data.fill_(0.4)
    x = torch.linspace(0.2, 1.4, n, dtype=torch.float64)[None].requires_grad_()
    outputs = layer(x)
    (vectors,) = torch.tensor([[0.5, 1.0, -2.0]], dtype=torch.float64)
    outputs.backward(vectors[None])

    twin, weight = x.detach().clone().requires_grad_(), layer.weight.detach().clone()
    weight.requires_grad_()
    last = twin[0, -1].cos() * weight[0].cos()
    exact = torch.stack([twin[0, 0].cos(), last, last * twin[0, -2].sin()])
    exact.backward(vectors)
    assert (outputs[0] - exact).abs().max() < 5 / np.sqrt(shots)
    scores = (x.grad - twin.grad) / layer.input_std_error.clamp_min(1e-12)
    assert scores.abs().max() < 5
    assert (scores != 0).sum() <= 3  # only the qubits in the light cone have rows
    assert ((layer.weight.grad - weight.grad) / layer.weight_std_error).abs().max() < 5


def test_120_qubits_that_are_all_entangled():
    n = 120
    circuit = QuantumCircuit(n)
    circuit.ry(ParameterVector("input", 1)[0], 0)
    for qubit in range(n - 1):
        circuit.cx(qubit, qubit + 1)
    labels = ["I" * 119 + "Z", "Z" + "I" * 119, "Z" + "I" * 118 + "Z", "Z" * 120, "X" * 120]
    layer = ObservableQLayer(circuit, observables=labels, shots=200, backend=MPS, seed=1)
    angle = 0.9
    cosine, sine = np.cos(angle), np.sin(angle)  # cos |0..0> + sin |1..1>, of half the angle
    found = layer(torch.tensor([[angle]])).detach().numpy()[0]
    assert layer.problem.observables.num_bases == 2
    np.testing.assert_allclose(found, [cosine, cosine, 1, 1, sine], atol=5 / np.sqrt(200))
    np.testing.assert_array_equal(found[2:4], 1)
    assert found[0] == found[1]
