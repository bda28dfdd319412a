"""The supervisor: starts actors, replaces those that are lost, quarantines those that fail.

::

    starting --opened--> ready --lost--> starting (after a pause, from the second time on)
        |                  |
        +--build failed----+--too often--> quarantined --after a while--> starting

It writes `Actor.health`, and nobody else does. It counts since the last answer: what fails again
and again, without an answer in between, is quarantined.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from qailab.distributed.actors import Actor
from qailab.distributed.transport import Opened, Transport
from qailab.errors import BackendBuildError, PoolClosedError, PoolError, PoolExhaustedError

logger = logging.getLogger("qailab.distributed")

MAX_LOSSES = 5  # processes lost in a row before the actor is quarantined
MAX_LOST_STARTS = 8
"""The same before it is ready: until Ray notices that a node is gone, which takes up to 12 s, it
starts processes there."""
PAUSE_SECONDS = 0.5  # before the second replacement in a row; it doubles with each further one
MAX_FAULTS = 8  # transient faults in a row before the actor is quarantined
MAX_FAULTS_OF_DEVICES = 2  # the same where the backend has already retried by itself
COOLING_SECONDS = 0.1  # after a transient fault; it doubles with each further one, ...
_LONGEST_COOLING = 5.0  # ... up to this
QUARANTINE_SECONDS = 30.0
QUARANTINE_OF_BUILDS_SECONDS = 600.0  # only a change of the machine helps
START_ROUNDS = 3
"""How often ``start_timeout`` is waited where there is room for an actor: then its process was
killed while it started, perhaps, which Ray notices after 60 s before it starts another one."""
LOOK_AGAIN_SECONDS = 0.5  # how often a handle looks for a process that the pool's owner replaces
MISSING_SECONDS = 15.0  # how long it does so while it finds none at all
SLOW_START_SECONDS = 20.0  # after which a line is logged; imports take 2 to 10 s
_LOG_CHARACTERS = 120


class ActorSupervisor:
    """Decides which processes there are."""

    def __init__(self, actors: Sequence[Actor], transport: Transport, start_timeout: float) -> None:
        self._actors = tuple(actors)
        self._transport = transport
        self._start_timeout = start_timeout
        self._nobody_since: float | None = None  # since when work has waited for a first actor
        self._warned = False  # that actors have been starting for long

    def sharing(self) -> list[Actor]:
        """Return the actors that work is shared among, those that are starting included."""
        return [actor for actor in self._actors if actor.health.state != "quarantined"]

    def can_work(self, actor: Actor, now: float) -> bool:
        return actor.is_ready() and actor.health.until <= now

    def start(self, actor: Actor, now: float) -> None:
        """Start a process for an actor."""
        health = actor.health
        health.state, health.until, health.build_failed = "starting", 0.0, False
        health.starts_at, health.starting_since = None, now
        try:
            self._transport.start(actor)
        except Exception as error:  # options that Ray refuses, a lost connection
            self._retire(actor)
            health.build_failed = True
            self._quarantine(actor, f"{type(error).__name__}: {error}", now + QUARANTINE_SECONDS)

    def opened(self, actor: Actor, event: Opened) -> None:
        """Take note that a backend is built."""
        health = actor.health
        if health.generation:
            logger.info("%s is replaced, on %s", actor, event.node)
        health.state, health.missing = "ready", False
        health.pid, health.node = event.pid, event.node

    def answered(self, actor: Actor) -> None:
        """Take note that an actor works."""
        actor.health.losses = actor.health.faults = 0

    def missing(self, actor: Actor, now: float) -> None:
        """Look again for a process, which the pool's owner may be replacing."""
        actor.health.missing = True
        actor.health.starts_at = now + LOOK_AGAIN_SECONDS

    def build_failed(self, actor: Actor, reason: str, now: float) -> None:
        """Quarantine an actor whose backend cannot be built."""
        self._retire(actor)
        actor.health.build_failed = True
        self._quarantine(actor, reason, now + QUARANTINE_OF_BUILDS_SECONDS)

    def lose(self, actor: Actor, reason: str, now: float, *, hangs: bool = False) -> None:
        """Replace or quarantine an actor whose process is gone, or does not answer."""
        health, chunks = actor.health, len(actor.in_flight)
        most = MAX_LOSSES if actor.is_ready() else MAX_LOST_STARTS
        self._retire(actor, hangs=hangs)
        health.losses += 1
        health.last_error = reason
        replaced = health.losses < most
        text = "%s was lost with %d chunk(s) in flight" + (" and is replaced" if replaced else "")
        logger.warning(f"{text}: %s", actor, chunks, _last_line(reason))
        if not replaced:
            self._quarantine(actor, reason, now + QUARANTINE_SECONDS)
        elif health.losses == 1:
            self.start(actor, now)
        else:
            health.state = "starting"
            health.starts_at = now + PAUSE_SECONDS * 2 ** (health.losses - 2)

    def fault(self, actor: Actor, reason: str, now: float, *, full: bool) -> bool:
        """Let an actor cool down after a transient fault; return True if it is quarantined.

        If a machine is ``full``, that is not the actor's fault, and it only cools down.
        """
        health, packs = actor.health, actor.backend.traits.packs_jobs
        if not actor.is_ready():
            return False
        health.faults += 1
        health.last_error = reason
        if health.faults < (MAX_FAULTS_OF_DEVICES if packs else MAX_FAULTS) or full:
            doubled = COOLING_SECONDS * 2.0 ** min(health.faults - 1, 10)
            health.until = now + min(_LONGEST_COOLING, doubled)
            return False
        self._retire(actor, gently=packs)
        self._quarantine(actor, reason, now + QUARANTINE_SECONDS)
        return True

    def tick(self, now: float, *, waiting: bool) -> PoolError | BackendBuildError | None:
        """Start what is due; return an error if there is work ``waiting`` and no actor for it."""
        for actor in self._actors:
            health = actor.health
            if health.state == "quarantined" and waiting and health.until <= now:
                self._revive(actor, now)
            elif health.starts_at is not None and health.starts_at <= now:
                self.start(actor, now)
        self._warn_of_slow_starts(now)
        if not waiting or any(actor.is_ready() for actor in self._actors):
            self._nobody_since = None
            return None
        if not self.sharing():
            return self.too_few(1)
        if self._nobody_since is None:
            self._nobody_since = now
        waited = now - self._nobody_since
        if self.may_start(waited):
            return None
        self._nobody_since = now
        return self.starting_error(1, waited)

    def may_start(self, waited: float) -> bool:
        """Return whether a first actor may still start after so many seconds."""
        if all(actor.health.missing for actor in self._actors):
            return waited <= min(self._start_timeout, MISSING_SECONDS)
        return waited <= self._start_timeout or (
            waited <= START_ROUNDS * self._start_timeout and self._has_room()
        )

    def _has_room(self) -> bool:
        return any(map(self._transport.has_room, self.sharing()))

    def work_comes(self, now: float) -> None:
        """Give quarantined actors another chance if there are no others."""
        if not self.sharing():
            for actor in self._actors:
                self._revive(actor, now)

    def next_start(self, now: float) -> float:
        """Return when `tick` or work is next due for an actor that pauses; infinity if never."""
        health = [actor.health for actor in self._actors]
        times = [each.starts_at for each in health if each.starts_at is not None]
        return min(times + [each.until for each in health if each.until > now], default=math.inf)

    def end(self) -> None:
        """Let go of all processes, after their backends were closed."""
        # One that replaces a lost one may be the only one left to close what that had opened.
        self._transport.close([
            actor for actor in self._actors
            if actor.is_ready() or (actor.backend.traits.queue_name and actor.health.generation)
        ])  # fmt: skip
        for actor in self._actors:
            self._retire(actor)

    def too_few(self, count: int) -> PoolError | BackendBuildError | None:
        """Return an error if so many are quarantined that fewer than ``count`` actors are left."""
        lost = [actor for actor in self._actors if actor.health.state == "quarantined"]
        if len(self._actors) - len(lost) >= count:
            return None
        last = max(lost, key=lambda actor: actor.health.until)
        built = not all(actor.health.build_failed for actor in lost)
        left = "no actor is left to run on: " if len(lost) == len(self._actors) else ""
        error = PoolExhaustedError if built else BackendBuildError
        return error(
            f"{left}{len(lost)} of {len(self._actors)} actors are quarantined; the last failure "
            f"was on {last.backend!r}: {last.health.last_error}"
        )

    def starting_error(self, count: int, waited: float) -> PoolError:
        """Return the error of a pool that has fewer than ``count`` actors after some seconds."""
        if all(actor.health.missing for actor in self._actors):
            return PoolClosedError(
                "none of its actors is to be found: the process that made this pool has closed it, "
                "or has ended; make a new LauncherPool and assign it to layer.backend"
            )
        waiting = [actor for actor in self._actors if not actor.is_ready()]
        actor = waiting[0] if waiting else self._actors[0]
        wanted = "none" if count == 1 else f"{len(self._actors) - len(waiting)}, not {count},"
        last, free = actor.health.last_error, self._transport.free_resources(actor.needs)
        advice = (
            f"{actor.backend!r} needs {actor.needs}, and the cluster has: {free}. Close what holds "
            "them, or ask for less: actor_options={'num_cpus': 0.5}; where machines take longer to "
            "come up, raise start_timeout."
        )
        if len(waiting) == len(self._actors) and self._has_room():
            advice = (
                "the cluster has room for them, so Ray's worker processes were killed while they "
                "started (which Ray notices after 60 s each), or start too slowly: see whether the "
                "machine is out of memory (dmesg) or busy, and raise start_timeout."
            )
        if not free:
            advice = (
                "no machine is left in its Ray: the raylet of each has ended. Start one again, or, "
                "for a local Ray, close this pool and make a new LauncherPool."
            )
        return PoolError(
            f"{wanted} of {len(self._actors)} actors could start within {waited:.0f} s; "
            f"{advice}{f' Last trouble: {last}' if last else ''}"
        )

    def _retire(self, actor: Actor, *, hangs: bool = False, gently: bool = False) -> None:
        self._transport.stop(actor, hangs=hangs, gently=gently)
        health = actor.health
        health.generation += 1
        health.pid, health.node, health.starts_at = 0, "", None

    def _revive(self, actor: Actor, now: float) -> None:
        actor.health.losses = actor.health.faults = 0
        self.start(actor, now)

    def _quarantine(self, actor: Actor, reason: str, until: float) -> None:
        actor.health.state, actor.health.until = "quarantined", until
        actor.health.last_error = reason
        logger.warning("%s is quarantined: %s", actor, _last_line(reason))

    def _warn_of_slow_starts(self, now: float) -> None:
        """Log one line for all that have been starting for long, until none is starting."""
        starting = [a for a in self._actors if a.health.state == "starting"
                    and a.health.starts_at is None]  # fmt: skip
        slow = [a for a in starting if now - a.health.starting_since > SLOW_START_SECONDS]
        if slow and not self._warned:
            free = self._transport.free_resources(slow[0].needs)
            logger.warning(
                f"{len(slow)} of {len(self._actors)} actors have been starting for "
                f"{SLOW_START_SECONDS:.0f} s, such as {slow[0]}; it needs {slow[0].needs}, and the "
                f"cluster has: {free or 'no machine'}"
            )
        self._warned = bool(slow) or (self._warned and bool(starting))


def _last_line(reason: str) -> str:
    """Return the line that says what happened, cut to what fits one."""
    line = reason.strip().splitlines()[-1].strip() if reason.strip() else "no reason given"
    return line if len(line) <= _LOG_CHARACTERS else line[:_LOG_CHARACTERS] + " ..."
