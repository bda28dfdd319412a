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
import time

import pytest
import ray

from tests.distributed.conftest import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.integration]

PREAMBLE = """
import os
import signal
import threading
import time

import numpy as np

from qailab.backends import AerBackend, RehearsalBackend
from qailab.distributed import LauncherPool
from tests.support.contracts import backward_batch, model

_, CANONICAL, ANGLE_MAP, VALUES = model()
BATCH = backward_batch(CANONICAL, ANGLE_MAP, np.tile(VALUES, (20, 1)), shots=50)
EXPECTED = AerBackend().evaluate(CANONICAL, BATCH)


class Slow(AerBackend):
    def outcomes(self, circuit, batch):
        time.sleep(0.1)
        return super().outcomes(circuit, batch)


def check(future):
    np.testing.assert_array_equal(future.result(200), EXPECTED)


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)

"""
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}


def start(program, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean | {"RAY_USAGE_STATS_ENABLED": "0"} | environment,
    )


def run(program, **environment):
    process = start(program, **environment)
    try:
        out, err = process.communicate(timeout=280)
    finally:
        process.kill()
    assert process.returncode == 0, out + err
    return out, err


CLUSTER = """
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(
    initialize_head=True,
    head_node_args={
        "num_cpus": 1,
        "object_store_memory": 80 << 20,
        "include_dashboard": False,
        "_system_config": {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_timeout_ms": 2000,
            "health_check_failure_threshold": 3,
        },
    },
)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
"""


@pytest.mark.slow
def test_nodes_come_and_go():
    """A late node's actors start to pull work; a lost node's rows run elsewhere; one comes back."""
    run(
        CLUSTER
        + """
with LauncherPool([Slow()] * 4, chunk_rows=12, actor_options={"num_cpus": 0.5}) as pool:
    pool.wait(2)
    future = pool.submit(CANONICAL, BATCH)
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    check(future)
    pool.wait()
    pids = {actor["pid"] for actor in pool.stats()["actors"]}
    assert len(pids) == 4
    batches = 1
    before = [actor["rows"] for actor in pool.stats()["actors"]]

    def all_take_part():  # late ones have their libraries to load: others may be done by then
        global batches
        check(pool.submit(CANONICAL, BATCH))
        batches += 1
        after = [actor["rows"] for actor in pool.stats()["actors"]]
        return all(more > less for more, less in zip(after, before))

    wait_until(all_take_part)

    future = pool.submit(CANONICAL, BATCH)
    time.sleep(0.5)
    cluster.remove_node(node, allow_graceful=False)
    check(future)
    stats = pool.stats()
    assert sum(actor["replaced"] for actor in stats["actors"]) >= 2
    assert stats["rows"] == (batches + 1) * BATCH.num_rows
    check(pool.submit(CANONICAL, BATCH))

    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    pool.wait()
    check(pool.submit(CANONICAL, BATCH))
    assert pool.stats()["rows"] == (batches + 3) * BATCH.num_rows
ray.shutdown()
cluster.shutdown()
""",
        **LOOPBACK,
    )


def test_ctrl_c_in_the_middle_of_backward_leaves_the_pool_usable():
    run("""
        import torch
        from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
        from qailab.torch import QLayer

        device = RehearsalBackend(latency=0.3)
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
            slots = pool._dispatcher.slots
            wait_until(lambda: not any(slot.chunks_in_flight for slot in slots))
            before = pool.stats()["rows"]
            assert before < 40 + 40 * 2 * 9  # not all: it did not wait for the end
            time.sleep(1)
            assert pool.stats()["rows"] == before  # nothing is evaluated for nobody
            layer(inputs[:2]).sum().backward()
            expected = QLayer(circuit, backend=AerBackend(), seed=1)
            expected.load_state_dict(layer.state_dict())
            assert [actor["replaced"] for actor in pool.stats()["actors"]] == [0, 0]
    """)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid):
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                parent = int(stat.read().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found += [int(entry), *children_of(int(entry))]
    return found


KILLED = """
    with LauncherPool([Slow()] * 2, chunk_rows=4, actor_options={"num_cpus": 0.5}) as pool:
        pool.wait()
        future = pool.submit(CANONICAL, BATCH)
        print(*[actor["pid"] for actor in pool.stats()["actors"]], flush=True)
        time.sleep(100)
"""


@pytest.mark.parametrize("shared", [False, True])
def test_a_killed_driver_leaves_nothing_behind(shared, ray_cluster):
    """No actor, neither on a Ray of its own, nor on one that goes on."""
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, **LOOPBACK}
    driver = start(KILLED, **(address if shared else {}))
    try:
        pids = list(map(int, driver.stdout.readline().split()))
        assert len(pids) == 2
        started = children_of(driver.pid)
        driver.send_signal(signal.SIGKILL)
        driver.wait(10)
        wait_until(lambda: not any(map(alive, pids)))
        for pid in filter(alive, started):  # two agents of Ray's own may outlive it
            os.kill(pid, signal.SIGKILL)
    finally:
        driver.kill()
        driver.stdout.close()
        driver.stderr.close()


