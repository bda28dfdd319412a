"""``scripts/sweep.py``: Ray Tune's grid, interrupted and resumed."""

import csv
import os
import signal

import pytest

from tests.support.training import DEADLINE, Settings, finish, start, trained, wait_for

SMALL = ["--lr=0.05,0.1", "--reps=1", "--shots=32", "--samples=60", "--epochs=4", "--qubits=2"]


@pytest.mark.timeout(4 * DEADLINE)
def test_a_sweep_that_was_interrupted_ends_as_one_that_was_not(tmp_path, shared_ray):
    folder = tmp_path / "sweeps" / "mine"
    program = start(
        tmp_path, "sweep.py", *SMALL, "--name=mine", "--actors=1", "--at-once=1", **shared_ray
    )
    wait_for(lambda: list(folder.glob("*/checkpoint_*")), program)
    os.kill(program.pid, signal.SIGTERM)
    code, output, errors = finish(program)
    assert code == 128 + signal.SIGTERM, output + errors
    assert " trials are done. To go on:\n  scripts/sweep --resume sweeps/mine" in errors

    code, output, errors = finish(start(tmp_path, "sweep.py", "--resume=sweeps/mine", **shared_ray))
    assert code == 0, output + errors
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert {row["lr"] for row in rows} == {"0.05", "0.1"}
    for row in rows:
        settings = Settings(lr=float(row["lr"]), reps=1, shots=32, samples=60, epochs=4, qubits=2)
        alone = trained(settings).history[-1]
        assert (int(row["epoch"]), float(row["test_accuracy"])) == (4, alone.test_accuracy)
        assert float(row["test_loss"]) == pytest.approx(alone.test_loss, rel=1e-12)
    accuracies = [float(row["test_accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
