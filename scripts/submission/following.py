"""A job's output, as it comes, until the job ends.

Ray sends the lines of the job's log; its stream ends some seconds after the job does, and with
every connection. So the job's status is asked for whenever nothing has come for a second, and
what is missing at the end, or after a connection was lost, is taken from the log as a whole.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TextIO

from submission.cluster import ClusterError

_QUIET_SECONDS = 0.5
_PENDING_SECONDS = 10.0  # a job starts within two or three, if it can
_AGAIN_SECONDS = 1.0
_LOST_SECONDS = 60.0  # a head that restarts, or a laptop that was closed
_BAR = re.compile(r"\d+%\|.*\||\[\d+:\d\d(:\d\d)?<")
_BAR_SECONDS = 10.0
_MOVES = re.compile(r"\x1b\[\d*[AK]|\r")
STOPPED = 143
"""Exit status of a stopped job: as shells have it for SIGTERM, which Ray sends."""


class Lines:
    """Writes output: whole lines, and of progress bars no more than can be read.

    A log file has a line for each state of a bar, several in a second. On a terminal they replace
    each other, as the bar meant to; elsewhere there is one every ten seconds, and the last.

    Args:
        out: where to.
        clock: the time in seconds.
    """

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.received = 0  # characters
        self._out, self._clock = out, clock
        self._rest = ""
        self._bar = ""  # the last state of a bar, if it is not written, or may be replaced
        self._next_bar = 0.0

    def write(self, text: str) -> None:
        """Take the next characters."""
        self.received += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if _BAR.search(line):
                self._show_bar(_MOVES.sub("", line))
            elif line.strip("\x1b[A\r ") or not self._bar:
                self._end_bar()
                self._out.write(line + "\n")
        self._out.flush()

    def close(self) -> None:
        """Write what is left."""
        self._end_bar()
        if self._rest:
            self._out.write(self._rest + "\n")
            self._rest = ""
        self._out.flush()

    def _show_bar(self, line: str) -> None:
        self._bar = line
        if self._out.isatty():
            self._out.write(f"\r\x1b[K{line}")
        elif self._clock() >= self._next_bar:
            self._next_bar = self._clock() + _BAR_SECONDS
            self._out.write(line + "\n")
            self._bar = ""

    def _end_bar(self) -> None:
        if self._bar:
            self._out.write("\n" if self._out.isatty() else self._bar + "\n")
            self._bar = ""


def follow(client: Any, job: str, out: TextIO = sys.stdout) -> Any:
    """Show a job's output until it ends.

    Args:
        client: Ray's client.
        job: its id.
        out: where to.

    Returns:
        Ray's details of the job that has ended.

    Raises:
        ClusterError: if the cluster does not answer for a minute.
        KeyboardInterrupt: on Ctrl-C; the job goes on.
    """
    lines = Lines(out)
    try:
        return asyncio.run(_Follower(client, job, lines).run())
    finally:
        lines.close()


class _Follower:
    """One job that is followed."""

    def __init__(self, client: Any, job: str, lines: Lines) -> None:
        self._client, self._job, self._lines = client, job, lines
        self._lost_at: float | None = None
        self._pending_since: float | None = time.monotonic()

    async def run(self) -> Any:
        """Follow over as many connections as it takes; the details of the job that has ended."""
        import aiohttp

        while True:
            try:
                if info := await self._connected():
                    return info
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                now = time.monotonic()
                self._lost_at = self._lost_at or now
                if now - self._lost_at > _LOST_SECONDS:
                    raise ClusterError(
                        f"{error}. The job may go on; follow it when the cluster is back"
                    ) from None
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _connected(self) -> Any:
        """Follow over one connection; None if that ends before the job."""
        stream = self._client.tail_job_logs(self._job)
        skip = self._lines.received  # a new stream begins with the first line again
        waiting: asyncio.Task[str] | None = None
        try:
            while True:
                waiting = waiting or asyncio.create_task(_next(stream))
                await asyncio.wait({waiting}, timeout=_QUIET_SECONDS)
                if waiting.done():
                    text, waiting = waiting.result(), None
                    self._lines.write(text[skip:])
                    skip = max(0, skip - len(text))
                    if text:
                        self._lost_at = self._pending_since = None
                        continue
                info = await asyncio.to_thread(self._client.get_job_info, self._job)
                self._lost_at = None
                if info.status.is_terminal():
                    logs = await asyncio.to_thread(self._client.get_job_logs, self._job)
                    self._lines.write(logs[self._lines.received :])
                    return info
                self._tell_pending(info)
                if waiting is None:
                    return None
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait({waiting}, timeout=2)

    def _tell_pending(self, info: Any) -> None:
        since = self._pending_since
        if info.status == "PENDING" and since and time.monotonic() - since > _PENDING_SECONDS:
            self._pending_since = None
            waited = f"after {_PENDING_SECONDS:.0f} s the job has not started"
            print(f"submit: {waited}: {info.message}", file=sys.stderr)


async def _next(stream: AsyncIterator[str]) -> str:
    """The next text, or "" at the end."""
    try:
        return await anext(stream)
    except StopAsyncIteration:
        return ""


def exit_status(info: Any) -> int:
    """The exit status that a job's end is reported with: its own, where it has one."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return STOPPED
    code = info.driver_exit_code or 1
    return 128 - code if code < 0 else min(code, 255)
