"""What stops ``scripts/train.py``, in this process, with a pool that is one simulator."""

import os
import signal
from pathlib import Path

import pytest
from train import main

from qailab.backends import AerBackend
from qailab.errors import PoolError, PoolExhaustedError
from tests.support.training import STEPS, TINY, arguments_of, assert_same, checkpoint_of


class OneSimulator(AerBackend):
    """Takes the place of a pool, and fails in the backward pass of a certain step."""

    def __init__(self, backends, *, address, actor_options, progress):
        super().__init__()
        self.submitted = 0

    def submit(self, circuit, batch):
        self.submitted += 1
        if self.submitted == 2 * STEPS + 1 + 4:  # second epoch, second step, backward
            self.fail()
        return super().submit(circuit, batch)

    def fail(self):
        """Do nothing; tests replace it."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def pool(monkeypatch, tmp_path):
    """The class of the pool, in an empty folder."""
    pool = type("Pool", (OneSimulator,), {})
    monkeypatch.setattr("training.backends.LauncherPool", pool)
    draw = "matplotlib.figure.Figure.savefig"  # what the pictures show is in test_train.py
    monkeypatch.setattr(draw, lambda self, file, **_: file.write(b"."))
    monkeypatch.chdir(tmp_path)
    return pool


def raising(error):
    def fail(_):
        raise error

    return fail


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_saves_the_state_before_it(number, pool, whole, capsys):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    pool.fail = lambda _: os.kill(os.getpid(), number)
    given = [*arguments_of(TINY), "--storage=my runs", "--actors=2"]
    assert main([*given, "--name=mine"]) == 128 + number
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    errors = capsys.readouterr().err
    assert "Stopped after 1 of 3 epochs and 1 steps; saved in my runs/mine. To go on:\n" in errors
    assert "  scripts/train --resume mine " in errors
    assert "'--storage=my runs' --actors=2\n" in errors

    del pool.fail
    assert main(["--resume=my runs/mine"]) == 0
    assert "epochs 2 to 3" in capsys.readouterr().out
    assert_same(checkpoint_of("my runs", "mine"), whole)


def test_an_error_in_a_step_ends_with_its_message_and_a_checkpoint(pool, whole, capsys):
    pool.fail = raising(PoolExhaustedError("no actor is left"))
    arguments = [*arguments_of(TINY), "--name=mine"]
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert errors.index("saved in runs/mine") < errors.index("train: error: no actor is left")
    del pool.fail
    assert main(arguments) == 0  # submitted again as it was
    assert_same(checkpoint_of("runs", "mine"), whole)


def test_a_full_disk_keeps_the_last_checkpoint(pool, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    pool.fail = lambda _: monkeypatch.setattr("training.storage.RunFolder.write", full)
    assert main([*arguments_of(TINY), "--name=mine"]) == 1
    errors = capsys.readouterr().err
    assert "runs/mine keeps its last checkpoint, for this one cannot be saved" in errors
    assert "train: error: [Errno 28] No space left on device" in errors
    assert checkpoint_of("runs", "mine").progress.place == (1, 0)


def test_a_pool_that_cannot_start_leaves_no_run(pool, capsys):
    pool.__init__ = lambda *_, **__: raising(PoolError("no Ray cluster answers"))(None)
    assert main([*arguments_of(TINY), "--address=127.0.0.1:1"]) == 1
    assert "train: error: no Ray cluster answers" in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_a_finished_run_starts_nothing_and_may_go_on(pool, whole, capsys):
    arguments = [*arguments_of(TINY), "--name=mine"]
    assert main(arguments) == 0
    Path("runs/mine/curves.png").unlink()
    pool.__init__ = lambda *_, **__: raising(AssertionError("started"))(None)
    assert main([*arguments, "--compare=runs/mine"]) == 0
    output = capsys.readouterr().out
    assert "The run runs/mine has had all its epochs" in output
    assert "curves.png, confusion.png, compared.png, checkpoint.pt" in output
    assert Path("runs/mine/curves.png").is_file()
    assert Path("runs/mine/compared.png").is_file()
    del pool.__init__
    assert main(["--resume=mine", "--epochs=4"]) == 0
    history = checkpoint_of("runs", "mine").history
    assert [metrics.test_loss for metrics in history[:3]] == [m.test_loss for m in whole.history]
