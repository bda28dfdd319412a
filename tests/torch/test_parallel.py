"""Layers and batches at the same time: the numbers of one after the other."""

import threading
from concurrent.futures import CancelledError

import pytest
import torch
from torch import nn

from qailab.backends import AerBackend
from qailab.errors import EvaluationError, InputError, InputTypeError, UnsupportedError
from qailab.torch import ArgmaxQLayer, ExpectedValueQLayer, ParallelQLayers, QLayer, evaluate
from tests.support.circuits import ry_ansatz


class Meeting(AerBackend):
    """A backend that waits until the others have been called as well."""

    def __init__(self, barrier):
        super().__init__()
        self._live_barrier = barrier

    def probabilities(self, circuit, batch, stop):
        self._live_barrier.wait(60)
        return super().probabilities(circuit, batch, stop)


class Failing(AerBackend):
    def probabilities(self, circuit, batch, stop):
        raise ValueError("no")


class Patient(AerBackend):
    """Runs until it is cancelled."""

    def probabilities(self, circuit, batch, stop):
        assert stop.wait(60)
        return super().probabilities(circuit, batch, stop)


def layer(kind=QLayer, qubits=2, backend=None, **options):
    made = kind(ry_ansatz(qubits), **{"backend": backend, "shots": 50, "seed": 3, **options})
    made.weight.data.copy_(torch.linspace(0, 3, len(made.weight)))
    return made


def four(barrier=None):
    kinds = [(QLayer, 2), (QLayer, 2), (ExpectedValueQLayer, 2), (ArgmaxQLayer, 2)]
    return [
        layer(kind, qubits, AerBackend() if barrier is None else Meeting(barrier), seed=number)
        for number, (kind, qubits) in enumerate(kinds)
    ]


def gradients(layers, outputs, inputs):
    loss = sum((number + 1.0) * each.square().sum() for number, each in enumerate(outputs))
    return torch.autograd.grad(loss, [inputs, *(each.weight for each in layers)])


def test_layers_meet_and_give_what_they_give_one_by_one():
    inputs = torch.rand(3, 2, requires_grad=True)
    alone, together = four(), four(threading.Barrier(4))  # not all at once: a broken barrier
    both = ParallelQLayers(together)
    for _ in range(2):
        one_by_one = [each(inputs) for each in alone]
        at_once = both(inputs)
        assert all(map(torch.equal, at_once, one_by_one))
        found, expected = gradients(together, at_once, inputs), gradients(alone, one_by_one, inputs)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
    assert [int(each.step) for each in together] == [2] * 4


def test_inputs_for_each_and_one_tensor_of_outputs():
    layers = [layer(), layer(qubits=3, seed=4)]
    inputs = [torch.rand(5, 2), torch.rand(5, 3)]
    joined = ParallelQLayers(layers, concatenate=True)
    expected = torch.cat([layer()(inputs[0]), layer(qubits=3, seed=4)(inputs[1])], dim=-1)
    assert torch.equal(joined(inputs), expected)
    assert set(joined.state_dict()) >= {"layers.0.weight", "layers.1.seed"}
    joined(inputs)[:, 0].sum().backward()
    assert layers[0].weight.grad.abs().sum() > 0


def test_an_output_that_nobody_used_has_no_gradient_and_runs_no_rows():
    layers = [layer(), layer(backend=Failing(), shots=50)]
    layers[1].backend = AerBackend()
    first, _ = ParallelQLayers(layers)(torch.rand(2, 2))
    layers[1].backend = Failing()
    first.sum().backward()
    assert layers[1].weight.grad is None


def test_one_that_fails_stops_the_others_and_takes_no_step():
    layers = [layer(backend=Patient()), layer(backend=Failing())]
    with pytest.raises(EvaluationError, match="ValueError: no"):
        ParallelQLayers(layers[::-1])(torch.rand(1, 2))
    assert [int(each.step) for each in layers] == [0, 0]


def test_bad_layers_and_inputs():
    with pytest.raises(InputTypeError, match=r"layer 1 must be a quantum layer .* got Linear"):
        ParallelQLayers([layer(), nn.Linear(2, 2)])
    with pytest.raises(InputError, match="layers is empty"):
        ParallelQLayers([])
    with pytest.raises(InputError, match="2 layers and 1 inputs"):
        ParallelQLayers([layer(), layer()])([torch.rand(1, 2)])
    outputs = ParallelQLayers([layer()])(torch.rand(1, 2))
    (slope,) = torch.autograd.grad(outputs[0][0, 0], [layer().weight], allow_unused=True)
    assert slope is None


