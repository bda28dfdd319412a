"""What the cluster has installed.

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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from submission.cluster import Cluster
from submission.errors import ClusterError

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
