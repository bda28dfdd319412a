"""What is seen while it trains: a progress bar on a terminal, and a line for each epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm

from training.checkpoint import Checkpoint, EpochMetrics, Progress
from training.settings import Config

_BAR = "{desc} {bar} {percentage:3.0f}%{postfix}, {remaining} left"


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
        self._bar = tqdm(
            total=config.epochs * steps_per_epoch,
            initial=start.progress.epoch * steps_per_epoch + start.progress.batch,
            desc=f"epoch {min(start.progress.epoch + 1, config.epochs)}/{config.epochs}",
            bar_format=_BAR,
            disable=not sys.stderr.isatty(),  # a log file wants lines, not a bar
            dynamic_ncols=True,
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
