"""``scripts/train.py --workers``: Ray Train, of which the program and a worker are killed."""

import contextlib
import dataclasses
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from train import main

from tests.support.training import (
    DEADLINE,
    TINY,
    arguments_of,
    checkpoint_of,
    epochs_in,
    trained,
    wait_for,
)

# Long enough for a worker to be killed in the middle; batches that two cannot share equally.
SETTINGS = dataclasses.replace(TINY, batch_size=7, epochs=9, dtype="float64")


def workers():
    """The processes of Ray Train's workers that this process has, directly or not."""
    parents, found = {}, []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            status = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            parents[int(entry)] = int(status[1])
            if b"RayTrainWorker" in Path("/proc", entry, "cmdline").read_bytes():
                found.append(int(entry))
    return [pid for pid in found if os.getpid() in ancestors(pid, parents)]


def ancestors(pid, parents):
    line = []
    while pid in parents:
        pid = parents[pid]
        line.append(pid)
    return line


def end_the_program(folder):
    """Send this process what a cluster sends to a job, in its first epochs."""
    wait_for(lambda: epochs_in(folder) >= 1)
    os.kill(os.getpid(), signal.SIGTERM)


def kill_a_worker(folder):
    """Kill a worker after an epoch; how many epochs there were then."""
    before = epochs_in(folder)
    wait_for(lambda: epochs_in(folder) > before)
    os.kill(workers()[0], signal.SIGKILL)
    return epochs_in(folder)


@pytest.mark.timeout(4 * DEADLINE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Train by itself
def test_workers_end_with_the_weights_of_one_also_when_job_and_worker_are_killed(
    ray_cluster, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shared" / "team"
    command = [*arguments_of(SETTINGS), "--name=team", "--actors=1", "--storage=shared"]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as executor:
        ended = executor.submit(end_the_program, folder)
        code = main([*command, "--workers=2"])
        ended.result()
        assert code == 128 + signal.SIGTERM, capfd.readouterr().err
        begun = checkpoint_of("shared", "team").progress.epoch
        assert 1 <= begun < SETTINGS.epochs - 2
        wait_for(lambda: not workers())

        killed = executor.submit(kill_a_worker, folder)
        code = main([*command, "--workers=2"])  # the job is submitted again as it was
        assert code == 0, capfd.readouterr().err
        assert killed.result() < SETTINGS.epochs  # else it came too late
    torch.set_num_threads(threads)
    output = capfd.readouterr().out
    assert f"Run shared/team: epochs {begun + 1} to 9" in output
    ended, alone = checkpoint_of("shared", "team"), trained(SETTINGS)
    for name, value in alone.model.items():
        torch.testing.assert_close(ended.model[name], value, rtol=1e-9, atol=1e-9)
    assert [m.rows for m in ended.history] == [m.rows for m in alone.history]
    assert torch.equal(ended.confusion, alone.confusion)
