"""What a run, or the rest of it, costs on hardware: told before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator

from qailab.backends import AerBackend, IBMLimits
from qailab.backends.cost import Cost, UsageEstimate
from qailab.errors import InputError
from training.checkpoint import Checkpoint
from training.loop import Training
from training.options import ON_HARDWARE, Options, Settings

DOLLARS_PER_SECOND = 1.6  # 96 dollars a minute, IBM's pay-as-you-go plan
OPEN_PLAN_SECONDS = 600.0  # of a month, for nothing


def estimate_lines(settings: Settings, start: Checkpoint | None, devices: int) -> str:
    """The cost with each gradient method, a line for each.

    Args:
        settings: the settings.
        start: the state to go on from; None for the beginning.
        devices: how many devices share each pass, with a job each.
    """
    training = Training(settings, AerBackend(), start)
    return "\n".join(
        f"--gradient {method:11}  {_in_words(_cost(training, method, devices))}"
        for method in ("param_shift", "spsa")
    )


def check_budget(settings: Settings, start: Checkpoint | None, options: Options) -> None:
    """Refuse a run on hardware that nothing limits.

    Raises:
        InputError: if there is no budget; it says what the run would cost.
    """
    if "budget_seconds" in options.places:
        return
    training = Training(settings, AerBackend(), start)
    cost = _cost(training, settings.gradient, len(options.devices))
    small = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in ON_HARDWARE.items())
    raise InputError(
        f"--backend ibm needs --budget-seconds S: this run takes {_in_words(cost)}. A run that "
        f"fits the open plan: --backend ibm {small} --budget-seconds 300"
    )


def _cost(training: Training, gradient: str, devices: int) -> Cost:
    angles = training.model.circuit.problem.canonical.num_angles
    shots = training.settings.num_shots
    if shots is None:
        raise InputError("hardware has no exact probabilities: give a number of --shots")
    most = IBMLimits().rows_per_job(shots, angles, group=2)
    backward = 2 if gradient == "spsa" else 2 * angles  # rows of each sample
    total, usage = Cost(), UsageEstimate()
    for rows in _passes(training, backward):
        jobs = max(min(devices, rows), -(-rows // most))
        seconds = usage.seconds(rows * shots, jobs)
        total += Cost(jobs=jobs, rows=rows, shots=rows * shots, qpu_seconds=seconds)
    return total


def _passes(training: Training, backward: int) -> Iterator[int]:
    """The rows of each pass that is left, forward and backward, and of each test."""
    done = training.checkpoint.progress
    for epoch in range(done.epoch, training.settings.epochs):
        batches = training.digits.batches(training.settings, epoch)
        for batch in batches[done.batch if epoch == done.epoch else 0 :]:
            yield len(batch)
            yield len(batch) * backward
        yield len(training.digits.test_labels)


def _in_words(cost: Cost) -> str:
    seconds = cost.qpu_seconds
    return (
        f"{cost.rows:,} rows in {cost.jobs:,} jobs, about {seconds:,.0f} QPU seconds "
        f"({seconds / 3600:,.2f} hours, {seconds * DOLLARS_PER_SECOND:,.0f} dollars, "
        f"{seconds / OPEN_PLAN_SECONDS:,.0%} of the open plan's {OPEN_PLAN_SECONDS:.0f} s a month)"
    )
