"""What a sweep leaves: a table on the screen, results.csv, results.json and sweep.png."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from training.settings import EXACT

from sweeping.options import Sweep
from sweeping.settings import COMPARED
from sweeping.trials import DONE, FAILED, Row

COLUMNS = (
    *COMPARED, "state", "test_accuracy", "test_loss", "epoch", "rows", "seconds", "error",
)  # fmt: skip
_FORMATS = {"lr": "g", "test_accuracy": ".4f", "test_loss": ".3f", "rows": ",", "seconds": ".1f"}
_COLOURS = ("#c8102e", "#22303f", "#e08e45", "#4c956c", "#7a8ca3", "#8f5ea2")  # by shots
_MARKERS, _DASHES = "osD^vPX", ("-", "--", ":", "-.")  # by repetitions
_INK, _FAINT = "#22303f", "#d9dfe6"
_NAMED = 3  # settings that are named in the title when they are equally good


def write_report(rows: Sequence[Row], folder: Path) -> str:
    """Write the files; the table to print.

    Args:
        rows: one for each trial, in the order of the grid.
        folder: where the files go.
    """
    ranked = rank(rows)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(ranked)
    (folder / "results.json").write_text(json.dumps(ranked, indent=2) + "\n")
    draw(rows).savefig(folder / "sweep.png", dpi=150)
    return f"{table(ranked)}\n{folder}/: results.csv, results.json, sweep.png"


def rank(rows: Sequence[Row]) -> list[Row]:
    """The trials that are done, best first; then the others, in the order they have."""
    done = [row for row in rows if row["state"] == DONE]
    done.sort(key=lambda row: (-row["test_accuracy"], row["test_loss"]))
    return [*done, *(row for row in rows if row["state"] != DONE)]


def table(rows: Sequence[Row]) -> str:
    """The rows, aligned."""
    shown = [column for column in COLUMNS if any(row[column] is not None for row in rows)]
    lines = [shown, *([_cell(column, row[column]) for column in shown] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def stopped(rows: Sequence[Row], sweep: Sweep) -> str:
    """How far a sweep is that is not done, and how to go on with it."""
    states = Counter(row["state"] for row in rows)
    others = ", ".join(f"{number} {state}" for state, number in states.items() if state != DONE)
    errors = ""
    if FAILED in states:
        errors = f" All of the errors: {sweep.folder}/tune/*/error.txt."
    return (
        f"\nStopped after {states[DONE]} of {len(rows)} trials ({others}); saved in "
        f"{sweep.folder}.{errors} To go on:\n  {resume_command(sweep)}"
    )


def resume_command(sweep: Sweep) -> str:
    """The command that goes on with a sweep."""
    # Where scripts/sweep made the interpreter, scripts/sweep is the way to come back.
    by_script = sys.prefix != sys.base_prefix and sys.prefix.endswith("/.venv")
    program = ["scripts/sweep"] if by_script else [sys.executable, sys.argv[0]]
    return shlex.join([*program, "--resume", sweep.folder.name, *sweep.place])


def draw(rows: Sequence[Row]) -> Figure:
    """Test accuracy by learning rate, a line for each circuit and number of shots.

    Only trials that are done: after some of the epochs, an accuracy says nothing beside theirs.
    """
    ranked = [row for row in rank(rows) if row["state"] == DONE]
    best = [row for row in ranked if row["test_accuracy"] == ranked[0]["test_accuracy"]]
    rates, all_reps, all_shots = (sorted({row[k] for row in rows}, key=_order) for k in COMPARED)
    circuits = sorted(
        {(row["reps"], row["shots"]) for row in ranked}, key=lambda c: [*map(_order, c)]
    )
    # Two columns of a legend below the axes, which stay as high as they are for any number of it.
    figure = Figure(figsize=(7.5, 4.8 + 0.11 * len(circuits)), layout="constrained")
    axes = figure.subplots()
    for number, (reps, shots) in enumerate(circuits):
        known = {
            r["lr"]: r["test_accuracy"] for r in ranked if (r["reps"], r["shots"]) == (reps, shots)
        }
        colour = all_shots.index(shots)
        style = all_reps.index(reps) + len(all_reps) * (colour // len(_COLOURS))
        axes.plot(
            rates,
            [known.get(rate, math.nan) for rate in rates],  # no line across what is not known
            linestyle=_DASHES[style % len(_DASHES)],
            marker=_MARKERS[style % len(_MARKERS)],
            color=_COLOURS[colour % len(_COLOURS)],
            markersize=9 - 4 * number / len(circuits),  # equal points are seen below one another
            label=_circuit(reps, shots),
        )
    if best:
        axes.plot(
            [row["lr"] for row in best],
            [row["test_accuracy"] for row in best],
            linestyle="none",
            marker="o",
            markersize=15,
            fillstyle="none",
            color=_INK,
            label="best" if len(best) == 1 else "best, equally good",
        )
        figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=_INK)
    _scales(axes, rates, empty=not best)
    axes.set_title(_title(best, len(ranked), len(rows)), loc="left", color=_INK, fontsize=11)
    return figure


def _order(value: Any) -> float:
    return math.inf if value == EXACT else float(value)


def _scales(axes: Axes, rates: Sequence[float], *, empty: bool) -> None:
    axes.set_xscale("log")
    # The values that were tried, whether or not they are powers of ten.
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    margin = (rates[-1] / rates[0]) ** 0.06 if len(rates) > 1 else 2.0
    axes.set_xlim(rates[0] / margin, rates[-1] * margin)
    ratios = [later / earlier for earlier, later in itertools.pairwise(rates)]
    if ratios and math.log(min(ratios)) < 0.1 * math.log(rates[-1] / rates[0]):
        axes.tick_params(axis="x", rotation=60)  # labels that would overlap
    axes.yaxis.set_major_locator(NullLocator() if empty else MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.6g}%")
    axes.margins(y=0.12)
    axes.set_xlabel("learning rate of Adam in the first epoch (logarithmic)")
    axes.set_ylabel("test samples classified correctly")
    axes.grid(color=_FAINT, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _title(best: Sequence[Row], done: int, trials: int) -> str:
    """The best settings, all of them if there are several, and whether trials are missing."""
    if not best:
        return f"No result: {done} of {trials} trials are done"
    settings = [
        f"learning rate {row['lr']:g}, {_circuit(row['reps'], row['shots'])}" for row in best
    ]
    if len(settings) > _NAMED:
        settings = [f"{len(settings)} settings, equally good"]
    missing = "" if done == trials else f"\n{done} of {trials} trials are done; only they are shown"
    return f"Best: {best[0]['test_accuracy']:.1%} with " + "\n  and ".join(settings) + missing


def _circuit(reps: int, shots: Any) -> str:
    repetitions = "1 repetition" if reps == 1 else f"{reps} repetitions"
    if shots == EXACT:
        return f"{repetitions}, exact probabilities"
    return f"{repetitions}, {shots:,} shot{'' if shots == 1 else 's'}"


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if column == "error" else f"{value:{_FORMATS.get(column, '')}}"
