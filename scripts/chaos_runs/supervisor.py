"""The supervisor: starts the process that runs trials, and ends whatever it leaves.

It imports neither Ray nor torch, and waits for nothing without a deadline, so that no run can take
it along. A process whose run fails is ended with all that descends from it, and the next run gets
a new one with a cluster of its own.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from chaos_runs.processes import Process, descendants, end_all, keep_orphans
from chaos_runs.report import Report

_START_SECONDS = 120.0
_MARGIN_SECONDS = 10.0  # for a process that hangs to say so itself
_END_SECONDS = 20.0
_LOG_LINES = 30


class Supervisor:
    """Runs trials in a process of their own.

    Args:
        settings: the fields of `trial.Settings`.
        environment: variables for that process.
        folder: where its log goes.
    """

    def __init__(
        self, settings: Mapping[str, Any], environment: Mapping[str, str], folder: Path
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._folder = folder
        self._log = folder / "worker.log"
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._temporary = ""
        self._others: set[Process] = set()

    def run(
        self, seeds: Sequence[int], planned: Callable[[int], dict[str, int]]
    ) -> Iterator[Report]:
        """Run seeds.

        Args:
            seeds: the seeds.
            planned: the faults of a seed, for a run that cannot say.

        Yields:
            The report of each, when it is done.
        """
        for seed in seeds:
            report = self._run_one(seed)
            report.planned = report.planned or planned(seed)
            if report.problems:
                self._keep_logs(seed)
            yield report
            if report.problems:
                self.end()

    def _run_one(self, seed: int) -> Report:
        if self._process is None:
            self._start()
            if self._receive(_START_SECONDS) is None:
                return Report(seed, error=f"the cluster did not start\n{self._log_tail()}")
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError):  # it may have ended meanwhile
            self._process.stdin.write(f"{seed}\n")
            self._process.stdin.flush()
        answer = self._receive(self._settings["deadline"] + _MARGIN_SECONDS)
        if answer is not None:
            return Report(**answer)
        if self._process.poll() is None:
            return Report(seed, hang=True, stuck=f"it does not even say so\n{self._log_tail()}")
        text = f"the process that trains ended with status {self._process.returncode}"
        return Report(seed, error=f"{self._log_tail()}\n{text}")

    def _start(self) -> None:
        keep_orphans()
        self._others = set(descendants())  # whatever else this process has started
        self._temporary = tempfile.mkdtemp(prefix="chaos-")
        path = os.pathsep.join(
            [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        environment = {
            **os.environ,
            **self._environment,
            "PYTHONPATH": path,
            "RAY_TMPDIR": self._temporary,  # also of the file that says where a cluster is
        }
        environment.pop("RAY_ADDRESS", None)
        receiving, sending = os.pipe()
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chaos_runs.worker", str(sending)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env=environment,
                pass_fds=[sending],
                start_new_session=True,  # Ctrl-C is for the supervisor, which ends all in order
            )
        os.close(sending)
        self._lines = queue.Queue()
        reader = threading.Thread(target=_read, args=(receiving, self._lines), daemon=True)
        reader.start()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._settings) + "\n")
        self._process.stdin.flush()

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None if none came in time, or the process has ended."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        if line is None:
            with suppress(subprocess.TimeoutExpired):
                assert self._process is not None
                self._process.wait(1.0)
            return None
        message: dict[str, Any] = json.loads(line)
        return message

    def _keep_logs(self, seed: int) -> None:
        """Copy what Ray wrote, which goes with the cluster otherwise."""
        for logs in Path(self._temporary).glob("ray/session_2*/logs"):
            with suppress(OSError, shutil.Error):  # some files come and go
                shutil.copytree(logs, self._folder / f"ray-seed-{seed}", dirs_exist_ok=True)

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:])

    def end(self, seconds: float = 0.0) -> None:
        """End the process and all that descends from it. Safe to call twice.

        Args:
            seconds: how long it may take to end by itself.
        """
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        try:
            with suppress(OSError):
                process.stdin.close()
            if seconds:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
        finally:
            left = end_all(spare=self._others)
            process.wait()
            shutil.rmtree(self._temporary, ignore_errors=True)
            if left:
                raise RuntimeError(f"these do not end: {', '.join(str(p.pid) for p in left)}")

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(_END_SECONDS if error is None else 0.0)


def _read(descriptor: int, lines: queue.Queue[str | None]) -> None:
    with os.fdopen(descriptor) as file:
        for line in file:
            lines.put(line)
    lines.put(None)
