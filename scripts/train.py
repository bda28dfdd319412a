r"""Train a hybrid classifier on handwritten digits; every gradient is evaluated by Ray actors.

::

    64 pixels -> linear -> 6 angles -> circuit of 6 qubits -> 64 probabilities -> linear -> 10

The data ships inside scikit-learn. The circuit and its gradients run on a local Ray with one Aer
simulator for each core, on the cluster at --address, or with --backend ibm on devices of IBM
Quantum. A run leaves its settings, metrics.jsonl (a line for each epoch), checkpoint.pt, curves.png
and confusion.png in runs/<name>/.

A checkpoint is saved at the start, after each epoch (on hardware after each step), and on Ctrl-C,
SIGTERM and errors. --resume goes on from it and ends with the same weights, bit for bit, as if
nothing had happened. The weights depend on the seed, not on the number of actors.

    scripts/train                                    about 95 % in a minute on 2 cores
    scripts/train --epochs 20 --name long            longer, in runs/long
    scripts/train --resume long                      goes on with it after Ctrl-C
    scripts/train --resume long --epochs 30          ten epochs more
    scripts/train --backend aer-noisy --samples 400  on noisy simulators, some 30 times slower
    scripts/train --address 10.0.0.5:6379 --actors 64
    scripts/train --shots exact --dtype float64      no shot noise, and rounding of 1e-16

--workers N trains in N processes with Ray Train (gloo, or nccl on GPUs). Each takes its part of
every batch, and all make the same step with the sum of their gradients; shot noise goes by a
sample's place in the batch. So the weights are those of one worker but for the rounding of that
sum, and a run may go on with another N. The workers share one pool of actors, or with --pool
per-worker each has its part of them. When a worker dies, all go on from the last epoch. Circuits
run on all actors with one worker, too: more workers are for what a process does besides, its own
layers and handing out rows.

--placement says in one place where actors are and what each takes of its node. --storage keeps the
run in a directory that all nodes share, or at a URI: a job that was killed is submitted again as
it was, and goes on by itself. A second program at the same run waits 30 s for the first, and then
ends (by a lock in the run's folder; at a URI, by the name of the run within one Ray cluster).

    scripts/train --workers 2 --actors 4                       data-parallel on this machine
    scripts/train --address auto --workers 4 --actors 64 --storage s3://bucket/runs --name big
    scripts/train --address auto --placement actors-per-node=8,cpus=0.5 --storage /storage/runs \
        --name spread
    scripts/train --workers 2 --placement worker-gpus=1,gpus=0.25 --actors 8

On hardware a step is one job forward and one backward for each device, and no seed decides what
its shots give. What was paid for is in the journal: a run that is resumed, after kill -9 too, takes
up jobs that run and results that are there, and sends no row twice. Give --resume the same
--devices again, and the budget: without one, nothing limits what is spent.

    scripts/train --backend ibm --samples 100 --epochs 1 --estimate        what it would cost
    scripts/train --backend ibm --devices ibm_fez,ibm_torino --samples 100 --epochs 1 \
        --budget-seconds 600 --name paid                                   two devices, one gradient
    scripts/train --resume paid --devices ibm_fez,ibm_torino --budget-seconds 900
    python -m qailab.journal runs/paid/journal.sqlite                      its jobs and their cost

The same on this machine, against a server that speaks IBM's REST API and asks no money:

    python -m qailab.rehearsal --backends lagos,nairobi --queue-seconds 2 -- \
        scripts/train --backend ibm --devices ibm_lagos,ibm_nairobi --samples 100 --epochs 1

Exit status: 0 when done, 1 after an error, 2 for a wrong option or run, 130 after Ctrl-C, 143
after SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.interrupts import Interrupts
from training.options import parse

from qailab.errors import (
    BackendBuildError,
    BudgetExceededError,
    CheckpointError,
    InputError,
    JournalError,
    QailabError,
)

_SAYING_ALL = (BackendBuildError, BudgetExceededError, JournalError)
"""Errors that say what to do: where in an actor they came up is of no use to anybody."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    with Interrupts() as interrupts:
        try:
            options = parse(arguments, __doc__ or "")
            # Here, because torch takes seconds to import: wrong options are reported at once.
            from training.session import Session

            session = Session.prepare(options)
            if options.estimate:
                session.estimate()
            else:
                session.run(interrupts)
        except (InputError, CheckpointError) as error:
            print(f"train: error: {error}", file=sys.stderr)
            return 2
        except (QailabError, OSError) as error:
            print(f"train: error: {_without_traceback(error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"train: ended by {interrupts.received.name}", file=sys.stderr)
            return 128 + interrupts.received  # as shells have it
    return 0


def _without_traceback(error: Exception) -> str:
    text = str(error)
    if not isinstance(error, _SAYING_ALL):
        return text
    before, found, traceback = text.partition("RayTaskError(")  # what Ray makes of an error
    if found:
        return before + traceback.splitlines()[-1].partition(": ")[2]
    return text.partition("\nTraceback (most recent call last):")[0]


if __name__ == "__main__":
    sys.exit(main())
