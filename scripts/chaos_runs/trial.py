"""One run: train while faults hit the pool, train again undisturbed, and compare.

::

    in process --> weights, gradients ----------------------------+
    pool: train (faults) --> all actors back --> train (calm) --> equal? --> close --> none left?
"""

from __future__ import annotations

import json
import logging
import signal
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from qailab.backends.rehearsal import RehearsalBackend

from chaos_runs.arena import Arena
from chaos_runs.injector import Injector
from chaos_runs.processes import Process, descendants, wait_until_gone
from chaos_runs.report import Report
from chaos_runs.schedule import Schedule, draw
from chaos_runs.workload import CountingPool, SlowAer, Training, rows_of, train
from qailab.backends import AerBackend
from qailab.errors import PoolError

_HANG_SECONDS = 30.0  # beyond chunk_timeout: 10 s to answer a question, and a busy machine's share
_RECOVERY_SECONDS = 60.0
_GONE_SECONDS = 10.0
_ACTOR_TITLE = "ray::LauncherActor"


@dataclass(frozen=True)
class Settings:
    """What all runs have in common.

    Args:
        actors: actors of the pool.
        steps: optimizer steps of each training.
        kinds: kinds of faults.
        deadline: seconds that a run may take.
        chunk_timeout: the pool's option.
        row_seconds: seconds that each row takes.
    """

    actors: int
    steps: int
    kinds: tuple[str, ...]
    deadline: float
    chunk_timeout: float
    row_seconds: float = 0.002

    @property
    def node_cpus(self) -> int:
        """CPUs of a node: half of the actors fit it."""
        return (self.actors + 1) // 2


class Trial:
    """One run.

    Args:
        settings: what all runs have in common.
        seed: the run's seed.
        arena: where it happens.
    """

    def __init__(self, settings: Settings, seed: int, arena: Arena) -> None:
        self.schedule: Schedule = draw(seed, settings.kinds)
        self.report = Report(seed, planned=self.schedule.planned)
        self._settings = settings
        self._seed = seed
        self._arena = arena
        self._pool: CountingPool | None = None
        self._injector: Injector | None = None

    def run(self) -> Report:
        """Run; errors are in the report."""
        complaints = _Complaints(self.report.complaints)
        logger = logging.getLogger("qailab")
        logger.addHandler(complaints)
        try:
            self._run()
        except Exception:
            self.report.error = traceback.format_exc()
        finally:
            logger.removeHandler(complaints)
        self._note_faults()
        return self.report

    def snapshot(self) -> Report:
        """The report as far as it goes, for a run that hangs."""
        self._note_faults()
        if self._pool is not None:
            self.report.stuck = json.dumps(self._pool.stats(), indent=1)
        return self.report

    def _run(self) -> None:
        expected = self._train(AerBackend())
        self._arena.set_nodes(self.schedule.nodes)
        # What was there before is not of this pool: a run that failed may have left it.
        before = set(_actor_processes())
        pool = self._pool = self._open()
        try:
            pool.wait(self.schedule.nodes * self._settings.actors // 2, timeout=_RECOVERY_SECONDS)
            self._disturbed(pool, expected)
            self._calm(pool, expected)
        finally:
            pool.close()
        seen = self._injector.seen.values() if self._injector else ()
        ours = (set(_actor_processes()) | set(seen)) - before
        for process in wait_until_gone(ours, _GONE_SECONDS):
            self.report.left_behind.append(f"{process.pid} {process.title}")

    def _open(self) -> CountingPool:
        chosen = self.schedule
        self.report.pool = {
            "actors": self._settings.actors,
            "chunk_rows": chosen.chunk_rows or "auto",
            "max_in_flight": chosen.max_in_flight or "auto",
            "failure_rate": chosen.failure_rate,
        }
        simulator = SlowAer(self._settings.row_seconds)
        return CountingPool(
            [
                RehearsalBackend(simulator, failure_rate=chosen.failure_rate, seed=number)
                for number in range(self._settings.actors)
            ],
            chunk_rows=chosen.chunk_rows or "auto",
            max_in_flight=chosen.max_in_flight or "auto",
            chunk_timeout=self._settings.chunk_timeout,
            actor_options={"num_cpus": 1},
            progress=False,
        )

    def _disturbed(self, pool: CountingPool, expected: Training) -> None:
        report = self.report
        rows = rows_of(self._settings.steps)
        injector = self._injector = Injector(self.schedule, pool, self._arena, rows)
        with ThreadPoolExecutor(1, thread_name_prefix="training") as executor:
            training = executor.submit(self._train, pool)
            injector.run(until=training.done)
            trained = training.result()
        stats = pool.stats()
        report.rows_asked, report.rows_answered = pool.asked, stats["rows"]
        report.rows_again, report.retries = stats["rows_again"], stats["retries"]
        report.races, report.seconds = stats["races"], trained.seconds
        report.weights_equal = trained.same_weights(expected)
        report.gradients_equal = trained.gradients == expected.gradients
        report.difference = trained.difference(expected)
        self._end_stopped(pool, injector)
        injector.look()
        report.replaced = sum(actor["replaced"] for actor in pool.stats()["actors"])

    def _end_stopped(self, pool: CountingPool, injector: Injector) -> None:
        """Give the pool work until it has found that stopped processes hang, and ended them."""
        deadline = time.monotonic() + self._settings.chunk_timeout + _HANG_SECONDS
        left = injector.stopped
        while left and time.monotonic() < deadline:
            train(pool, seed=self._seed, steps=1)
            left = wait_until_gone(left, 0.5)
        for process in left:
            self.report.left_behind.append(f"{process.pid} stopped, and not ended by the pool")
            process.send(signal.SIGKILL)

    def _calm(self, pool: CountingPool, expected: Training) -> None:
        report = self.report
        try:
            pool.wait(timeout=_RECOVERY_SECONDS)
            report.recovered = True
        except PoolError as error:
            report.stuck = str(error)
        asked, answered = pool.asked, pool.stats()["rows"]
        trained = self._train(pool)
        report.calm_seconds = trained.seconds
        report.calm_equal = (
            trained.same_weights(expected)
            and trained.gradients == expected.gradients
            and pool.asked - asked == pool.stats()["rows"] - answered
        )
        if self._injector is not None:
            self._injector.look()

    def _train(self, backend: AerBackend | CountingPool) -> Training:
        return train(backend, seed=self._seed, steps=self._settings.steps)

    def _note_faults(self) -> None:
        report = self.report
        events = self._injector.events if self._injector else []
        report.events = [asdict(event) for event in events]
        happened = Counter(event.kind for event in events if event.kind != "join")
        standing = {kind: report.planned.get(kind, 0) for kind in ("late", "transient")}
        report.happened = {kind: n for kind, n in {**happened, **standing}.items() if n}


class _Complaints(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self._texts.append(f"{record.name}: {record.getMessage()}\n{trace}")


def _actor_processes() -> list[Process]:
    return [process for process in descendants() if process.title.startswith(_ACTOR_TITLE)]
