"""One run from its beginning, or from where it stopped, to its report."""

from __future__ import annotations

import datetime
import math
import shlex
import sys
from dataclasses import dataclass

import torch

from qailab.backends import AerBackend
from qailab.distributed import LauncherPool
from qailab.errors import QailabError
from training.data import CLASSES, PIXELS, Digits
from training.display import Display
from training.interrupts import Interrupts
from training.model import HybridClassifier, make_backend
from training.options import Config, Options
from training.report import write_report
from training.runs import Checkpoint, RunFolder
from training.trainer import Trainer


@dataclass(frozen=True, eq=False)
class Session:
    """A run whose settings are known to be good; nothing has run yet.

    Args:
        options: the command line.
        config: the settings.
        folder: the run's folder.
        resume: the state to start from; None for a new run.
        digits: the data.
        backend: the simulators' recipe.
        model: the classifier.
    """

    options: Options
    config: Config
    folder: RunFolder
    resume: Checkpoint | None
    digits: Digits
    backend: AerBackend
    model: HybridClassifier

    @classmethod
    def prepare(cls, options: Options) -> Session:
        """Look at everything that can be wrong before anything is written or started.

        Raises:
            InputError: if an option does not fit the data, or the name is taken.
            CheckpointError: if there is no such run to go on with, or it is another one.
            CircuitError, BackendError: if the circuit does not fit the simulator.
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
        # One thread and fixed algorithms: sums in the same order, bit for bit, on any machine load.
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        backend = make_backend(config.backend)
        model = HybridClassifier(config, backend)
        return cls(options, config, folder, resume, Digits.load(config.samples), backend, model)

    def run(self, interrupts: Interrupts) -> None:
        """Train, and report.

        Raises:
            QailabError: whatever ends the training; the checkpoint is saved then.
            KeyboardInterrupt: on Ctrl-C; the checkpoint is saved then.
        """
        actors = self.options.actors
        with LauncherPool([self.backend] * actors, address=self.options.address) as pool:
            interrupts.install()
            self.model.circuit.backend = pool
            self._train(pool, interrupts)

    def _train(self, pool: LauncherPool, interrupts: Interrupts) -> None:
        steps = math.ceil(len(self.digits.train_labels) / self.config.batch_size)
        trainer = Trainer(
            self.model,
            self.digits,
            self.config,
            self.folder,
            count_rows=lambda: pool.stats()["rows"],
            resume=self.resume,
        )
        print(self._introduction(steps), flush=True)
        if self.resume is None:
            self.folder.create()
        try:
            with Display(self.config, trainer.checkpoint, steps, interrupts.check) as display:
                trainer.run(on_batch=display.on_batch, on_epoch=display.on_epoch)
            print(write_report(self.folder, trainer.checkpoint), flush=True)
        except (KeyboardInterrupt, QailabError):
            self.folder.save(trainer.checkpoint)
            done = trainer.checkpoint.progress
            print(
                f"\nStopped after {done.epoch} of {self.config.epochs} epochs and {done.batch} of "
                f"{steps} steps; saved in {self.folder.path}. To go on:\n"
                f"  {self.resume_command()}",
                file=sys.stderr,
                flush=True,
            )
            raise

    def resume_command(self) -> str:
        """The command that goes on with this run."""
        # Where scripts/train made the interpreter, scripts/train is the way to come back.
        by_script = sys.prefix != sys.base_prefix and sys.prefix.endswith("/.venv")
        program = ["scripts/train"] if by_script else [sys.executable, sys.argv[0]]
        run = self.folder.path
        where = [] if str(run.parent) == "runs" else ["--runs-dir", str(run.parent)]
        return shlex.join([*program, "--resume", run.name, *where, *self.options.place])

    def _introduction(self, steps: int) -> str:
        config, model, digits = self.config, self.model, self.digits
        problem = model.circuit.problem
        start = ""
        if self.resume is not None:
            done = self.resume.progress
            start = f", from epoch {done.epoch + 1}, step {done.batch + 1}"
        actors = "1 Ray actor" if self.options.actors == 1 else f"{self.options.actors} Ray actors"
        rows = model.rows_per_step(min(config.batch_size, len(digits.train_labels)))
        return (
            f"Run {self.folder.path}{start}: {PIXELS} pixels -> linear -> {problem.num_inputs} "
            f"angles -> circuit of {config.qubits} qubits and {problem.num_weights} weights -> "
            f"{problem.num_outcomes} probabilities -> linear -> {CLASSES} digits "
            f"({model.num_weights:,} weights in all).\n"
            f"{len(digits.train_labels):,} training and {len(digits.test_labels):,} test samples; "
            f"{config.epochs} epoch{'' if config.epochs == 1 else 's'} of {steps} steps; "
            f"{rows:,} rows of {config.shots:,} shots for each step, on {actors} with "
            f"{self.backend!r}."
        )
