"""Telling what a failed Ray call means: a lost machine, a full one, or a call that is wrong."""

from __future__ import annotations

import re

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    PendingCallsLimitExceeded,
    RayActorError,
    WorkerCrashedError,
)

from qailab.distributed.workers import NoRoom
from qailab.errors import EvaluationError, PoolError, QailabError, plain

LOSSES = (RayActorError, OutOfMemoryError, WorkerCrashedError, NodeDiedError, ObjectLostError)
"""Ray's errors that say something about the machine, not about the rows: the same rows run again
elsewhere. A node's death first shows as `ActorUnavailableError`, a memory kill as
`OutOfMemoryError`, which is no `RayActorError`."""

FULL = (ObjectStoreFullError, OutOfDiskError, PendingCallsLimitExceeded)
"""Ray's errors that pass when others have let go of what they hold."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Ray colours its tracebacks, also in files


def readable(error: BaseException) -> str:
    """An error with its remote traceback, as plain text."""
    return _COLOURS.sub("", f"{type(error).__name__}: {error}").strip()


def ray_is_gone() -> PoolError:
    """The error of a pool whose Ray was shut down by somebody else."""
    return PoolError("Ray was shut down, or started anew, under this pool; make a new LauncherPool")


def call_error(error: BaseException) -> QailabError:
    """The error of a call that reached its actor, or could not be made, as one of ours."""
    cause = getattr(error, "cause", error)
    if isinstance(error, FULL) or isinstance(cause, FULL):
        return NoRoom(f"Ray has no room: {readable(error)}")
    if isinstance(cause, QailabError):
        return plain(cause, readable(error))
    return EvaluationError(readable(error))
