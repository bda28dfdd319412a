"""What an error of IBM's client means: try again, look first, or give up.

The client wraps errors in one another, and pickling loses what they wrap, so they are classified
here, where they happen. What they say is matched by HTTP status and IBM's own error codes where
they have one, and by words where they have none.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["refused", "busy", "lost"]

PENDING_LIMIT_CODE = 3458
"""The plan's limit of jobs that wait is reached. (qiskit-ibm-runtime's and IBM's error lists,
https://quantum.cloud.ibm.com/docs/errors)"""
RAN_TOO_LONG_CODE = 1305
"""A job passed the time it may take."""

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
    "AttributeError",
    "IndexError",
    "KeyError",
    "TypeError",
    "UnicodeDecodeError",
    "ValidationError",
    "JSONDecodeError",
}
_NOT_PROCESSED = {408, 425, 429}  # try again, nothing was done
_NETWORK = {
    "ConnectionError",
    "Timeout",
    "ConnectTimeout",
    "ReadTimeout",
    "ProxyError",
    "ChunkedEncodingError",
    "TimeoutError",
    "RetryError",
    "JSONDecodeError",  # an answer that was cut off, or a proxy's page
    "RequestsApiError",  # without a status: the connection failed
    "MaxRetryError",
    "DeadlinePassed",
    # Of a device that was there before: the client takes a listing that failed for an empty one.
    "QiskitBackendNotFoundError",
}


@dataclass(frozen=True)
class Fault:
    """What went wrong with a request.

    Args:
        kind: *refused*: it was answered with no, and will be again; *busy*: it was answered with
            "not now", and nothing was done; *lost*: nobody knows whether it was carried out.
        text: what the client said, without tokens.
        status: the HTTP status; None if there was no answer.
        code: IBM's error code; None if there is none.
        retry_after: seconds that the server asks to wait.
        slow: whether it was no answer in time, and the request may still be on its way.
    """

    kind: Kind
    text: str
    status: int | None = None
    code: int | None = None
    retry_after: float | None = None
    slow: bool = False

    @property
    def is_pending_limit(self) -> bool:
        """Whether too many jobs wait already."""
        if self.code == PENDING_LIMIT_CODE:
            return True
        return self.status in (400, 403, 409, 429) and bool(_PENDING.search(self.text))

    @property
    def is_session_gone(self) -> bool:
        """Whether the session may take no more jobs; whoever asks for its state will know.

        How a server says so differs, so that its words do not decide.
        """
        return self.kind == "refused" and self.status not in (None, 401, 413)

    @property
    def is_session_refused(self) -> bool:
        """Whether the plan has no sessions."""
        return self.status in (400, 403) and bool(_NO_SESSIONS.search(self.text))

    @property
    def is_unauthorized(self) -> bool:
        """Whether the account, or its API key, is refused."""
        return self.status in (401, 403) and not self.is_session_refused


def classify(error: BaseException) -> Fault:
    """What an error of IBM's client means.

    Args:
        error: what it raised.
    """
    chain = chain_of(error)
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    statuses = [s for one in chain if isinstance(s := _status(one), int) and s > 0]
    status = statuses[-1] if statuses else None
    text = without_tokens(_text(error))
    code_found = _CODE.search(" ".join(str(one) for one in chain))
    code = int(code_found[1]) if code_found else None
    slow = bool({"ReadTimeout", "DeadlinePassed"} & kinds)
    if "IBMNotAuthorizedError" in kinds:
        status = 401
    waits = [seconds for one in chain if (seconds := _retry_after(one)) is not None]
    retry_after = waits[0] if waits else None

    def fault(kind: Kind) -> Fault:
        return Fault(kind, text, status, code, retry_after, slow)

    if status is not None and status in _NOT_PROCESSED:
        return fault("busy")
    if status is not None and 400 <= status < 500:
        return fault("refused")
    if status is not None:  # 5xx: an error may come after the work was done
        return fault("lost")
    if type(error).__name__ in _GARBLED:
        text = f"the answer cannot be read ({type(error).__name__}: {text})"
        return fault("lost")
    return fault("lost" if kinds & _NETWORK or _sounds_lost(text) else "refused")


def chain_of(error: BaseException) -> list[BaseException]:
    """Return an error and what it came from, also where ``raise ... from None`` hides that."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    return chain


def known_tokens() -> list[str]:
    """Return the tokens that this process could use, to keep them out of what is shown."""
    tokens = [os.environ.get("QISKIT_IBM_TOKEN", "")]
    try:
        accounts = json.loads((Path.home() / ".qiskit" / "qiskit-ibm.json").read_text())
        tokens += [str(account.get("token", "")) for account in accounts.values()]
    except (OSError, ValueError, AttributeError):  # the client says what is wrong with the file
        pass
    return [part for token in tokens for part in (token, token.strip())]


def without_tokens(text: str) -> str:
    """A text without any API key that this process could use."""
    for token in known_tokens():
        if token:
            text = text.replace(token, "***")
    return text


def _text(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return message[:600] or type(error).__name__


def _status(error: BaseException) -> int | None:
    status: Any = getattr(error, "status_code", None)
    if isinstance(status, int) and status > 0:
        return status
    response = getattr(error, "response", None)
    found = getattr(response, "status_code", None)
    return found if isinstance(found, int) else None


def _retry_after(error: BaseException) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return float(headers["Retry-After"])
    except (KeyError, TypeError, ValueError):
        return None


def _sounds_lost(text: str) -> bool:
    """For errors that were wrapped without a trace: 'Connection aborted', 'too many 500 ...'."""
    words = text.lower()
    return any(
        sign in words
        for sign in ("connection", "timed out", "max retries", "too many 5", "remote end closed")
    )
