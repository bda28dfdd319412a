import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit_aer import AerSimulator

from qailab.backends import AerBackend, Backend
from qailab.circuit import AmplitudeEncoder, build_circuit
from qailab.errors import EvaluationError, InputError, InputTypeError, MemoryLimitError
from qailab.launchers import (
    BackwardPass,
    CircuitProblem,
    ForwardPass,
    Gradient,
    QuantumLauncher,
    StepContext,
)
from tests.support.circuits import ry_ansatz

DEADLINE = 120


def problem():
    return CircuitProblem(ry_ansatz())


def points(of, samples=3, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.uniform(0, 2, size=(samples, of.num_inputs))
    return inputs, rng.uniform(0, 6, size=of.num_weights)


class SamplesOnly(Backend):
    """A backend without exact probabilities, as hardware is; nothing may ever run on it."""

    def open(self):
        raise AssertionError("nothing was to run")

    def probabilities(self, circuit, batch, stop):
        raise AssertionError("nothing was to run")

    def max_rows_per_call(self, circuit, shots):
        return 1

    def __repr__(self):
        return "SamplesOnly()"


def test_only_what_is_asked_for():
    what = problem()
    inputs, weights = points(what)
    seen = []
    context = StepContext(on_gradient=seen.append)
    launcher = QuantumLauncher(what, BackwardPass(shots=None), AerBackend(), context=context)
    handle = launcher.submit_backward(inputs, weights, np.ones((3, 4)), for_inputs=False)
    gradient = handle.result(DEADLINE)
    assert gradient.inputs is gradient.input_std_error is None
    assert isinstance(gradient, Gradient)
    assert handle.result() is gradient
    assert seen == [gradient]


def test_unseeded_noise_is_fresh_and_seeded_noise_is_not():
    what = problem()
    inputs, weights = points(what)

    def run(seed, step=0):
        launcher = QuantumLauncher(what, ForwardPass(100, seed), AerBackend())
        return launcher.at(StepContext(step=step)).run(inputs, weights)

    assert (run(None) != run(None)).any()
    np.testing.assert_array_equal(run(3), run(3))
    assert (run(3) != run(3, step=1)).any()
    launcher = QuantumLauncher(what, ForwardPass(100, 8), AerBackend())
    again = launcher.at(StepContext(seed=3)).run(inputs, weights)  # the step's own seed wins
    np.testing.assert_array_equal(again, run(3))


@pytest.mark.parametrize(
    ("backend", "outside"),
    [(AerBackend(), 0.0), (AerBackend(from_backend=GenericBackendV2(2, seed=1)), None)],
)
def test_what_no_outcome_depends_on_is_left_out_where_nothing_is_noisy(backend, outside):
    x, w = Parameter("input"), Parameter("weight")
    circuit = QuantumCircuit(2, 1)
    circuit.ry(w, 0)
    circuit.ry(x.arcsin(), 1)
    circuit.measure(0, 0)
    launcher = QuantumLauncher(CircuitProblem(circuit), BackwardPass(shots=None), backend)
    arguments = np.array([[1.0]]), np.array([0.3]), np.array([[0.0, 1.0]])
    if outside is None:  # the slope of arcsin at 1 is wanted there
        with pytest.raises(InputError, match="derivative"):
            launcher.run(*arguments)
        return
    gradient = launcher.run(*arguments)
    assert gradient.inputs[0, 0] == outside
    assert gradient.weights[0] == pytest.approx(np.sin(0.3) / 2, abs=1e-12)


def test_probabilities_that_no_memory_holds_are_refused_before_anything_runs():
    circuit = QuantumCircuit(30)
    circuit.ry(Parameter("weight"), 0)
    circuit.measure_all()
    launcher = QuantumLauncher(CircuitProblem(circuit), ForwardPass(), SamplesOnly())
    with pytest.raises(MemoryLimitError, match="half of this machine's memory"):
        launcher.submit_forward(np.empty((1 << 14, 0)), np.zeros(1))


def test_groups_of_weights_are_one_evaluation():
    what = problem()
    inputs, _ = points(what, samples=6)
    inputs = inputs.reshape(2, 3, 2)
    weights = np.random.default_rng(4).uniform(0, 6, size=(2, 4))
    vectors = np.random.default_rng(5).normal(size=(2, 3, 4))
    forward = QuantumLauncher(what, ForwardPass(None), AerBackend())
    backward = QuantumLauncher(what, BackwardPass(shots=None), AerBackend())
    probabilities, gradient = forward.run(inputs, weights), backward.run(inputs, weights, vectors)
    for group in range(2):
        args = inputs[group], weights[group]
        np.testing.assert_allclose(probabilities[group], forward.run(*args), atol=1e-12)
        alone = backward.run(*args, vectors[group])
        np.testing.assert_allclose(gradient.inputs[group], alone.inputs, atol=1e-12)
        np.testing.assert_allclose(gradient.weights[group], alone.weights, atol=1e-12)
    assert gradient.weight_std_error.shape == (2, 4)
    with pytest.raises(InputError, match=r"got \(3, 4\)"):
        forward.run(inputs, np.zeros((3, 4)))


def test_a_handle_speaks_of_the_future(monkeypatch):
    what = problem()
    inputs, weights = points(what)
    go_on = threading.Event()
    original = AerBackend.probabilities

    def slow(self, circuit, batch, stop):
        assert go_on.wait(DEADLINE)
        return original(self, circuit, batch, stop)

    monkeypatch.setattr(AerBackend, "probabilities", slow)
    backend = AerBackend()
    launcher = QuantumLauncher(what, ForwardPass(), backend)
    first, second = (launcher.submit_forward(inputs, weights) for _ in range(2))
    with pytest.raises(TimeoutError):
        first.result(timeout=0.01)
    assert not first.done()
    assert second.cancel()
    assert second.cancelled()
    with pytest.raises(CancelledError):
        second.result(DEADLINE)
    go_on.set()
    assert first.result(DEADLINE).shape == (3, 4)
    assert first.done()
    assert first.exception(DEADLINE) is None
    assert not first.cancel()


def test_ctrl_c_while_waiting_cancels():
    what = problem()
    inputs, weights = points(what)
    handle = QuantumLauncher(what, ForwardPass(), AerBackend()).submit_forward(inputs, weights)
    handle.result(DEADLINE)

    class Interrupted:
        cancelled_ = False

        def result(self, timeout):
            raise KeyboardInterrupt

        def cancel(self):
            self.cancelled_ = True

    handle._answers = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        handle.result()
    assert handle._answers.cancelled_


def test_an_error_of_the_backend_arrives(monkeypatch):
    def broken(self, circuit, batch, stop):
        raise EvaluationError("the simulator is out of order")

    monkeypatch.setattr(AerBackend, "probabilities", broken)
    what = problem()
    handle = QuantumLauncher(what, ForwardPass(), AerBackend()).submit_forward(*points(what))
    assert isinstance(handle.exception(DEADLINE), EvaluationError)
    with pytest.raises(EvaluationError, match="out of order"):
        handle.result(DEADLINE)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (lambda i, w: (i[:, :1], w), InputError, r"has 2 input parameters.*got 1 features"),
        (lambda i, w: (np.float64(1.0), w), InputError, r"\(\*, 2\)"),
        (lambda i, w: (i, w[:3]), InputError, r"has 4 weights.*got \(3,\)"),
        (lambda i, w: (np.where(i == i[1, 0], np.nan, i), w), InputError,
         r"inputs\[1, 0\] \(parameter 'input0_0'\) is nan"),
        (lambda i, w: (i, np.array([0, 1, np.inf, 2])), InputError, r"weights\[2\].*is inf"),
        (lambda i, w: (i.astype(int), w), InputTypeError, r"inputs must be floating.*int64"),
        (lambda i, w: (i, w.astype(np.int32)), InputTypeError, r"weights must be.*int32"),
        (lambda i, w: (i, w + 0j), InputTypeError, r"complex128; pass the real part"),
        (lambda i, w: ([[1, 2]], w), InputTypeError, r"int64; use astype\(float\)"),
    ],
)  # fmt: skip
def test_bad_values_are_named_before_anything_runs(change, kind, says):
    what = problem()
    launcher = QuantumLauncher(what, ForwardPass(), SamplesOnly())
    with pytest.raises(kind, match=says):
        launcher.submit_forward(*change(*points(what)))


