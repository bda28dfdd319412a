"""What runs in a Ray actor: one backend, and the circuits it was given.

This module never imports torch: it would double the memory of an actor and its start-up time.
"""

from __future__ import annotations

import pickle
import time

from qailab.backends.base import Backend
from qailab.distributed.wire import decode_batch, encode_answers
from qailab.errors import EvaluationError, QailabError
from qailab.gradients.canonical import CanonicalCircuit


class LauncherActor:
    """One backend behind Ray calls.

    Args:
        recipe: the pickled backend; nothing live, and no secret.
    """

    def __init__(self, recipe: bytes) -> None:
        # Nothing here may fail: an error while an actor is created kills it without a trace.
        self._recipe = recipe
        self._circuits: dict[str, CanonicalCircuit] = {}
        self._backend: Backend | None = None

    def open(self) -> None:
        """Build the backend, once. Its errors reach the caller as they are."""
        if self._backend is not None:
            return
        backend: Backend = pickle.loads(self._recipe)
        backend.open()
        self._backend = backend

    def load(self, key: str, circuit: bytes) -> None:
        """Keep a circuit under its content key."""
        self._circuits[key] = pickle.loads(circuit)

    def evaluate(self, key: str, message: bytes) -> tuple[bytes, float]:
        """Answer an encoded batch of the circuit named ``key``.

        Returns:
            The encoded answers, and the seconds they took.
        """
        began = time.perf_counter()
        assert self._backend is not None, "open() comes first"
        if key not in self._circuits:
            raise EvaluationError(f"circuit {key} could not be loaded in the actor")
        try:
            answers = self._backend.evaluate(self._circuits[key], decode_batch(message))
        except QailabError:
            raise
        # Other libraries' errors do not always survive pickling; an exit or interrupt in a backend
        # would be taken for the death of the actor, and tried again on the next.
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            raise EvaluationError(f"{type(error).__name__}: {error}") from error
        return encode_answers(answers), time.perf_counter() - began

    def close(self) -> None:
        """Close the backend."""
        if self._backend is not None:
            self._backend.close()
