import numpy as np
import pytest
import torch
from qiskit.circuit import ClassicalRegister, ParameterVector, QuantumCircuit, QuantumRegister

from qailab.backends import AerBackend
from qailab.circuit import AmplitudeEncoder, RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.errors import InputError, InputTypeError
from qailab.launchers import BackwardPass, CircuitProblem, ForwardPass, QuantumLauncher
from qailab.torch import ArgMax, ExpVQCFunction
from tests.support import oracles


def two_registers():
    """Several registers, shared and combined parameters, controlled gates, a subset measured."""
    inputs, weights = ParameterVector("input", 2), ParameterVector("weight", 3)
    circuit = QuantumCircuit(QuantumRegister(2, "a"), QuantumRegister(2, "b"))
    circuit.add_register(ClassicalRegister(1, "first"), ClassicalRegister(2, "second"))
    circuit.h(range(4))
    circuit.ry(inputs[0], 0)
    circuit.crx(2 * weights[0] + inputs[1], 0, 2)
    circuit.cp(weights[1] * inputs[0], 1, 3)
    circuit.rxx(weights[2].sin(), 1, 2)
    circuit.cry(inputs[1].exp(), 3, 0)
    circuit.crz(weights[0], 2, 1)
    circuit.u(weights[0], inputs[1], weights[2], 3)
    circuit.rzx(weights[1], 2, 3)
    circuit.h(range(4))
    circuit.measure(3, 0)
    circuit.measure(1, 2)
    return circuit


def ours():
    blocks = [RotationalEncoder("x", "input"), RealAmplitudesBlock("weight", reps=1)]
    return build_circuit(2, blocks)


def amplitudes():
    blocks = [AmplitudeEncoder("input"), RealAmplitudesBlock("weight", reps=1)]
    return build_circuit(2, blocks, measure_qubits=[1])


def launchers(circuit, shots=None, seed=1, method="param_shift"):
    problem = CircuitProblem(circuit)
    backend = AerBackend()
    return (
        QuantumLauncher(problem, ForwardPass(shots, seed), backend),
        QuantumLauncher(problem, BackwardPass(method, shots, seed), backend),
    )


def tensors(problem, *lead, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.rand(*lead, problem.num_inputs, generator=generator, dtype=dtype) + 0.2
    weight = 3 * torch.rand(problem.num_weights, generator=generator, dtype=dtype)
    return inputs.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize("make", [two_registers, ours, amplitudes])
def test_gradcheck(make):
    forward, backward = launchers(make())
    inputs, weight = tensors(forward.problem, 2)
    assert torch.autograd.gradcheck(
        lambda x, w: ExpVQCFunction.apply(x, w, forward, backward), (inputs, weight), atol=1e-7
    )


@pytest.mark.parametrize("make", [two_registers, ours])
def test_within_1e_9_of_the_true_derivative(make):
    forward, backward = launchers(make())
    problem = forward.problem
    inputs, weight = tensors(problem, 2)
    outputs = ExpVQCFunction.apply(inputs, weight, forward, backward)
    vectors = torch.rand(outputs.shape, dtype=torch.float64, generator=torch.Generator())
    outputs.backward(vectors)
    parameters = problem.input_parameters + problem.weight_parameters
    total = np.zeros(problem.num_weights)
    for b in range(2):
        values = np.concatenate([inputs[b].detach().numpy(), weight.detach().numpy()])
        exact = oracles.probabilities(problem.circuit, parameters, values)
        np.testing.assert_allclose(outputs[b].detach().numpy(), exact, atol=1e-12)
        expected = oracles.vjp(problem.circuit, parameters, values, vectors[b].numpy())
        np.testing.assert_allclose(
            inputs.grad[b].numpy(), expected[: problem.num_inputs], atol=1e-9
        )
        total += expected[problem.num_inputs :]
    np.testing.assert_allclose(weight.grad.numpy(), total, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,)])
