"""Programs of cluster/ by their linters, and run: certificates.py, slurm.sbatch, environment.sh.

Slurm and Ray are played by scripts.
"""

import functools
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys

import click
import pytest
from ray.scripts.scripts import cli, start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from tests.support.cluster_files import (
    CLUSTER,
    RAY_UP,
    ROOT,
    documents,
    program,
    readme_commands,
)

RAY = """
echo "$RAY_AUTH_MODE $RAY_USE_TLS $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> "$SEEN"
ls "$(dirname "$RAY_TLS_SERVER_CERT")" >> "$SEEN"
printf '%q ' "$@" >> "$SEEN"
[ -z "$RAY_FAILS" ] || exit 0  # as the true one does
while [ "$1" != -- ]; do shift; done; shift
exec "$@"
"""
PLAYED = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "echo node1; echo node2",
    "hostname": "if [ $# = 0 ]; then echo node1; else echo 192.0.2.10 198.51.100.1; fi",
}
# Not installed here, or of the system: read by people only.
NOT_CHECKED = {"aws", "base64", "chmod", "docker", "export", "gcloud", "helm", "install", "kubectl"}
NOT_CHECKED |= {"pip", "scancel", "scp", "squeue", "ssh", "ssh-keygen"}


def run(*words, **environment):
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip


def test_linters_find_nothing(tmp_path):
    script = tmp_path / "commands.sh"
    # The name is Ray's; it sets it before it runs them.
    lines = ["#!/usr/bin/env bash", "RAY_HEAD_IP=192.0.2.10"]
    for name in RAY_UP:
        (found,) = documents(name)
        for part in [found, *found.get("available_node_types", {}).values()]:
            lines += [one for key in part if key.endswith("_commands") for one in part[key]]
    assert len(lines) > 20
    script.write_text("\n".join([*lines, ""]))
    shellcheck = program("shellcheck")
    own = ("cluster/slurm.sbatch", "cluster/environment.sh")
    for done in (
        run(program("hadolint"), "--no-color", CLUSTER / "Dockerfile"),
        run(shellcheck, "--external-sources", "--source-path=.", *own),
        run(shellcheck, "--severity=warning", "--exclude=SC1090,SC1091,SC2154", script),
    ):
        assert done.returncode == 0, done.stdout


# Certificates


def make_certificates(*arguments):
    if not shutil.which("openssl"):
        pytest.skip("needs the program openssl")
    return run(sys.executable, CLUSTER / "certificates.py", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls") / "made"
    done = make_certificates(
        path, "192.0.2.10", "198.51.100.0/29", "head.example.com", "2001:db8::7"
    )
    assert done.returncode == 0, done.stderr
    return path


def handshake(folder, other, name):
    """Both sides show and check certificates, as Ray's do."""
    client = ssl.create_default_context(cafile=folder / "ca.crt")
    client.load_cert_chain(folder / "node.crt", folder / "node.key")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=other / "ca.crt")
    server.load_cert_chain(other / "node.crt", other / "node.key")
    server.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done = [False, False]
    for _ in range(10):
        for i, side in enumerate(sides):
            try:
                side.do_handshake()
                done[i] = True
            except ssl.SSLWantReadError:
                pass
    assert all(done)


def test_nodes_believe_each_other_and_nobody_else(folder, tmp_path):
    names = ("192.0.2.10", "198.51.100.6", "head.example.com", "2001:db8::7", "127.0.0.1")
    for name in (*names, "localhost"):
        handshake(folder, folder, name)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"192\.0\.2\.11"):
        handshake(folder, folder, "192.0.2.11")
    make_certificates(tmp_path, "192.0.2.10")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder, tmp_path, "192.0.2.10")
    # The authority's key is not kept.
    assert sorted(path.name for path in folder.iterdir()) == ["ca.crt", "node.crt", "node.key"]
    assert (folder / "node.key").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("address", "said"),
    [("10.0.0.0/16", "65,536 addresses"), ("10.0.0.1/24", "has host bits set")]
    + [("no address", "no IP address, network or host name")],
)
def test_wrong_addresses_are_refused(tmp_path, address, said):
    done = make_certificates(tmp_path / "made", address)
    assert (done.returncode, (tmp_path / "made").exists()) == (2, False)
    assert said in done.stderr


