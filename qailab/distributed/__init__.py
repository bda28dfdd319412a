"""Launchers in Ray actors. Ray is imported when a pool is made, not before."""

from qailab.distributed.pool import LauncherPool

__all__ = ["LauncherPool"]
