"""Options, data and pictures of ``scripts/train.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training.data import Digits
from training.model import HybridClassifier, make_backend
from training.options import Config, parse
from training.report import draw_confusion, draw_curves
from training.runs import Checkpoint

from qailab.errors import BackendError, InputError

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
        (["--samples", "49"], "--samples must be at least 50, got 49"),
        (["--name", "a/b"], "--name must be a plain folder name, got 'a/b'"),
        (["--name", "a", "--resume", "b"], "either --name .* or --resume"),
        (["--backend=ibm", "--actors=2"], "--actors is for simulators; with --backend ibm"),
        (["--devices=ibm_fez"], "--devices: only for --backend ibm, and the backend is aer"),
        (["--backend=aer-noisy", "--mode=job", "--budget-jobs=1"], "--mode, --budget-jobs: only"),
        (["--backend=ibm", "--devices=a,b,a"], "--devices names one twice: 'a,b,a'"),
        (["--backend=ibm", "--devices=a,,b"], "names with commas between, got 'a,,b'"),
        (["--backend=ibm", "--budget-jobs=0"], "--budget-jobs must be at least 1, got 0"),
        (["--backend=ibm", "--budget-shots=-1"], "--budget-shots must be at least 1, got -1"),
        (["--backend=ibm", "--budget-seconds=nan"], "--budget-seconds must be positive and finite"),
        (["--backend=ibm", "--poll-interval=0"], "--poll-interval must be positive and finite"),
        (["--backend=ibm", "--timeout=inf"], "--timeout must be positive and finite, got inf"),
    ],
)
def test_options_out_of_range_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(arguments, "")


def test_a_backend_that_does_not_exist_is_refused_with_the_valid_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["--backend", "qpu"], "")
    error = capsys.readouterr().err
    assert "'qpu'" in error
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
