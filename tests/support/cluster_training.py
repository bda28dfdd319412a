"""A training that is submitted to clusters, and run by one process for comparison.

::

    python cluster_training.py FOLDER     # with two actors; leaves `step` and weights.pt in it
"""

import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import torch

from qailab.backends import AerBackend
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.distributed import LauncherPool
from qailab.torch import QLayer

STEPS = 100


def train(backend, folder, pause=0.0):
    """Train a small model; its weights at the end."""
    torch.manual_seed(3)
    layers = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=1)]
    quantum = QLayer(build_circuit(4, layers), backend=backend, shots=64, seed=7)
    model = torch.nn.Sequential(quantum, torch.nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    inputs, classes = torch.randn(20, 4), torch.arange(20) % 3
    for step in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), classes).backward()
        optimizer.step()
        (folder / "step").write_text(str(step))
        time.sleep(pause)
    torch.save(model.state_dict(), folder / "weights.pt")
    return model.state_dict()


def steps_done(folder):
    """How many steps the training has done."""
    file = folder / "step"
    return int(file.read_text() or 0) if file.exists() else 0


@cache
def weights_of_one_process():
    """What it comes to without a cluster."""
    with tempfile.TemporaryDirectory() as folder:
        return train(AerBackend(), Path(folder))


def assert_as_in_one_process(folder):
    """Compare the weights of a training with those, bit for bit."""
    found, alone = torch.load(folder / "weights.pt"), weights_of_one_process()
    assert found.keys() == alone.keys()
    assert all(torch.equal(found[name], alone[name]) for name in alone)


if __name__ == "__main__":
    with LauncherPool([AerBackend()] * 2) as pool:
        pool.wait()
        train(pool, Path(sys.argv[1]), pause=0.05)  # long enough to lose a node