# Slurm, and a node's environment


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a home beside it, on a machine where Slurm and Ray are played."""
    root = tmp_path / "checkout"
    played = {tmp_path / "bin" / name: text for name, text in PLAYED.items()}
    for path, text in {**played, root / ".venv/bin/ray": RAY}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{text}")
        path.chmod(0o755)
    for name in ("scripts", "../home"):
        (root / name).mkdir()
    (root / ".venv/bin/python").symlink_to(sys.executable)
    (root / "cluster").symlink_to(CLUSTER)
    (root / "scripts/train.py").write_text(
        "import os, sys; print(os.environ['RAY_ADDRESS'], sys.argv[1:]); sys.exit(5)"
    )
    return root


def run_sbatch(checkout, *arguments, **environment):
    return run("bash", CLUSTER / "slurm.sbatch", *arguments, **{
        "PATH": f"{checkout.parent / 'bin'}:{os.environ['PATH']}",
        "HOME": str(checkout.parent / "home"), "SEEN": str(checkout / "seen"), "RAY_FAILS": "",
        "SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "16", "SLURM_JOB_ID": "7",
        **environment,
    })  # fmt: skip


def test_a_slurm_job_runs_the_training_and_has_its_exit_code(checkout):
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
    options = re.findall(r"^#SBATCH (--\S+)", (CLUSTER / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"--exclusive", "--ntasks-per-node=1"} <= set(options)


def test_a_slurm_job_without_ray_or_environment_fails(checkout):
    done = run_sbatch(checkout, RAY_FAILS="1")
    assert (done.returncode, "Ray did not start" in done.stderr) == (1, True)
    (checkout / ".venv/bin/ray").unlink()
    done = run_sbatch(checkout)
    assert (done.returncode, "run scripts/train once" in done.stderr) == (2, True)


def test_a_node_needs_its_secrets_and_offers_sessions_if_it_has_an_account(tmp_path):
    line = f'. {CLUSTER}/environment.sh && echo "$QAILAB_RESOURCES"'
    done = run("bash", "-c", line, HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"cannot read {tmp_path}/.ray/auth_token" in done.stderr
    tls = [f".qailab/tls/{name}" for name in ("ca.crt", "node.crt", "node.key")]
    for names, environment, offered in (
        ([".ray/auth_token", *tls], {}, {}),
        ([".qiskit/qiskit-ibm.json"], {}, {"qpu_session": 4}),
        ([], {"QAILAB_SESSIONS": "2"}, {"qpu_session": 2}),
    ):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        done = run("bash", "-c", line, HOME=str(tmp_path), **environment)
        assert json.loads(done.stdout) == offered, done.stderr


# The commands of the README


def test_the_readmes_programs_have_these_options():
    commands = set(readme_commands())
    assert {words[0] for words in commands} - NOT_CHECKED == {
        *("ray", "python", "sbatch", "scripts/submit"),
    }
    (job,) = documents("kubernetes/job.yaml")
    commands.add(tuple(job["spec"]["entrypoint"].replace("/opt/qailab/source/", "").split()))
    checked = [check(words) for words in commands if words[0] not in NOT_CHECKED]
    assert len(checked) > 15


def check(words):
    """Fail if a program has no such option; what it runs, too."""
    words = list(words)
    at = words.index("--") if "--" in words else len(words)
    own, inner = words[:at], words[at + 1 :]
    if inner:
        check(inner)
    if own[0] == "ray":
        command, arguments, context = cli, own[1:], click.Context(cli)
        while isinstance(command, click.Group):
            name = arguments.pop(0)
            command = command.get_command(context, name)
            assert command, f"ray has no {name}"
        command.make_context("ray", arguments + ["--", "x"] * bool(inner))
        return
    if own[0] == "sbatch":  # whose script hands them to the training
        at = next(n for n, word in enumerate(own) if word.endswith(".sbatch"))
        own = ["python", "scripts/train.py", *own[at + 1 :]]
    if own[0] == "python":
        at = 3 if own[1] == "-m" else 2
        command, own = tuple(own[1:at]), own[at:]
    else:
        command, own = (f"{own[0].removesuffix('.py')}.py",), own[1:]
    options = {word.split("=")[0] for word in own if word.startswith("--")}
    assert options <= options_of(command), f"{command} has no {options - options_of(command)}"


@functools.cache
def options_of(command):
    done = run(sys.executable, *command, "--help")
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.stdout))
