"""The seam between rows and the places that run them.

A backend implements `Backend.outcomes` (probabilities of some rows); contraction with
``grad_output``, slicing to bounded memory, and asynchronous submission come with the base class.
Backends are recipes: cheap to make, picklable, without anything live until `Backend.open`.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qailab.backends.blame import evaluate_naming_rows
from qailab.backends.future import RowFuture
from qailab.backends.shared_log import SharedLog
from qailab.errors import EvaluationError, TransientBackendError
from qailab.gradients.batch import RowBatch
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray

MAX_TRANSIENT_FAULTS = 20
"""How often the same rows may fail for transient reasons before somebody has to look."""


@dataclass(frozen=True)
class Outcomes:
    """What a backend says about some rows.

    Args:
        estimate: estimated probabilities, shape ``(n, K)``.
        distribution: the exact probabilities that the estimate was drawn from, shape ``(n, K)``,
            where the backend knows them; the shot variance is then exact as well.
    """

    estimate: FloatArray
    distribution: FloatArray | None = None


@dataclass(frozen=True)
class ActorResources:
    """What an actor with this backend takes from its Ray node.

    Args:
        num_cpus: CPU cores.
        num_gpus: GPUs, or shares of one.
        custom: amounts of custom resources by name.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """What a device was used for.

    Args:
        jobs: jobs that were submitted to it.
        qpu_seconds: seconds it was busy with them.
    """

    jobs: int = 0
    qpu_seconds: float = 0.0

    def since(self, earlier: Usage) -> Usage:
        """What was used since an earlier reading."""
        return Usage(self.jobs - earlier.jobs, self.qpu_seconds - earlier.qpu_seconds)


NOTHING_USED = Usage()


