"""The devices a rehearsal server offers, read from the files that come with the client.

The client's package holds the configuration and the calibration of some seventy devices, as their
API answered them. Names are short ones (``"manila"``) or those of the API (``"ibmq_manila"``).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qailab.errors import InputError


@dataclass(frozen=True)
class Device:
    """A device; configuration and properties are JSON, as the API answers them."""

    short_name: str
    name: str  # as the API calls it
    num_qubits: int
    version: str
    configuration: bytes
    properties: bytes

    def fake_backend(self) -> Any:
        """The client's own fake backend of this device, which knows its target and noise."""
        package = "qiskit_ibm_runtime.fake_provider"
        base = importlib.import_module(f"{package}.fake_backend").FakeBackendV2
        module = importlib.import_module(f"{package}.backends.{self.short_name}")
        kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass)]
        return next(kind for kind in kinds if issubclass(kind, base))()


def device_names() -> tuple[str, ...]:
    """Short names of the devices there are, sorted."""
    folders = (folder for folder in _folder().iterdir() if folder.is_dir())
    return tuple(sorted(f.name for f in folders if (f / f"conf_{f.name}.json").exists()))


def load_devices(names: Iterable[str]) -> list[Device]:
    """Read devices by their short names, or those they have at the API.

    Raises:
        InputError: if there is no such device (the message lists those there are), or none is
            named, or one twice.
    """
    if isinstance(names, str):
        raise InputError(f"backends must be several names, got the string {names!r}")
    devices = [_load(name) for name in names]
    if not devices:
        raise InputError("a rehearsal needs at least one device")
    if len({device.name for device in devices}) < len(devices):
        raise InputError(f"a device is named twice: {[device.name for device in devices]}")
    return devices


def _load(name: str) -> Device:
    known = device_names()
    prefixes = ("", "ibm_", "ibmq_", "fake_", "alt_")
    short = next((s for prefix in prefixes if (s := name.removeprefix(prefix)) in known), None)
    if short is None:
        raise InputError(f"there is no device {name!r}; there are: {', '.join(known)}")
    configuration, properties = (
        (_folder() / short / f"{kind}_{short}.json").read_bytes() for kind in ("conf", "props")
    )
    facts = json.loads(configuration)
    named, qubits, version = (facts[key] for key in ("backend_name", "n_qubits", "backend_version"))
    return Device(short, named, qubits, version, configuration, properties)


def _folder() -> Path:
    # Finding the package does not import it, which takes two seconds.
    found = importlib.util.find_spec("qiskit_ibm_runtime")
    if found is None or not found.submodule_search_locations:
        raise InputError("the rehearsal needs qiskit-ibm-runtime: pip install qiskit-ibm-runtime")
    return Path(found.submodule_search_locations[0]) / "fake_provider" / "backends"
