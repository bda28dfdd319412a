"""Submit a program to a Ray cluster, and follow it there.

::

    scripts/submit --address http://HEAD:8265 -- scripts/train.py --epochs 3 --runs-dir /shared/runs

The working directory goes with the job, without data, runs, environments, caches and whatever
.gitignore or .rayignore leave out; it is told what goes, and more than --max-size is refused. The
job starts in a copy of it on the head, which Ray removes afterwards: give the program a place for
its results that lasts. Everything after -- is the program's own, and a program that ends in .py is
run by the cluster's Python; inside a job, Ray's address is known to it.

What is installed on the cluster is compared with pyproject.toml as scripts/constraints.txt pins it
(or requirements.txt of --working-dir), and only what differs is installed for the job: that takes
minutes the first time, because Ray copies its own environment for it.

The output of the job is shown until it ends. Ctrl-C leaves the job alone:

    scripts/submit --no-wait -- scripts/train.py --epochs 20   only tell its id
    scripts/submit status                                      of the latest job, or of an ID
    scripts/submit logs --follow ID                            its output until it ends
    scripts/submit stop ID                                     with 30 s to save a checkpoint
    scripts/submit list                                        all jobs
    scripts/submit --dry-run -- scripts/train.py               what would go, and Ray's line for it

The address may be in RAY_API_SERVER_ADDRESS. Where the cluster wants Ray's token, it is taken
from RAY_AUTH_TOKEN, from the file of RAY_AUTH_TOKEN_PATH, or from ~/.ray/auth_token; without
https, send it over a tunnel: ssh -L 8265:localhost:8265 HEAD.

Secrets do not travel: Ray shows a job's environment to everybody who sees the dashboard. Files
that look like secrets are left out and named; variables and arguments that do are refused, unless
--allow-env names them. Refused is also what has one of these in it, as it is written, of 12
characters or more: a secret in the environment of this program, Ray's token, the IBM accounts
saved in ~/.qiskit. What is no secret by its name, its form or one of these is not found. The
devices' account belongs on the nodes that run them, in the environment of `ray start` or in the
file that Qiskit saves it in.

A run of scripts/train.py (--name in --storage or --runs-dir) that a job works at is not submitted
again until that job has ended.

Exit status: the job's own; 143 if it was stopped; 130 after Ctrl-C, which leaves it running; 75 if
the connection was lost for a minute while the job was followed: it may go on. If nothing was
submitted: 1 for a cluster that cannot be reached or refuses, 2 for what is wrong here.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from submission.errors import LostError
from submission.options import Submission, parse

from qailab.errors import InputError, QailabError

LOST = 75
"""Exit status of a connection that was lost: "try again later", as sysexits.h has it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a job prints what this locale may not have
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments, __doc__ or "")
        # Here, because Ray takes a moment to import: wrong options are reported at once.
        from submission import commands

        if isinstance(options, Submission):
            return commands.submit(options)
        return commands.answer(options)
    except InputError as error:
        print(f"submit: error: {error}", file=sys.stderr)
        return 2
    except LostError as error:
        print(f"submit: error: {error}", file=sys.stderr)
        return LOST
    except (QailabError, OSError) as error:
        print(f"submit: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("submit: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
