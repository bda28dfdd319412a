"""What is said when a run begins, and when it stops."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from qailab.errors import BudgetExceededError, JournalError
from qailab.journal import Journal
from training.checkpoint import Progress
from training.data import CLASSES, PIXELS
from training.settings import Config

if TYPE_CHECKING:  # it imports this module
    from training.session import Session


def introduction(run: Session, actors: int) -> str:
    """What is about to be trained, on what.

    Args:
        run: the run.
        actors: how many actors there are.
    """
    config, model, digits = run.config, run.model, run.digits
    problem = model.circuit.problem
    start = ""
    if run.resume is not None:
        done = run.resume.progress
        start = f", from epoch {done.epoch + 1}, step {done.batch + 1}"
    by = "1 Ray actor" if actors == 1 else f"{actors} Ray actors"
    if run.options.workers > 1:
        by = f"{run.options.workers} workers with {by}, {run.options.pool or 'shared'},"
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
        f"{rows:,} rows {shots(config)} for each step, by {by} {where}."
    )


def shots(config: Config) -> str:
    """The shots of each row, in words."""
    number = config.num_shots
    return "with exact probabilities" if number is None else f"of {number:,} shots"


def finished(run: Session) -> str:
    """That nothing is left to train, and what there may be more."""
    epochs = "its epoch" if run.config.epochs == 1 else f"all its {run.config.epochs} epochs"
    return f"The run {run.folder.path} has had {epochs}; to train it further, give more --epochs."


def stopped(run: Session, done: Progress, error: BaseException, *, saved: bool) -> str:
    """How far the run is, and how to go on with it.

    Args:
        run: the run.
        done: how far it is.
        error: what stopped it.
        saved: whether that is in its folder.
    """
    how = ", with a larger budget" if isinstance(error, BudgetExceededError) else ""
    kept = f"saved in {run.folder.path}"
    if not saved:
        kept = f"this cannot be saved, and {run.folder.path} keeps its last checkpoint"
    paid = f"{journal_line(run)}\n" if run.config.backend == "ibm" else ""
    test = " and before their test" if done.batch == run.steps else ""
    return (
        f"\nStopped after {done.epoch} of {run.config.epochs} epochs and {done.batch} of "
        f"{run.steps} steps{test}; {kept}. {paid}To go on{how}:\n"
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
    named = run.options.storage is not None and run.folder.mirror is None
    where = [] if named or str(folder.parent) == "runs" else ["--runs-dir", str(folder.parent)]
    return shlex.join([*program, "--resume", folder.name, *where, *run.options.place])
