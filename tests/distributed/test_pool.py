"""The pool on a real Ray, with real simulators."""

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
import ray
import torch

from qailab.backends import AerBackend, Backend, Outcomes
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.distributed import LauncherPool
from qailab.distributed import dispatcher as dispatching
from qailab.errors import (
    BackendBuildError,
    EvaluationError,
    InputError,
    MemoryLimitError,
    PoolClosedError,
    PoolError,
    PoolExhaustedError,
)
from qailab.torch import QLayer
from tests.distributed.conftest import DEADLINE, SMALL, actor_handles, actor_pids, wait_until
from tests.support.contracts import backward_batch, forward_batch, model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def pool():
    with LauncherPool([AerBackend()] * 2, actor_options=SMALL) as shared:
        yield shared


def layer(backend, qubits=3, seed=5, reps=1):
    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=reps)]
    made = QLayer(build_circuit(qubits, blocks), backend=backend, seed=seed, shots=100)
    made.weight.data.copy_(torch.linspace(0, 3, len(made.weight)))
    return made


def two_steps(backend, **options):
    """Outputs, gradients and standard errors of two steps."""
    module = layer(backend, **options)
    inputs = torch.rand(
        7, module.in_features, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    seen = []
    for _ in range(2):
        inputs.grad = module.weight.grad = None
        outputs = module(inputs)
        (outputs**2).sum().backward()
        seen += [outputs.detach(), inputs.grad, module.weight.grad]
        seen += [module.weight_std_error, module.input_std_error]
    return seen


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("actors", "chunk_rows"), [(1, "auto"), (2, 1), (2, 7), (3, "auto"), (3, 1000)]
)
def test_the_same_bits_as_in_process(actors, chunk_rows):
    with LauncherPool([AerBackend()] * actors, chunk_rows=chunk_rows, actor_options=SMALL) as own:
        assert_same(two_steps(own), two_steps(AerBackend()))


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


def test_submit_and_run(pool):
    _, canonical, angle_map, values = model()
    for batch in (
        forward_batch(angle_map, values, shots=50),
        backward_batch(canonical, angle_map, values, shots=None),
    ):
        expected = AerBackend().evaluate(canonical, batch)
        np.testing.assert_array_equal(pool.run(canonical, batch), expected)
        future = pool.submit(canonical, batch)
        np.testing.assert_array_equal(future.result(DEADLINE), expected)
        assert future.done()


def test_stats_count_rows_chunks_bytes_and_seconds():
    _, canonical, angle_map, values = model()
    batch = backward_batch(canonical, angle_map, values, shots=50)
    with LauncherPool([AerBackend()] * 2, chunk_rows=6, actor_options=SMALL) as own:
        own.run(canonical, batch)
        stats = own.stats()
    assert stats["rows"] == sum(actor["rows"] for actor in stats["actors"]) == batch.num_rows
    assert stats["chunks"] == batch.num_rows // 6
    assert stats["retries"] == 0
    raced = stats["bytes_received"] - 16 * batch.num_rows  # chunks that two actors answered
    assert 0 <= raced <= 16 * stats["rows_again"]
    assert stats["bytes_sent"] > 0
    assert stats["seconds"] > 0
    assert [actor["backend"] for actor in stats["actors"]] == ["AerBackend()"] * 2


@pytest.mark.parametrize(("qubits", "limit"), [(6, 40), (10, 128)])
def test_bytes_of_a_row(qubits, limit, pool):
    module = layer(pool, qubits=qubits, reps=3)
    inputs = torch.rand(16, qubits, requires_grad=True)
    outputs = module(inputs)
    before = pool.stats()
    (outputs**2).sum().backward()
    after = pool.stats()
    rows = after["rows"] - before["rows"]
    sent, received = (after[k] - before[k] for k in ("bytes_sent", "bytes_received"))
    assert rows == 2 * 5 * qubits * 16
    assert (sent + received) / rows <= limit


class SlowOnce(AerBackend):
    """Takes half a second for the first rows, so that there is time to disturb it."""

    def outcomes(self, circuit, batch):
        if not self.__dict__.get("_live_seen"):
            self.__dict__["_live_seen"] = True
            time.sleep(0.5)
        return super().outcomes(circuit, batch)


@pytest.mark.parametrize("how", ["sigkill", "ray.kill"])
def test_a_dead_actor_is_replaced_and_only_its_rows_run_again(how):
    _, canonical, angle_map, values = model()
    batch = backward_batch(canonical, angle_map, values, shots=50)
    expected = AerBackend().evaluate(canonical, batch)
    with LauncherPool([SlowOnce()] * 2, chunk_rows=4, max_in_flight=2, actor_options=SMALL) as own:
        own.wait()
        (victim, _) = actor_pids(own)
        handle, _ = actor_handles(own)
        future = own.submit(canonical, batch)
        time.sleep(0.2)
        if how == "sigkill":
            os.kill(victim, signal.SIGKILL)
        else:
            ray.kill(handle)
        np.testing.assert_array_equal(future.result(DEADLINE), expected)
        stats = own.stats()
        assert stats["rows"] == batch.num_rows  # every row answered once
        assert 1 <= stats["retries"] <= 2  # what the dead actor had in flight
        assert [actor["replaced"] for actor in stats["actors"]] == [1, 0]
        own.wait()
        assert victim not in actor_pids(own)


