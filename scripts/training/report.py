"""What a finished run leaves behind: two pictures, and a few lines on the screen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from training.checkpoint import Checkpoint, EpochMetrics
from training.runs import RunFolder

_DPI = 150
_TRAIN, _TEST = "#7a8ca3", "#c8102e"
_INK, _FAINT = "#22303f", "#d9dfe6"


def write_report(folder: RunFolder, checkpoint: Checkpoint) -> str:
    """Draw the pictures; the text to print."""
    confusion = checkpoint.confusion.numpy()
    folder.save_pictures(draw_curves(checkpoint.history), draw_confusion(confusion), _DPI)
    last = checkpoint.history[-1]
    seconds = sum(metrics.seconds for metrics in checkpoint.history)
    rows = sum(metrics.rows for metrics in checkpoint.history)
    return (
        f"Test accuracy {last.test_accuracy:.4f}: {np.trace(confusion)} of {confusion.sum()} "
        f"digits, after {last.epoch} epoch{'' if last.epoch == 1 else 's'}.\n"
        f"Training took {seconds:.1f} s for {rows:,} rows, {rows / seconds:,.0f} rows/s.\n"
        f"{_worst(confusion)}\n"
        f"{folder.path}/: config.json, metrics.jsonl, checkpoint.pt, "
        f"{folder.curves.name}, {folder.confusion.name}"
    )


def draw_curves(history: Sequence[EpochMetrics]) -> Figure:
    """Loss and accuracy by epoch, side by side."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [metrics.epoch for metrics in history]
    for axes, train, test in (
        (loss, [m.loss for m in history], [m.test_loss for m in history]),
        (
            accuracy,
            [m.train_accuracy for m in history],
            [m.test_accuracy for m in history],
        ),
    ):
        axes.plot(epochs, train, "o-", color=_TRAIN, markersize=4, label="training samples")
        axes.plot(epochs, test, "o-", color=_TEST, markersize=4, label="test samples")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color=_FAINT, linewidth=0.7)
        _clean(axes)
    loss.set_title("Loss", loc="left", fontweight="bold", color=_INK)
    loss.set_ylabel("cross-entropy (nats per sample)")
    loss.set_ylim(bottom=0.0)
    loss.margins(y=0.08)
    loss.legend(frameon=False)
    accuracy.set_title(
        f"Accuracy, {history[-1].test_accuracy:.1%} of test samples at the end",
        loc="left",
        fontweight="bold",
        color=_INK,
    )
    accuracy.set_ylabel("samples classified correctly")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    lowest = min(accuracy.dataLim.y0, 0.9)
    accuracy.set_ylim(lowest - 0.05, 1.02)
    accuracy.legend(frameon=False, loc="lower right")
    return figure


def draw_confusion(confusion: NDArray[np.int64]) -> Figure:
    """Counts of answers for each digit.

    Args:
        confusion: counts of (digit, answer), shape ``(10, 10)``.
    """
    figure = Figure(figsize=(6.6, 6.4), layout="constrained")
    axes = figure.subplots()
    total = confusion.sum(axis=1, keepdims=True)
    share = confusion / np.maximum(total, 1)
    # The root of the share, so that a single mistake is a visible tint.
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0.0, vmax=1.1)
    for digit, answer in np.ndindex(*confusion.shape):
        count = confusion[digit, answer]
        if not count:
            continue
        wrong = digit != answer
        axes.text(
            answer,
            digit,
            str(count),
            ha="center",
            va="center",
            fontweight="bold",
            color="white" if share[digit, answer] > 0.25 else _TEST if wrong else _INK,
        )
    axes.set_title(
        f"Which digit is taken for which: {np.trace(confusion)} of {confusion.sum()} "
        f"test samples correct",
        loc="left",
        fontweight="bold",
        color=_INK,
        fontsize=11,
    )
    axes.set_xlabel("answer of the classifier (digit)")
    axes.set_ylabel("digit in the image; cells count test samples")
    axes.set_xticks(range(confusion.shape[1]))
    axes.set_yticks(range(confusion.shape[0]))
    edges = np.arange(len(confusion) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    _clean(axes)
    return figure


def _clean(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _worst(confusion: NDArray[np.int64]) -> str:
    """The most frequent mistake, in words."""
    mistakes = confusion - np.diag(np.diag(confusion))
    if not mistakes.any():
        return "There was no mistake."
    digit, answer = np.unravel_index(mistakes.argmax(), mistakes.shape)
    return (
        f"Most frequent mistake: {digit} taken for {answer}, "
        f"{mistakes[digit, answer]} of {confusion[digit].sum()} times."
    )
