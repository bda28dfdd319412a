"""HTTP on loopback: reads requests and writes what a `RehearsalServer` answers."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qailab.rehearsal.account import INTERNAL, INVALID_REQUEST, ApiError
from qailab.rehearsal.api import Answer, error_answer

HOST = "127.0.0.1"
"""The only address it listens on."""

POLL_SECONDS = 0.02
"""How long it may take to notice that it is to stop."""

MAX_BODY = 64 << 20
"""Bytes of a request's body; IBM's limit is 50 MB (documentation, maximum execution time)."""

READ_SECONDS = 30.0
"""How long headers and body of a request may take, once its first line is there."""

logger = logging.getLogger("qailab.rehearsal")


Answerer = Callable[[str, str, str, Callable[[], bytes]], Answer]
"""Answers a request: method, path and query, header ``Authorization``, what reads the body."""


class Listener(ThreadingHTTPServer):
    """A listening socket with a thread for each connection."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, port: int, answer: Answerer) -> None:
        self.answer = answer
        self._connections: set[socket.socket] = set()
        super().__init__((HOST, port), _Handler)
        run, name = self.serve_forever, "rehearsal-http"
        self._thread = threading.Thread(target=run, args=(POLL_SECONDS,), name=name, daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none."""

    def close(self) -> None:
        """Stop listening and break all connections."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in self._connections.copy():
            _break(connection)


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may be gone already
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests off a connection and writes answers."""

    protocol_version = "HTTP/1.1"
    server_version = "rehearsal"
    # Without these, Nagle's algorithm and delayed acknowledgements cost 40 ms a request.
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: Listener

    def parse_request(self) -> bool:
        # An idle connection is kept, as clients come back to theirs; a slow request is not.
        self.connection.settimeout(READ_SECONDS)
        return super().parse_request()

    def _answer(self) -> None:
        authorization = self.headers.get("Authorization", "")
        try:
            self._left = self._length()
            answer = self.server.answer(self.command, self.path, authorization, self._body)
            for _ in self._pieces():
                pass  # a body that nobody read would be taken for the next request
        except ApiError as error:
            answer, self.close_connection = error_answer(error), True
        except Exception:
            logger.exception("%s %s failed", self.command, self.path)
            self.close_connection = True
            answer = error_answer(ApiError(500, INTERNAL, "Internal server error."))
        self.connection.settimeout(None)
        if answer.status == 0:
            self.close_connection = True
            _break(self.connection)
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def _length(self) -> int:
        """The length of the body.

        Raises:
            ApiError: 400 if it is not said in a way that can be read, 413 if it is too long.
        """
        given = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (given.isascii() and given.isdecimal()):
            raise ApiError(400, INVALID_REQUEST, "A body needs a Content-Length.")
        if len(given) > 10 or int(given) > MAX_BODY:
            raise ApiError(413, INVALID_REQUEST, f"The body is over {MAX_BODY} bytes.")
        return int(given)

    def _body(self) -> bytes:
        return b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        """Read what is left of the body.

        Raises:
            ApiError: 408 if it does not come.
        """
        while self._left:
            piece = b""
            with contextlib.suppress(OSError):
                piece = self.rfile.read(min(self._left, 1 << 20))
            if not piece:
                raise ApiError(408, INVALID_REQUEST, "The body did not come.")
            self._left -= len(piece)
            yield piece

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in the records."""
