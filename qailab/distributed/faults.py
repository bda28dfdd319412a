"""Telling what a failed call means: a lost machine, or rows that cannot be evaluated."""

from __future__ import annotations

import re

from ray.exceptions import (
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from qailab.distributed.slots import Chunk, Slot
from qailab.errors import EvaluationError, PoolError, QailabError

LOSSES = (RayActorError, OutOfMemoryError, WorkerCrashedError, ObjectLostError)
"""Ray's errors that say something about the machine, not about the rows: the same rows run again
elsewhere. A node's death first shows as `ActorUnavailableError`, a memory kill as
`OutOfMemoryError`, which is no `RayActorError`."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Ray colours its tracebacks, also in files


def readable(error: BaseException) -> str:
    """An error with its remote traceback, as plain text."""
    return _COLOURS.sub("", f"{type(error).__name__}: {error}").strip()


def last_line(error: BaseException) -> str:
    """The line of an error that says what happened, for a log."""
    return f"{type(error).__name__}: {readable(error).splitlines()[-1].strip()}"


def ray_is_gone() -> PoolError:
    """The error of a pool whose Ray was shut down by somebody else."""
    return PoolError("Ray was shut down, or started anew, under this pool; make a new LauncherPool")


def remote_error(error: BaseException, slot: Slot, chunk: Chunk, num_rows: int) -> QailabError:
    """The error of an actor as one of ours, with where it happened and the remote traceback.

    Args:
        error: what Ray raised for the call.
        slot: the slot whose actor it was.
        chunk: the rows of the call.
        num_rows: all rows of the evaluation.
    """
    cause = getattr(error, "cause", error)
    kind = type(cause) if isinstance(cause, QailabError) else EvaluationError
    return kind(
        f"{cause}\n(on {slot.backend!r}, actor {slot.index}, rows {chunk.start} to "
        f"{chunk.stop - 1} of {num_rows})\n{_COLOURS.sub('', str(error))}"
    )
