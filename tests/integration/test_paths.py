"""The files that have a part in a gradient, and in a job: what one has to read to follow them."""

import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import qailab
from qailab.backends import AerBackend
from qailab.backends.base import evaluate
from qailab.torch import QLayer
from tests.support.circuits import ry_ansatz
from tests.support.ibm import gradient_rows, patient_device

ROOT = str(Path(qailab.__file__).parent) + "/"


@contextmanager
def followed(*parts):
    """The files in these parts of qailab whose functions are called meanwhile, in order."""
    files = []

    def called(frame, event, _):
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(tuple(ROOT + part for part in parts)):
            files.append(name.removeprefix(ROOT))

    threading.setprofile(called)
    sys.setprofile(called)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        files[:] = dict.fromkeys(files)
        print(*files)


def test_a_backward_pass_in_process():
    layer = QLayer(ry_ansatz(3), backend=AerBackend(), seed=1)
    inputs = torch.rand(4, 3, requires_grad=True)
    with followed("") as files:  # threads are followed that start from now on
        layer(inputs).sum().backward()  # compiles
        outputs = layer(inputs)
        files.clear()
        outputs.sum().backward()
    assert len(files) <= 20


@pytest.mark.parametrize("with_journal", [False, True])
def test_a_job_on_hardware(rehearse, tmp_path, with_journal):
    rehearse()
    backend = patient_device(journal=tmp_path / "jobs.db" if with_journal else None)
    canonical, rows = gradient_rows(seed=9)
    with followed("backends", "journal") as files:  # whoever made the rows
        evaluate(backend, *gradient_rows(), threading.Event())  # compiles
        files.clear()
        evaluate(backend, canonical, rows, threading.Event())
    backend.close()
    assert len(files) <= 16
