"""Observables on a rehearsed device: one job a pass, and bits that the journal keeps."""

import numpy as np
import pytest
import torch
from qiskit.quantum_info import SparsePauliOp

from qailab.backends import Budget
from qailab.backends.trex import CALIBRATION_ROWS
from qailab.errors import BudgetExceededError
from qailab.torch import ObservableQLayer
from tests.support.circuits import ry_ansatz
from tests.support.ibm import device

SQUARE = SparsePauliOp.from_sparse_list(
    [(letter * 2, pair, 0.3) for letter in "XYZ" for pair in [(0, 1), (1, 2), (2, 3), (3, 0)]],
    num_qubits=4,
)


def step(layer, inputs):
    features = inputs.clone().requires_grad_()
    outputs = layer(features)
    layer.weight.grad = None
    outputs.square().sum().backward()
    return outputs.detach(), features.grad, layer.weight.grad.clone()


def made(**options):
    layer = ObservableQLayer(ry_ansatz(4), **{"shots": 2000, "seed": 1, **options}).double()
    layer.weight.data.copy_(torch.linspace(0.2, 3.0, 8))
    return layer


@pytest.mark.parametrize(("observables", "bases"), [("Z", 1), ([SQUARE, "ZIII", "IIXX"], 3)])
def test_one_job_a_step_or_one_for_each_pass(rehearse, observables, bases):
    server = rehearse()
    inputs = torch.tensor([[0.3, 0.5, 0.7, 0.9]], dtype=torch.float64)
    backend = device()
    layer = made(observables=observables, backend=backend, prefetch=False)
    exact = made(observables=observables, shots=None)
    for steps in (1, 2):
        outputs, *gradients = step(layer, inputs)
        assert [job.rows for job in server.jobs] == [bases, 2 * 12 * bases] * steps
    layer.prefetch = None
    step(layer, inputs)
    assert [job.rows for job in server.jobs][4:] == [(1 + 2 * 12) * bases]
    expected = exact(inputs)
    assert (outputs - expected).abs().max() < 6 * 4 / np.sqrt(2000)
    _, *slopes = step(exact, inputs)
    # The loss is not linear: its slopes know the outputs with their error.
    for found, slope in zip(gradients, slopes, strict=True):
        assert (found - slope).abs().max() < 0.6
    backend.close()


def test_one_job_a_step_gives_the_weights_that_two_give(rehearse):
    server = rehearse()
    backend, weights = device(), []
    for prefetch in (True, False):
        layer = made(observables=SQUARE, backend=backend, prefetch=prefetch, shots=100)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        for number in range(10):
            inputs = torch.linspace(0.1, 2.0, 12, dtype=torch.float64).reshape(3, 4) + number
            optimizer.zero_grad()
            layer(inputs.requires_grad_()).square().sum().backward()
            optimizer.step()
        weights.append(layer.weight.detach())
    assert len(server.jobs) == 10 + 2 * 10
    assert torch.equal(*weights)
    backend.close()


def test_gradients_are_right_within_their_standard_errors(rehearse):
    rehearse()
    inputs = torch.tensor([[0.3, 0.5, 0.7, 0.9]], dtype=torch.float64)
    backend = device()
    layer, exact = made(observables=SQUARE, backend=backend), made(observables=SQUARE, shots=None)
    for each in (layer, exact):
        each.weight.grad = None
        each(inputs).sum().backward()
    scores = (layer.weight.grad - exact.weight.grad) / layer.weight_std_error
    assert scores.abs().max() < 5
    assert scores.abs().mean() > 0.2
    backend.close()


def test_calibration_rows_are_in_the_same_jobs_and_count(rehearse, tmp_path):
    server = rehearse()
    inputs = torch.tensor([[0.3, 0.5, 0.7, 0.9]], dtype=torch.float64)
    budget = Budget(rows=3 + 2 * 12 * 3 + 2 * CALIBRATION_ROWS)

    def run(**options):
        backend = device(journal=tmp_path / "jobs.sqlite", budget=budget, **options)
        layer = made(observables=[SQUARE, "ZIII"], shots=200, backend=backend)
        found = step(layer, inputs)
        backend.close()
        return found

    mitigated = {
        "readout_mitigation": "trex",
        "options": {"twirling": {"num_randomizations": 2}},
    }
    first = run(**mitigated)
    told = [job.rows // 2 for job in server.jobs]
    assert told == [3 + CALIBRATION_ROWS, 2 * 12 * 3 + CALIBRATION_ROWS]
    for again, before in zip(run(**mitigated), first, strict=True):
        torch.testing.assert_close(again, before, rtol=0, atol=0)
    assert len(server.jobs) == 2
    with pytest.raises(BudgetExceededError, match="rows"):  # others than those without
        run()


def test_a_journal_answers_again_and_for_other_coefficients(rehearse, tmp_path):
    server = rehearse()
    inputs = torch.tensor([[0.3, 0.5, 0.7, 0.9]], dtype=torch.float64)

    def run(observable):
        backend = device(journal=tmp_path / "jobs.sqlite")
        found = step(made(observables=observable, backend=backend), inputs)
        backend.close()
        return found

    first = run(SQUARE)
    assert len(server.jobs) == 1
    for again, before in zip(run(SQUARE), first, strict=True):
        torch.testing.assert_close(again, before, rtol=0, atol=0)
    assert len(server.jobs) == 1
    run(2 * SQUARE)  # another Hamiltonian on the same bits: the journal takes its jobs as well
    assert len(server.jobs) == 2
