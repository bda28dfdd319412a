import numpy as np
import pytest
import torch
from qiskit.circuit import (
    ClassicalRegister,
    Parameter,
    ParameterVector,
    QuantumCircuit,
    QuantumRegister,
)

from qailab.backends import AerBackend
from qailab.circuit import AmplitudeEncoder, RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.errors import InputError, InputTypeError, UnsupportedError
from qailab.launchers import (
    BackwardPass,
    CircuitProblem,
    ForwardPass,
    QuantumLauncher,
    StepContext,
)
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


@pytest.mark.parametrize(("make", "samples"), [(ours, 2), (amplitudes, 2)])
def test_gradcheck(make, samples):
    forward, backward = launchers(make())
    inputs, weight = tensors(forward.problem, samples)
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


def test_launchers_that_do_not_belong_together():
    forward, _ = launchers(ours())
    inputs, weight = tensors(forward.problem, 3)
    with pytest.raises(InputError, match="launcher_backward must have a BackwardPass"):
        ExpVQCFunction.apply(inputs, weight, forward, forward)
    with pytest.raises(InputError, match="different circuits"):
        ExpVQCFunction.apply(inputs, weight, forward, launchers(amplitudes())[1])


@pytest.mark.parametrize("target", ["inputs", "weight"])
@pytest.mark.parametrize("loss", [lambda p: p[..., 0].sum(), lambda p: (p**2).sum()])
def test_a_second_derivative_is_an_error(loss, target):
    """Also where the layer comes last, and ``grad_output`` needs no gradient."""
    forward, backward = launchers(ours())
    inputs, weight = tensors(forward.problem, 1)
    outputs = ExpVQCFunction.apply(inputs, weight, forward, backward)
    wanted = inputs if target == "inputs" else weight
    (gradient,) = torch.autograd.grad(loss(outputs), wanted, create_graph=True)
    penalty = gradient.square().sum() + weight.sum()
    with pytest.raises(UnsupportedError, match="create_graph=True cannot be differentiated"):
        penalty.backward()
    assert issubclass(UnsupportedError, RuntimeError)


