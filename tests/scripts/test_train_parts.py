"""Options, data and pictures of ``scripts/train.py``."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from train import main
from training.data import Digits
from training.model import HybridClassifier, make_backend
from training.options import Config, parse
from training.report import draw_confusion, draw_curves
from training.runs import Checkpoint
from training.storage import directory

from qailab.errors import BackendError, InputError, PoolError

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


# Where runs are kept.


def test_a_directory_below_home_is_found() -> None:
    assert directory("~/runs") == Path.home() / "runs"
    assert directory("file:///a%20b/c") == directory("file://localhost/a%20b/c") == Path("/a b/c")
    with pytest.raises(InputError, match="give the whole path"):
        directory("~nobody-of-this-name/runs")


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("", "must be a directory or a URI, got nothing"),
        ("file://host/path", "give --storage host/path for a path from here"),
        ("file://runs", "must be file:/// and an absolute path"),
        ("file://", "must be file:/// and an absolute path"),
        ("file:///a?b", r"\?\.\.\.: in a file URI, \? is written %3F"),
        ("memory://bucket/runs", "ends with each process"),
        ("simplecache::memory://bucket/runs", "ends with each process"),
        ("s3://me:pa/ss@bucket/runs", "must not hold a user or password"),
        ("abfss://c@a.dfs.core.windows.net/runs?sv=1&sig=hidden", "must not hold the value of sig"),
        ("s3://bucket/runs?access_key=hidden&region=x", "must not hold the value of access_key"),
        ("http://host/runs?X-Amz-Signature=hidden", "must not hold the value of X-Amz-Signature"),
    ],
)
def test_storage_that_can_be_none_is_refused(storage: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--storage.*{message}") as caught:
        parse(["--name=a", f"--storage={storage}"], "")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "storage",
    [
        "abfss://container@account.dfs.core.windows.net/runs?tenant_id=a",
        "gs://anonymous@bucket/x",
        "sftp://host:22/runs@home",
        "abfs://container@account/runs?dfs_storage_authority=localhost",
        "s3://bucket/runs?region=eu-central-1&endpoint_override=localhost:9000",
    ],
)
def test_storage_without_a_secret_is_taken_and_its_query_never_printed(storage: str) -> None:
    options = parse(["--name=a", f"--storage={storage}"], "")
    assert options.storage == storage
    before, mark, _ = storage.partition("?")
    assert options.place == ("--storage", f"{before}?..." if mark else storage)


# What is checked when the number of actors is known.


@pytest.mark.parametrize(("workers", "shown"), [(1, True), (2, False)])
def test_a_pool_that_workers_share_does_not_show_its_progress_in_each(
    workers: int,
    shown: bool,
    without_ray: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[bool] = []

    def pool(*_: object, progress: bool, **__: object) -> None:
        given.append(progress)
        raise PoolError("enough seen")

    monkeypatch.setattr("training.session.connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("training.session.LauncherPool", pool)
    assert main(["--samples=60", f"--workers={workers}"]) == 1
    assert given == [shown]


def test_fewer_actors_than_workers_with_pools_of_their_own_are_refused(
    without_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.session.connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("training.session.Session._actor_options", lambda _: [{}, {}])
    placement = "--placement=actors-per-node=1"
    assert main(["--samples=60", "--workers=3", "--pool=per-worker", placement]) == 2
    message = "an actor for each of 3 workers, and --placement actors-per-node=1 gives 2"
    assert message in capsys.readouterr().err
    assert not [*Path("runs").iterdir()]


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
