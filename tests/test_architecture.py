"""The layout, the one-way dependencies and the habits of the design, read from the sources."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qailab"

ALL = {"errors", "arguments", "deprecation"}
MAY_USE = {
    "errors": set(),
    "deprecation": set(),
    "arguments": {"errors"},
    "circuit": ALL,
    "gradients": ALL | {"circuit"},
    "journal": ALL,
    "backends": ALL | {"circuit", "gradients", "journal"},
    "launchers": ALL | {"circuit", "gradients", "backends"},
    "distributed": ALL | {"circuit", "gradients", "backends", "launchers"},
    "torch": ALL | {"circuit", "gradients", "backends", "launchers"},
    "training": ALL | {"gradients", "backends", "launchers", "torch"},
    "rehearsal": ALL | {"circuit", "gradients", "backends"},  # the other side of the network
}
MAY_USE["doctor"] = set(MAY_USE)  # it looks at everything
ONLY_IN = {
    "llvmlite": {"backends"},
    "numba": {"backends"},
    "ray": {"distributed", "doctor"},
    "torch": {"torch", "training"},
    "qiskit_aer": {"backends", "rehearsal", "doctor"},
    "qiskit_ibm_runtime": {"backends", "rehearsal", "doctor"},
}

FOREIGN_PRIVATE_NAMES: dict[str, str] = {
    "ray._private": "for ray_constants",
    "ray._private.ray_constants": "a local Ray listens on 127.0.0.1 although ray was imported "
    "before: its variable is read at import, and a port on the network lets anybody run code",
    "ray.experimental": "for tqdm_ray",
    "ray.experimental.tqdm_ray": "Ray's only bar that the driver draws for its workers",
    # Also `_session` of an API client, which is a name of our own elsewhere.
    "_api_clients": "IBM's client gives its HTTP sessions no timeout, and sends jobs twice: both "
    "are set on the sessions, to which there is no public way (backends/ibm/transport.py)",
}
"""Private names of other libraries that are used all the same, each with its reason."""

MAX_LINES = 600  # a module is one idea; most have 100 to 500
MAX_FUNCTION_LINES = 60  # without its docstring


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


MODULES = sources("qailab")
OWN_CODE = sources("qailab", "scripts")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_dependencies_point_one_way():
    for path in MODULES:
        here = folder_of(path)
        for name in imported(tree_of(path)):
            parts = name.split(".")
            if parts[0] == "qailab" and len(parts) > 1 and here != "__init__":
                assert parts[1] == here or parts[1] in MAY_USE[here], f"{path} imports {name}"
            elif parts[0] in ONLY_IN:
                assert here in ONLY_IN[parts[0]], f"{path} imports {name}"


def test_no_two_modules_import_each_other():
    """Nor three in a circle, wherever in a module the import stands."""
    module_of = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    graph = {
        name: {other for other in imported(tree_of(path)) if other in module_of and other != name}
        for name, path in module_of.items()
    }
    list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_modules_are_documented_and_of_a_readable_length():
    for path in OWN_CODE:
        text, tree = path.read_text(), tree_of(path)
        assert ast.get_docstring(tree), f"{path} has no docstring"
        assert text.count("\n") <= MAX_LINES, f"{path} is long: is it more than one idea?"
        assert path.name not in ("utils.py", "config.py", "helpers.py")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {lines} lines"


def test_frozen_means_frozen():
    """`object.__setattr__` belongs into `__post_init__`, where a frozen value is being made."""
    for path in (path for path in MODULES if "__setattr__" in path.read_text()):
        allowed = {
            id(node)
            for function in ast.walk(tree_of(path))
            if isinstance(function, ast.FunctionDef) and function.name == "__post_init__"
            for node in ast.walk(function)
        }
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and node.attr == "__setattr__":
                assert id(node) in allowed, f"{path}:{node.lineno} writes to a frozen value"


def is_private(name: str) -> bool:
    public = ("_", "_exit")  # os._exit is documented
    return name.startswith("_") and not name.startswith("__") and name not in public


def own_names() -> set[str]:
    """Every private name that our own code defines or assigns."""
    names = set()
    for path in OWN_CODE:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.arg | ast.keyword) and node.arg:
                names.add(node.arg)
    return {name for name in names if is_private(name)}


def foreign_private_names() -> Iterator[tuple[str, str]]:
    own = own_names()
    for path in OWN_CODE:
        for name in imported(tree_of(path)):
            if not name.startswith(("qailab", "__future__")):
                private = any(is_private(part) for part in name.split("."))
                if private or name.startswith("ray.experimental"):
                    yield named(path), name
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
                yield named(path), node.attr


def test_private_names_of_other_libraries_are_all_listed():
    found = {name: path for path, name in foreign_private_names()}
    unlisted = {name: path for name, path in found.items() if name not in FOREIGN_PRIVATE_NAMES}
    assert not unlisted, "use a public way, or list the name with its reason"
    assert set(FOREIGN_PRIVATE_NAMES) <= set(found), "some are no longer used"


def test_every_folder_is_in_the_design():
    folders = {folder_of(path) for path in MODULES} - {"__init__"}
    assert folders == set(MAY_USE)
