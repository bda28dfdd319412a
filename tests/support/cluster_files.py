"""The files of cluster/, read for the tests."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import yaml

import qailab

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text()
RAY_UP = ("local.yaml", "aws.yaml", "gcp.yaml")
CLOUDS = RAY_UP[1:]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(
    line.split("==")
    for line in (ROOT / "scripts/constraints.txt").read_text().splitlines()
    if "==" in line
)
PYTHON = PROJECT["tool"]["mypy"]["python_version"]
TAG = f"{qailab.__version__}-ray{PINS['ray']}-py{PYTHON}"
TEXTS = sorted(
    path
    for path in CLUSTER.rglob("*")
    if path.is_file() and path.suffix != ".pyc" and path.parent.name != "grafana"
)


def program(name):
    """The path of a program that comes with a Python package, and stands beside the interpreter."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{path} is not installed; it is in the dev extra"
    return str(path)


def documents(name):
    """The objects of a YAML file."""
    return [found for found in yaml.safe_load_all((CLUSTER / name).read_text()) if found]


def of_kind(name, kind):
    return [found for found in documents(name) if found["kind"] == kind]


def ray_starts(config):
    """The arguments of each `ray start` of a `ray up` file: the head's first."""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in config[key]:
            for part in re.split(r"&&|;", command):
                words = [word for word in shlex.split(part) if not re.match(r"\w+=", word)]
                if words[1:2] == ["start"] and words[0].endswith("ray"):
                    yield words[2:]


def options_of_ray_start(arguments):
    """What ``ray start`` understands by these arguments."""
    from ray.scripts.scripts import start

    return start.make_context("ray start", list(arguments)).params


def readme_commands():
    """Each command of the README's shell blocks, as words; loops and variables aside."""
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\(umask 077; (.*)\)", r"\1", line.strip())
            for part in re.split(r" (?:&&|\|) |; do$|; (?=\w)", line):
                words = shlex.split(part, comments=True)
                words = [word for word in words if word not in ("&", ">", "/dev/null")]
                if words and words[0] not in ("for", "done", "do"):
                    yield tuple(words)
                if words[:2] == ["ray", "exec"]:
                    yield tuple(shlex.split(words[-1]))  # runs on the head
