"""An emulated device: another backend's answers, after a device's time and with its faults."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import TypeVar

import numpy as np

from qailab.arguments import checked_integer
from qailab.backends.aer import AerBackend
from qailab.backends.answers import Evaluation, Probabilities, Usage
from qailab.backends.base import Backend, evaluate
from qailab.errors import InputError, InputTypeError, TransientBackendError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray, RowBatch

_TABLE_BYTES = 256 << 20  # the probabilities of one job

Found = TypeVar("Found", Probabilities, Evaluation)


class EmulatedBackend(Backend):
    """Answers like ``inner``, but only after the time a device would take, and not always.

    For trying out how a fleet of devices behaves before there is one: scheduling, faults,
    progress. All rows of a call are one job. Its answers are those of ``inner``, bit for bit; the
    time ``inner`` computes is part of the job's time, not added to it. An actor with this backend
    takes no CPU, as it waits most of the time.

    Args:
        inner: the backend that knows the answers.
        latency: seconds a job takes.
        jitter: seconds a job may take more or less than that, evenly spread.
        failure_rate: share of the jobs that fail, after their time, with a
            `TransientBackendError`; a pool runs their rows again.
        seed: for jitter and faults; the same device with the same jobs has the same ones.

    Raises:
        InputError: if an option is not valid.

    >>> EmulatedBackend(latency=0.2, failure_rate=0.01)
    EmulatedBackend(AerBackend(), latency=0.2, failure_rate=0.01)
    """

    def __init__(
        self,
        inner: Backend | None = None,
        *,
        latency: float = 0.0,
        jitter: float = 0.0,
        failure_rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        if inner is not None and not isinstance(inner, Backend):
            raise InputTypeError(f"inner must be a qailab backend, got {inner!r}")
        self.inner: Backend = AerBackend() if inner is None else inner
        self.latency = _checked("latency", latency, "seconds", math.inf)
        self.jitter = _checked("jitter", jitter, "seconds", math.inf)
        self.failure_rate = _checked("failure_rate", failure_rate, "a share of 1", 1.0)
        self.seed = checked_integer("seed", seed, least=0)
        traits = self.inner.traits
        self.traits = replace(
            traits,
            supports_adjoint=False,  # no device does
            call_overhead_seconds=max(self.latency, traits.call_overhead_seconds),
            resources=replace(traits.resources, num_cpus=0.0),  # it waits most of the time
        )

    def open(self) -> None:
        self.inner.open()
        self._live_jobs = 0

    def close(self) -> None:
        self.inner.close()

    def max_rows_per_call(self, circuit: CanonicalCircuit, shots: int | None) -> int:
        """As many rows as one job of a device takes; ``inner`` may be given them in parts."""
        fewest = self.inner.max_rows_per_call(circuit, shots)
        return max(fewest, _TABLE_BYTES // (16 * circuit.num_outputs))

    def probabilities(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Probabilities:
        return self._as_job(batch, stop, lambda: self._inner_probabilities(circuit, batch, stop))

    def expectations(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        return self._as_job(batch, stop, lambda: evaluate(self.inner, circuit, batch, stop))

    def measure(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        return self._as_job(batch, stop, lambda: self.inner.measure(circuit, batch, stop))

    def _as_job(self, batch: RowBatch, stop: threading.Event, answer: Callable[[], Found]) -> Found:
        """What ``inner`` answers, as a job that takes its time, or fails."""
        began = time.monotonic()
        self._live_jobs = job = self.__dict__.get("_live_jobs", 0) + 1
        chance = self._chance(batch, job)
        seconds = max(0.0, self.latency + self.jitter * chance.uniform(-1.0, 1.0))
        fails = chance.random() < self.failure_rate
        found = None if fails else answer()
        _sleep(began + seconds - time.monotonic(), stop)
        if found is None:
            raise TransientBackendError(f"job {job} of {self!r} failed, as failure_rate asks for")
        usage = Usage(jobs=1, qpu_seconds=seconds)
        if isinstance(found, Probabilities):
            return replace(found, usage=usage)
        return Evaluation(found.answers, usage)

    def _inner_probabilities(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Probabilities:
        rows, group = batch.rows, batch.rows.group
        most = self.inner.max_rows_per_call(circuit, batch.shots)
        stride = max(group, most // group * group)
        parts = [
            self.inner.probabilities(
                circuit, batch.part(start, min(start + stride, rows.stop)), stop
            )
            for start in range(rows.start, rows.stop, stride)
        ]
        if len(parts) == 1:
            return parts[0]
        exact: list[FloatArray] = [part.exact for part in parts if part.exact is not None]
        return Probabilities(
            np.concatenate([part.sampled for part in parts]),
            np.concatenate(exact) if len(exact) == len(parts) else None,
        )

    def __repr__(self) -> str:
        given = {
            "latency": self.latency,
            "jitter": self.jitter,
            "failure_rate": self.failure_rate,
            "seed": self.seed,
        }
        shown = [repr(self.inner), *(f"{name}={value}" for name, value in given.items() if value)]
        return f"EmulatedBackend({', '.join(shown)})"

    def _chance(self, batch: RowBatch, job: int) -> np.random.Generator:
        """From the rows as well as the job's number: devices of one recipe differ."""
        what = (self.seed, job, batch.rows.start, batch.noise.step, batch.noise.purpose)
        return np.random.default_rng(list(hashlib.sha256(repr(what).encode()).digest()))


def _sleep(seconds: float, stop: threading.Event) -> None:
    if seconds > 0 and stop.wait(seconds):
        raise CancelledError("the job was cancelled")


def _checked(name: str, value: float, unit: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(f"{name} must be a number ({unit}), got {value!r}")
    if not 0 <= value <= most or math.isinf(value):
        limit = "not negative" if math.isinf(most) else f"between 0 and {most:g}"
        raise InputError(f"{name} must be finite and {limit} ({unit}), got {value!r}")
    return float(value)
