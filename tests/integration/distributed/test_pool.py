"""The pool on a real Ray, with real simulators."""

import copy
import dataclasses
import gc
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings

import numpy as np
import pytest
import ray
import torch

from qailab.backends import AerBackend, StatevectorBackend
from qailab.distributed import LauncherPool
from qailab.distributed import scheduler as scheduling
from qailab.errors import (
    BackendBuildError,
    EvaluationError,
    InputError,
    PoolClosedError,
    PoolError,
)
from qailab.torch import ObservableQLayer, QLayer
from tests.support.circuits import ry_ansatz
from tests.support.contracts import (
    OBSERVABLES,
    answers,
    backward_batch,
    forward_batch,
    mitigated_device,
    model,
)
from tests.support.pools import SMALL, actor_handles, actor_pids
from tests.support.processes import DEADLINE, is_alive, wait_until

pytestmark = pytest.mark.usefixtures("ray_cluster")

_, CANONICAL, ANGLE_MAP, VALUES = model()
BATCH = backward_batch(CANONICAL, ANGLE_MAP, VALUES, shots=50)
EXPECTED = answers(AerBackend(), CANONICAL, BATCH)
FORWARD = forward_batch(ANGLE_MAP, VALUES, shots=50)


@pytest.fixture(scope="module")
def pool():
    with LauncherPool([AerBackend()] * 2, actor_options=SMALL) as shared:
        yield shared


def layer(backend, qubits=3, seed=5, reps=1, observables=None, shots=100, **more):
    circuit = ry_ansatz(qubits, reps)
    options = {"backend": backend, "seed": seed, "shots": shots, **more}
    if observables is None:
        made = QLayer(circuit, **options)
    else:
        made = ObservableQLayer(circuit, observables=observables, **options)
    made.weight.data.copy_(torch.linspace(0, 3, len(made.weight)))
    return made


def two_steps(backend, **options):
    """Outputs, gradients and standard errors of two steps."""
    module = layer(backend, **options)
    module.tracks_output_std_error = True
    inputs = torch.rand(
        7, module.in_features, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    seen = []
    for _ in range(2):
        inputs.grad = module.weight.grad = None
        outputs = module(inputs)
        (outputs**2).sum().backward()
        seen += [outputs.detach(), inputs.grad, module.weight.grad]
        seen += [module.weight_std_error, module.input_std_error, module.output_std_error]
    return seen


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("here", "actors", "chunk_rows"),
    [
        (AerBackend(), 1, "auto"),
        (AerBackend(), 2, 1),
        (AerBackend(), 3, 7),
        (AerBackend(), 3, 1000),
        (mitigated_device(), 2, 12),
    ],
)
def test_the_same_bits_as_in_process(here, actors, chunk_rows):
    probabilities = [] if here.traits.calibration_rows else [None]
    with LauncherPool([here] * actors, chunk_rows=chunk_rows, actor_options=SMALL) as own:
        for asked in (*probabilities, "Z", OBSERVABLES):
            outputs = two_steps(own, observables=asked)
            assert_same(outputs, two_steps(here, observables=asked))


@pytest.mark.parametrize("observables", [None, OBSERVABLES])
def test_prefetched_passes_have_the_same_bits_as_in_process(pool, observables):
    here, there = (
        two_steps(where, observables=observables, prefetch=True) for where in (AerBackend(), pool)
    )
    assert_same(here, there)
    plain = two_steps(AerBackend(), observables=observables)
    for place in (0, 1, 2, 6, 7, 8):  # errors are estimated in another way
        assert torch.equal(there[place], plain[place])


@pytest.mark.parametrize("chunk_rows", [1, "auto"])
def test_kernels_and_the_adjoint_method_have_the_same_bits_as_in_process(chunk_rows):
    here, backends = StatevectorBackend(), [StatevectorBackend()] * 2
    with LauncherPool(backends, chunk_rows=chunk_rows, actor_options=SMALL) as own:
        for options in ({}, {"shots": None}, {"shots": None, "observables": OBSERVABLES}):
            assert_same(two_steps(own, **options), two_steps(here, **options))


def test_a_pool_that_is_not_all_for_the_adjoint_method_says_where():
    backends = [StatevectorBackend(), AerBackend()]
    options = [{"scheduling_strategy": "SPREAD", **SMALL}, {"num_cpus": 0}]  # each its own
    with LauncherPool(backends, actor_options=options) as mixed:
        assert layer(mixed, shots=None).gradient == "param_shift"
        with pytest.raises(InputError, match=r"needs the state, which AerBackend\(\) does not"):
            layer(mixed, shots=None, gradient="adjoint")
        mixed.wait()
        free = ray.available_resources()["CPU"]
    wait_until(lambda: ray.available_resources()["CPU"] >= free + 0.5)


def test_several_layers_and_threads_at_once(pool):
    expected = {qubits: two_steps(AerBackend(), qubits=qubits) for qubits in (2, 3, 4)}
    errors = []

    def work(qubits):
        try:
            assert_same(two_steps(pool, qubits=qubits), expected[qubits])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(2 + i % 3,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)


