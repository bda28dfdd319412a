"""Reads what the client submits: parameters of a job to circuits, parameter values and shots.

Three programs are known: the client-side primitives (``executor``, all its schema versions) and
the older server-side ``sampler`` and ``estimator``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import io
import json
import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qailab.rehearsal.circuits import circuit_text
from qailab.rehearsal.records import Program

CIRCUITS_KEPT = 64
"""Decoded circuits that are kept: a training sends the same few with every step."""

DEFAULT_SHOTS = 4096
"""Shots of a PUB of the older sampler that states none."""

DEFAULT_PRECISION = 0.015625
"""Of a PUB of the older estimator that states none: 4096 shots."""


class PayloadError(ValueError):
    """The parameters of a job cannot be read; the client is answered status 400."""


@dataclass(frozen=True)
class Pub:
    """A circuit with its parameter values.

    Args:
        circuit: the circuit, a ``QuantumCircuit``.
        values: values of ``circuit.parameters``, shape ``(*shape, P)``.
        shape: shape of the rows; ``rows`` is its product.
        shots: shots of each row.
        samplex: draws the values of a twirled circuit, else ``None``.
        samplex_arguments: what it draws them from.
        observables: of an estimator, else ``None``.
        precision: of an estimator, the standard error of each expectation value.
    """

    circuit: Any
    values: NDArray[np.float64]
    shape: tuple[int, ...]
    shots: int
    samplex: Any = None
    samplex_arguments: Any = None
    observables: Any = None
    precision: float = 0.0

    @property
    def rows(self) -> int:
        """Circuits with all parameters bound."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Submission:
    """A job's PUBs.

    Args:
        program: the program that runs them.
        pubs: its PUBs.
        content: hash of circuits, parameter values and shots.
        schema: of an executor: version of its schema, else ``""``.
        echo: of an executor: what is passed through to its result.
    """

    program: Program
    pubs: tuple[Pub, ...]
    content: str
    schema: str = ""
    echo: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Circuits with all parameters bound, over all PUBs."""
        return sum(pub.rows for pub in self.pubs)

    @property
    def shots(self) -> int:
        """Most shots of a row."""
        return max((pub.shots for pub in self.pubs), default=0)

    @property
    def executions(self) -> int:
        """Rows times shots."""
        return sum(pub.rows * pub.shots for pub in self.pubs)


class SubmissionReader:
    """Reads the parameters of jobs. Safe to use from several threads."""

    def __init__(self) -> None:
        self._circuits: OrderedDict[str, tuple[tuple[Any, str], ...]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, program: str, params: Any) -> Submission:
        """Decode a job.

        Args:
            program: ``"executor"``, ``"sampler"`` or ``"estimator"``.
            params: its parameters, as JSON values.

        Raises:
            PayloadError: if they are not what the program takes.
        """
        readers: dict[str, Callable[[dict[str, Any]], Submission]] = {
            "executor": self._executor,
            "sampler": lambda given: self._primitive("sampler", given),
            "estimator": lambda given: self._primitive("estimator", given),
        }
        if program not in readers:
            raise PayloadError(f"unknown program {program!r}; known: {', '.join(readers)}")
        if not isinstance(params, dict):
            raise PayloadError("params must be an object")
        try:
            submission = readers[program](params)
        except PayloadError:
            raise
        except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
            raise PayloadError(f"params of {program} cannot be read: {error!r}") from error
        if not submission.pubs:
            raise PayloadError("a job needs at least one PUB")
        return submission

    def _decoded(self, text: str) -> tuple[tuple[Any, str], ...]:
        """Circuits of a QPY file, compressed and in base64, each with its canonical text."""
        with self._lock:
            if text in self._circuits:
                self._circuits.move_to_end(text)
                return self._circuits[text]
        qpy = importlib.import_module("qiskit.qpy")
        loaded = qpy.load(io.BytesIO(zlib.decompress(base64.b64decode(text))))
        circuits = tuple((circuit, circuit_text(circuit)) for circuit in loaded)
        with self._lock:
            self._circuits[text] = circuits
            if len(self._circuits) > CIRCUITS_KEPT:
                self._circuits.popitem(last=False)
        return circuits

    def _executor(self, params: dict[str, Any]) -> Submission:
        program, version = params["quantum_program"], params["schema_version"]
        level = program.get("meas_level", "classified")
        if level != "classified":
            raise PayloadError(f"meas_level {level!r} cannot be rehearsed, only 'classified'")
        plain = version == "v2.0" and "b64_data" in program["circuits"]
        if plain and all(item["item_type"] == "circuit" for item in program["items"]):
            pubs, texts = self._circuit_items(program)
        else:
            pubs, texts = _converted_items(params)
        content = _content(pubs, texts)
        echo = {
            key: program[key] for key in ("passthrough_data", "semantic_role") if key in program
        }
        return Submission("executor", pubs, content, version, echo)

    def _circuit_items(self, program: dict[str, Any]) -> tuple[tuple[Pub, ...], list[str]]:
        """Items without twirling, of the current schema: ten times faster than its models."""
        circuits = self._decoded(program["circuits"]["b64_data"])
        pubs = []
        for (circuit, _), item in zip(circuits, program["items"], strict=True):
            tensor = item["circuit_arguments"]
            raw = zlib.decompress(base64.b64decode(tensor["data"]))
            values = np.frombuffer(raw, dtype="<f8").reshape(tensor["shape"])
            pubs.append(_checked(Pub(circuit, values, values.shape[:-1], program["shots"])))
        return tuple(pubs), [text for _, text in circuits]

    def _primitive(self, program: Program, params: dict[str, Any]) -> Submission:
        options = params.get("options") or {}
        pubs, texts = [], []
        for given in params["pubs"]:
            parts = [*given, *[None] * 4]
            ((circuit, text),) = self._decoded(parts[0]["__value__"])
            if program == "sampler":
                values, shots, observables, precision = parts[1], parts[2], None, 0.0
                shots = shots or options.get("default_shots") or DEFAULT_SHOTS
            else:
                observables, values = parts[1], parts[2]
                precision = parts[3] or options.get("default_precision") or DEFAULT_PRECISION
                shots = math.ceil(1 / precision**2)
                text += json.dumps(observables, sort_keys=True)
            array = _array(values, circuit.num_parameters)
            shape = array.shape[:-1]
            pub = Pub(circuit, array, shape, shots, observables=observables, precision=precision)
            pubs.append(_checked(pub))
            texts.append(text)
        return Submission(program, tuple(pubs), _content(tuple(pubs), texts))


def _checked(pub: Pub) -> Pub:
    if not isinstance(pub.shots, int) or pub.shots < 1:
        raise PayloadError(f"shots must be a positive integer, got {pub.shots!r}")
    if pub.values.shape[-1] != pub.circuit.num_parameters:
        raise PayloadError(
            f"a circuit with {pub.circuit.num_parameters} parameters got parameter values of "
            f"shape {pub.values.shape}"
        )
    if not np.isfinite(pub.values).all():
        raise PayloadError("parameter values must be finite")
    return pub


def _array(values: Any, num_parameters: int) -> NDArray[np.float64]:
    """Parameter values of the older primitives: encoded, a list, or nothing."""
    if isinstance(values, dict):
        raw = zlib.decompress(base64.b64decode(values["__value__"]))
        values = np.load(io.BytesIO(raw), allow_pickle=False)
    array = np.asarray([] if values is None else values, dtype=np.float64)
    if num_parameters == 0 and array.ndim < 2 and array.size == 0:
        return array.reshape(0) if array.ndim == 0 else array
    return array


def _converted_items(params: dict[str, Any]) -> tuple[tuple[Pub, ...], list[str]]:
    """Items of older schemas or with twirling, decoded by the client's own converters."""
    converters = importlib.import_module("qiskit_ibm_runtime.quantum_program.params_converters")
    known = converters.QUANTUM_PROGRAM_PARAMS_CONVERTERS
    version = params["schema_version"]
    if version not in known:
        raise PayloadError(f"unknown schema_version {version!r}; known: {', '.join(known)}")
    program, _ = known[version].decoder(known[version].model(**params))
    pubs, texts = [], []
    for item, given in zip(program.items, params["quantum_program"]["items"], strict=True):
        text = circuit_text(item.circuit)
        if given["item_type"] == "circuit":
            pub = Pub(item.circuit, item.circuit_arguments, tuple(item.shape), program.shots)
            pub = _checked(pub)
        else:
            pub = Pub(
                item.circuit,
                np.zeros(0),
                tuple(item.shape),
                program.shots,
                samplex=item.samplex,
                samplex_arguments=item.samplex_arguments,
            )
            text += json.dumps(given["samplex_arguments"], sort_keys=True)
        pubs.append(pub)
        texts.append(text)
    return tuple(pubs), texts


def _content(pubs: tuple[Pub, ...], texts: list[str]) -> str:
    digest = hashlib.sha256()
    for pub, text in zip(pubs, texts, strict=True):
        digest.update(f"{text}|{pub.shape}|{pub.shots}|{pub.precision}|".encode())
        digest.update(np.ascontiguousarray(pub.values, dtype="<f8").tobytes())
    return digest.hexdigest()[:32]