class Breaking(AerBackend):
    """Fails on the rows from 6 on."""

    def outcomes(self, circuit, batch):
        if batch.rows.stop > 6:
            raise ZeroDivisionError("row 6 divides by zero")
        return super().outcomes(circuit, batch)


def test_an_error_of_the_rows_is_raised_once_with_where_it_was():
    _, canonical, angle_map, values = model()
    batch = backward_batch(canonical, angle_map, values, shots=50)
    with LauncherPool([Breaking()] * 2, chunk_rows=6, actor_options=SMALL) as own:
        with pytest.raises(EvaluationError) as caught:
            own.run(canonical, batch)
        text = str(caught.value)
        assert "ZeroDivisionError: row 6 divides by zero" in text
        assert "AerBackend()" in text
        assert f"of {batch.num_rows}" in text
        assert "in outcomes" in text  # the remote traceback
        assert own.stats()["retries"] == 0
        # The pool stays usable.
        part = batch.part(0, 6)
        np.testing.assert_array_equal(
            own.run(canonical, part), AerBackend().evaluate(canonical, part)
        )


class Deadly(AerBackend):
    """Kills its process."""

    def outcomes(self, circuit, batch):
        os._exit(1)


def test_rows_that_kill_every_actor_end_in_an_error(caplog):
    _, canonical, angle_map, values = model()
    batch = forward_batch(angle_map, values, shots=50)
    with (
        LauncherPool([Deadly()] * 2, actor_options=SMALL) as own,
        pytest.raises((PoolExhaustedError, EvaluationError), match=r"AerBackend\(\)"),
    ):
        own.submit(canonical, batch).result(DEADLINE)
    assert "was lost" in caplog.text


class DeadlyShots(AerBackend):
    """Kills its process for one number of shots."""

    def outcomes(self, circuit, batch):
        if batch.shots == 13:
            os._exit(1)
        return super().outcomes(circuit, batch)


class Unbuildable(AerBackend):
    """Cannot be built, as a GPU simulator on a machine without one."""

    def open(self):
        raise BackendBuildError("no such device here")


def test_a_backend_that_cannot_be_built_shows_the_remote_cause():
    with pytest.raises(BackendBuildError, match="no such device here") as caught:
        LauncherPool([Unbuildable()] * 2, actor_options=SMALL)
    assert "in open" in str(caught.value)


def test_what_cannot_be_built_is_not_tried_again_at_every_step(caplog):
    with LauncherPool([Unbuildable(), AerBackend()], actor_options=SMALL) as own:
        wait_until(lambda: own.stats()["actors"][0]["state"] == "aside")
        for _ in range(4):
            two_steps(own)
    assert caplog.text.count("set aside") == 1


def test_rows_that_kill_actors_take_no_other_job_down():
    _, canonical, angle_map, values = model()
    innocent = forward_batch(angle_map, values, shots=50)
    deadly = forward_batch(angle_map, values, shots=13)
    with LauncherPool([DeadlyShots()], actor_options=SMALL) as own:
        futures = [own.submit(canonical, batch) for batch in (deadly, innocent)]
        with pytest.raises(EvaluationError, match="lost their actor 4 times"):
            futures[0].result(DEADLINE)
        expected = AerBackend().evaluate(canonical, innocent)
        np.testing.assert_array_equal(futures[1].result(DEADLINE), expected)


def test_others_go_on_where_one_cannot_be_built(caplog):
    with LauncherPool([Unbuildable(), AerBackend()], actor_options=SMALL) as own:
        assert_same(two_steps(own), two_steps(AerBackend()))
        wait_until(lambda: own.stats()["actors"][0]["state"] == "aside")
        assert [actor["rows"] > 0 for actor in own.stats()["actors"]] == [False, True]
    assert "set aside" in caplog.text


class Interrupting(AerBackend):
    """Raises what no library should."""

    def outcomes(self, circuit, batch):
        raise KeyboardInterrupt("inside the backend")


