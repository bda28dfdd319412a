"""`AsyncTrainer` on a pool, and when its driver is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qailab.backends import AerBackend, EmulatedBackend
from qailab.distributed import LauncherPool
from tests.support.lane_training import (
    EPOCHS,
    assert_same,
    make_batches,
    make_model,
    make_trainer,
)

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys
from qailab.backends import EmulatedBackend, AerBackend
from tests.support.lane_training import make_batches, make_trainer
places = [EmulatedBackend(AerBackend(), latency=t) for t in (0.01, 0.02, 0.2)]
trainer = make_trainer(places=places)
trainer.fit(make_batches(), 200, checkpoint=sys.argv[1])
"""


@pytest.mark.usefixtures("ray_cluster")
def test_places_on_a_pool_give_a_run_that_is_replayed_in_process():
    devices = [EmulatedBackend(AerBackend(), latency=0.02) for _ in range(3)]
    with LauncherPool(devices, progress=False) as pool:
        ran = make_trainer(places=[pool] * 5)
        ran.fit(make_batches(), EPOCHS)
    assert max(row["max staleness"] for row in ran.stats()) >= 2
    assert sum(row["jobs"] for row in ran.stats()) >= 2 * EPOCHS * len(make_batches())
    again = make_trainer(places=[AerBackend(), AerBackend()], replay=ran.log)
    again.fit(make_batches(), EPOCHS)
    assert_same(again, ran)


def test_after_kill_9_a_run_goes_on_and_all_of_it_is_one_run(tmp_path):
    path = tmp_path / "checkpoint.pt"
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, path], cwd=ROOT)
    try:
        deadline = time.monotonic() + 180
        while not path.exists() or len(torch.load(path, weights_only=True)["log"]) < 20:
            assert program.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        program.kill()
        assert program.wait() == -signal.SIGKILL
    resumed = make_trainer(make_model(seed=5), places=[AerBackend() for _ in range(4)])
    resumed.load(path)
    done = resumed.log.entries[-1].version
    epochs = done // len(make_batches()) + 3
    resumed.fit(make_batches(), epochs)
    applied = [entry.batch for entry in resumed.log.entries if entry.applied]
    assert sorted(applied) == list(range(epochs * len(make_batches())))
    whole = make_trainer(places=[AerBackend()], replay=resumed.log)
    whole.fit(make_batches(), epochs)
    assert_same(whole, resumed)
