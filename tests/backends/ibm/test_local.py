"""IBM's local testing mode: no network, no account."""

import numpy as np
import pytest

from qailab.backends import IBMBackend
from qailab.backends.ibm.programs import compile_program, counts_of
from qailab.errors import BackendError
from tests.backends.ibm.conftest import FakeManilaV2
from tests.support.contracts import BackendContract, forward_batch, model


class TestOnIdealSimulator(BackendContract):
    cuts = 5

    def backend(self):
        from qiskit_aer import AerSimulator

        return IBMBackend(AerSimulator(max_parallel_threads=1))


class TestOnFakeDevice(BackendContract):
    cuts = 1
    noiseless = False

    def backend(self):
        return IBMBackend(FakeManilaV2())


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_compiled_circuits_take_the_angles_that_are_left(level):
    _, canonical, _, _ = model(measure_qubits=[2, 0])
    program = compile_program(canonical, FakeManilaV2(), optimization_level=level, seed=0)
    assert len(program.columns) == program.circuit.num_parameters <= canonical.num_angles
    names = [canonical.angles[column].name for column in program.columns]
    assert names == [parameter.name for parameter in program.circuit.parameters]
    assert not program.circuit.parameters & getattr(
        program.circuit.global_phase, "parameters", set()
    )


def test_bits_of_any_registers_and_widths_are_counted_like_qiskit_does():
    from qiskit.primitives import BitArray, DataBin, PrimitiveResult, SamplerPubResult

    rng = np.random.default_rng(0)
    for registers in ([3], [8], [9], [17], [2, 3], [5, 6, 7]):
        bits = [rng.integers(0, 2, size=(4, 50, size)).astype(bool) for size in registers]
        arrays = {f"c{i}": BitArray.from_bool_array(b, order="little") for i, b in enumerate(bits)}
        pub = SamplerPubResult(DataBin(**arrays, shape=(4,)))
        counts = counts_of(PrimitiveResult([pub]), sum(registers), 4, 50)
        joined = pub.join_data()
        for row in range(4):
            expected = np.zeros(1 << sum(registers), dtype=int)
            for outcome, count in joined.get_int_counts(row).items():
                expected[outcome] = count
            np.testing.assert_array_equal(counts[row], expected)


def test_what_does_not_fit_a_device_is_said_before_anything_runs():
    _, canonical, angle_map, values = model(qubits=6)
    with pytest.raises(BackendError, match="6 qubits, and fake_manila has 5"):
        IBMBackend(FakeManilaV2()).validate(canonical, 100)
    with pytest.raises(BackendError, match="6 qubits, and fake_manila has 5"):
        IBMBackend(FakeManilaV2()).evaluate(canonical, forward_batch(angle_map, values, 10))
    with pytest.raises(BackendError, match="shots=None"):
        IBMBackend(FakeManilaV2()).validate(canonical, None)
