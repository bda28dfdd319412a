"""What ``scripts/submit.py`` sends: which files, how much, and nothing that is secret."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

import submit  # noqa: E402
from submission import secrecy  # noqa: E402
from submission.packing import DEFAULT_LIMIT, collect, parse_size  # noqa: E402

from qailab.errors import InputError  # noqa: E402

NOTHING = secrecy.Known({})


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}\n")
    return root


def test_this_repository_fits_the_default_limit(tmp_path: Path) -> None:
    package = collect(ROOT)
    packed = package.write(tmp_path / "package.zip", DEFAULT_LIMIT, NOTHING)
    print(f"{len(package.files)} files, {package.total} bytes, {packed} packed")
    assert {"scripts/train.py", "qailab/__init__.py", "scripts/constraints.txt"} <= set(
        package.files
    )
    tops = {name.split("/")[0] for name in package.files}
    assert not tops & {".git", ".venv", "runs", "data", ".pytest_cache", "build"}
    assert not any("__pycache__" in name for name in package.files)


def test_ray_packs_the_same_files_with_these_excludes(tmp_path: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = collect(ROOT)
    target = tmp_path / "ray.zip"
    create_package(
        str(ROOT),
        target,
        include_gitignore=True,
        logger=logging.getLogger("of nobody"),  # Ray's own writes to a stream that pytest closed
        excludes=[*get_runtime_env_default_excludes(), *package.excludes],
    )
    with zipfile.ZipFile(target) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names == set(package.files)


def test_what_no_job_needs_stays_here(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        "main.py", "package/data/table.py", "notes.txt", "data/huge.bin", "runs/one/checkpoint.pt",
        ".venv/bin/python", ".git/config", "package/__pycache__/a.pyc", "model.pth", "ignored/a",
        "ignored/kept", "deep/.gitignore", "deep/own", "deep/other", "journal.sqlite-wal",
        "by_ray", "by_hand",
    )  # fmt: skip
    (root / ".gitignore").write_text("ignored/*\n!ignored/kept\n")
    (root / "deep" / ".gitignore").write_text("/own\n")
    (root / ".rayignore").write_text("by_ray\n")
    assert set(collect(root, ["by_hand"]).files) == {
        ".gitignore", ".rayignore", "main.py", "package/data/table.py", "notes.txt",
        "ignored/kept", "deep/.gitignore", "deep/other",
    }  # fmt: skip


SECRET_FILES = (
    ".env", ".env.local", "prod.env", "keys/server.pem", "id_rsa", "auth_token", "qiskit-ibm.json",
    ".aws/credentials", "deploy/kubeconfig",
)  # fmt: skip


def test_files_that_look_like_secrets_stay_here_and_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path, "main.py", ".env.example", *SECRET_FILES)
    (root / ".gitignore").write_text(".env\n")  # said all the same
    package = collect(root)
    assert set(package.files) == {"main.py", ".env.example", ".gitignore"}
    assert {name.rstrip("/") for name in package.secret} == {
        name.replace(".aws/credentials", ".aws") for name in SECRET_FILES
    }
    assert run_dry(root, "main.py") == 0
    assert "look like secrets: .aws/, .env" in capsys.readouterr().err


def run_dry(root: Path, *words: str) -> int:
    return submit.main(["--dry-run", "--working-dir", str(root), "--", *words])


def test_links_that_leave_the_directory_stay_here(tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", "shadow")
    root = make(tmp_path / "root", "main.py")
    (root / "file").symlink_to(outside / "shadow")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "fine").symlink_to(root / "main.py")
    package = collect(root)
    assert set(package.files) == {"main.py", "fine"}
    assert package.skipped == ("file", "folder", "loop")


def test_the_same_files_make_the_same_package(tmp_path: Path) -> None:
    root = make(tmp_path / "root", "main.py", "other.py")
    collect(root).write(tmp_path / "one.zip", DEFAULT_LIMIT, NOTHING)
    os.utime(root / "main.py", (0, 0))
    collect(root).write(tmp_path / "two.zip", DEFAULT_LIMIT, NOTHING)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


@pytest.mark.parametrize("size", [3 << 20, 100 << 20])
def test_too_much_is_refused_with_what_is_large(
    tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path, "main.py", "extra/huge.bin")
    with (root / "extra" / "huge.bin").open("wb") as file:
        if size < 10 << 20:
            file.write(os.urandom(size))
        file.truncate(size)  # a hole: nothing is written
    assert run_dry(root, "main.py") == 2
    said = capsys.readouterr().err
    assert "too large to go with a job" in said
    assert "extra/huge.bin" in said
    assert "extra/ in all" in said
    assert "--exclude PATTERN" in said
    assert "1.0 MiB" in said
    assert submit.main(
        ["--dry-run", "--working-dir", str(root), "--exclude", "*.bin", "--", "main.py"]
    ) == 0  # fmt: skip


def test_sizes() -> None:
    assert parse_size("5MiB") == parse_size("5m") == parse_size("5 MB".replace(" ", "")) == 5 << 20
    assert parse_size("700k") == 700 << 10
    assert parse_size("2000000") == 2_000_000
    for text in ("", "MiB", "-1", "nan", "inf", "0", "5mmm", "5bib", "1e3"):
        with pytest.raises(InputError, match="--max-size"):
            parse_size(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QISKIT_IBM_TOKEN", "x"),
        ("MY_TOKEN", "abc"),
        ("DB_PASSWORD", "abc"),
        ("api_key", "abc"),
        ("APIKEY", "abc"),
        ("AWS_SECRET_ACCESS_KEY", "abc"),
        ("AWS_ACCESS_KEY_ID", "abc"),
        ("RAY_AUTH_TOKEN", "abc"),
        ("SETTING", "gX5vLq0TzR3kWb8YpN1mHc7D_sUe4JfA2oKi9Bx6tVaQ"),
        ("SETTING", "3f786850e387550fdab836ed7e6dc881de23001b3f786850e387550fdab836ed"),
        ("URL", "https://somebody:something@example.org/"),
        ("SETTING", "-----BEGIN PRIVATE KEY-----"),
        ("SETTING", "hf_abcdefghijklmnopqrst"),
        ("RAY_AUTH_TOKEN_PATH", "not-a-path"),
    ],
)
def test_variables_that_look_like_secrets_are_refused(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "root", "main.py")
    file = tmp_path / "variables"
    file.write_text(f"# for the job\nFINE=1\nexport {name}='{value}'\n")
    for option in (["--env-file", str(file)], ["--env", f"{name}={value}"]):
        status = submit.main([*option, "--working-dir", str(root), "--dry-run", "--", "main.py"])
        said = capsys.readouterr()
        assert status == 2
        assert f"  {name}: its" in said.err
        assert "ray start" in said.err
        assert "Secret" in said.err
        if len(value) > 3:
            assert value not in said.err + said.out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMP_NUM_THREADS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("RAY_AUTH_TOKEN_PATH", "/run/secrets/ray"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/gcp.json"),
        ("DATA", "/mnt/shared/experiments/2026-11-23/long-name-of-a-run/checkpoint"),
        ("DATA", "s3://bucket-of-somebody/experiments/run-17"),
        ("TEXT", "a sentence about nothing in particular, which is rather long"),
        ("PYTHONPATH", "/opt/one:/opt/two"),
        ("RAY_AUTH_MODE", "token"),
    ],
)
def test_ordinary_variables_go(name: str, value: str) -> None:
    assert secrecy.looks_secret(name, value) is None


def test_secrets_in_the_command_line_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path, "main.py")
    for words in (["--token", "planted"], ["--api-key=planted"], ["https://a:planted@host/"]):
        assert run_dry(root, "main.py", *words) == 2
        said = capsys.readouterr().err
        assert "looks like a secret" in said
        assert "planted" not in said
    assert run_dry(root, "main.py", "--name", "3f786850e387550fdab836ed7e6dc881de23001b") == 0


@pytest.mark.parametrize("place", ["file", "argument", "variable", "name"])
def test_a_secret_of_this_account_is_found_wherever_it_is(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "plain words only here"  # nothing that a rule about forms would see
    monkeypatch.setenv("QISKIT_IBM_TOKEN", secret if place != "name" else "plain-words-only-here")
    root = make(tmp_path, "main.py")
    options, words = ["--dry-run", "--working-dir", str(root)], ["main.py"]
    if place == "file":
        (root / "settings.txt").write_text(f"one\n{secret}\n")
    elif place == "argument":
        words.append(f"--note={secret}")
    elif place == "variable":
        options += ["--env", f"NOTE={secret}"]
    else:
        options += ["--name", "plain-words-only-here"]
    assert submit.main([*options, "--", *words]) == 2
    said = capsys.readouterr()
    assert "has the secret of QISKIT_IBM_TOKEN in it" in said.err
    assert secret not in said.err + said.out


def test_the_line_of_ray_is_understood_by_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray.dashboard.modules.job.cli import submit as ray_submit

    root = make(tmp_path, "main.py")
    assert submit.main(
        ["--dry-run", "--address", "head", "--working-dir", str(root), "--exclude", "/big files",
         "--env", "A=b c", "--no-wait", "--name", "one", "--", "main.py", "--text", "a 'b'"]
    ) == 0  # fmt: skip
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["ray", "job", "submit"]
    given = ray_submit.make_context("submit", words[3:]).params
    assert given["address"] == "http://head:8265"
    assert given["submission_id"] == "one"
    assert given["no_wait"]
    assert given["entrypoint"] == ("python", "main.py", "--text", "a 'b'")
    environment = json.loads(given["runtime_env_json"])
    assert "/big files" in environment["excludes"]
    assert environment["env_vars"] == {
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "QAILAB_PROGRESS": "2",
        "A": "b c",
    }


def test_the_program_runs_from_anywhere(tmp_path: Path) -> None:
    """As a user starts it, but for the installation."""
    make(tmp_path / "mine", "main.py")
    # What a terminal cannot show is no reason to fail.
    plain = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "submit.py", "--dry-run", "--working-dir", "mine",
         "--", "main.py", "caf\u00e9"],
        cwd=tmp_path, env=os.environ | plain, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sending 1 files" in done.stderr
    assert done.stdout.startswith("ray job submit --address http://HEAD:8265 ")
    assert r"caf\xe9" in done.stdout
