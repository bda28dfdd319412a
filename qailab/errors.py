"""The errors of qailab, one tree.

::

    QailabError
    ├── InputError (ValueError)             features, weights, shots, seeds, options
    │   └── InputTypeError (TypeError)      a tensor of the wrong dtype, an option of the wrong type
    ├── UnsupportedError (NotImplementedError)  a derivative or transform that there is not
    ├── CircuitError (ValueError)           a circuit that cannot be measured or differentiated
    ├── BackendError (RuntimeError)         where circuits run
    │   ├── BackendBuildError               a simulator or session that cannot be built here
    │   ├── MemoryLimitError                a circuit that does not fit the machine's memory
    │   ├── EvaluationError                 rows that a backend failed to evaluate
    │   ├── BudgetExceededError             a job that would pass the budget; it is not sent
    │   └── TransientBackendError           a fault of the place: the same rows may run again
    ├── PoolError (RuntimeError)            many backends at once
    │   ├── PoolClosedError                 a pool used after ``close``
    │   └── PoolExhaustedError              no actor is left to run on
    ├── JournalError (RuntimeError)         a journal that cannot be used: another model's, not one
    └── CheckpointError (RuntimeError)      a run that cannot be resumed

Every class takes one message, so that errors survive pickling between processes.
"""


class QailabError(Exception):
    """Base of every error that qailab raises on purpose."""


class InputError(QailabError, ValueError):
    """A value that was passed in is not usable: features, weights, shots, seeds or options."""


class InputTypeError(InputError, TypeError):
    """A value that was passed in has the wrong type or dtype."""


class UnsupportedError(QailabError, NotImplementedError):
    """A derivative or a transform of torch that circuits do not have."""


class CircuitError(QailabError, ValueError):
    """A circuit cannot be measured or differentiated; the message names the instruction."""


class BackendError(QailabError, RuntimeError):
    """Something is wrong where circuits run."""


class BackendBuildError(BackendError):
    """A backend cannot be built on this machine."""


class MemoryLimitError(BackendError):
    """A circuit needs more memory than the backend may use; the message says how much."""


class EvaluationError(BackendError):
    """A backend failed on some rows for a reason that another try would not change."""


class BudgetExceededError(BackendError):
    """The next job would pass the budget; it was not sent."""


class TransientBackendError(BackendError):
    """A job failed for a reason of its place and time; the same rows may be run again."""


class PoolError(QailabError, RuntimeError):
    """Something is wrong with a pool of launchers."""


class PoolClosedError(PoolError):
    """A pool was used after it was closed."""


class PoolExhaustedError(PoolError):
    """No actor of a pool is left to run on."""


class JournalError(QailabError, RuntimeError):
    """A journal of hardware jobs cannot be used: it is another model's, or no journal at all."""


class CheckpointError(QailabError, RuntimeError):
    """A run cannot be resumed from a checkpoint."""


def plain(error: QailabError, text: str | None = None) -> QailabError:
    """An error as the nearest class of this module: it survives pickling, and keeps its kind.

    Args:
        error: an error, perhaps of a class of somebody's own with other arguments.
        text: what it is to say; by default what it says.
    """
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == __name__)
    name = "" if kind is type(error) else f"{type(error).__name__}: "
    made: QailabError = kind(name + (str(error) if text is None else text))
    return made
