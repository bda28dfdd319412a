"""Whole programs around a pool, each in a process (and on a Ray) of its own."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import textwrap

import pytest

from tests.support.local_cluster import MARK, marked
from tests.support.processes import DEADLINE, children_of, is_alive, wait_until

PREAMBLE = """
import dataclasses
import os
import signal
import threading
import time

import numpy as np

from qailab.backends import AerBackend, EmulatedBackend
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.distributed import LauncherPool
from qailab.errors import PoolError
from tests.support.contracts import answers, backward_batch, forward_batch, model
from tests.support.processes import children_of, wait_until

_, CANONICAL, ANGLE_MAP, VALUES = model()
BATCH = backward_batch(CANONICAL, ANGLE_MAP, np.tile(VALUES, (20, 1)), shots=50)
EXPECTED = answers(AerBackend(), CANONICAL, BATCH)


class Slow(AerBackend):
    def probabilities(self, circuit, batch, stop):
        time.sleep(0.1)
        return super().probabilities(circuit, batch, stop)


def check(future):
    np.testing.assert_array_equal(future.result(200), EXPECTED)


def start_ray(**options):
    import ray

    ray.init(address="local", object_store_memory=80 << 20, include_dashboard=False,
             log_to_driver=False, logging_level="ERROR", **options)

"""
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}


def start(program, **options):
    """Start a program as a user's shell would, without the settings of the tests' Ray."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = clean | {"RAY_USAGE_STATS_ENABLED": "0"} | options.pop("environment", {})
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)], env=environment, **options
    )


def run(program, fails=False, **environment):
    """Run a program to its end; return what it said, where Ray says what it likes."""
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = start(program, environment=environment, **piped)
    try:
        out, err = process.communicate(timeout=280)
    finally:
        process.kill()
    assert process.returncode == int(fails), out + err
    return out + err


def test_no_cluster_at_the_address_is_said_at_once():
    said = run("LauncherPool([AerBackend()], address='127.0.0.1:9')", fails=True)
    assert "PoolError: no Ray cluster answers at '127.0.0.1:9'" in said


