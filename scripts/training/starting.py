"""Where a run begins: at its beginning, or at the checkpoint of the same name."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass

from training.checkpoint import Checkpoint
from training.options import Options
from training.runs import RunFolder
from training.settings import Config
from training.storage import Mirror, directory


@dataclass(frozen=True, eq=False)
class Start:
    """Where a run begins.

    Args:
        folder: the run's folder.
        config: its settings.
        resume: the state to go on from; None for the beginning.
    """

    folder: RunFolder
    config: Config
    resume: Checkpoint | None

    @classmethod
    def find(cls, options: Options) -> Start:
        """Find it.

        Raises:
            InputError: if the name is taken by something else, or the storage cannot be reached.
            CheckpointError: if there is no run to resume, or it has other settings.
        """
        if options.storage is not None:
            return cls._stored(options, options.storage)
        if options.resume is not None:
            return cls._at(RunFolder.find(options.runs_dir, options.resume), options)
        name = options.name or f"digits-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        return cls(RunFolder.new(options.runs_dir, name), Config(**options.given), None)

    @classmethod
    def _stored(cls, options: Options, storage: str) -> Start:
        """The same command line begins the run and goes on with it."""
        name = options.name or options.resume
        assert name is not None  # as the options were checked
        runs_dir = directory(storage)
        if runs_dir is None:
            folder = RunFolder(options.runs_dir / name, Mirror.open(storage, name))
        else:
            folder = RunFolder(runs_dir / name)
        if options.resume is not None:
            return cls._at(folder, options)
        # A name that is given again stands for all settings, not only for those that are given
        # too: it must not go on with a run that somebody else began under this name.
        config = Config(**options.given)
        resume = folder.find_checkpoint(dataclasses.asdict(config))
        if resume is None:
            folder.check_free()
        return cls(folder, config, resume)

    @classmethod
    def _at(cls, folder: RunFolder, options: Options) -> Start:
        """At the folder's checkpoint."""
        resume = folder.load(options.given)
        options.check_backend(resume.config.backend)
        return cls(folder, resume.config, resume)
