"""Actors, with simulators or devices of IBM Quantum. Imports neither torch nor Ray."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from qailab.backends import AerBackend, Backend, Budget, IBMBackend, StatevectorBackend
from qailab.distributed import LauncherPool
from qailab.distributed.connection import connect, disconnect
from qailab.errors import InputError, QailabError
from qailab.journal.report import read_report
from training.options import Settings, cores
from training.storage import RunFolder

# Roughly today's superconducting devices.
_ONE_QUBIT_ERROR = 0.0005
_TWO_QUBIT_ERROR = 0.005
_READOUT_ERROR = 0.01


def open_pool(
    closing: ExitStack, options: Namespace, backends: Sequence[Backend], processes: int = 0
) -> LauncherPool:
    """Start an actor for each backend; a local Ray gets a CPU for each other process, too."""
    if processes:
        session = connect(options.address, len(backends) + processes)
        closing.callback(disconnect, session)
    pool = LauncherPool(
        backends,
        address=options.address,
        actor_options=options.actor_options,
        progress=not processes,  # each of them would show it
    )
    return closing.enter_context(pool)


def make_backends(options: Namespace, folder: RunFolder) -> list[Backend]:
    """The backend of each actor.

    Raises:
        InputError: if an option is not valid.
    """
    settings, more = options.settings, options.backend_options or {}
    try:
        if settings.backend != "ibm":
            return [make_simulator(settings, **more)] * (options.actors or cores())
        folder.journal.parent.mkdir(parents=True, exist_ok=True)  # before an actor opens it
        # Devices share the budget, and the journal: what was paid for is never sent again.
        shared = {"budget": Budget(qpu_seconds=options.budget_seconds), "journal": folder.journal}
        return [IBMBackend(name, **shared, **more) for name in options.devices or [None]]
    except TypeError as error:  # a keyword that there is not
        raise InputError(f"--backend-options: {error}") from error


def close_sessions(folder: RunFolder, **more: Any) -> None:
    """Close the sessions that nobody has closed, as after ``kill -9``; name those that stay."""
    reasons = []
    for name in sorted({session["backend"] for session in _open_sessions(folder)}):
        try:
            backend = IBMBackend(name, journal=folder.journal, **more)
            backend.open()
            backend.close()
        except QailabError as error:
            reasons.append(f" ({error})")
    for session in _open_sessions(folder):
        print(
            "{mode} {session} of {backend} was left open, and may cost until its max_time: close "
            "it at quantum.cloud.ibm.com".format(**session)
            + "".join(reasons),
            file=sys.stderr,
        )


def _open_sessions(folder: RunFolder) -> list[dict[str, Any]]:
    """The run's own sessions that nobody has closed yet, as its journal knows them."""
    if not folder.journal.exists():
        return []
    sessions = read_report(folder.journal).sessions
    return [one for one in sessions if one["state"] == "open" and not one["given"]]


def make_simulator(settings: Settings, **given: Any) -> Backend:
    """A simulator, with ``aer-noisy`` of depolarizing gates and misread bits; Aer of a device."""
    if settings.backend == "statevector":
        return StatevectorBackend(**given)
    if settings.backend != "aer-noisy":
        return AerBackend(**given)
    from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error

    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(_ONE_QUBIT_ERROR, 1), ["ry"])
    noise.add_all_qubit_quantum_error(depolarizing_error(_TWO_QUBIT_ERROR, 2), ["cx"])
    right, wrong = 1.0 - _READOUT_ERROR, _READOUT_ERROR
    noise.add_all_qubit_readout_error(ReadoutError([[right, wrong], [wrong, right]]))
    return AerBackend(noise_model=noise, **given)
