"""The process that runs trials, one after the other; `supervisor` starts and watches it.

It reads its settings and then seeds from standard input, a line each, and writes reports as lines
of JSON to the file descriptor that it is given. What it and Ray print goes to a log.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import tempfile
import threading
from dataclasses import asdict
from typing import Any, TextIO

import torch

from chaos_runs.arena import Arena
from chaos_runs.processes import keep_orphans
from chaos_runs.trial import Settings, Trial

HUNG = 3
"""The exit status of a process whose run hangs."""


def main(descriptor: int) -> None:
    """Run what is asked for."""
    faulthandler.enable()
    keep_orphans()
    torch.set_num_threads(1)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("qailab").setLevel(logging.INFO)
    given = json.loads(sys.stdin.readline())
    settings = Settings(**{**given, "kinds": tuple(given["kinds"])})
    with os.fdopen(descriptor, "w") as reports, Arena(settings.node_cpus) as arena:
        _send(reports, {"ready": True})
        for line in sys.stdin:
            print(f"--- seed {int(line)}", file=sys.stderr, flush=True)
            trial = Trial(settings, int(line), arena)
            watchdog = threading.Timer(settings.deadline, _hangs, (trial, reports))
            watchdog.daemon = True
            watchdog.start()
            report = trial.run()
            watchdog.cancel()
            _send(reports, asdict(report))


def _hangs(trial: Trial, reports: TextIO) -> None:
    """Say where everybody is, and end."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        stacks = file.read()
    print(stacks, file=sys.stderr, flush=True)
    report = trial.snapshot()
    report.hang = True
    report.stuck = f"{stacks}\n{report.stuck}"
    _send(reports, asdict(report))
    os._exit(HUNG)


def _send(reports: TextIO, message: dict[str, Any]) -> None:
    reports.write(json.dumps(message) + "\n")
    reports.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
