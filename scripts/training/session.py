"""One run from its beginning, or from where it stopped, to its report."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qailab.backends import Backend
from qailab.distributed import LauncherPool
from qailab.errors import InputError, PoolError, QailabError
from training.checkpoint import Checkpoint, Progress, SaveError
from training.claim import claim
from training.cost import cost_table, run_costs
from training.data import Digits
from training.display import Display
from training.interrupts import Interrupts
from training.messages import finished, introduction, journal_line, shots, stopped
from training.model import HybridClassifier, make_backend, make_deterministic
from training.options import Options, cores
from training.place import connected, open_post, wait_for_devices
from training.report import write_report
from training.runs import RunFolder
from training.settings import Config
from training.starting import Start
from training.storage import StorageError
from training.together import Together, clear
from training.trainer import Trainer
from training.workers import Work


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
        start = Start.find(options)
        folder, config, resume = start.folder, start.config, start.resume
        make_deterministic()
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
            f"{self.config.batch_size} samples, rows {shots(self.config)}, on "
            f"{devices} device{'' if devices == 1 else 's'}:\n"
            f"{cost_table(run_costs(*self._whole(), devices))}"
        )

    def run(self, interrupts: Interrupts) -> None:
        """Train, and report.

        Raises:
            InputError: if another program is at this run, or the folder cannot be written.
            CheckpointError: if the run is not any more what it was.
            QailabError: whatever ends the training; the checkpoint is saved then.
            KeyboardInterrupt: on Ctrl-C; the checkpoint is saved then.
        """
        if self.folder.mirror is not None:
            self.folder.mirror.probe()
        new = self.options.storage is None and self.resume is None
        with (
            claim(self.folder.path, interrupts.check, wait=not new),
            self._held(interrupts) as post,
        ):
            # What was there before may have changed: others were at it until now.
            if new:
                self.folder.check_free()
                self._begin(post, interrupts)
            else:
                Session.prepare(self.options)._begin(post, interrupts)

    @contextlib.contextmanager
    def _held(self, interrupts: Interrupts) -> Iterator[Any]:
        """Hold a run at a URI, where no file can be locked, in the Ray cluster; its post."""
        if self.folder.mirror is None:
            yield None
            return
        with connected(self.options.address, self._cpus()):
            interrupts.install()
            with open_post(str(self.folder.mirror), interrupts.check) as post:
                yield post

    def _begin(self, post: Any, interrupts: Interrupts) -> None:
        began = False
        try:
            trainer = self._trainer()
            self.folder.tidy()
            if self.resume is not None:
                clear(self.folder)
            # Before anything can be sent: whoever is killed then has a run to go on with.
            dataclasses.replace(self.folder, mirror=None).save(trainer.checkpoint)
            if self.config.backend == "ibm" and self.options.hardware.journal is not None:
                self.folder.link_journal(self.options.hardware.journal)
            if trainer.checkpoint.progress.epoch == self.config.epochs:
                self.folder.save(trainer.checkpoint)  # its mirror may be behind
                print(finished(self))
                self._report(trainer)
                return
            with self._placed(trainer, post, interrupts) as (team, actors):
                began = True
                self._train(team, actors, interrupts)
        finally:
            if self.resume is None and not began:
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

    @contextlib.contextmanager
    def _placed(
        self, trainer: Trainer, post: Any, interrupts: Interrupts
    ) -> Iterator[tuple[Trainer | Together, int]]:
        """Actors, and workers if there are more than one: who trains, and how many actors."""
        options, placement, workers = self.options, self.options.placement, self._workers
        with contextlib.ExitStack() as stack:
            if workers:
                stack.callback(clear, self.folder)  # last, when no worker is left to write
            if workers or placement.actors_per_node is not None:
                stack.enter_context(connected(options.address, self._cpus()))
            placed = self._actor_options()
            backends = [*self.backends]
            if placement.actors_per_node is not None:
                backends = backends[:1] * len(placed)
            pool = None
            if options.pool != "per-worker":
                more = {"actor_options": placed} if any(placed) else {}
                # Workers that share it would each show its progress, between the program's lines.
                pool = LauncherPool(backends, address=options.address, progress=not workers, **more)
                self.model.circuit.backend = stack.enter_context(pool)
            elif len(backends) < workers:
                raise InputError(
                    f"--pool per-worker needs an actor for each of {workers} workers, and "
                    f"--placement {placement} gives {len(backends)}; give more actors-per-node, "
                    "fewer --workers, or --pool shared"
                )
            interrupts.install()
            if workers and post is None:
                post = stack.enter_context(open_post(None, interrupts.check))
            if pool is not None and self.config.backend == "ibm":
                wait_for_devices(pool, interrupts)
            if not workers:
                yield trainer, len(backends)
                return
            given = Work(trainer.checkpoint.to_bytes(), backends, placed, pool, post)
            start = trainer.checkpoint
            team = Together(start, self.folder, workers, placement, given, interrupts.check)
            yield team, len(backends)

    @property
    def _workers(self) -> int:
        """How many there are, 0 if this process trains alone."""
        return self.options.workers if self.options.workers > 1 else 0

    def _cpus(self) -> float:
        """CPUs that a Ray of this machine alone must have."""
        each = self.backends[0].resources.num_cpus
        return self.options.placement.cpus_for(len(self.backends), each, self._workers)

    def _actor_options(self) -> list[dict[str, Any]]:
        nodes, each = [], self.backends[0].resources.num_cpus
        if self.options.placement.actors_per_node is not None:
            import ray

            nodes = ray.nodes()
        return self.options.placement.actor_options(nodes, len(self.backends), each)

    def _train(self, trainer: Trainer | Together, actors: int, interrupts: Interrupts) -> None:
        print(introduction(self, actors), flush=True)
        if self.config.backend == "ibm":
            costs = run_costs(*self._whole(), self.options.hardware.num_devices)
            print("".join(f"It takes {cost}.\n" for cost in costs[:1]), end="", flush=True)
        try:
            with Display(self.config, trainer.checkpoint, self.steps, interrupts.check) as display:
                trainer.run(on_batch=display.on_batch, on_epoch=display.on_epoch)
            self._report(trainer)
        except (KeyboardInterrupt, QailabError, OSError, *_ray_errors()) as error:
            saved = True
            try:
                self.folder.save(trainer.checkpoint)
            except StorageError:
                pass  # in the folder it is saved even so
            except SaveError:
                saved = False
            text = stopped(self, trainer.checkpoint.progress, error, saved=saved)
            print(text, file=sys.stderr, flush=True)
            if isinstance(error, _ray_errors()):
                first_line = (str(error).splitlines() or [""])[0]
                raise PoolError(f"Ray failed ({type(error).__name__}: {first_line})") from error
            raise

    def _report(self, trainer: Trainer | Together) -> None:
        print(write_report(self.folder, trainer.checkpoint), flush=True)
        if self.config.backend == "ibm":
            print(journal_line(self), flush=True)


def _ray_errors() -> tuple[type[BaseException], ...]:
    """What Ray raises by itself; it is imported when something has failed, not before."""
    from ray.exceptions import RayError

    return (RayError,)


def _backends(options: Options, config: Config, folder: RunFolder) -> Sequence[Backend]:
    placement = options.placement
    if config.backend != "ibm":
        actors = options.actors or max(cores(), options.workers)
        return [make_backend(config.backend, placement.device)] * actors
    journal = options.hardware.journal
    if journal is not None and not journal.absolute().parent.is_dir():
        raise InputError(f"--journal {journal}: there is no folder {journal.parent}; make it first")
    if journal is None and folder.mirror is not None:
        raise InputError(
            f"--storage {folder.mirror} keeps no journal, and without it rows are paid again "
            "when the run goes on elsewhere: give --journal PATH in a directory that stays"
        )
    sessions = placement.sessions_per_qpu or 1
    return options.hardware.backends(folder.journal if journal is None else journal, sessions)
