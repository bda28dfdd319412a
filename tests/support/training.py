"""Tiny runs of ``scripts/train.py``, in this process and as programs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as Python does for a script

from training.checkpoint import Checkpoint  # noqa: E402
from training.loop import Training  # noqa: E402
from training.options import Settings  # noqa: E402
from training.storage import RunFolder  # noqa: E402, F401

from qailab.backends import AerBackend  # noqa: E402

TINY = Settings(qubits=2, reps=1, shots=32, batch_size=40, lr=0.05, seed=3, samples=150, epochs=3)
STEPS = 3  # batches of an epoch of TINY: 120 training samples
DEADLINE = 180.0  # for one program; most of it is the start of Ray on a busy machine


def arguments_of(settings):
    """The command line that asks for these settings."""
    return [
        f"--{name.replace('_', '-')}={value}" for name, value in vars(settings).items() if value
    ]


def refusal_of(main, arguments, capsys):
    """The one line with which a program ends that does not take its options."""
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert (code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err


def trained(settings, start=None, steps=None):
    """The checkpoint after so many steps (of which a test is one), or at the end."""
    training = Training(settings, AerBackend(), start)
    for number, _ in enumerate(training.steps(), 1):
        if number == steps:
            break
    return training.checkpoint


def assert_same(one, other):
    """Assert that all which the weights depend on, and the metrics but for times, are equal."""
    assert one.progress.place == other.progress.place
    assert torch.equal(one.confusion, other.confusion)
    for mine, theirs in ((one.model, other.model), (states(one), states(other))):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    for mine, theirs in zip(one.history, other.history, strict=True):
        assert (mine.loss, mine.train_accuracy) == (theirs.loss, theirs.train_accuracy)
        assert (mine.test_loss, mine.rows) == (theirs.test_loss, theirs.rows)


def states(checkpoint):
    """The tensors of the optimizer's state."""
    state = checkpoint.optimizer["state"]
    return {(number, name): state[number][name] for number in state for name in state[number]}


def checkpoint_of(runs, name):
    """The checkpoint of a run in a folder of runs."""
    return Checkpoint.load(Path(runs, name, "checkpoint.pt"))


def start(cwd, script, *arguments, **environment):
    """Start a program of scripts/, as a user does."""
    given = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    given |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment}
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / script), *arguments],
        cwd=cwd,
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C of a terminal reaches the whole group
    )


def finish(program, seconds=DEADLINE):
    """Wait for its end: exit status, output and errors."""
    try:
        output, errors = program.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        raise
    return program.returncode, output, errors


def wait_for(condition, program=None):
    """Wait until something holds, and while the program runs."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline or (program is not None and program.poll() is not None):
            if program is not None and program.poll() is None:
                os.killpg(program.pid, signal.SIGKILL)
            raise AssertionError(program and program.communicate(timeout=DEADLINE))
        time.sleep(0.02)


def epochs_in(folder):
    """How many epochs a run has finished."""
    path = Path(folder, "metrics.jsonl")
    return len(path.read_text().splitlines()) if path.exists() else 0
