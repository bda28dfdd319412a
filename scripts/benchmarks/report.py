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
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_MARKERS = ("o", "s", "D", "^", "v")
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "0.4",
    "axes.titlesize": 11,
    "legend.frameon": False,
}

Rows = Sequence[Mapping[str, Any]]


class Report:
    """The tables of a run, and the folder that it writes.

    Args:
        folder: where files go; it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        at_end = machine()
        content = {
            "command": sys.argv[1:],
            "machine": [self._machine, at_end],
            "figures": figures,
        }
        (self.folder / "figures.json").write_text(json.dumps(content, indent=1) + "\n")
        for name, draw in _PLOTS.items():
            if figures.get(name):
                _draw(self.folder / f"{name}.png", draw, figures[name])
        print(f"\nat the end: {at_end}, this run's own part included")
        print(f"figures and plots are in {self.folder}")


def _draw(path: Path, draw: Any, rows: Rows) -> None:
    import matplotlib  # here: it would add to the memory that is measured

    matplotlib.use("Agg")  # no display is needed, and none is looked for
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE):
        sheet = draw(plt, rows)
        sheet.savefig(path, dpi=160)
        plt.close(sheet)


def _draw_grid(plt: Any, rows: Rows) -> Any:
    """The time of a backward pass over qubits, a panel for each batch size."""
    batches = sorted({row["batch"] for row in rows})
    places = list(dict.fromkeys(row["where"] for row in rows))
    sheet, panels = plt.subplots(
        1, len(batches), figsize=(max(7.0, 3.6 * len(batches) + 0.8), 4.6),
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for panel, batch in zip(panels[0], batches, strict=True):
        here = [row for row in rows if row["batch"] == batch]
        bound = [row for row in here if row["where"] == places[0]]
        _line(panel, bound, "n", "raw Aer ms", 4, label="raw Aer (the bound)", linestyle="--")
        for number, place in enumerate(places):
            own = [row for row in here if row["where"] == place]
            _line(panel, own, "n", "ms", number, label=f"qailab, {place}")
        panel.set(yscale="log", xlabel="qubits", xticks=sorted({row["n"] for row in rows}))
        panel.set_title(f"batch {batch}", loc="left")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        panel.margins(x=0.08)
        panel.grid(axis="y", which="both", color="0.9", linewidth=0.6)
    panels[0][0].set_ylabel("ms per backward pass")
    sheet.suptitle("Gradient of inputs and weights by parameter shifts: lower is better")
    handles, labels = panels[0][0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return sheet


def _draw_peers(plt: Any, rows: Rows) -> Any:
    """How many times longer each takes than qailab's largest pool."""
    sizes = sorted({row["n"] for row in rows})
    sheet, panels = plt.subplots(
        1, len(sizes), figsize=(max(7.0, 4.6 * len(sizes)), 3.6), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for panel, size in zip(panels[0], sizes, strict=True):
        here = [row for row in rows if row["n"] == size]
        labels = [row["where"] for row in here]
        ratios = [row["times longer"] for row in here]
        colours = [_COLOURS[0] if row["qailab"] else _COLOURS[1] for row in here]
        bars = panel.barh(labels, ratios, color=colours, height=0.62)
        panel.bar_label(
            bars, [f"{ratio:.{1 if ratio < 10 else 0}f}x" for ratio in ratios], padding=4
        )
        panel.invert_yaxis()
        panel.set_xlim(0, 1.14 * max(ratios))
        panel.tick_params(axis="y", length=0, labelleft=panel is panels[0][0])
        panel.grid(axis="x", color="0.88", linewidth=0.8)
        panel.set_title(f"{size} qubits, batch {here[0]['batch']}", loc="left")
        panel.set_xlabel(f"time over qailab's with {here[0]['base']}")
    return sheet


def _draw_efficiency(plt: Any, rows: Rows) -> Any:
    """Scheduling efficiency over the number of actors, a panel for each kind of speeds."""
    rows = [row for row in rows if row["efficiency"] is not None]
    kinds = [kind for kind in ("equal", "1:2:4:8") if any(row["speeds"] == kind for row in rows)]
    counts = sorted({row["actors"] for row in rows})
    latencies = sorted({row["ms/chunk"] for row in rows}, reverse=True)
    sheet, panels = plt.subplots(
        1, max(1, len(kinds)), figsize=(10.5, 4.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for panel, kind in zip(panels[0], kinds or ["kills"], strict=True):
        for number, latency in enumerate(latencies):
            own = [row for row in rows if row["ms/chunk"] == latency and row["speeds"] == kind]
            own.sort(key=lambda row: row["actors"])
            label = f"{latency:g} ms a chunk"
            _line(panel, own, "actors", "efficiency", number, label=label)
        panel.set_title({"1:2:4:8": "speeds 1:2:4:8 (ms: the slowest)"}.get(kind, kind), loc="left")
        panel.set_xscale("log", base=2)
        panel.set_xlim(min(counts) / 1.25, max(counts) * 1.25)
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.set(xlabel="actors", ylim=(0, 1.04))
        panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        panel.grid(axis="y", color="0.88", linewidth=0.8)
    for number, latency in enumerate(latencies):
        own = [row for row in rows if row["ms/chunk"] == latency and row["killed"]]
        style = {"linestyle": "none", "marker": "X", "markersize": 11}
        label = f"{latency:g} ms, an actor killed every second"
        _line(panels[0][0], own, "actors", "efficiency", number, label=label, **style)
    panels[0][0].set_ylabel("ideal time / measured time")
    sheet.suptitle("Scheduling efficiency of a pool: higher is better")
    handles, labels = panels[0][0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside lower center", ncols=3)
    return sheet


def _line(panel: Any, rows: Rows, x: str, y: str, number: int, **style: Any) -> None:
    points = [(row[x], row[y]) for row in rows if row[y] is not None]
    if points:
        given = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % 5]}
        given |= {"linewidth": 1.8, "markersize": 6, "markeredgecolor": "white"}
        panel.plot(*zip(*points, strict=True), **(given | style))


_PLOTS = {"grid": _draw_grid, "peers": _draw_peers, "efficiency": _draw_efficiency}
