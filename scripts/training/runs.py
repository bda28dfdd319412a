"""The folder of a run: where it is, and the checkpoint in it.

::

    runs/<name>/config.json      settings
                checkpoint.pt    everything that the rest of the run depends on
                metrics.jsonl    one line for each finished epoch
                curves.png, confusion.png
                journal.sqlite   with --backend ibm: jobs on hardware, and their results

The checkpoint is the truth; the other files are made of it, so that they agree with it after a
crash at any moment. It is written to a file beside it that then takes its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from qailab.errors import CheckpointError, InputError
from training.checkpoint import Checkpoint, replace
from training.settings import Config
from training.storage import Mirror


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
        if folder.path.exists():
            raise folder._taken()
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
            beside = link.with_name(f".{link.name}.new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(elsewhere.absolute())
            os.replace(beside, link)

    def create(self) -> None:
        """Make the folder of a new run.

        Raises:
            InputError: if another run took the name meanwhile, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise self._taken() from None
        except OSError as error:
            raise InputError(f"cannot make the run's folder {self.path}: {error}") from error

    def discard(self, *, only_empty: bool = False) -> None:
        """Remove the folder of a run that could not begin.

        Args:
            only_empty: leave it if there is something in it, which may be another program's.
        """
        if not only_empty:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, then the files that are made of it."""
        checkpoint.save(self.checkpoint)
        settings = json.dumps(dataclasses.asdict(checkpoint.config), indent=2) + "\n"
        replace(self.path / "config.json", lambda beside: beside.write_text(settings))
        lines = "".join(json.dumps(dataclasses.asdict(m)) + "\n" for m in checkpoint.history)
        replace(self.metrics, lambda beside: beside.write_text(lines))
        self._push(self.checkpoint, self.path / "config.json", self.metrics)

    def save_step(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint alone, in the middle of an epoch."""
        checkpoint.save(self.checkpoint)
        self._push(self.checkpoint)

    def save_pictures(self, curves: Figure, confusion: Figure, dpi: int) -> None:
        """Write the pictures of a finished run."""
        curves.savefig(self.curves, dpi=dpi)
        confusion.savefig(self.confusion, dpi=dpi)
        self._push(self.curves, self.confusion)

    def load(self, given: dict[str, Any]) -> Checkpoint:
        """The checkpoint, with the number of epochs that is asked for.

        Args:
            given: settings that were asked for explicitly.

        Raises:
            CheckpointError: if there is none, it is damaged, or it is of a run with other
                settings than asked for or than ``config.json`` says.
        """
        checkpoint = Checkpoint.load(self.checkpoint)
        config, progress = checkpoint.config, checkpoint.progress
        written = self._written_config()
        if written is not None:
            config.check_same(
                dataclasses.asdict(written),
                mine=str(self.checkpoint),
                theirs=str(self.path / "config.json"),
            )
        config.check_same(given, mine=f"the run {self.path}", theirs="the command line")
        epochs = given.get("epochs", config.epochs)
        begun = progress.epoch + (progress.batch > 0)
        if epochs < begun:
            raise CheckpointError(
                f"the run {self.path} has already begun epoch {begun}, so --epochs {epochs} "
                f"cannot be; give at least {begun}, or leave --epochs out for {config.epochs}"
            )
        return dataclasses.replace(checkpoint, config=dataclasses.replace(config, epochs=epochs))

    def _push(self, *paths: Path) -> None:
        if self.mirror is not None:
            self.mirror.push(*paths)

    def _written_config(self) -> Config | None:
        path = self.path / "config.json"
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:  # killed between the first checkpoint and its config
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; mend or delete it") from error
        return Config.from_dict(values, str(path))

    def _taken(self) -> InputError:
        return InputError(
            f"there is already something at {self.path}; give another --name, or go on with that "
            f"run: --resume {self.path.name}"
        )
