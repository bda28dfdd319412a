"""A training on a pool while actors and nodes fail, against the same one in process.

::

    in process --> weights, gradients ---------------------------+
    pool: train (faults) --> all actors back --> train (calm) --> equal? --> close --> none left?

A schedule counts time in rows: a fault comes when a share of the training's rows is answered, so
that it hits the same part of the work on fast and slow machines, and there is work for it to hit.
"""

from __future__ import annotations

import logging
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psutil import Process

from chaos_runs.harness import Logged, Report
from chaos_runs.processes import actors, alive, descendants, send, title, wait_until_gone
from chaos_runs.training import Size, train
from qailab.backends import AerBackend, EmulatedBackend, Probabilities
from qailab.distributed import LauncherPool
from qailab.errors import QailabError
from qailab.gradients import CanonicalCircuit, RowBatch

_FEWEST, _MOST = 2, 5  # sudden faults of a run
_MOST_HANGS = 2  # each takes the pool 13 s to be sure of
_FIRST, _LAST = 0.04, 0.85  # of the rows: later ones might find the work done
_GAP = 0.03  # less would hit the same rows again and again, which a pool takes for their fault
_ABSENCE = (0.1, 0.3)  # share of the rows that are answered until a node is there again
_LONGEST_ABSENCE_SECONDS = 15.0  # where the work stands still meanwhile

