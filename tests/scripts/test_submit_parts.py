"""The parts of ``scripts/submit.py`` without a cluster: options, addresses, versions, needs."""

from __future__ import annotations

import http.server
import json
import platform
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

import submit  # noqa: E402
from submission import cluster as reaching  # noqa: E402
from submission import commands, probe  # noqa: E402
from submission.cluster import Cluster, ClusterError, Token, normal_address  # noqa: E402
from submission.options import Question, Submission, parse, read_environment  # noqa: E402
from submission.packing import Package  # noqa: E402

from qailab.errors import InputError  # noqa: E402


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without settings of Ray."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_HEADERS",
                 "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_what_is_after_the_dashes_is_the_programs_own() -> None:
    options = parse(
        ["--no-wait", "--env", "A=1", "--", "scripts/train.py", "--name", "x", "--", "--pip"], ""
    )
    assert isinstance(options, Submission)
    assert options.words == ("scripts/train.py", "--name", "x", "--", "--pip")
    assert options.name is None
    assert options.pip is None
    assert not options.wait
    assert options.variables == {"A": "1"}
    assert options.working_dir == ROOT


def test_questions() -> None:
    asked = parse(["logs", "--follow", "one", "--address", "host"], "")
    assert isinstance(asked, Question)
    assert (asked.command, asked.job, asked.follow) == ("logs", "one", True)
    assert parse(["status"], "").job is None  # type: ignore[union-attr]
    with pytest.raises(SystemExit, match="2"):
        parse(["stop"], "")  # not the latest job, which may be somebody else's


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "what is to run"),
        (["list", "--", "x"], "takes no program"),
        (["--name", "a b", "--", "x"], "--name must be"),
        (["--env", "nothing", "--", "x"], "KEY=VALUE"),
        (["--env-file", "/nonexistent", "--", "x"], "cannot be read"),
        (["--max-size", "much", "--", "x"], "--max-size"),
        (["--working-dir", "/nonexistent", "--", "x"], "must be a directory"),
        (["--", "scripts/trian.py"], "is not among the"),
        (["--", "scripts/train"], "submit scripts/train.py instead"),
        (["status"], "where is the cluster"),
        (["status", "--address", "ray://head:10001"], "ray:// is for ray.init"),
    ],
)
def test_wrong_options(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_file_of_variables(tmp_path: Path) -> None:
    file = tmp_path / "variables"
    file.write_text("# comment\n\nA=1\nexport B = 'two words'\nC=\"x=y\"\nD=\n")
    assert read_environment(file) == {"A": "1", "B": "two words", "C": "x=y", "D": ""}
    file.write_text("A=1\nhunter2\n")
    with pytest.raises(InputError, match="line 2") as raised:
        read_environment(file)
    assert "hunter2" not in str(raised.value)


def test_programs_of_python_are_run_by_it() -> None:
    package = Package(Path("/root"), {"a/main.py": 1, "tool": 1})
    assert commands.command(("a/main.py", "-x"), "python", package) == ["python", "a/main.py", "-x"]
    assert commands.command(("./a/main.py",), "py", package) == ["py", "./a/main.py"]
    assert commands.command(("python", "-m", "a"), "python", package) == ["python", "-m", "a"]
    assert commands.command(("/opt/x.py",), "python", package) == ["python", "/opt/x.py"]


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
    assert reaching.shown("http://somebody:hidden@head:8265") == "http://...@head:8265"
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


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Answers two questions of a dashboard."""

    ray = "2.60.0"
    python = platform.python_version()
    token = ""
    seen: tuple[str | None, ...] = ()

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        type(self).seen += (given,)
        if self.token and given != f"Bearer {self.token}":
            self.send_response(403 if given else 401)
            self.end_headers()
            return
        answers: dict[str, Any] = {
            "/api/version": {"version": "4", "ray_version": self.ray},
            "/api/v0/cluster_metadata": {"data": {"pythonVersion": self.python}},
        }
        self.send_response(200 if self.path in answers else 404)
        self.end_headers()
        self.wfile.write(json.dumps(answers.get(self.path, "")).encode())

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


def test_requirements_of_this_repository() -> None:
    needed = probe.Requirements.of(ROOT)
    assert "ray" not in needed.wanted  # a job cannot bring another one
    assert needed.wanted["qiskit"].startswith("qiskit==")
    assert {"torch", "numpy", "scikit-learn", "matplotlib"} <= set(needed.wanted)
    installed = {name: line.partition("==")[2] for name, line in needed.wanted.items()}
    assert needed.differing(installed | {"torch": installed["torch"] + "+cpu"}) == {}
    assert needed.differing(installed | {"qiskit": "2.1.0", "tqdm": None}) == {
        name: needed.wanted[name] for name in ("qiskit", "tqdm")
    }


def test_requirements_of_other_directories(tmp_path: Path) -> None:
    assert probe.Requirements.of(tmp_path).wanted == {}
    (tmp_path / "requirements.txt").write_text("-r other\n# no\nRay==2\nscikit_learn>=1.4 # why\n")
    needed = probe.Requirements.of(tmp_path)
    assert needed.wanted == {"scikit-learn": "scikit-learn>=1.4"}
    assert needed.differing({"scikit-learn": "1.9.1"}) == {}
    (tmp_path / "requirements.txt").write_text("what is this\n")
    with pytest.raises(InputError, match="is no requirement"):
        probe.Requirements.of(tmp_path)


@pytest.mark.parametrize(("option", "count"), [(None, 1), (True, 2), (False, 0)])
def test_only_what_differs_is_installed(
    option: bool | None,
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "requirements.txt").write_text("one==1.0\ntwo==2.0\n")
    found = probe.Found("3", "/python", {"one": "1.0", "two": "1.9"})
    monkeypatch.setattr(probe, "ask", lambda *_: found)
    cluster = Cluster("http://head:8265", None, "2.60.0", "3.11.7")
    options: Any = SimpleNamespace(working_dir=tmp_path, pip=option, python="python")
    environment = commands._requirements(cluster, options)
    assert len(environment.get("pip", {}).get("packages", [])) == count
    said = capsys.readouterr().err
    assert ("two==2.0 is wanted, the cluster has 1.9" in said) == (option is None)
