"""A device that is not there: another backend's answers, after a device's time and faults."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from concurrent.futures import CancelledError

import numpy as np

from qailab.arguments import checked_integer
from qailab.backends.aer import AerBackend
from qailab.backends.base import ActorResources, Backend, Outcomes, Usage
from qailab.errors import InputError, InputTypeError, TransientBackendError
from qailab.gradients.batch import RowBatch
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray


class RehearsalBackend(Backend):
    """Answers like ``inner``, but only after the time a device would take, and not always.

    For trying out how a fleet of devices behaves before there is one: scheduling, faults,
    progress. Each call of `evaluate` is one job. Its answers are those of ``inner``, bit for bit;
    the time ``inner`` computes is part of the job's time, not added to it. An actor with this
    backend takes no CPU, as it waits most of the time.

    Args:
        inner: the backend that knows the answers.
        latency: seconds a job takes.
        jitter: seconds a job may take more or less than that, evenly spread.
        failure_rate: share of the jobs that fail, after their time, with a
            `TransientBackendError`; a pool runs their rows again.
        seed: for jitter and faults; the same device with the same jobs has the same ones.

    Raises:
        InputError: if an option is not valid.

    >>> RehearsalBackend(latency=0.2, failure_rate=0.01)
    RehearsalBackend(AerBackend(), latency=0.2, failure_rate=0.01)
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
        self.supports_exact = self.inner.supports_exact
        self.repeatable = self.inner.repeatable
        self.watched = self.inner.watched
        self.call_seconds = max(self.latency, self.inner.call_seconds)

    @property
    def usage(self) -> Usage:
        used: Usage = self.__dict__.get("_live_usage", Usage())
        return used

    @property
    def resources(self) -> ActorResources:
        inner = self.inner.resources
        return ActorResources(num_cpus=0, num_gpus=inner.num_gpus, custom=inner.custom)

    def validate(self, circuit: CanonicalCircuit, shots: int | None, num_rows: int = 1) -> None:
        self.inner.validate(circuit, shots, num_rows)

    def open(self) -> None:
        self._live_usage = Usage()
        self.inner.open()

    def outcomes(self, circuit: CanonicalCircuit, batch: RowBatch) -> Outcomes:
        return self.inner.outcomes(circuit, batch)

    def rows_at_once(self, circuit: CanonicalCircuit) -> int:
        return self.inner.rows_at_once(circuit)

    def evaluate(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event | None = None
    ) -> FloatArray:
        began = time.monotonic()
        chance = self._chance(batch)
        seconds = max(0.0, self.latency + self.jitter * chance.uniform(-1.0, 1.0))
        fails = chance.random() < self.failure_rate
        used = self.usage
        self._live_usage = Usage(used.jobs + 1, used.qpu_seconds + seconds)
        answers = None if fails else self.inner.evaluate(circuit, batch, stop)
        _sleep(began + seconds - time.monotonic(), stop)
        if answers is None:
            raise TransientBackendError(
                f"job {self.usage.jobs} of {self!r} failed, as failure_rate asks for"
            )
        return answers

    def close(self) -> None:
        self.inner.close()

    def __repr__(self) -> str:
        given = {
            "latency": self.latency,
            "jitter": self.jitter,
            "failure_rate": self.failure_rate,
            "seed": self.seed,
        }
        shown = [repr(self.inner), *(f"{name}={value}" for name, value in given.items() if value)]
        return f"RehearsalBackend({', '.join(shown)})"

    def _chance(self, batch: RowBatch) -> np.random.Generator:
        """From the rows as well as the job's number: devices of one recipe differ."""
        what = (self.seed, self.usage.jobs, batch.rows.start, batch.noise.step, batch.noise.purpose)
        return np.random.default_rng(list(hashlib.sha256(repr(what).encode()).digest()))


def _sleep(seconds: float, stop: threading.Event | None) -> None:
    if seconds <= 0:
        return
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise CancelledError("the job was cancelled")


def _checked(name: str, value: float, unit: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(f"{name} must be a number ({unit}), got {value!r}")
    if not 0 <= value <= most or math.isinf(value):
        limit = "not negative" if math.isinf(most) else f"between 0 and {most:g}"
        raise InputError(f"{name} must be finite and {limit} ({unit}), got {value!r}")
    return float(value)
