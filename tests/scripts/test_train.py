"""``scripts/train.py``: whole runs as a user starts them, and the trainer in this process."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "scripts" / "train.py"
sys.path.insert(0, str(PROGRAM.parent))  # as Python does for a script

from train import main  # noqa: E402
from training.data import Digits  # noqa: E402
from training.model import HybridClassifier, make_backend  # noqa: E402
from training.options import Config, parse  # noqa: E402
from training.report import draw_confusion, draw_curves  # noqa: E402
from training.runs import Checkpoint, RunFolder  # noqa: E402
from training.trainer import Trainer  # noqa: E402

from qailab.backends import AerBackend  # noqa: E402
from qailab.errors import (  # noqa: E402
    BackendError,
    CheckpointError,
    EvaluationError,
    InputError,
    PoolError,
    PoolExhaustedError,
)


def arguments_of(config: Config) -> list[str]:
    """The command line that asks for these settings."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in vars(config).items()]


TINY = Config(qubits=2, reps=1, shots=32, batch_size=40, lr=0.05, seed=3, samples=150, epochs=3)
STEPS = 3  # batches of an epoch of TINY: 120 training samples
# Learns enough to be far above chance in a few seconds, and takes long enough to be interrupted.
SMALL_CONFIG = Config(
    qubits=3, reps=1, shots=64, samples=300, lr=0.05, seed=3, batch_size=8, epochs=6
)
SMALL = arguments_of(SMALL_CONFIG)
DEADLINE = 60.0


# The trainer, in this process.


class Stopped(Exception):
    """Raised in the middle of a run."""


def make_trainer(path: Path, config: Config = TINY, resume: Checkpoint | None = None) -> Trainer:
    model = HybridClassifier(config, make_backend(config.backend))
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    return Trainer(
        model, Digits.load(config.samples), config, folder, count_rows=lambda: 0, resume=resume
    )


def stop_after(trainer: Trainer, steps: int) -> None:
    """Run, raising in the callback after so many steps."""
    left = iter(range(1, steps))
    with pytest.raises(Stopped):
        trainer.run(on_batch=lambda _: None if next(left, None) else throw(Stopped()))


def throw(error: BaseException) -> None:
    raise error


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    """All that the weights depend on, and the metrics but for times, bit for bit."""
    assert one.progress.epoch == other.progress.epoch
    assert_equal(one.model, other.model)
    assert_equal(one.optimizer, other.optimizer)
    assert torch.equal(one.confusion, other.confusion)
    for mine, theirs in zip(one.history, other.history, strict=True):
        assert mine.loss == theirs.loss
        assert mine.test_loss == theirs.test_loss
        assert mine.train_accuracy == theirs.train_accuracy


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    else:
        assert one == other


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The run that nothing happened to."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    trainer.run()
    return trainer.checkpoint


@pytest.mark.parametrize("steps", range(1, STEPS * TINY.epochs + 1))
def test_resumed_after_any_step_ends_with_the_same_weights(
    steps: int, whole: Checkpoint, tmp_path: Path
) -> None:
    stopped = make_trainer(tmp_path)
    stop_after(stopped, steps)
    RunFolder(tmp_path).save(stopped.checkpoint)

    loaded = RunFolder(tmp_path).load({})
    assert loaded.progress.epoch * STEPS + loaded.progress.batch == steps
    resumed = make_trainer(tmp_path, resume=loaded)
    resumed.run()

    assert_same(resumed.checkpoint, whole)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == TINY.epochs


def test_a_killed_run_goes_on_from_its_last_epoch(whole: Checkpoint, tmp_path: Path) -> None:
    stop_after(make_trainer(tmp_path), STEPS + 2)  # nothing is saved, as with kill -9
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "lo')  # nor is the file's end to be trusted

    loaded = RunFolder(tmp_path).load({})
    assert (loaded.progress.epoch, loaded.progress.batch) == (1, 0)
    resumed = make_trainer(tmp_path, resume=loaded)
    resumed.run()

    assert_same(resumed.checkpoint, whole)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("where", ["forward", "backward", "optimizer"])
