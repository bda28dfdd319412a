"""The trainer of ``scripts/train.py``: resuming is exact, and wrong checkpoints are refused."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training.checkpoint import SaveError, replace
from training.options import Config
from training.runs import Checkpoint, RunFolder

from qailab.errors import CheckpointError, EvaluationError, InputError
from tests.scripts.training_runs import STEPS, TINY, assert_same, make_trainer, stop_after, throw

# Resuming.


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
    (run.path.parent / "file").touch()
    with pytest.raises(InputError, match=r"something at .*file, and it has no checkpoint"):
        RunFolder.new(run.path.parent, "file")


# Files that cannot be written.


@pytest.mark.parametrize("failing", ["write_bytes", "replace", "interrupt"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_and_nothing_else(
    failing: str, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, names = run.load({}), sorted(run.path.iterdir())
    expected: type[BaseException] = SaveError
    full = OSError(errno.ENOSPC, "No space left on device")
    if failing == "replace":
        monkeypatch.setattr("os.replace", lambda *_: throw(full))
    else:
        write = Path.write_bytes
        error = KeyboardInterrupt() if failing == "interrupt" else full
        expected = KeyboardInterrupt if failing == "interrupt" else SaveError
        monkeypatch.setattr(Path, "write_bytes", lambda *a: (write(*a), throw(error)))
    with pytest.raises(expected) as caught:
        run.save(before)
    if expected is SaveError:
        message = f"{run.checkpoint} cannot be written (OSError: No space left on device); make"
        assert str(caught.value).startswith(message)
    assert sorted(run.path.iterdir()) == names
    assert run.load({}).progress == before.progress


def test_two_programs_never_write_the_same_file(tmp_path: Path) -> None:
    def write(new: Path) -> None:
        new.write_text("mine")
        if not names:
            names.append(new.name)
            replace(tmp_path / "file", lambda other: other.write_text("theirs"))

    names: list[str] = []
    replace(tmp_path / "file", write)
    assert (tmp_path / "file").read_text() == "mine"
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]
