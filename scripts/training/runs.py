"""The folder of a run: where it is, and the checkpoint in it.

::

    runs/<name>/config.json      settings
                checkpoint.pt    everything that the rest of the run depends on
                metrics.jsonl    one line for each finished epoch
                curves.png, confusion.png
                journal.sqlite   with --backend ibm: jobs on hardware, and their results
                .lock            of the program that trains the run

The checkpoint is the truth; the other files are made of it, so that they agree with it after a
crash at any moment. It is written to a file beside it that then takes its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from qailab.errors import CheckpointError, InputError, JournalError
from qailab.journal import Journal
from training.checkpoint import NEW, Checkpoint, beside, no_checkpoint, replace
from training.settings import Config
from training.storage import Mirror

CONFIG = "config.json"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Args:
        path: where it is.
        mirror: where its files are copied to whenever they are written.
    """

    path: Path
    mirror: Mirror | None = None

    @classmethod
    def new(cls, runs_dir: Path, name: str) -> RunFolder:
        """The folder of a run that does not exist yet; nothing is made.

        Raises:
            InputError: if the name is taken.
        """
        folder = cls(runs_dir / name)
        folder.check_free()
        return folder

    @classmethod
    def find(cls, runs_dir: Path, run: str) -> RunFolder:
        """The folder of an existing run, by its name or its path.

        Raises:
            CheckpointError: if there is none.
        """
        for path in (runs_dir / run, Path(run)):
            if path.is_dir():
                return cls(path)
        found = sorted(p.parent.name for p in runs_dir.glob("*/checkpoint.pt"))
        raise CheckpointError(
            f"there is no run {run!r}, neither a folder of that name nor one in {runs_dir}; "
            f"runs there: {', '.join(found) or 'none'}"
        )

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on."""
        return self.path / "checkpoint.pt"

    @property
    def config(self) -> Path:
        """The settings, to be read by people and other programs."""
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        """One JSON object for each finished epoch."""
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """Loss and accuracy by epoch, drawn."""
        return self.path / "curves.png"

    @property
    def confusion(self) -> Path:
        """Which digits are taken for which, drawn."""
        return self.path / "confusion.png"

    @property
    def journal(self) -> Path:
        """Jobs on hardware and their results, or a link to the file that has them."""
        return self.path / "journal.sqlite"

    def link_journal(self, elsewhere: Path) -> None:
        """Note that the journal is elsewhere: who resumes the run must not pay for jobs again.

        A journal that is in the folder itself stays as it is.
        """
        link = self.journal
        if link.is_symlink() or not link.exists():
            new = beside(link)
            new.symlink_to(elsewhere.absolute())
            os.replace(new, link)

    def check_free(self) -> None:
        """Check that no run is here, and nothing else.

        What a program leaves that is killed before its first checkpoint is nothing: hidden files,
        and a journal, of which a new run of the same settings takes what was paid for.

        Raises:
            InputError: if there is something.
        """
        if self.checkpoint.is_file():
            raise InputError(
                f"there is already something at {self.path}; give another --name, or go on with "
                f"that run: --resume {self.path.name}"
            )
        names = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        if any(not name.startswith((".", self.journal.name)) for name in names) or (
            self.path.exists() and not self.path.is_dir()
        ):
            raise InputError(
                f"there is something at {self.path}, and it has no checkpoint.pt to go on from; "
                "give another --name"
            )

    def discard(self) -> None:
        """Remove the files of a run that could not begin, unless its journal has jobs."""
        journals = self.path.glob(f"{self.journal.name}*")
        with contextlib.suppress(OSError, JournalError):
            if self.journal.is_file() and not self.journal.is_symlink():
                with Journal(self.journal) as journal:
                    if journal.totals().jobs:
                        return
            for path in (self.checkpoint, self.config, self.metrics, *journals):
                path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what programs that were killed have half written."""
        for path in self.path.glob(f".*{NEW}"):
            path.unlink(missing_ok=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, then the files that are made of it.

        Raises:
            SaveError: if one cannot be written.
            StorageError: if all are written, but cannot be copied.
        """
        checkpoint.save(self.checkpoint)
        settings = json.dumps(dataclasses.asdict(checkpoint.config), indent=2) + "\n"
        replace(self.config, lambda new: new.write_text(settings))
        lines = "".join(json.dumps(dataclasses.asdict(m)) + "\n" for m in checkpoint.history)
        replace(self.metrics, lambda new: new.write_text(lines))
        self._push(self.checkpoint, self.config, self.metrics)

    def save_step(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint alone, in the middle of an epoch."""
        checkpoint.save(self.checkpoint)
        self._push(self.checkpoint)

    def save_pictures(self, curves: Figure, confusion: Figure, dpi: int) -> None:
        """Write the pictures of a finished run."""
        replace(self.curves, lambda new: curves.savefig(new, dpi=dpi, format="png"))
        replace(self.confusion, lambda new: confusion.savefig(new, dpi=dpi, format="png"))
        self._push(self.curves, self.confusion)

    def read(self, name: str) -> bytes | None:
        """What is in the file of this name; None if there is none.

        Raises:
            CheckpointError: if it cannot be read.
        """
        path = self.path / name
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}; mend or delete it") from error

    def load(self, given: dict[str, Any]) -> Checkpoint:
        """The checkpoint, with the number of epochs that is asked for.

        Args:
            given: settings that were asked for explicitly.

        Raises:
            CheckpointError: if there is none, it is damaged, or it is of a run with other
                settings than asked for or than ``config.json`` says.
        """
        checkpoint = self.find_checkpoint(given)
        if checkpoint is None:
            raise no_checkpoint(self.mirror or self.path)
        return checkpoint

    def find_checkpoint(self, given: dict[str, Any]) -> Checkpoint | None:
        """The same, or None if there is none.

        With a mirror there are two copies. One may be damaged, and either may be the older one:
        whichever is further counts.
        """
        copies: list[Checkpoint] = []
        damaged: list[CheckpointError] = []
        for place in (self,) if self.mirror is None else (self, self.mirror):
            content = place.read(self.checkpoint.name)
            if content is None:
                continue
            try:
                copy = Checkpoint.from_bytes(content, f"{place}/{self.checkpoint.name}")
            except CheckpointError as error:
                damaged.append(error)
                continue
            _check_written(copy.config, place)
            copy.config.check_same(given, mine=f"the run {place}", theirs="the command line")
            if copies:
                known = dataclasses.asdict(copies[0].config)
                copy.config.check_same(known, mine=f"the run {place}", theirs=str(self))
            copies.append(copy)
        if not copies:
            if damaged:
                raise damaged[0]
            return None
        checkpoint = max(copies, key=lambda copy: copy.progress.place)
        config, progress = checkpoint.config, checkpoint.progress
        epochs = given.get("epochs", config.epochs)
        begun = progress.epoch + (progress.batch > 0)
        if epochs < begun:
            raise CheckpointError(
                f"the run {self.path} has already begun epoch {begun}, so --epochs {epochs} "
                f"cannot be; give at least {begun}; it was begun for {config.epochs}"
            )
        return dataclasses.replace(checkpoint, config=dataclasses.replace(config, epochs=epochs))

    def __str__(self) -> str:
        return str(self.path)

    def _push(self, *paths: Path) -> None:
        if self.mirror is not None:
            self.mirror.push(*paths)


def _check_written(config: Config, place: RunFolder | Mirror) -> None:
    """Check that ``config.json`` says the same as the checkpoint beside it."""
    content = place.read(CONFIG)
    if content is None:  # killed between the first checkpoint and its config
        return
    path = f"{place}/{CONFIG}"
    try:
        written = Config.from_dict(json.loads(content), path)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}; mend or delete it") from error
    config.check_same(dataclasses.asdict(written), mine=f"{place}/checkpoint.pt", theirs=path)