def test_an_error_within_a_step_leaves_the_state_before_it(
    where: str, whole: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)
    failing = {
        "forward": (trainer._model.circuit, "_probabilities"),
        "backward": (torch.Tensor, "backward"),
        "optimizer": (trainer._optimizer, "step"),
    }[where]
    original, calls = getattr(*failing), []

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        result = original(*arguments)  # what it changes is changed
        return throw(EvaluationError("no more")) if len(calls) == 3 else result

    with monkeypatch.context() as patch:
        patch.setattr(*failing, fail)
        with pytest.raises(EvaluationError):
            trainer.run()

    resumed = make_trainer(tmp_path, resume=trainer.checkpoint)
    resumed.run()
    assert trainer.checkpoint.progress.batch == 2
    assert_same(resumed.checkpoint, whole)


def test_more_epochs_later_are_the_same_as_more_epochs_at_once(
    whole: Checkpoint, tmp_path: Path
) -> None:
    make_trainer(tmp_path, Config(**{**vars(TINY), "epochs": 2})).run()
    loaded = RunFolder(tmp_path).load({"epochs": 3})
    resumed = make_trainer(tmp_path, loaded.config, resume=loaded)
    resumed.run()
    assert_same(resumed.checkpoint, whole)
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 3


def test_a_finished_run_is_left_as_it_is(whole: Checkpoint, tmp_path: Path) -> None:
    make_trainer(tmp_path).run()
    resumed = make_trainer(tmp_path, resume=RunFolder(tmp_path).load({}))
    resumed.run()
    assert_same(resumed.checkpoint, whole)


def test_another_seed_gives_other_weights(whole: Checkpoint, tmp_path: Path) -> None:
    other = make_trainer(tmp_path, Config(**{**vars(TINY), "seed": 4, "epochs": 1}))
    other.run()
    assert not torch.equal(other.checkpoint.model["circuit.weight"], whole.model["circuit.weight"])


def test_noise_makes_a_difference_and_trains(tmp_path: Path) -> None:
    runs = {}
    for kind in ("aer", "aer-noisy"):
        config = Config(**{**vars(TINY), "backend": kind, "epochs": 1})
        trainer = make_trainer(tmp_path / kind, config)
        trainer.run()
        runs[kind] = trainer.checkpoint
        assert math.isfinite(trainer.checkpoint.history[-1].test_loss)
    assert not torch.equal(
        runs["aer"].model["circuit.weight"], runs["aer-noisy"].model["circuit.weight"]
    )


