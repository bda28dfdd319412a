import copy
import io
import pickle

import pytest
from qiskit import qpy
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit

from qailab.errors import CircuitError, InputError, InputTypeError
from qailab.launchers import CircuitProblem
from tests.support.circuits import ry_ansatz

x, y, z = (Parameter(name) for name in "xyz")


def circuit(*parameters):
    made = QuantumCircuit(1)
    for parameter in parameters:
        made.ry(parameter, 0)
    made.measure_all()
    return made


def test_groups_by_prefix_in_qiskits_order():
    parameters = [Parameter(name) for name in ("weight10", "input1", "weight2", "input0")]
    problem = CircuitProblem(circuit(*parameters))
    assert [p.name for p in problem.input_parameters] == ["input0", "input1"]
    assert [p.name for p in problem.weight_parameters] == ["weight10", "weight2"]


def test_a_group_that_is_given_takes_its_parameters_from_the_other():
    weight_a, weight_b = Parameter("weight_a"), Parameter("weight_b")
    problem = CircuitProblem(circuit(weight_a, weight_b), input_params=[weight_b])
    assert problem.input_parameters == (weight_b,)
    assert problem.weight_parameters == (weight_a,)


def test_vectors_sort_by_index():
    weights = ParameterVector("weight", 12)
    problem = CircuitProblem(circuit(*reversed(list(weights))))
    assert list(problem.weight_parameters) == list(weights)


def test_given_groups_keep_the_given_order():
    problem = CircuitProblem(circuit(x, y, z), input_params=[z, x], weight_params=[y])
    assert problem.input_parameters == (z, x)
    assert problem.weight_parameters == (y,)
    assert (problem.num_inputs, problem.num_weights, problem.num_outcomes) == (2, 1, 2)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({}, "in neither group: x, y"),
        ({"input_params": [x]}, "in neither group: y"),
        ({"input_params": [x, y], "weight_params": [y]}, "in both groups: y"),
        ({"input_params": [x, y, z]}, "not in the circuit: z"),
    ],
)
def test_groups_that_do_not_fit(groups, says):
    with pytest.raises(CircuitError, match=says):
        CircuitProblem(circuit(x, y), **groups)


def test_a_parameter_named_twice():
    with pytest.raises(InputError, match="twice"):
        CircuitProblem(circuit(x), input_params=[x, x])


@pytest.mark.parametrize("arguments", [("not a circuit",), (circuit(x), ["x"]), (circuit(x), x)])
def test_wrong_types(arguments):
    with pytest.raises(InputTypeError, match="must"):
        CircuitProblem(*arguments)


def test_copies_are_the_same_problem():
    problem = CircuitProblem(ry_ansatz())
    buffer = io.BytesIO()
    qpy.dump(problem.circuit, buffer)
    buffer.seek(0)
    loaded = CircuitProblem(qpy.load(buffer)[0])
    for copied in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem)), loaded):
        assert copied.canonical.key == problem.canonical.key
        assert copied.input_parameters == problem.input_parameters
        assert copied.weight_parameters == problem.weight_parameters


def test_the_key_names_what_is_computed():
    def key(angle, *more, **groups):
        return CircuitProblem(circuit(angle, *more), **groups).key

    a, b = Parameter("input_a"), Parameter("input_b")
    assert key(a) == key(Parameter("input_other")) == key(2 * a - a)
    assert len({key(a), key(2 * a), key(a + 1), key(a * a), key(a.exp())}) == 5
    assert key(a, b) != key(a, b, input_params=[b, a])
    assert key(a, b) != key(a, b, input_params=[a], weight_params=[b])
    assert key((a - 1).log()) == key((a - 1).log()) != key((a - 2).log())
    assert pickle.loads(pickle.dumps(CircuitProblem(circuit(a, b)))).key == key(a, b)
