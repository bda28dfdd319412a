"""What a run leaves: its figures as JSON, and plots of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import Column, Table

from benchmarks.timing import machine

# Okabe and Ito's colours, which stay apart for colour-blind readers and in grey.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "0.25")
_MARKERS = ("o", "s", "D", "^", "v", "x")
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
}

Rows = Sequence[Mapping[str, Any]]


class Report:
    """The tables of a run, and the folder that it writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._machine = machine()
        self._tables: dict[str, Table] = {}
        folder.mkdir(parents=True, exist_ok=True)
        print(self._machine)

    def table(self, name: str, columns: Sequence[Column], title: str) -> Table:
        """Begin a table; its rows are written under this name."""
        table = self._tables[name] = Table(columns, title)
        return table

    def write(self) -> None:
        """Write ``figures.json``, and a plot of each table that has one."""
        figures = {name: table.rows for name, table in self._tables.items()}
        about = {"command": sys.argv[1:], "machine": [self._machine, machine()]}
        text = json.dumps(about | {"figures": figures}, indent=1)
        (self._folder / "figures.json").write_text(text + "\n")
        for name, draw in (("grid", _draw_times), ("efficiency", _draw_efficiency)):
            if figures.get(name):
                draw(self._folder / f"{name}.png", figures[name])
        print(f"\nat the end: {machine()}, this run's own part included")
        print(f"figures and plots are in {self._folder}")


def _draw_times(path: Path, rows: Rows) -> None:
    """The time of a backward pass over qubits, a panel for each batch size."""
    bounds = [
        row | {"where": "raw Aer (the bound)", "ms": row["raw Aer"]}
        for row in rows
        if row["where"] == rows[0]["where"]
    ]
    title = "ms for one backward pass by parameter shifts: lower is better"
    _draw(path, [*rows, *bounds], ("n", "ms", "batch", "where"), title, yscale="log")


def _draw_efficiency(path: Path, rows: Rows) -> None:
    """Scheduling efficiency over the number of actors, a panel for each kind of speeds."""
    title = "Scheduling efficiency of a pool, by ms of a chunk: higher is better"
    names = ("actors", "efficiency", "speeds", "ms/chunk")
    _draw(path, rows, names, title, xscale="log", ylim=(0.0, 1.04))


def _draw(
    path: Path, rows: Rows, names: tuple[str, str, str, str], title: str, **axes: Any
) -> None:
    """Draw columns of a table.

    Args:
        path: the PNG.
        rows: of the table.
        names: columns for x and y, for the panels, and for the lines in each.
        title: above all panels.
        axes: properties of matplotlib's axes.
    """
    import matplotlib  # here: it would add to the memory that is measured

    matplotlib.use("Agg")  # no display is needed, and none is looked for
    import matplotlib.pyplot as plt

    x, y, panel, series = names
    kinds, lines = (list(dict.fromkeys(row[name] for row in rows)) for name in (panel, series))
    with plt.rc_context(_STYLE):
        sheet, panels = plt.subplots(
            1, len(kinds), figsize=(max(7.0, 1 + 3.6 * len(kinds)), 4.6), sharey=True,
            squeeze=False, layout="constrained",
        )  # fmt: skip
        for plot, kind in zip(panels[0], kinds, strict=True):
            for line, colour, marker in zip(lines, _COLOURS, _MARKERS, strict=False):
                own = [row for row in rows if (row[panel], row[series]) == (kind, line)]
                own.sort(key=lambda row: row[x])
                plot.plot([row[x] for row in own], [row[y] for row in own], label=str(line),
                          color=colour, marker=marker)  # fmt: skip
            ticks = sorted({row[x] for row in rows})
            plot.set(xlabel=x, **axes)
            plot.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            plot.set_xticks([], minor=True)
            plot.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            plot.set_title(f"{panel} {kind}", loc="left")
            plot.grid(axis="y", which="both", color="0.9", linewidth=0.6)
        sheet.suptitle(title)
        handles, texts = panels[0][0].get_legend_handles_labels()
        sheet.legend(handles, texts, loc="outside lower center", ncols=len(lines))
        sheet.savefig(path, dpi=160)
        plt.close(sheet)
