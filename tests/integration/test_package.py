"""What git and a fresh Python say of the package."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TOP_LEVEL = {"pyproject.toml", "qailab", "cluster", "tests", "scripts", "README.md", "LICENSE"}


def test_top_level_holds_only_what_is_fixed():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize(
    "imports",  # in this order, each with what is not to be loaded after it
    [
        {
            "qailab": ["ray", "torch", "qiskit", "numba"],
            "qailab.journal": ["ray", "torch", "qiskit"],
            "qailab.rehearsal": ["ray", "torch", "qiskit_aer", "qiskit_ibm_runtime"],
            "qailab.backends": ["ray", "torch", "qiskit_ibm_runtime", "numba"],
            "qailab.distributed": ["ray", "torch"],
            "qailab.distributed.actor": ["torch", "qiskit_ibm_runtime"],
        },
        {"qailab.torch": ["ray", "qiskit_ibm_runtime", "qiskit_aer", "numba"]},
    ],
    ids=["others", "torch"],
)
def test_imports_stay_light(imports):
    program = f"""
import importlib, sys
for module, absent in {imports!r}.items():
    importlib.import_module(module)
    print(module, *[name for name in absent if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.splitlines() == list(imports)
