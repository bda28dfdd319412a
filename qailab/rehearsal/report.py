"""What happened in a rehearsal: as a table, as JSON, as a plot."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qailab.backends.budget import PRICE_PER_SECOND
from qailab.rehearsal.records import (
    FaultRecord,
    JobRecord,
    RequestRecord,
    SessionRecord,
    State,
    find_resent,
)

COLOURS = {
    State.COMPLETED: "tab:green",
    State.FAILED: "tab:red",
    State.RAN_TOO_LONG: "tab:purple",
    State.CANCELLED: "tab:orange",
    State.RUNNING: "tab:blue",
    State.QUEUED: "tab:gray",
}


@dataclass(frozen=True)
class Report:
    """The records of a rehearsal and their sums.

    Jobs are charged by their QPU seconds. (A dedicated session is charged for the whole time it is
    active, idle time included, which a rehearsal in less than real time cannot tell.)
    """

    backends: tuple[str, ...]  # names of the devices
    jobs: tuple[JobRecord, ...]
    sessions: tuple[SessionRecord, ...]
    requests: tuple[RequestRecord, ...]
    faults: tuple[FaultRecord, ...]
    seconds: float  # how long the server has run
    price_per_second: float = PRICE_PER_SECOND  # of a QPU, US dollars

    def survived(self, fault: FaultRecord) -> bool:
        """Whether work went on after a fault.

        A job with the same content as the one it hit completed later, or, if it hit none, any job.
        """
        hit = [job.content for job in self.jobs if job.id == fault.job]
        return any(
            job.state == State.COMPLETED
            and (job.ended or 0.0) >= fault.time
            and (not hit or job.content in hit)
            for job in self.jobs
        )

    def sums(self, backend: str | None = None) -> dict[str, float]:
        """Numbers of one device, or of all."""
        jobs = [job for job in self.jobs if backend in (None, job.backend)]
        states = Counter(job.state for job in jobs)
        qpu = sum(job.qpu_seconds for job in jobs)
        waits = [job.started - job.created for job in jobs if job.started is not None]
        return {
            "jobs": len(jobs),
            "completed": states[State.COMPLETED],
            "failed": states[State.FAILED] + states[State.RAN_TOO_LONG],
            "cancelled": states[State.CANCELLED],
            "unfinished": sum(not job.is_final for job in jobs),
            "rows": sum(job.rows for job in jobs),
            "executions": sum(job.executions for job in jobs),
            "queue_seconds": sum(waits, 0.0),
            "run_seconds": sum((job.run_seconds for job in jobs), 0.0),
            "qpu_seconds": qpu,
            "cost_usd": qpu * self.price_per_second,
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        statuses = [request.status for request in self.requests]
        return {
            "seconds": self.seconds,
            "price_per_second_usd": self.price_per_second,
            "total": self.sums(),
            "backends": {name: self.sums(name) for name in self.backends},
            "requests": {
                "count": len(statuses),
                "sent_again": sum(status in (0, 429) or status >= 500 for status in statuses),
                "by_status": _counted(str(status or "dropped") for status in statuses),
            },
            "faults": {
                "injected": len(self.faults),
                "survived": sum(self.survived(fault) for fault in self.faults),
                "by_kind": _counted(fault.kind for fault in self.faults),
            },
            "duplicates": [[one.id, two.id] for one, two in find_resent(self.jobs)],
            "jobs": [asdict(job) for job in self.jobs],
            "sessions": [asdict(session) for session in self.sessions],
            "faults_injected": [asdict(fault) for fault in self.faults],
        }

    def table(self) -> str:
        """The sums, aligned, one column for each device, and what went wrong below."""
        columns = {name: self.sums(name) for name in self.backends}
        if len(columns) > 1:
            columns["total"] = self.sums()
        width = max(11, *map(len, columns))
        lines = [" " * 13 + "".join(f"  {name:>{width}}" for name in columns)]
        for name in self.sums():
            form = ",.2f" if name == "cost_usd" else ",.1f" if "seconds" in name else ",d"
            cells = [f"  {sums[name]:>{width}{form}}" for sums in columns.values()]
            lines.append(f"{name.replace('_', ' '):13}" + "".join(cells))
        facts = self.as_dict()
        requests, faults = facts["requests"], facts["faults"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in faults["by_kind"].items())
        below = {
            "sessions": f"{len(self.sessions)}",
            "requests": f"{requests['count']}, {requests['sent_again']} failed in a way that is "
            "worth sending again",
            "faults": f"{faults['injected']} injected, {faults['survived']} survived"
            + (f" ({kinds})" if kinds else ""),
            "duplicates": f"{len(facts['duplicates'])} jobs were sent a second time",
            "cost": "rehearsed: nothing was paid; a device takes about "
            f"{self.sums()['cost_usd']:,.2f} USD ({self.price_per_second:g} a QPU second)",
        }
        return "\n".join([*lines, "", *(f"{name:10}  {text}" for name, text in below.items())])

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``report.json`` and, where matplotlib is installed, the plot ``jobs.png``.

        Args:
            folder: made if it is not there.

        Returns:
            What was written.
        """
        facts, plot = Path(folder) / "report.json", Path(folder) / "jobs.png"
        facts.parent.mkdir(parents=True, exist_ok=True)
        facts.write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        try:
            self.plot(plot)
        except ImportError:
            return [facts]
        return [facts, plot]

    def plot(self, path: str | Path) -> None:
        """Draw a bar for each job, from its start to its end; pale while it was queued.

        Args:
            path: of the picture; its suffix says which kind.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        # The plain figure and canvas: pyplot would pick a window system and keep global state.
        figures: Any = importlib.import_module("matplotlib.figure")
        patches: Any = importlib.import_module("matplotlib.patches")
        lanes = [self._lanes(name) for name in self.backends]
        heights = [max(len(lane), 2) for lane in lanes]
        size = (10, 1.5 + min(0.3 * sum(heights), 10))
        figure = figures.Figure(figsize=size, layout="constrained")
        axes: Any = figure.subplots(
            len(lanes), 1, sharex=True, squeeze=False, height_ratios=heights
        )[:, 0]
        for name, lanes_here, axis in zip(self.backends, lanes, axes, strict=True):
            for height, lane in enumerate(lanes_here):
                for job in lane:
                    start, end = self._span(job)
                    colour = COLOURS[job.state]
                    queued = start - job.created
                    axis.barh(height, queued, left=job.created, color=colour, alpha=0.25)
                    axis.barh(height, end - start, left=start, color=colour, edgecolor=colour)
            for fault in self.faults:
                axis.axvline(fault.time, color="black", linewidth=0.5, linestyle=":")
            axis.set_ylabel(name, rotation=0, ha="right", va="center")
            axis.set_yticks([])
        axes[-1].set_xlabel("seconds since the server started (pale: queued; dotted: a fault)")
        states = {job.state for job in self.jobs}
        handles = [
            patches.Patch(color=colour, label=state)
            for state, colour in COLOURS.items()
            if state in states
        ]
        figure.legend(handles=handles, ncols=len(COLOURS), loc="outside upper center")
        figure.savefig(path, dpi=120)

    def _span(self, job: JobRecord) -> tuple[float, float]:
        """When a job was started and ended, as far as it was."""
        end = self.seconds if job.ended is None else job.ended
        return (end if job.started is None else job.started), end

    def _lanes(self, backend: str) -> list[list[JobRecord]]:
        """Jobs of a device in as few lanes as none overlaps another in its lane."""
        lanes: list[list[JobRecord]] = []
        for job in self.jobs:
            if job.backend != backend:
                continue
            for lane in lanes:
                if self._span(lane[-1])[1] <= job.created:
                    lane.append(job)
                    break
            else:
                lanes.append([job])
        return lanes


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
