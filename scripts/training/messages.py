"""What is said when a run begins, and when it stops."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from qailab.errors import BudgetExceededError, JournalError
from qailab.journal import Journal
from training.data import CLASSES, PIXELS
from training.runs import Progress

if TYPE_CHECKING:  # it imports this module
    from training.session import Session


def introduction(run: Session) -> str:
    """What is about to be trained, on what."""
    config, model, digits = run.config, run.model, run.digits
    problem = model.circuit.problem
    start = ""
    if run.resume is not None:
        done = run.resume.progress
        start = f", from epoch {done.epoch + 1}, step {done.batch + 1}"
    actors = "1 Ray actor" if len(run.backends) == 1 else f"{len(run.backends)} Ray actors"
    where = f"with {run.backends[0]!r}"
    if config.backend == "ibm":
        where = f"on {run.options.hardware}"
    rows = model.rows_per_step(min(config.batch_size, len(digits.train_labels)))
    return (
        f"Run {run.folder.path}{start}: {PIXELS} pixels -> linear -> {problem.num_inputs} "
        f"angles -> circuit of {config.qubits} qubits and {problem.num_weights} weights -> "
        f"{problem.num_outcomes} probabilities -> linear -> {CLASSES} digits "
        f"({model.num_weights:,} weights in all).\n"
        f"{len(digits.train_labels):,} training and {len(digits.test_labels):,} test samples; "
        f"{config.epochs} epoch{'' if config.epochs == 1 else 's'} of {run.steps} steps; "
        f"{rows:,} rows of {config.shots:,} shots for each step, by {actors} {where}."
    )


def stopped(run: Session, done: Progress, error: BaseException) -> str:
    """How far the run is, and how to go on with it."""
    how = ", with a larger budget" if isinstance(error, BudgetExceededError) else ""
    paid = f"{journal_line(run)}\n" if run.config.backend == "ibm" else ""
    return (
        f"\nStopped after {done.epoch} of {run.config.epochs} epochs and {done.batch} of "
        f"{run.steps} steps; saved in {run.folder.path}. {paid}To go on{how}:\n"
        f"  {resume_command(run)}"
    )


def journal_line(run: Session) -> str:
    """What the jobs of a run's journal came to, and how to see more of it."""
    path = run.options.hardware.journal or run.folder.journal
    try:
        with Journal(path) as journal:
            totals = journal.totals()
        known = f"{totals.jobs:,} jobs so far, {totals.qpu_seconds:,.1f} QPU seconds"
    except JournalError:  # perhaps what the run has just stopped for
        known = "Its jobs"
    return f"{known}: {shlex.join(['python', '-m', 'qailab.journal', str(path)])}"


def resume_command(run: Session) -> str:
    """The command that goes on with a run."""
    # Where scripts/train made the interpreter, scripts/train is the way to come back.
    by_script = sys.prefix != sys.base_prefix and sys.prefix.endswith("/.venv")
    program = ["scripts/train"] if by_script else [sys.executable, sys.argv[0]]
    folder = run.folder.path
    where = [] if str(folder.parent) == "runs" else ["--runs-dir", str(folder.parent)]
    return shlex.join([*program, "--resume", folder.name, *where, *run.options.place])
