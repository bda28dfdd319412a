"""A proxy in front of a server that holds a request back, and sends it on though nobody waits."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_HOP = {"connection", "transfer-encoding", "content-length", "host"}


class LateProxy:
    """Passes requests on; one job arrives late.

    Args:
        url: the server's.
        late: which ``POST /jobs`` is late, from 0.
        seconds: how late.

    Attributes:
        delayed: how many were.
    """

    def __init__(self, url: str, late: int, seconds: float) -> None:
        self.delayed = 0
        self._place = urlsplit(url)
        self._late = late
        self._seconds = seconds
        self._posts = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 1 << 16

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.hold_back(self.command, self.path)
                status, headers, answer = proxy.forward(
                    self.command, self.path, dict(self.headers), body
                )
                with suppress(OSError):  # nobody waits any more
                    self.send_response(status)
                    for name, value in headers:
                        if name.lower() not in _HOP:
                            self.send_header(name, value)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                    self.wfile.flush()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def hold_back(self, method: str, path: str) -> None:
        """Wait, if it is this request's turn."""
        if method != "POST" or not path.partition("?")[0].endswith("/jobs"):
            return
        with self._lock:
            number, self._posts = self._posts, self._posts + 1
        if number == self._late:
            time.sleep(self._seconds)
            self.delayed += 1

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the server."""
        connection = http.client.HTTPConnection(self._place.netloc, timeout=60)
        kept = {name: value for name, value in headers.items() if name.lower() not in _HOP}
        try:
            connection.request(method, path, body or None, kept)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except OSError:
            return 502, [], b""
        finally:
            connection.close()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
