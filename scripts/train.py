r"""Train a hybrid classifier on handwritten digits; every gradient is evaluated by Ray actors.

64 pixels -> linear -> 6 angles -> circuit of 6 qubits -> 64 probabilities -> linear -> 10 digits

  scripts/train                                     about 95 % in a minute on 2 cores
  scripts/train --resume NAME                       go on after Ctrl-C or a crash: the same weights
  scripts/train --workers 2 --actors 4 --name team  data-parallel, with Ray Train (--async: lanes)
  scripts/train --address auto --actors 64 --storage s3://bucket/runs --name big
  scripts/train --backend ibm --estimate            hours and dollars; nothing is sent
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from training.options import check_places, cores, parse, storage_and_name
from training.storage import RunFolder

from qailab.errors import CheckpointError, InputError, QailabError

if TYPE_CHECKING:  # what is slow to import comes when something is seen already
    from training.checkpoint import Checkpoint

    from qailab.distributed import LauncherPool

_DEVICES_SECONDS = 120.0  # for all devices to be connected to
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    with StopSignals() as signals:
        try:
            run(parse(arguments, __doc__ or ""), signals)
        except (QailabError, OSError) as error:
            print(f"train: error: {error}", file=sys.stderr)
            return 2 if isinstance(error, InputError | CheckpointError) else 1
        except KeyboardInterrupt:
            print(f"train: ended by signal {signals.received}", file=sys.stderr)
            return 128 + (signals.received or 0)  # as shells have it
    return 0


def run(options: Namespace, signals: StopSignals) -> None:
    """Train a new run, or what is left of one that is there."""
    folder, start = RunFolder(options.storage, options.name), None
    if options.resume or folder.read("checkpoint.pt") is not None:
        from training.checkpoint import find_checkpoint

        start = find_checkpoint(folder, options)
        options.settings = start.settings
    check_places(options)
    settings, other = options.settings, run_to_compare(options)
    first = 1 if start is None else start.progress.epoch + 1
    if start is not None and first > settings.epochs and not options.estimate:
        print(f"The run {folder} has had all its epochs; to train it further, give more --epochs.")
        report(folder, start, other)
        close_left_sessions(options, folder)
        return
    if options.estimate or (settings.backend == "ibm" and options.budget_seconds is None):
        from training.cost import costs_in_words, no_budget

        costs = costs_in_words(settings, start, len(options.devices or [None]))
        if not options.estimate:
            raise no_budget(costs.get(settings.gradient, costs["param_shift"]))
        for gradient, cost in costs.items():
            print(f"--gradient {gradient}: {cost}")
        return
    where = f"{options.actors or cores()} x {settings.backend}"
    if settings.backend == "ibm":
        where = " and ".join(options.devices or ["the least busy device"])
    print(f"Run {folder}: epochs {first} to {settings.epochs} on {where}; starting ...", flush=True)
    with starting_pool(options, folder) as starting:
        report(folder, train(options, folder, start, starting, signals), other)
    close_left_sessions(options, folder)


def train(
    options: Namespace,
    folder: RunFolder,
    start: Checkpoint | None,
    starting: Future[LauncherPool],
    signals: StopSignals,
) -> Checkpoint:
    """Train, saving after each epoch and when something stops it; the last checkpoint."""
    from training.backends import make_simulator
    from training.loop import Training
    from training.report import make_bar, show

    # Until the pool has started.
    training = Training(options.settings, make_simulator(options.settings), start)
    on_hardware = options.settings.backend == "ibm"
    pool = starting.result()
    signals.install()
    if on_hardware:  # which device gets which rows must not depend on who was faster
        pool.wait(timeout=_DEVICES_SECONDS)
    training.model.circuit.backend = pool
    steps, checkpoint = training.steps(), training.checkpoint
    checkpoint.save(folder)
    if (options.workers or 1) > 1:
        from training.workers import steps_of_workers

        steps = steps_of_workers(checkpoint, pool, folder, options.workers)
    elif options.lanes is not None:
        from training.lanes import steps_of_lanes

        steps = steps_of_lanes(training, pool, options.lanes)
    try:
        with make_bar(checkpoint, training.steps_per_epoch) as bar:
            for checkpoint in steps:
                show(checkpoint, training.steps_per_epoch, bar)
                # A step on a device takes up to hours, a checkpoint milliseconds.
                if checkpoint.progress.batch == 0 or on_hardware:
                    checkpoint.save(folder)
                signals.check()
    except BaseException:
        how = f"{save_stopped(checkpoint, folder)} To go on:\n  {options.again}"
        print(f"\n{how}{paid(folder, checkpoint)}", file=sys.stderr, flush=True)
        raise
    return checkpoint


@contextlib.contextmanager
def starting_pool(options: Namespace, folder: RunFolder) -> Iterator[Future[LauncherPool]]:
    """Start the actors in a thread, while torch is imported; close them in the end."""
    from training.backends import make_backends, open_pool

    backends, workers = make_backends(options, folder), options.workers or 1
    # Ray takes 15 s to end when the thread that began it has ended before.
    with ThreadPoolExecutor(1) as thread, contextlib.ExitStack() as closing:
        processes = workers if workers > 1 else 0
        starting = thread.submit(open_pool, closing, options, backends, processes)
        try:
            yield starting
        finally:
            wait([starting])


def run_to_compare(options: Namespace) -> tuple[RunFolder, Checkpoint] | None:
    """The run that ``--compare`` names, if it does."""
    if options.compare is None:
        return None
    from training.checkpoint import Checkpoint

    folder = RunFolder(*storage_and_name(options.compare, options.storage))
    found = Checkpoint.of_run(folder)
    if not found.history:
        raise InputError(f"--compare {options.compare}: that run has not finished an epoch yet")
    return folder, found


def report(
    folder: RunFolder, checkpoint: Checkpoint, other: tuple[RunFolder, Checkpoint] | None
) -> None:
    """Draw and print what a finished run has come to."""
    from training.report import write_report

    print(write_report(folder, checkpoint, other) + paid(folder, checkpoint), flush=True)


def close_left_sessions(options: Namespace, folder: RunFolder) -> None:
    """Close, or name, what a killed run has left open."""
    if options.settings.backend == "ibm":
        from training.backends import close_sessions

        close_sessions(folder, **(options.backend_options or {}))


def save_stopped(checkpoint: Checkpoint, folder: RunFolder) -> str:
    """Save a run that something stops, and say how far it is."""
    done, kept = checkpoint.progress, f"saved in {folder}"
    try:
        checkpoint.save(folder)
    except OSError as error:
        kept = f"{folder} keeps its last checkpoint, for this one cannot be saved ({error})"
    epochs = checkpoint.settings.epochs
    return f"Stopped after {done.epoch} of {epochs} epochs and {done.batch} steps; {kept}."


def paid(folder: RunFolder, checkpoint: Checkpoint) -> str:
    """The command that lists the jobs of a run on hardware, and what they came to."""
    if checkpoint.settings.backend != "ibm":
        return ""
    return "\nIts jobs: " + shlex.join(["python", "-m", "qailab.journal", str(folder.journal)])


class StopSignals:
    """Raises `KeyboardInterrupt` at the first SIGINT or SIGTERM; a context manager.

    Later ones are answered with a line of text: the checkpoint is being written then.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def check(self) -> None:
        """Raise the interrupt again: Python drops one raised in a destructor or a C callback."""
        if self.received is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, _: object) -> None:
        signal.alarm(0)  # until `install`, a handler of Ray's comes first: an abort in 3 s
        if self.received is None:
            self.received = number
            raise KeyboardInterrupt
        os.write(2, b"\nAlready stopping ...\n")  # print must not interrupt a print

    def install(self) -> list[Any]:
        """Handle the signals, also when Ray has begun to; return what handled them before."""
        return [signal.signal(number, self._handle) for number in _SIGNALS]

    def __enter__(self) -> StopSignals:
        self._before = self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in zip(_SIGNALS, self._before, strict=True):
            signal.signal(number, before)


if __name__ == "__main__":
    sys.exit(main())
