"""The options of ``--backend ibm``: on which devices a run is, and what it may spend there.

None of them decides the weights, so all may differ when a run is resumed. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from qailab.errors import InputError

if TYPE_CHECKING:  # seconds of imports
    from qailab.backends import IBMBackend

Mode = Literal["session", "batch", "job"]

_BACKEND = ("mode", "max_time", "instance", "account", "poll_interval", "timeout")
_BUDGET = {"budget_seconds": "qpu_seconds", "budget_jobs": "jobs", "budget_shots": "shots"}


@dataclass(frozen=True)
class Hardware:
    """What was given on the command line; None is for what was not.

    Args:
        devices: names of devices, one actor for each; None for the least busy one.
        mode: how jobs are sent.
        max_time: how long a session may live.
        instance: the instance, by name or CRN.
        account: the name of a saved account.
        journal: the file that records jobs and results.
        budget_seconds: QPU seconds that may be spent.
        budget_jobs: jobs that may be sent.
        budget_shots: executions that may run.
        poll_interval: seconds between two looks at a job.
        timeout: seconds that a job may take, its time in the queue included.

    Raises:
        InputError: if a value is out of its range.
    """

    devices: tuple[str, ...] | None = None
    mode: Mode | None = None
    max_time: str | None = None
    instance: str | None = None
    account: str | None = None
    journal: Path | None = None
    budget_seconds: float | None = None
    budget_jobs: int | None = None
    budget_shots: int | None = None
    poll_interval: float | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.devices is not None:
            shown = ",".join(self.devices)
            if not all(self.devices):
                raise InputError(f"--devices must be names with commas between, got {shown!r}")
            if len(set(self.devices)) < len(self.devices):
                raise InputError(
                    f"--devices names one twice: {shown!r}; a device has one actor, which sends "
                    "as many jobs at once as it takes"
                )
        for name in ("budget_jobs", "budget_shots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{_option(name)} must be at least 1, got {value}")
        for name in ("budget_seconds", "poll_interval", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{_option(name)} must be positive and finite, got {value}")

    @classmethod
    def of(cls, known: argparse.Namespace) -> Hardware:
        """What was given among the parsed options."""
        values = {field.name: getattr(known, field.name) for field in dataclasses.fields(cls)}
        if values["devices"] is not None:
            values["devices"] = tuple(name.strip() for name in values["devices"].split(","))
        if values["journal"] is not None:
            values["journal"] = Path(values["journal"])
        return cls(**values)

    @property
    def arguments(self) -> dict[str, str]:
        """The options that were given and their values, to be given again."""
        given = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                text = ",".join(value) if isinstance(value, tuple) else str(value)
                given[_option(field.name)] = text
        return given

    @property
    def num_devices(self) -> int:
        """How many devices share the rows."""
        return len(self.devices or (None,))

    def backends(self, journal: Path, sessions: int = 1) -> list[IBMBackend]:
        """One backend for each actor; they share the journal and the budget.

        Args:
            journal: the journal's file.
            sessions: actors for each device.

        Raises:
            InputError: if an option is not valid.
        """
        from qailab.backends import Budget, IBMBackend

        limits: dict[str, Any] = {
            limit: getattr(self, name)
            for name, limit in _BUDGET.items()
            if getattr(self, name) is not None
        }
        budget = Budget(**limits) if limits else None
        options: dict[str, Any] = {
            name: getattr(self, name) for name in _BACKEND if getattr(self, name) is not None
        }
        return [
            IBMBackend(name, budget=budget, journal=journal, **options)
            for name in self.devices or (None,)
            for _ in range(sessions)
        ]

    def __str__(self) -> str:
        where = "the least busy device" if self.devices is None else " and ".join(self.devices)
        budget = [f"{_option(n)} {v}" for n in _BUDGET if (v := getattr(self, n)) is not None]
        return f"{where} in mode {self.mode or 'session'!r}, {' '.join(budget) or 'no budget'}"


def add_options(group: Any) -> None:
    """Add the options to a group of a parser."""
    group.add_argument(
        "--devices",
        metavar="NAME[,NAME...]",
        help="devices, one actor for each; together they evaluate each gradient (default: one "
        "actor on the least busy device)",
    )
    group.add_argument(
        "--mode",
        choices=get_args(Mode),
        help="how jobs are sent: in a session (the devices are yours meanwhile), in a batch, or "
        "one by one (default: session; batch or job where the plan has no sessions)",
    )
    group.add_argument(
        "--max-time",
        metavar="TIME",
        help="how long a session may live, such as '2h 30m' (default: 1h)",
    )
    group.add_argument("--instance", help="instance, by name or CRN (default: the account's)")
    group.add_argument(
        "--account", metavar="NAME", help="saved account (default: environment, or the default one)"
    )
    group.add_argument(
        "--journal",
        metavar="PATH",
        help="file that records jobs and results, which actors on other machines must reach as "
        "well; 'python -m qailab.journal PATH' lists it (default: journal.sqlite in the run's "
        "folder, which is a link if a PATH was given)",
    )
    text = "{} at most, in all the journal's life: then training stops, to be resumed"
    group.add_argument(
        "--budget-seconds", type=float, metavar="S", help=text.format("QPU seconds to spend")
    )
    group.add_argument("--budget-jobs", type=int, metavar="N", help=text.format("jobs to send"))
    group.add_argument(
        "--budget-shots", type=int, metavar="N", help=text.format("executions (rows x shots)")
    )
    group.add_argument(
        "--poll-interval",
        type=float,
        metavar="S",
        help="seconds between two looks at a job, after some quick first ones (default: 2)",
    )
    group.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds a job may take, its time in the queue included (default: a day)",
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
