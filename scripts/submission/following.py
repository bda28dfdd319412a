"""A job's output, as it comes, until the job ends.

Ray sends the lines of the job's log; its stream ends some seconds after the job does, and with
every connection. So the job's status is asked for whenever nothing has come for a moment, and
what is missing at the end, or after a connection was lost, is taken from the log as a whole.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, TextIO

from submission.errors import LostError, OutputError
from submission.lines import Lines

_QUIET_SECONDS = 0.5
_PENDING_SECONDS = 10.0  # a job starts within two or three, if it can
_AGAIN_SECONDS = 1.0
_LOST_SECONDS = 60.0  # a head that restarts, or a laptop that was closed
STOPPED = 143
"""Exit status of a stopped job: as shells have it for SIGTERM, which Ray sends."""


def follow(client: Any, job: str, out: TextIO | None = None) -> Any:
    """Show a job's output until it ends.

    Args:
        client: Ray's client.
        job: its id.
        out: where to, if not to standard output.

    Returns:
        Ray's details of the job that has ended, also where its output cannot be read.

    Raises:
        LostError: if the cluster does not answer for a minute.
        KeyboardInterrupt: on Ctrl-C; the job goes on.
    """
    lines = Lines(out or sys.stdout)
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
        self._ended: Any = None  # the details of the job, once it has ended
        self._unreadable = False  # whether its output is, which is told once

    async def run(self) -> Any:
        """Follow over as many connections as it takes; the details of the job that has ended."""
        import aiohttp

        while True:
            try:
                if await self._connected():
                    return self._ended
            except OutputError as error:
                if not self._unreadable:
                    _say(str(error) if self._ended else f"{error}. Waiting for its end")
                self._unreadable = True
                if self._ended is not None:
                    return self._ended
            except BrokenPipeError:  # whoever reads the output here is gone, not the cluster
                raise
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                self._lose(error)
                if self._lost_for() > _LOST_SECONDS:
                    if self._ended is None:
                        raise LostError(
                            f"{error}. The job may go on; follow it when the cluster is back"
                        ) from None
                    _say(f"the output of the job cannot be read: {error}")
                    return self._ended
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _connected(self) -> bool:
        """Follow over one connection; whether all is there, of a job that has ended."""
        # A job that has ended is not followed line by line, from its first on.
        if await self._has_ended():
            return True
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
                        self._found()
                        self._pending_since = None
                        continue
                if await self._has_ended():
                    return True
                if waiting is None:
                    await self._write_rest()  # or the reason why the stream has no more
                    return False
                self._found()  # a stream that is quiet is none that is lost
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait({waiting}, timeout=2)

    async def _has_ended(self) -> bool:
        """Whether the job has ended; then the rest of its output is written."""
        info = await asyncio.to_thread(self._client.get_job_info, self._job)
        if not info.status.is_terminal():
            self._tell_pending(info)
            return False
        self._ended = info
        await self._write_rest()
        return True

    async def _write_rest(self) -> None:
        logs = await asyncio.to_thread(self._client.get_job_logs, self._job)
        self._lines.write(logs[self._lines.received :])

    def _lose(self, error: BaseException) -> None:
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            _say(f"connection lost ({error}); trying again for {_LOST_SECONDS:.0f} s")

    def _lost_for(self) -> float:
        return 0.0 if self._lost_at is None else time.monotonic() - self._lost_at

    def _found(self) -> None:
        if self._lost_at is not None:
            self._lost_at = None
            _say("connected again")

    def _tell_pending(self, info: Any) -> None:
        since = self._pending_since
        if info.status == "PENDING" and since and time.monotonic() - since > _PENDING_SECONDS:
            self._pending_since = None
            _say(f"after {_PENDING_SECONDS:.0f} s the job has not started: {info.message}")


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


def _say(text: str) -> None:
    print(f"submit: {text}", file=sys.stderr, flush=True)
