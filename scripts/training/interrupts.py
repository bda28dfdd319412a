"""Ctrl-C and SIGTERM, as one `KeyboardInterrupt` and no more."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While it is entered, the first SIGINT or SIGTERM raises `KeyboardInterrupt`.

    Later ones are only answered with a line of text: the checkpoint is being written then.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def received(self) -> signal.Signals:
        """The signal that ended the program."""
        return signal.Signals(self._received or signal.SIGINT)

    def install(self) -> None:
        """Take the signals (back): ``ray.init`` takes SIGTERM for itself."""
        for number in _SIGNALS:
            before = signal.signal(number, self._handle)
            self._before.setdefault(number, before)

    def check(self) -> None:
        """Raise the `KeyboardInterrupt` again if it was lost.

        Python drops exceptions that a handler raises inside a destructor or a callback of C.
        """
        if self._received is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._received is None:
            self._received = number
            raise KeyboardInterrupt
        os.write(2, b"\nAlready stopping ...\n")  # print is not allowed to interrupt a print

    def __enter__(self) -> Interrupts:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
