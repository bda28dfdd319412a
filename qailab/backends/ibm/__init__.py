"""IBM Quantum devices: `IBMBackend`, and what it is made of.

::

    backend (config) -> connection -> jobs -> devices: service (IBM), local (testing mode)
                          |            |
                        account     record (memory, journal), sessions, budget

README.md beside this file shows how to use it.
"""

from qailab.backends.ibm.backend import IBMBackend
from qailab.backends.ibm.limits import IBMTimeouts, IBMWaits

__all__ = ["IBMBackend", "IBMTimeouts", "IBMWaits"]
