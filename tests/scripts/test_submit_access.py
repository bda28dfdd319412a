"""How ``scripts/submit.py`` reaches a cluster: addresses, tokens, and what answers."""

from __future__ import annotations

import http.server
import json
import platform
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.test_submit_parts import nobody  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

import submit  # noqa: E402
from submission import cluster as reaching  # noqa: E402
from submission.access import Token, normal_address, own_headers, shown  # noqa: E402
from submission.cluster import Cluster  # noqa: E402
from submission.errors import ClusterError, OutputError  # noqa: E402

from qailab.errors import InputError  # noqa: E402


def test_addresses() -> None:
    assert normal_address("head", {}) == "http://head:8265"
    assert normal_address("head:80", {}) == "http://head:80"
    assert normal_address("https://ray.example.org/", {}) == "https://ray.example.org"
    both = {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "b:2"}
    assert normal_address(None, both) == "http://a:1"
    assert normal_address(None, {"RAY_ADDRESS": "http://d:4"}) == "http://d:4"
    with pytest.raises(InputError, match="where is the cluster"):
        normal_address(None, {"RAY_ADDRESS": "10.0.0.5:6379"})
    assert normal_address("http://c:3", both) == "http://c:3"  # Ray has it the other way round
    assert shown("http://somebody:hidden@head:8265") == "http://...@head:8265"
    assert normal_address("HTTP://Head:80/#/jobs/x", {}) == "http://Head:80"
    assert normal_address("http://head:80/ray/?a=1#/jobs", {}) == "http://head:80/ray"
    assert normal_address("head/#/jobs", {}) == "http://head:8265"
    assert normal_address("[::1]", {}) == "http://[::1]:8265"
    assert normal_address("http://head", {}) == "http://head"  # a proxy, at its own port
    for hidden in ("http://somebody:hidden@head:8265", "somebody:hidden@head"):
        with pytest.raises(InputError, match="a password in it") as raised:
            normal_address(hidden, {})
        assert "hidden" not in str(raised.value)
    for wrong in ("ftp://head", "http://", "http://head:port"):
        with pytest.raises(InputError, match="no address of a dashboard"):
            normal_address(wrong, {})


def test_tokens_are_found_where_ray_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-path\n")
    saved = tmp_path / ".ray" / "auth_token"
    saved.parent.mkdir()
    saved.write_text("from-home\n")
    given = {"RAY_AUTH_TOKEN": "from-variable", "RAY_AUTH_TOKEN_PATH": str(path)}
    assert Token.here(given).value == "from-variable"
    del given["RAY_AUTH_TOKEN"]
    assert Token.here(given).value == "from-path"
    assert Token.here({}).value == "from-home"
    assert "from" not in repr(Token.here({}))
    with pytest.raises(InputError, match="cannot be read"):
        Token.here({"RAY_AUTH_TOKEN_PATH": "/nonexistent"})
    with pytest.raises(InputError, match=r"RAY_AUTH_MODE must be token or disabled.*'yes'"):
        Token.here({"RAY_AUTH_MODE": "yes"})


