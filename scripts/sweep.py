r"""Compare settings of the digits classifier: a grid of trials with Ray Tune, on one pool.

::

    trial (lr 0.01, reps 1, ...) --+
    trial (lr 0.03, reps 1, ...) --+--> LauncherPool --> Ray actors with simulators
    trial (lr 0.01, reps 2, ...) --+

Each trial is a process of its own that is handed the same pool: circuits of all trials are spread
over all actors, and none of them waits for a trial that computes on its own. A trial's weights are
those of scripts/train with its settings, and so is its folder, with a checkpoint after each epoch:
a trial that dies goes on from it, and so does --resume after Ctrl-C, SIGTERM, kill -9 and errors.
Trials that are done are not run again, and the results are those of a sweep left alone. How Ray
Tune is used is all in sweeping/session.py.

    scripts/sweep                                        12 trials, some minutes on 2 cores
    scripts/sweep --lr 0.01,0.03 --reps 1 --shots 64,exact --samples 300 --name small
    scripts/sweep --resume small                         goes on with it after Ctrl-C
    scripts/sweep --address 10.0.0.5:6379 --actors 64 --at-once 12 --sweeps-dir /storage/sweeps
    scripts/sweep --address auto --placement worker-gpus=0.25        linear layers on GPUs

It prints a table, best first, and leaves results.csv, results.json and sweep.png in
sweeps/<name>/. Exit status: 0 when all trials are done, 1 when one failed, 2 for a wrong option or
sweep, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sweeping.options import parse
from training.interrupts import Interrupts

from qailab.errors import CheckpointError, InputError, QailabError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    errors: dict[str, str] = {}
    with Interrupts() as interrupts:
        try:
            sweep = parse(arguments, __doc__ or "")
            # Here, because torch takes seconds to import: wrong options are reported at once.
            from sweeping import session

            try:
                if session.points_left(sweep):
                    session.run(sweep, errors, interrupts)
            finally:
                code = session.report(sweep, errors)
        except (InputError, CheckpointError) as error:
            print(f"sweep: error: {error}", file=sys.stderr)
            return 2
        except (QailabError, OSError) as error:
            print(f"sweep: error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"sweep: ended by {interrupts.received.name}", file=sys.stderr)
            return 128 + interrupts.received  # as shells have it
    return code


if __name__ == "__main__":
    sys.exit(main())
