"""Submit a program to a Ray cluster, and follow it there.

    scripts/submit --address http://HEAD:8265 -- scripts/train.py --epochs 3 --storage /shared/runs

The working directory goes with the job, without environments, runs, journals and keys, and without
what .gitignore and .rayignore leave out. The job runs in a copy that Ray removes afterwards: its
results belong on storage that lasts. Its output is shown until it ends. Ctrl-C leaves it running:
`ray job logs --follow ID`, `ray job stop ID` (with 30 s to save), `ray job status ID` and `ray job
list` go on from there, with --address or RAY_API_SERVER_ADDRESS.

Where the cluster wants Ray's token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or
RAY_AUTH_TOKEN; without https, send it over a tunnel: ssh -L 8265:localhost:8265 HEAD.

Exit status: the job's own; 143 if it was stopped; 130 after Ctrl-C; 75 if the cluster did not
answer for a minute; if nothing was submitted 1 for a cluster that cannot be used, else 2.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import operator
import os
import platform
import re
import secrets
import shlex
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

EXCLUDES = (
    ".git", ".venv", "venv", "__pycache__", "*.egg-info", ".*_cache", ".cache", ".hypothesis",
    ".idea", ".vscode", "node_modules", "/data/", "/runs/", "/sweeps/", "/build/", "/dist/",
    "*.pt", "*.pth", "*.sqlite*", ".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.token",
    "id_rsa*", "id_ed25519*", "auth_token*", "token", "token.*", "secrets.*", "credentials",
    "credentials.*", "!token.py", "!secrets.py", "!credentials.py", "qiskit-ibm*.json",
    ".qiskit/", ".ray/", ".ssh/", ".aws/", ".kube/", ".docker/", ".netrc", ".pypirc", ".npmrc",
)  # fmt: skip
"""What no job needs, and secrets, as patterns of .gitignore."""
_SECRET = re.compile(
    r"PASSW(OR)?D|PASSPHRASE|SECRET|CREDENTIAL|TOKEN(?!IZER)|AUTHORIZATION|COOKIE"
    r"|(API|ACCESS|PRIVATE|ACCOUNT|SIGNING|ENCRYPTION|SSH)_?KEY|(^|_)(KEY|PWD|PASS|AUTH|PAT|JWT)$"
)
_NOT_ONE = re.compile(r"|-?\d+(\.\d+)?|true|false|yes|no|on|off|none", re.IGNORECASE)
_INSTEAD = """\
Ray shows a job's variables and command line to everybody who sees its dashboard. Put secrets on the
nodes: into the environment of `ray start`, or an IBM account once into ~/.qiskit/qiskit-ibm.json
there (see cluster/README.md)."""
_VARIABLES = {
    "RAY_JOB_STOP_WAIT_TIME_S": "30",  # from SIGTERM to SIGKILL; Ray's 3 s are too few to save
    # Ray cannot send a log that is not UTF-8, whatever the head's locale is.
    "PYTHONIOENCODING": "utf-8:backslashreplace",
}
_LOST_SECONDS = 60.0  # a head that restarts, or a laptop that was closed
THERE, HERE, LOST = 1, 2, 75  # exit statuses; the last is "try again later" of sysexits.h


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit and follow; return the exit status."""
    options, words = parse(list(sys.argv[1:] if arguments is None else arguments))
    refuse_secrets(options.env, words)
    command = command_of(words, options.working_dir)
    say(f"asking {options.address} for its versions")
    headers = auth_headers(os.environ)
    check_versions(options.address, headers, options.any_version)
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.INFO)  # each closed connection, and more
    os.environ["RAY_API_SERVER_ADDRESS"] = options.address  # preferred to what it is given
    os.environ["RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"] = ""  # they are ours, without warnings
    say(f"sending {options.working_dir.resolve()}")
    runtime_env = {
        "working_dir": str(options.working_dir),
        "excludes": [*EXCLUDES, *options.exclude],
        "env_vars": _VARIABLES | options.env,
    }
    try:
        client = JobSubmissionClient(options.address, headers=headers)
        job = client.submit_job(
            entrypoint=shlex.join(command),
            submission_id=options.name or f"{Path(words[0]).stem}-{secrets.token_hex(4)}",
            runtime_env=runtime_env,
        )
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip(" .\n").splitlines()[-1:]  # it has two tracebacks
        fail(THERE, f"not submitted: {''.join(reason) or type(error).__name__}")
    at = f"--address {options.address} {job}"
    later = f"  follow it: ray job logs --follow {at}\n  stop it:   ray job stop {at}"
    say(f"job {job} submitted")
    if not options.wait:
        say(later)
        return 0
    try:
        info = follow(client, job)
    except KeyboardInterrupt:
        say(f"detached; job {job} goes on\n{later}")
        return 130
    except ConnectionError as error:
        fail(LOST, f"the cluster does not answer: {error}. Job {job} may go on\n{later}")
    status = exit_status(info)
    # Where it has an exit status, this is the end of its output once more.
    why = f": {info.message}" if info.status == "FAILED" and info.driver_exit_code is None else ""
    say(f"job {job} {info.status.value}, exit status {status}{why}")
    return status


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into our options and the words of the program."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="submit",
        usage="submit [options] -- PROGRAM [arguments]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root, add = Path(__file__).resolve().parent.parent, parser.add_argument
    add("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS"), help="the dashboard")
    add("--name", help="id of the job (default: the program's name and a random number)")
    add("--working-dir", type=Path, default=root, metavar="DIR", help="default: the repository")
    add("--env", action="append", default=[], metavar="KEY=VALUE", help="a variable; no secrets")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="as in .gitignore")
    add("--no-wait", dest="wait", action="store_false", help="do not follow the job")
    add("--any-version", action="store_true", help="do not mind other versions of Ray and Python")
    options = parser.parse_args(arguments[:at])
    if not arguments[at + 1 :]:
        parser.error("what is to run? Give it after --: submit -- scripts/train.py --epochs 3")
    if not re.fullmatch(r"https?://[^@]+", options.address or ""):
        parser.error("--address must be that of a dashboard, such as http://HEAD:8265")
    if not all(re.match(r"[A-Za-z_]\w*=", text) for text in options.env):
        parser.error("--env must be KEY=VALUE")  # without what it is: it may be a secret
    options.env = dict(text.split("=", 1) for text in options.env)
    options.address = options.address.rstrip("/")
    return options, arguments[at + 1 :]


