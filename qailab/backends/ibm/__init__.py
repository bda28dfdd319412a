"""IBM Quantum devices: `IBMBackend`, and what it is made of.

::

    backend (recipe) -> live -> jobs -> sending, waiting -> devices: service (IBM), local (testing)
                          |       |
                      sessions  journal, spending (budget)
"""

from qailab.backends.ibm.backend import IBMBackend
from qailab.backends.ibm.waits import IBMWaits

__all__ = ["IBMBackend", "IBMWaits"]
