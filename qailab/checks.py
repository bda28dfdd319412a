"""What a check of this machine is, what it finds, and running checks within their deadlines."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from qailab.errors import InputError

HIDDEN = "(not shown: a part of a secret is in it)"
_SECRET_PART = 8  # characters in a row that give a secret away; IBM's API keys have 44
_LONGEST = 360  # of a message; remote tracebacks have thousands of characters
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # Ray colours its tracebacks


@dataclass(frozen=True)
class Finding:
    """One row of a report.

    Args:
        check: what was looked at.
        found: what was there.
        problem: what is wrong with it; empty if nothing is.
        to_do: what to do about the problem.
        warning: whether work goes on in spite of the problem.

    Raises:
        InputError: if a problem comes without anything to do about it.
    """

    check: str
    found: str
    problem: str = ""
    to_do: str = ""
    warning: bool = False

    def __post_init__(self) -> None:
        if self.problem and not self.to_do:
            raise InputError(f"a finding must say what to do about its problem: {self.problem!r}")

    @property
    def wrong(self) -> bool:
        """Whether the problem stops work."""
        return bool(self.problem) and not self.warning

    def without(self, secrets: Iterable[str]) -> Finding:
        """The same finding, with each text hidden that holds a secret or eight characters of it."""
        known = [secret for secret in secrets if len(secret) >= _SECRET_PART]

        def shown(text: str) -> str:
            return HIDDEN if any(_gives_away(secret, text) for secret in known) else text

        return replace(
            self,
            check=shown(self.check),
            found=shown(self.found),
            problem=shown(self.problem),
            to_do=shown(self.to_do),
        )


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Args:
        name: what the row is called where the check itself says nothing.
        run: looks, and gives findings as they come.
        seconds: how long it may take.
        to_do: what to do if it fails unexpectedly or takes too long.
    """

    name: str
    run: Callable[[], Iterable[Finding]]
    seconds: float
    to_do: str


def findings_of(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run checks one after the other; none can raise, or take longer than its deadline.

    They share one thread, as long as each is in time: Ray's processes end with the thread that
    started them. A check that is late is left behind in its thread.

    Args:
        checks: what to look at, in order; asked for the next when one is done.

    Yields:
        What is found, as soon as it is.
    """
    worker: _Worker | None = None
    for check in checks:
        worker = worker or _Worker()
        worker.checks.put(check)
        end = time.monotonic() + check.seconds
        while True:
            try:
                finding = worker.findings.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                found = f"no answer within {check.seconds:g} s"
                yield Finding(check.name, found, "it takes too long", check.to_do)
                worker = None
                break
            if finding is None:
                break
            yield finding
    if worker is not None:
        worker.checks.put(None)
        worker.thread.join()


def left_behind() -> bool:
    """Whether a late check is still running in its thread."""
    return any(thread.name == _Worker.name for thread in threading.enumerate())


def message_of(error: BaseException) -> str:
    """An error in one line: its class and its message, the middle left out if it is long."""
    text = " ".join(_ANSI.sub("", str(error)).split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Worker:
    """A thread that runs the checks it is given; None stands for the end, both ways."""

    name = "qailab-checks"

    def __init__(self) -> None:
        self.checks: queue.SimpleQueue[Check | None] = queue.SimpleQueue()
        self.findings: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (check := self.checks.get()) is not None:
            try:
                for finding in check.run():
                    self.findings.put(finding)
            except BaseException as error:  # also SystemExit: no check ends the others
                self.findings.put(
                    Finding(check.name, "the check failed", message_of(error), check.to_do)
                )
            self.findings.put(None)


def _gives_away(secret: str, text: str) -> bool:
    parts = range(len(secret) - _SECRET_PART + 1)
    return any(secret[start : start + _SECRET_PART] in text for start in parts)
