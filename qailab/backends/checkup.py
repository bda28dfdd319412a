"""Whether backends are usable: Aer on this machine, and the IBM Quantum account.

The account comes from where IBM's client looks for it: the environment, or the file it saved it
in. No finding shows a token, or a part of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qailab.backends.ibm.faults import chain_of, known_tokens
from qailab.checks import Check, Finding, message_of

_CHECK = "IBM account"
_IBM_SECONDS = 90  # the client's reads wait for ever, and it downloads every device's configuration
_TOKEN = "QISKIT_IBM_TOKEN"
_SET_UP = (
    "set QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE, or save the account once: save_account of "
    "QiskitRuntimeService (qiskit_ibm_runtime)"
)
_NETWORK = (
    "check this machine's way to quantum.cloud.ibm.com and iam.cloud.ibm.com: network, "
    "HTTPS_PROXY, QISKIT_IBM_URL"
)
_REFUSED = "make an API key at quantum.cloud.ibm.com, and set or save that one"


def aer_check() -> Check:
    """The check of the installed simulator."""
    return Check("Aer", _aer, 60, "reinstall it: pip install --force-reinstall qiskit-aer")


def ibm_check() -> Check:
    """The check of the IBM Quantum account; it goes to the network, and runs nothing there."""
    return Check(_CHECK, _ibm, _IBM_SECONDS, _NETWORK)


def _aer() -> Iterator[Finding]:
    from qiskit_aer import AerSimulator

    simulator = AerSimulator()
    devices = list(simulator.available_devices())
    methods = list(simulator.available_methods())
    yield Finding("Aer devices", ", ".join(devices))
    missing = {"statevector", "density_matrix", "matrix_product_state"} - set(methods)
    yield Finding(
        "Aer methods",
        ", ".join(methods),
        f"{', '.join(sorted(missing))} not there" if missing else "",
        "reinstall it: pip install --force-reinstall qiskit-aer",
    )


def _ibm() -> Iterator[Finding]:
    secrets = known_tokens()
    try:
        for finding in _account():
            yield finding.without(secrets)
    except Exception as error:
        yield _failure(error).without(secrets)


def _account() -> Iterator[Finding]:
    saved = _account_file()
    # Asked without an account, IBM's client would make an empty file.
    if not os.environ.get(_TOKEN) and not saved.is_file():
        found = f"neither {_TOKEN} nor ~/.qiskit/{saved.name} is there"
        yield Finding(_CHECK, found, "there is no account to use", _SET_UP)
        return
    if os.environ.get(_TOKEN):
        source = f"from {_TOKEN}"
    else:
        source = f"saved in ~/.qiskit/{saved.name}"
        if saved.stat().st_mode & 0o077:
            yield Finding(
                "IBM token file",
                f"~/.qiskit/{saved.name}",
                "others on this machine can read it",
                f"chmod 600 ~/.qiskit/{saved.name}",
                warning=True,
            )
    from qiskit_ibm_runtime import QiskitRuntimeService

    service = QiskitRuntimeService()
    yield Finding(_CHECK, source)
    yield _instances(service)
    yield _usage(service)
    yield from _devices(service)


def _instances(service: Any) -> Finding:
    instances = service.instances()
    active = service.active_instance()
    shown = [
        f"{instance['name']} (plan {instance['plan']}"
        + (", in use)" if instance["crn"] == active else ")")
        for instance in instances
    ]
    found = ", ".join(shown) or "none"
    if not instances:
        to_do = "make an instance at quantum.cloud.ibm.com"
        return Finding("IBM instances", found, "the account has no instance", to_do)
    if len(instances) > 1 and not service.active_account().get("instance"):
        return Finding(
            "IBM instances",
            found,
            "none is chosen: the client asks all of them, and takes a free one first",
            "set QISKIT_IBM_INSTANCE, or save the account with an instance",
            warning=True,
        )
    return Finding("IBM instances", found)


def _usage(service: Any) -> Finding:
    check = "IBM usage"
    try:
        usage = service.usage()
    except Exception as error:  # not every plan tells
        return Finding(check, "not known", message_of(error), "nothing, if jobs run", warning=True)
    used = f"{usage.get('usage_consumed_seconds', 0):g} s used"
    left = usage.get("usage_remaining_seconds")
    found = used if left is None else f"{used}, {left:g} s left"
    if usage.get("usage_limit_reached"):
        to_do = "wait for the next period, or use another instance"
        return Finding(check, found, "the instance's limit is reached: jobs do not run", to_do)
    return Finding(check, found)


def _devices(service: Any) -> Iterator[Finding]:
    devices = service.backends()
    if not devices:
        to_do = "choose another instance, or have devices added to this one"
        yield Finding("IBM backends", "none", "the instance sees no backend", to_do)
    for device in sorted(devices, key=lambda one: str(one.name)):
        try:
            yield _device(device)
        except Exception as error:  # the next one may answer
            to_do = "use another backend, or try again"
            yield Finding(device.name, "no answer", message_of(error), to_do, warning=True)


def _device(device: Any) -> Finding:
    status = device.status()
    qubits = device.configuration().n_qubits  # num_qubits would download the calibration
    found = f"{qubits} qubits, {status.pending_jobs} jobs waiting"
    if not status.operational:
        problem = "it is not in operation"
    elif status.status_msg != "active":
        problem = f"it takes jobs, but runs none now: {status.status_msg}"
    else:
        return Finding(device.name, found)
    return Finding(device.name, found, problem, "use another backend, or wait", warning=True)


def _failure(error: Exception) -> Finding:
    """What an error of IBM's client means; its own words often blame the token for the network."""
    chain = chain_of(error)
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    codes = [code for one in chain if isinstance(code := getattr(one, "status_code", None), int)]
    message = message_of(error)
    if "AccountNotFoundError" in kinds:
        return Finding(_CHECK, "no account is found", message, _SET_UP)
    # IBM's identity service answers 400 to a key that it does not know.
    refused = {401, 403} & set(codes) or ("ApiException" in kinds and 400 in codes)
    if refused or "IBMNotAuthorizedError" in kinds:
        said = f" (HTTP {codes[0]})" if codes else ""
        return Finding(_CHECK, f"IBM refuses the API key{said}", message, _REFUSED)
    if {"ConnectionError", "Timeout", "ConnectTimeout", "ReadTimeout", "ProxyError"} & kinds:
        cause = message_of(chain[-1])
        return Finding(_CHECK, "IBM cannot be reached", f"{message}; cause: {cause}", _NETWORK)
    return Finding(_CHECK, "the account cannot be used", message, _SET_UP)


def _account_file() -> Path:
    return Path.home() / ".qiskit" / "qiskit-ibm.json"
