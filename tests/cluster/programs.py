"""Programs that come with Python packages, and stand beside the interpreter."""

import sys
from pathlib import Path


def program(name):
    """The path of an installed program; the tests need it."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{path} is not installed; it is in the dev extra"
    return str(path)
