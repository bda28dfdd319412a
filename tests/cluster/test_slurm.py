"""slurm.sbatch and environment.sh: by shellcheck, and run with Slurm and Ray played by scripts."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from tests.cluster.files import CLUSTER, ROOT
from tests.cluster.programs import program

SRUN = """
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
RAY = """
echo "$RAY_AUTH_MODE $RAY_USE_TLS $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> "$SEEN"
ls "$(dirname "$RAY_TLS_SERVER_CERT")" >> "$SEEN"
printf '%q ' "$@" >> "$SEEN"
[ -z "$RAY_FAILS" ] || exit 0  # as the true one does
while [ "$1" != -- ]; do shift; done; shift
exec "$@"
"""
PLAYED = {
    "srun": SRUN,
    "scontrol": "echo node1; echo node2",
    "hostname": "if [ $# = 0 ]; then echo node1; else echo 192.0.2.10 198.51.100.1; fi",
}


def test_shellcheck_finds_nothing():
    files = ["cluster/slurm.sbatch", "cluster/environment.sh"]
    done = subprocess.run(
        [program("shellcheck"), "--external-sources", "--source-path=.", *files],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def write_program(path, text):
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a home beside it, on a machine where Slurm and Ray are played."""
    for folder in ("bin", "home", "checkout/.venv/bin", "checkout/scripts"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in PLAYED.items():
        write_program(tmp_path / "bin" / name, text)
    root = tmp_path / "checkout"
    write_program(root / ".venv/bin/ray", RAY)
    (root / ".venv/bin/python").symlink_to(sys.executable)
    (root / "cluster").symlink_to(CLUSTER)
    (root / "scripts/train.py").write_text(
        "import os, sys; print(os.environ['RAY_ADDRESS'], sys.argv[1:]); sys.exit(5)"
    )
    return root


def run_sbatch(checkout, *arguments, **environment):
    home = checkout.parent / "home"
    return subprocess.run(
        ["bash", CLUSTER / "slurm.sbatch", *arguments],
        capture_output=True, text=True, timeout=60,
        env={
            "PATH": f"{checkout.parent / 'bin'}:{os.environ['PATH']}",
            "HOME": str(home), "SEEN": str(checkout / "seen"), "RAY_FAILS": "",
            "SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "16", "SLURM_JOB_ID": "7",
            **environment,
        },
    )  # fmt: skip


def test_a_job_runs_the_training_and_has_its_exit_code(checkout):
    done = run_sbatch(checkout, "--epochs", "3", "--name", "two words")
    assert done.returncode == 5, done.stderr
    assert "192.0.2.10:6379 ['--epochs', '3', '--name', 'two words']" in done.stdout
    settings, *files, command = (checkout / "seen").read_text().splitlines()
    assert settings == "token 1 600"
    assert files == ["ca.crt", "node.crt", "node.key"]
    words = shlex.split(command)
    ours = words[1 : words.index("--")]
    context = start.make_context("ray start", curate_and_validate_ray_start_args(list(ours)))
    assert context.params["num_cpus"] == 16
    assert ours[ours.index("--min-nodes") + 1] == "2"
    assert not list((checkout.parent / "home").iterdir()), "its secrets go with it"


def test_a_ray_that_does_not_start_is_a_failure(checkout):
    done = run_sbatch(checkout, RAY_FAILS="1")
    assert done.returncode == 1
    assert "Ray did not start" in done.stderr


def test_a_job_without_an_environment_says_how_to_make_it(checkout):
    (checkout / ".venv/bin/ray").unlink()
    done = run_sbatch(checkout)
    assert done.returncode == 2
    assert "run scripts/train once" in done.stderr


def test_the_job_has_its_nodes_for_itself():
    text = (CLUSTER / "slurm.sbatch").read_text()
    options = set(re.findall(r"^#SBATCH (--[a-z-]+)", text, re.MULTILINE))
    assert {"--exclusive", "--nodes", "--ntasks-per-node", "--time"} <= options
    assert "#SBATCH --ntasks-per-node=1\n" in text


def source_environment(home, **environment):
    return subprocess.run(
        ["bash", "-c", f'. {CLUSTER}/environment.sh && echo "$QAILAB_RESOURCES"'],
        capture_output=True, text=True, timeout=60,
        env={"HOME": str(home), "PATH": os.environ["PATH"], **environment},
    )  # fmt: skip


def test_a_node_without_secrets_does_not_start(tmp_path):
    done = source_environment(tmp_path)
    assert done.returncode == 1
    assert f"cannot read {tmp_path}/.ray/auth_token" in done.stderr


@pytest.mark.parametrize(
    ("account", "sessions", "offered"),
    [(False, {}, {}), (True, {}, {"qpu_session": 4})]
    + [(True, {"QAILAB_SESSIONS": "2"}, {"qpu_session": 2})],
)
def test_a_node_with_an_account_offers_sessions(tmp_path, account, sessions, offered):
    names = [
        ".ray/auth_token",
        ".qailab/tls/ca.crt",
        ".qailab/tls/node.crt",
        ".qailab/tls/node.key",
    ]
    for name in [*names, ".qiskit/qiskit-ibm.json"] if account else names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    done = source_environment(tmp_path, **sessions)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == offered
