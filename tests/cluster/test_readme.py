"""Every command of cluster/README.md, as far as its program is here to be asked."""

import functools
import re
import subprocess
import sys

import click
import pytest
from ray.scripts.scripts import cli

from tests.cluster.files import CLUSTER, RAY_UP, README, ROOT, documents, readme_commands

COMMANDS = list(dict.fromkeys(readme_commands()))
# Not installed here, or of the system: read by people only.
NOT_CHECKED = {"aws", "base64", "chmod", "docker", "export", "gcloud", "helm", "install", "kubectl"}
NOT_CHECKED |= {"pip", "scancel", "scp", "squeue", "ssh", "ssh-keygen"}
RAY = [words for words in COMMANDS if words[0] == "ray"]
OURS = [words for words in COMMANDS if words[0] in ("python", "sbatch", "scripts/submit")]


def test_every_command_is_checked_or_listed():
    assert {words[0] for words in COMMANDS} - NOT_CHECKED == {
        *("ray", "python", "sbatch", "scripts/submit"),
    }
    assert len(RAY) > 10
    assert len(OURS) > 5


@pytest.mark.parametrize("words", RAY, ids=" ".join)
def test_ray_has_these_options(words):
    command, arguments, context = cli, list(words[1:]), click.Context(cli)
    while isinstance(command, click.Group):
        name = arguments.pop(0)
        command = command.get_command(context, name)
        assert command, f"ray has no {name}"
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    command.make_context("ray", list(arguments))
    for word in own:
        if word.endswith(".yaml"):
            assert (ROOT / word).exists()
    if "--" in arguments:
        check_program(tuple(arguments[arguments.index("--") + 1 :]))


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_our_programs_have_these_options(words):
    check_program(words)


def check_program(words):
    if words[:2] == ("python", "-m"):
        words, command = words[3:], ("-m", words[2])
    elif words[0] == "python":
        words, command = words[2:], (words[1],)
    elif words[0] == "sbatch":
        script = next(word for word in words if word.endswith(".sbatch"))
        assert (ROOT / script).exists()
        words, command = words[words.index(script) + 1 :], ("scripts/train.py",)
    else:
        words, command = words[1:], (words[0].removesuffix(".py") + ".py",)
    if "--" in words:
        check_program(words[words.index("--") + 1 :])
        words = words[: words.index("--")]
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    assert options <= options_of(command), f"{command} has no {options - options_of(command)}"


@functools.cache
def options_of(command):
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.stdout))


def test_the_job_of_kubernetes_has_these_options():
    (job,) = documents("kubernetes/job.yaml")
    check_program(tuple(job["spec"]["entrypoint"].replace("/opt/qailab/source/", "").split()))


@pytest.mark.parametrize("name", RAY_UP)
def test_each_cluster_has_its_three_commands(name):
    shown = [" ".join(words) for words in COMMANDS]
    assert f"ray up --yes cluster/{name}" in shown
    assert f"ray dashboard cluster/{name}" in shown
    assert f"ray down --yes cluster/{name}" in shown


def test_every_file_is_in_the_readme():
    for path in CLUSTER.rglob("*"):
        if path.is_file() and path.suffix not in (".dockerignore", ".pyc", ".md"):
            name = path.relative_to(CLUSTER)
            assert path.name in README or str(name) in README, f"{name} is not in the README"


def test_paths_of_the_readme_exist():
    for name in re.findall(r"\bcluster/[\w./-]+\.\w+", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (CLUSTER / name).exists(), name