def test_a_sample_of_zeros_is_named_before_anything_runs():
    what = CircuitProblem(build_circuit(2, [AmplitudeEncoder("input")]))
    inputs = np.ones((4, 4))
    inputs[2] = 0.0
    with pytest.raises(InputError, match="sample 2"):
        QuantumLauncher(what, ForwardPass(), SamplesOnly()).submit_forward(inputs, np.empty(0))


def test_exact_probabilities_of_hardware():
    with pytest.raises(InputError, match=r"only simulators have; SamplesOnly\(\)"):
        QuantumLauncher(problem(), ForwardPass(None), SamplesOnly())


def test_the_pass_must_fit_the_call():
    what = problem()
    forward = QuantumLauncher(what, ForwardPass(), AerBackend())
    backward = QuantumLauncher(what, BackwardPass(), AerBackend())
    with pytest.raises(InputError, match="needs a BackwardPass"):
        forward.submit_backward(*points(what), np.ones((3, 4)))
    with pytest.raises(InputError, match="needs a ForwardPass"):
        backward.submit_forward(*points(what))
    with pytest.raises(InputError, match="needs grad_output"):
        backward.submit(*points(what))
    with pytest.raises(InputTypeError, match=r"grad_output must be.*complex"):
        backward.submit(*points(what), np.ones((3, 4), dtype=complex))
    with pytest.raises(InputError, match=r"\(3, 4\), got \(3, 2\)"):
        backward.submit(*points(what), np.ones((3, 2)))


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        *(
            (kind, {"shots": n}, InputError)
            for kind in (ForwardPass, BackwardPass)
            for n in (0, -5)
        ),
        *((ForwardPass, {"shots": wrong}, InputTypeError) for wrong in (1.5, "100", True)),
        (ForwardPass, {"shots": 2**31}, InputError),
        (BackwardPass, {"method": "finite_diff"}, InputError),
        (BackwardPass, {"spsa_resamplings": 0}, InputError),
        (BackwardPass, {"spsa_perturbation": 0.0}, InputError),
        (BackwardPass, {"seed": -1}, InputError),
        (StepContext, {"first_sample": -1}, InputError),
    ],
)
def test_bad_options(kind, options, error):
    ((name, value),) = options.items()
    with pytest.raises(error, match=f"{name}.*{value}"):
        kind(**options)


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        (None, r"got None; write AerBackend\(\)"),
        ("aer", r"got 'aer'; write AerBackend\(\)"),
        ("ibm_fez", r"write IBMBackend\('ibm_fez'\)"),
        (AerBackend, r"write AerBackend\(\), with parentheses"),
        (AerSimulator(), r"write AerBackend\(\), which makes its AerSimulator"),
        (GenericBackendV2(2), r"AerBackend\(from_backend=...\) to simulate the device, IBMBackend"),
        ([AerBackend()], r"write LauncherPool\(\[...\]\)"),
    ],
)
def test_a_backend_that_is_none_says_what_to_write(backend, says):
    with pytest.raises(InputTypeError, match=f"LauncherPool, .*{says}"):
        QuantumLauncher(problem(), ForwardPass(), backend)


def test_spsa_of_no_samples():
    what = problem()
    gradient = QuantumLauncher(what, BackwardPass("spsa"), AerBackend()).run(
        np.empty((0, 2)), np.zeros(4), np.empty((0, 4))
    )
    assert gradient.inputs.shape == (0, 2)
    assert (gradient.weights == 0).all()


def test_signatures_are_the_designs():
    assert BackwardPass("spsa", 10, 3) == BackwardPass(method="spsa", shots=10, seed=3)
    assert ForwardPass(10, 3) == ForwardPass(shots=10, seed=3)
    assert (ForwardPass().shots, BackwardPass().shots) == (1024, 1024)
    assert BackwardPass(shots=5000).shots == 5000
