import threading

import pytest
import torch
from torch import nn

from qailab.backends import AerBackend
from qailab.backends.budget import Cost, UsageEstimate
from qailab.backends.ibm.limits import IBMLimits
from qailab.circuit import AmplitudeEncoder, RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.errors import InputError, InputTypeError
from qailab.launchers import BackwardPass, CircuitProblem, ForwardPass, QuantumLauncher
from qailab.torch import ArgmaxQLayer, ExpectedValueQLayer, ExpVQCFunction, QLayer, estimate_cost


class Counting(AerBackend):
    """Counts the rows that run, forward and backward."""

    noiseless = False  # as the devices are that the estimate is for

    def __init__(self):
        super().__init__()
        self.forward_rows = self.backward_rows = 0

    def probabilities(self, circuit, batch, stop):
        if batch.cotangents is None:
            self.forward_rows += batch.num_rows
        else:
            self.backward_rows += batch.num_rows
        return super().probabilities(circuit, batch, stop)


def circuit(qubits=2, reps=1, encoder=None, measure_qubits=None):
    first = RotationalEncoder("y", "input") if encoder is None else encoder
    return build_circuit(qubits, [first, RealAmplitudesBlock("weight", reps=reps)], measure_qubits)


def first_layer(**options):
    return nn.Sequential(QLayer(circuit(), **options), nn.Linear(4, 2))


def middle_layer(**options):
    return nn.Sequential(nn.Linear(5, 3), QLayer(circuit(3, reps=2), **options), nn.Linear(8, 2))


def frozen_weights(**options):
    model = middle_layer(**options)
    model[1].weight.requires_grad_(False)
    return model


def frozen_encoder(**options):
    model = middle_layer(**options)
    model[0].requires_grad_(False)
    return model


def nothing_to_train_before_the_head(**options):
    model = first_layer(**options)
    model[0].weight.requires_grad_(False)
    return model


def two_in_a_row(**options):
    second = ExpectedValueQLayer(circuit(4, measure_qubits=[1]), **options)
    return nn.Sequential(QLayer(circuit(), **options), nn.Tanh(), second)


def amplitudes(**options):
    layer = ArgmaxQLayer(circuit(encoder=AmplitudeEncoder("input")), **options)
    return nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), layer)


def one_layer(**options):
    return QLayer(circuit(2, reps=3, measure_qubits=[0]), **options)


MODELS = {
    first_layer: 2, middle_layer: 5, frozen_weights: 5, frozen_encoder: 5,
    nothing_to_train_before_the_head: 2, two_in_a_row: 2, amplitudes: 3, one_layer: 2,
}  # fmt: skip


def told(model, *args, **options):
    estimated = estimate_cost(model, *args, show=False, **options)
    return {each.method: each for each in estimated.methods}


@pytest.mark.parametrize("method", ["param_shift", "spsa"])
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_rows_are_those_that_run(make, method):
    backend, batch = Counting(), 5
    model = make(backend=backend, shots=16, gradient=method, seed=1)
    expected = told(model, batch)[method]
    steps = 2
    for _ in range(steps):
        model(torch.rand(batch, MODELS[make]) + 0.1).sum().backward()
    assert expected.forward_rows * steps == backend.forward_rows
    assert expected.backward_rows * steps == backend.backward_rows
    assert expected.step.rows * steps == backend.forward_rows + backend.backward_rows
    assert expected.step.shots == expected.step.rows * 16


@pytest.mark.parametrize("resamplings", [1, 3])
def test_rows_of_resamplings_are_those_that_run(resamplings):
    backend, problem = Counting(), CircuitProblem(circuit())
    backward = BackwardPass("spsa", 16, seed=1, spsa_resamplings=resamplings)
    weight = torch.rand(problem.num_weights, requires_grad=True)
    ExpVQCFunction.apply(
        torch.rand(5, 2),
        weight,
        QuantumLauncher(problem, ForwardPass(16, seed=1), backend),
        QuantumLauncher(problem, backward, backend),
    ).sum().backward()
    expected = told(QLayer(circuit()), 5, spsa_resamplings=resamplings)["spsa"]
    assert (expected.resamplings, expected.backward_rows) == (resamplings, backend.backward_rows)


def test_jobs_executions_and_seconds():
    usage = UsageEstimate()
    usage.learn(12.0, 9000)
    model = QLayer(circuit(2, reps=1))  # 4 weights: 8 rows a sample
    expected = told(model, 10, 100, 50, usage=usage)["param_shift"]
    assert expected.step == Cost(1, 10 + 80, 9000, 12.0)
    assert expected.total == expected.step * 50
    assert expected.total == Cost(50, 4500, 450_000, 600.0)
    # 9 rows a sample: three samples a job.
    few = IBMLimits(executions_per_job=3500)
    assert told(model, 10, 100, limits=few)["param_shift"].step.jobs == 4


