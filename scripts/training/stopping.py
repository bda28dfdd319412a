"""Ctrl-C and SIGTERM, as one `KeyboardInterrupt` and no more."""

from __future__ import annotations

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Raises `KeyboardInterrupt` at the first SIGINT or SIGTERM; a context manager.

    Later ones are answered with a line of text: the checkpoint is being written then.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def check(self) -> None:
        """Raise the interrupt again: Python drops one raised in a destructor or a C callback."""
        if self.received is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            raise KeyboardInterrupt
        os.write(2, b"\nAlready stopping ...\n")  # print must not interrupt a print

    def __enter__(self) -> StopSignals:
        self._before = [signal.signal(number, self._handle) for number in _SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in zip(_SIGNALS, self._before, strict=True):
            signal.signal(number, before)
