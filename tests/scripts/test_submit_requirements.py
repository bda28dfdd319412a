"""What ``scripts/submit.py`` finds that a working directory needs, and a cluster does not have."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

import submit  # noqa: E402
from submission import commands, probe  # noqa: E402
from submission.cluster import Cluster  # noqa: E402
from submission.requirements import Requirements  # noqa: E402

from qailab.errors import InputError  # noqa: E402


def test_requirements_of_this_repository() -> None:
    needed = Requirements.of(ROOT)
    assert "ray" not in needed.wanted  # a job cannot bring another one
    assert needed.wanted["qiskit"].startswith("qiskit==")
    assert {"torch", "numpy", "scikit-learn", "matplotlib"} <= set(needed.wanted)
    installed = {name: line.partition("==")[2] for name, line in needed.wanted.items()}
    assert needed.differing(installed | {"torch": installed["torch"] + "+cpu"}) == {}
    assert needed.differing(installed | {"qiskit": "2.1.0", "tqdm": None}) == {
        name: needed.wanted[name] for name in ("qiskit", "tqdm")
    }


def test_requirements_of_other_directories(tmp_path: Path) -> None:
    assert Requirements.of(tmp_path).wanted == {}
    (tmp_path / "requirements.txt").write_text("-r other\n# no\nRay==2\nscikit_learn>=1.4 # why\n")
    needed = Requirements.of(tmp_path)
    assert needed.wanted == {"scikit-learn": "scikit-learn>=1.4"}
    assert needed.differing({"scikit-learn": "1.9.1"}) == {}
    (tmp_path / "requirements.txt").write_text("what is this\n")
    with pytest.raises(InputError, match="is no requirement"):
        Requirements.of(tmp_path)


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
    environment = commands.install(cluster, Requirements.of(tmp_path), options)
    assert len(environment.get("pip", {}).get("packages", [])) == count
    said = capsys.readouterr().err
    assert ("two==2.0 is wanted, the cluster has 1.9" in said) == (option is None)


def test_what_pip_would_install_is_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "\ufeffone[extra,more]==1.0 \\\n    --hash=sha256:0123 \\\n    --hash=sha256:4567\n"
        "Two @ git+https://example.org/two.git@v1\nthree==3 ; python_version < '3'\n"
        "-r other.txt\n--index-url https://me:hidden@example.org/\n"
    )
    needed = Requirements.of(tmp_path)
    assert {name: line.replace(" ", "") for name, line in needed.wanted.items()} == {
        "one": "one[extra,more]==1.0",
        "two": "two@git+https://example.org/two.git@v1",
    }
    assert needed.ignored == ("requirements.txt: -r", "requirements.txt: --index-url")
    # Nothing tells which address an installed version is from.
    assert set(needed.differing({"one": "1.0", "two": "1.0"})) == {"two"}


def test_extras_and_addresses_outlive_pins(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["one[extra]>=1", "two"]\n')
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "constraints.txt").write_text("one==1.5\ntwo==2.5\n")
    assert Requirements.of(tmp_path).wanted == {"one": "one[extra]==1.5", "two": "two==2.5"}


@pytest.mark.parametrize(
    ("wanted", "installed", "differs"),
    [
        ("torch==2.3.0+cpu", "2.3.0+cpu", False),
        ("torch==2.3.0+cpu", "2.3.0+cu121", True),
        ("torch==2.3.0", "2.3.0+cpu", False),
        ("torch==2.3.0", "not-a-version", True),
        ("torch", None, True),
    ],
)
def test_versions_are_compared_as_pip_does(
    wanted: str, installed: str | None, differs: bool
) -> None:
    needed = Requirements({"torch": wanted}, "here")
    assert bool(needed.differing({"torch": installed})) == differs


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pyproject.toml", b"[project]\ndependencies = 3\n"),
        ("pyproject.toml", b"[project]\ndependencies = [1]\n"),
        ("pyproject.toml", b"project = 3\n"),
        ("pyproject.toml", b"# \xff\n"),
        ("requirements.txt", b"\xff\n"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        Requirements.of(tmp_path)


@pytest.mark.parametrize(
    "line", ["one @ git+https://me:planted@host/x", "one https://me:planted@h"]
)
def test_a_password_in_an_address_is_not_sent_and_not_shown(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "main.py").touch()
    (tmp_path / "requirements.txt").write_text(f"{line}\n")
    assert submit.main(["--dry-run", "--working-dir", str(tmp_path), "--", "main.py"]) == 2
    said = capsys.readouterr()
    assert "one" in said.err
    assert "planted" not in said.err + said.out
