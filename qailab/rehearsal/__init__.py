"""Rehearse a job for IBM hardware: a server on loopback that speaks IBM Quantum's REST API.

The real client, qiskit-ibm-runtime, runs against it unchanged, with the latency, limits, cost and
faults that are asked for; circuits run on Aer. See `RehearsalServer`, or as a program::

    python -m qailab.rehearsal --backends manila,lagos --queue-seconds 2 -- COMMAND ...
"""

from qailab.backends.budget import PRICE_PER_SECOND
from qailab.rehearsal.account import Limits
from qailab.rehearsal.devices import device_names
from qailab.rehearsal.faults import Fault, FaultPlan
from qailab.rehearsal.records import FaultRecord, JobRecord, RequestRecord, SessionRecord
from qailab.rehearsal.server import RehearsalServer

__all__ = [
    "RehearsalServer",
    "Fault",
    "FaultPlan",
    "Limits",
    "JobRecord",
    "SessionRecord",
    "RequestRecord",
    "FaultRecord",
    "device_names",
    "PRICE_PER_SECOND",
]
