"""Pauli observables: which bases they are measured in, and their values from outcomes.

Terms that commute qubit by qubit share a basis, and so their shots. A basis is settings of angles
that turn qubits before they are measured, which are the last angles of the canonical circuit:
``rz(-pi/2) ry(-pi/2)`` for Y, ``ry(-pi/2)`` for X, zeros for Z. In its basis, a term is the parity
of some of the measured bits, its mask::

    <O_o> = constants[o] + sum_g sum_(t in g) coefficients[o, t] <(-1)^|outcome & mask_t|>_g

No array has 2**m entries but those of `outcome_cotangents` and `of_probabilities`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from qiskit.quantum_info import Pauli, PauliList, SparsePauliOp

from qailab.errors import InputError, InputTypeError
from qailab.gradients.rows import FloatArray, IntArray

Observable: TypeAlias = str | Pauli | SparsePauliOp
Words = NDArray[np.uint64]
Bits = NDArray[np.uint8]
"""Outcomes of shots, ``(n, shots, bytes)``, the most significant byte first as in `BitArray`."""

_WORD = 64


@dataclass(frozen=True, eq=False)
class Observables:
    """O observables as T different terms in G bases, of m measured bits.

    Args:
        num_qubits: qubits of the circuit they are of.
        constants: the coefficients of the identity, shape ``(O,)``.
        coefficients: of the other terms, which are sorted by basis, shape ``(O, T)``.
        masks: the measured bits that each term is the parity of, 64 in a word, least significant
            first, shape ``(T, ceil(m / 64))``.
        starts: where the terms of each basis begin, and T, shape ``(G + 1,)``.
        measured_qubits: the qubit of each measured bit.
        turns: the gates, ``"rz"`` or ``"ry"``, and qubits of the angles that a basis sets.
        bases: these angles in each basis, in radians, shape ``(G, len(turns))``.
    """

    num_qubits: int
    constants: FloatArray
    coefficients: FloatArray
    masks: Words
    starts: IntArray
    measured_qubits: tuple[int, ...]
    turns: tuple[tuple[str, int], ...]
    bases: FloatArray

    @classmethod
    def of(cls, observables: Observable | Sequence[Observable], num_qubits: int) -> Observables:
        """Group the terms of observables.

        Args:
            observables: ``"Z"`` for Z of each qubit, qubit 0 first; or one observable, or several:
                a label (the rightmost letter is qubit 0's), a ``Pauli`` or a ``SparsePauliOp``.
            num_qubits: qubits of the circuit.

        Raises:
            InputTypeError: if they are something else.
            InputError: if there are none, a label has other letters, a coefficient is not a finite
                real number, or they have another number of qubits.
        """
        operators = _operators(observables, num_qubits)
        terms: dict[str, FloatArray] = {}
        for number, operator in enumerate(operators):
            for label, coefficient in _checked_terms(operator, number, num_qubits):
                terms.setdefault(label, np.zeros(len(operators)))[number] += coefficient
        constants = terms.pop("I" * num_qubits, np.zeros(len(operators)))
        groups = _commuting([label for label, column in terms.items() if column.any()])
        labels = [label for group in groups for label in group]
        needs = [_letters(group) for group in groups]  # by basis: the letter of each qubit
        measured = tuple(sorted({qubit for letters in needs for qubit in letters})) or (0,)
        turns = tuple(
            (gate, qubit)
            for qubit in measured
            for gate, turned in (("rz", "Y"), ("ry", "XY"))
            if any(letters.get(qubit, "Z") in turned for letters in needs)
        )
        bases = np.zeros((len(groups), len(turns)))
        for basis, letters in enumerate(needs):
            for angle, (gate, qubit) in enumerate(turns):
                if letters.get(qubit, "Z") in ("Y" if gate == "rz" else "XY"):
                    bases[basis, angle] = -math.pi / 2
        masks = np.zeros((len(labels), -(-len(measured) // _WORD)), dtype=np.uint64)
        for place, qubit in enumerate(measured):
            there = [label[-1 - qubit] != "I" for label in labels]
            masks[there, place // _WORD] |= np.uint64(1 << place % _WORD)
        return cls(
            num_qubits=num_qubits,
            constants=constants,
            coefficients=np.array([terms[label] for label in labels]).reshape(-1, len(operators)).T,
            masks=masks,
            starts=np.cumsum([0, *map(len, groups)], dtype=np.int64),
            measured_qubits=measured,
            turns=turns,
            bases=bases,
        )

    @property
    def num_observables(self) -> int:
        """The number of observables, O."""
        return len(self.constants)

    @property
    def num_bases(self) -> int:
        """The number of bases, G; one at least."""
        return len(self.bases)

    @property
    def num_bits(self) -> int:
        """The number of measured bits, m."""
        return len(self.measured_qubits)

    @cached_property
    def key(self) -> str:
        """A content hash."""
        digest = hashlib.sha256(repr((self.num_qubits, self.measured_qubits, self.turns)).encode())
        for array in (self.constants, self.coefficients, self.masks, self.starts, self.bases):
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    def weight(self, term: int) -> int:
        """How many measured bits a term is the parity of."""
        return int(np.bitwise_count(self.masks[term]).sum())

    def terms(self, basis: int) -> slice:
        """The terms that are measured in a basis."""
        return slice(int(self.starts[basis]), int(self.starts[basis + 1]))

    def weights(self, basis: int, cotangents: FloatArray) -> FloatArray:
        """What each term of a basis counts in ``sum_o cotangents[s, o] O_o``.

        Args:
            basis: the basis.
            cotangents: shape ``(S, O)``.

        Returns:
            Shape ``(S, terms of the basis)``; a sample's weights do not depend on the others, as
            they would in a matrix product.
        """
        coefficients = self.coefficients[:, self.terms(basis)]
        weights = np.zeros((len(cotangents), coefficients.shape[1]))
        for numbers, observable in zip(cotangents.T, coefficients, strict=True):
            weights += numbers[:, None] * observable
        return weights

    def outcome_cotangents(self, basis: int, cotangents: FloatArray) -> FloatArray:
        """Numbers ``c`` with ``sum_k c[s, k] p_k = sum_o cotangents[s, o] <O_o>`` in a basis.

        The share of the basis, without constants.

        Args:
            basis: the basis.
            cotangents: shape ``(S, O)``.

        Returns:
            Shape ``(S, 2**m)``.
        """
        table = np.zeros((len(cotangents), 1 << self.num_bits))
        table[:, self._outcomes(basis)] = self.weights(basis, cotangents)
        return _walsh_hadamard(table)

    def of_probabilities(self, basis: int, probabilities: FloatArray) -> FloatArray:
        """A basis's share of each observable's value, without constants.

        Args:
            basis: the basis.
            probabilities: of the outcomes in it, shape ``(n, 2**m)``.

        Returns:
            Shape ``(n, O)``.
        """
        parities = _walsh_hadamard(probabilities)[:, self._outcomes(basis)]
        coefficients = self.coefficients[:, self.terms(basis)]
        each = [(coefficients * row).sum(axis=1) for row in parities]
        return np.array(each).reshape(len(parities), self.num_observables)

    def signs(self, basis: int, outcomes: Words) -> NDArray[np.int8]:
        """``(-1)**parity`` of each term for each outcome.

        Args:
            basis: the basis.
            outcomes: measured bits, in words as `masks` has them, shape ``(shots, words)``.

        Returns:
            Shape ``(terms of the basis, shots)``.
        """
        ones = np.zeros((self.terms(basis).stop - self.terms(basis).start, len(outcomes)), np.uint8)
        for mask, word in zip(self.masks[self.terms(basis)].T, outcomes.T, strict=True):
            ones ^= np.bitwise_count(mask[:, None] & word)
        return 1 - 2 * (ones & 1).view(np.int8)

    def _outcomes(self, basis: int) -> IntArray:
        """The masks of a basis as outcomes; there are no more than 63 bits."""
        return self.masks[self.terms(basis), 0].astype(np.int64)

    def __repr__(self) -> str:
        return (
            f"Observables({self.num_observables} of {self.coefficients.shape[1]} terms in "
            f"{self.num_bases} bases, qubits={self.num_qubits})"
        )


def words_of(bits: Bits) -> Words:
    """The outcomes of shots ``(shots, bytes)`` in words, least significant first."""
    shots, size = bits.shape
    padded = np.zeros((shots, -(-size // 8) * 8), dtype=np.uint8)
    padded[:, :size] = bits[:, ::-1]
    return padded.view("<u8").astype(np.uint64, copy=False)


def _walsh_hadamard(table: FloatArray) -> FloatArray:
    """``sum_k table[:, k] (-1)**|k & j|`` for every ``j``, shape ``(n, 2**m)``."""
    half = table.shape[1] // 2
    for _ in range(half.bit_length()):  # each bit in turn is the lowest, and goes to the top
        even, odd, table = table[:, 0::2], table[:, 1::2], np.empty_like(table)
        np.add(even, odd, out=table[:, :half])
        np.subtract(even, odd, out=table[:, half:])
    return table


def _operators(given: object, num_qubits: int) -> list[SparsePauliOp]:
    if isinstance(given, str) and given == "Z":
        given = ["I" * (num_qubits - 1 - qubit) + "Z" + "I" * qubit for qubit in range(num_qubits)]
    several = given if isinstance(given, Sequence | PauliList) else [given]
    if isinstance(given, str):
        several = [given]
    operators = [_operator(one, number) for number, one in enumerate(several)]
    if not operators:
        raise InputError("observables is empty; give at least one, or 'Z' for Z of each qubit")
    return operators


def _operator(one: object, number: int) -> SparsePauliOp:
    if isinstance(one, SparsePauliOp):
        return one
    if isinstance(one, Pauli):
        return SparsePauliOp(one)
    if not isinstance(one, str):
        raise InputTypeError(
            f"observable {number} must be a Pauli label, a Pauli or a SparsePauliOp, got "
            f"{type(one).__name__}; SparsePauliOp.from_operator and from_sparse_observable make one"
        )
    if not one or set(one) - set("IXYZ"):
        raise InputError(
            f"observable {number} must be a label of the letters I, X, Y and Z, one for each "
            f"qubit, the rightmost for qubit 0; got {one!r}"
        )
    return SparsePauliOp(one)


def _checked_terms(
    operator: SparsePauliOp, number: int, num_qubits: int
) -> Iterator[tuple[str, float]]:
    if operator.num_qubits != num_qubits:
        raise InputError(
            f"observable {number} is on {operator.num_qubits} qubits, and the circuit has "
            f"{num_qubits}; "
            + (
                "use a circuit with as many"
                if operator.num_qubits > num_qubits
                else f"pad it with identities: apply_layout(None, {num_qubits}) of a SparsePauliOp"
            )
        )
    for label, coefficient in operator.label_iter():
        try:
            value = complex(coefficient)
        except TypeError:
            value = complex("nan")
        if value.imag or not np.isfinite(value):
            raise InputError(
                f"term {label} of observable {number} has the coefficient {coefficient}; it must "
                "be a finite real number"
            )
        yield label, value.real


def _commuting(labels: list[str]) -> list[list[str]]:
    """Labels in groups that commute qubit by qubit; one empty group if there are none."""
    if not any(set(label) & set("XY") for label in labels):
        return [labels]
    groups = PauliList(labels).group_commuting(qubit_wise=True)
    return [group.to_labels() for group in groups]


def _letters(labels: list[str]) -> dict[int, str]:
    """The letter of each qubit that one of some labels acts on."""
    return {q: c for label in labels for q, c in enumerate(reversed(label)) if c != "I"}
