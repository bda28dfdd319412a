"""``python -m qailab.journal FILE``: the jobs of a journal, their QPU seconds and cost.

A line for each job (``--steps``: none), one for each training step, the totals, and the sessions
that nobody has closed. The file is only read, also while a training uses it. ``--give-up ENTRY``
notes that a job will have no result, where it was deleted at the server; its rows are then sent
again. The exit code is 0, and 2 if the arguments are not valid or the file is no journal.
``--json`` prints one document for programs instead::

    {"version": 1, "path": "/.../jobs.db", "price_per_second": 1.6,
     "jobs": [{"id": 1, "step": 0, "pass": "backward", "start": 0, "stop": 3000, "shots": 1024,
               "backend": "ibm_fez", "mode": "session", "session": "...", "job_id": "...",
               "tag": "qailab-...", "rehearsed": false, "attempt": 0, "state": "done", "cause": "",
               "qpu_seconds": 2.0, "reason": "", "circuit": "...", "seed": 7, "owner": "...",
               "created": 1.7e9, "updated": 1.7e9}, ...],
     "steps": [{"step": 0, "jobs": 2, "rows": 3032, "executions": 3104768, "qpu_seconds": 2.1,
                "usage_unknown": 0, "cost": 3.36, "rehearsed": 0}, ...],
     "totals": {"jobs": ..., "rows": ..., "executions": ..., "qpu_seconds": ...,
                "usage_unknown": ..., "cost": ..., "rehearsed": ..., "states": {"done": 2}},
     "sessions": [{"session": "...", "backend": "ibm_fez", "mode": "session", "state": "open",
                   "given": false, "created": 1.7e9, "updated": 1.7e9}, ...]}

``stop`` is one past the last row; times are seconds since 1970; what is not known is null. The
numbers of steps and totals are of all jobs that reached the server; those that were rehearsed
(`qailab.rehearsal`) cost nothing. A session is "closed" once it
was closed or took no more jobs, and "open" before, even if the service has ended it at its max_time
meanwhile; ``given`` tells those that somebody else opened, and closes. Keys may be added.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

from qailab.errors import QailabError
from qailab.journal.report import read_report, tables
from qailab.journal.store import Journal


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is in a journal; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qailab.journal",
        description="List the hardware jobs of a journal, their QPU seconds and cost.",
    )
    parser.add_argument("path", help="the journal's file")
    parser.add_argument("--json", action="store_true", help="one document, for programs")
    parser.add_argument("--steps", action="store_true", help="no jobs, only what they come to")
    parser.add_argument("--give-up", type=int, metavar="ENTRY", help="have its rows sent again")
    options = parser.parse_args(arguments)
    try:
        report = read_report(options.path)
        if options.give_up is not None:
            with Journal(options.path) as journal:
                entry = journal.give_up(options.give_up, "given up by hand")
    except QailabError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    if options.give_up is not None:
        sys.stdout.write(f"{entry}: its rows are sent again by whoever needs them\n")
    elif options.json:
        shown = replace(report, jobs=[]) if options.steps else report
        sys.stdout.write(json.dumps(shown.as_json(), indent=1) + "\n")
    else:
        sys.stdout.write(tables(report, jobs=not options.steps))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads has seen enough (`| head`)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # any language
    sys.exit(main())
