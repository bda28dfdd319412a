"""Jobs that ``scripts/submit`` sends to a real cluster with a token, as a user starts it."""

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qailab.rehearsal import RehearsalServer
from tests.support import cluster_training
from tests.support.cluster_training import STEPS, assert_as_in_one_process, steps_done
from tests.support.local_cluster import LocalCluster, marked
from tests.support.processes import wait_until

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 150
PLANTED = f"planted-{secrets.token_hex(20)}"  # made here: this file is itself sent
KEY = f"key-that-only-one-node-may-have-{secrets.token_hex(20)}"
HELLO = """
import os, sys
print("hello", os.environ["GREETED"], sorted(os.listdir()), flush=True)
print("to stderr", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
LONG = """
import signal, sys, time

def save(*_):
    time.sleep(4)  # longer than the three seconds that Ray gives by default
    print("saved", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
print("working", flush=True)
time.sleep(120)
"""

pytestmark = pytest.mark.timeout(3 * SECONDS)


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(cpus=1) as cluster:
        yield cluster
        assert len(marked(cluster.name)) > 3
    assert marked(cluster.name) == []
    assert not cluster.directory.exists()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with programs, and what must stay here."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "hello.py").write_text(HELLO)
    (folder / "long.py").write_text(LONG)
    shutil.copy(cluster_training.__file__, folder / "training.py")
    for name in (".env", "key.pem", "sub/.env.local", "jobs.sqlite", "runs/one", "left", "lib.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(PLANTED)
    (folder / ".gitignore").write_text("*.pyc\n")
    (folder / ".rayignore").write_text("left\n")
    return folder


def start(cluster, project, *words, command=(sys.executable, str(ROOT / "scripts" / "submit.py"))):
    """Start the program; the user has a secret in the environment."""
    given = {"QISKIT_IBM_TOKEN": PLANTED, "RAY_API_SERVER_ADDRESS": cluster.dashboard}
    return subprocess.Popen(
        [*command, *words], cwd=project, env=cluster.environment | given,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(program):
    """The exit status, output and errors of a program."""
    try:
        output, errors = program.communicate(timeout=SECONDS)
    finally:
        program.kill()
        program.wait()
    assert "Traceback" not in errors, errors
    assert PLANTED not in output + errors
    return program.returncode, output, errors


def read_until(program, wanted):
    """Read its output up to this; pytest's own deadline ends it if that does not come."""
    seen = ""
    while wanted not in seen:
        line = program.stdout.readline()
        assert line, f"{wanted!r} did not come: {seen}{finish(program)}"
        seen += line


def test_a_job_runs_in_what_was_sent_and_its_end_is_ours(cluster, project):
    sent = ("--working-dir", ".", "--env", "GREETED=whole world", "--name")
    began = time.monotonic()
    status, output, errors = finish(start(cluster, project, *sent, "bad", "--", "hello.py", "3"))
    print(f"a job of no duration took {time.monotonic() - began:.1f} s")
    assert status == 3, errors
    # Both streams, in order; neither secrets nor what is ignored went.
    sent_files = "['.gitignore', '.rayignore', 'hello.py', 'long.py', 'training.py']"
    assert f"hello whole world {sent_files}\nto stderr\n" in output
    assert (output + errors).count("to stderr") == 1
    assert "job bad FAILED, exit status 3" in errors
    status, _, errors = finish(start(cluster, project, *sent, "bad", "--", "hello.py", "3"))
    assert status == 1
    assert "already exists" in errors


def test_ctrl_c_detaches_and_rays_own_commands_go_on(cluster, project):
    followed = start(cluster, project, "--working-dir", ".", "--name", "long", "--", "long.py")
    read_until(followed, "working\n")
    followed.send_signal(signal.SIGINT)
    status, _, errors = finish(followed)
    assert status == 130
    assert "detached; job long goes on" in errors
    ray = Path(sys.executable).with_name("ray")
    follow, stop = (shlex.split(line)[1:] for line in re.findall("(ray job .*)", errors))
    unbuffered = ["env", "PYTHONUNBUFFERED=1", ray]  # else it writes into a pipe at its end
    following = start(cluster, project, *follow, command=unbuffered)
    read_until(following, "working\n")
    assert finish(start(cluster, project, *stop, command=[ray]))[0] == 0
    finish(following)
    logs = [word for word in follow if word != "--follow"]  # which may end before the last lines
    wait_until(  # it had its 30 s
        lambda: "saved\n" in finish(start(cluster, project, *logs, command=[ray]))[1]
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RAY_AUTH_TOKEN": "wrong" * 8}, "does not accept this token"),
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token: set RAY_AUTH_MODE=token"),
        ({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}, "no Ray dashboard answers at"),
    ],
)
def test_a_wrong_token_or_address_is_told(environment, said, cluster, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "scripts")  # as Python does for a script
    import submit

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.dashboard)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "NO_PROXY"):
        monkeypatch.setenv(name, cluster.environment[name])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="1"):
        submit.main(["--", "sleep", "1"])
    errors = capsys.readouterr().err
    assert said in errors
    assert cluster.token not in errors
    assert "wrongwrong" not in errors


