"""What a run, or the rest of it, costs on hardware: told before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator

from qailab.backends import AerBackend, IBMLimits
from qailab.backends.cost import UsageEstimate, price_in_words
from qailab.errors import InputError
from training.checkpoint import Checkpoint
from training.loop import Training
from training.options import ON_HARDWARE, Settings, option


def cost_in_words(settings: Settings, start: Checkpoint | None, gradient: str, devices: int) -> str:
    """What all steps and tests that are left cost; devices share each, with a job each.

    Raises:
        InputError: if hardware cannot run it.
    """
    training, shots = Training(settings, AerBackend(), start), settings.num_shots
    if shots is None:
        raise InputError("hardware has no exact probabilities: give a number of --shots")
    angles = training.model.circuit.problem.canonical.num_angles
    most = IBMLimits().rows_per_job(shots, angles, group=2)
    passes = list(_passes(training, backward=2 if gradient == "spsa" else 2 * angles))
    jobs, rows = sum(max(min(devices, n), -(-n // most)) for n in passes), sum(passes)
    seconds = UsageEstimate().seconds(rows * shots, jobs)
    return (
        f"{rows:,} rows in {jobs:,} jobs, about {seconds:,.0f} QPU seconds "
        f"({price_in_words(seconds)})"
    )


def no_budget(cost: str) -> InputError:
    """The error for a run on hardware that nothing limits."""
    small = " ".join(f"{option(name)} {value}" for name, value in ON_HARDWARE.items())
    return InputError(
        f"--backend ibm needs --budget-seconds S: this run takes {cost}. A run that fits the open "
        f"plan: --backend ibm {small} --budget-seconds 300"
    )


def _passes(training: Training, backward: int) -> Iterator[int]:
    """The rows of each step that is left, prefetched in one evaluation, and of each test."""
    done = training.checkpoint.progress
    for epoch in range(done.epoch, training.settings.epochs):
        batches = training.digits.batches(training.settings, epoch)
        for batch in batches[done.batch if epoch == done.epoch else 0 :]:
            yield len(batch) * (1 + backward)
        yield len(training.digits.test_labels)
