"""The layout and the one-way dependencies of the design, read from the import statements."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qailab"

MAY_USE = {
    "errors": set(),
    "arguments": {"errors"},
    "deprecation": set(),
    "checks": {"errors"},
    "circuit": {"errors", "arguments"},
    "gradients": {"errors", "arguments", "circuit"},
    "journal": {"errors", "arguments"},
    "backends": {"errors", "arguments", "checks", "circuit", "gradients", "journal"},
    "launchers": {"errors", "arguments", "circuit", "gradients", "backends"},
    "distributed": {"errors", "arguments", "circuit", "gradients", "backends", "launchers"}
    | {"checks"},
    "torch": {"errors", "arguments", "circuit", "gradients", "backends", "launchers"},
    # The other side of the network: it must not know what talks to it.
    "rehearsal": {"errors", "arguments"},
}
MAY_USE["doctor"] = set(MAY_USE)  # it looks at everything
ONLY_IN = {
    "ray": {"distributed"},
    "torch": {"torch"},
    "qiskit_aer": {"backends", "rehearsal"},
    "qiskit_ibm_runtime": {"backends", "rehearsal"},
}
TOP_LEVEL = {"pyproject.toml", "qailab", "cluster", "tests", "scripts", "README.md", "LICENSE"}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module


def folder_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    here = folder_of(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "qailab" and here != "__init__":
            assert parts[1] == here or parts[1] in MAY_USE[here], f"{path} imports {name}"
        elif parts[0] in ONLY_IN:
            assert here in ONLY_IN[parts[0]], f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_documented_and_not_long(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert text.count("\n") <= 320, f"{path} is long: is it more than one thing?"
    assert path.name not in ("utils.py", "config.py")


def test_every_folder_is_in_the_design():
    folders = {folder_of(path) for path in modules()} - {"__init__"}
    assert folders == set(MAY_USE)


def test_top_level_holds_only_what_is_fixed():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("qailab.torch", ["ray", "qiskit_ibm_runtime"]),
        ("qailab", ["ray", "torch", "qiskit"]),
        ("qailab.distributed.actor", ["torch", "qiskit_ibm_runtime"]),
        ("qailab.distributed", ["ray", "torch"]),
        ("qailab.backends", ["ray", "torch", "qiskit_ibm_runtime"]),
        ("qailab.rehearsal", ["ray", "torch", "qiskit_aer", "qiskit_ibm_runtime"]),
        ("qailab.journal", ["ray", "torch", "qiskit"]),
    ],
)
def test_imports_stay_light(module, absent):
    program = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.strip() == "[]"