class Leaving(AerBackend):
    """Tries to end the process."""

    def outcomes(self, circuit, batch):
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("backend", "says"), [(Interrupting(), "KeyboardInterrupt"), (Leaving(), "SystemExit: 3")]
)
def test_interrupts_and_exits_inside_a_backend_are_errors_of_the_rows(backend, says):
    _, canonical, angle_map, values = model()
    batch = forward_batch(angle_map, values, shots=50)
    with LauncherPool([backend], actor_options=SMALL) as own:
        with pytest.raises(EvaluationError, match=says):
            own.submit(canonical, batch).result(DEADLINE)
        assert own.stats()["retries"] == 0


def test_a_job_that_cannot_begin_is_its_own_affair(pool, monkeypatch):
    _, canonical, angle_map, values = model()
    batch = forward_batch(angle_map, values, shots=50)

    def no_memory(*_):
        raise MemoryError("no room for the answers")

    with monkeypatch.context() as patch:
        patch.setattr(dispatching, "Job", no_memory)
        with pytest.raises(MemoryError, match="no room"):
            pool.submit(canonical, batch).result(DEADLINE)
    assert pool.submit(canonical, batch).result(DEADLINE).shape == (3, 8)


def test_no_rows_are_no_work(pool):
    _, canonical, angle_map, values = model()
    batch = backward_batch(canonical, angle_map, values, shots=50).part(0, 0)
    assert pool.submit(canonical, batch).result(DEADLINE).shape == (0, 2)


def test_a_submit_that_comes_after_the_stop_is_refused():
    _, canonical, angle_map, values = model()
    batch = forward_batch(angle_map, values, shots=50)
    own = LauncherPool([AerBackend()], actor_options=SMALL)
    dispatcher = own._dispatcher
    own.close()
    with pytest.raises(PoolClosedError):
        dispatcher.submit(canonical, batch)


def test_a_pool_that_is_dropped_ends_its_actors():
    own = LauncherPool([AerBackend()], actor_options=SMALL)
    (actor,) = actor_handles(own)
    thread = own._dispatcher._thread
    del own
    gc.collect()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.open.remote(), timeout=DEADLINE)


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


def test_a_forked_child_is_told_that_ray_does_not_fork(pool):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child():
        try:
            pool.stats()
        except PoolError as error:
            answers.put(str(error))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads is the point
        process = context.Process(target=child)
        process.start()
    process.join(DEADLINE)
    assert "forked" in answers.get()


def test_another_cluster_than_the_one_in_use():
    with pytest.raises(InputError, match=r"connected to the Ray at .*, not at '10.9.9.9:1234'"):
        LauncherPool([AerBackend()], address="10.9.9.9:1234")


def test_cancelling_frees_the_pool():
    _, canonical, angle_map, values = model()
    batch = backward_batch(canonical, angle_map, values, shots=50)
    with LauncherPool([SlowOnce()], chunk_rows=4, actor_options=SMALL) as own:
        future = own.submit(canonical, batch)
        time.sleep(0.2)
        assert future.cancel()
        assert future.cancelled()
        expected = AerBackend().evaluate(canonical, batch)
        np.testing.assert_array_equal(own.run(canonical, batch), expected)


def test_copies_of_a_model_use_the_same_actors(pool):
    assert copy.deepcopy(layer(pool)).backend is pool


def test_a_pickled_pool_is_a_handle_for_other_processes(pool):
    @ray.remote(num_cpus=0)
    def in_another_process(handle):
        return two_steps(handle)

    remote = ray.get(in_another_process.remote(pool), timeout=DEADLINE)
    assert_same(remote, two_steps(pool))
    handle = pickle.loads(pickle.dumps(pool))
    assert_same(two_steps(handle), two_steps(pool))
    old = pickle.dumps(pool)
    pool.wait()
    os.kill(actor_pids(pool)[0], signal.SIGKILL)
    wait_until(lambda: pool.stats()["actors"][0]["replaced"] == 1)  # noticed although it is idle
    pool.wait()
    stale = pickle.loads(old)
    assert_same(two_steps(stale), two_steps(pool))
    assert actor_handles(stale) == actor_handles(pool)
    handle.close()  # lets go, and leaves the actors to their owner
    assert_same(two_steps(pool), two_steps(AerBackend()))


def test_a_closed_pool():
    own = LauncherPool([AerBackend()], actor_options=SMALL)
    module = layer(own)
    own.close()
    own.close()
    assert "closed" in repr(own)
    with pytest.raises(PoolClosedError, match="make a new LauncherPool"):
        module(torch.rand(2, 3))
    with pytest.raises(PoolClosedError):
        own.stats()
    assert ray.is_initialized()  # it was not this pool's


def test_closing_fails_what_is_unfinished():
    _, canonical, angle_map, values = model()
    batch = backward_batch(canonical, angle_map, values, shots=50)
    own = LauncherPool([SlowOnce()], actor_options=SMALL)
    future = own.submit(canonical, batch)
    own.close()
    with pytest.raises(PoolClosedError):
        future.result(DEADLINE)


