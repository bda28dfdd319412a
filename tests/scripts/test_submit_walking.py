"""Which files ``scripts/submit.py`` leaves here: secrets, links, what git ignores."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import zipfile
from pathlib import Path

import pytest

from tests.scripts.test_submit_package import ROOT, make, run_dry

sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

from submission.packing import Package, collect
from submission.secret_files import has_secret

from qailab.errors import InputError

SECRETS = (
    ".envrc", ".env-prod", ".ENV", "KEY.PEM", "ID_RSA", "_netrc", ".docker/config.json",
    ".dockercfg", ".s3cfg", ".boto", "service-account-1.json", "gcp-key.json",
    "application_default/credentials.json", "client_secret_1.json", ".vault-token", ".vault_pass",
    ".my.cnf", "a.ppk", "a.kdbx", "a.p8", "secrets.yaml", "secrets.yml", "secrets/any", ".secrets",
    "token", "token.txt", "token.json", "ibm_token_old", "apikey-ibm.json", "password-list.txt",
    "credentials.yaml", "aws_credentials", "qiskit-ibm-backup.json", "qiskitrc",
    ".config/gh/hosts.yml", ".huggingface/token", "kaggle.json", "pip.conf", "terraform.tfvars",
    ".bash_history", "application_default_credentials.json",
)  # fmt: skip
ORDINARY = (
    "main.py", "secrets.py", "token.py", "tokens/credentials.py", "secrets/__init__.py",
    "tokenizer.json", "keyboard.txt", "environment", "passwords.md", "docs/secrets.md",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_names_of_secrets_in_any_case(name: str, tmp_path: Path) -> None:
    for number, one in enumerate((name, name.upper())):
        root = make(tmp_path / str(number), "main.py", one)
        package = collect(root)
        assert set(package.files) == {"main.py"}
        assert one.startswith(package.secret[0])


def test_programs_may_be_called_so(tmp_path: Path) -> None:
    package = collect(make(tmp_path, *ORDINARY))
    assert set(package.files) == set(ORDINARY)
    assert package.secret == ()


KEY = "-----BEGIN {}PRIVATE KEY-----"  # made here, as all of these: this file is itself sent
BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ" * 2


@pytest.mark.parametrize(
    "content",
    [
        f"{KEY.format('')}\n{BODY}\n",
        f"text\n{KEY.format('RSA ')}\r\nProc-Type: 4,ENCRYPTED\n\n{BODY}\n",
        f"{KEY.format('OPENSSH ')}\n{BODY}\n",
        json.dumps({"private_key": f"{KEY.format('')}\n{BODY}"}),
        f"TOKEN = 'ghp_{'a1B2' * 9}'",
        f"key: AKIA{'A1B2' * 4}\n",
    ],
)
def test_keys_and_tokens_in_files_stay_here(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path, "main.py", "module.py")
    (root / "module.py").write_text(content)
    assert run_dry(root, "main.py") == 0
    assert "look like secrets: module.py" in capsys.readouterr().err
    assert run_dry(root, "module.py") == 2
    assert "has a private key or a token in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----|gh[pousr]_\w{36}|AKIA[A-Z0-9]{16}",
        f"{KEY.format('')}\n...\n-----END PRIVATE KEY-----",
        "ghp_abcdef",
        f"ghp_{'x' * 36}",
        "AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN CERTIFICATE-----\n" + BODY,
    ],
)
def test_examples_and_expressions_are_no_secrets(content: str) -> None:
    assert not has_secret(content.encode())


def test_nothing_of_this_repository_is_taken_for_a_secret() -> None:
    package = collect(ROOT)
    assert package.secret == package.skipped == package.unreadable == ()


def test_a_link_is_what_it_leads_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path, "main.py", ".env", ".git/config", "ignored", "a/b", "data/numbers")
    (root / ".gitignore").write_text("ignored\n")
    for name, target in {
        "settings.txt": ".env", "cfg.txt": ".git/config", "read.me": "ignored",
        "a/n": "../data/numbers", "chain": "settings.txt", "fine": "a/b", "nowhere": "nothing",
        "loop": "loop",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    package = collect(root)
    assert set(package.files) == {"main.py", ".gitignore", "a/b", "fine"}
    assert package.skipped == ("a/n", "cfg.txt", "chain", "nowhere", "read.me", "settings.txt")
    assert package.unreadable == ("loop",)
    assert run_dry(root, "main.py") == 0
    assert "links to what does not go: a/n, cfg.txt" in capsys.readouterr().err


def ray_files(package: Package, target: Path) -> set[str]:
    """What Ray packs with these excludes."""
    from ray._private.runtime_env.packaging import create_package

    create_package(
        str(package.root), target, include_gitignore=True, excludes=list(package.excludes),
        logger=logging.getLogger("of nobody"),  # Ray's own writes to a stream that pytest closed
    )  # fmt: skip
    with zipfile.ZipFile(target) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_rays_own_line_sends_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = make(tmp_path / "top", ".git/info/exclude", "outside/secret")
    (top / ".git" / "info" / "exclude").write_text("by_me\n")
    (top / ".gitignore").write_text("by git\n")
    root = make(
        top / "root", "main.py", "KEY.PEM", ".env", "[a] *b!.p12", "token", "secrets/x.py", "by_me",
        "by git/x", "hidden.txt", "big.py", ".venv/a.py", "package/.env.py",
    )  # fmt: skip
    (root / "hidden.txt").write_text(f"ghp_{'a1B2' * 9}")
    (root / "link").symlink_to(".env")
    (root / "folder").symlink_to(top / "outside")
    package = collect(root, ["big.py"])
    assert set(package.files) == {"main.py", "package/.env.py"}
    assert ray_files(package, tmp_path / "ray.zip") == set(package.files)
    status = run_dry(root, "main.py")
    given = json.loads(shlex.split(capsys.readouterr().out)[10])
    assert (status, "/KEY.PEM" in given["excludes"]) == (0, True)


def test_what_git_ignores_from_above_stays_here(tmp_path: Path) -> None:
    top = make(tmp_path, ".git/info/exclude", "a/.gitignore", "a/b/x", "a/b/y", "a/b/z", "a/b/main")
    (top / ".git" / "info" / "exclude").write_text("x\n")
    (top / ".gitignore").write_text("/a/b/y\n/ignored/\n")
    (top / "a" / ".gitignore").write_text("b/z\n")
    assert set(collect(top / "a" / "b").files) == {"main"}
    # Who sends a folder that git ignores wants what is in it.
    assert set(collect(make(top / "ignored", "main")).files) == {"main"}


@pytest.mark.parametrize("pattern", ["[z-a]", "!", "\\"])
def test_a_pattern_that_is_none_is_named(pattern: str, tmp_path: Path) -> None:
    root = make(tmp_path, "main.py")
    with pytest.raises(InputError, match=r"--exclude: .* is no pattern"):
        collect(root, [pattern])
    (root / ".gitignore").write_text(f"fine\n{pattern}\n")
    with pytest.raises(InputError, match=r"\.gitignore, line 2: .* is no pattern"):
        collect(root)


def test_a_name_that_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path, "main.py")
    (root / os.fsdecode(b"caf\xe9")).touch()
    assert run_dry(root, "main.py") == 2
    assert r"'caf\udce9': this name is not UTF-8" in capsys.readouterr().err
    assert set(collect(root, ["caf*"]).files) == {"main.py"}


def test_what_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path, "main.py", "closed/a", "shut", "later")
    os.mkfifo(root / "pipe")
    listed, read = Path.iterdir, Path.read_bytes

    def closed(path: Path):  # type: ignore[no-untyped-def]
        if path.name in ("closed", "later"):
            raise PermissionError(13, "Permission denied")
        return listed(path) if path.is_dir() else read(path)

    # The tests may run as root, who reads everything.
    monkeypatch.setattr(Path, "iterdir", closed)
    monkeypatch.setattr(Path, "read_bytes", closed)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "shut")
    assert run_dry(root, "main.py") == 0
    assert "cannot be read: closed/, later, pipe, shut" in capsys.readouterr().err
