"""Reaching a cluster's dashboard: address, token and versions, each with an error within seconds.

Ray's client would wait for minutes where nothing answers, prefers RAY_ADDRESS to the address it is
given, and sends a token only if RAY_AUTH_MODE says so; all of that is settled here, before it is
made. The token is in a header of its requests, and in nothing that is printed.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from qailab.errors import InputError, QailabError

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 20.0  # of a dashboard on a busy head
_PORT = 8265  # Ray's default for dashboards
_SETTINGS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class ClusterError(QailabError, RuntimeError):
    """The cluster cannot be reached, refuses, or is of another version."""


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
            InputError: if RAY_AUTH_TOKEN_PATH names no file that can be read.
        """
        mode = environment.get("RAY_AUTH_MODE", "").lower()
        if value := environment.get("RAY_AUTH_TOKEN", "").strip():
            return cls(value, "RAY_AUTH_TOKEN", mode)
        if path := environment.get("RAY_AUTH_TOKEN_PATH"):
            try:
                return cls(Path(path).read_text().strip(), f"RAY_AUTH_TOKEN_PATH ({path})", mode)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"RAY_AUTH_TOKEN_PATH is {path}, which cannot be read: {type(error).__name__}"
                ) from None
        path = Path("~/.ray/auth_token").expanduser()
        value = path.read_text().strip() if path.is_file() and os.access(path, os.R_OK) else ""
        return cls(value, "~/.ray/auth_token", mode)

    @property
    def header(self) -> dict[str, str]:
        """What requests carry."""
        return {"Authorization": f"Bearer {self.value}"} if self.value else {}


