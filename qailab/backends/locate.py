"""Locate the row that an evaluation fails on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError

from qailab.errors import (
    BackendBuildError,
    BudgetExceededError,
    EvaluationError,
    JournalError,
    MemoryLimitError,
    QailabError,
    TransientBackendError,
    plain,
)
from qailab.gradients.rows import FloatArray, RowBatch

Evaluate = Callable[[RowBatch], FloatArray]

_NOT_ABOUT_ROWS = (
    BackendBuildError,
    BudgetExceededError,
    CancelledError,
    JournalError,
    MemoryLimitError,
    TransientBackendError,
)


def locate_failing_row(evaluate: Evaluate, batch: RowBatch, *, idempotent: bool) -> FloatArray:
    """``evaluate(batch)``, with errors that say which row they are about.

    Where rows may be repeated, the rows are halved until the failing one is found; that costs
    about as much as running them once more. Errors of other libraries become `EvaluationError`:
    they do not always survive pickling, and an exit or interrupt in a backend would be taken for
    the death of its process.

    Args:
        evaluate: answers a batch.
        batch: the rows.
        idempotent: whether rows may run twice at no cost.

    Raises:
        BackendError: if the rows cannot be run.
        CancelledError: if the evaluation was cancelled.
    """
    try:
        return evaluate(batch)
    except _NOT_ABOUT_ROWS:
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        failing, cause = _narrowed(evaluate, batch, error) if idempotent else (batch, error)
        raise _described(cause, failing) from error


def _narrowed(
    evaluate: Evaluate, batch: RowBatch, error: BaseException
) -> tuple[RowBatch, BaseException]:
    """The smallest part that was found to fail, and its error."""
    while (halves := _halves(batch)) is not None:
        for half in halves:
            failed = _error_of(evaluate, half)
            if failed is not None:
                batch, error = half, failed
                break
        else:  # they fail only together, or not again: no single row is to blame
            break
    return batch, error


def _halves(batch: RowBatch) -> tuple[RowBatch, RowBatch] | None:
    rows = batch.rows
    groups = -(-batch.num_rows // rows.group)
    if groups < 2:
        return None
    middle = rows.start + groups // 2 * rows.group
    return batch.part(rows.start, middle), batch.part(middle, rows.stop)


def _error_of(evaluate: Evaluate, batch: RowBatch) -> BaseException | None:
    try:
        evaluate(batch)
    except _NOT_ABOUT_ROWS:
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return error
    return None


def _described(error: BaseException, batch: RowBatch) -> QailabError:
    rows = batch.rows
    where = rows.name_of(rows.start)
    if batch.num_rows > 1:
        where = f"rows {rows.start} to {rows.stop - 1}, the first being {where}"
    if isinstance(error, QailabError):
        return plain(error, f"{error} [{where}]")
    return EvaluationError(f"{type(error).__name__}: {error} [{where}]")