def test_stats_and_the_trace_count_rows_chunks_bytes_and_seconds(tmp_path):
    with LauncherPool([AerBackend()] * 2, chunk_rows=6, actor_options=SMALL) as own:
        own.run(CANONICAL, BATCH)
        own.wait()
        os.kill(actor_pids(own)[0], signal.SIGKILL)  # noticed although it is idle
        wait_until(lambda: own.stats()["actors"][0]["replaced"] == 1)
        stats = own.stats()
        own.trace(tmp_path / "trace.json")
    assert stats["rows"] == sum(actor["rows"] for actor in stats["actors"]) == BATCH.num_rows
    assert stats["chunks"] == BATCH.num_rows // 6
    assert stats["retries"] == 0
    copied = stats["bytes_received"] - 16 * BATCH.num_rows  # chunks that two actors answered
    assert 0 <= copied <= 16 * stats["rows_again"]
    assert stats["bytes_sent"] > 0
    assert [actor["backend"] for actor in stats["actors"]] == ["AerBackend()"] * 2
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    chunks = [event for event in events if event["ph"] == "X" and "error" not in event["args"]]
    rows = [row for e in chunks for row in range(e["args"]["first_row"], e["args"]["last_row"] + 1)]
    assert set(rows) == set(range(BATCH.num_rows))
    assert all(event["ts"] >= 0 and event["dur"] > 0 for event in chunks)
    assert sum(event["dur"] for event in chunks) >= 0.999 * stats["seconds"] * 1e6 > 0
    assert [e["name"] for e in events if e["ph"] == "i" and e["name"] != "race"] == ["lost"]
    names = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert names == ["actor 0 (AerBackend())", "actor 1 (AerBackend())"]


@pytest.mark.parametrize(("qubits", "limit"), [(6, 40), (10, 128)])
def test_bytes_of_a_row(qubits, limit, pool):
    module = layer(pool, qubits=qubits, reps=3)
    inputs = torch.rand(16, qubits, requires_grad=True)
    outputs = module(inputs)
    before = pool.stats()
    (outputs**2).sum().backward()
    after = pool.stats()
    rows, again, sent, received = (
        after[k] - before[k] for k in ("rows", "rows_again", "bytes_sent", "bytes_received")
    )
    assert rows == 2 * 5 * qubits * 16
    assert (sent + received) / (rows + again) <= limit


# Errors.


ERRORS = {50: OverflowError("too large"), 51: KeyboardInterrupt("inside"), 52: SystemExit(3)}


class Breaking(AerBackend):
    """Fails on one row, in a way that no library should: which one, the shots say."""

    def probabilities(self, circuit, batch, stop):
        if batch.rows.start <= 31 < batch.rows.stop:
            raise ERRORS[batch.shots]
        return super().probabilities(circuit, batch, stop)


def test_one_bad_row_is_named_and_raised_once():
    with LauncherPool([Breaking()] * 2, actor_options=SMALL) as own:
        for shots, error in ERRORS.items():
            with pytest.raises(EvaluationError) as caught:
                own.submit(CANONICAL, dataclasses.replace(BATCH, shots=shots)).result(DEADLINE)
            text = str(caught.value)
            assert f"{type(error).__name__}: {error} [rows 30 to 31, the first being" in text
            for part in ("row 30 (sample", "shifted by", "AerBackend()"):
                assert part in text
            assert "in probabilities" in text  # the remote traceback
            assert own.stats()["retries"] == 0
            part = BATCH.part(0, 6)  # the pool stays usable
            np.testing.assert_array_equal(own.run(CANONICAL, part), EXPECTED[:6])


class Unbuildable(AerBackend):
    """Cannot be built, as a GPU simulator on a machine without one."""

    def open(self):
        raise BackendBuildError("no such device here")


def test_a_backend_that_cannot_be_built_shows_the_remote_cause():
    with pytest.raises(BackendBuildError, match="no such device here") as caught:
        LauncherPool([Unbuildable()], actor_options=SMALL)
    assert "in open" in str(caught.value)


def test_others_go_on_where_one_cannot_be_built_and_it_is_not_tried_at_every_step(caplog):
    with LauncherPool([Unbuildable(), AerBackend()], actor_options=SMALL) as own:
        wait_until(lambda: own.stats()["actors"][0]["state"] == "quarantined")
        for _ in range(3):
            assert_same(two_steps(own), two_steps(AerBackend()))
        with pytest.raises(BackendBuildError, match="1 of 2 actors are quarantined"):
            own.wait()
    assert caplog.text.count("is quarantined") == 1


def test_an_evaluation_that_cannot_begin_does_not_touch_others(pool, monkeypatch):
    def no_memory(*_):
        raise MemoryError("no room for the answers")

    with monkeypatch.context() as patch:
        patch.setattr(scheduling, "Evaluation", no_memory)
        with pytest.raises(MemoryError, match="no room"):
            pool.submit(CANONICAL, BATCH).result(DEADLINE)
    np.testing.assert_array_equal(pool.submit(CANONICAL, BATCH).result(DEADLINE), EXPECTED)