# Checkpoints that cannot be used.


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that has stopped in its second epoch."""
    trainer = make_trainer(tmp_path / "mine")
    stop_after(trainer, STEPS + 1)
    folder = RunFolder(tmp_path / "mine")
    folder.save(trainer.checkpoint)
    return folder


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"qubits": 4}, "qubits is 2 in the run .*mine, but 4 in the command line"),
        ({"reps": 3}, "reps is 1 in the run .*mine, but 3"),
        ({"seed": 8, "lr": 0.5}, "lr is 0.05 .* but 0.5 .*; seed is 3 .* but 8|seed is 3 .*; lr"),
        ({"epochs": 1}, "already begun epoch 2, so --epochs 1"),
    ],
)
def test_other_settings_than_the_run_s_are_refused(
    given: dict[str, Any], message: str, run: RunFolder
) -> None:
    with pytest.raises(CheckpointError, match=message):
        run.load(given)


def test_the_run_s_own_settings_may_be_repeated(run: RunFolder) -> None:
    assert run.load({"qubits": 2, "lr": 0.05}).config == TINY


def test_a_config_file_of_another_architecture_is_refused(run: RunFolder) -> None:
    path = run.path / "config.json"
    path.write_text(path.read_text().replace('"qubits": 2', '"qubits": 5'))
    with pytest.raises(CheckpointError, match=r"qubits is 2 in .*checkpoint.pt, but 5 in .*config"):
        run.load({})


def test_weights_of_another_architecture_are_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit the model"):
        make_trainer(tmp_path, Config(**{**vars(TINY), "reps": 2}), resume=run.load({}))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip file"])
def test_a_damaged_checkpoint_is_refused(content: bytes, run: RunFolder) -> None:
    run.checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be read"):
        run.load({})


def test_a_checkpoint_is_never_code(run: RunFolder) -> None:
    torch.save({"config": Path("/")}, run.checkpoint)
    with pytest.raises(CheckpointError, match="cannot be read"):
        run.load({})


def test_settings_of_another_version_are_refused(run: RunFolder) -> None:
    (run.path / "config.json").write_text('{"depth": 3}')
    with pytest.raises(
        CheckpointError, match=r"must hold the settings .*'qubits'.* got \['depth'\]"
    ):
        run.load({})


def test_a_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*checkpoint\.pt"):
        RunFolder.find(tmp_path.parent, tmp_path.name).load({})


def test_an_unknown_run_is_refused_and_the_known_ones_listed(run: RunFolder) -> None:
    with pytest.raises(CheckpointError, match=r"no run 'yours'.* runs there: mine"):
        RunFolder.find(run.path.parent, "yours")


def test_a_run_is_found_by_name_and_by_path(run: RunFolder) -> None:
    assert RunFolder.find(run.path.parent, "mine") == run
    assert RunFolder.find(Path("nowhere"), str(run.path)) == run


def test_a_name_in_use_is_refused(run: RunFolder) -> None:
    with pytest.raises(InputError, match=r"already something at .*--resume mine"):
        RunFolder.new(run.path.parent, "mine")
    with pytest.raises(InputError, match="already something at"):
        run.create()


# Options.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shots", "0"], "--shots must be at least 1, got 0"),
        (["--shots=-5"], "--shots must be at least 1, got -5"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--qubits", "0"], "--qubits must be at least 1, got 0"),
        (["--qubits", "17"], "--qubits must be at most 16, got 17"),
        (["--reps", "0"], "--reps must be at least 1, got 0"),
        (["--actors", "0"], "--actors must be at least 1, got 0"),
        (["--lr", "0"], "--lr must be positive and finite, got 0.0"),
        (["--lr", "nan"], "--lr must be positive and finite, got nan"),
        (["--seed=-1"], r"--seed must be in \[0, 2\*\*63\), got -1"),
        (["--samples", "99"], "--samples must be at least 100, got 99"),
        (["--name", "a/b"], "--name must be a plain folder name, got 'a/b'"),
        (["--name", "a", "--resume", "b"], "either --name .* or --resume"),
    ],
)
def test_options_out_of_range_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(arguments, "")


def test_a_backend_that_does_not_exist_is_refused_with_the_valid_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["--backend", "ibm"], "")
    error = capsys.readouterr().err
    assert "'ibm'" in error
    assert "aer-noisy" in error


def test_too_many_samples_are_refused() -> None:
    with pytest.raises(InputError, match="--samples must be at most 1797, got 2000"):
        Digits.load(2000)


def test_a_circuit_that_does_not_fit_is_refused_before_anything_runs() -> None:
    noisy = make_backend("aer-noisy")
    noisy.max_memory_mb = 1
    with pytest.raises(BackendError, match="needs"):
        HybridClassifier(Config(qubits=9), noisy)


# Data.


def test_the_split_is_stratified_and_the_same_every_time() -> None:
    one, other = Digits.load(), Digits.load()
    assert torch.equal(one.test_images, other.test_images)
    assert len(one.train_labels) + len(one.test_labels) == 1797
    counts = torch.bincount(one.test_labels, minlength=10)
    assert counts.min() >= 34
    assert one.train_images.min() == 0.0
    assert one.train_images.max() == 1.0


def test_batches_are_a_permutation_that_depends_on_seed_and_epoch() -> None:
    digits = Digits.load(100)
    first = torch.cat(digits.batches(1, 0, 7))
    assert sorted(first.tolist()) == list(range(80))
    assert torch.equal(first, torch.cat(digits.batches(1, 0, 7)))
    assert not torch.equal(first, torch.cat(digits.batches(1, 1, 7)))
    assert not torch.equal(first, torch.cat(digits.batches(2, 0, 7)))
    digits.batches(2**63 - 1, 1000, 7)


# Pictures.


def test_pictures_have_titles_axes_and_the_counts(whole: Checkpoint) -> None:
    curves = draw_curves(whole.history)
    loss, accuracy = curves.axes
    assert loss.get_xlabel() == accuracy.get_xlabel() == "epoch"
    assert "nats" in loss.get_ylabel()
    counts = np.diag(np.arange(1, 11)) + np.eye(10, k=1, dtype=int)
    (cells,) = draw_confusion(counts).axes
    shown = sorted(int(text.get_text()) for text in cells.texts)
    assert shown == sorted(counts[counts > 0].tolist())
    assert "55 of 64" in cells.get_title(loc="left")


# The program, in this process, with a pool that is none.


class InProcessPool(AerBackend):
    """A pool of one simulator in this process, which can be made to fail."""

    during: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def __init__(self, backends: list[AerBackend], *, address: str | None) -> None:
        super().__init__()
        self.submitted = 0

    def submit(self, circuit: Any, batch: Any) -> Any:
        self.submitted += 1
        if self.submitted == 2 * STEPS + 4:  # the backward pass of the second epoch's second step
            type(self).during()
        return super().submit(circuit, batch)

    def stats(self) -> dict[str, int]:
        return {"rows": self.submitted}

    def __enter__(self) -> InProcessPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[InProcessPool]]:
    """Runs without Ray, in an empty folder; what the program sets for its process is undone."""
    pool = type("Pool", (InProcessPool,), {})
    monkeypatch.setattr("training.session.LauncherPool", pool)
    monkeypatch.chdir(tmp_path)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield pool
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_a_pool_that_fails_in_a_step_ends_with_its_message_and_a_checkpoint(
    in_process: type[InProcessPool],
    whole: Checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_process.during = lambda: throw(PoolExhaustedError("no actor of 2 is left to run on"))
    assert main([*arguments_of(TINY), "--name=mine"]) == 1
    errors = capsys.readouterr().err
    assert "Stopped after 1 of 3 epochs and 1 of 3 steps; saved in runs/mine" in errors
    assert "--resume mine" in errors
    assert "train: error: no actor of 2 is left to run on" in errors

    del in_process.during
    assert main(["--resume=mine"]) == 0
    assert "from epoch 2, step 2" in capsys.readouterr().out
    assert_same(Checkpoint.load(Path("runs/mine/checkpoint.pt")), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_saves_the_state_before_it(
    number: signal.Signals,
    in_process: type[InProcessPool],
    whole: Checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    in_process.during = lambda: os.kill(os.getpid(), number)
    assert (
        main([*arguments_of(TINY), "--name=mine", "--runs-dir=my runs", "--actors=2"])
        == 128 + number
    )
    assert handlers == [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    errors = capsys.readouterr().err
    assert "and 1 of 3 steps; saved in my runs/mine" in errors
    assert "--resume mine --runs-dir 'my runs' --actors 2\n" in errors
    assert f"train: ended by {number.name}" in errors

    del in_process.during
    assert main(["--resume=my runs/mine"]) == 0
    assert_same(Checkpoint.load(Path("my runs/mine/checkpoint.pt")), whole)


def test_a_pool_that_cannot_start_leaves_no_run(
    monkeypatch: pytest.MonkeyPatch,
    in_process: type[InProcessPool],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PoolError("no Ray cluster answers at '127.0.0.1:1'")

    monkeypatch.setattr("training.session.LauncherPool", fail)
    assert main([*arguments_of(TINY), "--address=127.0.0.1:1"]) == 1
    assert "train: error: no Ray cluster answers" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shots=0"], "train: error: --shots must be at least 1, got 0"),
        (["--resume=nothing"], "train: error: there is no run 'nothing'"),
        (["--resume=mine", "--qubits=4"], "qubits is 2 in the run runs/mine, but 4 in the command"),
        (["--name=mine"], "there is already something at runs/mine"),
    ],
)
def test_wrong_input_ends_with_a_message_before_anything_is_changed(
    arguments: list[str],
    message: str,
    in_process: type[InProcessPool],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_trainer(tmp_path / "runs" / "mine").run()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# Whole programs.


def start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C of a terminal reaches the whole group
    )


def finish(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        output, errors = program.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        raise
    assert "Traceback" not in errors
    return program.returncode, output, errors


def wait_for(program: subprocess.Popen[str], path: Path, text: str) -> None:
    """Wait until a file of the run holds the text."""
    deadline = time.monotonic() + DEADLINE
    while not (path.exists() and text in path.read_text()):
        if program.poll() is not None or time.monotonic() > deadline:
            os.killpg(program.pid, signal.SIGKILL)
            pytest.fail(f"no {text!r} in {path}: {program.communicate(timeout=DEADLINE)}")
        time.sleep(0.02)


@pytest.fixture(scope="module")
def program_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A whole program, on one actor."""
    cwd = tmp_path_factory.mktemp("program")
    code, output, errors = finish(start(cwd, *SMALL, "--name=whole", "--actors=1"))
    assert code == 0, errors
    return cwd / "runs" / "whole", output, errors


