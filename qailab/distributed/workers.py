"""The seam between scheduling and the processes that evaluate.

The scheduler decides which rows go where and knows nothing of Ray; `Workers` carries that out, and
tells `Events` what has happened, always in the scheduler's own thread. `ray_workers.RayWorkers` is
the real one; the tests have one that lives in simulated time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qailab.backends.base import NOTHING_USED, Usage
from qailab.distributed.slots import Parcel, Slot
from qailab.errors import QailabError, TransientBackendError


@dataclass(frozen=True)
class Reply:
    """What became of one chunk of a parcel.

    Args:
        answer: the encoded answers; None if there are none.
        error: why there are none; see `Cancelled` and `UnknownCircuit` for those that are no fault.
        traceback: where the error came from, as text.
        seconds: how long the chunk took.
        usage: what the device was used for.
        warnings: what the backend had to say meanwhile, for the log of who waits for it.
    """

    answer: bytes | None = None
    error: QailabError | None = None
    traceback: str = ""
    seconds: float = 0.0
    usage: Usage = NOTHING_USED
    warnings: tuple[str, ...] = ()


class Cancelled(QailabError):
    """A chunk was not run, or not to its end, because nobody waits for it any more."""


class UnknownCircuit(QailabError):
    """The process was not sent the circuit, or has forgotten it."""


class NoRoom(TransientBackendError):
    """A machine is full for now; no fault of the backend."""


@dataclass(frozen=True)
class Place:
    """Where a process runs.

    Args:
        pid: its process number there.
        node: the address of its machine.
    """

    pid: int
    node: str


class Workers(Protocol):
    """Processes, one for each slot at a time. None of the calls waits."""

    def start(self, slot: Slot) -> None:
        """Start a process for the slot and build its backend; `Events.opened` follows."""

    def send(
        self,
        slot: Slot,
        parcel: Parcel,
        circuits: Mapping[str, bytes],
        messages: Sequence[bytes],
    ) -> None:
        """Have chunks evaluated; `Events.answered` (or `lost`, or `refused`) follows.

        Args:
            slot: whose process is to do it.
            parcel: the chunks.
            circuits: pickled circuits that it does not know yet, by key.
            messages: each chunk's encoded rows.

        Raises:
            TransientBackendError: if they cannot be sent now.
            PoolError: if they can never be sent.
        """

    def cancel(self, slot: Slot, tickets: Sequence[int]) -> None:
        """Skip these chunks if they wait, stop them if they run. Cannot fail."""

    def inquire(self, slot: Slot) -> None:
        """Ask how long the chunk that runs has been running; `Events.busy` follows. Cannot fail."""

    def stop(self, slot: Slot, *, hangs: bool = False, gently: bool = False) -> None:
        """Let go of the slot's process; nothing more is heard of it.

        Args:
            slot: whose process.
            hangs: it does not answer: end it, whoever started it.
            gently: let it close its backend first, as far as it does so in time.
        """

    def end(self, slots: Sequence[Slot]) -> None:
        """Close the backends that these slots have, and let go of their processes."""

    def free_resources(self, needs: str) -> str:
        """What the machines have left for one that needs this, in words."""


class Events(Protocol):
    """What workers tell. ``generation`` says which of a slot's processes it is about."""

    def opened(self, slot: Slot, generation: int, place: Place) -> None:
        """The backend is built."""

    def unbuildable(self, slot: Slot, generation: int, reason: str) -> None:
        """The backend cannot be built there, and another try would not change that."""

    def missing(self, slot: Slot) -> None:
        """There is no process to be found (where another process starts them)."""

    def lost(self, slot: Slot, generation: int, reason: str) -> None:
        """The process is gone, or out of reach."""

    def answered(
        self, slot: Slot, generation: int, parcel: Parcel, replies: Sequence[Reply]
    ) -> None:
        """A parcel is done; a reply for each of its chunks."""

    def refused(self, slot: Slot, generation: int, parcel: Parcel, error: QailabError) -> None:
        """A parcel could not be dealt with as a whole."""

    def busy(self, slot: Slot, generation: int, seconds: float, others: float) -> None:
        """The chunk that runs has been running for so long; ``others`` if it is not one of ours."""
