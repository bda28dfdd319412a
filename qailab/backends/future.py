"""The handle of rows that are being evaluated: a ``concurrent.futures.Future`` that can stop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from qailab.gradients.rows import FloatArray


class RowFuture(Future[FloatArray]):
    """Answers of a batch of rows, in row order, some time later.

    Unlike a plain future, ``cancel`` also reaches work that has begun: what is in flight is
    stopped as soon as the backend can, and the result is a ``CancelledError``.

    Args:
        on_cancel: called once when the future is cancelled before it is done.
    """

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._on_cancel = on_cancel

    def cancel(self) -> bool:
        """Stop the evaluation; False if it is already done."""
        if super().cancel():  # it is never marked as running, so this is whether it was done
            self._on_cancel()
        return self.cancelled()
