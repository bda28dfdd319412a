import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from qailab.backends import AerBackend, StatevectorBackend
from qailab.circuit import RotationalEncoder, build_circuit
from qailab.errors import CircuitError, InputError, InputTypeError, MemoryLimitError
from qailab.torch import ArgmaxQLayer, ExpectedValueQLayer, ExpQLayer, QLayer
from qailab.torch.layers import QLayerOptions
from tests.support.circuits import ry_ansatz as circuit


def saved(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_attributes():
    layer = QLayer(circuit(3, measure_qubits=[0, 2]))
    assert (layer.in_features, layer.out_features) == (3, 4)
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.shape == (6,)
    assert layer.weight_std_error is layer.input_std_error is None
    assert isinstance(layer.backend, StatevectorBackend)
    assert isinstance(QLayer(circuit(21, measure_qubits=[0])).backend, AerBackend)
    assert ExpQLayer is QLayer


def test_weights_are_uniform_between_zero_and_two_pi():
    torch.manual_seed(0)
    weights = QLayer(circuit(4, reps=200)).weight.detach()
    assert 0 <= weights.min() < 0.1
    assert 6.18 < weights.max() < 2 * torch.pi
    assert weights.mean().item() == pytest.approx(torch.pi, abs=0.3)


@pytest.mark.parametrize(
    ("clone", "kind"),
    [
        (copy.deepcopy, QLayer),
        (saved, ExpectedValueQLayer),
        (lambda layer: pickle.loads(pickle.dumps(layer)), ArgmaxQLayer),
    ],
)
def test_copies_continue_like_the_original(clone, kind):
    layer = kind(circuit(), seed=3)
    inputs = torch.rand(3, 2, requires_grad=True)
    layer(inputs).sum().backward()
    other = clone(layer)
    for module in (layer, other):
        module.weight.grad = None
    first, second = layer(inputs), other(inputs)
    assert torch.equal(first, second)
    first.sum().backward()
    second.sum().backward()
    assert torch.equal(layer.weight.grad, other.weight.grad)


def test_a_resumed_run_repeats_the_run_that_was_not_interrupted():
    inputs = torch.rand(4, 2)

    def train(layer, steps):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        for _ in range(steps):
            optimizer.zero_grad()
            layer(inputs)[:, 0].sum().backward()
            optimizer.step()
        return layer

    torch.manual_seed(1)
    whole = train(QLayer(circuit(), seed=5), 4)
    torch.manual_seed(1)
    half = train(QLayer(circuit(), seed=5), 2)
    buffer = io.BytesIO()
    torch.save(half.state_dict(), buffer)
    buffer.seek(0)
    resumed = QLayer(circuit(), seed=999)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    train(resumed, 2)
    assert torch.equal(resumed.weight, whole.weight)
    assert int(resumed.step) == 4


def test_without_a_seed_torchs_decides():
    def seed():
        torch.manual_seed(4)
        return int(QLayer(circuit()).seed)

    assert seed() == seed()
    assert int(QLayer(circuit()).seed) != int(QLayer(circuit()).seed)


def test_state_dict_moves_with_dtype():
    layer = QLayer(circuit(), shots=None).double()
    assert set(layer.state_dict()) == {"weight", "seed", "step", "evaluation_step"}
    assert layer.seed.dtype == layer.step.dtype == torch.int64
    assert layer(torch.rand(2, 2, dtype=torch.float64)).dtype == torch.float64
    assert layer.half()(torch.rand(2, 2, dtype=torch.float16)).dtype == torch.float16


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_runs_no_shifted_circuits(mode):
    rows = []

    class Counting(AerBackend):
        def probabilities(self, circuit, batch, stop):
            rows.append(batch.num_rows)
            return super().probabilities(circuit, batch, stop)

    layer = QLayer(circuit(), backend=Counting())
    with mode():
        outputs = layer(torch.rand(5, 2))
    assert rows == [5]
    assert not outputs.requires_grad


def test_standard_errors_after_a_backward():
    layer = QLayer(circuit(), seed=1)
    inputs = torch.rand(2, 3, 2, requires_grad=True)
    layer(inputs)[..., 0].sum().backward()
    assert layer.weight_std_error.shape == (4,)
    assert layer.input_std_error.shape == (2, 3, 2)
    assert (layer.weight_std_error > 0).all()
    layer(inputs.detach())[..., 0].sum().backward()
    assert layer.input_std_error is None
    layer.weight.requires_grad_(False)
    layer(inputs)[..., 0].sum().backward()
    assert layer.weight_std_error is None
    assert layer.input_std_error is not None


def test_several_backwards_and_accumulation():
    layer = QLayer(circuit(), seed=1)
    inputs = torch.rand(3, 2)
    outputs = layer(inputs)
    outputs[:, 0].sum().backward(retain_graph=True)
    once = layer.weight.grad.clone()
    outputs[:, 0].sum().backward()  # the same step: the same noise
    assert torch.equal(layer.weight.grad, 2 * once)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_expected_value(lead):
    plain = QLayer(circuit(), shots=None)
    expected = ExpectedValueQLayer(circuit(), shots=None)
    scaled = ExpectedValueQLayer(circuit(), shots=None, rescale_output=(-1, 1))
    for layer in (expected, scaled):
        layer.weight.data.copy_(plain.weight)
    inputs = torch.rand(*lead, 2)
    values = (plain(inputs) * torch.arange(4.0)).sum(-1, keepdim=True)
    torch.testing.assert_close(expected(inputs), values)
    torch.testing.assert_close(scaled(inputs), 2 * values / 3 - 1)
    assert expected.out_features == 1
    assert "rescale_output=(-1.0, 1.0)" in repr(scaled)


def test_argmax_layer():
    layer = ArgmaxQLayer(circuit(), shots=None)
    inputs = torch.rand(3, 2, requires_grad=True)
    outputs = layer(inputs)
    assert outputs.shape == (3, 1)
    assert outputs.frac().abs().max() == 0
    outputs.sum().backward()
    assert layer.weight.grad.abs().max() > 0


def test_gradcheck_of_a_layer_by_its_weight():
    layer = ExpectedValueQLayer(circuit(), shots=None, rescale_output=(0, 1)).double()
    inputs = torch.rand(2, 2, dtype=torch.float64)

    def value(weight):
        return torch.func.functional_call(layer, {"weight": weight}, (inputs,))

    assert torch.autograd.gradcheck(value, (layer.weight,), atol=1e-7)


def test_shots_can_be_assigned_or_nothing_changes():
    layer = QLayer(circuit(), seed=1, shots=10)
    before = layer(torch.rand(4, 2, requires_grad=True))
    layer.shots = None
    exact = layer(torch.rand(4, 2))
    assert layer.shots is None
    exact[:, 0].sum().backward()
    assert (layer.weight_std_error == 0).all()
    before[:, 0].sum().backward()  # with the shots of its forward pass
    assert (layer.weight_std_error > 0).any()
    with pytest.raises(InputError, match="got 0"):
        layer.shots = 0
    with pytest.raises(InputTypeError, match="LauncherPool, got 3"):
        layer.backend = 3
    assert layer.shots is None
    assert layer(torch.rand(2, 2)).shape == (2, 4)


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11), (torch.float32, 12)]
)
def test_integers_in_low_precision_are_right_or_an_error(dtype, bits):
    encoder = [RotationalEncoder("y", "input")]

    def layer(kind, qubits):
        return kind(build_circuit(qubits, encoder), shots=None)

    angles = torch.full((1, bits), 3.125, dtype=dtype)  # exact in every dtype
    angles[0, -1] = 0.0
    most_probable = layer(ArgmaxQLayer, bits)
    expected = layer(ExpectedValueQLayer, bits)
    assert int(most_probable(angles)) == 2 ** (bits - 1) - 1
    torch.testing.assert_close(
        expected(angles), expected(angles.double()).to(dtype), atol=0, rtol=torch.finfo(dtype).eps
    )
    for made in (most_probable, expected):
        assert made(angles).dtype == dtype
    if dtype != torch.float32:
        with pytest.raises(InputError, match=f"measure at most {bits} bits"):
            layer(ArgmaxQLayer, bits + 1)(torch.zeros(1, bits + 1, dtype=dtype))


