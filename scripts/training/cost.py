"""What a run, or the rest of it, costs on hardware: told before anything is sent."""

from __future__ import annotations

from qailab.backends import AerBackend
from qailab.backends.budget import UsageEstimate, price_in_words
from qailab.errors import InputError
from qailab.torch import estimate_cost
from training.checkpoint import Checkpoint
from training.loop import Training
from training.options import ON_HARDWARE, Settings, option


def costs_in_words(settings: Settings, start: Checkpoint | None, devices: int) -> dict[str, str]:
    """What all steps and tests that are left cost, by gradient method; devices share each pass.

    Raises:
        InputError: if hardware cannot run it.
    """
    training = Training(settings, AerBackend(), start)
    epochs = settings.epochs - training.checkpoint.progress.epoch
    steps = epochs * training.steps_per_epoch - training.checkpoint.progress.batch
    tests = epochs * len(training.digits.test_labels)
    words = {}
    for each in estimate_cost(training.model, settings.batch_size, show=False).methods:
        rows, jobs = steps * each.step.rows + tests, (steps * each.step.jobs + epochs) * devices
        seconds = UsageEstimate().seconds(rows * int(settings.shots), jobs)
        amount = f"{rows:,} rows in {jobs:,} jobs, about {seconds:,.0f} QPU seconds"
        words[each.method] = f"{amount} ({price_in_words(seconds)})"
    return words


def no_budget(cost: str) -> InputError:
    """The error for a run on hardware that nothing limits."""
    small = " ".join(f"{option(name)} {value}" for name, value in ON_HARDWARE.items())
    return InputError(
        f"--backend ibm needs --budget-seconds S: this run takes {cost}. A run that fits the open "
        f"plan: --backend ibm {small} --budget-seconds 300"
    )
