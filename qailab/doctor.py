"""``python -m qailab.doctor [--address A] [--ibm]``: what of qailab works on this machine.

It looks at the versions, Aer, Ray, and one gradient through a Ray actor, and with ``--ibm`` at the
IBM Quantum account (nothing is run there, and no token is shown). A table says what was found, what
is wrong, and what to do. The exit code is 0 if nothing is wrong (warnings do not count), 1 if
something is, and 2 if the arguments are not valid.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import platform
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from qailab.checks import Check, Finding, findings_of, left_behind, message_of

_COLUMNS = {"check": 13, "found": 33, "OK, or what is wrong": 25, "what to do": 20}
_INSTALL = "install it again, into a fresh environment: pip install ."
_BETWEEN = " | "  # 100 characters in all
_COLOURS = {"OK": "32", "warning": "33", "wrong": "31"}
_PACKAGES = ("numpy", "qiskit", "qiskit-aer", "qiskit-ibm-runtime", "ray", "sympy", "torch")
_SECRETS = ("QISKIT_IBM_TOKEN", "RAY_AUTH_TOKEN")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and print the table.

    Args:
        arguments: the command line's, by default.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m qailab.doctor", description="Check what of qailab works on this machine."
    )
    parser.add_argument(
        "--address", help="a Ray cluster; by default RAY_ADDRESS, or a local Ray for the check"
    )
    parser.add_argument("--ibm", action="store_true", help="check the IBM Quantum account, too")
    options = parser.parse_args(arguments)
    if options.address is not None and not options.address.strip():
        parser.error("argument --address: expected host:port, got an empty text")
    with _quiet():
        return report(checks_for(options.address, ibm=options.ibm))


def checks_for(address: str | None, *, ibm: bool) -> Iterator[Check]:
    """What to look at; the next check is made when the one before is done.

    Args:
        address: a Ray cluster's, or None.
        ibm: whether to look at the IBM account.
    """
    yield Check("versions", _versions, 20, _INSTALL)
    loaded: list[str] = []
    yield Check("imports", lambda: _imports(loaded), 90, _INSTALL)
    if "qailab.backends.checkup" in loaded:
        from qailab.backends.checkup import aer_check, ibm_check

        yield aer_check()
    if "qailab.distributed.checkup" in loaded:
        from qailab.distributed.checkup import RayCheckup

        yield from RayCheckup(address).checks()
    if ibm and "qailab.backends.checkup" in loaded:
        yield ibm_check()


def report(checks: Iterable[Check]) -> int:
    """Print a table of what the checks find, row by row.

    Args:
        checks: what to look at.

    Returns:
        0 if nothing is wrong, else 1.
    """
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    secrets = [os.environ.get(name, "") for name in _SECRETS]
    wrong = warned = 0
    _write(header())
    for finding in findings_of(checks):
        wrong += finding.wrong
        warned += finding.warning and bool(finding.problem)
        _write(row(finding.without(secrets), colour=colour))
    _write(f"{wrong or 'nothing'} wrong, {warned or 'no'} warning{'s' * (warned != 1)}")
    return 1 if wrong else 0


def header() -> str:
    """The first two lines of the table."""
    titles = _BETWEEN.join(title.ljust(width) for title, width in _COLUMNS.items())
    return f"{titles.rstrip()}\n{'-+-'.join('-' * width for width in _COLUMNS.values())}"


def row(finding: Finding, *, colour: bool = False) -> str:
    """The lines of a finding, 100 characters wide at most.

    Args:
        finding: what was found.
        colour: whether to colour the verdict, for terminals.
    """
    kind = "OK" if not finding.problem else "warning" if finding.warning else "wrong"
    verdict = f"{kind}: {finding.problem}" if finding.problem else kind
    texts = (finding.check, finding.found, verdict, finding.to_do if finding.problem else "")
    cells = [
        # What is not printable (another library's colours) could garble the terminal.
        textwrap.wrap("".join(c if c.isprintable() else " " for c in text), width)
        for text, width in zip(texts, _COLUMNS.values(), strict=True)
    ]
    lines = []
    for number in range(max(map(len, cells))):
        parts = [
            (cell[number] if number < len(cell) else "").ljust(width)
            for cell, width in zip(cells, _COLUMNS.values(), strict=True)
        ]
        if colour:
            parts[2] = f"\x1b[{_COLOURS[kind]}m{parts[2]}\x1b[0m"
        lines.append(_BETWEEN.join(parts).rstrip())
    return "\n".join(lines)


def _versions() -> Iterator[Finding]:
    python, version = platform.python_version(), importlib.import_module("qailab").__version__
    here = f"{version} in {Path(__file__).parent}"
    try:
        installed = metadata.metadata("qailab")
    except metadata.PackageNotFoundError:
        yield Finding("Python", python)
        yield Finding(
            "qailab", here, "not installed: the versions it needs are not known", "pip install .",
            warning=True,
        )  # fmt: skip
        for name in _PACKAGES:
            yield _version(name, name, "")
        return
    from packaging.requirements import Requirement

    needed = installed["Requires-Python"] or ""
    fits = Requirement(f"python{needed}").specifier.contains(python, prereleases=True)
    to_do = f"use Python {needed}"
    yield Finding("Python", python, "" if fits else f"qailab needs {needed}", to_do)
    if installed["Version"] == version:
        yield Finding("qailab", here)
    else:
        yield Finding(
            "qailab",
            here,
            f"another copy, {installed['Version']}, is installed",
            "pip install . again, or start from another folder",
            warning=True,
        )
    for text in installed.get_all("Requires-Dist") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _version(requirement.name, text.partition(";")[0].strip(), requirement.specifier)


def _version(name: str, requirement: str, specifier: object) -> Finding:
    """A package's row.

    Args:
        name: the package.
        requirement: what pip can install.
        specifier: the range, as of ``packaging``; empty if it is not known.
    """
    to_do = f"pip install '{requirement}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", "qailab needs it", to_do)
    contains = getattr(specifier, "contains", None)
    fits = contains is None or contains(version, prereleases=True)
    return Finding(name, version, "" if fits else f"qailab needs {specifier}", to_do)


def _imports(loaded: list[str]) -> Iterator[Finding]:
    """Load what needs qiskit and torch; an installed library may still be broken."""
    for name in ("qailab.backends.checkup", "qailab.distributed.checkup", "qailab.torch"):
        try:
            importlib.import_module(name)
        except Exception as error:  # not only ImportError: broken libraries raise anything
            yield Finding("imports", f"{name} cannot be imported", message_of(error), _INSTALL)
        else:
            loaded.append(name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and logs of other libraries between the rows; IBM's could quote anything."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # the next check may take a minute


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    if left_behind():
        os._exit(code)  # a thread that hangs in a library would hang the interpreter's end as well
    sys.exit(code)
