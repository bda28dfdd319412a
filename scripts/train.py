"""Train a hybrid classifier on handwritten digits; every gradient is evaluated by Ray actors.

::

    64 pixels -> linear -> 6 angles -> circuit of 6 qubits -> 64 probabilities -> linear -> 10

The data ships inside scikit-learn. The circuit and its gradients run on a local Ray with one Aer
simulator for each core, or on the cluster at --address. A run leaves its settings, metrics.jsonl
(a line for each epoch), checkpoint.pt, curves.png and confusion.png in runs/<name>/.

A checkpoint is saved after each epoch, and on Ctrl-C, SIGTERM and errors. --resume goes on from it
and ends with the same weights, bit for bit, as if nothing had happened. The weights depend on the
seed, not on the number of actors.

    scripts/train                                    about 95 % in a minute on 2 cores
    scripts/train --epochs 20 --name long            longer, in runs/long
    scripts/train --resume long                      goes on with it after Ctrl-C
    scripts/train --resume long --epochs 30          ten epochs more
    scripts/train --backend aer-noisy --samples 400  on noisy simulators, some 30 times slower
    scripts/train --address 10.0.0.5:6379 --actors 64

Exit status: 0 when done, 1 after an error, 2 for a wrong option or run, 130 after Ctrl-C, 143
after SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.interrupts import Interrupts
from training.options import parse

from qailab.errors import CheckpointError, InputError, QailabError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    with Interrupts() as interrupts:
        try:
            options = parse(arguments, __doc__ or "")
            # Here, because torch takes seconds to import: wrong options are reported at once.
            from training.session import Session

            Session.prepare(options).run(interrupts)
        except (InputError, CheckpointError) as error:
            print(f"train: error: {error}", file=sys.stderr)
            return 2
        except (QailabError, OSError) as error:
            print(f"train: error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"train: ended by {interrupts.received.name}", file=sys.stderr)
            return 128 + interrupts.received  # as shells have it
    return 0


if __name__ == "__main__":
    sys.exit(main())