def normal_address(text: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The address of a dashboard, with scheme and port.

    Raises:
        InputError: if there is none, or it is one of another kind.
    """
    given = text or environment.get("RAY_API_SERVER_ADDRESS")
    if not given and environment.get("RAY_ADDRESS", "").startswith("http"):
        given = environment["RAY_ADDRESS"]  # else it is for ray.init
    if not given:
        raise InputError(
            "where is the cluster? Give --address http://HEAD:8265, the address of its dashboard, "
            "or set RAY_API_SERVER_ADDRESS"
        )
    address = given.strip()
    if "://" not in address:
        address = f"http://{address}" + ("" if ":" in address else f":{_PORT}")
    address = address.rstrip("/")
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InputError(
            f"{shown(given)!r} is no address of a dashboard, which is like http://HEAD:8265"
            + (" (ray:// is for ray.init)" if given.startswith("ray:") else "")
        )
    return address


def shown(address: str) -> str:
    """An address without the password that may be in it."""
    before, at, after = address.rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else address


@dataclass(frozen=True)
class Cluster:
    """A dashboard that answers.

    Args:
        address: where it is.
        client: Ray's client of it.
        ray_version: what runs there.
        python_version: what its Ray runs in, "" if it does not say.
    """

    address: str
    client: Any
    ray_version: str
    python_version: str

    @classmethod
    def reach(cls, address: str, *, ca_file: str | None = None) -> Cluster:
        """Reach it.

        Args:
            address: of `normal_address`.
            ca_file: certificates to trust for https, if not the system's.

        Raises:
            ClusterError: if nobody answers, or refuses, or is no dashboard of Ray.
        """
        token, verify = Token.here(), ca_file or True
        headers = _own_headers()
        if token.mode == "token" and not token.value and "Authorization" not in headers:
            raise ClusterError(f"RAY_AUTH_MODE is token, and there is none: {_where_tokens_are()}")
        if token.mode == "token":
            headers = token.header | headers
        answer = _ask(f"{address}/api/version", headers, verify)
        if answer.status_code == 401 and not token.mode and token.value:
            headers = token.header | headers  # asked for it, so it may have it
            answer = _ask(f"{address}/api/version", headers, verify)
        _check_answer(answer, address, token)
        details = _ask(f"{address}/api/v0/cluster_metadata", headers, verify)
        python = details.json()["data"].get("pythonVersion", "") if details.ok else ""
        client = _make_client(address, headers, verify)
        return cls(address, client, answer.json()["ray_version"], python)

    def check_versions(self) -> None:
        """Check that Ray, and Python's minor version, are the same there and here.

        Raises:
            ClusterError: if not; it has both numbers.
        """
        import ray

        here = platform.python_version()
        different = []
        if self.ray_version != ray.__version__:
            different.append(f"Ray is {self.ray_version} there and {ray.__version__} here")
        if self.python_version and _minor(self.python_version) != _minor(here):
            different.append(f"Python is {self.python_version} there and {here} here")
        if different:
            raise ClusterError(
                f"the cluster at {shown(self.address)} is another: {'; '.join(different)}. Start "
                "it with the versions of scripts/constraints.txt, or set PYTHON and submit with "
                "its own; --any-version submits all the same"
            )


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _own_headers() -> dict[str, str]:
    """Headers for a proxy on the way, from the variable that Ray's own programs read."""
    text = os.environ.get("RAY_JOB_HEADERS")
    if not text:
        return {}
    try:
        return {str(name): str(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise InputError('RAY_JOB_HEADERS must be JSON, such as {"Name": "value"}') from None


def _ask(url: str, headers: dict[str, str], verify: str | bool) -> Any:
    import requests

    address = shown(url.partition("/api/")[0])
    try:
        return requests.get(
            url, headers=headers, verify=verify, timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS)
        )
    except requests.exceptions.SSLError as error:
        raise ClusterError(
            f"no trusted connection to {address}: {_reason(error)}. Give its certificate with "
            "--ca-file, or correct http and https"
        ) from None
    except (requests.exceptions.RequestException, OSError) as error:
        raise ClusterError(
            f"no Ray dashboard answers at {address}: {_reason(error)}. Is the head running, is "
            f"this its dashboard's port (8265 by default), and can this machine reach it? "
            "From outside: ssh -L 8265:localhost:8265 HEAD, then --address http://localhost:8265"
        ) from None


def _reason(error: BaseException) -> str:
    """The innermost reason, which requests and urllib3 wrap three times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, http.client.HTTPException):
        return "what answers does not speak HTTP; ray.init and Ray's nodes have ports of their own"
    return f"{type(error).__name__}: {error}"


def _check_answer(answer: Any, address: str, token: Token) -> None:
    where = shown(address)
    if answer.status_code == 401:
        if token.mode == "disabled":
            raise ClusterError(
                f"the cluster at {where} wants a token, and RAY_AUTH_MODE is disabled; set "
                "RAY_AUTH_MODE=token"
            )
        raise ClusterError(
            f"the cluster at {where} wants a token, and there is none: {_where_tokens_are()}"
        )
    if answer.status_code == 403:
        raise ClusterError(
            f"the cluster at {where} does not accept the token of {token.source}: it is another "
            "cluster's, or old. Take the one that the head was started with "
            "(`ray get-auth-token` there)"
        )
    try:
        answer.json()["ray_version"]
    except (ValueError, KeyError, TypeError):
        raise ClusterError(
            f"something answers at {where}, but no Ray dashboard (GET /api/version: status "
            f"{answer.status_code}); correct the address or its port"
        ) from None


def _where_tokens_are() -> str:
    return (
        "looked in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token. Write the head's "
        "token (`ray get-auth-token` there) to a file that only you can read, and set "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
    )


def _make_client(address: str, headers: dict[str, str], verify: str | bool) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from requests.exceptions import RequestException

    # They tell of each upload and closed connection, from the moment they are imported.
    for name in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        """Ray's, with a deadline for each request, which it has not, and errors of one line."""

        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            more.setdefault("timeout", (_CONNECT_SECONDS, 3 * _ANSWER_SECONDS))
            try:
                return super()._do_request(method, endpoint, **more)
            except RequestException as error:
                raise ClusterError(
                    f"the cluster at {shown(address)} does not answer any more: {_reason(error)}"
                ) from None
            except AuthenticationError:
                raise ClusterError(
                    f"the cluster at {shown(address)} does not accept the token any more"
                ) from None

        def _raise_error(self, r: Any) -> NoReturn:
            # Tracebacks of two processes, one in the other: the last error is the reason.
            found = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): (.+)", r.text, re.MULTILINE)
            text = found[-1] if found else r.text.strip()[-300:] or "no reason"
            raise ClusterError(
                f"the cluster at {shown(address)} answers with status {r.status_code}: {text}"
            )

    hidden = {name: os.environ.pop(name) for name in _SETTINGS if name in os.environ}
    try:
        return Client(address, headers=dict(headers), verify=verify)
    except (RuntimeError, ConnectionError) as error:
        raise ClusterError(f"the cluster at {shown(address)} refuses: {error}") from error
    finally:
        os.environ.update(hidden)