def test_a_full_object_store_is_no_obstacle():
    run(
        """
        import ray

        ray.init(address="local", num_cpus=2, object_store_memory=80 << 20,
                 include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        held = [ray.put(np.zeros(10 << 20, dtype=np.uint8)) for _ in range(12)]
        with LauncherPool([AerBackend()] * 2) as pool:
            check(pool.submit(CANONICAL, BATCH))
            from tests.support.contracts import forward_batch
            _, wide, angles, values = model(qubits=12)
            values = np.tile(values, (40, 1))
            many = forward_batch(angles, values, shots=50)  # 3.9 MB of answers
            expected = AerBackend().evaluate(wide, many)
            np.testing.assert_array_equal(pool.run(wide, many), expected)
        """,
        **LOOPBACK,
    )


@pytest.mark.slow
def test_workers_of_ray_train_share_a_pool():
    """Although the pool's actors have all CPUs; an actor dies on the way."""
    run(
        """
        import ray
        import torch
        from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
        from qailab.torch import QLayer

        ray.init(address="local", num_cpus=2, object_store_memory=80 << 20,
                 include_dashboard=False, log_to_driver=False, logging_level="ERROR",
                 resources={"trainer": 2})
        from ray.train import ScalingConfig
        from ray.train import get_context as train_context
        from ray.train.torch import TorchTrainer

        circuit = build_circuit(3, [RotationalEncoder(), RealAmplitudesBlock("weight", reps=1)])

        def train(config):
            layer = QLayer(circuit, backend=config["pool"], seed=1)
            inputs = torch.rand(8, 3)
            for step in range(4):
                if step == 1 and train_context().get_world_rank() == 0:
                    os.kill(config["victim"], signal.SIGKILL)
                layer(inputs).square().sum().backward()
            expected = QLayer(circuit, backend=AerBackend(), seed=1)
            expected.weight.data.copy_(layer.weight.data)
            for _ in range(4):
                expected(inputs).square().sum().backward()
            assert torch.equal(layer.weight.grad, expected.weight.grad)

        with LauncherPool([Slow()] * 2, chunk_rows=8) as pool:
            pool.wait()
            assert ray.available_resources().get("CPU", 0) == 0
            victim = pool.stats()["actors"][0]["pid"]
            trainer = TorchTrainer(
                train,
                train_loop_config={"pool": pool, "victim": victim},
                scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"trainer": 1}),
            )
            trainer.fit()
            assert pool.stats()["actors"][0]["replaced"] == 1
        """,
        **LOOPBACK,
    )


def test_progress_is_shown_in_a_terminal():
    program = """
        slow = RehearsalBackend(latency=0.4)
        with LauncherPool([slow] * 2, chunk_rows=40) as pool:
            pool.wait()
            check(pool.submit(CANONICAL, BATCH))
    """
    terminal, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)],
        stdout=subprocess.DEVNULL,
        stderr=other,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
    )
    os.close(other)
    seen = b""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not piece:
            break
        seen += piece
    assert process.wait(20) == 0, seen.decode()
    os.close(terminal)
    assert b"rows/s, actors 2/2" in seen
    assert b"k/1.08k [" in seen


def available_gibibytes():
    with open("/proc/meminfo") as info:
        (line,) = (line for line in info if line.startswith("MemAvailable"))
    return int(line.split()[1]) / 2**20


@pytest.mark.slow
@pytest.mark.skipif(available_gibibytes() < 12, reason="needs 12 GiB that nobody uses")
def test_an_actor_that_takes_too_much_memory_is_killed_and_replaced(tmp_path):
    """By Ray's memory monitor, whose error is none of an actor's death."""
    _, err = run(
        f"""
        import ray

        fed = {str(tmp_path / "fed")!r}

        with open("/proc/meminfo") as info:
            sizes = {{line.split(":")[0]: int(line.split()[1]) << 10 for line in info}}
        limit = sizes["MemTotal"] - sizes["MemAvailable"] + (3 << 30)
        ray.init(address="local", num_cpus=1, object_store_memory=80 << 20,
                 include_dashboard=False, log_to_driver=False, logging_level="ERROR",
                 _system_config={{"memory_usage_threshold": limit / sizes["MemTotal"],
                                 "memory_monitor_refresh_ms": 100}})

        class Hungry(AerBackend):
            def outcomes(self, circuit, batch):
                if not os.path.exists(fed):
                    open(fed, "w").close()
                    everything = np.ones((6 << 30) // 8)
                    time.sleep(60)
                return super().outcomes(circuit, batch)

        with LauncherPool([Hungry()]) as pool:
            check(pool.submit(CANONICAL, BATCH))
            assert pool.stats()["actors"][0]["replaced"] >= 1
        """,
        **LOOPBACK,
    )
    assert "was lost" in err
    assert "memory" in err
