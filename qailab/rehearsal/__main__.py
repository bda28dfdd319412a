"""Rehearse a program that uses IBM hardware, on this machine alone.

::

    python -m qailab.rehearsal --backends manila,lagos --queue-seconds 2 --plan premium \
        --faults faults.toml -- python train.py --backend ibm

starts a server that speaks IBM Quantum's REST API on 127.0.0.1, runs the command with the client
redirected to it by environment variables, and ends with a report: a table here, ``report.json``
and ``jobs.png`` in ``--report-dir``. The exit status is the command's. Without a command it prints
the variables and serves until Ctrl-C.

The saved account and the home folder of the user are not touched; the API key is the server's own.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Self

from qailab.errors import QailabError
from qailab.rehearsal.account import PLANS
from qailab.rehearsal.faults import FaultPlan
from qailab.rehearsal.server import RehearsalServer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with these arguments, by default the process's; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = given.index("--") if "--" in given else len(given)
    options, command = _parser().parse_args(given[:at]), given[at + 1 :]
    sys.stderr.write("starting a rehearsal server, which takes a few seconds\n")
    try:
        with _Interrupts() as interrupts:
            with _server(options) as server:
                end = _run(command, server, interrupts) if command else _serve(server, interrupts)
            report = server.report(price_per_second=options.price_per_second)
            _say("\n" + report.table())
            written = report.write(options.report_dir)
    except (QailabError, OSError) as error:
        sys.stderr.write(f"python -m qailab.rehearsal: {error}\n")
        return 2
    _say("\nwritten: " + ", ".join(str(path) for path in written))
    if len(written) < 2:
        _say("no plot: it needs matplotlib (pip install 'qailab[train]')")
    return end


class _Interrupts:
    """Takes Ctrl-C and a polite kill, so that the report is written whatever happens."""

    def __init__(self) -> None:
        self.seen = threading.Event()
        self.command: subprocess.Popen[bytes] | None = None  # they are passed on to it

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._take) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        self.seen.set()
        if self.command is not None and (number != signal.SIGINT or not _is_foreground()):
            self.command.send_signal(number)


def _is_foreground() -> bool:
    """Whether Ctrl-C in the terminal reaches the command without being passed on."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m qailab.rehearsal",
        description=description,
        epilog=rest.replace("::\n", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--backends", default="manila", help="devices, separated by commas (default: manila)")
    add("--plan", default="premium", choices=PLANS, help="of the account (default: premium)")
    add("--queue-seconds", type=float, default=0.0, help="a job's time in the queue (default: 0)")
    add("--noise", action="store_true", help="run with the noise of the devices")
    add("--seed", type=int, help="of the shots (default: different ones each time)")
    add("--faults", metavar="TOML", help="a fault plan; qailab.rehearsal.faults has its format")
    add("--random-faults", metavar="SEED", type=int, help="a random plan of survivable faults")
    add("--realtime", action="store_true", help="a job takes as long as it is charged")
    add("--port", type=int, default=0, help="to listen on (default: one that is free)")
    add("--report-dir", default="runs/rehearsal", help="of the report (default: %(default)s)")
    text = "of a QPU, US dollars (default: 1.60, pay-as-you-go; 0 for the open plan)"
    add("--price-per-second", type=float, help=text)
    return parser


def _server(options: argparse.Namespace) -> RehearsalServer:
    faults = FaultPlan()
    if options.faults:
        faults = FaultPlan.from_toml(options.faults)
    elif options.random_faults is not None:
        faults = FaultPlan.random(options.random_faults)
    return RehearsalServer(
        [name for name in options.backends.split(",") if name],
        plan=options.plan,
        queue_seconds=options.queue_seconds,
        noise=options.noise,
        seed=options.seed,
        faults=faults,
        realtime=options.realtime,
        port=options.port,
    )


def _run(command: list[str], server: RehearsalServer, interrupts: _Interrupts) -> int:
    """Run the command to its end and give its exit status, as a shell would."""
    environment = os.environ | server.environment
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, (os.environ.get(name), environment[name])))
    _say(f"rehearsal of {', '.join(server.backends)} at {server.url}: {shlex.join(command)}")
    if interrupts.seen.is_set():
        return 128 + signal.SIGINT
    try:
        process = interrupts.command = subprocess.Popen(command, env=environment)
    except OSError as error:
        sys.stderr.write(f"python -m qailab.rehearsal: {command[0]}: {error.strerror}\n")
        return 127
    status = process.wait()
    return status if status >= 0 else 128 - status


def _serve(server: RehearsalServer, interrupts: _Interrupts) -> int:
    for name, value in server.environment.items():
        _say(f"export {name}={shlex.quote(value)}")
    _say("# Ctrl-C ends the rehearsal")
    interrupts.seen.wait()
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
