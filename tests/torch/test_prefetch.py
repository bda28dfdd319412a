"""Prefetching layers: the numbers of those that do not, from one evaluation a step."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from qailab.backends import AerBackend, EmulatedBackend, StatevectorBackend, sampling
from qailab.errors import InputError
from qailab.launchers import Prefetch
from qailab.torch import ArgmaxQLayer, ExpectedValueQLayer, ObservableQLayer, QLayer
from tests.support.circuits import ry_ansatz

PAULIS = ["XXI", "ZZZ", "YIY"]


class Queue(AerBackend):
    """A simulator that says that its calls are jobs, and notes their rows."""

    def __init__(self):
        super().__init__()
        self.traits = replace(self.traits, packs_jobs=True)
        self.jobs = []

    def measure(self, circuit, batch, stop):
        found = super().measure(circuit, batch, stop)
        if batch.noise.purpose == "both":
            del self.jobs[-2:]  # those of the passes
            self.jobs.append(batch.num_rows)
        return found

    def probabilities(self, circuit, batch, stop):
        self.jobs.append(batch.num_rows)
        return super().probabilities(circuit, batch, stop)


def queue_layer(**options):
    return QLayer(ry_ansatz(3), **{"backend": Queue(), "shots": 100, "seed": 1, **options})


def trained(make, *, prefetch):
    """Outputs, gradients and weights of some steps."""
    torch.manual_seed(0)
    layer = make(seed=5, prefetch=prefetch)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    inputs = torch.linspace(0.1, 2.0, 15).reshape(5, 3).requires_grad_()
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        outputs = layer(inputs)
        (outputs - 0.3).square().sum().backward()
        optimizer.step()
        seen += [outputs.detach(), inputs.grad.clone(), layer.weight.detach().clone()]
    return torch.cat([each.flatten() for each in seen])


MADE = {
    "shots": lambda **o: QLayer(ry_ansatz(3), backend=AerBackend(), shots=50, **o),
    "exact": lambda **o: QLayer(ry_ansatz(3), backend=AerBackend(), shots=None, **o),
    "spsa": lambda **o: QLayer(ry_ansatz(3), backend=AerBackend(), gradient="spsa", **o),
    "kernels": lambda **o: QLayer(ry_ansatz(3), backend=StatevectorBackend(), shots=50, **o),
    "adjoint": lambda **o: QLayer(ry_ansatz(3), backend=StatevectorBackend(), shots=None, **o),
    "emulated": lambda **o: QLayer(ry_ansatz(3), backend=EmulatedBackend(), shots=50, **o),
    "value": lambda **o: ExpectedValueQLayer(ry_ansatz(3), backend=AerBackend(), **o),
    "argmax": lambda **o: ArgmaxQLayer(ry_ansatz(3), backend=AerBackend(), **o),
    "bases": lambda **o: ObservableQLayer(ry_ansatz(3), observables=PAULIS, shots=50, **o),
    "bits": lambda **o: ObservableQLayer(ry_ansatz(3), backend=AerBackend(), shots=50, **o),
}  # fmt: skip


@pytest.mark.parametrize("kind", MADE)
def test_the_same_bits_as_without(kind, monkeypatch):
    if kind == "bits":
        monkeypatch.setattr(sampling, "MAX_EXACT_OUTCOMES", 0)
    both = [trained(MADE[kind], prefetch=each) for each in (False, True)]
    assert torch.equal(*both)


def test_a_step_is_one_job_where_a_gradient_is_needed():
    layer = queue_layer()
    jobs = layer.backend.jobs
    inputs = torch.rand(4, 3)
    layer(inputs).sum().backward()
    assert jobs == [4 * (1 + 2 * 6)]
    layer(inputs.requires_grad_()).sum().backward()
    assert jobs[1:] == [4 * (1 + 2 * 9)]
    with torch.no_grad():
        layer(inputs)
    layer.eval()(inputs)  # and no_grad forgotten
    assert jobs[2:] == [4, 4]
    layer.train().prefetch = False
    layer(inputs).sum().backward()
    assert jobs[4:] == [4, 4 * 2 * 9]


def test_backward_twice_and_of_more_than_expected():
    layer, plain = (
        queue_layer(shots=None).double(),
        queue_layer(shots=None, prefetch=False).double(),
    )
    plain.load_state_dict(layer.state_dict())
    inputs = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    found, expected = (
        torch.autograd.grad(each(inputs)[:, 0].sum(), [inputs, each.weight])
        for each in (layer, plain)
    )
    outputs = layer(inputs)[:, 0].sum()
    sent = len(layer.backend.jobs)
    for _ in range(2):
        again = torch.autograd.grad(outputs, [inputs, layer.weight], retain_graph=True)
        assert all(map(torch.equal, again, expected))
    assert all(map(torch.equal, found, expected))
    assert len(layer.backend.jobs) == sent
    jacobian = torch.func.jacrev(layer)(inputs.detach())  # of eight outputs: its rows run then
    slope = jacobian[:, 0].sum(dim=0)
    torch.testing.assert_close(slope, expected[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_measures_the_backward_rows_once(reentrant):
    layer, inputs = queue_layer(), torch.rand(2, 3, requires_grad=True)
    checkpoint(layer, inputs, use_reentrant=reentrant).sum().backward()
    assert sorted(layer.backend.jobs) == [2, 2 * (1 + 2 * 9)]


def test_weights_that_changed_in_place_are_still_seen():
    layer = queue_layer()
    outputs = layer(torch.rand(1, 3)).sum()
    with torch.no_grad():
        layer.weight += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.backward()


def test_what_was_measured_goes_with_the_graph():
    layer = queue_layer()
    outputs = layer(torch.rand(1, 3))

    def kept():
        gc.collect()
        return sum(type(each) is Prefetch for each in gc.get_objects())

    assert kept() == 1
    del outputs
    assert kept() == 0


def test_too_much_takes_two_trips_and_one_warning():
    layer = queue_layer(prefetch_bytes=13 * 8 * 8)  # one sample's rows
    layer(torch.rand(1, 3)).sum().backward()
    with pytest.warns(UserWarning, match="26 rows measure takes 0 MiB, more than prefetch_bytes"):
        layer(torch.rand(2, 3)).sum().backward()
    assert layer.backend.jobs == [13, 2, 24]
    with pytest.raises(InputError, match="prefetch_bytes"):
        queue_layer(prefetch_bytes=-1)


def test_standard_errors_are_estimated_from_the_shots():
    layer, plain = queue_layer(shots=20_000), queue_layer(shots=20_000, prefetch=False)
    plain.load_state_dict(layer.state_dict())
    for each in (layer, plain):
        each(torch.full((1, 3), 0.4)).square().sum().backward()
    np.testing.assert_allclose(layer.weight_std_error, plain.weight_std_error, rtol=0.1, atol=1e-5)
