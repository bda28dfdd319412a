"""What a sweep leaves: a table on the screen, results.csv, results.json and sweep.png."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLUMNS = ("lr", "reps", "shots", "test_accuracy", "test_loss", "epoch", "rows", "seconds", "error")
_FORMATS = {"lr": "g", "test_accuracy": ".4f", "test_loss": ".3f", "rows": ",", "seconds": ".1f"}
_COLOURS = ("#c8102e", "#22303f", "#7a8ca3", "#e08e45", "#4c956c", "#8f5ea2")

Row = dict[str, Any]


def write_report(rows: Sequence[Row], folder: Path) -> str:
    """Write the files; the table to print.

    Args:
        rows: of `COLUMNS`, one for each trial; what is not known is None.
        folder: where the files go.
    """
    best = sorted(rows, key=lambda row: -(row["test_accuracy"] or -1.0))
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(best)
    (folder / "results.json").write_text(json.dumps(best, indent=2) + "\n")
    draw(rows).savefig(folder / "sweep.png", dpi=150)
    return f"{table(best)}\n{folder}/: results.csv, results.json, sweep.png"


def table(rows: Sequence[Row]) -> str:
    """The rows, aligned."""
    shown = [column for column in COLUMNS if any(row[column] is not None for row in rows)]
    lines = [shown, *([_cell(column, row[column]) for column in shown] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def draw(rows: Sequence[Row]) -> Figure:
    """Test accuracy by learning rate, a line for each circuit and number of shots."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    done = sorted((row for row in rows if row["test_accuracy"] is not None), key=lambda r: r["lr"])
    kinds = list(dict.fromkeys((row["reps"], row["shots"]) for row in rows))
    for number, (reps, shots) in enumerate(kinds):
        mine = [row for row in done if (row["reps"], row["shots"]) == (reps, shots)]
        axes.plot(
            [row["lr"] for row in mine],
            [row["test_accuracy"] for row in mine],
            "o-",
            color=_COLOURS[number % len(_COLOURS)],
            markersize=5,
            label=f"{reps} repetition{'' if reps == 1 else 's'}, {shots} shots",
        )
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of Adam")
    axes.set_ylabel("test samples classified correctly")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(color="#d9dfe6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    if done:
        best = max(done, key=lambda row: row["test_accuracy"])
        axes.set_title(
            f"Best: {best['test_accuracy']:.1%} with a learning rate of {best['lr']:g}",
            loc="left",
            fontweight="bold",
        )
        axes.legend(frameon=False)
    return figure


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if column == "error" else f"{value:{_FORMATS.get(column, '')}}"