def test_a_second_derivative_of_arg_max_is_an_error():
    values = torch.rand(2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(ArgMax.apply(values).sum(), values, create_graph=True)
    with pytest.raises(UnsupportedError, match="create_graph"):
        (gradient.sum() + values.sum()).backward()


def test_a_first_derivative_with_a_graph_is_the_derivative():
    forward, backward = launchers(ours())
    inputs, weight = tensors(forward.problem, 2)
    gradients = []
    for create_graph in (False, True):
        outputs = ExpVQCFunction.apply(inputs, weight, forward, backward)
        loss = outputs.square().sum()
        gradients.append(torch.autograd.grad(loss, (inputs, weight), create_graph=create_graph))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_other_expressions_or_roles_are_another_problem():
    """The canonical circuit is the same in all of these."""
    a, b = Parameter("input_a"), Parameter("input_b")
    first, second = a + 0.0, b + 0.0

    def of(one, other, **groups):
        circuit = QuantumCircuit(2)
        circuit.ry(one, 0)
        circuit.ry(other, 1)
        circuit.measure_all()
        problem = CircuitProblem(circuit, **groups)
        backend = AerBackend()
        return (
            QuantumLauncher(problem, ForwardPass(None), backend),
            QuantumLauncher(problem, BackwardPass(shots=None), backend),
        )

    forward, same = of(first, second)
    inputs, weight = torch.rand(1, 2, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
    for _, backward in (of(2 * a, b), of(b, a), of(a, b, input_params=[b, a]), of(a, b * b)):
        with pytest.raises(InputError, match="different expressions or roles"):
            ExpVQCFunction.apply(inputs, weight, forward, backward)
    split = of(a, b, input_params=[a], weight_params=[b])[1]
    with pytest.raises(InputError, match="different expressions or roles"):
        ExpVQCFunction.apply(inputs, weight, forward, split)
    for backward in (same, of(a, b)[1], of((a + b) - b, b)[1]):
        ExpVQCFunction.apply(inputs, weight, forward, backward)


@pytest.mark.parametrize("method", ["param_shift", "spsa"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_grad_output_that_is_not_finite_runs_nothing_and_is_said_once(bad, method):
    forward, backward = launchers(ours(), method=method)

    class Nothing(AerBackend):
        def probabilities(self, circuit, batch, stop):
            raise AssertionError("nothing was to run")

    backward = QuantumLauncher(backward.problem, backward.algorithm, Nothing())
    inputs, weight = tensors(forward.problem, 3)
    outputs = ExpVQCFunction.apply(inputs, weight, forward, backward)
    vectors = torch.ones_like(outputs)
    vectors[1, 2] = bad
    with pytest.warns(RuntimeWarning, match="log of a zero count") as said:
        outputs.backward(vectors)
    assert len(said) == 1
    assert inputs.grad.isnan().all()
    assert weight.grad.isnan().all()


def test_the_log_of_a_zero_count_is_said():
    forward, backward = launchers(ours(), shots=1)
    inputs, weight = tensors(forward.problem, 1)
    outputs = ExpVQCFunction.apply(inputs, weight, forward, backward)
    with pytest.warns(RuntimeWarning, match="clamp_min"):
        outputs.log().sum().backward()


def test_a_gradient_scaler_skips_the_step_without_a_word():
    forward, backward = launchers(ours(), shots=20)
    inputs, weight = tensors(forward.problem, 3, dtype=torch.float32)
    weight = torch.nn.Parameter(weight.detach())
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    before = weight.detach().clone()
    outputs = ExpVQCFunction.apply(inputs.half(), weight, forward, backward)
    scaler.scale(outputs.sum()).backward()  # the factor is infinite in half precision
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weight, before)
    assert scaler.get_scale() == 2.0**19


def test_bad_tensors():
    forward, backward = launchers(ours())
    inputs, weight = tensors(forward.problem, 2)
    apply = ExpVQCFunction.apply
    with pytest.raises(InputTypeError, match=r"fn_in\) must be.*torch.int64; write .float\(\)"):
        apply(inputs.detach().long(), weight, forward, backward)
    with pytest.raises(InputTypeError, match=r"weight must be.*torch.int32"):
        apply(inputs, weight.detach().int(), forward, backward)
    with pytest.raises(InputTypeError, match=r"complex128; pass .real, .abs\(\)"):
        apply(inputs.detach() + 0j, weight, forward, backward)
    with pytest.raises(InputTypeError, match=r"got ndarray; write torch.as_tensor"):
        apply(inputs.detach().numpy(), weight, forward, backward)
    with pytest.raises(InputError, match="meta device; after to_empty"):
        apply(inputs.detach().to("meta"), weight, forward, backward)
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


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_arg_max_of_many_outcomes_in_half_precision(dtype, bits):
    values = torch.zeros(2**bits, dtype=dtype)
    values[-1] = 1.0
    values.requires_grad_()
    indices = ArgMax.apply(values)
    assert int(indices) == 2**bits - 1
    indices.sum().backward()
    assert values.grad.nonzero().tolist() == [[2**bits - 1]]
    with pytest.raises(InputError, match=f"use float32 or float64, or measure at most {bits} bits"):
        ArgMax.apply(torch.zeros(2 ** (bits + 1), dtype=dtype))


def test_what_is_done_to_tensors_in_place_is_seen_by_nobody_else():
    problem, seen = CircuitProblem(ours()), []
    forward = QuantumLauncher(problem, ForwardPass(shots=None), AerBackend())
    backward = QuantumLauncher(problem, BackwardPass(shots=None), AerBackend())
    backward = backward.at(StepContext(on_gradient=seen.append))
    inputs = torch.ones(1, problem.num_inputs, dtype=torch.float64)
    weight = torch.ones(problem.num_weights, dtype=torch.float64, requires_grad=True)
    started = forward.submit_forward(inputs.numpy(), weight.detach().numpy())
    outputs = [
        ExpVQCFunction.apply(inputs, weight, forward.at(StepContext(started=started)), backward)
        for _ in range(2)
    ]
    outputs[0].data.zero_()
    assert outputs[1].sum().item() == pytest.approx(1)
    outputs[1][:, 0].sum().backward()
    kept = seen[0].weights.copy()
    weight.grad.zero_()
    assert (seen[0].weights == kept).all()
    assert kept.any()