def test_jobs_of_passes_that_are_not_joined():
    model = QLayer(circuit(2, reps=1), prefetch=False)
    expected = told(model, 10, 100)["param_shift"]
    seconds = UsageEstimate().seconds(9000, jobs=2)
    assert (expected.step.jobs, expected.step.qpu_seconds) == (2, pytest.approx(seconds))
    model.prefetch, model.prefetch_bytes = None, 90 * 4 * 8 - 1
    assert told(model, 10, 100)["param_shift"] == expected
    # A sample's rows do not fit one job: 7 rows a job, 6 in backward, as pairs stay together.
    model.prefetch_bytes, few = 2**20, IBMLimits(executions_per_job=799)
    assert told(model, 10, 100, limits=few)["param_shift"].step.jobs == 2 + 14


def test_a_step_of_the_usual_size_is_one_job():
    model = nn.Sequential(nn.Linear(16, 6), QLayer(circuit(6, reps=7)), nn.Linear(64, 10))
    model[0].requires_grad_(False)
    for each in told(model, 32).values():
        assert each.step.jobs == 1
    assert told(model, 32)["param_shift"].backward_rows == 32 * 48 * 2


def test_layers_without_a_gradient_have_no_backward_job():
    layer = QLayer(circuit())
    layer.weight.requires_grad_(False)
    for each in told(layer, 4).values():
        assert (each.backward_rows, each.step.jobs) == (0, 1)


def test_shots_are_those_given_or_each_layers_own():
    model = nn.Sequential(QLayer(circuit(), shots=10), QLayer(circuit(4), shots=30))
    assert told(model, 2)["spsa"].step.shots == (2 + 4) * (10 + 30)
    assert told(model, 2, 5)["spsa"].step.shots == (2 + 4) * (5 + 5)
    assert told(QLayer(circuit(), shots=None), 2, 5)["spsa"].step.shots == 6 * 5


def test_the_table(capsys):
    model = nn.Sequential(nn.Linear(5, 2), QLayer(circuit()), nn.Linear(4, 2))
    result = estimate_cost(model, 32, 1024, 1000, spsa_resamplings=2)
    assert capsys.readouterr().out == f"{result}\n"
    assert [line.rstrip() for line in str(result).splitlines()] == [
        "1 quantum layer, 32 samples a step, 1,024 shots a row",
        "             each step                                             1,000 steps in all",
        "gradient     forward rows  backward rows  jobs  executions  QPU s"
        "     rows   jobs   executions    QPU s",
        "param_shift            32            384     1     425,984    151"
        "  416,000  1,000  425,984,000  151,094",
        "spsa x 2               32            128     1     163,840     59"
        "  160,000  1,000  163,840,000   59,344",
        "param_shift: 41.97 hours, 241,751 dollars, 25,182% of the open plan's 600 s in 28 days",
        "spsa x 2: 16.48 hours, 94,950 dollars, 9,891% of the open plan's 600 s in 28 days",
    ]
    assert "the layers' own shots a row" in str(estimate_cost(model, 1, show=False))
    assert capsys.readouterr().out == ""


def test_nothing_is_run():
    backend = Counting()
    before = threading.active_count()
    estimate_cost(middle_layer(backend=backend, shots=100), 32, steps=10**6, show=False)
    assert backend.forward_rows == backend.backward_rows == 0
    assert threading.active_count() <= before  # those of other tests may end meanwhile


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": 1.5}, {"steps": 0}, {"shots": 0}])
def test_bad_numbers(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name} must be a positive integer"):
        estimate_cost(first_layer(), **{"batch": 1, **wrong})


def test_bad_models():
    with pytest.raises(InputError, match=r"Linear has no quantum layer \(QLayer"):
        estimate_cost(nn.Linear(2, 2), 4)
    with pytest.raises(InputTypeError, match="model must be a torch module, got QuantumCircuit"):
        estimate_cost(circuit(), 4)
    with pytest.raises(InputError, match=r"layer '0' has shots=None .*pass shots="):
        estimate_cost(first_layer(shots=None), 4)
    with pytest.raises(InputError, match=r"do not fit one job.*at most 5,000,000 shots"):
        estimate_cost(first_layer(shots=6_000_000), 4)