def test_expected_values_that_no_half_precision_number_has():
    made = build_circuit(17, [RotationalEncoder("y", "input")])
    inputs = torch.zeros(1, 17, dtype=torch.float16)
    with pytest.raises(InputError, match=r"131071 do not fit torch.float16.*rescale_output"):
        ExpectedValueQLayer(made, shots=1)(inputs)
    with pytest.raises(InputError, match=r"-1e\+06 and 1 do not fit"):
        ExpectedValueQLayer(circuit(), rescale_output=(-1e6, 1))(inputs[:, :2])
    assert int(ExpectedValueQLayer(made, shots=1, rescale_output=(0, 1))(inputs)) == 0


@pytest.mark.parametrize("kind", [QLayer, ExpectedValueQLayer, ArgmaxQLayer])
def test_type_checkers_know_keywords_and_result(kind):
    assert get_type_hints(kind)["__call__"] == Callable[..., torch.Tensor]
    keywords = set(inspect.signature(QLayer.__init__).parameters) - {"self", "circuit"}
    options = inspect.signature(kind.__init__, eval_str=True).parameters.get("options")
    if kind is not QLayer:
        (accepted,) = get_args(options.annotation)
        assert set(get_type_hints(accepted)) == keywords
    own = get_type_hints(QLayer.__init__)
    assert {name: own[name] for name in keywords} == get_type_hints(QLayerOptions)


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"shots": 0}, InputError, r"positive integer.*got 0"),
        ({"shots": 2.0}, InputTypeError, "got 2.0"),
        ({"gradient": "vjp"}, InputError, "'auto', 'param_shift', 'adjoint', 'spsa'; got 'vjp'"),
        (
            {"gradient": "adjoint", "backend": AerBackend()},
            InputError,
            r"needs the state, which AerBackend\(\) does not",
        ),
        ({"backend": "aer"}, InputTypeError, "LauncherPool, got 'aer'"),
        ({"seed": -3}, InputError, "got -3"),
        ({"input_params": [], "weight_params": []}, CircuitError, "in neither group"),
        ({"backend": AerBackend(max_memory_mb=1)}, MemoryLimitError, "MiB"),
    ],
)
def test_bad_options_fail_at_construction(options, kind, says):
    large = kind is MemoryLimitError
    with pytest.raises(kind, match=says):
        QLayer(circuit(20 if large else 2), **options)


