"""The address of a dashboard and the token for it, from options and the environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from qailab.errors import InputError

_PORT = 8265  # Ray's default for dashboards
_MODES = ("", "token", "disabled")
_SENDABLE = re.compile(r"[!-~]*")
_EXPLAINED = """\
looked in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token. Write the head's token \
(`ray get-auth-token` there) to a file that only you can read, and set RAY_AUTH_MODE=token and \
RAY_AUTH_TOKEN_PATH"""


@dataclass(frozen=True)
class Token:
    """Ray's token, as Ray itself finds it.

    Args:
        value: the token, or "" if there is none.
        source: where it is from, or where it was looked for.
        mode: RAY_AUTH_MODE: ``"token"``, ``"disabled"``, or "" if it is not set.
    """

    value: str = field(repr=False)
    source: str
    mode: str

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Token:
        """The token of this process.

        Raises:
            InputError: if its file cannot be read, it is no token, or RAY_AUTH_MODE is unknown; it
                never has the token.
        """
        mode = environment.get("RAY_AUTH_MODE", "").lower()
        if mode not in _MODES:
            raise InputError(
                f"RAY_AUTH_MODE must be token or disabled, or not be set, got {mode!r}"
            )
        saved = "~/.ray/auth_token"
        if value := environment.get("RAY_AUTH_TOKEN", "").strip():
            source = "RAY_AUTH_TOKEN"
        elif path := environment.get("RAY_AUTH_TOKEN_PATH"):
            source = f"RAY_AUTH_TOKEN_PATH ({path})"
            value = _read(Path(path), source)
        else:
            source, file = saved, Path(saved).expanduser()
            readable = file.is_file() and os.access(file, os.R_OK)
            value = _read(file, source) if readable else ""
        if not _SENDABLE.fullmatch(value):
            raise InputError(
                f"{source} must have one token in one line, of printable ASCII without blanks; it "
                "has something else. Write it anew (`ray get-auth-token` on the head)"
            )
        return cls(value, source, mode)

    @property
    def header(self) -> dict[str, str]:
        """What requests carry."""
        return {"Authorization": f"Bearer {self.value}"} if self.value else {}

    @staticmethod
    def missing() -> str:
        """Where tokens were looked for, and what to do."""
        return _EXPLAINED


def _read(path: Path, source: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:  # not the error itself: it may show what is in there
        raise InputError(f"{source} cannot be read: {type(error).__name__}") from None


def own_headers() -> dict[str, str]:
    """Headers for a proxy on the way, from the variable that Ray's own programs read.

    Raises:
        InputError: if it is not JSON, or a header cannot be sent; without its value.
    """
    text = os.environ.get("RAY_JOB_HEADERS")
    if not text:
        return {}
    try:
        headers = {str(name): str(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise InputError('RAY_JOB_HEADERS must be JSON, such as {"Name": "value"}') from None
    for name, value in headers.items():
        if not (name and _SENDABLE.fullmatch(name) and re.fullmatch(r"[ -~]*", value)):
            raise InputError("RAY_JOB_HEADERS must have names and values of printable ASCII")
    return headers


def normal_address(text: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The address of a dashboard, with scheme and port, also of one pasted from a browser.

    Raises:
        InputError: if there is none, it is one of another kind, or has a password in it.
    """
    given = text or environment.get("RAY_API_SERVER_ADDRESS")
    if not given and environment.get("RAY_ADDRESS", "").lower().startswith("http"):
        given = environment["RAY_ADDRESS"]  # else it is for ray.init
    if not given:
        raise InputError(
            "where is the cluster? Give --address http://HEAD:8265, the address of its dashboard, "
            "or set RAY_API_SERVER_ADDRESS"
        )
    bare = "://" not in given
    try:
        parts = urlsplit(f"http://{given.strip()}" if bare else given.strip())
        port = parts.port
    except ValueError:
        _refuse(given)
    if "@" in parts.netloc:
        raise InputError(
            f"{shown(given)} has a user or a password in it, which is not sent to dashboards: give "
            "the address without. What a proxy on the way asks for can be in RAY_JOB_HEADERS"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        _refuse(given)
    # Only where no scheme says which it is: http://HEAD may well be a proxy at port 80.
    where = f"{parts.netloc.rstrip(':')}:{_PORT}" if bare and port is None else parts.netloc
    return f"{parts.scheme}://{where.rstrip(':')}{parts.path.rstrip('/')}"


def _refuse(given: str) -> NoReturn:
    hint = " (ray:// is for ray.init)" if given.startswith("ray:") else ""
    raise InputError(
        f"{shown(given)!r} is no address of a dashboard, which is like http://HEAD:8265{hint}"
    )


def shown(address: str) -> str:
    """An address without the password that may be in it."""
    before, at, after = address.rpartition("@")
    scheme, separator, _ = before.partition("://")
    return f"{scheme + separator if separator else ''}...@{after}" if at else address