def test_a_job_that_loses_a_node_ends_with_the_weights_of_one_process(cluster, project, tmp_path):
    second = cluster.add_node(cpus=1)
    job = start(cluster, project, "--working-dir", ".", "--", "training.py", str(tmp_path))
    second.wait_until(lambda: second.runs("ray::LauncherActor") and steps_done(tmp_path) > 10)
    second.kill()
    assert steps_done(tmp_path) < STEPS - 1  # else it came too late
    status, output, errors = finish(job)
    assert status == 0, output + errors
    assert_as_in_one_process(tmp_path)


def test_the_example_trains_on_devices_of_the_node_that_has_the_account(cluster, project, tmp_path):
    with RehearsalServer(["lagos"], token=KEY, seed=1) as server:
        cluster.add_node(cpus=0, resources={"qpu_session": 1}, environment=server.environment)
        options = "--backend ibm --devices ibm_lagos --budget-seconds 500 --qubits 4 --reps 1"
        options += " --shots 64 --seed 3 --samples 50 --batch-size 25 --epochs 1 --name first"
        words = ["scripts/train.py", *options.split(), "--storage", str(tmp_path)]
        status, output, errors = finish(start(cluster, project, "--", *words))
        assert status == 0, output + errors
        assert server.jobs
        assert server.duplicates() == []
        assert {session.state for session in server.sessions} == {"closed"}
    assert list(tmp_path.rglob("checkpoint*"))
    assert KEY not in output + errors
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


PAGES = (
    "/api/jobs/", "/api/jobs/bad", "/api/jobs/bad/logs", "/api/v0/jobs?detail=1",
    "/api/v0/actors?detail=1", "/api/v0/runtime_envs?detail=1", "/api/v0/workers?detail=1",
    "/api/v0/tasks?detail=1", "/api/v0/nodes?detail=1", "/api/cluster_status",
    "/nodes?view=summary",
)  # fmt: skip


def test_no_secret_is_found_on_the_cluster(cluster):
    """After all that ran: neither the user's account, nor the node's, nor Ray's own token."""
    wanted = {"planted": PLANTED.encode(), "key": KEY.encode(), "Ray's": cluster.token.encode()}
    for page in PAGES:
        answer = str(cluster.get(page)).encode()
        assert len(answer) > 10, page
        assert not [name for name, secret in wanted.items() if secret in answer], page
    searched = {}
    for path in cluster.directory.glob("ray*/**/*"):
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
            searched[path.name] = path.read_bytes()
            found = [name for name, secret in wanted.items() if secret in searched[path.name]]
            assert not found, f"{found} in {path}"
    assert len(searched) > 50
    assert {"hello.py", "submit.py"} <= set(searched)  # what was sent is among them
