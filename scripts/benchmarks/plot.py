"""The plot: time of a backward pass over qubits, and how many times longer other libraries take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is looked for

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.modes import IN_PROCESS, actors_name
from benchmarks.timing import Figure

_BOUND = "raw Aer (the bound)"
# Okabe and Ito's colours, which stay apart for colour-blind readers and in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_PEER_COLOURS = ("#D55E00", "#E69F00", "#CC79A7")
MARKERS = ("o", "s", "D", "^", "v")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "0.4",
    "axes.titlesize": 11,
    "legend.frameon": False,
}


def plot(path: Path, figures: Sequence[Figure], peers: Sequence[Figure]) -> None:
    """Draw the figures of the grid, and below them those of the peers if there are any.

    Args:
        path: where the PNG goes.
        figures: every size in every mode.
        peers: qailab and its peers, measured side by side.
    """
    batches = sorted({figure.case.batch for figure in figures})
    width = max(7.0, 3.6 * len(batches) + 0.8)
    with plt.rc_context(STYLE):
        sheet = plt.figure(figsize=(width, 4.6 + 3.4 * bool(peers)), layout="constrained")
        if peers:
            top, bottom = sheet.subfigures(2, 1, height_ratios=(4.6, 3.4), hspace=0.06)
            _draw_peers(bottom, peers)
        else:
            top = sheet.subfigures(1, 1)
        _draw_times(top, figures, batches)
        sheet.savefig(path, dpi=160)
        plt.close(sheet)


def _draw_times(sheet: SubFigure, figures: Sequence[Figure], batches: Sequence[int]) -> None:
    axes = sheet.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    modes = list(dict.fromkeys(figure.mode for figure in figures))
    for ax, batch in zip(axes, batches, strict=True):
        here = [figure for figure in figures if figure.case.batch == batch]
        bound = {f.case.qubits: f.bound_seconds for f in here if f.mode == IN_PROCESS}
        _line(ax, bound, _BOUND, color="0.25", linestyle="--", marker="x", zorder=3)
        for mode, colour, marker in zip(modes, COLOURS, MARKERS, strict=False):
            times = {f.case.qubits: f.seconds for f in here if f.mode == mode}
            label = f"qailab, {mode}"
            _line(ax, times, label, color=colour, marker=marker, markeredgecolor="white")
        ax.set_title(f"batch {batch}", loc="left")
        ax.set_xlabel("qubits")
        ax.set_xticks(sorted({figure.case.qubits for figure in figures}))
        ax.margins(x=0.08)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="y", which="major", color="0.85", linewidth=0.8)
        ax.grid(axis="y", which="minor", color="0.94", linewidth=0.5)
    axes[0].set_ylabel("ms per backward pass")
    shots = figures[0].case.shots
    sheet.suptitle(
        f"Gradient of inputs and weights by parameter shifts, {shots} shots a row: lower is better",
        fontsize=12,
    )
    handles, labels = axes[0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _line(ax: Axes, seconds: dict[int, float | None], label: str, **style: object) -> None:
    points = [(qubits, 1e3 * value) for qubits, value in sorted(seconds.items()) if value]
    if points:
        ax.plot(*zip(*points, strict=True), label=label, linewidth=1.8, markersize=6, **style)


def _draw_peers(sheet: SubFigure, peers: Sequence[Figure]) -> None:
    cases = list(dict.fromkeys(figure.case for figure in peers))
    axes = sheet.subplots(1, len(cases), squeeze=False)[0]
    for ax, case in zip(axes, cases, strict=True):
        here = {figure.mode: figure.seconds for figure in peers if figure.case == case}
        ours = [mode for mode in here if mode == IN_PROCESS or mode.endswith(("actor", "actors"))]
        base = actors_name(2) if actors_name(2) in here else ours[-1]
        names = [mode for mode in here if mode != base]
        ratios = [here[name] / here[base] for name in names]
        others = iter(_PEER_COLOURS)
        colours = [COLOURS[0] if name in ours else next(others) for name in names]
        labels = [f"qailab, {name}" if name in ours else name for name in names]
        bars = ax.barh(labels, ratios, color=colours, height=0.62)
        texts = [f"{ratio:.{1 if ratio < 10 else 0}f}x" for ratio in ratios]
        ax.bar_label(bars, texts, padding=4)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.14 * max(ratios))
        ax.axvline(1, color="0.25", linestyle="--", linewidth=1)
        ax.tick_params(axis="y", length=0, labelleft=ax is axes[0])  # the same names everywhere
        ax.grid(axis="x", color="0.88", linewidth=0.8)
        ax.set_title(f"n = {case.qubits}, batch {case.batch}", loc="left")
        ax.set_xlabel(f"time over qailab's with {base} ({1e3 * here[base]:,.0f} ms)")
