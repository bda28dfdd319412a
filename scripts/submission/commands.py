"""What ``scripts/submit.py`` does: submit a program, or answer a question about jobs."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
import tempfile
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from qailab.errors import InputError
from submission import jobs, packing, probe, secrecy
from submission.access import Token, normal_address, shown
from submission.cluster import Cluster
from submission.errors import ClusterError
from submission.following import exit_status, follow
from submission.jobs import how_to, indented, say
from submission.options import Place, Question, Submission
from submission.requirements import Requirements

_VARIABLES = {
    jobs.STOP_VARIABLE: str(jobs.STOP_SECONDS),
    # Ray cannot send a log that is not UTF-8, whatever the head's locale is.
    "PYTHONIOENCODING": "utf-8:backslashreplace",
    "QAILAB_PROGRESS": "2",  # seconds between the states of the bar, which wants a terminal
}
"""The job's environment, where the user does not say otherwise."""


def submit(options: Submission) -> int:
    """Submit, and follow if wanted; the exit status."""
    package = packing.collect(options.working_dir, options.excludes, options.limit)
    words = command(options.words, options.python, package)
    name = options.name or _new_name(options.words)
    known = secrecy.Known.here(allowed=options.allowed)
    secrecy.check_entrypoint(options.words, options.allowed)
    known.check("the command line", "\0".join([*options.words, name]))
    for variable, value in options.variables.items():
        known.check(f"the variable {variable}", value)
    needed = Requirements() if options.pip is False else Requirements.of(options.working_dir)
    secrecy.check_requirements(needed.wanted.values(), known)
    environment: dict[str, Any] = {"env_vars": _VARIABLES | options.variables}
    with tempfile.TemporaryDirectory(prefix="qailab-submit-") as folder:
        archive = Path(folder) / "package.zip"
        packed = package.write(archive, options.limit, known)
        _show_package(package, packed, options.limit)
        if options.dry_run:
            given = environment | {"excludes": list(package.excludes)}
            print(
                ray_line(options, name, words, given | _pip(needed.wanted if options.pip else {}))
            )
            return 0
        cluster = _reach(options.place)
        if not options.any_version:
            cluster.check_versions()
        jobs.check_run_is_free(cluster.client, options.words, options.place)
        environment |= install(cluster, needed, options)
        _warn_of_lost_results(options.words)
        environment["working_dir"] = str(archive)
        _send(cluster, name, words, environment, options.place)
    say(f"job {name} submitted")
    if not options.wait:
        say(how_to(name, options.place, "follow"))
        return 0
    return _follow(cluster, name, options.place)


def answer(question: Question) -> int:
    """Answer a question about jobs; the exit status."""
    cluster = _reach(question.place)
    client = cluster.client
    if question.command == "list":
        found = sorted(jobs.submitted(client), key=lambda job: job.start_time or 0)
        for job in found:
            print(jobs.line(job))
        if not found:
            say("no job was submitted to this cluster yet")
        return 0
    job = jobs.find(client, question.job)
    name = job.submission_id
    if question.command == "status":
        print(jobs.line(job))
        if job.message:
            print(indented(job.message))
    elif question.command == "logs":
        if question.follow:
            return _follow(cluster, name, question.place)
        sys.stdout.write(client.get_job_logs(name))
    else:
        return jobs.stop(client, job)
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
    if inside in package.secret:
        raise InputError(f"{inside} has a private key or a token in it, and does not go with a job")
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
    line = ["ray", "job", "submit", "--address", address, "--submission-id", name]
    line += ["--working-dir", str(options.working_dir)]
    line += ["--runtime-env-json", json.dumps(environment)]
    line += [] if options.wait else ["--no-wait"]
    return shlex.join([*line, "--", *words])


def _reach(place: Place) -> Cluster:
    address = normal_address(place.address)
    host = urlsplit(address).hostname or ""
    local = host == "localhost" or host.startswith("127.") or host == "::1"
    cluster = Cluster.reach(address, ca_file=place.ca_file)
    if address.startswith("http:") and not local and Token.here().value:
        say("the token goes over http, which others can read; better over https or ssh -L")
    return cluster


