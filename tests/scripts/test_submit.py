"""``scripts/submit.py`` on a real cluster with a token, as a user starts it."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripts.local_cluster import LocalCluster, marked

pytestmark = [pytest.mark.ray, pytest.mark.integration]

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "scripts" / "submit.py"
DEADLINE = 120.0
PLANTED = f"planted-{secrets.token_hex(20)}"  # made here: this file is itself sent

HELLO = """
import os
import sys
import time

print("hello", os.environ["GREETED"], sorted(os.listdir()), flush=True)
for number in range(3):
    print("line", number, file=sys.stderr)
    time.sleep(0.2)
sys.exit(int(sys.argv[1]))
"""
LONG = """
import signal
import sys
import time


def save(*_):
    time.sleep(4)  # longer than the three seconds that Ray gives by default
    print("saved", flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, save)
print("working", flush=True)
time.sleep(120)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(cpus=2) as cluster:
        yield cluster
        assert len(marked(cluster.name)) > 3
    assert marked(cluster.name) == []


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean directory with two programs, and what must stay here."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "hello.py").write_text(HELLO)
    (folder / "long.py").write_text(LONG)
    (folder / ".env").write_text(f"QISKIT_IBM_TOKEN={PLANTED}\n")
    (folder / "data").mkdir()
    (folder / "data" / "numbers").write_text("1 2 3")
    return folder


def start(
    cluster: LocalCluster, project: Path, *arguments: str, **environment: str
) -> subprocess.Popen[str]:
    """Start the program; secrets of the user are in its environment."""
    given = cluster.client_environment(
        PYTHONPATH=str(ROOT),
        QISKIT_IBM_TOKEN=PLANTED,
        RAY_API_SERVER_ADDRESS=cluster.dashboard,
        NO_PROXY="127.0.0.1",
    )
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=project,
        env=given | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        output, errors = program.communicate(timeout=DEADLINE)
    finally:
        program.kill()
        program.wait()
    assert "Traceback" not in errors, errors
    assert PLANTED not in output + errors
    return program.returncode, output, errors


def run(
    cluster: LocalCluster, project: Path, *arguments: str, **environment: str
) -> tuple[int, str, str]:
    return finish(start(cluster, project, *arguments, **environment))


