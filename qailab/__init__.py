"""Hybrid quantum-classical PyTorch models whose gradients are evaluated by Ray actors.

The package is read in the order data flows: :mod:`qailab.circuit`, :mod:`qailab.gradients`,
:mod:`qailab.backends`, :mod:`qailab.launchers`, :mod:`qailab.distributed`, :mod:`qailab.torch`.
Importing ``qailab`` itself loads none of them, so an actor that only simulates never pays for
torch.
"""

__version__ = "0.1.0"