@pytest.mark.parametrize("pair", [(1,), 3, ("a", "b"), (0, float("nan"))])
def test_bad_rescaling(pair):
    with pytest.raises(InputError, match="rescale_output"):
        ExpectedValueQLayer(circuit(), rescale_output=pair)


@pytest.mark.parametrize("gradient", ["param_shift", "spsa"])
@pytest.mark.parametrize("shots", [None, 100])
def test_parts_of_a_batch_have_the_noise_of_the_whole(gradient, shots):
    whole = QLayer(circuit(), shots=shots, seed=3, gradient=gradient)
    part = copy.deepcopy(whole)
    inputs = torch.rand(5, 2, dtype=torch.float64)
    outputs = whole(inputs)
    outputs.square().sum().backward()
    pieces = []
    for start, stop in ((0, 2), (2, 5)):
        part.first_sample = start
        part.step.zero_()
        pieces.append(part(inputs[start:stop]))
        pieces[-1].square().sum().backward()
    torch.testing.assert_close(torch.cat(pieces), outputs, rtol=0, atol=0)
    torch.testing.assert_close(part.weight.grad, whole.weight.grad, rtol=1e-6, atol=1e-6)


def test_spsa_trains():
    torch.manual_seed(0)
    layer = QLayer(circuit(), gradient="spsa", shots=500, seed=1)
    inputs, losses = torch.rand(8, 2), []
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        loss = -layer(inputs)[:, 0].sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < losses[0] - 1
