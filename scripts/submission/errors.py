"""What can go wrong with a cluster; what is wrong here is an `InputError`."""

from __future__ import annotations

from qailab.errors import QailabError


class ClusterError(QailabError, RuntimeError):
    """The cluster cannot be reached, refuses, or is of another version."""


class LostError(ClusterError):
    """The connection was lost while a job was followed, and did not come back: it may go on."""


class OutputError(ClusterError):
    """A job's output cannot be read, and never will be: it is not UTF-8, which Ray reads it as."""
