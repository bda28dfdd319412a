"""The parts of ``scripts/train.py``: options, checkpoint, loop, cost and pictures."""

import contextlib
import dataclasses
import io
import json
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train import main
from training.checkpoint import find_checkpoint
from training.cost import costs_in_words
from training.lanes import steps_of_lanes
from training.options import parse
from training.report import draw_comparison, draw_confusion, draw_curves, write_report
from training.storage import RunFolder

from qailab.backends import AerBackend
from qailab.errors import CheckpointError, InputError
from qailab.torch import estimate_cost
from tests.support.training import (
    STEPS,
    TINY,
    Checkpoint,
    Training,
    assert_same,
    refusal_of,
    trained,
)

BEFORE = Path(__file__).parent / "checkpoint_before.pt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shots many", "argument --shots: invalid number_or_exact value: 'many'"),
        ("--qubits 17", "--qubits must be from 1 to 16, got 17"),
        ("--backend real", "--backend must be one of aer, statevector, aer-noisy, ibm, got real"),
        ("--actor-options {", "argument --actor-options: invalid JSON value: '{'"),
        ("--name a/b", "--name must be a plain folder name, got 'a/b'"),
        ("--name a --resume b", "give --name (a new one) or --resume, not both"),
        ("--devices ibm_fez", "--devices is not for --backend aer"),
        ("--backend ibm --actors 2", "--actors is not for --backend ibm"),
        ("--backend ibm --shots exact", "exact probabilities"),
        ("--async 2 --workers 2", "give --async or --workers, not both"),
        ("--resume nothing", "there is no run runs/nothing"),
        ("--compare there/nothing", "there is no run there/nothing"),
        ("--storage nowhere://x", "--storage nowhere://x cannot be reached"),
    ],
)
def test_wrong_options_end_with_one_line_before_anything_is_made(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    said = refusal_of(main, arguments.split(), capsys)
    assert said.startswith("train: error: ")
    assert message in said
    assert not list(tmp_path.iterdir())


def test_help_is_one_screen_with_five_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("  scripts/train") for line in lines) == 5


def test_the_command_to_go_on_is_the_one_that_was_given():
    options = parse(["--name", "my run", "--actors=2", "--epochs", "3", "--storage=s"], "")
    again = shlex.split(options.again)
    assert again[:3] == ["scripts/train", "--resume", "my run"]
    assert again[3:] == ["--actors=2", "--epochs", "3", "--storage=s"]
    assert vars(parse(again[1:], ""))["given"] == {"epochs": 3}


@pytest.mark.parametrize("steps", [1, STEPS, STEPS + 1])
def test_a_run_goes_on_from_any_step_to_the_same_bits(steps, whole):
    stopped = trained(TINY, steps=steps)
    assert stopped.progress.place == divmod(steps, STEPS + 1)
    assert_same(trained(TINY, Checkpoint.from_bytes(stopped.to_bytes(), "here")), whole)


def test_a_checkpoint_of_the_code_before_is_read():
    """It goes on from there; to other shot noise, which mixes in the circuit's key since then."""
    before = Checkpoint.load(BEFORE)
    assert before.settings == TINY
    assert before.settings.output == "probabilities"  # which there was no choice of
    assert before.progress.place == (1, 2)
    ended = trained(TINY, before)
    assert ended.progress.place == (TINY.epochs, 0)


def test_an_asynchronous_run_goes_on_with_other_lanes_and_counts_each_batch_once(tmp_path):
    training = Training(TINY, AerBackend())
    for number, _ in enumerate(steps_of_lanes(training, AerBackend(), 3), 1):
        if number == STEPS + 2:
            break
    folder = RunFolder(str(tmp_path), "mine")
    training.checkpoint.save(folder)
    with pytest.raises(InputError, match="is asynchronous: give --async"):
        find_checkpoint(folder, parse(["--resume=mine"], ""))
    start = find_checkpoint(folder, parse(["--resume=mine", "--async=2"], ""))
    ended = Training(TINY, AerBackend(), start)
    *_, last = steps_of_lanes(ended, AerBackend(), 2)
    assert last.progress.place == (TINY.epochs, 0)
    assert len(last.history) == TINY.epochs
    applied = [batch for _, batch, *_, applied, _ in last.lanes["log"] if applied]
    assert sorted(applied) == list(range(STEPS * TINY.epochs))


class Counting(AerBackend):
    """Tells 2 QPU seconds for each evaluation, in the words of a pool."""

    calls = 0

    def submit(self, circuit, batch):
        self.calls += 1
        return super().submit(circuit, batch)

    def stats(self):
        return {"qpu_seconds": 2.0 * self.calls}


def test_two_runs_are_compared_by_seconds_and_qpu_seconds(whole, tmp_path):
    plain, lanes = Training(TINY, Counting()), Training(TINY, Counting())
    *_, one = plain.steps()
    pool = lanes.model.circuit.backend
    *_, other = steps_of_lanes(lanes, pool, 2)
    assert [metrics.qpu_seconds for metrics in one.history] == [2.0 * (2 * STEPS + 1)] * 3
    assert sum(metrics.qpu_seconds for metrics in other.history) == 2.0 * pool.calls

    runs = [(RunFolder(str(tmp_path), "plain"), one), (RunFolder(str(tmp_path), "lanes"), other)]
    panels = draw_comparison(runs).axes
    for axes, measure in zip(panels, ("seconds", "qpu_seconds"), strict=True):
        for line, (folder, run), kind in zip(
            axes.lines, runs, ("synchronous", "asynchronous"), strict=True
        ):
            spent = np.cumsum([getattr(metrics, measure) for metrics in run.history])
            assert list(line.get_xdata()) == list(spent)
            assert list(line.get_ydata()) == [metrics.test_loss for metrics in run.history]
            assert line.get_label() == f"{folder}, {kind}"
    assert len(draw_comparison([(runs[0][0], whole)] * 2).axes) == 1  # a simulator has none


