"""What is to be computed: outputs of a circuit whose parameters are features and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

import numpy as np
from qiskit.circuit import Parameter, QuantumCircuit

from qailab.errors import CircuitError, InputError, InputTypeError
from qailab.gradients.canonical import canonicalize
from qailab.gradients.observables import Observable, Observables
from qailab.gradients.rows import FloatArray


class CircuitProblem:
    """A circuit whose parameters are features (inputs) or trained (weights), and its outputs.

    Args:
        circuit: a circuit of standard gates with measurements at its end. Outcome ``k`` is the
            integer of the measured bits, classical bit 0 least significant.
        input_params: the features' parameters, in order. By default those whose names begin with
            ``input``, in the order of ``circuit.parameters``.
        weight_params: the weights' parameters, in order. By default those whose names begin with
            ``weight``, in the order of ``circuit.parameters``.
        observables: what is asked for, instead of the probabilities of the outcomes, by their
            expectation values: ``"Z"`` (of each qubit, qubit 0 first), a Pauli label (the rightmost
            letter is qubit 0's), a ``Pauli``, a ``SparsePauliOp``, or a sequence of these. The
            circuit needs no measurements then; those at its end are left out.

    Attributes:
        circuit: the circuit as given.
        input_parameters: the features' parameters, I of them.
        weight_parameters: the weights' parameters, W of them.
        canonical: the circuit that runs.
        angle_map: from (inputs, weights) to the canonical circuit's angles.

    Raises:
        CircuitError: if the circuit cannot be measured or differentiated, or a parameter is in
            neither group, in both, or not in the circuit.
        InputError: if an observable is not valid, or not of as many qubits as the circuit.
        InputTypeError: if ``circuit`` is not a ``QuantumCircuit``, or an observable none.
    """

    def __init__(
        self,
        circuit: QuantumCircuit,
        input_params: Sequence[Parameter] | None = None,
        weight_params: Sequence[Parameter] | None = None,
        *,
        observables: Observable | Sequence[Observable] | Observables | None = None,
    ) -> None:
        if not isinstance(circuit, QuantumCircuit):
            raise InputTypeError(f"circuit must be a QuantumCircuit, got {type(circuit).__name__}")
        self.circuit = circuit
        self.input_parameters = _group(circuit, "input", input_params, not_in=weight_params)
        self.weight_parameters = _group(circuit, "weight", weight_params, not_in=input_params)
        self._check_groups()
        if not (observables is None or isinstance(observables, Observables)):
            observables = Observables.of(observables, circuit.num_qubits)
        self.canonical, self.angle_map = canonicalize(
            circuit, self.input_parameters + self.weight_parameters, observables
        )

    @property
    def num_inputs(self) -> int:
        """The number of features, I."""
        return len(self.input_parameters)

    @property
    def num_weights(self) -> int:
        """The number of weights, W."""
        return len(self.weight_parameters)

    @property
    def num_outcomes(self) -> int:
        """The number of outcomes, K = 2**m for m measured bits."""
        return self.canonical.num_outcomes

    @property
    def num_outputs(self) -> int:
        """The number of outputs: K probabilities, or the values of O observables."""
        return self.canonical.num_outputs

    @property
    def observables(self) -> Observables | None:
        """The observables whose values are the outputs; None if probabilities are."""
        return self.canonical.observables

    @property
    def bases(self) -> FloatArray | None:
        """The angles of the bases that rows are measured in; None if nothing is turned."""
        observables = self.observables
        return observables.bases if observables is not None and observables.turns else None

    @cached_property
    def key(self) -> str:
        """Names what is computed: the circuit, its angles' expressions, and the parameters' roles.

        Angles are taken at generic points, so it does not matter how an expression is written.
        """
        size = self.num_inputs + self.num_weights
        content = [self.canonical.key, self.num_inputs, self.num_weights]
        for scale in (0.7, 5.0, -0.7, -5.0):  # one of them is where logarithms and roots are real
            points = scale * np.random.default_rng(1).uniform(0.1, 1.0, size=(2, size))
            with suppress(InputError):
                angles = np.round(self.angle_map.values(points), 9) + 0.0  # there is no -0.0
                content += [f"{angle:.9e}" for angle in angles.flat]
                break
        return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()

    def _check_groups(self) -> None:
        inputs, weights = set(self.input_parameters), set(self.weight_parameters)
        known = set(self.circuit.parameters)
        for what, wrong, hint in (
            ("not in the circuit", (inputs | weights) - known, "take them from circuit.parameters"),
            ("in both groups", inputs & weights, "a parameter is either an input or a weight"),
            (
                "in neither group",
                known - inputs - weights,
                "name them 'input...' or 'weight...', or pass input_params and weight_params",
            ),
        ):
            if wrong:
                names = ", ".join(sorted(parameter.name for parameter in wrong))
                raise CircuitError(f"parameters {what}: {names}; {hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        # What is derived is derived again: it holds compiled functions, which do not pickle.
        recipe = (self.circuit, self.input_parameters, self.weight_parameters)
        return (partial(CircuitProblem, observables=self.observables), recipe)

    def __repr__(self) -> str:
        outputs = "outcomes" if self.observables is None else "observables"
        return (
            f"CircuitProblem(qubits={self.circuit.num_qubits}, inputs={self.num_inputs}, "
            f"weights={self.num_weights}, {outputs}={self.num_outputs})"
        )


def _group(
    circuit: QuantumCircuit,
    prefix: str,
    given: Sequence[Parameter] | None,
    not_in: Sequence[Parameter] | None,
) -> tuple[Parameter, ...]:
    """The parameters of a group: as given, or by prefix without those the other group names."""
    if given is None:
        others = set(not_in or ())
        named = [p for p in circuit.parameters if p.name.startswith(prefix)]
        return tuple(p for p in named if p not in others)
    if isinstance(given, Parameter):
        raise InputTypeError(f"{prefix}_params must be a sequence of parameters, got {given!r}")
    group = tuple(given)
    for parameter in group:
        if not isinstance(parameter, Parameter):
            raise InputTypeError(
                f"{prefix}_params must hold Parameter objects, got {parameter!r} "
                f"({type(parameter).__name__})"
            )
    if len(set(group)) < len(group):
        raise InputError(f"{prefix}_params names a parameter twice: {[p.name for p in group]}")
    return group