_SUDDEN = ("sigkill", "raykill", "hang", "all", "node")  # at a moment of the run
_SIZE, _STEPS = Size(qubits=4, samples=20, reps=2), 8
_ROW_SECONDS = 0.004
_HANG_SECONDS = 30.0  # beyond chunk_timeout: 10 s to answer a question, and a busy machine's share
_RECOVERY_SECONDS = 60.0
_GONE_SECONDS = 10.0
_LOOK_SECONDS = 0.01
_STORE_BYTES = 80 << 20
_NODE_STARTS = 3


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run."""

    at: float  # share of the run's rows that are answered when it happens
    kind: str  # a sudden one, or "join": a node joins
    victim: int = 0  # which actor or node: this number modulo how many there are


@dataclass(frozen=True)
class Schedule:
    """All that the seed decides of a run beside its data."""

    faults: tuple[Fault, ...]  # in order
    nodes: int  # how many there are at first, of two; 0 where none comes or goes
    failure_rate: float  # share of the calls that fail for a transient reason
    chunk_rows: Any
    max_in_flight: Any

    def __str__(self) -> str:
        counts = Counter(fault.kind for fault in self.faults if fault.kind != "join")
        counts += Counter(late=int(self.nodes == 1), transient=int(self.failure_rate > 0))
        faults = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        return f"{faults}; chunks {self.chunk_rows}, in flight {self.max_in_flight}"


def draw(seed: int, kinds: Sequence[str]) -> Schedule:
    """The schedule of a seed, with faults of these kinds."""
    chance = random.Random(f"chaos {seed}")
    sudden = [kind for kind in _SUDDEN if kind in kinds]
    late = "late" in kinds and (not sudden or chance.random() < 0.3)
    transient = "transient" in kinds and (not sudden or chance.random() < 0.5)
    rate = chance.choice((0.02, 0.05, 0.1))
    whole_from = chance.uniform(*_ABSENCE) if late else 0.0  # when both nodes are there
    faults = [Fault(whole_from, "join")] if late else []
    moments = [chance.uniform(_FIRST, _LAST) for _ in range(chance.randint(_FEWEST, _MOST))]
    at = 0.0
    for moment in sorted(moments) if sudden else ():
        at, kind = max(moment, at + _GAP), chance.choice(sudden)
        hangs = sum(fault.kind == "hang" for fault in faults)
        if (kind == "node" and at < whole_from) or (kind == "hang" and hangs >= _MOST_HANGS):
            continue
        faults.append(Fault(at, kind, chance.randrange(1 << 16)))
        if kind == "node":
            whole_from = at + chance.uniform(*_ABSENCE)
            faults.append(Fault(whole_from, "join"))
    return Schedule(
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        nodes=1 if late else 2 if "node" in kinds else 0,
        failure_rate=rate if transient else 0.0,
        chunk_rows=chance.choice(("auto", "auto", 6, 30, 90)),
        max_in_flight=chance.choice(("auto", "auto", 1, 3)),
    )


class SlowAer(AerBackend):
    """A simulator whose rows take time, without keeping a core busy, and are counted."""

    def __init__(self, row_seconds: float) -> None:
        super().__init__()
        self.row_seconds = row_seconds
        self.rows = 0

    def probabilities(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Probabilities:
        self.rows += batch.num_rows
        stop.wait(self.row_seconds * batch.num_rows)
        return super().probabilities(circuit, batch, stop)


class Cluster:
    """A private Ray cluster on 127.0.0.1: a head, and nodes that come and go and have the CPUs.

    Without nodes, the head has those of two.
    """

    def __init__(self, cpus: int, nodes: int) -> None:
        import ray
        from ray.cluster_utils import Cluster as RayCluster

        self._cpus = cpus
        head = {"num_cpus": 0 if nodes else 2 * cpus, "include_dashboard": False}
        head["object_store_memory"] = _STORE_BYTES
        self._cluster: Any = RayCluster(initialize_head=True, head_node_args=head)
        self._nodes: list[tuple[Any, list[Process]]] = []
        ray.init(address=self._cluster.address, namespace="qailab", logging_level="ERROR",
                 log_to_driver=False)  # fmt: skip
        for _ in range(nodes):
            self.join()

    def join(self) -> None:
        """Add a node. On a busy machine one may need more than the 30 s that Ray allows it."""
        for left in reversed(range(_NODE_STARTS)):
            before = set(descendants())
            try:
                node = self._cluster.add_node(num_cpus=self._cpus, object_store_memory=_STORE_BYTES)
            except Exception:  # Ray's word for it; it has ended the node
                if not left:
                    raise
            else:
                started = set(descendants()) - before
                raylets = [process for process in started if "/raylet/raylet" in title(process)]
                self._nodes.append((node, raylets))
                return

    def remove(self, number: int) -> None:
        """Kill a node and all its processes: this number modulo how many there are.

        Most would end by themselves when they miss it; one that is stopped cannot.
        """
        node, raylets = self._nodes.pop(number % len(self._nodes))
        processes = [each for raylet in raylets for each in descendants(raylet.pid)]
        self._cluster.remove_node(node, allow_graceful=False)
        for process in processes:
            send(process, signal.SIGKILL)


@dataclass
class Hit:
    """Whom faults have hit so far."""

    kinds: Counter[str] = field(default_factory=Counter)
    stopped: list[Process] = field(default_factory=list)  # they are for the pool to end
    seen: set[Process] = field(default_factory=set)  # that the pool used


def inject(
    schedule: Schedule, pool: LauncherPool, cluster: Cluster, rows: int, done: Callable[[], bool]
) -> Hit:
    """Make faults happen while a pool works, until it is done.

    It runs in the main thread: to start a node, Ray sets signal handlers.
    """
    hit, todo, node_went = Hit(), list(schedule.faults), time.monotonic()
    while not done():
        stats = pool.stats()
        pids = {actor["pid"] for actor in stats["actors"] if actor["pid"]}
        if pids - {process.pid for process in hit.seen if alive(process)}:
            hit.seen |= set(actors())
        working = [each for each in hit.seen if each.pid in pids and each not in hit.stopped]
        if todo:
            fault, absent = todo[0], time.monotonic() - node_went
            due = stats["rows"] / rows >= fault.at
            due |= fault.kind == "join" and absent > _LONGEST_ABSENCE_SECONDS
            if due and _happens(fault, cluster, sorted(working, key=lambda each: each.pid), hit):
                node_went = time.monotonic() if fault.kind == "node" else node_went
                hit.kinds[todo.pop(0).kind] += 1
                continue
        time.sleep(_LOOK_SECONDS)
    for fault in todo:  # nodes that are to come back do so
        if fault.kind == "join":
            cluster.join()
    return hit


def _happens(fault: Fault, cluster: Cluster, working: list[Process], hit: Hit) -> bool:
    """Make a fault happen, if there is somebody it can happen to; whether it did."""
    if fault.kind == "join":
        cluster.join()
        return True
    if fault.kind == "node":
        cluster.remove(fault.victim)
        return True
    if not working:
        return False
    if fault.kind == "all":
        return sum([send(process, signal.SIGKILL) for process in working]) > 0
    if fault.kind == "raykill":
        return _ray_kill(fault.victim)
    victim = working[fault.victim % len(working)]
    if fault.kind == "sigkill":
        return send(victim, signal.SIGKILL)
    hit.stopped.append(victim)
    return send(victim, signal.SIGSTOP)


def _ray_kill(number: int) -> bool:
    """End an actor through Ray, this number modulo how many there are; whether it was there.

    A pool's actors have names that end with two numbers, slot and generation.
    """
    import ray

    named = [n for n in ray.util.list_named_actors() if re.fullmatch(r".+-\d+-\d+", n)]
    with suppress(ValueError, ZeroDivisionError):  # Ray's word for "no such actor"; nobody
        ray.kill(ray.get_actor(sorted(named)[number % len(named)]))
        return True
    return False


def run(report: Report, folder: Path, options: dict[str, Any]) -> None:
    """Run a trial; ``options`` are ``actors``, ``steps``, ``faults`` and ``chunk_timeout``."""
    schedule = draw(report.seed, options["faults"])
    report.what = str(schedule)
    errors = Logged(logging.ERROR)
    count = options["actors"]
    cluster = Cluster((count + 1) // 2, schedule.nodes)
    with LauncherPool(
        [
            EmulatedBackend(SlowAer(_ROW_SECONDS), failure_rate=schedule.failure_rate, seed=number)
            for number in range(count)
        ],
        chunk_rows=schedule.chunk_rows,
        max_in_flight=schedule.max_in_flight,
        chunk_timeout=options["chunk_timeout"],
        actor_options={"num_cpus": 1},
        progress=False,
    ) as pool:
        pool.wait(count // 2 if schedule.nodes == 1 else count, timeout=_RECOVERY_SECONDS)
        seen = _train_twice(report, schedule, pool, cluster, options)
    for process in wait_until_gone({*actors(), *seen}, _GONE_SECONDS):
        report.problems.append(f"process {process.pid} is left: {title(process)}")
    report.problems += [f"an error was logged: {text}" for text in errors.texts]


def _train_twice(
    report: Report,
    schedule: Schedule,
    pool: LauncherPool,
    cluster: Cluster,
    options: dict[str, Any],
) -> set[Process]:
    """Train while faults hit, then undisturbed, and compare; the processes that were seen."""
    given = {"seed": report.seed, "steps": options["steps"] or _STEPS}
    here = SlowAer(0.0)
    expected = train(here, _SIZE, **given)
    with ThreadPoolExecutor(1, "training") as executor:
        future = executor.submit(train, pool, _SIZE, **given)
        hit = inject(schedule, pool, cluster, here.rows, future.done)
        trained = future.result()
    stats = pool.stats()
    report.problems += trained.problems(expected) + _rows(stats["rows"], here.rows)
    report.problems += _end_stopped(pool, hit.stopped, report.seed, options["chunk_timeout"])
    try:
        pool.wait(timeout=_RECOVERY_SECONDS)
    except QailabError as error:
        report.problems.append(f"not all actors came back: {error}")
    before = pool.stats()["rows"]
    calm = train(pool, _SIZE, **given)
    wrong = calm.problems(expected) + _rows(pool.stats()["rows"] - before, here.rows)
    report.problems += [f"afterwards: {problem}" for problem in wrong]
    report.figures = {
        "faults": hit.kinds.total() - hit.kinds["join"], "rows": stats["rows"],
        "again": stats["rows_again"], "retries": stats["retries"], "raced": stats["races"],
        "replaced": sum(actor["replaced"] for actor in pool.stats()["actors"]),
        "lost s": round(trained.seconds - calm.seconds, 1), **hit.kinds,
    }  # fmt: skip
    return hit.seen | set(actors())


def _rows(answered: int, asked: int) -> list[str]:
    if answered < asked:
        return [f"lost {asked - answered} rows"]
    return [f"answered {answered - asked} rows twice"] if answered > asked else []


def _end_stopped(
    pool: LauncherPool, stopped: Sequence[Process], seed: int, chunk_timeout: float
) -> list[str]:
    """Give the pool work until it has found that stopped processes hang, and ended them."""
    deadline = time.monotonic() + chunk_timeout + _HANG_SECONDS
    left = [process for process in stopped if alive(process)]
    while left and time.monotonic() < deadline:
        train(pool, _SIZE, seed=seed, steps=1)
        left = wait_until_gone(left, 0.5)
    for process in left:
        send(process, signal.SIGKILL)
    return [f"{process.pid} was stopped, and the pool did not end it" for process in left]
