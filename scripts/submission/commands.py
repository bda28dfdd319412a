"""What ``scripts/submit.py`` does: submit a program, or answer a question about jobs."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from qailab.errors import InputError
from submission import packing, probe, secrecy
from submission.cluster import Cluster, ClusterError, Token, normal_address, shown
from submission.following import exit_status, follow
from submission.options import Place, Question, Submission

STOP_SECONDS = 30
"""From SIGTERM to SIGKILL of a stopped job; Ray's 3 are too few to save a checkpoint."""
_STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"


def submit(options: Submission) -> int:
    """Submit, and follow if wanted; the exit status."""
    package = packing.collect(options.working_dir, options.excludes)
    words = command(options.words, options.python, package)
    name = options.name or _new_name(options.words)
    known = secrecy.Known.here()
    secrecy.check_entrypoint(options.words)
    known.check("the command line", "\0".join([*options.words, name]))
    for variable, value in options.variables.items():
        known.check(f"the variable {variable}", value)
    environment: dict[str, Any] = {
        "env_vars": {_STOP_VARIABLE: str(STOP_SECONDS)} | options.variables
    }
    with tempfile.TemporaryDirectory(prefix="qailab-submit-") as folder:
        archive = Path(folder) / "package.zip"
        packed = package.write(archive, options.limit, known)
        _show_package(package, packed, options.limit)
        if options.dry_run:
            print(ray_line(options, name, words, environment))
            return 0
        cluster = _reach(options.place)
        if not options.any_version:
            cluster.check_versions()
        environment |= _requirements(cluster, options)
        _warn_of_lost_results(options.words)
        environment["working_dir"] = str(archive)
        _send(cluster, name, words, environment)
    _say(f"job {name} submitted")
    if not options.wait:
        _say(_how_to(name, options.place, "follow"))
        return 0
    return _follow(cluster, name, options.place)


def answer(question: Question) -> int:
    """Answer a question about jobs; the exit status."""
    cluster = _reach(question.place)
    client = cluster.client
    if question.command == "list":
        jobs = sorted(_submissions(client), key=lambda job: job.start_time or 0)
        for job in jobs:
            print(_line(job))
        if not jobs:
            _say("no jobs were submitted to this cluster")
        return 0
    job = _find(client, question.job)
    name = job.submission_id
    if question.command == "status":
        print(_line(job))
        if job.message:
            print(_indented(job.message))
    elif question.command == "logs":
        if question.follow:
            return _follow(cluster, name, question.place)
        sys.stdout.write(client.get_job_logs(name))
    else:
        return _stop(client, job)
    return 0


def command(words: tuple[str, ...], python: str, package: packing.Package) -> list[str]:
    """What runs on the cluster.

    Args:
        words: the program and its arguments, as given.
        python: what runs programs of Python there.
        package: what goes.

    Raises:
        InputError: if the program does not go with the job.
    """
    program = PurePosixPath(words[0])
    inside = str(program)
    if program.suffix != ".py":
        twin = f"{inside}.py"
        if inside in package.files and twin in package.files:
            raise InputError(
                f"{inside} would install an environment on the cluster; submit {twin} instead"
            )
        return list(words)
    if inside not in package.files and not program.is_absolute():
        raise InputError(
            f"{inside} is not among the {len(package.files)} files that go with the job, of "
            f"{package.root}; correct its path, which is relative to the working directory"
        )
    return [python, *words]


def ray_line(options: Submission, name: str, words: list[str], environment: dict[str, Any]) -> str:
    """The ``ray job submit`` line that does the same."""
    try:
        address = shown(normal_address(options.place.address))
    except InputError:
        address = "http://HEAD:8265"
    full = environment | {"excludes": packing.all_excludes(options.excludes)}
    if options.pip:
        full |= _pip(probe.Requirements.of(options.working_dir).wanted)
    line = ["ray", "job", "submit", "--address", address, "--submission-id", name]
    line += ["--working-dir", str(options.working_dir), "--runtime-env-json", json.dumps(full)]
    line += [] if options.wait else ["--no-wait"]
    return shlex.join([*line, "--", *words])


def _reach(place: Place) -> Cluster:
    address = normal_address(place.address)
    host = urlsplit(address).hostname or ""
    local = host == "localhost" or host.startswith("127.") or host == "::1"
    cluster = Cluster.reach(address, ca_file=place.ca_file)
    if address.startswith("http:") and not local and Token.here().value:
        _say("the token goes over http, which others can read; better over https or ssh -L")
    return cluster


def _requirements(cluster: Cluster, options: Submission) -> dict[str, Any]:
    """What has to be installed for the job."""
    needed = probe.Requirements.of(options.working_dir)
    versions = f"Ray {cluster.ray_version}, Python {cluster.python_version or 'unknown'}"
    if options.pip is not None:
        wanted = needed.wanted if options.pip else {}
    else:
        found = probe.ask(cluster, list(needed.wanted), options.python)
        wanted = needed.differing(found.installed)
        for name in wanted:
            _say(f"  {wanted[name]} is wanted, the cluster has {found.installed[name] or 'none'}")
    if wanted:
        said = (
            f"installing {len(wanted)} of {len(needed.wanted)} packages for the job: minutes, as "
            "Ray copies its environment first; better install them on the nodes"
        )
    elif options.pip is None and needed.wanted:
        said = f"it has what {needed.source} asks for"
    else:
        said = "nothing is installed for the job"
    _say(f"cluster {shown(cluster.address)}: {versions}; {said}")
    return _pip(wanted)


