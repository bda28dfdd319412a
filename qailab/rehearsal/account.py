"""The account: plans, what IBM Quantum allows under them, access tokens, and refusals.

None of the numbers was measured on hardware; every one can be replaced.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from qailab.errors import InputError

PLANS = ("open", "premium", "flex", "pay-as-you-go")
"""Plans by the names that ``GET /catalog`` answers, in lower case."""

OPEN_PLAN_PENDING_JOBS = 3
"""Queued and running jobs of the open plan (IBM Quantum documentation, instances)."""

OPEN_PLAN_JOBS_A_MINUTE = 5
"""Jobs of a user (IBM Quantum REST reference, ``POST /v1/jobs``)."""

INVALID_REQUEST = 1210
TOO_MANY_REQUESTS = 1202
INTERNAL = 9999


class ApiError(Exception):
    """A refused request or a failed job: HTTP status, IBM's code, what is wrong, what to do.

    Codes and texts are those of the error code registry (https://quantum.cloud.ibm.com/docs/errors)
    or were seen in public reports of the client; 1210 to 1217, 1292, 8044 and 9999 are
    placeholders. Programs should go by the status and the message.
    """

    retry_after: int | None = None  # seconds

    def __init__(self, status: int, code: int, message: str, solution: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message[:500]
        self.solution = solution or "Verify the request and try again."


def too_many_pending(limit: int) -> ApiError:
    """One more job than may be queued or running."""
    text = f"You have reached the limit of {limit} pending jobs. Please wait for a job to complete "
    return ApiError(400, 3458, text + "or cancel one before submitting anything new.")


def too_many_jobs(limit: int, retry_after: int) -> ApiError:
    """One more job than a minute has."""
    error = ApiError(429, TOO_MANY_REQUESTS, f"Too Many Requests: the limit is {limit} a minute.")
    error.retry_after = retry_after
    return error


@dataclass(frozen=True)
class Limits:
    """What the server refuses, and when it closes what is not used.

    Raises:
        InputError: if a limit is not positive.
    """

    executions: int = 10_000_000  # rows times shots of a job (documentation, job limits)
    pending_jobs: int | None = None  # queued and running jobs; None for what the plan allows
    jobs_a_minute: int | None = None  # that are accepted; None for what the plan allows
    job_seconds: float = 3 * 3600.0  # QPU seconds of a job (maximum execution time)
    session_seconds: float = 8 * 3600.0  # of a session's max_time (maximum execution time)
    interactive_seconds: float = 60.0  # without jobs, then a session's next one queues again
    batch_interactive_seconds: float = 1.0  # the same for a batch (its ``interactive_ttl``)
    idle_seconds: float = 1800.0  # without jobs, then a session closes (jobs in a session)
    token_seconds: float = 3600.0  # lifetime of an access token (IBM Cloud IAM)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise InputError(f"limit {name} must be positive, got {value!r}")

    def pending_jobs_of(self, plan: str) -> int | None:
        """Most queued and running jobs under a plan, None for no limit."""
        if self.pending_jobs is None and plan == "open":
            return OPEN_PLAN_PENDING_JOBS
        return self.pending_jobs

    def jobs_a_minute_of(self, plan: str) -> int | None:
        """Most jobs in a minute under a plan, None for no limit."""
        if self.jobs_a_minute is None and plan == "open":
            return OPEN_PLAN_JOBS_A_MINUTE
        return self.jobs_a_minute


class TokenIssuer:
    """Issues and checks access tokens for an API key, as IBM Cloud's identity service does."""

    def __init__(self, api_key: str, seconds: float) -> None:
        self._api_key = api_key
        self._seconds = seconds
        self._expiry: dict[str, float] = {}  # by header

    def issue(self, api_key: str) -> dict[str, Any] | None:
        """The answer of ``POST /identity/token``, None if the key is another."""
        if not hmac.compare_digest(api_key.encode(), self._api_key.encode()):
            return None
        now = time.time()
        expires = now + self._seconds
        parts = ({"alg": "HS256", "typ": "JWT"}, {"iat": int(now), "exp": expires})
        coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
        # The client looks at the times; nobody can check the signature.
        token = ".".join([*(text.rstrip("=") for text in coded), secrets.token_urlsafe(32)])
        self._expiry[f"Bearer {token}"] = expires
        kind = {"token_type": "Bearer", "refresh_token": "not_supported", "scope": "ibm openid"}
        times = {"expires_in": int(self._seconds), "expiration": int(expires)}
        return {"access_token": token, **kind, **times}

    def accepts(self, authorization: str) -> bool:
        """Whether a header ``Authorization`` gives access: a token, or the API key itself."""
        if authorization == f"apikey {self._api_key}":
            return True  # a client that cannot get a token sends it
        return self._expiry.get(authorization, 0.0) > time.time()
