"""Circuits from blocks. Nothing in qailab requires them: any Qiskit circuit will do."""

from qailab.circuit.amplitude import AmplitudeEncodingGate
from qailab.circuit.ansatz import CXEntangler, RealAmplitudesBlock
from qailab.circuit.block import Block, build_circuit
from qailab.circuit.encoders import AmplitudeEncoder, RotationalEncoder

__all__ = [
    "AmplitudeEncoder",
    "AmplitudeEncodingGate",
    "Block",
    "CXEntangler",
    "RealAmplitudesBlock",
    "RotationalEncoder",
    "build_circuit",
]
