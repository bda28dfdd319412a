"""``scripts/train.py`` as a user starts it: stopped, killed, submitted again, and on hardware."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

from qailab.journal import Journal
from qailab.rehearsal import RehearsalServer
from tests.support.training import (
    DEADLINE,
    SCRIPTS,
    TINY,
    RunFolder,
    Settings,
    arguments_of,
    assert_same,
    checkpoint_of,
    epochs_in,
    finish,
    start,
    trained,
    wait_for,
)

# Learns enough to be far above chance, and takes long enough to be stopped.
SMALL = Settings(qubits=3, reps=1, shots=64, samples=300, lr=0.05, seed=3, batch_size=8, epochs=6)
ARGUMENTS = arguments_of(SMALL)
TOKEN = "a-token-that-must-be-seen-nowhere"
DEVICES = ("ibm_lagos", "ibm_nairobi")
PASSES = 2 * (2 + 1)  # epochs: two steps of one evaluation each, and one test
ON_DEVICES = [
    "--backend=ibm", f"--devices={','.join(DEVICES)}", "--qubits=2", "--reps=1", "--shots=32",
    "--epochs=2", "--seed=3", "--backend-options={\"poll_interval\": 0.1}",
]  # fmt: skip

pytestmark = pytest.mark.timeout(4 * DEADLINE)


def test_after_ctrl_c_and_kill_9_a_run_goes_on_elsewhere_to_the_same_weights(tmp_path, shared_ray):
    """In process, nothing happened to it: actors give the same bits."""
    storage, folder = tmp_path / "shared", tmp_path / "shared" / "mine"
    command = ["train.py", *ARGUMENTS, "--name=mine", "--storage=shared", "--actors=1"]
    program = start(tmp_path, *command)
    wait_for(lambda: epochs_in(folder) >= 1, program)
    os.killpg(program.pid, signal.SIGINT)  # a terminal sends it to Ray's processes as well
    code, output, errors = finish(program)
    assert code == 128 + signal.SIGINT, errors
    assert output.startswith("Run shared/mine: epochs 1 to 6 on 1 x aer; starting")
    stopped = checkpoint_of(storage, "mine").progress.epoch
    assert 1 <= stopped < SMALL.epochs - 2

    program = start(tmp_path, *command, **shared_ray)
    wait_for(lambda: epochs_in(folder) > stopped, program)
    program.kill()
    assert finish(program)[0] == -signal.SIGKILL
    killed = checkpoint_of(storage, "mine").progress.epoch
    assert stopped <= killed < SMALL.epochs  # else it came too late

    resume = ["--resume=mine", "--storage=shared", "--actors=2"]
    code, output, errors = finish(start(tmp_path, "train.py", *resume, **shared_ray))
    assert code == 0, errors
    assert f"Run shared/mine: epochs {killed + 1} to 6" in output
    ended, whole = checkpoint_of(storage, "mine"), trained(SMALL)
    assert_same(ended, whole)
    accuracy = whole.history[-1].test_accuracy
    assert accuracy > 0.4  # chance is 0.1, and its standard error on 60 samples 0.04
    assert f"Test accuracy {accuracy:.4f}" in output
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pt", "config.json", "confusion.png", "curves.png", "metrics.jsonl",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [dataclasses.asdict(metrics) for metrics in ended.history]


def test_nothing_slow_is_imported_before_the_first_line_nor_what_nobody_needs(tmp_path):
    program = (
        "import sys, train, training.options; early = set(sys.modules)\n"
        "import training.backends, training.loop, training.report\n"
        "settings = training.options.Settings(qubits=2, samples=50)\n"
        "simulator = training.backends.make_simulator(settings)\n"
        "next(training.loop.Training(settings, simulator).steps())\n"
        "unwanted = 'ray', 'sklearn', 'scipy.stats', 'pandas', 'matplotlib', 'qiskit_ibm_runtime'\n"
        "print([n for n in ('torch', 'ray', 'qiskit', 'sklearn', 'numpy') if n in early],"
        " [n for n in unwanted if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.stdout.strip() == "[] []", done.stderr


def test_on_hardware_a_killed_run_pays_no_row_twice_and_a_spent_budget_can_grow(tmp_path):
    with RehearsalServer(("lagos", "nairobi"), seed=5, token=TOKEN) as server:
        environment = server.environment
        program = start(
            tmp_path, "train.py", *ON_DEVICES, "--name=mine", "--budget-seconds=900", **environment
        )
        wait_for(lambda: len(server.jobs) >= 3, program)  # in the second step
        os.killpg(program.pid, signal.SIGKILL)
        finish(program)
        assert checkpoint_of(tmp_path / "runs", "mine").progress.place < (1, 0)

        resume = ["train.py", "--resume=mine", *ON_DEVICES[1:2], *ON_DEVICES[-1:]]
        code, _, errors = finish(start(tmp_path, *resume, "--budget-seconds=20", **environment))
        assert code == 1, errors
        assert "\nIts jobs: python -m qailab.journal" in errors
        assert "does not fit the budget" in errors
        code, output, errors = finish(
            start(tmp_path, *resume, "--budget-seconds=900", **environment)
        )
        assert code == 0, errors
        assert len(server.jobs) == len(DEVICES) * PASSES
        assert not server.duplicates()
        assert checkpoint_of(tmp_path / "runs", "mine").history[-1].qpu_seconds > 0
        # Those of the program that was killed end by their own time.
        assert all(session.state == "closed" for session in server.sessions[-2:])
    with Journal(tmp_path / "runs" / "mine" / "journal.sqlite") as journal:
        assert journal.totals().jobs == len(server.jobs)
    assert TOKEN not in output + errors
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


KILLED = """
import os, signal, sys, threading
from qailab.backends import IBMBackend
from qailab.backends.base import evaluate
from tests.support.ibm import gradient_rows

backend = IBMBackend("ibm_lagos", journal=sys.argv[1], poll_interval=0.1)
evaluate(backend, *gradient_rows(), threading.Event())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_finished_run_has_left_open_is_named_or_closed(tmp_path):
    """A session, where ``kill -9`` came between the last step and the end."""
    tiny = dataclasses.replace(TINY, epochs=1)
    finished = dataclasses.replace(trained(tiny), settings=dataclasses.replace(tiny, backend="ibm"))
    folder = RunFolder(str(tmp_path / "runs"), "mine")
    finished.save(folder)
    with RehearsalServer(("lagos",), seed=5, token=TOKEN) as server:
        killed = [sys.executable, "-c", KILLED, folder.journal]
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), **server.environment}
        done = subprocess.run(killed, env=environment, timeout=DEADLINE)
        assert done.returncode == -signal.SIGKILL
        (session,) = server.sessions
        resume = ["train.py", "--resume=mine"]
        refused = {**server.environment, "QISKIT_IBM_TOKEN": "of-somebody-else"}
        code, _, errors = finish(start(tmp_path, *resume, **refused))
        assert code == 0, errors
        assert f"session {session.id} of ibm_lagos was left open" in errors
        assert "refuses the API key" in errors
        assert session.state == "active"
        code, output, errors = finish(start(tmp_path, *resume, **server.environment))
        assert code == 0, errors
        assert "has had all its epochs" in output
        assert "left open" not in errors
        assert [each.state for each in server.sessions] == ["closed"]