def test_shapes_and_dtypes_are_kept(dtype, lead):
    forward, backward = launchers(ours(), shots=20)
    inputs, weight = tensors(forward.problem, *lead, dtype=dtype)
    outputs = ExpVQCFunction.apply(inputs, weight, forward, backward)
    assert (outputs.shape, outputs.dtype) == ((*lead, 4), dtype)
    outputs.sum().backward()
    assert (inputs.grad.shape, inputs.grad.dtype) == (inputs.shape, dtype)
    assert (weight.grad.shape, weight.grad.dtype) == (weight.shape, dtype)


@pytest.mark.parametrize(("for_inputs", "for_weights"), [(True, False), (False, True)])
def test_only_what_autograd_needs_is_computed(for_inputs, for_weights):
    forward, backward = launchers(ours())
    rows = []

    class Counting(AerBackend):
        def probabilities(self, circuit, batch, stop):
            rows.append(batch.num_rows)
            return super().probabilities(circuit, batch, stop)

    backward = QuantumLauncher(backward.problem, backward.algorithm, Counting())
    inputs, weight = tensors(forward.problem, 3)
    inputs.requires_grad_(for_inputs)
    weight.requires_grad_(for_weights)
    ExpVQCFunction.apply(inputs, weight, forward, backward)[:, 0].sum().backward()
    assert rows == [2 * (2 if for_inputs else 4) * 3]
    assert (inputs.grad is None) == (not for_inputs)
    assert (weight.grad is None) == (not for_weights)


def test_no_gradient_no_circuits():
    forward, backward = launchers(ours())
    inputs, weight = tensors(forward.problem, 3)
    with torch.no_grad():
        outputs = ExpVQCFunction.apply(inputs, weight, forward, backward)
    assert not outputs.requires_grad


def test_launchers_that_do_not_belong_together():
    forward, _ = launchers(ours())
    inputs, weight = tensors(forward.problem, 3)
    with pytest.raises(InputError, match="launcher_backward must have a BackwardPass"):
        ExpVQCFunction.apply(inputs, weight, forward, forward)
    with pytest.raises(InputError, match="different circuits"):
        ExpVQCFunction.apply(inputs, weight, forward, launchers(amplitudes())[1])


def test_a_second_derivative_says_that_there_is_none():
    forward, backward = launchers(ours())
    inputs, weight = tensors(forward.problem, 1)
    outputs = ExpVQCFunction.apply(inputs, weight, forward, backward)
    (gradient,) = torch.autograd.grad((outputs**2).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_bad_tensors():
    forward, backward = launchers(ours())
    inputs, weight = tensors(forward.problem, 2)
    apply = ExpVQCFunction.apply
    with pytest.raises(InputTypeError, match=r"fn_in must be.*torch.int64"):
        apply(inputs.detach().long(), weight, forward, backward)
    with pytest.raises(InputTypeError, match=r"weight must be.*torch.int32"):
        apply(inputs, weight.detach().int(), forward, backward)
    with pytest.raises(InputError, match="got 3 features"):
        apply(torch.ones(2, 3), weight, forward, backward)
    with pytest.raises(InputError, match=r"inputs\[1, 0\].*nan"):
        apply(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), weight, forward, backward)


def test_arg_max_is_the_first_index():
    values = torch.tensor([[0.1, 0.4, 0.4], [0.9, 0.0, 0.1]], requires_grad=True)
    indices = ArgMax.apply(values)
    assert indices.tolist() == [[1.0], [0.0]]
    assert indices.dtype == values.dtype


def test_arg_max_passes_the_gradient_to_that_index():
    values = torch.tensor([[[0.1, 0.4, 0.4]], [[0.9, 0.0, 0.1]]], requires_grad=True)
    ArgMax.apply(values).backward(torch.tensor([[[2.0]], [[-3.0]]]))
    assert values.grad.tolist() == [[[0, 2, 0]], [[-3, 0, 0]]]


def test_arg_max_of_many_outcomes_in_half_precision():
    values = torch.zeros(4096, dtype=torch.float16)
    values[4001] = 1.0
    values.requires_grad_()
    ArgMax.apply(values).sum().backward()
    assert values.grad.nonzero().tolist() == [[4001]]
