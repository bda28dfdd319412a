"""The endpoints of IBM Quantum's REST API that the client uses."""

from __future__ import annotations

import re

BASE = "/experimental"
"""Where the API is. The client takes a URL as it is, port included, only with this word in it."""

ENDPOINTS = (
    "POST /identity/token",
    "POST /v3/resources/search",
    "GET /catalog/ID",
    "GET /instances/usage",
    "GET /backends",
    "GET /backends/ID/configuration",
    "GET /backends/ID/properties",
    "GET /backends/ID/status",
    "POST /sessions",
    "GET /sessions/ID",
    "PATCH /sessions/ID",
    "DELETE /sessions/ID/close",
    "POST /jobs",
    "GET /jobs",
    "GET /jobs/ID",
    "DELETE /jobs/ID",
    "GET /jobs/ID/results",
    "GET /jobs/ID/metrics",
    "GET /jobs/ID/logs",
    "POST /jobs/ID/cancel",
    "PUT /jobs/ID/tags",
)
"""Method and path template of each; all but the first three are under `BASE`."""


def _pattern(endpoint: str) -> re.Pattern[str]:
    method, path = endpoint.split()
    base = "" if path.startswith(("/identity", "/v3", "/catalog")) else BASE
    return re.compile(f"{method} {base}{path.replace('ID', '([^/]+)')}")


_PATTERNS = tuple((endpoint, _pattern(endpoint)) for endpoint in ENDPOINTS)


def find_endpoint(method: str, path: str) -> tuple[str, str]:
    """The endpoint of a request, and the id in its path.

    Args:
        method: the HTTP method.
        path: the path without query.

    Returns:
        One of `ENDPOINTS` and the id, each ``""`` if there is none.

    >>> find_endpoint("GET", "/experimental/jobs/d1b2/results")
    ('GET /jobs/ID/results', 'd1b2')
    """
    for endpoint, pattern in _PATTERNS:
        found = pattern.fullmatch(f"{method} {path}")
        if found:
            return endpoint, found[1] if found.groups() else ""
    return "", ""