class Backend(ABC):
    """A place that runs the rows of canonical circuits.

    Attributes:
        supports_exact: whether ``shots=None`` (exact probabilities) is possible.
        repeatable: whether rows may run twice at no cost, as on a simulator. A pool then races a
            second copy of what holds everybody up, and looks for the row that an error is about.
        watched: whether a call that takes far longer than others did may be held to hang. Not on
            a device whose queue may last hours: it has deadlines of its own.
        call_seconds: what a call takes whatever its rows; chunks are made large beside it.
        calls_at_once: how many calls of `evaluate` may run at once, each in a thread of its own.
        packs_rows: whether it makes jobs of its own of whatever rows it is given, where a job
            costs money or a place in a queue, and tries again by itself what may be tried again.
            It is then given all rows there are, in one chunk.
        close_seconds: how long `close` may take.
    """

    supports_exact: bool = False
    repeatable: bool = False
    watched: bool = True
    call_seconds: float = 0.003
    calls_at_once: int = 1
    packs_rows: bool = False
    close_seconds: float = 5.0

    @property
    def queue_name(self) -> str | None:
        """What its rows wait for, where several processes share it; None if nothing."""
        return None

    @property
    def usage(self) -> Usage:
        """What the device was used for since `open`."""
        return NOTHING_USED

    @property
    def resources(self) -> ActorResources:
        """What an actor with this backend needs."""
        return ActorResources()

    def validate(  # noqa: B027 (a backend without limits has nothing to check)
        self, circuit: CanonicalCircuit, shots: int | None, num_rows: int = 1
    ) -> None:
        """Raise a clear error if rows of this circuit cannot run here. Nothing is built or run.

        Args:
            circuit: the circuit.
            shots: shots for each row, None for exact probabilities.
            num_rows: how many rows' probabilities are held at once.

        Raises:
            BackendError: if they cannot.
        """

    def share(  # noqa: B027 (most have nothing to agree on)
        self, group: str, log_of: Callable[[str], SharedLog]
    ) -> None:
        """Say how the processes that have this recipe agree on things; before `open`.

        Args:
            group: the name of these processes together; they are closed together.
            log_of: a log that all processes of the cluster see, by its name.
        """

    @abstractmethod
    def open(self) -> None:
        """Build what is live (a simulator, a session). Called once, where the rows run.

        Raises:
            BackendBuildError: if it cannot be built here.
        """

    @abstractmethod
    def outcomes(self, circuit: CanonicalCircuit, batch: RowBatch) -> Outcomes:
        """Run all rows of the batch and return their probabilities.

        Args:
            circuit: the circuit; compiled on first use and kept by its key.
            batch: rows, shots and noise. ``batch.vectors`` is not looked at.

        Returns:
            Outcomes, shape ``(batch.num_rows, K)``.

        Raises:
            BackendError: if the rows cannot be run.
        """

    @abstractmethod
    def rows_at_once(self, circuit: CanonicalCircuit) -> int:
        """How many rows `outcomes` may be given at once within bounded memory; at least 1."""

    def outcomes_until(
        self, stop: threading.Event | None, circuit: CanonicalCircuit, batch: RowBatch
    ) -> Outcomes:
        """`outcomes`, given up when ``stop`` is set; for backends where that saves something.

        Raises:
            CancelledError: if it was set.
            BackendError: if the rows cannot be run.
        """
        return self.outcomes(circuit, batch)

    def close(self) -> None:  # noqa: B027 (nor to release)
        """Release what `open` built. Safe to call twice."""

    def evaluate(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event | None = None
    ) -> FloatArray:
        """Answer a batch, here and now.

        Args:
            circuit: the circuit.
            batch: the rows and what is wanted of them.
            stop: set it to give up between two slices.

        Returns:
            Probabilities ``(n, K)``, or values and variances ``(n, 2)`` if the batch has vectors.

        Raises:
            CancelledError: if ``stop`` was set.
            BackendError: if the rows cannot be run.
        """
        rows = batch.rows
        answers = np.empty((batch.num_rows, batch.answer_width(circuit.num_outcomes)))
        group = rows.group
        stride = max(group, self.rows_at_once(circuit) // group * group)
        for start in range(rows.start, rows.stop, stride):
            if stop is not None and stop.is_set():
                raise CancelledError("the evaluation was cancelled")
            piece = batch.part(start, min(start + stride, rows.stop))
            outcomes = self.outcomes_until(stop, circuit, piece)
            self._check_shape(outcomes, (piece.num_rows, circuit.num_outcomes))
            first = start - rows.start
            # An infinite grad_output (a gradient scaler's overflow) is no reason to warn.
            with np.errstate(invalid="ignore", over="ignore"):
                answers[first : first + piece.num_rows] = _answers(outcomes, piece)
        return answers

    def answer(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event | None = None
    ) -> FloatArray:
        """`evaluate`, with errors that name the row they are about."""
        return evaluate_naming_rows(
            lambda part: self.evaluate(circuit, part, stop), batch, repeatable=self.repeatable
        )

    def _check_shape(self, outcomes: Outcomes, expected: tuple[int, int]) -> None:
        for table in (outcomes.estimate, outcomes.distribution):
            if table is not None and table.shape != expected:
                raise EvaluationError(
                    f"{self!r}.outcomes must return shape {expected}, got {table.shape}"
                )

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> RowFuture:
        """Answer a batch in this process, on a thread of this backend's own.

        Returns:
            A future of what `evaluate` returns.
        """
        stop = threading.Event()
        future = RowFuture(on_cancel=stop.set)
        self._executor().submit(self._run, future, circuit, batch, stop)
        return future

    def _run(
        self, future: RowFuture, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> None:
        # The future stays "pending" while rows run, so that a cancel ends it at once; whoever
        # comes second, the cancel or the answers, finds it done.
        with suppress(InvalidStateError):
            try:
                answers = self._patiently(lambda: self.answer(circuit, batch, stop))
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(answers)

    def _patiently(self, evaluate: Callable[[], FloatArray]) -> FloatArray:
        """Try again after transient faults, as a pool does with another actor."""
        for _ in range(0 if self.packs_rows else MAX_TRANSIENT_FAULTS - 1):
            with suppress(TransientBackendError):
                return evaluate()
        return evaluate()

    def _executor(self) -> ThreadPoolExecutor:
        # Mostly one thread: a live simulator is used by one call at a time, whatever thread asks.
        with _EXECUTOR_LOCK:
            executors: dict[int, ThreadPoolExecutor]
            executors = self.__dict__.setdefault("_live_executors", {})
            here = os.getpid()  # a forked child has none of its parent's threads
            if here not in executors:
                name = f"qailab-{type(self).__name__}"
                executors[here] = ThreadPoolExecutor(self.calls_at_once, thread_name_prefix=name)
            return executors[here]

    def __getstate__(self) -> dict[str, Any]:
        """The recipe alone: whatever is live has a name that begins with ``_live``."""
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_live")}


_EXECUTOR_LOCK = threading.Lock()


def _answers(outcomes: Outcomes, batch: RowBatch) -> FloatArray:
    """What the batch wants of the outcomes, shape ``(n, K)`` or ``(n, 2)``."""
    if batch.vectors is None:
        return outcomes.estimate
    vectors = batch.vectors[batch.rows.samples()]
    # Products summed row by row: unlike matrix products, independent of how many rows there are.
    values = (outcomes.estimate * vectors).sum(axis=1)
    if batch.shots is None:
        return np.stack([values, np.zeros_like(values)], axis=1)
    if outcomes.distribution is not None:
        probabilities, degrees = outcomes.distribution, batch.shots
        means = (probabilities * vectors).sum(axis=1)
    else:  # the sample variance of one shot has no value
        probabilities, means = outcomes.estimate, values
        degrees = batch.shots - 1
    spread = (probabilities * (vectors - means[:, None]) ** 2).sum(axis=1)
    variances = spread / degrees if degrees else np.full_like(spread, np.nan)
    return np.stack([values, variances], axis=1)
