"""The seam to Ray: what the scheduler asks of the processes behind actors, and what they report.

The scheduler decides which rows go where and knows nothing of Ray. A `Transport` carries that out
and puts an event into its queue for everything that happens. `ray_transport.RayTransport` is the
real one; the tests have one that lives in simulated time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qailab.backends.answers import NOTHING_USED, Usage
from qailab.distributed.actors import Actor
from qailab.errors import QailabError, TransientBackendError


class Cancelled(QailabError):
    """A chunk was not run, or not to its end, because nobody waits for it any more."""


class UnknownCircuit(QailabError):
    """The process was not sent the circuit, or has forgotten it."""


class NoRoom(TransientBackendError):
    """A machine is full for now; no fault of the backend."""


@dataclass(frozen=True)
class Call:
    """A chunk on its way to an actor."""

    ticket: int  # its name, for `Transport.cancel`
    key: str  # the circuit's content key
    circuit: bytes | None  # pickled, if the actor does not know it
    message: bytes  # the encoded rows
    rows_per_call: int | None  # that the backend evaluates at once; None for all


@dataclass(frozen=True)
class Reply:
    """What became of a chunk."""

    answer: bytes | None = None  # the encoded answers
    error: QailabError | None = None  # why there are none
    traceback: str = ""
    seconds: float = 0.0
    usage: Usage = NOTHING_USED
    warnings: tuple[str, ...] = ()  # what the backend logged meanwhile


@dataclass(frozen=True)
class Event:
    """Something that happened to a process: that of this generation of the actor."""

    actor: int
    generation: int


@dataclass(frozen=True)
class Opened(Event):
    """The backend is built."""

    pid: int
    node: str


@dataclass(frozen=True)
class BuildFailed(Event):
    """The backend cannot be built there, and another try would not change that."""

    reason: str


class Missing(Event):
    """No process is found, where another program starts them."""


@dataclass(frozen=True)
class Lost(Event):
    """The process is gone, or out of reach."""

    reason: str


@dataclass(frozen=True)
class Replied(Event):
    """A chunk is done, or could not be delivered."""

    ticket: int
    reply: Reply


@dataclass(frozen=True)
class Busy(Event):
    """How long the oldest call has been running: in ``others`` if it is another program's."""

    seconds: float
    others: float


class Transport(Protocol):
    """Processes, one for each actor at a time. No call waits or raises, if it does not say so."""

    def start(self, actor: Actor) -> None:
        """Start a process and build its backend. Raises if Ray refuses. An event follows."""

    def send(self, actor: Actor, call: Call) -> None:
        """Have a chunk evaluated; `Replied` or `Lost` follows.

        Raises a `TransientBackendError` if it cannot be sent now, a `PoolError` if never.
        """

    def cancel(self, actor: Actor, tickets: Sequence[int]) -> None:
        """Skip these chunks if they wait, stop them if they run."""

    def inquire(self, actor: Actor) -> None:
        """Ask how long the call that runs has been running; `Busy` follows."""

    def stop(self, actor: Actor, *, hangs: bool = False, gently: bool = False) -> None:
        """Let go of the actor's process; nothing more is heard of it.

        One that ``hangs`` is ended whoever started it; ``gently``: it may close its backend first.
        """

    def close(self, actors: Sequence[Actor]) -> None:
        """Close the backends of these actors, and wait as long as that may take."""

    def has_room(self, actor: Actor) -> bool:
        """Return whether the machines have what an actor needs, so that it should start."""
        ...

    def free_resources(self, needs: str) -> str:
        """Return what the machines have left for one that needs this; "" if there is none."""
        ...
