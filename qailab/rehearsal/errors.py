"""What goes wrong on the server's side, with the codes that IBM's API gives it.

Codes and texts are those of the error code registry (https://quantum.cloud.ibm.com/docs/errors) or
were seen in public reports of the client; those marked as placeholders are this server's own.
Programs should go by the HTTP status and the message.
"""

from __future__ import annotations


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        code: IBM's error code.
        message: what is wrong.
        solution: what to do about it.
    """

    def __init__(self, status: int, code: int, message: str, solution: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.solution = solution or "Verify the request and try again."


class JobError(Exception):
    """A job that was accepted but cannot run.

    Args:
        message: what is wrong.
        code: IBM's reason code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


INVALID_CREDENTIALS = 1201
TOO_MANY_REQUESTS = 1202
NOT_AUTHORIZED = 1200
BACKEND_NOT_FOUND = 1007
INVALID_REQUEST = 1210  # a placeholder
JOB_NOT_FOUND = 1291
NOT_CANCELLABLE = 1292  # a placeholder
SESSION_NOT_FOUND = 1215  # a placeholder
SESSION_CLOSED = 1217  # a placeholder
SESSION_OTHER_BACKEND = 1211  # a placeholder
OPEN_PLAN_SESSION = 1352
PENDING_JOBS = 3458
TOO_MANY_EXECUTIONS = 8044  # a placeholder
SESSION_TIME_OVER = 4001
RAN_TOO_LONG_CODE = 1305
INTERNAL = 9999  # a placeholder


def pending_jobs_error(limit: int) -> ApiError:
    """Too many jobs are queued or running."""
    return ApiError(
        400,
        PENDING_JOBS,
        f"You have reached the limit of {limit} pending jobs. Please wait for a job to complete "
        "or cancel one before submitting anything new.",
        "Wait until some previous jobs were finished, or cancel them.",
    )


def open_plan_session_error() -> ApiError:
    """Sessions need a paid plan."""
    return ApiError(
        400,
        OPEN_PLAN_SESSION,
        "You are not authorized to run a session when using the open plan.",
        "Create an instance of a different plan type or use a different execution mode.",
    )
