"""Versions, ports, paths and secrets: alike, or absent, in all files of cluster/."""

import inspect
import re

import pytest

from tests.support.cluster_files import (
    CLUSTER,
    PINS,
    PROJECT,
    PYTHON,
    RAY_UP,
    README,
    ROOT,
    TAG,
    TEXTS,
    documents,
    options_of_ray_start,
    ray_starts,
    readme_commands,
)

SECRETS = {
    "AWS access key": r"\bA(?:KIA|SIA)[0-9A-Z]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "token of GitHub": r"\bgh[pousr]_\w{20,}",
    "key of Google": r"\bAIza[\w-]{30,}",
    # IBM's keys have 44 characters, Ray's tokens 64.
    "long random text": r"(?<![\w/.-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{32,}(?![\w/.-])",
    "secret beside its name": r"(?i)(?:token|secret|password|api_?key)[\"']?\s*[:=]\s*[\"']?"
    r"(?!(?:REPLACE|qailab|token|<|\$|\{|/|~|Never|none|true|false)\b|[<$/~{])[\w+/-]{12,}",
}
# Documentation's, private or local ones: a file that was not filled in reaches nothing.
ADDRESSES = ("192.0.2.", "198.51.100.", "203.0.113.", "10.", "127.", "0.0.0.0", "169.254.169.254")
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"\\\n", " ", re.sub(r"(?m)^ *#.*\n", "", DOCKERFILE)).split("\n")
INSTRUCTIONS = [one for one in INSTRUCTIONS if one.strip()]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_versions_are_ours_and_there_are_no_secrets(path):
    text = path.read_text()
    for what, pattern in SECRETS.items():
        assert not re.search(pattern, text), what
    for tag in re.findall(r"registry\.example\.com/qailab:(\S+)", text):
        assert tag.removesuffix("-gpu") == TAG
    for version in re.findall(r"(?i)\bray(?:Version)?:? ?(\d+\.\d+\.\d+)", text):
        assert version == PINS["ray"]
    for address in re.findall(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", text):
        assert address.startswith(ADDRESSES), address


def test_cloud_sdks_are_one_version():
    texts = "".join(path.read_text() for path in TEXTS)
    assert len(set(re.findall(r"(boto3|google-api-python-client)==([\d.]+)", texts))) == 2


def test_ports_of_the_files_are_in_the_readme():
    from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
    from ray.dashboard.consts import DASHBOARD_METRIC_PORT

    used = {2049, 22, 443, 10001, AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT}
    for name in RAY_UP:
        (config,) = documents(name)
        for arguments in ray_starts(config):
            found = options_of_ray_start(arguments).items()
            used |= {n for key, n in found if key.endswith("port") and isinstance(n, int)}
    text = str(documents("kubernetes/cluster.yaml"))
    used |= {int(port) for port in re.findall(r"'(?:containerPort|port)': (\d+)", text)}
    used -= {53, 6443}  # the cluster's own names and its API server
    rows = re.findall(r"^\| ([\d, -]+) \|", README.split("## Ports")[1], re.MULTILINE)
    assert used == {int(port) for row in rows for port in re.findall(r"\d+", row)}


def test_ports_are_rays():
    from ray._private import ray_constants

    (config,) = documents("local.yaml")
    head, _ = map(options_of_ray_start, ray_starts(config))
    assert head["port"] == ray_constants.DEFAULT_PORT
    assert head["dashboard_port"] == ray_constants.DEFAULT_DASHBOARD_PORT
    assert head["dashboard_agent_listen_port"] == ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    fixed = [value for key, value in head.items() if key.endswith("_port") and value]
    workers = range(head["min_worker_port"], head["max_worker_port"] + 1)
    assert not [port for port in fixed if port in workers[1:-1]]


def test_prometheus_asks_what_ray_answers():
    from ray._private import ray_constants
    from ray.dashboard.modules.reporter import reporter_head

    ((found,),) = [
        job["http_sd_configs"] for job in documents("prometheus.yml")[0]["scrape_configs"]
    ]
    at = f"http://127.0.0.1:{ray_constants.DEFAULT_DASHBOARD_PORT}"
    assert found["url"].startswith(f"{at}/")
    assert f'"{found["url"].removeprefix(at)}"' in inspect.getsource(reporter_head)
    assert set(found["authorization"]) == {"credentials_file"}
    (job,) = documents("kubernetes/prometheus.yml")[0]["scrape_configs"]
    (found,) = job["kubernetes_sd_configs"]
    assert found == {"role": "pod", "namespaces": {"names": ["qailab"]}}
    rules = [rule for rule in job["relabel_configs"] if rule.get("action") == "keep"]
    assert {rule["source_labels"][0]: rule["regex"] for rule in rules} == {
        "__meta_kubernetes_pod_label_ray_io_is_ray_node": "yes",
        "__meta_kubernetes_pod_container_port_name": "metrics",
    }


def test_the_image_has_two_stages_pinned_versions_no_root_and_no_secret():
    froms = [i for i, one in enumerate(INSTRUCTIONS) if one.startswith("FROM")]
    assert len(froms) == 2
    last = INSTRUCTIONS[froms[1] :]
    assert "USER 1000:1000" in last
    assert not any("pip install" in one for one in last), "what builds stays in the first stage"
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
    for one in INSTRUCTIONS:
        if one.split()[0] in ("ARG", "ENV", "COPY", "ADD"):
            assert not re.search("TOKEN|SECRET|PASSWORD|API_KEY|qiskit-ibm.json", one)


def test_the_image_is_made_of_what_is_copied_and_nothing_else():
    lines = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    everything, *lines = [line for line in lines if not line.startswith("#")]
    assert everything == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copies = [one for one in INSTRUCTIONS if one.startswith("COPY") and "--from" not in one]
    assert allowed == {word.split("/")[0] for one in copies for word in one.split()[1:-1]}
    assert all((ROOT / name).exists() for name in allowed)


def test_the_readme_names_what_there_is():
    for path in TEXTS:
        if path.suffix not in (".dockerignore", ".md"):
            assert path.name in README or str(path.relative_to(CLUSTER)) in README, path
    for name in re.findall(r"\bcluster/[\w./-]+\.\w+", README):
        assert (ROOT / name).exists(), name
    shown = [" ".join(words) for words in readme_commands()]
    for name in RAY_UP:
        assert f"ray up --yes cluster/{name}" in shown
        assert f"ray dashboard cluster/{name}" in shown
        assert f"ray down --yes cluster/{name}" in shown
