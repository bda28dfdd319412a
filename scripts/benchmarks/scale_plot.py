"""The plot: efficiency over the number of actors, with equal and with unequal speeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from benchmarks.efficiency import EQUAL, KILLS, UNEQUAL, Efficiency
from benchmarks.plot import COLOURS, MARKERS, STYLE, plt

_TITLES = {
    EQUAL: "equal speeds",
    UNEQUAL: "speeds 1:2:4:8, a quarter of the actors each (ms: the slowest)",
}


def plot(path: Path, efficiencies: Sequence[Efficiency]) -> None:
    """Draw one panel for each kind of speeds, with one line for each latency.

    Args:
        path: where the PNG goes.
        efficiencies: the figures.
    """
    counts = sorted({each.actors for each in efficiencies})
    latencies = sorted({each.latency for each in efficiencies}, reverse=True)
    with plt.rc_context(STYLE):
        sheet, panels = plt.subplots(
            1, len(_TITLES), figsize=(10.5, 4.6), sharey=True, layout="constrained"
        )
        for ax, (speeds, title) in zip(panels, _TITLES.items(), strict=True):
            _draw(ax, [each for each in efficiencies if each.speeds == speeds], latencies)
            ax.set_title(title, loc="left")
            ax.set_xscale("log", base=2)
            ax.set_xlim(min(counts) / 1.25, max(counts) * 1.25)
            ax.xaxis.set_major_locator(FixedLocator(counts))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.set_xlabel("actors")
            ax.grid(axis="y", color="0.88", linewidth=0.8)
        _draw_kills(panels[0], [each for each in efficiencies if each.speeds == KILLS], latencies)
        panels[0].set_ylim(0, 1.04)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        panels[0].set_ylabel("ideal time / measured time")
        sheet.suptitle("Scheduling efficiency of a pool: higher is better", fontsize=12)
        handles, labels = panels[0].get_legend_handles_labels()
        sheet.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        sheet.savefig(path, dpi=160)
        plt.close(sheet)


def _draw(ax: Axes, efficiencies: Sequence[Efficiency], latencies: Sequence[float]) -> None:
    for number, latency in enumerate(latencies):
        points = sorted((e.actors, e.value) for e in efficiencies if e.latency == latency)
        ax.plot(
            [actors for actors, _ in points],
            [value for _, value in points],
            label=f"{1e3 * latency:g} ms a chunk",
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markeredgecolor="white",
            markersize=7,
            linewidth=1.8,
        )


def _draw_kills(ax: Axes, efficiencies: Sequence[Efficiency], latencies: Sequence[float]) -> None:
    """Crosses in the colours of their latencies."""
    for each in efficiencies:
        colour = COLOURS[latencies.index(each.latency) % len(COLOURS)]
        style = {"markersize": 10, "markeredgecolor": "0.1", "zorder": 4, "linestyle": "none"}
        ax.plot(each.actors, each.value, marker="X", color=colour, **style)
    if efficiencies:
        label = "an actor killed every second"
        ax.plot([], [], marker="X", color="white", label=label, **style)