@pytest.mark.integration
@pytest.mark.slow
def test_a_run_leaves_its_files_and_learns(program_run: tuple[Path, str, str]) -> None:
    folder, output, errors = program_run
    for name in ("confusion.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pt", "config.json", "confusion.png", "curves.png", "metrics.jsonl",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["rows"] > 0 and line["rows_per_second"] > 0 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    accuracy = lines[-1]["test_accuracy"]
    assert accuracy > 0.4  # chance is 0.1, and its standard error on 60 samples 0.04
    assert f"Test accuracy {accuracy:.4f}" in output
    assert len(re.findall(r"^epoch \d/6  loss .* rows/s", errors, re.MULTILINE)) == 6


@pytest.mark.integration
@pytest.mark.slow
def test_a_program_after_ctrl_c_resumes_to_the_same_weights(
    program_run: tuple[Path, str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "stopped"
    program = start(tmp_path, *SMALL, "--name=stopped", "--actors=1")
    wait_for(program, folder / "metrics.jsonl", '"epoch": 2')
    os.killpg(program.pid, signal.SIGINT)  # a terminal sends it to Ray's processes as well
    code, _, errors = finish(program)

    assert code == 128 + signal.SIGINT
    stopped = Checkpoint.load(folder / "checkpoint.pt")
    assert 2 <= stopped.progress.epoch < SMALL_CONFIG.epochs
    command = errors.split("To go on:")[1].splitlines()[1].split()
    assert command[-4:] == ["--resume", "stopped", "--actors", "1"]

    # On another number of actors: neither the stop nor they make a difference.
    code, _, errors = finish(start(tmp_path, "--resume=stopped", "--actors=2"))
    assert code == 0, errors
    assert_same(
        Checkpoint.load(folder / "checkpoint.pt"),
        Checkpoint.load(program_run[0] / "checkpoint.pt"),
    )


@pytest.mark.integration
@pytest.mark.slow
def test_a_program_after_kill_9_resumes_to_the_same_weights(
    program_run: tuple[Path, str, str], tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "killed"
    program = start(tmp_path, *SMALL, "--name=killed", "--actors=1")
    wait_for(program, path / "metrics.jsonl", '"epoch": 2')
    program.kill()
    code, _, _ = finish(program)
    assert code == -signal.SIGKILL

    loaded = RunFolder(path).load({})
    assert 2 <= loaded.progress.epoch < SMALL_CONFIG.epochs
    # Without Ray: the simulator of this process gives the same bits as actors.
    resumed = make_trainer(path, loaded.config, resume=loaded)
    resumed.run()
    assert_same(resumed.checkpoint, Checkpoint.load(program_run[0] / "checkpoint.pt"))


@pytest.mark.integration
def test_wrong_input_ends_at_once_with_a_message_and_status_2(tmp_path: Path) -> None:
    code, output, errors = finish(start(tmp_path, "--shots=0"))
    assert (code, output) == (2, "")
    assert errors == "train: error: --shots must be at least 1, got 0\n"
    assert not list(tmp_path.iterdir())