@settings(max_examples=200)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_bit_rot_is_refused_or_harmless(place, bit, whole):
    content = bytearray(whole.to_bytes())
    content[int(place * len(content))] ^= 1 << bit
    with contextlib.suppress(CheckpointError):
        assert_same(Checkpoint.from_bytes(bytes(content), "the file"), whole)


def test_code_and_truncated_files_are_refused(whole, tmp_path):
    content, evil, other = whole.to_bytes(), io.BytesIO(), io.BytesIO()
    torch.save({"config": Path("x")}, evil)
    zipfile.ZipFile(other, "w").close()
    halved = content[: len(content) // 2]
    for wrong in (b"", content[:-1], halved, evil.getvalue(), other.getvalue()):
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be read"):
            Checkpoint.from_bytes(wrong, "checkpoint.pt")


@pytest.mark.parametrize("uri", ["{}/shared", "file://{}/shared", "fsspec+memory://tests{}"])
def test_a_run_is_kept_in_a_directory_or_at_a_uri(uri, whole, tmp_path):
    storage = uri.format(tmp_path)
    folder = RunFolder(storage, "mine")
    assert folder.read("checkpoint.pt") is None
    trained(TINY, steps=1).save(folder)
    whole.save(folder)
    again = RunFolder(storage, "mine")
    assert_same(Checkpoint.from_bytes(again.read("checkpoint.pt"), again), whole)
    lines = again.read("metrics.jsonl").splitlines()
    assert [json.loads(line) for line in lines] == [dataclasses.asdict(m) for m in whole.history]
    assert json.loads(again.read("config.json"))["qubits"] == TINY.qubits


def test_a_name_given_again_goes_on_with_the_same_settings_alone(whole, tmp_path):
    folder = RunFolder(str(tmp_path), "mine")
    whole.save(folder)
    same = [f"--{k.replace('_', '-')}={v}" for k, v in vars(TINY).items()]
    assert find_checkpoint(folder, parse([*same, "--name=mine"], "")).settings == TINY
    longer = find_checkpoint(folder, parse(["--resume=mine", "--epochs=5"], ""))
    assert longer.settings == dataclasses.replace(TINY, epochs=5)
    for arguments, message in (
        (["--name=mine"], "qubits is 2, not 6"),
        (["--resume=mine", "--lr=0.5"], r"lr is 0\.05, not 0\.5"),
        (["--resume=mine", "--output=z"], "output is probabilities, not z"),
        (["--resume=mine", "--epochs=2"], "has begun epoch 3; --epochs 2 is too few"),
    ):
        with pytest.raises(InputError, match=message):
            find_checkpoint(folder, parse(arguments, ""))


def test_estimates_are_those_of_the_package_and_of_the_tests_that_it_does_not_see():
    hardware = dataclasses.replace(TINY, samples=50, batch_size=40, epochs=2)
    model = Training(hardware, AerBackend()).model
    words = costs_in_words(hardware, None, 2)
    for each in estimate_cost(model, 40, steps=2, show=False).methods:
        rows, jobs = each.total.rows + 2 * 10, (each.total.jobs + 2) * 2
        assert words[each.method].startswith(f"{rows:,} rows in {jobs} jobs, about ")


def test_hardware_needs_a_budget_and_has_small_defaults(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    errors = refusal_of(main, ["--backend", "ibm"], capsys)
    assert "--backend ibm needs --budget-seconds S: this run takes 1,970 rows in 3 jobs" in errors
    assert "151 dollars, 16% of the open plan's 600 s in 28 days" in errors
    assert main(["--backend", "ibm", "--estimate", "--samples", "1797", "--epochs", "10"]) == 0
    assert "hours" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_expectation_values_train_too_and_go_on_to_the_same_bits():
    observing = dataclasses.replace(TINY, output="z")
    stopped, ended = trained(observing, steps=STEPS + 2), trained(observing)
    assert stopped.model["readout.weight"].shape == (10, TINY.qubits)
    assert ended.history[-1].test_loss < ended.history[0].test_loss
    assert_same(trained(observing, Checkpoint.from_bytes(stopped.to_bytes(), "here")), ended)
    other = dataclasses.replace(stopped, settings=TINY)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        trained(TINY, other)


def test_a_noisy_simulator_and_spsa_train_too():
    noisy = dataclasses.replace(TINY, backend="aer-noisy", gradient="spsa", epochs=1, samples=50)
    assert trained(noisy).history[-1].rows == 40 * 3 + 10


def test_the_report_shows_history_and_confusion(whole, tmp_path):
    folder = RunFolder(str(tmp_path), "mine")
    text = write_report(folder, whole)
    for name in ("curves.png", "confusion.png"):
        assert folder.read(name).startswith(b"\x89PNG")
    correct, tested = int(whole.confusion.trace()), int(whole.confusion.sum())
    assert f"{correct} of {tested} digits, after 3 epochs" in text
    losses = draw_curves(whole.history).axes[0].lines[1].get_ydata()
    assert list(losses) == [metrics.test_loss for metrics in whole.history]
    confusion = np.diag(np.arange(10))
    shown = [text.get_text() for text in draw_confusion(confusion).axes[0].texts]
    assert sorted(shown) == sorted(["0"] * 91 + list("123456789"))
