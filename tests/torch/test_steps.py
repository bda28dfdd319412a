"""Which noise a forward pass has: threads, evaluation, checkpoints, copies and failures."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from torch import nn
from torch.utils.checkpoint import checkpoint

from qailab.backends import AerBackend
from qailab.errors import EvaluationError, InputError, InputTypeError
from qailab.launchers import LaunchHandle
from qailab.torch import QLayer
from tests.support.circuits import ry_ansatz as circuit


class Recording(AerBackend):
    """Keeps the noise of each forward pass."""

    def __init__(self):
        super().__init__()
        self.streams = []

    def probabilities(self, circuit, batch, stop):
        if batch.cotangents is None:
            self.streams.append(batch.noise)
        return super().probabilities(circuit, batch, stop)


def test_concurrent_calls_have_noise_of_their_own():
    backend = Recording()
    layer = QLayer(circuit(), backend=backend, seed=1)
    layer(torch.rand(1, 2))
    ready = threading.Barrier(8)

    def call(_):
        ready.wait(60)
        for _ in range(10):
            layer(torch.rand(1, 2))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(8)))
    assert int(layer.step) == len(set(backend.streams)) == 81


@pytest.mark.parametrize("evaluate", ["eval", "no_grad", "inference_mode"])
def test_evaluation_does_not_change_training(evaluate):
    def train(validate):
        torch.manual_seed(3)
        layer = QLayer(circuit(), shots=20, seed=5)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        seen = []
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(2, 2))[:, 0].sum().backward()
            optimizer.step()
            if validate and evaluate == "eval":
                layer.eval()
                seen.append(layer(torch.ones(2, 2)).detach())
                layer.train()
            elif validate:
                with getattr(torch, evaluate)():
                    seen.append(layer(torch.ones(2, 2)))
        return layer, seen

    (plain, _), (validated, seen) = train(False), train(True)
    assert torch.equal(plain.weight, validated.weight)
    assert (int(plain.step), int(plain.evaluation_step)) == (3, 0)
    assert (int(validated.step), int(validated.evaluation_step)) == (3, 3)
    assert len(seen) == 3


def test_evaluation_has_noise_of_its_own_and_goes_on_after_a_resume():
    def made():
        return QLayer(circuit(), seed=2, shots=20).eval()

    first, inputs = made(), torch.rand(8, 2)
    weight = first.weight.detach()
    outputs = [first(inputs) for _ in range(3)]
    assert not torch.equal(outputs[0], outputs[1])
    training = made().train()
    training.weight.data.copy_(weight)
    assert not torch.equal(training(inputs), outputs[0])
    second = made()
    second.load_state_dict(first.state_dict() | {"evaluation_step": torch.tensor(2)})
    assert torch.equal(second(inputs), outputs[2])


def test_a_state_dict_of_before_is_read():
    model = nn.Sequential(nn.Linear(2, 2), QLayer(circuit(), seed=2))
    model[1](torch.rand(1, 2))
    old = model.state_dict()
    del old["1.evaluation_step"]
    new = nn.Sequential(nn.Linear(2, 2), QLayer(circuit(), seed=3))
    new.eval()(torch.rand(1, 2))
    new.load_state_dict(old)
    state = (int(new[1].seed), int(new[1].step), int(new[1].evaluation_step))
    assert state == (2, 1, 0)
    assert "1.evaluation_step" not in old
    with pytest.raises(RuntimeError, match="Missing key"):
        new[1].load_state_dict({"weight": new[1].weight.detach()})


def hybrid(backend=None):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 2), QLayer(circuit(), backend=backend, shots=20, seed=4), nn.Linear(4, 1)
    )


def test_a_checkpoint_has_the_gradients_of_no_checkpoint():
    plain, other = hybrid(), hybrid()
    for _ in range(2):  # the same data twice: the second step is not the first
        inputs = torch.ones(3, 2)
        with torch.no_grad():
            other(inputs)  # in training mode, as the first run of a reentrant checkpoint is
        plain(inputs).square().sum().backward()
        checkpoint(other, inputs, use_reentrant=False).square().sum().backward()
    for ours, theirs in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert int(other[1].step) == int(plain[1].step) == 2


def test_checkpoints_of_several_passes_with_the_same_inputs():
    backend = Recording()
    layer = QLayer(circuit(), backend=backend, shots=20, seed=4)
    inputs = torch.rand(3, 2, requires_grad=True)

    def twice(x):
        return (layer(x) * layer(x)).sum()

    checkpoint(twice, inputs, use_reentrant=False).backward()
    checkpoint(twice, inputs, use_reentrant=False).backward()
    first, second, *again = backend.streams
    assert first != second
    assert again[:2] == [first, second]
    assert again[2:4] == again[4:6]
    assert len(set(backend.streams)) == 4 == int(layer.step)


def test_a_reentrant_checkpoint_runs_the_same_pass_again():
    backend = Recording()
    model = hybrid(backend)
    inputs = torch.rand(3, 2, requires_grad=True)
    losses = [checkpoint(model, scale * inputs, use_reentrant=True).sum() for scale in (1, 2)]
    sum(losses).backward()
    first, second, *again = backend.streams
    assert first != second
    assert again == [second, first]
    assert int(model[1].step) == 0  # its first run is without grad, as in an evaluation
    assert int(model[1].evaluation_step) == 2


@pytest.mark.parametrize("error", [EvaluationError, KeyboardInterrupt])
def test_a_pass_that_fails_is_not_counted(error, monkeypatch):
    layer, same = (QLayer(circuit(), seed=6, shots=20) for _ in range(2))
    same.weight.data.copy_(layer.weight)
    inputs = torch.rand(2, 2)

    def broken(self, timeout=None):
        raise error("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(LaunchHandle, "result", broken)
        with pytest.raises(error):
            layer(inputs)
    with pytest.raises(InputError):
        layer(torch.rand(2, 3))
    with pytest.raises(InputTypeError):
        layer([[0.1, 0.2]])
    assert int(layer.step) == 0
    assert torch.equal(layer(inputs), same(inputs))


def noise_of(made, **options):
    backend = Recording()
    layer = QLayer(made, backend=backend, seed=9, **options)
    layer(torch.rand(1, layer.in_features))
    return backend.streams[0]


def rotation(angle):
    made = QuantumCircuit(1)
    made.ry(angle, 0)
    made.measure_all()
    return made


def test_other_circuits_with_the_same_seed_have_other_noise():
    x = Parameter("input")
    streams = [noise_of(circuit()), noise_of(circuit(3))]
    streams += [noise_of(rotation(angle)) for angle in (x, 2 * x, x + 1)]  # one canonical circuit
    assert len({stream.seed for stream in streams}) == 5
    assert noise_of(circuit()) == streams[0]
    assert noise_of(rotation(Parameter("input_y"))) == streams[2]


def test_copies_have_the_same_noise_until_they_get_a_seed_of_their_own():
    layer = QLayer(circuit(), seed=1, shots=20)
    inputs = torch.rand(8, 2)
    layer(inputs)
    same, other = copy.deepcopy(layer), copy.deepcopy(layer)
    other.seed.fill_(2)
    expected = layer(inputs)
    assert torch.equal(same(inputs), expected)
    assert not torch.equal(other(inputs), expected)


def test_on_the_meta_device_and_back():
    with torch.device("meta"):
        layer, unseeded = QLayer(circuit(), seed=5, shots=20), QLayer(circuit())
    assert layer.weight.is_meta
    assert layer.step.is_meta
    with pytest.raises(InputError, match=r"meta device; after to_empty.*reset_parameters"):
        layer(torch.rand(1, 2))
    for made in (layer, unseeded):
        made.to_empty(device="cpu")
        for buffer in made.buffers():
            buffer.fill_(-(2**60))  # what uninitialised memory may hold
        with pytest.raises(InputError, match="seed must be"):
            made(torch.rand(1, 2))
        made.reset_parameters()
        assert int(made.step) == int(made.evaluation_step) == 0
    assert int(unseeded.seed) >= 0
    fresh = QLayer(circuit(), seed=5, shots=20)
    fresh.load_state_dict({"weight": layer.weight.detach()}, strict=False)
    inputs = torch.rand(8, 2)
    assert torch.equal(layer(inputs), fresh(inputs))
