"""The seam to Ray: what the scheduler asks of the processes behind actors, and what they report.

The scheduler decides which rows go where and knows nothing of Ray. A `Transport` carries that out
and puts an event into its queue for everything that happens. `ray_transport.RayTransport` is the
real one; the tests have one that lives in simulated time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qailab.backends.base import NOTHING_USED, Usage
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
    """A chunk on its way to an actor.

    Args:
        ticket: its name, for `Transport.cancel`.
        key: the circuit's content key.
        circuit: the pickled circuit, if the actor does not know it.
        message: the encoded rows.
        rows_per_call: rows that the backend evaluates at once; None for all.
    """

    ticket: int
    key: str
    circuit: bytes | None
    message: bytes
    rows_per_call: int | None


@dataclass(frozen=True)
class Reply:
    """What became of a chunk.

    Args:
        answer: the encoded answers; None if there are none.
        error: why there are none; `Cancelled` and `UnknownCircuit` are no faults.
        traceback: where the error came from, as text.
        seconds: how long the chunk took.
        usage: what a device was used for.
        warnings: what the backend logged meanwhile.
    """

    answer: bytes | None = None
    error: QailabError | None = None
    traceback: str = ""
    seconds: float = 0.0
    usage: Usage = NOTHING_USED
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """Something that happened to an actor.

    Args:
        actor: the actor's index.
        generation: which of its processes this is about.
    """

    actor: int
    generation: int


@dataclass(frozen=True)
class Opened(Event):
    """The backend is built, in process ``pid`` of machine ``node``."""

    pid: int
    node: str


@dataclass(frozen=True)
class BuildFailed(Event):
    """The backend cannot be built there, and another try would not change that."""

    reason: str


@dataclass(frozen=True)
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
    """The oldest call has been running for ``seconds``; for ``others`` if it is not one of ours."""

    seconds: float
    others: float


class Transport(Protocol):
    """Processes, one for each actor at a time. No call waits, except `close`."""

    def start(self, actor: Actor) -> None:
        """Start a process and build its backend; `Opened` follows, or says why not."""

    def send(self, actor: Actor, call: Call) -> None:
        """Have a chunk evaluated; `Replied` or `Lost` follows.

        Raises:
            TransientBackendError: if it cannot be sent now.
            PoolError: if it can never be sent.
        """

    def cancel(self, actor: Actor, tickets: Sequence[int]) -> None:
        """Skip these chunks if they wait, stop them if they run. Never raises."""

    def inquire(self, actor: Actor) -> None:
        """Ask how long the call that runs has been running; `Busy` follows. Never raises."""

    def stop(self, actor: Actor, *, hangs: bool = False, gently: bool = False) -> None:
        """Let go of the actor's process; nothing more is heard of it. Never raises.

        Args:
            actor: whose process.
            hangs: it does not answer: end it, whoever started it.
            gently: let it close its backend first, as far as it does so in time.
        """

    def close(self, actors: Sequence[Actor]) -> None:
        """Wait until the backends of these actors are closed, as long as that may take."""

    def free_resources(self, needs: str) -> str:
        """Return what the machines have left for one that needs this, in words."""
        ...
