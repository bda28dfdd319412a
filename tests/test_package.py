import doctest
import importlib
from pathlib import Path

import pytest

import qailab

ROOT = Path(qailab.__file__).parent
EXAMPLES = [path for path in sorted(ROOT.rglob("*.py")) if ">>>" in path.read_text()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_docstrings(path):
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_names_are_found_where_they_live():
    from qailab import AerBackend, LauncherPool, QLayer, build_circuit
    from qailab.backends import AerBackend as aer
    from qailab.circuit import build_circuit as build
    from qailab.distributed import LauncherPool as pool
    from qailab.torch import QLayer as layer

    assert (AerBackend, LauncherPool, QLayer, build_circuit) == (aer, pool, layer, build)
    for name in ("IBMBackend", "RotationalEncoder", "ExpectedValueQLayer"):
        assert name in dir(qailab)
        assert getattr(qailab, name).__name__ == name


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="'qailab' has no attribute 'QLayr'"):
        _ = qailab.QLayr
    with pytest.raises(ImportError, match="QLayr"):
        from qailab import QLayr  # noqa: F401