def test_a_local_ray_of_its_own():
    """Loopback although ray came first; shared by two pools; another after a shutdown; no noise."""
    said = run("""
        import ray
        import torch
        from concurrent.futures import ThreadPoolExecutor
        from qailab.torch import QLayer

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

        class Slower(Mine):
            def probabilities(self, circuit, batch, stop):
                time.sleep(3)
                return super().probabilities(circuit, batch, stop)

        busy = LauncherPool([Slower()], actor_options={"num_cpus": 0.1})
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
    assert said == ""


def test_nodes_come_and_go():
    """A late node's actors start to pull work; a lost node's rows run elsewhere; one comes back."""
    run(
        """
        import ray
        from ray.cluster_utils import Cluster

        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
                 "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
        node = {"num_cpus": 1, "object_store_memory": 80 << 20}
        cluster = Cluster(initialize_head=True, head_node_args={
            **node, "include_dashboard": False, "_system_config": quick})
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

        try:  # said at once
            LauncherPool([AerBackend()], actor_options={"num_gpus": 1}, start_timeout=3600.0)
        except PoolError as error:
            assert "no machine of this Ray has one" in str(error)
        with LauncherPool([Slow()] * 4, chunk_rows=12, actor_options={"num_cpus": 0.5}) as pool:
            pool.wait(2)
            future = pool.submit(CANONICAL, BATCH)
            late = cluster.add_node(**node)
            check(future)
            pool.wait()
            assert len({actor["pid"] for actor in pool.stats()["actors"]}) == 4
            before = [actor["rows"] for actor in pool.stats()["actors"]]

            def all_take_part():  # late ones have their libraries to load: others may be done
                check(pool.submit(CANONICAL, BATCH))
                after = [actor["rows"] for actor in pool.stats()["actors"]]
                return all(more > less for more, less in zip(after, before))

            wait_until(all_take_part)
            future = pool.submit(CANONICAL, BATCH)
            time.sleep(0.5)
            cluster.remove_node(late, allow_graceful=False)
            check(future)
            stats = pool.stats()
            assert sum(actor["replaced"] for actor in stats["actors"]) >= 2
            assert stats["rows"] % BATCH.num_rows == 0

            cluster.add_node(**node)
            pool.wait()
            check(pool.submit(CANONICAL, BATCH))
        ray.shutdown()
        cluster.shutdown()
        """,
        **LOOPBACK,
    )


def test_ctrl_c_in_the_middle_of_backward_leaves_the_pool_usable(shared_ray):
    program = """
        import torch
        from qailab.torch import QLayer

        device = EmulatedBackend(latency=0.3)
        circuit = build_circuit(3, [RotationalEncoder(), RealAmplitudesBlock("weight", reps=1)])
        with LauncherPool([device] * 2, chunk_rows=4) as pool:
            pool.wait()
            layer = QLayer(circuit, backend=pool, seed=1)
            inputs = torch.rand(40, 3)
            outputs = layer(inputs)
            threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            try:
                outputs.sum().backward()
            except KeyboardInterrupt:
                pass
            else:
                raise AssertionError("the interrupt was lost")
            time.sleep(1)
            before = pool.stats()["rows"]
            assert before < 40 + 40 * 2 * 9  # not all: it did not wait for the end
            time.sleep(1)
            assert pool.stats()["rows"] == before  # nothing is evaluated for nobody
            layer(inputs[:2]).sum().backward()
            assert [actor["replaced"] for actor in pool.stats()["actors"]] == [0, 0]
    """
    run(program, **shared_ray)


KILLED = """
    with LauncherPool([Slow()] * 2, chunk_rows=4, actor_options={"num_cpus": 0.5}) as pool:
        pool.wait()
        future = pool.submit(CANONICAL, BATCH)
        print(*[actor["pid"] for actor in pool.stats()["actors"]], flush=True)
        time.sleep(100)
"""


@pytest.mark.parametrize("own_ray", [False, True])
def test_a_killed_driver_leaves_nothing_behind(own_ray, shared_ray):
    """No actor, neither on a Ray of its own, nor on one that goes on."""
    environment = {} if own_ray else shared_ray
    driver = start(KILLED, environment=environment, stdout=subprocess.PIPE, text=True)
    try:
        pids = list(map(int, driver.stdout.readline().split()))
        assert len(pids) == 2
        started = children_of(driver.pid)
        driver.send_signal(signal.SIGKILL)
        driver.wait(10)
        wait_until(lambda: not any(map(is_alive, pids)))
        for pid in filter(is_alive, started):  # two agents of Ray's own may outlive it
            os.kill(pid, signal.SIGKILL)
    finally:
        driver.kill()
        driver.stdout.close()


@pytest.mark.parametrize("own_ray", [False, True])
def test_sigterm_closes_the_backends_of_a_busy_pool(own_ray, shared_ray, tmp_path):
    """Ray's own handler would abort the process after 3 s, or end it with status 15."""
    driver = start(
        f"""
        class Closing(Slow):
            def __init__(self):
                super().__init__()
                self.traits = dataclasses.replace(self.traits, close_seconds=60.0)

            def close(self):
                time.sleep(4)
                open(os.path.join({str(tmp_path)!r}, str(os.getpid())), "w").close()

        if not {own_ray}:  # its handler is there before the pool comes
            import ray

            ray.init(logging_level="ERROR", log_to_driver=False)
        pool = LauncherPool([Closing()] * 2, actor_options={{"num_cpus": 0.1}})
        pool.wait()
        print(*[actor["pid"] for actor in pool.stats()["actors"]], flush=True)
        while True:
            check(pool.submit(CANONICAL, BATCH))
        """,
        environment={} if own_ray else shared_ray,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        pids = driver.stdout.readline().split()
        driver.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            driver.wait(2)  # the backends take 4 s to close
        driver.terminate()
        assert driver.wait(DEADLINE) == 128 + signal.SIGTERM
        assert sorted(os.listdir(tmp_path)) == sorted(pids)
        wait_until(lambda: not any(is_alive(int(pid)) for pid in pids))
    finally:
        driver.kill()
        driver.stdout.close()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_while_ray_starts_leaves_nothing_behind(number, code, tmp_path):
    """Ray's own handler of SIGTERM is there by then, and exits with status 15."""
    driver = start(
        f"""
        def strike():
            wait_until(lambda: len(children_of(os.getpid())) > {3 * (number == signal.SIGTERM)})
            os.kill(os.getpid(), {int(number)})

        threading.Thread(target=strike, daemon=True).start()
        LauncherPool([AerBackend()]).wait()
        """,
        environment={MARK: str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert driver.wait(DEADLINE) == code
        wait_until(lambda: not marked(str(tmp_path)))
    finally:
        driver.kill()


def test_a_full_object_store_is_no_obstacle():
    run(
        """
        import ray

        start_ray(num_cpus=2)
        held = [ray.put(np.zeros(10 << 20, dtype=np.uint8)) for _ in range(12)]
        with LauncherPool([AerBackend()] * 2) as pool:
            check(pool.submit(CANONICAL, BATCH))
            _, wide, angles, values = model(qubits=12)
            many = forward_batch(angles, np.tile(values, (40, 1)), shots=50)  # 3.9 MB of answers
            expected = answers(AerBackend(), wide, many)
            np.testing.assert_array_equal(pool.run(wide, many), expected)
        """,
        **LOOPBACK,
    )


def test_progress_is_shown_in_a_terminal(shared_ray):
    program = """
        with LauncherPool([EmulatedBackend(latency=0.4)] * 2, chunk_rows=40) as pool:
            pool.wait()
            check(pool.submit(CANONICAL, BATCH))
    """
    terminal, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = start(program, environment=shared_ray, stdout=subprocess.DEVNULL, stderr=other)
    os.close(other)
    seen = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        try:
            while piece := screen.read(4096):
                seen += piece
        except OSError:  # Linux's way to say that the other end is closed
            pass
    assert process.wait(DEADLINE) == 0, seen.decode()
    assert b"rows/s, actors 2/2" in seen
    assert b"k/1.08k [" in seen


def available_gibibytes():
    with open("/proc/meminfo") as info:
        (line,) = (line for line in info if line.startswith("MemAvailable"))
    return int(line.split()[1]) / 2**20


@pytest.mark.skipif(available_gibibytes() < 12, reason="needs 12 GiB that nobody uses")
def test_an_actor_that_takes_too_much_memory_is_killed_and_replaced(tmp_path):
    """By Ray's memory monitor, whose error is none of an actor's death."""
    said = run(
        f"""
        fed = {str(tmp_path / "fed")!r}

        with open("/proc/meminfo") as info:
            sizes = {{line.split(":")[0]: int(line.split()[1]) << 10 for line in info}}
        limit = sizes["MemTotal"] - sizes["MemAvailable"] + (3 << 30)
        start_ray(num_cpus=1, _system_config={{
            "memory_usage_threshold": limit / sizes["MemTotal"],
            "memory_monitor_refresh_ms": 100}})

        class Hungry(AerBackend):
            def probabilities(self, circuit, batch, stop):
                if not os.path.exists(fed):
                    open(fed, "w").close()
                    everything = np.ones((6 << 30) // 8)
                    time.sleep(60)
                return super().probabilities(circuit, batch, stop)

        with LauncherPool([Hungry()]) as pool:
            check(pool.submit(CANONICAL, BATCH))
            assert pool.stats()["actors"][0]["replaced"] >= 1
        """,
        **LOOPBACK,
    )
    assert "was lost" in said
    assert "memory" in said
