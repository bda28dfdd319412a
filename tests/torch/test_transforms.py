"""`torch.func`, `torch.compile`, and everything of torch that circuits do not have."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from qailab.backends import AerBackend
from qailab.errors import EvaluationError, InputTypeError, UnsupportedError
from qailab.torch import ArgmaxQLayer, ExpectedValueQLayer, QLayer
from tests.support.circuits import ry_ansatz

KINDS = [QLayer, ExpectedValueQLayer, ArgmaxQLayer]


def layer(kind=QLayer, **options):
    return kind(ry_ansatz(), **{"shots": None, "seed": 7} | options).double()


def functions(made):
    """The layer as a function of weight and inputs, and a loss of both."""

    def outputs(weight, inputs):
        return functional_call(made, {"weight": weight}, (inputs,))

    return outputs, lambda weight, inputs: outputs(weight, inputs).square().sum()


def points(samples=3):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(samples, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_grad_and_vjp(kind):
    made = layer(kind)
    outputs, loss = functions(made)
    x = points().requires_grad_()
    loss(made.weight, x).backward()
    for found, expected in zip(
        grad(loss, argnums=(0, 1))(made.weight, x), (made.weight.grad, x.grad), strict=True
    ):
        torch.testing.assert_close(found, expected)
    value, pull_back = vjp(outputs, made.weight, x)
    torch.testing.assert_close(pull_back(2 * value)[0], made.weight.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_sample(kind):
    made = layer(kind)
    _, loss = functions(made)
    x = points()
    found = vmap(grad(loss), in_dims=(None, 0))(made.weight, x)
    for sample, gradient in zip(x, found, strict=True):
        expected = torch.autograd.grad(loss(made.weight, sample), made.weight)[0]
        torch.testing.assert_close(gradient, expected)


def test_jacobians():
    made = layer()
    outputs, _ = functions(made)
    x = points()
    for argnum, target in ((0, made.weight), (1, x)):

        def of(value, argnum=argnum):
            return outputs(*(value if i == argnum else v for i, v in enumerate((made.weight, x))))

        expected = torch.autograd.functional.jacobian(of, target)
        torch.testing.assert_close(jacrev(outputs, argnum)(made.weight, x), expected)


def test_vmap_over_weights_inputs_and_both():
    made = layer()
    outputs, loss = functions(made)
    x = points()
    weights = torch.rand(4, 4, dtype=torch.float64)
    each = torch.stack([outputs(weight, x) for weight in weights])
    torch.testing.assert_close(vmap(outputs, (0, None))(weights, x), each)
    torch.testing.assert_close(vmap(outputs, (1, None))(weights.T, x), each)
    torch.testing.assert_close(vmap(vmap(outputs, (None, 0)), (0, None))(weights, x), each)
    inside_out = vmap(vmap(outputs, (0, None)), (None, 0), out_dims=1)(weights, x)
    torch.testing.assert_close(inside_out, each)
    gradients = torch.stack([grad(loss)(weight, x) for weight in weights])
    torch.testing.assert_close(vmap(grad(loss), (0, None))(weights, x), gradients)
    assert made.weight_std_error.shape == (4, 4)


def test_vmap_is_one_evaluation_with_the_noise_of_one_batch():
    made, plain = layer(shots=50), layer(shots=50)
    outputs, _ = functions(made)
    x = points()
    mapped = vmap(outputs, in_dims=(None, 0))(plain.weight, x)
    assert torch.equal(mapped, plain(x))
    assert int(made.step) == int(plain.step) == 1
    same = vmap(outputs, in_dims=(None, 0))(plain.weight, x[:1].expand(8, 2))
    assert len(same.unique(dim=0)) > 1


def test_a_pass_that_fails_inside_a_transform_is_not_counted(monkeypatch):
    made = layer()
    made.backend = AerBackend()
    _, loss = functions(made)

    def broken(self, circuit, batch, stop):
        raise EvaluationError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(AerBackend, "probabilities", broken)
        with pytest.raises(EvaluationError):
            grad(loss)(made.weight, points())
        with pytest.raises(EvaluationError):
            vmap(made)(points())
    assert int(made.step) == 0
    grad(loss)(made.weight, points())
    assert int(made.step) == 1


class Hybrid(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.quantum, self.last = nn.Linear(2, 2), layer(), nn.Linear(4, 1)
        self.double()

    def forward(self, x):
        return self.last(self.quantum(self.first(x).sin()).cos())


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it, and hides that
def test_compile_breaks_the_graph_once_and_says_nothing():
    model, graphs = Hybrid(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    x = points()
    for _ in range(2):
        outputs = compiled(x)
    assert len(graphs) == 2
    assert int(model.quantum.step) == 2
    outputs.sum().backward()
    gradient = model.quantum.weight.grad.clone()
    model.zero_grad()
    expected = model(x)
    expected.sum().backward()
    assert torch.equal(outputs, expected)
    assert torch.equal(gradient, model.quantum.weight.grad)
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match="circuits run outside of graphs"):
        torch.compile(Hybrid(), backend=backend, fullgraph=True)(x)


def dual(made, x):
    with forward_ad.dual_level():
        return made(forward_ad.make_dual(x, x))


def penalty(made, x):
    gradient = torch.autograd.grad(made(x).sum(), made.weight, create_graph=True)[0]
    gradient.sum().backward()


def of_weight(transform, *more):
    return lambda made, x: transform(lambda w: functions(made)[1](w, x))(made.weight, *more)


# The table "not supported" of the README.
NOT_SUPPORTED = {
    "create_graph": (penalty, UnsupportedError, "create_graph"),
    "grad of grad": (
        of_weight(lambda f: grad(lambda w: grad(f)(w).sum())),
        UnsupportedError,
        "differences of first",
    ),
    "jacfwd": (of_weight(jacfwd), UnsupportedError, "use reverse mode"),
    "hessian": (of_weight(hessian), UnsupportedError, "use reverse mode"),
    "jvp": (
        lambda made, x: jvp(made, (x,), (x,)),
        UnsupportedError,
        "use reverse mode",
    ),
    "forward_ad": (dual, UnsupportedError, "use reverse mode"),
    "vectorize": (
        lambda made, x: torch.autograd.functional.jacobian(made, x, vectorize=True),
        UnsupportedError,
        "use torch.func.jacrev",
    ),
    "stack_module_state": (
        lambda made, x: vmap(lambda p, b: functional_call(made, (p, b), (x,)))(
            *stack_module_state([made, made])
        ),
        UnsupportedError,
        "in_dims=None for the buffers",
    ),
    "export": (
        lambda made, x: torch.export.export(made, (x,)),
        UnsupportedError,
        "cannot be exported",
    ),
    "complex": (lambda made, x: made(x + 0j), InputTypeError, "pass .real"),
    "integers": (lambda made, x: made(x.long()), InputTypeError, r"write .float\(\)"),
    "numpy": (lambda made, x: made(x.numpy()), InputTypeError, "write torch.as_tensor"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch's forward mode
@pytest.mark.parametrize("name", NOT_SUPPORTED)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_supported_says_so(name, kind):
    act, error, says = NOT_SUPPORTED[name]
    with pytest.raises(error, match=says):
        act(layer(kind), points())
