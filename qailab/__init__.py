"""Hybrid quantum-classical PyTorch models whose gradients are evaluated by Ray actors.

The package is read in the order data flows: :mod:`qailab.circuit`, :mod:`qailab.gradients`,
:mod:`qailab.backends`, :mod:`qailab.launchers`, :mod:`qailab.distributed`, :mod:`qailab.torch`,
:mod:`qailab.training`.
Importing ``qailab`` itself loads none of them, so an actor that only simulates never pays for
torch; ``from qailab import QLayer`` loads what it names.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, which do not run `__getattr__`
    from qailab.backends import AerBackend, IBMBackend, StatevectorBackend  # noqa: F401
    from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit  # noqa: F401
    from qailab.distributed import LauncherPool  # noqa: F401
    from qailab.torch import (  # noqa: F401
        ArgmaxQLayer,
        ExpectedValueQLayer,
        ObservableQLayer,
        QLayer,
    )

_NAMES = {
    "backends": "AerBackend IBMBackend StatevectorBackend",
    "circuit": "RealAmplitudesBlock RotationalEncoder build_circuit",
    "distributed": "LauncherPool",
    "torch": "ArgmaxQLayer ExpectedValueQLayer ObservableQLayer QLayer",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'qailab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"qailab.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