def test_gradients_are_once_differentiable():
    inputs = torch.rand(1, 2, requires_grad=True)
    outputs = ParallelQLayers([layer()])(inputs)[0]
    (slope,) = torch.autograd.grad(outputs.sum(), [inputs], create_graph=True)
    with pytest.raises(UnsupportedError, match="once_differentiable"):
        slope.sum().backward()


def test_a_handle_gives_what_forward_gives_at_the_weights_of_its_start():
    ours, theirs = layer(ExpectedValueQLayer), layer(ExpectedValueQLayer)
    inputs = torch.rand(2, 2)
    expected = theirs(inputs)
    handle = ours.submit(inputs)
    with torch.no_grad():
        ours.weight += 1.0  # an optimizer's step, say
    outputs = handle.result(timeout=60)
    assert handle.done()
    assert torch.equal(outputs, expected)
    assert handle.result() is outputs
    expected.sum().backward()
    outputs.sum().backward()
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


def test_a_handle_can_be_cancelled_and_its_number_is_given_back():
    ours = layer(backend=Patient())
    handle = ours.submit(torch.rand(1, 2))
    assert not handle.done()
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    assert handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(timeout=60)
    assert int(ours.step) == 0
    another = ours.submit(torch.rand(1, 2))
    with pytest.raises(CancelledError):
        handle.result()
    assert int(ours.step) == 1  # not given back twice: it is the other pass's
    another.cancel()
    with pytest.raises(InputError, match="2 input parameters"):
        ours.submit(torch.rand(1, 5))


class Twice(nn.Module):
    """Passes a layer twice, and has a mode."""

    def __init__(self):
        super().__init__()
        self.first, self.layer = nn.Dropout(0.5), layer()

    def forward(self, inputs, scale=1.0):
        return self.layer(self.first(inputs)) + scale * self.layer(inputs)


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_evaluation_is_that_of_one_batch_after_the_other(ahead):
    batches = [torch.rand(2, 2) for _ in range(7)]
    alone, ahead_of = Twice(), Twice()
    alone.eval()
    expected = [alone(batch).detach() for batch in batches]
    found = list(evaluate(ahead_of, iter(batches), ahead=ahead))
    assert all(map(torch.equal, found, expected))
    assert not any(each.requires_grad for each in found)
    assert ahead_of.training
    assert int(ahead_of.layer.evaluation_step) == int(alone.layer.evaluation_step) == 14
    again = list(evaluate(ahead_of, [(batches[0], 2.0)]))
    assert torch.equal(again[0], alone(batches[0], 2.0))
    assert list(evaluate(ahead_of, [])) == []


def test_batches_of_an_evaluation_meet():
    barrier = threading.Barrier(2)

    class Concurrent(AerBackend):
        first = True

        def submit(self, circuit, batch):
            if not self.first:
                barrier.wait(60)
            self.first = False
            return super().submit(circuit, batch)

    model = layer(backend=Concurrent())
    assert len(list(evaluate(model, [torch.rand(1, 2)] * 5, ahead=2))) == 5


def test_an_evaluation_that_is_given_up_cancels_what_runs():
    started, stopped = threading.Event(), threading.Event()

    class Long(AerBackend):
        def probabilities(self, circuit, batch, stop):
            if batch.num_rows > 1:
                started.set()
                assert stop.wait(60)
                stopped.set()
            return super().probabilities(circuit, batch, stop)

    def batches():
        yield torch.rand(1, 2)
        yield torch.rand(2, 2)
        assert started.wait(60)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(evaluate(layer(backend=Long()), batches()))
    assert stopped.wait(60)


def test_batches_that_pass_a_layer_another_number_of_times_are_warned_of():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer()

        def forward(self, steps):
            return sum(self.layer(step) for step in steps)

    with pytest.warns(UserWarning, match="batch 1 passes a quantum layer another number of times"):
        list(evaluate(Sequences(), [torch.rand(steps, 1, 2) for steps in (1, 2)]))


def test_a_batch_that_fails_raises_in_its_turn():
    outputs = evaluate(layer(), [torch.rand(1, 2), torch.rand(1, 3), torch.rand(1, 2)])
    assert next(outputs).shape == (1, 4)
    with pytest.raises(InputError, match="2 input parameters"):
        next(outputs)
    with pytest.raises(InputError, match="ahead"):
        next(evaluate(layer(), [torch.rand(1, 2)], ahead=0))
