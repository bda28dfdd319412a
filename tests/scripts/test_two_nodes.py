"""Training submitted to two nodes, one of which is lost; and hardware on the node that has it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from train import main
from training.runs import Checkpoint

from qailab.rehearsal import RehearsalServer
from tests.scripts.local_cluster import LocalCluster, marked
from tests.scripts.training_runs import assert_same

ROOT = Path(__file__).parent.parent.parent
DEADLINE = 180
KEY = "key-that-only-one-node-may-have-0123456789"
MODEL = ("--qubits=4", "--reps=1", "--shots=64", "--seed=3", "--batch-size=10")

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3 * DEADLINE)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(cpus=1) as cluster:
        yield cluster
    assert marked(cluster.name) == []


def submit(cluster: LocalCluster, cwd: Path, *training: str) -> subprocess.Popen[str]:
    """``scripts/submit``, from a clean directory."""
    program = [sys.executable, str(ROOT / "scripts" / "submit.py"), "--working-dir", str(ROOT)]
    return subprocess.Popen(
        [*program, "--", "scripts/train.py", *training],
        cwd=cwd,
        env=cluster.client_environment(
            PYTHONPATH=str(ROOT), RAY_API_SERVER_ADDRESS=cluster.dashboard, NO_PROXY="127.0.0.1"
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(program: subprocess.Popen[str]) -> str:
    try:
        output, _ = program.communicate(timeout=DEADLINE)
    finally:
        program.kill()
    assert program.returncode == 0, output
    return output


def wait_until(condition: Callable[[], object], program: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        assert program.poll() is None, finished(program)
        time.sleep(0.1)


def checkpoint(runs: Path) -> Checkpoint:
    (path,) = runs.glob("*/checkpoint.pt")
    return Checkpoint.load(path)


def test_a_job_on_two_nodes_ends_with_the_weights_of_one_process(
    cluster: LocalCluster, tmp_path: Path, without_ray: None
) -> None:
    second = cluster.add_node(cpus=1)
    # Many epochs: it begins with the first actor, and the other is to be lost in the middle.
    settings = (*MODEL, "--samples=100", "--epochs=40", "--name=same")
    runs = tmp_path / "runs"
    program = submit(cluster, tmp_path, *settings, "--actors=2", f"--runs-dir={runs}")
    busy = "ray::LauncherActor"
    wait_until(lambda: any(busy in command(pid) for pid in marked(second.name)), program)
    wait_until(lambda: any(p.stat().st_size for p in runs.glob("*/metrics.jsonl")), program)
    second.kill()
    assert checkpoint(runs).progress.epoch < 40  # else it came too late
    finished(program)
    alone = tmp_path / "alone"
    assert main([*settings, f"--runs-dir={alone}"]) == 0
    assert_same(checkpoint(runs), checkpoint(alone))


def test_devices_are_used_from_the_node_that_has_the_account(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    with RehearsalServer(["lagos"], token=KEY, seed=1) as server:
        cluster.add_node(cpus=0, resources={"qpu_session": 1}, environment=server.environment)
        runs = tmp_path / "runs"
        device = ("--backend=ibm", "--devices=ibm_lagos", "--poll-interval=0.1")
        size = ("--samples=50", "--epochs=1", f"--runs-dir={runs}")
        output = finished(submit(cluster, tmp_path, *MODEL, *device, *size))
        assert len(server.jobs) == 2 * 4 + 1  # four steps, and a test
        assert server.duplicates() == []
        assert {session.state for session in server.sessions} == {"closed"}
    pages = ("/api/jobs/", "/api/v0/actors?detail=1", "/api/v0/runtime_envs?detail=1")
    assert KEY not in output + "".join(str(cluster.get(page)) for page in pages)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended
        return ""
