"""Reaching a cluster's dashboard, each failure of it an error within seconds.

Ray's client would wait for minutes where nothing answers, prefers RAY_ADDRESS to the address it is
given, and sends a token only if RAY_AUTH_MODE says so; all of that is settled here, before it is
made. The token is in a header of its requests, and in nothing that is printed.
"""

from __future__ import annotations

import http.client
import logging
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from submission.access import Token, own_headers, shown
from submission.errors import ClusterError, OutputError

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 20.0  # of a dashboard on a busy head
_SETTINGS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


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
            InputError: if the token or the headers for a proxy cannot be sent.
        """
        token, verify = Token.here(), ca_file or True
        headers = own_headers()
        if token.mode == "token" and not token.value and "Authorization" not in headers:
            raise ClusterError(f"RAY_AUTH_MODE is token, and there is none: {Token.missing()}")
        if token.mode == "token":
            headers = token.header | headers
        answer = _ask(f"{address}/api/version", headers, verify)
        if answer.status_code == 401 and not token.mode and token.value:
            headers = token.header | headers  # asked for it, so it may have it
            answer = _ask(f"{address}/api/version", headers, verify)
        _check_answer(answer, address, token)
        version = _field(answer, "ray_version")
        if not version:
            raise ClusterError(
                f"something answers at {shown(address)}, but no Ray dashboard (GET /api/version: "
                f"status {answer.status_code}); correct the address or its port"
            )
        details = _ask(f"{address}/api/v0/cluster_metadata", headers, verify)
        python = _field(details, "data", "pythonVersion")
        return cls(address, _make_client(address, headers, verify), version, python)

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


def _field(answer: Any, *names: str) -> str:
    """A text in the JSON of an answer, "" if there is none."""
    try:
        found = answer.json()
        for name in names:
            found = found[name]
    except (ValueError, KeyError, TypeError):
        return ""
    return found if isinstance(found, str) else ""


def _unchanged(request: Any) -> Any:
    # As `auth` of requests: without one, a password of ~/.netrc would take the token's place.
    return request


def _ask(url: str, headers: dict[str, str], verify: str | bool) -> Any:
    import requests

    address = shown(url.partition("/api/")[0])
    try:
        return requests.get(
            url,
            headers=headers,
            verify=verify,
            auth=_unchanged,
            allow_redirects=False,
            timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS),
        )
    except requests.exceptions.SSLError as error:
        raise ClusterError(
            f"no trusted connection to {address}: {_reason(error)}. Give its certificate with "
            "--ca-file, or correct http and https"
        ) from None
    except (requests.exceptions.RequestException, OSError, ValueError) as error:
        raise ClusterError(
            f"no Ray dashboard answers at {address}: {_reason(error)}{_proxy(url)}. Is the head "
            "running, is this its dashboard's port (8265 by default), and can this machine reach "
            "it? From outside: ssh -L 8265:localhost:8265 HEAD, then --address "
            "http://localhost:8265"
        ) from None


def _reason(error: BaseException) -> str:
    """The innermost reason, which requests and urllib3 wrap three times."""
    from requests.exceptions import InvalidHeader

    if isinstance(error, InvalidHeader):
        return "a header cannot be sent"  # its text has the header, which may be the token
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, http.client.HTTPException):
        return "what answers does not speak HTTP; ray.init and Ray's nodes have ports of their own"
    return f"{type(error).__name__}: {error}"


def _proxy(url: str) -> str:
    """The variable of the proxy that this goes through, which may be the reason."""
    from requests.utils import should_bypass_proxies

    names = (f"{urlsplit(url).scheme}_proxy", "all_proxy")
    found = [v for name in names for v in (name, name.upper()) if os.environ.get(v)]
    if not found or should_bypass_proxies(url, no_proxy=None):
        return ""
    return f" (through the proxy of {found[0]}; NO_PROXY names hosts without)"


def _check_answer(answer: Any, address: str, token: Token) -> None:
    where, status = shown(address), answer.status_code
    if status == 401:
        if token.mode == "disabled":
            raise ClusterError(
                f"the cluster at {where} wants a token, and RAY_AUTH_MODE is disabled; set "
                "RAY_AUTH_MODE=token"
            )
        raise ClusterError(
            f"the cluster at {where} wants a token, and there is none: {Token.missing()}"
        )
    if status == 403:
        raise ClusterError(
            f"the cluster at {where} does not accept the token of {token.source}: it is another "
            "cluster's, or old. Take the one that the head was started with "
            "(`ray get-auth-token` there)"
        )
    if 300 <= status < 400:
        target = shown(answer.headers.get("Location", "nowhere").partition("?")[0])
        raise ClusterError(
            f"{where} leads on to {target} (status {status}). Give the address of the dashboard "
            "itself; a proxy that wants a login can have it in RAY_JOB_HEADERS"
        )
    if status >= 500:
        raise ClusterError(
            f"what answers at {where} fails (status {status}): the head may be starting, or a "
            "proxy may not reach it. Try again in a moment, and look at the head"
        )


def _make_client(address: str, headers: Mapping[str, str], verify: str | bool) -> Any:
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
            more |= {"auth": _unchanged, "allow_redirects": False}
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

        def get_job_logs(self, job_id: str) -> Any:
            try:
                return super().get_job_logs(job_id)
            except ClusterError as error:
                if "codec can't decode" not in str(error):
                    raise
                raise OutputError(
                    f"the output of job {job_id} cannot be read: it has bytes that are not UTF-8, "
                    "so that Ray does not send it. Print text in the program; the output is in "
                    f"logs/job-driver-{job_id}.log of Ray's session directory on the job's node"
                ) from None

    hidden = {name: os.environ.pop(name) for name in _SETTINGS if name in os.environ}
    try:
        return Client(address, headers=dict(headers), verify=verify)
    except (RuntimeError, ConnectionError) as error:
        raise ClusterError(f"the cluster at {shown(address)} refuses: {error}") from error
    finally:
        os.environ.update(hidden)
