"""The statevector backend: kernels that know batches, the shift rule and the adjoint method."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from qailab.arguments import checked_integer
from qailab.backends.answers import NOTHING_USED, Evaluation, Probabilities
from qailab.backends.base import ActorResources, Backend, BackendTraits, evaluate
from qailab.backends.statevector.program import StateProgram, check_gates, compile_program
from qailab.errors import BackendBuildError, MemoryLimitError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray, RowBatch, SlopeRows

_log = logging.getLogger(__name__)

_CALL_BYTES = 32 << 20  # of the probabilities that one call returns
_MIN_ROWS_PER_CALL = 32  # so that shifted rows share something
_CACHED_PROGRAMS = 64
_MAX_QUBITS = 30  # indices have 32 bits, one of which says real or imaginary
_LOADING = threading.Lock()


class StatevectorBackend(Backend):
    """Runs circuits without noise on kernels of its own, the fastest way up to about 20 qubits.

    All shifted rows of a sample share the gates before the shift, both shifts of an angle are made
    of one state, and shots are drawn where the states are. It also differentiates exact
    probabilities by itself (``gradient="adjoint"``): one sweep forward and one back gives all
    slopes of a sample. Real circuits (``ry``, ``cx``, ``h``, ...) run in real numbers.

    Kernels are compiled by numba when a backend opens for the first time on a machine, which takes
    10 to 20 seconds, and come from numba's cache afterwards. The object is a recipe: it pickles
    small.

    Args:
        max_qubits: the largest circuit it takes. A state has ``2**n`` amplitudes of 16 bytes, and
            a thread works on three.
        threads: threads, each with samples or angles of its own. In a pool one is best, because
            actors share the work.

    Raises:
        InputError: if an option is not valid.

    >>> StatevectorBackend(threads=2)
    StatevectorBackend(threads=2)
    """

    def __init__(self, *, max_qubits: int = 20, threads: int = 1) -> None:
        self.max_qubits = checked_integer("max_qubits", max_qubits, most=_MAX_QUBITS)
        self.threads = checked_integer("threads", threads)
        self.traits = BackendTraits(
            supports_exact=True,
            noiseless=True,
            idempotent=True,
            supports_adjoint=True,
            resources=ActorResources(num_cpus=threads),
        )

    def open(self) -> None:
        """Load the kernels, or compile them if nobody has on this machine.

        Raises:
            BackendBuildError: if numba has no place for compiled kernels.
        """
        self._live_work = _load_kernels()
        self._live_programs: dict[str, StateProgram] = {}

    def close(self) -> None:
        """Drop compiled circuits and threads."""
        self.__dict__.pop("_live_programs", None)
        self.__dict__.pop("_live_work", None)
        workers = self.__dict__.pop("_live_workers", {}).get(os.getpid())
        if workers is not None:
            workers.shutdown()

    def max_rows_per_call(self, circuit: CanonicalCircuit, shots: int | None) -> int:
        """Rows whose probabilities take about 32 MiB.

        Raises:
            MemoryLimitError: if the circuit has more qubits than ``max_qubits``.
            BackendError: if a gate has no matrix.
        """
        qubits = len(circuit.active_qubits)
        if qubits > self.max_qubits:
            needed = 3 * 16 * 2.0**qubits / 2**20
            size = f"{needed:,.0f} MiB" if qubits < 40 else f"{needed:.1e} MiB"
            raise MemoryLimitError(
                f"the circuit has {qubits} active qubits, more than max_qubits="
                f"{self.max_qubits}: three states of it need {size}; use fewer qubits, raise "
                "max_qubits, or use AerBackend (method='matrix_product_state' for wide circuits)"
            )
        checked: set[str] = self.__dict__.setdefault("_live_checked", set())
        if circuit.key not in checked:
            check_gates(circuit)
            checked.add(circuit.key)
        return max(_MIN_ROWS_PER_CALL, _CALL_BYTES // (8 * circuit.num_outcomes))

    def probabilities(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Probabilities:
        work = self._work(circuit, batch)
        exact = np.empty((batch.num_rows, circuit.num_outcomes))
        self._do(work.fill(exact), stop)
        if batch.shots is None:
            return Probabilities(exact, exact)
        drawn = np.empty_like(exact)
        self._do(work.draw(exact, drawn), stop)
        return Probabilities(drawn, exact)

    def answers(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        """Answer a batch without a table of all its probabilities; or by the adjoint method.

        Raises:
            CancelledError: if ``stop`` was set.
        """
        work = self._work(circuit, batch)
        answers = np.empty((batch.num_rows, batch.answer_width(circuit.num_outcomes)))
        if isinstance(batch.rows, SlopeRows):
            self._do(work.differentiate(answers), stop)
        elif batch.cotangents is not None:
            self._do(work.contract(answers), stop)
        else:
            self._do(work.fill(answers), stop)
            if batch.shots is not None:
                self._do(work.draw(answers, answers), stop)
        return Evaluation(answers, NOTHING_USED)

    def expectations(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        """Slopes are of all bases together: one sweep forward, and one back from their sum."""
        observables = circuit.observables
        assert observables is not None
        if not isinstance(batch.rows, SlopeRows) or observables.num_bases == 1:
            return super().expectations(circuit, batch, stop)
        assert batch.cotangents is not None
        each = [batch.rows.in_basis(basis) for basis in range(observables.num_bases)]
        tables = [
            observables.outcome_cotangents(basis, batch.cotangents) for basis in range(len(each))
        ]
        base, cotangents = (
            np.stack(some, axis=1).reshape(-1, some[0].shape[1])
            for some in ([rows.base for rows in each], tables)
        )
        merged = replace(batch, rows=replace(each[0], base=base), cotangents=cotangents)
        answers = np.zeros((each[0].num_rows, len(each), 2))
        found = np.empty((len(answers), 2))
        work = self._work(circuit, merged)
        self._do(work.differentiate(found, len(each), len(observables.turns)), stop)
        answers[:, 0] = found
        return Evaluation(answers.reshape(-1, 2), NOTHING_USED)

    def run(self, circuit: CanonicalCircuit, batch: RowBatch) -> FloatArray:
        """Answer a batch in the caller's thread: small circuits take less than the way to another.

        An interrupt (Ctrl-C) comes through after some 50 ms.
        """
        stop = threading.Event()
        try:
            return evaluate(self, circuit, batch, stop, in_callers_thread=True).answers
        finally:
            stop.set()  # threads that an interrupt left at work

    def _work(self, circuit: CanonicalCircuit, batch: RowBatch) -> Any:
        if "_live_programs" not in self.__dict__:
            self.open()
        programs = self._live_programs
        program = programs.pop(circuit.key, None) or compile_program(circuit)
        with _LOADING:
            programs[circuit.key] = program  # the last used goes last, the first is forgotten first
            if len(programs) > _CACHED_PROGRAMS:
                programs.pop(next(iter(programs)))
        return self._live_work(program, batch, self.threads)

    def _do(self, shares: Sequence[Iterator[None]], stop: threading.Event) -> None:
        """Do the work of each thread, and look at ``stop`` after every piece."""

        def run(share: Iterator[None]) -> None:
            for _ in share:
                if stop.is_set():
                    raise CancelledError("the evaluation was cancelled")

        if len(shares) == 1:
            run(shares[0])
            return
        list(self._workers().map(run, shares))

    def _workers(self) -> ThreadPoolExecutor:
        with _LOADING:
            workers: dict[int, ThreadPoolExecutor] = self.__dict__.setdefault("_live_workers", {})
            here = os.getpid()  # a forked child has none of its parent's threads
            if here not in workers:
                workers[here] = ThreadPoolExecutor(self.threads, "qailab-statevector")
            return workers[here]

    def __repr__(self) -> str:
        defaults = {"max_qubits": 20, "threads": 1}
        shown = [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v]
        return f"StatevectorBackend({', '.join(shown)})"


@functools.cache  # a success is kept, an error is not
def _load_kernels() -> Any:
    """The class that works with compiled kernels; numba is imported here and nowhere else.

    Raises:
        BackendBuildError: if there is no place for compiled kernels.
    """
    with _LOADING:
        try:
            from qailab.backends.statevector import (
                sampling,  # first: it tells whether there is a cache
            )

            compiling: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if sampling.draw_frequencies.stats.cache_misses:
                _log.warning(
                    "compiling the statevector kernels, once on this machine: 10 to 20 seconds"
                )
                compiling = _one_at_a_time()
            with compiling:
                from qailab.backends.statevector.work import StateWork
        except (OSError, RuntimeError) as error:  # numba's, which finds no "locator"
            if isinstance(error, RuntimeError) and "no locator" not in str(error):
                raise
            raise BackendBuildError(
                f"numba finds no folder that it may keep compiled kernels in ({error}); set "
                "NUMBA_CACHE_DIR to one that can be written, for actors too"
            ) from error
    return StateWork


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait for other processes of this user that compile: what they leave is quicker to load."""
    path = os.path.join(tempfile.gettempdir(), f"qailab-kernels-{os.getuid()}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:  # nowhere, or somebody else's: each compiles for itself
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