def test_an_option_that_ray_does_not_know():
    with pytest.raises(InputError, match=r"actor_options.*num_cpu"):
        LauncherPool([AerBackend()], actor_options={"num_cpu": 1})


def test_no_resources_says_what_is_missing():
    with pytest.raises(PoolError, match=r"needs 64 CPU, 0 GPU.*CPU .* of 4 free"):
        LauncherPool([AerBackend()], actor_options={"num_cpus": 64}, start_timeout=3.0)


@pytest.mark.parametrize(
    ("backend", "options"), [(AerBackend(device="GPU"), {}), (AerBackend(), {"num_gpus": 0.5})]
)
def test_a_gpu_where_there_is_none_is_an_error_at_once(backend, options):
    with pytest.raises(PoolError, match=r"asks for .* GPU, and no machine of this Ray has one"):
        LauncherPool([AerBackend(), backend], actor_options=[{}, options], start_timeout=600.0)


def test_another_cluster_than_the_one_in_use():
    with pytest.raises(InputError, match=r"connected to the Ray at .*, not at '10.9.9.9:1234'"):
        LauncherPool([AerBackend()], address="10.9.9.9:1234")


# The pool's life.


class Closing(AerBackend):
    """Leaves a trace when it is closed."""

    def __init__(self, trace):
        super().__init__()
        self.trace = trace

    def close(self):
        super().close()
        with open(self.trace, "w") as file:
            file.write("closed")


def test_close_closes_the_backends(tmp_path):
    trace = tmp_path / "trace"
    LauncherPool([Closing(str(trace))], actor_options=SMALL).close()
    assert trace.read_text() == "closed"


def test_an_idle_actor_is_light_and_ends_with_a_pool_that_is_dropped():
    def weigh(self):
        import sys

        with open("/proc/self/status") as status:
            (line,) = (line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024, "torch" in sys.modules

    own = LauncherPool([AerBackend()], actor_options=SMALL)
    (actor,), (pid,) = actor_handles(own), actor_pids(own)
    mebibytes, has_torch = ray.get(actor.__ray_call__.remote(weigh), timeout=DEADLINE)
    assert not has_torch
    assert mebibytes < 250
    del own, actor
    gc.collect()
    wait_until(lambda: not is_alive(pid))


class SlowOnce(AerBackend):
    """Takes half a second for the first rows, so that there is time to disturb it."""

    def probabilities(self, circuit, batch, stop):
        if not self.__dict__.get("_live_seen"):
            self.__dict__["_live_seen"] = True
            time.sleep(0.5)
        return super().probabilities(circuit, batch, stop)


def test_closing_fails_what_is_unfinished_and_what_comes_later():
    own = LauncherPool([SlowOnce()], actor_options=SMALL)
    module = layer(own)
    future = own.submit(CANONICAL, BATCH)
    own.close()
    own.close()
    with pytest.raises(PoolClosedError):
        future.result(DEADLINE)
    assert "closed" in repr(own)
    with pytest.raises(PoolClosedError, match="make a new LauncherPool"):
        module(torch.rand(2, 3))
    assert own.stats() == own.stats()  # what there was
    assert own.stats()["rows"] == 0
    assert ray.is_initialized()  # it was not this pool's


def test_copies_of_a_model_use_the_same_actors(pool):
    assert copy.deepcopy(layer(pool)).backend is pool


def test_a_forked_child_is_told_that_ray_does_not_fork(pool):
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def child():
        try:
            pool.stats()
        except PoolError as error:
            told.put(str(error))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads is the point
        process = context.Process(target=child)
        process.start()
    process.join(DEADLINE)
    assert "forked" in told.get()


# Handles in other processes.


def test_a_pickled_pool_is_a_handle_for_other_processes(pool):
    @ray.remote(num_cpus=0)
    def in_another_process(handle):
        return two_steps(handle)

    remote = ray.get(in_another_process.remote(pool), timeout=DEADLINE)
    assert_same(remote, two_steps(pool))
    old = pickle.dumps(pool)
    handle = pickle.loads(old)
    assert_same(two_steps(handle), two_steps(pool))
    pool.wait()
    os.kill(actor_pids(pool)[0], signal.SIGKILL)
    wait_until(lambda: pool.stats()["actors"][0]["replaced"] == 1)
    pool.wait()
    stale = pickle.loads(old)
    assert_same(two_steps(stale), two_steps(pool))
    stale.wait()
    assert actor_pids(stale) == actor_pids(pool)
    handle.close()  # lets go, and leaves the actors to their owner
    assert_same(two_steps(pool), two_steps(AerBackend()))


def test_a_handle_without_an_owner_says_so():
    own = LauncherPool([AerBackend()], actor_options=SMALL)
    handle = pickle.loads(pickle.dumps(own))
    np.testing.assert_array_equal(handle.run(CANONICAL, BATCH), EXPECTED)
    own.close()
    with pytest.raises(PoolError, match="made this pool"):
        handle.submit(CANONICAL, BATCH).result(DEADLINE)
    handle.close()
    with pytest.raises(PoolClosedError):
        handle.submit(CANONICAL, BATCH)
