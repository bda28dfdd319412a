"""The harness: runs seeded trials, each in a process of its own, with a deadline, and reports them.

::

    seeds --> trial in a forked process --> <kind>-<seed>.json --> a line each, a summary
                 (deadline: stacks of all threads; then its end, and that of all it started)

Processes are forked from one that has imported what takes long (`multiprocessing`'s fork server),
so that a trial begins within a tenth of a second.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from chaos_runs.processes import adopt_orphans, descendants, end_descendants

_MARGIN_SECONDS = 15.0  # beyond the deadline, for a process that hangs to say so itself
_PRELOADED = ["chaos_runs.kills"]  # with all that it imports
_LOG_CHARACTERS = 6000


@dataclass
class Report:
    """What came of a trial."""

    kind: str
    seed: int
    what: str = ""  # the schedule in words
    problems: list[str] = field(default_factory=list)  # what must not be; empty if all is well
    figures: dict[str, float] = field(default_factory=dict)  # added up over trials of a kind
    note: str = ""
    seconds: float = 0.0
    log: str = ""  # the end of it, if there are problems


Run = Callable[[Report, Path, dict[str, Any]], None]
"""Fills in a report, given a folder for its files and the program's options."""


def fork_server() -> ForkServerContext:
    """Starts processes that have imported everything; the same one in them, too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def run_trials(
    trials: Iterable[tuple[Run, Report]], options: dict[str, Any], folder: Path
) -> Iterator[Report]:
    """Run trials one after the other, and end whatever each leaves.

    Args:
        trials: what to run, and a report with its kind and seed.
        options: ``deadline`` in seconds, and what the trials understand.
        folder: where ``<kind>-<seed>.json`` goes, and Ray's logs after a run with problems.
    """
    first = fork_server().Process(target=int)  # starts the fork server itself
    first.start()
    first.join()
    spare = descendants()
    try:
        for run, report in trials:
            # Ray's workers end when their parent is init: there they must.
            adopt_orphans(report.kind != "kills")
            yield _run_one(run, report, options, folder)
            end_descendants(spare)
    finally:
        end_descendants(spare)


def _run_one(run: Run, report: Report, options: dict[str, Any], folder: Path) -> Report:
    own = folder / f"{report.kind}-{report.seed}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    process = fork_server().Process(target=_main, args=(run, report, options, own))
    process.start()
    process.join(options["deadline"] + _MARGIN_SECONDS)
    log = (own / "log.txt").read_text(errors="replace")[-_LOG_CHARACTERS:]
    try:
        report = Report(**json.loads((own / "report.json").read_text()))
    except FileNotFoundError:
        report.seconds = options["deadline"]
        hangs = process.exitcode is None or "Timeout" in log  # faulthandler's word
        report.problems.append("hangs" if hangs else f"its process ended: {process.exitcode}")
    if report.problems:
        report.log = log
        for logs in Path(os.environ["RAY_TMPDIR"]).glob("ray/session_2*/logs"):
            with suppress(OSError, shutil.Error):  # some files come and go
                shutil.copytree(logs, folder / f"ray-{own.name}", dirs_exist_ok=True)
    shutil.rmtree(own, ignore_errors=True)
    (folder / f"{own.name}.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


def _main(run: Run, report: Report, options: dict[str, Any], folder: Path) -> None:
    """Run a trial in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the harness ends all in order
    redirect_output(folder / "log.txt")
    faulthandler.dump_traceback_later(options["deadline"], exit=True)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("qailab").setLevel(logging.INFO)
    began = time.monotonic()
    try:
        run(report, folder, options)
    except Exception as error:
        traceback.print_exc()
        report.problems.append(f"{type(error).__name__}: {str(error)[:300]}")
    report.seconds = time.monotonic() - began
    draft = folder / "report.new"
    draft.write_text(json.dumps(asdict(report)))
    draft.rename(folder / "report.json")


def redirect_output(path: Path) -> None:
    """Append what this process and its children print to a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable(sys.stderr)


class Logged(logging.Handler):
    """Keeps what qailab logs from a level on, in ``texts``."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.texts: list[str] = []
        logging.getLogger("qailab").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def summary(reports: Sequence[Report]) -> str:
    """All reports, a line for each kind."""
    lines = []
    for kind in dict.fromkeys(report.kind for report in reports):
        those = [report for report in reports if report.kind == kind]
        figures: Counter[str] = Counter()
        for report in those:
            figures.update(report.figures)
        bad = [str(report.seed) for report in those if report.problems]
        seconds = sorted(report.seconds for report in those)
        lines.append(
            f"{kind}: {len(those) - len(bad)} ok, {len(bad)} not"
            + (f" (seeds {', '.join(bad)})" if bad else "")
            + f"; {seconds[len(seconds) // 2]:.1f} s each, {seconds[-1]:.1f} s at most; "
            + ", ".join(f"{round(value, 3):,g} {name}" for name, value in figures.items())
        )
    return "\n".join(lines)
