"""``scripts/train.py --workers``: Ray Train; the program, a worker and an actor are killed."""

import dataclasses
import signal

import psutil
import pytest
import torch

from tests.support.training import (
    DEADLINE,
    TINY,
    arguments_of,
    checkpoint_of,
    epochs_in,
    finish,
    start,
    trained,
    wait_for,
)

# Long enough for a worker to be killed in the middle; batches that two cannot share equally.
SETTINGS = dataclasses.replace(TINY, batch_size=7, epochs=8, dtype="float64")


def running(title):
    """The actors of a class on the tests' own Ray."""
    everybody = psutil.process_iter(["cmdline"])
    found = [one for one in everybody if title in " ".join(one.info["cmdline"] or ())]
    return [one for one in found if psutil.Process() in one.parents()]


@pytest.mark.timeout(4 * DEADLINE)
def test_workers_end_with_the_weights_of_one_also_when_what_they_need_is_killed(
    tmp_path, shared_ray
):
    storage, folder = tmp_path / "shared", tmp_path / "shared" / "team"
    command = ["train.py", *arguments_of(SETTINGS), "--name=team", "--storage=shared"]
    command += ["--actors=1", "--workers=2"]
    program = start(tmp_path, *command, **shared_ray)
    wait_for(lambda: epochs_in(folder) >= 1, program)
    running("LauncherActor")[0].kill()  # all share the pool, and it has another started
    wait_for(lambda: epochs_in(folder) >= 2, program)
    program.terminate()  # as a cluster ends a job
    code, _, errors = finish(program)
    assert code == 128 + signal.SIGTERM, errors
    stopped = checkpoint_of(storage, "team").progress
    assert 2 <= stopped.epoch < SETTINGS.epochs - 2

    program = start(tmp_path, *command, **shared_ray)  # the job is submitted again as it was
    wait_for(lambda: epochs_in(folder) > stopped.epoch, program)
    running("RayTrainWorker")[0].kill()
    assert epochs_in(folder) < SETTINGS.epochs  # else it came too late
    code, output, errors = finish(program)
    assert code == 0, errors
    assert f"Run shared/team: epochs {stopped.epoch + 1} to 8" in output

    ended, alone = checkpoint_of(storage, "team"), trained(SETTINGS)
    for name, value in alone.model.items():
        torch.testing.assert_close(ended.model[name], value, rtol=1e-9, atol=1e-9)
    assert [m.rows for m in ended.history] == [m.rows for m in alone.history]
    assert torch.equal(ended.confusion, alone.confusion)