def refuse_secrets(variables: Mapping[str, str], words: Sequence[str]) -> None:
    """Fail if a variable, or an option of the program, has the name of a secret."""
    named = list(variables.items())
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if equals or word.startswith("--"):
            named.append((name, value if equals else after))
    for name, value in named:
        plain = re.sub("[-.]", "_", name.lstrip("-")).upper()
        is_place = plain.endswith(("_FILE", "_PATH", "_DIR"))
        if _SECRET.search(plain) and not is_place and not _NOT_ONE.fullmatch(value):
            fail(HERE, f"not sent: {name} is the name of a secret. {_INSTEAD}")


def command_of(words: Sequence[str], working_dir: Path) -> list[str]:
    """Return what runs on the cluster."""
    program, *rest = words
    if (working_dir / f"{program}.py").is_file():  # scripts/train would make an environment there
        program += ".py"
    is_python = program.endswith(".py")
    if is_python and not (working_dir / program).is_file():
        fail(HERE, f"{program} is not in the working directory, {working_dir.resolve()}")
    return ["python"] * is_python + [program, *rest]


def auth_headers(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the header with Ray's token, found as Ray finds it."""
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return {}
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    try:
        token = (environment.get("RAY_AUTH_TOKEN") or path.read_text()).strip()
    except (OSError, ValueError) as error:  # not its text, which may show what is in the file
        fail(HERE, f"no token of Ray in RAY_AUTH_TOKEN or {path}: {type(error).__name__}")
    if not re.fullmatch(r"[!-~]+", token):
        fail(HERE, "Ray's token must be one line of printable ASCII, and is not")
    return {"Authorization": f"Bearer {token}"}


def check_versions(address: str, headers: Mapping[str, str], any_version: bool) -> None:
    """Fail if there is no dashboard, or if Ray or Python's minor version are others there."""
    ray_there = ask(f"{address}/api/version", headers, "ray_version")
    python = ask(f"{address}/api/v0/cluster_metadata", headers, "data", "pythonVersion")
    say(f"the cluster has Ray {ray_there}, Python {python}")
    import ray  # here, so that what is wrong is told at once

    here = [ray.__version__, *platform.python_version_tuple()[:2]]
    if [ray_there, *python.split(".")[:2]] != here and not any_version:
        said = f"here is Ray {ray.__version__}, Python {platform.python_version()}"
        fail(THERE, f"{said}: use scripts/constraints.txt on both, or give --any-version")


def ask(url: str, headers: Mapping[str, str], *names: str) -> str:
    """Ask the dashboard; Ray's client has no deadline, and would wait for minutes."""
    try:
        request = urllib.request.Request(url, headers=dict(headers))
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(functools.reduce(operator.getitem, names, json.load(answer)))
    except Exception as error:  # also of http.client, where something else listens
        if getattr(error, "code", 0) in (401, 403):
            wrong = "does not accept this token" if headers else "wants a token"
            to_do = "RAY_AUTH_TOKEN_PATH to a file with the head's (`ray get-auth-token` there)"
            fail(THERE, f"the cluster {wrong}: set RAY_AUTH_MODE=token, and {to_do}")
        to_do = "Is its head running, and can it be reached? ssh -L 8265:localhost:8265 HEAD"
        fail(THERE, f"no Ray dashboard answers at {url}: {error!r}. {to_do}")


def follow(client: Any, job: str) -> Any:
    """Show a job's output until it ends; return Ray's details of it.

    The output is asked for as a whole: a stream ends with every connection, and begins anew.
    """
    shown, answered = 0, time.monotonic()
    while True:
        began, info, problem = time.monotonic(), None, None
        try:
            info = client.get_job_info(job)  # before the output: that of an ended job is complete
            text = client.get_job_logs(job)
            print(text[shown:], end="", flush=True)
            shown = len(text)
        except (RuntimeError, OSError) as error:
            if info is None and began - answered > _LOST_SECONDS:
                raise ConnectionError(str(error)) from None
            problem = error
        if info is not None:
            answered = began
            if info.status.is_terminal():
                if problem is not None:  # output that is not UTF-8, for one
                    say(f"the end of the output cannot be read: {problem}")
                return info
        time.sleep(
            max(0.5, 9 * (time.monotonic() - began))
        )  # long outputs are asked for less often


def exit_status(info: Any) -> int:
    """Return the job's exit status, where it has one."""
    if info.status == "STOPPED":
        return 143  # as shells have it for SIGTERM, which Ray sends
    code = 0 if info.status == "SUCCEEDED" else info.driver_exit_code or 1
    return 128 - code if code < 0 else min(code, 255)


def say(text: str) -> None:
    """Tell the user; standard output is the job's."""
    print(f"submit: {text}", file=sys.stderr, flush=True)


def fail(status: int, text: str) -> NoReturn:
    """End the program."""
    say(f"error: {text}")
    sys.exit(status)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a job prints what this locale may not have
    sys.exit(main())
