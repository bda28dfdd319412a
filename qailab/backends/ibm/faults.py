"""What an error of IBM's client means: retry, look first, or give up.

The client wraps errors in one another, and pickling loses what they wrap, so they are classified
here, where they happen, and raised as one `RequestError`, whose text has no secret. What they say
is matched by HTTP status and IBM's error codes where there are any, and by words where not.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

PENDING_LIMIT_CODE = 3458
"""The plan's limit of jobs that wait is reached. (qiskit-ibm-runtime's and IBM's error lists,
https://quantum.cloud.ibm.com/docs/errors)"""

_CODE = re.compile(r'"?code"?\s*[:=]\s*"?(\d{4,5})')
_PENDING = re.compile(
    r"pending job|(?=.*\bjobs?\b)(?=.*\b(limit|maximum|too many)\b)"
    r"(?=.*\b(queued?|wait\w*|pending)\b)",
    re.IGNORECASE | re.DOTALL,
)
_NO_SESSIONS = re.compile(
    r"(?=.*\b(sessions?|batch|dedicated)\b)"
    r"(?=.*(\bplan\b|not (support|authori[sz]ed|available|allowed|permitted|enabled)))",
    re.IGNORECASE | re.DOTALL,
)
_GARBLED = {  # an answer that is not what it should be: cut off, or a proxy's
    "AttributeError", "IndexError", "KeyError", "TypeError", "UnicodeDecodeError",
    "ValidationError", "JSONDecodeError",
}  # fmt: skip
_NETWORK = {
    "ConnectionError", "Timeout", "ProxyError", "ChunkedEncodingError", "TimeoutError",
    "RetryError", "JSONDecodeError", "MaxRetryError", "DeadlinePassed",
    "RequestsApiError",  # without a status: the connection failed
    # Of a device that was there before: the client takes a listing that failed for an empty one.
    "QiskitBackendNotFoundError",
}  # fmt: skip
_LOST_WORDS = ("connection", "timed out", "max retries", "too many 5", "remote end closed")
_NOT_PROCESSED = {408, 425, 429}  # try again, nothing was done
_LONGEST_TEXT = 600


class FaultKind(Enum):
    """Whether a request may be repeated."""

    REFUSED = auto()  # answered with no, and will be again
    BUSY = auto()  # answered with "not now": nothing was done
    LOST = auto()  # nobody knows whether it was carried out


@dataclass(frozen=True)
class Fault:
    """What went wrong with a request.

    Args:
        text: what the client said, without tokens.
        status: the HTTP status; None if there was no answer.
        code: IBM's error code.
        retry_after: seconds that the server asks to wait.
        names: names of the errors' classes, their bases included.
        cause: what the first of the errors said, without tokens.
    """

    kind: FaultKind
    text: str
    status: int | None = None
    code: int | None = None
    retry_after: float | None = None
    names: frozenset[str] = frozenset()
    cause: str = ""

    @property
    def is_slow(self) -> bool:
        """Whether there was no answer in time: the request may still be on its way."""
        return bool({"ReadTimeout", "DeadlinePassed"} & self.names)

    @property
    def is_pending_limit(self) -> bool:
        """Whether too many jobs wait already."""
        if self.kind is FaultKind.LOST:
            return False
        return self.code == PENDING_LIMIT_CODE or (
            self.status in (400, 403, 409, 429) and bool(_PENDING.search(self.text))
        )

    @property
    def is_session_gone(self) -> bool:
        """Whether the session may take no more jobs; whoever asks for its state will know.

        How a server says so differs, so that its words do not decide.
        """
        return self.kind is FaultKind.REFUSED and self.status not in (None, 401, 413)

    @property
    def is_session_refused(self) -> bool:
        """Whether the plan has no sessions."""
        return self.status in (400, 403) and bool(_NO_SESSIONS.search(self.text))

    @property
    def is_unauthorized(self) -> bool:
        """Whether the account, or its API key, is refused."""
        return self.status in (401, 403) and not self.is_session_refused

    def __str__(self) -> str:
        status = f" (HTTP {self.status})" if self.status is not None else ""
        if self.is_unauthorized:
            return f"IBM refuses the account or its API key{status}: {self.text}"
        return f"{self.text}{status}"


class RequestError(Exception):
    """A request to the service failed. It keeps nothing of the client's error but the fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def classify(error: BaseException) -> Fault:
    """Tell what an error of IBM's client means."""
    chain = chain_of(error)
    names = frozenset(kind.__name__ for one in chain for kind in type(one).__mro__)
    statuses = [s for one in chain if (s := _status(one)) is not None]
    status = 401 if "IBMNotAuthorizedError" in names else statuses[-1] if statuses else None
    code = _CODE.search(" ".join(map(str, chain)))
    pauses = [seconds for one in chain if (seconds := _retry_after(one)) is not None]
    fault = Fault(
        FaultKind.LOST,
        text=redact(str(error)) or type(error).__name__,
        status=status,
        code=int(code[1]) if code else None,
        retry_after=pauses[0] if pauses else None,
        names=names,
        cause=redact(str(chain[-1])),
    )
    if status is not None:
        if status in _NOT_PROCESSED:
            return replace(fault, kind=FaultKind.BUSY)
        # 5xx: an error may come after the work was done.
        return replace(fault, kind=FaultKind.REFUSED) if 400 <= status < 500 else fault
    if type(error).__name__ in _GARBLED:
        text = f"the answer cannot be read ({type(error).__name__}: {fault.text})"
        return replace(fault, text=text)
    # Some were wrapped without a trace: 'Connection aborted', 'too many 500 ...'.
    lost = names & _NETWORK or any(word in fault.text.lower() for word in _LOST_WORDS)
    return fault if lost else replace(fault, kind=FaultKind.REFUSED)


def redact(text: str) -> str:
    """A text on one line, shortened, without any API key that this process could use."""
    for token in known_tokens():
        if token:
            text = text.replace(token, "***")
    return " ".join(text.split())[:_LONGEST_TEXT]


def known_tokens() -> list[str]:
    """The API keys that this process could use, to keep them out of what is shown."""
    tokens = [os.environ.get("QISKIT_IBM_TOKEN", "")]
    try:
        accounts = json.loads((Path.home() / ".qiskit" / "qiskit-ibm.json").read_text())
        tokens += [str(account.get("token", "")) for account in accounts.values()]
    except (OSError, ValueError, AttributeError, RuntimeError):
        pass  # the client says what is wrong with the file
    return [part for token in tokens for part in (token, token.strip())]


def chain_of(error: BaseException) -> list[BaseException]:
    """An error and what it came from."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        # ``raise ... from None`` hides the context, but keeps it.
        at = at.__cause__ or at.__context__
    return chain


def _status(error: BaseException) -> int | None:
    own: Any = getattr(error, "status_code", None)
    if not isinstance(own, int) or own <= 0:
        own = getattr(getattr(error, "response", None), "status_code", None)
    return own if isinstance(own, int) and own > 0 else None


def _retry_after(error: BaseException) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return max(0.0, float(headers["Retry-After"]))
    except (KeyError, TypeError, ValueError):
        return None
