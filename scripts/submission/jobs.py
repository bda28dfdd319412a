"""The jobs of a cluster: finding one, telling about it, stopping it, and the run that it works at.

A run of scripts/train.py outlives its jobs: it is what --storage, or --runs-dir, and --name say.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from qailab.errors import InputError
from submission import probe
from submission.access import shown
from submission.errors import ClusterError
from submission.options import Place

STOP_SECONDS = 30
"""From SIGTERM to SIGKILL of a stopped job; Ray's 3 are too few to save a checkpoint."""
STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"


def submitted(client: Any) -> list[Any]:
    """The jobs that were submitted; Ray also lists drivers that connected by themselves."""
    jobs = [job for job in client.list_jobs() if job.submission_id]
    return [job for job in jobs if not job.submission_id.startswith(probe.PREFIX)]


def find(client: Any, name: str | None) -> Any:
    """The job with this id, or the latest.

    Raises:
        InputError: if there is none; it has the ids of the latest.
    """
    jobs = submitted(client)
    if not jobs:
        raise InputError("no job was submitted to this cluster yet")
    found = [job for job in jobs if name in (None, job.submission_id, job.job_id)]
    if found:
        return max(found, key=lambda job: job.start_time or 0)
    latest = sorted(jobs, key=lambda job: -(job.start_time or 0))[:5]
    known = ", ".join(job.submission_id for job in latest)
    raise InputError(f"the cluster has no job {name}; its latest: {known}")


def line(job: Any) -> str:
    """A job in one line."""
    began = datetime.fromtimestamp((job.start_time or 0) / 1000)
    end = job.end_time / 1000 if job.end_time else time.time()
    code = f" (exit status {job.driver_exit_code})" if job.driver_exit_code else ""
    ran = f"{end - (job.start_time or 0) / 1000:.0f} s"
    return (
        f"{job.submission_id}  {job.status.value}{code}  {began:%Y-%m-%d %H:%M:%S}, {ran}  "
        f"{' '.join(job.entrypoint.split())}"
    )


def stop(client: Any, job: Any) -> int:
    """Ask a job to end, and wait until it has; the exit status.

    Raises:
        ClusterError: if it is still there when Ray should have killed it.
    """
    name = job.submission_id
    if job.status.is_terminal():
        say(f"job {name} has ended already: {job.status.value}")
        return 0
    client.stop_job(name)
    seconds = _stop_seconds(job)
    say(f"job {name} is asked to stop; it has {seconds:g} s to save")
    deadline = time.monotonic() + seconds + 15
    try:
        while not (job := client.get_job_info(name)).status.is_terminal():
            if time.monotonic() > deadline:
                raise ClusterError(f"job {name} was asked to stop, and is still {job.status.value}")
            time.sleep(0.2)
    except KeyboardInterrupt:
        say(f"interrupted; job {name} will still be stopped, `submit status {name}` tells")
        return 130
    say(f"job {name}: {job.status.value}")
    return 0


def _stop_seconds(job: Any) -> float:
    """What the job was submitted with; of one that was not submitted here, Ray's own."""
    given = ((job.runtime_env or {}).get("env_vars") or {}).get(STOP_VARIABLE, "3")
    try:
        return float(given)
    except ValueError:  # Ray may not show it
        return STOP_SECONDS


def check_run_is_free(client: Any, words: Sequence[str], place: Place) -> None:
    """Check that no job works at the run that this program would work at.

    Raises:
        InputError: if one does; it has its id.
    """
    run = run_of(words)
    if run is None:
        return
    for job in submitted(client):
        if job.status.is_terminal():
            continue
        try:
            theirs = run_of(shlex.split(job.entrypoint))
        except ValueError:  # not made by submit
            continue
        if theirs == run:
            raise InputError(
                f"not sent: job {job.submission_id} is {job.status.value} with the same run, "
                f"{run[1]} in {run[0]}; two at once would spoil each other's checkpoints\n"
                + how_to(job.submission_id, place, "follow", "stop")
                + "\nor give the run another --name"
            )


def run_of(words: Sequence[str]) -> tuple[str, str] | None:
    """Where the run of a command line is kept, and its name; None if that is not said.

    Without --storage and --runs-dir, a run is in the job's own directory.
    """
    given: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in ("--name", "--resume", "--storage", "--runs-dir"):
            given[option] = (value if equals else after).rstrip("/")
    name = given.get("--resume") or given.get("--name") or ""
    place = given.get("--storage") or given.get("--runs-dir") or ""
    if "/" in name:  # --resume takes a folder, too
        place, _, name = name.rpartition("/")
    return (place, name) if place and name else None


def how_to(name: str, place: Place, *commands: str) -> str:
    """The lines that follow or stop a job."""
    where = f" --address {shown(place.address)}" if place.address else ""
    lines = {
        "follow": f"  to follow it: scripts/submit logs --follow {name}{where}",
        "stop": f"  to stop it:   scripts/submit stop {name}{where}",
    }
    return "\n".join(lines[one] for one in commands)


def indented(text: str) -> str:
    """A text of others, below a line of ours."""
    return "\n".join(f"  {line}" for line in text.strip().splitlines())


def say(text: str) -> None:
    """Tell the user; standard output is the job's."""
    print(f"submit: {text}" if not text.startswith(" ") else text, file=sys.stderr, flush=True)
