"""The options of ``scripts/submit.py``, and the files they name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

import submit  # noqa: E402
from submission import commands  # noqa: E402
from submission.options import Question, Submission, parse  # noqa: E402
from submission.packing import Package  # noqa: E402
from submission.variables import read_environment  # noqa: E402

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
        (["--name", "a" * 101, "--", "x"], "at most 100"),
        (["--name", "qailab-probe-1", "--", "x"], "submit's own"),
        (["--allow-env", "a b", "--", "x"], "--allow-env must be"),
        (["--ca-file", "/nonexistent", "--", "x"], "--ca-file must be"),
        (["list", "--ca-file", "/nonexistent"], "--ca-file must be"),
        (["scripts/train.py", "--epochs", "3"], "put the program after --"),
        (["--no-wait", "list.py"], "put the program after --"),
        (["--address", "head", "list"], "the command comes first: submit list --address head"),
        (["statu"], "did you mean submit status"),
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
    file.write_text(
        "# comment\n\nA=1\nexport B = 'two words'\nC=\"x=y\"\nD=\nE='#' # why\n", "utf-8-sig"
    )
    assert read_environment(file) == {
        "A": "1", "B": "two words", "C": "x=y", "D": "", "E": "#",
    }  # fmt: skip
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
