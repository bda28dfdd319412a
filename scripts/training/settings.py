"""The settings that decide a run's weights. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qailab.errors import CheckpointError, InputError

BackendKind = Literal["aer", "aer-noisy", "ibm"]
Precision = Literal["float32", "float64"]
EXACT = "exact"
"""Instead of a number of shots: exact probabilities."""

MAX_QUBITS = 16
"""The linear layer behind the circuit has 2**qubits inputs: 2.6 MB of weights at 16."""
MIN_SAMPLES = 50
"""A fifth is for testing, and each of ten digits must be in both parts."""
_SEED_LIMIT = 2**63


@dataclass(frozen=True)
class Config:
    """Everything that a run's weights depend on.

    Args:
        qubits: qubits of the circuit, which are also the features it takes.
        reps: repetitions of rotations and entanglement in the circuit.
        shots: shots for each row, or ``"exact"``.
        batch_size: samples for each step.
        lr: learning rate of Adam in the first epoch.
        backend: what the actors hold: a kind of simulator, or a device.
        seed: seed of the initial weights, the order of samples and the shot noise.
        samples: how many of the samples are used; None for all.
        epochs: how often every training sample is used.
        dtype: precision of weights and gradients.

    Raises:
        InputError: if a value is out of its range.
    """

    qubits: int = 6
    reps: int = 2
    shots: int | Literal["exact"] = 1024
    batch_size: int = 32
    lr: float = 0.01
    backend: BackendKind = "aer"
    seed: int = 7
    samples: int | None = None
    epochs: int = 10
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        for name in ("qubits", "reps", "batch_size", "epochs"):
            check_at_least_one(name, getattr(self, name))
        if self.shots != EXACT:
            check_at_least_one("shots", self.shots)
        elif self.backend == "ibm":
            raise InputError("--shots exact is for simulators; give --backend ibm a number")
        if self.dtype not in get_args(Precision):
            raise InputError(
                f"--dtype must be one of {', '.join(get_args(Precision))}; got {self.dtype!r}"
            )
        if self.qubits > MAX_QUBITS:
            raise InputError(
                f"--qubits must be at most {MAX_QUBITS}, got {self.qubits}: the layer behind the "
                f"circuit would have 2**{self.qubits} inputs"
            )
        if not 0.0 < self.lr < math.inf:
            raise InputError(f"--lr must be positive and finite, got {self.lr}")
        if not 0 <= self.seed < _SEED_LIMIT:
            raise InputError(f"--seed must be in [0, 2**63), got {self.seed}")
        if self.backend not in get_args(BackendKind):
            raise InputError(
                f"--backend must be one of {', '.join(get_args(BackendKind))}; got {self.backend!r}"
            )
        if self.samples is not None and self.samples < MIN_SAMPLES:
            raise InputError(f"--samples must be at least {MIN_SAMPLES}, got {self.samples}")

    @property
    def num_shots(self) -> int | None:
        """Shots for each row; None for exact probabilities."""
        return None if self.shots == EXACT else int(self.shots)

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Config:
        """The config in a file of a run.

        Args:
            values: what the file holds.
            where: the file, for messages.

        Raises:
            CheckpointError: if it does not hold a config of this program.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != expected:
            got = sorted(map(str, values)) if isinstance(values, dict) else repr(values)
            raise CheckpointError(
                f"{where} must hold the settings {sorted(expected)}, got {got}; it was written by "
                "another version of this program, or edited"
            )
        try:
            return cls(**values)
        except (InputError, TypeError) as error:
            raise CheckpointError(f"{where} holds a setting that is not valid: {error}") from error

    def check_same(self, other: dict[str, Any], *, mine: str, theirs: str) -> None:
        """Check that nothing which the weights depend on differs; ``epochs`` may.

        Args:
            other: settings by name; those that are left out are not compared.
            mine: where the settings of this config come from, for messages.
            theirs: where the other settings come from, for messages.

        Raises:
            CheckpointError: if a setting differs; it names both values of each that does.
        """
        own = dataclasses.asdict(self)
        different = [
            f"{name} is {own[name]} in {mine}, but {value} in {theirs}"
            for name, value in other.items()
            if name != "epochs" and own[name] != value
        ]
        if different:
            raise CheckpointError(
                f"{'; '.join(different)}. A run goes on with the settings it began with: give "
                "those, or start a new run with another --name"
            )


def check_at_least_one(name: str, value: int) -> None:
    """Raise an `InputError` that names the option if the value is below one."""
    if value < 1:
        raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
