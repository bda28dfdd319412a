"""The files of cluster/ on two hosts with addresses of their own: Ray with TLS and a token."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from train import main
from training.runs import Checkpoint

from tests.cluster.files import CLUSTER, documents
from tests.scripts.hosts import ADDRESSES, Host, TwoHosts, unavailable
from tests.scripts.training_runs import assert_same

ROOT = Path(__file__).parents[2]
DEADLINE = 240.0
SETTINGS = (
    "--qubits=4", "--reps=1", "--shots=64", "--seed=3", "--samples=100", "--batch-size=20",
    "--epochs=2", "--name=same",
)  # fmt: skip
Hosts = tuple[Host, Host]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(3 * DEADLINE),
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
]


@pytest.fixture
def job() -> str:
    return f"test-{secrets.token_hex(3)}"


@pytest.fixture
def hosts(tmp_path: Path, job: str) -> Iterator[Hosts]:
    """Two hosts, each with a folder of its own for Ray's files."""
    with TwoHosts(tmp_path / "hosts", private=[Path(f"/tmp/qailab-{job}")]) as both:
        yield both


@pytest.fixture
def environment(tmp_path: Path, job: str) -> dict[str, str]:
    """The environment of a user whose home both hosts share, with a checkout in it."""
    checkout = tmp_path / "home" / "qailab"
    checkout.mkdir(parents=True)
    (checkout / ".venv").symlink_to(Path(sys.executable).parents[1])
    for name in ("cluster", "qailab", "scripts", "pyproject.toml"):
        (checkout / name).symlink_to(ROOT / name)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST"))}
    return clean | {
        "HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": f"/tmp/qailab-{job}",
    }


def trained(runs: Path) -> Checkpoint:
    return Checkpoint.load(runs / "same" / "checkpoint.pt")


def play(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
    (folder / name).chmod(0o755)


def test_a_slurm_job_on_two_hosts_trains_the_weights_of_one_process(
    hosts: Hosts, environment: dict[str, str], tmp_path: Path, job: str, without_ray: None
) -> None:
    # Slurm's part is played: who the nodes are, and a task on each of them.
    played = tmp_path / "played"
    on1, on2 = (" ".join(host.command("env", '--chdir="$PWD"')) for host in hosts)
    play(played, "scontrol", "echo node1; echo node2")
    play(
        played,
        "srun",
        "while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && only=$1; shift; done\n"
        f'case $only in *node1) exec {on1} "$@" ;; *node2) exec {on2} "$@" ;; esac\n'
        f'{on2} "$@" & {on1} "$@"; status=$?; wait; exit $status',
    )
    more = {
        "PATH": f"{played}{os.pathsep}{environment['PATH']}",
        "SLURM_SUBMIT_DIR": f"{environment['HOME']}/qailab",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_ID": job,
        "RAY_gcs_rpc_server_reconnect_timeout_s": "2",
    }
    runs, alone = tmp_path / "runs", tmp_path / "alone"
    done = subprocess.run(
        ["bash", str(CLUSTER / "slurm.sbatch"), *SETTINGS, "--actors=2", f"--runs-dir={runs}"],
        env=environment | more,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert f"Connecting to existing Ray cluster at address: {ADDRESSES[0]}:6379" in said
    assert "by 2 Ray actors" in said
    assert main([*SETTINGS, f"--runs-dir={alone}"]) == 0
    assert_same(trained(runs), trained(alone))


def test_ray_up_starts_nodes_that_a_job_is_submitted_to(
    hosts: Hosts, environment: dict[str, str], tmp_path: Path, without_ray: None
) -> None:
    home = Path(environment["HOME"])
    (home / "qailab-cluster").mkdir()
    (home / "qailab-cluster" / "source").symlink_to(ROOT)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    head, worker = hosts
    make = [sys.executable, str(CLUSTER / "certificates.py"), str(home / ".qailab" / "tls")]
    subprocess.run([*make, *ADDRESSES], check=True, timeout=DEADLINE)

    (local,) = documents("local.yaml")
    more = environment | {"RAY_HEAD_IP": head.address}
    for host, commands in (
        (head, local["head_start_ray_commands"]),
        (worker, local["worker_start_ray_commands"]),
    ):
        for command in commands:
            # An autoscaler would log in to the other host: that takes an ssh server.
            command = re.sub(r" --autoscaling-config=\S+", "", command)
            host.run("bash", "-c", command, environment=more)

    runs, alone = tmp_path / "runs", tmp_path / "alone"
    submit = [sys.executable, str(ROOT / "scripts" / "submit.py"), "--working-dir", str(ROOT)]
    user = environment | {"RAY_AUTH_MODE": "token"}
    training = ["scripts/train.py", *SETTINGS, "--actors=2", f"--runs-dir={runs}"]
    address = "http://127.0.0.1:8265"
    head.run(*submit, "--address", address, "--", *training, environment=user, seconds=DEADLINE)
    assert main([*SETTINGS, f"--runs-dir={alone}"]) == 0
    assert_same(trained(runs), trained(alone))

    # The server proves who it is, and asks who is there. (Its status goes by who hangs up first.)
    files = home / ".qailab" / "tls"
    ask = f"openssl s_client -connect {head.address}:6379 -CAfile {files}/ca.crt"
    mine = f"-cert {files}/node.crt -key {files}/node.key"
    seen = worker.run("bash", "-c", f"{ask} {mine} < /dev/null || true", environment=user).stdout
    assert "Verify return code: 0" in seen
    assert "Acceptable client certificate CA names" in seen
