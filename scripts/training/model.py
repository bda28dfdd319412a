"""The classifier, and the simulators its circuit runs on."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor, nn

from qailab.backends import AerBackend, Backend
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.torch import QLayer
from training.data import CLASSES, PIXELS
from training.settings import BackendKind, Config

# Roughly today's superconducting devices.
_ONE_QUBIT_ERROR = 0.0005
_TWO_QUBIT_ERROR = 0.005
_READOUT_ERROR = 0.01


def make_deterministic() -> None:
    """Make torch compute the same bits in this process as in any other, on any machine load."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is asked for it by torch
    torch.set_num_threads(1)  # sums in the same order
    torch.use_deterministic_algorithms(True)


class HybridClassifier(nn.Module):
    """64 pixels -> linear -> n angles -> circuit -> 2**n probabilities -> linear -> 10 digits.

    Args:
        config: sizes, shots and seed.
        backend: where the circuit runs; `circuit.backend` may be replaced by a pool.

    Raises:
        CircuitError, BackendError: if the circuit does not fit the backend.

    Shape:
        - Input: ``(B, 64)``
        - Output: ``(B, 10)``, the logits of the digits
    """

    def __init__(self, config: Config, backend: Backend) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        blocks = [
            RotationalEncoder("y", "input"),
            RealAmplitudesBlock("weight", reps=config.reps),
        ]
        self.encoder = nn.Linear(PIXELS, config.qubits)
        self.circuit = QLayer(
            build_circuit(config.qubits, blocks),
            backend=backend,
            shots=config.num_shots,
            seed=config.seed,
        )
        self.readout = nn.Linear(self.circuit.out_features, CLASSES)
        self.to(getattr(torch, config.dtype))

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.circuit(self.encoder(images))
        # They average 1 / K: times K, the readout sees numbers of order one, as it expects.
        logits: Tensor = self.readout(probabilities * self.circuit.out_features)
        return logits

    @property
    def num_weights(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def rows_per_step(self, samples: int) -> int:
        """Rows that a step of so many samples runs: forward, and two shifts of each angle."""
        return samples * (1 + 2 * self.circuit.problem.canonical.num_angles)


def make_backend(kind: BackendKind, device: Literal["CPU", "GPU"] = "CPU") -> AerBackend:
    """The recipe of the simulators.

    With noise: depolarizing errors after each gate, and misread bits.
    """
    if kind == "aer":
        return AerBackend(device=device)
    from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error

    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(_ONE_QUBIT_ERROR, 1), ["ry"])
    noise.add_all_qubit_quantum_error(depolarizing_error(_TWO_QUBIT_ERROR, 2), ["cx"])
    right, wrong = 1.0 - _READOUT_ERROR, _READOUT_ERROR
    noise.add_all_qubit_readout_error(ReadoutError([[right, wrong], [wrong, right]]))
    return AerBackend(device=device, noise_model=noise)
