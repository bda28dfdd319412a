"""Torch functions and layers. Importing this loads neither Ray nor the IBM client."""

from qailab.deprecation import renamed
from qailab.torch.autograd import ArgMax, ExpVQCFunction
from qailab.torch.cost import estimate_cost
from qailab.torch.layers import (
    ArgmaxQLayer,
    ExpectedValueQLayer,
    ExpQLayer,
    ObservableQLayer,
    QLayer,
)
from qailab.torch.parallel import ParallelQLayers, evaluate
from qailab.torch.passes import OutputHandle

__all__ = [
    "ArgMax",
    "ArgmaxQLayer",
    "ExpQLayer",
    "ExpVQCFunction",
    "ExpectedValueQLayer",
    "ObservableQLayer",
    "OutputHandle",
    "ParallelQLayers",
    "QLayer",
    "estimate_cost",
    "evaluate",
]

__getattr__ = renamed(__name__, {"estimate": "estimate_cost"})
