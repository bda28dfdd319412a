"""A plot of jobs over time, one lane for each device. Needs matplotlib."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qailab.rehearsal.records import (
    CANCELLED,
    COMPLETED,
    FAILED,
    QUEUED,
    RAN_TOO_LONG,
    RUNNING,
    JobRecord,
)

if TYPE_CHECKING:
    from qailab.rehearsal.report import Report

COLOURS = {
    COMPLETED: "tab:green",
    FAILED: "tab:red",
    RAN_TOO_LONG: "tab:purple",
    CANCELLED: "tab:orange",
    RUNNING: "tab:blue",
    QUEUED: "tab:gray",
}


def plot_jobs(report: Report, path: str | Path) -> None:
    """Draw a bar for each job, from its start to its end; pale while it was queued.

    Args:
        report: whose jobs.
        path: of the picture; its suffix says which kind.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    # The plain figure and canvas: pyplot would pick a window system and keep global state.
    figures: Any = importlib.import_module("matplotlib.figure")
    patches: Any = importlib.import_module("matplotlib.patches")
    names = report.backends
    lanes = {name: _lanes(report, name) for name in names}
    height_of_lanes = [max(len(lane), 2) for lane in lanes.values()]
    size = (10, 1.5 + min(0.3 * sum(height_of_lanes), 10))
    figure = figures.Figure(figsize=size, layout="constrained")
    axes: Any = figure.subplots(
        len(names), 1, sharex=True, squeeze=False, height_ratios=height_of_lanes
    )[:, 0]
    for name, axis in zip(names, axes, strict=True):
        for height, lane in enumerate(lanes[name]):
            for job in lane:
                start, end = _span(job, report.seconds)
                colour = COLOURS.get(job.state, "black")
                axis.barh(height, start - job.created, left=job.created, color=colour, alpha=0.25)
                axis.barh(height, end - start, left=start, color=colour, edgecolor=colour)
        for fault in report.faults:
            axis.axvline(fault.time, color="black", linewidth=0.5, linestyle=":")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set_yticks([])
    axes[-1].set_xlabel("seconds since the server started (pale: queued; dotted: a fault)")
    states = [state for state in COLOURS if any(job.state == state for job in report.jobs)]
    if states:
        handles = [patches.Patch(color=COLOURS[state], label=state) for state in states]
        figure.legend(handles=handles, ncols=len(states), loc="outside upper center")
    figure.savefig(path, dpi=120)


def _span(job: JobRecord, now: float) -> tuple[float, float]:
    """When a job was started and ended, as far as it was."""
    end = now if job.ended is None else job.ended
    return (end if job.started is None else job.started), end


def _lanes(report: Report, backend: str) -> list[list[JobRecord]]:
    """Jobs of a device in as few lanes as none overlaps another in its lane."""
    lanes: list[list[JobRecord]] = []
    for job in report.jobs:
        if job.backend != backend:
            continue
        for lane in lanes:
            if _span(lane[-1], report.seconds)[1] <= job.created:
                lane.append(job)
                break
        else:
            lanes.append([job])
    return lanes
