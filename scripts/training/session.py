"""One run from its beginning, or from where it stopped, to its report."""

from __future__ import annotations

import datetime
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qailab.backends import Backend
from qailab.distributed import LauncherPool
from qailab.errors import BackendBuildError, InputError, QailabError
from training.cost import cost_table, run_costs
from training.data import Digits
from training.display import Display
from training.interrupts import Interrupts
from training.messages import introduction, journal_line, stopped
from training.model import HybridClassifier, make_backend
from training.options import Config, Options, cores
from training.report import write_report
from training.runs import Checkpoint, Progress, RunFolder
from training.trainer import Trainer

_DEVICES_SECONDS = 120.0
"""For all devices to be connected to: a connection is tried for 30 s, and processes start first."""


@dataclass(frozen=True, eq=False)
class Session:
    """A run whose settings are known to be good; nothing has run yet.

    Args:
        options: the command line.
        config: the settings.
        folder: the run's folder.
        resume: the state to start from; None for a new run.
        digits: the data.
        backends: the recipe of each actor.
        model: the classifier.
    """

    options: Options
    config: Config
    folder: RunFolder
    resume: Checkpoint | None
    digits: Digits
    backends: Sequence[Backend]
    model: HybridClassifier

    @classmethod
    def prepare(cls, options: Options) -> Session:
        """Look at everything that can be wrong before anything is written or started.

        Raises:
            InputError: if an option does not fit the data, or the name is taken.
            CheckpointError: if there is no such run to go on with, or it is another one.
            CircuitError, BackendError: if the circuit does not fit the simulator.
            JournalError: if the journal is another model's, or none.
        """
        if options.resume is None:
            resume = None
            config = Config(**options.given)
            now = datetime.datetime.now()
            name = options.name or f"digits-{now:%Y%m%d-%H%M%S}"
            folder = RunFolder.new(options.runs_dir, name)
        else:
            folder = RunFolder.find(options.runs_dir, options.resume)
            resume = folder.load(options.given)
            config = resume.config
            options.check_backend(config.backend)
        # One thread and fixed algorithms: sums in the same order, bit for bit, on any machine load.
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        backends = _backends(options, config, folder)
        # An estimate asks no backend anything; one of IBM would look into its journal.
        first = make_backend("aer") if options.estimate else backends[0]
        model = HybridClassifier(config, first)
        return cls(options, config, folder, resume, Digits.load(config.samples), backends, model)

    def estimate(self) -> None:
        """Print what the run, or the rest of it, costs on hardware. Nothing is sent."""
        devices = self.options.hardware.num_devices
        rest = "The run" if self.resume is None else f"The rest of the run {self.folder.path}"
        print(
            f"{rest} takes, in {self.config.epochs} epochs of {self.steps} steps of "
            f"{self.config.batch_size} samples, {self.config.shots:,} shots a row, on "
            f"{devices} device{'' if devices == 1 else 's'}:\n"
            f"{cost_table(run_costs(*self._whole(), devices))}"
        )

    def run(self, interrupts: Interrupts) -> None:
        """Train, and report.

        Raises:
            QailabError: whatever ends the training; the checkpoint is saved then.
            KeyboardInterrupt: on Ctrl-C; the checkpoint is saved then.
        """
        new = self.resume is None
        if new:
            self.folder.create()
        began = False
        try:
            trainer = self._trainer()
            # Before anything can be sent: whoever is killed then has a run to go on with.
            self.folder.save(trainer.checkpoint)
            if self.config.backend == "ibm" and self.options.hardware.journal is not None:
                self.folder.link_journal(self.options.hardware.journal)
            with LauncherPool(self.backends, address=self.options.address) as pool:
                interrupts.install()
                self.model.circuit.backend = pool
                if self.config.backend == "ibm":
                    _wait_for_devices(pool, interrupts)
                began = True
                self._train(trainer, interrupts)
        finally:
            if new and not began:
                self.folder.discard()

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.digits.train_labels) / self.config.batch_size)

    def _whole(self) -> tuple[HybridClassifier, Digits, Config, Progress]:
        done = Progress() if self.resume is None else self.resume.progress
        return self.model, self.digits, self.config, done

    def _trainer(self) -> Trainer:
        return Trainer(
            self.model,
            self.digits,
            self.config,
            self.folder,
            count_rows=lambda: self.model.circuit.backend.stats()["rows"],  # the pool's, by then
            resume=self.resume,
        )

    def _train(self, trainer: Trainer, interrupts: Interrupts) -> None:
        print(introduction(self), flush=True)
        if self.config.backend == "ibm":
            costs = run_costs(*self._whole(), self.options.hardware.num_devices)
            print("".join(f"It takes {cost}.\n" for cost in costs[:1]), end="", flush=True)
        try:
            with Display(self.config, trainer.checkpoint, self.steps, interrupts.check) as display:
                trainer.run(on_batch=display.on_batch, on_epoch=display.on_epoch)
            print(write_report(self.folder, trainer.checkpoint), flush=True)
            if self.config.backend == "ibm":
                print(journal_line(self), flush=True)
        except (KeyboardInterrupt, QailabError) as error:
            self.folder.save(trainer.checkpoint)
            print(stopped(self, trainer.checkpoint.progress, error), file=sys.stderr, flush=True)
            raise


def _backends(options: Options, config: Config, folder: RunFolder) -> Sequence[Backend]:
    if config.backend != "ibm":
        actors = cores() if options.actors is None else options.actors
        return [make_backend(config.backend)] * actors
    journal = options.hardware.journal
    if journal is not None and not journal.absolute().parent.is_dir():
        raise InputError(f"--journal {journal}: there is no folder {journal.parent}; make it first")
    return options.hardware.backends(folder.journal if journal is None else journal)


def _wait_for_devices(pool: LauncherPool, interrupts: Interrupts) -> None:
    """Wait for all devices: which of them get which rows must not depend on who was faster.

    Raises:
        BackendBuildError: if one cannot be used.
        PoolError: if one is not ready in time.
    """
    end = time.monotonic() + _DEVICES_SECONDS
    while any(actor["state"] != "ready" for actor in pool.stats()["actors"]):
        if time.monotonic() > end:
            pool.wait(timeout=0)  # says why not
        for actor in pool.stats()["actors"]:
            if actor["state"] == "aside":
                raise BackendBuildError(
                    f"{actor['backend']} cannot be used: {_last_trouble(pool)}; mend that, or "
                    "leave it out of --devices"
                )
        time.sleep(0.05)
        interrupts.check()


def _last_trouble(pool: LauncherPool) -> str:
    """Why an actor was set aside, which a pool says when it is waited for."""
    try:
        pool.wait(timeout=0)
    except QailabError as error:
        return str(error).splitlines()[-1]
    return "it was not ready"
