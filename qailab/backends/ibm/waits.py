"""How long to wait for what, and how often to try."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from qailab.errors import InputError, InputTypeError


@dataclass(frozen=True, kw_only=True)
class IBMWaits:
    """Patience with IBM's service; each can be set where yours differs.

    Args:
        request_seconds: how long the server may be silent in answer to one request.
        patience_seconds: how long to go on after faults of network and server, which may pass.
        settle_seconds: how long a request that nobody answered may take to appear at the server.
        first_poll_seconds: the first pause between two looks at a job; then some percent of what
            was waited, up to the backend's ``poll_interval``.
        job_failures: how often jobs for the same rows may end without a result before that is an
            error.

    Raises:
        InputError: if one is not positive.
    """

    request_seconds: float = 120.0
    patience_seconds: float = 900.0
    settle_seconds: float = 10.0
    first_poll_seconds: float = 0.005
    job_failures: int = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputTypeError(f"{field.name} must be a number, got {value!r}")
            if not 0 < value < math.inf:
                raise InputError(f"{field.name} must be positive and finite, got {value!r}")
