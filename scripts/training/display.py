"""What is seen while it trains: a progress bar on a terminal, and a line for each epoch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from training.checkpoint import Checkpoint, EpochMetrics, Progress
from training.settings import Config

EVERY = "QAILAB_PROGRESS"
"""Environment variable: where there is no terminal, the bar is a line every so many seconds."""
_LINE_COLUMNS = 100
_BAR = "{desc} {bar} {percentage:3.0f}%{postfix}, {remaining} left"


class BarLines:
    """Each state of a bar as a line of its own, for logs that somebody follows.

    Args:
        out: the log.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    @property
    def encoding(self) -> str:
        """The log's, which says what a bar can be drawn with."""
        return self._out.encoding

    def write(self, text: str) -> None:
        """Take what a bar writes to redraw itself."""
        state = text.replace("\r", "").replace("\x1b[A", "").strip()
        if state:
            self._out.write(state + "\n")

    def flush(self) -> None:
        """Pass on what was written."""
        self._out.flush()


def _line_seconds() -> float:
    """How often a line is wanted; 0 for none, as on a terminal."""
    try:
        seconds = float(os.environ.get(EVERY, 0))
    except ValueError:
        return 0.0
    return 0.0 if sys.stderr.isatty() else max(0.0, seconds)


class Display:
    """A context manager; its two methods are the trainer's callbacks.

    Args:
        config: the settings of the run.
        start: where the run starts.
        steps_per_epoch: batches of an epoch.
        check: called after each step and epoch.
    """

    def __init__(
        self, config: Config, start: Checkpoint, steps_per_epoch: int, check: Callable[[], None]
    ) -> None:
        self._epochs = config.epochs
        self._steps = steps_per_epoch
        self._check = check
        self._seconds = [metrics.seconds for metrics in start.history]
        every = _line_seconds()
        self._bar = tqdm(
            total=config.epochs * steps_per_epoch,
            initial=start.progress.epoch * steps_per_epoch + start.progress.batch,
            desc=f"epoch {min(start.progress.epoch + 1, config.epochs)}/{config.epochs}",
            bar_format=_BAR,
            file=BarLines(sys.stderr) if every else sys.stderr,
            mininterval=every or 0.1,
            disable=not (every or sys.stderr.isatty()),
            dynamic_ncols=not every,
            ncols=_LINE_COLUMNS if every else None,
            smoothing=0.05,  # steps take turns with evaluations: a slow average is steadier
            leave=False,
        )

    def on_batch(self, progress: Progress) -> None:
        """Move the bar to where the run is: workers may tell of some steps at once."""
        self._bar.set_description_str(f"epoch {progress.epoch + 1}/{self._epochs}", refresh=False)
        self._bar.set_postfix_str(
            f"loss {progress.loss_sum / progress.seen:.3f}, "
            f"accuracy {progress.correct / progress.seen:.3f}, "
            f"{progress.rows / progress.seconds:,.0f} rows/s",
            refresh=False,
        )
        self._bar.update(progress.epoch * self._steps + progress.batch - self._bar.n)
        self._check()

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Print the epoch's line, above the bar if there is one."""
        self._seconds.append(metrics.seconds)
        mean = sum(self._seconds) / len(self._seconds)
        left = tqdm.format_interval(mean * (self._epochs - metrics.epoch))
        width = len(str(self._epochs))
        line = (
            f"epoch {metrics.epoch:{width}}/{self._epochs}"
            f"  loss {metrics.loss:.3f} (test {metrics.test_loss:.3f})"
            f"  accuracy {metrics.train_accuracy:.3f} (test {metrics.test_accuracy:.3f})"
            f"  {metrics.rows_per_second:,.0f} rows/s  {metrics.seconds:.1f} s, {left} left"
        )
        tqdm.write(line, file=sys.stderr)
        self._check()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
