"""Torch functions and layers. Importing this loads neither Ray nor the IBM client."""

from qailab.torch.autograd import ArgMax, ExpVQCFunction
from qailab.torch.estimate import estimate
from qailab.torch.layers import ArgmaxQLayer, ExpectedValueQLayer, ExpQLayer, QLayer

__all__ = [
    "ArgMax",
    "ArgmaxQLayer",
    "ExpQLayer",
    "ExpVQCFunction",
    "ExpectedValueQLayer",
    "QLayer",
    "estimate",
]