def read_until(program: subprocess.Popen[str], wanted: str) -> str:
    """What it prints, up to this; pytest's own deadline ends it if that does not come."""
    assert program.stdout is not None
    seen = ""
    while wanted not in seen:
        line = program.stdout.readline()
        if not line:
            raise AssertionError(f"{wanted!r} did not come: {seen}{finish(program)}")
        seen += line
    return seen


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of all jobs: the directory, and a variable."""
    variables = tmp_path_factory.mktemp("variables") / "variables"
    variables.write_text("GREETED='whole world'\n")
    return ("--working-dir", ".", "--env-file", str(variables))


@pytest.fixture(scope="module")
def good(cluster: LocalCluster, project: Path, sent: tuple[str, ...]) -> tuple[int, str, str]:
    """The job of this name: its exit status, output and errors."""
    return run(cluster, project, *sent, "--name", "good", "--", "hello.py", "0")


def test_a_job_runs_in_what_was_sent_and_its_end_is_ours(
    cluster: LocalCluster, project: Path, sent: tuple[str, ...], good: tuple[int, str, str]
) -> None:
    bad = start(cluster, project, *sent, "--no-pip", "--name", "bad", "--", "hello.py", "3")
    said = "import os, sys; os.write(1, bytes([255, 10])); sys.exit(4)"  # no UTF-8
    raw = start(cluster, project, "--no-pip", "--name", "raw", "--", "python", "-c", said)
    status, output, errors = good
    assert status == 0, errors
    # Both streams, in order; neither the secret nor the data went.
    assert re.search(
        r"hello whole world \['hello.py', 'long.py'\]\nline 0\nline 1\nline 2\n", output
    ), output
    assert output.count("line 1") == 1
    assert "left out, as they look like secrets: .env" in errors
    assert "job good submitted" in errors
    assert "job good succeeded after" in errors

    status, output, errors = finish(bad)
    assert (status, output.count("line 2")) == (3, 1)
    assert "job bad failed with exit status 3" in errors
    status, _, errors = finish(raw)
    assert status == 4, errors
    assert "the output of job raw cannot be read" in errors
    status, output, _ = run(cluster, project, "status", "bad")
    assert status == 0
    assert "bad  FAILED (exit status 3)" in output
    status, output, _ = run(cluster, project, "logs", "good")
    assert "line 2" in output

    status, _, errors = run(
        cluster, project, *sent, "--no-pip", "--name", "bad", "--", "hello.py", "3"
    )
    assert status == 2
    assert "has a job of this name already" in errors


def test_ctrl_c_detaches_and_stop_lets_the_job_save(cluster: LocalCluster, project: Path) -> None:
    followed = start(
        cluster, project, "--working-dir", ".", "--no-pip", "--name", "long", "--", "long.py"
    )
    read_until(followed, "working\n")
    followed.send_signal(signal.SIGINT)
    status, _, errors = finish(followed)
    assert status == 130
    assert "detached; job long goes on" in errors
    assert "scripts/submit logs --follow long" in errors
    assert "scripts/submit stop long" in errors

    status, output, _ = run(cluster, project, "list")
    assert status == 0
    assert re.search(r"^long  RUNNING .* python long.py$", output, re.MULTILINE)
    assert "probe" not in output

    following = start(cluster, project, "logs", "--follow", "long")
    read_until(following, "working\n")
    status, _, errors = run(cluster, project, "stop", "long")
    assert (status, "job long: STOPPED" in errors) == (0, True)
    assert "job long is asked to stop; it has 30 s to save" in errors
    status, output, errors = finish(following)
    assert status == 143
    assert output == "saved\n"
    assert "job long was stopped" in errors


def test_no_wait_tells_how_to_follow(cluster: LocalCluster, project: Path) -> None:
    status, output, errors = run(
        cluster, project, "--working-dir", ".", "--no-pip", "--no-wait", "--", "sleep", "300"
    )
    assert (status, output) == (0, "")
    found = re.search(r"logs --follow (sleep-\S+)", errors)
    assert found
    status, output, _ = run(cluster, project, "status")  # the latest
    assert output.startswith(found[1])
    assert run(cluster, project, "stop", found[1])[0] == 0
    status, _, errors = run(cluster, project, "stop", "another")
    assert status == 2
    assert f"no job another; its latest: {found[1]}" in errors


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RAY_AUTH_TOKEN": "wrong" * 8}, "does not accept the token of RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN_PATH": ""}, "RAY_AUTH_MODE is token, and there is none"),
        ({"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN_PATH": ""}, "wants a token, and there is none"),
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is disabled"),
        ({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}, "no Ray dashboard answers at"),
        ({"RAY_API_SERVER_ADDRESS": "gcs"}, "does not speak HTTP"),
    ],
)
def test_a_wrong_token_or_address_is_told(
    environment: dict[str, str], said: str, cluster: LocalCluster, project: Path
) -> None:
    if environment.get("RAY_API_SERVER_ADDRESS") == "gcs":
        environment = {"RAY_API_SERVER_ADDRESS": cluster.address}  # that of ray.init
    status, output, errors = run(
        cluster, project, "--working-dir", ".", "--", "hello.py", "0", **environment
    )
    assert status == 1
    assert said in errors
    assert output == ""
    assert cluster.token not in errors
    assert "wrongwrong" not in errors


@pytest.mark.slow
def test_training_begins_without_installing_anything(cluster: LocalCluster, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    training = ("scripts/train.py", "--samples", "60", "--epochs", "1", "--actors", "1")
    began = time.monotonic()
    program = start(cluster, tmp_path, "--name", "train", "--", *training, "--runs-dir", str(runs))
    read_until(program, "Running entrypoint")
    first = time.monotonic() - began
    # The first line about training comes after its first epoch, here of two steps.
    read_until(program, "epoch 1/1")
    epoch = time.monotonic() - began
    status, _, errors = finish(program)
    assert status == 0, errors
    assert "it has what pyproject.toml asks for" in errors
    print(f"first output after {first:.1f} s, first epoch after {epoch:.1f} s")
    assert list(runs.glob("*/checkpoint.pt"))


PAGES = (
    "/api/jobs/", "/api/jobs/good", "/api/jobs/good/logs", "/api/v0/jobs?detail=1",
    "/api/v0/actors?detail=1", "/api/v0/runtime_envs?detail=1", "/api/v0/workers?detail=1",
    "/api/v0/tasks?detail=1", "/api/v0/nodes?detail=1", "/api/cluster_status",
    "/nodes?view=summary",
)  # fmt: skip


def test_no_secret_is_found_on_the_cluster(
    cluster: LocalCluster, good: tuple[int, str, str]
) -> None:
    """After all that ran: neither the user's account nor Ray's own token."""
    wanted = {"planted": PLANTED.encode(), "Ray's": cluster.token.encode()}
    for page in PAGES:
        answer = str(cluster.get(page))
        assert len(answer) > 10, page
        for name, secret in wanted.items():
            assert secret.decode() not in answer, f"{name} in {page}"
    searched = 0
    for path in (cluster.directory / "ray").rglob("*"):
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
            found = [name for name, secret in wanted.items() if secret in contents(path)]
            assert not found, f"{found} in {path}"
            searched += 1
    assert searched > 50


def contents(path: Path) -> bytes:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return b"".join(map(archive.read, archive.namelist()))
    return path.read_bytes()
