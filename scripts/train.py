r"""Train a hybrid classifier on handwritten digits; every gradient is evaluated by Ray actors.

64 pixels -> linear -> 6 angles -> circuit of 6 qubits -> 64 probabilities -> linear -> 10 digits

  scripts/train                                     about 95 % in a minute on 2 cores
  scripts/train --resume NAME                       go on after Ctrl-C or a crash: the same weights
  scripts/train --workers 2 --actors 4 --name team  data-parallel, with Ray Train
  scripts/train --address auto --actors 64 --storage s3://bucket/runs --name big
  scripts/train --backend ibm --estimate            hours and dollars; nothing is sent
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from training.options import Options, Settings, parse
from training.stopping import StopSignals
from training.storage import RunFolder

from qailab.errors import CheckpointError, InputError, JournalError, QailabError

if TYPE_CHECKING:  # what is slow to import comes when something is seen already
    from training.checkpoint import Checkpoint

    from qailab.distributed import LauncherPool

_DEVICES_SECONDS = 120.0  # for all devices to be connected to


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    with StopSignals() as signals:
        try:
            run(parse(arguments, __doc__ or ""), signals)
        except (QailabError, OSError) as error:
            print(f"train: error: {error}", file=sys.stderr)
            return 2 if isinstance(error, (InputError, CheckpointError)) else 1
        except KeyboardInterrupt:
            print(f"train: ended by signal {signals.received}", file=sys.stderr)
            return 128 + (signals.received or 0)  # as shells have it
    return 0


def run(options: Options, signals: StopSignals) -> None:
    """Train a new run, or what is left of one that is there."""
    folder, start = RunFolder(options.storage, options.name), None
    if options.resume or folder.read("checkpoint.pt") is not None:
        from training.checkpoint import find_checkpoint

        start = find_checkpoint(folder, options)
    settings = options.settings if start is None else start.settings
    options.check_places(settings.backend)
    if options.estimate or settings.backend == "ibm":
        from training.cost import check_budget, estimate_lines

        if options.estimate:
            print(estimate_lines(settings, start, len(options.devices)))
            return
        check_budget(settings, start, options)
    if start is not None and start.progress.epoch == settings.epochs:
        print(f"The run {folder} has had all its epochs; to train it further, give more --epochs.")
        report(folder, start)
        return
    print(introduction(settings, start, folder, options), flush=True)
    with starting_pool(settings, options, folder) as starting:
        report(folder, train(settings, start, folder, options, signals, starting))


def train(
    settings: Settings,
    start: Checkpoint | None,
    folder: RunFolder,
    options: Options,
    signals: StopSignals,
    starting: Future[LauncherPool],
) -> Checkpoint:
    """Train, saving after each epoch and whatever stops it; the last checkpoint."""
    from training.loop import Training
    from training.report import make_bar, show

    from qailab.backends import AerBackend

    training = Training(settings, AerBackend(), start)
    pool = starting.result()
    if settings.backend == "ibm":  # which device gets which rows must not depend on the faster
        pool.wait(timeout=_DEVICES_SECONDS)
    training.model.circuit.backend = pool
    steps, per_epoch = training.steps(), training.steps_per_epoch
    checkpoint = training.checkpoint
    checkpoint.save(folder)
    if options.workers > 1:
        from training.workers import steps_of_workers

        steps = steps_of_workers(checkpoint, pool, folder, options.workers)
    try:
        with make_bar(checkpoint, per_epoch) as bar:
            for checkpoint in steps:
                show(checkpoint, per_epoch, bar)
                # A step on a device takes up to hours, a checkpoint milliseconds.
                if checkpoint.progress.batch == 0 or settings.backend == "ibm":
                    checkpoint.save(folder)
                signals.check()
    except BaseException:
        save_stopped(checkpoint, per_epoch, folder, options)
        raise
    return checkpoint


@contextlib.contextmanager
def starting_pool(
    settings: Settings, options: Options, folder: RunFolder
) -> Iterator[Future[LauncherPool]]:
    """Start the actors in a thread, while torch is imported; close them in the end."""
    from training.backends import make_backends

    from qailab.distributed import LauncherPool
    from qailab.distributed.connection import connect, disconnect

    backends = make_backends(settings, options, folder)
    address, team = options.places.get("address"), options.workers > 1

    def start() -> LauncherPool:
        if team:  # a local Ray needs a CPU for each worker, too
            closing.callback(disconnect, connect(address, options.actors + options.workers))
        placed = options.json("actor_options")
        # Workers that share the pool would each show its progress.
        pool = LauncherPool(backends, address=address, actor_options=placed, progress=not team)
        return closing.enter_context(pool)

    # Ray takes 15 s to end when the thread that began it has ended before.
    with ThreadPoolExecutor(1) as thread, contextlib.ExitStack() as closing:
        starting = thread.submit(start)
        try:
            yield starting
        finally:
            wait([starting])


def introduction(
    settings: Settings, start: Checkpoint | None, folder: RunFolder, options: Options
) -> str:
    """One line: what is about to be trained, on what."""
    shots = "exact" if settings.num_shots is None else f"{settings.num_shots:,} shots a row"
    where = f"{options.actors} x {settings.backend}"
    if settings.backend == "ibm":
        where = " and ".join(name or "the least busy device" for name in options.devices)
    if options.workers > 1:
        where = f"{options.workers} workers and {where}"
    begun = "" if start is None else f" from epoch {start.progress.epoch + 1}"
    epochs = "1 epoch" if settings.epochs == 1 else f"{settings.epochs} epochs"
    run = f"Run {folder}{begun}: {epochs}, {settings.qubits} qubits, {shots}"
    return f"{run}, on {where}; starting ..."


def report(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Draw and print what a finished run has come to."""
    from training.report import write_report

    print(write_report(folder, checkpoint), flush=True)
    if checkpoint.settings.backend == "ibm":
        print(paid(folder))


def save_stopped(
    checkpoint: Checkpoint, steps_per_epoch: int, folder: RunFolder, options: Options
) -> None:
    """Save a run that something stops, and say how to go on with it."""
    done, kept = checkpoint.progress, f"saved in {folder}"
    try:
        checkpoint.save(folder)
    except OSError as error:
        kept = f"{folder} keeps its last checkpoint, for this one cannot be saved ({error})"
    journal = f" {paid(folder)}." if checkpoint.settings.backend == "ibm" else ""
    print(
        f"\nStopped after {done.epoch} of {checkpoint.settings.epochs} epochs and {done.batch} of "
        f"{steps_per_epoch} steps; {kept}.{journal} To go on:\n  {options.resume_command()}",
        file=sys.stderr,
        flush=True,
    )


def paid(folder: RunFolder) -> str:
    """What the jobs of a run have come to."""
    from qailab.journal import Journal

    how = shlex.join(["python", "-m", "qailab.journal", str(folder.journal)])
    try:
        with Journal(folder.journal) as journal:
            totals = journal.totals()
        return f"{totals.jobs:,} jobs, {totals.qpu_seconds:,.1f} QPU seconds so far: {how}"
    except JournalError:  # perhaps what the run has just stopped for
        return f"Its jobs: {how}"


if __name__ == "__main__":
    sys.exit(main())
