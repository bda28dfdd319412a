"""What a run leaves: its figures as JSON, and plots of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import Column, Table

from benchmarks.timing import machine

Rows = Sequence[Mapping[str, Any]]


class Report:
    """The tables of a run, and the folder that it writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._machine = machine()
        self._tables: dict[str, Table] = {}
        folder.mkdir(parents=True, exist_ok=True)
        print(self._machine)

    def table(self, name: str, columns: Sequence[Column] = (), title: str = "") -> Table:
        """Begin a table; its rows are written under this name."""
        table = self._tables[name] = Table(columns, title)
        return table

    def write(self) -> None:
        """Write ``figures.json``, and a plot of each table that has one."""
        figures = {name: table.rows for name, table in self._tables.items()}
        about = {"command": sys.argv[1:], "machine": [self._machine, machine()]}
        text = json.dumps(about | {"figures": figures}, indent=1)
        (self._folder / "figures.json").write_text(text + "\n")
        if rows := figures.get("grid"):
            bounds = [row | {"where": "raw Aer (the bound)", "ms": row["raw Aer"]} for row in rows]
            names = ("n", "ms", "batch", "where")
            title = "ms for one backward pass by parameter shifts: lower is better"
            _draw(self._folder / "grid.png", [*rows, *bounds], names, title, yscale="log")
        if rows := figures.get("efficiency"):
            names = ("actors", "efficiency", "speeds", "ms/chunk")
            title = "Scheduling efficiency of a pool, by ms of a chunk: higher is better"
            axes = {"xscale": "log", "ylim": (0.0, 1.04)}
            _draw(self._folder / "efficiency.png", rows, names, title, **axes)
        print(f"\nat the end: {machine()}, this run's own part included")
        print(f"figures and plots are in {self._folder}")


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
    from matplotlib import style  # here: it would add to the memory that is measured
    from matplotlib.figure import Figure

    x, y, panel, series = names
    kinds, lines = (list(dict.fromkeys(row[name] for row in rows)) for name in (panel, series))
    with style.context("tableau-colorblind10"):
        figure = Figure(figsize=(max(7.0, 1 + 3.6 * len(kinds)), 4.6), layout="constrained")
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for plot, kind in zip(panels, kinds, strict=True):
            for line in lines:
                own = [row for row in rows if (row[panel], row[series]) == (kind, line)]
                points = sorted((row[x], row[y]) for row in own)
                plot.plot(*zip(*points, strict=True), "o-", label=str(line))
            ticks = sorted({row[x] for row in rows})
            plot.set(xlabel=x, title=f"{panel} {kind}", **axes)
            plot.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            plot.minorticks_off()
            plot.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            plot.grid(axis="y", color="0.9")
        figure.suptitle(title)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center",
                      ncols=len(lines))  # fmt: skip
        figure.savefig(path, dpi=160)
