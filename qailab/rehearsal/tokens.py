"""Access tokens, as IBM Cloud's identity service issues them for an API key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any


class TokenIssuer:
    """Issues and checks access tokens.

    Args:
        api_key: the key they are issued for.
        seconds: their lifetime.
    """

    def __init__(self, api_key: str, seconds: float) -> None:
        self._api_key = api_key
        self._seconds = seconds
        self._secret = secrets.token_bytes(16)
        self._valid: dict[str, float] = {}  # by header: when it expires

    def issue(self, api_key: str) -> dict[str, Any] | None:
        """The answer of ``POST /identity/token``, ``None`` if the key is not known."""
        if not hmac.compare_digest(api_key.encode(), self._api_key.encode()):
            return None
        now = time.time()
        expires = now + self._seconds
        claims = {"iat": int(now), "exp": expires, "jti": secrets.token_hex(4)}
        body = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(claims)}"
        signature = hmac.digest(self._secret, body.encode(), hashlib.sha256)
        token = f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
        self._valid[f"Bearer {token}"] = expires
        return {
            "access_token": token,
            "refresh_token": "not_supported",
            "token_type": "Bearer",
            "expires_in": int(self._seconds),
            "expiration": int(expires),
            "scope": "ibm openid",
        }

    def is_valid(self, authorization: str) -> bool:
        """Whether a header ``Authorization`` lets a request pass.

        A client that cannot get a token sends its API key instead.
        """
        if authorization == f"apikey {self._api_key}":
            return True
        return self._valid.get(authorization, 0.0) > time.time()


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