@pytest.mark.parametrize(
    "content", [b"first\nplanted", b"planted planted", b"pl\xc3\xa4nted", b"\xff"]
)
@pytest.mark.parametrize("place", ["RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"])
def test_what_cannot_be_a_token_is_not_shown(place: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_bytes(content)
    environment = {} if place.startswith("~") else {place: str(path)}
    with pytest.raises(InputError) as raised:
        Token.here(environment)
    assert place in str(raised.value)
    assert "nted" not in str(raised.value)


def test_what_cannot_be_a_header_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", json.dumps({"X": "plan\nted"}))
    with pytest.raises(InputError, match="RAY_JOB_HEADERS") as raised:
        own_headers()
    assert "ted" not in str(raised.value)
    with pytest.raises(ClusterError, match="a header cannot be sent") as refused:
        reaching._ask("http://127.0.0.1:1/api/version", {"Authorization": "Bearer a\nb"}, True)
    assert "Bearer" not in str(refused.value)


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Answers two questions of a dashboard, or with a status and a page of something else."""

    ray = "2.60.0"
    python = platform.python_version()
    token = ""
    status = 200
    metadata: Any = None
    seen: tuple[str | None, ...] = ()

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        type(self).seen += (given,)
        if self.token and given != f"Bearer {self.token}":
            self.send_response(403 if given else 401)
            self.end_headers()
            return
        if self.status != 200 or self.path == "/api/jobs/bad/logs":
            self.send_response(500 if self.status == 200 else self.status)
            self.send_header("Location", "https://login.example.org/in?state=planted")
            self.end_headers()
            self.wfile.write(b"UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff")
            return
        answers: dict[str, Any] = {
            "/api/version": {"version": "4", "ray_version": self.ray},
            "/api/v0/cluster_metadata": {"data": {"pythonVersion": self.python}},
        }
        self.send_response(200 if self.path in answers else 404)
        self.end_headers()
        answer = json.dumps(answers.get(self.path, "")).encode()
        self.wfile.write(self.metadata if self.metadata and "metadata" in self.path else answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[tuple[str, type[Dashboard]]]:
    handler = type("Handler", (Dashboard,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join(10)


def test_other_versions_are_told_with_both_numbers(
    dashboard: tuple[str, type[Dashboard]], capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    address, handler = dashboard
    Cluster.reach(address).check_versions()
    handler.ray, handler.python = "2.51.1", "3.9.18"
    assert submit.main(["--address", address, "--", "scripts/train.py"]) == 1
    said = capsys.readouterr().err
    assert f"Ray is 2.51.1 there and {ray.__version__} here" in said
    assert f"Python is 3.9.18 there and {platform.python_version()} here" in said


def test_a_token_goes_only_where_it_is_asked_for(
    dashboard: tuple[str, type[Dashboard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, handler = dashboard
    monkeypatch.setenv("RAY_AUTH_TOKEN", "this-is-the-token")
    Cluster.reach(address)
    assert set(handler.seen) == {None}
    handler.token = "this-is-the-token"
    cluster = Cluster.reach(address)
    assert handler.seen[-1] == "Bearer this-is-the-token"
    assert "this-is" not in repr(cluster)
    handler.token = "another"
    with pytest.raises(ClusterError, match="does not accept the token of RAY_AUTH_TOKEN"):
        Cluster.reach(address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(ClusterError, match="wants a token, and there is none"):
        Cluster.reach(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE is disabled"):
        Cluster.reach(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE is token, and there is none"):
        Cluster.reach(address)


def test_what_is_no_dashboard(
    dashboard: tuple[str, type[Dashboard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = dashboard
    with pytest.raises(ClusterError, match=r"no Ray dashboard .*status 404"):
        Cluster.reach(f"{address}/elsewhere")
    monkeypatch.setattr(reaching, "_ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ClusterError, match=r"no Ray dashboard answers .*[Tt]ime"):
            Cluster.reach(f"http://127.0.0.1:{port}")
    with pytest.raises(ClusterError, match=r"refused.*ssh -L"):
        Cluster.reach(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("metadata", [b'{"data": null}', b"<html>", b"[]", b'{"data": {}}'])
def test_a_cluster_may_not_tell_its_python(
    metadata: bytes, dashboard: tuple[str, type[Dashboard]]
) -> None:
    address, handler = dashboard
    handler.metadata = metadata
    assert Cluster.reach(address).python_version == ""


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (302, r"leads on to https://login\.example\.org/in \(status 302\)"),
        (502, "status 502.*proxy"),
    ],
)
def test_what_answers_for_a_dashboard_is_told(
    status: int, said: str, dashboard: tuple[str, type[Dashboard]]
) -> None:
    address, handler = dashboard
    handler.status = status
    with pytest.raises(ClusterError, match=said):
        Cluster.reach(address)


def test_a_password_of_netrc_does_not_replace_the_token(
    dashboard: tuple[str, type[Dashboard]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, handler = dashboard
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password hunter2\n")
    Cluster.reach(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "this-is-the-token")
    handler.token = "this-is-the-token"
    client = Cluster.reach(address).client
    with pytest.raises(ClusterError, match="status 404"):
        client.get_job_info("none")
    assert set(handler.seen) == {None, "Bearer this-is-the-token"}


def test_output_that_is_not_text_is_told(dashboard: tuple[str, type[Dashboard]]) -> None:
    client = Cluster.reach(dashboard[0]).client
    with pytest.raises(OutputError, match=r"output of job bad .*not UTF-8"):
        client.get_job_logs("bad")
    with pytest.raises(ClusterError, match="404"):
        client.get_job_logs("other")


def test_a_proxy_on_the_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://somebody:hunter2@127.0.0.1:1")
    with pytest.raises(ClusterError, match="through the proxy of http_proxy") as raised:
        Cluster.reach("http://head.example.org:8265")
    assert "hunter2" not in str(raised.value)
