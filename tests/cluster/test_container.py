"""The Dockerfile by hadolint, and what it takes and leaves."""

import re
import subprocess

import pytest

from tests.cluster.files import CLUSTER, PINS, PROJECT, PYTHON, ROOT, TAG
from tests.cluster.programs import program

DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"\\\n", " ", re.sub(r"(?m)^ *#.*\n", "", DOCKERFILE)).split("\n")
INSTRUCTIONS = [one for one in INSTRUCTIONS if one.strip()]


def hadolint(path):
    return subprocess.run(
        [program("hadolint"), "--no-color", path], capture_output=True, text=True, timeout=60
    )


def test_hadolint_finds_nothing():
    done = hadolint(CLUSTER / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_something(tmp_path):
    path = tmp_path / "Dockerfile"
    path.write_text("FROM python\nRUN cd /tmp\n")
    assert hadolint(path).returncode != 0


def test_two_stages_and_no_root():
    assert [one.split()[0] for one in INSTRUCTIONS].count("FROM") == 2
    last = INSTRUCTIONS[max(i for i, one in enumerate(INSTRUCTIONS) if one.startswith("FROM")) :]
    assert "USER 1000:1000" in last
    assert not any("pip install" in one for one in last), "what builds stays in the first stage"


def test_versions_are_the_pinned_ones():
    image = re.search(r"ARG PYTHON_IMAGE=python:(\d+\.\d+)\.\d+-", DOCKERFILE)
    assert image[1] == PYTHON
    installs = re.findall(r"pip install (?:--no-deps )?([^&;\n]*)", "\n".join(INSTRUCTIONS))
    assert len(installs) == 4
    for install in installs:
        assert "--constraint scripts/constraints.txt" in install or "$AER==" in install
    assert "sed -n 's/^qiskit-aer==//p' scripts/constraints.txt" in DOCKERFILE
    assert {"ray", "torch", "qiskit-aer"} <= set(PINS)
    assert "train" in PROJECT["project"]["optional-dependencies"]
    assert f"--tag registry.example.com/qailab:{TAG} ." in DOCKERFILE


def test_the_context_has_what_is_copied_and_nothing_else():
    lines = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        word.split("/")[0]
        for one in INSTRUCTIONS
        if one.startswith("COPY") and "--from" not in one
        for word in one.split()[1:-1]
    }
    assert copied == allowed
    for name in allowed:
        assert (ROOT / name).exists()


@pytest.mark.parametrize("word", ["TOKEN", "SECRET", "PASSWORD", "API_KEY", "qiskit-ibm.json"])
def test_no_secret_is_built_in(word):
    for one in INSTRUCTIONS:
        if one.split()[0] in ("ARG", "ENV", "COPY", "ADD"):
            assert word not in one
