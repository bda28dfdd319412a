"""What is seen of a run: a bar, a line for each epoch, and pictures at its end."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.checkpoint import Checkpoint, EpochMetrics
from training.storage import RunFolder

if TYPE_CHECKING:  # slow to import, and not needed before the end
    from matplotlib.figure import Figure

_TRAIN, _TEST, _INK, _FAINT = "#7a8ca3", "#c8102e", "#22303f", "#d9dfe6"


def make_bar(start: Checkpoint, steps: int) -> Any:
    """A progress bar of all steps, where there is a terminal."""
    return tqdm(
        total=start.settings.epochs * steps,
        initial=start.progress.epoch * steps + start.progress.batch,
        desc=f"epoch {start.progress.epoch + 1}/{start.settings.epochs}",
        bar_format="{desc} {bar} {percentage:3.0f}%{postfix}, {remaining} left",
        disable=None,
        dynamic_ncols=True,
        smoothing=0.05,  # steps take turns with tests: a slow average is steadier
        leave=False,
    )


def show(checkpoint: Checkpoint, steps: int, bar: Any) -> None:
    """Move the bar to where the run is; after an epoch, print its line above."""
    done, epochs = checkpoint.progress, checkpoint.settings.epochs
    if done.batch == 0:
        tqdm.write(_line(checkpoint.history[-1], epochs), file=sys.stderr)
        sys.stderr.flush()
        return
    bar.set_description_str(f"epoch {done.epoch + 1}/{epochs}", refresh=False)
    bar.set_postfix_str(
        f"loss {done.loss_sum / done.seen:.3f}, accuracy {done.correct / done.seen:.3f}, "
        f"{done.rows / done.seconds:,.0f} rows/s",
        refresh=False,
    )
    bar.update(done.epoch * steps + done.batch - bar.n)


def write_report(
    folder: RunFolder, checkpoint: Checkpoint, other: tuple[RunFolder, Checkpoint] | None = None
) -> str:
    """Draw the pictures, also that of this and another run if there is one; the text to print."""
    confusion = checkpoint.confusion.numpy()
    figures = {
        "curves.png": draw_curves(checkpoint.history), "confusion.png": draw_confusion(confusion)
    }  # fmt: skip
    if other is not None:
        figures["compared.png"] = draw_comparison([other, (folder, checkpoint)])
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150)
        folder.write(name, buffer.getvalue())
    last = checkpoint.history[-1]
    seconds = sum(metrics.seconds for metrics in checkpoint.history)
    rows = sum(metrics.rows for metrics in checkpoint.history)
    return (
        f"Test accuracy {last.test_accuracy:.4f}: {np.trace(confusion)} of {confusion.sum()} "
        f"digits, after {last.epoch} epoch{'' if last.epoch == 1 else 's'}, {seconds:.1f} s and "
        f"{rows:,} rows.\n"
        f"{folder}/: metrics.jsonl, {', '.join(figures)}, checkpoint.pt, config.json"
    )


def draw_curves(history: Sequence[EpochMetrics]) -> Figure:
    """Loss and accuracy by epoch, side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [metrics.epoch for metrics in history]
    for axes, train, test in (
        (loss, [m.loss for m in history], [m.test_loss for m in history]),
        (accuracy, [m.train_accuracy for m in history], [m.test_accuracy for m in history]),
    ):
        axes.plot(epochs, train, "o-", color=_TRAIN, markersize=4, label="training samples")
        axes.plot(epochs, test, "o-", color=_TEST, markersize=4, label="test samples")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _tidy(axes)
    loss.set_title("Loss", loc="left", color=_INK)
    loss.set_ylabel("cross-entropy (nats per sample)")
    loss.set_ylim(bottom=0.0)
    title = f"Accuracy, {history[-1].test_accuracy:.1%} of test samples at the end"
    accuracy.set_title(title, loc="left", color=_INK)
    accuracy.set_ylabel("samples classified correctly")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.set_ylim(min(accuracy.dataLim.y0, 0.9) - 0.05, 1.02)
    return figure


def draw_comparison(runs: Sequence[tuple[RunFolder, Checkpoint]]) -> Figure:
    """Test losses of two runs over their seconds and, unless there were none, QPU seconds."""
    from matplotlib.figure import Figure

    measures = {"seconds": "seconds", "qpu_seconds": "QPU seconds"}
    if not any(metrics.qpu_seconds for _, run in runs for metrics in run.history):
        del measures["qpu_seconds"]  # simulators
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, (measure, words) in zip(panels, measures.items(), strict=True):
        for (folder, run), color in zip(runs, (_TRAIN, _TEST), strict=True):
            spent = np.cumsum([getattr(metrics, measure) for metrics in run.history])
            losses = [metrics.test_loss for metrics in run.history]
            kind = "synchronous" if run.lanes is None else "asynchronous"
            label = f"{folder}, {kind}"
            axes.plot(spent, losses, "o-", color=color, markersize=4, label=label)
        axes.set_title(f"Test loss over {words}", loc="left", color=_INK)
        axes.set_xlabel(words)
        axes.set_xlim(left=0.0)
        _tidy(axes)
    panels[0].set_ylabel("cross-entropy (nats per sample)")
    panels[0].set_ylim(bottom=0.0)
    return figure


def _tidy(axes: Any) -> None:
    axes.grid(color=_FAINT, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def draw_confusion(confusion: NDArray[np.int64]) -> Figure:
    """Counts of (digit, answer), shape ``(10, 10)``, as a matrix."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    figure = Figure(figsize=(6.6, 6.4), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay(confusion).plot(ax=axes, cmap="Blues", colorbar=False)
    title = f"{np.trace(confusion)} of {confusion.sum()} test samples are classified correctly"
    axes.set_title(title, loc="left", color=_INK)
    axes.set_xlabel("answer of the classifier (digit)")
    axes.set_ylabel("digit in the image; cells count test samples")
    return figure


def _line(metrics: EpochMetrics, epochs: int) -> str:
    left = tqdm.format_interval(metrics.seconds * (epochs - metrics.epoch))
    return (
        f"epoch {metrics.epoch:{len(str(epochs))}}/{epochs}"
        f"  loss {metrics.loss:.3f} (test {metrics.test_loss:.3f})"
        f"  accuracy {metrics.train_accuracy:.3f} (test {metrics.test_accuracy:.3f})"
        f"  {metrics.rows_per_second:,.0f} rows/s  {metrics.seconds:.1f} s, {left} left"
    )