def test_no_resources_says_what_is_missing():
    with pytest.raises(PoolError, match=r"needs 64 CPU, 0 GPU.*CPU .* of 4 free"):
        LauncherPool([AerBackend()], actor_options={"num_cpus": 64}, start_timeout=3.0)


def in_a_process_of_its_own(program):
    """Run a program that starts Ray itself, as a user's shell would."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=110, env=clean,
    )  # fmt: skip


def test_no_cluster_at_the_address_is_said_at_once():
    done = in_a_process_of_its_own("""
        from qailab.backends import AerBackend
        from qailab.distributed import LauncherPool

        LauncherPool([AerBackend()], address="127.0.0.1:9")
    """)
    assert done.returncode == 1
    assert "PoolError: no Ray cluster answers at '127.0.0.1:9'" in done.stderr


def test_a_local_ray_of_its_own():
    """Loopback although ray came first; shared by two pools; another after a shutdown; no noise."""
    done = in_a_process_of_its_own("""
        import os
        import ray
        import numpy as np
        from qailab.backends import AerBackend
        from qailab.distributed import LauncherPool
        from qailab.errors import PoolError
        from qailab.torch import QLayer
        from qailab.circuit import RotationalEncoder, build_circuit
        import torch

        class Mine(AerBackend):  # a class that only this script has
            pass

        first, second = (LauncherPool([Mine()]) for _ in range(2))
        assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert os.stat(os.path.expanduser("~/.ray/auth_token")).st_mode & 0o077 == 0
        first.close()
        layer = QLayer(build_circuit(1, [RotationalEncoder()]), backend=second)
        assert layer(torch.zeros(2, 1)).shape == (2, 2)
        assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ
        from concurrent.futures import ThreadPoolExecutor
        import time

        class Slow(Mine):
            def outcomes(self, circuit, batch):
                time.sleep(3)
                return super().outcomes(circuit, batch)

        busy = LauncherPool([Slow()], actor_options={"num_cpus": 0.1})
        slow = QLayer(build_circuit(1, [RotationalEncoder()]), backend=busy)
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(slow, torch.zeros(2, 1))
            time.sleep(1)
            ray.shutdown()
            assert isinstance(waiting.exception(30), PoolError)  # it does not wait for ever
        busy.close()
        assert not ray.is_initialized()  # nor is another Ray started unasked
        try:
            layer(torch.zeros(2, 1))
        except PoolError as error:
            assert "under this pool" in str(error)
        else:
            raise AssertionError("the pool did not notice")
        third = LauncherPool([AerBackend()])
        second.close()
        layer.backend = third
        assert layer(torch.zeros(2, 1)).shape == (2, 2)
        third.close()
        assert not ray.is_initialized()
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_too_large_circuits_fail_before_anything_runs(pool):
    with LauncherPool([AerBackend(max_memory_mb=1)], actor_options=SMALL) as own:
        with pytest.raises(MemoryLimitError, match="MiB"):
            layer(own, qubits=17)
        assert own.stats()["rows"] == 0


class Hardware(Backend):
    """No exact probabilities, as on hardware."""

    def open(self):
        pass

    def outcomes(self, circuit, batch):
        return Outcomes(np.full((batch.num_rows, circuit.num_outcomes), 1 / circuit.num_outcomes))

    def rows_at_once(self, circuit):
        return 100


def test_exact_probabilities_need_all_backends():
    with LauncherPool([AerBackend(), Hardware()], actor_options=SMALL) as mixed:
        assert not mixed.supports_exact
        blocks = [RotationalEncoder("y", "input")]
        with pytest.raises(InputError, match="only simulators"):
            QLayer(build_circuit(1, blocks), backend=mixed, shots=None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([],), "at least one"),
        ((["aer"],), r"backends\[0\].*str"),
        (([AerBackend()], {"max_in_flight": 0}), "max_in_flight must be a positive integer"),
        (([AerBackend()], {"chunk_rows": 0}), "positive integer or 'auto', got 0"),
        (([AerBackend()], {"chunk_rows": "large"}), "'auto', got 'large'"),
        (([AerBackend()], {"actor_options": {"num_cpu": 1}}), "actor_options.*num_cpu"),
    ],
)
def test_bad_options(arguments, says):
    backends, options = (*arguments, {})[:2]
    with pytest.raises(InputError, match=says):
        LauncherPool(backends, **options)


def test_an_idle_actor_is_light(pool):
    def weigh(self):
        import sys

        with open("/proc/self/status") as status:
            (line,) = (line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024, "torch" in sys.modules

    with LauncherPool([AerBackend()], actor_options=SMALL) as own:
        (actor,) = actor_handles(own)
        mebibytes, has_torch = ray.get(actor.__ray_call__.remote(weigh), timeout=DEADLINE)
    assert not has_torch
    assert mebibytes < 250
