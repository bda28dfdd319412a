"""The seam between rows and the places that run them.

A backend answers one question: the probabilities of some rows. `evaluate` slices a batch to what
the backend takes at once, contracts its answers with the cotangents, and names the row that fails::

    batch --evaluate--> slices --Backend.probabilities--> Probabilities --contraction--> answers

Values of observables are contractions of the probabilities in each of their bases; a backend that
knows the bits of each shot makes them of those (`Backend.expectations`).

Backends are recipes: cheap to make, picklable, without anything live until `Backend.open`.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from qailab.backends.answers import (
    NOTHING_USED,
    Evaluation,
    Probabilities,
    answer_width,
    contract,
    in_bases,
)
from qailab.backends.shared import SharedState
from qailab.errors import (
    BackendBuildError,
    BudgetExceededError,
    EvaluationError,
    JournalError,
    MemoryLimitError,
    QailabError,
    TransientBackendError,
    plain,
)
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray, JoinedRows, RowBatch

MAX_TRANSIENT_FAULTS = 20
"""How often the same rows may fail for transient reasons before somebody has to look."""


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


@dataclass(frozen=True, kw_only=True)
class BackendTraits:
    """What a pool needs to know of a backend to use it well.

    Args:
        supports_exact: ``shots=None`` (exact probabilities) is possible.
        supports_adjoint: it answers `SlopeRows`, exact derivatives without shifted rows.
        noiseless: probabilities are those of the circuit itself, so that angles outside the
            measured qubits' light cone change nothing.
        idempotent: rows may run twice at no cost, as on a simulator. A pool then sends a second
            copy of what stragglers hold, and the row that an error is about is located.
        detect_hangs: a call that takes far longer than others may be taken for hung. Not on a
            device whose queue may last hours.
        max_concurrency: calls that may run at once, each in a thread of its own.
        call_overhead_seconds: time of a call whatever its rows; chunks are made large beside it.
        packs_jobs: makes jobs of its own of whatever rows it is given, where a job costs money or
            a place in a queue, and retries by itself. It gets all rows there are, in one chunk.
        queue_name: the queue its rows wait in, where several processes share it.
        calibration_rows: rows that it adds to those of every call, to mitigate its readout.
        resources: what an actor with it takes from its node.
        close_seconds: time that `Backend.close` may take.
    """

    supports_exact: bool = False
    supports_adjoint: bool = False
    noiseless: bool = False
    idempotent: bool = False
    detect_hangs: bool = True
    max_concurrency: int = 1
    call_overhead_seconds: float = 0.003
    packs_jobs: bool = False
    queue_name: str | None = None
    calibration_rows: int = 0
    resources: ActorResources = field(default_factory=ActorResources)
    close_seconds: float = 5.0


class RowFuture(Future[FloatArray]):
    """Answers of a batch of rows, in row order, some time later.

    Unlike a plain future, ``cancel`` also reaches work that has begun: what is in flight is
    stopped as soon as the backend can, and the result is a ``CancelledError``. An interrupt
    (Ctrl-C) of who waits for the result cancels it, too.

    Args:
        on_cancel: called once when the future is cancelled before it is done.

    Attributes:
        usage: what devices were used for; complete when the future is done.
    """

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._on_cancel = on_cancel
        self.usage = NOTHING_USED

    def result(self, timeout: float | None = None) -> FloatArray:
        try:
            return super().result(timeout)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def cancel(self) -> bool:
        """Stop the evaluation; False if it is already done."""
        if super().cancel():  # it is never marked as running, so this is whether it was done
            self._on_cancel()
        return self.cancelled()


class Backend(ABC):
    """A place that runs the rows of canonical circuits.

    Four methods and the traits make a backend; `answers`, `expectations`, `validate` and `share`
    are hooks for those that answer in other ways, or have more to check or to agree on. `submit`
    runs it in this process.

    Attributes:
        traits: what a pool needs to know of it.
    """

    traits: BackendTraits = BackendTraits()

    @abstractmethod
    def open(self) -> None:
        """Build what is live (a simulator, a session). Called once, where the rows run.

        Raises:
            BackendBuildError: if it cannot be built here.
        """

    def close(self) -> None:  # noqa: B027 (nothing to release is a valid case)
        """Release what `open` built. Safe to call twice."""

    @abstractmethod
    def probabilities(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Probabilities:
        """Run all rows of the batch.

        Args:
            circuit: the circuit; compile it on first use and keep it by its key.
            batch: rows, shots and noise. Its cotangents are not looked at.
            stop: set when nobody waits any more; look at it where that saves something.

        Raises:
            BackendError: if the rows cannot be run.
            CancelledError: if ``stop`` was set.
        """

    @abstractmethod
    def max_rows_per_call(self, circuit: CanonicalCircuit, shots: int | None) -> int:
        """How many rows `probabilities` takes at once within bounded memory; at least 1.

        Args:
            circuit: the circuit.
            shots: shots of each row, None for exact probabilities.

        Raises:
            BackendError: if rows of this circuit cannot run here at all. Nothing is built or run.
        """

    def answers(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        """Answer a batch of at most `max_rows_per_call` rows, by its probabilities.

        Its outputs are those, and it has no bases, whatever the circuit's observables. A backend
        that can do with less than a table of them, or knows slopes, does it here.
        """
        found = self.probabilities(circuit, batch, stop)
        for table in (found.sampled, found.exact):
            _check_shape(self, "probabilities", table, (batch.num_rows, circuit.num_outcomes))
        return Evaluation(contract(found, batch), found.usage)

    @np.errstate(invalid="ignore", over="ignore")  # of a grad_output that is nearly infinite
    def expectations(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        """Answer a batch whose outputs are the values of observables, by `answers` in each basis.

        That takes 2**m numbers for each sample; a backend for more bits than that overrides it.
        """
        return in_bases(circuit, batch, lambda _, piece: self.answers(circuit, piece, stop))

    def measure(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        """Run rows whose answers are made later, by `contract_measured`, of what is found here.

        A device measures the rows of both passes in one job.

        Returns:
            For each row its probabilities, or the bits of its shots where `from_bits` says so.
        """
        if isinstance(batch.rows, JoinedRows):
            first, second = (self.measure(circuit, each, stop) for each in batch.passes())
            both = batch.rows.join(first.answers, second.answers)
            return Evaluation(both, first.usage + second.usage)
        bases, used = batch.rows.num_bases, NOTHING_USED
        table = np.empty((batch.num_rows, circuit.num_outcomes))
        for basis in range(bases):
            piece = batch.in_basis(basis, None)
            found = _evaluate_slices(self, circuit, piece, stop, self.answers)
            table[basis::bases] = found.answers
            used += found.usage
        return Evaluation(table, used)

    def validate(self, circuit: CanonicalCircuit, shots: int | None) -> None:
        """Raise a clear error if rows of this circuit cannot run here, before anything runs.

        Args:
            circuit: the circuit.
            shots: shots of each row, None for exact probabilities.

        Raises:
            BackendError: if they cannot.
        """
        self.max_rows_per_call(circuit, shots)

    def share(self, state: SharedState) -> None:  # noqa: B027 (most have nothing to agree on)
        """Agree with the other processes that hold this recipe through ``state``; before `open`."""

    @property
    def supports_exact(self) -> bool:
        """Whether ``shots=None`` is possible."""
        return self.traits.supports_exact

    @property
    def supports_adjoint(self) -> bool:
        """Whether it answers `SlopeRows`."""
        return self.traits.supports_adjoint

    @property
    def noiseless(self) -> bool:
        """Whether probabilities are those of the circuit itself."""
        return self.traits.noiseless

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> RowFuture:
        """Answer a batch in this process, on a thread of this backend's own.

        Returns:
            A future of the answers of `evaluate`.
        """
        stop = threading.Event()
        future = RowFuture(on_cancel=stop.set)
        self._executor().submit(self._run, future, circuit, batch, stop)
        return future

    def run(self, circuit: CanonicalCircuit, batch: RowBatch) -> FloatArray:
        """``submit(...).result()``, or the same without another thread."""
        return self.submit(circuit, batch).result()

    def _run(
        self, future: RowFuture, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> None:
        # The future stays "pending" while rows run, so that a cancel ends it at once; whoever
        # comes second, the cancel or the answers, finds it done.
        with suppress(InvalidStateError):
            try:
                answers, future.usage = self._evaluate_with_retries(circuit, batch, stop)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(answers)

    def _evaluate_with_retries(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        """Try again after transient faults, as a pool does with another actor."""
        for _ in range(0 if self.traits.packs_jobs else MAX_TRANSIENT_FAULTS - 1):
            with suppress(TransientBackendError):
                return evaluate(self, circuit, batch, stop)
        return evaluate(self, circuit, batch, stop)

    def _executor(self) -> ThreadPoolExecutor:
        # Mostly one thread: a live simulator is used by one call at a time, whatever thread asks.
        with _EXECUTOR_LOCK:
            executors: dict[int, ThreadPoolExecutor]
            executors = self.__dict__.setdefault("_live_executors", {})
            here = os.getpid()  # a forked child has none of its parent's threads
            if here not in executors:
                name = f"qailab-{type(self).__name__}"
                executors[here] = ThreadPoolExecutor(
                    self.traits.max_concurrency, thread_name_prefix=name
                )
            return executors[here]

    def __getstate__(self) -> dict[str, Any]:
        """The recipe alone: whatever is live has a name that begins with ``_live``."""
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_live")}


_EXECUTOR_LOCK = threading.Lock()


_NOT_ABOUT_ROWS = (
    BackendBuildError,
    BudgetExceededError,
    CancelledError,
    JournalError,
    MemoryLimitError,
    TransientBackendError,
)


def evaluate(
    backend: Backend,
    circuit: CanonicalCircuit,
    batch: RowBatch,
    stop: threading.Event,
    *,
    in_callers_thread: bool = False,
) -> Evaluation:
    """Answer a batch, here and now.

    Errors name the row they are about. Where rows may run twice, it is located by bisection, which
    costs about as much as running them once more. Errors of other libraries become
    `EvaluationError`: they do not always survive pickling, and an exit or interrupt in a backend
    would be taken for the death of its process.

    Args:
        backend: where; it is open.
        circuit: the circuit.
        batch: the rows and what is wanted of them.
        stop: set it to give up between two slices.
        in_callers_thread: an interrupt is the caller's, and raised as such.

    Raises:
        BackendError: if the rows cannot be run.
        CancelledError: if ``stop`` was set.
    """
    try:
        return _evaluate_slices(backend, circuit, batch, stop)
    except _NOT_ABOUT_ROWS:
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if in_callers_thread and not isinstance(error, Exception):
            raise
        failing, cause = batch, cast(BaseException, error)
        if backend.traits.idempotent:
            failing, cause = _locate_failing_row(backend, circuit, batch, stop, error)
        raise _described(cause, failing) from error


Answer = Callable[[CanonicalCircuit, RowBatch, threading.Event], Evaluation]


def _evaluate_slices(
    backend: Backend,
    circuit: CanonicalCircuit,
    batch: RowBatch,
    stop: threading.Event,
    answer: Answer | None = None,
) -> Evaluation:
    width = answer_width(circuit, batch) if answer is None else circuit.num_outcomes
    if answer is None:
        answer = backend.answers if circuit.observables is None else backend.expectations
        answer = backend.measure if isinstance(batch.rows, JoinedRows) else answer
    answers = np.empty((batch.num_rows, width))
    used = NOTHING_USED
    rows, group = batch.rows, batch.rows.group
    most = backend.max_rows_per_call(circuit, batch.shots)
    stride = max(group, most // group * group)
    for start in range(rows.start, rows.stop, stride):
        if stop.is_set():
            raise CancelledError("the evaluation was cancelled")
        whole = stride >= batch.num_rows
        piece = batch if whole else batch.part(start, min(start + stride, rows.stop))
        found = answer(circuit, piece, stop)
        _check_shape(backend, "answers", found.answers, (piece.num_rows, answers.shape[1]))
        first = start - rows.start
        answers[first : first + piece.num_rows] = found.answers
        used += found.usage
    return Evaluation(answers, used)


def _check_shape(
    backend: Backend, method: str, table: FloatArray | None, expected: tuple[int, int]
) -> None:
    if table is not None and table.shape != expected:
        raise EvaluationError(
            f"{backend!r}.{method} must return shape {expected}, got {table.shape}"
        )


def _locate_failing_row(
    backend: Backend,
    circuit: CanonicalCircuit,
    batch: RowBatch,
    stop: threading.Event,
    error: BaseException,
) -> tuple[RowBatch, BaseException]:
    """The smallest part of a batch that was found to fail, and its error."""
    while (halves := _halves(batch)) is not None:
        for half in halves:
            try:
                _evaluate_slices(backend, circuit, half, stop)
            except _NOT_ABOUT_ROWS:
                raise
            except (Exception, KeyboardInterrupt, SystemExit) as failed:
                batch, error = half, failed
                break
        else:  # they fail only together, or not again: no single row is to blame
            break
    return batch, error


def _halves(batch: RowBatch) -> tuple[RowBatch, RowBatch] | None:
    rows = batch.rows
    groups = -(-batch.num_rows // rows.group)
    if groups < 2:
        return None
    middle = rows.start + groups // 2 * rows.group
    return batch.part(rows.start, middle), batch.part(middle, rows.stop)


def _described(error: BaseException, batch: RowBatch) -> QailabError:
    rows = batch.rows
    where = rows.name_of(rows.start)
    if batch.num_rows > 1:
        where = f"rows {rows.start} to {rows.stop - 1}, the first being {where}"
    if isinstance(error, QailabError):
        return plain(error, f"{error} [{where}]")
    return EvaluationError(f"{type(error).__name__}: {error} [{where}]")
