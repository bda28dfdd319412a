"""Which variables and command lines ``scripts/submit.py`` takes for secrets, and which not."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.scripts.test_submit_package import ROOT, make, run_dry

sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

import submit
from submission.secrecy import looks_secret

NAMES = (
    "GH_PAT", "GITHUB_PAT", "WANDB_KEY", "IBM_KEY", "SSH_KEY", "KEY", "DBPASS", "DBPWD", "SSHPASS",
    "COOKIE", "BEARER", "AUTHORIZATION", "JWT", "PWD", "TOKEN_FILE",
)  # fmt: skip
VALUES = (
    "postgres://:hunter2@db/x", "redis://:pass@h", "Bearer abcdef",
    "host=db user=u password=hunter2", "Server=x;Password=hunter2;",
    "https://host/?access_key=abc&secret_key=def", "https://host/o?X-Amz-Signature=0a1b2c",
    "https://a.blob.example/x?sv=1&sig=abc%3D", '{"password": "hunter2"}',
    "https://hooks.slack.com/services/T0/B0/xyz",
)  # fmt: skip
# Their beginnings, put together here: no scanner of this repository takes them for real ones.
FORMS = ("sk-ant-", "ghu_", "pypi-", "rk_live_", "xoxe-", "hf_", "ghp_")
RUN = "digits-20260101-120000-abcdef01"
UUID = "123e4567-e89b-12d3-a456-426614174000"
COMMIT = "3f786850e387550fdab836ed7e6dc881de23001b"


@pytest.mark.parametrize("name", NAMES)
def test_names_of_secrets(name: str) -> None:
    assert looks_secret(name, "hunter2") == "its name is that of a secret"


@pytest.mark.parametrize("value", [*VALUES, *(form + "abcdefgh" * 2 for form in FORMS)])
def test_values_of_secrets(value: str) -> None:
    assert looks_secret("SETTING", value)
    assert looks_secret("SETTING", f"with '{value}'")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BYPASS", "x"),
        ("COMPASS", "north"),
        ("LOWPASS", "x"),
        ("MAX_TOKENS", "5"),
        ("USE_AUTH", "true"),
        ("TOKEN", ""),
        ("PWD", "/home/somebody"),
        ("TOKEN_FILE", "secrets/token.txt"),
        ("RUN", RUN),
        ("ID", UUID),
        ("COMMIT", COMMIT),
        ("SEED", "1234567890" * 4),
        ("CRN", f"crn:v1:bluemix:public:quantum-computing:us-east:a/{COMMIT[:32]}:{UUID}::"),
        ("IMAGE", f"example.org/image@sha256:{'0a1b2c3d' * 8}"),
        ("DATA", f"/mnt/data/{COMMIT}{COMMIT}/x"),
        ("DATA", f"s3://bucket/{COMMIT}{COMMIT}/x"),
        ("PYTHONIOENCODING", "utf-8:backslashreplace"),
    ],
)
def test_what_is_no_secret(name: str, value: str) -> None:
    assert looks_secret(name, value) is None


@pytest.mark.parametrize("name", ["PASSWORD", "DB_PASS"])
def test_a_password_may_be_a_number(name: str) -> None:
    assert looks_secret(name, "123456")


@pytest.mark.parametrize(
    "line",
    [
        "main.py --opt={ghp}",
        "env QISKIT_IBM_TOKEN=planted-planted GH_PAT=planted python main.py",
        "bash -c 'export TOKEN=planted; python main.py'",
        "env API_KEY=planted python main.py",
        "main.py --pwd=planted",
        "main.py --header 'Authorization: Bearer planted'",
        "env IBM=eyJplanted.planted python main.py",
        "main.py --db-password 123456",
        "main.py --url postgres://:planted@host/",
    ],
)
def test_command_lines_with_secrets(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line.format(ghp="ghp_" + "planted0" * 4))
    assert run_dry(make(tmp_path, "main.py"), *words) == 2
    said = capsys.readouterr()
    assert "looks like a secret" in said.err
    assert "planted" not in said.err + said.out
    assert "123456" not in said.err + said.out


@pytest.mark.parametrize(
    "line",
    [
        f"main.py --name {RUN} --max-tokens 5 --placement strategy=spread",
        f"main.py --instance crn:v1:bluemix:public:quantum-computing:us-east:a/0:{UUID}::",
        f"main.py --commit {COMMIT} --token-file /run/secrets/token --use-auth --verbose",
        "bash -c 'for i in 1 2; do python main.py $i; done'",
    ],
)
def test_command_lines_without_secrets(line: str, tmp_path: Path) -> None:
    assert run_dry(make(tmp_path, "main.py"), *shlex.split(line)) == 0


def test_what_the_user_allows_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SORT_KEY", "by-name-and-date")
    given = ["--dry-run", "--working-dir", str(make(tmp_path, "main.py"))]
    given += ["--env", "SORT_KEY=by-name-and-date", "--allow-env", "SORT_KEY"]
    words = ["--", "main.py", "--sort-key", "name"]
    assert submit.main([*given, *words]) == 2
    said = capsys.readouterr().err
    assert "--sort-key looks like a secret" in said
    assert "--allow-env NAME" in said
    assert submit.main([*given, "--allow-env=--sort-key", *words]) == 0
    assert submit.main([*given[:3], "--env", "SORT_KEY=x", "--", "main.py"]) == 2
