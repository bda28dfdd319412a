"""What the cluster has installed, and so what a job must bring along.

A probe is a job of its own that imports nothing but the standard library: two or three seconds,
where installing what is there already would take minutes. The next probe deletes it: Ray brings a
job back, as failed, that is deleted while its record is still being written.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qailab.errors import InputError
from submission.cluster import Cluster, ClusterError

_MARK = "qailab-probe:"
_PROGRAM = f"""
import importlib.metadata as metadata, json, platform, sys
found = {{}}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = None
print({_MARK!r} + json.dumps([platform.python_version(), sys.executable, found]))
"""
_SECONDS = 30.0
_SETTLED_SECONDS = 10.0  # after its end, a job's record is not written any more
PREFIX = "qailab-probe-"
"""How the ids of probes begin; they are no jobs of a user."""
_EXTRA = "train"  # what scripts/train needs


@dataclass(frozen=True)
class Requirements:
    """What a working directory needs.

    Args:
        wanted: requirements as pip takes them, pinned where a version is known, by package.
        source: the file they are from, for messages.
    """

    wanted: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def of(cls, root: Path) -> Requirements:
        """Those of pyproject.toml, pinned by scripts/constraints.txt; else of requirements.txt.

        Raises:
            InputError: if a file cannot be understood.
        """
        project, pins = root / "pyproject.toml", root / "scripts" / "constraints.txt"
        if project.is_file():
            try:
                table = tomllib.loads(project.read_text()).get("project", {})
            except tomllib.TOMLDecodeError as error:
                raise InputError(f"{project}: {error}") from None
            lines = table.get("dependencies", [])
            lines = [*lines, *table.get("optional-dependencies", {}).get(_EXTRA, [])]
            pinned = _parse(pins.read_text().splitlines(), pins) if pins.is_file() else {}
            wanted = _parse(lines, project)
            return cls({name: pinned.get(name, wanted[name]) for name in wanted}, project.name)
        listed = root / "requirements.txt"
        if listed.is_file():
            return cls(_parse(listed.read_text().splitlines(), listed), listed.name)
        return cls()

    def differing(self, installed: Mapping[str, str | None]) -> dict[str, str]:
        """What is missing or of another version: the requirement, by package."""
        from packaging.requirements import Requirement
        from packaging.version import Version

        different = {}
        for name, line in self.wanted.items():
            version = installed.get(name)
            # 2.13.0+cpu is 2.13.0 for this purpose: the same functions, built for the machine.
            if version is None or not Requirement(line).specifier.contains(
                Version(version).public, prereleases=True
            ):
                different[name] = line
        return different


def _parse(lines: list[str], source: Path) -> dict[str, str]:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    found = {}
    for line in lines:
        text = line.partition(" #")[0].strip()
        if not text or text.startswith(("#", "-")):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise InputError(f"{source}: {text!r} is no requirement: {error}") from None
        if requirement.marker is None or requirement.marker.evaluate():
            name = str(canonicalize_name(requirement.name))
            found[name] = f"{name}{requirement.specifier}"
    found.pop("ray", None)  # a job cannot bring another Ray; see Cluster.check_versions
    return found


@dataclass(frozen=True)
class Found:
    """What the cluster's head has.

    Args:
        python: version of the Python that jobs run.
        executable: where that is.
        installed: versions by package, None where there is none.
    """

    python: str
    executable: str
    installed: Mapping[str, str | None]


def ask(cluster: Cluster, names: list[str], python: str = "python") -> Found:
    """Run the probe.

    Args:
        cluster: the cluster.
        names: packages to look for.
        python: the command that jobs run.

    Raises:
        ClusterError: if it does not run, or not in time.
    """
    client, name = cluster.client, f"{PREFIX}{secrets.token_hex(4)}"
    entrypoint = shlex.join([python, "-c", _PROGRAM.strip(), *names])
    deadline = time.monotonic() + _SECONDS
    _delete_old(client)
    client.submit_job(entrypoint=entrypoint, submission_id=name)
    while not (info := client.get_job_info(name)).status.is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(name)
            raise ClusterError(
                f"a look at what the cluster has installed did not end in {_SECONDS:.0f} s "
                f"({info.message}). Is its head overloaded? --no-pip submits without a look"
            )
        time.sleep(0.1)
    output = client.get_job_logs(name)
    answers = [line for line in output.splitlines() if line.startswith(_MARK)]
    if not answers:
        raise ClusterError(
            f"`{python}` does not run on the cluster's head (exit status "
            f"{info.driver_exit_code}): {_last(output)}. Activate the environment there before "
            "`ray start`, or give --python with the path it has there"
        )
    found = Found(*json.loads(answers[-1].removeprefix(_MARK)))
    if cluster.python_version and found.python != cluster.python_version:
        raise ClusterError(
            f"`{python}` on the cluster's head is {found.executable}, Python {found.python}, but "
            f"Ray runs in Python {cluster.python_version} there. Activate Ray's environment before "
            "`ray start`, or give --python with its path"
        )
    return found


def _last(output: str) -> str:
    # Ray repeats the command in the log, here with the program, before or after what it printed.
    told = _PROGRAM.splitlines()[1:-1]
    lines = [
        line
        for line in output.splitlines()
        if line.strip()
        and line not in told
        and not re.search("Running entry|INFO|json.dumps", line)
    ]
    return lines[-1].strip() if lines else "it printed nothing"


def _delete_old(client: Any) -> None:
    now = time.time()
    for job in client.list_jobs():
        ended = (job.end_time or 0) / 1000
        if (job.submission_id or "").startswith(PREFIX) and 0 < ended < now - _SETTLED_SECONDS:
            with contextlib.suppress(RuntimeError):  # somebody else deletes it at this moment
                client.delete_job(job.submission_id)