def _pip(wanted: Any) -> dict[str, Any]:
    return {"pip": {"packages": sorted(wanted.values()), "pip_check": False}} if wanted else {}


def _send(cluster: Cluster, name: str, words: list[str], environment: dict[str, Any]) -> None:
    try:
        cluster.client.submit_job(
            entrypoint=shlex.join(words), submission_id=name, runtime_env=environment
        )
    except KeyboardInterrupt:
        _say(f"interrupted; whether {name} was submitted, `submit list` tells")
        raise
    except ClusterError as error:
        if "already exists" in str(error):
            raise InputError(
                f"--name {name}: the cluster has a job of this name already; an id is used once. "
                "Give another, or none"
            ) from None
        raise


def _follow(cluster: Cluster, name: str, place: Place) -> int:
    try:
        info = follow(cluster.client, name)
    except KeyboardInterrupt:
        _say(f"detached; job {name} goes on")
        _say(_how_to(name, place, "follow", "stop"))
        return 130
    except ClusterError:
        _say(_how_to(name, place, "follow"))
        raise
    status = exit_status(info)
    seconds = ((info.end_time or 0) - (info.start_time or 0)) / 1000
    said = {"SUCCEEDED": "succeeded", "STOPPED": "was stopped"}.get(
        info.status, f"failed with exit status {status}"
    )
    _say(f"job {name} {said} after {seconds:.1f} s")
    if info.status == "FAILED" and info.driver_exit_code is None:  # else its output says why
        _say(_indented(info.message or "Ray does not say why"))
    return status


def _stop(client: Any, job: Any) -> int:
    name = job.submission_id
    if job.status.is_terminal():
        _say(f"job {name} has ended already: {job.status.value}")
        return 0
    client.stop_job(name)
    deadline = time.monotonic() + STOP_SECONDS + 15
    while not (job := client.get_job_info(name)).status.is_terminal():
        if time.monotonic() > deadline:
            raise ClusterError(f"job {name} was asked to stop, and is still {job.status.value}")
        time.sleep(0.2)
    _say(f"job {name}: {job.status.value}")
    return 0


def _submissions(client: Any) -> list[Any]:
    """The jobs that were submitted; Ray also lists drivers that connected by themselves."""
    jobs = [job for job in client.list_jobs() if job.submission_id]
    return [job for job in jobs if not job.submission_id.startswith(probe.PREFIX)]


def _find(client: Any, name: str | None) -> Any:
    jobs = _submissions(client)
    found = [job for job in jobs if name in (None, job.submission_id, job.job_id)]
    if found:
        return max(found, key=lambda job: job.start_time or 0)
    latest = sorted(jobs, key=lambda job: -(job.start_time or 0))[:5]
    known = ", ".join(job.submission_id for job in latest) or "none"
    raise InputError(f"the cluster has no job {name or ''}; its latest: {known}")


def _line(job: Any) -> str:
    began = datetime.fromtimestamp((job.start_time or 0) / 1000)
    end = job.end_time / 1000 if job.end_time else time.time()
    code = f" (exit status {job.driver_exit_code})" if job.driver_exit_code else ""
    ran = f"{end - (job.start_time or 0) / 1000:.0f} s"
    return (
        f"{job.submission_id}  {job.status.value}{code}  {began:%Y-%m-%d %H:%M:%S}, {ran}  "
        f"{job.entrypoint}"
    )


def _show_package(package: packing.Package, packed: int, limit: int) -> None:
    _say(
        f"sending {len(package.files)} files of {package.root}: {packing.size(package.total)}, "
        f"{packing.size(packed)} packed, of at most {packing.size(limit)}"
    )
    largest = (f"{name} {packing.size(count)}" for name, count in package.largest())
    _say(f"  largest: {', '.join(largest)}")
    if package.secret:
        _say(f"  left out, as they look like secrets: {', '.join(package.secret)}")
    if package.skipped:
        _say(f"  left out, as links that lead elsewhere: {', '.join(package.skipped)}")


def _warn_of_lost_results(words: tuple[str, ...]) -> None:
    programs = {PurePosixPath(word).name for word in words[:2]}  # perhaps after `python`
    if "train.py" in programs and not any(
        word.startswith(("--runs-dir", "--storage", "--estimate")) for word in words
    ):
        _say(
            "note: runs/ is in the job's directory, which Ray removes with the job; a directory "
            "that the nodes share, such as --runs-dir /shared/runs, keeps results and checkpoints"
        )


def _how_to(name: str, place: Place, *commands: str) -> str:
    where = f" --address {shown(place.address)}" if place.address else ""
    lines = {
        "follow": f"  to follow it: scripts/submit logs --follow {name}{where}",
        "stop": f"  to stop it:   scripts/submit stop {name}{where}",
    }
    return "\n".join(lines[one] for one in commands)


def _new_name(words: tuple[str, ...]) -> str:
    stem = PurePosixPath(words[0]).stem
    kept = "".join(c for c in stem if c.isascii() and (c.isalnum() or c in "_-")) or "job"
    return f"{kept}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())


def _say(text: str) -> None:
    print(f"submit: {text}" if not text.startswith(" ") else text, file=sys.stderr, flush=True)
