"""Requests to the API and its answers, apart from sockets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from qailab.rehearsal import errors
from qailab.rehearsal.errors import ApiError


@dataclass(frozen=True)
class Request:
    """A request.

    Args:
        endpoint: one of `qailab.rehearsal.endpoints.ENDPOINTS`, or ``""``.
        id: the id in its path.
        query: what follows the question mark.
        authorization: the header of that name.
        body: its body.
        outcome: kind of the fault that decides how its job ends.
    """

    endpoint: str
    id: str = ""
    query: str = ""
    authorization: str = ""
    body: bytes = b""
    outcome: str = ""

    def json(self) -> Any:
        """Its body.

        Raises:
            ApiError: 400 if it is not an object.
        """
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise ApiError(400, errors.INVALID_REQUEST, f"not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ApiError(400, errors.INVALID_REQUEST, "the body must be an object")
        return value


@dataclass(frozen=True)
class Answer:
    """An answer.

    Args:
        status: HTTP status.
        body: its body.
        headers: beside those of every answer.
        job: the id of the job it is about.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    job: str | None = None


def json_answer(value: Any, status: int = 200, job: str | None = None) -> Answer:
    """An answer of JSON."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"}, job)


def error_answer(error: ApiError) -> Answer:
    """An error in the form IBM's API has them."""
    what = {
        "code": error.code,
        "message": error.message,
        "solution": error.solution,
        "more_info": "https://quantum.cloud.ibm.com/docs/errors",
    }
    return json_answer({"errors": [what], "trace": "rehearsal"}, error.status)
