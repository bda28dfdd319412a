"""``scripts/submit.py`` without a cluster: what it refuses, and how it follows a job."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

import submit  # noqa: E402


@pytest.mark.parametrize(
    "name",
    ["QISKIT_IBM_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "PGPASS_PWD", "api-key", "AUTH"],
)
def test_what_is_named_like_a_secret_is_refused(name, capsys):
    option = f"--{name.lower()}"
    for given in ({name: "abc"}, {}):
        for words in ([option, "abc"], [f"{option}=abc"], [f"{name}=abc"]):
            with pytest.raises(SystemExit) as ended:
                submit.refuse_secrets(given, ["train.py", *words])
            assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Put secrets on the" in said
    assert "abc" not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOKENIZERS_PARALLELISM", "false"), ("MAX_TOKENS", "4096"), ("RAY_AUTH_TOKEN_PATH", "/a/b")]
    + [("KEYBOARD", "us"), ("USE_AUTH", "yes"), ("EMPTY_TOKEN", ""), ("AUTHOR", "me")],
)
def test_what_is_no_secret_goes(name, value):
    submit.refuse_secrets({name: value}, ["train.py", f"--{name.lower()}", value, "--seed"])


def test_a_python_program_must_go_with_the_job(tmp_path):
    (tmp_path / "train.py").touch()
    assert submit.command_of(["train.py", "-x"], tmp_path) == ["python", "train.py", "-x"]
    assert submit.command_of(["train", "-x"], tmp_path) == ["python", "train.py", "-x"]
    assert submit.command_of(["sleep", "1"], tmp_path) == ["sleep", "1"]
    with pytest.raises(SystemExit, match="2"):
        submit.command_of(["other.py"], tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [["--address", "http://h"], ["--", "a.py"], ["--address", "h:6379", "--", "a.py"]]
    + [["--address", "http://me:pw@h", "--", "a.py"], ["--env", "planted", "--", "a.py"]],
)
def test_bad_usage(arguments, capsys, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(SystemExit, match="2"):
        submit.main(arguments)
    assert "planted" not in capsys.readouterr().err


def test_the_token_is_rays(tmp_path, capsys):
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    header = submit.auth_headers({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)})
    assert header == {"Authorization": "Bearer of-the-file"}
    header = submit.auth_headers({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "given"})
    assert header == {"Authorization": "Bearer given"}
    assert submit.auth_headers({"RAY_AUTH_TOKEN": "given"}) == {}
    for wrong in ({"RAY_AUTH_TOKEN": "plan\nted"}, {"RAY_AUTH_TOKEN_PATH": "/nowhere"}):
        with pytest.raises(SystemExit, match="2"):
            submit.auth_headers({"RAY_AUTH_MODE": "token", **wrong})
    assert "plan" not in capsys.readouterr().err


class Client:
    """Ray's client of a job that writes a line between two looks."""

    def __init__(self, looks):
        self.looks, self.lines = looks, iter(["one", "two", "three", "four"])
        self.output = ""

    def get_job_info(self, _):
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return SimpleNamespace(status=look)

    def get_job_logs(self, _):
        self.output += next(self.lines) + "\n"
        if self.output.endswith("two\n"):
            raise RuntimeError("connection lost")
        return self.output


def test_output_is_shown_once_over_lost_connections(capfdbinary, monkeypatch):
    monkeypatch.setattr(submit.time, "sleep", lambda _: None)
    from ray.job_submission import JobStatus  # slow to import

    client = Client([JobStatus.RUNNING] * 3 + [ConnectionError()] * 2 + [JobStatus.SUCCEEDED])
    assert submit.follow(client, "job").status == "SUCCEEDED"
    assert capfdbinary.readouterr().out == b"one\ntwo\nthree\nfour\n"


def test_a_cluster_that_is_lost_is_told(monkeypatch):
    monkeypatch.setattr(submit, "_LOST_SECONDS", -1)
    with pytest.raises(ConnectionError, match="gone"):
        submit.follow(Client([RuntimeError("gone")]), "job")


def test_output_that_cannot_be_read_does_not_hide_how_a_job_ended(capsys):
    from ray.job_submission import JobStatus

    client = Client([JobStatus.FAILED])
    next(client.lines)
    assert submit.follow(client, "job").status == "FAILED"
    assert "the end of the output cannot be read: connection lost" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", None, 1), ("FAILED", -9, 137)]
    + [("STOPPED", -15, 143)],
)
def test_the_exit_status_is_the_jobs(status, code, ours):
    assert submit.exit_status(SimpleNamespace(status=status, driver_exit_code=code)) == ours
