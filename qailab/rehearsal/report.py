"""What happened in a rehearsal: as a table, as JSON, as a plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qailab.rehearsal.limits import PRICE_PER_SECOND
from qailab.rehearsal.records import (
    CANCELLED,
    COMPLETED,
    FAILED,
    RAN_TOO_LONG,
    FaultRecord,
    JobRecord,
    RequestRecord,
    SessionRecord,
)


@dataclass(frozen=True)
class Report:
    """The records of a rehearsal and their sums.

    Args:
        backends: names of the devices.
        jobs: the jobs.
        sessions: the sessions.
        requests: the requests.
        faults: the faults that were injected.
        seconds: how long the server has run.
        price_per_second: of a QPU, US dollars; jobs are charged by their QPU seconds. (A
            dedicated session is charged for the whole time it is active, idle time included, which
            a rehearsal in less than real time cannot tell.)
    """

    backends: tuple[str, ...]
    jobs: tuple[JobRecord, ...]
    sessions: tuple[SessionRecord, ...]
    requests: tuple[RequestRecord, ...]
    faults: tuple[FaultRecord, ...]
    seconds: float
    price_per_second: float = PRICE_PER_SECOND

    def survived(self, fault: FaultRecord) -> bool:
        """Whether work went on after a fault.

        A job with the same content as the one it hit completed later, or, if it hit none, any job.
        """
        hit = [job.content for job in self.jobs if job.id == fault.job]
        return any(
            job.state == COMPLETED
            and (job.ended or 0.0) >= fault.time
            and (not hit or job.content in hit)
            for job in self.jobs
        )

    def sums(self, backend: str | None = None) -> dict[str, float]:
        """Numbers of one device, or of all.

        Returns:
            ``jobs``, by their state, ``rows``, ``executions``; seconds in queue, run time here and
            QPU time, and ``cost`` in US dollars.
        """
        jobs = [job for job in self.jobs if backend in (None, job.backend)]
        states = Counter(job.state for job in jobs)
        qpu = sum(job.qpu_seconds for job in jobs)
        return {
            "jobs": len(jobs),
            "completed": states[COMPLETED],
            "failed": states[FAILED] + states[RAN_TOO_LONG],
            "cancelled": states[CANCELLED],
            "unfinished": sum(not job.is_final for job in jobs),
            "rows": sum(job.rows for job in jobs),
            "executions": sum(job.executions for job in jobs),
            "queue_seconds": sum(
                job.started - job.created for job in jobs if job.started is not None
            ),
            "run_seconds": sum(job.run_seconds for job in jobs),
            "qpu_seconds": qpu,
            "cost_usd": qpu * self.price_per_second,
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        from qailab.rehearsal.server import find_duplicates

        statuses = Counter(str(request.status or "dropped") for request in self.requests)
        return {
            "seconds": self.seconds,
            "price_per_second_usd": self.price_per_second,
            "total": self.sums(),
            "backends": {name: self.sums(name) for name in self.backends},
            "requests": {
                "count": len(self.requests),
                "sent_again": sum(_is_sent_again(request) for request in self.requests),
                "by_status": dict(sorted(statuses.items())),
            },
            "faults": {
                "injected": len(self.faults),
                "survived": sum(self.survived(fault) for fault in self.faults),
                "by_kind": dict(sorted(Counter(fault.kind for fault in self.faults).items())),
            },
            "duplicates": [[one.id, two.id] for one, two in find_duplicates(self.jobs)],
            "jobs": [asdict(job) for job in self.jobs],
            "sessions": [asdict(session) for session in self.sessions],
            "faults_injected": [asdict(fault) for fault in self.faults],
        }

    def table(self) -> str:
        """The sums, aligned, one column for each device, and what went wrong below."""
        facts = self.as_dict()
        columns = [*self.backends, "total"] if len(self.backends) > 1 else list(self.backends)
        sums = [self.sums(None if name == "total" else name) for name in columns]
        shown = {
            "jobs": "d",
            "completed": "d",
            "failed": "d",
            "cancelled": "d",
            "unfinished": "d",
            "rows": ",d",
            "executions": ",d",
            "queue_seconds": ".1f",
            "run_seconds": ".1f",
            "qpu_seconds": ".1f",
            "cost_usd": ",.2f",
        }
        lines = [["", *columns]]
        for name, form in shown.items():
            lines.append([name.replace("_", " "), *(f"{column[name]:{form}}" for column in sums)])
        requests, faults = facts["requests"], facts["faults"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in faults["by_kind"].items())
        return "\n".join(
            [
                *_aligned(lines),
                "",
                f"sessions    {len(self.sessions)}",
                f"requests    {requests['count']}, {requests['sent_again']} failed in a way that "
                "is worth sending again",
                f"faults      {faults['injected']} injected, {faults['survived']} survived"
                + (f" ({kinds})" if kinds else ""),
                f"duplicates  {len(facts['duplicates'])}",
                f"cost        at {self.price_per_second:g} USD for a QPU second, estimated",
            ]
        )

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``report.json`` and, where matplotlib is installed, the plot ``jobs.png``.

        Args:
            folder: made if it is not there.

        Returns:
            What was written.
        """
        from qailab.rehearsal.plot import plot_jobs

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        written = [place / "report.json"]
        written[0].write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        try:
            plot_jobs(self, place / "jobs.png")
        except ImportError:
            return written
        return [*written, place / "jobs.png"]


def _is_sent_again(request: RequestRecord) -> bool:
    return request.status in (0, 429) or request.status >= 500


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    ]
