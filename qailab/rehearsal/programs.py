"""Runs a job's PUBs and writes its result as the client reads it.

Results are not compressed: shots of an untrained circuit are random bits, which compressing makes
no smaller but takes as long as an eighth of the simulation.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import math
import zlib
from datetime import UTC, datetime
from typing import Any

import numpy as np

from qailab.rehearsal.circuits import check_isa
from qailab.rehearsal.devices import Device
from qailab.rehearsal.errors import INTERNAL, JobError
from qailab.rehearsal.simulation import Simulator
from qailab.rehearsal.submissions import Pub, Submission

STORED = 0
"""The level of zlib that only wraps."""


class ProgramRunner:
    """Runs jobs of one device.

    Args:
        device: the device.
        noise: whether shots have its noise.
        seed: of the shots; a job's shots depend on it and on the job's content, not on the order
            in which jobs arrive. ``None`` for other shots every time.
    """

    def __init__(self, device: Device, *, noise: bool, seed: int | None) -> None:
        self._device = device
        self._simulator = Simulator(device, noise=noise)
        self._seed = seed

    def run(self, submission: Submission) -> str:
        """Run a job.

        Returns:
            Its result, as ``GET /jobs/ID/results`` answers it.

        Raises:
            JobError: if it cannot run.
        """
        started = datetime.now(UTC)
        for pub in submission.pubs:
            check_isa(pub.circuit, self._device)
        seeds = self._seeds(submission)
        if submission.program == "executor":
            return self._executor(submission, seeds, started)
        results = importlib.import_module("qiskit.primitives.containers")
        make = self._sampled if submission.program == "sampler" else self._estimated
        made = [
            make(pub, number, seed, results)
            for number, (pub, seed) in enumerate(zip(submission.pubs, seeds, strict=True))
        ]
        whole = results.PrimitiveResult(made, metadata={"version": 2})
        return json.dumps(whole, cls=_encoder())

    def _seeds(self, submission: Submission) -> list[np.random.SeedSequence]:
        if self._seed is None:
            return np.random.SeedSequence().spawn(len(submission.pubs))
        digest = hashlib.sha256(f"{self._seed}|{submission.content}".encode()).digest()
        return np.random.SeedSequence(list(digest)).spawn(len(submission.pubs))

    def _executor(
        self, submission: Submission, seeds: list[np.random.SeedSequence], started: datetime
    ) -> str:
        compressed = submission.schema == "v2.0"
        items = []
        for pub, seed in zip(submission.pubs, seeds, strict=True):
            drawn, values = _drawn(pub, seed)
            samples = self._simulator.sample(pub.circuit, values, pub.shots, seed)
            results = {name: _tensor(array, compressed) for name, array in drawn.items()}
            for register in pub.circuit.cregs:
                clbits = [pub.circuit.find_bit(bit).index for bit in register]
                results[register.name] = {
                    "data": _base64(samples.packed(clbits), compressed),
                    "shape": [*pub.shape, pub.shots, len(clbits)],
                    "dtype": "bool",
                }
            metadata: dict[str, Any] | None = None if submission.schema == "v0.1" else {}
            items.append({"results": results, "metadata": metadata})
        parts = [
            {
                "idx_item": number,
                "size": pub.rows,
                "permutation": list(range(len(pub.shape))),
                "element_range": [0, pub.rows, 1],
            }
            for number, pub in enumerate(submission.pubs)
        ]
        span = {
            "start": started.isoformat(),
            "stop": datetime.now(UTC).isoformat(),
            "parts": parts,
        }
        result = {
            "schema_version": submission.schema,
            "data": items,
            "metadata": {"chunk_timing": [span]},
            **submission.echo,
        }
        return json.dumps(result)

    def _sampled(self, pub: Pub, number: int, seed: np.random.SeedSequence, results: Any) -> Any:
        rows = pub.values.reshape(pub.rows, -1)
        samples = self._simulator.sample(pub.circuit, rows, pub.shots, seed)
        fields = {}
        for register in pub.circuit.cregs:
            clbits = [pub.circuit.find_bit(bit).index for bit in register]
            words = samples.words(clbits)
            shaped = words.reshape(*pub.shape, pub.shots, words.shape[-1])
            fields[register.name] = results.BitArray(shaped, len(clbits))
        data = results.DataBin(**fields, shape=pub.shape)
        return results.SamplerPubResult(data, metadata={"circuit_metadata": {}})

    def _estimated(self, pub: Pub, number: int, seed: np.random.SeedSequence, results: Any) -> Any:
        from qailab.rehearsal.estimation import expectation_values

        exact, variances = expectation_values(self._simulator, pub)
        spread = np.sqrt(np.maximum(variances, 0.0) / pub.shots)
        noisy = exact + np.random.default_rng(seed).normal(size=exact.shape) * spread
        data = results.DataBin(
            evs=noisy, stds=spread, ensemble_standard_error=spread, shape=exact.shape
        )
        metadata = {"shots": pub.shots, "target_precision": pub.precision, "circuit_metadata": {}}
        return results.PubResult(data, metadata=metadata)


def _drawn(pub: Pub, seed: np.random.SeedSequence) -> tuple[dict[str, Any], Any]:
    """What a samplex draws beside parameter values, and the values of all rows."""
    if pub.samplex is None:
        return {}, pub.values.reshape(pub.rows, -1)
    sampling = importlib.import_module("qiskit_ibm_runtime.fake_provider.executor.broadcast_sample")
    pub.samplex.finalize()
    rng = np.random.default_rng(seed.spawn(1)[0])
    drawn = dict(sampling.broadcast_sample(pub.samplex, pub.samplex_arguments, pub.shape, rng))
    none = np.zeros((*pub.shape, 0))
    values = np.asarray(drawn.pop("parameter_values", none))
    if values.shape[-1] != pub.circuit.num_parameters:
        raise JobError("the samplex does not draw the circuit's parameters", INTERNAL)
    return drawn, values.reshape(pub.rows, -1)


def _base64(raw: bytes, compressed: bool) -> str:
    return base64.b64encode(zlib.compress(raw, STORED) if compressed else raw).decode("ascii")


def _tensor(array: Any, compressed: bool) -> dict[str, Any]:
    """An array as the executor's schema has it."""
    array = np.asarray(array)
    if array.dtype == np.bool_:
        raw, dtype = np.packbits(array, bitorder="little").tobytes(), "bool"
    else:
        wanted = array.astype(array.dtype.newbyteorder("<"))
        raw, dtype = wanted.tobytes(), f"{array.dtype.kind}{8 * array.dtype.itemsize}"
    size = math.prod(array.shape)
    if size == 0:
        raw = b""
    return {"data": _base64(raw, compressed), "shape": list(array.shape), "dtype": dtype}


def _encoder() -> Any:
    """The client's encoder of results, but arrays are not compressed."""
    import io

    runtime = importlib.import_module("qiskit_ibm_runtime")

    class Encoder(runtime.RuntimeEncoder):  # type: ignore[name-defined, misc]
        def default(self, obj: Any) -> Any:
            if isinstance(obj, np.ndarray) and obj.dtype != object:
                with io.BytesIO() as buffer:
                    np.save(buffer, obj, allow_pickle=False)
                    text = _base64(buffer.getvalue(), compressed=True)
                return {"__type__": "ndarray", "__value__": text}
            return super().default(obj)

    return Encoder