def install(cluster: Cluster, needed: Requirements, options: Submission) -> dict[str, Any]:
    """What has to be installed for the job, as a part of its runtime environment."""
    versions = f"Ray {cluster.ray_version}, Python {cluster.python_version or 'unknown'}"
    if options.pip is not None:
        wanted = needed.wanted if options.pip else {}
    else:
        found = probe.ask(cluster, list(needed.wanted), options.python)
        wanted = needed.differing(found.installed)
        for name in wanted:
            say(f"  {wanted[name]} is wanted, the cluster has {found.installed[name] or 'none'}")
    if wanted:
        said = (
            f"installing {len(wanted)} of {len(needed.wanted)} packages for the job: minutes, as "
            "Ray copies its environment first; better install them on the nodes"
        )
    elif options.pip is None and needed.wanted:
        said = f"it has what {needed.source} asks for"
    else:
        said = "nothing is installed for the job"
    say(f"cluster {shown(cluster.address)}: {versions}; {said}")
    if needed.ignored:
        say(f"  not understood, and not installed: {', '.join(needed.ignored)}")
    return _pip(wanted)


def _pip(wanted: Any) -> dict[str, Any]:
    return {"pip": {"packages": sorted(wanted.values()), "pip_check": False}} if wanted else {}


def _send(
    cluster: Cluster, name: str, words: list[str], environment: dict[str, Any], place: Place
) -> None:
    try:
        cluster.client.submit_job(
            entrypoint=shlex.join(words), submission_id=name, runtime_env=environment
        )
    except KeyboardInterrupt:
        say(f"interrupted; whether {name} was submitted, `submit list` tells")
        raise
    except ClusterError as error:
        if "already exists" not in str(error):
            raise
        status = cluster.client.get_job_info(name).status
        ended = status.is_terminal()
        raise InputError(
            f"--name {name}: the cluster has a job of this name already, which "
            + (f"has ended ({status.value})" if ended else f"is {status.value}")
            + "; an id is used once. Give another, or none"
            + ("" if ended else "\n" + how_to(name, place, "follow", "stop"))
        ) from None


def _follow(cluster: Cluster, name: str, place: Place) -> int:
    try:
        info = follow(cluster.client, name)
    except KeyboardInterrupt:
        say(f"detached; job {name} goes on")
        say(how_to(name, place, "follow", "stop"))
        return 130
    except ClusterError:
        say(how_to(name, place, "follow"))
        raise
    status = exit_status(info)
    seconds = ((info.end_time or 0) - (info.start_time or 0)) / 1000
    said = {"SUCCEEDED": "succeeded", "STOPPED": "was stopped"}.get(
        info.status, f"failed with exit status {status}"
    )
    say(f"job {name} {said} after {seconds:.1f} s")
    if info.status == "FAILED" and info.driver_exit_code is None:  # else its output says why
        say(indented(info.message or "Ray does not say why"))
    return status


def _show_package(package: packing.Package, packed: int, limit: int) -> None:
    say(
        f"sending {len(package.files)} files of {package.root}: {packing.size(package.total)}, "
        f"{packing.size(packed)} packed, of at most {packing.size(limit)}"
    )
    largest = (f"{name} {packing.size(count)}" for name, count in package.largest())
    say(f"  largest: {', '.join(largest)}")
    if package.secret:
        say(f"  left out, as they look like secrets: {', '.join(package.secret)}")
    if package.skipped:
        say(f"  left out, as links to what does not go: {', '.join(package.skipped)}")
    if package.unreadable:
        say(f"  left out, as they cannot be read: {', '.join(package.unreadable)}")


def _warn_of_lost_results(words: tuple[str, ...]) -> None:
    programs = {PurePosixPath(word).name for word in words[:2]}  # perhaps after `python`
    if "train.py" in programs and not any(
        word.startswith(("--runs-dir", "--storage", "--estimate")) for word in words
    ):
        say(
            "note: runs/ is in the job's directory, which Ray removes with the job; a directory "
            "that the nodes share, such as --runs-dir /shared/runs, keeps results and checkpoints"
        )


def _new_name(words: tuple[str, ...]) -> str:
    stem = PurePosixPath(words[0]).stem
    kept = "".join(c for c in stem if c.isascii() and (c.isalnum() or c in "_-")) or "job"
    return f"{kept}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
