"""The devices a rehearsal server offers, read from the files that come with the client.

The client's package holds the configuration and the calibration of some seventy devices, as their
API answered them. Names are short ones (``"manila"``) or those of the API (``"ibmq_manila"``).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qailab.errors import InputError
from qailab.rehearsal.limits import REP_DELAY_SECONDS


@dataclass(frozen=True)
class Device:
    """A device with its configuration and calibration.

    Args:
        short_name: as its files are called, ``"manila"``.
        name: as the API calls it, ``"ibmq_manila"``.
        num_qubits: its qubits.
        version: of its configuration.
        rep_delay: its default delay between executions, seconds.
        operations: names of the operations it runs.
        edges: pairs of qubits with a two-qubit gate.
        configuration: answer of ``GET /backends/ID/configuration``, JSON.
        properties: answer of ``GET /backends/ID/properties``, JSON.
    """

    short_name: str
    name: str
    num_qubits: int
    version: str
    rep_delay: float
    operations: frozenset[str]
    edges: frozenset[tuple[int, int]]
    configuration: bytes
    properties: bytes

    def fake_backend(self) -> Any:
        """The client's own fake backend of this device, which knows its noise."""
        base = importlib.import_module("qiskit_ibm_runtime.fake_provider.fake_backend")
        module = importlib.import_module(
            f"qiskit_ibm_runtime.fake_provider.backends.{self.short_name}"
        )
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, base.FakeBackendV2):
                return kind()
        raise InputError(
            f"the client has no fake backend of {self.short_name!r}"
        )  # pragma: no cover


def device_names() -> tuple[str, ...]:
    """Short names of the devices there are, sorted."""
    return tuple(
        sorted(
            folder.name
            for folder in _folder().iterdir()
            if (folder / f"conf_{folder.name}.json").exists()
        )
    )


def load_device(name: str) -> Device:
    """Read a device.

    Args:
        name: its short name, or the name it has at the API.

    Raises:
        InputError: if there is no such device; the message lists those there are.
    """
    known = device_names()
    for prefix in ("", "ibm_", "ibmq_", "fake_", "alt_"):
        short = name.removeprefix(prefix)
        if short in known:
            break
    else:
        raise InputError(f"there is no device {name!r}; there are: {', '.join(known)}")
    folder = _folder() / short
    configuration = (folder / f"conf_{short}.json").read_bytes()
    facts: dict[str, Any] = json.loads(configuration)
    delay = facts.get("default_rep_delay")
    return Device(
        short_name=short,
        name=facts["backend_name"],
        num_qubits=facts["n_qubits"],
        version=facts["backend_version"],
        rep_delay=REP_DELAY_SECONDS if delay is None else delay * 1e-6,  # microseconds there
        operations=frozenset(facts["basis_gates"]) | set(facts.get("supported_instructions") or ()),
        edges=frozenset((a, b) for a, b in facts.get("coupling_map") or ()),
        configuration=configuration,
        properties=(folder / f"props_{short}.json").read_bytes(),
    )


def _folder() -> Path:
    # Finding the package does not import it, which takes two seconds.
    found = importlib.util.find_spec("qiskit_ibm_runtime")
    if found is None or not found.submodule_search_locations:
        raise InputError("the rehearsal needs qiskit-ibm-runtime: pip install qiskit-ibm-runtime")
    return Path(found.submodule_search_locations[0]) / "fake_provider" / "backends"
