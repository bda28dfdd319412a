"""A job's output as lines, and of progress bars no more than can be read."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from typing import TextIO

# tqdm's own form, and that of scripts/train.py. Its line of an epoch has no percentage.
_COUNT = r"[\d.]+[kMGTP]?"
_BAR = re.compile(
    rf"\d+%\|[^|]*\| *{_COUNT}/{_COUNT} \[|^epoch \d+/\d+ [ #\d\u2588-\u258f]* \d+%.* left$"
)
_BAR_SECONDS = 10.0
_MOVES = re.compile(r"\x1b\[\d*[AK]|\r")


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
            plain = _MOVES.sub("", line)
            if _BAR.search(plain) or (line.startswith("\r") and plain):
                self._show_bar(plain)
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
            width = shutil.get_terminal_size().columns  # what goes over two lines stays there
            self._out.write(f"\r\x1b[K{line[: width - 1]}")
        elif self._clock() >= self._next_bar:
            self._next_bar = self._clock() + _BAR_SECONDS
            self._out.write(line + "\n")
            self._bar = ""

    def _end_bar(self) -> None:
        if self._bar:
            self._out.write("\n" if self._out.isatty() else self._bar + "\n")
            self._bar = ""
