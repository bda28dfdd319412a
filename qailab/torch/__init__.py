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

__all__ = [
    "ArgMax",
    "ArgmaxQLayer",
    "ExpQLayer",
    "ExpVQCFunction",
    "ExpectedValueQLayer",
    "ObservableQLayer",
    "QLayer",
    "estimate_cost",
]

__getattr__ = renamed(__name__, {"estimate": "estimate_cost"})
