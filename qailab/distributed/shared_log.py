"""A `SharedLog` that all processes of a Ray cluster see.

It is kept by Ray's control store (GCS), whose "put this key unless it is there" decides who
appends the n-th entry. That survives the death of any actor, and takes a millisecond.
"""

from __future__ import annotations

from ray.experimental import internal_kv

_NAMESPACE = b"qailab"


class RayLog:
    """Entries under ``<name>/<number>`` in Ray's control store.

    Args:
        name: the log's name in the cluster.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, start: int) -> list[bytes]:
        entries: list[bytes] = []
        while (entry := self._get(start + len(entries))) is not None:
            entries.append(entry)
        return entries

    def append(self, number: int, entry: bytes) -> bool:
        there: bool = internal_kv._internal_kv_put(
            self._key(number), entry, overwrite=False, namespace=_NAMESPACE
        )
        return not there

    def _get(self, number: int) -> bytes | None:
        entry: bytes | None = internal_kv._internal_kv_get(self._key(number), namespace=_NAMESPACE)
        return entry

    def _key(self, number: int) -> bytes:
        return f"{self._name}/{number}".encode()


class LoggedState:
    """A `SharedState` on such logs: the n-th entry is a value's n-th version."""

    def __init__(self, group: str) -> None:
        self.group = group

    def get(self, name: str) -> tuple[int, bytes | None]:
        entries = RayLog(name).read(0)
        return len(entries), entries[-1] if entries else None

    def put(self, name: str, version: int, value: bytes) -> bool:
        return RayLog(name).append(version, value)
